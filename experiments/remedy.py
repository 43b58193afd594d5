"""Runs of the remedy: groups weighted so that the first step improves them equally."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from dpo_helpers import data, last_layer, lm, mixtures
from ledger.config import Config
from ledger.store import Run, RunStore

from . import full_finetuning, priorities
from .shared import learning_rate, pairs
from .training import train_in_cache

# The arms of the last layer. "As it is" and "resampled" are also trained with all parameters.
ARMS = ("as it is", "reweighted", "resampled", "solved at every step")


def mixture_behaviors(config: Config) -> dict[str, tuple[str, ...]]:
    """The two pairs of Figure 5, and all their behaviors together."""
    one, other = pairs(config)
    return {"(a)": one, "(b)": other, "(a) + (b)": tuple(dict.fromkeys(one + other))}


def shares(records: RunStore, behaviors: Sequence[str]) -> np.ndarray:
    """``mixtures.max_min_weights`` of the differences of means before training: (m,)."""
    b = priorities.differences(records, behaviors)
    return mixtures.max_min_weights(b @ b.T)


def head_run(records: RunStore, behaviors: Sequence[str]) -> Run:
    """The last layer alone on a mixture, by gradient descent, once for each of ``ARMS``.

    loss        (3, m, 2, T + 1) mean losses of each behavior's training and held-out statements: as
                it is, that is, with weights n_j/N; reweighted; solved at every step
    resampled   (m, 2, T + 1, seeds) the same on resampled statements
    weights     (T, m) what was solved for at every step
    """
    config = records.config
    how = {"learning_rate": learning_rate(records), "beta": config.beta, "steps": config.steps}

    def make() -> dict[str, np.ndarray]:
        whole = priorities.problem(records, behaviors)
        g, labels, group = priorities.trained_on(records, behaviors)

        def measured(path: np.ndarray) -> np.ndarray:
            found, columns = [], (whole.g, whole.labels, whole.group)
            for part in (whole.train, ~whole.train):
                selected = (column[part] for column in columns)
                found.append(mixtures.loss_decreases(path, *selected, config.beta))
            return np.log(2) - np.stack(found, 1)

        sizes, first = np.bincount(group), shares(records, behaviors)
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
    return _recorded(records, behaviors, "last-layer", settings, make)


def resampled_run(records: RunStore, behaviors: Sequence[str], rate: float, seed: int) -> Run:
    """All parameters trained for one epoch on a mixture resampled by ``shares``.

    All else as in ``full_finetuning.trained_run``, to compare with. Arrays ``loss``, ``gap``,
    ``accuracy`` as in ``finetune.Curves``, and ``counts`` (m, 2): of each behavior, how many
    statements were drawn, and how many different ones.
    """
    from dpo_helpers import finetune

    config = records.config
    facts = {"model": config.model, "behaviors": list(behaviors)}
    facts |= {"beta": config.beta, "rate": rate, "seed": seed}
    facts |= {"batch_size": config.full_batch_size, "newline": config.newline}

    def make() -> dict[str, np.ndarray]:
        model = lm.load(config.model, config.device)
        statements = [data.load_behavior(behavior, config.data) for behavior in behaviors]
        learned, held_out = lm.pairs_from_behaviors(model, statements, config.newline).split()
        labels = np.array([1 if chosen == (model.yes,) else -1 for chosen in learned.chosen])
        rows = mixtures.resample(labels, learned.group, shares(records, behaviors), seed)
        settings = finetune.Settings(
            beta=config.beta,
            learning_rate=rate,
            batch_size=config.full_batch_size,
            seed=seed,
            save_every=0,
        )
        curves = train_in_cache(model, learned.take(rows), settings, held_out=held_out)
        found = {name: getattr(curves, name) for name in ("loss", "gap", "accuracy")}
        groups = [learned.group[x] for x in (rows, np.unique(rows))]
        found["counts"] = np.stack([np.bincount(x, minlength=len(behaviors)) for x in groups], 1)
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    name = f"beta-{config.beta:g}-rate-{rate:g}-seed-{seed}"
    return _recorded(records, behaviors, name, facts, make)


def _recorded(records: RunStore, behaviors: Sequence[str], name: str, settings, make) -> Run:
    inputs = {behavior: records.states(behavior).sha256 for behavior in behaviors}
    name = f"remedy/{records.model_slug}/{'+'.join(behaviors)}/{name}"
    return records.replay_or_run(name, settings, inputs, make)


def full_runs(records: RunStore, letter: str, name: str) -> dict[str, Run]:
    """Full fine-tuning on pair "(a)" or "(b)" at a named rate, first seed: as it is, resampled."""
    config, pair = records.config, mixture_behaviors(records.config)[letter]
    rate, seed = full_finetuning.rates(records, config.beta)[name], config.full_seeds[0]
    return {
        ARMS[0]: full_finetuning.trained_run(records, pair, config.beta, rate, seed),
        ARMS[2]: resampled_run(records, pair, rate, seed),
    }


def head(records: RunStore, letter: str, part: int = 1) -> dict[str, np.ndarray]:
    """Losses of the last layer by arm, (m, T + 1, seeds); training (0) or held-out statements."""
    arrays = head_run(records, mixture_behaviors(records.config)[letter]).arrays
    found = dict(zip((ARMS[0], ARMS[1], ARMS[3]), arrays["loss"][:, :, part, :, None], strict=True))
    found[ARMS[2]] = arrays["resampled"][:, part]
    return {arm: found[arm] for arm in ARMS}


def everything(records: RunStore) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Held-out losses (m, T + 1, 1) of full fine-tuning by arm, for each pair and rate."""
    rates = full_finetuning.rates(records, records.config.beta)
    found = {}
    for letter, (name, rate) in product(("(a)", "(b)"), rates.items()):
        runs = full_runs(records, letter, name)
        found[letter, f"{rate:g}"] = {k: x.arrays["loss"][:, 1, :, None] for k, x in runs.items()}
    return found


RUNS = (
    lambda records: [head_run(records, x) for x in mixture_behaviors(records.config).values()],
    everything,
)
MEASURES = ()
