"""Runs and measures of the chapter on the audit: what it tells, against real training."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from dpo_helpers import data, finetune, last_layer, lm
from dpo_helpers.audit import Audit, audit, table
from dpo_helpers.data import Behavior, preferences
from dpo_helpers.dpo import loss
from dpo_helpers.errors import InputError
from dpo_helpers.lm import Model, Pairs
from dpo_helpers.states import hidden_states
from ledger.store import Run, RunStore

from . import atlas, full_finetuning, hh_rlhf
from .second_llm import agreement
from .shared import learning_rate
from .training import train_in_cache

# Mixtures, and behaviors of each, drawn from all at hand.
MIXTURES = {"smoke": (1, 4), "book": (4, 4), "paper": (4, 4)}
# Statements of a behavior trained on, and held out.
SIZES = {"smoke": (40, 20), "book": (250, 100), "paper": (250, 100)}
# Steps between two measurements of the held-out pairs, all parameters.
EVERY = 8
# Share of the labels that are turned round, to see whether it is noticed.
NOISE = 0.1
# Dialogues by the tokens of the chosen response over those of the rejected one: below 4/5, to 5/4.
KINDS = ("chosen is shorter", "about as long", "chosen is longer")
# Of fewer points no rank correlation is told.
MIN_BEHAVIORS = 10


# The audit against one step of autograd


def moved(
    model: Model,
    pairs: Pairs,
    beta: float,
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
) -> np.ndarray:
    """By how much one step on all of ``pairs`` moves each one's gap, nats: (N,) float64.

    The unembedding alone is trained, V × d numbers, by autograd of the DPO loss; each response is
    read by itself, without token trees. ``optimizer`` makes one of the list of parameters.
    """
    network = copy.deepcopy(model.network).double()
    weight = torch.nn.Parameter(network.get_output_embeddings().weight.detach().clone())

    @torch.no_grad()
    def states(x: tuple[int, ...], y: tuple[int, ...]) -> torch.Tensor:
        return network.base_model(torch.tensor([x + y])).last_hidden_state[0, len(x) - 1 : -1]

    read = [
        [(states(x, y), y) for y in both]
        for x, *both in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    ]

    def log_probability(h: torch.Tensor, y: tuple[int, ...]) -> torch.Tensor:
        return (h @ weight.T).log_softmax(-1)[range(len(y)), list(y)].sum()

    def gaps() -> torch.Tensor:
        return torch.stack([log_probability(*one) - log_probability(*other) for one, other in read])

    before = gaps()
    loss(beta * (before - before.detach())).mean().backward()
    optimizer([weight]).step()
    return (gaps() - before).detach().numpy()


def by_length(pairs: Pairs) -> Pairs:
    """The pairs in groups by ``KINDS``."""
    chosen, rejected = (np.array([len(y) for y in x]) for x in (pairs.chosen, pairs.rejected))
    return replace(pairs, group=np.digitize(chosen / rejected, (4 / 5, 5 / 4)))


# Runs


def restored(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Audit:
    """An audit from the arrays of a record."""
    found = {field.name: arrays[prefix + field.name] for field in fields(Audit)}
    return Audit(**found | {"names": tuple(found["names"].tolist())})


def _kept(found: Audit, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: np.array(value) for name, value in vars(found).items()}


def sample_rows() -> list[dict]:
    """The embedded sample's statements as one data set, the behaviors as its groups."""
    return [
        {"question": question, "prompt": question, "label": int(label), "group": name}
        | dict(zip(("chosen", "rejected"), ("Yes", "No")[:: int(label)], strict=True))
        for name in data.behaviors("sample")
        for behavior in [data.load_behavior(name, "sample")]
        for question, label in zip(behavior.rows["question"], behavior.labels, strict=True)
    ]


def sample_run(records: RunStore) -> Run:
    """The audit of ``sample_rows``, its arrays by the fields of ``audit.Audit``."""
    rows, name = sample_rows(), f"{_folder(records)}/sample"
    inputs = {
        "sample": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "model": records.weights(needed=not records.find(name)),
    }

    def make() -> dict[str, np.ndarray]:
        model = records.model()
        return _kept(audit(model, *preferences.tokenised(model, rows)))

    return records.replay_or_run(name, {"model": records.config.model}, inputs, make)


def mixtures(records: RunStore) -> list[list[str]]:
    """The behaviors of each mixture: drawn with seed 1 from all at hand, none in two of them."""
    names = atlas.behaviors_run(records).arrays["behaviors"]
    drawn = np.random.default_rng(1).choice(names, MIXTURES[records.config.tier], replace=False)
    return drawn.tolist()


def taken(behavior: Behavior, sizes: tuple[int, int]) -> tuple[Behavior, Behavior]:
    """The statements trained on and those held out, half of either to be answered Yes.

    Drawn with seed 0. Raises InputError if a side has too few.
    """
    rng, parts = np.random.default_rng(0), ([], [])
    learned, both = sizes[0] // 2, sum(sizes) // 2
    for side, answer in ((1, "Yes"), (-1, "No")):
        members = rng.permutation(np.flatnonzero(behavior.labels == side)).tolist()
        if len(members) < both:
            raise InputError(
                f"{behavior.name}: {answer} is the answer to {len(members)} statements, {both} are "
                "needed; add some"
            )
        parts[0].extend(members[:learned])
        parts[1].extend(members[learned:both])
    return tuple(
        replace(behavior, rows=behavior.rows.select(rows), labels=behavior.labels[rows])
        for rows in parts
    )


def mislabelled(pairs: Pairs, flipped: np.ndarray) -> Pairs:
    """The pairs, of those that ``flipped`` (N,) bool names the preference turned round."""
    turned = pairs.flipped()
    both = Pairs(
        pairs.prompts * 2,
        pairs.chosen + turned.chosen,
        pairs.rejected + turned.rejected,
        np.tile(pairs.group, 2),
    )
    return both.take(np.arange(len(pairs)) + len(pairs) * flipped)


def audit_run(records: RunStore, number: int) -> Run:
    """What the audit tells of mixture ``number``, from 0, and what the last layer then does.

    Arrays by the fields of ``audit.Audit``, of the pairs trained on, and with ``noisy_`` before
    them of the same where ``flipped`` (N,) bool says which labels were turned round; and of
    gradient descent on the last layer, the mean growth of the gaps in nats after t steps:

    together   (behaviors, 2, T + 1) trained on the mixture: of its own pairs, and held out
    alone      (behaviors, 2, T + 1) the same, each behavior trained by itself
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
        found |= _kept(audit(model, mislabelled(learned, flipped), names), "noisy_")

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
    """All parameters trained on mixture ``number``, from 0, for one epoch.

    Arrays ``loss``, ``margin``, ``gap``, ``accuracy``, ``gradient`` as in ``finetune.Curves``, the
    held-out pairs measured every ``EVERY`` steps.
    """
    config = records.config
    settings = finetune.Settings(
        beta=config.beta,
        learning_rate=rate,
        batch_size=config.full_batch_size,
        seed=config.full_seeds[0],
        evaluate_every=EVERY,
        save_every=0,
    )
    how = {"beta": config.beta, "rate": rate, "seed": settings.seed}
    how |= {"batch_size": settings.batch_size, "every": EVERY}

    def make(statements: Sequence[Behavior]) -> dict[str, np.ndarray]:
        model = lm.load(config.model, config.device)
        learned, held_out = (
            lm.pairs_from_behaviors(model, part, config.newline)
            for part in zip(*(taken(b, SIZES[config.tier]) for b in statements), strict=True)
        )
        curves = train_in_cache(model, learned, settings, held_out=held_out)
        names = ("loss", "margin", "gap", "accuracy")
        found = {name: getattr(curves, name) for name in names} | {"gradient": curves.grad_norm}
        return {name: np.asarray(values, np.float32) for name, values in found.items()}

    return _recorded(records, number, f"rate-{rate:g}", how, make)


def _recorded(
    records: RunStore,
    number: int,
    what: str,
    how: Mapping[str, object],
    make: Callable[[Sequence[Behavior]], Mapping[str, np.ndarray]],
) -> Run:
    """A run of a mixture; its statements are read where they are at hand, or needed."""
    config, behaviors = records.config, mixtures(records)[number]
    name = f"{_folder(records)}/mixture-{number + 1}/{what}"
    new = not records.find(name)
    statements = []
    if new or data.at_hand(config.data):
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
    inputs: dict[str, str | None] = dict.fromkeys(behaviors)
    inputs |= {behavior.name: behavior.sha256 for behavior in statements}
    inputs["model"] = records.weights(needed=new)
    facts = {"model": config.model, "newline": config.newline, "sizes": SIZES[config.tier]}
    return records.replay_or_run(name, facts | dict(how), inputs, lambda: make(statements))


def _folder(records: RunStore) -> str:
    return f"audit/{records.model_slug}"


def dialogues_run(records: RunStore) -> Run:
    """The audit of the dialogues of chapter 8, by ``KINDS``.

    Those trained on, then, as groups of their own, those held out. Arrays by the fields of
    ``audit.Audit``, and ``tokens`` (N, 2) of the chosen and the rejected response.
    """

    def make() -> dict[str, np.ndarray]:
        model, rows = records.model(), hh_rlhf.dialogues(records.config)
        parts = hh_rlhf.kept(model, rows, hh_rlhf.LENGTH[records.config.tier])
        learned, held_out = map(by_length, parts)
        kinds, group = np.unique(
            np.concatenate([learned.group, held_out.group + len(KINDS)]), return_inverse=True
        )
        columns = ("prompts", "chosen", "rejected")
        pairs = Pairs(*(getattr(learned, x) + getattr(held_out, x) for x in columns), group)
        names = [f"{part}, {kind}" for part in ("trained on", "held out") for kind in KINDS]
        found = _kept(audit(model, pairs, [names[kind] for kind in kinds]))
        tokens = [[len(y) for y in x] for x in (pairs.chosen, pairs.rejected)]
        return found | {"tokens": np.array(tokens).T}

    config = records.config
    facts = {"model": config.model, "split": hh_rlhf.SPLIT[config.tier]}
    facts["length"] = hh_rlhf.LENGTH[config.tier]
    return hh_rlhf.dialogue_run(records, "audit", facts, make)


# What the tables of the chapter show


def last_rate(records: RunStore) -> float:
    """The learning rate of the runs on all parameters: that of chapter 5, scaled by its rule."""
    return [*full_finetuning.rates(records, records.config.beta).values()][-1]


def mixtures_table(records: RunStore) -> pd.DataFrame:
    """A row a mixture and behavior: what the audit tells, and how the held-out gap grew, nats.

    ``first step, told`` and its error, ``± told``: (ηβ/2) times the speed; ``first step`` and
    ``last layer``: by gradient descent after one step and after all, on the mixture; ``alone, …``:
    on the behavior by itself; ``all parameters``: over the epoch.
    """
    config, rate = records.config, last_rate(records)
    unit = learning_rate(records) * config.beta / 2
    rows = []
    for number, behaviors in enumerate(mixtures(records)):
        a = audit_run(records, number).arrays
        gap = full_run(records, number, rate).arrays["gap"][:, 1].astype(float)
        columns = {
            **table(restored(a)),
            "first step": a["together"][:, 1, 1],
            "last layer": a["together"][:, 1, -1],
            "alone, first step": a["alone"][:, 1, 1],
            "alone, last layer": a["alone"][:, 1, -1],
            "all parameters": gap[:, -1] - gap[:, 0],
        }
        found = pd.DataFrame(columns, index=behaviors)
        found.insert(0, "± told", unit * found["its error"])
        found.insert(0, "first step, told", unit * found["speed"])
        found.insert(0, "mixture", number + 1)
        rows.append(found)
    return pd.concat(rows).rename_axis("behavior").reset_index().set_index(["mixture", "behavior"])


# What is compared with the growths of ``mixtures_table``: columns of it, and how they are called.
PREDICTORS = {
    "speed": "speed, in the mixture",
    "speed alone": "speed, alone",
    "coherence": "coherence",
    "base gap": "base gap",
    "already right": "already right",
}
GROWTHS = ("first step", "last layer", "all parameters")


def order_table(found: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of ``PREDICTORS`` with ``GROWTHS`` over all groups, 95 % intervals.

    A dash where there are fewer than ``FEW`` groups.
    """
    return pd.DataFrame(
        {
            growth: {title: _ranked(found[x], found[growth]) for x, title in PREDICTORS.items()}
            for growth in GROWTHS
        }
    )


def within_table(found: pd.DataFrame) -> pd.DataFrame:
    """Pairs of groups of one mixture whose ``GROWTHS`` are in the order of each of ``PREDICTORS``.

    In words: how many of how many.
    """

    def ordered(column: str, growth: str) -> str:
        right = [
            (one[column] - other[column]) * (one[growth] - other[growth]) > 0
            for _, mixture in found.groupby(level="mixture")
            for one, other in combinations(mixture.to_dict("records"), 2)
        ]
        return f"{sum(right)} of {len(right)}"

    return pd.DataFrame(
        {
            growth: {title: ordered(x, growth) for x, title in PREDICTORS.items()}
            for growth in GROWTHS
        }
    )


def _ranked(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < MIN_BEHAVIORS:
        return "–"
    return "{:.2f} ({:.2f} to {:.2f})".format(*agreement(np.asarray(x), np.asarray(y)))


def noise_table(records: RunStore) -> pd.DataFrame:
    """Labels turned round by hand: are they what goes against its group? A row a mixture.

    Means over the groups. ``told apart``: the probability that a turned pair fits its group less
    than one that was left, by ``Audit.fit``, and ``by others`` by ``Audit.others``; chance is one
    half. ``of the worst``: the share of turned ones among as many pairs as were turned, those that
    fit least; chance is ``NOISE``. ``against`` and ``against before``: what ``audit.table`` tells,
    with labels turned round and without.
    """
    from sklearn.metrics import roc_auc_score

    rows = {}
    for number, behaviors in enumerate(mixtures(records)):
        a = audit_run(records, number).arrays
        clean, noisy = restored(a), restored(a, "noisy_")
        found = []
        for group in range(len(behaviors)):
            members = noisy.group == group
            wrong, fit = a["flipped"][members], noisy.fit[members]
            found.append(
                {
                    "told apart": roc_auc_score(wrong, -fit),
                    "by others": roc_auc_score(wrong, -noisy.others[members]),
                    "of the worst": wrong[np.argsort(fit, kind="stable")[: wrong.sum()]].mean(),
                    "against before": (clean.fit[members] < 0).mean(),
                    "against": (fit < 0).mean(),
                }
            )
        rows[number + 1] = pd.DataFrame(found).mean()
    return pd.DataFrame(rows).T.rename_axis("mixture")


def predicted(records: RunStore) -> pd.DataFrame:
    """The held-out dialogues, a row a pair: what is known before, and what the epoch did.

    ``speed``: ⟨G_i, M⟩, M the mean of the pairs trained on; ``grown``: of the gap, in nats, over
    chapter 8's aligning run at its last learning rate.
    """
    a = dialogues_run(records).arrays
    found = restored(a)
    trained = np.array([name.startswith("trained on") for name in found.names])
    weights = np.where(trained, found.counts, 0) / found.counts[trained].sum()
    held_out = ~trained[found.group]
    rate = [*hh_rlhf.rates(records).values()][-1]
    each = hh_rlhf.aligned_run(records, rate, records.config.full_seeds[0]).arrays["each"]
    gap = np.subtract(*np.moveaxis(each.astype(float), -1, 0))
    tokens = a["tokens"][held_out]
    return pd.DataFrame(
        {
            "kind": [found.names[g].split(", ")[1] for g in found.group[held_out]],
            "speed": (found.pull @ (weights @ found.composition))[held_out],
            "‖G‖²": found.squared_norm[held_out],
            "tokens of both": tokens.sum(1),
            "tokens, chosen less rejected": tokens[:, 0] - tokens[:, 1],
            "base gap": found.gap[held_out].astype(float),
            "grown": gap[1] - gap[0],
        }
    )


def dialogues_table(records: RunStore) -> pd.DataFrame:
    """The dialogues by ``KINDS``: told from those trained on, and what became of those held out.

    ``speed``: of a new pair of that kind, trained on all kinds, and its standard error; ``held out,
    speed``: of the very pairs that are measured; ``grown``: mean growth of their gap, nats, and its
    standard error.
    """
    audited, pairs = restored(dialogues_run(records).arrays), predicted(records)
    groups = table(audited)
    trained = [name for name in groups.index if name.startswith("trained on")]
    weights = np.where(groups.index.isin(trained), groups["pairs"], 0)
    weights = weights / weights.sum()
    groups["speed"], groups["its error"] = audited.speeds(weights), audited.errors(weights)
    rows = {}
    for name in trained:
        kind = name.split(", ")[1]
        of_kind = pairs[pairs["kind"] == kind]
        rows[kind] = {
            "pairs": groups.loc[name, "pairs"],
            "base gap": groups.loc[name, "base gap"],
            "coherence": groups.loc[name, "coherence"],
            "speed": groups.loc[name, "speed"],
            "its error": groups.loc[name, "its error"],
            "held out": len(of_kind),
            "held out, speed": of_kind["speed"].mean(),
            "grown": of_kind["grown"].mean(),
            "± grown": of_kind["grown"].sem(),
        }
    return pd.DataFrame(rows).T


def pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each column of ``foretold`` with the growth of a held-out pair's gap."""
    known = [name for name in pairs if name not in ("kind", "grown")]
    rows = {name: _ranked(pairs[name], pairs["grown"]) for name in known}
    return pd.DataFrame({"growth of the gap": rows})


def _each(record: Callable[..., Run], records: RunStore, *more: object) -> list[Run]:
    return [record(records, number, *more) for number in range(MIXTURES[records.config.tier][0])]


RUNS = (
    sample_run,
    lambda records: _each(audit_run, records),
    dialogues_run,
    lambda records: _each(full_run, records, last_rate(records)),
)
MEASURES = ()
