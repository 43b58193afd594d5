"""Synthetic hidden states: the α-subexponential distributions of §4.1 with known constants."""

import numpy as np
from scipy.special import gamma

from ..errors import InputError


def coordinates(
    rng: np.random.Generator, shape: tuple[int, ...], alpha: float | None = None
) -> np.ndarray:
    """Independent symmetric draws of mean 0 and variance 1, float64, of any ``shape``.

    They are Gaussian if ``alpha`` is None. Otherwise |X| = s·E^(1/α) is a Weibull variable, with E
    exponential and s = Γ(1 + 2/α)^(−½). Raises InputError for α outside (0, 2].
    """
    if alpha is None:
        return rng.standard_normal(shape)
    size = _scale(alpha) * rng.standard_exponential(shape) ** (1 / alpha)
    return np.where(rng.random(shape) < 0.5, -size, size)


def norm_bound(alpha: float) -> float:
    """K = inf{t: E exp((|X|/t)^α) ≤ 2} = 2^(1/α) s of the Weibull variable (§4.1)."""
    return _scale(alpha) * 2 ** (1 / alpha)


def clouds(
    rng: np.random.Generator,
    n: int | tuple[int, ...],
    difference: np.ndarray,
    *,
    alpha: float | None = None,
    root: float | np.ndarray = 1.0,
    common: float | np.ndarray = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of two classes with means ``common`` ± ``difference``/2 and covariance Σ.

    n            number of states, or (…, n) for several sets at once
    difference   (d,) b = μ₊ − μ₋
    root         Σ^½: a number, its diagonal (d,), or (d, d)
    common       the mean of both classes, (d,)

    Returns g (…, n, d) and labels (n,), alternately +1 and −1.
    Raises InputError for fewer than two states.
    """
    shape = n if isinstance(n, tuple) else (n,)
    if shape[-1] < 2:
        raise InputError(f"n = {shape[-1]}: two classes need at least 2 states")
    labels = np.where(np.arange(shape[-1]) % 2, -1, 1)
    noise = coordinates(rng, (*shape, len(difference)), alpha)
    noise = noise @ root if np.ndim(root) == 2 else noise * root
    return common + labels[:, None] * difference / 2 + noise, labels


def b_norms(rng: np.random.Generator, size: int, n: int, d: int, apart: float = 1.0) -> np.ndarray:
    """‖b̂‖ of ``size`` sets of ``n`` Gaussian states with Σ = I and ‖μ₊ − μ₋‖ = ``apart``: (size,).

    Drawn from its exact distribution, b̂ − b ~ N(0, (4/n) I), without drawing the states.
    Raises InputError for odd n, since classes are balanced.
    """
    if n < 2 or n % 2:
        raise InputError(f"n = {n}: balanced classes need an even number of states, at least 2")
    along = apart + 2 / np.sqrt(n) * rng.standard_normal(size)
    across = rng.chisquare(d - 1, size) if d > 1 else np.zeros(size)
    return np.sqrt(along**2 + 4 / n * across)


def _scale(alpha: float) -> float:
    if not 0 < alpha <= 2:
        raise InputError(f"alpha = {alpha}: the paper's distributions have α in (0, 2]")
    return gamma(1 + 2 / alpha) ** -0.5
