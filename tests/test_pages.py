"""The rendered book, opened in headless Chromium: both tiers, desktop and phone width."""

import functools
import gzip
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from dpo_helpers.runs import ROOT
from workflow import book

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MATHJAX = ROOT / "build" / "mathjax" / "node_modules" / "mathjax"
AXE = ROOT / "build" / "mathjax" / "node_modules" / "axe-core" / "axe.min.js"
CDN = "https://cdn.jsdelivr.net/npm/mathjax@3/"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(c["file"] for part in TOC["parts"] for c in part["chapters"])]
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its chromedriver on this machine"
)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a book as a host does, text compressed; MathJax from its package, if installed."""

    def do_GET(self):
        if self.path.startswith("/mathjax/"):
            file = (MATHJAX / self.path.removeprefix("/mathjax/")).resolve()
            if not file.is_relative_to(MATHJAX) or not file.is_file():
                return self.send_error(404)
            return self.answer(file.read_bytes(), self.guess_type(str(file)))
        path = Path(self.translate_path(self.path))
        if path.suffix == ".html" and path.is_file():
            text = path.read_text("utf-8")
            if MATHJAX.is_dir():
                text = text.replace(CDN, "/mathjax/")
            return self.answer(text.encode(), "text/html; charset=utf-8")
        if path.suffix in (".css", ".js", ".json", ".svg") and path.is_file():
            return self.answer(path.read_bytes(), self.guess_type(str(path)))
        return super().do_GET()

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def rendered() -> dict[str, Path]:
    """The book of the stored outputs, rendered now, and that of the smoke run."""
    smoke = ROOT / "build" / "smoke" / "html"
    assert smoke.is_dir(), "`make run` has to come first; `make test` does that"
    return {"book": book.render("book"), "smoke": smoke}


@pytest.fixture(scope="module")
def served(rendered) -> dict[str, str]:
    servers = {}
    for tier, folder in rendered.items():
        handler = functools.partial(Handler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers[tier] = server
    yield {tier: f"http://127.0.0.1:{server.server_port}" for tier, server in servers.items()}
    for server in servers.values():
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    for flag in ("headless", "no-sandbox", "no-first-run", *(f"disable-{what}" for what in quiet)):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


SETTLE = """
const done = arguments[arguments.length - 1];
const finish = () => Promise.all([...document.images].map(i => i.decode().catch(() => 0)))
  .then(() => done(true));
document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; });
const wait = n => (window.MathJax && MathJax.startup && MathJax.startup.promise)
  ? MathJax.startup.promise.then(finish)
  : n > 0 ? setTimeout(() => wait(n - 1), 100) : finish();
wait(document.querySelector('script[src*="mathjax"]') ? 50 : 0);
"""


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
    wrong = "mjx-merror, mjx-mtext[style*='red'], [data-mjx-error]"
    assert not browser.find_elements("css selector", wrong)
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
