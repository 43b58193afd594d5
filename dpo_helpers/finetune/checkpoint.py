"""Where a training run stands, in one file: weights, the optimizer's state, random numbers, facts.

A safetensors file, so that to read it executes nothing, and the same for one
process and for sharded ones. It replaces the one before in one move: a run that
is killed, or that fills the disk, keeps the last that was whole.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, first_line

if TYPE_CHECKING:
    import torch


def state_dict(policy: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> dict:
    """All that training changes, as plain tensors by name; empty on all processes but the first.

    Every process has to call it. A tied weight comes once.
    """
    from torch.distributed.checkpoint import state_dict as distributed

    whole = distributed.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = distributed.get_model_state_dict(policy, options=whole)
    state = distributed.get_optimizer_state_dict(policy, optimizer, options=whole).get("state", {})
    found = {f"{kind}/{name}": x for name, kinds in state.items() for kind, x in kinds.items()}
    return found | {f"weight/{name}": weights[name] for name in state}


def rng_state() -> dict:
    """The state of the random numbers."""
    import torch

    found = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["random/cuda"] = torch.cuda.get_rng_state()
    return found


def load_state_dict(
    found: dict[str, "torch.Tensor"],
    policy: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
) -> None:
    """Put back what ``state_dict`` and ``rng_state`` found. Every process calls it, with the same."""
    import torch
    from torch.distributed.checkpoint import state_dict as distributed

    whole = distributed.StateDictOptions(full_state_dict=True, strict=False)
    state = distributed.get_optimizer_state_dict(policy, optimizer)
    state["state"] = {
        name: {kind: found[f"{kind}/{name}"] for kind in kinds}
        for name, kinds in state["state"].items()
    }
    weights = {name: found[f"weight/{name}"] for name in state["state"]}
    distributed.set_model_state_dict(policy, weights, options=whole)
    distributed.set_optimizer_state_dict(policy, optimizer, state, options=whole)
    torch.set_rng_state(found["random"])
    if torch.cuda.is_available() and "random/cuda" in found:
        torch.cuda.set_rng_state(found["random/cuda"])


def write(path: Path, found: dict[str, "torch.Tensor"], facts: dict) -> None:
    """Write tensors and what is to be known about them, then move them to ``path``.

    Raises InputError if the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(found, part, {"facts": json.dumps(facts)})
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        kept = "the one before is kept" if path.exists() else "there is none before it"
        raise InputError(
            f"{path}: the checkpoint cannot be written ({first_line(error)}); free some space and "
            f"run again, {kept}"
        ) from None


def metadata(path: Path) -> dict | None:
    """What ``write`` was told about the tensors; None if there is no file.

    Raises InputError if the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["facts"])
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def read(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a checkpoint. Raises InputError if there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: no whole checkpoint ({first_line(error)}); delete it, the run begins anew"
    )
