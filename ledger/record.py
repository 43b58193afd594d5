"""A record on disk: a folder with ``run.json`` (key, provenance) and one ``.npz`` of arrays."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpo_helpers.errors import InputError
from dpo_helpers.files import atomic_write

_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Run:
    """A run as replayed or just made.

    name     its name under the store
    arrays   what it measured
    info     ``run.json``: key, commit, device, date, wall_seconds
    stale    why its key does not match what is here; empty if it does
    missing  what its key could not be checked against, for lack of it
    """

    name: str
    arrays: dict[str, np.ndarray]
    info: dict
    stale: str = ""
    missing: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the arrays' content."""
        return self.info["sha256"]


def read(folder: Path) -> Run | None:
    """The run recorded in ``folder``, or None.

    Raises InputError if the record is damaged.
    """
    try:
        info = json.loads((folder / "run.json").read_text("utf-8"))
        blob = (folder / info["arrays"]).read_bytes()
        if not isinstance(info["key"], dict):
            raise ValueError("its key is none")
        if hashlib.sha256(blob).hexdigest() != info["file_sha256"]:
            raise ValueError("its arrays are not those recorded")
        with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
            return Run(folder.name, dict(arrays), info)
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        raise InputError(
            f"{folder}: damaged record ({error}); delete the folder, the next run makes it again"
        ) from None


def write(folder: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, object]) -> None:
    """Record a run: its arrays first, then ``run.json`` in one move, so that a kill loses nothing.

    Raises InputError if the disk is full or the folder cannot be written.
    """
    blob = io.BytesIO()
    np.savez_compressed(blob, **arrays)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    file_sha256 = hashlib.sha256(blob.getvalue()).hexdigest()
    file = f"arrays-{file_sha256[:8]}.npz"
    shapes = {name: [str(a.dtype), list(a.shape)] for name, a in sorted(arrays.items())}
    info = {**info, "arrays": file, "shapes": shapes}
    info |= {"sha256": digest.hexdigest(), "file_sha256": file_sha256}
    text = json.dumps(info, indent=1, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # by a write that was killed
            left.unlink(missing_ok=True)
        new = not (folder / file).exists()
        atomic_write(folder / file, blob.getvalue())
        try:
            atomic_write(folder / "run.json", text.encode())
        except BaseException:
            if new:
                (folder / file).unlink()
            raise
        for other in folder.glob("arrays-*.npz"):
            if other.name != file:
                other.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space, the run "
            "was not recorded"
        ) from None
