"""Code that pages name exists: what is in modules and classes, files, commands."""

import ast
import re
from collections import defaultdict
from itertools import pairwise

import pytest

from ledger.store import ROOT
from workflow import notebook

PACKAGES = ("dpo_helpers", "experiments", "ledger", "workflow", "benchmarks")
FOLDERS = "|".join((*PACKAGES, "book", "configs", "notebooks", "profiles", "sweeps", "tests"))
PAGES = [*ROOT.glob("book/*.md"), *ROOT.glob("[!C]*.md"), ROOT / "CONTRIBUTING.md"]
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
KNOWN = defaultdict(set)  # what is in a package, a module, or a class, by its own name


def define(name: str, body: list[ast.stmt]) -> None:
    """Note the names that a module or a class defines, imports, or assigns."""
    for node in (node for part in body for node in (part, *ast.iter_child_nodes(part))):
        KNOWN[name] |= {getattr(node, key, "") for key in ("id", "name", "asname")}
        if isinstance(node, ast.ClassDef):
            define(node.name, node.body)


for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
    place = [part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
    for package, module in pairwise(place):
        KNOWN[package].add(module)
    define(place[-1], ast.parse(file.read_text("utf-8")).body)


@pytest.mark.parametrize("path", [*PAGES, *ROOT.glob("notebooks/*.py")], ids=lambda p: p.name)
def test_the_code_that_a_page_names_exists(path):
    text, variables = path.read_text("utf-8"), {"torch"}
    if path.suffix == ".py":
        cells = notebook.source(path.stem).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        variables |= {
            node.id
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for code in re.findall(r"(?<![}`])`([^`\n]+)`", text):
        for place in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./<>-]*", code):
            assert re.search("NAME|NN_|<|test_X", place) or (ROOT / place).exists(), place
        dotted = re.match(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+(?!\w*[/-])", code)
        parts = dotted[0].split(".") if dotted else []
        if not parts or parts[0] in variables:
            continue
        if not re.search("^(csv|gz|html|ipynb|jsonl?|log|md|py|ya?ml)$", parts[-1]):
            assert parts[0] in KNOWN, f"no {parts[0]} for `{code}`"
            for one, other in pairwise(parts):
                assert one not in KNOWN or other in KNOWN[one], f"`{code}`: no {other} in {one}"
    for module in re.findall(rf"python -m ((?:{FOLDERS})[\w.]*)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    assert set(re.findall(r"(?:`|^)make (\w+)", text, re.M)) <= TARGETS
