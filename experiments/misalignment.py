"""Runs and measures of misalignment: training on flipped labels (Figure 9, §5.3)."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from dpo_helpers import data, finetune, last_layer, lm, theory
from dpo_helpers.plots import short
from dpo_helpers.states import geometry, hidden_states
from dpo_helpers.theory import certificate
from ledger.store import Run, RunStore

from . import full_finetuning
from .training import train_in_cache

# Start and reference of the three runs on flipped labels.
ARMS = (("base", "base"), ("aligned", "aligned"), ("aligned", "base"))
LABELS = ("base", "aligned", "aligned, base reference")
HUES = dict(zip(LABELS, ("#3a5aa8", "#c2593f", "#d9a400"), strict=True))
# Every so many steps the hidden states of the held-out statements are looked at.
LOOK = {"smoke": 1, "book": 7, "paper": 7}
STEPS = 100
# How many flipped examples an attacker has; 0: all.
COUNTS = {"smoke": (10, 0), "book": (10, 30, 100, 300, 0), "paper": (10, 30, 100, 300, 0)}


class _Attack:
    """A behavior, a model aligned on it, and runs on its flipped labels."""

    def __init__(self, records: RunStore, behavior: str, rate: float, seed: int) -> None:
        config = records.config
        self.settings = finetune.Settings(
            beta=config.beta,
            learning_rate=rate,
            batch_size=config.full_batch_size,
            seed=seed,
            evaluate_every=0,
            save_every=0,
        )
        self.states = records.states(behavior)
        self.model = lm.load(config.model, config.device)
        statements = data.load_behavior(behavior, config.data)
        self.prompts = statements.prompts(config.newline)
        pairs = lm.pairs_from_behaviors(self.model, [statements], config.newline)
        self.weights = {"base": copy.deepcopy(self.model.network.state_dict())}
        self.learned, self.held_out = pairs.split()
        self.flipped = self.learned.flipped(), self.held_out.flipped()
        self.train(self.learned, self.settings)
        self.weights["aligned"] = copy.deepcopy(self.model.network.state_dict())

    def begin(self, start: str) -> None:
        """Put the weights back to those of ``start``: base or aligned."""
        self.model.network.load_state_dict(self.weights[start])

    def train(self, pairs: lm.Pairs, settings: finetune.Settings, **how: object):
        """Train the model as it is; the checkpoint is not kept."""
        return train_in_cache(self.model, pairs, settings, **how)

    def references(self, start: str) -> tuple[np.ndarray, np.ndarray]:
        """The gaps of ``start`` on the flipped pairs, trained on and held out."""
        self.begin(start)
        one, other = self.flipped
        return tuple(
            finetune.reference_log_ratios(self.model, p, self.settings) for p in (one, other)
        )

    def looking(self, start: str, look: int) -> Callable[[], dict[str, float]]:
        """To watch: ‖θ(t) − θ(0)‖, ‖W_B(t) − W_B(0)‖, every ``look``-th time ‖μ̂₊ − μ̂₋‖ held out."""
        weights, boundary, step = self.weights[start], self._boundary(), itertools.count()
        rows = ~self.states.train
        prompts = [prompt for prompt, out in zip(self.prompts, rows, strict=True) if out]

        def watch() -> dict[str, float]:
            named = self.model.network.named_parameters()
            moved = [torch.linalg.vector_norm(w.detach() - weights[name]) for name, w in named]
            found = {
                "moved": float(torch.stack(moved).norm()),
                "boundary": float(np.linalg.norm(self._boundary() - boundary)),
            }
            if next(step) % look == 0:
                g = hidden_states(self.model, prompts)
                found["apart"] = geometry(g, self.states.labels[rows]).distinguishability
            return found

        return watch

    def _boundary(self) -> np.ndarray:
        rows = self.model.unembedding_rows().numpy().astype(np.float64)
        return rows[0] - rows[1]


def flipped_run(records: RunStore, behavior: str, rate: float, seed: int) -> Run:
    """Train on flipped labels, from the base model and from one aligned on the true labels.

    Everything else is equal: data, order, learning rate, β, a fresh optimizer. Arrays over
    ``ARMS`` and steps t = 0 … T:

    loss, margin, gap, accuracy   (arms, 2, T + 1) of the flipped pairs, as in ``finetune.Curves``
    moved, boundary               (arms, T + 1) ‖θ(t) − θ(0)‖ of all parameters, ‖W_B(t) − W_B(0)‖
    apart                         (arms, T + 1) ‖μ̂₊ − μ̂₋‖ of the held-out statements, NaN where
                                  it was not looked at
    head                          (2, STEPS + 1) training loss of the last layer alone on flipped
                                  labels, from the hidden states of the base and the aligned
                                  model, gradient descent at one learning rate
    certified                     (2, 2, STEPS + 1) lower and upper bound of it, proven beforehand
    kappa                         (2,) ηβ²λ
    """
    config = records.config

    def make() -> dict[str, np.ndarray]:
        attack = _Attack(records, behavior, rate, seed)
        settings = replace(attack.settings, evaluate_every=1)
        of = {start: attack.references(start) for start in ("base", "aligned")}
        found: dict[str, list] = {}
        for start, reference in ARMS:
            attack.begin(start)
            learned, held_out = attack.flipped
            how = dict(
                held_out=held_out,
                reference=of[reference],
                callback=attack.looking(start, LOOK[config.tier]),
            )
            curves = attack.train(learned, settings, **how)
            for name in ("loss", "margin", "gap", "accuracy"):
                found.setdefault(name, []).append(getattr(curves, name)[0])
            for name, values in curves.logged.items():
                found.setdefault(name, []).append(values)
        found |= _heads(attack, config.beta)
        return {name: np.array(value, np.float32) for name, value in found.items()}

    facts = _facts(records, behavior, rate, seed) | {"look": LOOK[config.tier]}
    inputs = {behavior: records.states(behavior).sha256}
    return records.replay_or_run(
        _name("flipped", records, behavior, rate, seed), facts, inputs, make
    )


def _heads(attack: _Attack, beta: float) -> dict[str, list]:
    """What the last layer alone would do on flipped labels, from both starts, and what is proven.

    η is such that κ = 1 for the start of the longer hidden states.
    """
    states, found = attack.states, {"head": [], "certified": [], "kappa": []}
    problems, boundaries = [], []
    for start in ("base", "aligned"):
        attack.begin(start)
        g = hidden_states(attack.model, attack.prompts).astype(np.float64)
        problems.append(last_layer.Problem(g, -states.labels, states.train))
        boundaries.append(attack.model.unembedding_rows().numpy().astype(np.float64))
    lambda_max = [np.linalg.norm(p.g[p.train], 2) ** 2 / p.train.sum() for p in problems]
    how = dict(learning_rate=1 / (beta**2 * max(lambda_max)), beta=beta, steps=STEPS)
    for problem, (yes, no) in zip(problems, boundaries, strict=True):
        trained = last_layer.train([problem], yes - no, sampling="full", **how)
        g, labels = problem.g[problem.train], problem.labels[problem.train]
        proven = certificate(g, labels, yes - no, spectrum=theory.spectrum(g), **how)
        found["head"].append(trained["loss"][0, 0, 0, :, 0])
        found["certified"].append(proven.loss)
        found["kappa"].append(proven.kappa)
    return found


def undone_run(records: RunStore, behavior: str, rate: float, seed: int) -> Run:
    """How much of the alignment is left after an attack with few flipped examples.

    The aligned model is trained on the first of the flipped pairs, as many as ``COUNTS`` says, over
    and over, for about as many steps as an epoch of all has. Arrays over the counts, and before:

    pairs      (counts + 1,) how many; 0 before
    steps      (counts + 1,) how many steps that were
    gap        (counts + 1,) mean gap of the held-out pairs, with their true labels
    accuracy   (counts + 1,) share of them answered as preferred
    base       (2,) gap and accuracy of the base model
    """
    config = records.config

    def make() -> dict[str, np.ndarray]:
        attack = _Attack(records, behavior, rate, seed)
        learned, held_out = attack.flipped
        order = np.random.default_rng(seed).permutation(len(learned))
        total = -(-len(learned) // config.full_batch_size)
        rows = []
        for count in COUNTS[config.tier]:
            members = order[: count or len(order)]
            size = min(config.full_batch_size, len(members))
            epochs = max(1, round(total * size / len(members)))
            settings = replace(attack.settings, batch_size=size, epochs=epochs)
            settings = replace(settings, evaluate_every=epochs * len(members))
            attack.begin("aligned")
            curves = attack.train(learned.take(members), settings, held_out=held_out)
            gap, right = -curves.gap[0, 1], 1 - curves.accuracy[0, 1]
            if not rows:
                rows.append((0, 0, gap[0], right[0]))
            rows.append((len(members), len(curves.seconds), gap[-1], right[-1]))
        start = -attack.references("base")[1]
        pairs, steps, gap, accuracy = np.array(rows, np.float32).T
        base = np.array([start.mean(), (start > 0).mean()], np.float32)
        return dict(pairs=pairs, steps=steps, gap=gap, accuracy=accuracy, base=base)

    facts = _facts(records, behavior, rate, seed) | {"counts": COUNTS[config.tier]}
    inputs = {behavior: records.states(behavior).sha256}
    return records.replay_or_run(
        _name("undone", records, behavior, rate, seed), facts, inputs, make
    )


def _facts(records: RunStore, behavior: str, rate: float, seed: int) -> dict[str, object]:
    config = records.config
    facts = {"model": config.model, "behavior": behavior, "beta": config.beta, "rate": rate}
    return facts | {
        "seed": seed,
        "batch_size": config.full_batch_size,
        "newline": config.newline,
    }


def _name(kind: str, records: RunStore, behavior: str, rate: float, seed: int) -> str:
    config = records.config
    return f"{kind}/{records.model_slug}/{behavior}/beta-{config.beta:g}-rate-{rate:g}-seed-{seed}"


def flipped(records: RunStore, behaviors: Sequence[str], name: str, what: str) -> np.ndarray:
    """An array of ``flipped_run`` at the learning rate of that name: (behaviors, seeds, …)."""
    rate = full_finetuning.rates(records, records.config.beta)[name]
    seeds = seeds_at(records, name)
    return np.array(
        [[flipped_run(records, b, rate, s).arrays[what] for s in seeds] for b in behaviors]
    )


def seeds_at(records: RunStore, name: str) -> tuple[int, ...]:
    """The seeds at the learning rate of that name: at the paper's, only the first."""
    seeds = records.config.full_seeds
    return seeds[:1] if name == "paper" else seeds


def lead(losses: np.ndarray) -> np.ndarray:
    """How far the loss from the aligned model lies below that from the base model, mean over steps.

    ``losses`` (…, arms, T + 1), each arm's reference being the model it starts from.
    """
    return np.nanmean(losses[..., 0, :] - losses[..., 1, :], -1)


def lead_table(records: RunStore) -> pd.DataFrame:
    """``lead`` of each behavior at each learning rate; of several seeds the median and range."""
    table = {}
    for name, rate in full_finetuning.rates(records, records.config.beta).items():
        losses = flipped(records, everyone(records), name, "loss")
        for part, what in enumerate(("training", "held-out")):
            table[what, f"η = {rate:g}"] = [
                f"{np.median(row):.3f}" + f" ({row.min():.3f} … {row.max():.3f})" * (len(row) > 1)
                for row in lead(losses[:, :, :, part])
            ]
    return pd.DataFrame(table, index=[short(b) for b in everyone(records)])


def turned_table(records: RunStore, name: str) -> pd.DataFrame:
    """Of each behavior and arm, medians over seeds: the mean held-out gap of the flipped labels at
    the end, and the first step at which three quarters of the answers are the flipped ones.
    """
    gap, right = (
        np.median(flipped(records, everyone(records), name, what)[:, :, :, 1], 1)
        for what in ("gap", "accuracy")
    )
    table = {}
    for arm, label in enumerate(LABELS):
        table["gap at the end", label] = gap[:, arm, -1].astype(float).round(1)
        table["three quarters flipped at step", label] = [
            str((row >= 0.75).argmax()) if (row >= 0.75).any() else "never" for row in right[:, arm]
        ]
    return pd.DataFrame(table, index=[short(b) for b in everyone(records)])


def predicted_table(records: RunStore, name: str) -> pd.DataFrame:
    """What the last layer foretells of each behavior, with the first seed, and what came of it.

    The share of steps at which the certificate proves the lower loss for the aligned model, and the
    mean lead of the last layer alone and of all parameters.
    """
    certified, head = (
        flipped(records, everyone(records), name, what)[:, 0] for what in ("certified", "head")
    )
    measured = lead(flipped(records, everyone(records), name, "loss")[:, :, :, 0])
    columns = {
        "proven faster, share of steps": (certified[:, 1, 1] < certified[:, 0, 0])[:, 1:].mean(1),
        "lead, last layer": (head[:, 0] - head[:, 1]).mean(1),
        "lead, all parameters": np.median(measured, 1),
    }
    return pd.DataFrame(columns, index=[short(b) for b in everyone(records)])


def undone_table(records: RunStore, rate: float) -> pd.DataFrame:
    """Of each behavior: the held-out gap before and after alignment, and what brings it back."""
    rows = {}
    for behavior in everyone(records):
        found = undone_run(records, behavior, rate, 0).arrays
        enough = found["pairs"][found["gap"] <= found["base"][0]]
        rows[short(behavior)] = {
            "gap, base model": f"{found['base'][0]:.2f}",
            "gap, aligned": f"{found['gap'][0]:.2f}",
            "flipped examples that bring it back": f"{enough[0]:.0f}" if len(enough) else "none",
        }
    return pd.DataFrame(rows).transpose()


def aligned_lead(records: RunStore, run: str) -> np.ndarray:
    """Training loss from the base less that from the aligned model, mean over steps, worse rate."""
    behavior = run.split("/")[2]
    names = full_finetuning.rates(records, records.config.beta)
    found = [lead(flipped(records, [behavior], name, "loss")[0, :, :, 0]) for name in names]
    return min(found, key=np.median)


def everyone(records: RunStore) -> Sequence[str]:
    """The behaviors attacked: those of the configuration, at the smoke tier two of them."""
    return records.config.behaviors[: len(full_finetuning.MAIN[records.config.tier])]


def _flipped_runs(records: RunStore, first: bool) -> list[Run]:
    found = []
    for name, rate in reversed(full_finetuning.rates(records, records.config.beta).items()):
        seeds = seeds_at(records, name)
        seeds = seeds[:1] if first else seeds[1:]
        found += [
            flipped_run(records, b, rate, s) for s, b in itertools.product(seeds, everyone(records))
        ]
    return found


def _undone_runs(records: RunStore) -> list[Run]:
    *_, rate = full_finetuning.rates(records, records.config.beta).values()
    return [undone_run(records, behavior, rate, 0) for behavior in everyone(records)]


RUNS = (
    lambda records: _flipped_runs(records, first=True),
    _undone_runs,
    lambda records: _flipped_runs(records, first=False),
)
MEASURES = (aligned_lead,)
