"""The pairs: the form in which `workflow.notebook` and JupyterLab (`make lab`) store them.

python -m workflow.pairs    write each .py as jupytext writes it (`make lint`)
"""

from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_config

CELL_METADATA = ("tags", "mystnb", "lines_to_next_cell")
METADATA = ("kernelspec", "language_info", "jupytext")
_LANGUAGE = ("name", "file_extension", "mimetype")
_FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook of a ``.py`` file, under the settings of its ``jupytext.toml``."""
    return jupytext.read(path, config=load_jupytext_config(str(path)))


def as_text(notebook: nbformat.NotebookNode, path: Path) -> str:
    """The text of the ``.py`` file ``path`` of a notebook.

    The keys of a cell's metadata are sorted, as they are in an ``.ipynb`` file.
    """
    notebook = nbformat.from_dict(_sorted(notebook))
    return jupytext.writes(notebook, "py:percent", config=load_jupytext_config(str(path)))


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def drop_version(notebook: Mapping) -> None:
    """Reduce ``language_info``, in place, to what all versions of Python share."""
    metadata = notebook["metadata"]
    if "language_info" in metadata:
        language = metadata["language_info"]
        metadata["language_info"] = {k: language[k] for k in _LANGUAGE if k in language}


def drop_outputs(notebook: Mapping) -> None:
    """Remove, in place, the outputs of cells tagged "not-stored".

    They show statements from the reader's copy of the data.
    """
    for cell in notebook["cells"]:
        if "not-stored" in cell["metadata"].get("tags", ()):
            cell["outputs"] = []


def before_saving(model: Mapping, **_: object) -> None:
    """The ``pre_save_hook`` of the server (jupyter_server_config.json)."""
    if model["type"] == "notebook":
        drop_version(model["content"])
        drop_outputs(model["content"])


if __name__ == "__main__":
    for path in sorted(_FOLDER.glob("*.py")):
        text = as_text(read(path), path)
        if text != path.read_text("utf-8"):
            path.write_text(text, "utf-8")
            print(f"{path.name} rewritten")
