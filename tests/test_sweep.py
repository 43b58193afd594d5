"""Sweeps: refused before anything runs, resumed after a kill, failures told by cell, one page."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from dpo_helpers.errors import InputError
from experiments import SWEPT
from ledger.config import configure
from ledger.store import ROOT, RunStore
from workflow import grid, sweep_page

GRID = {"beta": [0.01, 0.1], "behaviors": [["loves-gardening"], ["prefers-city-life"]]}
GOOD = {"notebook": "01_case_study", "tier": "smoke", "parameters": {"seeds": 2}, "grid": GRID}


def written(folder: Path, content: object, name: str = "try.yml") -> Path:
    """A grid file with this content: text as it stands, anything else as YAML."""
    path = folder / name
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Reading.


def test_the_cells_are_the_product_of_the_grid(tmp_path):
    given = grid.read(written(tmp_path, GOOD))
    assert (given.name, given.notebook, given.tier) == ("try", "01_case_study", "smoke")
    assert dict(given.fixed) == {"seeds": 2}
    assert list(given.cells) == [
        "beta-0.01-behaviors-loves-gardening",
        "beta-0.01-behaviors-prefers-city-life",
        "beta-0.1-behaviors-loves-gardening",
        "beta-0.1-behaviors-prefers-city-life",
    ]
    pairs = [(row["beta"], row["behaviors"]) for row in given.cells.values()]
    assert pairs == [(beta, names) for beta in GRID["beta"] for names in GRID["behaviors"]]


def test_an_id_does_not_depend_on_the_rest_of_the_grid(tmp_path):
    few = grid.read(written(tmp_path, GOOD))
    more = {"beta": [1.0, 0.1, 0.01], "behaviors": [*GRID["behaviors"], ["lives-by-stoicism"]]}
    many = grid.read(written(tmp_path, GOOD | {"grid": more}))
    assert len(many.cells) == 9 and few.cells.items() <= many.cells.items()


def test_ids_are_file_names_and_differ():
    long = [f"takes-the-later-reward-{i}" for i in range(9)]
    values = [["a"], ["b"], ["a", "b"], None, long, long[::-1], 1e-05, "a/b", "a-b", "ä", "../up"]
    rows = [{"behaviors": value} for value in values] + [{"beta": 0.1}, {"beta": 0.1000000001}]
    ids = [grid.identity(row) for row in rows]
    assert len(set(ids)) == len(ids)
    for cell in ids:
        assert re.fullmatch(r"[a-z][A-Za-z0-9.+_-]{0,99}", cell), cell


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yml")), ids=lambda p: p.stem)
def test_the_sweeps_of_the_book_are_good(path):
    assert len(grid.read(path).cells) >= 12


def changed(**keys: object) -> dict:
    return GOOD | keys


REFUSED = {
    "no YAML": ("notebook: 01_case_study\ngrid: [1", ["line 2", "YAML"]),
    "a key twice": (
        "notebook: a\ngrid:\n  beta: [1.0]\n  beta: [2.0]",
        ["line 4", "'beta'", "twice"],
    ),
    "no text": ("a: \x00", ["cannot be read"]),
    "empty": ("", ["notebook", "grid"]),
    "a list": ([1, 2], ["notebook", "grid"]),
    "no notebook": ({"grid": GRID}, ["'notebook' is missing"]),
    "no grid": ({"notebook": "01_case_study"}, ["'grid' is missing"]),
    "empty grid": (changed(grid={}), ["'grid' is missing or empty"]),
    "unknown key": (changed(grids=GRID), ["unknown key 'grids'", "did you mean grid"]),
    "unknown notebook": (changed(notebook="01_casestudy"), ["did you mean 01_case_study"]),
    "path for a notebook": (changed(notebook="../01_case_study"), ["unknown notebook"]),
    "unknown tier": (changed(tier="smokey"), ["'smokey'", "did you mean smoke"]),
    "a list for a grid": (changed(grid=[1]), ["names of parameters"]),
    "no list": (changed(grid={"beta": 0.1}), ["grid, beta = 0.1", "list"]),
    "empty list": (changed(grid={"beta": []}), ["grid, beta = []", "at least one"]),
    "unknown parameter": (changed(grid={"bta": [1.0]}), ["'bta'", "did you mean beta"]),
    "unknown fixed one": (changed(parameters={"seedz": 2}), ["'seedz'", "did you mean seeds"]),
    "not a name": (changed(grid={1: [1.0]}), ["unknown parameter '1'"]),
    "another notebook's": (changed(grid={"full_seeds": [[0]]}), ["01_case_study", "'full_seeds'"]),
    "private": (changed(grid={"_configured": [True]}), ["unknown parameter '_configured'"]),
    "tier as a parameter": (changed(grid={"tier": ["smoke"]}), ["tier", "beside grid"]),
    "ill-typed": (changed(grid={"steps": [10, "ten"]}), ["steps = 'ten'", "expected int"]),
    "names without brackets": (
        changed(grid={"behaviors": ["loves-gardening"]}),
        ["behaviors = 'loves-gardening'", "expected a list"],
    ),
    "out of range": (changed(grid={"beta": [0.1, -1.0]}), ["beta = -1.0", "positive"]),
    "a number that is text": (
        "notebook: 01_case_study\ngrid:\n  learning_rate: [1.0, 1e-5]",
        ["learning_rate = '1e-5'", "write 1.0e-05"],
    ),
    "fixed and swept": (changed(parameters={"beta": 0.1}), ["beta", "leave one out"]),
    "a value twice": (changed(grid={"beta": [1.0, 1]}), ["beta-1.0", "beta-1 ", "the same"]),
    "the tier's own twice": (changed(grid={"beta": [None, 0.01]}), ["beta-0.01", "the same"]),
    "unknown behavior": (
        changed(grid={"behaviors": [["loves-gardning"]]}),
        ["'loves-gardning'", "did you mean loves-gardening"],
    ),
    "path for a behavior": (changed(grid={"behaviors": [["../a"]]}), ["'../a'", "allowed"]),
    "no data there": (changed(parameters={"data": "nowhere"}), ["'nowhere'", "persona/"]),
}


@pytest.mark.parametrize(("content", "parts"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_grid_is_refused(tmp_path, content, parts):
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        grid.read(path)
    told = str(caught.value)
    assert "\n" not in told and told.startswith(str(path)), told
    assert all(part in told for part in parts), told


def test_a_file_that_is_not_there_or_cannot_name_a_folder(tmp_path):
    written(tmp_path, GOOD, "good.yml")
    with pytest.raises(InputError, match=r"no such file; sweeps there: .*good\.yml"):
        grid.read(tmp_path / "god.yml")
    for name in ("..yml", "a b.yml", ".hidden.yml"):
        with pytest.raises(InputError, match=r"sweep .* allowed"):
            grid.read(written(tmp_path, GOOD, name))


SHOWN = [
    changed(grid={"lerning_rate": [1.0]}),
    changed(grid={"steps": ["ten"]}),
    REFUSED["a number that is text"][0],
    changed(grid={"beta": [1.0, 1]}),
    REFUSED["a key twice"][0],
]


def test_what_the_page_of_the_book_shows_is_so(tmp_path, monkeypatch):
    page = (ROOT / "book" / "sweeps.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    for content in SHOWN:
        with pytest.raises(InputError) as caught:
            grid.read(written(Path("sweeps"), content))
        assert f"error: {caught.value}\n" in page
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(grid.read(written(tmp_path, example)).cells) == 6
    for file in re.findall(r"sweeps/\w+\.yml`", page):
        assert (ROOT / file.strip("`")).exists()


# Running. The notebook is a stand-in for the chapter's, with its parameters, and quick.

NOTEBOOK = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
tier = "book"
model = None
behaviors = None
beta = None
seeds = None
steps = None
batch_size = None
learning_rate = None

# %%
import time
from pathlib import Path
from ledger.config import configure
config = configure(globals())

# %%
with Path("log").open("a") as log:
    log.write(f"{config.beta} begins\\n")
time.sleep(float(Path("seconds").read_text()))
if f"{config.beta}" in Path("broken").read_text().split():
    raise ValueError("it is <broken>\\nat length")
with Path("log").open("a") as log:
    log.write(f"{config.beta} ends\\n")
print(f"beta is {config.beta}")
"""
QUICK = {"model": "tiny-llama", "behaviors": ["loves-gardening"], "seeds": 2, "steps": 3}
QUICK |= {"batch_size": 8, "learning_rate": 1.0}


class Project:
    """A project with the stand-in and one sweep of it, over β."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "build" / "sweeps" / "try"
        self.work = root / "notebooks"
        self.work.mkdir(parents=True)
        (self.work / "01_case_study.py").write_text(NOTEBOOK)
        self.set(seconds="0", broken="")

    def set(self, **files: str) -> None:
        for name, content in files.items():
            (self.work / name).write_text(content)

    def start(self, betas: list[float], *options: str) -> subprocess.Popen:
        content = GOOD | {"parameters": QUICK, "grid": {"beta": betas}}
        command = [sys.executable, "-m", "workflow.sweep", str(written(self.root, content))]
        environment = os.environ | {"DPO_ROOT": str(self.root), "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1"}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(
            [*command, "--cores", "1", *options],
            cwd=self.root,
            env=environment,
            start_new_session=True,
            **pipes,
        )

    def run(self, betas: list[float], *options: str) -> tuple[int, list[str]]:
        """The exit code, and the lines of errors at the end."""
        with self.start(betas, *options) as started:
            _, told = started.communicate(timeout=1800)
        return started.returncode, [x for x in told.splitlines() if x.startswith("error: ")]

    def log(self) -> list[str]:
        """What the notebook wrote since this was last asked for."""
        file = self.work / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def results(self) -> dict[str, bytes]:
        """What a reader is shown; not when and how it was made."""
        kinds = (".ipynb", ".csv", ".html", ".svg", ".json")
        return {k: v for k, v in contents(self.out).items() if k.endswith(kinds)}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "project")


class Page(HTMLParser):
    """The links, tags and text of a page; raises AssertionError where tags do not match."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.images, self.words, self.open, self.tags = [], [], "", [], {}
        self.feed(path.read_text("utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]
        self.images += [dict(attrs)] if tag == "img" else []
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.mark.slow
def test_a_wrong_grid_creates_nothing(project):
    before = contents(project.root)
    code, told = project.run([0.1, -1.0])
    assert code == 1 and len(told) == 1 and "beta = -1.0" in told[0]
    after = contents(project.root)
    after.pop("try.yml")
    assert after == before and not project.out.exists()


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_tried_again(project):
    project.set(broken="0.1")
    code, told = project.run([0.01, 0.1, 1.0])
    assert code == 1
    assert told[-1].startswith("error: beta-0.1: notebook 01_case_study, cell ")
    assert told[-1].endswith("ValueError: it is <broken>")
    expected = ["0.01 begins", "0.01 ends", "0.1 begins", "1.0 begins", "1.0 ends"]
    assert sorted(project.log()) == expected
    assert not (project.out / "beta-0.1.ipynb").exists()
    page = Page(project.out / "index.html")
    assert "ValueError: it is <broken>" in page.words and "2 of 3" in page.words
    assert "beta-0.01.html" in page.links and "beta-0.1.html" not in page.links
    assert all((project.out / link).exists() for link in page.links)

    project.set(broken="")
    assert project.run([0.01, 0.1, 1.0]) == (0, [])
    assert project.log() == ["0.1 begins", "0.1 ends"], "more than what had failed was repeated"
    page = Page(project.out / "index.html")
    assert "failed" not in page.words and "3 of 3" in page.words
    assert "beta-0.1.html" in page.links and not list(project.out.glob("*.failed"))


@pytest.mark.slow
def test_only_what_is_new_or_changed_runs(project):
    assert project.run([0.01])[0] == 0
    assert project.log() == ["0.01 begins", "0.01 ends"]
    assert project.run([0.01])[0] == 0
    assert project.log() == []
    assert project.run([0.1, 0.01])[0] == 0
    assert project.log() == ["0.1 begins", "0.1 ends"]
    (project.out / "beta-0.1.html").unlink()
    assert project.run([0.1, 0.01])[0] == 0
    assert project.log() == ["0.1 begins", "0.1 ends"]
    source = project.work / "01_case_study.py"
    source.write_text(source.read_text() + "\n# %%\n1 + 1\n")
    project.set(broken="0.1")
    assert project.run([0.1, 0.01])[0] == 1
    assert sorted(project.log()) == ["0.01 begins", "0.01 ends", "0.1 begins"]
    assert not (project.out / "beta-0.1.ipynb").exists(), "what older code made is shown"


@pytest.mark.slow
def test_the_page_and_what_it_leads_to(project):
    betas = [0.01, 1.0]
    assert project.run(betas)[0] == 0
    page = Page(project.out / "index.html")
    assert page.tags["html"] == [{"lang": "en"}] and page.tags["h1"]
    assert any("viewport" in meta.get("name", "") for meta in page.tags["meta"])
    assert "script" not in page.tags
    for name, value in QUICK.items():
        assert f"{name} {value}" in page.words or name == "behaviors"
    for beta in betas:
        executed = project.out / f"beta-{beta}.ipynb"
        assert {executed.name, f"beta-{beta}.html"} <= set(page.links)
        cells = nbformat.read(executed, as_version=4).cells
        texts = [o.text for c in cells if c.cell_type == "code" for o in c.outputs]
        assert texts == [f"beta is {beta}\n"]
        assert f"beta is {beta}" in (project.out / f"beta-{beta}.html").read_text()
    assert len(page.images) == 3
    for image in page.images:
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert "beta 0.01" in image["alt"] and "beta 1.0" in image["alt"]

    # The numbers are those of the runs, made here once more, by themselves.
    for beta in betas:
        made = RunStore(configure(QUICK | {"tier": "smoke", "beta": beta}), project.root / "fresh")
        curves = SWEPT["01_case_study"](made)
        table = pd.read_csv(project.out / f"beta-{beta}.csv", index_col="step")
        assert list(table) == list(curves) and len(table) == QUICK["steps"] + 1
        np.testing.assert_allclose(table, np.transpose(list(curves.values())), rtol=1e-12)
        loss = curves["training loss"]
        assert loss[0] == pytest.approx(np.log(2), rel=1e-6)
        assert f"{loss[-1]:.4g} ({loss.mean():.4g})" in page.words


@pytest.mark.slow
def test_the_command_of_a_cell_makes_the_same_notebook(project, tmp_path):
    content = GOOD | {"parameters": QUICK | {"learning_rate": 1e-05}, "grid": {"beta": [0.1]}}
    given = grid.read(written(tmp_path, content))
    (row,) = given.cells.values()
    program, source, _, *options = shlex.split(sweep_page.command(given, row))
    assert (program, source) == ("papermill", "notebooks/01_case_study.ipynb")
    jupytext.write(jupytext.read(project.work / "01_case_study.py"), project.work / "source.ipynb")
    command = [sys.executable, "-m", "papermill", "source.ipynb", "out.ipynb", *options]
    subprocess.run(command, cwd=project.work, check=True, capture_output=True)
    cells = nbformat.read(project.work / "out.ipynb", as_version=4).cells
    (injected,) = [c for c in cells if "injected-parameters" in c.metadata.get("tags", ())]
    assigned = {
        part.targets[0].id: ast.literal_eval(part.value) for part in ast.parse(injected.source).body
    }
    assert assigned == {"tier": "smoke", **QUICK, "learning_rate": 1e-05, "beta": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "all but the cell"])
def test_killed_in_the_middle(project, tmp_path, victim):
    """The next call completes it, to the same as without; no cell is executed twice at a time."""
    betas = [0.01, 0.1]
    project.set(seconds="4")
    started = project.start(betas)
    while "begins" not in (log.read_text() if (log := project.work / "log").exists() else ""):
        assert started.poll() is None
        time.sleep(0.1)
    if victim == "all":
        os.killpg(started.pid, signal.SIGKILL)
    else:
        children = f"/proc/{started.pid}/task/{started.pid}/children"
        (snakemake,) = map(int, Path(children).read_text().split())
        os.kill(started.pid, signal.SIGKILL)
        os.kill(snakemake, signal.SIGKILL)
    started.wait()
    assert not (project.out / "index.html").exists()
    assert project.run(betas) == (0, [])
    lines = project.log()
    if victim != "all":
        lines = lines[lines.index(lines[0].replace("begins", "ends")) + 1 :]
    else:
        lines = lines[1:]
    assert sorted(lines) == ["0.01 begins", "0.01 ends", "0.1 begins", "0.1 ends"]

    whole = Project(tmp_path / "whole")
    assert whole.run(betas) == (0, [])
    assert whole.results() == project.results()


SLURM = f"""#!{sys.executable}
import os, pathlib, subprocess, sys

name, jobs = pathlib.Path(sys.argv[0]).name, pathlib.Path(__file__).resolve().parent / "jobs"
if name == "sbatch":
    number = os.getpid()
    (jobs / "asked").open("a").write(" ".join(sys.argv) + "\\n")
    (jobs / str(number)).write_text("RUNNING")
    wrapped = next(given for given in sys.argv if given.startswith("--wrap="))[7:]
    ends = f"if ({{wrapped}}); then echo COMPLETED; else echo FAILED; fi"
    script = f"({{ends}}) 2> /dev/null | tail -1 > {{jobs}}/n{{number}}"
    script += f"; mv {{jobs}}/n{{number}} {{jobs}}/{{number}}"
    subprocess.Popen(["bash", "-c", script], start_new_session=True, stdout=subprocess.DEVNULL)
    print(number)
elif name == "srun":
    command = next(i for i, given in enumerate(sys.argv) if i and given[0] != "-")
    os.execvp(sys.argv[command], sys.argv[command:])
elif name == "sacct" and "--format=JobIdRaw,State" in sys.argv:
    for job in jobs.glob("[0-9]*"):
        print(f"{{job.name}}|{{job.read_text().strip()}}")
else:
    print("main*" if name == "sinfo" else "me")
"""


@pytest.mark.slow
def test_on_a_cluster(project, tmp_path, monkeypatch):
    """Through the profile and Snakemake's executor, with stand-ins for the commands of SLURM."""
    shutil.copytree(ROOT / "profiles", project.root / "profiles")
    (tmp_path / "bin" / "jobs").mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "sacctmgr", "sinfo", "squeue", "scontrol", "scancel"):
        (tmp_path / "bin" / name).write_text(SLURM)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    project.set(broken="0.1")
    soon = ("--slurm-init-seconds-before-status-checks", "1", "--jobs", "1")
    code, told = project.run([0.01, 0.1], "--workflow-profile", "profiles/slurm", *soon)
    assert code == 1 and told[-1].startswith("error: beta-0.1: notebook"), told
    assert (project.out / "beta-0.01.html").exists()
    assert not (project.out / "beta-0.1.html").exists()
    asked = (tmp_path / "bin" / "jobs" / "asked").read_text().splitlines()
    assert len(asked) == 2 and all("--gpus=1" in line for line in asked)
