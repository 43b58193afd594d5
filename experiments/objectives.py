"""The objectives of §2 for a tabular policy, and the run that compares their optima.

Policies, rewards, and references are (prompts, responses), prompts and pairs equally likely.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dpo_helpers import dpo
from ledger.store import Run, RunStore

if TYPE_CHECKING:
    from torch import Tensor


def bradley_terry(rewards: "Tensor") -> "Tensor":
    """p(y ≻ y′|x) = σ(r(x, y) − r(x, y′)), eq. (1): prompts × y → prompts × y × y′."""
    return (rewards[:, :, None] - rewards[:, None, :]).sigmoid()


def rlhf_objective(log_policy: "Tensor", log_reference: "Tensor", rewards: "Tensor", beta: float):
    """E_x E_{y∼π}[r(x, y) − β log(π(y|x)/π_ref(y|x))], eq. (3) with its expectations corrected."""
    return (log_policy.exp() * (rewards - beta * (log_policy - log_reference))).sum(-1).mean()


def population_loss(log_policy: "Tensor", log_reference: "Tensor", rewards: "Tensor", beta: float):
    """Eq. (4) in expectation: pairs y, y′ drawn uniformly, preferences from Bradley–Terry."""
    ratio = log_policy - log_reference
    margins = beta * (ratio[:, :, None] - ratio[:, None, :])
    return (bradley_terry(rewards) * dpo.loss(margins)).mean()


def rlhf_optimum(log_reference: "Tensor", rewards: "Tensor", beta: float) -> "Tensor":
    """log π* with π* ∝ π_ref exp(r/β), which maximizes eq. (3), in closed form."""
    return (log_reference + rewards / beta).log_softmax(-1)


def fit(objective: "Callable[[Tensor], Tensor]", shape: tuple[int, int]) -> "Tensor":
    """Minimize ``objective`` of log-probabilities by L-BFGS, from uniform: (prompts, responses)."""
    import torch

    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    limits = {"max_iter": 2000, "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    search = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **limits)

    def step() -> "Tensor":
        search.zero_grad()
        value = objective(logits.log_softmax(-1))
        value.backward()
        return value

    search.step(step)
    return logits.detach().softmax(-1)


def policy_run(records: RunStore) -> Run:
    """T0: largest differences of a probability, ``between`` the numerical optima of (3) and (4),
    and of each (``rlhf``, ``dpo``) from the closed form: (seeds,)."""
    import torch

    settings = {"prompts": 4, "responses": 5, "beta": 0.5, "seeds": 5}
    shape = (settings["prompts"], settings["responses"])

    def differences(seed: int) -> list[float]:
        draw = torch.Generator().manual_seed(seed)
        logits, rewards = torch.randn((2, *shape), generator=draw, dtype=torch.float64)
        given = (logits.log_softmax(-1), rewards, settings["beta"])
        best = rlhf_optimum(*given).exp()
        rlhf = fit(lambda p: -rlhf_objective(p, *given), shape)
        direct = fit(lambda p: population_loss(p, *given), shape)
        pairs = ((rlhf, direct), (rlhf, best), (direct, best))
        return [(one - other).abs().max().item() for one, other in pairs]

    def make() -> dict[str, np.ndarray]:
        values = np.array([differences(seed) for seed in range(settings["seeds"])])
        return dict(zip(("between", "rlhf", "dpo"), values.T, strict=True))

    return records.replay_or_run("t0", settings, {}, make)


def policy_gap(records: RunStore, run: str) -> np.ndarray:
    """Largest difference of a probability between the numerical optima of (3) and (4): (seeds,)."""
    return records.recorded(run).arrays["between"]


RUNS = (policy_run,)
MEASURES = (policy_gap,)
