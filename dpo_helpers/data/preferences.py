"""A reader's own preference data: files or hub data sets, in TRL's formats or Persona's."""

from pathlib import Path

import numpy as np

from ..errors import InputError, excerpt, first_line, unknown
from .dialogues import divide_dialogue
from .files import check_texts, read_jsonl
from .hub import online
from .persona import ANSWERS, check_answers


def read(source: str, column: str | None = None) -> list[dict]:
    """The pairs of a .jsonl, .jsonl.gz or .parquet file, or of a hub data set's train split.

    The rows have a prompt and two responses, or two responses that begin with their prompt (TRL's
    formats), or a question with the answers Yes and No (Persona's). Returns a dict a row: prompt,
    chosen and rejected (texts, or lists of messages with role and content); group, the value in
    ``column``, if given; row, its number from 1; and question and label ±1 for Persona's format.

    Raises InputError for a file, row or hub data set that cannot be read, and for missing keys.
    """
    path = Path(source)
    is_jsonl = path.name.endswith((".jsonl", ".jsonl.gz"))
    if (is_jsonl or path.suffix == ".parquet") and not path.is_file():
        raise InputError(f"{source}: no such file; give the path of one, or a data set of the hub")
    if is_jsonl:
        rows = read_jsonl(path, (), lambda row, where: _converted(row, where, column))
    elif path.suffix == ".parquet" or not path.exists():
        table = enumerate(_table(source), 1)
        rows = [_converted(row, f"{source}, row {number}", column) for number, row in table]
    else:
        raise InputError(
            f"{source}: not a .jsonl, .jsonl.gz or .parquet file; convert it to one of these"
        )
    if not rows:
        raise InputError(f"{source}: holds no rows; give a data set with preference pairs")
    return [row | {"row": number} for number, row in enumerate(rows, 1)]


def drawn(rows: list[dict], most: int) -> list[dict]:
    """At most ``most`` of the rows, drawn at random with seed 0, in their order."""
    if len(rows) <= most:
        return rows
    return [rows[i] for i in np.sort(np.random.default_rng(0).choice(len(rows), most, False))]


def _table(source: str):
    import datasets

    if source.endswith(".parquet"):
        try:
            return datasets.Dataset.from_parquet(source)
        except Exception as error:
            raise InputError(
                f"{source}: cannot be read ({first_line(error)}); fetch it again"
            ) from None
    if not online():
        raise InputError(
            f"{source}: no such file, and the hub cannot be reached to look for a data set of that "
            "name; give the path of a .jsonl or .parquet file"
        )
    try:
        return datasets.load_dataset(source, split="train")
    except Exception as error:
        raise InputError(
            f"{source}: cannot be loaded from the hub ({first_line(error)}); check the name"
        ) from None


def _converted(row: object, where: str, column: str | None) -> dict:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not an object with keys; fix or remove it")
    if column is not None and column not in row:
        raise unknown("column", column, map(str, row))
    group = {"group": "all pairs" if column is None else str(row[column])}
    if "question" in row:
        check_texts(row, ("question", *ANSWERS), where)
        chosen, rejected = (check_answers(row, where)[key].strip() for key in ANSWERS)
        pair = {"prompt": row["question"], "chosen": chosen, "rejected": rejected}
        return pair | {"question": row["question"], "label": 1 if chosen == "Yes" else -1} | group
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise InputError(
            f"{where}: no {' and no '.join(missing)} among {', '.join(map(str, row))[:120]}; "
            "rename the columns to prompt, chosen and rejected"
        )
    pair = {key: row[key] for key in ("prompt", "chosen", "rejected") if row.get(key) is not None}
    if len({_format(value, where, key) for key, value in pair.items()}) > 1:
        raise InputError(f"{where}: {', '.join(pair)} must all be text or all lists of messages")
    if pair["chosen"] == pair["rejected"]:
        raise InputError(f"{where}: chosen and rejected are the same; leave the row out")
    return (pair if "prompt" in pair else _divided(pair, where)) | group


def _format(value: object, where: str, key: str) -> str:
    if isinstance(value, str) and (value.strip() or key == "prompt"):
        return "text"
    if isinstance(value, list) and value:
        keys = ("role", "content")
        if all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in keys) for m in value):
            return "messages"
    raise InputError(
        f"{where}: {key} = {excerpt(value)} is neither text nor a list of messages with role and "
        "content; fix or remove it"
    )


def _divided(pair: dict, where: str) -> dict:
    """A pair without a prompt: the prompt is what both responses begin with."""
    chosen, rejected = pair["chosen"], pair["rejected"]
    if isinstance(chosen, str) and "\n\nAssistant:" in chosen:
        return divide_dialogue(pair, where)
    shortest = min(len(chosen), len(rejected))
    unequal = (i for i in range(shortest) if chosen[i] != rejected[i])
    cut = next(unequal, shortest)
    if cut in (0, shortest):
        raise InputError(
            f"{where}: chosen and rejected share no prompt at their beginning; add a column prompt"
        )
    return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
