"""The book: its pages and one tier's executed notebooks, rendered by Jupyter Book.

python -m workflow.book TIER; with ``links`` behind it, its external links are asked for instead.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from ledger.store import ROOT

from . import notebook

STALE = """:::{warning}
**Stale.** The source of this page or the helpers changed since its outputs were made;
`make book` makes them again.
:::"""


def stage(tier: str) -> Path:
    """The folder to render: pages, configuration and the tier's executed notebooks.

    Where ``$BOOK_URL`` says at which address the book is published, links to its card begin there.
    """
    target = ROOT / "build" / tier / "source"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "book", target / "book")
    for name in ("_toc.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, target / name)
    settings = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    settings["sphinx"]["config"]["ogp_site_url"] = os.environ.get("BOOK_URL", "")
    (target / "_config.yml").write_text(yaml.safe_dump(settings), "utf-8")
    (target / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        executed = nbformat.read(notebooks(tier) / f"{path.stem}.ipynb", as_version=4)
        if executed.metadata.get("dpo", {}).get("key") != notebook.key(path.stem):
            executed.cells.insert(1, nbformat.v4.new_markdown_cell(STALE, id="stale"))
        nbformat.write(executed, target / "notebooks" / f"{path.stem}.ipynb")
    return target


def notebooks(tier: str) -> Path:
    """Where a tier's executed notebooks are: the book tier's are stored beside their sources."""
    return ROOT / "notebooks" if tier == "book" else ROOT / "build" / tier / "notebooks"


def render(tier: str) -> Path:
    """Render the book into ``build/TIER/html``; the old one stays until the new is whole.

    Raises CalledProcessError on any warning: a broken reference is an error.
    """
    target, built = ROOT / "build" / tier / "html", ROOT / "build" / tier / "rendering"
    _build(stage(tier), built, "-W", "-n", "--keep-going", "-q")
    shutil.rmtree(target, ignore_errors=True)
    (built / "_build" / "html").rename(target)
    shutil.rmtree(built)
    return target


def broken_links(tier: str) -> list[str]:
    """The external links of a tier's pages that do not answer, a line each: page, address, why."""
    built = ROOT / "build" / tier / "links"
    try:
        _build(stage(tier), built, "-q", "--builder", "linkcheck")
    except subprocess.CalledProcessError:
        if not list(built.rglob("output.json")):
            raise
    (found,) = built.rglob("output.json")
    links = [json.loads(line) for line in found.read_text("utf-8").splitlines()]
    return [
        f"{link['filename']}: {link['uri']}: {link['info']}"
        for link in links
        if link["status"] in ("broken", "timeout")
    ]


def _build(source: Path, built: Path, *options: str) -> None:
    shutil.rmtree(built, ignore_errors=True)
    command = ["jupyter-book", "build", str(source), "--path-output", str(built)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([*command, *options], check=True, env=environment)


if __name__ == "__main__":
    try:
        if sys.argv[2:] == ["links"]:
            sys.exit("\n".join(broken_links(sys.argv[1])) or 0)
        print(render(sys.argv[1]).relative_to(ROOT) / "index.html")
    except subprocess.CalledProcessError:
        sys.exit("error: the book was not rendered; the warnings above say why")
    except FileNotFoundError as missing:
        sys.exit(f"error: {missing.filename} is missing; `make run` or `make book` makes it")
