"""A reader's own preference data: files and hub data sets as TRL reads them, or Persona's."""

from pathlib import Path

import numpy as np

from ..errors import InputError, first_line, unknown
from . import sets

_ANSWERS = ("answer_matching_behavior", "answer_not_matching_behavior")


def read(source: str, column: str | None = None) -> list[dict]:
    """The pairs of a .jsonl, .jsonl.gz or .parquet file, or of a hub data set's train split.

    A row is a dict with ``prompt``, ``chosen``, ``rejected``, texts or lists of messages (dicts of
    role and content), ``group``, what stands in ``column``, and ``row``, its number from 1. Read
    are TRL's formats: with a prompt, or without, where both responses begin with it; and Persona's,
    whose responses are Yes and No.

    Raises InputError for a file or row that cannot be read, or keys that are missing, naming the
    row; for a hub that does not answer.
    """
    path = Path(source)
    if path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")) and not path.is_file():
        raise InputError(f"{source}: no such file; give the path of one, or a data set of the hub")
    rows: list[dict] = []

    def take(row: object, where: str) -> dict:
        return _row(row, where, column)

    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = sets.read_jsonl(path, (), take)
    elif path.suffix == ".parquet" or not path.exists():
        rows = [
            take(row, f"{source}, row {number}") for number, row in enumerate(_table(source), 1)
        ]
    else:
        raise InputError(
            f"{source}: not a .jsonl, .jsonl.gz or .parquet file; convert it to one of these"
        )
    if not rows:
        raise InputError(f"{source}: holds no rows; give a data set with preference pairs")
    rows = [row | {"row": number} for number, row in enumerate(rows, 1)]
    return rows


def drawn(rows: list[dict], most: int) -> list[dict]:
    """Of more than ``most`` rows as many, drawn with seed 0 and in their order."""
    if len(rows) <= most:
        return rows
    return [rows[i] for i in np.sort(np.random.default_rng(0).choice(len(rows), most, False))]


def _table(source: str):
    import datasets

    if source.endswith(".parquet"):
        try:
            return datasets.Dataset.from_parquet(source)
        except Exception as error:
            raise InputError(f"{source}: cannot be read ({first_line(error)})") from None
    if not sets.online():
        raise InputError(
            f"{source}: no such file, and the hub cannot be reached to look for a data set of that "
            "name; give the path of a .jsonl or .parquet file"
        )
    try:
        return datasets.load_dataset(source, split="train")
    except Exception as error:
        raise InputError(f"{source}: cannot be loaded from the hub ({first_line(error)})") from None


def _row(row: object, where: str, column: str | None) -> dict:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not an object with keys; mend or remove it")
    group = "all pairs"
    if column is not None:
        if column not in row:
            raise unknown("column", column, map(str, row))
        group = str(row[column])
    if "question" in row:
        given = [row.get(key) for key in ("question", *_ANSWERS)]
        if not all(isinstance(text, str) and text.strip() for text in given):
            raise InputError(f"{where}: question or answers missing or empty; mend or remove it")
        prompt, *answers = given
        answers = [answer.strip() for answer in answers]
        if sorted(answers) != ["No", "Yes"]:
            raise InputError(f"{where}: answers {answers}; one must be Yes and the other No")
        return {"question": prompt, "label": 1 if answers[0] == "Yes" else -1, "group": group} | {
            "prompt": prompt,
            "chosen": answers[0],
            "rejected": answers[1],
        }
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise InputError(
            f"{where}: no {' and no '.join(missing)}, but {', '.join(map(str, row))[:120]}; rename "
            "the columns to prompt, chosen and rejected"
        )
    found = {key: row[key] for key in ("prompt", "chosen", "rejected") if row.get(key) is not None}
    shapes = {_shape(value, where, key) for key, value in found.items()}
    if len(shapes) > 1:
        raise InputError(f"{where}: some of {', '.join(found)} are text and some lists of messages")
    if found["chosen"] == found["rejected"]:
        raise InputError(f"{where}: chosen and rejected are the same; leave the row out")
    return (found if "prompt" in found else _divided(found, where)) | {"group": group}


def _shape(value: object, where: str, key: str) -> str:
    if isinstance(value, str) and (value.strip() or key == "prompt"):
        return "text"
    messages = isinstance(value, list) and value
    if messages and all(
        isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))
        for m in value
    ):
        return "messages"
    raise InputError(
        f"{where}: {key} = {repr(value)[:60]} is neither text nor a list of messages with role and "
        "content; mend or remove it"
    )


def _divided(found: dict, where: str) -> dict:
    """Pairs without a prompt: what both begin with, up to the last turn of the assistant in it."""
    chosen, rejected = found["chosen"], found["rejected"]
    if isinstance(chosen, str):
        if "\n\nAssistant:" in chosen:
            return sets.pair(found, where)
        marks = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b]
        cut = marks[0] if marks else min(len(chosen), len(rejected))
    else:
        same = [a == b for a, b in zip(chosen, rejected, strict=False)]
        cut = same.index(False) if False in same else len(same)
    if not cut or cut == min(len(chosen), len(rejected)):
        raise InputError(
            f"{where}: chosen and rejected share no prompt at their beginning; add a column prompt"
        )
    return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
