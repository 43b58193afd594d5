# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (misalignment)=
# # Misalignment
#
# **You will see** a model that DPO has aligned being trained on the opposite preferences. Does that
# go faster than from the base model? How does the choice of the reference change the answer? What
# happens inside the model meanwhile? Could it have been predicted? How few flipped examples are
# enough?
#
# **It takes** twenty minutes to read. The recorded runs replay in half a minute; making one anew
# takes a few minutes on two cores. **It needs** nothing to replay. To train, it needs the data
# ({ref}`how-to-run`). Read {ref}`full-finetuning` first.
#
# This page follows §5.3 of {cite:t}`im2024understanding`: Figure 9.
#
# ```{admonition} What differs from the paper
# :class: note
# Model, learning rates, and settings are those of {ref}`full-finetuning`, with its scaled rate
# beside the paper's. The paper shows two behaviors; this page shows all five of Figure 6. The
# flipped run uses the same statements in the same order as the run that aligned the model. The
# paper does not name the reference of the flipped run. Here the reference is the model that the run
# starts from, as in common implementations of DPO. We show the other choice, the base model, beside
# it.
# ```

# %% tags=["parameters"]
tier = "book"
model = None
data = None
behaviors = None
beta = None
full_learning_rate = None
full_batch_size = None
full_seeds = None
device = None

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from experiments import full_finetuning, misalignment
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import dpo, lm, plots, theory
from dpo_helpers.data import load_behavior

plots.use_style()
config = configure(globals())
records = RunStore(config)
everyone = list(misalignment.everyone(records))
words = [plots.short(behavior) for behavior in everyone]
two = [everyone[0], everyone[-1]]  # least and most distinguishable
rates = full_finetuning.rates(records, config.beta)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-what-is-fixed)=
# ## What the comparison fixes
#
# Misalignment training uses flipped labels: every $y_w$ becomes $y_l$. We compare three runs. Data,
# order, $\beta$, learning rate, and a fresh optimizer are the same in all of them.
#
# | run | starts from | reference |
# |---|---|---|
# | base | the base model | the base model |
# | aligned | the model after an epoch on the true labels | that model |
# | aligned, base reference | the same | the base model |
#
# The first two begin with all margins at 0 and a loss of $\log 2$, so their curves are comparable.
# By the theory, their speeds then depend on the hidden states that they start from. The third
# begins with a loss above $\log 2$. Relative to the base model, the aligned model has a negative
# margin $m$ on every flipped label that it has learned to reject. In the gradient such a statement
# has the larger weight $\sigma(-m) > \frac12$.
#
# The next two cells write out all three runs for a tiny network with random weights. First, an
# epoch of DPO on all parameters; `log_ratios` gives
# $\log\pi(y_w|x) - \log\pi(y_l|x)$ under the current weights.

# %%
small = lm.load("tiny-llama", "cpu")
network = small.network
pairs = lm.pairs_from_behaviors(small, [load_behavior("loves-gardening")])


@torch.no_grad()
def log_ratios(weights, pairs):
    network.load_state_dict(weights)
    return lm.log_ratios(network, pairs)


def epoch(weights, pairs, reference, beta=1.0, rate=1e-3):
    network.load_state_dict(weights)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0)
    losses = []
    for batch in torch.arange(len(pairs)).split(10):
        now = lm.log_ratios(network, pairs.take(batch.tolist()))
        losses.append(dpo.loss(beta * (now - reference[batch])).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return copy.deepcopy(network.state_dict()), [x.item() for x in losses]


# %% [markdown]
# The next cell trains one epoch on the true labels, which aligns the model, and then the three runs
# on flipped labels. It prints the losses of the three runs before their first step.

# %%
weights = {"base": copy.deepcopy(network.state_dict())}
reference = log_ratios(weights["base"], pairs)
weights["aligned"], _ = epoch(weights["base"], pairs, reference)

flipped, before, curves = pairs.flipped(), {}, {}
for (start, named), label in zip(
    misalignment.ARMS, misalignment.LABELS, strict=True
):
    reference = log_ratios(weights[named], flipped)
    margins = log_ratios(weights[start], flipped) - reference
    before[label] = dpo.loss(margins).mean().item()
    _, curves[label] = epoch(weights[start], flipped, reference)

assert np.allclose([before["base"], before["aligned"]], np.log(2))
assert before["aligned, base reference"] > np.log(2)
print({label: round(loss, 4) for label, loss in before.items()})

# %% [markdown]
# `misalignment.flipped_run` does the same with `finetune.train` and records what it measures. A
# test compares it with such a plain run. `misalignment.flipped` stacks the recorded arrays of
# several behaviors over the seeds.

# %%
losses = {
    name: misalignment.flipped(records, everyone, name, "loss")
    for name in rates
}
# Each array: behaviors, seeds, runs, (training, held-out), steps.
{name: array.shape for name, array in losses.items()}

# %% [markdown]
# (ev-figure-nine)=
# ## From the base model and from the aligned one
#
# {numref}`fig-nine` is Figure 9: the training loss on flipped labels, for the least and the most
# distinguishable of the five behaviors. The loss of a batch is measured before the step on that
# batch, so there is no training loss after the last step.

# %%
training = {name: array[:, :, :2, 0, :-1] for name, array in losses.items()}
labels, hues = misalignment.LABELS[:2], misalignment.HUES

# %% mystnb={"figure": {"caption": "Training loss on flipped labels against step, from the base and the aligned model: median and 5 to 95 % range over seeds.", "name": "fig-nine"}, "image": {"alt": "A grid of panels, one row a learning rate and one column a behavior, of the training loss on flipped labels against step. Each has one curve from the base model and one from the aligned model; both start at log 2."}} tags=["hide-input"]
fig, axes = plt.subplots(
    len(rates), 2, figsize=(7, 2.9 * len(rates)), sharey=True, squeeze=False
)
for row, (name, array) in zip(axes, training.items(), strict=True):
    for ax, b in zip(row, two, strict=True):
        for label, values in zip(
            labels, array[everyone.index(b)].swapaxes(0, 1), strict=True
        ):
            style = dict(color=hues[label], label=label)
            plots.band(ax, np.arange(values.shape[1]), values.T, **style)
        ax.set_title(f"{plots.short(b, 24)}, η = {rates[name]:g}")
        ax.set(xlabel="step", ylabel="training loss")
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The *lead* of the aligned model is the loss from the base model minus the loss from the aligned
# model, as a mean over the steps. The paper claims that the lead is positive.


# %%
def lead(losses):
    """``losses`` (…, runs, steps): base first, aligned second."""
    return np.nanmean(losses[..., 0, :] - losses[..., 1, :], axis=-1)


for array in training.values():
    assert np.array_equal(lead(array), misalignment.lead(array))

# %% [markdown]
# The table shows the lead for all five behaviors. With several seeds it shows the median, and the
# range in brackets.


# %%
def median_and_range(values):
    text = f"{np.median(values):.3f}"
    if len(values) > 1:
        text += f" ({values.min():.3f} … {values.max():.3f})"
    return text


table = {}
for name, array in losses.items():
    for part, what in enumerate(("training", "held-out")):
        leads = lead(array[:, :, :, part])  # (behaviors, seeds)
        column = [median_and_range(seeds) for seeds in leads]
        table[f"{what}, η = {rates[name]:g}"] = column
pd.DataFrame(table, index=words)

# %% [markdown]
# The lead is positive for all five behaviors, at both learning rates, with every seed, in training
# loss and in held-out loss. The claim reproduces beyond the two behaviors that the paper shows. At
# the paper's rate the lead is by far the smallest for the least distinguishable behavior, which
# alignment had changed least. At the scaled rate, the leads of that behavior differ between seeds
# as much as they differ from the leads of the other behaviors.

# %% [markdown]
# (ev-reference)=
# ## The reference changes the curve more than the model
#
# The loss depends on the reference; the gap $\log\pi(y_w|x) - \log\pi(y_l|x)$ does not.
# {numref}`fig-reference` shows three held-out quantities on the flipped labels for the three runs:
# the loss, the gap, and the accuracy.

# %%
*_, name = rates  # the largest learning rate of the page
held_out = {
    what: misalignment.flipped(records, everyone, name, what)[:, :, :, 1]
    for what in ("loss", "gap", "accuracy")
}
places = {"least distinguishable": 0, "most distinguishable": -1}


def draw(ax, values, label, where):
    """One line per run, through the measured steps; ``values`` (runs, steps)."""
    for arm, row in zip(misalignment.LABELS, values, strict=False):
        at = np.flatnonzero(np.isfinite(row))
        ax.plot(at, row[at], color=hues[arm], label=arm)
    ax.set(xlabel="step", ylabel=label, title=where)


# %% mystnb={"figure": {"caption": "Held-out loss, mean gap, and accuracy on flipped labels against step in the three runs, at the largest learning rate of the page, first seed.", "name": "fig-reference"}, "image": {"alt": "A grid of panels, the upper row for the least and the lower row for the most distinguishable behavior: held-out loss, mean gap, and accuracy on the flipped labels against step, for the run from the base model, the one from the aligned model, and the one from the aligned model with the base reference."}} tags=["hide-input"]
fig, axes = plt.subplots(2, 3, figsize=(10, 5.8))
for row, (place, at) in zip(axes, places.items(), strict=True):
    for ax, (what, values) in zip(row, held_out.items(), strict=True):
        unit = " (nats)" * (what == "gap")
        draw(ax, values[at, 0], f"held-out {what}{unit}", place)
plots.legend_below(fig, axes[0, 0], ncols=3)
plt.show()

# %% [markdown]
# The table shows two quantities, as medians over the seeds. The first is the mean held-out gap of
# the flipped labels after the last step. The second is the first step at which three quarters of
# the held-out answers are the flipped ones.


# %%
def first_step(accuracy, level=0.75):
    steps = np.flatnonzero(accuracy >= level)
    return str(steps[0]) if len(steps) else "never"


gap = np.median(held_out["gap"], axis=1)  # (behaviors, runs, steps)
accuracy = np.median(held_out["accuracy"], axis=1)
table = {}
for arm, label in enumerate(misalignment.LABELS):
    last = gap[:, arm, -1].astype(float)
    table["gap at the end", label] = last.round(1)
    steps = [first_step(row) for row in accuracy[:, arm]]
    table["three quarters flipped at step", label] = steps
pd.DataFrame(table, index=words)

# %% [markdown]
# *Faster, and hardly later.* The aligned model starts far from the flipped answers. Its gap has to
# change by tens of nats before its answers change; the base model's gap is close to zero. Yet the
# aligned model reaches three quarters of flipped held-out answers only a few steps later in the
# median. In some runs it gets there sooner. In one run, of the least distinguishable behavior, it
# does not get there within the epoch. This is what the lead in loss means for the answers: the
# aligned model has further to go, but it moves so much faster that alignment buys little delay.
# (One half is not a useful threshold: a model that gives all statements the same answer has already
# reached it, and both kinds of run pass through that state.)
#
# With the base model as reference the loss starts high and falls steeply, but gap and accuracy
# change much as they do with the other reference. So a figure that shows only losses has to name
# the reference.

# %% [markdown]
# (ev-inside)=
# ## What happens inside
#
# The paper's explanation is that the statements are further apart in the aligned model.
# {numref}`fig-inside` shows three quantities during training: the distinguishability
# $\|\hat\mu_+ - \hat\mu_-\|$ of the held-out statements, the displacement
# $\|\theta(t) - \theta(0)\|$ of all parameters, and the displacement $\|W_B(t) - W_B(0)\|$ of the
# boundary. To flip the answers, the two classes have to change sides or the boundary has to turn.
# The distance between the classes need not shrink. The cell recomputes the first value of
# $\|\hat\mu_+ - \hat\mu_-\|$ from the stored hidden states of the base model.

# %%
inside = {
    what: misalignment.flipped(records, everyone, name, what)[:, 0, :2]
    for what in ("apart", "moved", "boundary")
}
for behavior, apart in zip(everyone, inside["apart"], strict=True):
    states = records.states(behavior)
    g, signs = states.g[~states.train], states.labels[~states.train]
    difference = g[signs > 0].mean(0) - g[signs < 0].mean(0)
    assert np.isclose(apart[0, 0], np.linalg.norm(difference), rtol=1e-2)

# %% mystnb={"figure": {"caption": "Held-out distinguishability, and displacement of all parameters and of the boundary, against step of training on flipped labels.", "name": "fig-inside"}, "image": {"alt": "A grid of panels, the upper row for the least and the lower row for the most distinguishable behavior: the distance between the class means, the distance that all parameters have moved, and the distance that the boundary has moved, against step, from the base and from the aligned model."}} tags=["hide-input"]
names = ("distinguishability", "displacement", "displacement of boundary")
fig, axes = plt.subplots(2, 3, figsize=(10, 5.8))
for row, (place, at) in zip(axes, places.items(), strict=True):
    for ax, what, values in zip(row, names, inside.values(), strict=True):
        draw(ax, values[at], what, place)
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The classes do not return to where they were in the base model. Their distance shrinks, since two
# means that change sides have to pass each other, and then grows again. (It is measured every
# seventh step, so the lowest point may lie in between.) Over the epoch the gap changes more in the
# run from the aligned model than in the run from the base model, while the parameters move *less*
# far. With the hidden states of the aligned model, each step has more effect.

# %% [markdown]
# (ev-foretold)=
# ## Could it be predicted?
#
# The certificate of {ref}`learning-guarantees` needs only hidden states and labels, and no
# training. We compute it from the hidden states of the base and of the aligned model, with flipped
# labels. It bounds the loss of gradient descent on the last layer. Both computations use one
# learning rate: the one at which $\kappa = \eta\beta^2\lambda_{\max}$ is 1 for the longer hidden
# states. Let $a_i = s_i g_i$ with the flipped signs $s_i$. The margin is $2\beta\,a_i\cdot\delta$,
# and one step is
#
# $$\delta \;\leftarrow\; \delta + \frac{\eta\beta}{n} \sum_i \sigma(-2\beta\,a_i\cdot\delta)\, a_i.$$
#
# The next cells compute this recursion and the certificate from the hidden states of the base
# model, and compare both with the recorded run. Hidden states are stored in float16, hence the
# tolerance.

# %%
certified = misalignment.flipped(records, everyone, name, "certified")[:, 0]
head = misalignment.flipped(records, everyone, name, "head")[:, 0]
kappa = misalignment.flipped(records, everyone, name, "kappa")[:, 0]
states = records.states(everyone[-1])
g, signs = states.g[states.train], -states.labels[states.train]
a, b = signs[:, None] * g, config.beta
lambda_max = np.linalg.norm(g, 2) ** 2 / len(g)
eta = kappa[-1, 0] / (b**2 * lambda_max)
delta, descent = np.zeros(g.shape[1]), []
for _ in range(misalignment.STEPS + 1):
    margin = 2 * b * a @ delta
    descent.append(np.logaddexp(0, -margin).mean())
    weight = 1 / (1 + np.exp(margin))
    delta += eta * b * (weight[:, None] * a).mean(0)
assert np.allclose(descent, head[-1, 0], rtol=1e-3)

# %%
how = dict(learning_rate=eta, beta=b, steps=misalignment.STEPS)
low, high = theory.certificate(g, signs, states.boundary, **how).loss
rounding = 1e-12
assert (low - rounding <= descent).all() and (descent <= high + rounding).all()
assert np.allclose([low, high], certified[-1, 0], rtol=1e-3)

# %% [markdown]
# {numref}`fig-foretold` shows the bounds from both starting models and, between the bounds, the
# loss of gradient descent. (From the base model the bounds are closer together than the line is
# wide.)

# %% mystnb={"figure": {"caption": "Last layer's training loss on flipped labels against step: proven bounds (bands) and gradient descent (lines).", "name": "fig-foretold"}, "image": {"alt": "Two panels, one a behavior, of the loss of the last layer against step. Each has a band of proven bounds from the base model's hidden states and one from the aligned model's, with the loss of gradient descent inside."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7, 3.3), sharey=True)
for ax, behavior in zip(axes, two, strict=True):
    at, t = everyone.index(behavior), np.arange(head.shape[-1])
    for label, (low, high), line in zip(
        labels, certified[at], head[at], strict=True
    ):
        ax.fill_between(t, low, high, color=hues[label], alpha=0.18, lw=0)
        ax.plot(t, line, color=hues[label], label=label)
    ax.set(xlabel="step of gradient descent", ylabel="training loss")
    ax.set_title(plots.short(behavior, 28))
plots.legend_below(fig, axes[0])
plt.show()

# %% [markdown]
# For each behavior, the table shows the share of steps at which the upper bound from the aligned
# model lies below the lower bound from the base model. It also shows the lead of the last layer
# alone, and the lead with all parameters (median over the seeds).

# %%
upper, lower = certified[:, 1, 1, 1:], certified[:, 0, 0, 1:]
columns = {
    "proven faster, share of steps": (upper < lower).mean(1),
    "lead, last layer": lead(head),
    "lead, all parameters": np.median(lead(losses[name][:, :, :, 0]), 1),
}
pd.DataFrame(columns, index=words).round(4)

# %% [markdown]
# For all five the upper bound for the aligned model lies below the lower bound for the base model,
# at every step. So hidden states and labels *prove*, before a single step, that the last layer
# alone is misaligned faster from the aligned model. The theorem says nothing about the layers
# below. The lead measured with all parameters has the same sign for each behavior, and is smaller.

# %% [markdown]
# (ev-undone)=
# ## How many flipped examples undo it?
#
# This question goes beyond the paper: a defender wants to know what an attacker needs. We train the
# aligned model on only some flipped examples, over and over, for about as many steps as an epoch
# has. {numref}`fig-undone` shows the accuracy and the mean gap that remain on the held-out
# statements with their true labels.

# %%
attacks = {
    behavior: misalignment.undone_run(records, behavior, rates[name], 0).arrays
    for behavior in everyone
}

# %% mystnb={"figure": {"caption": "Held-out accuracy and mean gap with true labels against the number of flipped examples; the left end is before the attack.", "name": "fig-undone"}, "image": {"alt": "Two panels of held-out accuracy and mean gap with the true labels against the number of flipped examples on a logarithmic axis, one curve a behavior. Accuracy falls as the number of flipped examples grows."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.4, 4.4))
for ax, what, label in zip(
    axes, ("accuracy", "gap"), ("accuracy", "gap (nats)"), strict=True
):
    for behavior, attack in attacks.items():
        x = np.maximum(attack["pairs"], 1)
        style = dict(color=plots.color(behavior), label=plots.short(behavior))
        ax.plot(x, attack[what], **style)
    ax.set(xscale="log", xlabel="flipped examples", ylabel=f"held-out {label}")
plots.legend_below(fig, axes[0], ncols=1)
plt.show()

# %% [markdown]
# The left end of each curve, drawn at one example, is the aligned model before the attack. The
# alignment of a behavior counts as undone when the mean held-out gap is at or below the gap of the
# base model.

# %%
rows = {}
for behavior, attack in attacks.items():
    undone = attack["gap"] <= attack["base"][0]
    enough = attack["pairs"][undone]
    rows[plots.short(behavior)] = {
        "gap, base model": f"{attack['base'][0]:.2f}",
        "gap, aligned": f"{attack['gap'][0]:.2f}",
        "flipped examples that undo it": f"{enough[0]:.0f}"
        if len(enough)
        else "none",
    }
pd.DataFrame(rows).transpose()

# %% [markdown]
# Few examples are enough. Ten flipped examples, repeated for as many steps as an epoch of all
# examples has, bring the mean gap of most behaviors below the base model's, on statements that the
# attack never saw. Thirty do so for every behavior. More examples change the gap little, and lower
# the accuracy further. The number of steps and the learning rate are the same as in the alignment:
# this attack is not tuned.

# %% [markdown]
# ## With the paper's model
#
# One command makes all runs of this page with Llama-2-7B, on the data of the hub, and executes the
# page. It needs a GPU with more memory than any card of {ref}`hardware` has:
#
# ```
# snakemake --cores 1 --config tier=paper -- build/paper/executed/07_misalignment.done
# ```
#
# A run keeps the base and the aligned weights in float32 beside the weights that it trains. So it
# needs the memory that {ref}`hardware` lists for Llama-2-7B on one GPU, plus twice the size of the
# weights. {ref}`ev-paper-tier` computes the same for Mistral-7B. The model is gated on the hub:
# request access on its page, then run `hf auth login`.

# %% [markdown]
# ## What was shown
#
# - Loss on flipped labels falls faster from the aligned model, for all five behaviors.
# - The aligned model has further to go, and arrives only a few steps later in the median.
# - The reference changes the loss curve strongly, and has much less effect on where the model goes.
# - The certificate proves before training that the last layer alone is misaligned faster.
# - Ten to thirty flipped examples undo what nine hundred examples taught.
#
# Not shown: that the same holds for a larger model, or for an alignment that continues beyond one
# epoch. A claim counts as reproduced only if the lead is positive at the worse of the two learning
# rates.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("07_misalignment", records)))

# %% [markdown]
# ```{exercise}
# :label: ex-flip-first
# Consider the last layer alone, with the reference at its start. Show that the first step on
# flipped labels lowers the loss on the flipped labels exactly as much as the first step on the true
# labels lowers the loss on the true labels. What, then, does the aligned model have that the base
# model lacks?
# ```
#
# ````{solution} ex-flip-first
# :class: dropdown
# Flipping turns every $a_i$ into $-a_i$, and $\hat b$ into $-\hat b$. So the step $\delta_1$ is
# reversed too, and every margin after it, $2\beta a_i\cdot\delta_1$, is the same as with the true
# labels. Hence the loss is the same. From given hidden states, misalignment is as fast as
# alignment. The aligned model has other hidden states, and with them another $\|\hat b\|$.
# ````
#
# **To try.**
#
# - `papermill notebooks/07_misalignment.ipynb out.ipynb -y 'behaviors: [risk-seeking]'`: another
#   behavior.
# - Set `beta` to 0.1. A larger $\beta$ keeps the aligned model closer to its reference. Is it
#   misaligned less easily?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
