"""DPO of the unembedding layer alone: the exact dynamics of its two rows (§3, §4, eq. 7).

For one-token responses over one prompt the softmax normaliser cancels, and the
margin of statement i is m_i = 2β a_i·δ with a_i = s_i g(x_i), where δ is the
change of the row W_U[Yes]; the row W_U[No] changes by −δ and no other row
changes at all. So a training step on V × d weights is one on d numbers, and
‖W_U(t) − W_U(0)‖ = √2 ‖δ‖ in both the operator and the Frobenius norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .dpo import loss


@dataclass(frozen=True)
class Problem:
    """Statements to learn: one behavior, or a mixture of several.

    g        (n, d) hidden states
    labels   (n,) ±1, +1 where Yes is preferred
    train    (n,) bool: trained on; the others are held out
    group    (n,) int from 0: the behavior of a mixture, for measuring only
    """

    g: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    group: np.ndarray | None = None


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
    """Train every problem with every seed at once, in float64.

    ``boundary`` (d,) is W_B = W_U[Yes] − W_U[No] before training. Each step
    draws ``batch_size`` training statements anew, without repetition
    ("uniform", or "balanced": half of them from each side), or takes them all
    ("full"). Problems must have equal d and equal numbers of groups.

    Returns arrays over problems k, groups q, sets (0 train, 1 held out), steps
    t = 0 … steps, and seeds s:
      loss, margin   (k, q, 2, t, s)  mean −log σ(m) and mean m
      accuracy       (k, q, 2, t, s)  share answered as preferred by W_B + 2δ
      distance       (k, t, s)        ‖W_U(t) − W_U(0)‖
      delta          (k, d, s)        δ after the last step
    A held-out set without statements measures NaN.
    """
    import torch

    to = dict(dtype=torch.float64, device=device)
    rows = max(len(p.labels) for p in problems)
    groups = {1 if p.group is None else int(p.group.max()) + 1 for p in problems}
    if len(groups) != 1:
        raise ValueError(f"problems have different numbers of groups: {sorted(groups)}")
    signed = np.zeros((len(problems), rows, problems[0].g.shape[1]))
    average = np.zeros((len(problems), groups.pop(), 2, rows))
    draws = np.zeros((steps if sampling != "full" else 1, len(problems), rows, seeds))
    for k, problem in enumerate(problems):
        n = len(problem.labels)
        signed[k, :n] = problem.labels[:, None] * problem.g.astype(np.float64)
        group = np.zeros(n, int) if problem.group is None else problem.group
        for q in range(average.shape[1]):
            for held_out in (0, 1):
                members = (group == q) & (problem.train != bool(held_out))
                average[k, q, held_out, :n] = members / members.sum() if members.any() else np.nan
        for s in range(seeds):
            draws[:, k, :n, s] = _draws(problem, len(draws), batch_size, sampling, s)
    a = torch.tensor(signed, **to)
    average = torch.tensor(average, **to)
    start = a @ torch.tensor(boundary, **to)[:, None]
    delta = torch.zeros(len(problems), a.shape[2], seeds, **to)
    history: dict[str, list] = {"loss": [], "margin": [], "accuracy": [], "distance": []}
    for t in range(steps + 1):
        logits = 2 * (a @ delta)
        margins = beta * logits
        correct = (start + logits > 0).double()
        for name, value in (("loss", loss(margins)), ("margin", margins), ("accuracy", correct)):
            history[name].append(torch.einsum("kqhn,kns->kqhs", average, value))
        history["distance"].append(2**0.5 * delta.norm(dim=1))
        if t < steps:
            weight = torch.tensor(draws[min(t, len(draws) - 1)], **to)
            delta = delta + learning_rate * beta * (a.mT @ (weight * torch.sigmoid(-margins)))
    stacked = {name: torch.stack(values, -2).cpu().numpy() for name, values in history.items()}
    return stacked | {"delta": delta.cpu().numpy()}


def _draws(problem: Problem, steps: int, size: int, sampling: str, seed: int) -> np.ndarray:
    """(steps, n) weights of each step's minibatch mean."""
    weights = np.zeros((steps, len(problem.labels)))
    sides = [np.flatnonzero(problem.train)]
    if sampling == "balanced":
        sides = [np.flatnonzero(problem.train & (problem.labels == side)) for side in (1, -1)]
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for side in sides:
            take = len(side) if sampling == "full" else min(size // len(sides), len(side))
            weights[step, rng.permutation(side)[:take]] = 1 / (len(sides) * take)
    return weights
