# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (audit)=
# # Audit your own preference data
#
# **You will see** what DPO's first step will do for each group of pairs in a preference data set,
# told before any training: which groups it hears, which pull against each other, which pairs
# contradict the rest, and how few turned labels would silence a group. One command does it for data
# of your own. Then whether what it tells comes true: of the first step, of the last layer, of all
# parameters, of dialogues, and of wrong labels that were put there to be found.
#
# **It takes** fifteen minutes to read. The recorded runs are replayed in half a minute. **It
# needs** nothing to replay; for data of your own, the model ({ref}`how-to-run`). {ref}`priorities`
# and {ref}`full-finetuning` come before it.
#
# Nothing on this page is in the paper. It is the paper's idea, made into a tool: what sets the pace
# of learning can be read off the model before it learns.

# %% tags=["parameters"]
tier = "book"
model = None
data = None
beta = None
learning_rate = None
steps = None
full_learning_rate = None
full_batch_size = None
full_seeds = None
device = None

# %%
import html
from functools import partial

import numpy as np
import torch
from experiments import audit_your_data
from IPython.display import HTML, Markdown, display
from ledger.config import configure
from ledger.store import RunStore

from dpo_helpers import audit, lm, plots
from dpo_helpers.data import load_pairs, preferences

config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-audit-command)=
# ## One command
#
# ```
# python -m dpo_helpers.audit pairs.jsonl --group topic
# ```
#
# It reads a `.jsonl`, `.jsonl.gz` or `.parquet` file, or a data set of the hub by its name, asks
# the model once about every pair, and writes `audit.html`, a page that needs nothing else, and
# `audit.json`, its numbers. `--group` names the column by which pairs are grouped: topic, source,
# annotator, language. `--model` takes any model of {doc}`../book/models`, a folder, or a name of
# the hub; `--pairs` says how many pairs to draw where there are more. A row is read as TRL reads
# it, or as Persona has it:
#
# | what a row has | how it is read |
# |---|---|
# | `prompt`, `chosen`, `rejected` as text | as they are |
# | `chosen` and `rejected` as text, no prompt | the prompt is what both begin with, up to the last `Assistant:` in it if there is one |
# | the same as lists of messages, `role` and `content` | through the model's chat template |
# | `question`, `answer_matching_behavior`, `answer_not_matching_behavior` | a Persona statement; answers Yes and No |
#
# A row that is none of these stops the audit before the model is loaded, with its line and what to
# mend.

# %% [markdown]
# (ev-audit-gradient)=
# ## What the first gradient knows
#
# Let pair $i$ have the prompt $x$ and two responses of any length. A token $y_t$ of a response is
# predicted from the hidden state $h_t$, by the softmax $p_t$ over all $V$ tokens. Put
#
# $$G_i \;=\; \sum_{t\in\text{chosen}} (e_{y_t} - p_t)\,h_t^\top \;-\; \sum_{t\in\text{rejected}} (e_{y_t} - p_t)\,h_t^\top \;\in\; \mathbb R^{V\times d},$$
#
# with $e_y$ the unit vector of token $y$. $M_a$ is the mean of $G_i$ over the $n_a$ pairs of group
# $a$, $M = \sum_a \frac{n_a}N M_a$ that over all. The *gap* of a pair is
# $\log\pi(y_w|x) - \log\pi(y_l|x)$, as everywhere in this book.
#
# ```{prf:proposition} The first step, for responses of any length
# :label: prop-first-gradient
#
# Let the reference be the model at the start, and let one step of gradient descent on the DPO loss
# change the unembedding, and nothing else. It changes it by $D = \frac{\eta\beta}2\,M$, and
# the gap of any pair $j$, whether trained on or not, by
#
# $$\frac{\eta\beta}2\,\langle G_j, M\rangle + R_j, \qquad -\frac18\sum_{t\in\text{chosen}} r_t^2 \;\le\; R_j \;\le\; \frac18\sum_{t\in\text{rejected}} r_t^2,$$
#
# where $r_t$ is the largest less the smallest entry of $D h_t$. If both responses are one
# token, $R_j = 0$.
# ```
#
# `````{dropdown} Proof
# $\nabla_W \log p_t(y) = (e_y - p_t)\,h_t^\top$, so $G_i$ is the gradient of the gap of pair $i$.
# Its loss is $-\log\sigma(\beta\cdot\text{growth of its gap})$, whose derivative by the gap is
# $-\beta\,\sigma(0) = -\frac\beta2$ at the start: $-\nabla L = \frac\beta2 M$. With $u = D
# h_t$ the log-probability of $y$ becomes larger by
#
# $$u_y - \log\textstyle\sum_v p_{t,v}\,e^{u_v}, \qquad p_t\cdot u \;\le\; \log\textstyle\sum_v p_{t,v}\,e^{u_v} \;\le\; p_t\cdot u + \tfrac18 r_t^2,$$
#
# on the left by Jensen's inequality and on the right by Hoeffding's lemma. And $u_y - p_t\cdot u =
# \langle(e_y - p_t)\,h_t^\top, D\rangle$. Sum over the tokens, chosen ones with $+$, rejected
# ones with $-$. Where both responses are one token, both are predicted from one state: the two
# logarithms are the same, and cancel. ∎
# `````
#
# So, up to the remainders, the mean gap of group $b$ grows by $\frac{\eta\beta}2\sum_a\frac{n_a}N\langle M_a, M_b\rangle$,
# to which group $a$ contributes its term, and its loss falls, to first order, by $\frac\beta2$ times that. For
# answers of one token over one prompt, $\langle M_a, M_b\rangle = \frac12\,\hat b_a\cdot\hat b_b$,
# and this is {prf:ref}`prop-first-step`.
#
# All that the audit tells is made of such inner products. For a vocabulary of 49,152 tokens one
# $G_i$ has 28 million entries, but it is a sum of few products of a column and a row: `audit.audit`
# takes slices of the vocabulary, forms the means of the groups there, and adds up
# $\langle G_i, M_a\rangle$ without ever forming a $G_i$. That is linear in the number of pairs.
#
# To check, take the embedded sample's dialogues, in three groups by the length of their responses,
# a tiny model of random weights, and autograd in float64 through all $V\times d$ weights:

# %% tags=["nbval-ignore-output"]
small = lm.load("tiny-llama", "cpu")
pairs = audit_your_data.by_length(
    lm.pairs_from_text(small, load_pairs("sample"))
)
tiny = audit.audit(small, pairs, audit_your_data.KINDS)
told = tiny.pull @ tiny.composition.T @ (tiny.counts / len(pairs))


def stepped(optimizer, eta):
    """Growth of every gap by one step, β = 0.1, and what is told of it."""
    step = partial(optimizer, lr=eta)
    grown = audit_your_data.moved(small, pairs, 0.1, step)
    return grown, eta * 0.1 / 2 * told


# %%
for eta in (0.01, 0.1, 1.0):
    grown, predicted = stepped(torch.optim.SGD, eta)
    error = abs(grown - predicted).max() / abs(predicted).max()
    print(f"η = {eta:<5} largest relative error {error:.0e}")
    assert error < 0.01 * eta

# %% [markdown]
# The error shrinks with the step, as a remainder of second order does.
#
# **Break it.** Larger steps of gradient descent, and a step of AdamW, which most people train with.
# Below is the correlation, over the pairs, of what a step did and what was told:

# %%
for name, optimizer, eta in (
    ("gradient descent", torch.optim.SGD, 10.0),
    ("gradient descent", torch.optim.SGD, 100.0),
    ("AdamW", torch.optim.AdamW, 1e-5),
):
    correlation = np.corrcoef(stepped(optimizer, eta))[0, 1]
    print(f"{name}, η = {eta:g}: correlation {correlation:.2f}")

# %% [markdown]
# The first step of AdamW moves every weight by about $\eta$, however small its gradient: in the
# direction of $\operatorname{sign} M$, and not of $M$. Rare tokens then count as much as frequent
# ones. That is one reason why the rest of this page is measurement.

# %% [markdown]
# (ev-audit-report)=
# ## A report, and how to read it
#
# This is the report on the embedded sample, six behaviors of a hundred statements each. It scrolls.

# %%
rows = audit_your_data.sample_rows()
found = audit_your_data.restored(audit_your_data.sample_run(records).arrays)
page = audit.report(found, rows, "the embedded sample", config.model)

# %% tags=["hide-input"]
HTML(
    f'<div><iframe title="Report of the audit: the embedded sample" srcdoc="{html.escape(page)}" '
    'style="width: 100%; height: 36rem; border: 1px solid #888" loading="lazy"></iframe></div>'
)

# %% [markdown]
# *Before training.* **Base gap** and **already right** are the model as it is. A group that it
# already gets right needs no alignment; one that it gets wrong by a wide margin needs much.
#
# *Signal and noise.* $\|M_a\|^2$ is never zero, even if the pairs of a group have nothing in
# common: the mean of $n$ random vectors has a length. **Strength** is the root of an unbiased
# estimate of what is left without it, the mean of $\langle G_i, G_j\rangle$ over *different* pairs;
# **coherence** is the share of its square in the mean square of a single $G_i$. Different means: within one
# *stratum*, the pairs of the same two responses. That half of all answers are Yes and
# half No is not noise, and is not counted as noise.
#
# *Competition.* **First update** is the group's share of the first step, $\frac{n_a}N\langle M_a,
# M\rangle / \|M\|^2$. **Speed** is the growth of the gap of a *new* pair of the group, $\langle
# M_a, M\rangle$ without the noise, in nats per unit of $\frac{\eta\beta}2$; **speed alone** the
# same if nothing else were trained on. Both have a standard error: other pairs of the same kind
# would have given another speed. One of less than twice its error cannot be told from none, and
# there are two remedies: more pairs, or a model that sees more of a difference. The table of
# *cosines* says who pulls against whom: below zero, two groups undo each other. It is clipped at
# ±1, which noise can exceed.
#
# *Single pairs.* $\langle G_i, M_a\rangle$ with pair $i$ left out of $M_a$ says what the rest of
# the group does for it. Part of that all pairs of the same two responses share: a step that makes
# Yes likelier for any prompt helps every pair that prefers Yes and harms every other. In the group
# it cancels, so it is taken off: $\frac12(M_s - M_{s'})$ from every $G_i$ of a stratum $s$ whose
# mirror
# $s'$, with the other preference, is there. What is left is listed, the largest and the smallest with their rows; below zero
# is what a wrong label does, and **against** is the share of such pairs. Pairs that occur twice, or
# with both preferences, are found by comparing tokens.
#
# *Attack.* **Undone by** is the least share of the group's pairs that, with their labels turned
# round, bring $\langle M_a, M\rangle$ to zero, most helpful pairs first: alone, or in the mixture.
# To turn pair $i$ takes $\frac2{n_a}\langle G_i, M_a\rangle$ off $\|M_a\|^2$, so a sort finds it.

# %% [markdown]
# (ev-audit-yours)=
# ### Yours
#
# In a notebook it is three functions: `preferences.read` for the rows, `preferences.tokenised` for
# the pairs, `audit.audit` for the numbers. Name a file and a column, and run the cell.

# %% tags=["nbval-ignore-output", "not-stored"]
source, column = None, None
if source:
    mine = preferences.read(source, column, most=1000)
    judge = lm.load(config.model, config.device)
    mixed, names = preferences.tokenised(judge, mine)
    seen = audit.audit(judge, mixed, names)
    display(audit.table(seen).T, audit.cosines(seen))

# %% [markdown]
# (ev-audit-mixtures)=
# ## Does it come true? Mixtures of behaviors
#
# Behaviors were drawn by lot from all at hand, four to a mixture, none in two; of each as many
# statements to be answered Yes as No, some to train on and others held out. (An unbalanced draw
# adds a part along the common mean, which {ref}`ev-first-fall` shows to be large. The audit would
# tell it, and the held-out statements, balanced otherwise, would not have it.) The audit saw the
# training statements only. Then the last layer was trained on the mixture by gradient descent, and,
# from the base model again, all parameters by AdamW for one epoch at the scaled rate of
# {ref}`full-finetuning`. Draw, sizes and rates were fixed beforehand.
#
# What is told is a speed; what is measured is by how many nats the mean gap of the held-out
# statements of a behavior has grown.

# %% tags=["hide-input"]
learned, held_out = audit_your_data.SIZES[config.tier]
display(
    Markdown(
        f"Statements of a behavior: **{learned}** to train on, **{held_out}** held out."
    )
)
found = audit_your_data.mixtures_table(records)
shown = found[
    [
        "speed alone", "speed", "first update", "first step, told", "± told",
        "first step", "last layer", "all parameters",
    ]
]  # fmt: skip
shown.rename(index=lambda name: plots.short(str(name), 40)).round(4)

# %% [markdown]
# *First step, told* and *first step* are in the same unit, nats, and can be compared as they are:
# told from some statements, measured on others. What lies between them is the scatter of the two
# samples of statements, of which *± told* is the part of the first; the theorem leaves no other
# room. The last two columns are further from what a first step can know.
# {numref}`fig-audit-mixtures` has the three growths against the speed that was told.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Growth of the mean held-out gap against the speed told before training, a point a behavior: after the first step on the last layer, after all steps, and after an epoch of training all parameters.", "name": "fig-audit-mixtures"}, "image": {"alt": "Three scatter plots of the growth of the held-out gap in nats against the speed told by the audit, one point a behavior and one colour a mixture: the first step of the last layer, all its steps, and an epoch of all parameters."}}
panels = {
    f"{growth} (nats)": {
        f"mixture {number}": (part["speed"], part[growth])
        for number, part in found.groupby(level="mixture")
    }
    for growth in audit_your_data.GROWTHS
}
plots.lines(panels, "speed told", dots=list(next(iter(panels.values()))))

# %% [markdown]
# Rank correlations over all behaviors, with 95 % intervals from drawing behaviors with replacement.
# Beside the speed in the mixture stand things that are easier to come by: the speed of the behavior
# by itself, its coherence, and what the base model answers.

# %% tags=["hide-input"]
audit_your_data.order_table(found)

# %% [markdown]
# The speed that was told orders what the last layer then learns, after one step and after all of
# them, better than anything that is easier to come by; what the base model answers foretells
# nothing that could be told from chance. Of all parameters the order is foretold too, but less well,
# and no better than by a behavior's speed alone or its coherence: sixteen behaviors do not tell
# these apart.

# %% [markdown]
# What a practitioner asks is which of the groups in *one* mixture comes first. So the next table
# counts pairs of behaviors within a mixture, and in how many of them the one told to be faster was.
# Half of them would be chance.

# %% tags=["hide-input"]
audit_your_data.within_table(found)

# %% [markdown]
# Within a mixture it is right of about three pairs in four for the last layer, and there the speed of
# a behavior by itself does as well: what the correlations above have beyond that is which *mixtures*
# learn fast. Trained in full, the audit's order is little better than a guess. Who comes first in a
# mixture that is trained in full it cannot say.

# %% [markdown]
# (ev-audit-noise)=
# ## Does it find wrong labels?
#
# In the same mixtures one label in ten of every behavior was turned round, by lot, and the audit
# made again, not told which. *Told apart* is the probability that a turned pair fits its group less
# than one that was left: 1 if the audit knows them all, one half if it guesses. *Of the worst* is
# the share of wrong labels in the tenth of all pairs that fits least, where a guess has one in ten;
# *against* what the report shows, before labels were turned and after.
#
# *By others* is the same as the first, with what pairs of the same answers share left in. So the
# audit had it at first. A look at the first mixture showed that this hears the answer more than the
# label, and the part that they share was taken off then: the first mixture is no test of that, the
# others are.

# %% tags=["hide-input"]
audit_your_data.noise_table(records).round(3)

# %% [markdown]
# Of a turned pair and one that was left, the audit finds the turned one about nine times in ten, and of
# the pairs that fit least more than half were turned. The plain product finds two in three. But
# *against* is no count of wrong labels: a good many pairs go against their group without any label
# turned, since statements of one behavior differ. Read the list, do not delete it.

# %% [markdown]
# (ev-audit-dialogues)=
# ## Dialogues
#
# {ref}`hh-rlhf` aligned the model on dialogues, with LoRA and AdamW, and recorded the
# log-probability of every held-out response before and after. So there is something to compare
# with, of another kind in every respect: long responses, other parameters, other data. Groups are
# made by length: the chosen response shorter than four fifths of the rejected one, longer than five
# quarters, or between.

# %% tags=["hide-input"]
audit_your_data.dialogues_table(records).round(2)

# %% [markdown]
# *Speed* is told of a new pair from those trained on, with its standard error; *held out, speed* is
# that of the very pairs whose gap was then measured, and *grown* by how much it grew, with the
# standard error of the mean.
#
# The audit says something of every single pair, too. Correlations over the held-out pairs, beside
# those of simpler things: how long the responses are, by how much they differ, and where the model
# stood.

# %% tags=["hide-input"]
told_of_pairs = audit_your_data.predicted(records)
audit_your_data.pairs_table(told_of_pairs)

# %% [markdown]
# Here the audit is weak. It tells that all three kinds gain, though of two of them by less than twice
# the error; those whose chosen response is the longer one have lost. In that run both responses of a pair became less likely ({ref}`hh-rlhf`), the
# longer one by more, so by how much they differ in length, or where the model stood, foretells far
# more than the gradient does, and needs none. Between pairs the speed says something, but little
# ({numref}`fig-audit-dialogues`). Where lengths differ this much, use the report for what it says of
# the data, not of a run.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Growth of the gap of every held-out dialogue over the aligning run of the chapter on dialogues, against the speed told before training.", "name": "fig-audit-dialogues"}, "image": {"alt": "A scatter plot of the growth of the gap in nats against the speed told by the audit, one point a held-out pair, in three colours by which of its responses is longer."}}
panel = {
    kind: (part["speed"], part["grown"])
    for kind, part in told_of_pairs.groupby("kind")
}
plots.lines({"growth of the gap (nats)": panel}, "speed told", dots=list(panel))

# %% [markdown]
# ## What was shown, and what not
#
# That the numbers are those of the first step of gradient descent on the last layer is a theorem,
# and was checked against autograd. Everything beyond it, more steps, more layers, another
# optimizer, was measured above, and a report should be read with those tables at hand. The order of
# speeds carries over to a whole run of the last layer, and in part to one of all parameters, but not
# within a mixture; of dialogues the length of the responses told more. No table says that a *number*
# carries over. What the audit found best was wrong labels.
#
# What differs from how one would train: one seed, mixtures of four, behaviors of one collection,
# and a small model. The audit asks the model that will be trained. What it tells of a small one
# need not hold for a large one; {ref}`second-llm` compares two.
#
# How long it takes is mostly the length of the responses: those of one token need only the rows of
# the tokens that occur, others all of the vocabulary at each of their tokens.

# %% tags=["hide-input"]
audits = {
    "statements": audit_your_data.sample_run(records),
    "dialogues": audit_your_data.dialogues_run(records),
}
took = ", ".join(
    f"**{len(run.arrays['group'])}** {what} in **{run.info['wall_seconds']:.0f} s**"
    for what, run in audits.items()
)
Markdown(f"Recorded audits: {took} ({audits['dialogues'].info['device']}).")

# %% [markdown]
# ```{exercise} Labels turned by lot
# :label: ex-audit-flips
#
# *Undone by* is the worst case. Suppose instead that a share $p$ of the pairs of group $a$, drawn
# by lot, is turned round. At which $p$ does the first step, on average, no longer teach the group,
# alone and in the mixture? Which two columns of the report do you need, and when is no $p \le 1$
# enough?
# ```
#
# ````{solution} ex-audit-flips
# :class: dropdown
# Turning a pair changes the sign of $G_i$, so on average $M_a$ becomes $(1 - 2p)\,M_a$, while what
# is to be learned stays $M_a$. Alone the speed is $(1 - 2p)\|M_a\|^2$, which is zero at $p =
# \frac12$, whatever the group. In the mixture it is
#
# $$\langle M_a, M\rangle - 2p\,\tfrac{n_a}N\|M_a\|^2 = 0 \quad\text{at}\quad p = \frac{\text{speed}}{2\,\frac{n_a}N\,\text{speed alone}} .$$
#
# If the others only help, the speed is more than the group's own part of it, and $p > \frac12$.
# Above
# 1, where the others teach more than the group itself does, turning round all of its labels does not
# stop it. Below 0 the others have undone it already.
# ````
#
# **To try.**
#
# - `audit_your_data.mixtures_table(records)[["undone by", "undone in the mixture"]]`: which behaviors
#   of the mixtures would the fewest turned labels silence, and are they the slow ones?
# - `python -m dpo_helpers.audit pairs.jsonl --group annotator`: do two annotators pull against each
#   other?
# - In `experiments/audit_your_data.py`, another seed in `mixtures`, and record again.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
