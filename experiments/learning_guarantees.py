"""Runs and measures of the chapter on learning guarantees (Theorems 4.2 and 4.3)."""

from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.special import expit

from dpo_helpers import last_layer, theory
from dpo_helpers.errors import InputError
from dpo_helpers.theory import certain_until, certificate, printed, synthetic
from ledger.store import Run, RunStore

from .shared import learning_rate

# d of the settings, how often a counterexample is drawn, and the steps of the certificates.
SIZE = {"book": 4096, "smoke": 1024, "paper": 4096}
REPEATS = {"book": 20, "smoke": 5, "paper": 20}
STEPS = {"book": 1000, "smoke": 1000, "paper": 1000}


@dataclass(frozen=True)
class Setting:
    """A setting of Theorem 4.2 with Δ = 0 and Gaussian states (α = 2), and its least constants.

    μ± = ±b/2 with ‖b‖ = 1, Σ± = (Tr/d) I, ``n`` states; ``power`` is d^v, ``root_trace`` Tr(Σ±)^½,
    ``phi`` cos(W_B, b), ``boundary`` ‖W_B‖, ``rate`` η, None as large as leaves t_max = 20 steps.
    """

    d: int
    n: int
    power: float
    root_trace: float
    phi: float
    boundary: float
    rate: float | None = None
    beta_prime: float = 1.0

    v = property(lambda s: np.log(s.power) / np.log(s.d))
    eta = property(lambda s: s.rate or s.d**0.5 / s.power / (72 * s.beta_prime**2 * s.c_n * 20))
    beta = property(lambda s: s.beta_prime / s.d**0.5)
    c_n = property(lambda s: 0.5 + s.root_trace)  # c_n′ = max ‖μ±‖ + Tr(Σ±)^½

    def __post_init__(self) -> None:
        if not (self.power > 1 and self.d > 1):
            raise InputError(f"d = {self.d}, d^v = {self.power}: both must be above 1")
        if not -1 <= self.phi <= 1:
            raise InputError(f"phi = {self.phi}: a cosine lies between -1 and 1")

    def conditions(self) -> dict[str, bool]:
        """Every condition that Theorem 4.2 states, and whether it holds."""
        low, high = printed.v_range(self.d, 0.0)
        step = self.beta_prime**2 * self.eta * (self.c_n * self.d**-0.5) ** 2
        t_max = printed.horizon(self.d, 0.0, self.v, self.eta, self.beta_prime, self.c_n)
        return {
            "4 log 2/log d ≤ v ≤ ½ − Δ": bool(low - 1e-12 <= self.v <= high + 1e-12),
            "Δ ≤ ½ − 4 log 2/log d": bool(0.5 - low >= 0),
            "β′²ηc_n² ≤ ¼": step <= 0.25,
            "t_max ≥ 1": bool(t_max >= 1),
        }

    def bound(self, t: np.ndarray) -> np.ndarray:
        """The bound of Theorem 4.2."""
        about = (self.phi, self.boundary, self.eta, self.beta_prime, self.c_n)
        return printed.theorem_4_2(t, self.d, 0.0, self.v, *about)

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """States g (n, d), labels, W_B, and b."""
        rng = np.random.default_rng(seed)
        b = np.eye(1, self.d)[0]
        g, labels = synthetic.clouds(rng, self.n, b, root=self.root_trace / self.d**0.5)
        aside = np.append(0.0, rng.standard_normal(self.d)[1:])
        aside /= np.linalg.norm(aside)
        w = self.boundary * (self.phi * b + np.sqrt(1 - self.phi**2) * aside)
        return g, labels, w, b

    def cosines(self, steps: int, seed: int) -> np.ndarray:
        """cos(W_B + 2δ_t, b) for t = 0 … steps of gradient descent."""
        g, labels, w, b = self.draw(seed)
        after = w + 2 * last_layer.gradient_descent(labels[:, None] * g, self.eta, self.beta, steps)
        return after @ b / np.linalg.norm(after, axis=1)


def feasible(tier: str, boundary: float) -> Setting:
    """Where Theorem 4.2 applies and its proof can be repaired: d^v = 26, φ = 0, n = 4096."""
    return Setting(SIZE[tier], 4096, 26, 1.0, 0.0, boundary)


def breaks(tier: str) -> dict[str, Setting]:
    """Settings that meet every stated condition of Theorem 4.2, and break its conclusion."""
    d = SIZE[tier]
    return {
        "A": Setting(65536, 8, 44, 2.0, 0.7, 1e-6),
        "B": Setting(d, d // 2, 16, 1.0, 1.0, 1e-9, rate=1e-3),
        "C": Setting(d, d // 2, 26, 1.0, -1.0, 1.0),
    }


def feasible_run(records: RunStore) -> Run:
    """Theorem 4.2 and the steps of its proof where it holds, for t = 0 … 20, and two ‖W_B‖.

    Arrays: ``cosine`` (2, 21) for ‖W_B‖ = 1 and 1e-6; for the 20 increments ``residual``
    ‖δ_{t+1} − δ_t − (βηA/2) b‖/((βη/2) d^−v) with A the smaller A± (25), ``increment``, the cosine
    with b, ``least`` A, and ``ahead`` δ_t·b/(βηt) (30); and ``off`` (2,) ‖μ̂± − μ±‖.
    """
    tier, seed, steps = records.config.tier, 0, 20
    settings = [feasible(tier, boundary) for boundary in (1.0, 1e-6)]

    def make() -> dict[str, np.ndarray]:
        s = settings[0]
        g, labels, w, b = s.draw(seed)
        a = labels[:, None] * g
        path = last_layer.gradient_descent(a, s.eta, s.beta, steps)
        after = np.stack([w * each.boundary + 2 * path for each in settings])
        pulls = expit(-2 * s.beta * path @ a.T)
        least = np.minimum(pulls[:, labels > 0].mean(1), pulls[:, labels < 0].mean(1))[:-1]
        increments = np.diff(path, axis=0)
        missed = increments - s.beta * s.eta / 2 * least[:, None] * b
        off = [np.linalg.norm(g[labels == k].mean(0) - k * b / 2) for k in (1, -1)]
        return {
            "cosine": after @ b / np.linalg.norm(after, axis=-1),
            "residual": np.linalg.norm(missed, axis=1) * s.power / (s.beta * s.eta / 2),
            "increment": increments @ b / np.linalg.norm(increments, axis=1),
            "least": least,
            "ahead": path[1:] @ b / (s.beta * s.eta * np.arange(1, steps + 1)),
            "off": np.array(off),
        }

    about = {"settings": [asdict(s) for s in settings], "steps": steps, "seed": seed}
    return records.replay_or_run("t3-feasible", about, {}, make)


def breaks_run(records: RunStore) -> Run:
    """The counterexamples of ``breaks``: cosines (repeats, 21) of each, t = 0 … 20."""
    steps, repeats = 20, REPEATS[records.config.tier]
    settings = breaks(records.config.tier)

    def make() -> dict[str, np.ndarray]:
        seeds = range(repeats)
        return {x: np.stack([s.cosines(steps, k) for k in seeds]) for x, s in settings.items()}

    about = {"settings": {name: asdict(s) for name, s in settings.items()}}
    about |= {"steps": steps, "repeats": repeats}
    return records.replay_or_run("t3-breaks", about, {}, make)


def accuracy_run(records: RunStore) -> Run:
    """4.2′, 4.3′ and Theorem 4.3 on n = d Gaussian states, Tr^½ = .5, φ = 0, κ = .01, t ≤ 16.

    Arrays (17,): ``certified`` and ``true`` cosine with b̂, ``population`` and ``true_population``
    with b, ``proven`` and ``right`` share of statements; arrays (1,): ``paper``, the share with the
    margin that (38) requires, ``asked``, that margin, ``longest`` norm of a state, and ``eta``.
    """
    tier, kappa, steps = records.config.tier, 0.01, 16
    s = Setting(SIZE[tier], SIZE[tier], 26, 0.5, 0.0, 1.0, beta_prime=0.64)

    def make() -> dict[str, np.ndarray]:
        g, labels, w, b = s.draw(0)
        signal = theory.signal(g, labels)
        eta, t = kappa / (s.beta**2 * signal.lambda_max), np.arange(steps + 1)
        after = w + 2 * last_layer.gradient_descent(labels[:, None] * g, eta, s.beta, steps)
        starts = labels * (g @ w)
        off = np.linalg.norm(signal.b_norm * signal.unit - b)
        asked = printed.theorem_4_3(s.d, 0.0, s.v, s.phi, s.boundary, s.beta_prime, s.c_n)
        lengths = np.linalg.norm(after, axis=1)
        run = (w, eta, s.beta, t)
        return {
            "certified": theory.alignment(signal, *run),
            "true": after @ signal.unit / lengths,
            "population": theory.alignment(signal, *run, off=off),
            "true_population": after @ b / lengths,
            "proven": theory.proven_correct(signal, starts, eta, s.beta, t).mean(1),
            "right": (labels * (after @ g.T) > 0).mean(1),
            "paper": np.array([(labels * (g @ b) >= asked).mean()]),
            "asked": np.array([asked]),
            "longest": np.array([signal.norms.max()]),
            "eta": np.array([eta]),
        }

    about = {"setting": asdict(s), "kappa": kappa, "steps": steps}
    return records.replay_or_run("t4-feasible", about, {}, make)


def certificate_run(records: RunStore) -> Run:
    """The certificate of each behavior's training statements, and gradient descent itself.

    Arrays over behaviors k and steps t: bounds ``distance``, ``fall`` (k, 2, t), ``cosine`` and
    ``proven`` (k, t), of the cosine with b̂ and the share answered as preferred; ``kappa``; for
    gradient descent ``true_distance``, ``true_fall``, ``true_cosine``, ``right``, the largest
    ``margin``, the ``error`` of the linear regime and its bound ``tube``; ``certain`` (k, k), up to
    which step the loss of behavior k is proven to be the lower, and ``certain_by_limit``, the same
    by the speed limit alone.
    """
    config = records.config
    steps, beta, eta = STEPS[config.tier], config.beta, learning_rate(records)
    states = [records.states(behavior) for behavior in config.behaviors]

    def one(g: np.ndarray, labels: np.ndarray, w: np.ndarray) -> tuple:
        spectrum, a = theory.spectrum(g), labels[:, None] * g
        how = dict(learning_rate=eta, beta=beta, steps=steps)
        proven = certificate(g, labels, w, spectrum=spectrum, **how)
        rate, norms = (eta, beta, steps), np.linalg.norm(g, axis=1)
        linear, _, tube = theory.linearization_error_bound(spectrum, labels, norms, *rate)
        path = last_layer.gradient_descent(a, *rate)
        margins, after = 2 * beta * path @ a.T, w + 2 * path
        signal = theory.signal(g, labels, lambda_max=spectrum.root[0] ** 2 / len(g))
        limit = np.stack(theory.loss_decrease_bounds(signal, eta, beta, np.arange(steps + 1)))
        about = {
            "distance": proven.distance,
            "fall": proven.loss_decrease,
            "cosine": proven.cosine,
            "proven": proven.correct.mean(1),
            "true_distance": np.sqrt(2) * np.linalg.norm(path, axis=1),
            "true_fall": theory.loss_decrease(margins).mean(1),
            "true_cosine": after @ signal.unit / np.linalg.norm(after, axis=1),
            "right": (a @ w + margins / beta > 0).mean(1),
            "margin": np.abs(margins).max(1),
            "error": np.linalg.norm(path - linear @ spectrum.right, axis=1),
            "tube": tube,
            "kappa": proven.kappa,
        }
        return proven, about, limit

    def make() -> dict[str, np.ndarray]:
        found = [one(s.g[s.train], s.labels[s.train], s.boundary) for s in states]
        arrays = {name: np.stack([about[name] for _, about, _ in found]) for name in found[0][1]}
        proven = [certified for certified, *_ in found]
        limits = [replace(certified, loss_decrease=limit) for certified, _, limit in found]
        for name, known in (("certain", proven), ("certain_by_limit", limits)):
            arrays[name] = np.array([[certain_until(p, q) for q in known] for p in known])
        return arrays

    settings = {"behaviors": config.behaviors, "beta": beta, "learning_rate": eta, "steps": steps}
    inputs = {s.behavior: s.sha256 for s in states}
    return records.replay_or_run("certificate", settings, inputs, make)


def cosine_as_printed(records: RunStore, run: str) -> np.ndarray:
    """Share of three settings, all stated conditions met, in which the bound holds up to t = 20."""
    found = records.recorded(run).arrays
    t = np.arange(next(iter(found.values())).shape[1])
    settings = breaks(records.config.tier)
    broken = [(found[name] < s.bound(t))[:, 1:].any(1) for name, s in settings.items()]
    return 1 - np.mean(broken, axis=0)


def cosine_in_range(records: RunStore, run: str) -> np.ndarray:
    """Least cosine less its bound, 1 ≤ t ≤ t_max, in a setting with n = 4096 and φ = 0."""
    cosines = records.recorded(run).arrays["cosine"]
    t = np.arange(cosines.shape[1])
    bounds = [feasible(records.config.tier, boundary).bound(t) for boundary in (1.0, 1e-6)]
    return np.nanmin((cosines - bounds)[:, 1:])


def certified_gain(records: RunStore, run: str) -> np.ndarray:
    """Largest increase of the cosine that the bound can certify, over d, v, η, t and φ ≥ 0."""
    power = np.geomspace(16, 4096, 400)
    setting = (power**2, 0.0, 0.5)  # v = ½, Δ = 0: a larger d allows the same d^v
    t = printed.horizon(*setting, 1.0 / power, 1.0, 0.5)
    return printed.theorem_4_2(t, *setting, 0.0, 0.0, 1.0 / power, 1.0, 0.5).max()


def certified_accuracy(records: RunStore, run: str) -> np.ndarray:
    """Largest p: share of the statements with the margin that (38) requires, feasible setting."""
    return records.recorded(run).arrays["paper"][0]


RUNS = (feasible_run, breaks_run, accuracy_run, certificate_run)
MEASURES = (cosine_as_printed, cosine_in_range, certified_gain, certified_accuracy)
