"""Runs and measures of misalignment with LoRA on dialogues of HH-RLHF (Figures 15 and 16)."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dpo_helpers import data, lm
from dpo_helpers.errors import InputError
from ledger.config import Config
from ledger.store import Run, RunStore

from . import misalignment

# Where the pairs come from, and the limit on the tokens of a prompt with either response.
SUBSET = "harmless-base"
SPLIT = {"smoke": "test", "book": "test", "paper": "train"}
LENGTH = {"smoke": 104, "book": 128, "paper": 512}
# Steps between two measurements of the held-out pairs.
EVERY = {"smoke": 2, "book": 3, "paper": 100}
# The paper's learning rate, and its multiples that the rule tries. The paper's model needs none.
RATE = 1e-5
FACTORS = {"smoke": (1.0, 10.0), "book": (1.0, 10.0, 30.0, 100.0), "paper": (1.0,)}
# Start and reference of the runs on flipped labels. "merged": the adapter of the aligned model is
# merged into the weights, and it gets a new one, the same as the base model's.
ARMS = (*misalignment.ARMS, ("merged", "merged"))
# The step by which, the paper says, alignment is mostly undone.
STEPS = 100
TOKENS = 2048


def lengths(model: lm.Model, rows: Sequence[Mapping]) -> np.ndarray:
    """Tokens of each pair's prompt with its chosen and with its rejected response, (n, 2)."""
    end = model.tokenizer.eos_token
    whole = [row["prompt"] + row[name] + end for row in rows for name in ("chosen", "rejected")]
    return np.array([len(ids) for ids in model.tokenizer(whole).input_ids]).reshape(-1, 2)


def kept(model: lm.Model, rows: Sequence[Mapping], length: int) -> tuple[lm.Pairs, lm.Pairs]:
    """The pairs trained on and held out: two different responses, at most ``length`` tokens each.

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


def at_hand(config: Config) -> bool:
    """Whether the pairs can be read here without the network."""
    try:
        return data.at_hand(config.data, "hh-rlhf")
    except InputError:
        return False


def dialogues(config: Config) -> list[dict[str, str]]:
    """All pairs of the tier's split. Raises InputError as ``data.load_pairs`` does."""
    return list(data.load_pairs(config.data, SUBSET, SPLIT[config.tier]))


class _Dialogues:
    """The base model with a new adapter, the pairs trained on and held out, and the settings."""

    def __init__(self, records: RunStore, rate: float, seed: int) -> None:
        from dpo_helpers import finetune
        from dpo_helpers.lm import lora

        config, every = records.config, EVERY[records.config.tier]
        self.model = lora.add(lm.load(config.model, config.device), seed)
        self.given = kept(self.model, dialogues(config), LENGTH[config.tier])
        size = min(config.full_batch_size, len(self.given[0]) // 4)
        how = dict(beta=config.beta, learning_rate=rate, batch_size=size, seed=seed)
        self.settings = finetune.Settings(max_tree_tokens=TOKENS, evaluate_every=every, **how)

    def align(self) -> dict[str, np.ndarray]:
        """Train on the given labels; the adapter stays in the cache for the next run."""
        settings = replace(self.settings, evaluate_every=len(self.given[0]))
        return self.train(self.given[0], settings, keep=True, held_out=self.given[1])

    def train(self, pairs: lm.Pairs, settings: object, **options: object) -> dict[str, np.ndarray]:
        """``finetune.Curves`` as arrays, and ``each`` held-out pair before and after."""
        from .training import train_in_cache

        before = self.each()
        curves = train_in_cache(self.model, pairs, settings, **options)
        arrays = {n: getattr(curves, n)[0] for n in ("loss", "margin", "gap", "accuracy")}
        return arrays | curves.logged | {"each": np.stack([before, self.each()])}

    def each(self) -> np.ndarray:
        """log π(y_w|x) and log π(y_l|x) of each held-out pair, by the given labels, (n, 2)."""
        import torch

        from dpo_helpers.finetune import compute_precision

        pairs, network = self.given[1], self.model.network
        found = np.empty((len(pairs), 2), np.float32)
        with torch.no_grad(), compute_precision(network, self.settings.precision):
            for rows in pairs.microbatches(self.settings.max_tree_tokens):
                found[rows] = lm.log_probabilities(network, pairs.take(rows)).cpu().numpy()
        return found

    def log_ratios(self) -> list[np.ndarray]:
        """Log-ratios of the given pairs, trained on and held out, under the model as it is."""
        from dpo_helpers.finetune import reference_log_ratios

        return [reference_log_ratios(self.model, pairs, self.settings) for pairs in self.given]


def aligned_run(records: RunStore, rate: float, seed: int) -> Run:
    """Align the base model: train an adapter on the given labels for one epoch.

    Arrays as of ``flipped_run``, of the given labels, but ``preferred`` and ``other``; the held-out
    pairs are measured at both ends only.
    """

    def make() -> dict[str, np.ndarray]:
        return _Dialogues(records, rate, seed).align()

    return _recorded(records, "given", rate, seed, {}, make)


def flipped_run(records: RunStore, start: str, reference: str, rate: float, seed: int) -> Run:
    """Train an adapter on flipped labels for one epoch, with one of ``ARMS``.

    The adapter of the aligned model is trained further, with a fresh optimizer. Arrays, T steps:

    loss, margin, gap, accuracy   (2, T + 1) of the flipped pairs, as in ``finetune.Curves``
    preferred, other   (T + 1,) mean log π of the held-out pairs' responses, by the given labels
    each               (2, n, 2) the same of each held-out pair, before and after
    """

    def make() -> dict[str, np.ndarray]:
        from dpo_helpers.lm import lora

        run = _Dialogues(records, rate, seed)
        base = run.log_ratios() if reference == "base" else None
        if start != "base":
            run.align()
        if start == "merged":
            lora.add(lora.merge(run.model), seed)
        before = base or run.log_ratios()
        learned, held_out = (pairs.flipped() for pairs in run.given)

        def measure() -> dict[str, float]:
            return dict(zip(("preferred", "other"), run.each().mean(0), strict=True))

        how = dict(held_out=held_out, reference=tuple(-x for x in before), callback=measure)
        return run.train(learned, run.settings, **how)

    more = {"start": start, "reference": reference}
    return _recorded(records, f"{start}-{reference}", rate, seed, more, make)


def pairs_run(records: RunStore) -> Run:
    """All pairs: ``tokens`` (n, 2) as ``lengths`` has them; ``equal`` (n,), whether the two are."""

    def make() -> dict[str, np.ndarray]:
        rows = dialogues(records.config)
        equal = np.array([row["chosen"] == row["rejected"] for row in rows])
        return {"tokens": lengths(records.model(), rows).astype(np.int32), "equal": equal}

    settings = {"model": records.config.model, "split": SPLIT[records.config.tier]}
    return dialogue_run(records, "pairs", settings, make)


def _recorded(records: RunStore, kind: str, rate: float, seed: int, more: dict, make) -> Run:
    config = records.config
    settings = {"model": config.model, "split": SPLIT[config.tier], "length": LENGTH[config.tier]}
    settings |= {"beta": config.beta, "rate": rate, "seed": seed, "tokens": TOKENS}
    settings |= {"batch_size": config.full_batch_size, "every": EVERY[config.tier]}
    name = f"{kind}/beta-{config.beta:g}-rate-{rate:g}-seed-{seed}"
    return dialogue_run(records, name, settings | more, make)


def dialogue_run(records: RunStore, name: str, settings: Mapping, make: Callable) -> Run:
    """``RunStore.replay_or_run`` of HH-RLHF, which replays without the pairs and the weights."""
    config, name = records.config, f"hh/{records.model_slug}/{name}"
    inputs: dict[str, str | None] = {"HH-RLHF": None, "model": None}

    def plain() -> dict[str, np.ndarray]:
        arrays = {key: np.asarray(value) for key, value in make().items()}
        return {k: x.astype(np.float32) if x.dtype.kind == "f" else x for k, x in arrays.items()}

    def pairs_sha256() -> str:
        return hashlib.sha256(json.dumps(dialogues(config)).encode()).hexdigest()

    needed = not records.holds(name, settings, inputs, plain)
    hashes = {"HH-RLHF": pairs_sha256} if needed or at_hand(config) else {}
    hashes["model"] = lambda: lm.weights_sha256(config.model)
    for what, sha256 in hashes.items():
        try:
            inputs[what] = sha256()
        except InputError:
            if needed and not records.find(name):
                raise
    return records.replay_or_run(name, settings, inputs, plain)


def calibration_runs(records: RunStore) -> list[Run]:
    """The base model aligned at each multiple of the paper's learning rate that the rule tries."""
    seed = records.config.full_seeds[0]
    return [aligned_run(records, f * RATE, seed) for f in FACTORS[records.config.tier]]


def rates(records: RunStore) -> dict[str, float]:
    """The learning rates by name: the paper's and the rule's, or the reader's own.

    The rule: of the multiples of the paper's rate, the one at which the aligning run, on the given
    labels, ends with the lowest held-out loss. It uses no run on flipped labels.
    """
    given = records.config.full_learning_rate
    if given != "rule":
        return {"given": given}
    last = [run.arrays["loss"][1, -1] for run in calibration_runs(records)]
    factor = FACTORS[records.config.tier][int(np.argmin(last))]
    return {"paper": RATE, "scaled": float(f"{factor * RATE:.6g}")}


def arms(records: RunStore, rate: float) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """The arrays of ``flipped_run`` by start and reference."""
    seed = records.config.full_seeds[0]
    return {arm: flipped_run(records, *arm, rate, seed).arrays for arm in ARMS}


def gap(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean log-ratio of the held-out pairs by the given labels, (T + 1,), NaN if not measured."""
    return -arrays["gap"][1]


def undone(base: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """The share of the gap added by aligning that is gone after each step, (T + 1,).

    0 at the start; 1 where ``aligned`` (T + 1,), ``gap`` from the aligned model, has come down to
    ``base``: (1,) before training or (T + 1,) in its own run. NaN if aligning had added nothing.
    """
    above = aligned - base
    return 1 - above / (above[0] if above[0] > 0 else np.nan)


def hh_lead(records: RunStore, run: str) -> np.ndarray:
    """``misalignment.lead`` in training loss, at the worse learning rate."""
    found = [arms(records, rate) for rate in rates(records).values()]
    losses = np.array([[x["loss"][0] for x in list(runs.values())[:2]] for runs in found])
    return misalignment.lead(losses).min()


def hh_undone(records: RunStore, run: str) -> np.ndarray:
    """Largest share of the gap added by aligning that is gone by step 100, worse learning rate.

    A learning rate at which aligning added nothing has nothing to undo, and is left out.
    """
    found = []
    for rate in rates(records).values():
        base, aligned, *_ = (gap(arrays) for arrays in arms(records, rate).values())
        share = undone(base[:1], aligned)[: STEPS + 1]
        if np.isfinite(share).any():
            found.append(np.nanmax(share))
    return np.min(found) if found else np.nan


def _flipped_runs(records: RunStore) -> Iterable[Run]:
    seed = records.config.full_seeds[0]
    for rate in reversed(rates(records).values()):
        yield aligned_run(records, rate, seed)
        yield from (flipped_run(records, *arm, rate, seed) for arm in ARMS)


RUNS = (pairs_run, rates, lambda records: list(_flipped_runs(records)))
MEASURES = (hh_lead, hh_undone)
