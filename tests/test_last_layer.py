"""The dynamics of two rows against DPO on the whole vocabulary, and against theory."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression

from dpo_helpers import last_layer
from dpo_helpers.last_layer import Problem

V, YES, NO = 11, 7, 2
BETA, RATE = 0.1, 60.0  # κ ≈ 2 on the problems below


pytestmark = pytest.mark.usefixtures("one_thread")


def _problem(seed=0, n=40, d=32, held_out=10, flip=0.0, groups=0):
    """Two overlapping clouds, unbalanced; the last rows but a shuffle are held out."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < 0.4, 1, -1)
    labels[:2] = 1, -1
    g = rng.normal(size=(n, d)) + 0.3 * labels[:, None] * rng.normal(size=d)
    labels = np.where(rng.random(n) < flip, -labels, labels)
    train = np.ones(n, bool)
    train[rng.choice(np.arange(2, n), held_out, replace=False)] = False
    group = np.arange(n) % groups if groups else None
    return Problem(g, labels, train, group)


def _unembedding(seed=0, d=32):
    return np.random.default_rng([seed, 99]).normal(size=(V, d)) / 3


def _replay(problem, weights, unembedding, beta=BETA, rate=RATE):
    """DPO of all V rows through the full softmax, by autograd: one step a row of ``weights``.

    Nothing of dpo_helpers is used. Returns loss, margin, accuracy (q, 2, t), the Frobenius and
    the operator norm of W(t) − W(0) (t,), and W at the end.
    """
    g = torch.tensor(problem.g, dtype=torch.float64)
    start = torch.tensor(unembedding, dtype=torch.float64)
    rows = torch.arange(len(g))
    yes_wins = torch.tensor(problem.labels) > 0
    chosen, rejected = torch.where(yes_wins, YES, NO), torch.where(yes_wins, NO, YES)
    group = np.zeros(len(g), int) if problem.group is None else problem.group
    sets = [[(group == q) & problem.train, (group == q) & ~problem.train] for q in np.unique(group)]

    def log_ratio(w):
        log_p = (g @ w.T).log_softmax(-1)
        return log_p[rows, chosen] - log_p[rows, rejected]

    reference = log_ratio(start)
    w = start.clone().requires_grad_()
    found = {name: [] for name in ("loss", "margin", "accuracy", "frobenius", "operator")}
    for t in range(len(weights) + 1):
        ratio = log_ratio(w)
        margins = beta * (ratio - reference)
        losses = torch.logaddexp(torch.zeros(()).double(), -margins)
        measured = {"loss": losses, "margin": margins, "accuracy": (ratio > 0).double()}
        for name, values in measured.items():
            values = values.detach().numpy()
            found[name].append([[values[s].mean() for s in pair] for pair in sets])
        change = (w - start).detach().numpy()
        found["frobenius"].append(np.linalg.norm(change))
        found["operator"].append(np.linalg.norm(change, 2))
        if t < len(weights):
            (gradient,) = torch.autograd.grad((torch.tensor(weights[t]) * losses).sum(), w)
            with torch.no_grad():
                w -= rate * gradient
    for name in ("loss", "margin", "accuracy"):
        found[name] = np.moveaxis(found[name], 0, -1)
    return {name: np.array(v) for name, v in found.items()} | {"w": w.detach().numpy()}


def _train(problems, unembedding=None, steps=200, **options):
    w = _unembedding(d=problems[0].g.shape[1]) if unembedding is None else unembedding
    options = {"beta": BETA, "learning_rate": RATE, "sampling": "full"} | options
    return last_layer.train(problems, w[YES] - w[NO], steps=steps, **options)


# (1) Two rows are the whole vocabulary


@pytest.mark.parametrize(
    ("sampling", "size", "problem"),
    [
        ("full", 40, _problem()),
        ("full", 40, _problem(1, flip=0.3)),
        ("full", 40, _problem(2, groups=3)),
        ("uniform", 8, _problem(3)),
        ("uniform", 24, _problem(4, flip=0.3)),
        ("uniform", 3, _problem(5, groups=2)),
        ("balanced", 8, _problem(6)),
        ("balanced", 13, _problem(7, flip=0.3, groups=3)),
    ],
    ids=lambda x: x if not isinstance(x, Problem) else "",
)
def test_equals_full_vocabulary_training(sampling, size, problem):
    seeds, steps, w = 2, 200, _unembedding()
    history = _train([problem], w, steps, sampling=sampling, batch_size=size, seeds=seeds)
    for s in range(seeds):
        weights = last_layer.draws(problem, steps, size, sampling, s)
        want = _replay(problem, weights, w)
        for name in ("loss", "margin", "accuracy"):
            got = history[name][0, ..., s]
            assert got.shape == want[name].shape
            np.testing.assert_allclose(got, want[name], rtol=0, atol=1e-12, err_msg=name)
        for norm in ("frobenius", "operator"):
            got = history["distance"][0, :, s]
            np.testing.assert_allclose(got, want[norm], rtol=0, atol=1e-12, err_msg=norm)
        change = want["w"] - w
        delta = history["delta"][0, :, s]
        np.testing.assert_allclose(change[YES], delta, rtol=0, atol=1e-12)
        np.testing.assert_allclose(change[NO], -delta, rtol=0, atol=1e-12)
        others = np.delete(change, [YES, NO], axis=0)
        assert np.abs(others).max() < 1e-12, "no other row changes"
        assert np.linalg.norm(delta) > 1, "the comparison is of something"
        assert (want["loss"][:, 0, -1] < 0.6).all()


def test_negated_labels_mirror_the_change():
    """a_i = s_i g_i: a world of opposite preferences learns −δ, at the same loss."""
    p = _problem()
    q = Problem(p.g, -p.labels, p.train)
    one, other = (_train([x], sampling="uniform", batch_size=6) for x in (p, q))
    np.testing.assert_allclose(other["delta"], -one["delta"], rtol=0, atol=1e-12)
    for name in ("loss", "margin", "distance"):
        np.testing.assert_allclose(other[name], one[name], rtol=0, atol=1e-12)
    np.testing.assert_allclose(other["accuracy"][..., 0, :], 1 - one["accuracy"][..., 0, :])


def test_groups_are_for_measuring_only():
    mixed = _problem(groups=3)
    plain = Problem(mixed.g, mixed.labels, mixed.train)
    one, other = _train([mixed]), _train([plain])
    assert (one["delta"] == other["delta"]).all()
    assert (one["distance"] == other["distance"]).all()
    sizes = np.array(
        [[((mixed.group == q) & (mixed.train == t)).sum() for t in (True, False)] for q in range(3)]
    )
    share = (sizes / sizes.sum(0))[..., None, None]
    for name in ("loss", "margin", "accuracy"):
        np.testing.assert_allclose((share * one[name][0]).sum(0), other[name][0, 0], rtol=1e-12)


def test_only_beta_squared_times_the_rate_matters():
    """βδ_t depends on (η, β) through ηβ² alone."""
    p = _problem()
    one = _train([p], beta=0.1, learning_rate=50.0)
    other = _train([p], beta=0.02, learning_rate=1250.0)
    np.testing.assert_allclose(0.02 * other["delta"], 0.1 * one["delta"], rtol=1e-9)
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-10)


# (2) The optimum


@pytest.mark.parametrize("held_out", [0, 60])
def test_optimum_is_logistic_regression(held_out):
    p = _problem(n=200, d=5, held_out=held_out, flip=0.35)
    history = _train([p], steps=6000)
    x, y = 2 * BETA * p.g[p.train], p.labels[p.train]
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    best = model.fit(x, y).coef_[0]
    assert np.linalg.norm(best) > 0.5
    np.testing.assert_allclose(history["delta"][0, :, 0], best, rtol=1e-6, atol=1e-8)
    assert history["margin"][0, 0, 0, -1, 0] == pytest.approx((y * (x @ best)).mean(), rel=1e-6)
    loss = history["loss"][0, 0, 0, :, 0]
    assert loss[-1] == pytest.approx(np.logaddexp(0, -y * (x @ best)).mean(), rel=1e-12)
    assert (np.diff(loss) < 1e-15).all()


# (3) Closed forms


@pytest.mark.parametrize("held_out", [0, 13])
def test_first_step(held_out):
    p = _problem(held_out=held_out)
    history = _train([p], steps=1)
    g, s = p.g[p.train], p.labels[p.train]
    b = 2 / len(g) * (s[:, None] * g).sum(0)
    np.testing.assert_allclose(history["delta"][0, :, 0], RATE * BETA / 4 * b, rtol=1e-12)
    distance = np.sqrt(2) * RATE * BETA / 4 * np.linalg.norm(b)
    assert history["distance"][0, 1, 0] == pytest.approx(distance, rel=1e-13)
    margin = BETA**2 * RATE / 4 * b @ b
    assert history["margin"][0, 0, 0, 1, 0] == pytest.approx(margin, rel=1e-12)


def test_before_the_first_step():
    p, w = _problem(n=80, held_out=30), _unembedding()
    history = _train([p], w, sampling="uniform", batch_size=8, seeds=3, steps=4)
    np.testing.assert_allclose(history["loss"][..., 0, :], np.log(2), rtol=1e-14)
    assert (history["margin"][..., 0, :] == 0).all()
    assert (history["distance"][:, 0] == 0).all()
    right = p.labels * (p.g @ (w[YES] - w[NO])) > 0
    for held_out, members in ((0, p.train), (1, ~p.train)):
        at_0 = history["accuracy"][0, 0, held_out, 0]
        np.testing.assert_allclose(at_0, right[members].mean(), rtol=1e-14)
        assert 0.1 < right[members].mean() < 0.9


def test_one_direction_follows_gradient_flow():
    """All a_i = a and small steps: m + eᵐ = 1 + 2β²‖a‖²ηt and ‖ΔW‖ = √2·m/(2β‖a‖)."""
    a = np.array([1.0, -2.0, 2.0])
    p = Problem(np.stack([a, -a, a]), np.array([1, -1, 1]), np.ones(3, bool))
    history = _train([p], steps=2000, beta=0.5, learning_rate=1e-3)
    m = history["margin"][0, 0, 0, :, 0]
    want = 1 + 2 * 0.25 * 9 * 1e-3 * np.arange(2001)
    np.testing.assert_allclose(m + np.exp(m), want, rtol=2e-3)
    assert m[-1] > 1.5
    np.testing.assert_allclose(history["distance"][0, :, 0], np.sqrt(2) * m / 3, rtol=1e-12)


# (4) Many problems, many seeds, minibatches


@pytest.mark.parametrize(("sampling", "size"), [("full", 1), ("uniform", 5), ("balanced", 40)])
def test_problems_together_equal_problems_apart(sampling, size):
    problems = [
        _problem(i, n=n, held_out=h) for i, (n, h) in enumerate([(40, 0), (7, 2), (90, 30)])
    ]
    options = dict(sampling=sampling, batch_size=size, seeds=3, steps=50)
    together = _train(problems, **options)
    for k, problem in enumerate(problems):
        apart = _train([problem], **options)
        for name, values in apart.items():
            np.testing.assert_allclose(together[name][k], values[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_a_seed_does_not_depend_on_the_others(sampling):
    """With one seed a step reads few rows, with many it reads all: the numbers are the same."""
    options = dict(sampling=sampling, batch_size=6, steps=60)
    many = _train([_problem()], seeds=9, **options)
    for seeds in (1, 2, 5):
        few = _train([_problem()], seeds=seeds, **options)
        for name, values in few.items():
            np.testing.assert_allclose(many[name][..., :seeds], values, rtol=1e-11, atol=1e-13)
    last = many["distance"][0, -1]
    assert len(np.unique(last.round(6))) == 9, "seeds differ"


def test_full_batches_know_no_seed():
    history = _train([_problem()], seeds=3, steps=20)
    first = history["delta"][..., [0, 0, 0]]
    np.testing.assert_allclose(history["delta"], first, rtol=1e-12)
    large = _train([_problem()], seeds=3, steps=20, sampling="uniform", batch_size=1000)
    np.testing.assert_allclose(large["delta"], history["delta"], rtol=1e-11)


@pytest.mark.parametrize("sampling", ["uniform", "balanced", "full"])
@pytest.mark.parametrize("size", [2, 9, 16, 500])
def test_draws(sampling, size):
    p = _problem(n=60, held_out=15)
    weights = last_layer.draws(p, 50, size, sampling, 0)
    assert weights.shape == (50, 60)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-13)
    assert (weights >= 0).all()
    assert (weights[:, ~p.train] == 0).all(), "held out is held out"
    sides = [p.train & (p.labels == side) for side in (1, -1)]
    drawn = weights > 0
    if sampling == "balanced":
        parts = [(side, 1 / 2, min(size // 2, side.sum())) for side in sides]
    else:
        count = p.train.sum() if sampling == "full" else min(size, p.train.sum())
        parts = [(p.train, 1, count)]
    for members, share, count in parts:
        np.testing.assert_allclose(weights[:, members].sum(1), share, rtol=1e-13)
        # Without repetition: so many different statements, all of one weight.
        assert (drawn[:, members].sum(1) == count).all()
        assert np.unique(weights[:, members][drawn[:, members]]).size == 1
    if count < members.sum():
        assert len(np.unique(drawn, axis=0)) > 5, "drawn anew at each step"
        assert (last_layer.draws(p, 50, size, sampling, 1) != weights).any()
    assert (last_layer.draws(p, 50, size, sampling, 0) == weights).all()


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_draws_are_fair(sampling):
    """Every training statement (of a side) is drawn as often as any other, within 5 sd."""
    p = _problem(n=60, held_out=15)
    drawn = last_layer.draws(p, 4000, 8, sampling, 0) > 0
    sides = [p.train]
    if sampling == "balanced":
        sides = [p.train & (p.labels == side) for side in (1, -1)]
    for side in sides:
        share = 8 / len(sides) / side.sum()
        sd = np.sqrt(share * (1 - share) / 4000)
        assert np.abs(drawn[:, side].mean(0) - share).max() < 5 * sd


def test_balanced_batches_push_both_sides_alike():
    """The first step is (ηβ/4)(mean g of Yes − mean g of No), however unbalanced the statements."""
    p = _problem()
    assert p.labels[p.train].sum() != 0
    delta = _train([p], steps=1, sampling="balanced", batch_size=1000)["delta"][0, :, 0]
    yes, no = (p.g[p.train & (p.labels == side)].mean(0) for side in (1, -1))
    np.testing.assert_allclose(delta, RATE * BETA / 4 * (yes - no), rtol=1e-12)


def test_nothing_held_out_measures_nan():
    history = _train([_problem(held_out=0), _problem(1)], steps=5)
    for name in ("loss", "margin", "accuracy"):
        assert np.isnan(history[name][0, :, 1]).all()
        assert np.isfinite(history[name][0, :, 0]).all()
        assert np.isfinite(history[name][1]).all()
    assert np.isfinite(history["distance"]).all()
    assert np.isfinite(history["delta"]).all()


def test_a_group_without_held_out_statements_measures_nan_alone():
    p = _problem(groups=2)
    p.train[p.group == 1] = True
    history = _train([p], steps=5)
    assert np.isnan(history["loss"][0, 1, 1]).all()
    assert np.isfinite(history["loss"][0, 0]).all()
    assert np.isfinite(history["loss"][0, 1, 0]).all()


def test_unequal_numbers_of_groups():
    with pytest.raises(ValueError, match="groups"):
        _train([_problem(groups=2), _problem(groups=3)], steps=1)
    with pytest.raises(ValueError, match="groups"):
        _train([_problem(), _problem(groups=2)], steps=1)


def test_shapes():
    history = _train([_problem(groups=2), _problem(1, n=50, groups=2)], steps=6, seeds=3)
    for name in ("loss", "margin", "accuracy"):
        assert history[name].shape == (2, 2, 2, 7, 3)
    assert history["distance"].shape == (2, 7, 3)
    assert history["delta"].shape == (2, 32, 3)


# (5) Theorem A


@st.composite
def _any_data(draw):
    n, d = draw(st.integers(1, 10)), draw(st.integers(1, 5))
    g = draw(arrays(np.float64, (n, d), elements=st.floats(-3, 3, width=32)))
    labels = draw(arrays(np.int8, n, elements=st.sampled_from([1, -1])))
    return g, labels


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    _any_data(),
    st.floats(0.01, 4),
    st.sampled_from([0.01, 0.3, 1.0, 7.0]),
    st.integers(1, 25),
)
def test_theorem_a(data, kappa, beta, steps):
    """κ ≤ 4: 1 − κ_b(t−1)/4 ≤ ‖W(t) − W(0)‖ / ((√2/4)βηt‖b̂‖) ≤ 1, equal to 1 at t = 1."""
    g, labels = data
    second_moment = g.T @ g / len(g)
    b = 2 * (labels[:, None] * g).mean(0)
    length, lambda_max = np.linalg.norm(b), np.linalg.eigvalsh(second_moment)[-1]
    assume(length > 1e-3 * np.abs(g).max())  # else rounding decides
    eta = kappa / (beta**2 * lambda_max)
    p = Problem(g, labels, np.ones(len(g), bool))
    history = _train([p], np.zeros((V, g.shape[1])), steps, beta=beta, learning_rate=eta)
    t = np.arange(1, steps + 1)
    ratio = history["distance"][0, 1:, 0] / (np.sqrt(2) / 4 * beta * eta * t * length)
    assert (ratio <= 1 + 1e-10).all()
    assert ratio[0] == pytest.approx(1, abs=1e-10)
    r = np.sqrt(b @ second_moment @ b) / length
    kappa_b = eta * beta**2 * np.sqrt(lambda_max) * r
    assert (ratio >= 1 - kappa_b * (t - 1) / 4 - 1e-10).all()


@pytest.mark.parametrize(("kappa", "low", "high"), [(3.99, 0, 1 + 1e-9), (4.05, 50, np.inf)])
def test_theorem_a_needs_kappa_of_at_most_4(kappa, low, high):
    """Data {1 + 1e-6 preferred, 1 not}: past κ = 4 the bound is broken, by a lot."""
    g = np.array([[1 + 1e-6], [1.0]])
    p = Problem(g, np.array([1, -1]), np.ones(2, bool))
    eta = kappa / (g**2).mean()
    distance = _train([p], np.zeros((V, 1)), 500, beta=1.0, learning_rate=eta)["distance"][0, :, 0]
    bound = np.sqrt(2) / 4 * eta * np.arange(1, 501) * 1e-6
    assert low < (distance[1:] / bound).max() < high
