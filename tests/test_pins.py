"""The numbers that readers rely on are those pinned; a change is seen, and can be accepted."""

import math

import pins
import pytest


@pytest.mark.slow
def test_no_number_has_moved():
    assert not pins.moved(pins.numbers(), pins.pinned()), "`make accept`, if that is right"


def test_what_moved_is_told_and_accepted():
    old = {name: {"value": 1.0, "tolerance": 0.1} for name in ("stays: a", "moves: b", "gone: c")}
    now = {"stays: a": 1.09, "moves: b": 1.11, "new: d": 2.0, "bad: e": math.nan}
    old["bad: e"] = {"value": 1.0, "tolerance": 0.1}
    lines = pins.moved(now, old)
    assert [line.split(": ")[0] for line in lines] == ["gone", "moves", "new", "bad"]
    assert "1.11, pinned 1 ± 0.1" in lines[1]
    now.pop("bad: e")
    fresh = pins.accepted(now, old)
    assert list(fresh) == list(now)
    assert fresh["stays: a"] == old["stays: a"]
    assert fresh["moves: b"] == {"value": 1.11, "tolerance": 0.11}
    assert not pins.moved(now, fresh)
