"""The DPO loss, written here and nowhere else, and the objectives that it comes from (§2)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def margin(
    chosen: "torch.Tensor",
    rejected: "torch.Tensor",
    reference_chosen: "torch.Tensor",
    reference_rejected: "torch.Tensor",
    beta: float,
) -> "torch.Tensor":
    """m = β[(log π(y_w|x) − log π(y_l|x)) − the same under π_ref], the argument of σ in eq. (4)."""
    return beta * ((chosen - rejected) - (reference_chosen - reference_rejected))


def loss(margins: "torch.Tensor") -> "torch.Tensor":
    """−log σ(m) of each pair: the DPO loss, eq. (4) before the expectation. Any shape."""
    import torch

    return -torch.nn.functional.logsigmoid(margins)


def bradley_terry(rewards: "torch.Tensor") -> "torch.Tensor":
    """p(y ≻ y′|x) = σ(r(x, y) − r(x, y′)), eq. (1).

    Rewards (prompts, responses) → (prompts, responses, responses).
    """
    import torch

    return torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])


def rlhf_objective(
    log_policy: "torch.Tensor", log_reference: "torch.Tensor", rewards: "torch.Tensor", beta: float
) -> "torch.Tensor":
    """E_x E_{y∼π}[r(x, y) − β log(π(y|x)/π_ref(y|x))], eq. (3) with its expectations put right.

    All arguments (prompts, responses); prompts equally likely.
    """
    policy = log_policy.exp()
    return (policy * (rewards - beta * (log_policy - log_reference))).sum(-1).mean()


def population_loss(
    log_policy: "torch.Tensor", log_reference: "torch.Tensor", rewards: "torch.Tensor", beta: float
) -> "torch.Tensor":
    """Eq. (4) in expectation: pairs y, y′ drawn uniformly, preferred as Bradley–Terry says.

    All arguments (prompts, responses); prompts equally likely.
    """
    ratio = log_policy - log_reference
    margins = beta * (ratio[:, :, None] - ratio[:, None, :])
    return (bradley_terry(rewards) * loss(margins)).mean()


def rlhf_optimum(log_reference: "torch.Tensor", rewards: "torch.Tensor", beta: float):
    """log π* ∝ log π_ref + r/β: the policy that maximises eq. (3), in closed form."""
    return (log_reference + rewards / beta).log_softmax(-1)


def fit(objective: "Callable[[torch.Tensor], torch.Tensor]", shape: tuple[int, int]):
    """The policy (prompts, responses) that minimises ``objective`` of its log-probabilities.

    Found numerically, from the uniform policy, by L-BFGS in float64.
    """
    import torch

    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def step() -> torch.Tensor:
        search.zero_grad()
        value = objective(logits.log_softmax(-1))
        value.backward()
        return value

    search.step(step)
    return logits.detach().softmax(-1)
