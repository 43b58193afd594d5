"""The chapter on the rate of change: its symbolic steps, its laws, its runs, and bad input."""

import numpy as np
import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from dpo_helpers import last_layer, theory
from dpo_helpers.errors import InputError
from dpo_helpers.theory import printed, synthetic
from experiments import rate_of_change as chapter

pytestmark = pytest.mark.usefixtures("one_thread")
MIN_BEHAVIORS = settings(max_examples=1000, deadline=None, derandomize=True, database=None)


# Symbolic steps


def test_signs_of_the_gradient():
    """(9) and (10) as printed are −∇L: differentiation of (8) for one statement of each side."""
    beta = sympy.symbols("beta", positive=True)
    d, h, k = (sympy.Matrix(sympy.symbols(f"{x}:2")) for x in "dgh")
    change = sympy.Matrix([d.T, -d.T])  # rows Yes and No

    def margin(w, g, sign):
        return beta * sign * ((w[0, :] - w[1, :]) * g)[0]

    w = sympy.Matrix(2, 2, sympy.symbols("w:4"))
    loss = sum(sympy.log(1 + sympy.exp(-margin(w, g, s))) for g, s in ((h, 1), (k, -1))) / 2
    at = dict(zip(w, change, strict=True))

    def sigma(z):
        return 1 / (1 + sympy.exp(-z))

    plus = sigma(-2 * beta * (d.T * h)[0]) * h.T
    minus = sigma(2 * beta * (d.T * k)[0]) * k.T
    printed = beta / 2 * sympy.Matrix([1, -1]) * (plus - minus)
    numbers = dict(zip((*d, *h, *k, beta), (0.3, -0.7, 1.1, 0.4, -0.2, 0.9, 0.6), strict=True))
    for row in range(2):
        for column in range(2):
            slope = sympy.diff(loss, w[row, column]).subs(at)
            gap = (slope + printed[row, column]).rewrite(sympy.exp)
            assert sympy.simplify(gap) == 0 or abs(gap.subs(numbers)) < 1e-15
            assert abs((slope - printed[row, column]).subs(numbers)) > 1e-3


def test_taylor_of_sigma():
    x = sympy.symbols("x", real=True)
    sigma = 1 / (1 + sympy.exp(-x))
    assert sympy.series(sigma, x, 0, 5).removeO() == sympy.Rational(1, 2) + x / 4 - x**3 / 48
    assert 1 + sympy.exp(-sympy.I * sympy.pi) == 0, "a pole at iπ: the series needs |x| < π"
    grid = np.linspace(-60, 60, 10_001)
    assert (np.abs(1 / (1 + np.exp(-grid)) - 0.5) <= np.abs(grid) / 4).all()


def test_the_induction():
    """What A.2's argument gives is A(1 + q)^(t−1); what it prints is not that, nor at most 4A."""
    q, t = sympy.symbols("q t", positive=True)
    bound = sympy.Function("bound")
    solved = sympy.rsolve(bound(t + 1) - (1 + q) * bound(t) - 1, bound(t), {bound(0): 0})
    increment = sympy.simplify(1 + q * solved - (1 + q) ** t)
    assert increment == 0
    i = sympy.symbols("i", integer=True, positive=True)
    half = sympy.Rational(1, 2)
    assert sympy.summation(i * half ** (i - 1), (i, 1, sympy.oo)) == 4
    n = sympy.symbols("n", integer=True, positive=True)
    printed_sum = sympy.summation((n + 1 - i) * half ** (i - 1), (i, 1, n))
    assert [float(printed_sum.subs(n, x)) for x in (1, 2, 3)] == [1, 2.5, 4.25]
    assert float(printed_sum.subs(n, 10)) == pytest.approx(18, abs=0.01)
    assert 1.5**3 < 4 < 1.5**4, "(1 + q)^(t − 1) passes 4 at t = 5"


def test_telescoping():
    """I − A_3 A_2 A_1 = A_3 A_2 (I − A_1) + A_3 (I − A_2) + (I − A_3), the step of Theorem A."""
    a, b, c = (sympy.MatrixSymbol(x, 3, 3) for x in "abc")
    one = sympy.Identity(3)
    whole = one - c * b * a
    parts = c * b * (one - a) + c * (one - b) + (one - c)
    assert sympy.expand(whole - parts).doit() == sympy.ZeroMatrix(3, 3)


# Laws


@pytest.mark.parametrize(("n", "d", "apart"), [(10, 7, 1.0), (40, 1, 0.5), (6, 30, 3.0)])
def test_strengths_have_the_law_of_drawn_states(n, d, apart):
    rng = np.random.default_rng(0)
    g, labels = synthetic.clouds(rng, (2000, n), apart * np.eye(d)[0])
    drawn = np.linalg.norm(2 / n * np.einsum("n,snd->sd", labels, g), axis=1)
    assert stats.ks_2samp(drawn, synthetic.b_norms(rng, 2000, n, d, apart)).pvalue > 0.001
    law = stats.ncx2(d, n / 4 * apart**2)
    assert stats.kstest(n / 4 * drawn**2, law.cdf).pvalue > 0.001


def test_the_counterexample_meets_the_conditions():
    for d in (4096, 16384, 262144):
        n = 5 * int(np.sqrt(d)) // 8
        assert n % 2 == 0 and 8 * n == 5 * np.sqrt(d)
        assert np.sqrt(d) / 64 >= 1 and (0.5 + np.sqrt(d)) <= 1.01 * np.sqrt(d)
        assert printed.mean_failure(n, d, 0.0, 2, 1 / 64) == pytest.approx(4 * np.exp(-10))
        assert np.isfinite(printed.theorem_4_1(1, d, 0.0, 0.25 / 1.01**2, 1.0, 1.01))
    least = synthetic.b_norms(np.random.default_rng(1), 10_000, 40, 4096).min()
    assert least > 12 * np.sqrt(2)


def test_where_the_bound_begins_to_hold():
    """The exercise: at d = 4096, Δ = 0 the median passes 12√2 between n = 56 and n = 58."""
    rng = np.random.default_rng(0)
    share = {
        n: (synthetic.b_norms(rng, 20_000, n, 4096) <= 12 * np.sqrt(2)).mean()
        for n in range(50, 66, 2)
    }
    assert share[56] < 0.5 < share[58]


@MIN_BEHAVIORS
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 5, 30]),
    st.sampled_from([1, 60, 200, 700, 3000]),
    st.floats(0, 0.5),
)
@example(0, 1, 3000, 0.0)  # fails
@example(0, 30, 60, 0.0)  # holds
def test_a_criterion_for_the_papers_bound(seed, half, d, delta):
    """κ ≤ 4, balanced: Theorem 4.1's bound holds for all t exactly if ‖b̂‖ ≤ 12√2 d^Δ."""
    s, eta, path, margins = chapter.descent(seed, 2 * half, d, delta, None, 15)
    assert s.lambda_max * eta / d <= 4
    t = np.arange(1, 16)
    distance = np.sqrt(2) * np.linalg.norm(path[1:], axis=1)
    bound = 6 * eta * t * d ** (delta - 0.5)
    holds = s.b_norm <= 12 * np.sqrt(2) * d**delta
    assert (distance <= bound * (1 + 1e-12)).all() == holds
    assert chapter.slacks(s, eta, d**-0.5, path, margins).min() > -1e-10


def test_descent_in_the_span_is_descent():
    """For d > n the run is made in coordinates of the span: same distances, margins and λ."""
    s, eta, path, margins = chapter.descent(3, 12, 50, 0.3, 1.0, 9)
    b = np.zeros(50)
    b[0] = 50**0.3
    g, labels = synthetic.clouds(np.random.default_rng(3), 12, b, alpha=1.0)
    whole = last_layer.gradient_descent(labels[:, None] * g, eta, 50**-0.5, 9)
    assert path.shape == (10, 12)
    np.testing.assert_allclose(
        np.linalg.norm(path, axis=1), np.linalg.norm(whole, axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(
        margins, 2 * 50**-0.5 * labels * (whole @ g.T), rtol=1e-10, atol=1e-14
    )
    assert s.lambda_max == pytest.approx(np.linalg.norm(g, 2) ** 2 / 12, rel=1e-12)
    assert eta == pytest.approx(0.25 / (1 + 0.5 * 50**-0.2) ** 2)


# Bad input


@pytest.mark.parametrize("n", [0, 1, 7, -2])
def test_strengths_need_balanced_classes(n):
    with pytest.raises(InputError, match="even number"):
        synthetic.b_norms(np.random.default_rng(0), 5, n, 3)


def test_bounds_say_nothing_outside_their_conditions():
    s, *_ = chapter.descent(0, 20, 5, 0.2, None, 1)
    with pytest.raises(InputError, match="theorems say nothing"):
        theory.distance_bounds(s, 5 / (s.lambda_max / 5), 5**-0.5, 1)
    _, eta, path, _ = chapter.descent(0, 20, 16, 0.6, None, 5)
    bound = printed.theorem_4_1(np.arange(1, 6), 16, 0.6, eta, 1.0, 1 + 16**0.1 / 2)
    assert np.isnan(bound).all(), "Δ > ½"
    assert np.isfinite(path).all()
