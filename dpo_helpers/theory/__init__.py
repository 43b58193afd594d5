"""Theory of last-layer DPO: proven bounds, closed forms, certificates, the paper's theorems."""

from .bounds import (
    Signal,
    alignment,
    check_states,
    distance_bounds,
    distance_from_loss,
    energy_envelope,
    largest_eigenvalue,
    loss_decrease,
    loss_decrease_bounds,
    margin_of_loss_decrease,
    proven_correct,
    sampled_b_norm,
    saturation,
    sgd_distance_bound,
    signal,
    theta,
)
from .certificates import Certificate, certain_until, certificate
from .linearization import (
    Spectrum,
    gradient_flow,
    linear_regime,
    linearization_error_bound,
    spectrum,
)
