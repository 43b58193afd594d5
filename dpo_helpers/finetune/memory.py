"""The memory that a step needs, computed with fake tensors, which have shapes but no values."""

import contextlib
import os
import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from ..errors import InputError
from ..lm import Pairs, log_ratios
from .policy import compute_precision
from .settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class MemoryEstimate(NamedTuple):
    """Bytes in memory while a step's gradient is computed; the process itself comes on top."""

    weights: int  # float32
    gradients: int  # float32
    optimizer: int  # the two averages of AdamW, float32
    copies: int  # bf16 copies of weights: of all, or with autocast of the layers' matrices
    activations: int  # what else the backward pass keeps of the forward pass

    @property
    def total(self) -> int:
        return sum(self)


def estimate(
    config: "PreTrainedConfig", pairs: Pairs, precision: str, checkpointing: bool = False
) -> MemoryEstimate:
    """What a step on one token trie of ``pairs`` needs, for a network of this ``config``.

    A forward pass over fake tensors counts the tensors that the backward pass keeps. With
    checkpointing these are the input of each layer, and the tensors of one layer.
    """
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
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine if limit == resource.RLIM_INFINITY else min(limit, machine)


@contextlib.contextmanager
def enough_memory(
    step: int, network: torch.nn.Module, pairs: Pairs, settings: Settings
) -> Iterator[None]:
    """Context manager: if memory runs out, raise InputError that names settings that would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "allocate memory" not in str(error):
            raise
        raise InputError(
            f"step {step}: out of memory; {advice(network, pairs, settings)}"
        ) from None


def advice(network: torch.nn.Module, pairs: Pairs, settings: Settings) -> str:
    """The fastest settings for a batch of ``pairs`` that need less than 9/10 of available memory.

    Call it only in a ``raise``: there it does not enter the key of a recorded run.
    """
    there, size = available(network.device.type), len(pairs.trie().tokens)
    for checkpointing in sorted({settings.checkpointing, True}):
        for divisor in (1, 2, 4, 8):
            if divisor == 1 and checkpointing == settings.checkpointing:
                continue
            tokens = min(settings.max_tree_tokens, size) // divisor
            parts = [pairs.take(rows) for rows in pairs.microbatches(tokens)]
            largest = max(parts, key=lambda part: len(part.trie().tokens))
            need = estimate(network.config, largest, settings.precision, checkpointing).total
            if need < 0.9 * there:
                return (
                    f"set max_tree_tokens = {tokens}, checkpointing = {checkpointing}: about "
                    f"{need / 1e9:.1f} GB of {there / 1e9:.1f}"
                )
    return f"nothing fits in {there / 1e9:.1f} GB; choose a smaller model or more GPUs (configs/)"
