"""A headless Chromium, and a local server for a rendered book."""

import contextlib
import functools
import gzip
import http.server
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.store import ROOT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
# The folder where npm installs MathJax for the tests. Without it, pages load it from the network.
MATHJAX = ROOT / "build" / "mathjax" / "node_modules" / "mathjax"
_CDN = "https://cdn.jsdelivr.net/npm/mathjax@3/"

# Asynchronous script: ends when all formulas and images are loaded.
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


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a book like a web host, with text compressed, and MathJax locally if installed."""

    def do_GET(self) -> None:
        if self.path.startswith("/mathjax/"):
            file = (MATHJAX / self.path.removeprefix("/mathjax/")).resolve()
            if not file.is_relative_to(MATHJAX) or not file.is_file():
                return self.send_error(404)
            return self._answer(file.read_bytes(), self.guess_type(str(file)))
        path = Path(self.translate_path(self.path))
        if path.suffix == ".html" and path.is_file():
            text = path.read_text("utf-8")
            if MATHJAX.is_dir():
                text = text.replace(_CDN, "/mathjax/")
            return self._answer(text.encode(), "text/html; charset=utf-8")
        if path.suffix in (".css", ".js", ".json", ".svg") and path.is_file():
            return self._answer(path.read_bytes(), self.guess_type(str(path)))
        return super().do_GET()

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine inside the context; yields its address."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def chromium() -> Iterator["Chrome"]:
    """A headless Chromium with its own profile; its background network requests are disabled."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    for flag in ("headless", "no-sandbox", "no-first-run", *(f"disable-{what}" for what in quiet)):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()
