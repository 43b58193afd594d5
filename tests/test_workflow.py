"""The Snakemake workflow redoes what is out of date, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.store import ROOT

pytestmark = pytest.mark.slow
EVERYTHING = {"model", "hidden_states", "runs", "notebook", "book"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project as `make run` left it, times kept."""
    copy = tmp_path_factory.mktemp("workflow") / "project"
    skipped = shutil.ignore_patterns(".git", ".venv", "mathjax", "results", "html", "source")
    shutil.copytree(ROOT, copy, ignore=skipped)
    shutil.copytree(ROOT / "build" / "smoke" / "html", copy / "build" / "smoke" / "html")
    return copy


def jobs(project: Path) -> set[str]:
    """The rules that `make run` would execute now."""
    command = [
        str(Path(sys.executable).parent / "snakemake"),
        "--dry-run",
        "--config",
        "tier=smoke",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    return set(re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, re.M))


def test_nothing_to_do_after_a_run(project):
    assert jobs(project) == set()


@pytest.mark.parametrize(
    "file, redone",
    [
        ("dpo_helpers/states/token_trie.py", EVERYTHING),
        ("experiments/case_study.py", EVERYTHING),
        ("ledger/config.py", EVERYTHING),
        ("dpo_helpers/data/sample/persona/loves-gardening.jsonl", EVERYTHING - {"model"}),
        ("notebooks/01_case_study.py", {"notebook", "book"}),
        ("claims.yml", {"notebook", "book"}),
        ("_config.yml", {"book"}),
        ("book/intro.md", {"book"}),
        ("README.md", set()),
    ],
)
def test_an_edit_makes_what_depends_on_it_out_of_date(project, file, redone):
    path = project / file
    before, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(before + b"\n")
        assert jobs(project) == redone
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_notebook_that_fails_leaves_the_older_one(project):
    """Through Snakemake too, which removes the outputs of a failed job."""
    source = project / "notebooks" / "00_setup.py"
    stored = project / "build" / "smoke" / "notebooks" / "00_setup.ipynb"
    page = project / "build" / "smoke" / "html" / "notebooks" / "00_setup.html"
    before, old = source.read_text(), (stored.read_bytes(), page.read_bytes())
    source.write_text(before + "\n# %%\nraise ValueError('broken')\n")
    command = [sys.executable, "-m", "workflow.progress", "--config", "tier=smoke"]
    environment = {**os.environ, "PYTHONPATH": str(project), "DPO_ROOT": str(project)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    finally:
        source.write_text(before)
    assert done.returncode != 0
    said = done.stderr.splitlines()
    (failed,) = (i for i, line in enumerate(said) if line.startswith("[failed] 00_setup: notebook"))
    assert said[failed + 1].startswith("error: notebook 00_setup, cell")
    assert said[failed + 1].endswith("ValueError: broken")
    log = project / said[failed + 2].removeprefix("log: ")
    assert said[failed + 1] in log.read_text().splitlines()
    assert (stored.read_bytes(), page.read_bytes()) == old
