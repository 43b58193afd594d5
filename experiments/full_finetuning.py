"""Runs and measures of full fine-tuning (Figures 6 and 7, Figures 17 to 19)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from dpo_helpers import data, finetune, lm
from dpo_helpers.states import geometry, hidden_states, probe, umap_2d
from ledger.config import FIVE, TIERS, Config
from ledger.store import Run, RunStore, States

from .shared import distinguishability, is_second, last_layer_run, pairs
from .training import train_in_cache

# The learning rates of Figures 6 and 17 to 19, by β; 1e-6 "due to large oscillations".
PAPER_RATES = {0.001: 1e-5, 0.01: 1e-5, 0.1: 1e-5, 1.0: 1e-6}
# Those of Figures 10 to 14, under the second model.
SECOND_RATES = {0.01: 1e-6}
# The other β: Figures 17, 18 and 19.
BETAS = {"smoke": (1.0,), "book": (0.001, 0.1, 1.0)}
BETAS["paper"] = BETAS["book"]
# The behaviors trained there.
MAIN = {"smoke": TIERS["smoke"]["behaviors"][:2], "book": FIVE, "paper": FIVE}
# What the rule tries in turn: multiples of the paper's learning rate. The paper's model needs none.
FACTORS = {"smoke": (1.0, 10.0), "book": (1.0, 3.0, 10.0, 30.0, 100.0), "paper": (1.0,)}
TARGET_LOSS = 0.5


def trained_run(
    records: RunStore, behaviors: Sequence[str], beta: float, rate: float, seed: int
) -> Run:
    """Train all parameters on one behavior, or on a mixture of several, for one epoch.

    Arrays ``loss``, ``margin``, ``gap``, ``accuracy``, ``gradient`` as in
    ``finetune.Curves``, and ``boundary`` (T + 1,), ‖W_B(t) − W_B(0)‖.

    Of one behavior alone, with seed 0, also what became of its hidden states:

    apart, covariance, trace   (2, 2) ‖μ̂₊ − μ̂₋‖, max ‖Σ̂±‖, max Tr Σ̂±: before and after, of all
                               statements and of the held-out ones
    separable                  (2,) held-out accuracy of a linear classifier, before and after
    parts                      (3,) mean over the held-out statements of the change of the gap
                               s W_B·g: by W_B alone, by g alone, by both together
    separate, joint            (2, n, 2) UMAP coordinates before and after, fitted apart, and
                               fitted to both at once
    """
    config = records.config
    states = [records.states(behavior) for behavior in behaviors]
    settings = finetune.Settings(
        beta=beta,
        learning_rate=rate,
        batch_size=config.full_batch_size,
        seed=seed,
        save_every=0,
    )
    facts = {"model": config.model, "behaviors": list(behaviors)}
    facts |= {"beta": beta, "rate": rate, "seed": seed}
    facts |= {"batch_size": settings.batch_size, "newline": config.newline}

    def make() -> dict[str, np.ndarray]:
        model = lm.load(config.model, config.device)
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
        pairs = lm.pairs_from_behaviors(model, statements, config.newline)
        start = model.unembedding_rows()

        def watch() -> dict[str, float]:
            moved = model.unembedding_rows() - start
            return {"boundary": (moved[0] - moved[1]).norm().item()}

        learned, held_out = pairs.split()
        curves = train_in_cache(model, learned, settings, held_out=held_out, callback=watch)
        found = {name: getattr(curves, name) for name in ("loss", "margin", "gap", "accuracy")}
        found |= {"gradient": curves.grad_norm, "boundary": curves.logged["boundary"]}
        if len(behaviors) == 1 and seed == 0:
            g = hidden_states(model, statements[0].prompts(config.newline))
            rows = model.unembedding_rows().numpy()
            found |= _changed(states[0], g, rows[0] - rows[1])
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    name = (
        f"full/{records.model_slug}/{'+'.join(behaviors)}/beta-{beta:g}-rate-{rate:g}-seed-{seed}"
    )
    inputs = {s.behavior: s.sha256 for s in states}
    return records.replay_or_run(name, facts, inputs, make)


def _changed(before: States, g: np.ndarray, boundary: np.ndarray) -> dict:
    """What ``trained_run`` records of the hidden states ``g`` (n, d) after training."""
    subsets = (np.ones(len(g), bool), ~before.train)
    times = (before.g, g)
    found = [[geometry(x[rows], before.labels[rows]) for rows in subsets] for x in times]
    arrays = {
        name: [[getattr(m, field) for m in row] for row in found]
        for name, field in (
            ("apart", "distinguishability"),
            ("covariance", "cov_norm"),
            ("trace", "cov_trace"),
        )
    }
    arrays["separable"] = [probe(x, before.labels, before.train)[1] for x in times]
    signs, rows = before.labels[~before.train], ~before.train
    moved, turned = boundary - before.boundary, g[rows] - before.g[rows]
    parts = (before.g[rows] @ moved, turned @ before.boundary, turned @ moved)
    arrays["parts"] = [(signs * part).mean() for part in parts]
    both = umap_2d(np.concatenate(times)).reshape(2, len(g), 2)
    return arrays | {"separate": [umap_2d(x) for x in times], "joint": both}


def first_step_run(records: RunStore) -> Run:
    """One full-batch step of AdamW at the paper's learning rate, for every behavior at hand.

    Arrays (behaviors,): ``gradient``, the norm of the gradient of the training loss over all
    parameters; ``head``, that over the two rows alone, from the hidden states; ``loss``
    (behaviors, 2), the loss of all training statements before and after.
    """
    config = records.config
    beta, rate = config.beta, PAPER_RATES[0.01]
    behaviors = at_hand(config)
    states = [records.states(behavior) for behavior in behaviors]

    def measure(s: States) -> tuple[float, float, np.ndarray]:
        model = lm.load(config.model, config.device)
        behavior = data.load_behavior(s.behavior, config.data)
        learned, _ = lm.pairs_from_behaviors(model, [behavior], config.newline).split()
        settings = finetune.Settings(
            beta=beta, learning_rate=rate, batch_size=len(learned), save_every=0
        )
        curves = train_in_cache(model, learned, settings, held_out=learned)
        # Of −log σ(0) over W_U[Yes] and W_U[No]: ∓ (β/2) mean s g.
        pull = (s.labels[s.train, None] * s.g[s.train]).mean(0)
        return curves.grad_norm[0], beta * np.linalg.norm(pull) / np.sqrt(2), curves.loss[0, 1]

    def make() -> dict[str, np.ndarray]:
        gradient, head, loss = map(np.array, zip(*map(measure, states), strict=True))
        return {"gradient": gradient, "head": head, "loss": loss}

    inputs = {s.behavior: s.sha256 for s in states}
    facts = {"model": config.model, "beta": beta, "rate": rate, "newline": config.newline}
    return records.replay_or_run("first-step", facts, inputs, make)


def paper_rates(config: Config) -> dict[float, float]:
    """The paper's learning rates by β: of its first model, or, under the second, of its second."""
    return SECOND_RATES if is_second(config) else PAPER_RATES


def calibration_runs(records: RunStore) -> list[Run]:
    """The calibration behavior trained at multiples of the paper's rate, until the rule is met.

    The rule: the smallest of ``FACTORS`` at which the held-out loss of the calibration behavior,
    at β = 0.01, ends its epoch at ``AIM`` or below.
    """
    runs = []
    for factor in FACTORS[records.config.tier]:
        rate = factor * paper_rates(records.config)[0.01]
        runs.append(trained_run(records, [records.config.calibration], 0.01, rate, 0))
        if runs[-1].arrays["loss"][0, 1, -1] <= TARGET_LOSS:
            break
    return runs


def factor(records: RunStore) -> float:
    """The factor that the rule found; where none meets it, that of the lowest held-out loss."""
    last = [run.arrays["loss"][0, 1, -1] for run in calibration_runs(records)]
    good = [i for i, value in enumerate(last) if value <= TARGET_LOSS]
    return FACTORS[records.config.tier][good[0] if good else int(np.argmin(last))]


def rates(records: RunStore, beta: float) -> dict[str, float]:
    """The learning rates of a figure, by name: the paper's and that scaled to this model.

    Or the one that the reader gave.
    """
    given = records.config.full_learning_rate
    if given != "rule":
        return {"given": given}
    known = paper_rates(records.config)
    paper = known[min(known, key=lambda at: abs(np.log(at / beta)))]
    return {"paper": paper, "scaled": float(f"{factor(records) * paper:.6g}")}


def stacked(
    records: RunStore,
    behaviors: Sequence[str],
    beta: float,
    rate: float,
    what: str,
    seeds: Sequence[int] | None = None,
) -> np.ndarray:
    """An array of ``trained_run`` of each behavior alone with each seed: (behaviors, seeds, …)."""
    seeds = records.config.full_seeds if seeds is None else seeds
    return np.array(
        [[trained_run(records, [b], beta, rate, s).arrays[what] for s in seeds] for b in behaviors]
    )


def at_hand(config: Config) -> list[str]:
    """The behaviors of a tier's figures, pairs included."""
    paired = [behavior for pair in pairs(config) for behavior in pair]
    return list(dict.fromkeys((*TIERS[config.tier]["behaviors"], *paired, config.calibration)))


def _five(records: RunStore, betas: Sequence[float], seeds: Sequence[int]) -> Iterator[Run]:
    """The behaviors of Figure 6, at each β, with each seed, at both learning rates."""
    tier = records.config.tier
    for beta, seed in product(betas, seeds):
        behaviors = TIERS[tier]["behaviors"] if beta == 0.01 else MAIN[tier]
        for rate, behavior in product(rates(records, beta).values(), behaviors):
            yield trained_run(records, [behavior], beta, rate, seed)


def _pairs(records: RunStore) -> Iterator[Run]:
    """The mixtures of Figure 7, one run each."""
    for rate, pair in product(rates(records, 0.01).values(), pairs(records.config)):
        yield trained_run(records, pair, 0.01, rate, 0)


def swept(records: RunStore) -> dict[str, np.ndarray]:
    """What a sweep shows of a configuration: curves by name, (T + 1,) each, means over seeds."""
    config = records.config
    found = {}
    for (rate_name, rate), behavior in product(
        rates(records, config.beta).items(), config.behaviors
    ):
        told = [behavior] * (len(config.behaviors) > 1)
        told += {"paper": ["paper's rate"], "scaled": ["scaled rate"], "given": []}[rate_name]
        for what, array, part in (
            ("training loss", "loss", 0),
            ("held-out loss", "loss", 1),
            ("held-out accuracy", "accuracy", 1),
        ):
            values = stacked(records, [behavior], config.beta, rate, array)[0, :, 0, part]
            found[", ".join([what, *told])] = values.mean(0)
    return found


def rank_test(distances: np.ndarray, area: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of distinguishability with the fall of the loss, and its p-value.

    ``area`` is the mean of a loss over the steps: the lower, the faster it fell. The p-value is
    exact up to seven behaviors: the share of their orders that would correlate as much. Both (n,).
    """

    def statistic(x: np.ndarray) -> float:
        return stats.spearmanr(x, -area).statistic

    found = stats.permutation_test(
        (distances,),
        statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(found.statistic), float(found.pvalue)


def rank_table(distances: np.ndarray, areas: Mapping[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """``rank_test`` of areas (behaviors, seeds), by column and row: medians over seeds, in words.

    ``distances`` (behaviors,) is what the order of the areas is compared with.
    """
    table: dict[str, dict[str, str]] = {}
    for (column, row), values in areas.items():
        rho, p = np.median([rank_test(distances, area) for area in values.T], 0)
        table.setdefault(column, {})[row] = f"{rho:.2f} (p = {p:.3f})"
    return pd.DataFrame(table)


def calibration_table(records: RunStore) -> pd.DataFrame:
    """What the rule looked at: the learning rate, and where the held-out pairs ended."""
    runs = calibration_runs(records)
    columns = {"η": [f"{run.info['key']['settings']['rate']:g}" for run in runs]}
    for what in ("loss", "accuracy"):
        columns[f"held-out {what}"] = [run.arrays[what][0, 1, -1] for run in runs]
    return pd.DataFrame(columns)


def predicted_table(records: RunStore) -> pd.DataFrame:
    """How well what is known before an epoch orders the behaviors as it learns them.

    Rank correlations as in ``rank_table``, a row a predictor.
    """
    behaviors = MAIN[records.config.tier]
    step = {name: x[: len(behaviors)] for name, x in first_step_run(records).arrays.items()}
    head = last_layer_run(records, "f3").arrays["loss"][: len(behaviors), 0, 0]
    predictors = {
        "distinguishability": distinguishability(records, behaviors),
        "last layer alone, trained": -np.median(head.mean(1), 1),
        "gradient of all parameters": step["gradient"],
        "first step of all parameters": step["loss"][:, 0] - step["loss"][:, 1],
    }
    found = {
        f"{what}, η = {rate:g}": areas(records, 0.01, rate, part)
        for rate in rates(records, 0.01).values()
        for part, what in enumerate(("training loss", "held-out loss"))
    }
    rows = [
        rank_table(values, {(what, name): area for what, area in found.items()})
        for name, values in predictors.items()
    ]
    return pd.concat(rows)


def gap_growth(records: RunStore) -> pd.DataFrame:
    """Growth of the mean held-out gap over an epoch, by β, at the rate that most of them share."""
    tier = records.config.tier
    rate = next(iter(rates(records, 0.01).values()))
    growth = {}
    for beta in sorted({0.01, *BETAS[tier]}):
        if rate in rates(records, beta).values():
            gap = stacked(records, MAIN[tier], beta, rate, "gap", (0,))[:, 0, 0, 1]
            growth[f"β = {beta:g}, η = {rate:g}"] = gap[:, -1] - gap[:, 0]
    return pd.DataFrame(growth)


def areas(records: RunStore, beta: float, rate: float, part: int) -> np.ndarray:
    """The mean over the steps of the training (0) or held-out loss (1): (behaviors, seeds)."""
    seeds = records.config.full_seeds if beta == 0.01 else (0,)
    losses = stacked(records, MAIN[records.config.tier], beta, rate, "loss", seeds)[:, :, 0, part]
    return np.nanmean(losses, -1)


def training_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of ‖μ̂₊ − μ̂₋‖ with the fall of the training loss, at the worse rate."""
    return _order(records, run, 0)


def held_out_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of ‖μ̂₊ − μ̂₋‖ with the fall of the test loss, at the worse rate."""
    return _order(records, run, 1)


def _order(records: RunStore, run: str, part: int) -> np.ndarray:
    beta = float(re.search(r"beta-([^-*]+)", run)[1])
    distances = distinguishability(records, MAIN[records.config.tier])
    found = [
        [rank_test(distances, area)[0] for area in areas(records, beta, rate, part).T]
        for rate in rates(records, beta).values()
    ]
    return np.min(found, 0)


def pair_losses(records: RunStore, pair: Sequence[str], rate: float) -> np.ndarray:
    """The held-out losses of the two behaviors of a pair trained together, seed 0: (2, T + 1)."""
    return trained_run(records, pair, 0.01, rate, 0).arrays["loss"][:, 1]


def pair_table(records: RunStore) -> pd.DataFrame:
    """Of each pair and learning rate: how far apart, and which of the two leads."""
    rows = []
    for letter, pair in zip("ab", pairs(records.config), strict=True):
        first, second = distinguishability(records, pair)
        for rate in rates(records, 0.01).values():
            one, other = pair_losses(records, pair, rate)
            ahead = (1 if second > first else -1) * (one - other)[1:] > 0
            rows.append(
                {
                    "pair": f"({letter})",
                    "η": f"{rate:g}",
                    "‖μ̂₊ − μ̂₋‖": f"{first:.2f} and {second:.2f}",
                    "mean |L₁ − L₂|": f"{np.abs(one - other).mean():.4f}",
                    "the more distinguishable leads": f"{ahead.mean():.0%} of steps",
                }
            )
    return pd.DataFrame(rows)


def pair_lead(records: RunStore, run: str) -> np.ndarray:
    """Share of steps at which the more distinguishable has the lower test loss, worse rate."""
    pair = pairs(records.config)[0]
    first, second = distinguishability(records, pair)
    ahead = 1 if second > first else -1
    found = []
    for rate in rates(records, 0.01).values():
        one, other = pair_losses(records, pair, rate)
        found.append((ahead * (one - other)[1:] > 0).mean())
    return np.min(found)


def pair_gaps(records: RunStore, run: str) -> np.ndarray:
    """|L_1 − L_2| of the test losses, mean over steps: pair (a) over pair (b), worse rate."""
    found = []
    for rate in rates(records, 0.01).values():
        losses = [pair_losses(records, pair, rate) for pair in pairs(records.config)]
        one, other = (np.abs(two[0] - two[1]).mean() for two in losses)
        found.append(one / other)
    return np.min(found)


# What is told first is recorded first: one seed of everything, then the bands.
RUNS = (
    calibration_runs,
    lambda records: list(_five(records, (0.01,), records.config.full_seeds[:1])),
    lambda records: list(_five(records, BETAS[records.config.tier], (0,))),
    lambda records: list(_pairs(records)),
    first_step_run,
    lambda records: list(_five(records, (0.01,), records.config.full_seeds[1:])),
)
MEASURES = (training_order, held_out_order, pair_lead, pair_gaps)
