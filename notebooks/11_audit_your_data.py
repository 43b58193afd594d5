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
# computed before any training: which groups it improves, which pull against each other, which pairs
# contradict the rest, and how few flipped labels would stop a group from being learned. One command
# does this for your own data. Then we test how well the audit predicts the first step, a whole run
# of the last layer, full fine-tuning, and a run on dialogues, and whether it finds labels that we
# flipped.
#
# **It takes** fifteen minutes to read. The recorded runs replay in half a minute. **It needs** nothing
# to replay. For your own data, it needs the model ({ref}`how-to-run`). Read {ref}`priorities` and
# {ref}`full-finetuning` first.
#
# Nothing on this page is in the paper. It turns the paper's idea into a tool: the model before
# training already determines how fast it starts to learn.

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
import copy
import html
from functools import partial
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from experiments import audit_your_data, hh_rlhf, shared
from experiments.second_llm import agreement
from IPython.display import HTML, Markdown, display
from ledger.config import configure
from ledger.store import RunStore

from dpo_helpers import audit, lm, plots
from dpo_helpers.data import load_pairs, preferences

plots.use_style()
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
# The command reads a `.jsonl`, `.jsonl.gz`, or `.parquet` file, or a data set of the hub by its name.
# It runs the model once over every pair, and writes `audit.html`, a self-contained page, and
# `audit.json`, its numbers. `--group` names the column by which pairs are grouped: topic, source,
# annotator, language. `--model` takes any model of {doc}`../book/models`, a folder, or a name on the
# hub. `--pairs` sets how many pairs to draw if there are more. A row is read as TRL reads it, or as
# Persona has it:
#
# | what a row has | how it is read |
# |---|---|
# | `prompt`, `chosen`, `rejected` as text | as they are |
# | `chosen` and `rejected` as text, no prompt | the prompt is their common beginning, up to the last `Assistant:` in it if there is one |
# | the same as lists of messages, `role` and `content` | through the model's chat template |
# | `question`, `answer_matching_behavior`, `answer_not_matching_behavior` | a Persona statement; answers Yes and No |
#
# For any other row, the audit stops before it loads the model, and names the line and the remedy.

# %% [markdown]
# (ev-audit-gradient)=
# ## What the first gradient knows
#
# Let pair $i$ have the prompt $x$ and two responses of any length. A token $y_t$ of a response is
# predicted from the hidden state $h_t$, by the softmax $p_t$ over all $V$ tokens. Define
#
# $$G_i \;=\; \sum_{t\in\text{chosen}} (e_{y_t} - p_t)\,h_t^\top \;-\; \sum_{t\in\text{rejected}} (e_{y_t} - p_t)\,h_t^\top \;\in\; \mathbb R^{V\times d},$$
#
# where $e_y$ is the unit vector of token $y$. $M_a$ is the mean of $G_i$ over the $n_a$ pairs of group
# $a$, and $M = \sum_a \frac{n_a}N M_a$ is the mean over all pairs. As everywhere in this book, the *gap*
# of a pair is its log-ratio $\log\pi(y_w|x) - \log\pi(y_l|x)$.
#
# ```{prf:proposition} The first step, for responses of any length
# :label: prop-first-gradient
#
# Let the reference be the model at the start, and let one step of gradient descent on the DPO loss
# change the unembedding and nothing else. The step changes it by $D = \frac{\eta\beta}2\,M$. It changes
# the gap of any pair $j$, whether in the training data or not, by
#
# $$\frac{\eta\beta}2\,\langle G_j, M\rangle + R_j, \qquad -\frac18\sum_{t\in\text{chosen}} r_t^2 \;\le\; R_j \;\le\; \frac18\sum_{t\in\text{rejected}} r_t^2,$$
#
# where $r_t$ is the largest entry of $D h_t$ minus the smallest. If both responses are one token,
# $R_j = 0$.
# ```
#
# `````{dropdown} Proof
# $\nabla_W \log p_t(y) = (e_y - p_t)\,h_t^\top$, so $G_i$ is the gradient of the gap of pair $i$. The
# loss of the pair is $-\log\sigma(\beta\cdot\text{growth of its gap})$. Its derivative with respect to
# the gap is $-\beta\,\sigma(0) = -\frac\beta2$ at the start, so $-\nabla L = \frac\beta2 M$. With $u = D
# h_t$, the log-probability of $y$ increases by
#
# $$u_y - \log\textstyle\sum_v p_{t,v}\,e^{u_v}, \qquad p_t\cdot u \;\le\; \log\textstyle\sum_v p_{t,v}\,e^{u_v} \;\le\; p_t\cdot u + \tfrac18 r_t^2.$$
#
# The lower bound is Jensen's inequality, the upper bound is Hoeffding's lemma. And $u_y - p_t\cdot u =
# \langle(e_y - p_t)\,h_t^\top, D\rangle$. Sum over the tokens, the chosen ones with $+$ and the rejected
# ones with $-$. If both responses are one token, both are predicted from the same state, so the two
# logarithms are equal and cancel. ∎
# `````
#
# So, up to the remainders, the mean gap of group $b$ grows by $\frac{\eta\beta}2\sum_a\frac{n_a}N\langle M_a, M_b\rangle$,
# and group $a$ contributes its term of the sum. To first order, the loss of group $b$ decreases by
# $\frac\beta2$ times this growth. For answers of one token after one prompt, $\langle M_a, M_b\rangle =
# \frac12\,\hat b_a\cdot\hat b_b$, and this is {prf:ref}`prop-first-step`.
#
# We compute $G_i$ from its definition, for a tiny model with random weights whose $V\times d$ matrices
# fit in memory. The pairs are the embedded sample's dialogues, in three groups by the length of
# their responses.


# %%
def read(model, pairs):
    """For each response: the states (T, d) that predict its tokens; the tokens."""
    network = copy.deepcopy(model.network).double()

    @torch.no_grad()
    def states(x, y):
        found = network.base_model(torch.tensor([x + y])).last_hidden_state
        return found[0, len(x) - 1 : -1], torch.tensor(y)

    rows = zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    return [
        (states(x, chosen), states(x, rejected)) for x, chosen, rejected in rows
    ]


# %%
def gradient(pair, weight):
    """G_i, (V, d), of one pair that ``read`` returned."""
    found = torch.zeros_like(weight)
    for (h, y), sign in zip(pair, (1, -1), strict=True):
        p = (h @ weight.T).softmax(-1)
        found += sign * (torch.nn.functional.one_hot(y, len(weight)) - p).T @ h
    return found


# %% [markdown]
# The audit needs only inner products of such matrices. For a vocabulary of 49,152 tokens one $G_i$
# has 28 million entries, but it is a sum of a few outer products. `audit.audit` takes slices of the
# vocabulary, forms the means of the groups in each slice, and adds up $\langle G_i, M_a\rangle$
# without ever forming a $G_i$. Its cost is linear in the number of pairs. It agrees with the
# definition:

# %%
small = lm.load("tiny-llama", "cpu")
dialogues = lm.pairs_from_text(small, load_pairs("sample"))
pairs = audit_your_data.by_length(dialogues)
weight = small.network.get_output_embeddings().weight.detach().double()
responses = read(small, pairs)
G = (
    torch.stack([gradient(pair, weight) for pair in responses])
    .flatten(1)
    .numpy()
)
M = np.stack([G[pairs.group == a].mean(0) for a in np.unique(pairs.group)])

# %% tags=["nbval-ignore-output"]
tiny = audit.audit(small, pairs, audit_your_data.KINDS)
for found, expected in (
    (tiny.means, M @ M.T),
    (tiny.pair_stratum @ tiny.composition.T, G @ M.T),
    (tiny.squared_norm, (G**2).sum(1)),
):
    assert np.allclose(
        found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max()
    )

# %% [markdown]
# Now we check the proposition by one step of autograd in float64 through all $V\times d$ weights:


# %%
def moved(responses, weight, optimizer, beta=0.1):
    """Growth of every gap in one step of DPO on all pairs, in nats: (N,)."""
    w = torch.nn.Parameter(weight.clone())

    def log_probability(h, y):
        return (h @ w.T).log_softmax(-1).gather(1, y[:, None]).sum()

    def gaps():
        both = [[log_probability(*y) for y in pair] for pair in responses]
        return torch.stack([chosen - rejected for chosen, rejected in both])

    before = gaps()
    margins = beta * (before - before.detach())
    (-torch.nn.functional.logsigmoid(margins)).mean().backward()
    optimizer([w]).step()
    return (gaps() - before).detach().numpy()


# %%
# ⟨G_j, M⟩, (N,)
inner = tiny.pair_stratum @ tiny.composition.T @ (tiny.counts / len(pairs))
for eta in (0.01, 0.1, 1.0):
    grown = moved(responses, weight, partial(torch.optim.SGD, lr=eta))
    predicted = eta * 0.1 / 2 * inner
    error = abs(grown - predicted).max() / abs(predicted).max()
    print(f"η = {eta:<5} largest relative error {error:.0e}")
    assert error < 0.01 * eta

# %% [markdown]
# The relative error shrinks with the step, as a second-order remainder does.
#
# **Break it.** We take larger steps of gradient descent, and a step of AdamW, the usual optimizer.
# The cell prints the correlation, over the pairs, of measured and predicted growth:

# %%
for name, optimizer, eta in (
    ("gradient descent", torch.optim.SGD, 10.0),
    ("gradient descent", torch.optim.SGD, 100.0),
    ("AdamW", torch.optim.AdamW, 1e-5),
):
    grown = moved(responses, weight, partial(optimizer, lr=eta))
    correlation = np.corrcoef(grown, inner)[0, 1]
    print(f"{name}, η = {eta:g}: correlation {correlation:.2f}")

# %% [markdown]
# The first step of AdamW moves every weight by about $\eta$, however small its gradient: it moves
# in the direction of $\operatorname{sign} M$ and not of $M$. Rare tokens then count as much as
# frequent ones. This is one reason why the rest of this page measures how well the predictions
# hold.

# %% [markdown]
# (ev-audit-report)=
# ## A report, and how to read it
#
# This is the report on the embedded sample: six behaviors with a hundred statements each. Scroll in
# it to read on.

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
# *Before training.* **Base gap** and **already right** describe the model before training. A group
# that the model already gets right needs no alignment. A group that it gets wrong by a wide margin
# needs much.
#
# *Signal and noise.* $\|M_a\|^2$ is not zero even if the pairs of a group have nothing in common,
# since the mean of $n$ random vectors is not zero. **Strength** measures what the pairs share. It
# is the square root of an unbiased estimate of $\|M_a\|^2$ without this noise, the mean of
# $\langle G_i, G_j\rangle$ over *different* pairs. **Coherence** is the squared strength as a share
# of the mean square of a single $G_i$. Here *different* means two pairs within one *stratum*, the
# pairs of a group with the same two responses. So if half of all answers are Yes and half No, the
# difference between these halves is not counted as noise, since it is not noise.

# %%
table = audit.table(tiny)  # here each group is one stratum
for a, n in enumerate(tiny.counts):
    products = G[pairs.group == a] @ G[pairs.group == a].T
    different = (products.sum() - products.trace()) / (n * (n - 1))
    signal = max(different, 0)
    assert np.isclose(
        table["strength"].iloc[a], np.sqrt(signal), rtol=1e-3, atol=1e-3
    )
    single = signal + products.trace() / n - different
    assert np.isclose(
        table["coherence"].iloc[a], signal / single, rtol=1e-2, atol=1e-4
    )

# %% [markdown]
# *Competition.* **First update** is the group's share of the first step,
# $\frac{n_a}N\langle M_a, M\rangle / \|M\|^2$. **Speed** is the growth of the gap of a *new* pair
# of the group: $\langle M_a, M\rangle$ with the noise subtracted, in nats per unit of
# $\frac{\eta\beta}2$. **Speed alone** is the speed if we train on this group only. Both have a
# standard error, since other pairs of the same group would have given another speed. A speed below
# two standard errors is indistinguishable from zero. There are two remedies: more pairs, or a model
# that separates the pairs better. The table of *cosines* shows which groups pull against each
# other: if the cosine is negative, two groups undo each other. Noise can push the estimate beyond
# ±1, so it is clipped there.
#
# *Single pairs.* Leave pair $i$ out of $M_a$. Then $\langle G_i, M_a\rangle$ says what the rest of
# the group does for this pair. All pairs with the same two responses share a part of it: a step
# that makes Yes likelier for any prompt helps every pair that prefers Yes, and harms every pair
# that prefers No. In the group this part cancels, so the audit subtracts it. Let $s$ be a stratum,
# and $s'$ its mirror, the stratum with the opposite preference. If $s'$ exists, the audit subtracts
# $\frac12(M_s - M_{s'})$ from every $G_i$ of $s$. The result is the *leave-one-out score*. The
# report lists the largest and smallest scores with their rows. A wrong label makes the score
# negative. **Against** is the share of pairs with a negative score. The audit also compares tokens,
# to find pairs that occur twice or with both preferences.


# %%
def scores(found, subtract=True):
    """Leave-one-out scores (N,) of an audit, from its inner products."""
    s, n = found.stratum, np.bincount(found.stratum)
    rows, own = np.arange(len(s)), np.eye(len(n))
    mirrored = (found.mirror >= 0)[:, None]
    common = np.where(mirrored, (own - own[found.mirror]) / 2, 0) * subtract
    # ⟨G_i − C_s, M_t⟩ and ⟨G_i − C_s, G_i⟩, where C_s is the shared part.
    along = found.pair_stratum - (common @ found.stratum_gram)[s]
    itself = found.squared_norm - (found.pair_stratum * common[s]).sum(1)
    without = (n[s] * along[rows, s] - itself) / np.maximum(n[s] - 1, 1)
    along[rows, s] = np.where(n[s] > 1, without, 0)
    rest = found.composition @ (own - common)  # means of groups, without C
    return (along * rest[found.group]).sum(1)


# %%
for i, score in enumerate(scores(tiny)):
    others = (pairs.group == pairs.group[i]) & (np.arange(len(pairs)) != i)
    expected = G[i] @ G[others].mean(0)
    assert np.isclose(score, expected, rtol=1e-3, atol=1e-4 * (G[i] @ G[i]))
assert np.allclose(scores(found), found.leave_one_out_score)
assert np.allclose(scores(found, subtract=False), found.others)
against = np.bincount(found.group, scores(found) < 0) / found.counts
assert np.allclose(against, audit.table(found)["against"])

# %% [markdown]
# *Attack.* An attacker flips labels, the most helpful pairs first. **Undone by** is the smallest
# share of the group's pairs whose flipped labels bring $\langle M_a, M\rangle$ to zero: if we train
# on the group alone, or in the mixture. Flipping pair $i$ decreases $\|M_a\|^2$ by
# $\frac2{n_a}\langle G_i, M_a\rangle$, so sorting finds this share.

# %% [markdown]
# (ev-audit-yours)=
# ### Yours
#
# In a notebook the audit takes four functions: `preferences.read` reads the rows,
# `preferences.drawn` draws at most a given number of them, `audit.tokenize` makes the pairs, and
# `audit.audit` computes the numbers. Name a file and a column, and run the cell.

# %% tags=["nbval-ignore-output", "not-stored"]
source, column = None, None
if source:
    mine = preferences.drawn(preferences.read(source, column), 1000)
    judge = lm.load(config.model, config.device)
    seen = audit.audit(judge, *audit.tokenize(judge, mine))
    display(audit.table(seen).T, audit.cosines(seen))

# %% [markdown]
# (ev-audit-mixtures)=
# ## Do the predictions hold? Mixtures of behaviors
#
# We drew behaviors at random from all available ones: four per mixture, and no behavior in two
# mixtures. Of each behavior we took equally many statements that prefer Yes and No, some for
# training and others held out. (An unbalanced sample adds a part along the common mean, which
# {ref}`ev-first-fall` shows to be large. The audit would predict this part, but the held-out
# statements, with another balance, would not have it.) The audit saw only the training statements.
# Then we trained the last layer on the mixture by gradient descent. Starting again from the base
# model, we trained all parameters by AdamW for one epoch at the scaled rate of
# {ref}`full-finetuning`. The random draw, sizes, and rates were fixed in advance.
#
# The audit predicts a speed. We measure by how many nats the mean gap of a behavior's held-out
# statements has grown.

# %%
eta = shared.learning_rate(records)
last_rate = audit_your_data.last_rate(records)
parts = []
for number, behaviors in enumerate(audit_your_data.mixtures(records)):
    a = audit_your_data.audit_run(records, number).arrays
    full = audit_your_data.full_run(records, number, last_rate).arrays
    part = audit.table(audit_your_data.restored(a))
    assert part.index.tolist() == behaviors
    part["first step, predicted"] = eta * config.beta / 2 * part["speed"]
    part["± predicted"] = eta * config.beta / 2 * part["its error"]
    part["first step"] = a["together"][:, 1, 1]  # part 1 is held out
    part["last layer"] = a["together"][:, 1, -1]
    gap = full["gap"][:, 1].astype(float)
    part["all parameters"] = gap[:, -1] - gap[:, 0]
    parts.append(part)

# %%
mixture = pd.concat(
    parts, keys=range(1, len(parts) + 1), names=["mixture", "behavior"]
)
shown = ["speed alone", "speed", "first update", "first step, predicted"]
shown += ["± predicted", "first step", "last layer", "all parameters"]
learned, held_out = audit_your_data.SIZES[config.tier]
sizes = f"**{learned}** for training, **{held_out}** held out"
display(Markdown(f"Statements of a behavior: {sizes}."))
mixture[shown].rename(index=lambda x: plots.short(str(x), 40)).round(4)

# %% [markdown]
# *First step, predicted* and *first step* have the same unit, nats, and can be compared directly:
# one is predicted from the training statements, the other is measured on held-out statements. They
# differ only by the sampling noise of the two sets of statements; *± predicted* is the standard
# error of the training sample. The theorem allows no other difference. The last two columns, *last
# layer* and *all parameters*, are whole runs, which a prediction of the first step does not cover.
# {numref}`fig-audit-mixtures` shows the three growths against the predicted speed.

# %% mystnb={"figure": {"caption": "Growth of the mean held-out gap against the predicted speed, one point per behavior, for three kinds of training.", "name": "fig-audit-mixtures"}, "image": {"alt": "Three scatter plots of the growth of the held-out gap in nats against the speed predicted by the audit, one point a behavior and one color a mixture: the first step of the last layer, all its steps, and an epoch of all parameters."}} tags=["hide-input"]
growths = ("first step", "last layer", "all parameters")
fig, axes = plt.subplots(1, 3, figsize=(9.9, 4))
for ax, growth in zip(axes, growths, strict=True):
    for number, part in mixture.groupby(level="mixture"):
        ax.plot(
            part["speed"],
            part[growth],
            "os^D"[(number - 1) % 4],
            label=f"mixture {number}",
        )
    ax.set(
        title=growth,
        xlabel="predicted speed",
        ylabel="growth of the gap (nats)",
    )
plots.legend_below(fig, axes[0], ncols=4)
plt.show()

# %% [markdown]
# The table has rank correlations over all behaviors, with 95 % intervals from resampling behaviors
# with replacement. We compare the speed in the mixture with quantities that are easier to compute:
# the speed of the behavior alone, its coherence, and the base model's gap and accuracy (*already
# right*).


# %%
def in_words(x, y):
    """Rank correlation with its interval, as text; a dash for few points."""
    if len(x) < 10:
        return "–"
    return "{:.2f} ({:.2f} to {:.2f})".format(
        *agreement(np.array(x), np.array(y))
    )


predictors = {"speed": "speed, in the mixture", "speed alone": "speed, alone"}
predictors |= {x: x for x in ("coherence", "base gap", "already right")}
measured = ("first step", "last layer", "all parameters")
order = {
    growth: {
        title: in_words(mixture[x], mixture[growth])
        for x, title in predictors.items()
    }
    for growth in measured
}
pd.DataFrame(order)

# %% [markdown]
# The predicted speed orders what the last layer learns, after one step and after all steps, better
# than the quantities that are easier to compute. The base model's answers predict nothing that is
# distinguishable from chance. For all parameters the audit predicts the order too, but less well,
# and no better than a behavior's speed alone or its coherence: sixteen behaviors cannot tell these
# apart.
#
# A practitioner asks which group of *one* mixture is learned first. So the next table counts pairs
# of behaviors within a mixture: in how many pairs was the behavior with the larger value of the
# predictor learned faster? By chance this would be half of the pairs.


# %%
def right_order(predictor, growth):
    """In how many pairs of one mixture both columns agree on the order."""
    right = [
        (one[predictor] - two[predictor]) * (one[growth] - two[growth]) > 0
        for _, part in mixture.groupby(level="mixture")
        for one, two in combinations(part.to_dict("records"), 2)
    ]
    return f"{sum(right)} of {len(right)}"


within = {
    growth: {title: right_order(x, growth) for x, title in predictors.items()}
    for growth in measured
}
pd.DataFrame(within)

# %% [markdown]
# For the last layer, the audit orders about three in four pairs within a mixture correctly, and the
# speed of a behavior alone does as well. So the higher correlation above reflects which *mixtures*
# learn fast. For full fine-tuning, the audit's order is little better than a guess. It cannot say
# which behavior of a mixture is learned first when all parameters are trained.

# %% [markdown]
# (ev-audit-noise)=
# ## Does it find wrong labels?
#
# In the same mixtures we flipped one label in ten of every behavior, at random, and ran the audit
# again without telling it which. *AUC* is the probability that a flipped pair has a lower
# leave-one-out score than an unflipped one: 1 for a perfect audit, one half for a guess. *Of the
# worst* is the share of wrong labels in the tenth of all pairs with the lowest scores; a guess
# would have one in ten. *Against* is the column of the report, after labels were flipped; *against
# before* is the same before.
#
# *AUC, shared part kept*, is the AUC without subtracting the part that pairs with the same answers
# share. The first version of the audit did not subtract it. A look at the first mixture showed that
# the score then depends more on the answer than on the label, so we changed the audit. The first
# mixture is therefore no test of this change; the others are.


# %%
def auc(score, wrong):
    """The probability that a wrong pair scores below a right one; ties count half."""
    difference = score[~wrong] - score[wrong, None]
    return (difference > 0).mean() + (difference == 0).mean() / 2


def found_wrong(score, others, wrong):
    """How well the scores (n,) of a group's pairs find the wrong labels."""
    lowest = np.argsort(score, kind="stable")[: wrong.sum()]
    return {
        "AUC": auc(score, wrong),
        "AUC, shared part kept": auc(others, wrong),
        "of the worst": wrong[lowest].mean(),
    }


# %%
rows = {}
for number, behaviors in enumerate(audit_your_data.mixtures(records)):
    a = audit_your_data.audit_run(records, number).arrays
    clean, noisy = (audit_your_data.restored(a, x) for x in ("", "noisy_"))
    score, others = scores(noisy), scores(noisy, subtract=False)
    in_group = [noisy.group == group for group in range(len(behaviors))]
    each = [found_wrong(score[g], others[g], a["flipped"][g]) for g in in_group]
    rows[number + 1] = pd.DataFrame(each).mean()
    rows[number + 1]["against before"] = audit.table(clean)["against"].mean()
    rows[number + 1]["against"] = audit.table(noisy)["against"].mean()
wrong_labels = pd.DataFrame(rows).T.rename_axis("mixture")
wrong_labels.round(3)

# %% [markdown]
# Given a flipped and an unflipped pair, the audit identifies the flipped one about nine times in
# ten. With the shared part kept, it does so two times in three. Of the pairs with the lowest
# scores, more than half were flipped. But *against* does not count wrong labels: many pairs go
# against their group without any flipped label, since the statements of one behavior differ. So
# read the listed pairs, and do not simply delete them.

# %% [markdown]
# (ev-audit-dialogues)=
# ## Dialogues
#
# {ref}`hh-rlhf` aligned the model on dialogues, with LoRA and AdamW, and recorded the
# log-probability of every held-out response before and after. So we can compare the audit with a
# run that differs in every respect: long responses, other trained parameters, and other data. We
# group dialogues by the length of the chosen response: shorter than four fifths of the rejected
# response, longer than five quarters of it, or between.

# %%
dialogues_arrays = audit_your_data.dialogues_run(records).arrays
audited = audit_your_data.restored(dialogues_arrays)
trained = np.array([name.startswith("trained on") for name in audited.names])
weights = np.where(trained, audited.counts, 0) / audited.counts[trained].sum()
held_out = ~trained[audited.group]

rate = list(hh_rlhf.rates(records).values())[-1]
run = hh_rlhf.aligned_run(records, rate, config.full_seeds[0])
chosen, rejected = np.moveaxis(run.arrays["each"].astype(float), -1, 0)
before, after = chosen - rejected  # each (held-out pairs,)
tokens = dialogues_arrays["tokens"][held_out]

# %%
each = pd.DataFrame(
    {
        "kind": [
            audited.names[g].split(", ")[1] for g in audited.group[held_out]
        ],
        "speed": (audited.pair_stratum @ (weights @ audited.composition))[
            held_out
        ],
        "‖G‖²": audited.squared_norm[held_out],
        "tokens of both": tokens.sum(1),
        "tokens, chosen less rejected": tokens[:, 0] - tokens[:, 1],
        "base gap": audited.gap[held_out].astype(float),
        "grown": after - before,
    }
)

# %%
groups = audit.table(audited)[["pairs", "base gap", "coherence"]]
groups["speed"], groups["its error"] = (
    audited.speeds(weights),
    audited.errors(weights),
)
groups = groups[trained].rename(index=lambda name: name.split(", ")[1])
kinds = each.groupby("kind")
groups["held out"] = kinds.size()
groups["held out, speed"] = kinds["speed"].mean()
groups["grown"], groups["± grown"] = kinds["grown"].mean(), kinds["grown"].sem()
groups.astype(float).round(2)

# %% [markdown]
# *Speed* is predicted for a new pair from the training pairs, with its standard error. *Held out,
# speed* is the mean predicted speed of the held-out pairs, whose gaps were measured. *Grown* is the
# mean growth of these gaps, and *± grown* its standard error.
#
# The audit also predicts every single pair. The next table shows rank correlations with the growth
# over the held-out pairs, and compares the speed with simpler quantities: how long the responses
# are, how much they differ in length, and the base model's gap.

# %%
known = [name for name in each if name not in ("kind", "grown")]
by_pair = {name: in_words(each[name], each["grown"]) for name in known}
pd.DataFrame({"growth of the gap": by_pair})

# %% [markdown]
# Here the audit is weak. It predicts that all three kinds gain, although two of the speeds are
# below two standard errors. But the gap of the dialogues whose chosen response is longer has
# decreased. In that run both responses of a pair became less likely on average ({ref}`hh-rlhf`),
# and the longer one by more. So the difference in length, or the base model's gap, predicts far
# better than the gradient does, and needs no gradient. The speed of a pair predicts something, but
# little ({numref}`fig-audit-dialogues`). Where lengths differ this much, use the report for what it
# says about the data, not about a run.

# %% mystnb={"figure": {"caption": "Growth of the gap over the run that aligned the model against the predicted speed, one point per held-out dialogue.", "name": "fig-audit-dialogues"}, "image": {"alt": "A scatter plot of the growth of the gap in nats against the speed predicted by the audit, one point a held-out pair, in three colors by which of its responses is longer."}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5, 4.4))
for (kind, part), mark in zip(each.groupby("kind"), "os^", strict=False):
    ax.plot(part["speed"], part["grown"], mark, label=kind)
ax.set(xlabel="predicted speed", ylabel="growth of the gap (nats)")
plots.legend_below(fig, ax, ncols=3)
plt.show()

# %% [markdown]
# ## What was shown, and what not
#
# A theorem says that the numbers describe the first step of gradient descent on the last layer, and
# we checked it against autograd. The theorem does not cover more steps, more layers, or another
# optimizer; for these we have only the measurements above. Read a report with those tables in mind.
# The order of speeds carries over to a whole run of the last layer, and in part to a run of all
# parameters, but not within a mixture. For dialogues the length of the responses predicted more. No
# table says that a *number* carries over. The audit did best at finding wrong labels.
#
# These experiments differ from usual training: one seed, mixtures of four, behaviors of one
# collection, and a small model. The audit uses the model that will be trained. What it predicts for
# a small model need not hold for a large one; {ref}`second-llm` compares two.
#
# The run time depends mostly on the length of the responses. Responses of one token need only the
# unembedding rows of the tokens that occur. Longer responses need the whole vocabulary at each of
# their tokens.

# %%
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
# ```{exercise} Labels flipped at random
# :label: ex-audit-flips
#
# *Undone by* is the worst case. Suppose instead that the labels of a share $p$ of the pairs of
# group $a$, drawn at random, are flipped. At which $p$ does the first step, on average, no longer
# improve the group, alone and in the mixture? Which two columns of the report do you need, and when
# is no $p \le 1$ enough?
# ```
#
# ````{solution} ex-audit-flips
# :class: dropdown
# Flipping a pair changes the sign of $G_i$. So on average $M_a$ becomes $(1 - 2p)\,M_a$, while the
# direction that should be learned is still $M_a$. Alone the speed is $(1 - 2p)\|M_a\|^2$, which is
# zero at $p = \frac12$, whatever the group. In the mixture it is
#
# $$\langle M_a, M\rangle - 2p\,\tfrac{n_a}N\|M_a\|^2 = 0 \quad\text{at}\quad p = \frac{\text{speed}}{2\,\frac{n_a}N\,\text{speed alone}} .$$
#
# If the other groups only help, the speed exceeds the group's own part of it, and $p > \frac12$. If
# $p$ is above 1, the other groups improve the group more than it improves itself, and flipping all
# of its labels does not stop it. If $p$ is below 0, the other groups have already undone it.
# ````
#
# **To try.**
#
# - `mixture[["undone by", "undone in the mixture"]]`: which behaviors of the mixtures would the fewest
#   flipped labels stop, and are they the slow ones?
# - `python -m dpo_helpers.audit pairs.jsonl --group annotator`: do two annotators pull against each
#   other?
# - Change the seed of `mixtures` in `experiments/audit_your_data.py`, and record the runs again.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
