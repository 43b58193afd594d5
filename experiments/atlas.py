"""All available behaviors: what is known of each before training, and how fast it is learned."""

import hashlib

import numpy as np
import pandas as pd

from dpo_helpers import data, last_layer, lm, states, theory
from ledger.config import TIERS
from ledger.store import Run, RunStore

from . import full_finetuning
from .outline import Outlined
from .second_llm import noise
from .shared import learning_rate

# How many behaviors are drawn for full fine-tuning.
DRAWN = 20
# What is known before training, by the columns of ``table``: the predictors that are compared.
PREDICTORS = ("apart", "clean", "certified", "probe margin", "probe accuracy")
PREDICTORS += ("base accuracy", "base gap")
# The speeds that they predict: of all behaviors, or of the drawn ones.
SPEEDS = {
    "last layer, training": lambda found: found["last layer, training"],
    "last layer, all": lambda found: found["last layer"],
    "last layer, drawn": lambda found: found.loc[found["drawn"], "last layer"],
    "all parameters, drawn": lambda found: found.loc[found["drawn"], "all parameters"],
}


def behaviors_run(records: RunStore) -> Run:
    """Arrays ``behaviors``, all available ones, and ``drawn``, those for full fine-tuning.

    ``DRAWN`` are drawn with seed 0 from those that no other chapter trains alone, or all of them.
    """
    config = records.config
    known = (*TIERS[config.tier]["behaviors"], TIERS[config.tier]["calibration"])
    new = not records.find("atlas/behaviors")
    names = data.behaviors(config.data) if new or data.at_hand(config.data) else []

    def make() -> dict[str, np.ndarray]:
        others = [name for name in names if name not in known]
        size = min(DRAWN, len(others))
        drawn = np.random.default_rng(0).choice(others, size, replace=False) if others else []
        return {"behaviors": np.array(names), "drawn": np.array(drawn, dtype=str)}

    settings = {"known": known, "drawn": DRAWN}
    sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest() if names else None
    return records.replay_or_run("atlas/behaviors", settings, {"data": sha256}, make)


def before_run(records: RunStore, behavior: str) -> Run:
    """A behavior before training, and the training of its last layer; training statements.

    apart, noise       ‖b̂‖ = ‖μ̂₊ − μ̂₋‖, and ``second_llm.noise``, what noise adds to its square
    common, along      ‖μ̄‖ with μ̄ = (μ̂₊ + μ̂₋)/2, and the cosine of b̂ and μ̄
    spread             max ‖Σ̂±‖
    probe              (2,) ``states.probe``: mean margin and accuracy, held out
    base               (2,) mean gap s W_B·g and accuracy of the untrained model
    confidence         mean of the data's label_confidence, NaN if it has none
    length             mean number of tokens of a prompt
    certified          (2, T + 1) bounds of log 2 − loss under gradient descent
    loss               (2, T + 1, seeds) training and held-out loss of the last layer, minibatches
    """
    config = records.config
    name = f"atlas/{records.model_slug}/{behavior}"
    new, statements = not records.find(name), None
    if new or data.at_hand(config.data):
        statements = data.load_behavior(behavior, config.data)
    how = {"beta": config.beta, "learning_rate": learning_rate(records), "steps": config.steps}
    batches = {what: getattr(config, what) for what in ("batch_size", "sampling", "seeds")}

    def make() -> dict[str, np.ndarray]:
        s = RunStore(config, lm.cache_dir() / "runs").states(behavior)
        g, labels = s.g[s.train], s.labels[s.train]
        means = [g[labels == side].mean(0) for side in (1, -1)]
        b, common = means[0] - means[1], (means[0] + means[1]) / 2
        gap = labels * (g @ s.boundary)
        known = "label_confidence" in statements.rows.column_names
        tokens = records.model().tokenizer(statements.prompts(config.newline))["input_ids"]
        problems = [last_layer.Problem(s.g, s.labels, s.train)]
        found = {
            "apart": np.linalg.norm(b),
            "noise": noise(g, labels),
            "common": np.linalg.norm(common),
            "along": b @ common / np.linalg.norm(b) / np.linalg.norm(common),
            "spread": states.geometry(g, labels).cov_norm,
            "probe": states.probe(s.g, s.labels, s.train),
            "base": (gap.mean(), (gap > 0).mean()),
            "confidence": np.mean(statements.rows["label_confidence"]) if known else np.nan,
            "length": np.mean([len(row) for row in tokens]),
            "certified": proven(g, labels, s.boundary, **how),
            "loss": last_layer.train(problems, s.boundary, **how, **batches)["loss"][0, 0],
        }
        return {what: np.asarray(value, np.float32) for what, value in found.items()}

    facts = {"model": config.model, "newline": config.newline, "dtype": config.dtype}
    inputs = {"data": statements and statements.sha256}
    inputs["model"] = records.weights_sha256(needed=new)
    return records.replay_or_run(name, facts | how | batches, inputs, make)


def proven(
    g: np.ndarray, labels: np.ndarray, boundary: np.ndarray, *, learning_rate, beta, steps
) -> np.ndarray:
    """(2, T + 1): the certificate's bounds of log 2 − loss; 0 and log 2 where κ > 4."""
    how = dict(learning_rate=learning_rate, beta=beta, steps=steps, spectrum=theory.spectrum(g))
    if learning_rate * beta**2 * how["spectrum"].root[0] ** 2 / len(g) > 4:
        return np.outer([0, np.log(2)], np.ones(steps + 1))
    return theory.certificate(g, labels, boundary, **how).loss_decrease


def full_run(records: RunStore, behavior: str) -> Run:
    """Full fine-tuning on the behavior at the scaled rate, β = 0.01, seed 0."""
    *_, rate = full_finetuning.rates(records, 0.01).values()
    who = records if behavior in TIERS[records.config.tier]["behaviors"] else Outlined(records)
    return full_finetuning.trained_run(who, [behavior], 0.01, rate, 0)


def names(records: RunStore) -> list[str]:
    """All available behaviors."""
    return behaviors_run(records).arrays["behaviors"].tolist()


def drawn(records: RunStore) -> list[str]:
    """The behaviors drawn for full fine-tuning, in the order of the draw."""
    return behaviors_run(records).arrays["drawn"].tolist()


def speed(loss: np.ndarray) -> np.ndarray:
    """The learning speed: log 2 less the mean of a loss (…, T + 1) over the steps."""
    return np.log(2) - loss.mean(-1)


def full_losses(records: RunStore) -> dict[str, np.ndarray]:
    """Held-out losses (T + 1,), all parameters; T: the steps that all drawn behaviors have."""
    chosen, main = drawn(records), full_finetuning.MAIN[records.config.tier]
    trained = dict.fromkeys((*main, *chosen))
    losses = {behavior: full_run(records, behavior).arrays["loss"][0, 1] for behavior in trained}
    common = min(len(losses[behavior]) for behavior in chosen or main)
    return {behavior: loss[:common] for behavior, loss in losses.items()}


def table(records: RunStore) -> pd.DataFrame:
    """A row a behavior: predictors, what might explain a surprise, and speeds.

    Speeds are held out but for ``last layer, training``; ``all parameters`` is NaN if not trained.
    """
    losses, chosen, rows = full_losses(records), drawn(records), {}
    for behavior in names(records):
        a = before_run(records, behavior).arrays
        single = ("apart", "common", "along", "spread", "confidence", "length")
        row = {name: float(a[name]) for name in single}
        row["clean"] = float(np.sqrt(max(0.0, a["apart"] ** 2 - a["noise"])))
        row["certified"], row["certified, most"] = a["certified"].mean(-1).tolist()
        row["probe margin"], row["probe accuracy"] = a["probe"].tolist()
        row["base gap"], row["base accuracy"] = a["base"].tolist()
        for part, where in enumerate(("last layer, training", "last layer")):
            row[where] = float(np.median(speed(np.moveaxis(a["loss"][part], -1, 0))))
        row["all parameters"] = float(speed(losses[behavior])) if behavior in losses else np.nan
        rows[behavior] = row | {"drawn": behavior in chosen}
    return pd.DataFrame(rows).T.astype(float).astype({"drawn": bool})


RUNS = (
    behaviors_run,
    lambda records: [before_run(records, behavior) for behavior in names(records)],
    lambda records: [full_run(records, behavior) for behavior in drawn(records)],
)
MEASURES = ()
