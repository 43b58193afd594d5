"""Chapter 12: the theorem, weighted descent and resampling against independent oracles."""

import numpy as np
import pytest
import torch
from scipy import optimize

from dpo_helpers import data, finetune, last_layer, lm, mixtures
from dpo_helpers.errors import InputError
from dpo_helpers.theory import synthetic
from experiments import full_finetuning, priorities, remedy
from experiments.shared import learning_rate
from ledger.config import configure
from ledger.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")


def vectors(seed: int, m: int, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)) * rng.uniform(0.3, 2, (m, 1)) + rng.normal(size=d) / 2


def nearest(b: np.ndarray) -> np.ndarray:
    """The weights of the point nearest 0 in the convex hull of the rows of b."""
    # Least squares with w ≥ 0; the last row holds Σ w at 1.
    far = 1e4 * np.abs(b).max()
    rows = np.vstack([b.T, far * np.ones(len(b))])
    w, _ = optimize.nnls(rows, np.append(np.zeros(b.shape[1]), far))
    return w / w.sum()


# The weights


@pytest.mark.parametrize("m", (2, 3, 5))
def test_no_weights_do_more_for_the_group_they_do_least_for(m):
    rng = np.random.default_rng(m)
    for seed in range(20):
        b = vectors(seed, m)
        w = mixtures.max_min_weights(b @ b.T)
        assert (w >= 0).all() and w.sum() == pytest.approx(1)
        least = (b @ b.T @ w).min()
        others = rng.dirichlet(np.full(m, 0.5), 3000)
        assert (b @ b.T @ others.T).min(0).max() <= least + 1e-9
        # Its dual: the largest entry of Ku over u is nowhere less.
        assert (b @ b.T @ others.T).max(0).min() >= least - 1e-9


@pytest.mark.parametrize("m", (2, 3, 5))
def test_equal_first_steps_where_the_theorem_has_them_and_nowhere_else(m):
    seen = set()
    for seed in range(40):
        b = vectors(seed, m)
        gram = b @ b.T
        alone = np.linalg.solve(gram, np.ones(m))
        w = mixtures.max_min_weights(gram)
        rises = gram @ w
        seen.add(possible := bool((alone >= 0).all()))
        if possible:
            assert w == pytest.approx(alone / alone.sum(), abs=1e-7)
            assert rises == pytest.approx(np.full(m, 1 / alone.sum()))
            assert w == pytest.approx(nearest(b), abs=1e-4)
            # The price: every mixture's own first step is at least as long.
            others = np.random.default_rng(seed).dirichlet(np.ones(m), 500)
            assert ((others @ b) ** 2).sum(1).min() >= rises.min() - 1e-9
        else:
            assert rises.max() > rises.min() + 1e-6
    assert seen == {True, False}


@pytest.mark.parametrize("cosine", (-0.95, -0.3, 0.0, 0.4, 0.49, 0.51, 0.9))
def test_two_groups(cosine):
    """‖b_1‖ = 2, ‖b_2‖ = 1: equal up to cos = ½, then the longer alone."""
    gram = np.array([[4, 2 * cosine], [2 * cosine, 1]])
    w = mixtures.max_min_weights(gram)
    want = np.array([1 - 2 * cosine, 4 - 2 * cosine]) / (5 - 4 * cosine)
    assert w == pytest.approx(want if cosine <= 0.5 else [1, 0], abs=1e-9)


def test_groups_that_all_conflict_can_be_made_equal():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gram = -rng.uniform(0, 1, (4, 4))
        gram = (gram + gram.T) / 2
        np.fill_diagonal(gram, 0)
        np.fill_diagonal(gram, rng.uniform(0.05, 2, 4) - gram.sum(1))
        rises = gram @ mixtures.max_min_weights(gram)
        assert np.ptp(rises) < 1e-9 and rises[0] > 0


def test_groups_that_cancel_gain_nothing():
    b = np.array([(2.0, 0), (-1, 1), (-1, -1)])
    assert b.T @ mixtures.max_min_weights(b @ b.T) == pytest.approx([0, 0], abs=1e-9)


def test_wanted_rises():
    """Whatever weights there are, asking for what they do gives them back."""
    for seed in range(20):
        gram = (b := vectors(seed, 3)) @ b.T
        w = np.random.default_rng(seed).dirichlet(np.ones(3))
        if (gram @ w > 0).all():
            assert mixtures.max_min_weights(gram, gram @ w) == pytest.approx(w, abs=1e-6)
            assert mixtures.max_min_weights(1e-6 * gram, 50 * gram @ w) == pytest.approx(
                w, abs=1e-6
            )


@pytest.mark.parametrize(
    ("gram", "wanted", "message"),
    [
        (np.ones((2, 3)), None, "square"),
        (np.array([[1, 2], [0, 1]]), None, "symmetric"),
        (np.full((2, 2), np.nan), None, "finite"),
        (np.eye(2), [1, 0], "positive"),
        (np.eye(2), [1, 1, 1], "2 positive numbers"),
    ],
)
def test_weights_of_what_is_no_mixture(gram, wanted, message):
    with pytest.raises(InputError, match=message):
        mixtures.max_min_weights(gram, wanted)


# Training


def mixed(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three groups of unequal sizes and sides, b about orthogonal, with a common mean."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    common, parts = rng.normal(size=5) / 2, []
    for j, (n, length) in enumerate(((60, 1.5), (44, 2.5), (50, 2.0))):
        g, labels = synthetic.clouds(rng, n, length * directions[j], root=0.5, common=common)
        keep = np.flatnonzero((labels > 0) | (np.arange(n) % (j + 2) > 0))
        parts.append((g[keep], labels[keep], np.full(len(keep), j)))
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


def group_losses(delta: torch.Tensor, g, labels, group, beta: float) -> torch.Tensor:
    """Mean over the two sides of the mean loss of each, of every group."""
    margins = 2 * beta * torch.tensor(labels[:, None] * g) @ delta
    loss = torch.nn.functional.softplus(-margins)
    sides = [
        torch.stack([loss[(group == j) & (labels == side)].mean() for side in (1, -1)]).mean()
        for j in range(group.max() + 1)
    ]
    return torch.stack(sides)


def test_descent_is_that_of_the_weighted_loss():
    g, labels, group = mixed()
    w = np.array([0.2, 0.5, 0.3])
    how = dict(learning_rate=2.0, beta=0.5)
    path, used = mixtures.group_descent(g, labels, group, lambda b: w, steps=5, **how)
    assert (used == w).all()
    delta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    for t in range(6):
        assert path[t] == pytest.approx(delta.detach().numpy(), abs=1e-12)
        loss = (torch.tensor(w) * group_losses(delta, g, labels, group, 0.5)).sum()
        # The other row of the unembedding moves by −δ: half of the gradient is that of W_U[Yes].
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta - 2.0 * gradient / 2).detach().requires_grad_()


def test_what_the_groups_ask_for():
    g, labels, group = mixed()
    asked = []

    def weigh(b: np.ndarray) -> np.ndarray:
        asked.append(b)
        return np.full(3, 1 / 3)

    path, _ = mixtures.group_descent(g, labels, group, weigh, learning_rate=2.0, beta=0.5, steps=3)
    assert asked[0] == pytest.approx(mixtures.mean_differences(g, labels, group))
    delta = torch.tensor(path[2], requires_grad=True)
    for j, loss in enumerate(group_losses(delta, g, labels, group, 0.5)):
        (gradient,) = torch.autograd.grad(loss, delta, retain_graph=True)
        assert asked[2][j] == pytest.approx(-4 / 0.5 * gradient.numpy() / 2)


def test_the_first_step_raises_all_groups_alike():
    g, labels, group = mixed(1)
    b = mixtures.mean_differences(g, labels, group)
    w = mixtures.max_min_weights(b @ b.T)
    path, _ = mixtures.group_descent(
        g, labels, group, lambda _: w, learning_rate=2.0, beta=0.5, steps=1
    )
    logits = 2 * g @ path[1]
    rises = [
        (logits[(group == j) & (labels > 0)].mean() - logits[(group == j) & (labels < 0)].mean())
        for j in range(3)
    ]
    assert np.ptp(rises) < 1e-9 * rises[0]
    assert np.array(rises) / 2 == pytest.approx(mixtures.logit_gains(b, w, 2.0, 0.5))


def test_solving_at_every_step_keeps_small_steps_together():
    g, labels, group = mixed(1)

    def apart(weigh) -> float:
        path, _ = mixtures.group_descent(
            g, labels, group, weigh, learning_rate=0.02, beta=1.0, steps=400
        )
        losses = group_losses(torch.tensor(path[-1]), g, labels, group, 1.0).numpy()
        assert losses.max() < np.log(2) - 0.02
        return np.ptp(losses)

    b = mixtures.mean_differences(g, labels, group)
    first = mixtures.max_min_weights(b @ b.T)
    assert apart(lambda b: mixtures.max_min_weights(b @ b.T)) < apart(lambda _: first) / 10


def test_descent_needs_both_sides():
    g, labels, group = mixed()
    labels = np.where(group == 1, 1, labels)
    with pytest.raises(InputError, match="behavior 1 of the mixture"):
        mixtures.group_descent(g, labels, group, np.ones, learning_rate=1.0, beta=1.0, steps=1)


# Resampling


def test_resampled_statements():
    rng = np.random.default_rng(0)
    labels, group = rng.choice([1, -1], 101), np.repeat([0, 1, 2], (50, 30, 21))
    for w in ([0.2, 0.7, 0.1], [1.0, 0.0, 0.0], [1 / 3] * 3):
        rows = mixtures.resample(labels, group, np.array(w), 3)
        assert len(rows) == 101
        for j in range(3):
            counts = [((group == j) & (labels == side))[rows].sum() for side in (1, -1)]
            assert counts == pytest.approx([101 * w[j] / 2] * 2, abs=1.01)
            for side in (1, -1):
                times = np.bincount(rows, minlength=101)[(group == j) & (labels == side)]
                assert np.ptp(times) <= 1
    again, other = (mixtures.resample(labels, group, np.array(w), seed) for seed in (3, 4))
    assert np.array_equal(rows, again) and not np.array_equal(rows, other)


def test_nothing_to_draw_from():
    labels, group = np.array([1, 1, 1, -1]), np.array([0, 0, 1, 1])
    with pytest.raises(InputError, match="group 0 has no statements of side -1"):
        mixtures.resample(labels, group, np.array([0.5, 0.5]), 0)
    assert set(mixtures.resample(labels, group, np.array([0.0, 1.0]), 0)) == {2, 3}


# The chapter's runs

PAIR, RATE = ("loves-gardening", "takes-the-later-reward"), 1e-3


@pytest.fixture(scope="module")
def records(home):
    config = {"tier": "smoke", "model": "tiny-llama", "steps": 20, "seeds": 3}
    config |= {"full_learning_rate": RATE}
    return RunStore(configure(config), home / "results")


def test_arms_of_the_last_layer(records):
    g, labels, group = priorities.trained_on(records, PAIR)
    arrays = remedy.head_run(records, PAIR).arrays
    assert arrays["loss"].shape == (3, 2, 2, 21)
    assert arrays["resampled"].shape == (2, 2, 21, 3) and arrays["weights"].shape == (20, 2)
    assert arrays["weights"][0] == pytest.approx(remedy.shares(records, PAIR), rel=1e-5)
    # Plain gradient descent, if the sides were equal; they nearly are.
    rate, beta = learning_rate(records), records.config.beta
    a = labels[:, None] * g
    path = last_layer.gradient_descent(a, rate, beta, 20)
    plain = np.log1p(np.exp(-2 * beta * a @ path.T))
    plain = np.stack([plain[group == j].mean(0) for j in (0, 1)])
    assert arrays["loss"][0, :, 0] == pytest.approx(plain, abs=2e-2)
    assert arrays["loss"][0, :, 0, -1] == pytest.approx(plain[:, -1], abs=1e-3)
    # The weighted arms, measured statement by statement.
    states = [records.states(behavior) for behavior in PAIR]
    for arm, weigh in (
        (1, lambda b: np.array(remedy.shares(records, PAIR))),
        (2, lambda b: mixtures.max_min_weights(b @ b.T)),
    ):
        how = dict(learning_rate=rate, beta=beta, steps=20)
        delta = mixtures.group_descent(g, labels, group, weigh, **how)[0][-1]
        for j, s in enumerate(states):
            margins = 2 * beta * s.labels * (s.g @ delta)
            for part, rows in enumerate((s.train, ~s.train)):
                want = np.log1p(np.exp(-margins[rows])).mean()
                assert arrays["loss"][arm, j, part, -1] == pytest.approx(want, abs=2e-7)
    for part in (0, 1):
        found = remedy.head(records, "(a)", part)
        assert list(found) == list(remedy.ARMS)
        for arm, row in zip(
            ("as it is", "reweighted", "solved at every step"), range(3), strict=True
        ):
            assert np.array_equal(found[arm][:, :, 0], arrays["loss"][row, :, part])
        assert np.array_equal(found["resampled"], arrays["resampled"][:, part])


def test_a_resampled_run_is_training_on_what_was_drawn(records, tmp_path):
    found = remedy.resampled_run(records, PAIR, RATE, 1).arrays
    model = lm.load("tiny-llama", "cpu")
    statements = [data.load_behavior(behavior) for behavior in PAIR]
    learned, held_out = lm.pairs_from_behaviors(model, statements).split()
    counts = np.bincount(learned.group)
    yes = np.array([chosen == (model.yes,) for chosen in learned.chosen])
    assert yes.sum() == sum((s.labels[s.train] > 0).sum() for s in map(records.states, PAIR))
    w = remedy.shares(records, PAIR)
    assert found["counts"][:, 0] == pytest.approx(w * counts.sum(), abs=1)
    assert found["counts"][:, 1] == pytest.approx(np.minimum(w * counts.sum(), counts), abs=5)
    rows = mixtures.resample(np.where(yes, 1, -1), learned.group, w, 1)
    settings = finetune.Settings(beta=0.01, learning_rate=RATE, seed=1, save_every=0)
    curves = finetune.train(
        model, learned.take(rows), settings, tmp_path / "run", held_out, progress=False
    )
    for what in ("loss", "gap", "accuracy"):
        assert found[what] == pytest.approx(getattr(curves, what), rel=1e-5, nan_ok=True)
    assert found["loss"][:, 1, 0] == pytest.approx([np.log(2)] * 2)


def test_both_arms_in_full_have_the_same_seeds(records):
    found = remedy.everything(records)
    assert set(found) == {("(a)", "0.001"), ("(b)", "0.001")}
    for arms in found.values():
        one, other = arms.values()
        assert one.shape == other.shape == (2, 7, 1)
    want = full_finetuning.pair_losses(records, PAIR, RATE)
    assert found["(a)", "0.001"]["as it is"][:, :, 0] == pytest.approx(want)
