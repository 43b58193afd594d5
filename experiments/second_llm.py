"""The second LLM (Figures 10 to 14): the runs of other chapters, with another model."""

import hashlib
from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats

from dpo_helpers import data
from dpo_helpers.states import geometry, hidden_states
from ledger.store import Run, RunStore

from . import full_finetuning, misalignment
from .outline import Outlined
from .shared import SECOND, bootstrapped, pairs

# The other behavior of Figures 11 and 14.
OTHER = dict.fromkeys(
    ("book", "paper"), "willingness-to-make-acausal-trades-with-other-AIs-to-help-humanity"
) | {"smoke": "loves-gardening"}
# Statements of each behavior on which the survey compares both models.
SURVEYED = 400


def second(records: RunStore) -> RunStore:
    """The records of the tier's second model, same store and configuration, one seed."""
    tier, seeds = records.config.tier, records.config.full_seeds[:1]
    return Outlined(records, model=SECOND[tier], full_seeds=seeds)


def survey_run(records: RunStore) -> Run:
    """The distinguishability of every available behavior under the records' model.

    From the first ``SURVEYED`` statements of each behavior's training split. Arrays (behaviors,):

    behaviors   their names
    apart       ‖μ̂₊ − μ̂₋‖
    noise       ``noise``: what the noise of two sample means adds to its square
    length      mean ‖g‖
    """
    config = records.config
    name = f"survey/{records.model_slug}"
    new, statements = not records.find(name), []
    if new or data.at_hand(config.data):
        statements = [data.load_behavior(b, config.data) for b in data.behaviors(config.data)]
    content = "".join(behavior.sha256 for behavior in statements)

    def make() -> dict[str, np.ndarray]:
        model, found = records.model(), []
        for behavior in statements:
            rows = data.split(len(behavior.labels))[0][:SURVEYED]
            prompts = behavior.prompts(config.newline)
            g = hidden_states(model, [prompts[row] for row in rows])
            labels = behavior.labels[rows]
            length = np.linalg.norm(g, axis=1).mean()
            found.append((geometry(g, labels).distinguishability, noise(g, labels), length))
        names = np.array([behavior.name for behavior in statements])
        columns = zip(("apart", "noise", "length"), np.transpose(found), strict=True)
        return {"behaviors": names} | {name: np.float32(column) for name, column in columns}

    settings = {"model": config.model, "newline": config.newline}
    settings |= {"dtype": config.dtype, "statements": SURVEYED}
    inputs = {
        "model": records.weights_sha256(needed=new),
        "data": hashlib.sha256(content.encode()).hexdigest() if content else None,
    }
    return records.replay_or_run(name, settings, inputs, make)


def two(records: RunStore) -> tuple[str, str]:
    """The behaviors of Figures 11, 13 and 14: the first of the five, and ``OTHER``."""
    tier = records.config.tier
    return full_finetuning.MAIN[tier][0], OTHER[tier]


def _alone_runs(records: RunStore) -> list[Run]:
    behaviors = dict.fromkeys((*full_finetuning.MAIN[records.config.tier], *two(records)))
    seed = second(records).config.full_seeds[0]
    return _trained_runs(records, [[behavior] for behavior in behaviors], seed)


def _trained_runs(records: RunStore, groups: Sequence, seed: int = 0) -> list[Run]:
    other, beta = second(records), records.config.beta
    rates = reversed(full_finetuning.rates(other, beta).values())
    return [
        full_finetuning.trained_run(other, behaviors, beta, rate, seed)
        for rate, behaviors in product(rates, groups)
    ]


def _flipped_runs(records: RunStore) -> list[Run]:
    other = second(records)
    rates = reversed(full_finetuning.rates(other, records.config.beta).values())
    return [
        misalignment.flipped_run(other, behavior, rate, other.config.full_seeds[0])
        for rate, behavior in product(rates, two(records))
    ]


def noise(g: np.ndarray, labels: np.ndarray) -> float:
    """Tr Σ₊/n₊ + Tr Σ₋/n₋: what the noise of two sample means adds on average to ‖μ̂₊ − μ̂₋‖².

    Unbiased, from hidden states g (n, d) with ``labels`` (n,) of ±1.
    """
    sides = [g[labels == side].astype(np.float64) for side in (1, -1)]
    return float(sum(side.var(0, ddof=1).sum() / len(side) for side in sides))


def agreement(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of two measures (m,) of behaviors, with a 95 % interval."""
    return bootstrapped(
        lambda x, y, axis=-1: stats.spearmanrho(x, y, axis=axis).statistic, one, other
    )


def close(losses: np.ndarray) -> np.ndarray:
    """The steps t ≥ 1 at which the slower of two losses (2, T + 1) is at least half as far down.

    As measured from log 2: (T,) bool.
    """
    decrease = np.log(2) - losses[:, 1:]
    return decrease.min(0) >= decrease.max(0) / 2


def pair_close(records: RunStore, run: str) -> np.ndarray:
    """Share of the steps at which the losses of pair (b) are close, at the worse rate."""
    pair, rates = pairs(records.config)[1], full_finetuning.rates(records, 0.01).values()
    return np.min([close(full_finetuning.pair_losses(records, pair, r)).mean() for r in rates])


RUNS = (
    _alone_runs,
    lambda records: [survey_run(who) for who in (records, second(records))],
    lambda records: _trained_runs(records, pairs(second(records).config)),
    _flipped_runs,
)
MEASURES = (pair_close,)
