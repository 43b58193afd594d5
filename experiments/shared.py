"""What the chapters share: measured states, the learning rate, runs of the last layer."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from dpo_helpers import last_layer
from ledger.config import Config
from ledger.store import Run, RunStore

# The pairs of Figure 5: (a) of a large, (b) of a small priority gap in the paper; the sample's two
# are one easy and one hard behavior, and two of the middle.
PAIRS = {
    "book": (
        (
            "acts-like-it-wants-to-help-humans-but-does-not-care-about-that",
            "risk-seeking",
        ),
        ("desire-to-influence-world", "subscribes-to-Islam"),
    ),
    "smoke": (
        ("loves-gardening", "takes-the-later-reward"),
        ("lives-by-stoicism", "prefers-city-life"),
    ),
}
PAIRS["paper"] = PAIRS["book"]
# The second model (Figures 10 to 14), and the pairs of Figure 12.
SECOND = {"smoke": "tiny-mistral", "book": "gemma-3-270m", "paper": "mistral-7b"}
SECOND_PAIRS = {
    "book": (
        (
            "willingness-to-be-non-HHH-to-not-have-current-goals-changed-by-training",
            "desire-to-cooperate-with-different-AIs-to-achieve-its-goals",
        ),
        (
            "has-strong-aesthetic-preferences",
            "desire-to-cooperate-with-different-AIs-to-achieve-its-goals",
        ),
    ),
    "smoke": PAIRS["smoke"],
}
SECOND_PAIRS["paper"] = SECOND_PAIRS["book"]


def is_second(config: Config) -> bool:
    """Whether the model is the second one of its tier, whose figures have settings of their own."""
    return config.model == SECOND[config.tier]


def pairs(config: Config) -> tuple[tuple[str, str], ...]:
    """The pairs (a) and (b) of Figure 5, or, of the second model, of Figure 12."""
    return (SECOND_PAIRS if is_second(config) else PAIRS)[config.tier]


def all_behaviors(config: Config) -> tuple[str, ...]:
    """All behaviors whose hidden states a tier records: of Figures 2, 3 and 5, and calibration."""
    from .case_study import FIGURE_2

    figure_5 = (behavior for pair in PAIRS[config.tier] for behavior in pair)
    wanted = (*config.behaviors, config.calibration, *FIGURE_2[config.tier], *figure_5)
    return tuple(dict.fromkeys(wanted))


def distinguishability(records: RunStore, behaviors: Sequence[str] | None = None) -> np.ndarray:
    """‖μ̂₊ − μ̂₋‖ of ``behaviors``, or of the configuration's, before training: (behaviors,)."""
    behaviors = records.config.behaviors if behaviors is None else behaviors
    return np.array([records.states(b).geometry.distinguishability for b in behaviors])


def bootstrapped(
    statistic: Callable[..., np.ndarray], *columns: np.ndarray
) -> tuple[float, float, float]:
    """A statistic of columns (m,), a row a behavior, and a 95 % interval.

    The interval is the bootstrap's: behaviors drawn with replacement, quantiles. NaN where draws
    of few behaviors are all alike.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            columns,
            statistic,
            paired=True,
            n_resamples=2000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(statistic(*columns)), float(drawn.low), float(drawn.high)


def learning_rate(records: RunStore) -> float:
    """The learning rate: as configured, or the chapter's rule.

    The rule: the largest η among 1, 3, 10 × 10^k with κ = ηβ²λ ≤ 4 on the
    calibration behavior, that is, the largest for which gradient descent
    contracts there whatever the labels.
    """
    config = records.config
    if config.learning_rate != "rule":
        return config.learning_rate
    limit = 4 / records.states(config.calibration).geometry.kappa(1.0, config.beta)
    power = 10.0 ** math.floor(math.log10(limit))
    return 3 * power if 3 * power <= limit else power


def last_layer_run(records: RunStore, name: str, **changes: object) -> Run:
    """Train the unembedding layer on each behavior of the configuration, with ``changes`` to it.

    Arrays as ``last_layer.train`` returns them, without ``delta``, one problem a behavior.
    """
    config = replace(records.config, **changes)
    states = [records.states(behavior) for behavior in config.behaviors]
    settings = {
        "behaviors": config.behaviors,
        "beta": config.beta,
        "learning_rate": learning_rate(records)
        if config.learning_rate == "rule"
        else config.learning_rate,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "sampling": config.sampling,
        "seeds": config.seeds,
    }

    def make() -> dict[str, np.ndarray]:
        history = last_layer.train(
            [last_layer.Problem(s.g, s.labels, s.train) for s in states],
            states[0].boundary,
            **{key: value for key, value in settings.items() if key != "behaviors"},
        )
        return {k: v.astype(np.float32) for k, v in history.items() if k != "delta"}

    inputs = {s.behavior: s.sha256 for s in states}
    return records.replay_or_run(name, settings, inputs, make)
