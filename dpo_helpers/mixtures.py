"""Mixtures of behaviors: priority levels (5), the first step (A.3), and weights that balance it.

The first step on groups of weights w_j moves W_U[Yes] along b̄ = Σ w_j b_j, so the mean logit
difference of group a rises in proportion to b_a·b̄ = (Kw)_a, K_ab = b_a·b_b.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from . import theory
from .errors import InputError
from .last_layer import gradient_descent


def signed_means(
    g: np.ndarray, labels: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """b̂_j = (2/n_j) Σ_{i∈j} s_i g_i of each behavior j of a mixture (m, d), and n_j (m,).

    With balanced classes b̂_j is the difference of means μ̂₊ʲ − μ̂₋ʲ of the paper.
    ``group`` (n,) numbers the behaviors from 0. Raises InputError for a number without statements.
    """
    sizes = np.bincount(group)
    if not sizes.all():
        raise InputError(f"behavior {int(np.argmin(sizes))} of the mixture has no statements")
    member = group == np.arange(len(sizes))[:, None]
    return 2 * (member * labels / sizes[:, None]) @ g, sizes


def mean_differences(g: np.ndarray, labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    """b_j = μ̂₊ʲ − μ̂₋ʲ of each behavior j of a mixture (m, d), of which (5) speaks.

    For balanced classes the same as ``signed_means``; otherwise without its share of the common mean.
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


def priority_levels(b: np.ndarray) -> np.ndarray:
    """P_j = b̄·b_j/(‖b̄‖ max_i ‖b_i‖), eq. (5), of the rows of ``b`` (m, d), equally large behaviors.

    Raises InputError where b̄ = 0, for which (5) is undefined.
    """
    mean = b.mean(0)
    length = np.linalg.norm(mean)
    if length <= 1e-14 * np.linalg.norm(b, axis=1).max():
        raise InputError("the behaviors cancel: b̄ = 0, and eq. (5) is undefined")
    return b @ mean / (length * np.linalg.norm(b, axis=1).max())


def logit_gains(b: np.ndarray, sizes: np.ndarray, learning_rate: float, beta: float) -> np.ndarray:
    """(22): the average rise of each behavior's logit difference at the first step, (βη/4) b̄·b_j.

    b̄ = Σ (n_j/N) b_j, whatever the sizes. ((24) as printed, β²η/4, is the rise of the margins.)
    """
    return beta * learning_rate / 4 * b @ (sizes @ b / sizes.sum())


def first_loss_decrease(
    g: np.ndarray,
    labels: np.ndarray,
    group: np.ndarray,
    learning_rate: float,
    beta: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log 2 − L_j after one step on the mixture, (m,) each: lower bound, value, upper bound.

    (β²η/8) b̄·b_j − (β²/2) mean_j (g·δ₁)² ≤ log 2 − L_j(1) ≤ (β²η/8) b̄·b_j.
    """
    b, sizes = signed_means(g, labels, group)
    step = learning_rate * beta / 4 * (sizes @ b / sizes.sum())
    logits = g @ step
    high = beta * logit_gains(b, sizes, learning_rate, beta) / 2
    low = high - beta**2 / 2 * np.bincount(group, logits**2) / sizes
    exact = np.bincount(group, theory.loss_decrease(2 * beta * labels * logits)) / sizes
    return low, exact, high


def loss_decreases(
    path: np.ndarray, g: np.ndarray, labels: np.ndarray, group: np.ndarray, beta: float
) -> np.ndarray:
    """log 2 − L_j of each behavior of a mixture along a ``path`` of δ (steps, d): (m, steps)."""
    margins = 2 * beta * labels[:, None] * (g @ path.T)
    return np.stack(
        [theory.loss_decrease(margins[group == j]).mean(0) for j in range(group.max() + 1)]
    )


def max_min_weights(gram: np.ndarray, wanted: np.ndarray | None = None) -> np.ndarray:
    """w (m,) ≥ 0, Σ w = 1, that does most for the group which it does least for.

    ``gram`` (m, m) is K, ``wanted`` (m,) > 0 how much each group is to improve, relative to the
    others, all alike if None. A linear programme: the largest t for which some v ≥ 0, Σ v = 1, has
    Σ_b K_ab v_b/(r_a r_b) ≥ t for all a; then w ∝ v/r. Where (Kw)_a ∝ r_a can be had, this is it
    (the theorem of the chapter on the remedy).

    Raises InputError for a matrix that is not square and symmetric or has no finite entries, and
    for ``wanted`` that does not fit or is not positive.
    """
    gram = np.asarray(gram, float)
    m = len(gram)
    if gram.shape != (m, m) or not np.isfinite(gram).all() or not np.allclose(gram, gram.T):
        raise InputError(
            f"gram {gram.shape}: must be the square matrix of all b_a·b_b, symmetric and finite"
        )
    wanted = np.ones(m) if wanted is None else np.asarray(wanted, float)
    if wanted.shape != (m,) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise InputError(f"wanted {wanted}: must be {m} positive numbers, one a group")
    scaled = gram / np.outer(wanted, wanted)
    scaled /= np.diag(scaled).max() or 1.0
    # Unknowns v and t: maximise t.
    found = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.column_stack([-scaled, np.ones(m)]),
        b_ub=np.zeros(m),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
    )
    w = np.maximum(found.x[:m], 0) / wanted
    return w / w.sum()


def group_descent(
    g: np.ndarray,
    labels: np.ndarray,
    group: np.ndarray,
    weigh: Callable[[np.ndarray], np.ndarray],
    *,
    learning_rate: float,
    beta: float,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent of the last layer on Σ w_j L_j; in a group both sides weigh the same.

    L_j is the mean of the mean losses of the two sides of group j. Before each step ``weigh``
    gives w (m,) from b (m, d), b_j = −(4/β) ∇L_j with respect to W_U[Yes]: at first μ̂₊ʲ − μ̂₋ʲ.

    Returns the path of δ (steps + 1, d) and the weights (steps, m). Raises InputError for a group
    without statements of both sides.
    """
    number = np.arange(group.max() + 1)[:, None]
    sides = [((group == number) & (labels == side)).astype(float) for side in (1, -1)]
    for side in sides:
        if not side.any(1).all():
            raise InputError(f"group {int(np.argmin(side.any(1)))} has statements of one side only")
    share = sum(side / side.sum(1, keepdims=True) for side in sides) / 2
    a, used = labels[:, None] * g, []

    def weights(sigmoids: np.ndarray) -> np.ndarray:
        used.append(weigh(4 * (share * sigmoids) @ a))
        return used[-1] @ share

    path = gradient_descent(a, learning_rate, beta, steps, weights)
    return path, np.array(used).reshape(steps, len(share))


def resample(labels: np.ndarray, group: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of as many statements as there are, a share ``weights`` (m,) from each group.

    Half of them from each side of the group. A statement of a side comes as often as any other of
    that side, or once more; which ones do, and which are left out where not all are needed, is
    drawn.

    Raises InputError where statements are wanted of a side that has none.
    """
    rng = np.random.default_rng(seed)
    ends = np.rint(len(group) * np.cumsum(np.repeat(weights, 2) / 2)).astype(int)
    counts = np.diff(ends, prepend=0).reshape(-1, 2)
    rows = []
    for j, pair in enumerate(counts):
        for side, count in zip((1, -1), pair, strict=True):
            members = np.flatnonzero((group == j) & (labels == side))
            if count and not len(members):
                raise InputError(
                    f"group {j} has no statements of side {side:+d}, and {count} are wanted"
                )
            rows.append(np.resize(rng.permutation(members), count))
    return np.concatenate(rows)
