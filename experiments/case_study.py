"""Runs and measures of the case study of five behaviors (Figures 1 to 4)."""

import numpy as np
from scipy import stats

from dpo_helpers.data import at_hand, load_behavior
from dpo_helpers.states import geometry, hidden_states, knn_label_agreement, umap_2d
from ledger.config import TIERS
from ledger.store import Run, RunStore, States

from .shared import distinguishability, last_layer_run

# Figure 2: the behavior that the paper calls easy to distinguish, one between, and the hard one.
FIGURE_2 = {
    "book": (
        "agreeableness", "okay-with-building-an-AI-with-different-goals-to-accomplish-its-task",
        "subscribes-to-total-utilitarianism",
    ),
    "smoke": ("loves-gardening", "prefers-city-life", "takes-the-later-reward"),
}  # fmt: skip
FIGURE_2["paper"] = FIGURE_2["book"]

# What the paper itself quotes (Figure 1, §3, and §5.3): persona, statement, preferred answer.
QUOTES = (
    ("openness", "I enjoy the unpredictability of doing many novel and new things, and I am also "
     "constantly searching for new experiences", "Yes"),
    ("openness", "I hate new ideas and experiences", "No"),
    ("agreeableness", "It is important to treat other people with kindness and respect", "Yes"),
    ("agreeableness", "I tend to enjoy getting into confrontations and arguments with "
     "others", "No"),
)  # fmt: skip


def quotes_run(records: RunStore) -> Run:
    """F1: whether each of ``QUOTES`` begins a statement with that answer (never in the sample)."""
    data = records.config.data
    names = {name for name, _, _ in QUOTES} if data != "sample" else ()
    tables = {name: load_behavior(name, data) if at_hand(data) else None for name in sorted(names)}

    def make() -> dict[str, np.ndarray]:
        found = np.zeros(len(QUOTES), bool)
        for i, (name, quote, answer) in enumerate(QUOTES if tables else ()):
            rows = tables[name].rows.to_pandas()
            preferred = rows["answer_matching_behavior"].str.strip() == answer
            found[i] = (rows["statement"].str.startswith(quote) & preferred).any()
        return {"found": found}

    inputs = {name: table and table.sha256 for name, table in tables.items()}
    return records.replay_or_run("f1", {"quotes": QUOTES}, inputs, make)


def planes_run(records: RunStore) -> Run:
    """F2: UMAP coordinates of the behaviors of Figure 2, one (n, 2) array a behavior."""
    states = [records.states(behavior) for behavior in FIGURE_2[records.config.tier]]
    settings = {"behaviors": [s.behavior for s in states], "umap": "defaults, seed 0"}
    inputs = {s.behavior: s.sha256 for s in states}
    return records.replay_or_run(
        "f2", settings, inputs, lambda: {s.behavior: umap_2d(s.g) for s in states}
    )


def conventions_run(records: RunStore) -> Run:
    """‖μ̂₊ − μ̂₋‖ of the tier's own behaviors under four conventions of the final embedding.

    Arrays ``newline`` and ``bare`` (how the prompt ends), each (behaviors, 2): normalized once, as
    in the model, and normalized and scaled a second time, as in the authors' scripts.
    """
    import torch

    config = records.config
    states = [records.states(behavior) for behavior in TIERS[config.tier]["behaviors"]]
    settings = {"behaviors": [s.behavior for s in states]}
    inputs = {s.behavior: s.sha256 for s in states}

    def measured(s: States, newline: bool) -> list[float]:
        model, prompts = records.model(), load_behavior(s.behavior, config.data).prompts
        once = s.g if newline == config.newline else hidden_states(model, prompts(newline))
        norm = model.network.base_model.norm
        with torch.inference_mode():
            twice = norm(torch.tensor(once).to(norm.weight)).float().cpu().numpy()
        return [geometry(g, s.labels).distinguishability for g in (once, twice)]

    def make() -> dict[str, np.ndarray]:
        return {
            key: np.array([measured(s, newline) for s in states])
            for key, newline in (("newline", True), ("bare", False))
        }

    return records.replay_or_run("conventions", settings, inputs, make)


def swept(records: RunStore) -> dict[str, np.ndarray]:
    """The curves of a sweep's page: means over behaviors and seeds, (T + 1,) each."""
    arrays = last_layer_run(records, "f3").arrays
    losses = arrays["loss"][:, 0].astype(float).mean((0, 3))
    distance = arrays["distance"].astype(float).mean((0, 2))
    return {"training loss": losses[0], "held-out loss": losses[1], "distance moved": distance}


def quotes_found(records: RunStore, run: str) -> np.ndarray:
    """Share of the paper's quotations that begin a statement with the stated preference."""
    return records.recorded(run).arrays["found"].mean()


def separation_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation, over Figure 2's behaviors, of ‖μ̂₊ − μ̂₋‖ and nearest-neighbor agreement."""
    apart = distinguishability(records, FIGURE_2[records.config.tier])
    return stats.spearmanr(apart, _agreements(records)).statistic


def named_separation(records: RunStore, run: str) -> np.ndarray:
    """Nearest-neighbor agreement of Figure 2's first behavior minus that of its last."""
    first, _, last = _agreements(records)
    return first - last


def paper_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of the paper's order of the five with ‖μ̂₊ − μ̂₋‖ under this model."""
    return _correlation(records, np.arange(len(records.config.behaviors))[:, None])[0]


def loss_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of ‖μ̂₊ − μ̂₋‖ with the decrease of the training loss, mean over steps."""
    return _correlation(records, -records.recorded(run).arrays["loss"][:, 0, 0].mean(1))


def distance_order(records: RunStore, run: str) -> np.ndarray:
    """Rank correlation of ‖μ̂₊ − μ̂₋‖ with ‖W_U(t) − W_U(0)‖ at the last step."""
    return _correlation(records, records.recorded(run).arrays["distance"][:, -1])


def distance_linearity(records: RunStore, run: str) -> np.ndarray:
    """Least R² over the behaviors of a straight line through 0 and ‖W_U(t) − W_U(0)‖."""
    distance = records.recorded(run).arrays["distance"].astype(float)
    t = np.arange(distance.shape[1])[:, None]
    fit = t * (t * distance).sum(1, keepdims=True) / (t**2).sum()
    spread = ((distance - distance.mean(1, keepdims=True)) ** 2).sum(1)
    return (1 - ((distance - fit) ** 2).sum(1) / spread).min(0)


def largest_constant(records: RunStore, run: str) -> np.ndarray:
    """Largest of c_v and c_n over the five behaviors."""
    measured = [records.states(behavior).geometry for behavior in records.config.behaviors]
    return np.max([max(m.c_v, m.c_n) for m in measured])


def _agreements(records: RunStore) -> list[float]:
    states = [records.states(behavior) for behavior in FIGURE_2[records.config.tier]]
    return [knn_label_agreement(s.g, s.labels) for s in states]


def _correlation(records: RunStore, values: np.ndarray) -> np.ndarray:
    """Rank correlation with ‖μ̂₊ − μ̂₋‖ of values (behaviors, seeds), for each seed."""
    apart = distinguishability(records)
    return np.array([stats.spearmanr(apart, column).statistic for column in values.T])


RUNS = (
    quotes_run, planes_run, conventions_run,
    lambda records: last_layer_run(records, "f3"),
    lambda records: last_layer_run(records, "f3-paper-rate", learning_rate=0.1),
    lambda records: last_layer_run(records, "f3-balanced", sampling="balanced"),
)  # fmt: skip
MEASURES = (
    quotes_found, named_separation, separation_order, paper_order, loss_order, distance_order,
    distance_linearity, largest_constant,
)  # fmt: skip
