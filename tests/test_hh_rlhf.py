"""Chapter 8: log-probabilities against transformers, runs against plain training, its measures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_helpers import data, finetune, lm
from dpo_helpers.errors import InputError
from dpo_helpers.lm import lora, tiny
from experiments import hh_rlhf
from ledger.config import configure
from ledger.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")

RATE, LENGTH = 1e-2, 260


@pytest.fixture(scope="module")
def home(home):
    """The shared folder, with a copy of the sample; longer pairs than the tier's are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hh_rlhf.LENGTH, "smoke", LENGTH)
        shutil.copytree(Path(data.__file__).parent / "sample", home / "data")
        yield home


@pytest.fixture(scope="module")
def records(home):
    config = configure(
        {
            "tier": "smoke",
            "model": "tiny-llama",
            "beta": 1.0,
            "data": str(home / "data"),
            "full_learning_rate": RATE,
        }
    )
    return RunStore(config, home / "results")


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-gemma"])
def test_log_probabilities(name):
    """Against the logits of a plain forward pass over each sequence by itself."""
    model = lm.load(name, "cpu")
    pairs = lm.pairs_from_text(model, list(data.load_pairs())[:5])
    with torch.no_grad():
        found = lm.log_probabilities(model.network, pairs)
        assert found.shape == (5, 2)
        for row, prompt, *both in zip(
            found, pairs.prompts, pairs.chosen, pairs.rejected, strict=True
        ):
            for value, response in zip(row, both, strict=True):
                ids = torch.tensor([prompt + response])
                logits = tiny(name.removeprefix("tiny-"))[0].eval()(ids).logits[0, :-1]
                each = logits.log_softmax(-1).gather(1, ids[0, 1:, None])
                assert value.item() == pytest.approx(each[-len(response) :].sum().item(), rel=1e-4)
        gaps = lm.log_ratios(model.network, pairs)
    assert torch.allclose(found[:, 0] - found[:, 1], gaps, atol=2e-2)


def test_which_pairs_are_kept():
    model = lm.load("tiny-llama", "cpu")
    rows = list(data.load_pairs())
    whole = [
        [model.tokenizer(r["prompt"] + r[x] + "</s>").input_ids for x in ("chosen", "rejected")]
        for r in rows
    ]
    want = [[len(ids) for ids in both] for both in whole]
    assert hh_rlhf.lengths(model, rows).tolist() == want
    short = [r for r, both in zip(rows, want, strict=True) if max(both) <= LENGTH]
    assert 10 <= len(short) < len(rows)
    equal = {"prompt": "a", "chosen": "b", "rejected": "b"}
    learned, held_out = hh_rlhf.kept(model, [equal, *rows, equal], LENGTH)
    one, other = lm.pairs_from_text(model, short).split()
    assert (learned.sha256, held_out.sha256) == (one.sha256, other.sha256)
    for given, length in ((rows, 3), ([equal] * 20, LENGTH), (rows[:8], 10**4)):
        with pytest.raises(InputError, match="ten are needed"):
            hh_rlhf.kept(model, given, length)


def test_every_arm_is_what_it_says(records, home):
    """The same training written out, on a model of its own."""
    seed = records.config.full_seeds[0]
    base = lora.add(lm.load("tiny-llama", "cpu"), seed)
    learned, held_out = hh_rlhf.kept(base, list(data.load_pairs()), LENGTH)
    settings = finetune.Settings(
        beta=1.0,
        learning_rate=RATE,
        batch_size=len(learned) // 4,
        seed=seed,
        max_tree_tokens=hh_rlhf.TOKENS,
    )
    aligned = lora.add(lm.load("tiny-llama", "cpu"), seed)
    given = finetune.train(aligned, learned, settings, home / "given", held_out, progress=False)
    found = hh_rlhf.aligned_run(records, RATE, seed).arrays
    assert np.allclose(found["loss"][0], given.loss[0, 0], equal_nan=True, rtol=1e-5)
    assert np.allclose(found["loss"][1, [0, -1]], given.loss[0, 1, [0, -1]], rtol=1e-5)
    with torch.no_grad():
        before, after = (lm.log_probabilities(m.network, held_out) for m in (base, aligned))
    assert np.allclose(found["each"], np.stack([before, after]), rtol=1e-3)
    assert abs(found["each"][1] - found["each"][0]).max() > 0.1, "it learned"
    state = {name: weight.clone() for name, weight in aligned.network.state_dict().items()}
    of = {
        name: [-finetune.reference_log_ratios(m, part, settings) for part in (learned, held_out)]
        for name, m in (("base", base), ("aligned", aligned))
    }
    arms = hh_rlhf.arms(records, RATE)
    assert list(arms) == list(hh_rlhf.ARMS)
    for (start, reference), arrays in arms.items():
        model = lora.add(lm.load("tiny-llama", "cpu"), seed)
        if start != "base":
            model.network.load_state_dict(state)
        if start == "merged":
            model = lora.add(lora.merge(model), seed)
        own = [
            -finetune.reference_log_ratios(model, part, settings) for part in (learned, held_out)
        ]
        want = finetune.train(
            model,
            learned.flipped(),
            settings,
            home / f"{start}-{reference}",
            held_out.flipped(),
            reference=of.get(reference, own),
            progress=False,
        )
        at = np.isfinite(arrays["gap"][1])
        assert at.sum() > 2, "measured along the way"
        assert np.allclose(arrays["loss"][0], want.loss[0, 0], equal_nan=True, rtol=1e-5)
        assert np.allclose(arrays["gap"][1, at], want.gap[0, 1, at], rtol=1e-5)
        gap = hh_rlhf.gap(arrays)
        assert np.allclose(arrays["preferred"][at] - arrays["other"][at], gap[at], atol=0.05)
        assert np.allclose(
            arrays["each"].mean(1),
            arrays["preferred"][[0, -1], None] * [1, 0] + arrays["other"][[0, -1], None] * [0, 1],
            rtol=1e-4,
        )
        assert gap[-1] < gap[0], "flipped labels lower the gap of the labels as given"
    starts = {arm: arrays["each"][0] for arm, arrays in arms.items()}
    assert np.allclose(starts["base", "base"], before, rtol=1e-3)
    assert np.array_equal(starts["aligned", "base"], starts["aligned", "aligned"])
    assert np.allclose(starts["merged", "merged"], starts["aligned", "aligned"], rtol=2e-3)
    own = [arms[arm]["loss"][1, 0] for arm in arms if arm[0] == arm[1]]
    assert own == pytest.approx([np.log(2)] * 3, abs=1e-4)
    assert arms["aligned", "base"]["loss"][1, 0] > np.log(2) + 1e-3, "its reference is another"
    left = [path.name for path in (home / "cache" / "training").iterdir()]
    assert len(left) == 1, "of the runs only the aligned adapter stays in the cache"


def test_runs_replay_without_the_data_and_the_pairs_are_counted(records, home):
    pairs = hh_rlhf.pairs_run(records)
    assert pairs.arrays["tokens"].shape == (40, 2) and not pairs.arrays["equal"].any()
    before = {arm: hh_rlhf.flipped_run(records, *arm, RATE, 0).sha256 for arm in hh_rlhf.ARMS}
    (home / "data" / "hh-rlhf").rename(home / "elsewhere")
    try:
        again = RunStore(records.config, home / "results")
        for arm, sha256 in before.items():
            run = hh_rlhf.flipped_run(again, *arm, RATE, 0)
            assert run.sha256 == sha256 and run.missing == ("HH-RLHF",) and not run.stale
        with pytest.raises(InputError, match="hh-rlhf"):
            hh_rlhf.aligned_run(again, 2 * RATE, 0)
    finally:
        (home / "elsewhere").rename(home / "data" / "hh-rlhf")


def test_other_pairs_are_another_run(records, home):
    file = next((home / "data" / "hh-rlhf").rglob("test.jsonl*"))
    text = file.read_text()
    file.write_text("\n".join(text.splitlines()[:-1]))
    try:
        run = hh_rlhf.pairs_run(RunStore(records.config, home / "results"))
        assert len(run.arrays["equal"]) == 39
    finally:
        file.write_text(text)


def made(monkeypatch, gaps, losses, held_out=(0.69, 0.6, 0.65, 0.7)):
    """Runs of made-up arrays, by arm and learning rate: gaps and losses (arms, T + 1)."""

    def aligned(_, rate, seed):
        at = hh_rlhf.FACTORS["book"].index(round(rate / hh_rlhf.RATE))
        loss = np.full((2, 4), np.nan)
        loss[1, -1] = held_out[at]
        return type("Run", (), {"arrays": {"loss": loss}})

    def flipped(_, start, reference, rate, seed):
        at = hh_rlhf.ARMS.index((start, reference))
        loss, gap = np.array(losses(rate)[at], float), np.array(gaps(rate)[at], float)
        arrays = {"loss": np.stack([loss, loss]), "gap": np.stack([gap, -gap])}
        return type("Run", (), {"arrays": arrays})

    monkeypatch.setattr(hh_rlhf, "aligned_run", aligned)
    monkeypatch.setattr(hh_rlhf, "flipped_run", flipped)
    return RunStore(configure({}))


def test_the_rule_looks_at_given_labels_only(monkeypatch):
    records = made(monkeypatch, None, None)
    assert hh_rlhf.rates(records) == {"paper": 1e-5, "scaled": 1e-4}
    records = made(monkeypatch, None, None, (0.5, 0.5, 0.5, 0.4))
    assert hh_rlhf.rates(records) == {"paper": 1e-5, "scaled": 1e-3}
    mine = RunStore(configure({"full_learning_rate": 3e-4}))
    assert hh_rlhf.rates(mine) == {"given": 3e-4}


def test_measures(monkeypatch):
    nan = np.nan

    def gaps(rate):
        aligned = [9, 7, nan, 4] if rate > 1e-5 else [9, 4, nan, 2]
        return [1, 0, nan, -1], aligned, [9, 9, 9, 9], [9, 9, 9, 9]

    def losses(rate):
        aligned = [0.7, 0.5, 0.3, nan] if rate > 1e-5 else [0.7, 0.6, 0.6, nan]
        return [0.7, 0.65, 0.6, nan], aligned, [1] * 4, [1] * 4

    records = made(monkeypatch, gaps, losses)
    assert hh_rlhf.hh_lead(records, "") == pytest.approx((0 + 0.05 + 0) / 3)
    # At the worse rate 9 → 4, of the 8 that aligning had added: 5.
    assert hh_rlhf.hh_undone(records, "") == pytest.approx(5 / 8)
    share = hh_rlhf.undone(np.array([1.0, 0, -1]), np.array([9.0, 5, -1]))
    assert share == pytest.approx([0, 3 / 8, 1])


def test_aligning_that_added_nothing_is_not_undone(monkeypatch):
    def gaps(_):
        return [1, 0, -1, -2], [1, 0, -1, -2], [1] * 4, [1] * 4

    def at_one(rate):
        return gaps(rate) if rate == 1e-5 else ([1] * 4, [9, 7, 5, 3], [9] * 4, [9] * 4)

    records = made(monkeypatch, gaps, lambda _: np.zeros((4, 4)))
    assert np.isnan(hh_rlhf.hh_undone(records, ""))
    records = made(monkeypatch, at_one, lambda _: np.zeros((4, 4)))
    assert hh_rlhf.hh_undone(records, "") == pytest.approx(6 / 8)
