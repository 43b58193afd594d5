"""Runs and measures of misalignment: training on flipped labels (Figure 9, §5.3)."""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from dpo_helpers import data, last_layer, lm, theory
from dpo_helpers.states import geometry, hidden_states
from ledger.store import Run, RunStore

from . import full_finetuning

# Start and reference of the three runs on flipped labels.
ARMS = (("base", "base"), ("aligned", "aligned"), ("aligned", "base"))
LABELS = ("base", "aligned", "aligned, base reference")
HUES = dict(zip(LABELS, ("#3a5aa8", "#c2593f", "#d9a400"), strict=True))
# Steps between two measurements of the hidden states of the held-out statements.
LOOK = {"smoke": 3, "book": 7, "paper": 7}
STEPS = 100
# Numbers of flipped examples that an attacker has; 0: all.
COUNTS = {"smoke": (10, 0), "book": (10, 30, 100, 300, 0), "paper": (10, 30, 100, 300, 0)}


class _Attack:
    """A behavior, a model aligned on it for one epoch, and what its misalignment needs."""

    def __init__(self, records: RunStore, behavior: str, rate: float, seed: int) -> None:
        from dpo_helpers import finetune

        from .training import train_in_cache

        config, self.states = records.config, records.states(behavior)
        how = dict(beta=config.beta, learning_rate=rate, batch_size=config.full_batch_size)
        self.settings = finetune.Settings(seed=seed, evaluate_every=0, save_every=0, **how)
        self.model = lm.load(config.model, config.device)
        self.train = partial(train_in_cache, self.model)
        self.log_ratios = partial(finetune.reference_log_ratios, self.model, settings=self.settings)
        statements = data.load_behavior(behavior, config.data)
        self.prompts = statements.prompts(config.newline)
        self.given = lm.pairs_from_behaviors(self.model, [statements], config.newline).split()
        self.weights = {"base": copy.deepcopy(self.model.network.state_dict())}
        self.train(self.given[0], self.settings)
        self.weights["aligned"] = copy.deepcopy(self.model.network.state_dict())

    def begin(self, start: str) -> None:
        """Set the weights to those of ``start``: base or aligned."""
        self.model.network.load_state_dict(self.weights[start])

    def references(self, start: str) -> tuple[np.ndarray, np.ndarray]:
        """Log-ratios under ``start`` of the flipped pairs: exactly minus those of the given."""
        self.begin(start)
        return tuple(-self.log_ratios(pairs) for pairs in self.given)

    def boundary(self) -> np.ndarray:
        """W_B of the weights as they are, (d,) float64."""
        return -np.diff(self.model.unembedding_rows().numpy().astype(np.float64), axis=0)[0]

    def callback(self, start: str, look: int) -> Callable[[], dict[str, float]]:
        """Measure what ``flipped_run`` records under ``moved``, ``boundary`` and ``apart``."""
        import torch

        weights, boundary, step = self.weights[start], self.boundary(), itertools.count()
        rows = np.flatnonzero(~self.states.train)

        def measure() -> dict[str, float]:
            named = self.model.network.named_parameters()
            moved = [torch.linalg.vector_norm(w.detach() - weights[name]) for name, w in named]
            turned = np.linalg.norm(self.boundary() - boundary)
            found = {"moved": float(torch.stack(moved).norm()), "boundary": float(turned)}
            if next(step) % look == 0:
                g = hidden_states(self.model, [self.prompts[i] for i in rows])
                found["apart"] = geometry(g, self.states.labels[rows]).distinguishability
            return found

        return measure

    def last_layer(self, beta: float) -> dict[str, list]:
        """``head``, ``certified`` and ``kappa``; η is such that the larger κ of the two is 1."""
        starts, found = [], {"head": [], "certified": [], "kappa": []}
        for start in ("base", "aligned"):
            self.begin(start)
            g = hidden_states(self.model, self.prompts).astype(np.float64)
            problem = last_layer.Problem(g, -self.states.labels, self.states.train)
            starts.append((problem, self.boundary()))
        lambda_max = [np.linalg.norm(p.g[p.train], 2) ** 2 / p.train.sum() for p, _ in starts]
        how = dict(learning_rate=1 / (beta**2 * max(lambda_max)), beta=beta, steps=STEPS)
        for p, boundary in starts:
            trained = last_layer.train([p], boundary, sampling="full", **how)
            proven = theory.certificate(p.g[p.train], p.labels[p.train], boundary, **how)
            found["head"].append(trained["loss"][0, 0, 0, :, 0])
            found["certified"].append(proven.loss)
            found["kappa"].append(proven.kappa)
        return found


_LAST: dict[tuple, _Attack] = {}


def _attack(records: RunStore, behavior: str, *which: float) -> _Attack:
    """The attack of this behavior, learning rate and seed; the latest is kept for the next run."""
    if (key := (records.config, records.states(behavior).sha256, *which)) not in _LAST:
        _LAST.clear()  # before the next is made: two may not fit in memory
        _LAST[key] = _Attack(records, behavior, *which)
    return _LAST[key]


def flipped_run(records: RunStore, behavior: str, rate: float, seed: int) -> Run:
    """Train on flipped labels, from the base model and from one aligned on the true labels.

    Data, order, η, β and a fresh optimizer are the same. Arrays over ``ARMS`` and t = 0 … T:

    loss, margin, gap, accuracy   (arms, 2, T + 1) of the flipped pairs, as in ``finetune.Curves``
    moved, boundary   (arms, T + 1) ‖θ(t) − θ(0)‖ of all parameters, ‖W_B(t) − W_B(0)‖
    apart             (arms, T + 1) ‖μ̂₊ − μ̂₋‖ of held-out statements, NaN where not measured
    head              (2, STEPS + 1) training loss of gradient descent on the last layer alone, on
                      flipped labels, from the hidden states of the base and the aligned model
    certified         (2, 2, STEPS + 1) lower and upper bound of it, proven beforehand
    kappa             (2,) ηβ²λ
    """
    look = LOOK[records.config.tier]

    def make() -> dict[str, np.ndarray]:
        attack = _attack(records, behavior, rate, seed)
        settings = replace(attack.settings, evaluate_every=1)
        references = {start: attack.references(start) for start in ("base", "aligned")}
        learned, held_out = (pairs.flipped() for pairs in attack.given)
        found: dict[str, list] = {}
        for start, reference in ARMS:
            attack.begin(start)
            how = dict(reference=references[reference], callback=attack.callback(start, look))
            curves = attack.train(learned, settings, held_out=held_out, **how)
            arrays = {n: getattr(curves, n)[0] for n in ("loss", "margin", "gap", "accuracy")}
            for name, values in (arrays | curves.logged).items():
                found.setdefault(name, []).append(values)
        found |= attack.last_layer(records.config.beta)
        return {name: np.array(value, np.float32) for name, value in found.items()}

    return _recorded(records, "flipped", (behavior, rate, seed), {"look": look}, make)


def undone_run(records: RunStore, behavior: str, rate: float, seed: int) -> Run:
    """What is left of the alignment after an attack with few flipped examples.

    The aligned model is trained on ``COUNTS`` of the flipped pairs, over and over, for about as
    many steps as an epoch of all pairs has. Arrays (1 + counts,), first before the attack:

    pairs, steps    how many pairs and steps
    gap, accuracy   mean log-ratio of the held-out pairs with their true labels, and share of them
                    answered as preferred; ``base`` (2,) has both of the base model
    """
    config = records.config

    def make() -> dict[str, np.ndarray]:
        attack = _attack(records, behavior, rate, seed)
        learned, held_out = (pairs.flipped() for pairs in attack.given)
        order = np.random.default_rng(seed).permutation(len(learned))
        total = -(-len(learned) // config.full_batch_size)
        rows = []
        for count in COUNTS[config.tier]:
            members = order[: count or len(order)]
            size = min(config.full_batch_size, len(members))
            epochs = max(1, round(total * size / len(members)))
            how = dict(batch_size=size, epochs=epochs, evaluate_every=epochs * len(members))
            attack.begin("aligned")
            settings = replace(attack.settings, **how)
            curves = attack.train(learned.take(members), settings, held_out=held_out)
            gap, right = -curves.gap[0, 1], 1 - curves.accuracy[0, 1]
            rows = rows or [(0, 0, gap[0], right[0])]
            rows.append((len(members), len(curves.seconds), gap[-1], right[-1]))
        start = -attack.references("base")[1]
        pairs, steps, gap, accuracy = np.array(rows, np.float32).T
        base = np.array([start.mean(), (start > 0).mean()], np.float32)
        return dict(pairs=pairs, steps=steps, gap=gap, accuracy=accuracy, base=base)

    more = {"counts": COUNTS[config.tier]}
    return _recorded(records, "undone", (behavior, rate, seed), more, make)


def _recorded(records: RunStore, kind: str, which: tuple, more: dict, make: Callable) -> Run:
    config, (behavior, rate, seed) = records.config, which
    settings = {"model": config.model, "behavior": behavior, "beta": config.beta, "rate": rate}
    settings |= {"seed": seed, "batch_size": config.full_batch_size, "newline": config.newline}
    name = f"{kind}/{records.model_slug}/{behavior}/beta-{config.beta:g}-rate-{rate:g}-seed-{seed}"
    inputs = {behavior: records.states(behavior).sha256}
    return records.replay_or_run(name, settings | more, inputs, make)


def everyone(records: RunStore) -> Sequence[str]:
    """The behaviors attacked: those of the configuration, at the smoke tier two of them."""
    return records.config.behaviors[: len(full_finetuning.MAIN[records.config.tier])]


def flipped(records: RunStore, behaviors: Sequence[str], name: str, what: str) -> np.ndarray:
    """An array of ``flipped_run`` at the learning rate of that name: (behaviors, seeds, …)."""
    rate, seeds = full_finetuning.rates(records, records.config.beta)[name], _seeds(records, name)
    return np.array(
        [[flipped_run(records, b, rate, s).arrays[what] for s in seeds] for b in behaviors]
    )


def _seeds(records: RunStore, name: str) -> tuple[int, ...]:
    """The seeds at a learning rate: at the paper's, only the first."""
    return records.config.full_seeds[: 1 if name == "paper" else None]


def lead(losses: np.ndarray) -> np.ndarray:
    """Loss from the base model less the loss from the aligned one, mean over steps.

    ``losses`` (…, arms, T + 1), each arm's reference being the model it starts from.
    """
    return np.nanmean(losses[..., 0, :] - losses[..., 1, :], -1)


def aligned_lead(records: RunStore, run: str) -> np.ndarray:
    """``lead`` in training loss of one behavior, over the seeds, at the worse learning rate."""
    behavior = run.split("/")[2]
    names = full_finetuning.rates(records, records.config.beta)
    found = [lead(flipped(records, [behavior], name, "loss")[0, :, :, 0]) for name in names]
    return min(found, key=np.median)


def _runs(records: RunStore) -> Iterable[Run]:
    """All runs; those that start from the same aligned model follow each other."""
    rates, seeds = full_finetuning.rates(records, records.config.beta), records.config.full_seeds
    *_, largest = rates
    for seed, name, behavior in itertools.product(seeds, reversed(rates), everyone(records)):
        if seed in _seeds(records, name):
            yield flipped_run(records, behavior, rates[name], seed)
        if name == largest and seed == seeds[0]:
            yield undone_run(records, behavior, rates[name], 0)


RUNS = (lambda records: list(_runs(records)),)
MEASURES = (aligned_lead,)
