"""DPO of the last layer: the exact dynamics of the unembedding's two rows (§3, §4, eq. 7).

For one-token responses the softmax normalizer cancels. The margin of statement i is m_i = 2β a_i·δ
with a_i = s_i g(x_i), where δ is the change of the row W_U[Yes]. The row W_U[No] changes by −δ, and
no other row changes. So a training step on V × d weights is a step on d numbers, and
‖W_U(t) − W_U(0)‖ = √2 ‖δ‖ in both the operator and the Frobenius norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .dpo import loss
from .errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Problem:
    """The n statements of one behavior, or of a mixture of several.

    g        (n, d) hidden states
    labels   (n,) ±1, +1 where Yes is preferred
    train    (n,) bool: True for training statements, False for held-out ones
    group    (n,) int from 0: the behavior of a mixture, for measuring only
    """

    g: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    group: np.ndarray | None = None


def gradient_descent(
    a: np.ndarray,
    learning_rate: float,
    beta: float,
    steps: int,
    weights: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Gradient descent on all statements: δ_{t+1} = δ_t + ηβ Σ_i w_i σ(−2β a_i·δ_t) a_i, δ_0 = 0.

    ``a`` (…, n, d) holds s_i g_i. The weights w are 1/n, or ``weights`` of the sigmoids (…, n) of
    each step. Returns δ_t for t = 0 … steps: (steps + 1, …, d), float64.
    """
    import torch

    a = torch.from_numpy(np.array(a, np.float64))

    def pull(_: int, sigmoids: torch.Tensor) -> torch.Tensor:
        if weights is None:
            return learning_rate * beta / a.shape[-2] * sigmoids
        w = torch.from_numpy(weights(sigmoids[..., 0].numpy()))
        return learning_rate * beta * w[..., None] * sigmoids

    return _descend(a, lambda _: a, pull, beta, steps, seeds=1)[..., 0].numpy()


def _descend(
    a: "torch.Tensor",
    batch: "Callable[[int], torch.Tensor]",
    pull: "Callable[[int, torch.Tensor], torch.Tensor]",
    beta: float,
    steps: int,
    seeds: int,
) -> "torch.Tensor":
    """The recursion δ_{t+1} = δ_t + batchᵀ · pull(σ(−2β batch · δ_t)).

    ``batch`` returns the rows (…, m, d) of ``a`` (…, n, d) for step t, and ``pull`` the coefficient
    of each row, given t and the sigmoids (…, m, seeds). Returns δ_t (steps + 1, …, d, seeds).
    """
    import torch

    path = a.new_zeros(steps + 1, *a.shape[:-2], a.shape[-1], seeds)
    with torch.inference_mode():
        for t in range(steps):
            rows = batch(t)
            path[t + 1] = path[t] + rows.mT @ pull(t, torch.sigmoid(-2 * beta * (rows @ path[t])))
    return path


def train(
    problems: Sequence[Problem],
    boundary: np.ndarray,
    *,
    beta: float,
    learning_rate: float,
    steps: int,
    batch_size: int = 128,
    sampling: str = "uniform",
    seeds: int = 1,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Train on every problem with every seed at once, in float64.

    ``boundary`` (d,) is W_B = W_U[Yes] − W_U[No] before training. Each step draws ``batch_size``
    training statements without replacement (``sampling`` "uniform", or "balanced", half from each
    side), or takes all of them ("full"). Problems must have the same d and number of groups.

    Returns arrays over problems k, groups q, train and held out, steps t = 0 … steps, and seeds s:
      loss, margin   (k, q, 2, t, s)  mean −log σ(m) and mean m
      accuracy       (k, q, 2, t, s)  share answered as preferred by W_B + 2δ
      distance       (k, t, s)        ‖W_U(t) − W_U(0)‖
      delta          (k, d, s)        δ after the last step
    Without held-out statements, their measures are NaN.

    Raises InputError if a side has no training statements, and ValueError if the numbers of groups
    differ.
    """
    import torch

    groups = {1 if p.group is None else int(p.group.max()) + 1 for p in problems}
    if len(groups) != 1:
        raise ValueError(f"problems have different numbers of groups: {sorted(groups)}")
    most = max(len(p.labels) for p in problems)
    signed = np.zeros((len(problems), most, problems[0].g.shape[1]))
    for a, p in zip(signed, problems, strict=True):
        np.multiply(p.g, p.labels[:, None], out=a[: len(p.labels)])
    weights, rows = _minibatches(problems, steps, batch_size, sampling, seeds)
    a, weights = (torch.from_numpy(x).to(device, torch.float64) for x in (signed, weights))
    weights *= learning_rate * beta
    each = torch.arange(len(problems), device=device)[:, None]
    last = len(weights) - 1  # of full batches there is one, used at every step
    if rows is not None:
        rows = torch.from_numpy(rows).to(device)
    path = _descend(
        a,
        lambda t: a if rows is None else a[each, rows[min(t, last)]],
        lambda t, sigmoids: weights[min(t, last)] * sigmoids,
        beta,
        steps,
        seeds,
    )
    measured = [
        _measure(problem, a[k, : len(problem.labels)], path[:, k], boundary, beta)
        for k, problem in enumerate(problems)
    ]
    history = {name: np.stack([m[name] for m in measured]) for name in measured[0]}
    distance = 2**0.5 * path.norm(dim=2).transpose(0, 1)
    return history | {"distance": distance.cpu().numpy(), "delta": path[-1].cpu().numpy()}


def _minibatches(
    problems: Sequence[Problem], steps: int, batch_size: int, sampling: str, seeds: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights (steps, k, m, seeds) of m rows of each problem, and their row numbers (steps, k, m).

    If all seeds together draw few rows, m is the largest number drawn in any step, else all rows
    are read, and the row numbers are None.
    """
    most = max(len(p.labels) for p in problems)
    weights = np.zeros((steps if sampling != "full" else 1, len(problems), most, seeds))
    for k, problem in enumerate(problems):
        for s in range(seeds):
            batch = draws(problem, len(weights), batch_size, sampling, s)
            weights[:, k, : len(problem.labels), s] = batch
    drawn = (weights > 0).any(-1)
    m = drawn.sum(-1).max()
    if m >= most / 2:
        return weights, None
    rows = np.argsort(~drawn, axis=-1, kind="stable")[..., :m]
    return np.take_along_axis(weights, rows[..., None], 2), rows


def _measure(
    problem: Problem, a: "torch.Tensor", path: "torch.Tensor", boundary: np.ndarray, beta: float
) -> dict[str, np.ndarray]:
    """Loss, margin and accuracy (q, 2, t, s) along a path of δ (t, d, s)."""
    import torch

    group = np.zeros(len(a), int) if problem.group is None else problem.group
    average = np.zeros((group.max() + 1, 2, len(a)))
    for q in range(len(average)):
        for held_out in (0, 1):
            members = (group == q) & (problem.train != bool(held_out))
            average[q, held_out] = members / members.sum() if members.any() else np.nan
    average = torch.from_numpy(average).to(a)
    steps, d, seeds = path.shape
    logits = 2 * (a @ path.transpose(0, 1).reshape(d, steps * seeds))
    start = a @ torch.as_tensor(boundary).to(a)
    values = {
        "loss": loss(beta * logits),
        "margin": beta * logits,
        "accuracy": (start[:, None] + logits > 0).to(a),
    }
    return {
        name: (average @ value).unflatten(-1, (steps, seeds)).cpu().numpy()
        for name, value in values.items()
    }


def draws(problem: Problem, steps: int, size: int, sampling: str, seed: int) -> np.ndarray:
    """The weights (steps, n) of the statements in each step's mean. Errors as ``train``."""
    weights = np.zeros((steps, len(problem.labels)))
    sides = [np.flatnonzero(problem.train)]
    if sampling == "balanced":
        sides = [np.flatnonzero(problem.train & (problem.labels == side)) for side in (1, -1)]
    if not all(len(side) for side in sides):
        raise InputError(f"{sampling} minibatches: a side has no training statements; add some")
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for side in sides:
            take = len(side) if sampling == "full" else min(size // len(sides), len(side))
            weights[step, rng.permutation(side)[:take]] = 1 / (len(sides) * take)
    return weights
