# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (hh-rlhf)=
# # Dialogues, with LoRA
#
# **You will see** a model aligned on dialogues, and then misaligned by the same dialogues with
# their labels flipped. Does that go faster than from the model that was never aligned? How soon is
# the alignment gone? What happens to the log-probability of each response, not only to their
# difference? How much of this is due to the reference, to the adapter, and to rounding?
#
# **It takes** fifteen minutes to read and half a minute to run. **It needs** nothing to replay the
# recorded runs. To make them anew, it needs the data ({ref}`how-to-run`) and an hour or two on one
# core. Read {ref}`full-finetuning` first.
#
# This page follows Appendix C of {cite:t}`im2024understanding`: Figures 15 and 16.
#
# ```{admonition} The data is offensive
# :class: warning
# HH-RLHF {cite:p}`bai2022training` has dialogues in which people try to make an assistant say
# harmful things, and sometimes succeed. No dialogue is printed on this page or kept in this
# repository. There are only counts, lengths, and log-probabilities. One folded cell shows a
# dialogue from your own copy; its output is not stored. The models trained on flipped labels only
# serve to measure how fast misalignment is, and are not kept either.
# ```
#
# ```{admonition} What differs from the paper
# :class: note
# The model is SmolLM2-135M-Instruct; the paper has Llama-2-7B. The pairs come from one published
# file, the test part of *harmless-base*. A rule that was fixed before any run leaves out a pair if
# its prompt with either response has more than 128 tokens. The table below counts what is left; the
# paper does not say which pairs it took. There is one seed. LoRA, AdamW, $\beta$, batch size, and
# the number of epochs (one) are the paper's. We show the paper's learning rate, and beside it one
# scaled by a rule. Weights are float32, matrix products bf16.
# ```

# %% tags=["parameters"]
tier = "book"
model = None
data = None
beta = None
full_learning_rate = None
full_batch_size = None
full_seeds = None
device = None

# %% [markdown]
# The runs of this page are in `experiments.hh_rlhf`; each is recorded by itself.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from experiments import hh_rlhf, misalignment
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from transformers import AutoConfig
from workflow import claims

from dpo_helpers import dpo, lm, plots
from dpo_helpers.data import load_pairs, split
from dpo_helpers.finetune import memory
from dpo_helpers.lm import lora

plots.use_style()
config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header("hh-rlhf")))

# %% [markdown]
# ## The pairs
#
# A row of the file has two dialogues that differ only in the last answer. The prompt $x$ is the
# text up to and including the last `Assistant:` that both share. The responses $y_w$ and $y_l$ are
# what follows, with an end-of-sequence token. A response now has many tokens, so
#
# $$\log\pi(y\mid x) = \sum_k \log\pi(y_k\mid x, y_{<k}),$$
#
# and (7) no longer holds, since the softmax normalizers do not cancel. One token trie still holds
# each prompt once with both its responses, and one forward pass over the trie covers a whole batch.
# Here we compare the plain sum with the library's result, for the invented pairs of the sample and
# a tiny network with random weights.

# %%
small = lm.load("tiny-llama", "cpu")
pairs = lm.pairs_from_text(small, load_pairs("sample"))


@torch.no_grad()
def log_probability(network, prompt, response):
    ids = torch.tensor([prompt + response])
    log_p = network(ids).logits[0, :-1].log_softmax(-1)
    each = log_p.gather(1, ids[0, 1:, None])
    return each[-len(response) :].sum().item()


# %%
with torch.no_grad():
    before_adapter = lm.log_probabilities(small.network, pairs)
for prompt, chosen, rejected, found in zip(
    pairs.prompts[:3],
    pairs.chosen,
    pairs.rejected,
    before_adapter,
    strict=False,
):
    plain = [
        log_probability(small.network, prompt, y) for y in (chosen, rejected)
    ]
    assert np.allclose(plain, found, rtol=1e-4)

# %% [markdown]
# The next table shows how many pairs are left after each filter, and the median number of tokens of
# a prompt together with the longer of its responses.

# %%
found = hh_rlhf.pairs_run(records).arrays
longest, differ = found["tokens"].max(1), ~found["equal"]
limit = hh_rlhf.LENGTH[config.tier]
short = differ & (longest <= limit)
subsets = {
    "in the file": differ | ~differ,
    "with two different responses": differ,
    f"of at most {limit} tokens": short,
}
rows = {
    name: [at.sum(), str(int(np.median(longest[at])))]
    for name, at in subsets.items()
}
train, test = split(short.sum())
rows |= {"trained on": [len(train), ""], "held out": [len(test), ""]}
table = pd.DataFrame(rows, index=["pairs", "tokens (median)"]).T
table["share"] = [f"{n / len(longest):.0%}" for n in table["pairs"]]
display(table)

# %% [markdown]
# Short dialogues are not a random sample: long attempts at red-teaming are left out. What holds for
# short dialogues need not hold for the others. The next cell shows one pair of your copy, if there
# is one; set another `number` for another pair.

# %% tags=["hide-output", "nbval-ignore-output", "not-stored"]
number = 0
if hh_rlhf.at_hand(config):
    pair = load_pairs(config.data, hh_rlhf.SUBSET)[number]
    for part in ("prompt", "chosen", "rejected"):
        print(f"[{part}] {pair[part]}\n")

# %% [markdown]
# (ev-lora)=
# ## LoRA
#
# LoRA {cite:p}`hu2021lora` leaves a matrix $W$ unchanged and trains an update of low rank,
#
# $$W \;\to\; W + \frac{\alpha}{r}\,BA, \qquad A\in\mathbb R^{r\times d_{\rm in}},\; B\in\mathbb R^{d_{\rm out}\times r}.$$
#
# As in the paper, $r = 8$, $\alpha = 32$, and the adapted matrices are the query and value matrices
# of all layers. $A$ is random and $B$ is 0, so training begins at the model itself. `lora.add`
# inserts such adapters with `peft` and freezes the rest. `finetune.train` trains all parameters
# that require a gradient, so it needs no change. The cell checks that adding adapters leaves the
# log-probabilities unchanged, and then checks the formula for a $B$ that is not 0.

# %%
small = lora.add(small, seed=0)
with torch.no_grad():
    after = lm.log_probabilities(small.network, pairs)
assert torch.equal(before_adapter, after), "B is 0"
trained = [p.numel() for p in small.network.parameters() if p.requires_grad]
print(f"{sum(trained)} parameters to train, in {len(trained)} matrices")

query = small.network.model.layers[0].self_attn.q_proj
W, A, B = (
    m.weight
    for m in (query.base_layer, query.lora_A.default, query.lora_B.default)
)
with torch.no_grad():
    B.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.ones(W.shape[1])
    changed = W + lora.ALPHA / lora.RANK * B @ A
    assert torch.allclose(query(x), changed @ x, atol=1e-4)

# %% [markdown]
# Dropout of 0.05 is applied to the input of $A$ while the gradient of a batch is computed, but not
# in measurements or in the reference. (In a token trie, a token of the prompt has the same dropout
# mask for both responses. TRL's trainer, as of version 1.16, switches dropout off by default;
# whether the paper's runs had any is not known.)
#
# (ev-lora-rate)=
# ### Which learning rate?
#
# {ref}`ev-scaled-rate` gave the reason to scale the rate: AdamW moves each parameter by about
# $\eta$ per step, and here few parameters are trained. This rule was fixed beforehand:
#
# > Of 1, 10, 30, and 100 times the paper's learning rate, take the one at which *aligning*, an epoch
# > on the given labels, ends with the lowest held-out loss.
#
# The rule uses no run on flipped labels. It chooses the best-aligned model, because this page asks
# how alignment is undone.
#
# Throughout this page, $a$ is the amount that aligning adds to a pair's gap
# $\log\pi(y_w|x) - \log\pi(y_l|x)$. A mean over pairs is given with its standard error.


# %%
def mean_and_error(x, digits=2):
    error = x.std(ddof=1) / np.sqrt(len(x))
    return f"{x.mean():+.{digits}f} ± {error:.{digits}f}"


def gaps(each):
    """log π(y_w|x) − log π(y_l|x) of pairs from their two log π, (n, 2)."""
    preferred, other = each.astype(float).T
    return preferred - other


rates = hh_rlhf.rates(records)
tried = hh_rlhf.calibration_runs(records) if "scaled" in rates else []
rows = {}
for factor, run in zip(hh_rlhf.FACTORS[config.tier], tried, strict=False):
    before, after = map(gaps, run.arrays["each"])
    rows[f"{factor * hh_rlhf.RATE:g}"] = {
        "held-out loss": f"{run.arrays['loss'][1, -1]:.4f}",
        "held-out accuracy": f"{run.arrays['accuracy'][1, -1]:.4f}",
        "gap added (nats)": mean_and_error(after - before),
    }
pd.DataFrame(rows).T.rename_axis("η")

# %%
chosen = ", ".join(f"{name} **{rate:g}**" for name, rate in rates.items())
Markdown(f"Learning rates: {chosen}.")

# %% [markdown]
# (ev-figure-fifteen)=
# ## Figure 15: the loss on flipped labels
#
# The rule chose the largest of the rates that it compares. A larger rate might align further; we
# did not try one, since the rule was fixed.
#
# First comes one epoch on the given labels, which yields the *aligned* model. Then every label is
# flipped, and both the base and the aligned model are trained for one epoch with a fresh optimizer,
# on the same batches in the same order. The reference of each is the model that it starts from, so
# both begin at $\log 2$. {numref}`fig-fifteen` shows the loss of each batch before the step on it,
# and the loss of all held-out pairs.

# %%
runs = {rate: hh_rlhf.arms(records, rate) for rate in rates.values()}
names = (*misalignment.LABELS, "aligned, new adapter")
names = dict(zip(hh_rlhf.ARMS, names, strict=True))
hues = misalignment.HUES | {"aligned, new adapter": "#1f9e89"}
own = [arm for arm in names if arm[0] == arm[1]]


def draw(ax, values, arm):
    """One line, through the measured steps."""
    steps = np.flatnonzero(np.isfinite(values))
    color = hues[names[arm]]
    ax.plot(steps, np.array(values)[steps], color=color, label=names[arm])


def grid(rows):
    """A grid of panels: a column per learning rate, and this many rows."""
    n = len(runs)
    size = (3.6 * n, 3 * rows + 0.4)
    fig, axes = plt.subplots(rows, n, figsize=size, squeeze=False)
    for ax, rate in zip(axes.flat, [*runs] * rows, strict=True):
        ax.set(title=f"η = {rate:g}", xlabel="step")
    return fig, axes


# %% mystnb={"figure": {"caption": "Training and held-out loss on flipped labels against step, from the base and the aligned model (the paper's Figure 15).", "name": "fig-fifteen"}, "image": {"alt": "A grid of panels: the training loss of the batches above and the held-out loss below, against step, at each learning rate; one line for the base model and one for the aligned model."}} tags=["hide-input"]
fig, axes = grid(2)
for column, run in zip(axes.T, runs.values(), strict=True):
    for part, what in enumerate(("training loss", "held-out loss")):
        for arm in own[:2]:
            draw(column[part], run[arm]["loss"][part], arm)
        column[part].set_ylabel(what)
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The lead of a run is the loss of the base model's run minus the loss of the run itself. The claim
# is that it is positive. The table shows its mean over the steps. The standard error is computed as
# if steps were independent. They are not: batches differ, but the lead at one step carries over to
# the next.

# %%
rows = {}
for rate, run in runs.items():
    for arm in own[1:]:
        ahead = (run["base", "base"]["loss"] - run[arm]["loss"]).astype(float)
        train, held_out = (part[np.isfinite(part)] for part in ahead)
        both = np.stack([run["base", "base"]["loss"][0], run[arm]["loss"][0]])
        assert np.isclose(train.mean(), misalignment.lead(both))
        rows[f"{rate:g}", arm[0]] = {
            "training loss, lead": mean_and_error(train, 5),
            "steps ahead": f"{(train > 0).sum()} of {len(train)}",
            "held-out loss, lead": f"{held_out[1:].mean():+.5f}",
            "at the last step": f"{held_out[-1]:+.5f}",
        }
pd.DataFrame(rows).T.rename_axis(["η", "start"])

# %% [markdown]
# {ref}`ev-adapter` explains the row *merged*. Both runs see the same batches, so the difficulty of
# a batch cancels. The remaining noise comes from dropout and rounding. The table of
# {ref}`ev-rounding` shows how large the rounding is.

# %% [markdown]
# (ev-figure-sixteen)=
# ## Figure 16: how soon it is undone
#
# {numref}`fig-sixteen` shows the mean gap $\log\pi(y_w|x) - \log\pi(y_l|x)$ of the held-out pairs.
# On this page *preferred* always refers to the given labels, whatever is trained on. The paper says
# that within 100 steps the gap of the aligned model is near the gap of the base model. This can be
# read in two ways, and the table has both. The gap may be near the gap of the base model *before
# training*, which is what "undone" means. Or it may be near the gap of the base model's own run *at
# the same step*.

# %% mystnb={"figure": {"caption": "Mean held-out gap by the given labels against step of training on flipped labels (the paper's Figure 16); dashed: base model before training.", "name": "fig-sixteen"}, "image": {"alt": "One panel a learning rate: the mean difference of the log-probabilities of preferred and non-preferred responses against step, a line for each run, and a dashed level for the base model before any training."}} tags=["hide-input"]
fig, axes = grid(1)
for ax, run in zip(axes[0], runs.values(), strict=True):
    for arm in names:
        draw(ax, hh_rlhf.gap(run[arm]), arm)
    level = hh_rlhf.gap(run["base", "base"])[0]
    ax.axhline(level, color="#6b6b6b", ls="--", label="base before training")
    ax.set_ylabel("held-out gap (nats)")
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The columns *gap, before* and *gap, after* show the run's gap at its first and last step. *Share
# undone* is the share of the gap added by aligning that is gone; the column has it at the last
# step. It is 0 at the start, 1 where the gap is back at the base model's, and above 1 where the gap
# is lower. It is "nan" where aligning had added nothing. The last two columns have the first step
# at which nine tenths are undone: once relative to the base model before training, once relative to
# the base model's own run at the same step.


# %%
def undone(base, aligned):
    added = aligned[0] - base[0]
    if added <= 0:
        return np.full(len(aligned), np.nan)
    return 1 - (aligned - base) / added


def first_step(where):
    steps = np.flatnonzero(where)
    return str(steps[0]) if len(steps) else "–"


# %%
rows = {}
for rate, run in runs.items():
    found = {arm: hh_rlhf.gap(run[arm]).astype(float) for arm in names}
    base = found.pop(("base", "base"))
    for (start, reference), aligned in found.items():
        share = undone(base[:1], aligned)
        known = hh_rlhf.undone(base[:1], aligned)
        assert np.array_equal(share, known, equal_nan=True)
        rows[f"{rate:g}", start, reference] = {
            "gap, base model": f"{base[0]:.2f}",
            "gap, before": f"{aligned[0]:.2f}",
            "gap, after": f"{aligned[-1]:.2f}",
            "share undone": f"{share[-1]:.2f}",
            "nine tenths at step": first_step(share >= 0.9),
            "relative to base run": first_step(undone(base, aligned) >= 0.9),
        }
pd.DataFrame(rows).T.rename_axis(["η", "start", "reference"])

# %% [markdown]
# An epoch here is shorter than 100 steps, so "by step 100" means "by the end of the epoch". The
# epoch on flipped labels is as long as the epoch that aligned the model. {ref}`ex-undone` asks what
# share undone one should then expect.
#
# (ev-separately)=
# ## Chosen and rejected separately
#
# The loss depends on a difference, which can grow while both log-probabilities fall.
# {numref}`fig-separately` shows each by itself during training on flipped labels, as its change
# from the base model.

# %% mystnb={"figure": {"caption": "Change of the mean held-out log-probability from the base model against step of training on flipped labels.", "name": "fig-separately"}, "image": {"alt": "A grid of panels, one column a learning rate: the change of the mean log-probability of preferred responses above and of non-preferred ones below, against step, for the base and the aligned model."}} tags=["hide-input"]
fig, axes = grid(2)
first = next(iter(runs.values()))["base", "base"]
for column, run in zip(axes.T, runs.values(), strict=True):
    for ax, what in zip(column, ("preferred", "other"), strict=True):
        for arm in own[:2]:
            draw(ax, run[arm][what] - first[what][0], arm)
        ax.set_ylabel(f"change of log π, {what} (nats)")
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The table shows the changes over each whole epoch, aligning and misaligning, in nats, with the
# standard error over the held-out pairs. The last column is the share of pairs for which both
# responses have become less likely.


# %%
def change(before, after):
    """Change of the two log π (n, 2) of each pair, and of their difference."""
    moved = after.astype(float) - before.astype(float)
    return {
        "preferred": mean_and_error(moved[:, 0]),
        "other": mean_and_error(moved[:, 1]),
        "gap": mean_and_error(moved[:, 0] - moved[:, 1]),
        "both fell": f"{(moved < 0).all(1).mean():.0%}",
    }


# %%
rows = {}
for rate, run in runs.items():
    given = hh_rlhf.aligned_run(records, rate, config.full_seeds[0]).arrays
    rows[f"given labels, base, η = {rate:g}"] = change(*given["each"])
    for (start, reference), arrays in run.items():
        name = f"flipped, {start} (reference {reference}), η = {rate:g}"
        rows[name] = change(*arrays["each"])
        moved = arrays["preferred"][-1] - arrays["preferred"][0]
        assert np.isclose(
            moved, float(rows[name]["preferred"].split()[0]), atol=0.01
        )
pd.DataFrame(rows).transpose()

# %% [markdown]
# At the scaled rate both log-probabilities fall, by far more than the gap between them grows.
# Aligning makes responses less likely altogether, and the growth of the gap is the difference of
# two large changes. On flipped labels the base model loses likelihood as well, while the aligned
# model regains part of it. So much of what looks like unlearning a preference may be the reversal
# of a change in style.
#
# Both responses have many tokens in one style, and follow the same prompt. Whatever changes the
# style changes both log-probabilities. For answers of one token, as in the other chapters, this
# matters less: what Yes gains, No mostly loses.

# %% [markdown]
# ## Why?
#
# (ev-hh-reference)=
# ### The reference
#
# With the base model as reference the aligned model does not start at $\log 2$. The margin is
# measured relative to the base model, so with flipped labels a pair starts with the margin
# $-\beta a$. How does this change training? The gradient of a pair is $\beta\,\sigma(-m)$ times the
# gradient of its gap, and the reference enters only through the weight $\sigma(-m)$:

# %%
margins = torch.tensor([0.0, -0.1, -1.0])
weight = torch.sigmoid(-margins)
print(
    "loss",
    dpo.loss(margins).numpy().round(3),
    "weight",
    weight.numpy().round(3),
)

# %% [markdown]
# The table compares the two references for the run from the aligned model. The *predicted loss* is
# the mean of $-\log\sigma(-\beta a)$ over the held-out pairs, with $a$ measured relative to the
# reference: with the aligned model as its own reference, $a = 0$. The last column is the
# correlation, over the pairs, between the fall of the gap and the $a$ that aligning added.

# %%
rows = {}
for rate, run in runs.items():
    base = gaps(run["base", "base"]["each"][0])
    a = gaps(run["aligned", "aligned"]["each"][0]) - base
    for reference, seen in (("aligned", 0 * a), ("base", a)):
        arrays = run["aligned", reference]
        first, last = map(gaps, arrays["each"])
        rows[f"{rate:g}", reference] = {
            "loss at first": arrays["loss"][1, 0],
            "predicted loss": np.logaddexp(0, config.beta * seen).mean(),
            "fall of the gap (nats)": (first - last).mean(),
            "correlation with a": np.corrcoef(first - last, a)[0, 1],
        }
table = pd.DataFrame(rows).T.rename_axis(["η", "reference"])
measured, predicted = table["loss at first"], table["predicted loss"]
assert np.allclose(measured, predicted, atol=1e-3)
table.round(4)

# %% [markdown]
# At the paper's rate $\beta a$ is so small that the weight is one half with either reference. There
# the reference decides how the loss is *reported*, and nothing else. At the scaled rate the $a$ of
# a single pair is tens of nats, up or down. With the base model as reference, the more aligning had
# raised the gap of a pair, the larger is the weight of the pair. This run takes back, pair by pair,
# just what aligning had done. The run with its own reference has no information about the base
# model, and takes back only a part. So a reader has to know the reference for Figure 16 as well as
# for Figure 15.
#
# (ev-adapter)=
# ### The adapter
#
# The two runs of Figure 15 differ in more than the model. The run from the base model starts with
# $B = 0$, so at the first step $A$ has no gradient. The run from the aligned model starts with a
# trained adapter, in which both $A$ and $B$ move. This is a property of the parametrization, not of
# what was learned. The rows *merged* above are a control. They start from the same aligned model:
# $\frac\alpha r BA$ is added to $W$ (`lora.merge`). The model then gets a new adapter, with the
# base model's $A$ and with $B = 0$. The cell checks on the tiny network that merging leaves the
# log-probabilities unchanged up to rounding.

# %%
with torch.no_grad():
    adapted = lm.log_probabilities(small.network, pairs)
    small = lora.merge(small)
    query = small.network.model.layers[0].self_attn.q_proj
    assert torch.allclose(query.weight, changed, atol=1e-6)
    small = lora.add(small, seed=0)
    again = lm.log_probabilities(small.network, pairs)
by_adapter = (adapted - before_adapter).abs().max()
by_merging = (again - adapted).abs().max()
assert by_merging < by_adapter / 100

# %% [markdown]
# {numref}`fig-adapter` shows the lead with the trained adapter and with a new one.

# %% mystnb={"figure": {"caption": "Lead in held-out loss over the base model against step, with the trained adapter and with a new one.", "name": "fig-adapter"}, "image": {"alt": "One panel a learning rate: the lead in held-out loss over the base model against step, one line for the aligned model with its own adapter and one for that with a new adapter."}} tags=["hide-input"]
fig, axes = grid(1)
for ax, run in zip(axes[0], runs.values(), strict=True):
    for arm in own[1:]:
        draw(ax, run["base", "base"]["loss"][1] - run[arm]["loss"][1], arm)
    ax.set_ylabel("lead in held-out loss")
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# At the scaled rate, most of the lead in *training* loss remains with a new adapter. This part
# comes from the model, not from the parametrization. In *held-out* loss, both leads are largest in
# the first third of the epoch. By its end the base model has caught up with the trained adapter,
# and is ahead of the new one.
#
# (ev-rounding)=
# ### Rounding
#
# Merged or not, the aligned model is the same function, so its gaps should be the same. But in bf16
# a number has 8 significant bits, and the rounding becomes visible in a sum of log-probabilities
# over a hundred tokens. The table shows two differences of gaps. *Rounding* is the gap of the
# merged model minus the gap of the aligned model. *Added by aligning* is the gap of the aligned
# model minus the gap of the base model. Of each it shows the root mean square (RMS) over the
# held-out pairs, and the mean.

# %%
rows = {}
for rate, run in runs.items():
    base, aligned, merged = (gaps(run[arm]["each"][0]) for arm in own)
    differences = {
        "rounding": merged - aligned,
        "added by aligning": aligned - base,
    }
    row = rows[f"{rate:g}"] = {}
    for name, x in differences.items():
        row[f"{name}, RMS"] = np.sqrt((x**2).mean())
        row[f"{name}, mean"] = x.mean()
pd.DataFrame(rows).T.rename_axis("η").round(3)

# %% [markdown]
# At the paper's rate, rounding changes a pair's gap about as much as aligning does. So what these
# runs show of that aligned model is mostly rounding. The same would hold for anyone who trains in
# bf16 with such small steps, at least with a model of this size.

# %% [markdown]
# ## At the paper's size
#
# On a machine with a GPU, with access to Llama-2-7B ({ref}`how-to-run`), this command runs the page
# on all pairs of the training part of up to 512 tokens:
#
# ```
# papermill notebooks/08_hh_rlhf.ipynb out.ipynb -p tier paper
# ```
#
# We estimate what it needs. Frozen weights have no gradient and no optimizer state; this is what
# LoRA saves. The cell counts float32 weights, their bf16 copies, and the activations of one trie
# that the backward pass keeps. For frozen matrices the activations are an upper bound.

# %%
seven = AutoConfig.for_model(
    "llama", hidden_size=4096, intermediate_size=11008, vocab_size=32000
)
counted = 6  # pairs of one trie
tree = lm.Pairs(
    prompts=tuple((i,) * 150 for i in range(counted)),
    chosen=((1,) * 75,) * counted,
    rejected=((2,) * 75,) * counted,
    group=np.zeros(counted, int),
)
tokens = len(tree.trie().tokens)
need = memory.estimate(seven, tree, "autocast")
# A and B of two d × d matrices per layer; 16 bytes per trained parameter.
adapter = 2 * 2 * lora.RANK * seven.hidden_size * seven.num_hidden_layers
held = need.weights + need.copies + need.activations
# 4 FLOP per weight and token: forward, and backward to the activations only.
work = 4 * need.weights / 4 * tokens / counted * config.full_batch_size

# %% tags=["hide-input"]
Markdown(
    f"Weights **{need.weights / 1e9:.0f} GB**, copies **{need.copies / 1e9:.0f} GB**, a trie of "
    f"{tokens} tokens **{need.activations / 1e9:.0f} GB**: **{held / 1e9:.0f} GB**, and "
    f"{16 * adapter / 1e9:.2f} GB for {adapter / 1e6:.1f} million trained parameters. A batch of "
    f"{config.full_batch_size} such pairs takes about {work / 1e15:.2f} PFLOP, "
    f"{work / 4e14:.1f} s where 400 TFLOP/s are reached."
)

# %% [markdown]
# ## What was shown
#
# - At the paper's rate nothing can be concluded. This rate does not align a model of this size, and
#   what remains is rounding.
# - At the scaled rate the training loss on flipped labels falls faster from the aligned model. Most
#   of that is due to what the model has learned, and not to the state of the adapter.
# - Alignment is not undone within the epoch, unless the base model is the reference. Then all of it
#   is undone.
# - Both log-probabilities fall as the gap grows.
# - Not shown: that any of this holds for long dialogues, or for a model and a data set of the
#   paper's size. With few held-out pairs, the errors are wide.
#
# A claim counts as reproduced only if it holds at the worse of the two learning rates. F15 requires
# a positive mean lead in training loss. F16 requires that nine tenths of the gap added by aligning
# be gone by step 100 or the end of the epoch (*partly* requires half). It leaves out a rate at
# which aligning had added nothing. All of this was written down before the runs on flipped labels.
#
# So the value of F15 is the lead at the paper's rate. It is within two standard errors of zero, on
# a model that this rate has not aligned. The evidence for F15 is the lead at the scaled rate. The
# value of F16 is the share undone at the scaled rate alone.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("08_hh_rlhf", records)))

# %% [markdown]
# ```{exercise} Undone, or just trained?
# :label: ex-undone
#
# Let the gap of every pair be linear in the parameters. Let a run of $T$ steps move the parameters
# by $\pm\eta T v$, wherever it starts: $+$ on the given labels, $-$ on flipped labels. What is the
# share undone after $t$ steps? What would have to happen for alignment to be undone *faster* than
# it was made?
# ```
#
# ```{solution} ex-undone
# :class: dropdown
#
# Let $q$ be the gradient of the gap. Aligning adds $\eta T\,q\cdot v$ to the gap, and $t$ flipped
# steps take $\eta t\,q\cdot v$ away. The share undone is $t/T$. The gap in the run from the base
# model falls equally fast and stays as far below as it was at the start. So relative to that run
# nothing is ever undone. There are two ways to undo alignment faster. The gaps may have become
# steeper in the parameters: this is the paper's explanation, larger distinguishability, and with
# LoRA a $B$ that is no longer 0 has the same effect. Or the weights $\sigma(-m)$ may have grown:
# with the base model as reference, pairs with negative margins have larger weights.
# ```
#
# **To try.**
#
# - `papermill notebooks/08_hh_rlhf.ipynb out.ipynb -p beta 0.1`: with a larger $\beta$ the weights
#   differ. Does the reference matter then?
# - `-p full_learning_rate 3e-4`: another rate. How does the table of rounding change?
# - Change `LENGTH` in `experiments/hh_rlhf.py`. Is the alignment on long dialogues undone as soon?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
