"""Closed forms of last-layer DPO for small margins, and a bound of their error."""

from dataclasses import dataclass

import numpy as np
from scipy.special import wrightomega

from .bounds import theta


@dataclass(frozen=True)
class Spectrum:
    """Singular value decomposition of hidden states: g = left · diag(root) · right.

    left (n, k), root (k,), right (k, d), k = min(n, d). The eigenvalues of Ĉ are root²/n.
    """

    left: np.ndarray
    root: np.ndarray
    right: np.ndarray


def spectrum(g: np.ndarray) -> Spectrum:
    """The ``Spectrum`` of hidden states ``g`` (n, d). It does not depend on labels, η or β."""
    return Spectrum(*np.linalg.svd(g, full_matrices=False))


def linear_regime(
    s: Spectrum, labels: np.ndarray, learning_rate: float, beta: float, t: np.ndarray
) -> np.ndarray:
    """δ_t with H_t replaced by Ĉ, its limit for small margins: (1/2β) Ĉ⁺(I − (I − (ηβ²/2)Ĉ)ᵗ) b̂.

    Returns its coordinates along the rows of ``s.right``, t × (k,).
    """
    n, t = len(labels), np.asarray(t, float)[..., None]
    held = learning_rate * beta**2 / 2 * s.root**2 / n
    # (1 − (1 − h)ᵗ)/h, without cancellation for small h.
    some = np.where(held > 1e-300, held, 1)
    small = np.expm1(t * np.log1p(-np.minimum(some, 0.5))) / -some
    large = (1 - (1 - some) ** t) / some
    grown = np.where(held > 1e-300, np.where(held < 0.5, small, large), t)
    return learning_rate * beta / 4 * grown * (2 / n * s.root * (s.left.T @ labels))


def linearization_error_bound(
    s: Spectrum,
    labels: np.ndarray,
    norms: np.ndarray,
    learning_rate: float,
    beta: float,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Theorem B: for κ ≤ 4, gradient descent stays within E_t of the linear regime δˡⁱⁿ_t.

    E_{t+1} = E_t + (ηβ√λ/4) rms_i[(1 − θ(|mˡⁱⁿ_i| + 2β‖g_i‖E_t)) mˡⁱⁿ_i],  E_0 = 0,

    since the error satisfies e_{t+1} = (I − (ηβ²/2)H_t)e_t + (ηβ²/2)(Ĉ − H_t)δˡⁱⁿ_t. ``norms`` are
    ‖g_i‖. Returns δˡⁱⁿ (steps + 1, k) as ``linear_regime``, mˡⁱⁿ (steps + 1, n), E (steps + 1,).
    """
    delta = linear_regime(s, labels, learning_rate, beta, np.arange(steps + 1))
    margins = 2 * beta * labels * (delta @ (s.left * s.root).T)
    reach = learning_rate * beta * s.root[0] / np.sqrt(len(labels)) / 4
    off = np.zeros(steps + 1)
    for t in range(steps):
        m = np.abs(margins[t])
        missed = (1 - theta(m + 2 * beta * norms * off[t])) * m
        off[t + 1] = off[t] + reach * np.sqrt((missed**2).mean())
    return delta, margins, off


def gradient_flow(norm: float, beta: float, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Margin and ‖W_U(τ) − W_U(0)‖ under gradient flow if all s_i g_i equal one vector a.

    m + eᵐ = 1 + 2β²‖a‖²τ and ‖W_U(τ) − W_U(0)‖ = √2 m/(2β‖a‖) with τ = ηt, ``norm`` = ‖a‖.
    """
    margin = np.log(wrightomega(1 + 2 * beta**2 * norm**2 * np.asarray(time, float)))
    return margin, np.sqrt(2) * margin / (2 * beta * norm)
