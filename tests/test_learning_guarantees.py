"""Theorems 4.2 and 4.3: the printed statements, their repairs, and the runs of the chapter."""

from dataclasses import replace

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_helpers.errors import InputError
from dpo_helpers.theory import printed
from experiments import learning_guarantees as chapter

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = settings(max_examples=1000, deadline=None, derandomize=True, database=None)


# Symbolic steps


def test_the_cap_on_the_gain():
    z, phi, w, b, c, t, eta = sympy.symbols("z phi w b c t eta", positive=True)
    d_half = sympy.symbols("D", positive=True)  # d^(½ − Δ)
    t_max = d_half * z / (72 * b**2 * eta * c)
    gain = (1 - 13 * z - phi) * b * eta * t / d_half / (8 * w + 1 / (24 * b * c))
    at_end = sympy.simplify(gain.subs(t, t_max))
    assert sympy.simplify(at_end - (1 - phi - 13 * z) * z / (576 * b * c * w + 3)) == 0  # (32)
    most = at_end.subs(w, 0)
    (best,) = sympy.solve(sympy.diff(most, z), z)
    assert sympy.simplify(best - (1 - phi) / 26) == 0
    assert sympy.simplify(most.subs(z, best) - (1 - phi) ** 2 / 156) == 0
    assert printed.largest_gain(0.25) == pytest.approx(float((1 - 0.25) ** 2 / 156))


def test_the_bracket_and_the_constant_13():
    q, c, d_half, dev = sympy.symbols("q c D dev", positive=True)  # D = √d, dev = d^(Δ−v)
    first = 2 * (dev / 2 + q * 3 * c * d_half)
    second = 2 * q * 2 * c * d_half
    assert sympy.expand(first + second - dev - 10 * q * c * d_half) == 0
    # At t_max, c_n ≤ 1.2, d^−v ≤ 1/16: the bracket, A, and the loss of cosine per d^−v.
    bracket, least = 1 + sympy.Rational(30 * 12, 10 * 72), sympy.Rational(1, 2) - 1 / (24 * 16**2)
    printed = 1 + sympy.Rational(6, 72 * 16**2) + sympy.Rational(36, 72)
    rho = max(bracket, printed) / least
    assert rho < 3.01 and 2 * rho < 6.1
    assert least / 2 * (1 - rho / 16) > sympy.Rational(1, 16)


def test_38_is_weaker_than_37():
    k, phi, gain = sympy.symbols("k phi gain", positive=True)  # K ≥ 3, gain = ε d^−v
    sharper = phi + gain / k
    assert sympy.simplify(sharper - (3 * phi / k + gain / k) - phi * (k - 3) / k) == 0


# What holds, what does not


@QUICK
@given(st.floats(0.01, 0.999), st.integers(0, 2**32 - 1))
def test_the_sharp_margin(cosine, seed):
    """Above √(1 − S²)‖g‖ no boundary of cosine S errs; below it one does; (36) asks for more."""
    rng = np.random.default_rng(seed)
    sine = np.sqrt(1 - cosine**2)
    g = rng.normal(size=6)
    g[0] = 0
    for above in (1 + 1e-9, 0.999):
        m = above * sine
        if m < 1:
            sample = np.r_[m, np.sqrt(1 - m**2) * g[1:] / np.linalg.norm(g)]
            aside = rng.normal(size=(200, 6))
            aside[0] = -sample
            aside[:, 0] = 0
            w = sine * aside / np.linalg.norm(aside, axis=1, keepdims=True)
            w[:, 0] = cosine
            assert (w @ sample >= -1e-15).all() == (above > 1)
    assert sine <= sine / cosine


@QUICK
@given(
    st.floats(2, 12),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.floats(0, 0.99),
    st.floats(0, 50),
    st.floats(1e-3, 1e3),
    st.floats(0.5, 50),
)
def test_theorem_4_3_asks_for_more_than_a_sample_has(power, delta, at, phi, w, b, c):
    d = 10.0**power
    low, high = printed.v_range(d, delta)
    v = low + at * max(high - low, 0)
    asked = printed.theorem_4_3(d, delta, v, phi, w, b, c)
    if high < low - 1e-9 or 13 * d**-v >= 1 - phi:
        assert np.isnan(asked)
    elif np.isfinite(asked):
        assert asked > 2 * c * d**delta


@QUICK
@given(st.floats(-1, 1), st.floats(16, 300), st.floats(0, 10), st.floats(0.01, 100))
def test_no_setting_beats_the_cap(phi, power, boundary, beta_prime):
    d = power**2
    eta = d**0.5 / power / (72 * beta_prime**2 * 0.5 * 7)
    bound = printed.theorem_4_2(7, d, 0.0, 0.5, phi, boundary, eta, beta_prime, 0.5)
    assert np.isnan(bound) or bound - phi <= printed.largest_gain(phi) * (1 + 1e-9) + 1e-15


def test_the_repaired_theorem():
    """Where its conditions hold the bound holds, with the printed and the repaired constants."""
    for phi in (0.0, 0.3, 0.6):
        s = chapter.Setting(1024, 4096, 26, 0.8, phi, 1e-4)
        assert all(s.conditions().values()) and 0 <= phi <= 1 - 6.1 / s.power
        t = np.arange(1, 21)
        cosine = s.cosines(20, 0)[1:]
        assert (cosine >= s.bound(t)).all()
        pulled = (1 - 6.1 / s.power - phi) * s.beta * s.eta * t
        better = phi + pulled / (8 * s.boundary + 1 / (1152 * s.c_n))
        assert (cosine >= better).all() and (better >= s.bound(t)).all()


def test_counterexample_c_needs_no_chance():
    """φ = −1: for any d, v and t_max ≥ 1 one step leaves the cosine below the bound."""
    for d, power in ((256, 16), (4096, 26), (10**6, 40), (10**10, 900)):
        s = chapter.Setting(d, 2, power, 1.0, -1.0, 1.0)
        s = replace(s, rate=20 * s.eta)  # t_max = 1
        moved = s.eta * s.beta  # ‖2δ₁‖ if ‖b̂‖ = 2
        assert -np.sqrt(1 - moved**2) < s.bound(np.array(1))


def test_a_setting_draws_what_it_says():
    s = chapter.Setting(2000, 4000, 26, 1.5, 0.6, 3.0)
    g, labels, w, b = s.draw(0)
    assert w @ b / np.linalg.norm(w) == pytest.approx(0.6)
    assert np.linalg.norm(w) == pytest.approx(3)
    around = g - labels[:, None] * b / 2
    assert (around**2).sum(1).mean() == pytest.approx(1.5**2, rel=0.01)
    assert s.c_n == 2 and np.linalg.norm(b / 2) + 1.5 == pytest.approx(s.c_n)


def test_settings_say_what_fails():
    good = chapter.Setting(4096, 100, 26, 1.0, 0.0, 1.0)
    assert all(good.conditions().values())
    few = replace(good, power=15)
    assert not few.conditions()["4 log 2/log d ≤ v ≤ ½ − Δ"] and np.isnan(few.bound(1))
    fast = replace(good, rate=5000.0)
    assert not fast.conditions()["β′²ηc_n² ≤ ¼"] and not fast.conditions()["t_max ≥ 1"]
    with pytest.raises(InputError, match="cosine"):
        replace(good, phi=1.5)
    with pytest.raises(InputError, match="above 1"):
        replace(good, power=1.0)
    assert np.isnan(printed.theorem_4_2(1, 64, 0.0, 0.5, 0.0, 1.0, 1e-3, 1.0, 1.0)), "no v at all"


def test_the_largest_possible_deviation_of_a_norm():
    """The bound of P(some ‖g‖ ≥ 2c_n′) is one: checked where it is not tiny."""
    s = chapter.Setting(2, 4, 16, 1.0, 0.0, 1.0)
    longest = [np.linalg.norm(s.draw(seed)[0], axis=1).max() for seed in range(2000)]
    failure = s.n * np.exp(-(s.c_n**2) * s.d / (2 * s.root_trace**2))
    assert (np.array(longest) >= 2 * s.c_n).mean() <= failure
