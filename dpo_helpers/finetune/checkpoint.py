"""The state of a run in one file: weights, the optimizer's state, random numbers, the step.

In the safetensors format, so reading it executes no code; the same for one process and for sharded
ones. A checkpoint replaces the one before in one move: a run that is killed, or that fills the
disk, keeps the last whole one.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import lm
from ..errors import InputError, first_line

FILE = "checkpoint.safetensors"


def state_dict(policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """All that training changes, as plain tensors by name; empty in all processes but the first.

    Every process must call it. A tied weight appears once.
    """
    from torch.distributed.checkpoint import state_dict as distributed  # slow to import

    whole = distributed.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = distributed.get_model_state_dict(policy, options=whole)
    state = distributed.get_optimizer_state_dict(policy, optimizer, options=whole).get("state", {})
    tensors = {f"{kind}/{name}": x for name, kinds in state.items() for kind, x in kinds.items()}
    return tensors | {f"weight/{name}": weights[name] for name in state}


def rng_state() -> dict[str, torch.Tensor]:
    """The state of the random number generators."""
    state = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random/cuda"] = torch.cuda.get_rng_state()
    return state


def load_state_dict(
    tensors: dict[str, torch.Tensor], policy: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Restore what ``state_dict`` and ``rng_state`` gave. Every process must call it."""
    from torch.distributed.checkpoint import state_dict as distributed

    whole = distributed.StateDictOptions(full_state_dict=True, strict=False)
    state = distributed.get_optimizer_state_dict(policy, optimizer)
    state["state"] = {
        name: {kind: tensors[f"{kind}/{name}"] for kind in kinds}
        for name, kinds in state["state"].items()
    }
    weights = {name: tensors[f"weight/{name}"] for name in state["state"]}
    distributed.set_model_state_dict(policy, weights, options=whole)
    distributed.set_optimizer_state_dict(policy, optimizer, state, options=whole)
    torch.set_rng_state(tensors["random"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])


def write(path: Path, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Write tensors and metadata. Raises InputError for a full disk or a read-only folder."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {"facts": json.dumps(facts)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(
            f"{path}: the checkpoint cannot be written ({first_line(error)}); free some space and "
            f"run again, {'the one before is kept' if path.exists() else 'there is none before it'}"
        ) from None


def metadata(path: Path) -> dict | None:
    """The metadata of a checkpoint, None if there is no file. Raises InputError if damaged."""
    if not path.exists():
        return None
    with _opened(path) as file:
        return json.loads(file.metadata()["facts"])


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint. Raises InputError if there is none or it is damaged."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no whole checkpoint ({first_line(error)}); delete it, the run begins anew"
        ) from None


def restore(model: lm.Model, out: Path | str) -> lm.Model:
    """Load the weights of the run in the folder ``out`` into a fresh copy of its initial model.

    Raises InputError if there is no checkpoint, it is damaged, or of another network.
    """
    path = Path(out) / FILE
    saved = read(path)
    named = model.network.float().named_parameters(prefix="network")
    weights = {f"weight/{name}": weight for name, weight in named if weight.requires_grad}
    if any(name not in saved or saved[name].shape != w.shape for name, w in weights.items()):
        raise InputError(
            f"{path}: is of another network than {model.name}; load the model that it is of"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    return model
