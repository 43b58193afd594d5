"""Execute a notebook's ``.py`` source into a clean ``.ipynb``.

python -m workflow.notebook CHAPTER TIER OUTPUT.ipynb
"""

import functools
import hashlib
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
import papermill
from jupytext.jupytext import drop_text_representation_metadata
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from dpo_helpers.files import atomic_write
from ledger.keys import Code
from ledger.store import ROOT

from . import pairs

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def source(chapter: str) -> nbformat.NotebookNode:
    """The notebook of ``notebooks/CHAPTER.py``. The id of a cell is a hash of its content."""
    notebook = pairs.read(ROOT / "notebooks" / f"{chapter}.py")
    _name(notebook)
    return notebook


def _name(notebook: nbformat.NotebookNode) -> None:
    """Set the id of every cell to a hash of its content."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type} {cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def key(chapter: str) -> str:
    """A hash of what an executed notebook depends on besides its runs: its source and the code."""
    cells = [f"{cell.cell_type} {cell.source}" for cell in source(chapter).cells]
    return hashlib.sha256("\n".join([_code(), *cells]).encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    return Code(ROOT).sha256_of_all()


def execute(
    chapter: str, tier: str, output: Path, parameters: Mapping[str, object] | None = None
) -> None:
    """Execute a chapter at a tier, with these ``parameters`` changed.

    ``output`` is replaced only if every cell succeeds.

    Raises PapermillExecutionError for a cell that fails.
    """
    with tempfile.TemporaryDirectory() as work:
        given, done = Path(work) / "in.ipynb", Path(work) / "out.ipynb"
        nbformat.write(source(chapter), given)
        papermill.execute_notebook(
            given,
            done,
            parameters=({"tier": tier} if tier != "book" else {}) | dict(parameters or {}),
            cwd=ROOT / "notebooks",
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=900 if tier == "smoke" else None,
            extra_arguments=["--log-level=50"],
            coalesce_streams=True,  # so that the timing of prints does not matter
        )
        notebook = clean(nbformat.read(done, as_version=4), store=tier == "book")
    notebook.metadata["dpo"] = {"tier": tier, "key": key(chapter)}
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, nbformat.writes(notebook).encode() + b"\n")


def clean(notebook: nbformat.NotebookNode, store: bool) -> nbformat.NotebookNode:
    """Remove what differs from run to run: times, random ids, stderr, empty tags.

    The rest has the form in which jupytext stores a pair, so that saving it unchanged in JupyterLab
    changes no byte. With ``store``, also remove the outputs of cells tagged "not-stored". They show
    statements from the reader's copy of the data.
    """
    if store:
        pairs.drop_outputs(notebook)
    count = 0
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in pairs.CELL_METADATA and v}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    _name(notebook)
    kept = {k: v for k, v in notebook.metadata.items() if k in pairs.METADATA}
    notebook.metadata = nbformat.from_dict(kept)
    pairs.drop_version(notebook)
    return drop_text_representation_metadata(notebook)


def main(
    chapter: str, tier: str, output: str, parameters: Mapping[str, object] | None = None
) -> None:
    """Execute one chapter. A failure exits with one line: notebook, cell, and reason."""
    try:
        execute(chapter, tier, Path(output), parameters)
    except PapermillExecutionError as error:
        reason = _ANSI.sub("", error.evalue or error.ename).strip().splitlines()
        sys.exit(
            f"error: notebook {chapter}, cell {error.cell_index}: "
            f"{error.ename}: {reason[0] if reason else ''}"
        )
    except DeadKernelError:
        sys.exit(f"error: notebook {chapter}: its kernel died, perhaps out of memory; run it again")
    except CellTimeoutError:
        sys.exit(
            f"error: notebook {chapter}: a cell took more than 15 minutes; run it in JupyterLab"
        )
    except FileNotFoundError as missing:
        sys.exit(f"error: notebook {chapter}: {missing.filename} does not exist; check the name")


if __name__ == "__main__":
    main(*sys.argv[1:])
