"""Render the book from its pages and one tier's executed notebooks, with Jupyter Book.

python -m workflow.book TIER          render the book
python -m workflow.book TIER links    check the external links instead
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
**Stale.** The source of this page or the package changed after these outputs were made.
Run `make book` to make them again.
:::"""


def stage(tier: str) -> Path:
    """Copy what is rendered into one folder: pages, configuration, the tier's executed notebooks.

    If ``$BOOK_URL``, the address of the published book, is set, the link preview uses it.
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
    """The folder of a tier's executed notebooks. The book tier's are beside their sources."""
    return ROOT / "notebooks" if tier == "book" else ROOT / "build" / tier / "notebooks"


def render(tier: str) -> Path:
    """Render the book into ``build/TIER/html``. The old book stays until the new one is complete.

    Raises CalledProcessError on any warning, for example a broken reference.
    """
    target, built = ROOT / "build" / tier / "html", ROOT / "build" / tier / "rendering"
    _build(stage(tier), built, "-W", "-n", "--keep-going", "-q")
    shutil.rmtree(target, ignore_errors=True)
    (built / "_build" / "html").rename(target)
    shutil.rmtree(built)
    return target


def broken_links(tier: str) -> list[str]:
    """The external links of a tier's pages that fail, one line each: page, address, reason."""
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
        sys.exit("error: the book was not rendered; fix the warnings")
    except FileNotFoundError as missing:
        sys.exit(f"error: {missing.filename} is missing; run `make run` or `make book`")
