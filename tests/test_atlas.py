"""Chapter 10: what is kept of a behavior, and how its predictors are judged."""

import html.parser

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dpo_helpers import data, geometry, last_layer
from dpo_helpers.browse import browse
from dpo_helpers.config import FIVE, configure
from dpo_helpers.experiments import atlas
from dpo_helpers.runs import Records

pytestmark = pytest.mark.usefixtures("one_thread")
BOOK = Records(configure({}))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPO_CACHE_DIR", str(folder / "cache"))
        config = configure({"tier": "smoke", "model": "tiny-llama", "steps": 20, "seeds": 3})
        yield Records(config, folder / "results")


def test_every_behavior_at_hand_and_none_drawn_that_another_chapter_trains():
    names = atlas.behaviors_run(BOOK).arrays
    everyone, drawn = (names[what].tolist() for what in ("behaviors", "drawn"))
    assert len(everyone) == len(set(everyone)) == 100
    assert len(drawn) == len(set(drawn)) == atlas.DRAWN and set(drawn) <= set(everyone)
    assert not {*FIVE, "agreeableness"} & set(drawn)


def test_of_a_small_collection_all_others_are_drawn(records):
    names = atlas.behaviors_run(records).arrays
    assert names["behaviors"].tolist() == data.behaviors("sample")
    assert names["drawn"].tolist() == []


def test_what_is_kept_of_a_behavior(records):
    """Against the hidden states themselves."""
    behavior = "loves-gardening"
    a = atlas.before_run(records, behavior).arrays
    s = records.states(behavior)
    g, labels = s.g[s.train], s.labels[s.train]
    plus, minus = g[labels > 0].mean(0), g[labels < 0].mean(0)
    assert a["apart"] == pytest.approx(np.linalg.norm(plus - minus), rel=1e-5)
    assert a["common"] == pytest.approx(np.linalg.norm(plus + minus) / 2, rel=1e-5)
    assert a["along"] * a["apart"] * 2 * a["common"] == pytest.approx(
        plus @ plus - minus @ minus, abs=1e-4
    )
    assert a["base"][1] == np.float32((labels == np.sign(g @ s.boundary)).mean())
    assert a["probe"][1] == np.float32(geometry.separable(s.g, s.labels, s.train))
    assert a["loss"].shape == (2, 21, 3) and np.allclose(a["loss"][:, 0], np.log(2))


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


def found(n: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: rng.normal(size=n) for name in atlas.PREDICTORS})
    for name in atlas.REASONS:
        table[name] = rng.normal(size=n)
    table["last layer"] = table["apart"] + 0.1 * table["length"]
    table["all parameters"] = np.where(np.arange(n) < 15, table["probe margin"], np.nan)
    return table.assign(drawn=np.arange(n) < 15)


def test_a_predictor_that_is_the_speed_wins():
    told = atlas.predictors_table(found())
    assert told.loc["‖b̂‖", "last layer, all"].startswith(("0.99", "1.00"))
    assert told.loc["linear probe, margin", "all parameters, drawn"].startswith("1.00 (1.00")
    better = atlas.advantage_table(found())
    ahead = better.loc["linear probe, margin", "all parameters, drawn"]
    low = float(ahead.split("(")[1].split(" to ")[0])
    assert low > 0


def test_an_advantage_is_a_difference_of_rank_correlations():
    rng = np.random.default_rng(1)
    one, other, speeds = rng.normal(size=(3, 30))
    middle, low, high = atlas.advantage(one, other, speeds)
    a, b = (stats.spearmanr(x, speeds).statistic for x in (one, other))
    assert middle == pytest.approx(a - b) and low < middle < high
    assert atlas.advantage(one, one, speeds) == (0, 0, 0)


def test_a_reason_for_the_surprise_is_found():
    table = found()
    surprise = atlas.surprise(table, "last layer, all")
    assert surprise.sum() == 0
    assert stats.spearmanr(surprise, table["length"]).statistic > 0.5
    told = atlas.reasons_table(table).loc["length of the prompt, tokens", "last layer, all"]
    assert float(told.split()[0]) > 0.5


def test_few_behaviors_get_a_dash():
    table = found(12).assign(drawn=False)
    assert (atlas.predictors_table(table)["all parameters, drawn"] == "–").all()
    assert (atlas.reasons_table(table.head(5)) == "–").all(axis=None)


def test_pairs_that_the_bounds_part_are_decided():
    table = found(4).assign(drawn=False)
    table["certified"], table["certified, most"] = [0.0, 1, 2, 3], [0.5, 2.5, 2.6, 4]
    table["last layer"], table["apart"] = [0.0, 1, 2, -1], [4.0, 3, 2, 1]
    row = atlas.decided_table(table).loc["last layer, all"]
    # Undecided is the pair in the middle; the last is the slowest, against the bounds.
    assert row["pairs"] == 6 and row["proven"] == pytest.approx(5 / 6)
    assert row["of these as proven"] == pytest.approx(2 / 5)
    assert row["all as ‖b̂‖ says"] == pytest.approx(3 / 6)


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
    page = browse(table, 'A "caption"', name="it", axes=("b<", "a"), hues={"z": "#123456"})
    cells = Cells()
    cells.feed(page.data)
    rows = [attrs for tag, attrs in cells.tags if tag == "tr"]
    assert [row.get("data-hue") for row in rows] == [None, "", "#123456"]
    numbers = [attrs.get("data-v") for tag, attrs in cells.tags if tag == "td"]
    assert numbers == ["1", "2.5", None, "3"]
    assert "x & y" in cells.text and "b<" in cells.text
    assert '[right.value, up.value] = ["1", "0"]' in page.data
    assert "http" not in page.data.replace("http://www.w3.org/2000/svg", "")
