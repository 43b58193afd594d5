"""Print the whole book into one PDF: Chromium prints its rendered pages in order.

python -m workflow.pdf TIER
"""

import base64
import contextlib
import posixpath
import re
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from bs4 import BeautifulSoup, Tag

from dpo_helpers.errors import InputError
from dpo_helpers.files import atomic_write
from ledger.store import ROOT

from .browser import CHROMIUM, DRIVER, SETTLE, chromium, served

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm; }
html { font-size: 12.5px; }
body { background: #fff; display: block; }
article { break-before: page; }
h1, h2, h3, h4 { break-after: avoid; scroll-margin: 0; }
figure, img, mjx-container[display="true"], tr, div.cell_input { break-inside: avoid; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.table-wrapper, div.cell_output, .output { overflow: visible !important; }
table { font-size: 0.7em; max-width: 100%; }
.browse .rows { max-height: none !important; overflow: visible !important; }
.browse table { width: 100% !important; }
.browse th, .browse td { padding: 0 2px; }
nav { break-before: page; }
nav ol { list-style: none; }
"""
_FOOTER = (
    '<div style="width: 100%; font-size: 8px; text-align: center">'
    '<span class="pageNumber"></span></div>'
)
# Elements for the screen only. Code that is folded on the page is not printed either.
_ON_SCREEN = "script, button, form, .browse svg, .headerlink, details.hide"


def pages() -> dict[str, list[str]]:
    """The pages of the book, in order, by part."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    parts = {part["caption"]: [c["file"] for c in part["chapters"]] for part in toc["parts"]}
    return {"": [toc["root"]]} | parts


def whole(html: Path) -> str:
    """The rendered pages under ``html`` as one page, to be served from that folder.

    Ids start with the name of their page. Links lead to their targets within this page. Folded
    parts are open. Links to files that are not pages become plain text.
    """
    names = [name for part in pages().values() for name in part]
    articles = {name: _article(html, name, names) for name in names}
    head = BeautifulSoup((html / f"{names[0]}.html").read_text("utf-8"), "html.parser").head
    kept = [
        str(tag)
        for tag in _moved(head, names[0]).find_all(["link", "script"])
        if "stylesheet" in (tag.get("rel") or ())
        or "MathJax" in (tag.string or "")
        or "mathjax" in tag.get("src", "")
    ]
    contents = [
        (f"<li>{escape(part)}<ol>" if part else "")
        + "".join(f'<li><a href="#{_id(n)}">{_title(articles[n])}</a></li>' for n in listed)
        + ("</ol></li>" if part else "")
        for part, listed in pages().items()
    ]
    first, *others = map(str, articles.values())
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{escape(_title(articles[names[0]]))}</title>{''.join(kept)}"
        f'<style>{_STYLE}</style></head><body><main class="bd-content">{first}'
        f"<nav><h2>Contents</h2><ol>{''.join(contents)}</ol></nav>"
        f"{''.join(others)}</main></body></html>"
    )


def _article(html: Path, name: str, names: list[str]) -> Tag:
    """The content of a page, with its ids and links changed to those of the whole."""
    page = BeautifulSoup((html / f"{name}.html").read_text("utf-8"), "html.parser")
    article = page.select_one("article.bd-article")
    for button in article.select("th button"):  # they sort a table
        button.unwrap()
    for tag in article.select(_ON_SCREEN):
        tag.decompose()
    for frame in article.select("iframe"):
        frame.replace_with(f"[{frame.get('title')}: in the book on the web]")
    for tag in article.find_all("details"):
        tag["open"] = ""
    for tag in article.find_all(id=True):
        tag["id"] = f"{_id(name)}--{tag['id']}"
    article["id"] = _id(name)
    for link in article.find_all("a", href=True):
        target = _target(link["href"], name, names)
        if target is None:
            link.unwrap()
        else:
            link["href"] = target
    return _moved(article, name)


def _moved(tree: Tag, name: str) -> Tag:
    """Make the paths of images, scripts and styles relative to the folder of the whole."""
    for attribute in ("src", "href"):
        for tag in tree.find_all(["img", "script", "link"], attrs={attribute: True}):
            if ":" not in tag[attribute]:
                tag[attribute] = posixpath.normpath(f"{posixpath.dirname(name)}/{tag[attribute]}")
    return tree


def _target(href: str, name: str, names: list[str]) -> str | None:
    """The target, in the whole, of a link on the page ``name``; None if it is not a page."""
    if ":" in href:
        return href
    path, _, place = href.partition("#")
    page = name
    if path:
        page = posixpath.normpath(f"{posixpath.dirname(name)}/{path}").removesuffix(".html")
    if page not in names:
        return None
    return f"#{_id(page)}--{place}" if place else f"#{_id(page)}"


def _id(name: str) -> str:
    return name.replace("/", "-")


def _title(article: Tag) -> str:
    return article.h1.get_text().strip()


@contextlib.contextmanager
def opened(html: Path) -> Iterator["Chrome"]:
    """Chromium with the whole book under ``html`` open and its formulas rendered.

    Raises InputError if Chromium, its chromedriver, or the rendered book is missing.
    """
    if not (CHROMIUM and DRIVER):
        raise InputError("Chromium or its chromedriver is missing; install both")
    if not html.is_dir():
        raise InputError(f"{html.relative_to(ROOT)} is missing; run `make html` or `make run`")
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        for path in html.iterdir():
            (Path(work) / path.name).symlink_to(path)
        (Path(work) / "whole.html").write_text(whole(html), "utf-8")
        with served(Path(work)) as address:
            browser.set_script_timeout(600)
            browser.get(f"{address}/whole.html")
            browser.execute_async_script(SETTLE)
            yield browser


def printed(browser: "Chrome") -> bytes:
    """The PDF of the book that is ``opened``, with an outline."""
    how = {
        "printBackground": True,
        "preferCSSPageSize": True,
        "generateDocumentOutline": True,
        "generateTaggedPDF": True,
        "displayHeaderFooter": True,
        "headerTemplate": "<span></span>",
        "footerTemplate": _FOOTER,
    }
    content = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", how)["data"])
    return _TWICE.sub(_once, content)


# Chromium writes the number and the words of a heading twice if it moves the heading to a new page.
_TWICE = re.compile(rb"/Title \(((?:\d[\d.]*\. )?)\1((?:[^()\\]|\\.)+)\2\)")


def _once(title: re.Match[bytes]) -> bytes:
    """The title without its repetition, padded so that no offset in the file changes."""
    return b"/Title (%b%b)" % title.groups() + b" " * (len(title[1]) + len(title[2]))


if __name__ == "__main__":
    tier = ROOT / "build" / sys.argv[1]
    try:
        with opened(tier / "html") as browser:
            atomic_write(tier / "book.pdf", printed(browser))
    except InputError as problem:
        sys.exit(f"error: {problem}")
    print(f"{(tier / 'book.pdf').relative_to(ROOT)}")
