"""The rendered book, opened in headless Chromium: both tiers, desktop and phone width."""

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup

from ledger.store import ROOT
from workflow import book, pdf
from workflow.browser import CHROMIUM, DRIVER, MATHJAX, SETTLE, chromium
from workflow.browser import served as serving

AXE = ROOT / "build" / "mathjax" / "node_modules" / "axe-core" / "axe.min.js"
PAGES = [name for part in pdf.pages().values() for name in part]
WRONG_MATH = "mjx-merror, mjx-mtext[style*='red'], [data-mjx-error]"
BROKEN_IMAGES = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its chromedriver on this machine"
)


@pytest.fixture(scope="module")
def rendered() -> dict[str, Path]:
    """The book of the stored outputs, rendered now, and that of the smoke run."""
    smoke = ROOT / "build" / "smoke" / "html"
    assert smoke.is_dir(), "`make run` has to come first; `make test` does that"
    return {"book": book.render("book"), "smoke": smoke}


@pytest.fixture(scope="module")
def served(rendered) -> Iterator[dict[str, str]]:
    with contextlib.ExitStack() as stack:
        yield {tier: stack.enter_context(serving(folder)) for tier, folder in rendered.items()}


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["book", "smoke"])
@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_built_with_its_outputs(rendered, tier, page):
    html = (rendered[tier] / f"{page}.html").read_text("utf-8")
    if page.startswith("notebooks/"):
        assert html.count("cell_output") >= 5
        assert "Provenance:" in html
        assert "Stale." not in html
        assert f"{Path(page).name}.ipynb" in html, "no download of the notebook"


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("tier", ["book", "smoke"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_the_browser(served, browser, tier, page):
    browser.set_window_size(1280, 1000)
    browser.get(f"{served[tier]}/{page}.html")
    browser.execute_async_script(SETTLE)
    offline = "jsdelivr.net"
    errors = [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE" and (MATHJAX.is_dir() or offline not in entry["message"])
    ]
    assert not errors
    images = browser.execute_script(
        "return [...document.images].filter(i => i.getClientRects().length)"
        ".map(i => [i.src, i.naturalWidth, i.alt])"
    )
    for source, width, alt in images:
        assert width > 0, f"broken image {source}"
        assert alt.strip(), f"no alt text: {source}"
    if not MATHJAX.is_dir():
        pytest.skip("MathJax is not installed (npm install --prefix build/mathjax mathjax@3.2.2)")
    assert not browser.find_elements("css selector", WRONG_MATH)
    if browser.find_elements("css selector", ".math"):
        assert browser.find_elements("css selector", "mjx-container")


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_phone(served, browser, page):
    browser.set_window_size(400, 900)
    browser.get(f"{served['book']}/{page}.html")
    browser.execute_async_script(SETTLE)
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 1


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_light(served, browser, page):
    """A page and what it loads from the book's own site, as sent: compressed."""
    browser.set_window_size(1280, 1000)
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.get(f"{served['book']}/{page}.html")
    browser.execute_async_script(SETTLE)
    sent = browser.execute_script(
        "return [...performance.getEntriesByType('navigation'),"
        " ...performance.getEntriesByType('resource')]"
        ".filter(e => e.name.startsWith(location.origin) && !e.name.includes('/mathjax/'))"
        ".map(e => [e.name, e.transferSize])"
    )
    assert len(sent) > 5
    assert sum(size for _, size in sent) < 2_000_000, sorted(sent, key=lambda each: -each[1])[:5]


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (.ci/run does that)")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_serious_violation_of_accessibility(served, browser, page):
    """By axe's rules for WCAG 2, levels A and AA."""
    browser.set_window_size(1280, 1000)
    browser.get(f"{served['book']}/{page}.html")
    browser.execute_async_script(SETTLE)
    browser.execute_script(AXE.read_text("utf-8"))
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa'], resultTypes: ['violations']})"
        ".then(r => done(r.violations), e => done(String(e)))"
    )
    assert isinstance(found, list), found
    serious = [
        (rule["id"], [node["html"][:150] for node in rule["nodes"]][:3], len(rule["nodes"]))
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert not serious


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_search_finds_a_term(served, browser):
    browser.get(f"{served['book']}/search.html?q=distinguishability")
    for _ in range(50):
        found = browser.find_elements("css selector", "#search-results li")
        if found:
            break
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert found


@pytest.mark.slow
def test_a_page_names_its_card(rendered):
    page = BeautifulSoup((rendered["book"] / f"{PAGES[0]}.html").read_text("utf-8"), "html.parser")
    card = page.find("meta", property="og:image")["content"]
    picture = (rendered["book"] / card).read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1200, 630), "a PNG's width and height"


def test_the_address_of_the_published_book_is_given(monkeypatch):
    monkeypatch.setenv("BOOK_URL", "https://example.org/book/")
    settings = yaml.safe_load((book.stage("book") / "_config.yml").read_text("utf-8"))
    assert settings["sphinx"]["config"]["ogp_site_url"] == "https://example.org/book/"


@pytest.mark.slow
def test_the_whole_book_in_one_page_leads_to_itself(rendered):
    html = rendered["book"]
    page = BeautifulSoup(pdf.whole(html), "html.parser")
    ids = [tag["id"] for tag in page.find_all(id=True)]
    links = [tag["href"] for tag in page.find_all("a", href=True)]
    inside = {link.removeprefix("#") for link in links if link.startswith("#")}
    assert len(inside) > 100 and all(ids.count(place) == 1 for place in inside)
    assert all(link.startswith(("#", "http")) for link in links)
    for tag in page.find_all(["img", "link"]):
        assert (html / (tag.get("src") or tag["href"]).partition("?")[0]).is_file()
    pages = [BeautifulSoup((html / f"{p}.html").read_text("utf-8"), "html.parser") for p in PAGES]
    titles = [page.select_one("article h1").text.rstrip("#") for page in pages]
    assert [h1.text for h1 in page.find_all("h1")] == titles
    assert not page.select("details:not([open])")


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_the_pdf_has_all_pages_formulas_and_an_outline(rendered):
    with pdf.opened(rendered["book"]) as browser:
        assert browser.execute_script(BROKEN_IMAGES) == []
        if MATHJAX.is_dir():
            formulas = len(browser.find_elements("css selector", ".math"))
            assert 0 < formulas <= len(browser.find_elements("css selector", "mjx-container"))
            assert not browser.find_elements("css selector", WRONG_MATH)
        printed = pdf.printed(browser)
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", printed)) > 100
    assert {b"The book in ten minutes", b"Scorecard", b"References"} <= set(
        re.findall(rb"/Title \(([^)]*)\)", printed)
    )


@pytest.mark.slow
def test_an_edited_source_is_marked_stale(tmp_path):
    """A copy of the project whose helpers changed renders with the warning."""
    copy = tmp_path / "project"
    kept = shutil.ignore_patterns(".git", ".venv", "build", ".snakemake", "results")
    shutil.copytree(ROOT, copy, ignore=kept)
    path = copy / "dpo_helpers" / "dpo.py"
    path.write_text(path.read_text() + "\n\nchanged = 1\n")
    code = "from workflow import book; print(book.stage('book'))"
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for chapter in sorted((copy / "notebooks").glob("*.py")):
        staged = Path(done.stdout.strip()) / "notebooks" / f"{chapter.stem}.ipynb"
        assert "**Stale.**" in staged.read_text()
