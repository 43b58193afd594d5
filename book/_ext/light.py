"""The theme loads its icons as a font and as a script of half a megabyte: the font will do."""

import re
from pathlib import Path

_SCRIPT = re.compile(r'<script src="[^"]*/fontawesome/[^"]*\.js[^"]*"></script>')


def drop(app, exception):
    """Take the script off every page."""
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text("utf-8")
        if _SCRIPT.search(text):
            path.write_text(_SCRIPT.sub("", text), "utf-8")


def setup(app):
    """Sphinx's entry point."""
    app.connect("build-finished", drop)
    return {"parallel_read_safe": True}
