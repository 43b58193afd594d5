"""Chapter 11: what its runs record, on a tiny model, and how the audit is judged by them."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from dpo_helpers import audit, data, lm, mixtures
from dpo_helpers.errors import InputError
from dpo_helpers.states import hidden_states
from experiments import audit_your_data
from ledger.config import configure
from ledger.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")
BOOK = RunStore(configure({}))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPO_CACHE_DIR", str(folder / "cache"))
        config = configure({"tier": "smoke", "model": "tiny-llama", "steps": 20})
        yield RunStore(config, folder / "results")


@pytest.fixture(scope="module")
def dialogues():
    model = lm.load("tiny-llama", "cpu")
    pairs = lm.pairs_from_text(model, data.load_pairs("sample"))
    return model, audit_your_data.by_length(pairs)


def test_a_step_of_autograd_is_as_told_and_its_remainder_as_proven(dialogues):
    """prop-first-gradient, pair by pair; the bounds of the remainder from the dense update."""
    model, pairs = dialogues
    found = audit.audit(model, pairs, audit_your_data.KINDS)
    told = found.pull @ found.composition.T @ (found.counts / len(pairs))
    beta, eta = 0.1, 3.0
    kept = []

    def step(weights):
        kept.append((weights[0], weights[0].detach().clone()))
        return torch.optim.SGD(weights, lr=eta)

    grown = audit_your_data.moved(model, pairs, beta, step)
    remainder = grown - eta * beta / 2 * told
    after, before = kept[0]
    update = (after.detach() - before).float()
    bounds = np.zeros((2, len(pairs)))
    with torch.no_grad():
        for i, x in enumerate(pairs.prompts):
            for side, y in enumerate((pairs.chosen[i], pairs.rejected[i])):
                h = model.network.base_model(torch.tensor([x + y])).last_hidden_state[0]
                u = h[len(x) - 1 : -1] @ update.T
                bounds[side, i] = ((u.max(1).values - u.min(1).values) ** 2).sum() / 8
    small = 1e-4 * abs(grown).max()
    assert (remainder >= -bounds[0] - small).all() and (remainder <= bounds[1] + small).all()
    assert abs(remainder).max() > 10 * small, "a step so large that there is a remainder"


def test_of_one_token_the_step_is_as_told_however_large(records):
    model = records.model()
    behavior, _ = audit_your_data.taken(data.load_behavior("loves-gardening"), (20, 20))
    pairs = lm.pairs_from_behaviors(model, [behavior])
    found = audit.audit(model, pairs, ["all"])
    # Of long vectors that nearly cancel, in float32.
    exact = 1e-6 * found.squared_norm.max()
    for eta in (1e-2, 1e2):
        grown = audit_your_data.moved(model, pairs, 0.1, partial(torch.optim.SGD, lr=eta))
        assert np.allclose(
            grown / (eta * 0.05), found.pull @ found.composition[0], rtol=0, atol=exact
        )


def test_groups_by_length():
    pairs = lm.Pairs(
        ((1,),) * 5,
        tuple((2,) * n for n in (7, 8, 10, 12, 13)),
        ((3,) * 10,) * 5,
        np.zeros(5, int),
    )
    assert audit_your_data.by_length(pairs).group.tolist() == [0, 1, 1, 1, 2]


def test_mixtures_are_drawn_by_lot_none_twice(records):
    drawn = audit_your_data.mixtures(BOOK)
    flat = [name for behaviors in drawn for name in behaviors]
    assert [len(behaviors) for behaviors in drawn] == [4] * 4 and len(set(flat)) == 16
    assert drawn == audit_your_data.mixtures(BOOK)
    assert len(audit_your_data.mixtures(records)[0]) == 4


def test_statements_taken_are_balanced_and_none_is_in_both_parts():
    behavior = data.load_behavior("keeps-promises")
    learned, held_out = audit_your_data.taken(behavior, (40, 20))
    assert (len(learned.labels), learned.labels.sum()) == (40, 0)
    assert (len(held_out.labels), held_out.labels.sum()) == (20, 0)
    both = [*learned.rows["question"], *held_out.rows["question"]]
    assert len(set(both)) == 60
    sides = dict(zip(behavior.rows["question"], behavior.labels, strict=True))
    assert [sides[q] for q in both] == [*learned.labels, *held_out.labels]


def test_too_few_statements_are_named():
    with pytest.raises(
        InputError, match=r"keeps-promises: Yes is the answer to 50 .* 60 are needed"
    ):
        audit_your_data.taken(data.load_behavior("keeps-promises"), (100, 20))


def test_turned_labels_are_those_named_and_no_others(dialogues):
    _, pairs = dialogues
    flipped = np.arange(len(pairs)) % 7 == 0
    noisy = audit_your_data.mislabelled(pairs, flipped)
    assert noisy.prompts == pairs.prompts and (noisy.group == pairs.group).all()
    for i, turned in enumerate(flipped):
        same = (pairs.chosen[i], pairs.rejected[i])
        assert (noisy.chosen[i], noisy.rejected[i]) == (same[::-1] if turned else same)


def test_what_is_told_of_a_mixture(records):
    """⟨M_a, M_b⟩ = b̂_a·b̂_b/2, and the first step of the last layer on its own statements."""
    run = audit_your_data.audit_run(records, 0)
    a, found = run.arrays, audit_your_data.restored(run.arrays)
    (behaviors,) = audit_your_data.mixtures(records)
    assert list(found.names) == behaviors
    statements = [audit_your_data.taken(data.load_behavior(b), (40, 20))[0] for b in behaviors]
    prompts = [p for behavior in statements for p in behavior.prompts()]
    labels = np.concatenate([behavior.labels for behavior in statements]).astype(float)
    g = hidden_states(records.model(), prompts).astype(float)
    pulls, sizes = mixtures.signed_means(g, labels, np.repeat(np.arange(4), 40))
    assert np.allclose(found.means, pulls @ pulls.T / 2, rtol=1e-4)

    how = run.info["key"]["settings"]
    unit = how["learning_rate"] * how["beta"] / 2
    told = unit * found.means @ (sizes / sizes.sum())
    assert np.allclose(a["together"][:, 0, 1], told, rtol=1e-3, atol=1e-5 * abs(told).max())
    assert np.allclose(a["alone"][:, 0, 1], unit * found.means.diagonal(), rtol=1e-3)
    assert a["together"].shape == (4, 2, 21) and not a["together"][..., 0].any()


def test_noise_is_a_tenth_of_every_group_and_seen_by_the_second_audit(records):
    a = audit_your_data.audit_run(records, 0).arrays
    noisy = audit_your_data.restored(a, "noisy_")
    assert np.bincount(noisy.group, a["flipped"]).tolist() == [4] * 4
    clean = audit_your_data.restored(a)
    assert np.allclose(np.where(a["flipped"], -1, 1) * clean.gap, noisy.gap, atol=1e-5)


def test_records_keep_the_whole_audit(records):
    run = audit_your_data.sample_run(records)
    rows = audit_your_data.sample_rows()
    found = audit_your_data.restored(run.arrays)
    assert len(rows) == len(found.group) == 600 and len(found.names) == 6
    sides = {(row["label"], row["chosen"], row["rejected"]) for row in rows}
    assert sides == {(1, "Yes", "No"), (-1, "No", "Yes")}
    page = audit.report(found, rows, "sample", "tiny-llama")
    assert all(name in page for name in found.names)


def test_tables_of_mixtures():
    """Against growths made up: told exactly, and told the wrong way round."""
    index = pd.MultiIndex.from_product([[1, 2, 3], list("abcd")], names=["mixture", "behavior"])
    speed = np.arange(12.0)
    found = pd.DataFrame(
        dict.fromkeys(audit_your_data.PREDICTORS, speed)
        | {"first step": speed, "last layer": -speed, "all parameters": np.tile(speed[:4], 3)},
        index=index,
    )
    order, within = audit_your_data.order_table(found), audit_your_data.within_table(found)
    assert order.loc["coherence", "first step"].startswith("1.00")
    assert order.loc["coherence", "last layer"].startswith("-1.00")
    assert within.iloc[0].tolist() == ["18 of 18", "0 of 18", "18 of 18"]
    few = audit_your_data.order_table(found.head(8))
    assert set(few.to_numpy().ravel()) == {"–"}


def test_noise_table_scores_a_perfect_and_a_blind_audit(monkeypatch):
    rng = np.random.default_rng(0)

    def scored(fit):
        class Fake:
            group = np.repeat([0, 1], 100)

        Fake.fit, Fake.others = fit, -fit
        monkeypatch.setattr(audit_your_data, "restored", lambda arrays, prefix="": Fake)
        return audit_your_data.noise_table(BOOK).iloc[0]

    flipped = np.tile(np.arange(100) < 10, 2)
    run = type("Run", (), {"arrays": {"flipped": flipped}})
    monkeypatch.setattr(audit_your_data, "mixtures", lambda records: [["a", "b"]])
    monkeypatch.setattr(audit_your_data, "told_run", lambda records, number: run)
    perfect = scored(np.where(flipped, -1.0, 1.0) + rng.uniform(0, 0.5, 200))
    assert perfect.tolist() == [1, 0, 1, pytest.approx(0.1), pytest.approx(0.1)]
    blind = scored(rng.normal(size=200))
    assert 0.3 < blind["told apart"] < 0.7 and blind["of the worst"] < 0.5
