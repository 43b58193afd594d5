"""Verdicts in prose, looked up in what `python -m workflow.claims` wrote, never typed.

{verdict}`F3` is the verdict on a claim, with a link to the scorecard; {claims}`partly` is how
many claims have that verdict, {claims}`all` how many there are.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxRole

KINDS = ("reproduced", "partly", "not reproduced", "not run")


def _found(env) -> dict[str, str]:
    env.note_dependency("book/verdicts.json")
    return json.loads((Path(env.srcdir) / "book" / "verdicts.json").read_text("utf-8"))


class Verdict(SphinxRole):
    """The verdict on a claim."""

    def run(self):
        found = _found(self.env)
        if self.text not in found:
            problem = self.inliner.reporter.error(f"no claim {self.text!r} in book/verdicts.json")
            return [], [problem]
        link = addnodes.pending_xref(
            "",
            refdomain="std",
            reftype="doc",
            reftarget="/book/scorecard",
            refdoc=self.env.docname,
            refexplicit=True,
            refwarn=True,
        )
        link += nodes.inline("", f"{self.text} {found[self.text]}", classes=["verdict"])
        return [link], []


class Claims(SphinxRole):
    """How many claims have a verdict."""

    def run(self):
        found = _found(self.env).values()
        if self.text == "all":
            return [nodes.Text(str(len(found)))], []
        if self.text not in KINDS:
            problem = self.inliner.reporter.error(f"no verdict {self.text!r}; say one of {KINDS}")
            return [], [problem]
        return [nodes.Text(str(sum(v.startswith(self.text) for v in found)))], []


def setup(app):
    """Sphinx's entry point."""
    app.add_role("verdict", Verdict())
    app.add_role("claims", Claims())
    return {"parallel_read_safe": True}
