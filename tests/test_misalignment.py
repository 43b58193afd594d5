"""Chapter 7: its runs against plain training, its measures on losses made to fit."""

import copy

import numpy as np
import pytest
import torch

from dpo_helpers import data, finetune, lm
from experiments import full_finetuning, misalignment
from ledger.config import configure
from ledger.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")

BEHAVIOR, RATE = "loves-gardening", 1e-2


@pytest.fixture(scope="module")
def records(home):
    config = configure({"tier": "smoke", "model": "tiny-llama", "beta": 1.0})
    return RunStore(config, home / "results")


@pytest.fixture(scope="module")
def by_hand(records, home):
    """The same training without the class: the base and the aligned model, and the pairs."""
    settings = finetune.Settings(
        beta=1.0, learning_rate=RATE, seed=0, evaluate_every=1, save_every=0
    )
    base = lm.load("tiny-llama", "cpu")
    learned, held_out = lm.pairs_from_behaviors(base, [data.load_behavior(BEHAVIOR)]).split()
    aligned = lm.load("tiny-llama", "cpu")
    finetune.train(aligned, learned, settings, home / "aligned", progress=False)
    return settings, base, aligned, learned, held_out


def test_three_runs_on_flipped_labels(records, by_hand, home):
    settings, base, aligned, learned, held_out = by_hand
    found = misalignment.flipped_run(records, BEHAVIOR, RATE, 0).arrays
    flipped = learned.flipped(), held_out.flipped()
    of = {
        name: tuple(finetune.reference_log_ratios(model, part, settings) for part in flipped)
        for name, model in (("base", base), ("aligned", aligned))
    }
    starts = {
        name: copy.deepcopy(model.network.state_dict())
        for name, model in (("base", base), ("aligned", aligned))
    }
    for arm, (start, reference) in enumerate(misalignment.ARMS):
        model = lm.load("tiny-llama", "cpu")
        model.network.load_state_dict(starts[start])
        before = model.unembedding_rows()
        weights = torch.nn.utils.parameters_to_vector(model.network.parameters()).clone()
        out = home / f"arm-{arm}"
        curves = finetune.train(
            model, flipped[0], settings, out, flipped[1], of[reference], progress=False
        )
        for name in ("loss", "gap", "accuracy"):
            want = getattr(curves, name)[0].astype(np.float32)
            assert np.allclose(found[name][arm], want, rtol=1e-5, equal_nan=True), (name, arm)
        moved = (model.unembedding_rows() - before).diff(dim=0).norm()
        assert found["boundary"][arm, -1] == pytest.approx(moved.item(), rel=1e-4)
        after = torch.nn.utils.parameters_to_vector(model.network.parameters())
        want = (after - weights).norm().item()
        assert found["moved"][arm, [0, -1]] == pytest.approx([0, want], rel=1e-4)
    assert found["loss"][:2, 1, 0] == pytest.approx([np.log(2)] * 2), "their own reference"
    assert found["loss"][2, 1, 0] != pytest.approx(np.log(2), abs=1e-4)
    assert np.array_equal(found["gap"][1, 1, :1], found["gap"][2, 1, :1]), "the same model"
    states = records.states(BEHAVIOR)
    g, labels = states.g[~states.train], states.labels[~states.train]
    apart = np.linalg.norm(g[labels > 0].mean(0) - g[labels < 0].mean(0))
    assert found["apart"][0, 0] == pytest.approx(apart, rel=1e-2)
    assert found["apart"][1, 0] == found["apart"][2, 0] != found["apart"][0, 0]


def test_the_last_layer_keeps_to_what_is_proven(records):
    found = misalignment.flipped_run(records, BEHAVIOR, RATE, 0).arrays
    low, high = found["certified"].transpose(1, 0, 2)
    assert (low <= found["head"] + 1e-6).all() and (found["head"] <= high + 1e-6).all()
    assert max(found["kappa"]) == pytest.approx(1)
    # From the base model: gradient descent on the two rows, written out.
    states = records.states(BEHAVIOR)
    a = -states.labels[states.train, None] * states.g[states.train]
    lambda_max = np.linalg.norm(a, 2) ** 2 / len(a)
    eta, delta, losses = found["kappa"][0] / lambda_max, np.zeros(a.shape[1]), []
    for _ in range(misalignment.STEPS + 1):
        margin = 2 * a @ delta
        losses.append(np.log1p(np.exp(-margin)).mean())
        delta += eta * (a / (1 + np.exp(margin))[:, None]).mean(0)
    assert found["head"][0] == pytest.approx(losses, rel=1e-3)


def test_few_flipped_examples(records, by_hand):
    _, base, aligned, _, held_out = by_hand
    found = misalignment.undone_run(records, BEHAVIOR, RATE, 0).arrays
    assert found["pairs"].tolist() == [0, 10, 90] and found["steps"].tolist() == [0, 3, 3]
    with torch.no_grad():
        for model, gap, right in (
            (aligned, found["gap"][0], found["accuracy"][0]),
            (base, *found["base"]),
        ):
            want = lm.log_ratios(model.network, held_out)
            assert gap == pytest.approx(want.mean().item(), abs=5e-3), "in bf16"
            assert right == pytest.approx((want > 0).float().mean().item(), abs=0.11)
    whole = misalignment.flipped_run(records, BEHAVIOR, RATE, 0).arrays
    # All of them, once: the run of the whole epoch, but for its order of statements.
    assert found["gap"][-1] < found["gap"][0] and whole["gap"][1, 1, -1] > whole["gap"][1, 1, 0]


def test_the_lead_of_the_aligned_model_at_the_worse_rate(monkeypatch):
    """Losses over (arms, training and held-out, T + 1); the paper's rate has one seed."""
    t = np.arange(4)

    def losses(_, behavior, rate, seed):
        speed = {1e-5: (0.1, 0.3), 3e-5: (0.2, 0.1 if seed == 2 else 0.5)}[rate]
        arms = [np.exp(-s * t) for s in (*speed, 0.0)]
        loss = np.stack([np.stack([arm, arm]) for arm in arms])
        loss[:, 0, -1] = np.nan
        return type("Run", (), {"arrays": {"loss": loss}})

    monkeypatch.setattr(misalignment, "flipped_run", losses)
    monkeypatch.setattr(full_finetuning, "factor", lambda _: 3.0)
    records = RunStore(configure({}))
    found = misalignment.aligned_lead(records, f"flipped/*/{BEHAVIOR}/*")
    base, paper = np.exp(-0.1 * t[:3]), np.exp(-0.3 * t[:3])
    scaled = np.exp(-0.2 * t[:3])
    paper = (base - paper).mean()
    worse = (scaled - np.exp(-0.1 * t[:3])).mean()
    good = (scaled - np.exp(-0.5 * t[:3])).mean()
    assert worse < 0 < paper < good
    assert found == pytest.approx([paper]), "of the rate whose median is the lower one"
