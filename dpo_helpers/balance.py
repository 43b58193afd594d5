"""Weights of groups under which the first step of DPO improves them all alike, or as we want.

The first step on groups that weigh w_j moves W_U[Yes] along b̄ = Σ w_j b_j, so the mean logit
difference of group a rises in proportion to b_a·b̄ = (Kw)_a, K_ab = b_a·b_b.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog
from scipy.special import expit

from .errors import InputError


def weights(gram: np.ndarray, wanted: np.ndarray | None = None) -> np.ndarray:
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


def descend(
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
    a = labels[:, None] * g
    path, used = np.zeros((steps + 1, g.shape[1])), np.zeros((steps, len(share)))
    for t in range(steps):
        b = 4 * (share * expit(-2 * beta * (a @ path[t]))) @ a
        used[t] = weigh(b)
        path[t + 1] = path[t] + learning_rate * beta / 4 * (used[t] @ b)
    return path, used


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
