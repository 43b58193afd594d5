"""References are a list of a role that is gone from ARIA: readers are told of plain items."""


def name_items(app, pagename, templatename, context, doctree):
    """Give the entries of a bibliography the role that their list asks for."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app):
    """Sphinx's entry point."""
    app.connect("html-page-context", name_items)
    return {"parallel_read_safe": True}
