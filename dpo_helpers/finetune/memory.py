"""What a training step needs, found without computing it: fake tensors have shapes, no values."""

import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lm import Pairs, log_ratios
from .policy import compute_precision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that stand in memory as a step's gradient is computed.

    weights       float32
    gradients     float32
    optimizer     the two averages of AdamW, float32
    copies        bf16 copies of weights: of all, or with autocast of the layers' matrices
    activations   what else the backward pass keeps of the forward pass
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int

    @property
    def total(self) -> int:
        """The sum; what else the process holds, its libraries above all, comes on top."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations


def estimate(
    config: "PreTrainedConfig", pairs: Pairs, precision: str, checkpointing: bool = False
) -> MemoryEstimate:
    """What a step over one tree of ``pairs`` needs of a network of this ``config``.

    The tensors that the backward pass keeps are found by running the step's own
    code. With checkpointing they are each layer's input, and one layer's tensors.
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
        own = list(network.parameters())
        with compute_precision(network, precision):
            used = list(network.parameters())
            with saved_tensors_hooks(keep, lambda x: x):
                log_ratios(network, pairs)
        for weight in (*own, *used):
            kept.pop(weight.untyped_storage()._cdata, None)
        matrices = [p for p in network.base_model.layers.parameters() if p.ndim == 2]
    weights = 4 * sum(p.numel() for p in own)
    activations = sum(storage.nbytes() for storage in kept.values())
    copies = 0
    if precision == "bfloat16":
        copies = weights // 2
    elif precision == "autocast":
        copies = 2 * sum(p.numel() for p in matrices)
        activations -= copies
    if checkpointing:
        layers, size = config.num_hidden_layers, 2 if precision == "bfloat16" else 4
        inputs = layers * len(pairs.trie().tokens) * config.hidden_size * size
        activations = inputs + activations // layers
    return MemoryEstimate(weights, weights, 2 * weights, copies, activations)


def available(device: str) -> int:
    """The bytes that this process can have at most on a device: a GPU's, else the machine's."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine if limit == resource.RLIM_INFINITY else min(limit, machine)
