"""Runs of the chapter on the audit: what it predicts, against real training."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from dpo_helpers import data, last_layer, lm
from dpo_helpers.audit import Audit, audit, tokenize
from dpo_helpers.data import Behavior
from dpo_helpers.errors import InputError
from dpo_helpers.lm import Pairs
from dpo_helpers.states import hidden_states
from ledger.store import Run, RunStore

from . import atlas, full_finetuning, hh_rlhf
from .shared import learning_rate

# Mixtures, and behaviors of each, drawn from all that are available.
MIXTURES = {"smoke": (1, 4), "book": (4, 4), "paper": (4, 4)}
# Statements of a behavior: training, held-out.
SIZES = {"smoke": (40, 20), "book": (250, 100), "paper": (250, 100)}
# Steps between two measurements of the held-out pairs, all parameters.
EVERY = 8
# Share of the labels that are flipped, to see whether the audit finds them.
NOISE = 0.1
# Dialogues by the tokens of the chosen response over those of the rejected one: below 4/5, to 5/4.
KINDS = ("chosen is shorter", "about as long", "chosen is longer")
# The fields of ``Audit`` that records have under another name.
_RECORDED = {
    "stratum_gram": "between",
    "pair_stratum": "pull",
    "squared_norm": "own",
    "duplicate_of": "twins",
    "contradicted_by": "turned",
}


def by_length(pairs: Pairs) -> Pairs:
    """The pairs in groups by ``KINDS``."""
    chosen, rejected = (np.array([len(y) for y in x]) for x in (pairs.chosen, pairs.rejected))
    return replace(pairs, group=np.digitize(chosen / rejected, (4 / 5, 5 / 4)))


def restored(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Audit:
    """An audit from the arrays of a record."""
    found = {f.name: arrays[prefix + _RECORDED.get(f.name, f.name)] for f in fields(Audit)}
    return Audit(**found | {"names": tuple(found["names"].tolist())})


def _kept(found: Audit, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + _RECORDED.get(name, name): np.array(x) for name, x in vars(found).items()}


def sample_rows() -> list[dict]:
    """The embedded sample's statements as one data set; the groups are the behaviors."""
    return [
        {"question": question, "prompt": question, "label": int(label), "group": name}
        | dict(zip(("chosen", "rejected"), ("Yes", "No")[:: int(label)], strict=True))
        for name in data.behaviors("sample")
        for behavior in [data.load_behavior(name, "sample")]
        for question, label in zip(behavior.rows["question"], behavior.labels, strict=True)
    ]


def sample_run(records: RunStore) -> Run:
    """The audit of ``sample_rows``, as arrays."""
    rows, name = sample_rows(), f"audit/{records.model_slug}/sample"
    inputs = {"sample": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}
    inputs["model"] = records.weights_sha256(needed=not records.find(name))

    def make() -> dict[str, np.ndarray]:
        model = records.model()
        return _kept(audit(model, *tokenize(model, rows)))

    return records.replay_or_run(name, {"model": records.config.model}, inputs, make)


def mixtures(records: RunStore) -> list[list[str]]:
    """The behaviors of each mixture: drawn with seed 1, none in two mixtures."""
    names = atlas.behaviors_run(records).arrays["behaviors"]
    drawn = np.random.default_rng(1).choice(names, MIXTURES[records.config.tier], replace=False)
    return drawn.tolist()


def taken(behavior: Behavior, sizes: tuple[int, int]) -> tuple[Behavior, Behavior]:
    """Training and held-out statements, drawn with seed 0; half of each prefer Yes.

    Raises InputError if a side has too few.
    """
    rng, parts = np.random.default_rng(0), ([], [])
    learned, both = sizes[0] // 2, sum(sizes) // 2
    for side, answer in ((1, "Yes"), (-1, "No")):
        members = rng.permutation(np.flatnonzero(behavior.labels == side)).tolist()
        if len(members) < both:
            many = f"{answer} is the answer to {len(members)} statements"
            raise InputError(f"{behavior.name}: {many}, {both} are needed; add some")
        parts[0].extend(members[:learned])
        parts[1].extend(members[learned:both])
    return tuple(
        replace(behavior, rows=behavior.rows.select(rows), labels=behavior.labels[rows])
        for rows in parts
    )


def mislabeled(pairs: Pairs, flipped: np.ndarray) -> Pairs:
    """The pairs, with chosen and rejected exchanged where ``flipped`` (N,) is True."""
    other = pairs.flipped()
    columns = [getattr(pairs, x) + getattr(other, x) for x in ("prompts", "chosen", "rejected")]
    both = Pairs(*columns, np.tile(pairs.group, 2))
    return both.take(np.arange(len(pairs)) + len(pairs) * flipped)


def audit_run(records: RunStore, number: int) -> Run:
    """The audit of mixture ``number``, from 0, and the training of the last layer on it.

    Arrays of the audit of the training pairs; after ``noisy_``, of an audit with the labels in
    ``flipped`` (N,) bool flipped. Then, of gradient descent on the last layer, the mean growth of
    the gaps in nats after t steps, training and held-out pairs:

    together   (behaviors, 2, T + 1) trained on the mixture
    alone      (behaviors, 2, T + 1) each behavior trained by itself
    """
    config = records.config
    how = {"beta": config.beta, "learning_rate": learning_rate(records), "steps": config.steps}

    def make(statements: Sequence[Behavior]) -> dict[str, np.ndarray]:
        model = records.model()
        parts = [taken(behavior, SIZES[config.tier]) for behavior in statements]
        learned = lm.pairs_from_behaviors(model, [part[0] for part in parts], config.newline)
        flipped = np.zeros(len(learned), bool)
        for group in range(len(parts)):
            members = np.flatnonzero(learned.group == group)
            wrong = round(NOISE * len(members))
            flipped[np.random.default_rng(group).choice(members, wrong, replace=False)] = True
        names = [behavior.name for behavior in statements]
        found = _kept(audit(model, learned, names))
        found |= _kept(audit(model, mislabeled(learned, flipped), names), "noisy_")
        single = []
        for both in parts:
            g = hidden_states(model, [p for part in both for p in part.prompts(config.newline)])
            labels = np.concatenate([part.labels for part in both]).astype(np.int64)
            train = np.arange(len(g)) < len(both[0].labels)
            single.append(last_layer.Problem(g, labels, train, np.zeros(len(g), int)))
        mixture = last_layer.Problem(
            *(np.concatenate([getattr(p, x) for p in single]) for x in ("g", "labels", "train")),
            np.repeat(np.arange(len(single)), [len(p.labels) for p in single]),
        )
        rows = model.unembedding_rows().numpy()
        together, alone = (
            last_layer.train(problems, rows[0] - rows[1], sampling="full", **how)["margin"]
            for problems in ([mixture], single)
        )
        growth = {"together": together[0, ..., 0], "alone": alone[:, 0, ..., 0]}
        growth = {name: values / config.beta for name, values in growth.items()}
        return found | growth | {"flipped": flipped}

    return _recorded(records, number, "told", how, make)


def full_run(records: RunStore, number: int, rate: float) -> Run:
    """One epoch of full fine-tuning on mixture ``number``, from 0: ``finetune.Curves``."""
    config = records.config
    seed, batch_size = config.full_seeds[0], config.full_batch_size
    how = {"beta": config.beta, "rate": rate, "seed": seed}
    how |= {"batch_size": batch_size, "every": EVERY}

    def make(statements: Sequence[Behavior]) -> dict[str, np.ndarray]:
        from dpo_helpers.finetune import Settings

        from .training import train_in_cache

        steps = dict(evaluate_every=EVERY, save_every=0)
        settings = Settings(
            beta=config.beta, learning_rate=rate, batch_size=batch_size, seed=seed, **steps
        )
        model = lm.load(config.model, config.device)
        learned, held_out = (
            lm.pairs_from_behaviors(model, part, config.newline)
            for part in zip(*(taken(b, SIZES[config.tier]) for b in statements), strict=True)
        )
        curves = train_in_cache(model, learned, settings, held_out=held_out)
        found = {name: getattr(curves, name) for name in ("loss", "margin", "gap", "accuracy")}
        found["gradient"] = curves.grad_norm
        return {name: np.asarray(values, np.float32) for name, values in found.items()}

    return _recorded(records, number, f"rate-{rate:g}", how, make)


def _recorded(
    records: RunStore,
    number: int,
    what: str,
    how: Mapping[str, object],
    make: Callable[[Sequence[Behavior]], Mapping[str, np.ndarray]],
) -> Run:
    """A run of a mixture; its statements are read if they are available, or needed."""
    config, behaviors = records.config, mixtures(records)[number]
    name = f"audit/{records.model_slug}/mixture-{number + 1}/{what}"
    new, statements = not records.find(name), []
    if new or data.at_hand(config.data):
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
    inputs: dict[str, str | None] = dict.fromkeys(behaviors)
    inputs |= {behavior.name: behavior.sha256 for behavior in statements}
    inputs["model"] = records.weights_sha256(needed=new)
    facts = {"model": config.model, "newline": config.newline, "sizes": SIZES[config.tier]}
    return records.replay_or_run(name, facts | dict(how), inputs, lambda: make(statements))


def dialogues_run(records: RunStore) -> Run:
    """The audit of the dialogues of the chapter on HH-RLHF, training and held-out, by ``KINDS``.

    Arrays of the audit, and ``tokens`` (N, 2) of the chosen and the rejected response.
    """

    def make() -> dict[str, np.ndarray]:
        model, rows = records.model(), hh_rlhf.dialogues(records.config)
        parts = hh_rlhf.kept(model, rows, hh_rlhf.LENGTH[tier])
        learned, held_out = map(by_length, parts)
        both = np.concatenate([learned.group, held_out.group + len(KINDS)])
        kinds, group = np.unique(both, return_inverse=True)
        columns = ("prompts", "chosen", "rejected")
        pairs = Pairs(*(getattr(learned, x) + getattr(held_out, x) for x in columns), group)
        names = [f"{part}, {kind}" for part in ("trained on", "held out") for kind in KINDS]
        found = _kept(audit(model, pairs, [names[kind] for kind in kinds]))
        tokens = [[len(y) for y in x] for x in (pairs.chosen, pairs.rejected)]
        return found | {"tokens": np.array(tokens).T}

    tier = records.config.tier
    facts = {"split": hh_rlhf.SPLIT[tier], "length": hh_rlhf.LENGTH[tier]}
    facts["model"] = records.config.model
    return hh_rlhf.dialogue_run(records, "audit", facts, make)


def last_rate(records: RunStore) -> float:
    """The scaled learning rate of full fine-tuning, or the reader's own."""
    *_, rate = full_finetuning.rates(records, records.config.beta).values()
    return rate


def _each(record: Callable[..., Run], records: RunStore, *more: object) -> list[Run]:
    return [record(records, number, *more) for number in range(MIXTURES[records.config.tier][0])]


RUNS = (
    sample_run,
    lambda records: _each(audit_run, records),
    dialogues_run,
    lambda records: _each(full_run, records, last_rate(records)),
)
MEASURES = ()
