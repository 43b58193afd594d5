"""The log of a run, ``metrics.jsonl``, a line of JSON per step, and the curves read from it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..dpo import loss
from ..errors import InputError
from ..files import atomic_write

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Curves:
    """What was measured after t = 0 … T steps; NaN where nothing was.

    loss       (groups, 2, T + 1) mean −log σ(m): of the batch drawn for step t, before that step
               (0), and of all held-out pairs (1)
    margin     (groups, 2, T + 1) mean m
    gap        (groups, 2, T + 1) mean log π(y_w|x) − log π(y_l|x)
    accuracy   (groups, 2, T + 1) share of pairs whose preferred response is the likelier one
    grad_norm  (T,) norm of the gradient before it is clipped
    seconds    (T,) wall time of the step, without the evaluation of held-out pairs
    logged     what ``callback`` returned, by name: (T + 1,) each
    """

    loss: np.ndarray
    margin: np.ndarray
    gap: np.ndarray
    accuracy: np.ndarray
    grad_norm: np.ndarray
    seconds: np.ndarray
    logged: dict[str, np.ndarray]


def group_means(
    log_ratio: np.ndarray, reference: np.ndarray, group: np.ndarray, groups: int, beta: float
) -> dict[str, list[float | None]]:
    """Means over the pairs of each group, None where it has none; the arrays are (n,), a pair each.

    ``log_ratio`` is the policy's, ``reference`` the reference's.
    """
    log_ratio = log_ratio.astype(np.float64)
    margins = beta * (log_ratio - reference)
    losses = loss(torch.from_numpy(margins)).numpy()
    values = {"loss": losses, "margin": margins, "gap": log_ratio, "accuracy": log_ratio > 0}
    members = [group == q for q in range(groups)]
    return {
        name: [float(value[m].mean()) if m.any() else None for m in members]
        for name, value in values.items()
    }


def curves_from_log(lines: list[dict], groups: int, steps: int) -> Curves:
    """The curves of T = ``steps`` steps, from the lines of a log."""
    names = ("loss", "margin", "gap", "accuracy")
    means = {name: np.full((groups, 2, steps + 1), np.nan) for name in names}
    each = {name: np.full(steps, np.nan) for name in ("grad_norm", "seconds")}
    logged: dict[str, np.ndarray] = {}
    for line in lines:
        t = line["step"]
        for at, part in enumerate(("train", "held_out")):
            for name, values in line.get(part, {}).items():
                means[name][:, at, t] = np.array(values, float)  # None becomes NaN
        for name in each.keys() & line.keys():
            each[name][t] = line[name]
        for name, value in line.get("logged", {}).items():
            logged.setdefault(name, np.full(steps + 1, np.nan))[t] = value
    return Curves(**means, **each, logged=logged)


def read(path: Path) -> list[dict]:
    """The whole lines of a log, without a last one that a kill cut short; none without a file.

    Raises InputError if the file is damaged or cannot be read.
    """
    try:
        text = path.read_text("utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); choose another folder"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{path}: damaged ({error}); delete the folder, the run begins anew"
        ) from None


def write(path: Path, lines: list[dict]) -> None:
    """Write a log anew. Raises InputError if it cannot be written, as ``append`` does."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def append(path: Path, line: dict) -> None:
    """Add a line to a log."""
    with _writing(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise InputError(
            f"{path}: cannot be written ({cause}); free some space and run again"
        ) from None


def check_key(out: Path, recorded: dict, key: dict) -> None:
    """Raises InputError, which names the differences, if a folder's recorded key is not ``key``."""
    if any(recorded.get(name) != value for name, value in key.items()):
        raise InputError(
            f"{out}: holds another run (other {_differences(recorded, key)}); choose another "
            "folder or delete this one"
        )


def _differences(recorded: dict, key: dict) -> str:
    """The names whose values differ, with the values unless they are hashes."""
    return ", ".join(
        name
        if name in ("weights", "pairs", "held_out", "reference")
        else f"{name} = {recorded.get(name)!r}, here {value!r}"
        for name, value in key.items()
        if recorded.get(name) != value
    )
