"""Persona statements and HH-RLHF pairs, from a folder, the hub, or the embedded sample."""

import contextlib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, first_line, unknown
from ..files import content_keyed

if TYPE_CHECKING:
    import datasets

PERSONA_KEYS = (
    "question",
    "statement",
    "answer_matching_behavior",
    "answer_not_matching_behavior",
)
HUB = {"persona": "Anthropic/model-written-evals", "hh-rlhf": "Anthropic/hh-rlhf"}
SPLIT_SEED = 1234
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Behavior:
    """The statements of one Persona behavior.

    name      the behavior
    rows      the data set: ``PERSONA_KEYS`` and, where every row has one, label_confidence
    labels    (n,) int8: +1 where Yes is the preferred answer, −1 where No is
    source    where the rows came from, in words
    sha256    of the rows' content (question and preferred answer, in order)
    """

    name: str
    rows: "datasets.Dataset"
    labels: np.ndarray
    source: str
    sha256: str

    def prompts(self, newline: bool = True) -> list[str]:
        """The n prompts x: the question, by default with a closing newline."""
        return [question + "\n" * newline for question in self.rows["question"]]


@content_keyed
def load_behavior(name: str, data: str = "sample") -> Behavior:
    """One Persona behavior from ``data``: "sample", "anthropic", or a folder laid out as upstream.

    Raises InputError for an unknown behavior (the nearest names suggested), an
    unreadable file, a malformed line, a missing key, an answer that is neither
    Yes nor No, and a behavior with no statements on one side.
    """
    where = _locate("persona", data)
    if where is None:
        path, source = _from_hub("persona", f"persona/{checked(name, 'behavior')}.jsonl")
    else:
        known = {p.name.removesuffix(".jsonl") for p in (where / "persona").glob("*.jsonl")}
        if checked(name, "behavior") not in known:
            raise unknown("behavior", name, known)
        source = _describe(data, "persona")
        path = where / "persona" / f"{name}.jsonl"
    return _behavior(name, read_jsonl(path, PERSONA_KEYS, _answers), source)


@content_keyed
def behaviors(data: str = "sample") -> list[str]:
    """The names of all behaviors that ``data`` holds, in alphabetical order.

    Raises InputError where the hub has to be asked and does not answer.
    """
    where = _locate("persona", data)
    if where is not None:
        return sorted(path.name.removesuffix(".jsonl") for path in where.glob("persona/*.jsonl"))
    repository = HUB["persona"]
    try:
        if not online():
            raise ConnectionError("the hub cannot be reached")
        from huggingface_hub import HfApi

        files = map(Path, HfApi().list_repo_files(repository, repo_type="dataset"))
        return sorted(file.stem for file in files if str(file.parent) == "persona")
    except Exception as error:
        raise InputError(
            f"{repository}: its behaviors cannot be listed ({first_line(error)}); set DPO_DATA_DIR "
            "to a copy of the data"
        ) from None


@content_keyed
def load_pairs(data: str = "sample", subset: str = "harmless-base", split: str = "test"):
    """HH-RLHF preference pairs: a ``datasets.Dataset`` with prompt, chosen and rejected.

    The prompt is the text up to and with the last ``Assistant:`` that both
    dialogues share; chosen and rejected are what follows it.

    Raises InputError as ``load_behavior``, and for a pair that shares no prompt.
    """
    import datasets

    file = f"{checked(subset, 'subset')}/{checked(split, 'split')}.jsonl"
    where = _locate("hh-rlhf", data)
    if where is None:
        path, _ = _from_hub("hh-rlhf", file + ".gz")
    else:
        path = where / "hh-rlhf" / file
        packed = path.with_name(path.name + ".gz")
        path = packed if packed.exists() else path
    return datasets.Dataset.from_list(read_jsonl(path, ("chosen", "rejected"), pair))


def split(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's split: row numbers of train (90 %) and test, shuffled with seed 1234."""
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    cut = int(0.9 * n)
    return order[:cut], order[cut:]


def read_jsonl(
    path: Path, keys: tuple[str, ...], convert: Callable[[dict, str], dict] = lambda row, _: row
) -> list[dict]:
    """The objects of a JSONL file (gzip by its name), each with all ``keys`` as text.

    Each goes through ``convert``, which is told where it stands for its errors.

    Raises InputError naming the file, the line, the value and the remedy.
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
                f"{where}: not valid JSON ({error.msg}, column {error.colno}); "
                "mend or remove the line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: cannot be read ({error}); mend or remove it") from None
        for key in keys:
            if not isinstance(row, dict) or key not in row:
                raise InputError(f"{where}: key {key!r} is missing; add it")
            if not _is_text(row[key]):
                raise InputError(f"{where}: {key} = {_short(row[key])}; it must be non-empty text")
        rows.append(convert(row, where))
    if not rows:
        raise InputError(f"{path}: holds no rows; fetch it again")
    return rows


def source(data: str, kind: str = "persona") -> str:
    """Where ``data`` of a ``kind`` leads, in words, for the top of an executed notebook."""
    if _locate(kind, data) is None:
        return f"Hugging Face hub ({HUB[kind]})"
    return _describe(data, kind)


@content_keyed
def at_hand(data: str, kind: str = "persona") -> bool:
    """Whether ``data`` of a ``kind`` ("persona", "hh-rlhf") can be read without the network.

    Raises InputError for a folder that does not hold it.
    """
    where = _locate(kind, data)
    return where is not None and (where / kind).is_dir()


def _describe(data: str, kind: str) -> str:
    if data == "sample":
        return "the embedded sample (this project's own)"
    name = {"persona": "Persona set", "hh-rlhf": "HH-RLHF"}[kind]
    return f"Anthropic's {name}, from a folder" if data == "anthropic" else "a folder of yours"


def _locate(kind: str, data: str) -> Path | None:
    """The folder that ``data`` names; None for the hub."""
    if data == "sample":
        return Path(str(resources.files("dpo_helpers.data") / "sample"))
    if data == "anthropic":
        folder = os.environ.get("DPO_DATA_DIR")
        if not folder:
            return None
        name = f"DPO_DATA_DIR = {folder}"
    else:
        folder, name = data, f"data = {data!r}"
    where = Path(folder).expanduser()
    if not (where / kind).is_dir():
        raise InputError(
            f"{name}: no folder {kind}/ there; lay it out as upstream, or use data = 'sample'"
        )
    return where


def checked(name: str, what: str) -> str:
    """The name of a behavior, subset or split: no path. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{what} {name!r}: only letters, digits, '.', '_' and '-' are allowed")
    return name


def _behavior(name: str, rows: list[dict], source: str) -> Behavior:
    import datasets

    labels = np.array(
        [1 if row["answer_matching_behavior"].strip() == "Yes" else -1 for row in rows], np.int8
    )
    for label, answer in ((1, "Yes"), (-1, "No")):
        if not (labels == label).any():
            raise InputError(f"{name}: no statement prefers {answer}; a behavior needs both sides")
    content = json.dumps([[r["question"], r["answer_matching_behavior"].strip()] for r in rows])
    columns = {key: [row[key] for row in rows] for key in PERSONA_KEYS}
    confidence = [row.get("label_confidence") for row in rows]
    if all(isinstance(value, float) for value in confidence):
        columns["label_confidence"] = confidence
    return Behavior(
        name=name,
        rows=datasets.Dataset.from_dict(columns),
        labels=labels,
        source=source,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def _is_text(value: object) -> bool:
    """Whether it is text, not blank, and whole (half a surrogate pair is none)."""
    return (
        isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _answers(row: dict, where: str) -> dict:
    answers = ("answer_matching_behavior", "answer_not_matching_behavior")
    for key in answers:
        if row[key].strip() not in ("Yes", "No"):
            raise InputError(f"{where}: {key} = {_short(row[key])}; it must be Yes or No")
    if len({row[key].strip() for key in answers}) == 1:
        raise InputError(
            f"{where}: both answers are {row[answers[0]]!r}; one must be Yes and the other No"
        )
    return row


def pair(row: dict, where: str) -> dict[str, str]:
    chosen, rejected, mark = row["chosen"], row["rejected"], "\n\nAssistant:"
    cut = chosen.rfind(mark)
    while cut >= 0 and not rejected.startswith(chosen[: cut + len(mark)]):
        cut = chosen.rfind(mark, 0, cut)
    cut += len(mark)
    if cut < len(mark):
        raise InputError(
            f"{where}: chosen and rejected share no prompt that ends in 'Assistant:'; "
            "mend or remove the line"
        )
    return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def online(host: str = "huggingface.co", seconds: float = 3.0) -> bool:
    """Whether the hub answers (through the proxy, where one is set), told within seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    from huggingface_hub.utils import get_session

    try:
        get_session().head(f"https://{host}", timeout=seconds)
    except Exception:  # of the socket, the proxy, TLS or HTTP: whatever it is, no answer
        return False
    return True


def _from_hub(kind: str, file: str) -> tuple[Path, str]:
    if not online():
        raise InputError(
            f"{HUB[kind]}: the hub cannot be reached; set DPO_DATA_DIR to a copy of the data, "
            "or use data = 'sample'"
        )
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        path = hf_hub_download(HUB[kind], file, repo_type="dataset", etag_timeout=10)
    except RemoteEntryNotFoundError:
        known: list[str] = []
        with contextlib.suppress(Exception):  # to suggest a name is a courtesy
            known = HfApi().list_repo_files(HUB[kind], repo_type="dataset")
        names = [Path(f).name.split(".")[0] for f in known if Path(f).parent == Path(file).parent]
        raise unknown(f"file of {HUB[kind]}", Path(file).name.split(".")[0], names) from None
    except Exception as error:
        raise InputError(
            f"{HUB[kind]}: {file} could not be fetched ({first_line(error)}); set DPO_DATA_DIR to "
            "a copy of the data"
        ) from None
    return Path(path), f"Hugging Face hub ({HUB[kind]})"
