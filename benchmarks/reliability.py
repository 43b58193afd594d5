"""Reliability: kill a run at a random moment, check the files that it left, and run it again.

    python -m benchmarks.reliability [KIND …]

Each kind of run is first made once, undisturbed. Then it is started again, as often as ``KINDS``
says, and killed each time (SIGKILL, with the processes that it started). The moment is drawn
uniformly, with a seed, from the duration of the undisturbed run. After a kill, every file under its
final name must be as before, or as the undisturbed run leaves it. Files that grow during training
must be readable. Then the same command runs again. It must end with the same files as the
undisturbed run, bit by bit, except for dates and durations. Each result is written to
``reliability.json`` at once. A recorded attempt is not made again.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat

from dpo_helpers.errors import InputError
from dpo_helpers.finetune import checkpoint
from ledger.record import read
from ledger.store import ROOT

from .mutations import copied, write

RESULTS = Path(__file__).parent / "reliability.json"
NOTEBOOK, RECORDED = "04_learning_guarantees", "03_priorities"
STEPS = 300
LIMIT = 1800  # seconds, the longest a run may take
_CONVERT = """
import sys
from dpo_helpers import lm
wheel, gguf = sys.argv[1:]
lm.CARDS["fake"] = lm.Card(
    name="fake", what="", license="", parameters="", d=16,
    wheels=(("dpo-fake==1.0", wheel),), gguf_sha256=gguf,
)
lm.converted("fake")
"""


@dataclass(frozen=True)
class Kind:
    """A kind of run, in its own folder with a cache, a registry, and the project.

    what      a description
    kills     how often it is killed
    start     prepares the folder, from the folder that all attempts share
    command   the arguments of Python
    reached   how far a killed run got, in words
    """

    what: str
    kills: int
    start: Callable[[Path, Path], None]
    command: Callable[[Path], list[str]]
    reached: Callable[[Path], str]


def nothing(folder: Path, shared: Path) -> None:
    """Start from an empty folder."""


def train(folder: Path) -> list[str]:
    words = f"-m dpo_helpers.finetune {folder}/run --model tiny-llama --behavior keeps-promises"
    words += f" --precision float32 --learning-rate 1e-3 --beta 0.1 --epochs {STEPS // 3}"
    return [*words.split(), "--save-every", "10"]


def steps(folder: Path) -> str:
    log = folder / "run" / "metrics.jsonl"
    done = log.read_bytes().count(b"\n") - 1 if log.exists() else 0
    return f"step {done} of {STEPS}"


def wheels(folder: Path, shared: Path) -> None:
    """Start from a registry with the wheel of a small model, 100 MB in 16 bits."""
    from tests.errors import gguf_file, wheel

    there = shared / "wheels"
    if not there.exists():
        there.mkdir(parents=True)
        content = gguf_file(shared / "model.gguf", wide=1 << 20)
        sums = [wheel(there, content), hashlib.sha256(content).hexdigest()]
        (there / "sums").write_text(" ".join(sums))
    shutil.copytree(there, folder / "wheels")


def convert(folder: Path) -> list[str]:
    return ["-c", _CONVERT, *(folder / "wheels" / "sums").read_text().split()]


def converting(folder: Path) -> str:
    if any(folder.glob("cache/models/*/SHA256SUMS")):
        return "converted"
    (work,) = list(folder.glob("cache/models/*.part")) or [None]
    if work is None:
        return "not begun"
    return "converting" if (work / "model").exists() else "fetching"


def project(folder: Path, shared: Path) -> None:
    """Start from a copy of the project whose only recorded runs are the hidden states."""
    (folder / "root").mkdir()
    copied(folder / "root")
    there = shared / "states"
    if not there.exists():
        run(["-m", "experiments", "smoke", "hidden"], folder)
        shutil.copytree(folder / "root" / "build", there)
    shutil.copytree(there, folder / "root" / "build", dirs_exist_ok=True)


def record(folder: Path) -> list[str]:
    return ["-m", "experiments", "smoke", RECORDED]


def recorded(folder: Path) -> str:
    return f"{len(list(folder.glob('root/build/runs/smoke/**/run.json')))} records"


def older(folder: Path, shared: Path) -> None:
    """Start from the project, its hidden states, and an older notebook in place of the new one."""
    project(folder, shared)
    page = folder / "root" / "build" / "smoke" / "notebooks" / f"{NOTEBOOK}.ipynb"
    page.parent.mkdir(parents=True)
    cells = [nbformat.v4.new_markdown_cell("An older notebook.", id="older")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), page)


def execute(folder: Path) -> list[str]:
    page = folder / "root" / "build" / "smoke" / "notebooks" / f"{NOTEBOOK}.ipynb"
    return ["-m", "workflow.notebook", NOTEBOOK, "smoke", str(page)]


KINDS = {
    "training": Kind("full fine-tuning, checkpoints", 13, nothing, train, steps),
    "conversion": Kind("fetching and converting a model", 12, wheels, convert, converting),
    "notebook": Kind("executing a notebook", 13, older, execute, recorded),
    "record": Kind("recording the runs of a chapter", 12, project, record, recorded),
}


def run(arguments: list[str], folder: Path, kill_after: float | None = None) -> bool:
    """Run Python in the folder. Returns whether it was killed, after ``kill_after`` seconds.

    Raises InputError for a run that fails without being killed.
    """
    root = folder / "root" if (folder / "root").exists() else ROOT
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DPO_")}
    environment |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    if root == ROOT:
        environment |= {"DPO_CACHE_DIR": str(folder / "cache"), "PIP_NO_INDEX": "1"}
        environment |= {"PIP_FIND_LINKS": str(folder / "wheels")}
    (folder / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=kill_after or LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if kill_after is None:
            raise InputError(f"{arguments}: not finished within {LIMIT} s; raise LIMIT") from None
        return True
    if process.returncode:
        raise InputError(f"{arguments}: failed ({errors[-500:].strip()}); fix that first")
    return False


def names(folder: Path) -> list[str]:
    """The files that runs write under a folder: all except locks and the files present before."""
    kept = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        given = name.startswith(("tmp/", "wheels/")) or path.suffix == ".lock"
        given |= name.startswith("root/") and not name.startswith("root/build/")
        if path.is_file() and not given:
            kept.append(name)
    return kept


def files(folder: Path) -> dict[str, str]:
    """The hash of each of these files, without dates and durations."""
    return {name: hashlib.sha256(content(folder / name)).hexdigest() for name in names(folder)}


def content(path: Path) -> bytes:
    """The content of a file, without what differs from run to run."""
    if path.name == "metrics.jsonl":
        lines = path.read_text().splitlines()
        kept = [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]
        return json.dumps(kept).encode()
    if path.name == "run.json":
        info = json.loads(path.read_text())
        return json.dumps({k: info[k] for k in sorted({*info} - {"date", "wall_seconds"})}).encode()
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "nbval-ignore-output" in cell.metadata.get("tags", []):
                cell.outputs = []
        return nbformat.writes(notebook).encode()
    return path.read_bytes()


def partial(name: str) -> bool:
    """Whether a file's name marks it as partly written."""
    return any(part.startswith(".") or part.endswith(".part") for part in Path(name).parts)


def corrupt(folder: Path, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The files under their final names that a kill left damaged.

    ``before`` and ``after`` are the ``files`` at the start and the end of the undisturbed run.
    """
    bad = []
    for name in names(folder):
        if partial(name):
            continue
        path = folder / name
        try:
            if path.name == "metrics.jsonl":
                good = growing(path)
            elif path.name == "checkpoint.safetensors":
                good = bool(checkpoint.read(path)) and "step" in checkpoint.metadata(path)
            else:
                digest = hashlib.sha256(content(path)).hexdigest()
                good = digest in (before.get(name), after.get(name))
            if path.name == "run.json":
                good = good and read(path.parent) is not None
        except (InputError, ValueError, OSError, KeyError) as error:
            good, name = False, f"{name} ({error})"
        if not good:
            bad.append(name)
    return bad


def growing(path: Path) -> bool:
    """Whether a training log has all steps up to some step, once. Its last line may be cut."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    return [json.loads(line)["step"] for line in lines[1:]] == list(range(len(lines) - 1))


def attempt(name: str, number: int, shared: Path, about: dict) -> dict:
    """Start a run, kill it, check its files, and run it again. ``about`` is the undisturbed run.

    A run that ends before its moment is started again with another moment.
    """
    kind, moments = KINDS[name], random.Random(f"{name} {number}")
    while True:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            kind.start(folder, shared)
            moment = moments.random()
            if not run(kind.command(folder), folder, moment * about["seconds"]):
                continue
            reached, bad = kind.reached(folder), corrupt(folder, about["before"], about["after"])
            left = [name for name in names(folder) if partial(name)]
            problem = ""
            try:
                run(kind.command(folder), folder)
            except InputError as error:
                problem = str(error)
            found = {} if problem else files(folder)
        return {
            "kind": name,
            "number": number,
            "moment": round(moment, 3),
            "seconds": round(moment * about["seconds"], 1),
            "reached": reached,
            "corrupt": bad,
            "unfinished": len(left),
            "problem": problem,
            "differs": sorted(
                n for n in {*found, *about["after"]} if found.get(n) != about["after"].get(n)
            ),
        }


def undisturbed(name: str, shared: Path) -> dict:
    """The undisturbed run of a kind: its seconds, and its files before and after."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        kind.start(folder, shared)
        before, began = files(folder), time.monotonic()
        run(kind.command(folder), folder)
        return {"seconds": time.monotonic() - began, "before": before, "after": files(folder)}


def main(kinds: list[str]) -> None:
    """Make the attempts of these kinds, or of all, that ``reliability.json`` does not have."""
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as work:
        for name in kinds or KINDS:
            done = {row["number"] for row in rows if row["kind"] == name}
            left = [number for number in range(KINDS[name].kills) if number not in done]
            about = undisturbed(name, Path(work)) if left else {}
            for number in left:
                rows.append(attempt(name, number, Path(work), about))
                print(json.dumps(rows[-1]), flush=True)
                rows.sort(key=lambda row: ([*KINDS].index(row["kind"]), row["number"]))
                write(RESULTS, rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
