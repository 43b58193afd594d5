"""Runs and measures of misalignment with LoRA on dialogues of HH-RLHF (Figures 15 and 16)."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from dpo_helpers import data, finetune, lm
from dpo_helpers.errors import InputError
from dpo_helpers.finetune import Curves, Settings, compute_precision
from dpo_helpers.lm import Model, Pairs, lora
from ledger.config import Config
from ledger.store import Run, RunStore

from . import misalignment
from .training import train_in_cache

# Where the pairs come from, and the tokens that a prompt with either response may have.
SUBSET = "harmless-base"
SPLIT = {"smoke": "test", "book": "test", "paper": "train"}
LENGTH = {"smoke": 104, "book": 128, "paper": 512}
# Steps between two measurements of the held-out pairs.
EVERY = {"smoke": 2, "book": 3, "paper": 100}
# The paper's learning rate, and its multiples that the rule tries. The paper's model needs none.
RATE = 1e-5
FACTORS = {"smoke": (1.0, 10.0), "book": (1.0, 10.0, 30.0, 100.0), "paper": (1.0,)}
# Start and reference of the runs on flipped labels. "merged" is the aligned model, its adapter
# merged into the weights and another one, new as that of the base model, put in its place.
ARMS = (*misalignment.ARMS, ("merged", "merged"))
NAMES = dict(zip(ARMS, (*misalignment.LABELS, "aligned, new adapter"), strict=True))
HUES = misalignment.HUES | {"aligned, new adapter": "#1f9e89"}
# The step by which, the paper says, alignment is mostly undone.
STEPS = 100
TOKENS = 2048


def lengths(model: Model, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Tokens of each pair's prompt with its chosen and with its rejected response, (n, 2)."""
    ends = [
        row[name] + model.tokenizer.eos_token for name in ("chosen", "rejected") for row in rows
    ]
    whole = [row["prompt"] + end for row, end in zip([*rows] * 2, ends, strict=True)]
    return np.array([len(ids) for ids in model.tokenizer(whole).input_ids]).reshape(2, -1).T


def kept(model: Model, rows: Sequence[Mapping[str, str]], length: int) -> tuple[Pairs, Pairs]:
    """The pairs trained on and held out: of two responses, of at most ``length`` tokens each.

    Raises InputError if they are fewer than ten.
    """
    rows = [row for row in rows if row["chosen"] != row["rejected"]]
    short = np.flatnonzero(lengths(model, rows).max(1, initial=0) <= length) if rows else ()
    if len(short) < 10:
        raise InputError(
            f"HH-RLHF: of {len(rows)} pairs of two responses {len(short)} have at most {length} "
            "tokens, ten are needed; take more pairs"
        )
    return lm.pairs_from_text(model, [rows[i] for i in short]).split()


def each(model: Model, pairs: Pairs, settings: Settings) -> np.ndarray:
    """log π(y_w|x) and log π(y_l|x) of each pair under the model as it is, (n, 2) float32."""
    found = np.empty((len(pairs), 2), np.float32)
    with torch.no_grad(), compute_precision(model.network, settings.precision):
        for lot in pairs.microbatches(settings.max_tree_tokens):
            values = lm.log_probabilities(model.network, pairs.take(lot))
            found[lot] = values.cpu().numpy()
    return found


def at_hand(config: Config) -> bool:
    """Whether the pairs can be read here without the network."""
    try:
        return data.at_hand(config.data, "hh-rlhf")
    except InputError:
        return False


def pairs_run(records: RunStore) -> Run:
    """What the pairs are: ``tokens`` (n, 2) as ``lengths`` has them, ``equal`` (n,) responses."""

    def make() -> dict[str, np.ndarray]:
        rows = dialogues(records.config)
        return {
            "tokens": lengths(records.model(), rows).astype(np.int32),
            "equal": np.array([row["chosen"] == row["rejected"] for row in rows]),
        }

    facts = {"model": records.config.model, "split": SPLIT[records.config.tier]}
    return dialogue_run(records, "pairs", facts, make)


def aligned_run(records: RunStore, rate: float, seed: int) -> Run:
    """Align the base model: train an adapter on the given labels for one epoch.

    Arrays, T steps:

    loss, margin, gap, accuracy   (2, T + 1) as in ``finetune.Curves``, of the one group; of the
                                  held-out pairs at both ends only
    each                          (2, n, 2) log π(y_w|x) and log π(y_l|x) of each held-out pair,
                                  before and after
    """

    def make() -> dict[str, np.ndarray]:
        model, learned, held_out, settings = _prepared(records, rate, seed)
        before = each(model, held_out, settings)
        curves = _align(model, learned, held_out, settings)
        after = each(model, held_out, settings)
        return _arrays(curves) | {"each": np.stack([before, after])}

    name = f"given/{_numbers(records, rate, seed)}"
    return dialogue_run(records, name, _facts(records, rate, seed), make)


def flipped_run(records: RunStore, start: str, reference: str, rate: float, seed: int) -> Run:
    """Train an adapter on flipped labels for one epoch, with one of ``ARMS``.

    From the aligned model its own adapter is trained on; the optimizer is fresh. Arrays, T steps:

    loss, margin, gap, accuracy   (2, T + 1) of the flipped pairs, as in ``finetune.Curves``
    preferred, other              (T + 1,) mean log π of the held-out pairs' responses: of those
                                  preferred, and not, by the labels as given
    each                          (2, n, 2) the same of each held-out pair, before and after
    """

    def make() -> dict[str, np.ndarray]:
        model, learned, held_out, settings = _prepared(records, rate, seed)

        def gaps() -> list[np.ndarray]:
            return [finetune.reference_log_ratios(model, p, settings) for p in (learned, held_out)]

        before = gaps() if reference == "base" else None
        if start != "base":
            _align(model, learned, held_out, settings)
        if start == "merged":
            lora.add(lora.merge(model), seed)
        before = before or gaps()

        def watch() -> dict[str, float]:
            preferred, other = each(model, held_out, settings).mean(0)
            return {"preferred": preferred, "other": other}

        first = each(model, held_out, settings)
        curves = train_in_cache(
            model,
            learned.flipped(),
            settings,
            held_out=held_out.flipped(),
            reference=tuple(-gap for gap in before),
            callback=watch,
        )
        last = each(model, held_out, settings)
        return _arrays(curves) | curves.logged | {"each": np.stack([first, last])}

    name = f"{start}-{reference}/{_numbers(records, rate, seed)}"
    facts = _facts(records, rate, seed) | {"start": start, "reference": reference}
    return dialogue_run(records, name, facts, make)


def _prepared(records: RunStore, rate: float, seed: int) -> tuple[Model, Pairs, Pairs, Settings]:
    """The base model with a new adapter, the pairs trained on and held out, and the settings.

    A batch is at most a quarter of the pairs.
    """
    config = records.config
    model = lora.add(lm.load(config.model, config.device), seed)
    learned, held_out = kept(model, dialogues(config), LENGTH[config.tier])
    settings = Settings(
        beta=config.beta,
        learning_rate=rate,
        batch_size=min(config.full_batch_size, len(learned) // 4),
        seed=seed,
        max_tree_tokens=TOKENS,
        evaluate_every=EVERY[config.tier],
    )
    return model, learned, held_out, settings


def _align(model: Model, learned: Pairs, held_out: Pairs, settings: Settings) -> Curves:
    """Train the model on the given labels; what came of it stays in the cache for the next arm."""
    settings = Settings(**vars(settings) | {"evaluate_every": len(learned)})
    return train_in_cache(model, learned, settings, keep=True, held_out=held_out)


def _arrays(curves: Curves) -> dict[str, np.ndarray]:
    names = ("loss", "margin", "gap", "accuracy")
    return {name: getattr(curves, name)[0] for name in names}


def dialogues(config: Config) -> list[dict[str, str]]:
    return list(data.load_pairs(config.data, SUBSET, SPLIT[config.tier]))


def _facts(records: RunStore, rate: float, seed: int) -> dict[str, object]:
    config = records.config
    return {
        "model": config.model,
        "split": SPLIT[config.tier],
        "length": LENGTH[config.tier],
        "beta": config.beta,
        "rate": rate,
        "seed": seed,
        "batch_size": config.full_batch_size,
        "tokens": TOKENS,
        "every": EVERY[config.tier],
    }


def _numbers(records: RunStore, rate: float, seed: int) -> str:
    return f"beta-{records.config.beta:g}-rate-{rate:g}-seed-{seed}"


def dialogue_run(
    records: RunStore,
    name: str,
    facts: Mapping[str, object],
    make: Callable[[], Mapping[str, np.ndarray]],
) -> Run:
    """As ``RunStore.replay_or_run``; pairs and weights are asked for only if they are here, or needed."""
    config = records.config
    name = f"hh/{records.model_slug}/{name}"
    inputs: dict[str, str | None] = {"HH-RLHF": None, "model": None}

    def plain() -> dict[str, np.ndarray]:
        return {
            key: np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else x
            for key, x in make().items()
        }

    needed = not records.holds(name, facts, inputs, plain)

    def pairs() -> str | None:
        if not needed and not at_hand(config):
            return None
        return hashlib.sha256(json.dumps(dialogues(config)).encode()).hexdigest()

    for what, find in (("HH-RLHF", pairs), ("model", lambda: lm.weights_sha256(config.model))):
        try:
            inputs[what] = find()
        except InputError:
            if needed and not records.find(name):
                raise

    return records.replay_or_run(name, facts, inputs, plain)


def calibration_runs(records: RunStore) -> list[Run]:
    """The base model aligned at each multiple of the paper's learning rate that the rule tries."""
    seed = records.config.full_seeds[0]
    return [aligned_run(records, f * RATE, seed) for f in FACTORS[records.config.tier]]


def rates(records: RunStore) -> dict[str, float]:
    """The learning rates by name: the paper's, and that scaled by the rule; or the reader's own.

    The rule: of the multiples of the paper's rate the one at which the aligning run, on the given
    labels, ends with the lowest held-out loss. No run on flipped labels is looked at.
    """
    given = records.config.full_learning_rate
    if given != "rule":
        return {"given": given}
    last = [run.arrays["loss"][1, -1] for run in calibration_runs(records)]
    factor = FACTORS[records.config.tier][int(np.argmin(last))]
    return {"paper": RATE, "scaled": float(f"{factor * RATE:.6g}")}


def _values(records: RunStore) -> list[float]:
    """The learning rates, each once: the rule may find the paper's."""
    return list(dict.fromkeys(rates(records).values()))


def arms(records: RunStore, rate: float) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """The arrays of ``flipped_run`` by start and reference."""
    seed = records.config.full_seeds[0]
    return {arm: flipped_run(records, *arm, rate, seed).arrays for arm in ARMS}


def gap(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean of log π(preferred) − log π(other) over the held-out pairs, by the labels as given.

    (T + 1,), NaN where not measured.
    """
    return -arrays["gap"][1]


def undone(base: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """The share of what aligning had added to the gap that is gone after each step, (T + 1,).

    0 as the run begins, 1 where ``aligned`` (T + 1,), which is ``gap`` from the aligned model, has
    come down to ``base``: that of the base model as it was, (1,), or of its own run, (T + 1,). NaN
    throughout if aligning had added nothing.
    """
    above = aligned - base
    return 1 - above / (above[0] if above[0] > 0 else np.nan)


def hh_lead(records: RunStore, run: str) -> np.ndarray:
    """Training loss from the base less that from the aligned model, mean over steps, worse rate."""
    found = []
    for rate in _values(records):
        losses = np.stack([arrays["loss"][0] for arrays in arms(records, rate).values()])
        found.append(misalignment.lead(losses))
    return np.min(found)


def hh_undone(records: RunStore, run: str) -> np.ndarray:
    """Largest share of the gap added by aligning that is gone by step 100, worse rate.

    A rate at which aligning added nothing has nothing to undo, and is left out.
    """
    found = []
    for rate in _values(records):
        base, aligned, *_ = (gap(arrays) for arrays in arms(records, rate).values())
        share = undone(base[:1], aligned)[: STEPS + 1]
        if np.isfinite(share).any():
            found.append(np.nanmax(share))
    return np.min(found) if found else np.nan


def pairs_table(records: RunStore) -> pd.DataFrame:
    """How many pairs there are, and how many are left at each cut, with their tokens.

    The tokens are medians over the pairs, of a prompt with the longer of its responses.
    """
    config, found = records.config, pairs_run(records).arrays
    longest, differ = found["tokens"].max(1), ~found["equal"]
    short = differ & (longest <= LENGTH[config.tier])
    train, test = (len(part) for part in data.split(short.sum()))
    rows = {
        "in the file": (len(longest), np.median(longest)),
        "with two different responses": (differ.sum(), np.median(longest[differ])),
        f"of at most {LENGTH[config.tier]} tokens": (short.sum(), np.median(longest[short])),
    }
    table = pd.DataFrame(rows, index=["pairs", "tokens (median)"]).T.astype(int)
    table["share"] = [f"{n / len(longest):.0%}" for n in table["pairs"]]
    table.loc["trained on"] = [train, "", f"{train / len(longest):.0%}"]
    table.loc["held out"] = [test, "", f"{test / len(longest):.0%}"]
    return table


def calibration_table(records: RunStore) -> pd.DataFrame:
    """What the rule looked at, a row a learning rate; ``added`` as ``change`` has it."""
    rows = []
    for factor, run in zip(FACTORS[records.config.tier], calibration_runs(records), strict=True):
        before, after = run.arrays["each"]
        rows.append(
            {
                "η": f"{factor * RATE:g}",
                "held-out loss": run.arrays["loss"][1, -1],
                "held-out accuracy": run.arrays["accuracy"][1, -1],
                "gap added (nats)": change(before, after)["gap"],
            }
        )
    return pd.DataFrame(rows)


def lead_table(records: RunStore) -> pd.DataFrame:
    """How far each arm is ahead of the base model, both with their own reference: mean over steps.

    The error is that of a mean of independent steps, of which these are none: batches differ, but
    one step's lead is in the next.
    """
    rows = []
    for rate in _values(records):
        base, *others = ((arm, x) for arm, x in arms(records, rate).items() if arm[0] == arm[1])
        for (start, _), arrays in others:
            ahead = (base[1]["loss"] - arrays["loss"]).astype(float)
            train, held_out = (part[np.isfinite(part)] for part in ahead)
            error = train.std(ddof=1) / np.sqrt(len(train))
            row = {"η": f"{rate:g}", "start": start}
            row["training loss, lead"] = f"{train.mean():+.5f} ± {error:.5f}"
            row["steps ahead"] = f"{(train > 0).sum()} of {len(train)}"
            row["held-out loss, lead"] = f"{held_out[1:].mean():+.5f}"
            rows.append(row | {"at the last step": f"{held_out[-1]:+.5f}"})
    return pd.DataFrame(rows)


def reference_table(records: RunStore) -> pd.DataFrame:
    """What the reference of the aligned model's run changes: its loss at first, and its path.

    ``foretold`` is the mean of −log σ(−β a), a being what aligning had added to a held-out pair's
    gap, as seen from the reference; the last column how far what each pair loses goes with it.
    """
    rows = []
    for rate in _values(records):
        found = arms(records, rate)
        base, aligned = (found[arm]["each"][0].astype(float) for arm in ARMS[:2])
        added = np.subtract(*aligned.T) - np.subtract(*base.T)
        for reference, seen in (("aligned", 0 * added), ("base", added)):
            arrays = found["aligned", reference]
            first, last = (np.subtract(*x.T) for x in arrays["each"].astype(float))
            row = {"η": f"{rate:g}", "reference": reference, "loss at first": arrays["loss"][1, 0]}
            row["foretold"] = np.logaddexp(0, records.config.beta * seen).mean()
            row["fall of the gap (nats)"] = (first - last).mean()
            row["correlation with a"] = np.corrcoef(first - last, added)[0, 1]
            rows.append(row)
    return pd.DataFrame(rows)


def rounding(records: RunStore) -> pd.DataFrame:
    """How far rounding alone moves a gap, in nats, a row a learning rate.

    Merged or not, the aligned model is the same function: its gaps of held-out pairs differ only
    as matrix products in bf16 round. Beside that stands what aligning had added.
    """
    rows = []
    for rate in _values(records):
        found = {arm: x["each"][0].astype(float) for arm, x in arms(records, rate).items()}
        base, aligned, _, merged = (np.subtract(*x.T) for x in found.values())
        row = {"η": f"{rate:g}"}
        for name, x in (("rounding", merged - aligned), ("added by aligning", aligned - base)):
            row[f"{name}, a pair"] = np.sqrt((x**2).mean())
            row[f"{name}, mean"] = x.mean()
        rows.append(row)
    return pd.DataFrame(rows)


def change(before: np.ndarray, after: np.ndarray) -> dict[str, str]:
    """How log-probabilities (n, 2) of pairs have changed: means ± standard error, in words.

    ``preferred``, ``other``, ``gap`` in nats; ``both fell`` a share of the pairs.
    """
    moved = np.asarray(after, float) - np.asarray(before, float)
    columns = {"preferred": moved[:, 0], "other": moved[:, 1], "gap": moved[:, 0] - moved[:, 1]}
    found = {
        name: f"{x.mean():+.2f} ± {x.std(ddof=1) / np.sqrt(len(x)):.2f}"
        for name, x in columns.items()
    }
    return found | {"both fell": f"{(moved < 0).all(1).mean():.0%}"}


def change_table(records: RunStore) -> pd.DataFrame:
    """``change`` over each epoch, aligning and misaligning, a row a run, at each learning rate."""
    rows = {}
    for rate in _values(records):
        seed = records.config.full_seeds[0]
        given = aligned_run(records, rate, seed).arrays["each"]
        rows[f"given labels, base, η = {rate:g}"] = change(*given)
        for (start, reference), arrays in arms(records, rate).items():
            name = f"flipped, {start} (reference {reference}), η = {rate:g}"
            rows[name] = change(*arrays["each"])
    return pd.DataFrame(rows).T


def undone_table(records: RunStore) -> pd.DataFrame:
    """How soon alignment is undone, a row a learning rate and arm that starts aligned."""
    rows = []
    for rate in _values(records):
        found = {arm: gap(arrays).astype(float) for arm, arrays in arms(records, rate).items()}
        base = found["base", "base"]
        for (start, reference), aligned in found.items():
            if start == "base":
                continue
            share = undone(base[:1], aligned)
            row = {"η": f"{rate:g}", "start": start, "reference": reference}
            row |= {"gap, base model": base[0], "at first": aligned[0], "at last": aligned[-1]}
            row |= {"share undone": share[-1], "nine tenths by step": _first(share >= 0.9)}
            row["of the base run by step"] = _first(undone(base, aligned) >= 0.9)
            rows.append(row)
    return pd.DataFrame(rows)


def _first(where: np.ndarray) -> str:
    at = np.flatnonzero(where)
    return str(at[0]) if len(at) else "–"


def _flipped_runs(records: RunStore) -> Iterator[Run]:
    seed = records.config.full_seeds[0]
    for rate in reversed(_values(records)):
        yield aligned_run(records, rate, seed)
        for arm in ARMS:
            yield flipped_run(records, *arm, rate, seed)


RUNS = (pairs_run, rates, lambda records: list(_flipped_runs(records)))
MEASURES = (hh_lead, hh_undone)
