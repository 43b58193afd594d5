"""Mixtures of behaviors: priority levels (5), the first step (A.3), and weights that balance it.

The first step on groups with weights w_j moves W_U[Yes] along b̄ = Σ w_j b_j. So the mean logit
difference of group a increases in proportion to b_a·b̄ = (Kw)_a, where K_ab = b_a·b_b. ``group``
(n,) numbers the groups, which are behaviors, from 0 to m − 1.
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
    """b̂_j = (2/n_j) Σ_{i∈j} s_i g_i of each behavior j, (m, d), and n_j, (m,).

    With balanced classes, b̂_j is the paper's difference of means μ̂₊ʲ − μ̂₋ʲ.
    Raises InputError for a behavior without statements.
    """
    sizes = np.bincount(group)
    if not sizes.all():
        number = int(np.argmin(sizes))
        raise InputError(f"behavior {number} of the mixture has no statements; number them anew")
    member = group == np.arange(len(sizes))[:, None]
    return 2 * (member * labels / sizes[:, None]) @ g, sizes


def mean_differences(g: np.ndarray, labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    """b_j = μ̂₊ʲ − μ̂₋ʲ of each behavior j, (m, d), as in eq. (5).

    Equal to ``signed_means`` for balanced classes. Otherwise those contain a share of the common
    mean. Raises InputError for a behavior with statements of one side only.
    """
    yes, no = _class_means(labels, group)
    return (yes - no) @ g


def _class_means(labels: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights (m, n) of the means of each behavior's two classes, + and −."""
    number = np.arange(group.max() + 1)[:, None]
    members = [((group == number) & (labels == side)).astype(float) for side in (1, -1)]
    counts = [member.sum(1, keepdims=True) for member in members]
    for count in counts:
        if not count.all():
            raise InputError(
                f"behavior {int(np.argmin(count))} of the mixture has statements of one side only; "
                "leave it out"
            )
    return members[0] / counts[0], members[1] / counts[1]


def priority_levels(b: np.ndarray) -> np.ndarray:
    """P_j = b̄·b_j/(‖b̄‖ max_i ‖b_i‖), eq. (5), for the rows b_j of ``b`` (m, d) and their mean b̄.

    Raises InputError if b̄ = 0, where (5) is undefined.
    """
    mean = b.mean(0)
    length = np.linalg.norm(mean)
    if length <= 1e-14 * np.linalg.norm(b, axis=1).max():
        raise InputError("the behaviors cancel: b̄ = 0, and eq. (5) is undefined")
    return b @ mean / (length * np.linalg.norm(b, axis=1).max())


def logit_gains(b: np.ndarray, sizes: np.ndarray, learning_rate: float, beta: float) -> np.ndarray:
    """(22): each behavior's mean gain in logit difference at the first step, (βη/4) b̄·b_j, (m,).

    b̄ = Σ (n_j/N) b_j with the sizes n_j. The printed (24), with β²η/4, is the gain in margin.
    """
    return beta * learning_rate / 4 * b @ (sizes @ b / sizes.sum())


def first_loss_decrease(
    g: np.ndarray, labels: np.ndarray, group: np.ndarray, learning_rate: float, beta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log 2 − L_j after one step on the mixture: lower bound, exact value, upper bound, (m,) each.

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
    """log 2 − L_j of each behavior along a ``path`` of δ (steps, d): (m, steps)."""
    margins = 2 * beta * labels[:, None] * (g @ path.T)
    return np.stack(
        [theory.loss_decrease(margins[group == j]).mean(0) for j in range(group.max() + 1)]
    )


def max_min_weights(gram: np.ndarray, wanted: np.ndarray | None = None) -> np.ndarray:
    """The weights w (m,) ≥ 0, Σ w = 1, that maximize the smallest gain (Kw)_a of any group.

    ``gram`` (m, m) is K. ``wanted`` (m,) > 0 is r, the gains wanted relative to each other, all
    equal if None. A linear program: the largest t such that some v ≥ 0 with Σ v = 1 has
    Σ_b K_ab v_b/(r_a r_b) ≥ t for all a; then w ∝ v/r. If any weights reach (Kw)_a ∝ r_a, these
    do (the theorem of the chapter on the remedy).

    Raises InputError for a matrix that is not square, symmetric and finite, and for ``wanted`` of
    another shape or not positive.
    """
    gram = np.asarray(gram, float)
    m = len(gram)
    if gram.shape != (m, m) or not np.isfinite(gram).all() or not np.allclose(gram, gram.T):
        raise InputError(
            f"gram {gram.shape}: must be the square matrix of all b_a·b_b, symmetric and finite"
        )
    wanted = np.ones(m) if wanted is None else np.asarray(wanted, float)
    if wanted.shape != (m,) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise InputError(f"wanted {wanted}: must be {m} positive numbers, one for each group")
    scaled = gram / np.outer(wanted, wanted)
    scaled /= np.diag(scaled).max() or 1.0
    # Unknowns v and t: maximize t.
    solution = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.column_stack([-scaled, np.ones(m)]),
        b_ub=np.zeros(m),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
    )
    w = np.maximum(solution.x[:m], 0) / wanted
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
    """Gradient descent of the last layer on Σ w_j L_j, with balanced classes in each group.

    L_j is the mean of the mean losses of the two classes of group j. Before each step ``weigh``
    maps b (m, d) to w (m,), where b_j = −(4/β) ∇L_j with respect to W_U[Yes]. At initialization
    b_j = μ̂₊ʲ − μ̂₋ʲ.

    Returns the path of δ (steps + 1, d) and the weights (steps, m). Errors as ``mean_differences``.
    """
    share = sum(_class_means(labels, group)) / 2
    a, used = labels[:, None] * g, []

    def weights(sigmoids: np.ndarray) -> np.ndarray:
        used.append(weigh(4 * (share * sigmoids) @ a))
        return used[-1] @ share

    path = gradient_descent(a, learning_rate, beta, steps, weights)
    return path, np.array(used).reshape(steps, len(share))


def resample(labels: np.ndarray, group: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """n statement numbers, a share ``weights`` (m,) from each group, half of it from each side.

    The statements of a side are repeated equally often, up to one. Which ones are repeated once
    more, or are left out if not all are needed, is drawn with ``seed``.

    Raises InputError if statements are needed from a side that has none.
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
                    f"group {j} has no statements of side {side:+d}, but {count} are needed; add "
                    "some, or set its weight to 0"
                )
            rows.append(np.resize(rng.permutation(members), count))
    return np.concatenate(rows)
