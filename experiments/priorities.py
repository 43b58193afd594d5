"""Runs and measures of the chapter on priorities (eq. 5, Figure 5)."""

from collections.abc import Sequence
from itertools import chain, combinations

import numpy as np
from scipy import stats

from dpo_helpers import last_layer, mixtures, theory
from dpo_helpers.theory import synthetic
from ledger.store import Run, RunStore

from .case_study import FIGURE_2
from .shared import PAIRS, learning_rate


def everyone(records: RunStore) -> tuple[str, ...]:
    """All behaviors of a tier whose states are recorded: of Figures 2, 3 and 5, and calibration."""
    config = records.config
    pairs = chain.from_iterable(PAIRS[config.tier])
    wanted = (*config.behaviors, config.calibration, *FIGURE_2[config.tier], *pairs)
    return tuple(dict.fromkeys(wanted))


def problem(records: RunStore, behaviors: Sequence[str]) -> last_layer.Problem:
    """The statements of several behaviors as one problem, the j-th behavior as group j."""
    states = [records.states(behavior) for behavior in behaviors]
    return last_layer.Problem(
        g=np.concatenate([s.g for s in states]),
        labels=np.concatenate([s.labels for s in states]).astype(np.int64),
        train=np.concatenate([s.train for s in states]),
        group=np.repeat(np.arange(len(states)), [len(s.labels) for s in states]),
    )


def trained_on(
    records: RunStore, behaviors: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, labels and behaviors (g, labels, group) of the training statements."""
    p = problem(records, behaviors)
    return p.g[p.train], p.labels[p.train], p.group[p.train]


def differences(records: RunStore, behaviors: Sequence[str]) -> np.ndarray:
    """b_j = μ̂₊ − μ̂₋ over the training statements of each of ``behaviors``: (m, d)."""
    return mixtures.mean_differences(*trained_on(records, behaviors))


def autograd_step(
    g: np.ndarray, labels: np.ndarray, unembedding: np.ndarray, learning_rate: float, beta: float
) -> np.ndarray:
    """The change of the whole unembedding (V, d) by one step of DPO, by autograd.

    Through the softmax over all V tokens; token 0 is Yes, token 1 is No.
    """
    import torch

    states, start = (torch.tensor(x, dtype=torch.float64) for x in (g, unembedding))
    yes = torch.tensor(labels) > 0
    rows = torch.arange(len(g))

    def log_ratio(w: torch.Tensor) -> torch.Tensor:
        log_p = (states @ w.T).log_softmax(-1)
        return log_p[rows, torch.where(yes, 0, 1)] - log_p[rows, torch.where(yes, 1, 0)]

    w = start.clone().requires_grad_()
    margins = beta * (log_ratio(w) - log_ratio(start))
    loss = torch.logaddexp(torch.zeros((), dtype=torch.float64), -margins).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    return (-learning_rate * gradient).numpy()


def two_clouds(
    first: float, second: float, angle: float, n: int = 200, d: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two Gaussian behaviors (g, labels, group) with ‖b_1‖, ‖b_2‖ and their angle in degrees.

    n states each, of covariance I about exactly the means ±b_j/2.
    """
    rng = np.random.default_rng(seed)
    turn = np.deg2rad(angle)
    b = np.zeros((2, d))
    b[0, 0], b[1, :2] = first, second * np.array([np.cos(turn), np.sin(turn)])
    parts = []
    for row in b:
        g, labels = synthetic.clouds(rng, n, np.zeros(d))
        for side in (1, -1):
            g[labels == side] += side * row / 2 - g[labels == side].mean(0)
        parts.append((g, labels))
    g, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    return g, labels, np.repeat([0, 1], n)


def two_trained(first: float, second: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """P (2,) and losses (2, 61) of ``two_clouds`` trained together, β = 1, η = 0.2."""
    g, labels, group = two_clouds(first, second, angle)
    return _descended(g, labels, group, 0.2, 60)


def overtaken() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two mixtures in the plane in which the behavior of higher priority ends with the higher loss.

    ‖b‖ = 2 and 1.5, orthogonal, in both; β = 1. "overlap": one statement in four of the first lies
    on the wrong side, at s g = (−2, 0) for (2, 0); all of the second at s g = (0, 0.75).
    "common mean": g = (20, 0) ± b/2. Each: P (2,) and losses (2, 61).
    """
    labels = np.tile([1, -1], 4)
    group = np.repeat([0, 1], 4)
    half = np.repeat([(1.0, 0.0), (0.0, 0.75)], 4, axis=0)
    wrong = half.copy()
    wrong[:4] = (2, 0), (2, 0), (2, 0), (-2, 0)
    return {
        "overlap": _descended(labels[:, None] * wrong, labels, group, 0.1, 60),
        "common mean": _descended((20, 0) + labels[:, None] * half, labels, group, 1 / 400, 60),
    }


def _descended(g, labels, group, learning_rate, steps) -> tuple[np.ndarray, np.ndarray]:
    """P_j and the losses (m, steps + 1) of gradient descent with β = 1."""
    path = last_layer.gradient_descent(labels[:, None] * g, learning_rate, 1.0, steps)
    loss = np.log(2) - mixtures.loss_decreases(path, g, labels, group, 1.0)
    return mixtures.priority_levels(mixtures.mean_differences(g, labels, group)), loss


def with_share(
    g: np.ndarray, labels: np.ndarray, group: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mixture with No statements dropped until Yes makes up ``share`` of each behavior."""
    keep = labels > 0
    for j in range(group.max() + 1):
        spare = np.flatnonzero((group == j) & (labels < 0))
        yes = ((group == j) & (labels > 0)).sum()
        keep[spare[: round(yes * (1 - share) / share)]] = True
    return g[keep], labels[keep], group[keep]


# What the tables and figures of the chapter show


def first_falls(records: RunStore) -> dict[str, dict[str, float]]:
    """One step of gradient descent on each pair of Figure 5: bounds and truth, a row a behavior."""
    eta, beta = learning_rate(records), records.config.beta
    table = {}
    for pair in PAIRS[records.config.tier]:
        g, labels, group = trained_on(records, pair)
        low, fallen, high = mixtures.first_loss_decrease(g, labels, group, eta, beta)
        step = first_step(g, labels, group, eta, beta)
        for j, behavior in enumerate(pair):
            mean = g[group == j].mean(0)
            table[behavior] = {
                "lower bound": low[j],
                "log 2 − L(1)": fallen[j],
                "upper bound": high[j],
                "(truth − lower)/upper": (fallen[j] - low[j]) / high[j],
                "(upper − truth)/upper": (high[j] - fallen[j]) / high[j],
                "due to the mean state": beta**2 / 2 * (mean @ step) ** 2 / (high[j] - low[j]),
            }
    return table


def first_step(
    g: np.ndarray, labels: np.ndarray, group: np.ndarray, learning_rate: float, beta: float
) -> np.ndarray:
    """δ_1 = (ηβ/4) b̄ of a mixture."""
    b, sizes = mixtures.signed_means(g, labels, group)
    return learning_rate * beta / 4 * (sizes @ b) / sizes.sum()


def pair_table(records: RunStore) -> list[dict[str, object]]:
    """The pairs of Figure 5: lengths, angle, priorities, gaps; a row a behavior."""
    rows = []
    for which, pair in zip("ab", PAIRS[records.config.tier], strict=True):
        b = differences(records, pair)
        level, length = mixtures.priority_levels(b), np.linalg.norm(b, axis=1)
        for j, behavior in enumerate(pair):
            rows.append(
                {
                    "pair": which,
                    "behavior": behavior,
                    "‖b‖": length[j],
                    "angle (°)": np.degrees(np.arccos(b[0] @ b[1] / length.prod())),
                    "P": level[j],
                    "gap |P₁ − P₂|": abs(level[0] - level[1]),
                    "mean |L₁ − L₂|": loss_gap(records, f"f5-{which}").mean(),
                }
            )
    return rows


def predicted(records: RunStore) -> dict[str, dict[str, float]]:
    """What the first step and the linear regime foretell of the pairs of Figure 5, by behavior.

    Ratios of what was measured; "batch rise" and its standard error: the mean over seeds of the
    rise of the margins by the first minibatch, over (β²η/4) b̄·b̂_j.
    """
    eta, beta, steps = learning_rate(records), records.config.beta, records.config.steps
    table = {}
    for which, pair in enumerate(PAIRS[records.config.tier]):
        arrays = figure_5_run(records, which).arrays
        high = mixtures.first_loss_decrease(*trained_on(records, pair), eta, beta)[2]
        for j, behavior in enumerate(pair):
            fallen, linear = (np.log(2) - arrays[k][j].astype(float) for k in ("descent", "linear"))
            first = arrays["margin"][j, 1] / (2 * high[j])
            table[behavior] = {
                "first step: predicted fall": high[j],
                "descent / predicted": fallen[1] / high[j],
                "all steps: predicted fall": steps * high[j],
                "descent / predicted ": fallen[-1] / (steps * high[j]),
                "descent / linear regime": fallen[-1] / linear[-1],
                "minibatches / descent": (np.log(2) - np.median(arrays["loss"][j, -1]))
                / fallen[-1],
                "batch rise": first.mean(),
                "its standard error": first.std(ddof=1) / np.sqrt(len(first))
                if len(first) > 1
                else np.nan,
            }
    return table


def pair_gaps(records: RunStore) -> dict[str, np.ndarray]:
    """All pairs: what predicts which behavior learns more, and what was measured, (pairs,) each.

    Signed, first behavior less second: of P (5), of P of the pulls, of b̄·b, of ‖b‖; the cosine of
    the two b; and of the mean falls over the run, and these relative to their sum.
    """
    arrays = pairs_run(records).arrays
    data = trained_on(records, everyone(records))
    b, (pulls, _) = mixtures.mean_differences(*data), mixtures.signed_means(*data)
    length = np.linalg.norm(b, axis=1)
    at = arrays["pairs"]
    falls = np.log(2) - arrays["loss"][:, :, 1:].mean(2, dtype=float)
    return {
        "P (5)": np.array([np.subtract(*mixtures.priority_levels(b[pair])) for pair in at]),
        "b̄·b, not normalised": (length[at[:, 0]] ** 2 - length[at[:, 1]] ** 2) / 2,
        "length ‖b‖": length[at[:, 0]] - length[at[:, 1]],
        "P of the pulls b̂": np.array(
            [np.subtract(*mixtures.priority_levels(pulls[p])) for p in at]
        ),
        "cosine": (b @ b.T / np.outer(length, length))[at[:, 0], at[:, 1]],
        "gap": falls[:, 0] - falls[:, 1],
        "relative gap": (falls[:, 0] - falls[:, 1]) / falls.sum(1),
    }


def pair_matrices(records: RunStore) -> dict[str, np.ndarray]:
    """|P_1 − P_2|, and the angle of b_1 and b_2, of every pair: (m, m), NaN on the diagonal."""
    b = differences(records, everyone(records))
    gaps, angles = np.full((2, len(b), len(b)), np.nan)
    for i, j in combinations(range(len(b)), 2):
        first, second = mixtures.priority_levels(b[[i, j]])
        gaps[i, j] = gaps[j, i] = abs(first - second)
        cosine = b[i] @ b[j] / np.linalg.norm(b[i]) / np.linalg.norm(b[j])
        angles[i, j] = angles[j, i] = np.degrees(np.arccos(cosine))
    return {"priority gap |P₁ − P₂|": gaps, "angle of b₁ and b₂ (°)": angles}


def all_table(records: RunStore) -> dict[str, np.ndarray]:
    """All behaviors trained together: lengths, priorities, falls of the losses, (m,) each."""
    data = trained_on(records, everyone(records))
    b, (pulls, _) = mixtures.mean_differences(*data), mixtures.signed_means(*data)
    fallen = np.log(2) - all_run(records).arrays["loss"].astype(float)
    return {
        "P": mixtures.priority_levels(b),
        "P of the pulls": mixtures.priority_levels(pulls),
        "‖b‖": np.linalg.norm(b, axis=1),
        "fall, first step": fallen[:, 1],
        "fall, all steps": fallen[:, -1],
        "mean fall": fallen[:, 1:].mean(1),
    }


# Runs


def first_step_run(records: RunStore) -> Run:
    """T2: one step on random mixtures of equally large behaviors, by autograd on the full softmax.

    Arrays, relative to the largest of their kind: ``step`` (seeds,), how far the change of W_U is
    from (ŷ₊ − ŷ₋)(βη/4)b̄ᵀ; ``rise`` and ``printed`` (seeds,), how far the rises of the logit
    differences (22) are from (βη/4) b̄·b_j and from (24), (β²η/4) b̄·b_j.
    """
    settings = {"behaviors": 3, "n": 40, "d": 32, "vocabulary": 11, "beta": 0.1}
    settings |= {"learning_rate": 60.0, "seeds": 20}

    def gaps(seed: int) -> list[float]:
        rng = np.random.default_rng(seed)
        m, n, d = (settings[name] for name in ("behaviors", "n", "d"))
        eta, beta = settings["learning_rate"], settings["beta"]
        b = rng.standard_normal((m, d)) * rng.uniform(0.5, 2, (m, 1))
        common = 3 * rng.standard_normal(d)
        parts = [synthetic.clouds(rng, n, row, common=common) for row in b]
        g, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
        group = np.repeat(np.arange(m), n)
        w = rng.standard_normal((settings["vocabulary"], d)) / 3
        change = autograd_step(g, labels, w, eta, beta)
        b = mixtures.mean_differences(g, labels, group)
        want = np.zeros_like(w)
        want[:2] = np.outer([1, -1], beta * eta / 4 * b.mean(0))
        logits = labels * (g @ (change[0] - change[1]))
        # (22) averages over n statements, each counted once.
        rise = np.bincount(group, logits) / n
        expected = beta * eta / 4 * b @ b.mean(0)
        largest = np.abs(rise).max()
        return [
            np.linalg.norm(change - want) / np.linalg.norm(want),
            np.abs(rise - expected).max() / largest,
            np.abs(rise - beta * expected).max() / largest,
        ]

    def make() -> dict[str, np.ndarray]:
        found = np.array([gaps(seed) for seed in range(settings["seeds"])])
        return dict(zip(("step", "rise", "printed"), found.T, strict=True))

    return records.replay_or_run("t2-first-step", settings, {}, make)


def figure_5_run(records: RunStore, which: int) -> Run:
    """F5: the two behaviors of a pair trained together, last layer, minibatches from the union.

    Arrays: ``loss`` and ``margin`` (2, t, seeds) of each behavior's training statements; for
    gradient descent on all of them ``descent`` (2, t), the loss, and what predicts it without
    training, ``linear`` (2, t): the loss of the linear regime.
    """
    config = records.config
    behaviors = PAIRS[config.tier][which]
    settings = _settings(records, behaviors) | {
        "batch_size": config.batch_size,
        "sampling": config.sampling,
        "seeds": config.seeds,
    }

    def make() -> dict[str, np.ndarray]:
        both, boundary = problem(records, behaviors), records.states(behaviors[0]).boundary
        options = {key: value for key, value in settings.items() if key != "behaviors"}
        history = last_layer.train([both], boundary, **options)
        options |= {"sampling": "full", "seeds": 1}
        descent = last_layer.train([both], boundary, **options)["loss"][0, :, 0, :, 0]
        g, labels, group = trained_on(records, behaviors)
        spectrum = theory.spectrum(g)
        rate, t = (settings["learning_rate"], config.beta), np.arange(config.steps + 1)
        path = theory.linear_regime(spectrum, labels, *rate, t) @ spectrum.right
        found = {name: history[name][0, :, 0] for name in ("loss", "margin")}
        found["descent"] = descent
        found["linear"] = np.log(2) - mixtures.loss_decreases(path, g, labels, group, config.beta)
        return {name: values.astype(np.float32) for name, values in found.items()}

    return _recorded(records, f"f5-{'ab'[which]}", settings, behaviors, make)


def pairs_run(records: RunStore) -> Run:
    """T2: every pair of the recorded behaviors trained together, by gradient descent.

    Arrays: ``pairs`` (pairs, 2), numbers into ``everyone``; ``loss`` (pairs, 2, t).
    """
    behaviors = everyone(records)
    settings = _settings(records, behaviors) | {"sampling": "full"}
    pairs = list(combinations(range(len(behaviors)), 2))

    def make() -> dict[str, np.ndarray]:
        boundary = records.states(behaviors[0]).boundary
        options = {key: value for key, value in settings.items() if key != "behaviors"}
        losses = []
        for start in range(0, len(pairs), 11):  # eleven at a time, for the memory
            problems = [
                problem(records, [behaviors[j] for j in pair]) for pair in pairs[start : start + 11]
            ]
            losses.append(last_layer.train(problems, boundary, **options)["loss"][:, :, 0, :, 0])
        return {"pairs": np.array(pairs), "loss": np.concatenate(losses).astype(np.float32)}

    return _recorded(records, "t2-pairs", settings, behaviors, make)


def all_run(records: RunStore) -> Run:
    """T2: all recorded behaviors trained together, by gradient descent. Arrays: ``loss`` (m, t)."""
    behaviors = everyone(records)
    settings = _settings(records, behaviors) | {"sampling": "full"}

    def make() -> dict[str, np.ndarray]:
        options = {key: value for key, value in settings.items() if key != "behaviors"}
        boundary = records.states(behaviors[0]).boundary
        history = last_layer.train([problem(records, behaviors)], boundary, **options)
        return {"loss": history["loss"][0, :, 0, :, 0].astype(np.float32)}

    return _recorded(records, "t2-all", settings, behaviors, make)


def _settings(records: RunStore, behaviors: Sequence[str]) -> dict[str, object]:
    config = records.config
    return {
        "behaviors": tuple(behaviors),
        "beta": config.beta,
        "learning_rate": learning_rate(records),
        "steps": config.steps,
    }


def _recorded(records, name, settings, behaviors, make) -> Run:
    inputs = {behavior: records.states(behavior).sha256 for behavior in behaviors}
    return records.replay_or_run(name, settings, inputs, make)


# Measures


def first_step_apart(records: RunStore, run: str) -> np.ndarray:
    """Relative distance of the first step on the whole unembedding from (ŷ₊ − ŷ₋)(βη/4)b̄ᵀ."""
    return records.recorded(run).arrays["step"]


def rise_apart(records: RunStore, run: str) -> np.ndarray:
    """Relative distance of the rises (22) from (βη/4) b̄·b_j."""
    return records.recorded(run).arrays["rise"]


def rise_as_printed(records: RunStore, run: str) -> np.ndarray:
    """Relative distance of the rises (22) from (24) as printed, (β²η/4) b̄·b_j."""
    return records.recorded(run).arrays["printed"]


def all_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of P_j with the fall of the mean training loss, all behaviors together."""
    level = mixtures.priority_levels(differences(records, everyone(records)))
    return stats.spearmanr(level, -records.recorded(run).arrays["loss"].mean(1)).statistic


def lead(records: RunStore, run: str) -> np.ndarray:
    """Share of steps at which the behavior of higher priority has the lower training loss."""
    pair = PAIRS[records.config.tier]["ab".index(run[-1])]
    first, second = mixtures.priority_levels(differences(records, pair))
    loss = records.recorded(run).arrays["loss"][:, 1:]
    ahead = loss[1] - loss[0] if first > second else loss[0] - loss[1]
    return (ahead > 0).mean(0)


def loss_gap(records: RunStore, run: str) -> np.ndarray:
    """|L_1 − L_2| of a pair, mean over steps: one value a seed."""
    one, other = records.recorded(run).arrays["loss"]
    return np.abs(one - other).mean(0)


def priority_gap(records: RunStore, behaviors: Sequence[str]) -> float:
    """|P_1 − P_2| of a pair."""
    first, second = mixtures.priority_levels(differences(records, behaviors))
    return float(abs(first - second))


def paper_gaps(records: RunStore, run: str) -> np.ndarray:
    """|L_1 − L_2|, mean over steps: that of Figure 5's pair (a) over that of its pair (b)."""
    return loss_gap(records, "f5-a") / loss_gap(records, "f5-b")


def gaps_in_order(records: RunStore, run: str) -> np.ndarray:
    """|P_1 − P_2| under this model: that of Figure 5's pair (a) over that of its pair (b)."""
    one, other = (priority_gap(records, pair) for pair in PAIRS[records.config.tier])
    return np.array(one / other)


def model_gaps(records: RunStore, run: str) -> np.ndarray:
    """|L_1 − L_2|, mean over steps: pair of larger |P_1 − P_2| under this model over the other."""
    return paper_gaps(records, run) ** (1 if gaps_in_order(records, run) > 1 else -1)


def pairs_ordered(records: RunStore, run: str) -> np.ndarray:
    """Share of all pairs in which the behavior of higher priority has the lower mean loss."""
    level, loss = _levels(records, run)
    return np.mean(np.sign(level[:, 0] - level[:, 1]) == np.sign(loss[:, 1] - loss[:, 0]))


def pairs_gaps(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation over all pairs of |P_1 − P_2| with |L_1 − L_2|, mean over steps."""
    level, _ = _levels(records, run)
    loss = records.recorded(run).arrays["loss"]
    gap = np.abs(loss[:, 0] - loss[:, 1]).mean(1)
    return stats.spearmanr(np.abs(level[:, 0] - level[:, 1]), gap).statistic


def _levels(records: RunStore, run: str) -> tuple[np.ndarray, np.ndarray]:
    """P_1, P_2 and the mean losses of all pairs: (pairs, 2) each."""
    arrays = records.recorded(run).arrays
    b = differences(records, everyone(records))
    level = np.array([mixtures.priority_levels(b[pair]) for pair in arrays["pairs"]])
    return level, arrays["loss"].mean(2)


RUNS = (
    first_step_run,
    lambda records: figure_5_run(records, 0),
    lambda records: figure_5_run(records, 1),
    pairs_run,
    all_run,
)
MEASURES = (
    first_step_apart,
    rise_apart,
    rise_as_printed,
    all_order,
    lead,
    paper_gaps,
    gaps_in_order,
    model_gaps,
    pairs_ordered,
    pairs_gaps,
)
