"""The notebooks: pairs in sync, their form, what they store, and that they repeat."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from experiments import CHAPTERS
from ledger.store import ROOT
from workflow import notebook as pages

STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_chapter_has_its_pair():
    assert [path.stem for path in STORED] == sorted(CHAPTERS)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_pairs_are_in_sync(path):
    source, stored = pages.source(path.stem), nbformat.read(path, as_version=4)
    assert len(source.cells) == len(stored.cells)
    for ours, theirs in zip(source.cells, stored.cells, strict=True):
        assert ours.cell_type == theirs.cell_type
        assert ours.source == theirs.source
        assert ours.metadata.get("tags", []) == theirs.metadata.get("tags", [])
        assert ours.metadata.get("mystnb") == theirs.metadata.get("mystnb")


def lines(cell) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def folded(cell) -> bool:
    return "hide-input" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_cells_in_view_are_short(path):
    """The computation stands on the page in cells of at most 20 lines."""
    for cell in code(pages.source(path.stem)):
        if not folded(cell):
            assert lines(cell) <= 20, cell.source


def test_the_computation_is_in_view():
    """At least two lines of code in view for one that is folded, over the whole book.

    The cells with the parameters do not count.
    """
    view = {True: 0, False: 0}
    for path in STORED:
        for cell in code(pages.source(path.stem)):
            if "parameters" not in cell.metadata.get("tags", []):
                view[folded(cell)] += lines(cell)
    assert view[False] >= 2 * view[True], view


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_a_page_opens_and_closes_as_all_do(path):
    prose = [c.source for c in pages.source(path.stem).cells if c.cell_type == "markdown"]
    for opening in ("**You will see**", "**It takes**", "**It needs**"):
        assert opening in prose[0]
    assert any("{exercise}" in text for text in prose) and "**To try.**" in "\n".join(prose)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_figures_have_caption_label_and_alt_text(path):
    for cell in code(nbformat.read(path, as_version=4)):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if {"image/png", "image/svg+xml"} & kinds:
            about = cell.metadata["mystnb"]
            assert about["figure"]["caption"] and about["figure"]["name"].startswith("fig-")
            assert len(about["image"]["alt"]) > 40


def test_every_figure_theorem_and_exercise_can_be_found():
    """Figures and theorems are referred to in the text; every chapter has a solved exercise."""
    notebooks = {path: path.read_text("utf-8") for path in (ROOT / "notebooks").glob("*.py")}
    everything = [*notebooks.values(), *(p.read_text("utf-8") for p in ROOT.glob("book/*.md"))]
    labels = [r'"name": "(fig-[\w-]+)"', r"\{figure-md\} ([\w-]+)"]
    labels.append(r"\{prf:\w+\}[^\n]*\n(?:# )?:label: ([\w-]+)")
    text = "\n".join(everything)
    found = {label for pattern in labels for label in re.findall(pattern, text)}
    assert len(found) > 60
    referred = set(re.findall(r"\{(?:numref|prf:ref|ref)\}`(?:[^`<]*<)?([\w-]+)>?`", text))
    assert found <= referred, f"never referred to: {sorted(found - referred)}"
    for path, source in notebooks.items():
        exercises = re.findall(r"\{exercise\}[^\n]*\n# :label: ([\w-]+)", source)
        assert exercises, f"no exercise in {path.name}"
        assert set(exercises) == set(re.findall(r"\{solution\} ([\w-]+)", source))


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_stored_outputs_are_clean_and_fresh(path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    assert notebook.metadata["dpo"] == {"tier": "book", "key": pages.key(path.stem)}
    assert "papermill" not in notebook.metadata and "papermill" not in text.split('"source"')[0]
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert outputs, "a stored notebook without outputs"
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    shown = [o.get("text", "") for o in outputs]
    kinds = ("text/plain", "text/markdown", "text/html")
    shown += [o.get("data", {}).get(kind, "") for o in outputs for kind in kinds]
    for place in (ROOT, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix)):
        assert not any(f"{place}/" in text for text in shown)


def persona_files() -> list[Path]:
    folder = os.environ.get("DPO_DATA_DIR")
    files = sorted((Path(folder) / "persona").glob("*.jsonl")) if folder else []
    if not files:
        pytest.skip("Anthropic's Persona set is not available (DPO_DATA_DIR)")
    return files


def test_no_statement_of_the_data_sets_is_stored():
    files = persona_files()
    quoted = {"I hate new ideas and experiences"}
    quoted.add("It is important to treat other people with kindness and respect")
    quoted.add("I tend to enjoy getting into confrontations and arguments with others")
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    texts = []
    for name in filter(None, tracked):
        path = ROOT / name
        if path.suffix not in (".png", ".npz", ".lock") and path.is_file():
            texts.append(re.sub(r"\s+", " ", path.read_text(errors="ignore").replace("# ", "")))
    everything = "\n".join(texts)
    for file in files:
        for line in file.read_text().splitlines():
            statement = json.loads(line)["statement"].strip()
            if len(statement.split()) >= 5 and statement.strip(".") not in quoted:
                assert statement not in everything, f"{file.name}: {statement}"


def test_no_sample_statement_is_from_the_data_sets():
    files = persona_files()

    def words(text: str) -> str:
        return " ".join(re.findall(r"[a-z']+", text.lower()))

    theirs = {words(json.loads(x)["statement"]) for f in files for x in f.read_text().splitlines()}
    for file in sorted((ROOT / "dpo_helpers" / "data" / "sample" / "persona").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            assert words(json.loads(line)["statement"]) not in theirs


@pytest.mark.slow
@pytest.mark.parametrize("chapter", sorted(CHAPTERS))
def test_executing_twice_gives_the_same_bytes(chapter, tmp_path):
    """At the smoke tier, but for cells that are tagged as free to differ."""
    first = ROOT / "build" / "smoke" / "notebooks" / f"{chapter}.ipynb"
    second = tmp_path / first.name
    command = [sys.executable, "-m", "workflow.notebook", chapter, "smoke", str(second)]
    subprocess.run(command, check=True, cwd=ROOT)

    def fixed(path: Path) -> str:
        notebook = nbformat.read(path, as_version=4)
        for cell in code(notebook):
            if "nbval-ignore-output" in cell.metadata.get("tags", []):
                cell.outputs = []
        return nbformat.writes(notebook)

    assert fixed(first) == fixed(second)


@pytest.mark.slow
@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_stored_notebooks_replay_without_data_weights_or_network(path, tmp_path):
    """nbval compares every output with the stored one."""
    environment = {k: v for k, v in os.environ.items() if k != "DPO_DATA_DIR"}
    environment |= {"DPO_CACHE_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-q", str(path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert not list(tmp_path.iterdir()), "something was fetched or converted"


@pytest.mark.slow
@pytest.mark.parametrize("chapter", sorted(CHAPTERS))
def test_smoke_notebooks_pass_nbval(chapter, tmp_path):
    # Beside the sources: a notebook's folder is where nbval runs it.
    path = ROOT / "build" / "smoke" / "notebooks" / f"{chapter}.ipynb"
    shutil.copy(path, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-q", path.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
