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
# **You will see** a model that DPO has aligned being trained on the opposite preferences: whether
# that goes faster than from the base model, what the choice of the reference does to the answer,
# what happens inside meanwhile, whether it could have been foretold, and how few flipped examples
# it takes.
#
# **It takes** twenty minutes to read. The recorded runs are replayed in half a minute; one made
# anew takes a few minutes on two cores. **It needs** nothing to replay; to train, the data
# ({ref}`how-to-run`). {ref}`full-finetuning` comes before it.
#
# This page follows §5.3 of {cite:t}`im2024understanding`: Figure 9.
#
# ```{admonition} What differs from the paper
# :class: note
# Model, learning rates and settings are those of {ref}`full-finetuning`, with its scaled rate
# beside the paper's. The paper shows two behaviors, here are all five of Figure 6. The flipped run
# goes over the same statements in the same order as the one that aligned the model. Its reference,
# which the paper does not name, is the model that it starts from, as DPO's usual implementations
# have it; the other choice stands beside it.
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
import numpy as np
from experiments import full_finetuning, misalignment
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import plots

config = configure(globals())
records = RunStore(config)
everyone = list(misalignment.everyone(records))
two = [everyone[0], everyone[-1]]
rates = full_finetuning.rates(records, config.beta)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-what-is-fixed)=
# ## What the comparison fixes
#
# To misalign a behavior is to train on its flipped labels: every $y_w$ becomes $y_l$. Three runs
# are compared; data, order, $\beta$, learning rate and a fresh optimizer are the same in all of
# them.
#
# | run | starts from | reference |
# |---|---|---|
# | base | the base model | the base model |
# | aligned | the model after an epoch on the true labels | that model |
# | aligned, base reference | the same | the base model |
#
# The first two begin with all margins at 0 and a loss of $\log 2$, so their curves can be laid over
# each other. What sets their speeds is then, by the theory, the signal in the hidden states they
# start from. The third begins with a loss above $\log 2$: seen from the base model, the aligned one
# disagrees with every flipped label that it has learned to reject, and a statement with a negative
# margin pulls with $\sigma(-m) > \frac12$.
#
# `experiments.misalignment` holds these runs; `flipped` has an array of them for some behaviors,
# over the seeds.

# %%
losses = {
    name: misalignment.flipped(records, everyone, name, "loss")
    for name in rates
}
{name: array.shape for name, array in losses.items()}

# %% [markdown]
# (ev-figure-nine)=
# ## From the base model and from the aligned one
#
# {numref}`fig-nine` is Figure 9: the training loss on flipped labels of the least and the most
# distinguishable of the five behaviors.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss on flipped labels, from the base and from the aligned model; with several seeds the median and the 5 to 95 % range.", "name": "fig-nine"}, "image": {"alt": "A grid of panels, one row a learning rate and one column a behavior, of the training loss on flipped labels against step. Each has one curve from the base model and one from the aligned model; both start at log 2."}}
labels = misalignment.LABELS[:2]
panels = {}
for name, array in losses.items():
    for behavior in two:
        values = array[everyone.index(behavior), :, :2, 0, :-1]
        bands = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
        panels[f"{plots.short(behavior, 28)}, η = {rates[name]:g}"] = {
            label: (np.arange(values.shape[2]), bands[:, arm])
            for arm, label in enumerate(labels)
        }
plots.lines(panels, "step", colors=misalignment.HUES, ncols=2)

# %% [markdown]
# For all five, how far the loss from the aligned model lies below the loss from the base model, as
# a mean over the steps (with several seeds the median, and the range in brackets). A positive
# number is what the paper claims.

# %% tags=["hide-input"]
misalignment.lead_table(records)

# %% [markdown]
# It is positive for all five, at both learning rates and with every seed, in training and held out:
# the claim reproduces beyond the two behaviors that the paper shows. At the paper's rate it is by
# far the smallest for the least distinguishable behavior, which alignment had changed least; at the
# scaled rate that behavior's seeds differ among themselves as much as the others differ from it.

# %% [markdown]
# (ev-reference)=
# ## The reference changes the curve, and the model less
#
# A loss is measured from a reference; the gap $\log\pi(y_w|x) - \log\pi(y_l|x)$ is not.
# {numref}`fig-reference` shows the loss of the flipped labels, left, and the gap and the accuracy
# on them, right, for the three runs.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Held-out statements with flipped labels in the three runs, at the largest learning rate of the page, first seed. Upper row: the least distinguishable of the five behaviors, lower row: the most.", "name": "fig-reference"}, "image": {"alt": "A grid of panels, one row a behavior: held-out loss, mean gap and accuracy on the flipped labels against step, for the run from the base model, the one from the aligned model, and the one from the aligned model with the base reference."}}
*_, name = rates
arms = misalignment.LABELS
panels = {}
for place, behavior in zip(("least", "most"), two, strict=True):
    for what in ("loss", "gap", "accuracy"):
        values = misalignment.flipped(records, [behavior], name, what)[
            0, 0, :, 1
        ]
        panels[f"{what}, {place}"] = {
            arm: (np.arange(values.shape[1]), row)
            for arm, row in zip(arms, values, strict=True)
        }
plots.lines(panels, "step", colors=misalignment.HUES)

# %% tags=["hide-input"]
misalignment.turned_table(records, name)

# %% [markdown]
# *Faster, and hardly later.* The aligned model starts far on the other side: its gap has tens of
# nats to make good before an answer changes, the base model's next to none. Yet three quarters of
# its held-out answers are the flipped ones only a few steps later in the median, and in some runs
# sooner; in one run, of the least distinguishable behavior, never within the epoch. That is what
# the lead in loss comes to: the way back is longer, and is walked so much faster that alignment
# buys little delay. (A half would be no mark. A model that answers all statements alike is there
# already, and both kinds of run pass through that.)
#
# With the base model as reference the loss starts high and falls steeply, though gap and accuracy
# take much the same way. A figure of losses alone has to say what they are measured from.

# %% [markdown]
# (ev-inside)=
# ## What happens inside
#
# The paper's reason is that the aligned model's statements are further apart. {numref}`fig-inside`
# follows $\|\hat\mu_+ - \hat\mu_-\|$ of the held-out statements on the way, how far all parameters
# have moved, and how far the boundary. To flip an answer the two classes have to change sides, or
# the boundary has to turn; distance as such is not what is lost.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distinguishability of held-out statements, and distance of all parameters and of the boundary from their start, during training on flipped labels. Upper row: the least distinguishable of the five behaviors, lower row: the most.", "name": "fig-inside"}, "image": {"alt": "A grid of panels, one row a behavior: the distance between the class means, the distance that all parameters have moved, and that of the boundary, against step, from the base and from the aligned model."}}
panels = {}
for place, behavior in zip(("least", "most"), two, strict=True):
    for what, label in (
        ("apart", "‖μ̂₊ − μ̂₋‖"),
        ("moved", "‖θ(t) − θ(0)‖"),
        ("boundary", "‖W_B(t) − W_B(0)‖"),
    ):
        values = misalignment.flipped(records, [behavior], name, what)[0, 0, :2]
        panels[f"{label}, {place}"] = {
            arm: (np.flatnonzero(np.isfinite(row)), row[np.isfinite(row)])
            for arm, row in zip(labels, values, strict=True)
        }
plots.lines(panels, "step", colors=misalignment.HUES)

# %% [markdown]
# Nor do they fall back to where the base model was. The distance shrinks, since two means that
# change sides have to pass each other, and grows again. (It is measured every seventh step: the
# lowest point may lie in between.) Over the epoch the aligned model's answers change more than the
# base model's while its parameters move *less* far: its hidden states make more of a step.

# %% [markdown]
# (ev-foretold)=
# ## Could it be foretold?
#
# The certificate of {ref}`learning-guarantees` needs hidden states and labels, and trains nothing.
# Given the hidden states of the base and of the aligned model, and flipped labels, it bounds what
# gradient descent on the last layer must do, at one learning rate for both (the one at which
# $\kappa = 1$ for the longer hidden states). {numref}`fig-foretold` has its bounds and, between
# them, that training itself. (From the base model they are closer together than the line is wide.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Last layer alone on flipped labels: proven bounds (bands) and gradient descent between them (lines), from the hidden states of the base and of the aligned model.", "name": "fig-foretold"}, "image": {"alt": "Two panels, one a behavior, of the loss of the last layer against step. Each has a band of proven bounds from the base model's hidden states and one from the aligned model's, with the loss of gradient descent inside."}}
panels = {}
for behavior in two:
    certified = misalignment.flipped(records, [behavior], name, "certified")[
        0, 0
    ]
    head = misalignment.flipped(records, [behavior], name, "head")[0, 0]
    t = np.arange(head.shape[1])
    series = {}
    for label, bounds, row in zip(labels, certified, head, strict=True):
        series[label] = (t, np.stack([bounds[0], row, bounds[1]]))
    panels[f"loss, {plots.short(behavior, 28)}"] = series
plots.lines(
    panels, "step of gradient descent", colors=misalignment.HUES, ncols=2
)

# %% tags=["hide-input"]
misalignment.predicted_table(records, name).round(4)

# %% [markdown]
# For all five the upper bound for the aligned model lies below the lower bound for the base model,
# at every step: that the last layer alone is misaligned faster is *proven* before a single step,
# from hidden states and labels. The theorem says nothing of the layers below. What was measured
# with all parameters has the same sign for each behavior, and a smaller size.

# %% [markdown]
# (ev-undone)=
# ## How many flipped examples undo it?
#
# Beyond the paper: a defender wants to know what an attacker needs. The aligned model is trained on
# only some flipped examples, over and over, for about as many steps as an epoch has.
# {numref}`fig-undone` shows what is left on the held-out statements with their true labels.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What an attack with few flipped examples leaves of the alignment: held-out accuracy and mean gap with the true labels; left end: before the attack, drawn at one example.", "name": "fig-undone"}, "image": {"alt": "Two panels of held-out accuracy and mean gap with the true labels against the number of flipped examples on a logarithmic axis, one curve a behavior. Accuracy falls as the number of flipped examples grows."}}
attacks = {
    behavior: misalignment.undone_run(records, behavior, rates[name], 0).arrays
    for behavior in everyone
}
panels = {
    f"{what} (true labels)": {
        plots.short(b): (np.maximum(a["pairs"], 1), a[what])
        for b, a in attacks.items()
    }
    for what in ("accuracy", "gap")
}
colors = {plots.short(b): plots.color(b) for b in everyone}
plots.lines(
    panels, "flipped examples", scale=("log", "linear"), colors=colors, ncols=2
)

# %% tags=["hide-input"]
misalignment.undone_table(records, rates[name])

# %% [markdown]
# A handful is enough. Ten flipped examples, gone over for as many steps as an epoch on all of them
# has, bring the mean gap of most behaviors below the base model's, on statements that the attack
# never saw; thirty do it for each. More examples add little to the gap, and make the accuracy fall
# further. Number of steps and learning rate are those of the alignment: this is no tuned attack.

# %% [markdown]
# ## With the paper's model
#
# On a GPU with enough memory, more than any card of {ref}`hardware` has, one command makes all runs of this page with Llama-2-7B, on the data of
# the hub, and executes it:
#
# ```
# snakemake --cores 1 --config tier=paper -- build/paper/executed/07_misalignment.done
# ```
#
# A run keeps the base and the aligned weights in float32 beside those that it trains: to the memory
# that {ref}`hardware` has for Llama-2-7B on one GPU come twice its weights; {ref}`ev-paper-tier`
# counts the same for Mistral-7B. The model is gated on the hub: ask for access on its page, then run
# `hf auth login`.

# %% [markdown]
# ## What was shown
#
# - Loss on flipped labels falls faster from the aligned model, for five behaviors of five.
# - The aligned model has further to go, and is there only a few steps later in the median.
# - The reference decides how the loss reads, and much less where the model goes.
# - The certificate proves the last layer's part of it beforehand.
# - Ten to thirty flipped examples undo what nine hundred taught.
#
# Not shown: that it is so for a larger model, or for an alignment that goes on beyond one epoch. A
# verdict needs the lead to be positive at the worse of the two learning rates.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("07_misalignment", records)))

# %% [markdown]
# ```{exercise}
# :label: ex-flip-first
# Show that for the last layer alone, with the reference at its start, the first step on flipped
# labels gains exactly as much as the first step on the true ones. What, then, does the aligned
# model have that the base model lacks?
# ```
#
# ````{solution} ex-flip-first
# :class: dropdown
# Flipping turns every $a_i$ into $-a_i$, and $\hat b$ into $-\hat b$. So the step is reversed, and every
# margin after it, $2\beta a_i\cdot\delta_1$, is the same as before: so is the gain. From given
# hidden states misalignment is as fast as alignment; the aligned model has other hidden states, and
# with them another $\|\hat b\|$.
# ````
#
# **To try.**
#
# - `papermill notebooks/07_misalignment.ipynb out.ipynb -y 'behaviors: [risk-seeking]'`: another
#   behavior.
# - Set `beta` to 0.1. A larger $\beta$ keeps the aligned model closer to its reference: is it
#   misaligned less easily?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
