"""Runs and measures of full fine-tuning (Figures 6 and 7, Figures 17 to 19)."""

import re
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from scipy import stats

from dpo_helpers import data, lm
from dpo_helpers.states import geometry, hidden_states, probe, umap_2d
from ledger.config import FIVE, TIERS, Config
from ledger.store import Run, RunStore, States

from .shared import distinguishability, is_second, pairs

# The learning rates of Figures 6 and 17 to 19, by β; 1e-6 "due to large oscillations".
PAPER_RATES = {0.001: 1e-5, 0.01: 1e-5, 0.1: 1e-5, 1.0: 1e-6}
SECOND_RATES = {0.01: 1e-6}  # of Figures 10 to 14, for the second model
BETAS = {"smoke": (1.0,), "book": (0.001, 0.1, 1.0), "paper": (0.001, 0.1, 1.0)}  # besides 0.01
MAIN = {"smoke": TIERS["smoke"]["behaviors"][:2], "book": FIVE, "paper": FIVE}  # trained there
# The multiples of the paper's learning rate that the rule tries. The paper's model needs none.
FACTORS = {"smoke": (1.0, 10.0), "book": (1.0, 3.0, 10.0, 30.0, 100.0), "paper": (1.0,)}
TARGET_LOSS = 0.5


def trained_run(
    records: RunStore, behaviors: Sequence[str], beta: float, rate: float, seed: int
) -> Run:
    """Train all parameters on one behavior, or on a mixture of several, for one epoch.

    Arrays ``loss``, ``margin``, ``gap``, ``accuracy`` and ``gradient`` as in ``finetune.Curves``,
    and ``boundary`` (T + 1,), ‖W_B(t) − W_B(0)‖. For one behavior and seed 0 also:

    apart, covariance, trace   (2, 2) ‖μ̂₊ − μ̂₋‖, max ‖Σ̂±‖, max Tr Σ̂±: before and after training,
                               of all statements and of the held-out ones
    separable                  (2,) held-out accuracy of a linear probe, before and after
    parts                      (3,) growth of the gap s W_B·g, mean over the held-out statements:
                               from the change of W_B, of g, and of both together
    separate, joint            (2, n, 2) UMAP coordinates before and after: each cloud fitted by
                               itself, and both fitted together
    """
    config = records.config
    states = [records.states(behavior) for behavior in behaviors]
    facts = {"model": config.model, "behaviors": list(behaviors)}
    facts |= {"beta": beta, "rate": rate, "seed": seed}
    facts |= {"batch_size": config.full_batch_size, "newline": config.newline}

    def make() -> dict[str, np.ndarray]:
        from dpo_helpers import finetune

        from .training import training_folder

        how = dict(beta=beta, learning_rate=rate, batch_size=config.full_batch_size)
        # With a checkpoint at the end, if its hidden states are measured then.
        alone = len(behaviors) == 1 and seed == 0
        settings = finetune.Settings(**how, seed=seed, save_every=1000 * alone)
        model = lm.load(config.model, config.device)
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
        learned, held_out = lm.pairs_from_behaviors(model, statements, config.newline).split()
        start = model.unembedding_rows()

        def boundary() -> dict[str, float]:
            moved = model.unembedding_rows() - start
            return {"boundary": (moved[0] - moved[1]).norm().item()}

        with training_folder(model, learned, settings) as folder:
            curves = finetune.train(
                model, learned, settings, folder, held_out=held_out, callback=boundary
            )
            found = {name: getattr(curves, name) for name in ("loss", "margin", "gap", "accuracy")}
            found |= {"gradient": curves.grad_norm, "boundary": curves.logged["boundary"]}
            if alone:
                g = hidden_states(model, statements[0].prompts(config.newline))
                rows = model.unembedding_rows().numpy()
                found |= _changed(states[0], g, rows[0] - rows[1])
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    how = f"beta-{beta:g}-rate-{rate:g}-seed-{seed}"
    name = f"full/{records.model_slug}/{'+'.join(behaviors)}/{how}"
    return records.replay_or_run(name, facts, {s.behavior: s.sha256 for s in states}, make)


def _changed(before: States, g: np.ndarray, boundary: np.ndarray) -> dict:
    """What ``trained_run`` records of the hidden states ``g`` (n, d) after training."""
    held_out, labels, times = ~before.train, before.labels, (before.g, g)
    subsets = (np.ones(len(g), bool), held_out)
    found = [[geometry(x[rows], labels[rows]) for rows in subsets] for x in times]
    fields = {"apart": "distinguishability", "covariance": "cov_norm", "trace": "cov_trace"}
    arrays = {k: [[getattr(m, field) for m in row] for row in found] for k, field in fields.items()}
    arrays["separable"] = [probe(x, labels, before.train)[1] for x in times]
    moved, turned = boundary - before.boundary, g[held_out] - before.g[held_out]
    parts = (before.g[held_out] @ moved, turned @ before.boundary, turned @ moved)
    arrays["parts"] = [(labels[held_out] * part).mean() for part in parts]
    both = umap_2d(np.concatenate(times)).reshape(2, len(g), 2)
    return arrays | {"separate": [umap_2d(x) for x in times], "joint": both}


def first_step_run(records: RunStore) -> Run:
    """One full-batch step of AdamW at the paper's learning rate, for every behavior of ``at_hand``.

    Arrays (behaviors,): ``gradient``, the gradient norm of the training loss over all parameters;
    ``head``, over the two rows of the unembedding alone, from the hidden states; ``loss``
    (behaviors, 2), the loss of all training statements before and after.
    """
    config = records.config
    beta, rate = config.beta, PAPER_RATES[0.01]
    states = [records.states(behavior) for behavior in at_hand(config)]

    def measure(s: States) -> tuple[float, float, tuple[float, float]]:
        from .training import first_step

        model = lm.load(config.model, config.device)
        behavior = data.load_behavior(s.behavior, config.data)
        learned, _ = lm.pairs_from_behaviors(model, [behavior], config.newline).split()
        norm, after = first_step(model, learned, beta, rate)
        # The gradient of −log σ(0) with respect to W_U[Yes] and W_U[No]: ∓ (β/2) mean s g.
        pull = (s.labels[s.train, None] * s.g[s.train]).mean(0)
        return norm, beta * np.linalg.norm(pull) / np.sqrt(2), (np.log(2), after)

    def make() -> dict[str, np.ndarray]:
        gradient, head, loss = map(np.array, zip(*map(measure, states), strict=True))
        return {"gradient": gradient, "head": head, "loss": loss}

    inputs = {s.behavior: s.sha256 for s in states}
    facts = {"model": config.model, "beta": beta, "rate": rate, "newline": config.newline}
    return records.replay_or_run("first-step", facts, inputs, make)


def paper_rates(config: Config) -> dict[float, float]:
    """The paper's learning rates by β, for its first or its second model."""
    return SECOND_RATES if is_second(config) else PAPER_RATES


def calibration_runs(records: RunStore) -> list[Run]:
    """The calibration behavior trained at multiples of the paper's rate, until the rule is met.

    The rule: the smallest of ``FACTORS`` at which the held-out loss of the calibration behavior,
    at β = 0.01, is at most ``TARGET_LOSS`` after one epoch.
    """
    runs = []
    for multiple in FACTORS[records.config.tier]:
        rate = multiple * paper_rates(records.config)[0.01]
        runs.append(trained_run(records, [records.config.calibration], 0.01, rate, 0))
        if runs[-1].arrays["loss"][0, 1, -1] <= TARGET_LOSS:
            break
    return runs


def factor(records: RunStore) -> float:
    """The factor that the rule selects; where none meets it, the one with the lowest loss."""
    last = [run.arrays["loss"][0, 1, -1] for run in calibration_runs(records)]
    good = [i for i, value in enumerate(last) if value <= TARGET_LOSS]
    return FACTORS[records.config.tier][good[0] if good else int(np.argmin(last))]


def rates(records: RunStore, beta: float) -> dict[str, float]:
    """The learning rates of a figure by name: "paper" and "scaled", or the one "given"."""
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
    """The behaviors of a tier's figures, pairs and calibration included."""
    paired = [behavior for pair in pairs(config) for behavior in pair]
    return list(dict.fromkeys((*TIERS[config.tier]["behaviors"], *paired, config.calibration)))


def _five(records: RunStore, betas: Sequence[float], seeds: Sequence[int]) -> Iterator[Run]:
    """The behaviors of Figure 6 at each β, with each seed, at both learning rates."""
    tier = records.config.tier
    for beta, seed in product(betas, seeds):
        behaviors = TIERS[tier]["behaviors"] if beta == 0.01 else MAIN[tier]
        for rate, behavior in product(rates(records, beta).values(), behaviors):
            yield trained_run(records, [behavior], beta, rate, seed)


def swept(records: RunStore) -> dict[str, np.ndarray]:
    """What a sweep shows of a configuration: curves by name, (T + 1,) each, means over seeds."""
    config, found = records.config, {}
    curves = (("training loss", 0), ("held-out loss", 1), ("held-out accuracy", 1))
    for (kind, rate), behavior in product(rates(records, config.beta).items(), config.behaviors):
        suffix = [behavior] * (len(config.behaviors) > 1)
        suffix += {"paper": ["paper's rate"], "scaled": ["scaled rate"], "given": []}[kind]
        for what, part in curves:
            values = stacked(records, [behavior], config.beta, rate, what.split()[-1])
            found[", ".join([what, *suffix])] = values[0, :, 0, part].mean(0)
    return found


def rank_test(distances: np.ndarray, area: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of distinguishability with learning speed, and its p-value.

    ``area`` (n,) is the mean of a loss over the steps: the lower, the faster the behavior is
    learned. The p-value is the share of all orders of n ≤ 7 behaviors that correlate as much.
    """
    found = stats.permutation_test(
        (distances,),
        lambda x: stats.spearmanr(x, -area).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(found.statistic), float(found.pvalue)


def areas(records: RunStore, beta: float, rate: float, part: int) -> np.ndarray:
    """The mean over the steps of the training (0) or held-out loss (1): (behaviors, seeds)."""
    seeds = records.config.full_seeds if beta == 0.01 else (0,)
    losses = stacked(records, MAIN[records.config.tier], beta, rate, "loss", seeds)[:, :, 0, part]
    return np.nanmean(losses, -1)


def training_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of ‖μ̂₊ − μ̂₋‖ with the speed of the training loss, at the worse rate."""
    return _order(records, run, 0)


def held_out_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of ‖μ̂₊ − μ̂₋‖ with the speed of the held-out loss, at the worse rate."""
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


def pair_lead(records: RunStore, run: str) -> np.ndarray:
    """Share of steps at which the more distinguishable of (a) has the lower held-out loss."""
    pair = pairs(records.config)[0]
    first, second = distinguishability(records, pair)
    losses = [pair_losses(records, pair, rate) for rate in rates(records, 0.01).values()]
    sign = 1 if second > first else -1
    return np.min([(sign * (one - other)[1:] > 0).mean() for one, other in losses])


def pair_gaps(records: RunStore, run: str) -> np.ndarray:
    """|L₁ − L₂| of the held-out losses, mean over steps: pair (a) over pair (b), worse rate."""

    def apart(pair: Sequence[str], rate: float) -> float:
        one, other = pair_losses(records, pair, rate)
        return np.abs(one - other).mean()

    a, b = pairs(records.config)
    return np.min([apart(a, rate) / apart(b, rate) for rate in rates(records, 0.01).values()])


# One seed of everything is recorded first, then the other seeds. Where the learning rate is given,
# no page shows the rule.
RUNS = (
    lambda records: records.config.full_learning_rate == "rule" and calibration_runs(records),
    lambda records: list(_five(records, (0.01,), records.config.full_seeds[:1])),
    lambda records: list(_five(records, BETAS[records.config.tier], (0,))),
    lambda records: [
        trained_run(records, pair, 0.01, rate, 0)
        for rate, pair in product(rates(records, 0.01).values(), pairs(records.config))
    ],
    first_step_run,
    lambda records: list(_five(records, (0.01,), records.config.full_seeds[1:])),
)
MEASURES = (training_order, held_out_order, pair_lead, pair_gaps)
