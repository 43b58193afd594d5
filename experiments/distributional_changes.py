"""What full fine-tuning makes of hidden states (Figures 8 and 20 to 26)."""

import re
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from dpo_helpers.errors import InputError
from dpo_helpers.states import geometry, probe
from ledger.config import TIERS
from ledger.store import Run, RunStore, States

from .full_finetuning import BETAS, MAIN, rates, trained_run


def trained(
    records: RunStore, behaviors: Sequence[str], beta: float
) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Arrays of ``trained_run`` with seed 0, by behavior and learning rate."""
    pairs = product(behaviors, rates(records, beta).values())
    return {(b, rate): trained_run(records, [b], beta, rate, 0).arrays for b, rate in pairs}


def spread(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ``trained_run`` recorded of hidden states, and what follows, in float64.

    Each (2, 2): before and after, of all statements and of the held-out ones.

    apart       ‖b̂‖ = ‖μ̂₊ − μ̂₋‖
    covariance  max ‖Σ̂±‖
    q1          max ‖Σ̂±‖ / ‖b̂‖, the paper's ratio of variance to distinguishability
    total       max Tr Σ̂± / ‖b̂‖, the same with the variance in all directions
    q2          max ‖Σ̂±‖ / ‖b̂‖², which is free of scale
    certain     1 / (1 + 4 q2), below the share of either side that lies nearer to its own mean
    directions  max Tr Σ̂± / max ‖Σ̂±‖, in about how many directions the statements spread
    """
    apart, covariance, trace = (
        np.asarray(arrays[name], np.float64) for name in ("apart", "covariance", "trace")
    )
    q2 = covariance / apart**2
    return {
        "apart": apart,
        "covariance": covariance,
        "q1": covariance / apart,
        "total": trace / apart,
        "q2": q2,
        "certain": 1 / (1 + 4 * q2),
        "directions": trace / covariance,
    }


def denoised(arrays: Mapping[str, np.ndarray], labels: np.ndarray, train: np.ndarray) -> np.ndarray:
    """‖b̂‖ less what the noise of two sample means adds to it, (2, 2) as in ``spread``.

    E‖b̂‖² = ‖b‖² + Tr Σ₊/n₊ + Tr Σ₋/n₋. Of the traces only the larger is recorded and stands for
    both, so that rather too much is taken off; 0 where the noise is all there is. ``labels`` (n,)
    of ±1 and ``train`` (n,) bool are the behavior's.
    """
    apart, trace = (np.asarray(arrays[name], np.float64) for name in ("apart", "trace"))
    shares = [
        sum(1 / ((labels[rows] == side).sum() - 1) for side in (1, -1))
        for rows in (np.ones(len(labels), bool), ~train)
    ]
    return np.sqrt(np.maximum(0, apart**2 - trace * shares))


def along(g: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """How well hidden states g (n, d) with ``labels`` (n,) of ±1 are told apart along b̂.

    max û·Σ̂±û / ‖b̂‖² with û = b̂/‖b̂‖, and the share of statements that lie nearer, along b̂, to
    the mean of their own side.
    """
    means = [g[labels == side].mean(0) for side in (1, -1)]
    b = means[0] - means[1]
    places = (g - (means[0] + means[1]) / 2) @ b
    variance = max(places[labels == side].var() for side in (1, -1)) / (b @ b)
    return float(variance / (b @ b)), float((places * labels > 0).mean())


def stretched(g: np.ndarray, labels: np.ndarray, factor: float) -> np.ndarray:
    """Hidden states (n, d) whose part along b̂ is ``factor`` times as long, the rest as it was."""
    b = g[labels == 1].mean(0) - g[labels == -1].mean(0)
    unit = b / np.linalg.norm(b)
    return g + (factor - 1) * np.outer(g @ unit, unit)


def stretches(s: States, factors: Sequence[float] = (1, 4, 16)) -> pd.DataFrame:
    """Hidden states stretched along b̂, a row a factor: what is measured of them.

    ``linear classifier`` is its accuracy on the held-out statements.
    """
    rows = {}
    for factor in factors:
        g = stretched(s.g, s.labels, factor)
        m, (v, nearer) = geometry(g, s.labels), along(g, s.labels)
        rows[f"stretched {factor:g} times"] = {
            "‖b̂‖": m.distinguishability,
            "q₁": m.cov_norm / m.distinguishability,
            "q₂": m.cov_norm / m.distinguishability**2,
            "v": v,
            "nearer to its own mean": nearer,
            "linear classifier": probe(g, s.labels, s.train)[1],
        }
    return pd.DataFrame(rows).T


def changes(records: RunStore) -> pd.DataFrame:
    """One row a run of the tier, by rising β: after over before, of all statements.

    Columns ``behavior``, ``β``, ``rate`` (its name), ``η``, and the keys of ``spread``.
    """
    rows = []
    for behavior, beta in _looked_at(records):
        for name, rate in rates(records, beta).items():
            found = spread(trained_run(records, [behavior], beta, rate, 0).arrays)
            row = {"behavior": behavior, "β": beta, "rate": name, "η": rate}
            rows.append(row | {what: x[1, 0] / x[0, 0] for what, x in found.items()})
    return pd.DataFrame(rows).sort_values("β", kind="stable")


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """``changes`` by β and learning rate: in how many runs each rose or fell, and medians."""
    groups = table.groupby(["β", "η"])
    found = pd.DataFrame(
        {
            "runs": groups.size(),
            "‖b̂‖ larger": groups["apart"].apply(lambda x: (x > 1).sum()),
            "‖Σ̂‖ smaller": groups["covariance"].apply(lambda x: (x < 1).sum()),
            "q₁ smaller": groups["q1"].apply(lambda x: (x < 1).sum()),
            "q₂ smaller": groups["q2"].apply(lambda x: (x < 1).sum()),
            "median ‖b̂‖ ×": groups["apart"].median().round(1),
            "median q₁ ×": groups["q1"].median().round(2),
            "median q₂ ×": groups["q2"].median().round(3),
        }
    )
    found.index = [f"β = {beta:g}, η = {rate:g}" for beta, rate in found.index]
    return found


def grown(records: RunStore, run: str) -> np.ndarray:
    """Share of the learning rates at which ‖μ̂₊ − μ̂₋‖ is larger after training than before."""
    return np.mean([x["apart"][1, 0] > x["apart"][0, 0] for x in _named(records, run)])


def concentrated(records: RunStore, run: str) -> np.ndarray:
    """Share of the learning rates at which max ‖Σ̂±‖ / ‖μ̂₊ − μ̂₋‖ is smaller after than before."""
    return np.mean([x["q1"][1, 0] < x["q1"][0, 0] for x in _named(records, run)])


def _named(records: RunStore, run: str) -> list[dict[str, np.ndarray]]:
    """``spread`` at each learning rate of a claim's run.

    Raises InputError where the run is none of one behavior and one β.
    """
    found = re.fullmatch(r"full/[^/]+/([^/*+]+)/beta-([0-9.]+)-\*", run)
    if not found:
        raise InputError(f"claims.yml: run {run!r}; write it as full/MODEL/BEHAVIOR/beta-BETA-*")
    of_one = trained(records, [found[1]], float(found[2]))
    return [spread(arrays) for arrays in of_one.values()]


def _looked_at(records: RunStore) -> list[tuple[str, float]]:
    """The behaviors of the tier's figures with each β."""
    tier = TIERS[records.config.tier]
    beta = tier["beta"]
    others = product(MAIN[records.config.tier], BETAS[records.config.tier])
    return [*((behavior, beta) for behavior in tier["behaviors"]), *others]


def changed_runs(records: RunStore) -> list[Run]:
    """The runs that this chapter looks at: of those of chapter 05, the single ones of seed 0."""
    return [
        trained_run(records, [behavior], beta, rate, 0)
        for behavior, beta in _looked_at(records)
        for rate in rates(records, beta).values()
    ]


RUNS = (changed_runs,)
MEASURES = (grown, concentrated)
