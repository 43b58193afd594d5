"""What a training step needs, found without computing it: fake tensors have shapes, no values."""

import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .policy import computing
from .responses import Pairs, gaps

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Need:
    """Bytes that stand in memory as a step's gradient is computed.

    weights       float32, their bf16 copies apart
    gradients     float32
    optimizer     the two averages of AdamW, float32
    activations   what the backward pass keeps of the forward pass, bf16 copies of weights included
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum; what else the process holds, its libraries above all, comes on top."""
        return self.weights + self.gradients + self.optimizer + self.activations


def need(
    config: "PreTrainedConfig", pairs: Pairs, precision: str, checkpointing: bool = False
) -> Need:
    """What a step over one tree of ``pairs`` needs of a network of this ``config``.

    The tensors that the backward pass keeps are found by running the step's own
    code. With checkpointing they are each layer's input, one layer's tensors, and
    the bf16 copies of the weights.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks
    from transformers import AutoModelForCausalLM

    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with FakeTensorMode():
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with computing(network, precision), saved_tensors_hooks(keep, lambda x: x):
            gaps(network, pairs)
        parameters = list(network.parameters())
        for parameter in parameters:
            kept.pop(parameter.untyped_storage()._cdata, None)
    weights = 4 * sum(p.numel() for p in parameters)
    activations = sum(storage.nbytes() for storage in kept.values())
    if checkpointing:
        layers, size = config.num_hidden_layers, 2 if precision == "bfloat16" else 4
        inputs = layers * len(pairs.tree().tokens) * config.hidden_size * size
        copies = 0 if precision == "float32" else weights // 2
        activations = inputs + copies + max(activations - copies, 0) // layers
    return Need(weights, weights, 2 * weights, activations)


def available(device: str) -> int:
    """The bytes that this process can have at most on a device: a GPU's, else the machine's."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine if limit == resource.RLIM_INFINITY else min(limit, machine)
