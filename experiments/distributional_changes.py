"""Measures of what full fine-tuning does to hidden states (Figures 8 and 20 to 26)."""

import re
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from dpo_helpers.errors import InputError
from ledger.config import TIERS
from ledger.store import RunStore

from .full_finetuning import BETAS, MAIN, rates, trained_run


def trained(
    records: RunStore, behaviors: Sequence[str], beta: float
) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Arrays of ``trained_run`` with seed 0, by behavior and learning rate."""
    pairs = product(behaviors, rates(records, beta).values())
    return {(b, rate): trained_run(records, [b], beta, rate, 0).arrays for b, rate in pairs}


def spread(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Distances, variances and their ratios from ``trained_run``, in float64.

    Each (2, 2): before and after training, of all statements and of the held-out ones.

    apart, covariance   ‖b̂‖ = ‖μ̂₊ − μ̂₋‖ and max ‖Σ̂±‖
    q1, q2              max ‖Σ̂±‖ / ‖b̂‖, our reading of the paper's ratio; max ‖Σ̂±‖ / ‖b̂‖²
    total               max Tr Σ̂± / ‖b̂‖, the variance in all directions
    certain             1 / (1 + 4 q2), at most the share of either side nearer to its own mean
    directions          max Tr Σ̂± / max ‖Σ̂±‖, the effective number of directions
    """
    names = ("apart", "covariance", "trace")
    apart, covariance, trace = (np.asarray(arrays[name], np.float64) for name in names)
    q2 = covariance / apart**2
    found = {"apart": apart, "covariance": covariance, "q1": covariance / apart}
    found |= {"total": trace / apart, "q2": q2, "certain": 1 / (1 + 4 * q2)}
    return found | {"directions": trace / covariance}


def along(g: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """How well b̂ separates hidden states g (n, d) with ``labels`` (n,) of ±1.

    v = max û·Σ̂±û / ‖b̂‖² with û = b̂/‖b̂‖, and the share of statements nearer to the mean of their
    own side.
    """
    means = [g[labels == side].mean(0) for side in (1, -1)]
    b = means[0] - means[1]
    places = (g - (means[0] + means[1]) / 2) @ b
    variance = max(places[labels == side].var() for side in (1, -1)) / (b @ b)
    return float(variance / (b @ b)), float((places * labels > 0).mean())


def grown(records: RunStore, run: str) -> np.ndarray:
    """Share of the learning rates at which ‖μ̂₊ − μ̂₋‖ is larger after training than before."""
    return np.mean([x["apart"][1, 0] > x["apart"][0, 0] for x in _named(records, run)])


def concentrated(records: RunStore, run: str) -> np.ndarray:
    """Share of the learning rates at which max ‖Σ̂±‖ / ‖μ̂₊ − μ̂₋‖ is smaller after than before."""
    return np.mean([x["q1"][1, 0] < x["q1"][0, 0] for x in _named(records, run)])


def _named(records: RunStore, run: str) -> list[dict[str, np.ndarray]]:
    """``spread`` at each learning rate of a claim's run.

    Raises InputError where the run is not of one behavior and one β.
    """
    found = re.fullmatch(r"full/[^/]+/([^/*+]+)/beta-([0-9.]+)-\*", run)
    if not found:
        raise InputError(f"claims.yml: run {run!r}; write it as full/MODEL/BEHAVIOR/beta-BETA-*")
    return [spread(x) for x in trained(records, [found[1]], float(found[2])).values()]


def shown(tier: str) -> list[tuple[str, float]]:
    """The behaviors of the tier's figures, each with each of its β."""
    first = [(behavior, TIERS[tier]["beta"]) for behavior in TIERS[tier]["behaviors"]]
    return first + list(product(MAIN[tier], BETAS[tier]))


# Those runs of chapter 05 with one behavior and seed 0.
RUNS = (lambda records: [trained(records, [b], beta) for b, beta in shown(records.config.tier)],)
MEASURES = (grown, concentrated)
