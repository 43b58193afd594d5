"""The audit beside real training: mixtures of behaviors, and dialogues grouped by length."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from .. import audit, data, finetune, models, responses
from ..runs import Records, Run
from . import atlas, full_finetuning, hh_rlhf

# Mixtures, behaviors of each, statements of each behavior that are trained on.
MIXTURES = {"smoke": (1, 3, 60), "book": (4, 4, 225), "paper": (4, 4, 225)}
# Dialogues by how many tokens longer the chosen response is: the thirds.
THIRDS = ("chosen shorter", "about as long", "chosen longer")

_AUDIT = (
    "responses.texts",
    "audit.Audit",
    "audit.audit",
    "audit._strata",
    "audit._products",
    "audit.table",
)
_KEPT = ("pairs", "base gap", "strength", "coherence", "first update", "speed", "speed alone")


def mixtures(records: Records) -> list[tuple[str, ...]]:
    """The behaviors of each mixture, drawn from all at hand with seed 1, each at most once."""
    count, size, _ = MIXTURES[records.config.tier]
    names = atlas.behaviors_run(records).arrays["behaviors"]
    drawn = np.random.default_rng(1).permutation(names)[: count * size]
    return [tuple(row) for row in drawn.reshape(count, size).tolist()]


def mixture_run(records: Records, behaviors: tuple[str, ...]) -> Run:
    """Audit a mixture of behaviors, then train all parameters on it for one epoch.

    At the scaled rate of ``full_finetuning``, β = 0.01, seed 0. Arrays, of k behaviors:

    table       (k, 7) columns ``_KEPT`` of ``audit.table``
    means       (k, k) ⟨M_a, M_b⟩
    gap, loss   (k, T + 1) of the held-out statements, means
    """
    config = records.config
    _, _, count = MIXTURES[config.tier]
    rate = [*full_finetuning.rates(records, 0.01).values()][-1]
    name = f"audit/{config.model.strip('/').replace('/', '--')}/{'+'.join(behaviors)}"
    new = not records.find(name)
    statements = []
    if new or data.at_hand(config.data):
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
    settings = finetune.Settings(
        beta=0.01, learning_rate=rate, batch_size=config.full_batch_size, save_every=0
    )
    facts = {"model": config.model, "behaviors": list(behaviors), "statements": count}
    facts |= {"beta": 0.01, "rate": rate, "newline": config.newline, "dtype": config.dtype}
    facts |= {"batch_size": settings.batch_size}

    def make() -> dict[str, np.ndarray]:
        model = models.load(config.model, config.device, config.dtype)
        pairs = responses.statements(model, statements, config.newline)
        learned, held_out = pairs.split()
        first = [np.flatnonzero(learned.group == a)[:count] for a in range(len(behaviors))]
        learned = learned.take(np.concatenate(first))
        found = audit.audit(model, learned, behaviors)
        content = json.dumps([facts, learned.sha256])
        out = models.cache_dir() / "training" / hashlib.sha256(content.encode()).hexdigest()[:16]
        curves = finetune.train(model, learned, settings, out, held_out)
        shutil.rmtree(out)
        arrays = {"table": audit.table(found)[list(_KEPT)].to_numpy(), "means": found.means}
        arrays |= {"gap": curves.gap[:, 1], "loss": curves.loss[:, 1]}
        return {what: np.asarray(value, np.float32) for what, value in arrays.items()}

    inputs: dict[str, str | None] = dict.fromkeys(behaviors)
    inputs |= {s.name: s.sha256 for s in statements} | {"model": records.weights(needed=new)}
    code = (*full_finetuning.ENGINE, *_AUDIT, "experiments.audit_your_data.mixture_run")
    return records.get(name, facts, inputs, code, make)


def thirds(pairs: responses.Pairs, cuts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's third by how many tokens longer its chosen response is, and the two cuts."""
    longer = np.array([len(c) - len(r) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)])
    cuts = np.quantile(longer, (1 / 3, 2 / 3)) if cuts is None else cuts
    return np.digitize(longer, cuts, right=True), cuts


def dialogues_run(records: Records) -> Run:
    """Audit the dialogues that ``hh_rlhf`` aligns on, in thirds by difference of length.

    Arrays: ``table`` (3, 7) and ``means`` (3, 3) as of ``mixture_run``; ``cuts`` (2,) tokens;
    ``third`` (n,) of each held-out pair, by the same cuts.
    """
    config = records.config
    length = hh_rlhf.LENGTH[config.tier]

    def make() -> dict[str, np.ndarray]:
        model = models.load(config.model, config.device)
        learned, held_out = hh_rlhf.kept(model, hh_rlhf._rows(config), length)
        group, cuts = thirds(learned)
        found = audit.audit(model, replace(learned, group=group), THIRDS)
        third, _ = thirds(held_out, cuts)
        table = audit.table(found)[list(_KEPT)].to_numpy()
        return {"table": table, "means": found.means, "cuts": cuts, "third": third}

    facts = {"model": config.model, "split": hh_rlhf.SPLIT[config.tier], "length": length}
    code = ("tree", "hidden", *_AUDIT, "experiments.hh_rlhf.kept", "experiments.hh_rlhf.lengths")
    code += ("experiments.audit_your_data.dialogues_run", "experiments.audit_your_data.thirds")
    return hh_rlhf._recorded(records, "audit", facts, code, make)


def _told(run: Run) -> pd.DataFrame:
    return pd.DataFrame(run.arrays["table"], columns=list(_KEPT))


def mixtures_table(records: Records) -> pd.DataFrame:
    """What was foretold of each behavior of each mixture, and how far its held-out gap grew."""
    parts = []
    for number, behaviors in enumerate(mixtures(records), 1):
        run = mixture_run(records, behaviors)
        gap = run.arrays["gap"]
        part = _told(run)[["strength", "first update", "speed", "speed alone"]]
        part.index = pd.MultiIndex.from_product(
            [[number], behaviors], names=["mixture", "behavior"]
        )
        part["growth, a third of the epoch"] = gap[:, gap.shape[1] // 3] - gap[:, 0]
        part["growth, the epoch"] = gap[:, -1] - gap[:, 0]
        parts.append(part)
    return pd.concat(parts)


def agreement_table(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each predictor with growth: within mixtures, their mean; and over all."""
    rows = {}
    for predictor in ("speed", "speed alone", "strength", "first update"):
        rows[predictor] = {}
        for growth in (column for column in table if column.startswith("growth")):
            inside = [
                stats.spearmanr(part[predictor], part[growth]).statistic
                for _, part in table.groupby(level="mixture")
            ]
            rows[predictor][f"{growth}: within"] = np.mean(inside)
            rows[predictor][f"{growth}: all"] = stats.spearmanr(
                table[predictor], table[growth]
            ).statistic
    return pd.DataFrame(rows).T


def dialogues_table(records: Records) -> pd.DataFrame:
    """What was foretold of each third, and how far its held-out gap grew at the scaled rate."""
    run = dialogues_run(records)
    rate = [*hh_rlhf.rates(records).values()][-1]
    each = hh_rlhf.aligned_run(records, rate, records.config.full_seeds[0]).arrays["each"]
    grown = np.diff(each[1] - each[0], axis=-1)[:, 0] * -1
    table = _told(run)[["pairs", "strength", "coherence", "first update", "speed"]]
    table.index = list(THIRDS)
    third = run.arrays["third"]
    table["held-out pairs"] = np.bincount(third, minlength=3)
    table["growth"] = [grown[third == t].mean() for t in range(3)]
    table["± error"] = [stats.sem(grown[third == t]) for t in range(3)]
    return table


RUNS = (
    lambda records: [mixture_run(records, behaviors) for behaviors in mixtures(records)],
    dialogues_run,
)
MEASURES = ()
