"""Chapter 10: what is kept of a behavior, and how its predictors are judged."""

import html.parser
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cells
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dpo_helpers import data, last_layer, states
from dpo_helpers.browse import browse
from experiments import atlas, full_finetuning
from experiments.outline import Outlined
from ledger.config import FIVE, TIERS, configure
from ledger.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")
BOOK = RunStore(configure({}))
PAGE = cells.functions("10_atlas")
REASONS = ("confidence", "length", "base accuracy", "common", "along", "spread")


@pytest.fixture(scope="module")
def records(home):
    config = configure({"tier": "smoke", "model": "tiny-llama", "steps": 20, "seeds": 3})
    return RunStore(config, home / "results")


def test_every_behavior_at_hand_and_none_drawn_that_another_chapter_trains():
    names = atlas.behaviors_run(BOOK).arrays
    everyone, drawn = (names[what].tolist() for what in ("behaviors", "drawn"))
    assert len(everyone) == len(set(everyone)) == 100
    assert len(drawn) == len(set(drawn)) == atlas.DRAWN and set(drawn) <= set(everyone)
    assert not {*FIVE, "agreeableness"} & set(drawn)


@pytest.fixture
def collection(tmp_path, records):
    """Records of a folder with the sample's behaviors, and as many again that no chapter trains."""
    sample = Path(data.__file__).parent / "sample" / "persona"
    here = tmp_path / "data" / "persona"
    here.mkdir(parents=True)
    for file in sample.glob("*.jsonl"):
        shutil.copy(file, here)
        shutil.copy(file, here / f"another-{file.name}")
    config = replace(records.config, data=str(here.parent), full_batch_size=64)
    return RunStore(config, tmp_path / "results")


def test_the_draw_is_by_lot_and_replayed_without_the_data(tmp_path, collection, monkeypatch):
    known = {*TIERS["book"]["behaviors"], TIERS["book"]["calibration"]}
    here = tmp_path / "many" / "persona"
    here.mkdir(parents=True)
    others = [f"behavior-{i:02}" for i in range(30)]
    for name in {*others, *known}:
        (here / f"{name}.jsonl").touch()
    monkeypatch.setenv("DPO_DATA_DIR", str(here.parent))
    book = RunStore(configure({}), tmp_path / "book")
    drawn = atlas.drawn(book)
    assert drawn == np.random.default_rng(0).choice(others, 20, replace=False).tolist()
    monkeypatch.delenv("DPO_DATA_DIR")
    assert atlas.drawn(RunStore(book.config, book.root)) == drawn
    assert sorted(atlas.drawn(collection)) == [
        name for name in data.behaviors(collection.config.data) if name.startswith("another-")
    ]


@pytest.mark.slow
def test_those_drawn_are_trained_in_full_and_no_hidden_states_are_stored(collection, monkeypatch):
    monkeypatch.setattr(atlas, "DRAWN", 1)
    table = atlas.table(collection)
    assert table.index.tolist() == data.behaviors(collection.config.data)
    (chosen,) = table.index[table["drawn"]]
    main = full_finetuning.MAIN["smoke"]
    assert set(table.index[table["all parameters"].notna()]) == {chosen, *main}
    loss = atlas.full_run(collection, chosen).arrays["loss"][0, 1]
    for behavior in (chosen, *main):
        first = atlas.full_run(collection, behavior).arrays["loss"][0, 1][: len(loss)]
        assert table.loc[behavior, "all parameters"] == pytest.approx(np.log(2) - first.mean())
    assert not list(collection.root.glob(f"hidden/*/{chosen}"))
    again = atlas.before_run(collection, chosen).arrays
    held_out = np.median(np.log(2) - again["loss"][1].mean(0))
    assert table.loc[chosen, "last layer"] == pytest.approx(held_out, rel=1e-5)


def test_of_a_small_collection_all_others_are_drawn(records):
    names = atlas.behaviors_run(records).arrays
    assert names["behaviors"].tolist() == data.behaviors("sample")
    assert names["drawn"].tolist() == []


def test_what_is_kept_of_a_behavior(records):
    """Against the hidden states themselves, by other formulas."""
    behavior = "lives-by-stoicism"
    a = atlas.before_run(records, behavior).arrays
    s = records.states(behavior)
    g, labels = s.g[s.train], s.labels[s.train]
    plus, minus = g[labels > 0].mean(0), g[labels < 0].mean(0)
    assert a["apart"] == pytest.approx(np.linalg.norm(plus - minus), rel=1e-5)
    assert a["common"] == pytest.approx(np.linalg.norm(plus + minus) / 2, rel=1e-5)
    assert a["along"] * a["apart"] * 2 * a["common"] == pytest.approx(
        plus @ plus - minus @ minus, abs=1e-4
    )
    sides = [g[labels == side] for side in (1, -1)]
    covariances = [np.cov(side.T, bias=True) for side in sides]
    surplus = sum(np.trace(np.cov(side.T)) / len(side) for side in sides)
    assert a["noise"] == pytest.approx(surplus, rel=1e-5)
    assert a["spread"] == pytest.approx(max(np.linalg.norm(c, 2) for c in covariances), rel=1e-5)
    logits = g @ s.rows.T
    right = np.where(labels > 0, logits[:, 0] > logits[:, 1], logits[:, 1] > logits[:, 0])
    gap = np.where(labels > 0, logits[:, 0] - logits[:, 1], logits[:, 1] - logits[:, 0])
    assert a["base"] == pytest.approx([gap.mean(), right.mean()], rel=1e-4)
    assert right.mean() != 0.5
    statements = data.load_behavior(behavior)
    assert a["confidence"] == pytest.approx(np.mean(statements.rows["label_confidence"]))
    assert a["probe"][1] == np.float32(states.probe(s.g, s.labels, s.train)[1])
    assert a["loss"].shape == (2, 21, 3) and np.allclose(a["loss"][:, 0], np.log(2))


def test_a_row_of_the_table(monkeypatch):
    """What is kept of one behavior, under its columns."""
    loss = np.stack([np.full((3, 2), 9.0), [[0.7, 0.7], [0.5, 0.4], [0.3, 0.1]]])
    kept = {"apart": 5, "noise": 9, "common": 50, "along": 0.1, "spread": 7}
    kept |= {"confidence": 0.9, "length": 30, "loss": loss}
    kept |= {"certified": [[0, 0.1, 0.2], [0, 0.4, 0.5]], "probe": [1.5, 0.8], "base": [-2, 0.4]}
    runs = {
        "before_run": {name: np.array(value) for name, value in kept.items()},
        "full_run": {"loss": np.array([[[9, 9], [0.6, 0.2]]])},
        "behaviors_run": {"behaviors": np.array(["it"]), "drawn": np.array(["it"])},
    }
    for name, arrays in runs.items():
        monkeypatch.setattr(atlas, name, lambda *_, a=arrays: SimpleNamespace(arrays=a))
    row = atlas.table(BOOK).loc["it"]
    expected = {"apart": 5, "clean": 4, "common": 50, "along": 0.1, "spread": 7}
    expected |= {"certified": 0.1, "certified, most": 0.3, "probe margin": 1.5}
    expected |= {"probe accuracy": 0.8, "base gap": -2, "base accuracy": 0.4}
    expected |= {"confidence": 0.9, "length": 30, "drawn": True}
    # The losses of two seeds have means .5 and .4.
    expected |= {"last layer": np.log(2) - 0.45, "all parameters": np.log(2) - 0.4}
    expected["last layer, training"] = np.log(2) - 9
    assert dict(row) == pytest.approx(expected)


def test_a_probe_is_scored_on_the_statements_left_out():
    """One number tells the sides apart, ±1 when standardised; of four held out one is wrong."""
    labels = np.tile([1, -1], 22)
    train = np.arange(44) < 40
    for size in (1.0, 10.0):
        g = size * labels[:, None].astype(float)
        assert states.probe(g, labels, train) == pytest.approx((1, 1), abs=1e-3)
        g[-1] *= -1
        assert states.probe(g, labels, train) == pytest.approx((0.5, 0.75), abs=1e-3)


def test_which_run_is_that_of_all_parameters(monkeypatch):
    """At the scaled rate; the states of the case study are stored, of others an outline is."""
    made = []
    monkeypatch.setattr(full_finetuning, "factor", lambda _: 3.0)
    monkeypatch.setattr(full_finetuning, "trained_run", lambda *how: made.append(how))
    for behavior in (FIVE[0], "openness"):
        atlas.full_run(BOOK, behavior)
    assert [how[1:] for how in made] == [([b], 0.01, 3e-5, 0) for b in (FIVE[0], "openness")]
    assert [type(how[0]) for how in made] == [RunStore, Outlined]


def test_the_certificate_holds_for_gradient_descent(records):
    behavior = "loves-gardening"
    a, s = atlas.before_run(records, behavior).arrays, records.states(behavior)
    how = dict(beta=0.01, learning_rate=atlas.learning_rate(records), steps=20)
    problem = last_layer.Problem(s.g, s.labels, s.train)
    loss = last_layer.train([problem], s.boundary, sampling="full", **how)["loss"][0, 0, 0, :, 0]
    least, most = a["certified"]
    fall = np.log(2) - loss
    assert (least <= fall + 1e-6).all() and (fall <= most + 1e-6).all()
    assert least[-1] > 0


def test_too_large_a_step_proves_nothing():
    rng = np.random.default_rng(0)
    g, labels = rng.normal(size=(20, 3)), np.tile([1, -1], 10)
    bounds = atlas.proven(g, labels, g[0], learning_rate=1e6, beta=1.0, steps=3)
    assert np.allclose(bounds, [[0] * 4, [np.log(2)] * 4])


def test_speeds_are_over_as_many_steps_as_all_drawn_behaviors_have(monkeypatch):
    losses = {"a": [0.6, 0.5, 0.4, 0.1], "b": [0.6, 0.4, 0.2], "known": [0.6, 0.6, 0.6, 0.1, 0]}

    def run(_, behavior):
        held_out = losses[behavior]
        return SimpleNamespace(arrays={"loss": np.array([[[9.0] * len(held_out), held_out]])})

    monkeypatch.setattr(atlas, "full_run", run)
    monkeypatch.setattr(atlas, "drawn", lambda _: ["a", "b"])
    monkeypatch.setitem(full_finetuning.MAIN, "book", ("known",))
    kept = atlas.full_losses(BOOK)
    assert {name: values.tolist() for name, values in kept.items()} == {
        "known": [0.6, 0.6, 0.6],
        "a": [0.6, 0.5, 0.4],
        "b": [0.6, 0.4, 0.2],
    }


def found(n: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: rng.normal(size=n) for name in atlas.PREDICTORS})
    for name in REASONS:
        table[name] = rng.normal(size=n)
    table["last layer"] = table["apart"] + 0.1 * table["length"]
    table["last layer, training"] = table["apart"]
    table["all parameters"] = np.where(np.arange(n) < 15, table["probe margin"], np.nan)
    return table.assign(drawn=np.arange(n) < 15)


def predictors(table: pd.DataFrame) -> pd.DataFrame:
    titles = {name: name for name in atlas.PREDICTORS}
    return PAGE.correlations(table, titles, PAGE.speed_of)


def reasons(table: pd.DataFrame) -> pd.DataFrame:
    return PAGE.correlations(table, {name: name for name in REASONS}, PAGE.surprise)


def test_a_predictor_that_is_the_speed_wins():
    table = found()
    told = predictors(table)
    assert told.loc["apart", "last layer, all"].startswith(("0.99", "1.00"))
    assert told.loc["probe margin", "all parameters, drawn"].startswith("1.00 (1.00")
    y = PAGE.speed_of(table, "all parameters, drawn")
    x = table.loc[y.index]
    _, low, _ = PAGE.advantage(x["probe margin"].to_numpy(), x["apart"].to_numpy(), y.to_numpy())
    assert low > 0


def test_an_advantage_is_a_difference_of_rank_correlations():
    rng = np.random.default_rng(1)
    one, other, speeds = rng.normal(size=(3, 30))
    middle, low, high = PAGE.advantage(one, other, speeds)
    a, b = (stats.spearmanr(x, speeds).statistic for x in (one, other))
    assert middle == pytest.approx(a - b) and low < middle < high
    assert PAGE.advantage(one, one, speeds) == (0, 0, 0)


def test_a_reason_for_the_surprise_is_found():
    table = found()
    surprise = PAGE.surprise(table, "last layer, all")
    assert surprise.sum() == pytest.approx(0, abs=1e-3)
    assert surprise @ table["apart"].rank() == pytest.approx(0, abs=1e-3)
    assert stats.spearmanr(surprise, table["length"]).statistic > 0.5
    assert float(reasons(table).loc["length", "last layer, all"].split()[0]) > 0.5


def test_what_measures_no_more_than_the_distance_explains_no_surprise():
    """Speed and reason are noisy ‖b̂‖, each with its own noise: false alarms are rare."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(200):
        table = pd.DataFrame({"apart": rng.normal(size=100)})
        for name in ("last layer", "spread"):
            table[name] = table["apart"] + 0.75 * rng.normal(size=100)
        surprise = PAGE.surprise(table, "last layer, all")
        alarms.append(stats.spearmanr(surprise, table["spread"]).pvalue < 0.05)
    assert np.mean(alarms) < 0.1


def test_a_dash_where_behaviors_are_few_or_no_rank_is_defined():
    table = found(12).assign(drawn=False)
    assert (predictors(table)["all parameters, drawn"] == "–").all()
    table["probe accuracy"], table["confidence"] = 1.0, np.nan
    dashes = predictors(table)["last layer, all"] == "–"
    assert dashes[dashes].index.tolist() == ["probe accuracy"]
    assert reasons(table).loc["confidence", "last layer, all"] == "–"
    assert (reasons(table.head(5)) == "–").all(axis=None)
    table["last layer"] = table["apart"]
    assert not PAGE.surprise(table, "last layer, all").any()
    assert (reasons(table)["last layer, all"] == "–").all()


def test_pairs_with_disjoint_bounds_are_decided():
    table = found(4).assign(drawn=False)
    table["certified"], table["certified, most"] = [0.0, 1, 2, 3], [0.5, 2.5, 3, 4]
    table["last layer"], table["apart"] = [0.0, 1, 2, -1], [4.0, 3, 2, 1]
    row = PAGE.decided(table, "last layer, all")
    # Undecided are the second and third, and, by equal bounds, the third and fourth; the fourth is
    # the slowest, against its bounds.
    assert row["pairs"] == 6 and row["decided"] == pytest.approx(4 / 6)
    assert row["of these as proven"] == pytest.approx(2 / 4)
    assert row["all as ‖b̂‖ orders"] == pytest.approx(3 / 6)


class Cells(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_browser_of_a_table():
    table = pd.DataFrame({"a": [1.0, np.nan], "b<": [2.5, 3.0]}, index=["x & y", "z"])
    page = browse(table, 'A "caption"', name="it", axes=("b<", "a"), colors={"z": "#123456"})
    cells = Cells()
    cells.feed(page.data)
    rows = [attrs for tag, attrs in cells.tags if tag == "tr"]
    assert [row.get("data-hue") for row in rows] == [None, "", "#123456"]
    numbers = [attrs.get("data-v") for tag, attrs in cells.tags if tag == "td"]
    assert numbers == ["1", "2.5", None, "3"]
    assert "x & y" in cells.text and "b<" in cells.text
    assert '[right.value, up.value] = ["1", "0"]' in page.data
    assert "http" not in page.data.replace("http://www.w3.org/2000/svg", "")
