"""All behaviors at hand: what is known of each before training, and how fast it is learned."""

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from dpo_helpers import data, last_layer, lm, theory
from dpo_helpers.states import geometry
from dpo_helpers.theory import certificate
from ledger.config import TIERS
from ledger.store import Run, RunStore

from . import full_finetuning
from .outline import Outlined
from .second_llm import agreement, noise
from .shared import bootstrapped, learning_rate

# How many behaviors are drawn to be trained in full.
DRAWN = 20
# Of fewer behaviors no rank correlation is told.
MIN_BEHAVIORS = 10
# What is known before training, by the column of ``table``: the predictors that are compared.
PREDICTORS = {
    "apart": "‖b̂‖",
    "clean": "‖b̂‖, less noise",
    "certified": "certificate: fall proven",
    "probe margin": "linear probe, margin",
    "probe accuracy": "linear probe, accuracy",
    "base accuracy": "base model, accuracy",
    "base gap": "base model, gap",
}
# What might explain where ‖b̂‖ is wrong.
REASONS = {
    "confidence": "label confidence, mean",
    "length": "length of the prompt, tokens",
    "base accuracy": "accuracy of the base model",
    "common": "length of the common mean",
    "along": "cosine of b̂ and the common mean",
    "spread": "‖Σ̂‖",
}


def behaviors_run(records: RunStore) -> Run:
    """The names of all behaviors at hand, and which of them are trained in full.

    Arrays ``behaviors`` and ``drawn``, names. Drawn are ``DRAWN`` of those that the tier's other
    chapters do not train alone, with seed 0, or all where there are fewer.
    """
    config = records.config
    known = (*TIERS[config.tier]["behaviors"], TIERS[config.tier]["calibration"])
    new = not records.find("atlas/behaviors")
    names = data.behaviors(config.data) if new or data.at_hand(config.data) else []

    def make() -> dict[str, np.ndarray]:
        others = [name for name in names if name not in known]
        rng = np.random.default_rng(0)
        drawn = rng.choice(others, min(DRAWN, len(others)), replace=False) if others else []
        return {"behaviors": np.array(names), "drawn": np.array(drawn, dtype=str)}

    return records.replay_or_run(
        "atlas/behaviors",
        {"known": known, "drawn": DRAWN},
        {"data": hashlib.sha256("\n".join(names).encode()).hexdigest() if names else None},
        ("experiments.atlas.behaviors_run",),
        make,
    )


def before_run(records: RunStore, behavior: str) -> Run:
    """What the hidden states of a behavior tell before training, and its last layer's training.

    Of the training statements but where it says otherwise:

    apart, noise       ‖b̂‖ = ‖μ̂₊ − μ̂₋‖, and ``second_llm.noise``: its square's surplus
    common, along      ‖μ̄‖ with μ̄ = (μ̂₊ + μ̂₋)/2, and the cosine of b̂ and μ̄
    spread             max ‖Σ̂±‖
    probe              (2,) held-out mean margin and accuracy, as ``probe`` gives them
    base               (2,) mean gap s W_B·g and accuracy of the untrained model
    confidence         mean of the data's label_confidence, NaN where it has none
    length             mean number of tokens of a prompt
    certified          (2, T + 1) bounds of log 2 − loss under gradient descent
    loss               (2, T + 1, seeds) training and held-out loss of the last layer, minibatches
    """
    config = records.config
    name = f"atlas/{records.model_slug}/{behavior}"
    new = not records.find(name)
    statements = None
    if new or data.at_hand(config.data):
        statements = data.load_behavior(behavior, config.data)
    how = {"beta": config.beta, "learning_rate": learning_rate(records), "steps": config.steps}
    batches = {"batch_size": config.batch_size, "sampling": config.sampling, "seeds": config.seeds}

    def make() -> dict[str, np.ndarray]:
        s = RunStore(config, lm.cache_dir() / "runs").states(behavior)
        g, labels = s.g[s.train], s.labels[s.train]
        means = [g[labels == side].mean(0) for side in (1, -1)]
        b, common = means[0] - means[1], (means[0] + means[1]) / 2
        gap = labels * (g @ s.boundary)
        column = statements.rows.column_names
        confidence = statements.rows["label_confidence"] if "label_confidence" in column else []
        tokens = records.model().tokenizer(statements.prompts(config.newline))["input_ids"]
        problem = last_layer.Problem(s.g, s.labels, s.train)
        trained = last_layer.train([problem], s.boundary, **how, **batches)
        found = {
            "apart": np.linalg.norm(b),
            "noise": noise(g, labels),
            "common": np.linalg.norm(common),
            "along": b @ common / np.linalg.norm(b) / np.linalg.norm(common),
            "spread": geometry(g, labels).cov_norm,
            "probe": probe(s.g, s.labels, s.train),
            "base": (gap.mean(), (gap > 0).mean()),
            "confidence": np.mean(confidence) if len(confidence) else np.nan,
            "length": np.mean([len(row) for row in tokens]),
            "certified": proven(g, labels, s.boundary, **how),
            "loss": trained["loss"][0, 0],
        }
        return {what: np.asarray(value, np.float32) for what, value in found.items()}

    facts = {"model": config.model, "newline": config.newline, "dtype": config.dtype}
    inputs = {
        "data": statements.sha256 if statements else None,
        "model": records.weights(needed=new),
    }
    return records.replay_or_run(name, facts | how | batches, inputs, make)


def probe(g: np.ndarray, labels: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """Mean margin and accuracy on the statements that ``train`` (n,) bool leaves out.

    Of logistic regression on standardised states, as ``geometry.separable``: a margin is the
    signed distance from its boundary there.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    line.fit(g[train], labels[train])
    margin = labels[~train] * line.decision_function(g[~train])
    return float(margin.mean() / np.linalg.norm(line[-1].coef_)), float((margin > 0).mean())


def proven(
    g: np.ndarray, labels: np.ndarray, boundary: np.ndarray, *, learning_rate, beta, steps
) -> np.ndarray:
    """(2, T + 1): the certificate's bounds of log 2 − loss; 0 and log 2 where κ > 4."""
    spectrum = theory.spectrum(g)
    if learning_rate * beta**2 * spectrum.root[0] ** 2 / len(g) > 4:
        return np.outer([0, np.log(2)], np.ones(steps + 1))
    how = dict(learning_rate=learning_rate, beta=beta, steps=steps)
    return certificate(g, labels, boundary, spectrum=spectrum, **how).loss_decrease


def full_run(records: RunStore, behavior: str) -> Run:
    """The behavior trained in full at the scaled rate, β = 0.01, seed 0."""
    rate = [*full_finetuning.rates(records, 0.01).values()][-1]
    own = behavior in TIERS[records.config.tier]["behaviors"]
    who = records if own else Outlined(records)
    return full_finetuning.trained_run(who, [behavior], 0.01, rate, 0)


def drawn(records: RunStore) -> list[str]:
    """The behaviors drawn to be trained in full, in the order of the draw."""
    return behaviors_run(records).arrays["drawn"].tolist()


def speed(loss: np.ndarray) -> np.ndarray:
    """How fast a behavior is learned: log 2 less the mean of its loss (…, T + 1) over the steps."""
    return np.log(2) - loss.mean(-1)


def table(records: RunStore) -> pd.DataFrame:
    """A row a behavior: predictors, reasons, and the speeds measured, held out.

    ``last layer``: median over seeds, and beside it that on the training statements; ``all
    parameters``: NaN where not trained; ``drawn``: whether it was drawn for that.
    """
    chosen = drawn(records)
    trained = [*full_finetuning.MAIN[records.config.tier], *chosen]
    rows = {}
    for behavior in behaviors_run(records).arrays["behaviors"].tolist():
        a = before_run(records, behavior).arrays
        row = {name: float(a[name]) for name in ("apart", "common", "along", "spread")}
        row |= {"confidence": float(a["confidence"]), "length": float(a["length"])}
        row["clean"] = float(np.sqrt(max(0.0, a["apart"] ** 2 - a["noise"])))
        row["certified"], row["certified, most"] = a["certified"].mean(-1).tolist()
        row["probe margin"], row["probe accuracy"] = a["probe"].tolist()
        row["base gap"], row["base accuracy"] = a["base"].tolist()
        for part, where in enumerate(("last layer, training", "last layer")):
            row[where] = float(np.median(speed(np.moveaxis(a["loss"][part], -1, 0))))
        row["all parameters"] = np.nan
        if behavior in trained:
            row["all parameters"] = float(speed(full_run(records, behavior).arrays["loss"][0, 1]))
        rows[behavior] = row | {"drawn": behavior in chosen}
    return pd.DataFrame(rows).T.astype(float).astype({"drawn": bool})


SPEEDS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "last layer, training": lambda found: found["last layer, training"],
    "last layer, all": lambda found: found["last layer"],
    "last layer, drawn": lambda found: found.loc[found["drawn"], "last layer"],
    "all parameters, drawn": lambda found: found.loc[found["drawn"], "all parameters"],
}


def _interval(rho: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*rho)


def _told(correlation: Callable[..., tuple[float, float, float]], *columns: pd.Series) -> str:
    """A correlation of columns (m,) in words; a dash for m < ``FEW``, NaN, or equal values."""
    if any(len(x) < MIN_BEHAVIORS or x.isna().any() or x.nunique() < 2 for x in columns):
        return "–"
    return _interval(correlation(*(x.to_numpy() for x in columns)))


def predictors_table(found: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each predictor with each speed of ``table``, with 95 % intervals.

    A dash where there are fewer than ``FEW`` behaviors, or no correlation is defined.
    """
    rows = {}
    for name, title in PREDICTORS.items():
        rows[title] = {}
        for what, select in SPEEDS.items():
            y = select(found)
            rows[title][what] = _told(agreement, found.loc[y.index, name], y)
    return pd.DataFrame(rows).T


def advantage(one: np.ndarray, other: np.ndarray, speeds: np.ndarray) -> tuple[float, float, float]:
    """By how much the rank correlation with ``speeds`` (m,) is higher for ``one`` than ``other``.

    With a 95 % interval from drawing behaviors with replacement, the three (m,) together.
    """

    def difference(a: np.ndarray, b: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        first, second = (stats.spearmanrho(x, y, axis=axis).statistic for x in (a, b))
        return first - second

    return bootstrapped(difference, one, other, speeds)


def advantage_table(found: pd.DataFrame) -> pd.DataFrame:
    """``advantage`` of every other predictor over ‖b̂‖, a column a speed; else as above."""
    rows = {}
    for name, title in PREDICTORS.items():
        if name == "apart":
            continue
        rows[title] = {}
        for what, select in SPEEDS.items():
            y = select(found)
            one, other = (found.loc[y.index, x] for x in (name, "apart"))
            rows[title][what] = _told(advantage, one, other, y)
    return pd.DataFrame(rows).T


def surprise(found: pd.DataFrame, what: str) -> pd.Series:
    """Ranks by a speed of ``SPEEDS`` less those that a line in ranks by ‖b̂‖ gives, least squares.

    Positive where learned faster than foretold. Less the ranks by ‖b̂‖ themselves it would correlate
    with all that ‖b̂‖ correlates with, be it a reason or not.
    """
    y = SPEEDS[what](found).rank()
    if len(y) < 2:
        return y - y
    x = found.loc[y.index, "apart"].rank()
    return (y - np.polyval(np.polyfit(x, y, 1), x)).round(6)


def reasons_table(found: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each reason with ``surprise``, a column a speed."""
    rows = {}
    for name, title in REASONS.items():
        rows[title] = {}
        for what in SPEEDS:
            y = surprise(found, what)
            rows[title][what] = _told(agreement, found.loc[y.index, name], y)
    return pd.DataFrame(rows).T


def decided_table(found: pd.DataFrame) -> pd.DataFrame:
    """Pairs of behaviors whose order the certificate proves for gradient descent.

    Proven is the order of two where the least that is proven of the one, mean over steps, is more
    than the most of the other. Columns: pairs, share proven, share of these that were measured in
    that order, and the share of all pairs measured in the order of ‖b̂‖.
    """
    rows = {}
    for what, select in SPEEDS.items():
        y = select(found)
        if len(y) < 2:
            continue
        least, most, apart = (
            found.loc[y.index, name].to_numpy()
            for name in ("certified", "certified, most", "apart")
        )
        y = y.to_numpy()
        upper = np.triu_indices(len(y), 1)
        sure = ((least[:, None] > most).astype(int) - (least > most[:, None]))[upper]
        order = np.sign(y[:, None] - y)[upper]
        rows[what] = {
            "pairs": len(order),
            "proven": np.mean(sure != 0),
            "of these as proven": np.mean(order[sure != 0] == sure[sure != 0])
            if sure.any()
            else np.nan,
            "all as ‖b̂‖ says": np.mean(order == np.sign(apart[:, None] - apart)[upper]),
        }
    return pd.DataFrame(rows).T


RUNS = (
    behaviors_run,
    lambda records: [
        before_run(records, b) for b in behaviors_run(records).arrays["behaviors"].tolist()
    ],
    lambda records: [full_run(records, b) for b in drawn(records)],
)
MEASURES = ()
