"""The paper's theorems as printed: bounds, conditions and claimed probabilities.

All functions broadcast over arrays, and return NaN where a theorem's conditions do not hold. The
errata page says what is wrong with the statements; ``bounds`` has what replaces them.
"""

import numpy as np

Value = float | np.ndarray


def theorem_4_1(
    t: Value, d: Value, delta: Value, learning_rate: Value, beta_prime: Value, c_n: Value
) -> Value:
    """Theorem 4.1: ‖W_U(t) − W_U(0)‖ ≤ 6 β′ η t d^(Δ − ½).

    NaN unless Δ ≤ ½ and β′² η c_n² ≤ ¼. (β = β′/√d.)
    """
    bound = 6 * beta_prime * learning_rate * np.asarray(t, float) * d ** (delta - 0.5)
    return _where((np.asarray(delta) <= 0.5) & _small_step(learning_rate, beta_prime, c_n), bound)


def mean_failure(n: Value, d: Value, delta: Value, alpha: Value, c_v: Value) -> Value:
    """Claimed probability that (13) or (14) fails: 4 exp(−γ d^(αΔ)/(4c_v)), γ = n/√d."""
    return 4 * np.exp(-n / np.sqrt(d) * d ** (np.asarray(alpha) * delta) / (4 * c_v))


def norm_failure(n: Value, d: Value, alpha: Value, c: Value) -> Value:
    """Claimed probability that (15) or (16) fails for a sample: 2n exp(−c′ d^(α/4)), any c′ > 0."""
    return 2 * n * np.exp(-c * np.asarray(d, float) ** (np.asarray(alpha) / 4))


def v_range(d: Value, delta: Value) -> tuple[Value, Value]:
    """The range of v in Theorem 4.2, 4 log 2/log d ≤ v ≤ ½ − Δ. Empty if the first is larger."""
    return 4 * np.log(2) / np.log(d), 0.5 - np.asarray(delta)


def horizon(
    d: Value, delta: Value, v: Value, learning_rate: Value, beta_prime: Value, c_n_prime: Value
) -> Value:
    """The last step for which Theorem 4.2 is stated: t ≤ d^(½ − Δ − v)/(72 β′² η c_n′)."""
    return d ** (0.5 - np.asarray(delta) - v) / (72 * beta_prime**2 * learning_rate * c_n_prime)


def theorem_4_2(
    t: Value,
    d: Value,
    delta: Value,
    v: Value,
    phi: Value,
    boundary: Value,
    learning_rate: Value,
    beta_prime: Value,
    c_n_prime: Value,
) -> Value:
    """Theorem 4.2: the claimed lower bound of cos(W_B(t), μ₊ − μ₋).

    ``phi`` is that cosine before training, ``boundary`` is ‖W_B‖. NaN unless v is in range,
    t ≤ ``horizon`` and β′² η c_n² ≤ ¼ with c_n = c_n′ d^(Δ − ½).
    """
    low, high = v_range(d, delta)
    scale = np.asarray(d, float) ** (np.asarray(delta) - 0.5)
    gain = (1 - 13 * np.asarray(d, float) ** -np.asarray(v) - phi) * beta_prime * learning_rate * t
    bound = phi + gain * scale / (8 * boundary + 1 / (24 * beta_prime * c_n_prime))
    # An equality counts as satisfied up to rounding, 1e-12.
    steps = horizon(d, delta, v, learning_rate, beta_prime, c_n_prime) * (1 + 1e-12)
    holds = (v >= low - 1e-12) & (v <= high + 1e-12) & (np.asarray(t) <= steps)
    return _where(holds & _small_step(learning_rate, beta_prime, c_n_prime * scale), bound)


def largest_gain(phi: Value) -> Value:
    """The largest gain in the cosine that Theorem 4.2 gives for any d, v, η and t: (1 − φ)²/156."""
    return (1 - np.asarray(phi)) ** 2 / 156


def theorem_4_3(
    d: Value,
    delta: Value,
    v: Value,
    phi: Value,
    boundary: Value,
    beta_prime: Value,
    c_n_prime: Value,
) -> Value:
    """Theorem 4.3, (38): the least margin along μ₊ − μ₋ of a sample that is claimed to be correct.

    NaN unless v is in range, 13 d^(−v) < 1 − φ and φ ≥ 0.
    """
    low, high = v_range(d, delta)
    power = np.asarray(d, float) ** np.asarray(v)
    above = 2 * c_n_prime * np.asarray(d, float) ** delta * power
    above = above * (576 * beta_prime * c_n_prime * boundary + 3)
    bound = above / (3 * phi * power + 1 - 13 / power - phi)
    holds = (v >= low - 1e-12) & (v <= high + 1e-12) & (13 / power < 1 - phi)
    return _where(holds & (np.asarray(phi) >= 0), bound)


def _small_step(learning_rate: Value, beta_prime: Value, c_n: Value) -> np.ndarray:
    return np.asarray(beta_prime**2 * learning_rate * c_n**2) <= 0.25 * (1 + 1e-12)


def _where(holds: np.ndarray, bound: Value) -> Value:
    return np.where(holds, bound, np.nan)[()]
