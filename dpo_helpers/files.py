"""Files that are written whole or not at all, and results that are identified by their content."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file beside ``path``, then move it there: a failure leaves the old file intact."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_keyed(definition: _T) -> _T:
    """Mark a function or class whose results enter a run's key by sha256, instead of its code."""
    return definition
