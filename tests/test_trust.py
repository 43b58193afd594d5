"""The page on the tests says what was tried."""

import hashlib
import json

from benchmarks import mutations, reliability
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
    monkeypatch.setattr(mutations, "RESULTS", tmp_path / "mutations.json")
    mutations.RESULTS.write_text(json.dumps(rows))
    text = trust.page()
    assert "tried 3 of" in text and "**caught 2** of them and\nmissed 1" in text
    assert "had missed 1 more" in text and text.count("- `dpo.py`: `+ 1` to `- 1`") == 1


def test_a_kill_that_does_harm_is_counted(tmp_path, monkeypatch):
    good = {"kind": "training", "moment": 0.25, "unfinished": 0, "corrupt": [], "problem": ""}
    rows = [good | {"differs": []}, good | {"differs": ["run/metrics.jsonl"], "moment": 0.5}]
    rows.append(good | {"corrupt": ["run/metrics.jsonl"], "unfinished": 2, "differs": []})
    monkeypatch.setattr(reliability, "RESULTS", tmp_path / "reliability.json")
    reliability.RESULTS.write_text(json.dumps(rows))
    text = trust.page()
    assert "| 3 | 25% – 50% | 1 | 1 | 0 | 1 |" in text and "Of 3\nkills, 2 left" in text


def test_what_a_kill_may_leave(tmp_path):
    """Whole files as before or as after, a log whose last line is cut short, and work aside."""
    for name in ("a.npy", "b.npy", ".c.npy.x7", "run/metrics.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text('{"key": 1}\n{"step": 0}\n{"step": 1}\n{"ste')
    before = {"a.npy": hashlib.sha256(b"a.npy").hexdigest()}
    after = {"b.npy": hashlib.sha256(b"b.npy").hexdigest()}
    assert reliability.corrupt(tmp_path, before, after) == []
    (tmp_path / "a.npy").write_text("neither old nor new")
    assert reliability.corrupt(tmp_path, before, after) == ["a.npy"]
    log.write_text('{"key": 1}\n{"step": 0}\n{"step": 2}\n')
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half of one")
    _, checkpoint, record = reliability.corrupt(tmp_path, before, after)
    assert checkpoint.startswith("checkpoint.safetensors (") and record == "run/metrics.jsonl"
