"""JupyterLab: each file of a pair opens with the outputs, and saving one file saves both."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.config import load_jupytext_config
from traitlets.config import Config

from ledger.store import ROOT
from workflow import pairs
from workflow.browser import CHROMIUM, DRIVER, chromium

STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))
KINDS = (".py", ".ipynb")
# By how many seconds the .ipynb is younger than its .py.
AGES = (-3600, -1, 0, 1, 3600)
# What JupyterLab writes into a notebook when its kernel has started.
KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.11.99",
    },
}


PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.M)
    return [line.removeprefix("\t$(RUN) ") for line in lines.splitlines()]


class Pair:
    """A copy of a chapter's pair, in a project without the others."""

    def __init__(self, folder: Path, stem: str = STORED[0].stem) -> None:
        self.folder, self.stem = folder, stem
        (folder / "notebooks").mkdir(parents=True)
        (folder / "workflow").mkdir()
        names = [f"notebooks/{stem}{kind}" for kind in KINDS]
        names += ["notebooks/jupytext.toml", "workflow/jupyter_server_config.json"]
        for name in (*names, "workflow/__init__.py", "workflow/pairs.py"):
            shutil.copy(ROOT / name, folder / name)
        self.files = [folder / name for name in names[:2]]

    def name(self, kind: str) -> str:
        return f"notebooks/{self.stem}{kind}"

    def age(self, seconds: float) -> None:
        """Make the .ipynb younger than its .py by so many seconds."""
        for file, since in zip(self.files, (0, seconds), strict=True):
            os.utime(file, (1.5e9, 1.5e9 + since))

    def content(self) -> tuple[bytes, ...]:
        return tuple(file.read_bytes() for file in self.files)

    def cells(self) -> list[list]:
        """The cells of the .py and of the .ipynb."""
        return [jupytext.read(file).cells for file in self.files]


def outputs(cells: list) -> list:
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def manager(folder: Path) -> jupytext.TextFileContentsManager:
    """The contents manager of the server of `make lab`."""
    settings = json.loads((folder / "workflow" / "jupyter_server_config.json").read_text())
    return jupytext.TextFileContentsManager(root_dir=str(folder), config=Config(settings))


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_a_stored_pair_opens_and_saves_to_the_same_bytes(path, tmp_path):
    """Through the contents manager that JupyterLab's server uses, whatever the two files' times."""
    pair = Pair(tmp_path, path.stem)
    before = pair.content()
    shown = [out for out in outputs(nbformat.read(path, as_version=4).cells) if out]
    for kind in KINDS:
        for seconds in AGES:
            pair.age(seconds)
            files = manager(tmp_path)
            model = json.loads(json.dumps(files.get(pair.name(kind)), default=str))
            assert [out for out in outputs(model["content"]["cells"]) if out] == shown
            model["content"]["metadata"] |= KERNEL
            files.save(model, pair.name(kind))
            assert pair.content() == before, "run `make lint`, then `make sync`"


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_the_source_is_what_jupytext_makes_of_the_notebook(path):
    """`make sync` changes no pair that agrees, whichever file is younger."""
    source = path.with_suffix(".py")
    made = pairs.as_text(nbformat.read(path, as_version=4), source)
    assert made == source.read_text("utf-8"), "run `make lint`, then `make sync`"


def test_no_output_that_shows_the_readers_data_is_saved(tmp_path):
    stem = next(path.stem for path in STORED if '"not-stored"' in path.read_text("utf-8"))
    pair = Pair(tmp_path, stem)
    before = pair.content()
    files = manager(tmp_path)
    model = files.get(pair.name(".ipynb"))
    tagged = [c for c in model["content"].cells if "not-stored" in c.metadata.get("tags", ())]
    assert tagged
    for cell in tagged:
        cell.outputs = [nbformat.v4.new_output("stream", text="a statement\n")]
    files.save(model, pair.name(".ipynb"))
    assert pair.content() == before


def test_a_server_of_the_notebooks_folder_finds_the_pairs_too(tmp_path):
    pair = Pair(tmp_path)
    before, shown = pair.content(), outputs(pair.cells()[1])
    files = jupytext.TextFileContentsManager(root_dir=str(tmp_path / "notebooks"))
    for file in pair.files:
        model = files.get(file.name)
        assert outputs(model["content"]["cells"]) == shown
        files.save(model, file.name)
        assert pair.content() == before


@pytest.mark.parametrize("kind", KINDS)
def test_sync_takes_the_younger_file(tmp_path, kind):
    pair = Pair(tmp_path)
    shown = outputs(pair.cells()[1])
    (edited,) = (file for file in pair.files if file.suffix == kind)
    notebook = jupytext.read(edited, config=load_jupytext_config(str(edited)))
    notebook.cells[0].source += "\n\nEdited."
    jupytext.write(notebook, edited, fmt=edited.suffix[1:])
    if kind == ".py":  # as one would write it, not as jupytext does
        text = edited.read_text("utf-8")
        text = re.sub("^# %% (mystnb=.*) (tags=.*)$", r"# %% \2 \1", text, flags=re.M)
        edited.write_text(text, "utf-8")
    pair.age(10 if kind == ".ipynb" else -10)
    for command in recipe("sync"):
        subprocess.run(
            command, shell=True, check=True, cwd=tmp_path, env={**os.environ, "PATH": PATH}
        )
    source, notebook = pair.cells()
    assert [cell.source for cell in source] == [cell.source for cell in notebook]
    assert source[0].source.endswith("\n\nEdited.")
    assert outputs(notebook) == shown
    assert "\n# %% mystnb=" in pair.files[0].read_text("utf-8")


# The server of `make lab`.


class Server:
    """The running server: its address, its token, and requests of its contents."""

    def __init__(self, facts: dict) -> None:
        self.url, self.token = facts["url"], facts["token"]

    def ask(self, path: str, method: str = "GET", model: dict | None = None) -> dict:
        request = urllib.request.Request(
            f"{self.url}api/contents/{path}",
            method=method,
            data=model and json.dumps(model).encode(),
            headers={"Authorization": f"token {self.token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{refused}: {refused.read().decode()}") from refused


@contextlib.contextmanager
def serving(folder: Path, home: Path) -> Iterator[Server]:
    """What `make lab` starts, in ``folder``; its own files go to ``home``."""
    (command,) = recipe("lab")
    environment = {key: v for key, v in os.environ.items() if not key.startswith("JUPYTER")}
    environment |= {f"JUPYTER_{what}_DIR": str(home / what) for what in ("CONFIG", "DATA")}
    environment |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime"), "HOME": str(home)}
    environment["PATH"] = PATH
    environment.pop("PYTHONPATH", None)
    options = "--no-browser --allow-root --ip=127.0.0.1 --port=0 --expose-app-in-browser"
    home.mkdir(exist_ok=True)
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            ["bash", "-c", f"exec env {command} {options}"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            # The last character of this file is a brace.
            facts = home / "runtime" / f"jpserver-{server.pid}.json"
            wait(lambda: facts.exists() and facts.read_text().rstrip().endswith("}"), 120)
            wait(lambda: "is running at" in (home / "log").read_text(), 60)
            yield Server(json.loads(facts.read_text()))
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def wait(what: Callable[[], object], seconds: float) -> None:
    """Until it is so. Raises AssertionError if it is not within so many seconds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_the_server_saves_both_files_of_a_pair(tmp_path):
    pair = Pair(tmp_path / "project")
    stored = pair.content()
    shown = outputs(pair.cells()[1])
    with serving(pair.folder, tmp_path / "home") as server:
        for kind in KINDS:
            for seconds in AGES:
                pair.age(seconds)
                model = server.ask(f"{pair.name(kind)}?type=notebook")
                assert outputs(model["content"]["cells"]) == shown, "opened without its outputs"
                model["content"]["metadata"] |= KERNEL
                server.ask(pair.name(kind), "PUT", model)
                assert pair.content() == stored

                cell = model["content"]["cells"][0]
                cell["source"] += f"\n\nEdited as {kind}, {seconds}."
                server.ask(pair.name(kind), "PUT", model)
                for cells in pair.cells():
                    assert cells[0].source == cell["source"]
                assert outputs(pair.cells()[1]) == shown
                cell["source"] = cell["source"].rpartition("\n\n")[0]
                server.ask(pair.name(kind), "PUT", model)
                assert pair.content() == stored


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its chromedriver on this machine"
)
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_browser(tmp_path, kind):
    """Open, save unchanged; edit a cell, run it, save."""
    from selenium.webdriver import ActionChains, Keys

    pair = Pair(tmp_path / "project")
    stored = pair.content()
    with serving(pair.folder, tmp_path / "home") as server, chromium() as browser:

        def find(selector: str) -> list:
            """The elements that are shown. The page asks itself, as it changes meanwhile."""
            return browser.execute_script(
                "return [...document.querySelectorAll(arguments[0])]"
                ".filter(e => e.checkVisibility({visibilityProperty: true}))",
                selector,
            )

        def printed() -> str:
            return browser.execute_script(
                "return [...document.querySelectorAll('.jp-OutputArea-output')]"
                ".map(e => e.textContent).join('\\n')"
            )

        def press(key: str, with_key: str = Keys.CONTROL) -> None:
            ActionChains(browser).key_down(with_key).send_keys(key).key_up(with_key).perform()

        def save() -> None:
            pair.age(0)
            before = [file.stat().st_mtime_ns for file in pair.files]
            press("s")
            wait(lambda: not {f.stat().st_mtime_ns for f in pair.files} & set(before), 60)
            # The server writes the .py in place. Neither test changes the end of a file.
            ends = [content[-100:] for content in stored]
            wait(lambda: all(map(bytes.endswith, pair.content(), ends)), 10)
            assert not find(".jp-Dialog")

        browser.set_window_size(1400, 1000)
        # The file browser shows the notebooks at once.
        browser.get(f"{server.url}lab?token={server.token}")
        item = f".jp-DirListing-item[title*='{pair.stem}{kind}']"
        wait(lambda: find(item) and not find("#jupyterlab-splash"), 120)
        # What "Open With", "Notebook" in the file's menu does.
        browser.execute_script(
            "jupyterapp.commands.execute('docmanager:open', arguments[0])",
            {"path": pair.name(kind), "factory": "Notebook"},
        )
        # Until it is loaded, one empty cell lies behind a spinner.
        wait(lambda: find(".jp-MarkdownCell") and not find(".jp-Spinner"), 120)
        # The page shows an idle kernel before it is connected to one.
        kernel = (
            "const kernel = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;"
            "return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'"
        )
        wait(lambda: browser.execute_script(kernel), 120)
        find(".jp-CodeCell .cm-content")[0].click()
        save()
        assert pair.content() == stored

        press(Keys.END)
        ActionChains(browser).send_keys("\nprint(2 ** 10)").perform()
        press(Keys.ENTER, Keys.SHIFT)
        wait(lambda: "1024" in printed(), 120)
        save()
        assert not [
            entry for entry in browser.get_log("browser") if "status of 400" in entry["message"]
        ]
    source, notebook = pair.cells()
    where = next(i for i, cell in enumerate(notebook) if cell.cell_type == "code")
    for cells in (source, notebook):
        assert cells[where].source.endswith("\nprint(2 ** 10)")
    assert [(out.name, out.text) for out in notebook[where].outputs] == [("stdout", "1024\n")]
    left = nbformat.reads(stored[1].decode(), as_version=4).cells
    assert notebook[where].pop("outputs") and not left[where].pop("outputs")
    notebook[where].source, notebook[where].execution_count = left[where].source, 1
    assert notebook == left, "something else has changed"
