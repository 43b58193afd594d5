"""Mixtures of behaviors against autograd, symbols and random data; the chapter's runs in form."""

import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpo_helpers import last_layer, mixtures, theory
from dpo_helpers.errors import InputError
from dpo_helpers.theory.synthetic import coordinates
from experiments import case_study, priorities
from experiments.shared import PAIRS, all_behaviors, learning_rate
from ledger.config import configure
from ledger.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")

EACH = settings(max_examples=1000, deadline=None, derandomize=True, database=None)
SCALES = st.sampled_from([1e-3, 0.1, 1.0, 30.0])


def _mixture(seed=0, sizes=(40, 7, 90), d=12, common=3.0, flip=0.0):
    """Behaviors of unequal sizes, unbalanced, about one common mean, shuffled."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = np.where(rng.random(len(group)) < 0.4, 1, -1)
    for j in range(len(sizes)):
        labels[np.flatnonzero(group == j)[:2]] = 1, -1
    b = rng.normal(size=(len(sizes), d))
    g = rng.normal(size=(len(group), d)) + labels[:, None] * b[group] / 2
    labels = np.where(rng.random(len(group)) < flip, -labels, labels)
    return g + common * rng.normal(size=d), labels, group


def _plain(g, labels, group):
    """b̂_j and b_j, a behavior and a side at a time."""
    pulls, differences = [], []
    for j in np.unique(group):
        a, s = g[group == j], labels[group == j]
        pulls.append(2 / len(a) * sum(s[i] * a[i] for i in range(len(a))))
        differences.append(a[s > 0].mean(0) - a[s < 0].mean(0))
    return np.array(pulls), np.array(differences)


@st.composite
def _any_mixture(draw):
    m, d = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    n = draw(st.integers(m, 24))
    g = draw(arrays(np.float64, (n, d), elements=st.floats(-3, 3, width=32)))
    labels = draw(arrays(np.int8, n, elements=st.sampled_from([1, -1])))
    group = draw(arrays(np.int64, n, elements=st.integers(0, m - 1)))
    group[:m] = np.arange(m)
    common = draw(arrays(np.float64, d, elements=st.floats(-20, 20, width=32)))
    return g + common, labels, group


# The first step


@pytest.mark.parametrize("seed", range(5))
def test_first_step_is_that_of_autograd(seed):
    """prop-first-step: unequal sizes, unbalanced labels, any reference."""
    g, labels, group = _mixture(seed, flip=0.2 * (seed % 2))
    eta, beta = 7.0, 0.3
    w = np.random.default_rng(seed).normal(size=(11, g.shape[1]))
    change = priorities.autograd_step(g, labels, w, eta, beta)
    b, sizes = mixtures.signed_means(g, labels, group)
    assert list(sizes) == [40, 7, 90]
    np.testing.assert_allclose(b, _plain(g, labels, group)[0], rtol=1e-12, atol=1e-13)
    step = eta * beta / 4 * sum(n / 137 * row for n, row in zip(sizes, b, strict=True))
    np.testing.assert_allclose(change[0], step, rtol=0, atol=1e-12)
    np.testing.assert_allclose(change[1], -step, rtol=0, atol=1e-12)
    assert np.abs(change[2:]).max() < 1e-12
    # (22), a statement at a time.
    logits = labels * (g @ (change[0] - change[1]))
    rise = [logits[group == j].mean() for j in range(3)]
    np.testing.assert_allclose(mixtures.logit_gains(b, sizes, eta, beta), rise, rtol=0, atol=1e-11)
    equal = eta * beta / 4 * b.mean(0)
    assert np.linalg.norm(equal - step) > 0.01 * np.linalg.norm(step), "the weights matter"


def test_first_step_is_that_of_the_training_loop():
    g, labels, group = _mixture(3)
    p = last_layer.Problem(g, labels, np.ones(len(g), bool), group)
    rate = dict(beta=0.2, learning_rate=0.5)
    history = last_layer.train([p], np.zeros(12), steps=1, sampling="full", **rate)
    low, fallen, high = mixtures.first_loss_decrease(g, labels, group, 0.5, 0.2)
    measured = np.log(2) - history["loss"][0, :, 0, 1, 0]
    np.testing.assert_allclose(fallen, measured, rtol=0, atol=1e-13)
    np.testing.assert_allclose(history["margin"][0, :, 0, 1, 0], 2 * high, rtol=1e-10, atol=1e-13)
    assert (low < fallen).all() and (fallen < high).all()


def test_pulls_hold_a_share_of_the_common_mean():
    """b̂_j = b_j + ((n₊ − n₋)/n)(μ̂₊ + μ̂₋)."""
    g, labels, group = _mixture(4)
    b, (pulls, _) = (
        mixtures.mean_differences(g, labels, group),
        mixtures.signed_means(g, labels, group),
    )
    np.testing.assert_allclose(b, _plain(g, labels, group)[1], rtol=1e-10, atol=1e-12)
    for j in range(3):
        a, s = g[group == j], labels[group == j]
        both = a[s > 0].mean(0) + a[s < 0].mean(0)
        np.testing.assert_allclose(pulls[j], b[j] + s.mean() * both, rtol=1e-10, atol=1e-12)


@EACH
@given(_any_mixture(), SCALES, st.sampled_from([0.01, 0.3, 1.0]))
def test_first_fall_is_within_its_bounds(data, eta, beta):
    """prop-first-fall, at any step size: 1,000 random mixtures."""
    g, labels, group = data
    low, fallen, high = mixtures.first_loss_decrease(g, labels, group, eta, beta)
    slack = 1e-10 * (np.abs(low) + np.abs(high)) + 1e-14 * (1 + (np.abs(g).max() * beta) ** 2 * eta)
    assert (low <= fallen + slack).all()
    assert (fallen <= high + slack).all()
    b, sizes = mixtures.signed_means(g, labels, group)
    np.testing.assert_allclose(
        2 / beta * high, mixtures.logit_gains(b, sizes, eta, beta), rtol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.5, 1, 2, None])
def test_first_fall_is_within_its_bounds_in_many_dimensions(alpha):
    """d and n up to 4,096, heavy tails, common mean, duplicated rows, κ up to 4 and beyond."""
    rng = np.random.default_rng([int(2 * (alpha or 0)), 7])
    for _ in range(40):
        n, d = np.exp(rng.uniform(np.log(2), np.log(4096), 2)).astype(int)
        n = max(2, min(n, 2_000_000 // d))
        g = coordinates(rng, (n, d), alpha) + rng.choice([0, 1, 10]) * rng.normal(size=d)
        g[rng.integers(n, size=n // 3)] = g[0]
        labels = np.where(rng.random(n) < rng.uniform(0.05, 0.95), 1, -1)
        group = rng.integers(0, rng.integers(1, 4), size=n)
        group = np.unique(group, return_inverse=True)[1]
        eta = np.exp(rng.uniform(np.log(1e-3), np.log(10))) / (g**2).sum(1).mean()
        low, fallen, high = mixtures.first_loss_decrease(g, labels, group, eta, 1.0)
        slack = 1e-10 * (np.abs(low) + np.abs(high)) + 1e-15
        assert (low <= fallen + slack).all()
        assert (fallen <= high + slack).all()


def test_first_fall_lower_bound_lacks_a_fourth_power_only():
    """f(m) = m/2 − m²/8 + m⁴/192 − …: a tenth of the margins, 1e-4 of the distance."""
    g, labels, group = _mixture(5)
    gaps = []
    for eta in (1e-2, 1e-3):
        low, fallen, _ = mixtures.first_loss_decrease(g, labels, group, eta, 0.3)
        gaps.append(fallen - low)
    np.testing.assert_allclose(gaps[0] / gaps[1], 1e4, rtol=0.05)


def test_all_losses_can_rise_though_all_pulls_agree():
    """A step along an unbalanced minibatch: the common mean decides."""
    g, labels, group = _mixture(6, sizes=(200, 200), common=30.0)
    balanced = np.concatenate(
        [np.flatnonzero((group == j) & (labels == side))[:60] for j in (0, 1) for side in (1, -1)]
    )
    g, labels, group = g[balanced], labels[balanced], group[balanced]
    # 60 Yes and 40 No statements of each.
    keep = np.concatenate([np.flatnonzero(group == j)[:100] for j in (0, 1)])
    left = g[keep], labels[keep], group[keep]
    for j in (0, 1):
        assert (left[1][left[2] == j] > 0).mean() == pytest.approx(0.6)
    assert (mixtures.priority_levels(mixtures.mean_differences(*left)) > 0).all()
    step = 1e-2 / 2 * (left[1][:, None] * left[0]).mean(0)
    assert (mixtures.loss_decreases(step[None], g, labels, group, 1.0) < 0).all()


def test_falls_along_a_path():
    g, labels, group = _mixture(7)
    path = last_layer.gradient_descent(labels[:, None] * g, 0.01, 1.0, 5)
    falls = mixtures.loss_decreases(path, g, labels, group, 1.0)
    assert falls.shape == (3, 6) and (falls[:, 0] == 0).all()
    for j in range(3):
        margins = 2 * (labels[:, None] * g)[group == j] @ path[4]
        assert falls[j, 4] == pytest.approx(np.log(2) - np.logaddexp(0, -margins).mean(), abs=1e-13)


# Equation (5)


def test_what_priorities_get_wrong():
    opposed = np.array([(3, 0), (-2, 2), (-2, -1.9)])
    assert mixtures.priority_levels(opposed)[0] == pytest.approx(-0.995, abs=5e-4)
    outvoted = mixtures.priority_levels(np.array([(3, 0), (0, 2.5), (0, 2.5)]))
    np.testing.assert_allclose(outvoted, [0.514, 0.715, 0.715], atol=5e-4)


@pytest.mark.parametrize("b", [[(1.0, 2.0), (-1.0, -2.0)], [(0.0, 0.0)]])
def test_priorities_are_undefined_where_behaviors_cancel(b):
    with pytest.raises(InputError, match="undefined"):
        mixtures.priority_levels(np.array(b))


@EACH
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 4)),
        elements=st.floats(-9, 9, width=32),
    )
)
def test_priorities_in_general(b):
    """|P_j| ≤ ‖b_j‖/‖b_*‖, their mean is ‖b̄‖/‖b_*‖, and of two the longer comes first."""
    lengths = np.linalg.norm(b, axis=1)
    assume(np.linalg.norm(b.mean(0)) > 1e-9 * lengths.max())
    level = mixtures.priority_levels(b)
    assert (np.abs(level) <= lengths / lengths.max() + 1e-12).all()
    mean = np.linalg.norm(b.mean(0)) / lengths.max()
    assert level.mean() == pytest.approx(mean, rel=1e-5, abs=1e-9)
    np.testing.assert_allclose(mixtures.priority_levels(3 * b), level, rtol=1e-6, atol=1e-9)
    if len(b) == 2:
        gap = (lengths[0] ** 2 - lengths[1] ** 2) / (2 * np.linalg.norm(b.mean(0)) * lengths.max())
        assert level[0] - level[1] == pytest.approx(gap, rel=1e-5, abs=1e-6)


def test_pair_gap_in_symbols():
    """prop-pair: the gap of the rises does not hold the angle, that of the levels does."""
    x, rho, turn = sympy.symbols("x rho theta", positive=True)
    one = sympy.Matrix([x, 0])
    other = x * rho * sympy.Matrix([sympy.cos(turn), sympy.sin(turn)])
    mean = (one + other) / 2
    rises = sympy.simplify(mean.dot(one - other))
    assert sympy.simplify(rises - x**2 * (1 - rho**2) / 2) == 0
    square = sympy.simplify((rises / x) ** 2 / mean.dot(mean))
    want = (1 - rho**2) ** 2 / (1 + 2 * rho * sympy.cos(turn) + rho**2)
    assert sympy.simplify(square - want) == 0


def test_first_gradient_in_symbols():
    """−d/dδ of −log σ(2β s g·δ) at 0 is β s g: two rows, each ½β s g."""
    beta, s, g, up, down = sympy.symbols("beta s g w_plus w_minus", real=True)
    loss = sympy.log(1 + sympy.exp(-beta * s * (up - down) * g))
    at_start = {up: 0, down: 0}
    assert sympy.simplify(-loss.diff(up).subs(at_start) - beta * s * g / 2) == 0
    assert sympy.simplify(loss.diff(down).subs(at_start) - beta * s * g / 2) == 0


def test_the_order_of_mean_margins_is_certain_for_a_while():
    """ex-horizon: ‖2δ_t − x_t u‖ ≤ ρ_t x_t, so the order holds as long as ρ_t is below a cosine."""
    reached = 0
    for seed in range(200):
        g, labels, group = _mixture(seed, sizes=(60, 60), common=0.3)
        s = theory.signal(g, labels)
        pulls, _ = mixtures.signed_means(g, labels, group)
        apart = pulls[0] - pulls[1]
        eta = 0.1 / s.lambda_max
        path = last_layer.gradient_descent(labels[:, None] * g, eta, 1.0, 80)
        t = np.arange(1, 81)
        cosine = apart @ s.unit / np.linalg.norm(apart)
        certain = s.slack(eta, 1.0, t) < abs(cosine)
        assert (np.sign(path[1:] @ apart)[certain] == np.sign(cosine)).all()
        reached += certain.sum()
    assert reached > 1000, "beyond the first step, too"


# Bad input


def test_bad_mixtures():
    g, labels, group = _mixture()
    with pytest.raises(InputError, match="behavior 1 of the mixture has no statements"):
        mixtures.signed_means(g, labels, np.where(group == 1, 0, group))
    with pytest.raises(InputError, match="behavior 2 of the mixture has statements of one side"):
        mixtures.mean_differences(g, np.where(group == 2, 1, labels), group)
    with pytest.raises(InputError, match="behavior 1 of the mixture"):
        mixtures.mean_differences(g, labels, np.where(group == 1, 0, group))
    g[3] = np.nan
    assert np.isnan(mixtures.first_loss_decrease(g, labels, group, 1.0, 1.0)[1]).all()
    assert np.isnan(mixtures.priority_levels(np.array([[np.nan, 1.0], [1.0, 0.0]]))).all()


# The runs


@pytest.fixture(scope="module")
def records():
    return RunStore(configure({"tier": "book", "seeds": 2}))


def test_all_behaviors_are_those_of_the_figures():
    for tier in ("smoke", "book"):
        config = configure({"tier": tier})
        found = all_behaviors(config)
        wanted = {*config.behaviors, config.calibration, *case_study.FIGURE_2[tier]}
        assert set(found) == wanted.union(*PAIRS[tier]) and len(set(found)) == len(found)


def test_problem_keeps_behaviors_apart(records):
    pair = PAIRS["book"][0]
    p = priorities.problem(records, pair)
    for j, behavior in enumerate(pair):
        s = records.states(behavior)
        assert (p.g[p.group == j] == s.g).all() and (p.labels[p.group == j] == s.labels).all()
        assert (p.train[p.group == j] == s.train).all()
    b = priorities.differences(records, pair)
    s = records.states(pair[1])
    sides = [s.g[s.train & (s.labels == side)].mean(0) for side in (1, -1)]
    np.testing.assert_allclose(b[1], sides[0] - sides[1], rtol=1e-9, atol=1e-11)


def test_figure_5_run_trains_the_union(records, tmp_path):
    mine = RunStore(records.config, tmp_path)
    mine.states = records.states
    run = priorities.figure_5_run(mine, 0).arrays
    options = dict(beta=0.01, learning_rate=learning_rate(records), steps=100)
    p = priorities.problem(records, PAIRS["book"][0])
    full = last_layer.train([p], np.zeros(p.g.shape[1]), sampling="full", **options)
    np.testing.assert_allclose(run["descent"], full["loss"][0, :, 0, :, 0], rtol=1e-6)
    assert run["loss"].shape == (2, 101, records.config.seeds)
    assert np.abs(run["linear"] - run["descent"]).max() < 0.05 * (np.log(2) - run["descent"]).max()
    other = priorities.figure_5_run(mine, 1).arrays
    gaps = [np.abs(x["loss"][0] - x["loss"][1]).mean(0) for x in (run, other)]
    np.testing.assert_allclose(priorities.paper_gaps(mine, "f5-b"), gaps[0] / gaps[1], rtol=1e-6)
    first, second = mixtures.priority_levels(priorities.differences(mine, PAIRS["book"][0]))
    high, low = (0, 1) if first > second else (1, 0)
    ahead = (run["loss"][high, 1:] < run["loss"][low, 1:]).mean(0)
    np.testing.assert_allclose(priorities.lead(mine, "f5-a"), ahead)
