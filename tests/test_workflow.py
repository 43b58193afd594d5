"""The Snakemake workflow redoes what is out of date, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_helpers.runs import ROOT

pytestmark = pytest.mark.slow
EVERYTHING = {"hidden_states", "runs", "notebook", "book"}


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
        ("dpo_helpers/tree.py", EVERYTHING),
        ("dpo_helpers/config.py", EVERYTHING | {"model"}),
        ("dpo_helpers/sample/persona/loves-gardening.jsonl", EVERYTHING),
        ("dpo_helpers/last_layer.py", {"runs", "notebook", "book"}),
        ("dpo_helpers/plots.py", {"notebook", "book"}),
        ("notebooks/01_case_study.py", {"notebook", "book"}),
        ("claims.yml", {"notebook", "book"}),
        ("_config.yml", {"book"}),
        ("book/intro.md", {"book"}),
        ("README.md", set()),
    ],
)
def test_an_edit_makes_what_depends_on_it_out_of_date(project, file, redone):
    path = project / file
    before = path.stat()
    try:
        path.touch()
        assert jobs(project) == redone
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
