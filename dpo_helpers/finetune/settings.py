"""The settings of a training run, and the batches that they draw."""

import dataclasses
import math

import numpy as np

from ..errors import InputError, unknown

PRECISIONS = ("float32", "autocast", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run of full fine-tuning, apart from the model and the data.

    At every precision the weights and their updates are float32. "autocast" computes matrix
    products in bf16, as the authors did; "bfloat16" everything, with bf16 copies of the weights.
    """

    beta: float = 0.01  # β of eq. (4)
    learning_rate: float = 1e-5  # of AdamW, constant
    batch_size: int = 32  # pairs per step
    epochs: int = 1  # passes over the data, each in a new random order
    seed: int = 1234  # of the shuffles, and of dropout where a network has it
    precision: str = "autocast"  # one of PRECISIONS
    weight_decay: float = 0.0  # of AdamW
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    max_tree_tokens: int = 4096  # of a token trie; a larger batch is split into microbatches
    checkpointing: bool = False  # keep only the layers' inputs for backward: less memory, slower
    evaluate_every: int = 1  # steps between two evaluations of the held-out pairs, 0: never
    save_every: int = 10  # steps between checkpoints, and one at the end; 0: none

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, kind, value = field.name, field.type, getattr(self, field.name)
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise InputError(f"setting {name} = {value!r}: must be of type {kind.__name__}")
            positive = kind is not float or 0 < value < math.inf
            if not positive and (name, value) != ("weight_decay", 0):
                raise InputError(f"setting {name} = {value}: must be a positive number")
            least = 0 if name in ("seed", "evaluate_every", "save_every") else 1
            if kind is int and value < least:
                raise InputError(f"setting {name} = {value}: must be at least {least}")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)


def batches(n: int, settings: Settings) -> list[np.ndarray]:
    """The row numbers of each step's batch: one shuffle per epoch, its last batch may be smaller.

    Raises InputError if a batch is larger than the data.
    """
    size, found = settings.batch_size, []
    if size > n:
        raise InputError(
            f"setting batch_size = {size}: there are only {n} pairs to train on; "
            f"set batch_size to {n} or less"
        )
    for epoch in range(settings.epochs):
        order = np.random.default_rng([settings.seed, epoch]).permutation(n)
        found += [order[at : at + size] for at in range(0, n, size)]
    return found
