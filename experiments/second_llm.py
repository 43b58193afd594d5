"""The second LLM (Figures 10 to 14): what other chapters run, with another model."""

import hashlib
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from dpo_helpers import data, lm, mixtures
from dpo_helpers.finetune import memory
from dpo_helpers.states import geometry, hidden_states
from ledger.store import Run, RunStore

from . import distributional_changes, full_finetuning, misalignment
from .outline import Outlined
from .shared import SECOND, bootstrapped, distinguishability, pairs

# The other behavior of Figures 11 and 14.
OTHER = {
    "smoke": "loves-gardening",
    "book": "willingness-to-make-acausal-trades-with-other-AIs-to-help-humanity",
}
OTHER["paper"] = OTHER["book"]
# How many statements of each behavior both models are compared on.
SURVEYED = 400
# A batch of the Persona: 32 prompts that share 11 tokens and have 21 of their own.
_BATCH = [(0,) * 11 + (i,) * 21 for i in range(1, 33)]


def second(records: RunStore) -> RunStore:
    """The records of the tier's second model, in the same store and otherwise configured alike.

    But for the seeds of full fine-tuning, of which the first is taken.
    """
    tier, seeds = records.config.tier, records.config.full_seeds[:1]
    return Outlined(records, model=SECOND[tier], full_seeds=seeds)


# Runs, of the second model but for the survey


def survey_run(records: RunStore) -> Run:
    """How far apart the statements of every behavior at hand are, under the records' model.

    Of the first ``SURVEYED`` statements of each behavior's training split. Arrays (behaviors,):

    behaviors   their names
    apart       ‖μ̂₊ − μ̂₋‖
    noise       what the noise of two sample means adds to its square: Σ± Tr Σ̂±/(n± − 1)
    length      mean ‖g‖
    """
    config = records.config
    name = f"survey/{records.model_slug}"
    new = not records.find(name)
    statements = []
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

    settings = {"model": config.model, "newline": config.newline, "dtype": config.dtype}
    settings |= {"statements": SURVEYED}
    inputs = {
        "model": records.weights(needed=new),
        "data": hashlib.sha256(content.encode()).hexdigest() if content else None,
    }
    return records.replay_or_run(name, settings, inputs, make)


def alone(records: RunStore) -> tuple[str, ...]:
    """The behaviors that the second model is trained on alone (Figures 10, 13 and 14)."""
    tier = records.config.tier
    return tuple(dict.fromkeys((*full_finetuning.MAIN[tier], OTHER[tier])))


def two(records: RunStore) -> tuple[str, str]:
    """The behaviors of Figures 11, 13 and 14: the first of the five, and another."""
    tier = records.config.tier
    return full_finetuning.MAIN[tier][0], OTHER[tier]


def _rates(records: RunStore) -> dict[str, float]:
    return full_finetuning.rates(records, records.config.beta)


def _alone_runs(records: RunStore) -> list[Run]:
    other, beta = second(records), records.config.beta
    return [
        full_finetuning.trained_run(other, [behavior], beta, rate, other.config.full_seeds[0])
        for rate, behavior in product(reversed(_rates(other).values()), alone(records))
    ]


def _pair_runs(records: RunStore) -> list[Run]:
    other, beta = second(records), records.config.beta
    return [
        full_finetuning.trained_run(other, pair, beta, rate, 0)
        for rate, pair in product(reversed(_rates(other).values()), pairs(other.config))
    ]


def _flipped_runs(records: RunStore) -> list[Run]:
    other = second(records)
    return [
        misalignment.flipped_run(other, behavior, rate, other.config.full_seeds[0])
        for rate, behavior in product(reversed(_rates(other).values()), two(records))
    ]


# Measures, and what the tables and figures of the chapter show


def noise(g: np.ndarray, labels: np.ndarray) -> float:
    """What the noise of two sample means adds on average to ‖μ̂₊ − μ̂₋‖²: Tr Σ₊/n₊ + Tr Σ₋/n₋.

    Without bias, from hidden states g (n, d) with ``labels`` (n,) of ±1.
    """
    sides = [g[labels == side].astype(np.float64) for side in (1, -1)]
    return float(sum(side.var(0, ddof=1).sum() / len(side) for side in sides))


def agreement(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation of two measures of the same behaviors (m,), and a 95 % interval."""
    return bootstrapped(
        lambda x, y, axis=-1: stats.spearmanrho(x, y, axis=axis).statistic, one, other
    )


def surveyed(records: RunStore) -> pd.DataFrame:
    """``survey_run`` of both models, a row a behavior, a column a (measure, model).

    Measures: ``apart`` and ``length`` as there; ``clean``, ‖μ̂₊ − μ̂₋‖ less its noise, 0 where
    there is nothing else; ``relative``, apart over length.
    """
    columns = {}
    for who in (records, second(records)):
        arrays = survey_run(who).arrays
        apart, length = (arrays[name].astype(np.float64) for name in ("apart", "length"))
        found = {"apart": apart, "length": length, "relative": apart / length}
        found["clean"] = np.sqrt(np.maximum(0, apart**2 - arrays["noise"]))
        for what, values in found.items():
            columns[what, who.config.model] = pd.Series(values, arrays["behaviors"])
    return pd.DataFrame(columns)


def sizes_table(records: RunStore) -> pd.DataFrame:
    """How long, how wide, how far apart the hidden states of the five are: a column a model.

    Medians over the behaviors of Figure 10.
    """
    columns = {}
    for who in (records, second(records)):
        found = [who.states(b).geometry for b in full_finetuning.MAIN[who.config.tier]]
        rows = {
            "d": [m.d for m in found],
            "‖μ̂‖, the longer": [m.mean_norm for m in found],
            "‖b̂‖": [m.distinguishability for m in found],
            "‖b̂‖/‖μ̂‖": [m.distinguishability / m.mean_norm for m in found],
            "Δ": [m.delta for m in found],
            "‖Σ̂‖": [m.cov_norm for m in found],
            "q₂ = ‖Σ̂‖/‖b̂‖²": [m.cov_norm / m.distinguishability**2 for m in found],
            "c_v": [m.c_v for m in found],
            "c_n": [m.c_n for m in found],
        }
        columns[who.config.model] = {name: float(np.median(row)) for name, row in rows.items()}
    return pd.DataFrame(columns)


def steps_table(records: RunStore) -> pd.DataFrame:
    """What an epoch does to the five behaviors of Figure 10: a row a model and learning rate.

    Medians over behaviors, held-out pairs, the first seed: the growth of the mean gap in nats,
    the same for each 1e-6 of η, loss and accuracy at the end.
    """
    rows = {}
    for who in (records, second(records)):
        config = who.config
        behaviors, seeds = full_finetuning.MAIN[config.tier], config.full_seeds[:1]
        for rate in _rates(who).values():
            gap, loss, right = (
                full_finetuning.stacked(who, behaviors, config.beta, rate, what, seeds)[:, 0, 0, 1]
                for what in ("gap", "loss", "accuracy")
            )
            growth = np.median(gap[:, -1] - gap[:, 0])
            rows[config.model, f"{rate:g}"] = {
                "growth of the gap": growth,
                "for each 1e-6 of η": growth / (rate / 1e-6),
                "held-out loss": np.median(loss[:, -1]),
                "accuracy before": np.median(right[:, 0]),
                "accuracy after": np.median(right[:, -1]),
            }
    return pd.DataFrame(rows).T.rename_axis(["model", "η"])


def speeds_table(records: RunStore) -> pd.DataFrame:
    """The behaviors of Figure 10: mean held-out loss over an epoch, a column a model and rate."""
    behaviors = full_finetuning.MAIN[records.config.tier]
    columns = {}
    for who in (records, second(records)):
        columns[who.config.model, "‖b̂‖"] = distinguishability(who, behaviors)
        for rate in _rates(who).values():
            seeds = who.config.full_seeds[:1]
            loss = full_finetuning.stacked(who, behaviors, who.config.beta, rate, "loss", seeds)
            columns[who.config.model, f"η = {rate:g}"] = loss[:, 0, 0, 1].mean(-1)
    return pd.DataFrame(columns, index=list(behaviors))


def priority_table(records: RunStore) -> pd.DataFrame:
    """The pairs of Figure 12 under the second model: lengths, angle, priority levels (5), gap."""
    other, rows = second(records), {}
    for letter, pair in zip("ab", pairs(other.config), strict=True):
        b = np.stack([other.states(behavior).b for behavior in pair])
        level, length = mixtures.priority_levels(b), np.linalg.norm(b, axis=1)
        rows[f"({letter})"] = {
            "‖b₁‖": length[0],
            "‖b₂‖": length[1],
            "angle (°)": np.degrees(np.arccos(b[0] @ b[1] / length.prod())),
            "P₁": level[0],
            "P₂": level[1],
            "|P₁ − P₂|": abs(level[0] - level[1]),
        }
    return pd.DataFrame(rows).T.rename_axis("pair")


def lead_table(records: RunStore) -> pd.DataFrame:
    """Training on flipped labels: mean losses over the epoch, from the base and the aligned model.

    ``lead`` is the one less the other; "held-out" the same of the held-out flipped pairs.
    """
    other, rows = second(records), {}
    for (name, rate), behavior in product(_rates(other).items(), two(records)):
        losses = misalignment.flipped(other, [behavior], name, "loss")[0, 0]
        base, aligned = np.nanmean(losses[:2, 0], -1)
        rows[behavior, f"{rate:g}"] = {
            "from base": base,
            "from aligned": aligned,
            "lead": misalignment.lead(losses[:, 0]),
            "lead, held-out": misalignment.lead(losses[:, 1]),
        }
    return pd.DataFrame(rows).T.rename_axis(["behavior", "η"])


def changes_table(records: RunStore) -> pd.DataFrame:
    """Figures 13 and 14 in numbers: before → after, a row a behavior and learning rate.

    ``v before`` is the variance along b̂ over ‖b̂‖²: where q₂ after lies below, v has fallen.
    """
    other, rows = second(records), {}
    for (behavior, rate), arrays in distributional_changes.trained(
        other, two(records), other.config.beta
    ).items():
        found = distributional_changes.spread(arrays)
        row = {
            name: "{:.3g} → {:.3g}".format(*found[what][:, part])
            for name, what, part in (
                ("‖b̂‖", "apart", 0),
                ("‖b̂‖, held-out", "apart", 1),
                ("‖Σ̂‖", "covariance", 0),
                ("q₁", "q1", 0),
                ("q₂", "q2", 0),
            )
        }
        row["v before"] = f"{other.states(behavior).along[0]:.3g}"
        row["linear classifier"] = "{:.0%} → {:.0%}".format(*arrays["separable"])
        rows[behavior, f"{rate:g}"] = row
    return pd.DataFrame(rows).T.rename_axis(["behavior", "η"])


def close(losses: np.ndarray) -> np.ndarray:
    """At which steps t ≥ 1 the slower of two losses (2, T + 1) has fallen at least half as far.

    Fallen from log 2: (T,) bool.
    """
    fallen = np.log(2) - losses[:, 1:]
    return fallen.min(0) >= fallen.max(0) / 2


def pair_close(records: RunStore, run: str) -> np.ndarray:
    """Share of steps at which the slower of pair (b) has fallen half as far, worse rate."""
    _, pair = pairs(records.config)
    found = [
        close(full_finetuning.pair_losses(records, pair, rate)).mean()
        for rate in full_finetuning.rates(records, 0.01).values()
    ]
    return np.min(found)


def needs_table() -> pd.DataFrame:
    """What the paper tier's runs of this chapter need, computed without a GPU.

    For each kind of run: how many, GB of memory on one GPU, floating-point operations of all
    (in 1e15), 6 a weight inside the layers and token trained on, 2 where one is only read.
    """
    from transformers import MistralConfig  # by default that of Mistral-7B-v0.1

    config = MistralConfig()
    zeros = np.zeros(len(_BATCH), int)
    batch = lm.Pairs(tuple(_BATCH), ((1,),) * len(zeros), ((2,),) * len(zeros), zeros)
    need = memory.estimate(config, batch, "autocast")
    matrices = need.copies // 2  # weights inside the layers: what autocast copies to bf16
    step, own, shared = len(batch.trie().tokens), 21, 11

    def epoch(behaviors: int, measured: bool = True) -> float:
        """Operations of an epoch over 900 statements a behavior, 100 held out."""
        steps = -(-900 * behaviors // 32)
        held_out = measured * (steps + 1) * (shared + own * 100 * behaviors)
        return matrices * (6 * steps * step + 2 * held_out)

    kinds = {
        "one behavior (F10, F13, F14, the rule)": (7, epoch(1), need.total),
        "a pair (F12)": (2, epoch(2), need.total),
        "flipped labels (F11)": (2, epoch(1, False) + 3 * epoch(1), need.total + 2 * need.weights),
    }
    rows = {
        name: {"runs": count, "GB": total / 1e9, "10¹⁵ operations": count * each / 1e15}
        for name, (count, each, total) in kinds.items()
    }
    return pd.DataFrame(rows).T


RUNS = (
    _alone_runs,
    lambda records: [survey_run(who) for who in (records, second(records))],
    _pair_runs,
    _flipped_runs,
)
MEASURES = (pair_close,)
