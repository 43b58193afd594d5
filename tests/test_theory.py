"""Every inequality called proven, on more than 1,000 random problems; identities to 1e-12."""

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy.special import expit

from dpo_helpers import last_layer, theory
from dpo_helpers.errors import InputError
from dpo_helpers.theory import certain_until, certificate, printed, synthetic

pytestmark = pytest.mark.usefixtures("one_thread")
TRIALS = settings(max_examples=1000, deadline=None, derandomize=True, database=None)
CLOSE = 1e-10  # relative


def _problem(seed, n, d, alpha=None, share=0.5, twice=False, apart=0.3, common=0.0, scale=1.0):
    """Hidden states of two classes, labels, and an initial boundary."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < share, 1, -1)
    labels[:2] = 1, -1
    g = synthetic.coordinates(rng, (n, d), alpha)
    g += apart * labels[:, None] * rng.normal(size=d) + common * rng.normal(size=d)
    if twice:
        g[n // 2 :] = g[: n - n // 2]
    return scale * g, labels, scale * rng.normal(size=d)


@st.composite
def problems(draw):
    """d, n from 2 to 4,096 (not both large), tails, imbalance, repetition, a common mean, κ ≤ 4."""
    n = draw(st.integers(2, 4096) if draw(st.booleans()) else st.integers(2, 40))
    most = max(2, min(4096, 60_000 // n))
    d = draw(st.integers(2, most) if draw(st.booleans()) else st.integers(2, min(40, most)))
    g, labels, boundary = _problem(
        draw(st.integers(0, 2**32 - 1)),
        n,
        d,
        alpha=draw(st.sampled_from([0.5, 1, 2, None])),
        share=draw(st.sampled_from([0.02, 0.3, 0.5, 0.9])),
        twice=draw(st.booleans()),
        apart=draw(st.sampled_from([0, 0.03, 0.3, 3])),
        common=draw(st.sampled_from([0, 0.5, 20])),
        scale=draw(st.sampled_from([1e-3, 1, 50])),
    )
    beta = draw(st.sampled_from([0.01, 0.3, 1.0]))
    kappa = draw(st.sampled_from([1e-3, 0.1, 1, 2, 2.5, 3.9, 4]) | st.floats(1e-4, 4))
    eta = kappa * (1 - 1e-13) / (beta**2 * theory.largest_eigenvalue(g))
    return g, labels, boundary, eta, beta, draw(st.integers(1, 60))


def _below(low, high, scale):
    """low ≤ high, to 1e-10 of the scale."""
    assert (low <= high + CLOSE * scale).all(), float((low - high).max() / scale)


def _assert_bounds(g, labels, boundary, eta, beta, steps):
    a, t = labels[:, None] * g, np.arange(steps + 1)
    s = theory.signal(g, labels)
    path = last_layer.gradient_descent(a, eta, beta, steps)
    distance = np.sqrt(2) * np.linalg.norm(path, axis=1)
    margins = 2 * beta * path @ a.T
    fallen = theory.loss_decrease(margins).mean(1)
    # Where b̂ = 0 what is left is rounding, of up to 1e-14 of what a step adds up: a sum of two
    # opposite products is not exactly zero where the CPU fuses the second with the addition.
    most = max(distance.max(), 1e-4 * steps * eta * beta * s.norms.max())
    gained = max(np.abs(fallen).max(), 1e-5 * beta * s.norms.max() * most)

    low, high = theory.distance_bounds(s, eta, beta, t)
    _below(low, distance, most)
    _below(distance, high, most)
    assert abs(distance[1] - high[1]) <= 1e-12 * most, "an equality at t = 1"
    _below(distance, theory.saturation(s, eta, beta, t), most)
    kappa = s.kappa(eta, beta)
    _below(distance, theory.energy_envelope(fallen, kappa, eta, t)[: steps + 1], most)
    increments = np.linalg.norm(np.diff(path, axis=0), axis=1)
    _below(increments[1:], increments[:-1], most)
    _below(fallen[:-1], fallen[1:], gained)

    low, high = theory.loss_decrease_bounds(s, eta, beta, t)
    _below(low, fallen, gained)
    _below(fallen, high, gained)
    if s.b_norm > 1e-9 * np.abs(g).max():
        moved = theory.distance_from_loss(fallen, s.b_norm, beta)
        _below(moved, distance, most)
        _below(2 * np.sqrt(2) * fallen / (beta * s.b_norm), moved, most)

    after = boundary + 2 * path
    starts = labels * (g @ boundary)
    right = starts + margins / beta
    smallest = -CLOSE * np.linalg.norm(g, axis=1) * np.linalg.norm(after, axis=1).max()
    proven = theory.proven_correct(s, starts, eta, beta, t)
    assert (right > smallest)[proven].all()
    cosine = after @ s.unit / np.linalg.norm(after, axis=1)
    least = theory.alignment(s, boundary, eta, beta, t)
    assert not (least > cosine + CLOSE).any()

    off = theory.linearization_error_bound(theory.spectrum(g), labels, s.norms, eta, beta, steps)
    linear = off[0] @ theory.spectrum(g).right
    _below(np.linalg.norm(path - linear, axis=1), off[2], most)

    c = certificate(g, labels, boundary, learning_rate=eta, beta=beta, steps=steps)
    _below(c.distance[0], distance, most)
    _below(distance, c.distance[1], most)
    _below(c.loss_decrease[0], fallen, gained)
    _below(fallen, c.loss_decrease[1], gained)
    assert not (c.cosine > cosine + CLOSE).any()
    assert (right > smallest)[c.correct].all()
    assert (c.loss[0] <= c.loss[1] + CLOSE).all()


@pytest.mark.slow
@TRIALS
@given(problems())
def test_every_proven_bound_holds(problem):
    _assert_bounds(*problem)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.5, 4 * (1 - 1e-13)])
@pytest.mark.parametrize(("n", "d"), [(2, 4096), (4096, 2), (1500, 4096), (4096, 1500)])
def test_every_proven_bound_holds_at_size(n, d, kappa):
    g, labels, boundary = _problem(n + d, n, d, alpha=1, share=0.3, common=2.0)
    eta = kappa / (0.1**2 * theory.largest_eigenvalue(g))
    _assert_bounds(g, labels, boundary, eta, 0.1, 20)


def test_bounds_where_the_signal_vanishes():
    """Every statement twice, with both labels: b̂ = 0, nothing moves, and nothing is claimed."""
    g = np.random.default_rng(0).normal(size=(6, 4))
    g, labels = np.concatenate([g, g]), np.repeat([1, -1], 6)
    c = certificate(g, labels, np.ones(4), learning_rate=0.1, beta=1.0, steps=9)
    assert c.distance.max() < 1e-14 and c.loss_decrease.max() < 1e-14
    zero = theory.signal(np.zeros((2, 3)), np.array([1, -1]))
    t = np.arange(5)
    assert (theory.saturation(zero, 1.0, 1.0, t) < 1e-12).all()
    assert np.isnan(theory.alignment(zero, np.ones(3), 1.0, 1.0, t)).all()


# The dynamics


def test_descent_is_last_layer_training():
    g, labels, boundary = _problem(0, 40, 12)
    path = last_layer.gradient_descent(labels[:, None] * g, 3.0, 0.2, 30)
    whole = np.ones(40, bool)
    history = last_layer.train(
        [last_layer.Problem(g, labels, whole)],
        boundary,
        beta=0.2,
        learning_rate=3.0,
        steps=30,
        sampling="full",
    )
    np.testing.assert_allclose(path[-1], history["delta"][0, :, 0], rtol=1e-12)
    distance = np.sqrt(2) * np.linalg.norm(path, axis=1)
    np.testing.assert_allclose(distance, history["distance"][0, :, 0], rtol=1e-12)
    fallen = theory.loss_decrease(2 * 0.2 * path @ (labels[:, None] * g).T).mean(1)
    np.testing.assert_allclose(np.log(2) - fallen, history["loss"][0, 0, 0, :, 0], rtol=1e-12)


def test_descent_takes_several_sets_at_once():
    a = np.random.default_rng(0).normal(size=(3, 2, 20, 5))
    together = last_layer.gradient_descent(a, 1.0, 0.5, 7)
    assert together.shape == (8, 3, 2, 5)
    for i in range(3):
        for j in range(2):
            alone = last_layer.gradient_descent(a[i, j], 1.0, 0.5, 7)
            np.testing.assert_allclose(together[:, i, j], alone, rtol=1e-12, atol=1e-15)


@settings(TRIALS, max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12))
def test_exact_identity(seed, n, d):
    """δ_{t+1} = (I − (ηβ²/2)H_t)δ_t + (ηβ/4)b̂ at any δ, not only along a run; 0 ⪯ H_t ⪯ Ĉ."""
    rng = np.random.default_rng(seed)
    g, delta = rng.normal(size=(n, d)), 10 ** rng.uniform(-3, 2) * rng.normal(size=d)
    a = rng.choice([1, -1], n)[:, None] * g
    eta, beta = rng.uniform(0.1, 3, 2)
    margins = 2 * beta * a @ delta
    step = delta + eta * beta * (expit(-margins) @ a) / n
    held = (theory.theta(margins)[:, None] * g).T @ g / n
    same = delta - eta * beta**2 / 2 * held @ delta + eta * beta / 4 * 2 * a.mean(0)
    scale = np.linalg.norm(delta) * (1 + eta * beta**2 * np.linalg.norm(held, 2))
    assert np.abs(step - same).max() <= 1e-12 * max(scale, np.abs(step).max())
    assert np.linalg.eigvalsh(held)[0] >= -1e-12
    assert np.linalg.eigvalsh(g.T @ g / n - held)[0] >= -1e-12


def test_the_identity_by_algebra():
    m = sympy.symbols("m", positive=True)
    theta = sympy.tanh(m / 2) / (m / 2)
    sigma = 1 / (1 + sympy.exp(m))
    residual = (sigma - sympy.Rational(1, 2) + m / 4 * theta).rewrite(sympy.exp)
    assert sympy.simplify(residual) == 0
    assert sympy.limit(theta, m, 0) == 1
    assert sympy.series(theta, m, 0, 4).removeO() == 1 - m**2 / 12
    # Below log 2 − m/2 + m²/8: the curvature σ(m)σ(−m) of the loss is at most 1/4.
    curvature = sympy.diff(sympy.log(1 + sympy.exp(-m)), m, 2)
    assert sympy.simplify(curvature - sigma * (1 - sigma)) == 0
    assert sympy.simplify(sympy.Rational(1, 4) - sigma * (1 - sigma) - (sigma - 0.5) ** 2) == 0


@pytest.mark.parametrize(
    "margin", [-800.0, -40.0, -30.0, -3.0, -1e-9, 0.0, 1e-12, 0.5, 40.0, 800.0]
)
def test_fall_without_cancellation(margin):
    exact = sympy.log(2) - sympy.log(1 + sympy.exp(-sympy.Float(margin, 400)))
    assert theory.loss_decrease(np.array(margin)) == pytest.approx(
        float(exact.evalf(50)), rel=1e-14
    )
    if 0 <= margin <= 0.5:
        assert theory.margin_of_loss_decrease(theory.loss_decrease(margin)) == pytest.approx(
            margin, rel=1e-13
        )


def test_theta():
    m = np.array([-700.0, -2.0, -1e-9, 0.0, 1e-200, 3.0])
    assert theory.theta(m)[2:5] == pytest.approx(1, abs=1e-15)
    np.testing.assert_allclose(expit(-m) - 0.5, -m / 4 * theory.theta(m), atol=1e-16)


@pytest.mark.parametrize("shape", [(7, 40), (40, 7), (1, 5), (6, 1)])
def test_largest_eigenvalue(shape):
    g = np.random.default_rng(0).normal(size=shape)
    want = np.linalg.eigvalsh(g.T @ g / shape[0])[-1]
    assert theory.largest_eigenvalue(g) == pytest.approx(want, rel=1e-13)


# Bounds, one by one


def test_sgd_moves_no_further_than_its_batches():
    g, labels, boundary = _problem(3, 60, 20, common=3.0)
    p = last_layer.Problem(g, labels, np.ones(60, bool))
    most = 4 / (0.2**2 * (np.linalg.norm(g, axis=1) ** 2).max())  # κ ≤ 4 on any minibatch
    settings_ = dict(beta=0.2, learning_rate=most, steps=50, batch_size=8, seeds=4)
    distance = last_layer.train([p], boundary, **settings_)["distance"][0]
    # The first step is (ηβ/4) b̂_0: it gives the strength of the first minibatch.
    first = distance[1] * 4 / (np.sqrt(2) * 0.2 * most)
    bound = theory.sgd_distance_bound(first[None], most, 0.2)
    np.testing.assert_allclose(bound[1], distance[1], rtol=1e-12)
    weights = np.stack([last_layer.draws(p, 50, 8, "uniform", s) for s in range(4)])
    strengths = np.linalg.norm(2 * weights @ (labels[:, None] * g), axis=-1).T
    bound = theory.sgd_distance_bound(strengths, most, 0.2)
    assert bound.shape == distance.shape
    assert (distance <= bound * (1 + CLOSE)).all()
    assert (distance[-1] > 0.02 * bound[-1]).all()


@settings(TRIALS)
@given(problems(), st.integers(0, 2**32 - 1))
def test_any_minibatches_move_no_further(problem, seed):
    """Theorem A for SGD: minibatches of any size, with κ ≤ 4 on each of them."""
    g, labels, _, _, beta, steps = problem
    rng, a = np.random.default_rng(seed), labels[:, None] * g
    size = rng.integers(1, len(g) + 1)
    batches = [a[rng.choice(len(g), size, replace=False)] for _ in range(min(steps, 12))]
    # λ of a minibatch is at most the mean of its ‖g‖²; the largest decides.
    lambda_max = max((batch**2).sum(1).mean() for batch in batches)
    eta = rng.choice([4.0, rng.uniform(0, 4)]) / (beta**2 * lambda_max)
    delta, distance = np.zeros(g.shape[1]), [0.0]
    for batch in batches:
        delta = delta + eta * beta * (expit(-2 * beta * batch @ delta) @ batch) / size
        distance.append(np.sqrt(2) * np.linalg.norm(delta))
    strengths = np.array([np.linalg.norm(2 * batch.mean(0)) for batch in batches])
    bound = theory.sgd_distance_bound(strengths, eta, beta)
    assert bound.shape == (len(batches) + 1,)
    _below(np.array(distance), bound, max(bound[-1], 1e-5 * eta * beta * np.sqrt(lambda_max)))


@pytest.mark.parametrize(("kappa", "low", "high"), [(3.99, 0, 1 + 1e-9), (4.05, 50, np.inf)])
def test_the_threshold_is_sharp(kappa, low, high):
    g, labels = np.array([[1 + 1e-6], [1.0]]), np.array([1, -1])
    eta = kappa / (g**2).mean()
    path = last_layer.gradient_descent(labels[:, None] * g, eta, 1.0, 500)
    bound = np.sqrt(2) / 4 * eta * np.arange(1, 501) * 1e-6
    assert low < (np.sqrt(2) * np.abs(path[1:, 0]) / bound).max() < high


def test_saturation_is_the_root():
    g, labels, _ = _problem(0, 50, 10)
    s = theory.signal(g, labels)
    eta, beta = 1.0 / s.lambda_max, 1.0
    k, t = beta * s.b_norm / np.sqrt(2), np.array([1, 10, 1000, 10**6])
    for found, steps in zip(theory.saturation(s, eta, beta, t), t, strict=True):
        cost = (1 - s.kappa(eta, beta) / 4) / (eta * steps)
        gap = lambda w, cost=cost: cost * w**2 - theory.loss_decrease(np.array(k * w))  # noqa: E731
        root = optimize.brentq(gap, found / 2, 2 * found, xtol=1e-14)
        assert found == pytest.approx(root, rel=1e-9)
    late = theory.saturation(s, eta, beta, np.array([10.0**8, 4 * 10.0**8]))
    assert late[1] / late[0] == pytest.approx(2, rel=0.01), "√t in the end"


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 2, None])
def test_sampled_strength_holds_with_its_probability(alpha):
    """4.1′ at p = .05: Chebyshev for any tail, the Gaussian form for Gaussians."""
    rng, n, d, p = np.random.default_rng(0), 40, 30, 0.05
    b = np.eye(d)[0]
    g, labels = synthetic.clouds(rng, (2000, n), b, alpha=alpha)
    strength = np.linalg.norm(2 / n * np.einsum("n,snd->sd", labels, g), axis=1)
    bound = theory.sampled_b_norm(1.0, 2 * d, n, p)
    assert (strength > bound).mean() <= p
    if alpha is None:
        sharper = theory.sampled_b_norm(1.0, 2 * d, n, p, norm=2.0)
        assert sharper < bound
        assert (strength > sharper).mean() <= p


# Closed forms


def test_linear_regime_is_the_linear_recursion():
    for n, d in ((30, 8), (8, 30)):
        g, labels, _ = _problem(1, n, d, common=2.0)
        second, b = g.T @ g / n, 2 * (labels[:, None] * g).mean(0)
        for kappa in (1e-9, 0.5, 3.9):
            beta = 0.3
            eta = kappa / (beta**2 * np.linalg.eigvalsh(second)[-1])
            delta, want = np.zeros(d), [np.zeros(d)]
            for _ in range(40):
                delta = delta - eta * beta**2 / 2 * second @ delta + eta * beta / 4 * b
                want.append(delta)
            s = theory.spectrum(g)
            found = theory.linear_regime(s, labels, eta, beta, np.arange(41)) @ s.right
            np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-13 * np.abs(want).max())


def test_linear_regime_is_exact_at_first():
    g, labels, _ = _problem(2, 50, 20)
    s = theory.spectrum(g)
    first = theory.linear_regime(s, labels, 2.0, 0.5, np.array(1)) @ s.right
    exact = last_layer.gradient_descent(labels[:, None] * g, 2.0, 0.5, 1)[1]
    np.testing.assert_allclose(first, exact, rtol=1e-12, atol=1e-15)


def test_gradient_flow():
    norm, beta = 3.0, 0.4

    def speed(_, m):
        return 2 * beta**2 * norm**2 * expit(-m)

    times = np.array([0.1, 1.0, 30.0])
    flow = integrate.solve_ivp(speed, (0, 30), [0.0], t_eval=times, rtol=1e-11, atol=1e-13)
    margin, distance = theory.gradient_flow(norm, beta, times)
    np.testing.assert_allclose(margin, flow.y[0], rtol=1e-8)
    np.testing.assert_allclose(distance, np.sqrt(2) * margin / (2 * beta * norm), rtol=1e-14)
    small = 1e-4
    path = last_layer.gradient_descent(np.full((1, 1), norm), small, beta, 10_000)[-1, 0]
    assert 2 * beta * norm * path == pytest.approx(
        theory.gradient_flow(norm, beta, 1.0)[0], rel=1e-3
    )
    assert np.isfinite(theory.gradient_flow(norm, beta, 1e300)).all()


# The certificate


def test_a_certificate_is_exact_at_the_first_step():
    g, labels, boundary = _problem(4, 80, 30)
    eta = 2 / (0.1**2 * theory.largest_eigenvalue(g))
    c = certificate(g, labels, boundary, learning_rate=eta, beta=0.1, steps=5)
    np.testing.assert_allclose(c.distance[0, 1], c.distance[1, 1], rtol=1e-12)
    np.testing.assert_allclose(c.loss_decrease[0, 1], c.loss_decrease[1, 1], rtol=1e-12)
    path = last_layer.gradient_descent(labels[:, None] * g, eta, 0.1, 1)[1]
    right = labels * (g @ (boundary + 2 * path)) > 0
    assert (c.correct[1] == right).all()
    assert c.correct.shape == (6, 80) and c.cosine.shape == (6,)
    assert (c.distance[:, 0] == 0).all() and (c.loss[:, 0] == np.log(2)).all()


def test_a_certificate_is_tight_while_margins_are_small():
    g, labels, boundary = _problem(4, 80, 30)
    eta = 0.01 / (0.01**2 * theory.largest_eigenvalue(g))
    c = certificate(g, labels, boundary, learning_rate=eta, beta=0.01, steps=20)
    assert (c.distance[1, 1:] / c.distance[0, 1:]).max() < 1.001


@pytest.mark.parametrize("kappa", [0.3, 3.0])
def test_a_certificate_is_what_its_docstring_says(kappa):
    """Each formula once more, from dense matrices and one step at a time."""
    g, labels, boundary = _problem(5, 60, 12, common=1.0)
    n, beta, steps = 60, 0.5, 40
    second, b = g.T @ g / n, 2 * (labels[:, None] * g).mean(0)
    lambda_max, norms = np.linalg.eigvalsh(second)[-1], np.linalg.norm(g, axis=1)
    eta, strength = kappa / (beta**2 * lambda_max), np.linalg.norm(b)
    log2 = np.log(2)

    def fallen(delta):
        return log2 - np.logaddexp(0, -2 * beta * labels * (g @ delta)).mean()

    linear, off = [np.zeros(12)], [0.0]
    for _ in range(steps):
        m = np.abs(2 * beta * g @ linear[-1])
        far = m + 2 * beta * norms * off[-1]
        missed = (1 - np.tanh(far / 2) / np.where(far, far / 2, 1)) * m
        off.append(off[-1] + eta * beta * np.sqrt(lambda_max) / 4 * np.sqrt((missed**2).mean()))
        linear.append(linear[-1] - eta * beta**2 / 2 * second @ linear[-1] + eta * beta / 4 * b)
    off[1] = 0  # where the tube has not begun, rounding would decide
    some = np.unique(np.geomspace(1, steps, 200).astype(int))
    c = certificate(g, labels, boundary, learning_rate=eta, beta=beta, steps=steps)
    least, before = 0.0, c.loss_decrease[0]
    for t in range(1, steps + 1):
        value, slope = fallen(linear[t]), beta * strength / 2
        reach = max(fallen(linear[k]) - (linear[k] @ linear[k]) / (eta * t) for k in some)
        reach -= max(0, 1 / (1 - kappa / 4) - 2) * log2 / (2 * t)
        least = max(least, value - slope * off[t], reach)
        assert before[t] == pytest.approx(least, rel=1e-9)
        moved = np.linalg.norm(linear[t])
        ray = np.sqrt(2) / 4 * eta * beta * t * strength
        saturated = theory.saturation(theory.signal(g, labels), eta, beta, np.array(t))
        high = min(ray, saturated, np.sqrt(2) * (moved + off[t]))
        assert c.distance[1, t] == pytest.approx(high, rel=1e-9)
        jensen = log2 - np.log1p(np.exp(-beta * strength * high / np.sqrt(2)))
        most = min(jensen, value + slope * off[t] + beta**2 * lambda_max / 2 * off[t] ** 2)
        assert c.loss_decrease[1, t] == pytest.approx(most, rel=1e-9)
        learned = -np.sqrt(2) / (beta * strength) * np.log(np.expm1(log2 - least))
        assert c.distance[0, t] == pytest.approx(
            max(np.sqrt(2) * (moved - off[t]), learned), rel=1e-9
        )
        after = boundary + 2 * linear[t]
        right = labels * (g @ after) > 2 * norms * off[t]
        assert (c.correct[t] == right).all()
        length = np.linalg.norm(after)
        angle = np.arccos(after @ b / (length * strength))
        angle = angle + np.arcsin(2 * off[t] / length) if 2 * off[t] < length else np.nan
        if angle < np.pi:
            assert c.cosine[t] == pytest.approx(np.cos(angle), abs=1e-9)
        else:
            assert np.isnan(c.cosine[t])


def test_certain_order():
    """Of two behaviors that differ in distinguishability alone; and never of one with itself."""
    rng = np.random.default_rng(0)
    noise, b = rng.normal(size=(200, 20)), np.eye(20)[0]
    labels = np.where(np.arange(200) % 2, -1, 1)
    made = []
    for apart in (4.0, 1.0):
        g = noise + apart * labels[:, None] * b / 2
        made.append(certificate(g, labels, b, learning_rate=0.02, beta=1.0, steps=60))
        path = last_layer.gradient_descent(labels[:, None] * g, 0.02, 1.0, 60)
        made[-1].__dict__["true"] = theory.loss_decrease(2 * path @ (labels[:, None] * g).T).mean(1)
    fast, slow = made
    until = certain_until(fast, slow)
    assert until > 10
    assert (fast.true > slow.true)[1 : until + 1].all()
    assert certain_until(slow, fast) == 0 == certain_until(fast, fast)


# Bad input


def test_bad_input_is_one_clear_line():
    g, labels, boundary = _problem(0, 20, 5)
    good = dict(learning_rate=0.1, beta=1.0, steps=5)
    broken = g.copy()
    broken[3, 2] = np.nan
    cases = [
        (lambda: certificate(broken, labels, boundary, **good), "hidden state 3"),
        (lambda: certificate(g, np.ones(20), boundary, **good), "both sides"),
        (lambda: certificate(g, labels * 2, boundary, **good), "must be 1 or −1"),
        (lambda: certificate(g, labels[:5], boundary, **good), "do not fit"),
        (lambda: certificate(g, labels, boundary[:3], **good), "boundary"),
        (lambda: certificate(g, labels, boundary, **good | {"steps": 0}), "at least 1"),
        (lambda: certificate(g, labels, boundary, **good | {"learning_rate": 99.0}), "κ = "),
        (lambda: certificate(g, labels, boundary, **good | {"learning_rate": -1.0}), "positive"),
        (lambda: certificate(g, labels, boundary, **good | {"beta": np.nan}), "positive"),
        (lambda: theory.distance_bounds(theory.signal(g, labels), 99.0, 1.0, 3), "learning_rate ≤"),
        (lambda: synthetic.clouds(np.random.default_rng(0), 1, boundary), "at least 2"),
        (lambda: synthetic.coordinates(np.random.default_rng(0), (2,), 2.5), r"\(0, 2\]"),
        (lambda: synthetic.norm_bound(0.0), r"\(0, 2\]"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


# Synthetic states, and the paper's bounds as printed


@pytest.mark.parametrize(("alpha", "k"), [(0.5, 0.8165), (1, 1.4142), (2, 1.4142)])
def test_weibull_norm(alpha, k):
    assert synthetic.norm_bound(alpha) == pytest.approx(k, abs=1e-4)
    scale = synthetic.norm_bound(alpha) / 2 ** (1 / alpha)
    # E exp((|X|/K)^α) = 2 and E X² = 1, by integrating over E = (|X|/s)^α.
    moment = integrate.quad(lambda e: np.exp(e / 2 - e), 0, np.inf)[0]
    assert moment == pytest.approx(2)
    square = integrate.quad(lambda e: scale**2 * e ** (2 / alpha) * np.exp(-e), 0, np.inf)[0]
    assert square == pytest.approx(1, rel=1e-7)
    x = synthetic.coordinates(np.random.default_rng(0), (400_000,), alpha)
    assert x.mean() == pytest.approx(0, abs=0.01) and x.var() == pytest.approx(1, abs=0.05)
    assert np.mean(np.exp((np.abs(x) / (1.5 * synthetic.norm_bound(alpha))) ** alpha)) < 2


def test_clouds_have_their_moments():
    rng = np.random.default_rng(0)
    root = np.array([[2.0, 0.5], [0.5, 1.0]])
    b, common = np.array([3.0, -1.0]), np.array([10.0, 0.0])
    g, labels = synthetic.clouds(rng, 200_000, b, root=root, common=common)
    yes, no = g[labels > 0], g[labels < 0]
    np.testing.assert_allclose(yes.mean(0) - no.mean(0), b, atol=0.05)
    np.testing.assert_allclose((yes.mean(0) + no.mean(0)) / 2, common, atol=0.05)
    np.testing.assert_allclose(np.cov(yes.T), root @ root.T, atol=0.1)
    g, labels = synthetic.clouds(rng, (4, 7), b, alpha=1, root=np.array([1.0, 0.0]))
    assert g.shape == (4, 7, 2) and labels.tolist() == [1, -1, 1, -1, 1, -1, 1]
    np.testing.assert_allclose(g[..., 1], np.broadcast_to(-labels / 2, (4, 7)))


def test_the_papers_bounds_say_nothing_outside_their_conditions():
    nan = np.isnan
    assert nan(printed.theorem_4_1(1, 64, 0.6, 0.1, 1.0, 1.0))
    assert nan(printed.theorem_4_1(1, 64, 0.5, 0.3, 1.0, 1.0))
    assert printed.theorem_4_1(3, 64, 0.5, 0.25, 1.0, 1.0) == pytest.approx(6 * 3 * 0.25)
    grid = printed.theorem_4_1(np.arange(3)[:, None], 64, np.array([0.0, 0.7]), 0.1, 1.0, 1.0)
    assert grid.shape == (3, 2) and nan(grid[:, 1]).all() and not nan(grid[:, 0]).any()
    low, high = printed.v_range(576, 0.07)
    assert low > high, "no v at all"
    d, v = 65536.0, 0.25
    late = printed.horizon(d, 0.0, v, 1e-3, 1.0, 1.5)
    cosine = dict(d=d, delta=0.0, v=v, phi=0.0, boundary=1.0, learning_rate=1e-3, beta_prime=1.0)
    assert printed.theorem_4_2(late, c_n_prime=1.5, **cosine) > 0
    assert nan(printed.theorem_4_2(late * 1.01, c_n_prime=1.5, **cosine))
    assert nan(printed.theorem_4_2(1, c_n_prime=1.5, **cosine | {"v": 0.24}))
    assert nan(printed.theorem_4_3(d, 0.0, v, 0.3, 1.0, 1.0, 1.5)), "13 d^(−v) ≥ 1 − φ"
    assert printed.theorem_4_3(d, 0.0, 0.4, 0.0, 1.0, 1.0, 1.5) > 0
    assert nan(printed.theorem_4_3(d, 0.0, 0.4, -0.1, 1.0, 1.0, 1.5))
    assert printed.norm_failure(10, 16.0, 2, 1.0) == pytest.approx(20 * np.exp(-4))
