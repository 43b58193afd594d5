"""Runs and measures of the remedy: groups weighted so that the first step improves them alike."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from dpo_helpers import data, finetune, last_layer, lm, mixtures
from ledger.config import Config
from ledger.store import Run, RunStore

from . import full_finetuning, priorities
from .shared import learning_rate, pairs
from .training import train_in_cache

# Of the last layer. "As it is" and "resampled" are trained in full too.
ARMS = ("as it is", "reweighted", "resampled", "solved at every step")
HUES = dict(zip(ARMS, ("#3b0f70", "#1f9e89", "#c2593f", "#d9a400"), strict=True))


def mixture_behaviors(config: Config) -> dict[str, tuple[str, ...]]:
    """The two pairs of Figure 5, and all their behaviors together."""
    one, other = pairs(config)
    return {"(a)": one, "(b)": other, "(a) + (b)": tuple(dict.fromkeys(one + other))}


def shares(records: RunStore, behaviors: Sequence[str]) -> np.ndarray:
    """``balance.weights`` of the differences of means before training: (m,)."""
    b = priorities.differences(records, behaviors)
    return mixtures.max_min_weights(b @ b.T)


# Runs


def head_run(records: RunStore, behaviors: Sequence[str]) -> Run:
    """The last layer alone on a mixture, by gradient descent, once for each of ``ARMS``.

    loss        (3, m, 2, T + 1) mean losses of each behavior's training and held-out statements: as
                it is, that is, behaviors weighing as much as they have statements; reweighted;
                solved at every step
    resampled   (m, 2, T + 1, seeds) the same on resampled statements
    weights     (T, m) what was solved for at every step
    """
    config = records.config
    how = {"learning_rate": learning_rate(records), "beta": config.beta, "steps": config.steps}

    def make() -> dict[str, np.ndarray]:
        whole = priorities.problem(records, behaviors)
        g, labels, group = priorities.trained_on(records, behaviors)

        def measured(path: np.ndarray) -> np.ndarray:
            parts = (whole.train, ~whole.train)
            columns = (whole.g, whole.labels, whole.group)
            found = [
                mixtures.loss_decreases(path, *(c[p] for c in columns), config.beta) for p in parts
            ]
            return np.log(2) - np.stack(found, 1)

        b, (_, sizes) = (
            mixtures.mean_differences(g, labels, group),
            mixtures.signed_means(g, labels, group),
        )
        first = mixtures.max_min_weights(b @ b.T)
        trained = [
            mixtures.group_descent(g, labels, group, weigh, **how)
            for weigh in (
                lambda b: sizes / sizes.sum(),
                lambda b: first,
                lambda b: mixtures.max_min_weights(b @ b.T),
            )
        ]
        drawn = [mixtures.resample(labels, group, first, seed) for seed in range(config.seeds)]
        paths = [last_layer.gradient_descent(labels[rows, None] * g[rows], **how) for rows in drawn]
        found = {
            "loss": np.stack([measured(path) for path, _ in trained]),
            "resampled": np.stack([measured(path) for path in paths], -1),
            "weights": trained[-1][1],
        }
        return {name: values.astype(np.float32) for name, values in found.items()}

    settings = {"behaviors": list(behaviors), "seeds": config.seeds} | how
    inputs = {behavior: records.states(behavior).sha256 for behavior in behaviors}
    name = f"remedy/{records.model_slug}/{'+'.join(behaviors)}/last-layer"
    return records.replay_or_run(name, settings, inputs, make)


def resampled_run(records: RunStore, behaviors: Sequence[str], rate: float, seed: int) -> Run:
    """All parameters trained for one epoch on a mixture resampled by ``shares``.

    All else as in ``full_finetuning.trained_run``, to compare with. Arrays ``loss``, ``gap``,
    ``accuracy`` as in ``finetune.Curves``, and ``counts`` (m, 2): of each behavior, how many
    statements were drawn, and how many different ones.
    """
    config = records.config
    settings = finetune.Settings(
        beta=config.beta,
        learning_rate=rate,
        batch_size=config.full_batch_size,
        seed=seed,
        save_every=0,
    )
    facts = {"model": config.model, "behaviors": list(behaviors)}
    facts |= {"beta": config.beta, "rate": rate, "seed": seed}
    facts |= {"batch_size": settings.batch_size, "newline": config.newline}

    def make() -> dict[str, np.ndarray]:
        model = lm.load(config.model, config.device)
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
        learned, held_out = lm.pairs_from_behaviors(model, statements, config.newline).split()
        labels = np.array([1 if chosen == (model.yes,) else -1 for chosen in learned.chosen])
        rows = mixtures.resample(labels, learned.group, shares(records, behaviors), seed)
        drawn = learned.take(rows)
        curves = train_in_cache(model, drawn, settings, held_out=held_out)
        found = {name: getattr(curves, name) for name in ("loss", "gap", "accuracy")}
        groups = [learned.group[x] for x in (rows, np.unique(rows))]
        found["counts"] = np.stack([np.bincount(x, minlength=len(behaviors)) for x in groups], 1)
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    mixed = f"remedy/{records.model_slug}/{'+'.join(behaviors)}"
    name = f"{mixed}/beta-{config.beta:g}-rate-{rate:g}-seed-{seed}"
    inputs = {behavior: records.states(behavior).sha256 for behavior in behaviors}
    return records.replay_or_run(name, facts, inputs, make)


def full_runs(records: RunStore, letter: str, name: str) -> dict[str, Run]:
    """The two arms of a pair trained in full, "(a)" or "(b)", at the learning rate of that name.

    Both with the configuration's first seed.
    """
    config, pair = records.config, mixture_behaviors(records.config)[letter]
    rate, seed = full_finetuning.rates(records, config.beta)[name], config.full_seeds[0]
    return {
        ARMS[0]: full_finetuning.trained_run(records, pair, config.beta, rate, seed),
        ARMS[2]: resampled_run(records, pair, rate, seed),
    }


# Measures, and what the tables and figures of the chapter show


def head(records: RunStore, letter: str, part: int = 1) -> dict[str, np.ndarray]:
    """Losses of the last layer by arm, (m, T + 1, seeds); training (0) or held-out statements."""
    arrays = head_run(records, mixture_behaviors(records.config)[letter]).arrays
    found = dict(zip((ARMS[0], ARMS[1], ARMS[3]), arrays["loss"][:, :, part, :, None], strict=True))
    found[ARMS[2]] = arrays["resampled"][:, part]
    return {arm: found[arm] for arm in ARMS}


def full(records: RunStore, letter: str, name: str) -> dict[str, np.ndarray]:
    """Held-out losses of all parameters by arm, (m, T + 1, 1), the last axis that of seeds."""
    runs = full_runs(records, letter, name)
    return {arm: run.arrays["loss"][:, 1, :, None] for arm, run in runs.items()}


def everything(records: RunStore) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """``full`` of both pairs at each learning rate, by pair and rate."""
    rates = full_finetuning.rates(records, records.config.beta)
    return {
        (letter, f"{rate:g}"): full(records, letter, name)
        for letter, (name, rate) in product(("(a)", "(b)"), rates.items())
    }


def gap(losses: np.ndarray) -> np.ndarray:
    """How far the behavior of the highest loss is from that of the lowest: (m, …) → (…)."""
    return losses.max(0) - losses.min(0)


def plan_table(records: RunStore) -> pd.DataFrame:
    """What is known before training: lengths, weights, first steps; a row a mixture and behavior.

    "rise" is that of the mean logit difference at the first step of the last layer, in nats, also
    for weights ∝ 1/‖b‖², which know no angles; "seen" how often a
    statement comes on average in the resampled mixture.
    """
    eta, beta = learning_rate(records), records.config.beta
    rows = {}
    for letter, behaviors in mixture_behaviors(records.config).items():
        g, labels, group = priorities.trained_on(records, behaviors)
        b, (_, sizes) = (
            mixtures.mean_differences(g, labels, group),
            mixtures.signed_means(g, labels, group),
        )
        w = mixtures.max_min_weights(b @ b.T)
        plain = np.linalg.norm(b, axis=1) ** -2.0
        rises = [mixtures.logit_gains(b, x, eta, beta) for x in (sizes, w, plain)]
        for j, behavior in enumerate(behaviors):
            rows[letter, behavior] = {
                "‖b‖": np.linalg.norm(b[j]),
                "weight before": sizes[j] / sizes.sum(),
                "weight w": w[j],
                "rise before": rises[0][j],
                "rise for w": rises[1][j],
                "rise for 1/‖b‖²": rises[2][j],
                "seen": w[j] * sizes.sum() / sizes[j],
            }
    return pd.DataFrame(rows).T.rename_axis(["mixture", "behavior"])


def drawn_table(records: RunStore) -> pd.DataFrame:
    """What the resampling of a pair takes: training statements, and those drawn."""
    name = [*full_finetuning.rates(records, records.config.beta)][-1]
    rows = {}
    for letter in ("(a)", "(b)"):
        behaviors = mixture_behaviors(records.config)[letter]
        counts = full_runs(records, letter, name)[ARMS[2]].arrays["counts"].astype(int)
        for behavior, (drawn, different) in zip(behaviors, counts, strict=True):
            rows[letter, behavior] = {
                "statements": int(records.states(behavior).train.sum()),
                "drawn": drawn,
                "different ones": different,
            }
    return pd.DataFrame(rows).T.rename_axis(["mixture", "behavior"])


def ends(records: RunStore, letter: str) -> tuple[int, int]:
    """The numbers of the behaviors of a mixture with the shortest and the longest b."""
    b = priorities.differences(records, mixture_behaviors(records.config)[letter])
    length = np.linalg.norm(b, axis=1)
    return int(length.argmin()), int(length.argmax())


def outcome(losses: np.ndarray, short: int, long: int) -> dict[str, np.ndarray]:
    """What is read off losses (m, T + 1, seeds) over an epoch, (seeds,) each.

    ``short`` and ``long`` are the behaviors of the shortest and the longest b. Means are over the
    steps t = 0 … T.
    """
    return {
        "mean gap": gap(losses).mean(0),
        "longest leads": (losses[long] < losses[short])[1:].mean(0),
        "mean loss": losses.mean((0, 1)),
        "shortest, at the end": losses[short, -1],
        "longest, at the end": losses[long, -1],
    }


def change(before: np.ndarray, after: np.ndarray, short: int, long: int) -> dict[str, np.ndarray]:
    """What an arm changes, losses (m, T + 1, seeds) each, (seeds,) each; seeds in pairs.

    The mean gap over what it was, and differences of mean losses: below zero is faster.
    """
    difference = (after - before).mean(1)
    return {
        "mean gap, times": gap(after).mean(0) / gap(before).mean(0),
        "mean loss of the shortest": difference[short],
        "mean loss of the longest": difference[long],
        "mean loss of all": difference.mean(0),
    }


def outcome_table(
    records: RunStore, found: Mapping[tuple[str, ...], Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    """``outcome`` of every arm, a row a key of ``found`` (mixture, …) and an arm."""
    return _told(
        {
            (*key, arm): outcome(losses, *ends(records, key[0]))
            for key, arms in found.items()
            for arm, losses in arms.items()
        }
    )


def change_table(
    records: RunStore, found: Mapping[tuple[str, ...], Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    """``change`` of every arm but the first against that, a row a key of ``found`` and an arm."""
    return _told(
        {
            (*key, arm): change(arms[ARMS[0]], losses, *ends(records, key[0]))
            for key, arms in found.items()
            for arm, losses in arms.items()
            if arm != ARMS[0]
        }
    )


def _told(rows: Mapping[tuple[str, ...], Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Values of several seeds as their median and range."""
    forms = {"longest leads": ".0%", "mean gap, times": ".3f"}

    def told(what: str, values: np.ndarray) -> str:
        form = forms.get(what, ".4f")
        middle = f"{np.median(values):{form}}"
        several = f" ({values.min():{form}} … {values.max():{form}})"
        return middle + several * (len(values) > 1)

    table = {key: {what: told(what, x) for what, x in row.items()} for key, row in rows.items()}
    return pd.DataFrame(table).T


RUNS = (
    lambda records: [
        head_run(records, behaviors) for behaviors in mixture_behaviors(records.config).values()
    ],
    everything,
)
MEASURES = ()
