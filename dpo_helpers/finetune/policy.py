"""The policy π_θ during training: float32 weights, the precision and the processes that compute."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator, DistributedType

from ..errors import InputError
from ..lm import Pairs, log_ratios
from ..states import tree_attention
from .settings import Settings


class Policy(torch.nn.Module):
    """A network whose forward pass is log π(y_w|x) − log π(y_l|x) of each pair, (n,) float32.

    It is one module so that FSDP sees every weight used inside forward.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pairs: Pairs) -> torch.Tensor:
        return log_ratios(self.network, pairs)


class Engine:
    """A policy and its AdamW, prepared by accelerate, which may share them among processes.

    The parameters that require a gradient are trained. Raises InputError if accelerate is
    configured for another precision than the settings'.
    """

    def __init__(self, network: torch.nn.Module, settings: Settings) -> None:
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # under accelerate launch
        on_cpu = network.device.type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu and not several, device_placement=several)
        self.is_main = self.accelerator.is_main_process
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        expected = "bf16" if sharded and settings.precision == "bfloat16" else "no"
        if self.accelerator.mixed_precision != expected:
            raise InputError(
                f"setting precision = {settings.precision!r}: accelerate's mixed_precision is "
                f"{self.accelerator.mixed_precision}; set it to {expected}"
            )
        self.network, self.max_tree_tokens = network, settings.max_tree_tokens
        self.precision = "float32" if expected == "bf16" else settings.precision  # FSDP casts
        policy = Policy(network)
        optimizer = torch.optim.AdamW(
            [weight for weight in policy.parameters() if weight.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)

    def microbatches(self, pairs: Pairs) -> list[tuple[np.ndarray, int]]:
        """This process's microbatches: row numbers of ``pairs``, and 1 where they count, else 0.

        Processes wait for each other at each microbatch, so all have equally many: a process with
        fewer of them repeats a pair, which counts 0.
        """
        processes, rows = self.accelerator.num_processes, np.arange(len(pairs))
        shares = [rows[process::processes] for process in range(processes)]
        parts = [
            [share[part] for part in pairs.take(share).microbatches(self.max_tree_tokens)]
            for share in shares
        ]
        own = [(part, 1) for part in parts[self.accelerator.process_index]]
        return own + [(rows[:1], 0)] * (max(map(len, parts)) - len(own))

    def log_ratios(self, pairs: Pairs) -> np.ndarray:
        """log π(y_w|x) − log π(y_l|x) of each pair, (n,) float32, without gradients or dropout."""
        log_ratio = torch.zeros(len(pairs), device=self.network.device)
        self.policy.eval()
        with torch.no_grad(), compute_precision(self.network, self.precision):
            for rows, counts in self.microbatches(pairs):
                log_ratio[rows] += counts * self.policy(pairs.take(rows))
        return self.sum(log_ratio)

    def sum(self, values: torch.Tensor) -> np.ndarray:
        """The sum over all processes, each of which calls this with its own values."""
        return self.accelerator.reduce(values, "sum").cpu().numpy()

    def clip_gradient(self, max_norm: float) -> float:
        """Clip the gradient of all parameters to ``max_norm``; its norm before that."""
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), max_norm)
        return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()


@contextlib.contextmanager
def compute_precision(network: torch.nn.Module, precision: str) -> Iterator[None]:
    """Context manager: forward and backward passes compute in ``precision``, one of ``PRECISIONS``.

    For "bfloat16", modules use bf16 copies of the weights, made on entering. Gradients still reach
    the float32 weights, where the optimizer's small steps are not lost to rounding.
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
    """Context manager: every module uses a copy of its weights, and gradients pass through it."""
    places = [
        (module._parameters, name, weight)
        for module in network.modules()
        for name, weight in module._parameters.items()
        if weight is not None
    ]
    copies = {weight: weight.to(dtype) for _, _, weight in places}  # one copy of a tied weight
    for parameters, name, weight in places:
        parameters[name] = copies[weight]
    try:
        yield
    finally:
        for parameters, name, weight in places:
            parameters[name] = weight


def network_sha256(network: torch.nn.Module) -> str:
    """The sha256 of a network's configuration and of its present weights."""
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
