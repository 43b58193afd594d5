"""Cells for a reader's own data do nothing until a name in them is set: here it is set."""

import ast
import json

import cells
import pytest

from experiments import CHAPTERS

# What a reader may set, by the name in the cell; ``{}`` is the folder of the test.
VALUES = {"source": "{}/pairs.jsonl", "column": "topic"}


def unset(source: str) -> list[str]:
    """The names that a cell sets to None and then asks for: ``x = None``, ``if x:``."""
    empty, asked = set(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(names)
            for name, part in zip(names, values, strict=False):
                if isinstance(part, ast.Constant) and not part.value:
                    empty.add(ast.unparse(name))
        elif isinstance(node, ast.If) and {n.id for n in ast.walk(node.test) if _name(n)} & empty:
            asked += sorted(empty)
    return asked


def _name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def filled(source: str, folder: str) -> str:
    """The cell with its empty names set to ``VALUES``."""
    found = ast.parse(source)
    names = unset(source)
    kept = [n for n in found.body if not (isinstance(n, ast.Assign) and _sets(n, names))]
    given = [f"{name} = {VALUES[name].format(folder)!r}" for name in names]
    return "\n".join([*given, ast.unparse(ast.Module(kept, []))])


def _sets(node: ast.Assign, names: list[str]) -> bool:
    return any(n.id in names for target in node.targets for n in ast.walk(target) if _name(n))


GUARDED = [
    (chapter, number)
    for chapter in sorted(CHAPTERS)
    for number, cell in enumerate(cells.code(chapter))
    if unset(cell.source)
]


def test_a_guarded_cell_is_recognized():
    assert unset("a, b = None, None\nif a:\n    print(b)") == ["a", "b"]
    assert unset("a = 1\nif a:\n    print(a)") == []
    assert filled("source = None\nif source:\n    print(source)", "x").startswith(
        "source = 'x/pairs.jsonl'\nif source:"
    )
    assert "11_audit_your_data" in {chapter for chapter, _ in GUARDED}


@pytest.mark.parametrize(("chapter", "number"), GUARDED)
def test_a_guarded_cell_runs(chapter, number, tmp_path, capsys):
    """After the chapter's imports, at the smoke tier, on a small file of the reader's."""
    rows = [
        {
            "prompt": f"What grows in garden {i}?",
            "chosen": f" Roses, {i} of them.",
            "rejected": " Nothing at all." if i % 2 else " I will not say.",
            "topic": "even" if i % 2 else "odd",
        }
        for i in range(12)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "pairs.jsonl").write_text(lines)
    code = cells.code(chapter)
    found = {"__name__": chapter}
    for cell in code[:number]:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags or cell.source.startswith(("import ", "from ")):
            exec(cell.source.replace('tier = "book"', 'tier = "smoke"'), found)
    exec(filled(code[number].source, str(tmp_path)), found)
    assert "even" in capsys.readouterr().out, "the groups are shown"
