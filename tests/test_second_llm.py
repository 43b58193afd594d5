"""Chapter 9: its runs use the second model; its measures, on arrays made for the test."""

from types import SimpleNamespace

import cells
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dpo_helpers import data, lm
from dpo_helpers.states import geometry, hidden_states
from experiments import full_finetuning as full
from experiments import misalignment, second_llm, shared
from ledger.config import FIVE, configure
from ledger.store import RunStore
from workflow import claims

pytestmark = pytest.mark.usefixtures("one_thread")

BEHAVIOR = "loves-gardening"
BOOK = RunStore(configure({}))
ORDER = claims.Claim(
    id="F10",
    where="Figure 10",
    statement="The losses fall in the order of distinguishability.",
    notebook="09_mistral",
    run="full/SECOND/*/beta-0.01-*",
    measure="training_order",
    reproduced=">= 0.9",
)


@pytest.fixture(scope="module")
def records(home):
    """The smoke tier's, with a tiny Llama for the first model."""
    return RunStore(configure({"tier": "smoke", "model": "tiny-llama"}), home / "results")


@pytest.fixture(scope="module")
def plain(home):
    """The same under the second model, hidden states and all."""
    config = configure({"tier": "smoke", "model": "tiny-mistral"})
    return RunStore(config, home / "plain")


def test_the_claims_of_the_chapter_are_judged_on_the_second_model():
    rows = [claim for claim in claims.ledger() if claim.notebook == "09_mistral"]
    figures = [claim.id.removeprefix("F").rstrip("ab") for claim in rows]
    assert figures == ["10", *(number for number in ("11", "12", "13", "14") for _ in "ab")]
    assert all("/SECOND/" in claim.run for claim in rows)


def test_the_second_model_in_the_first_ones_store(records):
    other = second_llm.second(records)
    assert other.config.model == "tiny-mistral" and records.config.model == "tiny-llama"
    assert other.root == records.root and other.used is records.used
    for name in ("data", "behaviors", "beta", "full_learning_rate", "newline", "device"):
        assert getattr(other.config, name) == getattr(records.config, name)
    assert second_llm.second(BOOK).config.full_seeds == (0,), "the first seed alone"


def test_an_outline_has_what_the_states_have(records, plain):
    outline, whole = second_llm.second(records).states(BEHAVIOR), plain.states(BEHAVIOR)
    assert outline.geometry == geometry(whole.g, whole.labels)
    assert np.array_equal(outline.g, whole.g)
    for name in ("labels", "train", "rows", "boundary"):
        assert np.array_equal(getattr(outline, name), getattr(whole, name)), name
    g, labels = whole.g[whole.train], whole.labels[whole.train]
    b = g[labels > 0].mean(0) - g[labels < 0].mean(0)
    assert outline.b == pytest.approx(b, abs=1e-6)
    assert not list(records.root.glob("hidden/tiny-mistral")), "the store keeps no hidden states"


def test_outlines_are_replayed_without_the_states(records, tmp_path, monkeypatch):
    before = second_llm.second(records).states(BEHAVIOR)
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path))
    again = second_llm.second(RunStore(records.config, records.root)).states(BEHAVIOR)
    assert again.sha256 == before.sha256 and again.geometry == before.geometry
    assert not list(tmp_path.iterdir()), "nothing was measured"


def test_a_run_is_what_the_second_model_alone_gives(records, plain):
    """Under the first model's name nothing is written, and the first model's losses are others."""
    how = dict(behaviors=[BEHAVIOR], beta=1.0, rate=1e-2, seed=1)
    run = full.trained_run(second_llm.second(records), **how)
    assert run.name.startswith("full/tiny-mistral/")
    alone = full.trained_run(plain, **how)
    for name, values in alone.arrays.items():
        assert np.array_equal(run.arrays[name], values, equal_nan=True), name
    other = full.trained_run(records, **how)
    assert other.name.startswith("full/tiny-llama/")
    assert not np.allclose(other.arrays["gap"], run.arrays["gap"], equal_nan=True)


@pytest.mark.parametrize(("tier", "model"), shared.SECOND.items())
def test_which_runs_are_made(monkeypatch, tier, model):
    """Each of the second model; the survey of both."""
    made = []

    def note(kind):
        def run(records, behavior=None, *settings):
            made.append((kind, records.config.model, behavior, *settings))

        return run

    monkeypatch.setattr(full, "trained_run", note("full"))
    monkeypatch.setattr(misalignment, "flipped_run", note("flipped"))
    monkeypatch.setattr(second_llm, "survey_run", note("survey"))
    monkeypatch.setattr(full, "factor", lambda _: 10.0)
    records = RunStore(configure({"tier": tier}))
    for run in second_llm.RUNS:
        run(records)
    trained = [entry for entry in made if entry[0] != "survey"]
    assert {entry[1] for entry in trained} == {model}
    surveyed = [entry[1] for entry in made if entry[0] == "survey"]
    assert surveyed == [records.config.model, model]
    rates = {1e-4} if tier == "smoke" else {1e-6, 1e-5}
    assert {entry[-2] for entry in trained} == rates
    if tier != "smoke":
        alone = {entry[2][0] for entry in made if entry[0] == "full" and len(entry[2]) == 1}
        assert alone == {*FIVE, second_llm.OTHER[tier]}
        flipped = {entry[2] for entry in made if entry[0] == "flipped"}
        assert flipped == {FIVE[0], second_llm.OTHER[tier]}
        assert len(made) == 2 * (6 + 2 + 2) + 2


def test_rates_and_pairs_are_the_second_models(monkeypatch):
    monkeypatch.setattr(full, "factor", lambda _: 30.0)
    other = second_llm.second(BOOK)
    assert full.rates(other, 0.01) == pytest.approx({"paper": 1e-6, "scaled": 3e-5})
    assert full.rates(BOOK, 0.01) == pytest.approx({"paper": 1e-5, "scaled": 3e-4})
    assert shared.pairs(BOOK.config) == shared.PAIRS["book"]
    assert shared.pairs(other.config) == shared.SECOND_PAIRS["book"]
    (_, one), (_, another) = shared.SECOND_PAIRS["book"]
    assert one == another, "the pairs of Figure 12 share a behavior"


def test_the_survey_by_hand(records):
    other = second_llm.second(records)
    for name, who in (("tiny-llama", records), ("tiny-mistral", other)):
        arrays = second_llm.survey_run(who).arrays
        table = pd.DataFrame(arrays).set_index("behaviors").astype(float)
        assert list(table.index) == data.behaviors("sample") and BEHAVIOR in table.index
        behavior = data.load_behavior(BEHAVIOR)
        rows = data.split(len(behavior.labels))[0][: second_llm.SURVEYED]
        model = lm.load(name, "cpu")
        g = hidden_states(model, [behavior.prompts()[row] for row in rows]).astype(float)
        labels = behavior.labels[rows]
        sides = [g[labels == side] for side in (1, -1)]
        apart = np.linalg.norm(sides[0].mean(0) - sides[1].mean(0))
        assert table.loc[BEHAVIOR, "apart"] == pytest.approx(apart, rel=1e-5)
        extra = sum(np.trace(np.cov(side.T)) / len(side) for side in sides)
        assert table.loc[BEHAVIOR, "noise"] == pytest.approx(extra, rel=1e-5)
        length = np.linalg.norm(g, axis=1).mean()
        assert table.loc[BEHAVIOR, "length"] == pytest.approx(length, rel=1e-5)
    again = second_llm.survey_run(second_llm.second(RunStore(records.config, records.root)))
    assert again.info == second_llm.survey_run(other).info, "replayed"


@pytest.mark.parametrize("noise", [second_llm.noise, cells.functions("09_mistral").noise])
def test_the_noise_of_two_means(noise):
    """On average over draws, what it adds to the squared distance, sides of different size."""
    rng = np.random.default_rng(0)
    b, labels = np.array([1.0, 0, 0]), np.repeat([1, -1], [12, 20])
    scale = np.where(labels[:, None] > 0, 2.0, [0.5, 1.0, 3.0])
    found = []
    for _ in range(4000):
        g = (labels[:, None] > 0) * b + scale * rng.standard_normal((32, 3))
        difference = g[labels > 0].mean(0) - g[labels < 0].mean(0)
        found.append((difference @ difference - b @ b, noise(g, labels)))
    extra = 12 / 12 + 10.25 / 20
    assert np.mean(found, 0) == pytest.approx([extra, extra], rel=0.06)


@pytest.mark.parametrize("m", [6, 100])
def test_agreement_is_scipys_rank_correlation(m):
    rng = np.random.default_rng(m)
    one = rng.normal(size=m)
    other = np.exp(one + rng.normal(size=m))
    rho, low, high = second_llm.agreement(one, other)
    assert rho == pytest.approx(stats.spearmanr(one, other).statistic)
    assert low < rho < high <= 1
    if m == 100:  # of Fisher's transform, with the variance for ranks
        half = 1.96 * np.sqrt((1 + rho**2 / 2) / (m - 3))
        want = np.tanh(np.arctanh(rho) + np.array([-half, half]))
        assert (low, high) == pytest.approx(want, abs=0.08)
    assert second_llm.agreement(one, np.exp(one))[0] == pytest.approx(1)
    assert second_llm.agreement(one, -one) == pytest.approx((-1, -1, -1))


@pytest.mark.parametrize("close", [second_llm.close, cells.functions("09_mistral").close])
def test_close_losses(close):
    """The slower has fallen by 0.1 to 0.4, the faster by 0.3; a loss that rose is not close."""
    faster = np.log(2) - np.array([0, 0.3, 0.3, 0.3, 0.3, 0.3])
    slower = np.log(2) - np.array([0, 0.1, 0.2, 0.4, 0.7, -0.1])
    want = [False, True, True, False, False]
    assert close(np.stack([faster, slower])).tolist() == want
    assert close(np.stack([slower, faster])).tolist() == want


def test_the_pair_is_judged_at_the_worse_rate(monkeypatch):
    t = np.arange(5)
    _, b = shared.SECOND_PAIRS["book"]

    def run(records, behaviors, beta, rate, seed):
        assert records.config.model == "gemma-3-270m" and beta == 0.01 and seed == 0
        speeds = (0.2, 0.15 if rate > 5e-6 else 0.01) if behaviors == b else (0.2, 0.0)
        losses = np.log(2) * np.exp(-np.outer(speeds, t))
        return SimpleNamespace(arrays={"loss": np.stack([losses, losses], 1)})

    monkeypatch.setattr(full, "trained_run", run)
    monkeypatch.setattr(full, "factor", lambda _: 10.0)
    other = second_llm.second(BOOK)
    assert second_llm.pair_close(other, "") == 0
    losses = np.log(2) * np.exp(-np.outer((0.2, 0.15), t))
    assert second_llm.close(losses).all(), "at the other rate they are close throughout"


def test_the_second_models_claims_wait_for_its_runs(tmp_path, monkeypatch):
    """Runs of the first model do not count, those of the second do."""
    records = RunStore(BOOK.config, tmp_path)
    loss = np.ones((1, 2, 30))
    records.used["full/smollm2-135m/x/beta-0.01-rate-1e-05-seed-0"] = SimpleNamespace(stale="")
    assert claims.judge(ORDER, records).verdict.startswith("not run")
    records.used["full/gemma-3-270m/x/beta-0.01-rate-1e-06-seed-0"] = SimpleNamespace(stale="")

    def run(records, behaviors, beta, rate, seed):
        assert records.config.model == "gemma-3-270m"
        return SimpleNamespace(arrays={"loss": loss * (0.7 - 0.1 * FIVE.index(behaviors[0]))})

    monkeypatch.setattr(full, "trained_run", run)
    monkeypatch.setattr(full, "factor", lambda _: 10.0)
    monkeypatch.setattr(full, "distinguishability", lambda *_: np.arange(5.0))
    verdict = claims.judge(ORDER, records)
    assert verdict.verdict == "reproduced" and verdict.values == pytest.approx((1.0,))


def test_random_weights_are_not_judged(records):
    """At the smoke tier, whatever was run."""
    other = second_llm.second(records)
    full.trained_run(other, [BEHAVIOR], beta=0.01, rate=1e-2, seed=1)
    assert other.matching("full/tiny-mistral/*/beta-0.01-*")
    assert claims.judge(ORDER, records).verdict.startswith("not run")


@pytest.fixture(scope="module")
def page():
    """What the page computes from the recorded runs."""
    return cells.executed("09_mistral")


@pytest.mark.slow
def test_a_lead_counts_the_steps_at_which_both_were_measured(page):
    """By hand from the recorded losses."""
    assert list(page.leads) == [(b, r) for r in ("1e-06", "3e-06") for b in second_llm.two(BOOK)]
    for (behavior, rate), row in page.leads.items():
        run = misalignment.flipped_run(page.other, behavior, float(rate), 0)
        base, aligned, _ = run.arrays["loss"].astype(float)
        both = np.isfinite(base[0]) & np.isfinite(aligned[0])
        assert not both.all(), "the last step has no batch"
        assert row["from base"] == pytest.approx(base[0, both].mean(), rel=1e-5)
        assert row["lead"] == pytest.approx((base - aligned)[0, both].mean(), rel=1e-3)
        held_out = (base - aligned)[1]
        assert row["lead, held-out"] == pytest.approx(np.nanmean(held_out), rel=1e-3)


@pytest.mark.slow
def test_priorities_of_the_pairs(page):
    """(5) by hand from the outlines."""
    for letter, pair in zip("ab", shared.pairs(page.other.config), strict=True):
        one, two = (page.other.states(behavior).b for behavior in pair)
        mean, longest = (one + two) / 2, max(np.linalg.norm(one), np.linalg.norm(two))
        row = page.priorities.loc[f"({letter})"]
        for name, b in (("P₁", one), ("P₂", two)):
            assert row[name] == pytest.approx(b @ mean / np.linalg.norm(mean) / longest)
        assert row["|P₁ − P₂|"] == pytest.approx(abs(row["P₁"] - row["P₂"]))


@pytest.mark.slow
def test_what_the_paper_tier_needs(page):
    """Against counts by hand: Mistral-7B has 7.24 B weights, 6.98 B of them in its layers."""
    one, pair, flipped = page.needs["GB"] / 1e9
    assert 16 * 7.2417 < one < 16 * 7.2417 + 2 * 6.98 + 10 and one == pair
    assert flipped - one == pytest.approx(2 * 4 * 7.2417, rel=1e-3)
    tokens = 29 * 683, 30 * (11 + 21 * 100)
    want = 7 * 6.9796e9 * (6 * tokens[0] + 2 * tokens[1])
    assert page.needs["10¹⁵ operations"].iloc[0] == pytest.approx(want, rel=1e-3)
