"""The ledger: complete, computed, and with errors that help."""

import re

import numpy as np
import pytest
import yaml

from dpo_helpers.errors import InputError
from ledger.config import configure
from ledger.record import read
from ledger.store import RunStore
from workflow import claims


@pytest.fixture
def records() -> RunStore:
    return RunStore(configure({"tier": "book"}))


def test_every_experiment_of_the_paper_has_a_row(root):
    ids = {re.match(r"[A-Z]+\d+", claim.id).group() for claim in claims.ledger()}
    assert ids >= {f"F{i}" for i in range(1, 27)} | {f"T{i}" for i in range(5)} | {"A0"}


def test_the_scorecard_is_what_the_runs_say(root):
    for name, text in claims.pages().items():
        assert (root / "book" / name).read_text("utf-8") == text
        assert "stale" not in text


def test_a_verdict_follows_the_runs(records, tmp_path):
    """The same claim over a run whose losses are turned round is not reproduced."""
    claim = next(claim for claim in claims.ledger() if claim.id == "F3")
    assert claims.judge(claim, records).verdict == "reproduced"
    f3 = read(records.root / "f3")
    turned = f3.arrays | {"loss": -f3.arrays["loss"]}
    states = {b: records.states(b) for b in records.config.behaviors}

    class Turned(RunStore):
        def states(self, behavior):
            return states[behavior]

    from ledger.store import write

    write(tmp_path / "f3", turned, {"key": f3.info["key"]})
    other = Turned(records.config, results=tmp_path)
    found = claims.judge(claim, other)
    assert found.verdict == "not reproduced"
    assert np.median(found.values) < 0


def test_a_claim_without_its_run_is_not_run(records, tmp_path):
    claim = next(claim for claim in claims.ledger() if claim.id == "F3")
    empty = RunStore(records.config, results=tmp_path)
    assert claims.judge(claim, empty).verdict.startswith("not run")


ROW = {"id": "X", "where": "§1", "statement": "s", "notebook": "n", "why": "later"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"statment": "s"}, "statement"),
        ({"where": ""}, "'where' is missing"),
        ({"run": "f3", "measure": "los_order"}, "loss_order"),
        ({"why": ""}, "neither a run nor a why"),
        ({"reproduced": "about 1"}, "is no comparison"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump([ROW | change]))
    with pytest.raises(InputError, match=r"claims.yml, row 1 \(X\)") as error:
        claims.ledger(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_id_given_twice_is_named(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump([ROW, ROW]))
    with pytest.raises(InputError, match=r"row 2.*twice"):
        claims.ledger(path)
