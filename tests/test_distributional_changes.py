"""Hidden states before and after: ratios against plain code, what they say, and the claims."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpo_helpers.errors import InputError
from dpo_helpers.states import geometry
from dpo_helpers.theory.synthetic import coordinates
from experiments import distributional_changes, full_finetuning
from ledger.config import FIVE, configure
from ledger.store import RunStore
from workflow import claims

pytestmark = pytest.mark.usefixtures("one_thread")

EACH = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def _sides(seed, n=60, d=7, share=0.4, apart=2.0):
    """States and labels of two sides of unequal size and spread, about a long common mean."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(n) < share * n, 1, -1)
    spread = rng.uniform(0.2, 2, size=(2, d))[(labels < 0).astype(int)]
    g = 20 + rng.normal(size=(n, d)) * spread
    g[:, 0] += labels * apart / 2
    return g, labels


@st.composite
def _any_sides(draw):
    n, d = draw(st.integers(2, 20)), draw(st.integers(1, 4))
    g = draw(arrays(np.float64, (n, d), elements=st.floats(-8, 8, width=16)))
    labels = draw(arrays(np.int8, n, elements=st.sampled_from([1, -1])))
    labels[:2] = 1, -1
    apart = g[labels == 1].mean(0) - g[labels == -1].mean(0)
    assume(np.linalg.norm(apart) > 1e-2)
    return g, labels


def _plain(g, labels):
    """‖b̂‖, ‖Σ̂‖, v, Tr Σ̂, and of each side the share that is nearer to its own mean."""
    sides = {side: g[labels == side] for side in (1, -1)}
    means = {side: rows.mean(0) for side, rows in sides.items()}
    b = means[1] - means[-1]
    covariances = [np.atleast_2d(np.cov(rows.T, bias=True)) for rows in sides.values()]
    unit = b / np.linalg.norm(b)
    v = max(unit @ c @ unit for c in covariances) / (b @ b)
    nearer = []
    for side, rows in sides.items():
        own, other = (np.linalg.norm(rows - means[s], axis=1) for s in (side, -side))
        nearer.append((own < other - 1e-9).mean())
    norm = max(np.linalg.eigvalsh(c)[-1] for c in covariances)
    return np.linalg.norm(b), norm, v, max(np.trace(c) for c in covariances), nearer


def _stretched(g, labels, factor):
    """States (n, d) whose part along b̂ is ``factor`` times as long."""
    b = g[labels == 1].mean(0) - g[labels == -1].mean(0)
    return g + (factor - 1) * np.outer(g @ b, b) / (b @ b)


def _recorded(*states):
    """Arrays as ``trained_run`` has them, of (g, labels) before and after, all twice."""
    found = [geometry(g, labels) for g, labels in states]
    fields = {"apart": "distinguishability", "covariance": "cov_norm", "trace": "cov_trace"}
    return {k: np.array([[getattr(m, f)] * 2 for m in found]) for k, f in fields.items()}


# What is measured.


def test_spread_is_what_plain_code_finds():
    states = _sides(0), _sides(1, apart=9.0)
    found = distributional_changes.spread(_recorded(*states))
    for when, (g, labels) in enumerate(states):
        b, norm, _, trace, _ = _plain(g, labels)
        expected = {"apart": b, "covariance": norm, "q1": norm / b, "q2": norm / b**2}
        expected |= {"total": trace / b}
        expected |= {"certain": 1 / (1 + 4 * norm / b**2), "directions": trace / norm}
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][when], value, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_along_is_what_distances_to_the_means_say(seed):
    g, labels = _sides(seed, share=0.2 + 0.1 * seed)
    v, nearer = distributional_changes.along(g, labels)
    _, _, plain, _, shares = _plain(g, labels)
    assert v == pytest.approx(plain, rel=1e-9)
    sizes = [(labels == side).sum() for side in (1, -1)]
    assert nearer == pytest.approx(np.average(shares, weights=sizes))


# What the ratios say: prop-ratios.


@EACH
@given(_any_sides(), st.sampled_from([1.0, 1.5, 4.0, 64.0]))
def test_scale_and_stretch(data, c):
    """Exact for any states: what changes with scale, and what a stretch leaves as it is."""
    g, labels = data
    b, norm, v, _, _ = _plain(g, labels)
    larger = _plain(c * g, labels)
    assert larger[1] / larger[0] == pytest.approx(c * norm / b, rel=1e-9, abs=1e-12)
    assert larger[1] / larger[0] ** 2 == pytest.approx(norm / b**2, rel=1e-9, abs=1e-12)
    assert larger[2] == pytest.approx(v, rel=1e-9, abs=1e-12)
    longer = _plain(_stretched(g, labels, c), labels)
    slack = 1e-9 * norm / b**2 + 1e-12
    assert longer[2] == pytest.approx(v, rel=1e-7, abs=1e-9)
    assert longer[1] / longer[0] ** 2 <= norm / b**2 + slack
    assert longer[1] / longer[0] >= c * b * v * (1 - 1e-7) - 1e-9
    assert v <= norm / b**2 + slack


@EACH
@given(_any_sides())
def test_share_nearer_to_its_own_mean_is_certain(data):
    _, _, v, _, nearer = _plain(*data)
    assert min(nearer) >= 1 / (1 + 4 * v) - 1e-9


@pytest.mark.parametrize("alpha", [0.5, 1, 2])
def test_share_is_certain_with_heavy_tails_in_many_dimensions(alpha):
    rng = np.random.default_rng(int(2 * alpha))
    for apart in (0.5, 3.0, 20.0):
        g = coordinates(rng, (400, 64), alpha) + rng.normal(size=64) * 10
        labels = np.where(rng.random(400) < 0.3, 1, -1)
        g[:, 0] += labels * apart / 2
        b, norm, v, _, nearer = _plain(g, labels)
        assert min(nearer) >= 1 / (1 + 4 * v) >= 1 / (1 + 4 * norm / b**2)


def test_share_cannot_be_bounded_better():
    """One side with one of k statements just on the wrong side of the middle: Cantelli's case."""
    for k in (2, 5, 50):
        bad = -0.5 - 1e-6
        good = -bad / (k - 1)
        plus = 0.5 + np.array([bad] + [good] * (k - 1))
        g = np.concatenate([plus, np.full(k, -0.5)])[:, None]
        labels = np.repeat([1, -1], k)
        _, _, v, _, nearer = _plain(g, labels)
        assert nearer[0] == pytest.approx(1 / (1 + 4 * v), abs=1e-5)


def test_the_paper_s_ratio_rises_where_nothing_is_told_apart_less_well():
    g, labels = _sides(3)
    longer = _stretched(g, labels, 64)
    before, after = (distributional_changes.along(x, labels) for x in (g, longer))
    assert after == pytest.approx(before, rel=1e-9)
    found = distributional_changes.spread(_recorded((g, labels), (longer, labels)))
    assert found["q1"][1, 0] > 5 * found["q1"][0, 0]
    assert found["q2"][1, 0] <= found["q2"][0, 0]


# Exercises.


def test_how_evenly_statements_must_move():
    """ex-even, in symbols: the signs of both changes are those of the stated conditions."""
    b, s, k, m = sympy.symbols("b sigma k m", positive=True)
    variance = s**2 + k**2 * m**2
    fall = s**2 / b - variance / (b + 2 * m)
    stated = m * (2 * s**2 - k**2 * b * m)
    assert sympy.simplify(fall * b * (b + 2 * m) - stated) == 0
    fall = s**2 / b**2 - variance / (b + 2 * m) ** 2
    stated = m * (4 * s**2 * b - m * (k**2 * b**2 - 4 * s**2))
    assert sympy.simplify(fall * b**2 * (b + 2 * m) ** 2 - stated) == 0


def test_a_ratio_that_no_linear_map_changes():
    """ex-mahalanobis."""
    g, labels = _sides(4)

    def squared(x):
        covariance = sum(np.cov(x[labels == s].T, bias=True) for s in (1, -1)) / 2
        b = x[labels == 1].mean(0) - x[labels == -1].mean(0)
        return b @ np.linalg.solve(covariance, b)

    a = np.random.default_rng(0).normal(size=(7, 7))
    assert squared(g @ a.T) == pytest.approx(squared(g), rel=1e-6)
    b, norm, *_ = _plain(g, labels)
    assert squared(g) >= b**2 / norm


# Runs and claims.


class Stub(RunStore):
    """Records whose runs are made up: ``shapes`` by learning rate, (apart, covariance) after."""

    def __init__(self, parameters, shapes=None):
        super().__init__(configure(parameters))
        self.shapes, self.asked = shapes or {}, set()

    def states(self, behavior):
        return SimpleNamespace(behavior=behavior, sha256="")

    def replay_or_run(self, name, settings, inputs, make):
        self.asked.add(name)
        rate = settings.get("rate")
        apart, covariance = self.shapes.get(rate, (1.0, 1.0))
        found = {
            "apart": np.array([[2.0, 2.0], [apart, 8.0 / apart]]),
            "covariance": np.array([[3.0, 3.0], [covariance, 3.0]]),
            "trace": np.full((2, 2), 9.0),
            "loss": np.full((1, 2, 4), 0.6 if rate == 1e-5 else 0.4),
        }
        return SimpleNamespace(name=name, arrays=found)


RUN = f"full/*/{FIVE[0]}/beta-0.01-*"


@pytest.mark.parametrize(
    ("after", "grown", "concentrated"),
    [
        ({1e-5: (4, 5), 3e-5: (9, 6)}, 1, 1),
        ({1e-5: (4, 7), 3e-5: (9, 6)}, 1, 0.5),
        ({1e-5: (1, 1), 3e-5: (9, 60)}, 0.5, 0.5),
        ({1e-5: (1, 9), 3e-5: (2, 3)}, 0, 0),
    ],
)
def test_claims_count_the_learning_rates_at_which_they_hold(after, grown, concentrated):
    """Before: ‖b̂‖ = 2 and ‖Σ̂‖ = 3, so that q₁ = 3/2. What is as before has not changed."""
    records = Stub({"tier": "book"}, after)
    assert full_finetuning.rates(records, 0.01) == {"paper": 1e-5, "scaled": 3e-5}
    assert distributional_changes.grown(records, RUN) == grown
    assert distributional_changes.concentrated(records, RUN) == concentrated


def test_claims_look_at_their_own_run_alone():
    records = Stub({"tier": "book", "full_learning_rate": 2e-4}, {2e-4: (3.0, 4.0)})
    run = f"full/*/{FIVE[1]}/beta-0.1-*"
    assert distributional_changes.grown(records, run) == 1
    assert distributional_changes.concentrated(records, run) == 1
    assert records.asked == {f"full/smollm2-135m/{FIVE[1]}/beta-0.1-rate-0.0002-seed-0"}


@pytest.mark.parametrize(
    "run",
    ["full/", "f3", f"full/*/{FIVE[0]}/*", f"full/*/{FIVE[0]}/beta-x-*", "full/*/a+b/beta-1-*"],
)
def test_a_claim_names_one_behavior_and_one_beta(run):
    for measure in distributional_changes.MEASURES:
        with pytest.raises(InputError, match=re.escape(repr(run))) as error:
            measure(Stub({"tier": "book"}), run)
        assert "\n" not in str(error.value)


def test_claims_are_about_what_their_statements_say():
    rows = [claim for claim in claims.ledger() if claim.notebook == "06_distributional_changes"]
    figures = {re.match(r"F(\d+)[ab]$", claim.id)[1] for claim in rows}
    assert figures == {"8", *map(str, range(20, 27))} and len(rows) == 16
    for claim in rows:
        behavior, beta = re.fullmatch(r"full/\*/(.+)/beta-(.+)-\*", claim.run).groups()
        assert re.search(rf"\b{re.escape(behavior)}\b", claim.statement)
        said = re.search(r"β = ([0-9.]+)", claim.statement)
        assert float(beta) == (float(said[1]) if said else 0.01)
        assert claim.measure == ("grown" if claim.id.endswith("a") else "concentrated")


@pytest.mark.parametrize("tier", ["smoke", "book"])
def test_nothing_is_trained_that_chapter_05_does_not_train(tier):
    mine, theirs = Stub({"tier": tier}), Stub({"tier": tier})
    for run in distributional_changes.RUNS:
        run(mine)
    for run in full_finetuning.RUNS:
        run(theirs)
    assert mine.asked and mine.asked <= theirs.asked
    assert all(name.endswith("seed-0") for name in mine.asked)


def test_figures_show_five_behaviors_at_four_betas():
    found = distributional_changes.shown("book")
    assert len(set(found)) == len(found) == 4 * 5
    assert {beta for _, beta in found} == {0.001, 0.01, 0.1, 1.0}
    assert {behavior for behavior, _ in found} == set(FIVE)
