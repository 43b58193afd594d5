"""Chapter 11: what its runs record, on a tiny model, and how the audit is judged by them."""

from functools import partial

import cells
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
PAGE = cells.functions("11_audit_your_data")


def unembedding(model) -> torch.Tensor:
    return model.network.get_output_embeddings().weight.detach().double()


@pytest.fixture(scope="module")
def records(home):
    config = configure({"tier": "smoke", "model": "tiny-llama", "steps": 20})
    return RunStore(config, home / "results")


@pytest.fixture(scope="module")
def dialogues():
    model = lm.load("tiny-llama", "cpu")
    pairs = lm.pairs_from_text(model, data.load_pairs("sample"))
    return model, audit_your_data.by_length(pairs)


def test_the_plain_gradient_is_autograds_and_the_audit_agrees(dialogues):
    """G_i of the page, (V, d), against autograd; its inner products against ``audit.audit``."""
    model, pairs = dialogues
    weight, responses = unembedding(model), PAGE.read(model, pairs)
    plain = torch.stack([PAGE.gradient(pair, weight) for pair in responses])
    for i in (0, len(pairs) // 2, len(pairs) - 1):
        w = weight.clone().requires_grad_()
        chosen, rejected = (
            (h @ w.T).log_softmax(-1)[range(len(y)), y].sum() for h, y in responses[i]
        )
        (expected,) = torch.autograd.grad(chosen - rejected, w)
        assert torch.allclose(plain[i], expected, atol=1e-10)
    g, found = plain.flatten(1).numpy(), audit.audit(model, pairs, audit_your_data.KINDS)
    means = np.stack([g[pairs.group == a].mean(0) for a in range(3)])
    assert np.allclose(found.pair_stratum @ found.composition.T, g @ means.T, rtol=1e-4, atol=1e-3)
    assert np.allclose(found.squared_norm, (g**2).sum(1), rtol=1e-4)


def test_a_step_of_autograd_is_as_predicted_and_its_remainder_as_proven(dialogues):
    """prop-first-gradient, pair by pair; the bounds of the remainder from the dense update."""
    model, pairs = dialogues
    found = audit.audit(model, pairs, audit_your_data.KINDS)
    inner = found.pair_stratum @ found.composition.T @ (found.counts / len(pairs))
    beta, eta = 0.1, 3.0
    kept = []

    def step(weights):
        kept.append((weights[0], weights[0].detach().clone()))
        return torch.optim.SGD(weights, lr=eta)

    responses = PAGE.read(model, pairs)
    grown = PAGE.moved(responses, unembedding(model), step, beta)
    remainder = grown - eta * beta / 2 * inner
    after, before = kept[0]
    update = after.detach() - before
    bounds = np.zeros((2, len(pairs)))
    for i, pair in enumerate(responses):
        for side, (h, _) in enumerate(pair):
            u = h @ update.T
            bounds[side, i] = ((u.max(1).values - u.min(1).values) ** 2).sum() / 8
    small = 1e-4 * abs(grown).max()
    assert (remainder >= -bounds[0] - small).all() and (remainder <= bounds[1] + small).all()
    assert abs(remainder).max() > 10 * small, "a step so large that there is a remainder"


def test_of_one_token_the_step_is_as_predicted_however_large(records):
    model = records.model()
    behavior, _ = audit_your_data.taken(data.load_behavior("loves-gardening"), (20, 20))
    pairs = lm.pairs_from_behaviors(model, [behavior])
    found = audit.audit(model, pairs, ["all"])
    # Of long vectors that nearly cancel, in float32.
    exact = 1e-6 * found.squared_norm.max()
    for eta in (1e-2, 1e2):
        step = partial(torch.optim.SGD, lr=eta)
        grown = PAGE.moved(PAGE.read(model, pairs), unembedding(model), step)
        assert np.allclose(
            grown / (eta * 0.05), found.pair_stratum @ found.composition[0], rtol=0, atol=exact
        )


def test_leave_one_out_scores_by_hand(records):
    """With mirrored strata, from whole gradients: a row a pair, two rows of the unembedding."""
    model = records.model()
    behaviors = [data.load_behavior(name) for name in ("loves-gardening", "keeps-promises")]
    behaviors = [audit_your_data.taken(behavior, (30, 20))[0] for behavior in behaviors]
    pairs = lm.pairs_from_behaviors(model, behaviors)
    found, weight = audit.audit(model, pairs, ["a", "b"]), unembedding(model)
    g = torch.stack([PAGE.gradient(pair, weight) for pair in PAGE.read(model, pairs)])
    g = g.flatten(1).numpy()
    assert (found.mirror >= 0).all() and len(found.mirror) == 4
    for subtract in (True, False):
        expected = []
        for i in range(len(g)):
            keep = np.arange(len(g)) != i
            sides = [(pairs.chosen[j], pairs.group[j]) for j in range(len(g))]
            same = np.array([side == sides[i] for side in sides])
            mirror = (pairs.group == pairs.group[i]) & ~same
            common = (g[same].mean(0) - g[mirror].mean(0)) / 2 * subtract
            one, other = g[same & keep].mean(0), g[mirror].mean(0)
            # Half of the group prefers Yes: what is left of either mean without their common part.
            rest = (one + other) / 2
            expected.append((g[i] - common) @ rest)
        actual = PAGE.scores(found, subtract)
        assert np.allclose(actual, expected, rtol=1e-3, atol=1e-6 * found.squared_norm.max())


def test_groups_by_length():
    pairs = lm.Pairs(
        ((1,),) * 5,
        tuple((2,) * n for n in (7, 8, 10, 12, 13)),
        ((3,) * 10,) * 5,
        np.zeros(5, int),
    )
    assert audit_your_data.by_length(pairs).group.tolist() == [0, 1, 1, 1, 2]


def test_mixtures_are_drawn_at_random_none_twice(records):
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


def test_flipped_labels_are_those_named_and_no_others(dialogues):
    _, pairs = dialogues
    flipped = np.arange(len(pairs)) % 7 == 0
    noisy = audit_your_data.mislabeled(pairs, flipped)
    assert noisy.prompts == pairs.prompts and (noisy.group == pairs.group).all()
    for i, exchanged in enumerate(flipped):
        same = (pairs.chosen[i], pairs.rejected[i])
        assert (noisy.chosen[i], noisy.rejected[i]) == (same[::-1] if exchanged else same)


def test_what_is_predicted_of_a_mixture(records):
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


def test_the_order_within_mixtures():
    """Against growths made for the test: predicted exactly, and in reverse."""
    index = pd.MultiIndex.from_product([[1, 2, 3], list("abcd")], names=["mixture", "behavior"])
    speed = np.arange(12.0)
    columns = {"first step": speed, "last layer": -speed, "all parameters": np.tile(speed[:4], 3)}
    mixture = pd.DataFrame({"coherence": speed} | columns, index=index)
    PAGE.right_order.__globals__["mixture"] = mixture
    assert [PAGE.right_order("coherence", x) for x in columns] == [
        "18 of 18",
        "0 of 18",
        "18 of 18",
    ]
    assert PAGE.in_words(mixture["coherence"], mixture["first step"]).startswith("1.00")
    assert PAGE.in_words(mixture["coherence"], mixture["last layer"]).startswith("-1.00")
    assert PAGE.in_words(speed[:8], speed[:8]) == "–"


def test_scores_of_a_perfect_and_a_blind_audit():
    rng = np.random.default_rng(0)
    wrong = np.arange(100) < 10
    score = np.where(wrong, -1.0, 1.0) + rng.uniform(0, 0.5, 100)
    perfect = PAGE.found_wrong(score, -score, wrong)
    assert perfect == {"AUC": 1, "AUC, shared part kept": 0, "of the worst": 1}
    blind = rng.normal(size=(50, 100))
    found = pd.DataFrame([PAGE.found_wrong(row, np.zeros(100), wrong) for row in blind]).mean()
    assert 0.45 < found["AUC"] < 0.55 and found["AUC, shared part kept"] == 0.5
    assert 0.05 < found["of the worst"] < 0.2
