# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (atlas)=
# # An atlas of behaviors
#
# **You will see** every available behavior, before and after training: its distinguishability, what
# can be proven about its training, and how fast the last layer learns it. For some behaviors drawn
# at random, you will also see how fast full fine-tuning learns them. Then we ask which of seven
# quantities known before training predicts the speed best, and where the predictions fail.
#
# **It takes** ten minutes to read. The recorded runs replay in a minute. **It needs** nothing to
# replay. To measure anew, it needs the data and the model ({ref}`how-to-run`). Read
# {ref}`case-study` and {ref}`learning-guarantees` first.
#
# The paper shows five behaviors of varying distinguishability, and five are easily put in order. A
# practitioner wants to know whether distinguishability also orders behaviors that nobody chose. So
# we fixed three things before any run: the measures, the predictors, and a random sample of
# behaviors for full fine-tuning. The sample excludes the behaviors of the other chapters. We
# changed one measure later, as {ref}`ev-speed` says.

# %% tags=["parameters"]
tier = "book"
model = None
data = None
device = None

# %% [markdown]
# `experiments.atlas` has one record per behavior, and `atlas.table` puts them together. Hidden
# states are measured, used, and left in the reader's cache. The book stores what was computed from
# them.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from experiments import atlas, full_finetuning
from experiments.second_llm import agreement
from experiments.shared import bootstrapped
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from scipy import stats

from dpo_helpers import plots
from dpo_helpers.browse import browse

plots.use_style()
config = configure(globals())
records = RunStore(config)
found = atlas.table(records)
drawn = atlas.drawn(records)
main = full_finetuning.MAIN[config.tier]
five = [b for b in main if b in found.index]  # of the case study

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))
counts = f"**{len(found)}** behaviors; **{len(drawn)}** drawn at random"
display(Markdown(f"{counts} for full fine-tuning."))

# %% [markdown]
# (ev-speed)=
# ## What is predicted, and from what
#
# The *learning speed* of a behavior is $\log 2$ minus its held-out loss averaged over the steps,
#
# $$\text{speed} = \log 2 - \frac1{T+1}\sum_{t=0}^{T} L_t ,$$
#
# that is, how far the loss curve lies below its start on average. The last layer's speed comes from
# the training of {ref}`case-study`, as the median over its seeds. The speed of all parameters comes
# from one epoch of full fine-tuning at the scaled rate of {ref}`full-finetuning`.


# %%
def speed(loss):
    """log 2 minus the mean over the steps of losses (…, T + 1)."""
    return np.log(2) - loss.mean(-1)


trained = dict.fromkeys([*main, *drawn])
whole = {b: atlas.full_run(records, b).arrays["loss"][0, 1] for b in trained}
lengths = pd.Series({b: len(loss) - 1 for b, loss in whole.items()})
display(lengths.value_counts().rename_axis("steps").to_frame("runs"))
steps = lengths[drawn or list(trained)].min()
for behavior, loss in whole.items():
    assert np.isclose(
        found.loc[behavior, "all parameters"], speed(loss[: steps + 1])
    )
Markdown(f"Speeds of all parameters are over the first **{steps}** steps.")

# %% [markdown]
# Speeds can be compared only over equally many steps. One of the behaviors drawn has half as many
# statements as the others, and so half as many steps in its epoch. Therefore, for full fine-tuning,
# $T$ is the largest number of steps that every drawn behavior has. An earlier version of this page
# took the mean over each behavior's own epoch. {ref}`ev-predictors` shows what this choice changes.
#
# The following is known before training. All of it comes from the training statements, except for
# the score of the probe:
#
# - $\|\hat b\| = \|\hat\mu_+ - \hat\mu_-\|$, the paper's measure;
# - the same with the noise of the two sample means subtracted ({ref}`second-llm`);
# - the *certificate* ({prf:ref}`thm-certificate`): the loss decrease proven for gradient descent, as a
#   mean over the steps;
# - a *linear probe*, logistic regression on standardized states: its mean margin, and its accuracy
#   on the held-out statements. Speed is measured on the same held-out statements, which may favor
#   the probe;
# - the *base model's* answers: how often it already prefers the chosen answer, and its mean gap.
#
# {numref}`fig-atlas` shows $\|\hat b\|$ against both speeds.

# %% mystnb={"figure": {"caption": "Learning speed on held-out statements against distinguishability: last layer (left), all parameters (right).", "name": "fig-atlas"}, "image": {"alt": "Two scatter plots of learning speed against distinguishability, one point a behavior: left the last layer alone, right all parameters of the behaviors that were fully fine-tuned. Behaviors of the case study are colored, behaviors of no other chapter gray."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.4, 4.4))
for ax, column in zip(axes, ("last layer", "all parameters"), strict=True):
    known = found.dropna(subset=[column])
    others = known.drop(five)
    ax.plot(
        others["apart"],
        others[column],
        "o",
        c="#6b6b6b",
        ms=4,
        label="other behaviors",
    )
    for b in five:
        ax.plot(
            *known.loc[b, ["apart", column]],
            "o",
            c=plots.color(b),
            label=plots.short(b),
        )
    ax.set(
        title=column,
        xlabel="distinguishability ‖b̂‖",
        ylabel="learning speed (nats)",
    )
plots.legend_below(fig, axes[0], ncols=1)
plt.show()

# %% [markdown]
# (ev-predictors)=
# ## Which predictor is best?
#
# The table has rank correlations with the speed, and 95 % intervals from resampling behaviors with
# replacement. Two columns cover all behaviors, for the last layer: its speed on training statements
# (*training*), and on held-out statements (*all*). Two columns cover the drawn behaviors: held-out
# speed of the last layer, and of all parameters. The drawn behaviors exclude the behaviors of the
# other chapters, because rules of this book were set while looking at those.


# %%
def in_words(statistic, *columns):
    """A statistic with its interval; a dash if values are few, missing or equal."""
    if any(len(x) < 10 or x.isna().any() or x.nunique() < 2 for x in columns):
        return "–"
    values = statistic(*(x.to_numpy() for x in columns))
    return "{:.2f} ({:.2f} to {:.2f})".format(*values)


# %%
def correlations(found, titles, target):
    """Rank correlations: one row per column of ``found``, one column per speed."""
    rows = {title: {} for title in titles.values()}
    for what in atlas.SPEEDS:
        y = target(found, what)
        for name, title in titles.items():
            rows[title][what] = in_words(agreement, found.loc[y.index, name], y)
    return pd.DataFrame(rows).transpose()


def speed_of(found, what):
    """The speeds that a column of the tables is about, one per behavior."""
    return atlas.SPEEDS[what](found)


# %%
titles = {"apart": "‖b̂‖", "clean": "‖b̂‖, noise subtracted"}
titles |= {"certified": "certificate: proven loss decrease"}
titles |= {f"probe {x}": f"linear probe, {x}" for x in ("margin", "accuracy")}
titles |= {f"base {x}": f"base model, {x}" for x in ("accuracy", "gap")}
assert tuple(titles) == atlas.PREDICTORS

ranks = found[["apart", "last layer"]].rank()
rho = agreement(*found[["apart", "last layer"]].to_numpy().T)[0]
assert np.isclose(rho, np.corrcoef(ranks.T)[0, 1])
correlations(found, titles, speed_of)

# %% [markdown]
# On a hundred behaviors that nobody chose, $\|\hat b\|$ and the certificate order the speeds of the
# last layer almost perfectly. A linear probe asks how well the best boundary separates the
# statements, and not how far apart their means are. It predicts much worse. How the base model
# answers says little about how fast the last layer will learn.
#
# **For all parameters the result is different.** No predictor stands out: the probe's margin,
# the certificate, and $\|\hat b\|$ have nearly the same correlation. The correlation of $\|\hat b\|$ is
# positive, and so is its interval, but it is lower than for the last layer of the same behaviors. We
# trained the behaviors in the order of their draw, in two halves. After the first half this page said
# that $\|\hat b\|$ predicts their order well. The second half alone would not support this. We planned
# twenty behaviors. The intervals are wide, and show how little ten or twenty behaviors can settle.
#
# The number of steps matters. The next table compares the first steps with the whole epoch, over the
# drawn behaviors whose epoch has full length.

# %%
full_epoch = [b for b in drawn if lengths[b] == lengths.max()]
columns = {}
for last in dict.fromkeys((steps, lengths.max())):
    y = pd.Series(
        {b: speed(whole[b][: last + 1]) for b in full_epoch}, dtype=float
    )
    columns[f"{last} steps"] = {
        title: in_words(agreement, found.loc[y.index, name], y)
        for name, title in titles.items()
    }
same_behaviors = pd.DataFrame(columns)
display(same_behaviors, Markdown(f"Over **{len(full_epoch)}** behaviors."))

# %% [markdown]
# For the same behaviors, both scores of the probe have higher correlations over the whole epoch.
# The correlation of $\|\hat b\|$ hardly changes. This page used to compare unequal numbers of
# steps, and reported the highest correlation for the probe's margin. On these behaviors, the
# probe's margin has the highest correlation over the whole epoch. Over the first half, its
# correlation is only a little higher than the correlations of $\|\hat b\|$ and the certificate.
#
# Any two predictors are measured on the same behaviors. So their intervals may overlap although one
# predictor is better on every sample of behaviors. The next table shows the *advantage* of a
# predictor $x$ over $\|\hat b\|$: the difference of their rank correlations with the speed $y$,
#
# $$\rho(x, y) - \rho(\|\hat b\|, y),$$
#
# with the three columns resampled together. If an interval excludes zero, the two predictors differ.


# %%
def advantage(one, other, speeds):
    """ρ of ``one`` with speeds (m,) minus ρ of ``other``, with its interval."""

    def difference(a, b, y, axis=-1):
        rho = [stats.spearmanrho(x, y, axis=axis).statistic for x in (a, b)]
        return rho[0] - rho[1]

    return bootstrapped(difference, one, other, speeds)


# %%
rows = {title: {} for name, title in titles.items() if name != "apart"}
for what in atlas.SPEEDS:
    y = speed_of(found, what)
    x = found.loc[y.index]
    for name, title in list(titles.items())[1:]:
        rows[title][what] = in_words(advantage, x[name], x["apart"], y)
display(pd.DataFrame(rows).transpose())
y = pd.Series({b: speed(whole[b]) for b in full_epoch}, dtype=float)
x = found.loc[y.index]
ahead = in_words(advantage, x["probe margin"], x["apart"], y)
Markdown(f"Advantage of the probe's margin over the whole epoch: **{ahead}**.")

# %% [markdown]
# For the last layer, the probe and the base model's answers are worse predictors than $\|\hat b\|$. For
# all parameters every interval contains zero, over the whole epoch too: twenty behaviors cannot tell
# these predictors apart.

# %% [markdown]
# (ev-decided)=
# ## What is proven, and does it hold?
#
# The certificate does more than correlate: it proves an order. A pair of behaviors is *decided* if
# the lower bound on the loss decrease of one exceeds the upper bound on the loss decrease of the
# other. The proof holds for gradient descent on the training statements. The runs here use
# minibatches, are measured on held-out statements in all rows but one, and in the last row train
# all parameters. So the proven order may fail. The column *of these as proven* shows how often it
# holds among the decided pairs. The column *all as ‖b̂‖ orders* shows in what share of all pairs
# $\|\hat b\|$ gives the right order.


# %%
def decided(found, what):
    """How often the certificate and ‖b̂‖ order pairs of behaviors as a speed does."""
    y = speed_of(found, what)
    rows = found.loc[y.index, ["certified", "certified, most", "apart"]]
    least, most, apart = rows.to_numpy().T
    pairs = np.triu_indices(len(y), 1)  # each pair of behaviors once
    above, below = least[:, None] > most, least > most[:, None]
    proven = (above.astype(int) - below)[pairs]
    measured = np.sign(np.subtract.outer(y.to_numpy(), y.to_numpy()))[pairs]
    longer = np.sign(np.subtract.outer(apart, apart))[pairs]
    right = (measured == proven)[proven != 0]
    return {
        "pairs": len(measured),
        "decided": (proven != 0).mean(),
        "of these as proven": right.mean() if len(right) else np.nan,
        "all as ‖b̂‖ orders": (measured == longer).mean(),
    }


# %%
several = [what for what in atlas.SPEEDS if len(speed_of(found, what)) > 1]
shares = pd.DataFrame(
    {what: decided(found, what) for what in several}
).transpose()
shares.astype(float).round(3)

# %% [markdown]
# More than nine pairs in ten are decided. Of these, nearly all were measured in the proven order on
# the training statements, more than nine in ten on held-out statements, and more than three in four
# where all parameters were trained. Over all pairs, $\|\hat b\|$ gives the right order in nearly as
# large a share, although it also orders the close pairs that the certificate leaves open.

# %% [markdown]
# (ev-reasons)=
# ## Where the prediction fails, and why
#
# The *surprise* of a behavior is the residual of its rank by speed after a linear fit on its rank
# by $\|\hat b\|$. It is positive where the behavior was learned faster than predicted. We do not
# use the plain difference of the two ranks: where the prediction is imperfect, this difference
# decreases with $\|\hat b\|$ itself, so that anything correlated with $\|\hat b\|$ would look like
# a reason. Does anything known before training explain the surprise? The table shows its rank
# correlations with six candidates. (*Common mean* is the midpoint
# $\bar\mu = (\hat\mu_+ + \hat\mu_-)/2$. *Label confidence* is a field of the data.)


# %%
def surprise(found, what):
    """Residuals of the ranks by speed after a linear fit on the ranks by ‖b̂‖."""
    y = speed_of(found, what).rank()
    if len(y) < 2:
        return y - y
    x = found.loc[y.index, "apart"].rank()
    slope, intercept = np.polyfit(x, y, 1)
    return (y - slope * x - intercept).round(6)


reasons = {
    "confidence": "label confidence, mean",
    "length": "length of the prompt, tokens",
    "base accuracy": "accuracy of the base model",
    "common": "length of the common mean",
    "along": "cosine of b̂ and the common mean",
    "spread": "‖Σ̂‖",
}
correlations(found, reasons, surprise)

# %% [markdown]
# The candidates explain little. Of the eighteen intervals for held-out speeds, two exclude zero:
# the cosine of $\hat b$ and the common mean for the last layer over all behaviors, and the accuracy
# of the base model for all parameters. By chance, about one of eighteen would exclude zero. For the
# last layer, the first column of the table in {ref}`ev-predictors` gives the explanation. We looked
# at it only after we had seen the surprises below. **On the statements it is trained on, the last
# layer's speed is predicted almost without error.** Where the prediction fails, the hundred
# held-out statements are easier or harder than the training statements. This comes from how the
# statements were split, and needs no property of the behavior as its explanation. For all
# parameters the failures are larger. The second interval that excludes zero hints that behaviors
# are learned faster than predicted if the base model already answers them well; one such interval
# is weak evidence. What explains these failures remains open.
#
# For each speed, the tables below show the five behaviors with the largest surprise in either
# direction, in ranks, and the candidates that might explain it.

# %%
for what in atlas.SPEEDS:
    size = surprise(found, what)
    order = size.abs().sort_values(ascending=False, kind="stable").index[:5]
    worst = found.loc[order, ["apart", *reasons]].round(3)
    worst.insert(0, f"surprise, {what}", size[order].round(1))
    display(worst.rename(index=lambda name: plots.short(name, 44)))

# %% [markdown]
# (ev-browse)=
# ## All of them
#
# Below is the whole atlas. You can sort it by any column, search it by name, and plot any column
# against any other. Behaviors that match your search are highlighted in the scatter plot. *proven* and
# *at most* are the bounds of the certificate. Speeds of all parameters are over the first steps only,
# as above.

# %% tags=["hide-input"]
shown = ["apart", "last layer", "all parameters", "clean", "certified"]
shown += ["certified, most", "probe margin", "probe accuracy", "base accuracy"]
shown += ["base gap", "common", "along", "spread", "confidence", "length"]
renamed = {"apart": "‖b̂‖", "clean": "‖b̂‖, noise subtracted", "spread": "‖Σ̂‖"}
renamed |= {"certified": "proven", "certified, most": "at most"}
renamed |= {"common": "‖μ̄‖", "along": "cos(b̂, μ̄)"}
browse(
    found[shown].sort_values("apart", ascending=False).rename(columns=renamed),
    "Every available behavior: what is known before training, and measured speeds.",
    name="atlas-of-behaviors",
    axes=("‖b̂‖", "last layer"),
    colors={b: plots.color(b) for b in five},
)

# %% [markdown]
# ## What was shown
#
# The paper makes no claim about behaviors beyond its figures, so no row of the scorecard depends on
# this page. This page asks the paper's question about behaviors that were not chosen, and gives
# intervals.
#
# - The paper's measure holds up for the last layer. It orders the speeds as well as the certificate
#   does, and better than a probe or the base model's answers do.
# - Its errors there are sampling errors: the held-out statements differ from the training statements.
# - For all parameters the measure predicts less well: its rank correlation is positive, and so is
#   the interval, but the correlation is far from perfect. Over equally many first steps, a probe's
#   margin and the certificate do about as well. Over the whole epoch the probe's margin had the
#   highest correlation, but not beyond chance. To predict which behavior full fine-tuning learns
#   first, use both $\|\hat b\|$ and the probe.
#
# This page differs from the other chapters: all parameters were trained at one learning rate, with
# one seed. Few behaviors give wide intervals, and the behaviors of one collection are not a sample
# of all that one might teach. The certificate uses the last layer's hidden states of all training
# statements: their lengths, how they overlap, and which of them pull against the others. It does
# not know the order of the minibatches, the held-out statements, or how the layers below will
# change. Where one of these decides which behavior is faster, the certificate cannot predict it.

# %% [markdown]
# ```{exercise} Why does a speed limit not make an order?
# :label: ex-atlas-order
#
# {prf:ref}`thm-a` bounds the distance moved by a multiple of $\|\hat b\|$. Two behaviors have
# $\|\hat b_1\| > \|\hat b_2\|$. Give hidden states for which gradient descent on the last layer, with
# steps as small as you like, has a lower loss on the second behavior from some step on.
# ```
#
# ````{solution} ex-atlas-order
# :class: dropdown
# Let the second behavior have two statements, at $b_2/2$ with Yes preferred and at $-b_2/2$ with No
# preferred. Both pull in the same direction, and the loss goes to zero. On the Yes side of the first
# behavior, let a share $p > \frac12$ of the statements be at $c$ and the rest at $-c$; on its No side,
# the same with signs changed. Then $\hat b_1 = 2(2p - 1)c$, which can be made as long as we like by
# the length of $c$. The first step decreases the loss by about $\eta\beta^2\|\hat b\|^2/8$, so the
# first behavior leads. But along $c$ a share $1 - p$ of its statements is always answered wrongly. So
# its loss stays above the entropy $-p\log p - (1 - p)\log(1 - p)$, which is near $\log 2$ for $p$ near
# one half. No bound that knows only $\|\hat b\|$ can see the difference. The certificate, which knows
# all states, can.
# ````
#
# **To try.**
#
# - `found.sort_values("base gap")`: the behaviors that the base model already shows, or does not.
# - `surprise(found, "last layer, all").sort_values()`: all surprises of the last layer.
# - `papermill notebooks/10_atlas.ipynb out.ipynb -p model gemma-3-270m`: the same atlas of another
#   model; it trains the drawn behaviors anew.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
