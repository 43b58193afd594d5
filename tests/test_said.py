"""What pages say in words of the recorded runs: recorded anew with another outcome, they must say
something else."""

import re

import cells
import numpy as np
import pytest

from experiments import (
    full_finetuning,
    hh_rlhf,
    misalignment,
    priorities,
    remedy,
    second_llm,
)
from ledger.config import configure
from ledger.store import RunStore


@pytest.fixture(scope="module")
def records() -> RunStore:
    return RunStore(configure({}))


def test_full_finetuning(records):
    """At the paper's rate behavior 2 is first with every seed; at the scaled one 5 overtakes it."""
    for part in (0, 1):
        areas = full_finetuning.areas(records, 0.01, 1e-5, part)
        assert (areas.argmin(0) == 1).all()
    rate = full_finetuning.rates(records, 0.01)["scaled"]
    held_out = full_finetuning.stacked(
        records, full_finetuning.MAIN["book"], 0.01, rate, "loss", (0,)
    )[:, 0, 0, 1]
    assert held_out[4, -1] < held_out[1, -1]


def test_misalignment(records):
    everyone = misalignment.everyone(records)
    rates = full_finetuning.rates(records, 0.01)
    for name in rates:
        losses = misalignment.flipped(records, everyone, name, "loss")
        leads = misalignment.lead(np.moveaxis(losses, 3, 2))
        assert (leads > 0).all()
        assert name != "paper" or (leads[0] < leads[1:] / 2).all()
    accuracy = misalignment.flipped(records, everyone, "scaled", "accuracy")[:, :, :, 1]
    there = accuracy >= 0.75
    never = ~there.any(-1)
    assert not never[:, :, 0].any() and never[:, :, 1].sum() == never[0, :, 1].sum() == 1
    later = (there.argmax(-1)[:, :, 1] - there.argmax(-1)[:, :, 0])[~never[:, :, 1]]
    assert later.min() < 0 < np.median(later) < 5
    gap = misalignment.flipped(records, everyone, "scaled", "gap")[:, :, :2, 1]
    changed = gap[..., -1] - gap[..., 0]
    assert (changed[:, :, 1] > changed[:, :, 0]).all()
    moved = misalignment.flipped(records, everyone, "scaled", "moved")[..., -1]
    assert (moved[:, :, 1] < moved[:, :, 0]).all()
    apart = misalignment.flipped(records, everyone, "scaled", "apart")[:, :, :2]
    lowest = np.nanmin(apart[:, :, 1], -1)
    assert (lowest > 2 * apart[:, :, 0, 0]).all(), "never back where the base model was"
    assert (lowest < apart[:, :, 1, 0]).all()
    assert np.median(lowest / apart[:, :, 1, 0]) < 0.5
    certified = misalignment.flipped(records, everyone, "scaled", "certified")[:, 0]
    assert (certified[:, 1, 1] < certified[:, 0, 0])[:, 1:].all()
    attacks = [misalignment.undone_run(records, b, rates["scaled"], 0).arrays for b in everyone]
    enough = [a["pairs"][a["gap"] <= a["base"][0]][0] for a in attacks[:]]
    assert sorted(enough)[-2:] == [10, 30]


def test_hh_rlhf(records):
    rates = hh_rlhf.rates(records)
    assert rates["scaled"] == max(hh_rlhf.FACTORS["book"]) * hh_rlhf.RATE
    runs = hh_rlhf.arms(records, rates["scaled"])
    base, own, other, merged = runs.values()
    train, held_out = (
        [np.stack([base["loss"][part], run["loss"][part]]) for run in (own, merged)]
        for part in (0, 1)
    )
    leads = [misalignment.lead(losses) for losses in train]
    assert leads[0] > leads[1] > leads[0] / 2 > 0
    for losses in held_out:
        ahead = losses[0] - losses[1]
        assert np.nanargmax(ahead) <= len(ahead) / 3 and ahead[-1] < np.nanmax(ahead) / 10
    assert ahead[-1] < 0, "with a new adapter the base model is ahead at the end"
    gaps = [hh_rlhf.gap(run) for run in (base, own, other)]
    undone = [hh_rlhf.undone(gaps[0][:1], gap)[-1] for gap in gaps[1:]]
    assert undone[0] < 0.9 < 1 < undone[1]
    before, after = hh_rlhf.aligned_run(records, rates["scaled"], 0).arrays["each"].mean(1)
    fall = before - after
    assert (fall > 2 * (fall[1] - fall[0])).all() and fall[1] > fall[0] > 0
    for what in ("preferred", "other"):
        assert base[what][-1] < base[what][0]
        assert own[what][0] < own[what][-1] < base[what][0]
    losses = np.stack([run["loss"][0] for run in hh_rlhf.arms(records, rates["paper"]).values()])
    noise = (losses[0] - losses[1])[:-1]
    assert abs(misalignment.lead(losses)) < 2 * noise.std(ddof=1) / np.sqrt(len(noise))
    starts = [run["each"][0] for run in hh_rlhf.arms(records, rates["paper"]).values()]
    base_gaps, own_gaps, _, merged_gaps = (-np.diff(each.astype(float))[:, 0] for each in starts)
    rounding, added = merged_gaps - own_gaps, own_gaps - base_gaps
    assert np.sqrt((rounding**2).mean()) > 0.5 * np.sqrt((added**2).mean())
    before, after = hh_rlhf.aligned_run(records, rates["scaled"], 0).arrays["each"].astype(float)
    first, last = (-np.diff(each.astype(float))[:, 0] for each in other["each"])
    assert np.corrcoef(first - last, -np.diff(after - before)[:, 0])[0, 1] > 0.99


def test_second_llm():
    """What chapter 9 says of what it computes."""
    page = cells.executed("09_mistral")
    records, other, rates, survey = page.records, page.other, page.rates, page.survey
    shared = {what: second_llm.agreement(*survey[what].to_numpy().T) for what in ("apart", "clean")}
    assert len(survey) == 100 and all(low > 0.8 for _, low, _ in shared.values())
    _, low, high = second_llm.agreement(*survey["length"].to_numpy().T)
    assert low < 0 < high

    first, second = (
        page.steps.loc[who.config.model, "per 1e-6 of η"].to_numpy() for who in (records, other)
    )
    assert second.min() > 4 * first.max()
    assert abs(first[1] / first[0] - 1) < 0.1 and second[1] > 1.5 * second[0]

    apart = page.apart
    assert abs(apart[1] / apart[3] - 1) < 0.03
    for name, rate in rates.items():
        area = page.losses[rate][:, 1].mean(-1)
        order = np.argsort(-area) if name == "paper" else np.argsort(-area)[[0, 1, 3, 2, 4]]
        assert order.tolist() == np.argsort(apart).tolist() and area.argmin() == 4

    levels = page.priorities["|P₁ − P₂|"]
    assert levels["(a)"] > 2 * levels["(b)"]
    for name, rate in rates.items():
        a, b = (page.pair_losses[letter, rate][:, 1:] for letter in "ab")
        ratio = np.abs(a[0] - a[1]).mean() / np.abs(b[0] - b[1]).mean()
        assert (1 < ratio < 1.05) if name == "paper" else (1.6 < ratio < 1.75)
        assert (b[0] < b[1]).all(), "the less distinguishable of (b) leads"

    for rate in rates.values():
        low, high = (
            [page.leads[b, f"{rate:g}"][what] for what in ("lead", "lead, held-out")]
            for b in page.two
        )
        assert min(low) > 0 and (np.array(low) < np.array(high) / 4).all()
    overtaken = {
        (b == page.two[0], rate, what): np.subtract(
            *(losses[np.isfinite(losses)][-1] for losses in runs[:2, part])
        )
        < 0
        for (b, rate), runs in page.flipped.items()
        for part, what in enumerate(("batch", "held out"))
    }
    batch, held_out = (
        {key[:2] for key, so in overtaken.items() if so and key[2] == what}
        for what in ("batch", "held out")
    )
    assert len(batch) == 3 and (False, rates["scaled"]) not in batch
    assert held_out == {(True, rates["scaled"])}

    for (b, rate), arrays in page.trained.items():
        apart, variance = (arrays[x].astype(float) for x in ("apart", "covariance"))
        q1, q2 = variance / apart, variance / apart**2
        assert q1[1, 0] > q1[0, 0] and q2[1, 0] < q2[0, 0]
        assert (apart[1] > 3 * apart[0]).all()
        below = q2[1, 0] < other.states(b).along[0]
        assert below or (b == page.two[0] and rate == rates["paper"])


def test_atlas():
    """What chapter 10 says of its tables."""
    page = cells.executed("10_atlas")
    found, lengths = page.found, page.lengths[page.drawn]
    assert len(lengths) == 20 and sorted(lengths)[:2] == [page.steps, 29]
    assert page.steps == 15 and lengths.iloc[:10].min() == 15, "half as many steps"

    def rho(of, what):
        y = page.speed_of(found, what)
        return second_llm.agreement(found.loc[y.index, of].to_numpy(), y.to_numpy())

    def ahead(of, what):
        y = page.speed_of(found, what)
        x = found.loc[y.index, [of, "apart"]]
        return page.advantage(*x.to_numpy().T, y.to_numpy())

    held_out, training = "last layer, all", "last layer, training"
    for best in ("apart", "certified"):
        assert rho(best, held_out)[0] > 0.9 and rho(best, training)[0] > 0.99
    middle, low, high = ahead("certified", held_out)
    assert low < 0 < high and abs(middle) < 0.02
    for worse in ("probe margin", "probe accuracy", "base accuracy", "base gap"):
        for what in (held_out, training, "last layer, drawn"):
            assert ahead(worse, what)[2] < 0
    for little in ("base accuracy", "base gap"):
        assert rho(little, held_out)[0] < 0.4

    full = "all parameters, drawn"
    rhos = {of: rho(of, full) for of in page.titles}
    near = [rhos[of][0] for of in ("probe margin", "certified", "apart")]
    assert max(rhos.values())[0] == max(near) and np.ptp(near) < 0.06
    assert rhos["apart"][1] > 0.2 and rhos["apart"][0] < rho("apart", "last layer, drawn")[0] - 0.1
    assert all(high - low > 0.25 for _, low, high in rhos.values())
    order = found.loc[page.drawn]
    first, second = (
        second_llm.agreement(half["apart"].to_numpy(), half["all parameters"].to_numpy())[0]
        for half in (order[:10], order[10:])
    )
    assert first > 0.9 and second < 0.5
    for other in set(rhos) - {"apart"}:
        _, low, high = ahead(other, full)
        assert low <= 0 <= high

    first_steps, epoch = (
        page.same_behaviors[column].map(lambda cell: ranks(cell)[0])
        for column in page.same_behaviors
    )
    assert len(page.full_epoch) == 19 and page.same_behaviors.columns[1] == "29 steps"
    for more in ("margin", "accuracy"):
        assert epoch[f"linear probe, {more}"] > first_steps[f"linear probe, {more}"] + 0.05
    assert abs(epoch["‖b̂‖"] - first_steps["‖b̂‖"]) < 0.05
    assert epoch["linear probe, margin"] > sorted(epoch)[-2] + 0.1
    _, low, high = ranks(page.ahead)
    assert low < 0 < high

    decided = page.shares.astype(float)
    assert (decided["decided"] > 0.9).all()
    assert (decided["of these as proven"].drop(full) > 0.9).all()
    assert 0.75 < decided.loc[full, "of these as proven"] < 0.8
    assert decided.loc[training, "of these as proven"] > 0.99
    for what in set(decided.index) - {training}:
        share, all_of_them = decided.loc[what, ["of these as proven", "all as ‖b̂‖ orders"]]
        assert 0 < share - all_of_them < 0.05

    outside = set()
    for what in set(page.atlas.SPEEDS) - {training}:
        surprise = page.surprise(found, what)
        for reason in page.reasons:
            x = found.loc[surprise.index, reason].to_numpy()
            _, low, high = second_llm.agreement(x, surprise.to_numpy())
            outside |= set() if low < 0 < high else {(what, reason)}
    assert outside == {(held_out, "along"), (full, "base accuracy")}
    x = found.loc[page.surprise(found, full).index, "base accuracy"]
    assert second_llm.agreement(x.to_numpy(), page.surprise(found, full).to_numpy())[1] > 0
    largest = page.surprise(found, held_out).abs().sort_values().index[-5:]
    assert (page.surprise(found, training)[largest].abs() < 5).all()


def _changed(before, after, short: int, long: int) -> dict[str, np.ndarray]:
    """What an arm changes, as the chapter's table has it: losses (m, T + 1, seeds) each."""
    gaps = [np.ptp(losses, axis=0).mean(0) for losses in (before, after)]
    difference = (after - before).mean(1)
    return {
        "mean gap, times": gaps[1] / gaps[0],
        "mean loss of the shortest": difference[short],
        "mean loss of the longest": difference[long],
        "mean loss of all": difference.mean(0),
    }


def test_remedy(records):
    mixed = remedy.mixture_behaviors(records.config)
    ends = {}
    for letter, behaviors in mixed.items():
        length = np.linalg.norm(priorities.differences(records, behaviors), axis=1)
        ends[letter] = int(length.argmin()), int(length.argmax())
    better = 0
    for letter, behaviors in mixed.items():
        for part in (0, 1):
            plain, *others = remedy.head(records, letter, part).values()
            for losses in others:
                found = {k: np.median(v) for k, v in _changed(plain, losses, *ends[letter]).items()}
                assert found["mean gap, times"] < 0.05
                short, long = (found[f"mean loss of the {x}"] for x in ("shortest", "longest"))
                assert short < 0 < -short < long and found["mean loss of all"] > 0
                assert letter != "(b)" or long > -5 * short
                assert letter != "(a)" or long < -2 * short
        once, again = (
            np.ptp(remedy.head(records, letter)[arm], axis=0).mean()
            for arm in (remedy.ARMS[1], remedy.ARMS[3])
        )
        better += again < once
        weights = remedy.head_run(records, behaviors).arrays["weights"]
        assert np.ptp(weights, axis=0).max() < 0.01
    assert better == 1
    changed = {
        key: {k: float(v[0]) for k, v in _changed(*arms.values(), *ends[key[0]]).items()}
        for key, arms in remedy.everything(records).items()
    }
    for key, found in changed.items():
        short, long = (found[f"mean loss of the {x}"] for x in ("shortest", "longest"))
        assert long > max(-short, 0)
        if key[0] == "(a)":
            assert 0.5 < found["mean gap, times"] < 0.75 and short > 0
            continue
        assert found["mean gap, times"] > 1 and 0 < -short < long / 10
        after = remedy.everything(records)[key][remedy.ARMS[2]][:, 1:, 0]
        lowest, highest = ends[key[0]]
        assert (after[highest] > after[lowest]).mean() > 0.8


def ranks(cell: str) -> list[float]:
    """A rank correlation and its interval, as tables have them."""
    return [float(x) for x in re.findall(r"-?\d\.\d+", cell)]


def test_audit_of_mixtures():
    page = cells.executed("11_audit_your_data")
    assert len(page.mixture) == 16
    for growth in ("first step", "last layer"):
        rho = {name: ranks(cell) for name, cell in page.order[growth].items()}
        best = rho.pop("speed, in the mixture")[0]
        assert best > 0.85 and best > max(other[0] for other in rho.values()) + 0.2
        right = [int(cell.split()[0]) / 24 for cell in page.within[growth].values()][:2]
        assert 0.7 < right[0] < 0.8 and right[0] == right[1]
    for growth in page.measured:
        for name in ("base gap", "already right"):
            _, low, high = ranks(page.order[growth][name])
            assert low < 0 < high
    rho = [ranks(cell) for cell in page.order["all parameters"].values()][:3]
    assert all(0 < low < mean < 0.75 for mean, low, _ in rho)
    assert np.ptp([mean for mean, *_ in rho]) < 0.1
    right = page.within["all parameters"]["speed, in the mixture"].split()
    assert right[2] == "24" and 0.5 < int(right[0]) / 24 < 0.65


def test_audit_of_wrong_labels():
    table = cells.executed("11_audit_your_data").wrong_labels
    assert table["AUC"].min() > 0.8 and (table["AUC"] > 0.9).sum() == 3
    assert (
        table["AUC, shared part kept"].between(0.6, 0.7).all() and table["of the worst"].min() > 0.5
    )
    assert table["against before"].between(0.1, 0.25).all()


def test_audit_of_dialogues(records):
    page = cells.executed("11_audit_your_data")
    kinds = page.groups
    assert (kinds["speed"] > 0).all()
    assert (kinds["speed"] < 2 * kinds["its error"]).sum() == 2
    grown = kinds["grown"] / kinds["± grown"]
    assert grown["chosen is shorter"] > 3 and grown["chosen is longer"] < -3
    mean, low, _ = ranks(page.by_pair["speed"])
    assert 0 < low < mean < 0.4
    assert ranks(page.by_pair["tokens, chosen less rejected"])[0] < -0.8
    assert ranks(page.by_pair["base gap"])[0] > 0.8
    rate = hh_rlhf.rates(records)["scaled"]
    before, after = hh_rlhf.aligned_run(records, rate, 0).arrays["each"].mean(1)
    assert (after < before).all(), "both responses have become less likely"
