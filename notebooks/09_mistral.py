# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (second-llm)=
# # The second LLM
#
# **You will see** what carries over to a model of another family: whether it finds the same
# behaviors easy to tell apart, whether it learns them in that order, what two behaviors do to each
# other in it, whether it is as easily misaligned once aligned, and what training makes of its
# hidden states.
#
# **It takes** fifteen minutes to read. The recorded runs are replayed in half a minute. **It
# needs** nothing to replay; to train, the data ({ref}`how-to-run`) and the second model.
# {ref}`full-finetuning` comes before it, and {ref}`distributional-changes` for the last part.
#
# This page follows §5.4 and Appendix B of {cite:t}`im2024understanding`: Figures 10 to 14. The
# paper says of its second model that "similar behavior occurs"; the same tests that judged the
# first model judge it here.
#
# ```{admonition} What differs from the paper
# :class: note
# The paper's second model is Mistral-7B, and so it is here at the paper tier. At the book tier it
# is Gemma-3-270M: another family, another tokenizer, other data than SmolLM2's, and no training on
# instructions. Its weights come dequantised from 4 bit, its unembedding is tied to its embedding.
# The smoke tier's is a tiny Mistral with random weights, which knows nothing: it shows that the
# page runs. $\beta = 0.01$, batches of 32, one epoch, all parameters, as in the paper; one seed a
# run, as in the paper. The paper's learning rate is shown, and beside it one scaled by the rule of
# {ref}`full-finetuning`. Losses are those of held-out statements where the text says so, since
# these are less noisy.
# ```

# %% tags=["parameters"]
tier = "book"
data = None
full_learning_rate = None
full_batch_size = None
device = None

# %% [markdown]
# `experiments.second_llm` holds no experiment of its own but one. `second` gives the records of the
# second model; the runs and measures of the chapters before are then asked for with these in place
# of the first's.
#
# Of this model's hidden states the book keeps an *outline* only: labels, the statistics of
# {ref}`case-study`, and the vector $\hat b = \hat\mu_+ - \hat\mu_-$. The states themselves are measured where they
# are needed, and stay in the reader's cache.

# %%
import numpy as np
import pandas as pd
from experiments import full_finetuning, misalignment, second_llm
from experiments.shared import distinguishability, pairs
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import lm, plots

config = configure(globals())
records = RunStore(config)
other = second_llm.second(records)

# %% tags=["hide-input", "nbval-ignore-output"]
display(
    Markdown(
        f"{records.header()}\n- **second model:** "
        f"{lm.describe(other.config.model)} "
        f"{lm.whereabouts(other.config.model)}"
    )
)

# %% [markdown]
# (ev-two-models)=
# ## Two models, before training
#
# Every statement of {ref}`case-study` was about lengths: $\|\hat b\|$, $\|\hat\Sigma\|$, and constants that
# compare them with $\sqrt d$. Between two models such lengths mean little. What the final norm
# leaves is as long as its gain makes it, and a model that divides its unembedding by $c$ and
# multiplies its hidden states by $c$ is the same model. So the table has two kinds of rows:
# lengths, and ratios in which a scale drops out ({prf:ref}`prop-ratios`). They are medians over the
# behaviors of Figure 10.

# %% tags=["hide-input"]
second_llm.sizes_table(records).map(lambda value: f"{value:.3g}")

# %% [markdown]
# ### The same behaviors?
#
# The paper orders five behaviors by distinguishability under Llama-2-7B, and plots Mistral-7B's
# losses under the same five names. Is the order a property of the behaviors, or of the model? Five
# are too few to tell. `survey_run` measures $\|\hat b\|$ of *every* behavior at hand under both
# models, each from the same 400 of its training statements, and keeps three numbers a behavior: the
# distance, what the noise of the two means adds to its square, and the mean length of a state.
# {numref}`fig-survey` has the distances.

# %%
survey = second_llm.surveyed(records)
first_name, second_name = records.config.model, other.config.model
five = [b for b in full_finetuning.MAIN[config.tier] if b in survey.index]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distinguishability of every behavior at hand under the two models, before training. The behaviors of Figure 10 are in their colours.", "name": "fig-survey"}, "image": {"alt": "A scatter plot with logarithmic axes: distinguishability under the first model to the right, under the second upwards. A grey point is a behavior; those of Figure 10 are coloured."}}
apart = survey["apart"]
points = {"other behaviors": apart.drop(five).to_numpy().T}
points |= {plots.short(b): apart.loc[[b]].to_numpy().T for b in five}
colors = {"other behaviors": "#6b6b6b"}
plots.lines(
    {f"‖μ̂₊ − μ̂₋‖, {second_name}": points},
    f"‖μ̂₊ − μ̂₋‖, {first_name}",
    scale=("log", "log"),
    dots=list(points),
    colors=colors | {plots.short(b): plots.color(b) for b in five},
)

# %% [markdown]
# The rank correlations of the two axes are below, with 95 % intervals from drawing behaviors with
# replacement. The second row takes off each distance what noise adds to it; the third divides it by
# the length of a state. The last asks whether long states, not distance, are what the models share.

# %% tags=["hide-input"]
named = {
    "apart": "‖b̂‖",
    "clean": "‖b̂‖, less noise",
    "relative": "‖b̂‖ / mean ‖g‖",
    "length": "mean ‖g‖",
}
table = pd.DataFrame(
    {
        title: second_llm.agreement(*survey[what].to_numpy().T)
        for what, title in named.items()
    },
    index=["rank correlation", "low", "high"],
).T
display(table.round(2), Markdown(f"Over **{len(survey)}** behaviors."))

# %% [markdown]
# At the book tier the answer is clear. Two models of different makers, tokenizers and sizes
# agree on which behaviors are far apart: most of the order is a property of the behaviors, and not
# of the model. Noise does not make the agreement, nor does length, on which the two do not agree at
# all.

# %% [markdown]
# (ev-second-rate)=
# ## Which learning rate?
#
# The paper trains Mistral-7B at $\eta = 10^{-6}$, a tenth of what it takes for Llama-2-7B; why, it
# does not say. The two are about equally large, so the reason that {ref}`full-finetuning` gave for
# scaling a rate, the number of parameters, is not it. The rule is the one fixed there: the smallest
# multiple of the paper's rate, among 1, 3, 10, 30 and 100, at which *agreeableness* ends its epoch
# with a held-out loss of 0.5 or less. It starts from this model's rate, and no figure of this page
# was seen when it was fixed.

# %% tags=["hide-input"]
rates = full_finetuning.rates(other, config.beta)
if "scaled" in rates:
    tried = full_finetuning.calibration_table(other).set_index("η")
    display(tried.astype(float).round(3))
display(
    Markdown(
        f"Learning rates: {', '.join(f'{n} **{r:g}**' for n, r in rates.items())}."
    )
)

# %% [markdown]
# A step of AdamW moves a parameter by about $\eta$. How far that carries the answers is a property
# of the model. The next table has both models after one epoch, medians over the behaviors of Figure
# 10, all of held-out statements. If the gap grew in proportion to $\eta$, its second column would
# be the same at both rates of a model; between the models it says how much one unit of learning
# rate is worth.

# %% tags=["hide-input"]
second_llm.steps_table(records).astype(float).round(3)

# %% [markdown]
# One unit of learning rate moves this model's answers several times as far as the first one's. That
# is a reason for a smaller rate that the number of parameters does not give, and it would be one
# for the paper's: its two models may differ in this, too, which it does not say. For the first
# model the gap grows nearly in proportion to the rate; for the second it grows faster, so at its
# scaled rate the first-order picture of the earlier chapters is left further behind.

# %% [markdown]
# (ev-figure-ten)=
# ## Five behaviors, one at a time
#
# {numref}`fig-ten` is Figure 10, one row a learning rate: left the loss of each batch before it is
# learned, which is what the paper shows; right that of all held-out statements. The numbers before
# the names are the paper's order, from 1, the least distinguishable under Llama-2-7B, to 5.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Full fine-tuning of the second model: loss of the batches (left) and of the held-out statements (right), one run a behavior (the paper's Figure 10).", "name": "fig-ten"}, "image": {"alt": "A grid of panels, one row a learning rate, of loss against step for the behaviors of Figure 10: training batches left, held-out statements right. All start at log 2."}}
main = full_finetuning.MAIN[config.tier]
panels, colors = {}, {}
for rate in dict.fromkeys(rates.values()):
    losses = full_finetuning.stacked(other, main, config.beta, rate, "loss")
    for part, what in enumerate(("training loss", "held-out loss")):
        series = panels[f"{what}, η = {rate:g}"] = {}
        for number, (b, values) in enumerate(zip(main, losses, strict=True), 1):
            name = f"{number} {plots.short(b)}"
            values = values[0, 0, part]
            series[name] = (np.arange(len(values)), values)
            colors[name] = plots.color(b)
plots.lines(panels, "step", colors=colors, ncols=2)

# %% [markdown]
# As before, a curve counts by its mean over the steps, and its rank over the five behaviors is
# compared with that of $\|\hat b\|$ in the same model before training. A perfect order of five has
# $p = 1/120$.

# %% tags=["hide-input"]
if len(main) > 2:
    ranks = {
        (what, f"η = {rate:g}"): full_finetuning.areas(
            other, config.beta, rate, part
        )
        for rate in rates.values()
        for part, what in enumerate(("training loss", "held-out loss"))
    }
    display(full_finetuning.rank_table(distinguishability(other, main), ranks))

# %% [markdown]
# Below are the same behaviors in both models: how far apart they are before training, and their
# mean held-out loss over the epoch at each rate. Read down a column for the order within a model,
# and across for what the two have in common.

# %% tags=["hide-input"]
speeds = second_llm.speeds_table(records)
speeds.index = [f"{i} {plots.short(b, 30)}" for i, b in enumerate(main, 1)]
speeds.astype(float).round(3)

# %% [markdown]
# The second model keeps the order better than the first. At the paper's rate it is perfect. At the
# scaled one two neighbours change places, the second and the fourth of the paper's order, whose
# distances in this model are nearly equal. In {ref}`ev-figure-six` the first model broke the
# order because the second behavior was learned before the fourth and the fifth; here the fifth comes first, at
# both rates, and at the paper's rate by a hair.

# %% [markdown]
# (ev-figure-twelve)=
# ## Two behaviors at once
#
# Figure 12 has two pairs of the paper's choice, (a) with a large priority gap under Mistral-7B and
# (b) with a small one. They share a behavior. With two equally large behaviors (5) makes the gap
#
# $$|P_1 - P_2| = \frac{\big|\,\|b_1\|^2 - \|b_2\|^2\,\big|}{\|b_1 + b_2\|\,\max_i\|b_i\|} ,$$
#
# so it is a matter of lengths first, and of the angle between the two. What is it under this model?

# %% tags=["hide-input"]
second_llm.priority_table(records).astype(float).round(2)

# %% [markdown]
# The claim is that a larger gap in $P$ goes with a larger gap in loss, so before looking at losses,
# look which of the two rows has the larger gap. {numref}`fig-twelve` has each behavior's own
# held-out loss.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Held-out loss of each behavior of the two pairs of Figure 12, trained together, one run each.", "name": "fig-twelve"}, "image": {"alt": "A grid of panels, one row a pair and one column a learning rate, each with the held-out loss of the two behaviors of the pair against step."}}
panels, colors = {}, {}
for letter, pair in zip("ab", pairs(other.config), strict=True):
    for rate in dict.fromkeys(rates.values()):
        series = panels[f"({letter}) held-out loss, η = {rate:g}"] = {}
        both = full_finetuning.pair_losses(other, pair, rate)
        for b, values in zip(pair, both, strict=True):
            series[plots.short(b)] = (np.arange(len(values)), values)
            colors[plots.short(b)] = plots.color(b)
plots.lines(panels, "step", colors=colors, ncols=2)

# %% [markdown]
# "Close for most of training" needs a number. A difference in loss alone will not do: at a small
# learning rate all losses are close. So two losses count as close at a step if the slower has
# fallen from $\log 2$ at least half as far as the faster. The last column has the share of steps at
# which they are; the claim on pair (b) is tested with it, at more than one half.

# %% tags=["hide-input"]
table = full_finetuning.pair_table(other)
shares = [
    second_llm.close(full_finetuning.pair_losses(other, pair, rate)).mean()
    for pair in pairs(other.config)
    for rate in rates.values()
]
table["close"] = [f"{share:.0%} of steps" for share in shares]
table.set_index(["pair", "η"])

# %% [markdown]
# Both claims pass, and the second pair nevertheless speaks against the theory. Under this model, as
# under the paper's, (a) has the larger priority gap, and by far. At the scaled rate its losses
# differ clearly more than those of (b). At the paper's rate the two gaps are all but equal: what
# decides the verdict there is too small to be evidence. And in (b) it is the *less* distinguishable behavior, of
# the lower priority, whose loss is the lower at every step, at both rates. So a gap in $P$ did not
# even tell which of the two is learned first. The priority levels (5) are about the first step of
# the last layer; what made the difference in the layers below, they do not say.

# %% [markdown]
# (ev-figure-eleven)=
# ## Misalignment
#
# {numref}`fig-eleven`, the paper's Figure 11, is Figure 9 for the second model: one run on flipped labels from the base model, one
# from the model aligned on the true labels for an epoch, all else equal, and each measured against
# the model that it starts from. Both losses so begin at $\log 2$. The third curve starts from the
# aligned model and keeps the base model as its reference: there the loss begins where alignment has
# put it, and the comparison is another one.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss on flipped labels, from the base and from the aligned second model (the paper's Figure 11).", "name": "fig-eleven"}, "image": {"alt": "A grid of panels, one row a behavior and one column a learning rate, of the training loss on flipped labels against step: from the base model, from the aligned model, and from the aligned model with the base model as reference."}}
arms, panels = misalignment.LABELS, {}
for b in second_llm.two(records):
    for name, rate in rates.items():
        runs = misalignment.flipped(other, [b], name, "loss")[0, 0, :, 0]
        label = f"{plots.short(b, 22)}, η = {rate:g}"
        panels[label] = {
            arm: (np.arange(len(values)), values)
            for arm, values in zip(arms, runs, strict=True)
        }
plots.lines(panels, "step", colors=misalignment.HUES, dashed=arms[2:], ncols=2)

# %% tags=["hide-input"]
table = second_llm.lead_table(records).astype(float).round(4)
table.rename(index=lambda name: plots.short(name, 40), level=0)

# %% [markdown]
# The lead is positive for both behaviors at both rates, in training and held out: the claim
# reproduces under the second model. It is the smaller by far for the behavior of low
# distinguishability, as under the first one: there alignment had changed little that could be
# undone. And a lead over the epoch need not be one at its end. On the last batch the loss from the
# base model is the lower in every panel but one, that of the second behavior at the scaled rate. Of
# the held-out statements, the base model's run has overtaken the other with the first behavior at
# the scaled rate, and nowhere else.

# %% [markdown]
# (ev-figure-thirteen)=
# ## What training does to its hidden states
#
# Figures 13 and 14 are pictures before and after, of a behavior of low and one of high
# distinguishability. {numref}`fig-thirteen` has them at the last of the learning rates above,
# fitted apart and together. {ref}`ev-blind` says what such pictures cannot show.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Hidden states of two behaviors under the second model: before, after, and both on one map with the former pale (the paper's Figures 13 and 14, one row each).", "name": "fig-thirteen"}, "image": {"alt": "Two rows of scatter plots, one a behavior: hidden states before training, after training, and both on one map with those before in pale colours. Green discs are statements to be answered Yes, grey crosses those to be answered No."}}
panels = {}
for number, b in zip((13, 14), second_llm.two(records), strict=True):
    found = full_finetuning.trained_run(
        other, [b], config.beta, [*rates.values()][-1], 0
    ).arrays
    sides = other.states(b).labels
    panels[f"{number}: before"] = (found["separate"][0], sides)
    panels[f"{number}: after"] = (found["separate"][1], sides)
    panels[f"{number}: both"] = (found["joint"], sides)
plots.planes(panels, ncols=3)

# %% [markdown]
# And the numbers, in the original space, before → after: $q_1 = \|\hat\Sigma\|/\|\hat b\|$ is the
# paper's ratio as {ref}`ev-measured-change` reads it, $q_2 = \|\hat\Sigma\|/\|\hat b\|^2$ the one
# that is free of scale. Where $q_2$ after training lies below $v$ before, statements are told apart
# better along $\hat b$ than before, and no scale or stretch can have done that
# ({prf:ref}`prop-ratios`).

# %% tags=["hide-input"]
table = second_llm.changes_table(records)
table.rename(index=lambda name: plots.short(name, 30), level=0)

# %% [markdown]
# The second model repeats what {ref}`ev-measured-change` found of the first. The means part by
# several times their distance, of held-out statements too. The variances grow faster than that
# distance, so that $q_1$ rises: in the paper's ratio the sides are less concentrated, at either
# rate. They grow more slowly than its square. $q_2$ falls, and at the scaled rate it falls below
# $v$ for both behaviors: against their distance they vary less along $\hat b$ than before. At the paper's rate
# that holds for the more distinguishable one, and is open for the other.

# %% [markdown]
# (ev-paper-tier)=
# ## With the paper's own model
#
# One command makes all runs of this page with Mistral-7B, beside Llama-2-7B, and executes it:
#
# ```
# snakemake --cores 1 --config tier=paper -- build/paper/executed/09_mistral.done
# ```
#
# No single card of {ref}`hardware` holds the runs on flipped labels. Both models are gated on the hub: ask for access on their pages, then run `hf auth login`.
#
# The table says what the runs need, computed as {ref}`hardware` does: memory on the one GPU that
# runs them, and operations; hidden states and the survey, which only read, come on top. Divide the
# operations by what the GPU does in a second for a lower bound on the time; each step also reads
# and writes all weights and both averages of AdamW.

# %% tags=["hide-input"]
second_llm.needs_table().round(0).astype(int)

# %% [markdown]
# Runs on flipped labels keep the base and the aligned weights beside those that they train. Where a
# GPU has less, single runs of Figure 10 can be sharded over several:
#
# ```
# accelerate launch --config_file configs/mistral-7b.yaml -m dpo_helpers.finetune OUT \
#   --model mistral-7b --data anthropic --behavior subscribes-to-Buddhism \
#   --precision bfloat16 --learning-rate 1e-6
# ```
#
# It writes its curves to `OUT/metrics.jsonl`, not to this page.

# %% [markdown]
# ## What was shown
#
# Claims are judged by the same tests as their counterparts for the first model, at the worse of the
# two learning rates, with the same thresholds. Of F12b, which had no such counterpart, the test was
# written down before its runs. What was left out: other seeds, other values of $\beta$, the first
# step of all parameters, and, on flipped labels, few examples.
#
# "Similar behavior occurs", then, also where the paper is contradicted: that the sides become more
# concentrated did not reproduce under the first model, and does not under the second. The order of
# distinguishability is better kept than before, and largely the same in both models. What is new is
# a doubt, about priorities. Two models are two points, and where they differ, the tables above say
# in what else they differ, and not which of it matters.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("09_mistral", records)))

# %% [markdown]
# ```{exercise} Does noise change an order?
# :label: ex-noisy-ranks
#
# On average $\|\hat b\|^2$ is $\|b\|^2 + {\rm Tr}\,S$ with $S = \Sigma_+/n_+ + \Sigma_-/n_-$.
# Suppose ${\rm Tr}\,S$ is the same for all behaviors. What does it do to the rank correlation of
# two models' distances? And if Gaussian noise is drawn anew for each model, what decides whether
# two behaviors change places?
# ```
#
# ````{solution} ex-noisy-ranks
# :class: dropdown
# On average nothing: adding the same number to all squares keeps every order, so that "less noise"
# can change ranks only where ${\rm Tr}\,S$ differs between behaviors. But one draw scatters:
# $\hat b = b + e$ with covariance $S$, and $\|\hat b\|^2$ has variance
# $4\,b\cdot Sb + 2\,{\rm Tr}\,S^2$. Two behaviors are likely to change places where their $\|b\|^2$
# differ by less than the root of the sum of their variances. Both terms shrink with $n$, so the
# correlation measured here is, if anything, too low.
# ````
#
# **To try.**
#
# - `papermill notebooks/09_mistral.ipynb out.ipynb -p full_learning_rate 1e-5`: the second model at
#   the rate that the paper has for its first.
# - `survey.sort_values(("relative", second_name))`: which behaviors are closest in the second
#   model, and are they so in the first?
# - `papermill notebooks/01_case_study.ipynb out.ipynb -p model gemma-3-270m`: how fast the last
#   layer alone learns the five under this model.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(other.provenance()))
