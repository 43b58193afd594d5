"""Mutations: change one formula, run the tests that should notice, record whether they do.

    python -m benchmarks.mutations [FILE …]

``mutations.yml`` lists them by hand. Results are written to ``mutations.json`` as they come; a
mutation is tried again when its file or its tests have changed since.
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
LIMIT = 900  # seconds of computing that the tests of one mutation may take
_COPIED = (
    "benchmarks",
    "book",
    "configs",
    "dpo_helpers",
    "experiments",
    "ledger",
    "notebooks",
    "results",
    "sweeps",
)
_COPIED += ("tests", "workflow", "claims.yml", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """A change of the code: ``old`` text of a ``file`` of ``dpo_helpers`` becomes ``new``.

    ``tests`` names the files of tests that are to notice.
    """

    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    def path(self, root: Path) -> Path:
        """The file in a copy of the project."""
        return root / "dpo_helpers" / self.file

    def mutated(self, root: Path) -> str:
        """The file's text, mutated.

        Raises InputError unless the old text is there exactly once, and differs from the new.
        """
        text = self.path(root).read_text("utf-8")
        if (times := text.count(self.old)) != 1 or self.old == self.new:
            raise InputError(
                f"{self.file}: {self.old!r} is there {times} times, and is to become {self.new!r}; "
                "name a text that is there once, and another in its place"
            )
        return text.replace(self.old, self.new)

    def key(self, root: Path) -> str:
        """The hash of what decides the outcome: the mutated file and its tests."""
        texts = [self.mutated(root), *((root / "tests" / t).read_text("utf-8") for t in self.tests)]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def listed(path: Path = LIST) -> list[Mutation]:
    """The mutations of ``mutations.yml``."""
    return [
        Mutation(part["file"], tuple(part["tests"]), *change)
        for part in yaml.safe_load(path.read_text("utf-8"))
        for change in part["changes"]
    ]


def outcome(root: Path, tests: tuple[str, ...], which: str) -> tuple[str, str]:
    """What the tests make of a project: "passed", or "failed" and the first that does.

    ``which`` of them: "not slow" or "slow". Raises InputError where they could not be run, which is
    no verdict.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("DPO_DATA_DIR", "DPO_ROOT")}
    # Without files of byte code, which are known by the second of their time and their size.
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(root)}
    shutil.rmtree(root / ".hypothesis", ignore_errors=True)  # the examples of another mutation
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
        raise InputError(f"{' '.join(tests)}: cannot be run ({done.stdout[-300:].strip()!r})")
    return "failed", first[1]


def _limited() -> None:
    # Not of the clock: a machine that sleeps, or is busy, is no failure.
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 60))


def attempt(mutation: Mutation, root: Path, passing: set[tuple[str, str]]) -> dict:
    """Mutate the copy of the project at ``root``, run the tests, and put the copy right again.

    The slow tests only if the others notice nothing. ``passing`` gathers the tests that are known
    to pass without a mutation. Raises InputError for one that does not.
    """
    path, text, key = mutation.path(root), mutation.mutated(root), mutation.key(root)
    before, began, by = path.read_text("utf-8"), time.monotonic(), ""
    for which in ("not slow", "slow"):
        for test in mutation.tests:
            if (test, which) not in passing and outcome(root, (test,), which)[0] == "failed":
                raise InputError(f"{test}: fails without any mutation; mend that first")
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
    """A copy of the project without what its tests do not need."""
    skipped = shutil.ignore_patterns("__pycache__", "*.ipynb")
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=skipped)
        else:
            shutil.copy(source, target / name)
    return target


def main(files: list[str]) -> None:
    """Try every mutation, of these files or of all, whose result is not known."""
    mutations = listed()
    for mutation in mutations:
        mutation.mutated(ROOT)
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    known = {(row["file"], row["old"], row["new"]): row for row in rows}
    passing: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as work:
        root = copied(Path(work))
        for number, mutation in enumerate(mutations, 1):
            place = (mutation.file, mutation.old, mutation.new)
            old = known.get(place, {})
            if (files and mutation.file not in files) or old.get("key") == mutation.key(ROOT):
                continue
            found = attempt(mutation, root, passing)
            # What came of it when it was first tried, before a test was added.
            known[place] = found | {"first": old.get("first", found["outcome"])}
            print(f"{number} of {len(mutations)}: {json.dumps(found)}", flush=True)
            save(mutations, known)
    save(mutations, known)


def save(mutations: list[Mutation], known: dict[tuple, dict]) -> None:
    """Write ``mutations.json``: what is known of those listed, in their order."""
    places = [(m.file, m.old, m.new) for m in mutations]
    write(RESULTS, [known[place] for place in places if place in known])


def write(path: Path, rows: list[dict]) -> None:
    """Replace a file of JSON by these rows, a line each."""
    text = ",\n".join(" " + json.dumps(row, ensure_ascii=False) for row in rows)
    atomic_write(path, f"[\n{text}\n]\n".encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
