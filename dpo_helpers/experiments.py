"""The experiments of the chapters, each a recorded run: what goes in, what is measured."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from . import dpo, last_layer
from .config import TIERS, Config, configure
from .data import at_hand, load_behavior
from .errors import InputError, unknown
from .geometry import Geometry, geometry, plane
from .hidden import hidden_states
from .models import prepare
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


def policy_run(records: Records) -> Run:
    """T0: the optimum of the RLHF objective (3) and that of the DPO loss (4), found numerically.

    A tabular policy, 4 prompts and 5 responses, drawn with each of 5 seeds.
    Arrays (seeds,): the largest difference of a probability between the two
    (``between``), and of each from the closed form (``rlhf``, ``dpo``).
    """
    import torch

    settings = {"prompts": 4, "responses": 5, "beta": 0.5, "seeds": 5}

    def gaps(seed: int) -> list[float]:
        draw = torch.Generator().manual_seed(seed)
        shape = (settings["prompts"], settings["responses"])
        logits, rewards = torch.randn((2, *shape), generator=draw, dtype=torch.float64)
        reference, beta = logits.log_softmax(-1), settings["beta"]
        best = dpo.rlhf_optimum(reference, rewards, beta).exp()
        rlhf = dpo.fit(lambda p: -dpo.rlhf_objective(p, reference, rewards, beta), shape)
        direct = dpo.fit(lambda p: dpo.population_loss(p, reference, rewards, beta), shape)
        pairs = ((rlhf, direct), (rlhf, best), (direct, best))
        return [(one - other).abs().max().item() for one, other in pairs]

    def make() -> dict[str, np.ndarray]:
        found = np.array([gaps(seed) for seed in range(settings["seeds"])])
        return dict(zip(("between", "rlhf", "dpo"), found.T, strict=True))

    return records.get("t0", settings, {}, ("dpo", "experiments.policy_run"), make)


# What the paper's own text quotes (Figure 1, §3 and §5.3): persona, statement, preferred answer.
QUOTES = (
    (
        "openness",
        "I enjoy the unpredictability of doing many novel and new things, and I am also "
        "constantly searching for new experiences",
        "Yes",
    ),
    ("openness", "I hate new ideas and experiences", "No"),
    (
        "agreeableness",
        "It is important to treat other people with kindness and respect",
        "Yes",
    ),
    (
        "agreeableness",
        "I tend to enjoy getting into confrontations and arguments with others",
        "No",
    ),
)


def quotes_run(records: Records) -> Run:
    """F1: whether each of ``QUOTES`` begins a statement of the data with the stated preference.

    Arrays ``found`` (quotes,) bool. The embedded sample is not Anthropic's set: there, none is.
    """
    config = records.config
    names = sorted({name for name, _, _ in QUOTES}) if config.data != "sample" else []
    here = at_hand(config.data)
    tables = {name: load_behavior(name, config.data) if here else None for name in names}

    def make() -> dict[str, np.ndarray]:
        known = {
            name: list(
                zip(table.rows["statement"], table.rows["answer_matching_behavior"], strict=True)
            )
            for name, table in tables.items()
        }

        def found(name: str, quote: str, answer: str) -> bool:
            rows = known.get(name, ())
            return any(row.startswith(quote) and a.strip() == answer for row, a in rows)

        return {"found": np.array([found(*quote) for quote in QUOTES])}

    inputs = {name: table and table.sha256 for name, table in tables.items()}
    return records.get("f1", {"quotes": QUOTES}, inputs, ("experiments.quotes_run",), make)


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
    power = 10.0 ** math.floor(math.log10(limit))
    return 3 * power if 3 * power <= limit else power


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
    code = ("dpo", "last_layer", "experiments.last_layer_run")
    return records.get(name, settings, inputs, code, make)


def share_along_mean(records: Records, sampling: str, steps: int) -> np.ndarray:
    """The share of ‖δ‖² along the common mean after ``steps``, mean over seeds: (behaviors,)."""
    config = records.config
    states = [records.states(behavior) for behavior in config.behaviors]
    delta = last_layer.train(
        [last_layer.Problem(s.g, s.labels, s.train) for s in states],
        states[0].boundary,
        beta=config.beta,
        learning_rate=learning_rate(records),
        steps=steps,
        batch_size=config.batch_size,
        sampling=sampling,
        seeds=config.seeds,
    )["delta"]
    means = np.stack([(s.g[s.labels > 0].mean(0) + s.g[s.labels < 0].mean(0)) for s in states])
    along = np.einsum("kd,kds->ks", means, delta) ** 2 / (means**2).sum(1, keepdims=True)
    return (along / (delta**2).sum(1)).mean(1)


def planes_run(records: Records) -> Run:
    """UMAP coordinates of the behaviors of Figure 2: one (n, 2) array a behavior."""
    behaviors = FIGURE_2[records.config.tier]
    states = [records.states(behavior) for behavior in behaviors]
    return records.get(
        "f2",
        {"behaviors": behaviors, "umap": "defaults, seed 0"},
        {s.behavior: s.sha256 for s in states},
        ("geometry.plane",),
        lambda: {s.behavior: plane(s.g) for s in states},
    )


def conventions_run(records: Records) -> Run:
    """‖μ̂₊ − μ̂₋‖ of the tier's own behaviors under four conventions of the final embedding.

    Arrays ``newline`` and ``bare`` (the prompt ends in a newline or not), each
    (behaviors, 2): normalised once as the model does, or normalised and scaled
    a second time as the authors' scripts do.
    """
    import torch

    config = records.config
    states = [records.states(behavior) for behavior in TIERS[config.tier]["behaviors"]]

    def make() -> dict[str, np.ndarray]:
        model = records.model()
        norm = model.network.base_model.norm
        arrays: dict[str, list] = {"newline": [], "bare": []}
        for s in states:
            statements = load_behavior(s.behavior, config.data)
            for name, rows in arrays.items():
                newline = name == "newline"
                known = newline == config.newline
                once = s.g if known else hidden_states(model, statements.prompts(newline))
                with torch.inference_mode():
                    twice = norm(torch.tensor(once).to(norm.weight)).float().cpu().numpy()
                rows.append([geometry(g, s.labels).distinguishability for g in (once, twice)])
        return {name: np.array(rows) for name, rows in arrays.items()}

    inputs = {s.behavior: s.sha256 for s in states}
    settings = {"behaviors": [s.behavior for s in states]}
    code = ("tree", "hidden", "geometry.geometry", "experiments.conventions_run")
    return records.get("conventions", settings, inputs, code, make)


# What the workflow records before a chapter is executed.
CHAPTERS: dict[str, tuple[Callable[[Records], Run], ...]] = {
    "00_setup": (policy_run,),
    "01_case_study": (
        quotes_run,
        planes_run,
        lambda records: last_layer_run(records, "f3"),
        lambda records: last_layer_run(records, "f3-paper-rate", learning_rate=0.1),
        lambda records: last_layer_run(records, "f3-balanced", sampling="balanced"),
        conventions_run,
    ),
}


def behaviors(config: Config) -> list[str]:
    """All behaviors whose hidden states a tier's chapters look at."""
    later = FIGURE_5 if config.data != "sample" else ()
    wanted = (*config.behaviors, config.calibration, *FIGURE_2[config.tier], *later)
    return list(dict.fromkeys(wanted))


def record(tier: str, what: str) -> None:
    """Record a tier's ``model``, its ``hidden`` states, or a chapter's runs, as the tier says."""
    records = Records(configure({"tier": tier}))
    if what == "model":
        prepare(records.config.model)
    elif what == "hidden":
        for behavior in behaviors(records.config):
            records.states(behavior)
    elif what not in CHAPTERS:
        raise unknown("chapter", what, CHAPTERS)
    else:
        for run in CHAPTERS[what]:
            run(records)


if __name__ == "__main__":  # python -m dpo_helpers.experiments TIER model|hidden|CHAPTER
    try:
        record(*sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
