"""bf16 on a CPU without instructions for it: the same products, through float32.

A product of bf16 matrices is a sum in float32 of exact products, rounded once
to bf16. A CPU without AVX-512 is left with a loop for it, while the same sum of
the same numbers as float32 matrices is what it is best at.
"""

import functools
import warnings
from collections.abc import Callable

import torch

_OPERATORS = ("mm", "addmm", "bmm", "baddbmm")


@functools.cache
def emulate_bf16_matmul() -> torch.library.Library:
    """From now on the CPU's products of bf16 matrices are computed as float32 ones, then rounded.

    All other products stay as they are. Autograd, autocast and PyTorch's interface see no
    difference. They are computed so for as long as the process runs.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid", category=UserWarning)
        for name in _OPERATORS:
            library.impl(name, _widened(name), "CPU", with_keyset=True)
    return library


def needed() -> bool:
    """Whether this CPU has no instructions that bf16 would be computed with."""
    return torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def _widened(name: str) -> Callable[..., torch.Tensor]:
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

    def product(
        keys: torch.DispatchKeySet, *matrices: torch.Tensor, **factors: float
    ) -> torch.Tensor:
        if matrices[0].dtype != torch.bfloat16:
            return kernel.call_boxed(keys, *matrices, **factors)
        wide = (matrix.float() for matrix in matrices)
        return kernel.call_boxed(keys, *wide, **factors).bfloat16()

    return product
