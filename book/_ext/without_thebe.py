"""Jupyter Book always loads Thebe, twice: an error in every page's console. We do without it."""


def drop(app, pagename, templatename, context, doctree):
    """Take Thebe's scripts and styles off the page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if "thebe" not in f"{file.filename} {file.attributes}".lower()
        ]


def setup(app):
    """Sphinx's entry point."""
    app.connect("html-page-context", drop, priority=900)
    return {"parallel_read_safe": True}
