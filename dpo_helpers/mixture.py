"""Mixtures of behaviors: priority levels (5), and what the first step really does (A.3)."""

import numpy as np

from . import theory
from .errors import InputError


def pulls(g: np.ndarray, labels: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """b̂_j = (2/n_j) Σ_{i∈j} s_i g_i of each behavior j of a mixture (m, d), and n_j (m,).

    With balanced classes b̂_j is the difference of means μ̂₊ʲ − μ̂₋ʲ of the paper.
    ``group`` (n,) numbers the behaviors from 0. Raises InputError for a number without statements.
    """
    sizes = np.bincount(group)
    if not sizes.all():
        raise InputError(f"behavior {int(np.argmin(sizes))} of the mixture has no statements")
    member = group == np.arange(len(sizes))[:, None]
    return 2 * (member * labels / sizes[:, None]) @ g, sizes


def differences(g: np.ndarray, labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    """b_j = μ̂₊ʲ − μ̂₋ʲ of each behavior j of a mixture (m, d), of which (5) speaks.

    For balanced classes the same as ``pulls``; otherwise without its share of the common mean.
    Raises InputError for a behavior without statements of both sides.
    """
    number = np.arange(group.max() + 1)[:, None]
    sides = [((group == number) & (labels == side)).astype(float) for side in (1, -1)]
    counts = [side.sum(1, keepdims=True) for side in sides]
    for count in counts:
        if not count.all():
            raise InputError(
                f"behavior {int(np.argmin(count))} of the mixture has statements of one side only"
            )
    return (sides[0] / counts[0] - sides[1] / counts[1]) @ g


def priorities(b: np.ndarray) -> np.ndarray:
    """P_j = b̄·b_j/(‖b̄‖ max_i ‖b_i‖), eq. (5), of the rows of ``b`` (m, d), equally large behaviors.

    Raises InputError where b̄ = 0, for which (5) is undefined.
    """
    mean = b.mean(0)
    length = np.linalg.norm(mean)
    if length <= 1e-14 * np.linalg.norm(b, axis=1).max():
        raise InputError("the behaviors cancel: b̄ = 0, and eq. (5) is undefined")
    return b @ mean / (length * np.linalg.norm(b, axis=1).max())


def improvements(b: np.ndarray, sizes: np.ndarray, learning_rate: float, beta: float) -> np.ndarray:
    """(22): the average rise of each behavior's logit difference at the first step, (βη/4) b̄·b_j.

    b̄ = Σ (n_j/N) b_j, whatever the sizes. ((24) as printed, β²η/4, is the rise of the margins.)
    """
    return beta * learning_rate / 4 * b @ (sizes @ b / sizes.sum())


def first_fall(
    g: np.ndarray,
    labels: np.ndarray,
    group: np.ndarray,
    learning_rate: float,
    beta: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log 2 − L_j after one step on the mixture, (m,) each: lower bound, value, upper bound.

    (β²η/8) b̄·b_j − (β²/2) mean_j (g·δ₁)² ≤ log 2 − L_j(1) ≤ (β²η/8) b̄·b_j.
    """
    b, sizes = pulls(g, labels, group)
    step = learning_rate * beta / 4 * (sizes @ b / sizes.sum())
    logits = g @ step
    high = beta * improvements(b, sizes, learning_rate, beta) / 2
    low = high - beta**2 / 2 * np.bincount(group, logits**2) / sizes
    exact = np.bincount(group, theory.fall(2 * beta * labels * logits)) / sizes
    return low, exact, high


def falls(
    path: np.ndarray, g: np.ndarray, labels: np.ndarray, group: np.ndarray, beta: float
) -> np.ndarray:
    """log 2 − L_j of each behavior of a mixture along a ``path`` of δ (steps, d): (m, steps)."""
    margins = 2 * beta * labels[:, None] * (g @ path.T)
    return np.stack([theory.fall(margins[group == j]).mean(0) for j in range(group.max() + 1)])
