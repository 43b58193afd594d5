"""The policy π_θ as it is trained: float32 weights, and the precision that it computes in."""

import contextlib
import hashlib
import json
from collections.abc import Iterator

import torch

from ..lm import Pairs, log_ratios
from ..states import tree_attention

PRECISIONS = ("float32", "autocast", "bfloat16")


class Policy(torch.nn.Module):
    """A network whose forward pass is log π(y_w|x) − log π(y_l|x) of some pairs, (n,) float32.

    One module, so that whatever shards or wraps it sees each of its weights used inside.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pairs: Pairs) -> torch.Tensor:
        return log_ratios(self.network, pairs)


@contextlib.contextmanager
def compute_precision(network: torch.nn.Module, precision: str) -> Iterator[None]:
    """Forward and backward passes inside are computed in ``precision``, one of ``PRECISIONS``.

    "autocast": matrix products in bf16. "bfloat16": the weights are bf16 copies
    of the network's own, made here; gradients reach the network's own in
    float32, where the optimizer's small steps are not rounded away.
    """
    with tree_attention(network):
        if precision == "autocast":
            with torch.autocast(network.device.type, torch.bfloat16):
                yield
        elif precision == "bfloat16":
            with _copied(network, torch.bfloat16):
                yield
        else:
            yield


@contextlib.contextmanager
def _copied(network: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, every module uses a copy of its weights, through which gradients pass."""
    places = [
        (module._parameters, name, weight)
        for module in network.modules()
        for name, weight in module._parameters.items()
        if weight is not None
    ]
    copies = {weight: weight.to(dtype) for _, _, weight in places}  # of a tied weight, one
    for parameters, name, weight in places:
        parameters[name] = copies[weight]
    try:
        yield
    finally:
        for parameters, name, weight in places:
            parameters[name] = weight


def network_sha256(network: torch.nn.Module) -> str:
    """The sha256 of what a network is and of its weights as they are now."""
    config = {
        name: value
        for name, value in network.config.to_dict().items()
        if not name.startswith("_") and name not in ("dtype", "transformers_version")
    }
    state = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, weight in network.named_parameters():
        state.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        state.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return state.hexdigest()
