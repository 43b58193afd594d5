"""Runs and measures of the chapter on priorities (eq. 5, Figure 5)."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from dpo_helpers import last_layer, mixtures, theory
from dpo_helpers.theory import synthetic
from ledger.store import Run, RunStore

from .shared import PAIRS, all_behaviors, learning_rate


def problem(records: RunStore, behaviors: Sequence[str]) -> last_layer.Problem:
    """The statements of several behaviors as one problem, the j-th behavior as group j."""
    states = [records.states(behavior) for behavior in behaviors]
    return last_layer.Problem(
        g=np.concatenate([s.g for s in states]),
        labels=np.concatenate([s.labels for s in states]).astype(np.int64),
        train=np.concatenate([s.train for s in states]),
        group=np.repeat(np.arange(len(states)), [len(s.labels) for s in states]),
    )


def trained_on(records: RunStore, behaviors: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Hidden states, labels and behaviors (g, labels, group) of the training statements."""
    p = problem(records, behaviors)
    return p.g[p.train], p.labels[p.train], p.group[p.train]


def differences(records: RunStore, behaviors: Sequence[str]) -> np.ndarray:
    """b_j = μ̂₊ − μ̂₋ over the training statements of each of ``behaviors``: (m, d)."""
    return mixtures.mean_differences(*trained_on(records, behaviors))


def autograd_step(g, labels, unembedding: np.ndarray, learning_rate: float, beta: float):
    """The change of the unembedding (V, d) by one DPO step, by autograd; token 0 is Yes, 1 No."""
    import torch

    states, start, signs = (torch.tensor(x, dtype=torch.float64) for x in (g, unembedding, labels))

    def log_ratio(w: torch.Tensor) -> torch.Tensor:
        log_p = (states @ w.T).log_softmax(-1)
        return signs * (log_p[:, 0] - log_p[:, 1])

    w = start.clone().requires_grad_()
    margins = beta * (log_ratio(w) - log_ratio(start))
    loss = torch.logaddexp(torch.zeros((), dtype=torch.float64), -margins).mean()
    return -learning_rate * torch.autograd.grad(loss, w)[0].numpy()


def first_step_run(records: RunStore) -> Run:
    """T2: one step on random mixtures of equally large behaviors, by autograd on the full softmax.

    Arrays (seeds,), relative distances: ``step``, of the change of W_U from (ŷ₊ − ŷ₋)(βη/4)b̄ᵀ;
    ``rise`` and ``printed``, of the logit increases (22) from (βη/4) b̄·b_j and from (24).
    """
    settings = {"behaviors": 3, "n": 40, "d": 32, "vocabulary": 11, "beta": 0.1}
    settings |= {"learning_rate": 60.0, "seeds": 20}
    m, n, d, vocabulary, beta, eta, seeds = settings.values()

    def gaps(seed: int) -> list[float]:
        rng = np.random.default_rng(seed)
        b = rng.standard_normal((m, d)) * rng.uniform(0.5, 2, (m, 1))
        common = 3 * rng.standard_normal(d)
        parts = [synthetic.clouds(rng, n, row, common=common) for row in b]
        g, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
        group = np.repeat(np.arange(m), n)
        w = rng.standard_normal((vocabulary, d)) / 3
        change = autograd_step(g, labels, w, eta, beta)
        b = mixtures.mean_differences(g, labels, group)
        want = np.outer(np.eye(vocabulary)[0] - np.eye(vocabulary)[1], beta * eta / 4 * b.mean(0))
        # (22) averages over n statements, each counted once.
        rise = np.bincount(group, labels * (g @ (change[0] - change[1]))) / n
        expected = beta * eta / 4 * b @ b.mean(0)
        step = np.linalg.norm(change - want) / np.linalg.norm(want)
        off = [np.abs(rise - formula).max() for formula in (expected, beta * expected)]
        return [step, *(off / np.abs(rise).max())]

    def make() -> dict[str, np.ndarray]:
        found = np.array([gaps(seed) for seed in range(seeds)])
        return dict(zip(("step", "rise", "printed"), found.T, strict=True))

    return records.replay_or_run("t2-first-step", settings, {}, make)


def figure_5_run(records: RunStore, which: int) -> Run:
    """F5: the two behaviors of a pair trained together, last layer, minibatches from the union.

    Arrays: ``loss`` and ``margin`` (2, t, seeds) of each behavior's training statements; and the
    losses (2, t) of gradient descent, ``descent``, and of the linear regime, ``linear``.
    """
    config, pair = records.config, PAIRS[records.config.tier][which]
    how = {"batch_size": config.batch_size, "sampling": config.sampling, "seeds": config.seeds}

    def make() -> dict[str, np.ndarray]:
        history = _trained(records, [pair], **how)
        g, labels, group = trained_on(records, pair)
        spectrum, t = theory.spectrum(g), np.arange(config.steps + 1)
        delta = theory.linear_regime(spectrum, labels, learning_rate(records), config.beta, t)
        decreases = mixtures.loss_decreases(delta @ spectrum.right, g, labels, group, config.beta)
        found = {name: history[name][0, :, 0] for name in ("loss", "margin")}
        found["descent"] = _trained(records, [pair])["loss"][0, :, 0, :, 0]
        found["linear"] = np.log(2) - decreases
        return {name: values.astype(np.float32) for name, values in found.items()}

    return _recorded(records, f"f5-{'ab'[which]}", pair, how, make)


def pairs_run(records: RunStore) -> Run:
    """T2: all pairs of behaviors by gradient descent. Arrays: ``pairs``, ``loss`` (pairs, 2, t)."""
    behaviors = all_behaviors(records.config)
    pairs = list(combinations(range(len(behaviors)), 2))

    def make() -> dict[str, np.ndarray]:
        mixed = [[behaviors[j] for j in pair] for pair in pairs]
        some = [mixed[start : start + 11] for start in range(0, len(mixed), 11)]  # for the memory
        losses = [_trained(records, x)["loss"][:, :, 0, :, 0] for x in some]
        return {"pairs": np.array(pairs), "loss": np.concatenate(losses).astype(np.float32)}

    return _recorded(records, "t2-pairs", behaviors, {"sampling": "full"}, make)


def all_run(records: RunStore) -> Run:
    """T2: all recorded behaviors trained together, by gradient descent. Arrays: ``loss`` (m, t)."""
    behaviors = all_behaviors(records.config)

    def make() -> dict[str, np.ndarray]:
        loss = _trained(records, [behaviors])["loss"]
        return {"loss": loss[0, :, 0, :, 0].astype(np.float32)}

    return _recorded(records, "t2-all", behaviors, {"sampling": "full"}, make)


def _trained(records: RunStore, mixed: Sequence[Sequence[str]], **how) -> dict[str, np.ndarray]:
    """``last_layer.train`` on mixtures; without ``how``, by gradient descent on all statements."""
    boundary = records.states(mixed[0][0]).boundary
    rates = {"beta": records.config.beta, "learning_rate": learning_rate(records)}
    how = {"steps": records.config.steps, "sampling": "full"} | how
    return last_layer.train([problem(records, x) for x in mixed], boundary, **rates, **how)


def _recorded(records, name, behaviors, how, make) -> Run:
    config = records.config
    settings = {"behaviors": tuple(behaviors), "beta": config.beta}
    settings |= {"learning_rate": learning_rate(records), "steps": config.steps, **how}
    inputs = {behavior: records.states(behavior).sha256 for behavior in behaviors}
    return records.replay_or_run(name, settings, inputs, make)


def first_step_apart(records: RunStore, run: str) -> np.ndarray:
    """Relative distance of the first step on the whole unembedding from (ŷ₊ − ŷ₋)(βη/4)b̄ᵀ."""
    return records.recorded(run).arrays["step"]


def rise_apart(records: RunStore, run: str) -> np.ndarray:
    """Relative distance of the increases (22) from (βη/4) b̄·b_j."""
    return records.recorded(run).arrays["rise"]


def rise_as_printed(records: RunStore, run: str) -> np.ndarray:
    """Relative distance of the increases (22) from (24) as printed, (β²η/4) b̄·b_j."""
    return records.recorded(run).arrays["printed"]


def all_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of P_j with the decrease of the mean training loss, all behaviors."""
    level = mixtures.priority_levels(differences(records, all_behaviors(records.config)))
    return stats.spearmanr(level, -records.recorded(run).arrays["loss"].mean(1)).statistic


def lead(records: RunStore, run: str) -> np.ndarray:
    """Share of steps at which the behavior of higher priority has the lower training loss."""
    level = _levels(records)["ab".index(run[-1])]
    loss = records.recorded(run).arrays["loss"][:, 1:]
    return (loss[level.argmax()] < loss[level.argmin()]).mean(0)


def paper_gaps(records: RunStore, run: str) -> np.ndarray:
    """Mean |L_1 − L_2| over the steps, Figure 5's pair (a) over its pair (b): one value a seed."""
    losses = [records.recorded(name).arrays["loss"] for name in ("f5-a", "f5-b")]
    one, other = (np.abs(first - second).mean(0) for first, second in losses)
    return one / other


def gaps_in_order(records: RunStore, run: str) -> np.ndarray:
    """|P_1 − P_2| under this model, Figure 5's pair (a) over its pair (b)."""
    one, other = (np.ptp(level) for level in _levels(records))
    return np.array(one / other)


def model_gaps(records: RunStore, run: str) -> np.ndarray:
    """|L_1 − L_2|, mean over steps: pair of larger |P_1 − P_2| under this model over the other."""
    return paper_gaps(records, run) ** (1 if gaps_in_order(records, run) > 1 else -1)


def pairs_ordered(records: RunStore, run: str) -> np.ndarray:
    """Share of all pairs in which the behavior of higher priority has the lower mean loss."""
    loss = records.recorded(run).arrays["loss"].mean(2)
    level = np.array(_levels(records, all_pairs=True))
    return np.mean(np.sign(level[:, 0] - level[:, 1]) == np.sign(loss[:, 1] - loss[:, 0]))


def pairs_gaps(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation over all pairs of |P_1 − P_2| with |L_1 − L_2|, mean over steps."""
    loss = records.recorded(run).arrays["loss"]
    gap = np.abs(loss[:, 0] - loss[:, 1]).mean(1)
    return stats.spearmanr(np.ptp(_levels(records, all_pairs=True), 1), gap).statistic


def _levels(records: RunStore, all_pairs: bool = False) -> list[np.ndarray]:
    """P_1 and P_2 of the pairs of Figure 5, or of all pairs of the recorded behaviors."""
    if all_pairs:
        vectors = combinations(differences(records, all_behaviors(records.config)), 2)
    else:
        vectors = (differences(records, pair) for pair in PAIRS[records.config.tier])
    return [mixtures.priority_levels(np.array(b)) for b in vectors]


RUNS = (first_step_run, *(lambda records, k=k: figure_5_run(records, k) for k in (0, 1)))
RUNS += (pairs_run, all_run)
MEASURES = (first_step_apart, rise_apart, rise_as_printed, all_order, lead)
MEASURES += (paper_gaps, gaps_in_order, model_gaps, pairs_ordered, pairs_gaps)
