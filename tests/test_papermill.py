"""A parameter that is wrong stops a notebook at its first cells, with one line."""

import os
import subprocess
import sys

import jupytext
import nbformat
import pytest

from ledger.store import ROOT

HEAD = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
tier = "smoke"

# %%
print("before")

# %%
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("lerning_rate", "0.1", ["unknown parameter 'lerning_rate'", "did you mean learning_rate"]),
        ("steps", "ten", ["parameter steps = 'ten'", "str", "expected int"]),
        ("tier", "smokey", ["unknown tier 'smokey'", "did you mean smoke"]),
    ],
)
def test_a_wrong_parameter(tmp_path, name, value, parts):
    given, done = tmp_path / "setup.ipynb", tmp_path / "out.ipynb"
    jupytext.write(jupytext.read(ROOT / "notebooks" / "00_setup.py"), given)
    tier = () if name == "tier" else ("-p", "tier", "smoke")
    ran = run("papermill", str(given), str(done), *tier, "-p", name, value)
    assert ran.returncode != 0
    told = [text for text in ran.stderr.splitlines() if text.startswith("InputError: ")]
    assert len(told) == 1 and all(part in told[0] for part in parts)
    assert ran.stderr.rstrip().splitlines()[-1] == told[0], "something follows the one line"

    cells = [cell for cell in nbformat.read(done, as_version=4).cells if cell.cell_type == "code"]
    (failed,) = [i for i, c in enumerate(cells) if "error" in {o.output_type for o in c.outputs}]
    (error,) = [o for o in cells[failed].outputs if o.output_type == "error"]
    assert error.ename == "InputError" and error.traceback == told
    assert "configure(globals())" in cells[failed].source
    assert len(cells) > failed + 5
    for cell in cells[failed + 1 :]:
        assert not cell.outputs and cell.execution_count is None


FAILURES = {
    "many lines": ('raise ValueError("the first\\nthe second")', ["ValueError", "the first"]),
    "no words": ("raise ValueError", ["ValueError"]),
    "bad input": (
        "from ledger.config import configure\nsteps = 0\nconfigure(globals())",
        ["InputError", "parameter steps = 0"],
    ),
    "killed": ("import os\nos._exit(1)", ["died"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "parts"), FAILURES.values(), ids=FAILURES)
def test_a_notebook_that_fails_leaves_the_older_output(tmp_path, cell, parts):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "chapter.py").write_text(HEAD + cell + "\n")
    output = tmp_path / "out" / "chapter.ipynb"
    output.parent.mkdir()
    output.write_text("the older output")
    ran = run("workflow.notebook", "chapter", "smoke", str(output), DPO_ROOT=str(tmp_path))
    assert_one_line(ran, "error: notebook chapter", *parts)
    assert output.read_text() == "the older output"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.slow
def test_a_notebook_that_succeeds_replaces_it(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "chapter.py").write_text(HEAD + "print('after')\n")
    output = tmp_path / "chapter.ipynb"
    output.write_text("the older output")
    ran = run("workflow.notebook", "chapter", "smoke", str(output), DPO_ROOT=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    cells = nbformat.read(output, as_version=4).cells
    texts = [o.text for cell in cells if cell.cell_type == "code" for o in cell.outputs]
    assert texts == ["before\n", "after\n"]


@pytest.mark.parametrize(
    ("chapter", "tier", "parts"),
    [("00_setup", "smokey", ["smokey", "smoke"]), ("00_setop", "smoke", ["00_setop"])],
    ids=["tier", "chapter"],
)
def test_an_unknown_tier_or_chapter(tmp_path, chapter, tier, parts):
    output = tmp_path / "00_setup.ipynb"
    output.write_text("the older output")
    ran = run("workflow.notebook", chapter, tier, str(output))
    assert_one_line(ran, f"error: notebook {chapter}", *parts)
    assert output.read_text() == "the older output" and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["experiments", "smokey", "model"], ["smokey", "smoke"]),
        (["experiments", "smoke", "00_setop"], ["00_setop", "00_setup"]),
    ],
    ids=["tier", "chapter"],
)
def test_the_commands_of_the_workflow(command, parts):
    assert_one_line(run(*command), "error: ", *parts)


def assert_one_line(ran: subprocess.CompletedProcess, start: str, *parts: str) -> None:
    """It failed, and all it says of it is one line."""
    assert ran.returncode != 0
    told = [text for text in ran.stderr.splitlines() if text.startswith("error: ")]
    assert len(told) == 1 and "Traceback" not in ran.stderr, ran.stderr
    assert told[0].startswith(start) and told[0] == ran.stderr.rstrip().splitlines()[-1]
    assert all(part in told[0] for part in parts), told[0]
