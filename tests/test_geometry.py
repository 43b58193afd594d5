"""Statistics of hidden states against NumPy's and scikit-learn's own."""

from dataclasses import asdict

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance

from dpo_helpers.states import geometry, knn_label_agreement, probe


def _cloud(seed=0, n=60, d=7, share=0.35):
    """Two clouds of unlike size, mean and shape."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < share, 1, -1).astype(np.int8)
    labels[:2] = 1, -1
    shapes = {side: rng.normal(size=(d, d)) for side in (1, -1)}
    means = {1: 3 * rng.normal(size=d), -1: rng.normal(size=d)}
    g = np.stack([means[s] + shapes[s] @ rng.normal(size=d) for s in labels.tolist()])
    return g, labels


@pytest.mark.parametrize(("n", "d"), [(60, 7), (200, 3), (12, 40)])
def test_against_oracles(n, d):
    g, labels = _cloud(seed=n, n=n, d=d)
    sides = [g[labels == 1], g[labels == -1]]
    means = [x.sum(0) / len(x) for x in sides]
    covariances = [np.cov(x, rowvar=False, bias=True) for x in sides]
    for x, covariance in zip(sides, covariances, strict=True):
        np.testing.assert_allclose(EmpiricalCovariance().fit(x).covariance_, covariance)
    lengths = [np.sqrt(m @ m) for m in means]
    found = geometry(g, labels)
    assert (found.n, found.d) == (n, d)
    want = {
        "distinguishability": np.sqrt(((means[0] - means[1]) ** 2).sum()),
        "mean_norm": max(lengths),
        "cov_norm": max(np.linalg.eigvalsh(c)[-1] for c in covariances),
        "cov_trace": max(np.trace(c) for c in covariances),
        "lambda_max": np.linalg.eigvalsh(g.T @ g / n)[-1],
    }
    want["c_v"] = want["cov_norm"] / np.sqrt(d)
    want["c_n"] = max(
        m + np.sqrt(np.trace(c)) for m, c in zip(lengths, covariances, strict=True)
    ) / np.sqrt(d)
    for name, value in want.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-10), name
    assert d**found.delta == pytest.approx(want["distinguishability"], rel=1e-12)


def test_by_hand():
    # Yes: (6, 0), (8, 0); No: (0, 1), (0, −1), (0, 3), (0, −3).
    g = np.array([[6, 0], [8, 0], [0, 1], [0, -1], [0, 3], [0, -3]])
    found = geometry(g, np.array([1, 1, -1, -1, -1, -1]))
    assert found.distinguishability == pytest.approx(7)
    assert found.delta == pytest.approx(np.log2(7))
    assert found.mean_norm == pytest.approx(7)
    assert found.cov_norm == pytest.approx(5)  # of the No side; 1 of the Yes side
    assert found.cov_trace == pytest.approx(5)
    assert found.c_v == pytest.approx(5 / np.sqrt(2))
    # ‖μ̂‖ + Tr^½ is taken side by side: 7 + 1 against 0 + √5, not 7 + √5.
    assert found.c_n == pytest.approx(8 / np.sqrt(2))
    assert found.lambda_max == pytest.approx(100 / 6)
    assert found.kappa(0.3, 0.5) == pytest.approx(0.3 * 0.25 * 100 / 6)


@pytest.mark.parametrize("factor", [1e-3, 2.0, 700.0])
def test_scale(factor):
    g, labels = _cloud()
    one, other = asdict(geometry(g, labels)), asdict(geometry(factor * g, labels))
    power = {"distinguishability": 1, "mean_norm": 1, "c_n": 1}
    power |= {"cov_norm": 2, "cov_trace": 2, "c_v": 2, "lambda_max": 2}
    for name, exponent in power.items():
        assert other[name] == pytest.approx(one[name] * factor**exponent, rel=1e-12), name
    # d^Δ scales: so Δ moves by log_d of the factor, and ηβ²λ stays if η shrinks.
    assert other["delta"] - one["delta"] == pytest.approx(np.log(factor) / np.log(7), rel=1e-9)
    kappa = geometry(factor * g, labels).kappa(0.1 / factor**2, 0.2)
    assert kappa == pytest.approx(geometry(g, labels).kappa(0.1, 0.2), rel=1e-12)


def test_symmetries():
    g, labels = _cloud()
    want = geometry(g, labels)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0]
    order = np.random.default_rng(2).permutation(len(g))
    for same in (geometry(g @ turn, labels), geometry(g[order], labels[order])):
        assert asdict(same) == pytest.approx(asdict(want), rel=1e-10)
    assert asdict(geometry(g, -labels)) == pytest.approx(asdict(want), rel=1e-12)
    moved = geometry(g + np.arange(7), labels)
    for name in ("distinguishability", "delta", "cov_norm", "cov_trace", "c_v"):
        assert getattr(moved, name) == pytest.approx(getattr(want, name), rel=1e-10), name
    assert moved.lambda_max > want.lambda_max + 1


def test_kappa_is_where_gradient_descent_stops_contracting():
    """κ = 4 is where I − (ηβ²/2)Ĉ, the linear step of Theorem A, gets an eigenvalue −1."""
    g, labels = _cloud()
    found = geometry(g, labels)
    eta, beta = 4 / found.kappa(1.0, 0.1), 0.1
    step = np.eye(7) - (eta * beta**2 / 2) * (g.T @ g / len(g))
    assert np.linalg.eigvalsh(step)[0] == pytest.approx(-1, rel=1e-12)


def test_half_precision_is_measured_in_float64():
    rng = np.random.default_rng(3)
    g = (1000 + rng.normal(size=(400, 5))).astype(np.float16)  # sums overflow float16
    labels = np.where(np.arange(400) < 150, 1, -1)
    want = geometry(g.astype(np.float64), labels)
    assert np.isfinite(want.lambda_max)
    assert geometry(g, labels) == want
    assert isinstance(want.cov_norm, float)


def test_separability_is_that_of_the_statements_left_out():
    """The probe separates forty without error; one of the four left out has the wrong label."""
    labels = np.tile([1, -1], 22)
    g = labels[:, None].astype(float)
    g[-1] *= -1
    assert probe(g, labels, np.arange(44) < 40)[1] == 0.75


# Neighbors


def test_neighbors_of_separable_and_of_random_labels():
    rng = np.random.default_rng(0)
    g = rng.normal(size=(600, 6))
    labels = np.where(np.arange(600) % 2 == 0, 1, -1)
    apart = g + 40 * labels[:, None]
    assert knn_label_agreement(apart, labels) == 1.0
    assert knn_label_agreement(apart, rng.permutation(labels)) == pytest.approx(0.5, abs=0.05)
    assert knn_label_agreement(g, labels) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("neighbors", [1, 4, 10])
def test_neighbors_by_brute_force(neighbors):
    g, labels = _cloud(seed=5)
    agree = []
    for i in range(len(g)):
        near = sorted((np.linalg.norm(g[i] - g[j]), j) for j in range(len(g)) if j != i)
        agree += [labels[j] == labels[i] for _, j in near[:neighbors]]
    assert knn_label_agreement(g, labels, neighbors) == pytest.approx(np.mean(agree), abs=1e-12)


def test_no_statement_is_its_own_neighbor():
    """Every statement twice, with opposite labels: the nearest one always disagrees."""
    g = np.repeat(np.random.default_rng(0).normal(size=(20, 3)), 2, axis=0)
    assert knn_label_agreement(g, np.tile([1, -1], 20), 1) == 0.0
    assert knn_label_agreement(g, np.repeat([1, -1], 20), 1) == 1.0
