"""bf16 matrix products on a CPU without bf16 instructions, computed in float32.

A bf16 product is a sum of exact products in float32, rounded once to bf16. Without AVX-512, PyTorch
computes it in a slow loop. The float32 product is fast and equal up to rounding.
"""

import functools
import warnings
from collections.abc import Callable

import torch

_OPERATORS = ("mm", "addmm", "bmm", "baddbmm")


@functools.cache
def emulate_bf16_matmul() -> torch.library.Library:
    """Compute bf16 matrix products on the CPU in float32, then round, until the process ends.

    Other products do not change. Autograd and autocast work as before.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid", category=UserWarning)
        for name in _OPERATORS:
            library.impl(name, _in_float32(name), "CPU", with_keyset=True)
    return library


def needed() -> bool:
    """Whether this CPU has no instructions for bf16."""
    return torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def _in_float32(name: str) -> Callable[..., torch.Tensor]:
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

    def product(
        keys: torch.DispatchKeySet, *matrices: torch.Tensor, **factors: float
    ) -> torch.Tensor:
        if matrices[0].dtype != torch.bfloat16:
            return kernel.call_boxed(keys, *matrices, **factors)
        wide = (matrix.float() for matrix in matrices)
        return kernel.call_boxed(keys, *wide, **factors).bfloat16()

    return product
