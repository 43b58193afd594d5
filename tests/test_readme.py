"""The README's file tree names every module, and nothing that is not there."""

from ledger.store import ROOT

PACKAGES = ("dpo_helpers", "experiments", "ledger", "workflow")


def tree() -> list[str]:
    """The paths of the tree. Two spaces indent a level; two or more stand before a comment."""
    block = next(
        block
        for block in (ROOT / "README.md").read_text("utf-8").split("```\n")
        if block.startswith("dpo_helpers/")
    )
    paths, folders = [], []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.strip().split("  ")[0].split(", ")
        folders = [*folders[:depth], names[0]]
        paths += ["".join([*folders[:depth], name]) for name in names]
    return paths


def test_the_tree_is_the_repository():
    paths = tree()
    assert not [path for path in paths if not (ROOT / path).exists()]
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    modules = [str(f.relative_to(ROOT)) for f in files if not f.name.startswith("__")]
    assert sorted(path for path in paths if path.endswith(".py")) == sorted(modules)
