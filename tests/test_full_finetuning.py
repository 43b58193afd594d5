"""Chapter 5: its runs on tiny models against autograd, its measures on losses made up to fit."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from dpo_helpers import data, finetune, lm
from dpo_helpers.finetune import trainer
from experiments import full_finetuning as full
from experiments.shared import PAIRS
from experiments.training import first_step, train_in_cache
from ledger.config import FIVE, configure
from ledger.store import RunStore, States
from workflow.claims import Claim, judge

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

BEHAVIOR = "loves-gardening"


def tiny(results, **parameters):
    """Records of the sample under a tiny model."""
    config = configure({"tier": "smoke", "model": "tiny-llama"} | parameters)
    return RunStore(config, results)


@pytest.fixture
def records(tmp_path):
    return tiny(tmp_path / "results")


def test_a_run_and_what_became_of_the_hidden_states(records, cache):
    run = full.trained_run(records, [BEHAVIOR], beta=1.0, rate=3e-2, seed=0)
    states, found = records.states(BEHAVIOR), run.arrays
    n, held_out = len(states.g), ~states.train
    assert found["loss"].shape == (1, 2, 4) and found["loss"][0, 1, 0] == pytest.approx(np.log(2))
    assert found["separate"].shape == found["joint"].shape == (2, n, 2)
    for at, rows in enumerate((np.ones(n, bool), held_out)):
        g, labels = states.g[rows], states.labels[rows]
        difference = g[labels > 0].mean(0) - g[labels < 0].mean(0)
        assert found["apart"][0, at] == pytest.approx(np.linalg.norm(difference), rel=1e-5)
        widths = [np.linalg.eigvalsh(np.cov(g[labels == s].T, bias=True))[-1] for s in (1, -1)]
        assert found["covariance"][0, at] == pytest.approx(max(widths), rel=1e-4)
    assert abs(found["apart"][1] - found["apart"][0]).min() > 1e-4, "training moved them"
    # What moved adds up to the growth of the gap, which training measured in bf16.
    growth = found["gap"][0, 1, -1] - found["gap"][0, 1, 0]
    assert found["parts"].sum() == pytest.approx(growth, rel=0.15)
    assert found["boundary"][0] == 0 and found["boundary"][-1] > 0
    assert not list((cache / "training").iterdir()), "the checkpoint is not kept"
    again = full.trained_run(tiny(records.root), [BEHAVIOR], 1.0, 3e-2, 0)
    assert again.info == run.info, "replayed"


def test_what_moved_adds_up():
    """The three parts are s ΔW_B·g, s W_B·Δg and s ΔW_B·Δg, of the held-out statements."""
    rng = np.random.default_rng(0)
    n, d = 60, 7
    before, after = rng.normal(size=(2, n, d))
    rows, boundary = rng.normal(size=(2, d)), rng.normal(size=d)
    labels, train = rng.choice([1, -1], n), rng.random(n) < 0.8
    states = States("made", before, labels, train, rows, "")
    found = full._changed(states, after, boundary)
    out = ~train
    start = rows[0] - rows[1]
    growth = labels[out] * (after[out] @ boundary - before[out] @ start)
    assert sum(found["parts"]) == pytest.approx(growth.mean())
    assert found["parts"][0] == pytest.approx((labels * (before @ (boundary - start)))[out].mean())
    assert found["parts"][1] == pytest.approx((labels * ((after - before) @ start))[out].mean())
    for at, g in enumerate((before, after)):
        probe = LogisticRegression(max_iter=2000).fit(scale(g, g[train]), labels, train)
        right = probe.predict(scale(g, g[train])[out]) == labels[out]
        assert found["separable"][at] == pytest.approx(right.mean())


def scale(g, by):
    return (g - by.mean(0)) / by.std(0)


def test_a_killed_run_is_taken_up_again(records, monkeypatch, tmp_path):
    whole = full.trained_run(tiny(tmp_path / "other"), [BEHAVIOR], 1.0, 1e-3, 0).arrays

    def killed(*_):
        raise KeyboardInterrupt

    records.states(BEHAVIOR)
    monkeypatch.setattr(full, "hidden_states", killed)
    with pytest.raises(KeyboardInterrupt):
        full.trained_run(records, [BEHAVIOR], 1.0, 1e-3, 0)
    monkeypatch.undo()
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer.Engine, "clip_gradient", killed)  # nothing is left to train
    found = full.trained_run(records, [BEHAVIOR], 1.0, 1e-3, 0).arrays
    for name in whole:
        assert np.array_equal(found[name], whole[name], equal_nan=True), name


def test_a_mixture_has_a_curve_a_behavior_and_no_hidden_states(records):
    pair = PAIRS["smoke"][0]
    found = full.trained_run(records, pair, beta=1.0, rate=1e-3, seed=1).arrays
    assert found["loss"].shape == (2, 2, 7) and "apart" not in found
    assert np.isfinite(found["loss"][:, 1]).all()


def test_the_first_step_by_autograd(records):
    """The gradient of all parameters, and of two rows alone, from the hidden states."""
    found = full.first_step_run(records).arrays
    known = full.at_hand(records.config)
    at = known.index(BEHAVIOR)
    model = lm.load("tiny-llama", "cpu")
    learned, _ = lm.pairs_from_behaviors(model, [data.load_behavior(BEHAVIOR)]).split()
    gaps = lm.log_ratios(model.network, learned)
    loss = -torch.nn.functional.logsigmoid(records.config.beta * (gaps - gaps.detach())).mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.network.named_parameters()}
    total = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    head = model.network.get_output_embeddings().weight.grad[[model.yes, model.no]].norm().item()
    assert found["gradient"][at] == pytest.approx(total, rel=0.02), "bf16 products"
    assert found["head"][at] == pytest.approx(head, rel=0.02)
    assert found["loss"].shape == (len(known), 2)
    assert found["loss"][:, 0] == pytest.approx(np.full(len(known), np.log(2)))


@pytest.mark.parametrize(("beta", "tokens"), [(0.01, 4096), (1.0, 256)])
def test_the_first_step_is_that_of_training_to_the_last_bit(beta, tokens, monkeypatch):
    """Also where the gradient is summed over several trees."""
    plain = finetune.Settings
    monkeypatch.setattr(finetune, "Settings", lambda: plain(max_tree_tokens=tokens))
    behavior = data.load_behavior(BEHAVIOR)

    def fresh():
        model = lm.load("tiny-llama", "cpu")
        return model, lm.pairs_from_behaviors(model, [behavior]).split()[0]

    model, learned = fresh()
    settings = plain(beta=beta, learning_rate=1e-3, batch_size=len(learned), max_tree_tokens=tokens)
    curves = train_in_cache(model, learned, settings, held_out=learned, progress=False)
    assert first_step(*fresh(), beta, 1e-3) == (curves.grad_norm[0], curves.loss[0, 1, 1])


def test_where_a_rate_is_given_the_rule_is_not_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(full, "calibration_runs", asked.append)
    given = RunStore(configure({"full_learning_rate": 2e-5}))
    full.RUNS[0](given)
    assert not asked
    full.RUNS[0](BOOK)
    assert asked == [BOOK]


# Measures, on losses made up to fit


class Made:
    """Runs whose losses are given: ``losses(behaviors, beta, rate, seed)`` → (groups, 2, T + 1)."""

    def __init__(self, monkeypatch, losses, distances=(1.0, 2.0, 3.0, 4.0, 5.0), factor=10.0):
        self.asked = []
        monkeypatch.setattr(full, "trained_run", self.run)
        monkeypatch.setattr(full, "distinguishability", lambda *_: np.array(distances))
        if factor:
            monkeypatch.setattr(full, "factor", lambda _: factor)
        self.losses = losses

    def run(self, records, behaviors, beta, rate, seed):
        self.asked.append((tuple(behaviors), beta, rate, seed))
        loss = np.asarray(self.losses(tuple(behaviors), beta, rate, seed), float)
        settings = {"rate": rate}
        arrays = {"loss": loss, "accuracy": loss, "gap": -loss}
        return SimpleNamespace(arrays=arrays, info={"key": {"settings": settings}})


def falling(speed):
    """A training and a held-out loss that fall at ``speed``, NaN where none is measured."""
    t = np.arange(5)
    loss = np.stack([np.exp(-speed * t), np.exp(-speed * t)])
    loss[0, -1] = np.nan
    return loss[None]


BOOK = RunStore(configure({}))


@pytest.mark.parametrize("n", [2, 4, 5])
def test_ranks_and_all_their_orders(n):
    rng = np.random.default_rng(n)
    distances, area = rng.normal(size=(2, n))
    rho, p = full.rank_test(distances, area)
    all_of_them = [stats.spearmanr(distances[list(o)], -area)[0] for o in permutations(range(n))]
    assert rho == pytest.approx(all_of_them[0])
    assert p == pytest.approx(np.mean(np.array(all_of_them) >= rho - 1e-12))
    perfect = full.rank_test(np.arange(n), -np.arange(n))
    assert perfect == pytest.approx((1, 1 / np.prod(np.arange(1.0, n + 1))))


def test_ranks_of_many_repeat():
    """Beyond seven behaviors orders are drawn: always the same ones, for pages to repeat."""
    distances, area = np.random.default_rng(1).normal(size=(2, 10))
    first = full.rank_test(distances, area)
    assert first == full.rank_test(distances, area)
    assert first[1] == pytest.approx(
        stats.spearmanr(distances, -area, alternative="greater")[1], abs=0.03
    )


def test_the_order_is_judged_at_the_worse_rate(monkeypatch):
    def losses(behaviors, beta, rate, seed):
        number = FIVE.index(behaviors[0]) + 1
        back = rate > 5e-5 and seed == 1  # at the scaled rate one seed turns the order round
        return falling((6 - number if back else number) / 10)

    made = Made(monkeypatch, losses)
    pattern = "full/*/*/beta-0.01-*"
    assert full.training_order(BOOK, pattern) == pytest.approx([1, -1, 1])
    assert full.held_out_order(BOOK, pattern) == pytest.approx([1, -1, 1])
    assert {rate for _, _, rate, _ in made.asked} == {1e-5, 1e-4}
    made.asked.clear()
    assert full.held_out_order(BOOK, "full/*/*/beta-1-*") == pytest.approx([1])
    assert {(beta, rate, seed) for _, beta, rate, seed in made.asked} == {
        (1.0, 1e-6, 0),
        (1.0, 1e-5, 0),
    }


def test_pairs(monkeypatch):
    """The second, more distinguishable behavior of (a) leads in two of three steps at one rate."""

    def losses(pair, beta, rate, seed):
        ahead = [0.0, 0.1, 0.1, 0.1 if rate < 5e-5 else -0.1]
        gap = np.array(ahead if pair == PAIRS["book"][0] else [0.0, 0.05, 0.05, 0.05])
        base = np.full(4, 0.5)
        return [[base, base + gap], [base, base]]

    Made(monkeypatch, losses, distances=(1.0, 2.0))
    assert full.pair_lead(BOOK, "") == pytest.approx(2 / 3)
    assert full.pair_gaps(BOOK, "") == pytest.approx(2)
    Made(monkeypatch, losses, distances=(2.0, 1.0))
    assert full.pair_lead(BOOK, "") == 0


@pytest.mark.parametrize(
    ("ends", "factor", "tried"),
    [
        ([0.49, 0.1, 0.1, 0.1, 0.1], 1, 1),
        ([0.69, 0.6, 0.5, 0.3, 0.2], 10, 3),
        ([0.69, 0.6, 0.55, 0.52, 0.9], 30, 5),
    ],
)
def test_the_rule_takes_the_first_factor_that_meets_it(monkeypatch, ends, factor, tried):
    """Where none does, the one of the lowest loss; and it tries no more than it must."""

    def losses(behaviors, beta, rate, seed):
        assert behaviors == ("agreeableness",) and beta == 0.01
        return [[[0.69, np.nan], [0.69, ends[round(np.log10(rate / 1e-5) * 2)]]]]

    made = Made(monkeypatch, losses, factor=None)
    assert len(full.calibration_runs(BOOK)) == tried
    assert full.factor(BOOK) == factor
    assert full.rates(BOOK, 0.01) == pytest.approx({"paper": 1e-5, "scaled": factor * 1e-5})
    assert full.rates(BOOK, 1.0) == pytest.approx({"paper": 1e-6, "scaled": factor * 1e-6})
    given = RunStore(configure({"full_learning_rate": 2e-5}))
    made.asked.clear()
    assert full.rates(given, 0.1) == {"given": 2e-5} and not made.asked


def test_what_a_sweep_shows(monkeypatch):
    Made(monkeypatch, lambda *_: falling(0.1))
    one = RunStore(configure({"behaviors": [FIVE[0]], "full_learning_rate": 1e-5}))
    assert list(full.swept(one)) == ["training loss", "held-out loss", "held-out accuracy"]
    found = full.swept(BOOK)
    assert len(found) == 3 * 5 * 2 and f"held-out loss, {FIVE[1]}, scaled rate" in found
    assert found[f"held-out loss, {FIVE[1]}, scaled rate"] == pytest.approx(
        np.exp(-0.1 * np.arange(5))
    )


def test_a_claim_on_a_pattern_of_runs_waits_for_one(records):
    claim = Claim("X", "here", "it is", "05_full_finetuning", "full/*/*/beta-1-*", "training_order")
    assert judge(claim, records).verdict.startswith("not run")
    full.trained_run(records, [BEHAVIOR], 1.0, 1e-3, 1)
    other = tiny(records.root)
    assert [run.name for run in other.matching("full/*/*/beta-1-*")] == ["beta-1-rate-0.001-seed-1"]
    assert not other.matching("full/*/*/beta-0.1-*")


@pytest.mark.parametrize("batch", [91, 4000])
def test_a_batch_larger_than_the_behavior(tmp_path, batch):
    from dpo_helpers.errors import InputError

    records = tiny(tmp_path / "results")
    records.config = replace(records.config, full_batch_size=batch)
    with pytest.raises(InputError, match=f"batch_size = {batch}: there are only 90"):
        full.trained_run(records, [BEHAVIOR], 1.0, 1e-3, 0)
    assert not records.find("full")
