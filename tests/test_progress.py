"""The output of `make run`: one line per step, and the error and the log of a step that fails."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.store import ROOT
from workflow.progress import Lines, duration, quote

SNAKEFILE = """
rule book:
    input: "first.done", "second.done"

rule hidden_states:
    output: "states"
    log: "log/states.log"
    shell: "(echo much; echo more >&2; touch {output}) > {log} 2>&1"

rule runs:
    input: "states"
    output: "{chapter}.done"
    log: "log/{chapter}-runs.log"
    shell: "(echo 'error: no data'; echo; test {wildcards.chapter} = first) > {log} 2>&1"
           " && touch {output}"
"""
COMMAND = [sys.executable, "-m", "workflow.progress", "--cores", "1", "--keep-going"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def timeless(text: str) -> list[str]:
    return re.sub(r", \d+ s$", ", 0 s", text, flags=re.M).splitlines()


SECOND = ["[failed] second: runs, 0 s", "error: no data", "log: log/second-runs.log"]


def run(project: Path, *options: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [*COMMAND, *options], cwd=project, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert not done.stdout
    return done.returncode, timeless(done.stderr)


def test_a_line_a_step_and_the_error_of_one_that_fails(project):
    code, lines = run(project)
    assert code == 1
    assert lines[0] == "[1/4] hidden states, 0 s" and lines[-1] == "error: 1 failed: second: runs"
    # The two chapters in either order.
    assert lines[1:-1] in (["[2/4] first: runs, 0 s", *SECOND], [*SECOND, "[2/4] first: runs, 0 s"])
    assert (project / "log" / "states.log").read_text().split() == ["much", "more"]
    code, lines = run(project, "first.done")
    assert (code, lines) == (0, [])


def test_a_dry_run_and_a_wrong_target(project):
    code, lines = run(project, "--dry-run")
    assert code == 0
    assert sorted(lines) == ["book", "first: runs", "hidden states", "second: runs"]
    code, lines = run(project, "third")
    assert code == 1 and lines[0].startswith("error: MissingRuleException")


def test_a_terminal_has_one_line_more_while_something_runs(project):
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, "states"], cwd=project, env=ENVIRONMENT, stderr=theirs):
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    assert "\r\x1b[Krunning: hidden states (0 s)" in text
    left = [line.rpartition("\x1b[K")[2] for line in text.split("\n")]
    assert timeless("\n".join(left).rstrip("\n")) == ["[1/1] hidden states, 0 s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_below_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    lines = Lines(terminal, now=lambda: 0.0)
    for job in range(9):
        lines.begin(job, f"{job}: runs", None)
    lines.say("said")
    last = terminal.getvalue().rpartition("\n")[2].rpartition("\x1b[K")[2]
    assert last.startswith("running: 0: runs (0 s), 1: runs") and len(last) == 39
    lines.close()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("log", "quoted"),
    [
        ("error: first\nerror: second\nafter\n", "second"),
        ("Traceback\nValueError: no\n\n", "ValueError: no (killed)"),
        ("10%|#  |\r20%|## |", "20%|## | (killed)"),
        ("", "killed"),
        (None, "killed"),
    ],
)
def test_what_is_quoted_of_a_log(tmp_path, log, quoted):
    path = tmp_path / "log"
    if log is not None:
        path.write_text(log)
    assert quote(path, "killed") == quoted


@pytest.mark.parametrize("name", ["Snakefile", "workflow/sweep.smk"])
def test_every_step_has_a_log(name):
    rules = re.split(r"^rule ", (ROOT / name).read_text(), flags=re.M)[1:]
    for rule in rules:
        assert re.search(r"> \{log(:q)?\} 2>&1\"", rule) and "    log:\n" in rule, rule
