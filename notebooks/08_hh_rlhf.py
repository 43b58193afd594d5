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
# difference? And how much of this is due to the reference, to the adapter, and to rounding?
#
# **It takes** fifteen minutes to read and half a minute to run. **It needs** nothing to replay the
# recorded runs; to make them anew, the data ({ref}`how-to-run`) and an hour or two on one core.
# Read {ref}`full-finetuning` before it.
#
# This page follows Appendix C of {cite:t}`im2024understanding`: Figures 15 and 16.
#
# ```{admonition} The data is offensive
# :class: warning
# HH-RLHF {cite:p}`bai2022training` has dialogues in which people try to make an assistant say
# harmful things, and sometimes succeed. No dialogue is printed on this page or kept in this
# repository: only counts, lengths, and log-probabilities. One folded cell shows a dialogue from
# your own copy; its output is not stored. The models trained on flipped labels serve to measure how
# fast this goes, and are not kept either.
# ```
#
# ```{admonition} What differs from the paper
# :class: note
# The model is SmolLM2-135M-Instruct; the paper has Llama-2-7B. The pairs come from one published
# file (*harmless-base*, its test part), cut by a rule that was fixed before any run: a pair is left
# out if its prompt with either response has more than 128 tokens. The table below counts what is
# left; the paper does not say which pairs it took. There is one seed. LoRA, AdamW, $\beta$, batch
# size, and the one epoch are the paper's. Its learning rate is shown as it is, beside one scaled by
# a rule. Weights are float32, matrix products bf16.
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
# A row of the file is two dialogues that differ in the last answer only. The prompt $x$ is the text
# up to and including the last `Assistant:` that both share; $y_w$ and $y_l$ are what follows, closed
# by the end-of-sequence token. A response now has many tokens, so
#
# $$\log\pi(y\mid x) = \sum_k \log\pi(y_k\mid x, y_{<k}),$$
#
# and (7) no longer holds: every normalizer enters. One token trie still holds a prompt once with
# both its responses, and one forward pass over it covers a whole batch. Here is the plain sum, for
# the invented pairs of the sample and a tiny network with random weights, against the library's.

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
# The next table counts the pairs that are left at each cut, and the median of the tokens of a
# prompt with the longer of its responses.

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
# LoRA {cite:p}`hu2021lora` leaves a matrix $W$ as it is and trains a change of low rank,
#
# $$W \;\to\; W + \frac{\alpha}{r}\,BA, \qquad A\in\mathbb R^{r\times d_{\rm in}},\; B\in\mathbb R^{d_{\rm out}\times r},$$
#
# as in the paper with $r = 8$, $\alpha = 32$, for the query and value matrices of all layers. $A$ is
# random and $B$ is 0, so training begins at the model itself. `lora.add` inserts such adapters with
# `peft` and freezes the rest. `finetune.train` trains whatever requires a gradient, and needs no
# change. The cell checks that adding adapters changes nothing at first, and the formula once $B$ is
# not 0.

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
# The input of $A$ passes a dropout of 0.05 while the gradient of a batch is computed, but not in
# measurements or in the reference. (In a token trie, a token of the prompt has one dropout mask for
# both responses. TRL's trainer, as of version 1.16, switches dropout off by default; whether the
# paper's runs had any is not known.)
#
# (ev-lora-rate)=
# ### Which learning rate?
#
# {ref}`ev-scaled-rate` gave the reason to scale: AdamW moves each parameter by about $\eta$ a step,
# and here there are few parameters. The rule, fixed beforehand:
#
# > Of 1, 10, 30, and 100 times the paper's learning rate, the one at which *aligning*, on the given
# > labels, ends with the lowest held-out loss.
#
# The rule uses no run on flipped labels. It chooses the best-aligned model, since alignment is what
# is to be undone.
#
# Throughout this page $a$ is what aligning adds to a pair's gap
# $\log\pi(y_w|x) - \log\pi(y_l|x)$, and a mean over pairs is given with its standard error.


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
# The rule has taken the largest rate that it was offered. A larger one might align further; it was
# not tried, since the rule was fixed.
#
# First comes one epoch on the given labels, which yields the *aligned* model. Then every label is
# flipped, and both the base and the aligned model are trained for one epoch with a fresh optimizer,
# on the same batches in the same order. The reference of each is the model that it starts from, so
# both begin at $\log 2$. {numref}`fig-fifteen` shows the loss of each batch before the step that
# learns it, and the loss of all held-out pairs.

# %%
runs = {rate: hh_rlhf.arms(records, rate) for rate in rates.values()}
names = (*misalignment.LABELS, "aligned, new adapter")
names = dict(zip(hh_rlhf.ARMS, names, strict=True))
hues = misalignment.HUES | {"aligned, new adapter": "#1f9e89"}
own = [arm for arm in names if arm[0] == arm[1]]


def draw(ax, values, arm):
    """One line, through the steps at which something was measured."""
    steps = np.flatnonzero(np.isfinite(values))
    color = hues[names[arm]]
    ax.plot(steps, np.array(values)[steps], color=color, label=names[arm])


def grid(rows):
    """A panel for each learning rate, in so many rows."""
    n = len(runs)
    size = (3.6 * n, 3 * rows + 0.4)
    fig, axes = plt.subplots(rows, n, figsize=size, squeeze=False)
    for ax, rate in zip(axes.flat, [*runs] * rows, strict=True):
        ax.set(title=f"η = {rate:g}", xlabel="step")
    return fig, axes


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Loss on flipped labels against step, from the base and the aligned model, by learning rate (the paper's Figure 15).", "name": "fig-fifteen"}, "image": {"alt": "A grid of panels: the training loss of the batches above and the held-out loss below, against step, at each learning rate; one line for the base model and one for the aligned model."}}
fig, axes = grid(2)
for column, run in zip(axes.T, runs.values(), strict=True):
    for part, what in enumerate(("training loss", "held-out loss")):
        for arm in own[:2]:
            draw(column[part], run[arm]["loss"][part], arm)
        column[part].set_ylabel(what)
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# The lead of a run is the loss of the base model's run less its own: positive where the claim
# holds. The table has its mean over the steps. The standard error is computed as if steps were
# independent. They are not: batches differ, but the lead of one step carries over to the next.

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
# The row *merged* is explained below. Both runs see the same batches, so the difficulty of a batch
# cancels. What remains as noise is dropout and rounding; the table of {ref}`ev-rounding` has the
# size of the latter.

# %% [markdown]
# (ev-figure-sixteen)=
# ## Figure 16: how soon it is undone
#
# {numref}`fig-sixteen` shows the mean gap $\log\pi(y_w|x) - \log\pi(y_l|x)$ of the held-out pairs.
# On this page *preferred* always refers to the given labels, whatever is trained on. The paper says
# that within 100 steps the gap of the aligned model is near the gap of the base model. That can be
# read in two ways, and the table has both: near the base model *before training*, which is what
# "undone" means, and near the base model's own run *at the same step*.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean gap of the held-out pairs by the given labels, against step of training on flipped labels (the paper's Figure 16). Dashed: the base model before training.", "name": "fig-sixteen"}, "image": {"alt": "One panel a learning rate: the mean difference of the log-probabilities of preferred and non-preferred responses against step, a line for each run, and a dashed level for the base model before any training."}}
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
# *Share undone* is the part of the gap added by aligning that is gone: 0 at the start, 1 where the
# gap is back at the base model's, above 1 where it is below. It is "nan" where aligning had added
# nothing.


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
            "at first": f"{aligned[0]:.2f}",
            "at last": f"{aligned[-1]:.2f}",
            "share undone": f"{share[-1]:.2f}",
            "nine tenths by step": first_step(share >= 0.9),
            "of the base run by step": first_step(undone(base, aligned) >= 0.9),
        }
pd.DataFrame(rows).T.rename_axis(["η", "start", "reference"])

# %% [markdown]
# The share undone is the share at the last step. An epoch here is shorter than 100 steps, so "by
# step 100" is "by the end of the epoch"; and the epoch is as long as the one that aligned. What
# else could one expect? See {ref}`ex-undone`.
#
# (ev-separately)=
# ## Chosen and rejected separately
#
# The loss depends on a difference, which can grow while both log-probabilities fall.
# {numref}`fig-separately` shows each by itself, less its value in the base model, while training on
# flipped labels.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Change of the mean log-probability of the held-out pairs' responses from the base model, by the given labels, against step.", "name": "fig-separately"}, "image": {"alt": "A grid of panels, one column a learning rate: the change of the mean log-probability of preferred responses above and of non-preferred ones below, against step, for the base and the aligned model."}}
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
# The table has the change over each whole epoch, aligning and misaligning, in nats, with the
# standard error over the held-out pairs; and the share of pairs for which both responses have
# become less likely.


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
# At the scaled rate both fall, and by far more than the gap between them grows. Aligning makes
# responses less likely altogether, and the gap is the difference of two large changes. On flipped
# labels the base model loses likelihood as well, while the aligned model regains part of it. So
# much of what looks like unlearning a preference may be a return from a style.
#
# Both responses are many tokens of one style after one prompt: whatever changes the style changes
# both. For answers of one token, as in the other chapters, this matters less: what Yes gains, No
# mostly loses.

# %% [markdown]
# ## Why?
#
# (ev-hh-reference)=
# ### The reference
#
# With the base model as reference the aligned model does not start at $\log 2$. The margin is
# measured from the base model, so with flipped labels a pair starts at $-\beta a$. What does that
# change about the course of training? The gradient of a pair is $\beta\,\sigma(-m)$ times the
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
# the mean of $-\log\sigma(-\beta a)$ over the held-out pairs, with $a$ as seen from the reference.
# The last column says how closely what each pair loses follows $a$.

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
# At the paper's rate $\beta a$ is so small that the weight is a half with either reference. There
# the reference decides how the loss is *reported*, and nothing else. At the scaled rate $a$ is tens
# of nats for a single pair, up or down. With the base model as reference, a pair has the larger
# weight the further aligning had raised it. That run takes back, pair by pair, just what aligning
# had done. The run with its own reference, which has no information about the base model, takes
# back only part. So a reader of Figure 16 has to know the reference too, and not only a reader of
# Figure 15.
#
# (ev-adapter)=
# ### The adapter
#
# The two runs of Figure 15 differ in more than the model. From the base model $B = 0$, and at the
# first step $A$ has no gradient. The adapter of the aligned model is a trained one, in which both
# move. That is a property of the parametrization, not of what was learned. The control is in the
# rows *merged* above: $\frac\alpha r BA$ is added to $W$ (`lora.merge`), which gives the same
# aligned model, and it gets a new adapter, with the base model's $A$ and with $B = 0$. The cell
# checks on the tiny network that merging leaves the function as it is.

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

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Lead in held-out loss over the base model against step: with the adapter that was trained, and with a new one.", "name": "fig-adapter"}, "image": {"alt": "One panel a learning rate: the lead in held-out loss over the base model against step, one line for the aligned model with its own adapter and one for that with a new adapter."}}
fig, axes = grid(1)
for ax, run in zip(axes[0], runs.values(), strict=True):
    for arm in own[1:]:
        draw(ax, run["base", "base"]["loss"][1] - run[arm]["loss"][1], arm)
    ax.set_ylabel("lead in held-out loss")
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# At the scaled rate most of the lead in *training* loss is there with a new adapter too: it comes
# from the model, not from the parametrization. Held out, either lead is largest in the first third
# of the epoch, and the base model has caught up by its end; with a new adapter it is then ahead.
#
# (ev-rounding)=
# ### Rounding
#
# Merged or not, the aligned model is one function, so its gaps should be the same. In bf16 a number
# has 8 significant bits, and a sum over the log-probabilities of a hundred tokens shows it. The
# table has the root mean square over the held-out pairs, and the mean, of two differences of gaps:
# merged less not merged, which is rounding alone, and aligned less base, which is what aligning
# added.

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
        row[f"{name}, a pair"] = np.sqrt((x**2).mean())
        row[f"{name}, mean"] = x.mean()
pd.DataFrame(rows).T.rename_axis("η").round(3)

# %% [markdown]
# At the paper's rate rounding moves a pair's gap about as far as aligning does. So what these runs
# show of that aligned model is mostly rounding. The same would hold for anyone who trains in bf16
# with so small a step, at least with a model of this size.

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
# What it needs can be estimated. Frozen weights have no gradient and no optimizer state: that is
# what LoRA saves. The cell counts float32 weights, their bf16 copies, and what the backward pass
# keeps of one trie, which for frozen matrices is an upper bound.

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
# A and B of two d × d matrices a layer; 16 bytes a trained parameter.
adapter = 2 * 2 * lora.RANK * seven.hidden_size * seven.num_hidden_layers
held = need.weights + need.copies + need.activations
# 4 FLOP a weight and token: forward, and backward to the activations only.
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
# - At the paper's rate nothing can be said: a model of this size is not aligned by it, and what is
#   left is rounding.
# - At the scaled rate the training loss on flipped labels falls faster from the aligned model. Most
#   of that is due to what the model has learned, and not to the state of the adapter.
# - Alignment is not undone within the epoch, unless the base model is the reference: then all of it
#   is.
# - Both log-probabilities fall as the gap grows.
# - Not shown: that any of this holds for long dialogues, or for a model and a data set of the
#   paper's size. The few held-out pairs leave wide errors.
#
# A claim counts as reproduced only if it holds at the worse of the two learning rates. F15 requires
# a positive mean lead in training loss. F16 requires that nine tenths of the gap added by aligning
# be gone by step 100 or the end of the epoch (partly: half), leaving out a rate at which aligning
# had added nothing. All of this was written down before the runs on flipped labels.
#
# So the value of F15 is the lead at the paper's rate. It is within two standard errors of zero, on
# a model that this rate has not aligned: the scaled rate carries the verdict. The value of F16 is
# the share undone at the scaled rate alone.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("08_hh_rlhf", records)))

# %% [markdown]
# ```{exercise} Undone, or just trained?
# :label: ex-undone
#
# Let the gap of every pair be linear in the parameters. Let a run of $T$ steps move the parameters
# by $\pm\eta T v$ wherever it starts, with $+$ for the given labels and $-$ for flipped ones. What
# is the share undone after $t$ steps? What would have to happen for alignment to be undone *faster*
# than it was made?
# ```
#
# ```{solution} ex-undone
# :class: dropdown
#
# With $q$ the gradient of the gap, aligning adds $\eta T\,q\cdot v$ to it, and $t$ flipped steps
# take $\eta t\,q\cdot v$ away. The share is $t/T$. The run from the base model stays as far below
# as it was at first, so in the second reading nothing is ever undone. Alignment is undone faster if
# the gaps have become steeper in the parameters (that is the paper's explanation: larger
# distinguishability; with LoRA, a $B$ that is no longer 0 has the same effect), or if the weights
# $\sigma(-m)$ have grown: with the base model as reference, pairs with negative margins have larger
# weights.
# ```
#
# **To try.**
#
# - `papermill notebooks/08_hh_rlhf.ipynb out.ipynb -p beta 0.1`: with a larger $\beta$ the weights
#   differ. Does the reference matter then?
# - `-p full_learning_rate 3e-4`: another rate. What becomes of the table of rounding?
# - In `experiments/hh_rlhf.py`, another `LENGTH`. Are long dialogues undone as soon?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
