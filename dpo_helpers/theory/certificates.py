"""Certificates: what training must do, proven from hidden states and labels without training."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from . import bounds, linearization


@dataclass(frozen=True)
class Certificate:
    """Proven bounds of gradient descent for t = 0 … T. Two rows are a lower and an upper bound.

    kappa           ηβ²λ
    distance        (2, T + 1) ‖W_U(t) − W_U(0)‖
    loss_decrease   (2, T + 1) log 2 − L_t
    cosine          (T + 1,) lower bound of cos(W_B, b̂); NaN where nothing is proven
    correct         (T + 1, n) which statements are proven to be answered as preferred
    """

    kappa: float
    distance: np.ndarray
    loss_decrease: np.ndarray
    cosine: np.ndarray
    correct: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """Lower and upper bound of the training loss L_t, (2, T + 1)."""
        return np.log(2) - self.loss_decrease[::-1]


def certificate(
    g: np.ndarray,
    labels: np.ndarray,
    boundary: np.ndarray,
    *,
    learning_rate: float,
    beta: float,
    steps: int,
    spectrum: linearization.Spectrum | None = None,
) -> Certificate:
    """Bounds of DPO on the last layer, for every step of gradient descent up to ``steps``.

    ``g`` (n, d), ``labels`` (n,) ±1, ``boundary`` (d,) = W_B before training, ``spectrum`` that of
    ``g`` if it is known. δ_t lies within E_t of the linear regime (``linearization_error_bound``).
    The loss has slope at most β‖b̂‖/2 at every δ_t, and curvature at most β²λ everywhere. Where E_t
    is too large, three other bounds remain: Theorem A and ``saturation`` for the distance, Jensen's
    inequality, L_t ≥ log 2 − loss_decrease(β‖b̂‖‖δ_t‖), for the loss, and the bound of L_t by the
    loss at other points (``_decrease_from_points``).

    Raises InputError for steps < 1 and κ > 4, and as ``check_states`` does.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: must be at least 1")
    g, labels = bounds.check_states(g, labels)
    if np.shape(boundary) != g.shape[1:]:
        raise InputError(f"boundary {np.shape(boundary)} does not fit hidden states {g.shape}")
    spectrum = spectrum or linearization.spectrum(g)
    s = bounds.signal(g, labels, lambda_max=spectrum.root[0] ** 2 / len(g))
    kappa = s.kappa(learning_rate, beta)
    t = np.arange(steps + 1)
    delta, margins, off = linearization.linearization_error_bound(
        spectrum, labels, s.norms, learning_rate, beta, steps
    )
    distance, decrease = np.linalg.norm(delta, axis=1), bounds.loss_decrease(margins).mean(1)
    slope = beta * s.b_norm / 2

    _, high = bounds.distance_bounds(s, learning_rate, beta, t)
    high = np.minimum(high, bounds.saturation(s, learning_rate, beta, t))
    high = np.minimum(high, np.sqrt(2) * (distance + off))
    most = bounds.loss_decrease(np.sqrt(2) * slope * high)
    most = np.minimum(most, decrease + slope * off + beta**2 * s.lambda_max / 2 * off**2)

    least = decrease - slope * off
    others = _decrease_from_points(decrease, distance, kappa, learning_rate)
    least[1:] = np.maximum(least[1:], others)
    # For κ ≤ 4 the loss never increases, so a bound proven at one step holds at later steps.
    least = np.maximum.accumulate(np.maximum(least, 0))
    low = np.sqrt(2) * np.maximum(distance - off, 0)
    if s.b_norm:
        low = np.maximum(low, bounds.distance_from_loss(least, s.b_norm, beta))

    return Certificate(
        kappa=kappa,
        distance=np.stack([low, high]),
        loss_decrease=np.stack([least, most]),
        cosine=_cosine(boundary, 2 * delta @ spectrum.right, 2 * off, s.unit),
        correct=labels * (g @ boundary) + margins / beta - 2 * s.norms * off[:, None] > 0,
    )


def _decrease_from_points(
    decrease: np.ndarray, distance: np.ndarray, kappa: float, learning_rate: float
) -> np.ndarray:
    """Lower bound of log 2 − L_t for t = 1 … T, (T,), from 200 points z of the linear regime.

    L_t ≤ L(z) + ‖z‖²/(ηt) + max(0, 1/(1 − κ/4) − 2) log 2/(2t)  for every z.

    ``decrease`` and ``distance`` (T + 1,) are log 2 − L(z) and ‖z‖ at its steps.
    """
    t = np.arange(1, len(decrease))
    some = np.unique(np.geomspace(1, len(t), 200).astype(int))
    with np.errstate(divide="ignore"):
        extra = np.log(2) / 2 * max(0, np.divide(1, 1 - kappa / 4) - 2)
    reached = decrease[some] - distance[some] ** 2 / (learning_rate * t[:, None])
    return reached.max(1) - extra / t


def _cosine(
    boundary: np.ndarray, change: np.ndarray, off: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """Lower bound of the cosine with ``unit`` of any vector within ``off`` of boundary + change."""
    middle = boundary + change
    length, ahead = np.linalg.norm(middle, axis=1), middle @ unit
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = np.arcsin(np.where(off < length, off / length, np.nan))
        angle = np.arccos(np.clip(ahead / length, -1, 1)) + turn
    return np.cos(np.where((angle < np.pi) & unit.any(), angle, np.nan))


def certain_until(one: Certificate, other: Certificate) -> int:
    """The last step t such that the loss of ``one`` is proven to be lower at steps 1 to t."""
    below = one.loss_decrease[0, 1:] > other.loss_decrease[1, 1:]
    return len(below) if below.all() else int(np.argmin(below))
