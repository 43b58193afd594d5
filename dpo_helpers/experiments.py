"""The experiments of the chapters, each a recorded run: what goes in, what is measured."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from . import last_layer
from .config import configure
from .data import load_behavior
from .errors import InputError
from .geometry import Geometry, geometry, plane
from .hidden import hidden_states
from .runs import Records, Run, States

# Figure 2 shows one behavior that is easy to tell apart, one in the middle, and
# one that is hard; the paper names the first and the last.
FIGURE_2 = {
    "book": (
        "agreeableness",
        "okay-with-building-an-AI-with-different-goals-to-accomplish-its-task",
        "subscribes-to-total-utilitarianism",
    ),
    "smoke": ("loves-gardening", "prefers-city-life", "takes-the-later-reward"),
}
FIGURE_2["paper"] = FIGURE_2["book"]
# The behaviors of Figure 5: recorded with the others, so that their chapter needs no data.
FIGURE_5 = (
    "acts-like-it-wants-to-help-humans-but-does-not-care-about-that",
    "risk-seeking",
    "desire-to-influence-world",
    "subscribes-to-Islam",
)


def measured(states: States) -> Geometry:
    """The statistics of all statements of a behavior."""
    return geometry(states.g, states.labels)


def learning_rate(records: Records) -> float:
    """The learning rate: as configured, or the chapter's rule.

    The rule: the largest η among 1, 3, 10 × 10^k with κ = ηβ²λ ≤ 4 on the
    calibration behavior, that is, the largest for which gradient descent
    contracts there whatever the labels.
    """
    config = records.config
    if config.learning_rate != "rule":
        return config.learning_rate
    limit = 4 / measured(records.states(config.calibration)).kappa(1.0, config.beta)
    grid = [m * 10.0**k for k in range(-9, 12) for m in (1, 3)]
    return max(rate for rate in grid if rate <= limit)


def last_layer_run(records: Records, name: str, **changes: object) -> Run:
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
    return records.get(name, settings, inputs, ("dpo", "last_layer"), make)


def planes_run(records: Records) -> Run:
    """UMAP coordinates of the behaviors of Figure 2: one (n, 2) array a behavior."""
    behaviors = FIGURE_2[records.config.tier]
    states = [records.states(behavior) for behavior in behaviors]
    return records.get(
        "f2",
        {"behaviors": behaviors, "umap": "defaults, seed 0"},
        {s.behavior: s.sha256 for s in states},
        ("geometry",),
        lambda: {s.behavior: plane(s.g) for s in states},
    )


def conventions_run(records: Records) -> Run:
    """‖μ̂₊ − μ̂₋‖ of each behavior under four conventions of the final embedding.

    Arrays ``newline`` and ``bare`` (the prompt ends in a newline or not), each
    (behaviors, 2): normalised once as the model does, or normalised and scaled
    a second time as the authors' scripts do.
    """
    import torch

    config = records.config
    states = [records.states(behavior) for behavior in config.behaviors]

    def make() -> dict[str, np.ndarray]:
        model = records.model()
        norm = model.network.base_model.norm
        arrays = {}
        for name, newline in (("newline", True), ("bare", False)):
            rows = []
            for behavior in config.behaviors:
                statements = load_behavior(behavior, config.data)
                once = hidden_states(model, statements.prompts(newline))
                with torch.inference_mode():
                    twice = norm(torch.tensor(once, device=norm.weight.device)).cpu().numpy()
                rows.append(
                    [geometry(g, statements.labels).distinguishability for g in (once, twice)]
                )
            arrays[name] = np.array(rows)
        return arrays

    inputs = {s.behavior: s.sha256 for s in states}
    settings = {"behaviors": config.behaviors}
    return records.get("conventions", settings, inputs, ("tree", "hidden", "geometry"), make)


# What the workflow records before any notebook is executed, by name.
RUNS: dict[str, Callable[[Records], Run]] = {
    "f2": planes_run,
    "f3": lambda records: last_layer_run(records, "f3"),
    "f3-paper-rate": lambda records: last_layer_run(records, "f3-paper-rate", learning_rate=0.1),
    "f3-balanced": lambda records: last_layer_run(records, "f3-balanced", sampling="balanced"),
    "f3-full": lambda records: last_layer_run(records, "f3-full", sampling="full", seeds=1),
    "conventions": conventions_run,
}


def main(tier: str, what: str) -> None:
    """Record the hidden states of a behavior, or a run of ``RUNS``, at a tier's own settings."""
    records = Records(configure({"tier": tier}))
    if what in RUNS:
        RUNS[what](records)
    else:
        records.states(what)


if __name__ == "__main__":  # python -m dpo_helpers.experiments TIER WHAT
    try:
        main(*sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
