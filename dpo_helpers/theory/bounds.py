"""Proven bounds of last-layer DPO for any data and any reference, instead of the paper's.

All of them follow from one identity,

    δ_{t+1} = (I − (ηβ²/2) H_t) δ_t + (ηβ/4) b̂,    0 ⪯ H_t ⪯ Ĉ,

with b̂ = (2/n) Σ s_i g_i and Ĉ = (1/n) Σ g_i g_iᵀ. If κ = ηβ²λ ≤ 4 with λ = ‖Ĉ‖, the first term is a
contraction. The bounds hold for gradient descent on all statements from the reference. ``t`` is a
step or an array of steps. Every function of a ``Signal`` and η raises InputError for κ > 4. All
numbers are float64.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.special import expit

from ..errors import InputError


@dataclass(frozen=True)
class Signal:
    """The statistics of hidden states g (n, d) and labels s (n,) that the bounds need.

    b_norm       ‖b̂‖
    unit         (d,) u = b̂/‖b̂‖; zeros if b̂ = 0
    along        (n,) s_i g_i·u
    norms        (n,) ‖g_i‖
    lambda_max   λ
    """

    b_norm: float
    unit: np.ndarray
    along: np.ndarray
    norms: np.ndarray
    lambda_max: float

    @property
    def spread(self) -> float:
        """r, with r² = b̂ᵀĈb̂/‖b̂‖²; at most √λ."""
        return float(np.sqrt((self.along**2).mean()))

    def kappa(self, learning_rate: float, beta: float) -> float:
        """κ = ηβ²λ. Raises InputError for κ > 4, where nothing is proven, and for η or β ≤ 0."""
        if not (learning_rate > 0 and beta > 0):
            raise InputError(f"learning_rate = {learning_rate}, beta = {beta}: must be positive")
        kappa = learning_rate * beta**2 * self.lambda_max
        if not kappa <= 4:
            most = 4 / (beta**2 * self.lambda_max)
            raise InputError(
                f"κ = ηβ²λ = {kappa:.3g} is above 4, where the theorems say nothing; choose "
                f"learning_rate ≤ {most:.3g}"
            )
        return kappa

    def slack(self, learning_rate: float, beta: float, t: np.ndarray) -> np.ndarray:
        """ρ_t = κ_b(t − 1)/4 with κ_b = ηβ²√λ r: ‖2δ_t − x_t u‖ ≤ ρ_t x_t."""
        self.kappa(learning_rate, beta)  # raises InputError above 4
        kappa_b = learning_rate * beta**2 * np.sqrt(self.lambda_max) * self.spread
        return kappa_b * np.maximum(np.asarray(t, float) - 1, 0) / 4

    def free_displacement(self, learning_rate: float, beta: float, t: np.ndarray) -> np.ndarray:
        """x_t = ηβt‖b̂‖/2: ‖2δ_t‖ without the contraction."""
        return learning_rate * beta * np.asarray(t, float) * self.b_norm / 2


def signal(g: np.ndarray, labels: np.ndarray, lambda_max: float | None = None) -> Signal:
    """The ``Signal`` of hidden states ``g`` (n, d) with ``labels`` (n,) of ±1.

    Pass λ as ``lambda_max`` if it is known, since it is costly to compute. Errors as
    ``check_states``.
    """
    g, labels = check_states(g, labels)
    a = labels[:, None] * g
    mean = 2 * a.mean(0)
    b_norm = float(np.linalg.norm(mean))
    unit = mean / b_norm if b_norm else np.zeros_like(mean)
    return Signal(
        b_norm=b_norm,
        unit=unit,
        along=a @ unit,
        norms=np.linalg.norm(g, axis=1),
        lambda_max=largest_eigenvalue(g) if lambda_max is None else lambda_max,
    )


def check_states(g: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (n, d) as float64, and labels (n,), both as arrays.

    Raises InputError for states that are not finite, for labels that are not ±1 or all the same,
    and for shapes that do not fit.
    """
    g, labels = np.asarray(g, np.float64), np.asarray(labels)
    if g.ndim != 2 or labels.shape != g.shape[:1]:
        raise InputError(
            f"hidden states {g.shape} and labels {labels.shape} do not fit: (n, d), (n,)"
        )
    if not np.isfinite(g).all():
        row = int(np.flatnonzero(~np.isfinite(g).all(1))[0])
        raise InputError(f"hidden state {row} is not finite; compute it again")
    sides = set(np.unique(labels).tolist())
    if not sides <= {-1, 1}:
        raise InputError(f"labels hold {sorted(sides - {-1, 1})[0]:g}; each must be 1 or −1")
    if len(sides) < 2:
        raise InputError("labels are all the same; a behavior needs statements of both sides")
    return g, labels


def largest_eigenvalue(g: np.ndarray) -> float:
    """λ, the largest eigenvalue of Ĉ = (1/n) Σ g gᵀ, from the smaller Gram matrix of g (n, d)."""
    n, d = g.shape
    gram = g.T @ g if d <= n else g @ g.T
    last = len(gram) - 1
    return float(eigh(gram, eigvals_only=True, subset_by_index=(last, last))[0]) / n


# Losses and margins


def theta(margins: np.ndarray) -> np.ndarray:
    """θ = tanh(m/2)/(m/2) in (0, 1]: σ(−m) = ½ − θm/4, and H_t = mean[θ_i g_i g_iᵀ]."""
    half = np.where(margins == 0, 1, np.asarray(margins, float) / 2)
    return np.where(margins == 0, 1.0, np.tanh(half) / half)


def loss_decrease(margins: np.ndarray) -> np.ndarray:
    """log 2 − (−log σ(m)) of each margin m, computed without cancellation."""
    small = np.maximum(margins, -30.0)
    with np.errstate(over="ignore"):
        deep = np.log(2) + margins - np.log1p(np.exp(np.minimum(margins, 0)))
    return np.where(margins > -30, -np.log1p(np.expm1(-small) / 2), deep)


def margin_of_loss_decrease(decrease: np.ndarray) -> np.ndarray:
    """The margin whose ``loss_decrease`` is ``decrease`` < log 2."""
    return -np.log1p(2 * np.expm1(-np.asarray(decrease, float)))


# Distance moved


def distance_bounds(
    s: Signal, learning_rate: float, beta: float, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Theorem A: lower and upper bound of ‖W_U(t) − W_U(0)‖, equal at t = 1.

    1 − κ_b(t − 1)/4 ≤ ‖W_U(t) − W_U(0)‖ / ((√2/4)βηt‖b̂‖) ≤ 1.
    """
    high = s.free_displacement(learning_rate, beta, t) / np.sqrt(2)
    return high * np.maximum(1 - s.slack(learning_rate, beta, t), 0), high


def sgd_distance_bound(b_norms: np.ndarray, learning_rate: float, beta: float) -> np.ndarray:
    """Theorem A for SGD: ‖W_U(t) − W_U(0)‖ ≤ (√2/4)βη Σ_{k<t} ‖b̂_k‖ if κ ≤ 4 on every minibatch.

    ``b_norms`` (steps, …) holds ‖b̂_k‖ of minibatch k. Returns (steps + 1, …).
    """
    total = np.cumsum(b_norms, axis=0)
    start = np.zeros((1, *np.shape(b_norms)[1:]))
    return np.sqrt(2) / 4 * beta * learning_rate * np.concatenate([start, total])


def energy_envelope(
    decrease: np.ndarray, kappa: float, learning_rate: float, t: np.ndarray
) -> np.ndarray:
    """‖W_U(t) − W_U(0)‖ ≤ √(ηt(log 2 − L_t)/(1 − κ/4)) for κ < 4, ``decrease`` = log 2 − L_t."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(learning_rate * np.asarray(t, float) * decrease / (1 - kappa / 4))


def saturation(
    s: Signal, learning_rate: float, beta: float, t: np.ndarray, rounds: int = 60
) -> np.ndarray:
    """An upper bound of ‖W_U(t) − W_U(0)‖ that grows like √t and is infinite at κ = 4.

    It is the largest w with w²(1 − κ/4)/(ηt) ≤ loss_decrease(kw), k = β‖b̂‖/√2. This is the energy
    envelope, with L_t ≥ log 2 − loss_decrease(kw) at distance w by Jensen's inequality. Newton's
    method starts above the root and stays above it, so each iterate is an upper bound.
    """
    k = beta * s.b_norm / np.sqrt(2)
    t = np.asarray(t, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (1 - s.kappa(learning_rate, beta) / 4) / (learning_rate * t)
        w = np.where(cost > 0, np.sqrt(np.log(2) / cost), np.inf)
        for _ in range(rounds):
            slope = 2 * cost * w - k * expit(-k * w)
            w = np.where(slope > 0, w - (cost * w**2 - loss_decrease(k * w)) / slope, w)
    return np.where(t > 0, np.where(cost > 0, w, np.inf), 0.0)


def sampled_b_norm(
    apart: float, trace: float, n: float, p: float, norm: float | None = None
) -> float:
    """4.1′: an upper bound of ‖b̂‖ that holds with probability ≥ 1 − p, from the covariances alone.

    ``apart`` = ‖b‖ = d^Δ, ``trace`` = Tr(Σ₊ + Σ₋), n states in balanced classes. Any distribution:
    ‖b‖ + √(2 Tr(Σ₊ + Σ₋)/(np)), by Chebyshev's inequality. Gaussians, with ``norm`` = ‖Σ₊ + Σ₋‖:
    ‖b‖ + √(2 Tr(Σ₊ + Σ₋)/n) + √(4 ‖Σ₊ + Σ₋‖ log(1/p)/n).
    """
    if norm is None:
        return apart + np.sqrt(2 * trace / (n * p))
    return apart + np.sqrt(2 * trace / n) + np.sqrt(4 * norm * np.log(1 / p) / n)


# Loss


def distance_from_loss(decrease: np.ndarray, b_norm: float, beta: float) -> np.ndarray:
    """Lower loss requires larger displacement: ‖W_U(t) − W_U(0)‖ ≥ √2 m/(β‖b̂‖).

    By Jensen's inequality, with loss_decrease(m) = log 2 − L_t = ``decrease``. Since
    m ≥ 2 loss_decrease(m), it is at least 2√2(log 2 − L_t)/(β‖b̂‖).
    """
    return np.sqrt(2) * margin_of_loss_decrease(decrease) / (beta * b_norm)


def loss_decrease_bounds(
    s: Signal, learning_rate: float, beta: float, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of log 2 − L_t.

    1 − ρ − (β²ηt/4)(r + √λ ρ)² ≤ (log 2 − L_t)/((β²ηt/8)‖b̂‖²) ≤ 1 with ρ = κ_b(t − 1)/4.
    """
    rho = s.slack(learning_rate, beta, t)
    high = beta**2 * learning_rate * np.asarray(t, float) / 8 * s.b_norm**2
    curved = beta**2 * learning_rate * np.asarray(t, float) / 4
    return high * (1 - rho - curved * (s.spread + np.sqrt(s.lambda_max) * rho) ** 2), high


# Boundary


def alignment(
    s: Signal,
    boundary: np.ndarray,
    learning_rate: float,
    beta: float,
    t: np.ndarray,
    off: float = 0,
) -> np.ndarray:
    """4.2′: lower bound of cos(W_B + 2δ_t, b̂), NaN where nothing is proven (xρ ≥ R).

    cos(arccos((φ̂‖W_B‖ + x)/R) + arcsin(xρ/R)) with R² = ‖W_B‖² + 2φ̂‖W_B‖x + x², φ̂ = cos(W_B, b̂).
    With ``off`` = ‖b̂ − b‖/‖b‖ < 1 it bounds the cosine with the population's b.
    """
    x, rho = s.free_displacement(learning_rate, beta, t), s.slack(learning_rate, beta, t)
    ahead = boundary @ s.unit + x
    aside = np.linalg.norm(boundary - (boundary @ s.unit) * s.unit)
    far = np.hypot(ahead, aside)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(far > 0, x * rho / far, np.inf)
        angle = np.arctan2(aside, ahead) + np.arcsin(np.where(ratio < 1, ratio, np.nan))
    angle = angle + (np.arcsin(off) if off < 1 else np.nan)
    return np.cos(np.where((angle < np.pi) & (s.b_norm > 0), angle, np.nan))


def proven_correct(
    s: Signal, starts: np.ndarray, learning_rate: float, beta: float, t: np.ndarray
) -> np.ndarray:
    """4.3′: which statements are proven to be answered as preferred after t steps, t × (n,) bool.

    The condition is s_i W_B·g_i + x(s_i g_i·u − ρ‖g_i‖) > 0. ``starts`` (n,) holds s_i W_B·g_i.
    """
    x = s.free_displacement(learning_rate, beta, t)[..., None]
    rho = s.slack(learning_rate, beta, t)[..., None]
    return starts + x * (s.along - rho * s.norms) > 0
