"""The page on the tests says what was tried."""

import hashlib
import json

import pytest

from benchmarks import mutations, reliability
from workflow import trust


def test_the_page_is_what_the_command_writes(root):
    assert (root / "book" / "trust.md").read_text("utf-8") == trust.page()


def test_every_mutation_listed_can_be_made(root):
    for mutation in mutations.listed():
        assert mutation.mutated(root) != mutation.path(root).read_text("utf-8")
        assert all((root / "tests" / test).is_file() for test in mutation.tests)
    places = [mutation.place for mutation in mutations.listed()]
    assert len(set(places)) == len(places)


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Writes results: of the first listed changes by outcome and first outcome, and others."""

    def write(*outcomes: tuple[str, str], more: list[dict]) -> str:
        rows = [
            result(m, outcome, first, m.key(mutations.ROOT))
            for m, (outcome, first) in zip(mutations.listed(), outcomes, strict=False)
        ]
        mutations.write(mutations.RESULTS, rows + more)
        return " ".join(trust.page().split())

    monkeypatch.setattr(mutations, "RESULTS", tmp_path / "mutations.json")
    return write


def result(m: mutations.Mutation, outcome: str, first: str, key: str) -> dict:
    row = dict(zip(("file", "old", "new"), m.place, strict=True))
    return row | {"outcome": outcome, "first": first, "key": key}


def test_what_was_not_caught_is_named(tried):
    killed, mended, survived = (
        ("killed", "killed"),
        ("killed", "survived"),
        ("survived", "survived"),
    )
    text = tried(killed, mended, survived, more=[])
    listed = mutations.listed()
    assert f"tried 3 of {len(listed)} listed" in text
    assert "**caught 2** of them and missed 1" in text and "had missed 1 more" in text
    for m, missed in zip(listed[:3], (False, False, True), strict=True):
        assert text.count(f"- `{m.file}`: `{m.old}` to `{m.new}`") == missed


def test_results_with_other_code_or_tests_do_not_count(tried):
    """Nor do those from before the code was restructured, which are reported by themselves."""
    changed, last = mutations.listed()[1], mutations.listed()[-1]
    earlier = result(last, "survived", "survived", last.key(mutations.ROOT))
    more = [result(changed, "survived", "survived", "another key"), earlier]
    more[1] |= {"file": "before.py", "restructured": False}
    text = tried(("killed", "killed"), more=more)
    assert "tried 1 of" in text and "**caught 1** of them and missed 0" in text
    assert "We have tried 1 more" in text
    assert "had tried 1 such" in text and "**caught 0** of them and missed 1" in text
    assert text.count("to `") == 1 and "- `before.py`" in text
    mutations.save(mutations.listed(), mutations.results())
    assert " ".join(trust.page().split()) == text
    assert "None of the" in tried(more=more)


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
