"""The DPO loss and its margin, eq. (4): written here and nowhere else in the library."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
