"""Reading JSONL files. Each error names the file, the line, the value, and the remedy."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError, excerpt


def read_jsonl(
    path: Path,
    keys: Sequence[str],
    convert: Callable[[dict, str], dict] = lambda row, where: row,
) -> list[dict]:
    """The objects of a JSONL file (gzip if its name ends in .gz), each with all ``keys`` as text.

    ``convert`` gets each object and its file and line number, and returns what to keep.
    Raises InputError if the file cannot be read or has no rows, and for a malformed line.
    """
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; point DPO_DATA_DIR at a complete copy") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not valid JSON ({error.msg}, column {error.colno}); fix or remove it"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: cannot be read ({error}); fix or remove it") from None
        check_texts(row, keys, where)
        rows.append(convert(row, where))
    if not rows:
        raise InputError(f"{path}: holds no rows; fetch it again")
    return rows


def check_texts(row: object, keys: Sequence[str], where: str) -> None:
    """Raises InputError unless ``row`` is a dict that has non-empty text under each of ``keys``."""
    for key in keys:
        if not isinstance(row, dict) or key not in row:
            raise InputError(f"{where}: key {key!r} is missing; add it")
        text = row[key]
        lone_surrogate = isinstance(text, str) and re.search("[\ud800-\udfff]", text)
        if not isinstance(text, str) or not text.strip() or lone_surrogate:
            raise InputError(f"{where}: {key} = {excerpt(text)}; it must be non-empty text")
