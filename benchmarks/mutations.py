"""Mutations: change one formula, run the tests that should catch it, and record whether they do.

    python -m benchmarks.mutations [FILE …]

``mutations.yml`` lists the mutations, written by hand. Each result is written to ``mutations.json``
at once. A mutation is tried again if its file or its tests have changed since. Results from before
the code was restructured are marked ``restructured: false``, and kept as they are.
"""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dpo_helpers.errors import InputError
from dpo_helpers.files import atomic_write
from ledger.store import ROOT

LIST, RESULTS = (Path(__file__).parent / f"mutations.{kind}" for kind in ("yml", "json"))
LIMIT = 900  # seconds of CPU time for the tests of one mutation
_COPIED = ("dpo_helpers", "experiments", "ledger", "workflow", "notebooks", "tests", "results")
_COPIED += ("book", "configs", "sweeps", "benchmarks", "claims.yml", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """A change of the code: the text ``old`` in ``file`` becomes ``new``.

    ``file`` is relative to the repository. ``tests`` names the test files that should catch it.
    """

    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    def path(self, root: Path) -> Path:
        """The path of the file in a copy of the project."""
        return root / self.file

    @property
    def place(self) -> tuple[str, str, str]:
        """What a result is found by: the file, the old text, and the new text."""
        return self.file, self.old, self.new

    def mutated(self, root: Path) -> str:
        """The mutated text of the file.

        Raises InputError unless the old text occurs exactly once and differs from the new text.
        """
        text = self.path(root).read_text("utf-8")
        if (times := text.count(self.old)) != 1 or self.old == self.new:
            raise InputError(
                f"{self.file}: {self.old!r} occurs {times} times and would become {self.new!r}; "
                "give an old text that occurs once, and a different new text"
            )
        return text.replace(self.old, self.new)

    def key(self, root: Path) -> str:
        """A hash of the mutated file and its tests, which decide the outcome."""
        texts = [self.mutated(root), *((root / "tests" / t).read_text("utf-8") for t in self.tests)]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def listed(path: Path = LIST) -> list[Mutation]:
    """The mutations of ``mutations.yml``."""
    return [
        Mutation(part["file"], tuple(part["tests"]), *change)
        for part in yaml.safe_load(path.read_text("utf-8"))
        for change in part["changes"]
    ]


@dataclass(frozen=True)
class Results:
    """The rows of ``mutations.json``.

    known     the result of each mutation that was tried, by its ``place``
    earlier   results from before the code was restructured; the files and tests are those of then
    """

    known: dict[tuple[str, str, str], dict]
    earlier: list[dict]

    def valid(self, mutations: list[Mutation], root: Path) -> list[dict]:
        """The results with the present code and tests, in the order of the mutations."""
        rows = [(self.known.get(mutation.place), mutation) for mutation in mutations]
        return [row for row, mutation in rows if row and row["key"] == mutation.key(root)]


def results() -> Results:
    """The results so far."""
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    earlier = [row for row in rows if not row.get("restructured", True)]
    known = {(row["file"], row["old"], row["new"]): row for row in rows if row not in earlier}
    return Results(known, earlier)


def outcome(root: Path, tests: tuple[str, ...], which: str) -> tuple[str, str]:
    """The outcome of the tests in a project: "passed", or "failed" and the first failure.

    ``which`` selects the tests: "not slow" or "slow". Raises InputError if they could not be run.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("DPO_DATA_DIR", "DPO_ROOT")}
    # No byte code files: Python recognizes stale ones only by size and time in seconds.
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(root)}
    shutil.rmtree(root / ".hypothesis", ignore_errors=True)  # examples from another mutation
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--hypothesis-seed=0"]
    command += ["-p", "no:cacheprovider", "-m", which, *(f"tests/{name}" for name in tests)]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, preexec_fn=_limited
    )
    if done.returncode == -signal.SIGXCPU:
        return "failed", f"no answer within {LIMIT} s"
    if done.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        return "passed", ""
    first = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.M)
    if done.returncode != 1 or not first:
        raise InputError(
            f"{' '.join(tests)}: cannot be run ({done.stdout[-300:].strip()!r}); fix that first"
        )
    return "failed", first[1]


def _limited() -> None:
    # CPU time, not wall time: a machine that sleeps or is busy is not a failure.
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 60))


def attempt(mutation: Mutation, root: Path, passing: set[tuple[str, str]]) -> dict:
    """Mutate the copy of the project at ``root``, run the tests, and restore the copy.

    The slow tests run only if the others catch nothing. ``passing`` collects the tests that pass
    without a mutation. Raises InputError for a test that fails without one.
    """
    path, text, key = mutation.path(root), mutation.mutated(root), mutation.key(root)
    before, began, by = path.read_text("utf-8"), time.monotonic(), ""
    for which in ("not slow", "slow"):
        for test in mutation.tests:
            if (test, which) not in passing and outcome(root, (test,), which)[0] == "failed":
                raise InputError(f"{test}: fails without a mutation; fix that first")
            passing.add((test, which))
        path.write_text(text, "utf-8")
        try:
            result, by = outcome(root, mutation.tests, which)
        finally:
            path.write_text(before, "utf-8")
        if result == "failed":
            break
    return {
        "file": mutation.file,
        "old": mutation.old,
        "new": mutation.new,
        "outcome": {"passed": "survived", "failed": "killed"}[result],
        "by": by,
        "seconds": round(time.monotonic() - began, 1),
        "key": key,
    }


def copied(target: Path) -> Path:
    """Copy the parts of the project that its tests need."""
    skipped = shutil.ignore_patterns("__pycache__", "*.ipynb")
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=skipped)
        else:
            shutil.copy(source, target / name)
    return target


def main(files: list[str]) -> None:
    """Try every mutation of these files, or of all files, whose result is not known."""
    mutations = listed()
    for mutation in mutations:
        mutation.mutated(ROOT)
    found = results()
    passing: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as work:
        root = copied(Path(work))
        for number, mutation in enumerate(mutations, 1):
            old = found.known.get(mutation.place, {})
            if (files and mutation.file not in files) or old.get("key") == mutation.key(ROOT):
                continue
            row = attempt(mutation, root, passing)
            # The outcome of the first try, before a test was added.
            found.known[mutation.place] = row | {"first": old.get("first", row["outcome"])}
            print(f"{number} of {len(mutations)}: {json.dumps(row)}", flush=True)
            save(mutations, found)
    save(mutations, found)


def save(mutations: list[Mutation], found: Results) -> None:
    """Write the earlier results and those of the listed mutations, in order, to the JSON file."""
    rows = [found.known[m.place] for m in mutations if m.place in found.known]
    write(RESULTS, [*found.earlier, *rows])


def write(path: Path, rows: list[dict]) -> None:
    """Replace a JSON file by these rows, one per line."""
    text = ",\n".join(" " + json.dumps(row, ensure_ascii=False) for row in rows)
    atomic_write(path, f"[\n{text}\n]\n".encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
