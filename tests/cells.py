"""The code of a notebook's cells, for tests: its functions alone, or all that a page computes."""

import ast
import contextlib
import functools
from types import SimpleNamespace

import matplotlib
import nbformat

from workflow import notebook as pages


def code(chapter: str) -> list[nbformat.NotebookNode]:
    """The code cells of a chapter's source."""
    return [cell for cell in pages.source(chapter).cells if cell.cell_type == "code"]


def functions(chapter: str) -> SimpleNamespace:
    """The functions that a chapter's cells define, with its imports; nothing else is executed."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    body = [
        node
        for cell in code(chapter)
        for node in ast.parse(cell.source).body
        if isinstance(node, kinds)
    ]
    found: dict = {"__name__": chapter}
    exec(compile(ast.Module(body, []), chapter, "exec"), found)
    return SimpleNamespace(**found)


@functools.cache
def executed(chapter: str) -> SimpleNamespace:
    """The names of a chapter after its cells have run at the book tier, figures left out."""
    matplotlib.use("agg")
    found: dict = {"__name__": chapter}
    with contextlib.redirect_stdout(None):
        for cell in code(chapter):
            if "mystnb" in cell.metadata:
                continue
            exec(compile(cell.source, chapter, "exec"), found)
    return SimpleNamespace(**found)
