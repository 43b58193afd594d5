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
# **You will see** what carries over to a model of another family. Are the same behaviors
# distinguishable in it? Does it learn them in the order of distinguishability? How do two behaviors
# compete in it? Does alignment make it easier to misalign? How does training change its hidden
# states?
#
# **It takes** fifteen minutes to read. The recorded runs replay in half a minute. **It needs**
# nothing to replay. To train, it needs the data ({ref}`how-to-run`) and the second model. Read
# {ref}`full-finetuning` first, and {ref}`distributional-changes` before the last part.
#
# This page follows §5.4 and Appendix B of {cite:t}`im2024understanding`: Figures 10 to 14. The
# paper says of its second model that "similar behavior occurs". We judge the second model by the
# same tests as the first.
#
# ```{admonition} What differs from the paper
# :class: note
# The paper's second model is Mistral-7B. The paper tier uses it too. The book tier uses
# Gemma-3-270M. Its family, tokenizer, and training data differ from SmolLM2's, and it was not
# trained on instructions. Its weights are dequantized from 4 bit, and its unembedding is tied to
# its embedding. The smoke tier uses a tiny Mistral with random weights, which knows nothing: it
# only shows that the page runs. As in the paper, $\beta = 0.01$, batches have 32 pairs, we train
# all parameters for one epoch, and each run has one seed. We show the paper's learning rate and one
# scaled by the rule of {ref}`full-finetuning`. Some tables and figures use held-out losses, since
# these are less noisy; the text says where.
# ```

# %% tags=["parameters"]
tier = "book"
data = None
full_learning_rate = None
full_batch_size = None
device = None

# %% [markdown]
# `second_llm.second` returns the records of the second model. The runs and measures of the earlier
# chapters then take these records in place of the first model's. Only the survey below is a new
# experiment.
#
# The book stores only an *outline* of this model's hidden states: the labels, the statistics of
# {ref}`case-study`, and the vector $\hat b = \hat\mu_+ - \hat\mu_-$. The states themselves are
# measured when they are needed, and stay in the reader's cache.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from experiments import (
    distributional_changes,
    full_finetuning,
    misalignment,
    second_llm,
)
from experiments.shared import distinguishability, pairs
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from transformers import MistralConfig
from workflow import claims

from dpo_helpers import data as persona
from dpo_helpers import lm, mixtures, plots
from dpo_helpers.finetune import memory

# %%
plots.use_style()
config = configure(globals())
records = RunStore(config)
other = second_llm.second(records)
main = full_finetuning.MAIN[config.tier]  # the behaviors of Figure 10

# %% tags=["hide-input", "nbval-ignore-output"]
display(
    Markdown(
        f"{records.header()}\n- **second model:** {lm.describe(other.config.model)} "
        f"{lm.whereabouts(other.config.model)}"
    )
)

# %% [markdown]
# (ev-two-models)=
# ## Two models, before training
#
# {ref}`case-study` describes hidden states by lengths: $\|\hat b\|$, $\|\hat\Sigma\|$, and the
# constants $\Delta$, $c_v$, and $c_n$ that relate such lengths to the dimension $d$. It means
# little to compare such lengths between two models. The gain of the final norm sets the length of a
# hidden state. Dividing the unembedding by $c$ and multiplying the hidden states by $c$ leaves the
# model the same. So the table has two kinds of rows: lengths, and ratios from which the scale
# cancels ({prf:ref}`prop-ratios`). The numbers are medians over the behaviors of Figure 10.


# %%
def sizes(who):
    """Lengths and ratios of a model: medians over the behaviors of Figure 10."""
    found = [who.states(behavior).geometry for behavior in main]
    b, mean, variance = np.array(
        [(m.distinguishability, m.mean_norm, m.cov_norm) for m in found]
    ).T
    rows = {"d": [m.d for m in found], "‖μ̂‖, the longer": mean, "‖b̂‖": b}
    rows |= {"‖b̂‖/‖μ̂‖": b / mean, "Δ": [m.delta for m in found]}
    rows |= {"‖Σ̂‖": variance, "q₂ = ‖Σ̂‖/‖b̂‖²": variance / b**2}
    rows |= {"c_v": [m.c_v for m in found], "c_n": [m.c_n for m in found]}
    return {name: np.median(values) for name, values in rows.items()}


table = pd.DataFrame({who.config.model: sizes(who) for who in (records, other)})
table.map(lambda value: f"{value:.3g}")

# %% [markdown]
# ### The same behaviors?
#
# The paper orders five behaviors by their distinguishability under Llama-2-7B, and plots
# Mistral-7B's losses under the same five names. Is the order a property of the behaviors, or of the
# model? Five behaviors are too few to say. `survey_run` measures $\|\hat b\|$ of *every* available
# behavior under both models, from the same 400 training statements each. It records three numbers
# per behavior: $\|\hat b\|$, the noise of the two sample means, and the mean length of a state.
#
# The noise matters because a sample mean of $n_\pm$ states differs from the true mean $\mu_\pm$ by an
# error of covariance $\Sigma_\pm/n_\pm$. On average these errors lengthen $\hat b$:
#
# $$\mathbb E\|\hat b\|^2 = \|b\|^2 + \frac{{\rm Tr}\,\Sigma_+}{n_+} + \frac{{\rm Tr}\,\Sigma_-}{n_-}.$$


# %%
def noise(g, labels):
    """What sampling adds on average to ‖μ̂₊ − μ̂₋‖², for states g (n, d)."""
    traces = {}
    for side in (1, -1):
        states = g[labels == side]
        centered = states - states.mean(0)
        traces[side] = (centered**2).sum() / (len(states) - 1) / len(states)
    return traces[1] + traces[-1]


# %% [markdown]
# We check this function twice: on random states without any difference between the sides ($b = 0$),
# where the whole distance is noise, and against the survey's record of the first model.

# %%
rng, labels = np.random.default_rng(0), np.repeat([1, -1], [30, 50])
draws = rng.standard_normal((500, 80, 4)) * [1.0, 2.0, 3.0, 4.0]
lengths = [
    np.sum((g[labels > 0].mean(0) - g[labels < 0].mean(0)) ** 2) for g in draws
]
estimates = [noise(g, labels) for g in draws]
assert abs(np.mean(lengths) / np.mean(estimates) - 1) < 0.1

survey_arrays = second_llm.survey_run(records).arrays
known = survey_arrays["behaviors"].tolist().index(main[0])
states = records.states(main[0])
rows = persona.split(len(states.labels))[0][: second_llm.SURVEYED]
g, labels = states.g[rows], states.labels[rows]
b = g[labels > 0].mean(0) - g[labels < 0].mean(0)
assert np.isclose(noise(g, labels), second_llm.noise(g, labels), rtol=1e-9)
assert np.isclose(noise(g, labels), survey_arrays["noise"][known], rtol=1e-2)
assert np.isclose(np.linalg.norm(b), survey_arrays["apart"][known], rtol=1e-2)

# %% [markdown]
# From the three numbers of each behavior we get its distinguishability with and without the noise, and
# relative to the length of a state. {numref}`fig-survey` shows the distances.

# %%
columns = {}
for who in (records, other):
    arrays = second_llm.survey_run(who).arrays
    apart, length = (arrays[x].astype(float) for x in ("apart", "length"))
    found = {"apart": apart, "relative": apart / length, "length": length}
    found["clean"] = np.sqrt(np.maximum(0, apart**2 - arrays["noise"]))
    for what, values in found.items():
        columns[what, who.config.model] = pd.Series(values, arrays["behaviors"])
survey = pd.DataFrame(columns)
five = [behavior for behavior in main if behavior in survey.index]

# %% mystnb={"figure": {"caption": "Distinguishability of every available behavior before training: second model against first model.", "name": "fig-survey"}, "image": {"alt": "A scatter plot with logarithmic axes: distinguishability under the first model on the x-axis, under the second on the y-axis. A gray point is a behavior; the behaviors of Figure 10 are colored."}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5, 4.8))
ax.plot(
    *survey["apart"].drop(five).to_numpy().T,
    "o",
    c="#6b6b6b",
    ms=4,
    label="other behaviors",
)
for b in five:
    ax.plot(
        *survey.loc[b, "apart"], "o", c=plots.color(b), label=plots.short(b, 42)
    )
ax.set(xscale="log", yscale="log")
for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")
ax.set(
    xlabel=f"‖b̂‖, {records.config.model}", ylabel=f"‖b̂‖, {other.config.model}"
)
plots.legend_below(fig, ax, ncols=1)
plt.show()

# %% [markdown]
# The table has the rank correlations between the two models, with 95 % intervals from resampling
# behaviors with replacement. The second row subtracts from each distance the part that noise adds.
# The third row divides the distance by the length of a state. The last row compares the lengths
# alone: do the models agree on which behaviors have long states?

# %%
titles = {"apart": "‖b̂‖", "clean": "‖b̂‖, noise subtracted"}
titles |= {"relative": "‖b̂‖ / mean ‖g‖", "length": "mean ‖g‖"}
table = pd.DataFrame(
    [second_llm.agreement(*survey[what].to_numpy().T) for what in titles],
    index=titles.values(),
    columns=["rank correlation", "low", "high"],
)
display(table.round(2), Markdown(f"Over **{len(survey)}** behaviors."))

# %% [markdown]
# At the book tier the answer is clear. Two models that differ in maker, tokenizer, and size agree on
# which behaviors are distinguishable. Most of the order is a property of the behaviors and not of the
# model. Noise does not explain the agreement. Length does not explain it either, since the two
# models do not agree on it at all.

# %% [markdown]
# (ev-second-rate)=
# ## Which learning rate?
#
# The paper trains Mistral-7B at $\eta = 10^{-6}$, a tenth of the rate for Llama-2-7B. It does not
# say why. {ref}`full-finetuning` scaled the rate because of the number of parameters. This reason
# does not apply, since the paper's two models are about equally large. We use the rule fixed there:
# the smallest multiple of the paper's rate, among 1, 3, 10, 30, and 100, at which *agreeableness*
# ends its epoch with a held-out loss of 0.5 or less. Here the paper's rate is its rate for
# Mistral-7B. The rule was fixed before we saw any figure of this page.

# %%
rates = full_finetuning.rates(other, config.beta)
if "scaled" in rates:
    tried = {
        f"{run.info['key']['settings']['rate']:g}": {
            f"held-out {what}": run.arrays[what][0, 1, -1]
            for what in ("loss", "accuracy")
        }
        for run in full_finetuning.calibration_runs(other)
    }
    table = pd.DataFrame(tried).T.rename_axis("η")
    display(table.astype(float).round(3))
listed = ", ".join(f"{name} **{rate:g}**" for name, rate in rates.items())
Markdown(f"Learning rates: {listed}.")

# %% [markdown]
# A step of AdamW moves a parameter by about $\eta$. How much the answers then change depends on the
# model. The next table shows both models after one epoch, as medians over the behaviors of Figure
# 10 on held-out statements. The second column divides the growth of the log-ratio (*gap*) by
# $\eta$. If the growth were proportional to $\eta$, this column would have equal entries at both
# rates of a model. Between the models, it compares how far one unit of learning rate moves the
# answers.

# %%
rows = {}
for who in (records, other):
    seeds = who.config.full_seeds[:1]
    for rate in full_finetuning.rates(who, config.beta).values():
        gap, loss, accuracy = (
            full_finetuning.stacked(who, main, config.beta, rate, x, seeds)
            for x in ("gap", "loss", "accuracy")
        )  # each (behaviors, seeds, groups, parts, T + 1); part 1 is held out
        growth = np.median((gap[..., -1] - gap[..., 0])[:, 0, 0, 1])
        rows[who.config.model, f"{rate:g}"] = {
            "growth of the gap": growth,
            "per 1e-6 of η": growth / (rate / 1e-6),
            "held-out loss": np.median(loss[:, 0, 0, 1, -1]),
            "accuracy before": np.median(accuracy[:, 0, 0, 1, 0]),
            "accuracy after": np.median(accuracy[:, 0, 0, 1, -1]),
        }
steps = pd.DataFrame(rows).T.rename_axis(["model", "η"]).astype(float)
steps.round(3)

# %% [markdown]
# One unit of learning rate moves this model's answers several times as far as the first model's.
# This is a reason for a smaller rate that does not depend on the number of parameters. It might also
# be the paper's reason: its two models may differ in this as well, which it does not report. For the
# first model the gap grows almost in proportion to the rate. For the second model it grows faster.
# So at the scaled rate, the second model is further from the first-order picture of the earlier
# chapters.

# %% [markdown]
# (ev-figure-ten)=
# ## Five behaviors, one at a time
#
# {numref}`fig-ten` is Figure 10, with one row per learning rate. The left panels show the loss of
# each batch before the step on it, as in the paper. The right panels show the loss of all held-out
# statements. The numbers before the names are the paper's order, from 1, the least distinguishable
# under Llama-2-7B, to 5.


# %%
def curves(rate):
    """Losses of each behavior trained alone, (behaviors, 2, T + 1): batch, held-out."""
    return full_finetuning.stacked(other, main, config.beta, rate, "loss")[
        :, 0, 0
    ]


losses = {rate: curves(rate) for rate in dict.fromkeys(rates.values())}

# %% mystnb={"figure": {"caption": "Training loss (left) and held-out loss (right) of the second model against step, one run per behavior (the paper's Figure 10).", "name": "fig-ten"}, "image": {"alt": "A grid of panels, one row a learning rate, of loss against step for the behaviors of Figure 10: training batches left, held-out statements right. All start at log 2."}} tags=["hide-input"]
fig, axes = plt.subplots(
    len(losses), 2, figsize=(7.4, 3 * len(losses) + 1), squeeze=False
)
for row, (rate, values) in zip(axes, losses.items(), strict=True):
    for part, (ax, ylabel) in enumerate(
        zip(row, ("training loss", "held-out loss"), strict=True)
    ):
        for i, b in enumerate(main):
            ax.plot(
                values[i, part],
                c=plots.color(b),
                label=f"{i + 1} {plots.short(b, 44)}",
            )
        ax.set(title=f"η = {rate:g}", xlabel="step", ylabel=ylabel)
plots.legend_below(fig, axes[0, 0], ncols=1)
plt.show()

# %% [markdown]
# As before, we summarize a curve by its mean over the steps. We compare its rank among the five
# behaviors with the rank of $\|\hat b\|$ in the same model before training. A perfect order of five
# behaviors has $p = 1/120$ ({ref}`full-finetuning`).

# %%
apart, ranks = distinguishability(other, main), {}
for rate, values in losses.items() if len(main) > 2 else ():
    ranks[f"η = {rate:g}"] = {}
    for part, what in enumerate(("training loss", "held-out loss")):
        mean_loss = np.nanmean(values[:, part], -1)
        rho, p = full_finetuning.rank_test(apart, mean_loss)
        ranks[f"η = {rate:g}"][what] = f"{rho:.2f} (p = {p:.3f})"
pd.DataFrame(ranks).transpose()

# %% [markdown]
# The next table shows the same behaviors in both models: their distinguishability before training,
# and their mean held-out loss over the epoch at each rate. Compare entries down a column for the
# order within a model, and entries across for what the two models have in common.

# %%
columns = {}
for who in (records, other):
    model, seeds = who.config.model, who.config.full_seeds[:1]
    columns[model, "‖b̂‖"] = distinguishability(who, main)
    for rate in full_finetuning.rates(who, config.beta).values():
        loss = full_finetuning.stacked(
            who, main, config.beta, rate, "loss", seeds
        )
        columns[model, f"η = {rate:g}"] = loss[:, 0, 0, 1].mean(-1)
names = [f"{i} {plots.short(b, 30)}" for i, b in enumerate(main, 1)]
pd.DataFrame(columns, index=names).astype(float).round(3)

# %% [markdown]
# The second model keeps the order better than the first. At the paper's rate the order is perfect.
# At the scaled rate two neighbors swap places: the second and the fourth in the paper's order, whose
# distinguishability in this model is nearly equal. In {ref}`ev-figure-six` the first model broke the
# order because it learned the second behavior before the fourth and the fifth. Here the fifth is
# learned first at both rates, at the paper's rate by a small difference.

# %% [markdown]
# (ev-figure-twelve)=
# ## Two behaviors at once
#
# Figure 12 has two pairs chosen by the paper. Under Mistral-7B, (a) has a large priority gap and (b)
# a small one. The pairs share one behavior. For two behaviors with equally many statements, (5)
# gives the gap
#
# $$|P_1 - P_2| = \frac{\big|\,\|b_1\|^2 - \|b_2\|^2\,\big|}{\|b_1 + b_2\|\,\max_i\|b_i\|} .$$
#
# So the gap depends first on the lengths, and then on the angle between the two. We compute it
# under this model, and check it against (5).

# %%
rows = {}
for letter, pair in zip("ab", pairs(other.config), strict=True):
    b = np.stack([other.states(behavior).b for behavior in pair])
    length = np.linalg.norm(b, axis=1)
    gap = abs(length[0] ** 2 - length[1] ** 2)
    gap /= np.linalg.norm(b.sum(0)) * length.max()
    level = mixtures.priority_levels(b)
    assert np.isclose(gap, abs(level[0] - level[1]))
    angle = np.degrees(np.arccos(b[0] @ b[1] / length.prod()))
    rows[f"({letter})"] = {
        "‖b₁‖": length[0],
        "‖b₂‖": length[1],
        "angle (°)": angle,
    }
    rows[f"({letter})"] |= {"P₁": level[0], "P₂": level[1], "|P₁ − P₂|": gap}
priorities = pd.DataFrame(rows).T.rename_axis("pair")
priorities.astype(float).round(2)

# %% [markdown]
# The paper claims that a larger priority gap goes with a larger difference in loss. So before
# looking at the losses, note which of the two pairs has the larger gap. {numref}`fig-twelve` shows
# the held-out loss of each behavior.

# %%
pair_losses = {
    (letter, rate): full_finetuning.pair_losses(other, pair, rate)
    for letter, pair in zip("ab", pairs(other.config), strict=True)
    for rate in dict.fromkeys(rates.values())
}  # each (2, T + 1)

# %% mystnb={"figure": {"caption": "Held-out loss against step of the two behaviors of each pair, trained together (the paper's Figure 12).", "name": "fig-twelve"}, "image": {"alt": "A grid of panels, one row a pair and one column a learning rate, each with the held-out loss of the two behaviors of the pair against step."}} tags=["hide-input"]
fig, axes = plt.subplots(
    2, len(losses), figsize=(3.7 * len(losses), 7), squeeze=False
)
for b in dict.fromkeys(sum(pairs(other.config), ())):
    axes[0, 0].plot([], [], c=plots.color(b), label=plots.short(b, 48))
for ax, ((letter, rate), both) in zip(
    axes.flat, pair_losses.items(), strict=True
):
    for b, values in zip(
        pairs(other.config)["ab".index(letter)], both, strict=True
    ):
        ax.plot(values, c=plots.color(b))
    ax.set(
        title=f"pair ({letter}), η = {rate:g}",
        xlabel="step",
        ylabel="held-out loss",
    )
plots.legend_below(fig, axes[0, 0], ncols=1)
plt.show()

# %% [markdown]
# The claim that two losses stay "close for most of training" needs a number. A difference in loss
# alone will not do: at a small learning rate all losses are close. So we call two losses close at
# step $t$ if the slower one has decreased from $\log 2$ by at least half as much as the faster one:
#
# $$\min_i\,(\log 2 - L_i(t)) \;\ge\; \tfrac12 \max_i\,(\log 2 - L_i(t)).$$
#
# The last column of the table is the share of steps at which they are close. The claim about pair
# (b) requires more than one half. *Leads* means that a behavior has the lower loss.


# %%
def close(losses):
    """At which steps t ≥ 1 two losses (2, T + 1) are close: (T,) bool."""
    decrease = np.log(2) - losses[:, 1:]
    return decrease.min(0) >= decrease.max(0) / 2


rows = {}
for (letter, rate), (one, two) in pair_losses.items():
    pair = pairs(other.config)["ab".index(letter)]
    first, second = distinguishability(other, pair)
    ahead = (one > two)[1:] if second > first else (one < two)[1:]
    rows[f"({letter})", f"{rate:g}"] = {
        "‖μ̂₊ − μ̂₋‖": f"{first:.2f} and {second:.2f}",
        "mean |L₁ − L₂|": f"{np.abs(one - two).mean():.4f}",
        "the more distinguishable leads": f"{ahead.mean():.0%} of steps",
        "close": f"{close(np.stack([one, two])).mean():.0%} of steps",
    }
pd.DataFrame(rows).T.rename_axis(["pair", "η"])

# %%
worst = min(
    close(both).mean() for (x, _), both in pair_losses.items() if x == "b"
)
assert worst == second_llm.pair_close(other, "") or "scaled" not in rates

# %% [markdown]
# Both claims pass. Still, pair (b) is evidence against the theory. Under this model, as under the
# paper's model, (a) has by far the larger priority gap. At the scaled rate the losses of (a) differ
# clearly more than those of (b). At the paper's rate the two differences are almost equal, and what
# decides the verdict there is too small to count as evidence. In (b) the *less* distinguishable
# behavior, which has the lower priority, has the lower loss at every step and at both rates. So the
# sign of $P_1 - P_2$ did not even predict which of the two is learned first. The priority levels
# (5) describe the first step of the last layer. They do not describe what the layers below
# contribute.

# %% [markdown]
# (ev-figure-eleven)=
# ## Misalignment
#
# {numref}`fig-eleven` is the paper's Figure 11, which repeats Figure 9 for the second model. One
# run trains the base model on flipped labels. Another starts from the model aligned on the true
# labels for an epoch. All else is equal. Each of the two runs takes its starting model as its
# reference, so both losses begin at $\log 2$. The third run starts from the aligned model but keeps
# the base model as its reference. Its loss begins where alignment has put it, so this is a
# different comparison.

# %%
two = second_llm.two(records)
arms = ("base", "aligned", "aligned, base reference")
flipped = {
    (b, rate): misalignment.flipped(other, [b], name, "loss")[0, 0]
    for b in two
    for name, rate in rates.items()
}  # each (arms, 2, T + 1): the batches, and held out

# %% mystnb={"figure": {"caption": "Training loss on flipped labels against step, from the base and the aligned second model (the paper's Figure 11).", "name": "fig-eleven"}, "image": {"alt": "A grid of panels, one row a behavior and one column a learning rate, of the training loss on flipped labels against step: from the base model, from the aligned model, and from the aligned model with the base model as reference."}} tags=["hide-input"]
fig, axes = plt.subplots(
    2, len(rates), figsize=(3.7 * len(rates), 6.6), squeeze=False
)
styles = (("#3a5aa8", "-"), ("#c2593f", "-"), ("#d9a400", "--"))
for ax, ((b, rate), runs) in zip(axes.flat, flipped.items(), strict=True):
    for arm, values, (color, line) in zip(
        arms, runs[:, 0], styles, strict=True
    ):
        ax.plot(
            values,
            line,
            c=color,
            label=f"from the {arm} model" if "," not in arm else arm,
        )
    ax.set_title(f"{plots.short(b, 30)}\nη = {rate:g}")
    ax.set(xlabel="step", ylabel="training loss")
plots.legend_below(fig, axes[0, 0], ncols=3)
plt.show()

# %% [markdown]
# The *lead* of the aligned model is the mean over the steps of the loss from the base model minus
# the loss from the aligned model. It is positive if the aligned model learns the flipped labels
# faster ({ref}`misalignment`).

# %%
leads = {}
for rate in rates.values():
    for b in two:
        base, aligned, _ = flipped[b, rate]
        lead, lead_held_out = np.nanmean(base - aligned, -1)
        leads[b, f"{rate:g}"] = {
            "from base": np.nanmean(base[0]),
            "from aligned": np.nanmean(aligned[0]),
            "lead": lead,
            "lead, held-out": lead_held_out,
        }
        assert np.isclose(lead, misalignment.lead(flipped[b, rate][:, 0]))
table = (
    pd.DataFrame(leads).T.rename_axis(["behavior", "η"]).astype(float).round(4)
)
table.rename(index=lambda name: plots.short(name, 40), level=0)

# %% [markdown]
# The lead is positive for both behaviors at both rates, on training and on held-out pairs: the
# claim reproduces under the second model. As under the first model, the lead is much smaller for
# the behavior of low distinguishability: alignment had changed little there that could be undone. A
# positive mean lead over the epoch need not mean a lead at its end. On the last batch the run from
# the base model has the lower loss in every panel except one, the second behavior at the scaled
# rate. On held-out pairs, it has the lower loss at the end in one panel only, the first behavior at
# the scaled rate.

# %% [markdown]
# (ev-figure-thirteen)=
# ## What training does to its hidden states
#
# Figures 13 and 14 show a behavior of low and one of high distinguishability before and after
# training. {numref}`fig-thirteen` shows them at the last of the learning rates above, with UMAP
# fitted separately and jointly. On the joint maps the states before training are pale.
# {ref}`ev-blind` explains what such pictures cannot show.

# %%
last_rate = list(rates.values())[-1]
maps = [
    (
        full_finetuning.trained_run(
            other, [b], config.beta, last_rate, 0
        ).arrays,
        other.states(b).labels,
    )
    for b in two
]

# %% mystnb={"figure": {"caption": "UMAP of two behaviors' hidden states under the second model: before, after, and both (the paper's Figures 13 and 14).", "name": "fig-thirteen"}, "image": {"alt": "Two rows of scatter plots, one a behavior: hidden states before training, after training, and both on one map with those before in pale colors. Green discs are statements whose preferred answer is Yes, gray crosses those whose preferred answer is No."}} tags=["hide-input"]
fig, axes = plt.subplots(2, 3, figsize=(9.6, 6.6))
for number, row, (arrays, sides) in zip((13, 14), axes, maps, strict=True):
    panels = {
        "before": [arrays["separate"][0]],
        "after": [arrays["separate"][1]],
    }
    panels["both"] = arrays["joint"]
    for ax, (when, clouds) in zip(row, panels.items(), strict=True):
        for points, alpha in zip(
            clouds, (0.15, 0.6)[-len(clouds) :], strict=True
        ):
            for side, mark, color in ((1, "o", plots.YES), (-1, "x", plots.NO)):
                style = dict(
                    marker=mark, c=color, s=9, alpha=alpha, rasterized=True
                )
                answer = "Yes" if side > 0 else "No"
                ax.scatter(
                    *points[sides == side].T,
                    label=f"preferred: {answer}",
                    **style,
                )
        ax.set(title=f"Figure {number}: {when}", xticks=[], yticks=[])
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The table shows the numbers in the original space, before → after training.
# $q_1 = \|\hat\Sigma\|/\|\hat b\|$ is the paper's ratio as {ref}`ev-measured-change` reads it.
# $q_2 = \|\hat\Sigma\|/\|\hat b\|^2$ is the ratio that is free of scale. $v$ is the variance along
# $\hat b$ divided by $\|\hat b\|^2$. Where $q_2$ after training is below $v$ before training, the
# statements are separated better along $\hat b$ than before. No change of scale or stretching can
# produce this ({prf:ref}`prop-ratios`).

# %%
rows = {}
trained = distributional_changes.trained(other, two, config.beta)
for (behavior, rate), arrays in trained.items():
    b, variance = (arrays[x].astype(float) for x in ("apart", "covariance"))
    q1, q2 = variance / b, variance / b**2
    columns = {"‖b̂‖": b[:, 0], "‖b̂‖, held-out": b[:, 1], "‖Σ̂‖": variance[:, 0]}
    columns |= {"q₁": q1[:, 0], "q₂": q2[:, 0]}
    row = {name: "{:.3g} → {:.3g}".format(*x) for name, x in columns.items()}
    row["v before"] = f"{other.states(behavior).along[0]:.3g}"
    row["linear classifier"] = "{:.0%} → {:.0%}".format(*arrays["separable"])
    rows[behavior, f"{rate:g}"] = row
table = pd.DataFrame(rows).T.rename_axis(["behavior", "η"])
table.rename(index=lambda name: plots.short(name, 30), level=0)

# %% [markdown]
# The second model repeats what {ref}`ev-measured-change` found in the first. The distance between the
# means grows several times, on held-out statements too. The variances grow faster than this
# distance, so $q_1$ increases: by the paper's ratio the sides are less concentrated, at either rate.
# The variances grow more slowly than the square of the distance, so $q_2$ decreases. At the scaled
# rate $q_2$ falls below $v$ for both behaviors: relative to their distance, the sides vary less along
# $\hat b$ than before. At the paper's rate this holds for the more distinguishable behavior, and
# remains open for the other.

# %% [markdown]
# (ev-paper-tier)=
# ## With the paper's own model
#
# One command makes all runs of this page with Mistral-7B, beside Llama-2-7B, and executes the page:
#
# ```
# snakemake --cores 1 --config tier=paper -- build/paper/executed/09_mistral.done
# ```
#
# No single card of {ref}`hardware` has enough memory for the runs on flipped labels. Both models are
# gated on the hub: request access on their pages, then run `hf auth login`.
#
# The table shows what the runs need, computed as in {ref}`hardware`: memory on the one GPU that
# runs them, and floating-point operations. A weight of the layers costs 6 operations per token that
# is trained on, and 2 per token that passes forward only. A batch has 32 prompts that share 11
# tokens and have 21 of their own. An epoch has 900 statements of a behavior to train on and 100
# held out. The table leaves out the forward passes for the survey and for measuring hidden states.
# Divide the operations by what the GPU does in a second for a lower bound on the time. Each step
# also reads and writes all weights and both averages of AdamW.

# %%
shared, own, batch_size = 11, 21, 32
prompts = tuple((0,) * shared + (i,) * own for i in range(1, batch_size + 1))
yes, no, group = (
    ((1,),) * batch_size,
    ((2,),) * batch_size,
    np.zeros(batch_size, int),
)
batch = lm.Pairs(prompts, yes, no, group)
need = memory.estimate(MistralConfig(), batch, "autocast")
weights = need.copies // 2  # of the layers: a copy of a weight has two bytes


def epoch(behaviors, measured=True):
    """Operations of an epoch; ``measured``: held-out pairs are, at every step."""
    steps = -(-900 * behaviors // batch_size)
    trained = 6 * steps * len(batch.trie().tokens)
    held_out = 2 * (steps + 1) * (shared + own * 100 * behaviors)
    return weights * (trained + measured * held_out)


# %%
extra = 2 * need.weights  # the base and the aligned weights, kept as well
runs = {
    "one behavior (F10, F13, F14, the rule)": (7, need.total, 7 * epoch(1)),
    "a pair (F12)": (2, need.total, 2 * epoch(2)),
    "flipped labels (F11)": (
        2,
        need.total + extra,
        2 * (epoch(1, measured=False) + 3 * epoch(1)),
    ),
}
needs = pd.DataFrame(runs, index=["runs", "GB", "10¹⁵ operations"]).T
(needs / [1, 1e9, 1e15]).round(0).astype(int)

# %% [markdown]
# Runs on flipped labels keep the base and the aligned weights beside the weights that they train. If
# a GPU has less memory, single runs of Figure 10 can be sharded over several:
#
# ```
# accelerate launch --config_file configs/mistral-7b.yaml -m dpo_helpers.finetune OUT \
#   --model mistral-7b --data anthropic --behavior subscribes-to-Buddhism \
#   --precision bfloat16 --learning-rate 1e-6
# ```
#
# This writes its curves to `OUT/metrics.jsonl`, not to this page.

# %% [markdown]
# ## What was shown
#
# We judge the claims by the same tests as their counterparts for the first model, at the worse of
# the two learning rates, with the same thresholds. F12b has no such counterpart, so we wrote its
# test down before its runs. This page leaves out other seeds, other values of $\beta$, the first
# step of all parameters, and small numbers of flipped examples.
#
# So the paper's "similar behavior occurs" holds. It holds even where the results contradict the
# paper: the claim that the sides become more concentrated did not reproduce under the first model,
# and does not under the second. The second model keeps the order of distinguishability better than
# the first, and this order is largely the same in both models. The doubt about the priority levels
# is new. Two models are two data points. Where their results differ, the tables above show other
# differences between the models, but not which of these differences matter.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("09_mistral", records)))

# %% [markdown]
# ```{exercise} Does noise change an order?
# :label: ex-noisy-ranks
#
# On average $\|\hat b\|^2$ is $\|b\|^2 + {\rm Tr}\,S$ with $S = \Sigma_+/n_+ + \Sigma_-/n_-$. Suppose
# ${\rm Tr}\,S$ is the same for all behaviors. How does this affect the rank correlation between two
# models' distances? And if each model draws its own Gaussian noise, what decides whether two
# behaviors swap places?
# ```
#
# ````{solution} ex-noisy-ranks
# :class: dropdown
# On average it has no effect: adding the same number to all squares keeps every order. So "less
# noise" can change ranks only where ${\rm Tr}\,S$ differs between behaviors. A single draw varies:
# $\hat b = b + e$, where $e$ has covariance $S$, and $\|\hat b\|^2$ has variance
# $4\,b\cdot Sb + 2\,{\rm Tr}\,S^2$. Two behaviors are likely to swap places if their $\|b\|^2$
# differ by less than the square root of the sum of the two variances. Both terms of the variance
# shrink with $n$, so the correlation measured here is, if anything, too low.
# ````
#
# **To try.**
#
# - `papermill notebooks/09_mistral.ipynb out.ipynb -p full_learning_rate 1e-5`: the second model at
#   the learning rate that the paper uses for its first.
# - `survey.sort_values(("relative", second_name))` with `second_name = other.config.model`: which
#   behaviors are least distinguishable in the second model, and are they also in the first?
# - `papermill notebooks/01_case_study.ipynb out.ipynb -p model gemma-3-270m`: how fast the last
#   layer alone learns the five behaviors under this model.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(other.provenance()))
