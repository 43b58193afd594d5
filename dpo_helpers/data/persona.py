"""The Persona data set: statements that one would or would not make, grouped by behavior."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, excerpt, unknown
from ..files import content_keyed
from .files import read_jsonl
from .hub import checked_name, from_hub, hub_files, locate, source

if TYPE_CHECKING:
    import datasets

ANSWERS = ("answer_matching_behavior", "answer_not_matching_behavior")
PERSONA_KEYS = ("question", "statement", *ANSWERS)
SPLIT_SEED = 1234


@dataclass(frozen=True)
class Behavior:
    """The n statements of one Persona behavior.

    name      the behavior
    rows      a ``datasets.Dataset`` with ``PERSONA_KEYS`` and, if every row has one,
              label_confidence
    labels    (n,) int8: +1 where Yes is the preferred answer, −1 where No is
    source    where the rows came from, in words
    sha256    of each row's question and preferred answer, in order
    """

    name: str
    rows: "datasets.Dataset"
    labels: np.ndarray
    source: str
    sha256: str

    def prompts(self, newline: bool = True) -> list[str]:
        """The n prompts x: the questions, by default with a closing newline."""
        return [question + "\n" * newline for question in self.rows["question"]]


@content_keyed
def load_behavior(name: str, data: str = "sample") -> Behavior:
    """One Persona behavior from ``data``: "sample", "anthropic", or a folder laid out as upstream.

    Raises InputError for an unknown behavior (with similar names), an unreadable file, a malformed
    line, and a behavior without positive or without negative statements.
    """
    import datasets

    file = f"persona/{checked_name(name, 'behavior')}.jsonl"
    folder = locate("persona", data)
    if folder is not None and name not in behaviors(data):
        raise unknown("behavior", name, behaviors(data))
    path = from_hub("persona", file) if folder is None else folder / file
    rows = read_jsonl(path, PERSONA_KEYS, check_answers)
    preferred = [row["answer_matching_behavior"].strip() for row in rows]
    for answer in ("Yes", "No"):
        if answer not in preferred:
            raise InputError(f"{name}: no statement prefers {answer}; a behavior needs both sides")
    columns = {key: [row[key] for row in rows] for key in PERSONA_KEYS}
    confidence = [row.get("label_confidence") for row in rows]
    if all(isinstance(value, float) for value in confidence):
        columns["label_confidence"] = confidence
    content = json.dumps([list(pair) for pair in zip(columns["question"], preferred, strict=True)])
    return Behavior(
        name=name,
        rows=datasets.Dataset.from_dict(columns),
        labels=np.array([1 if answer == "Yes" else -1 for answer in preferred], np.int8),
        source=source(data),
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


@content_keyed
def behaviors(data: str = "sample") -> list[str]:
    """The names of all behaviors that ``data`` holds, in alphabetical order.

    Raises InputError if ``data`` is on the hub and the hub cannot be reached.
    """
    folder = locate("persona", data)
    files = map(Path, hub_files("persona")) if folder is None else folder.glob("persona/*")
    names = [file.name for file in files if file.match("persona/*.jsonl")]
    return sorted(name.removesuffix(".jsonl") for name in names)


def split(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's split: row numbers of train (90 %) and test, shuffled with seed 1234."""
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    cut = int(0.9 * n)
    return order[:cut], order[cut:]


def check_answers(row: dict, where: str) -> dict:
    """The row itself. Raises InputError unless one answer is Yes and the other is No."""
    for key in ANSWERS:
        if row[key].strip() not in ("Yes", "No"):
            raise InputError(f"{where}: {key} = {excerpt(row[key])}; it must be Yes or No")
    if len({row[key].strip() for key in ANSWERS}) == 1:
        raise InputError(
            f"{where}: both answers are {row[ANSWERS[0]]!r}; one must be Yes and the other No"
        )
    return row
