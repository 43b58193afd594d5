"""What is stored of a notebook, by `workflow.notebook` and by JupyterLab (`make lab`) alike."""

from collections.abc import Mapping

CELL_METADATA = ("tags", "mystnb", "lines_to_next_cell")
METADATA = ("kernelspec", "language_info", "jupytext")
_LANGUAGE = ("name", "file_extension", "mimetype")


def drop_version(notebook: Mapping) -> None:
    """Reduce ``language_info``, in place, to what every version of Python has in common."""
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
    """The hook of the server of ``make lab`` (jupyter_server_config.json)."""
    if model["type"] == "notebook":
        drop_version(model["content"])
        drop_outputs(model["content"])
