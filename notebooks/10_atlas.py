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
# **You will see** every behavior at hand, before training and after: how far apart its statements
# are, what can be proven of its training, how fast the last layer learns it, and, for some drawn by
# lot, how fast all parameters do. Then which of seven things that are known before training
# foretells that speed best, and where they are wrong.
#
# **It takes** ten minutes to read. The recorded runs are replayed in a minute. **It needs** nothing
# to replay; to measure anew, the data and the model ({ref}`how-to-run`). {ref}`case-study` and
# {ref}`learning-guarantees` come before it.
#
# The paper shows five behaviors of varying distinguishability, and five are easily put in order.
# What a practitioner wants to know is whether distinguishability orders behaviors that nobody chose.
# So what follows was fixed before it was run: the measures, the predictors, and a draw by lot of
# those that are trained in full, from which the behaviors of the other chapters were left out.

# %% tags=["parameters"]
tier = "book"
model = None
data = None
device = None

# %% [markdown]
# `experiments.atlas` has one record a behavior, and `table` puts them together. Hidden states are
# measured, used and left in the reader's cache: the book stores what was computed from them.

# %%
from experiments import atlas, full_finetuning
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore

from dpo_helpers import plots
from dpo_helpers.browse import browse

config = configure(globals())
records = RunStore(config)
found = atlas.table(records)

# %% tags=["hide-input", "nbval-ignore-output"]
lot = found["drawn"].sum()
display(Markdown(records.header()))
display(
    Markdown(
        f"**{len(found)}** behaviors; **{lot}** drawn by lot to be trained in full."
    )
)

# %% [markdown]
# (ev-speed)=
# ## What is foretold, and by what
#
# The *speed* of a behavior is $\log 2$ less its mean held-out loss over the steps: the area between
# the curve and where it starts. Of the last layer that is the training of {ref}`case-study`, the
# median over its seeds; of all parameters, one epoch at the scaled rate of {ref}`full-finetuning`.
#
# Known before training, all from the training statements but for the probe's score:
#
# - $\|\hat b\| = \|\hat\mu_+ - \hat\mu_-\|$, the paper's measure;
# - the same, less what the noise of two sample means adds to its square;
# - the *certificate* ({prf:ref}`thm-certificate`): the fall of the loss that is proven for gradient
#   descent, mean over the steps;
# - a *linear probe*, logistic regression on standardised states: its mean margin, and its accuracy,
#   on the held-out statements. Speed is measured on the same ones, which may favour the probe;
# - the *base model's* answers: how often it already prefers the right one, and by what gap.
#
# {numref}`fig-atlas` has the first of them against both speeds.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Speed against distinguishability. Left the last layer, right all parameters, held-out statements. Grey: behaviors in no other chapter; in colour those of the case study.", "name": "fig-atlas"}, "image": {"alt": "Two scatter plots of speed of learning against distinguishability, one point a behavior: left the last layer alone, right all parameters of the behaviors that were trained in full. The behaviors of the case study are in colours."}}
five = list(full_finetuning.MAIN[config.tier])
panels, colors = {}, {"other behaviors": "#6b6b6b"}
for column in ("last layer", "all parameters"):
    known = found.dropna(subset=[column])[["apart", column]]
    panels[f"speed, {column} (nats)"] = {
        "other behaviors": known.drop(five).to_numpy().T
    } | {plots.short(b): known.loc[[b]].to_numpy().T for b in five}
colors |= {plots.short(b): plots.color(b) for b in five}
plots.lines(panels, "‖b̂‖", dots=list(colors), colors=colors, ncols=2)

# %% [markdown]
# (ev-predictors)=
# ## Which predictor is best?
#
# Rank correlations with the speed, and 95 % intervals from drawing behaviors with replacement: over
# all behaviors for the last layer, on training statements and, *all*, on those held out; over those
# drawn, for the last layer and for all parameters. The behaviors of the other chapters are left out
# of the drawn, since rules of this book were set while looking at them.

# %% tags=["hide-input"]
atlas.predictors_table(found)

# %% [markdown]
# On a hundred behaviors that nobody chose, $\|\hat b\|$ and the certificate are almost a perfect
# order of the last layer's speeds. A linear probe, which asks how well the best boundary separates
# the statements and not how far apart their means are, does much worse; and how the base model
# answers says little of how fast it will learn.
#
# **Of all parameters the picture is another one.** There the probe's margin has the highest
# correlation, and $\|\hat b\|$ one that is positive, its interval too, but lower than for the last
# layer of the same behaviors. They were trained in the order of their draw, in two halves, and after the
# first this page said that their order is foretold well. The second half alone would not have
# said so of $\|\hat b\|$. Twenty behaviors were planned; the intervals are wide, and say how little
# ten or twenty can settle.
#
# Intervals of two predictors may overlap although one is better on every draw of behaviors, since
# both are measured on the same ones. The next table has the difference to the correlation of
# $\|\hat b\|$, drawn in pairs: an interval that leaves out zero tells the two apart. Of all parameters
# none does: whether the probe is really the better one there, twenty behaviors do not tell.

# %% tags=["hide-input"]
atlas.advantage_table(found)

# %% [markdown]
# (ev-decided)=
# ## What is proven, and does it hold?
#
# The certificate does not correlate, it proves: two behaviors are *decided* where the least fall of
# the one is more than the most fall of the other. That is a theorem about gradient descent on the
# training statements. The runs here are of another kind, of minibatches, measured on held-out
# statements, and in the last row of all parameters. So it may fail, and the table says how often;
# beside it, how often the order of two behaviors is that of their $\|\hat b\|$.

# %% tags=["hide-input"]
atlas.decided_table(found).astype(float).round(3)

# %% [markdown]
# More than nine pairs in ten are decided. Of these, nearly all were measured in the order proven on
# the training statements, more than nine in ten on those held out, and four in five where all
# parameters were trained. Of all pairs $\|\hat b\|$ orders nearly as
# large a share, though it commits itself on close calls too, which the certificate leaves out.

# %% [markdown]
# (ev-reasons)=
# ## Where the prediction fails, and why
#
# Let the *surprise* of a behavior be what is left of its rank by speed after a straight line in its
# rank by $\|\hat b\|$: positive where it was learned faster than foretold. Why not the plain
# difference of the two ranks? Where the prediction is imperfect, that difference falls with
# $\|\hat b\|$ itself, so whatever goes with $\|\hat b\|$ would look like a reason. Does anything
# that was known explain the surprise? The table has rank correlations with six things that might.

# %% tags=["hide-input"]
atlas.reasons_table(found)

# %% [markdown]
# Not much: of the intervals held out, one alone leaves out zero, and of so many one in twenty would
# by chance. For the last layer the first column of the table in {ref}`ev-predictors` has the answer, and we looked at it only after the surprises below: **on
# the statements it is trained on, the last layer's speed is foretold almost without error**. Where
# the prediction fails, the hundred statements held out are easier or harder than those trained on. That
# is a draw of statements; nothing about the behavior needs to explain it. Of all parameters the failures
# are larger, and none of the six explains them. What does is open; that the probe's margin orders
# these behaviors better says where to look.
#
# By name, the five with the largest surprise, in ranks, either way and for each speed; beside it
# what might explain it.

# %% tags=["hide-input"]
for what in atlas.SPEEDS:
    surprise = atlas.surprise(found, what)
    order = surprise.abs().sort_values(ascending=False, kind="stable").index[:5]
    worst = found.loc[order, ["apart", *atlas.REASONS]].round(3)
    worst.insert(0, f"surprise, {what}", surprise[order].round(1))
    display(worst.rename(index=lambda name: plots.short(name, 44)))

# %% [markdown]
# (ev-browse)=
# ## All of them
#
# Below is the whole atlas: sort it by any column, search it by name, and put any column against any
# other. What you searched for stands out in the scatter. *proven* and *at most* are the bounds of
# the certificate.

# %% tags=["hide-input"]
titles = {
    "apart": "‖b̂‖",
    "last layer": "last layer",
    "all parameters": "all parameters",
    "clean": "‖b̂‖ less noise",
    "certified": "proven",
    "certified, most": "at most",
    "probe margin": "probe margin",
    "probe accuracy": "probe accuracy",
    "base accuracy": "base accuracy",
    "base gap": "base gap",
    "common": "‖μ̄‖",
    "along": "cos(b̂, μ̄)",
    "spread": "‖Σ̂‖",
    "confidence": "confidence",
    "length": "length",
}
browse(
    found[list(titles)]
    .rename(columns=titles)
    .sort_values("‖b̂‖", ascending=False),
    "Every behavior at hand: what is known before training, and speeds measured.",
    name="atlas-of-behaviors",
    axes=("‖b̂‖", "last layer"),
    colors={b: plots.color(b) for b in five},
)

# %% [markdown]
# ## What was shown
#
# The paper makes no claim about behaviors beyond its figures, so no row of the scorecard hangs on
# this page. What it adds is the question in the plural: over behaviors that were not chosen, and
# with intervals.
#
# - The paper's measure holds up. It orders the speeds of the last layer as well as the certificate
#   does, and better than a probe or the base model's answers do.
# - Its errors there are errors of sampling: the statements held out are not those trained on.
# - Of all parameters it foretells less: a rank correlation that is positive, its interval too, and far from
#   perfect. A probe's margin did better on these behaviors, though not beyond chance. Who wants
#   to know which behavior full training learns first should ask both.
#
# What differs from the other chapters: all parameters were trained at one learning rate, with one
# seed. Few behaviors give wide intervals, and the behaviors of one collection are not a sample of all
# that one might teach. The certificate sees all training statements of the last layer: their
# lengths, how they overlap, which of them pull against the others. It sees neither the draw of
# minibatches, nor the statements held out, nor how the layers below will move; where one of these
# decides which behavior is faster, it cannot know.

# %% [markdown]
# ```{exercise} Why does a speed limit not make an order?
# :label: ex-atlas-order
#
# {prf:ref}`thm-a` bounds the distance moved by a multiple of $\|\hat b\|$. Two behaviors have
# $\|\hat b_1\| > \|\hat b_2\|$. Give hidden states for which gradient descent on the last layer,
# however small its steps, has learned the second further from some step on.
# ```
#
# ````{solution} ex-atlas-order
# :class: dropdown
# Let the second have two statements, at $b_2/2$ with Yes preferred and at $-b_2/2$ with No: both
# pull the same way, and the loss goes to zero. Let the first have, on the side of Yes, a share $p$
# at $c$ and the rest at $-c$, on the side of No the same with signs changed. Then
# $\hat b_1 = 2(2p - 1)c$, as long as you like by the length of $c$. The first step lowers the loss
# by about $\eta\beta^2\|\hat b\|^2/8$, so the first behavior leads. But along $c$ a share $1 - p$ of
# the statements is always answered wrongly, so that its loss stays above the entropy
# $-p\log p - (1 - p)\log(1 - p)$, which is near $\log 2$ for $p$ near one half. No bound that knows
# $\|\hat b\|$ alone sees the difference. The certificate, which knows all states, does.
# ````
#
# **To try.**
#
# - `found.sort_values("base gap")`: the behaviors that the base model already has, or lacks.
# - `atlas.surprise(found, "last layer, all").sort_values()`: all surprises of the last layer.
# - `papermill notebooks/10_atlas.ipynb out.ipynb -p model gemma-3-270m`: the same atlas of another
#   model; it trains those drawn anew.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
