"""Runs and measures of the chapter on the rate of change (Theorem 4.1, Figure 4)."""

from itertools import product

import numpy as np

from dpo_helpers import last_layer, theory
from dpo_helpers.states import geometry
from dpo_helpers.theory import Signal, printed, synthetic
from ledger.store import Run, RunStore, States

from .shared import last_layer_run, learning_rate

Array = np.ndarray

ALPHAS = (0.5, 1.0, 2.0)
DELTAS = (0.0, 0.25, 0.5)
DIMENSIONS = {"smoke": (64, 256), "book": (64, 256, 1024, 4096)}
DIMENSIONS["paper"] = DIMENSIONS["book"]
# Inequalities that hold in every run, in the order of ``slacks``.
CERTIFICATES = (
    "Theorem A, upper", "Theorem A, lower", "increments do not grow", "energy envelope",
    "saturation", "distance from loss", "loss decrease, upper", "loss decrease, lower",
)  # fmt: skip


def descent(
    seed: int | tuple[int, ...], n: int, d: int, delta: float, alpha: float | None, steps: int,
    learning_rate: float | None = None,
) -> tuple[Signal, float, Array, Array]:  # fmt: skip
    """Gradient descent on synthetic states: Σ = I, means ±b/2, ‖b‖ = d^Δ, β = 1/√d.

    η is ``learning_rate``, or else ¼/c_n², the largest that Theorem 4.1 allows. Returns the signal,
    η, δ_t (steps + 1, k), and margins (steps + 1, n). For d > n, δ_t is in coordinates of the
    states' span: k = min(n, d).
    """
    difference = d**delta * np.eye(1, d)[0]
    g, labels = synthetic.clouds(np.random.default_rng(seed), n, difference, alpha=alpha)
    a = labels[:, None] * g
    eta = learning_rate or 0.25 / (d**delta / (2 * np.sqrt(d)) + 1) ** 2
    if d > n:
        a = np.linalg.cholesky(a @ a.T)  # the same inner products
    path = last_layer.gradient_descent(a, eta, d**-0.5, steps)
    s = theory.signal(g, labels, lambda_max=theory.largest_eigenvalue(a))
    return s, eta, path, 2 * d**-0.5 * path @ a.T


def slacks(s: Signal, eta: float, beta: float, path: Array, margins: Array) -> Array:
    """Least (larger − smaller)/larger side over t ≥ 1, for each of ``CERTIFICATES``."""
    t = np.arange(1, len(path))
    distance = np.sqrt(2) * np.linalg.norm(path[1:], axis=1)
    decrease = theory.loss_decrease(margins[1:]).mean(1)
    increments = np.linalg.norm(np.diff(path, axis=0), axis=1)
    low, high = theory.distance_bounds(s, eta, beta, t)
    slow, fast = theory.loss_decrease_bounds(s, eta, beta, t)
    pairs = (
        (distance, high),
        (low, distance),
        (increments[1:], increments[:-1]),
        (distance, theory.energy_envelope(decrease, s.kappa(eta, beta), eta, t)),
        (distance, theory.saturation(s, eta, beta, t)),
        (theory.distance_from_loss(decrease, s.b_norm, beta), distance),
        (decrease, fast),
        (slow, decrease),
    )
    return np.array([((large - small) / large).min() for small, large in pairs])


def steps_run(records: RunStore) -> Run:
    """How often the events that A.2 bounds happen on drawn states; Σ = I, means ±b/2.

    Arrays ``claimed``, ``happened``, and ``trials``, one value each for ‖μ̂₊ − μ₊‖ ≥ d^Δ (13) and
    ‖b̂‖ > 3d^Δ (17) with d = 4096, n = 1000, Δ = 0, Gaussian; and (12) with d = 1: Gaussian, α = 1,
    t = .1, n = 200, and Weibull, α = .5, t = .3, n = 100.
    """
    trials = [20, 20, 50_000, 50_000]
    settings = {"trials": trials, "seed": 0}

    def make() -> dict[str, Array]:
        rng, b = np.random.default_rng(settings["seed"]), np.eye(4096)[0]
        means = np.zeros((2, trials[0]))
        for i in range(trials[0]):
            g, labels = synthetic.clouds(rng, 1000, b)
            yes, no = g[labels > 0].mean(0), g[labels < 0].mean(0)
            means[:, i] = np.linalg.norm(yes - b / 2), np.linalg.norm(yes - no)
        gauss = np.abs(synthetic.coordinates(rng, (trials[2], 100)).mean(1))
        heavy = np.abs(synthetic.coordinates(rng, (trials[3], 50), 0.5).mean(1))
        both = 4 * np.exp(-1000 / 4)
        claimed = [both / 2, both, 2 * np.exp(-0.1 * 50), 2 * np.exp(-(0.3**0.5) * 25)]
        events = (means[0] >= 1, means[1] > 3, gauss >= 0.1, heavy >= 0.3)
        happened = np.array([event.sum() for event in events])
        return dict(claimed=np.array(claimed), happened=happened, trials=np.array(trials))

    return records.replay_or_run("t1-steps", settings, {}, make)


def counterexample_run(records: RunStore) -> Run:
    """n = 5√d/8, Σ = I, Gaussian, Δ = 0: ‖W_U(t) − W_U(0)‖ over the bound of Theorem 4.1.

    Arrays ``first`` (d, draws) at t = 1, from the exact law of ‖b̂‖; ``path`` (runs, 20) for
    t = 1 … 20 of gradient descent at the least d; ``longest`` (runs,) the largest ‖g_i‖/(2c_n√d),
    below 1 where (15) and (16) hold.
    """
    settings = {
        "d": [4096, 16384, 65536, 262144], "n": [40, 80, 160, 320], "draws": 2000,
        "runs": 50, "steps": 20, "c_n": 1.01,
    }  # fmt: skip

    def make() -> dict[str, Array]:
        rng, c_n = np.random.default_rng(0), settings["c_n"]
        sizes = list(zip(settings["d"], settings["n"], strict=True))
        first = [synthetic.b_norms(rng, settings["draws"], n, d) for d, n in sizes]
        d, n = sizes[0]
        eta, t = 0.25 / c_n**2, np.arange(1, settings["steps"] + 1)
        bound = printed.theorem_4_1(t, d, 0.0, eta, 1.0, c_n)
        seeds = range(settings["runs"])
        runs = [descent((seed, n), n, d, 0.0, None, settings["steps"], eta) for seed in seeds]
        return {
            "first": (np.sqrt(2) / 24 * np.array(first)).astype(np.float32),
            "path": np.sqrt(2) * np.linalg.norm([run[2][1:] for run in runs], axis=2) / bound,
            "longest": np.array([s.norms.max() for s, *_ in runs]) / (2 * c_n * np.sqrt(d)),
        }

    return records.replay_or_run("t1-counterexample", settings, {}, make)


def sweep_run(records: RunStore) -> Run:
    """Theorem 4.1 and the certificates on α × Δ × d × seeds with n = 1000, to t = 100.

    Arrays over (α, Δ, d, seeds): ``first``, the paper's bound over the measured distance at t = 1;
    ``least``, the least such ratio over all t; ``late``, Theorem A's upper bound over the measured
    distance at the last t; ``kappa``; and ``slack`` (…, certificates), see ``slacks``.
    """
    settings = {
        "alpha": ALPHAS, "delta": DELTAS, "d": DIMENSIONS[records.config.tier], "n": 1000,
        "steps": 100, "seeds": 2 if records.config.tier == "smoke" else 5,
    }  # fmt: skip

    def one(alpha: float, delta: float, d: int, seed: int) -> dict[str, Array]:
        point = (seed, d, int(100 * delta), int(100 * alpha))
        s, eta, path, margins = descent(point, settings["n"], d, delta, alpha, settings["steps"])
        t, beta = np.arange(1, settings["steps"] + 1), d**-0.5
        distance = np.sqrt(2) * np.linalg.norm(path[1:], axis=1)
        ratio = printed.theorem_4_1(t, d, delta, eta, 1.0, 1 + d ** (delta - 0.5) / 2) / distance
        late = theory.distance_bounds(s, eta, beta, t)[1][-1] / distance[-1]
        rest = {"kappa": s.kappa(eta, beta), "slack": slacks(s, eta, beta, path, margins)}
        return {"first": ratio[0], "least": ratio.min(), "late": late, **rest}

    def make() -> dict[str, Array]:
        grid = (ALPHAS, DELTAS, settings["d"], range(settings["seeds"]))
        runs = [one(*point) for point in product(*grid)]
        return {
            name: np.reshape([run[name] for run in runs], (*map(len, grid), *np.shape(first)))
            for name, first in runs[0].items()
        }

    return records.replay_or_run("t1-sweep", settings, {}, make)


def saturation_run(records: RunStore) -> Run:
    """A long run: d = 256, n = 1000, Δ = ½, coordinates of sd .3, Gaussian, κ = .02.

    Arrays over some steps ``t``: ``distance``, and the bounds ``linear`` (Theorem A), ``energy``
    (from the measured loss), ``root`` (energy envelope with log 2 for log 2 − L_t), ``saturation``.
    """
    steps = 2000 if records.config.tier == "smoke" else 20_000
    settings = {"d": 256, "n": 1000, "apart": 16.0, "sd": 0.3, "kappa": 0.02, "steps": steps}

    def make() -> dict[str, Array]:
        b, rng = settings["apart"] * np.eye(settings["d"])[0], np.random.default_rng(0)
        g, labels = synthetic.clouds(rng, settings["n"], b, root=settings["sd"])
        s = theory.signal(g, labels)
        eta = settings["kappa"] / s.lambda_max
        path = last_layer.gradient_descent(labels[:, None] * g, eta, 1.0, steps)
        t = np.unique(np.geomspace(1, steps, 200).astype(int))
        decrease = theory.loss_decrease(2 * path[t] @ (labels[:, None] * g).T).mean(1)
        kappa = s.kappa(eta, 1.0)
        return {
            "t": t,
            "distance": np.sqrt(2) * np.linalg.norm(path[t], axis=1),
            "linear": theory.distance_bounds(s, eta, 1.0, t)[1],
            "energy": theory.energy_envelope(decrease, kappa, eta, t),
            "root": theory.energy_envelope(np.log(2), kappa, eta, t),
            "saturation": theory.saturation(s, eta, 1.0, t),
        }

    return records.replay_or_run("t1-saturation", settings, {}, make)


def full_run(records: RunStore) -> Run:
    """Gradient descent on all training statements of each behavior, at the book's η."""
    return last_layer_run(records, "f4-full", sampling="full", seeds=1)


def real_run(records: RunStore) -> Run:
    """Each behavior's training statements at the η that Theorem 4.1 allows, and at the book's.

    Arrays over behaviors. ``geometry`` (…, 7): ‖μ̂₊ − μ̂₋‖, ‖b̂‖, Δ, c_v, c_n, relative sd of ‖g_i‖,
    and (n₊ − n₋)/n; ``kappa`` and ``kappa_b`` (…, 2), at η = .25/c_n² with β = 1/√d, then at the
    book's η and β; ``even`` (…,), the first κ_b without the surplus statements of the larger side;
    ``condition`` (…, 2) β′²ηc_n²; ``paper`` (…, T + 1) 6β′ηt‖μ̂₊ − μ̂₋‖/√d at the former;
    ``distance``, ``low``, ``high`` (…, 2, T + 1), measured and Theorem A, at both; ``strengths``
    (…, T, seeds), ‖b̂_k‖ of the case study's minibatches; ``most`` (…,) ηβ² max ‖g_i‖² at the
    book's η and β, which no κ of a minibatch exceeds.
    """
    config, rate = records.config, learning_rate(records)
    states = [records.states(behavior) for behavior in config.behaviors]
    draw = {"size": config.batch_size, "sampling": config.sampling}
    settings = {"behaviors": config.behaviors, "beta": config.beta, "learning_rate": rate}
    settings |= {"steps": config.steps, "seeds": config.seeds, **draw}

    def one(s: States) -> dict[str, Array]:
        g, labels, t = s.g[s.train], s.labels[s.train], np.arange(config.steps + 1)
        m, signal = geometry(g, labels), theory.signal(g, labels)
        both = ((0.25 / m.c_n**2, m.d**-0.5), (rate, config.beta))
        a, problem = labels[:, None] * g, last_layer.Problem(s.g, s.labels, s.train)
        paths = [last_layer.gradient_descent(a, *rates, config.steps) for rates in both]
        low, high = zip(*(theory.distance_bounds(signal, *rates, t) for rates in both), strict=True)
        seeds = range(config.seeds)
        drawn = [last_layer.draws(problem, config.steps, **draw, seed=seed) for seed in seeds]
        b = [2 * weights @ (s.labels[:, None] * s.g) for weights in drawn]
        fewer = min((labels > 0).sum(), (labels < 0).sum())
        even = np.concatenate([np.flatnonzero(labels == side)[:fewer] for side in (1, -1)])
        return {
            "geometry": [
                m.distinguishability, signal.b_norm, m.delta, m.c_v, m.c_n,
                signal.norms.std() / signal.norms.mean(), labels.mean(dtype=float),
            ],
            "kappa": [signal.kappa(*rates) for rates in both],
            "kappa_b": [4 * signal.slack(*rates, 2) for rates in both],
            "even": 4 * theory.signal(g[even], labels[even]).slack(*both[0], 2),
            "condition": [eta * beta**2 * m.d * m.c_n**2 for eta, beta in both],
            "paper": 6 * np.prod(both[0]) * t * m.distinguishability,
            "distance": np.sqrt(2) * np.linalg.norm(paths, axis=2),
            "low": low, "high": high,
            "strengths": np.stack([np.linalg.norm(rows, axis=1) for rows in b], -1),
            "most": rate * config.beta**2 * signal.norms.max() ** 2,
        }  # fmt: skip

    def make() -> dict[str, Array]:
        found = [one(s) for s in states]
        return {name: np.array([f[name] for f in found]) for name in found[0]}

    inputs = {s.behavior: s.sha256 for s in states}
    return records.replay_or_run("f4-real", settings, inputs, make)


def sweep_worst(records: RunStore, run: str) -> Array:
    """Largest measured distance over the bound, over α, Δ, d, and t = 1 … 100, for each seed."""
    return 1 / records.recorded(run).arrays["least"].min((0, 1, 2))


def counterexample_holds(records: RunStore, run: str) -> Array:
    """Share of draws within the bound at t = 1, the smallest over d."""
    return (records.recorded(run).arrays["first"] <= 1).mean(1).min()


def event_holds(records: RunStore, run: str) -> Array:
    """Share of draws in which (17) holds at d = 4096, n = 1000, Δ = 0."""
    arrays = records.recorded(run).arrays
    return 1 - arrays["happened"][1] / arrays["trials"][1]


def figure_four_worst(records: RunStore, run: str) -> Array:
    """Largest measured distance over the bound, over behaviors and steps, for each seed."""
    config = records.config
    apart = real_run(records).arrays["geometry"][:, 0, None, None]
    distance = records.recorded(run).arrays["distance"][:, 1:]
    t = np.arange(1, distance.shape[1] + 1)[:, None]
    rate = records.recorded(run).info["key"]["settings"]["learning_rate"]
    return (distance / (6 * config.beta * rate * t * apart)).max((0, 1))


RUNS = (steps_run, counterexample_run, sweep_run, saturation_run, full_run, real_run)
MEASURES = (sweep_worst, counterexample_holds, event_holds, figure_four_worst)
