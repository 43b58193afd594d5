"""The page on the tests says what was tried."""

import json

from benchmarks import mutations
from workflow import trust


def test_the_page_is_what_the_command_writes(root):
    assert (root / "book" / "trust.md").read_text("utf-8") == trust.page()


def test_every_mutation_listed_can_be_made(root):
    for mutation in mutations.listed():
        assert mutation.mutated(root) != mutation.path(root).read_text("utf-8")


def test_what_was_not_caught_is_named(tmp_path, monkeypatch):
    rows = [
        {"file": "dpo.py", "old": "+ 1", "new": "- 1", "outcome": outcome, "first": first}
        for outcome, first in (("killed", "killed"), ("killed", "survived"), ("survived",) * 2)
    ]
    monkeypatch.setattr(trust, "RESULTS", tmp_path / "mutations.json")
    trust.RESULTS.write_text(json.dumps(rows))
    text = trust.page()
    assert "3 were tried" in text and "**2 were caught**, 1 not" in text
    assert "first tried, 1 more" in text and text.count("- `dpo.py`: `+ 1` to `- 1`") == 1
