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
# their labels flipped: whether that goes faster than from the model that was never aligned; how
# soon what was learned is gone; what becomes of the log-probability of each response, not only of
# their difference; and what is the doing of the reference, of the adapter, and of rounding.
#
# **It takes** fifteen minutes to read and half a minute to run. **It needs** nothing to replay the
# recorded runs; to make them anew, the data ({ref}`how-to-run`) and an hour or two on one core.
# {ref}`full-finetuning` comes before it.
#
# This page follows Appendix C of {cite:t}`im2024understanding`: Figures 15 and 16.
#
# ```{admonition} The data is offensive
# :class: warning
# HH-RLHF {cite:p}`bai2022training` has dialogues in which people try to make an assistant say
# harmful things, and sometimes succeed. No dialogue is printed on this page or kept in this
# repository: only counts, lengths and log-probabilities. One cell shows a dialogue from your own
# copy, folded, and is not stored. The models that result from flipped labels are for measuring how
# fast it goes, and are not kept either.
# ```
#
# ```{admonition} What differs from the paper
# :class: note
# The model is SmolLM2-135M-Instruct where the paper has Llama-2-7B. The pairs are those of one
# published file (*harmless-base*, its test part), cut short by a rule that was fixed before any
# run: a pair is left out if its prompt with either response has more than 128 tokens. The table
# below has what that leaves; the paper does not say which pairs it took. One seed. LoRA, AdamW,
# $\beta$, batch and one epoch are the paper's; its learning rate is shown as it is, and beside it
# one scaled by a rule. Weights are float32, matrix products bf16.
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
import numpy as np
import torch
from experiments import hh_rlhf
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import dpo, lm, plots
from dpo_helpers.finetune import memory
from dpo_helpers.lm import lora

config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header("hh-rlhf")))

# %% [markdown]
# ## The pairs
#
# A row of the file is two dialogues that part at the last answer. The prompt $x$ is the text up to
# and with the last `Assistant:` that both share; $y_w$ and $y_l$ are what follows, closed by the
# end-of-sequence token. A response now has many tokens, so that
#
# $$\log\pi(y\mid x) = \sum_k \log\pi(y_k\mid x, y_{<k}),$$
#
# and (7) no longer holds: every normaliser enters. Still one token tree holds a prompt once and
# both its responses, and one forward pass over it has all of a batch.

# %% tags=["hide-input"]
hh_rlhf.pairs_table(records)

# %% [markdown]
# Short dialogues are not a random part of all, and what holds for them need not for the others:
# red-teaming that takes long is left out. The next cell shows one pair of your copy, if there is
# one; another `number`, another pair.

# %% tags=["hide-output", "nbval-ignore-output", "not-stored"]
from dpo_helpers.data import load_pairs

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
# here as in the paper with $r = 8$, $\alpha = 32$, of the query and value matrices of all layers.
# $A$ is random, $B$ is 0, so that training begins at the model itself. `lora.add` puts such
# adapters into a network by `peft` and freezes the rest; `finetune.train`, which trains what
# requires a gradient, needs no change.

# %%
small = lm.load("tiny-llama", "cpu")
pairs = lm.pairs_from_text(small, load_pairs("sample"))
with torch.no_grad():
    before = lm.log_probabilities(small.network, pairs)
    small = lora.add(small, seed=0)
    after = lm.log_probabilities(small.network, pairs)
assert torch.equal(before, after), "B is 0"
trained = [p.numel() for p in small.network.parameters() if p.requires_grad]
print(f"{sum(trained)} parameters to train, in {len(trained)} matrices")

# %% [markdown]
# What goes into $A$ passes a dropout of 0.05 while a batch's gradient is computed, not where
# anything is measured, nor in the reference. (In a token tree a token of the prompt has one dropout
# mask for both responses. And TRL's trainer, as of version 1.16, switches dropout off unless told
# otherwise; whether the paper's runs had any is not known.)
#
# (ev-lora-rate)=
# ### Which learning rate?
#
# {ref}`ev-scaled-rate` gave the reason to scale: AdamW moves each parameter by about $\eta$ a step,
# and here there are few of them. The rule, fixed beforehand:
#
# > Of 1, 10, 30 and 100 times the paper's learning rate, the one at which *aligning*, on the labels
# > as given, ends with the lowest held-out loss.
#
# It looks at no run on flipped labels, and it asks for the best-aligned model, since alignment is
# what is to be undone.

# %% tags=["hide-input"]
rates = hh_rlhf.rates(records)
if "scaled" in rates:
    table = hh_rlhf.calibration_table(records).set_index("η")
    display(table.round(4))
display(
    Markdown(
        f"Learning rates: {', '.join(f'{n} **{r:g}**' for n, r in rates.items())}."
    )
)

# %% [markdown]
# (ev-figure-fifteen)=
# ## Figure 15: the loss on flipped labels
#
# The rule has taken the largest rate that it was offered. A larger one might align further; it was
# not tried, since the rule was fixed.
#
# First one epoch on the labels as given: the *aligned* model. Then every label is flipped, and both
# the base and the aligned model are trained for one epoch with a fresh optimizer, on the same
# batches in the same order. Each has as reference the model that it starts from, so both begin at
# $\log 2$. {numref}`fig-fifteen` has the loss of each batch before it is learned, above, and that
# of all held-out pairs below.

# %%
runs = {rate: hh_rlhf.arms(records, rate) for rate in rates.values()}
names, colors = hh_rlhf.NAMES, hh_rlhf.HUES


# %% tags=["hide-input"]
def measured(values):
    """The steps at which something was measured, and what."""
    at = np.flatnonzero(np.isfinite(values))
    return at, np.asarray(values)[at]


def panels(curve, label, which):
    """A panel a learning rate, a line an arm."""
    return {
        f"{label}, η = {rate:g}": {
            names[arm]: measured(curve(run[arm])) for arm in which
        }
        for rate, run in runs.items()
    }


own = [arm for arm in names if arm[0] == arm[1]]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Loss on flipped labels from the base and the aligned model (the paper's Figure 15), by learning rate.", "name": "fig-fifteen"}, "image": {"alt": "A grid of panels: the training loss of the batches above and the held-out loss below, against step, at each learning rate; one line for the base model and one for the aligned model."}}
both = panels(lambda run: run["loss"][0], "training loss", own[:2])
both |= panels(lambda run: run["loss"][1], "held-out loss", own[:2])
plots.lines(both, "step", colors=colors, ncols=len(runs))

# %% tags=["hide-input"]
hh_rlhf.lead_table(records).set_index(["η", "start"])

# %% [markdown]
# A lead is the base model's loss less the other's, so that it is positive where the claim holds.
# The row *merged* is explained below. Both runs see the same batches, so that what makes a batch
# hard cancels; what is left as noise is dropout and rounding, and the table of {ref}`ev-rounding`
# has the size of the latter.

# %% [markdown]
# (ev-figure-sixteen)=
# ## Figure 16: how soon it is undone
#
# {numref}`fig-sixteen` has the mean of $\log\pi(y_w|x) - \log\pi(y_l|x)$ over the held-out pairs.
# *Preferred* is meant by the labels as given, whatever is trained on. The paper says that within
# 100 steps the gap of the aligned model is near that of the base model. That can be read in two
# ways, and the table has both: near the base model *as it was*, which is what "undone" means, and
# near the base model's own run *at the same step*.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Gap of the held-out pairs, by the labels as given, while training on flipped ones (the paper's Figure 16). Dashed: the base model as it was.", "name": "fig-sixteen"}, "image": {"alt": "One panel a learning rate: the mean difference of the log-probabilities of preferred and non-preferred responses against step, a line for each arm, and a dashed level for the base model before any training."}}
level = "base model as it was"
found = panels(hh_rlhf.gap, "gap (nats)", names)
for series, run in zip(found.values(), runs.values(), strict=True):
    gap = hh_rlhf.gap(run["base", "base"])
    series[level] = ([0, len(gap) - 1], [gap[0]] * 2)
plots.lines(found, "step", colors=colors | {level: "#6b6b6b"}, dashed=[level])

# %% tags=["hide-input"]
table = hh_rlhf.undone_table(records).set_index(["η", "start", "reference"])
table.round(2)

# %% [markdown]
# *Share undone* is the part of what aligning had added to the gap that is gone at the last step;
# above 1 the model has gone beyond the base model, below it. Where aligning had added nothing, it
# is empty. An epoch here is shorter than 100 steps, so "by step 100" is "by the end of the epoch";
# and it is as long as the epoch that aligned. One may ask what else was to be expected:
# {ref}`ex-undone`.
#
# (ev-separately)=
# ## Chosen and rejected separately
#
# The loss sees a difference, which can grow while both log-probabilities fall.
# {numref}`fig-separately` has each by itself, less what it was in the base model, while training on
# flipped labels.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean log-probability of the held-out pairs' responses, by the labels as given, less that in the base model.", "name": "fig-separately"}, "image": {"alt": "A grid of panels, one column a learning rate: the change of the mean log-probability of preferred responses above and of non-preferred ones below, against step, for the base and the aligned model."}}
both = {}
for what in ("preferred", "other"):
    start = next(iter(runs.values()))["base", "base"][what][0]
    both |= panels(
        lambda run, what=what, start=start: run[what] - start,
        f"log π, {what}",
        own[:2],
    )
plots.lines(both, "step", colors=colors, ncols=len(runs))

# %% [markdown]
# Over each epoch as a whole, aligning and misaligning, in nats, with the standard error over the
# held-out pairs; and the share of pairs for which both responses have become less likely:

# %% tags=["hide-input"]
hh_rlhf.change_table(records)

# %% [markdown]
# At the scaled rate both fall, and by far more than the gap between them grows: aligning makes
# responses less likely altogether, and the gap is what is left of two large changes. On flipped
# labels the base model loses likelihood as well, while the aligned model gets part of it back. So
# much of what looks like unlearning a preference may be a return from a style.
#
# Both responses are many tokens of one style after one prompt: whatever moves the style moves both.
# For answers of one token, as in the other chapters, this is less of a question: what Yes gains, No
# mostly loses.

# %% [markdown]
# ## Why?
#
# (ev-hh-reference)=
# ### The reference
#
# With the base model as reference the aligned model does not start at $\log 2$: the margin counts
# from the base model, and by flipped labels aligning has made it $-\beta a$, where $a$ is what it
# added to the gap. What does that change of the path? The gradient of a pair is $\beta\,\sigma(-m)$
# times that of its gap, and the reference enters only by $m$:

# %%
margins = torch.tensor([0.0, -0.1, -1.0])
pull = torch.sigmoid(-margins)
print("loss", dpo.loss(margins).numpy().round(3), "pull", pull.numpy().round(3))

# %% tags=["hide-input"]
table = hh_rlhf.reference_table(records).set_index(["η", "reference"])
table.astype(float).round(4)

# %% [markdown]
# At the paper's rate $\beta a$ is so small that the pull is a half with either reference: there it
# decides how the loss is *told*, and nothing else. At the scaled rate $a$ is tens of nats for a
# single pair, up or down, and the base model as reference pulls a pair the harder the further
# aligning had raised it. That run takes back, pair by pair, just what aligning had done. The run
# with its own reference, which knows nothing of the base model, takes back only part. So a reader
# of Figure 16 has to know the reference too, and not only one of Figure 15.
#
# (ev-adapter)=
# ### The adapter
#
# The two runs of Figure 15 differ in more than the model. From the base model $B = 0$, and at the
# first step $A$ has no gradient; the aligned model's adapter is a trained one, in which both move.
# That is a property of the parametrisation, not of what was learned. The control is in the rows
# *merged* above: $\frac\alpha r BA$ is added to $W$ (`lora.merge`), which is the same aligned
# model, and it gets a new adapter, with the base model's $A$ and with $B = 0$.
#
# {numref}`fig-adapter` has the lead of the one and of the other.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Held-out loss from the base model less that from the aligned model: with the adapter that was trained, and with a new one.", "name": "fig-adapter"}, "image": {"alt": "One panel a learning rate: the lead in held-out loss over the base model against step, one line for the aligned model with its own adapter and one for that with a new adapter."}}
leads = {
    f"lead, η = {rate:g}": {
        names[arm]: measured(
            run["base", "base"]["loss"][1] - run[arm]["loss"][1]
        )
        for arm in own[1:]
    }
    for rate, run in runs.items()
}
plots.lines(leads, "step", colors=colors)

# %% [markdown]
# At the scaled rate most of the lead in *training* loss is there with a new adapter too: it is the
# model's, not the parametrisation's. Held out, either lead is largest in the first third of the
# epoch, and the base model has caught up by its end; with a new adapter it is then ahead.
#
# (ev-rounding)=
# ### Rounding
#
# Merged or not, the aligned model is one function, so its gaps should be the same. In bf16 a number
# has 8 significant bits, and a sum over a hundred tokens' log-probabilities shows it. The table has
# the root mean square over the held-out pairs, and the mean: what rounding does, and beside it what
# aligning did.

# %% tags=["hide-input"]
hh_rlhf.rounding(records).set_index("η").round(3)

# %% [markdown]
# At the paper's rate a pair's gap is moved about as far by rounding as by aligning: what these runs
# show of that aligned model is mostly rounding. It would be so for anyone who trains in bf16 with a
# step this small, at least with a model of this size.

# %% [markdown]
# ## At the paper's size
#
# On a machine with a GPU, with access to Llama-2-7B ({ref}`how-to-run`), all pairs of the training
# part of up to 512 tokens:
#
# ```
# papermill notebooks/08_hh_rlhf.ipynb out.ipynb -p tier paper
# ```
#
# What it needs is known beforehand. Frozen weights have no gradient and no optimizer's state: that
# is what LoRA saves. The cell counts float32 weights, their bf16 copies, and what the backward pass
# keeps of one tree, which for frozen matrices is an upper bound.

# %% tags=["hide-input"]
from transformers import AutoConfig

seven = AutoConfig.for_model(
    "llama", hidden_size=4096, intermediate_size=11008, vocab_size=32000
)
counted = 6
tree = lm.Pairs(
    prompts=tuple((i,) * 150 for i in range(counted)),
    chosen=((1,) * 75,) * counted,
    rejected=((2,) * 75,) * counted,
    group=np.zeros(counted, int),
)
need = memory.estimate(seven, tree, "autocast")
adapter = 2 * 2 * lora.RANK * seven.hidden_size * seven.num_hidden_layers
held = need.weights + need.copies + need.activations
tokens = len(tree.trie().tokens)
work = 4 * need.weights / 4 * tokens / counted * config.full_batch_size
Markdown(
    f"Weights **{need.weights / 1e9:.0f} GB**, copies **{need.copies / 1e9:.0f} GB**, a tree of "
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
# - At the scaled rate the training loss on flipped labels falls faster from the aligned model, for the most
#   part because of what the model has learned and not because of where the adapter stands.
# - Alignment is not undone within the epoch, unless the base model is the reference: then all of it
#   is.
# - Both log-probabilities fall as the gap grows.
# - Not shown: that any of this is so for long dialogues, or for a model and a data set of the
#   paper's size. The few held-out pairs leave wide errors.
#
# A claim counts as reproduced only if it holds at the worse of the two learning rates. F15 asks
# that the mean lead in training loss be positive, F16 that nine tenths of what aligning had added
# to the gap be gone by step 100 or the end of the epoch (partly: half), leaving out a rate at which
# aligning had added nothing. All of it was written down before the runs on flipped labels.
#
# So the value of F15 is the lead at the paper's rate, which is within twice its standard error, on
# a model that this rate has not aligned: the verdict is carried by the scaled rate. Of F16 it is
# the share undone at the scaled rate alone.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("08_hh_rlhf", records)))

# %% [markdown]
# ```{exercise} Undone, or just trained?
# :label: ex-undone
#
# Let the gap of every pair be linear in the parameters, and let a run of $T$ steps move the
# parameters by $\pm\eta T v$, with $+$ for the labels as given, $-$ for flipped ones, wherever it
# starts. What is the share undone after $t$ steps? What would have to happen for alignment to be
# undone *faster* than it was made?
# ```
#
# ```{solution} ex-undone
# :class: dropdown
#
# With $q$ the gradient of the gap, aligning adds $\eta T\,q\cdot v$ to it, and $t$ flipped steps take
# $\eta t\,q\cdot v$ away: the share is $t/T$, and the run from the base model stays as far
# below as it was at first, so that in the second reading nothing is ever undone. Alignment is
# undone faster if the gaps have become steeper in the parameters (that is the paper's explanation:
# larger distinguishability; with LoRA, a $B$ that is no longer 0 does it too), or if the pull has
# grown: with the base model as reference, the pairs with negative margins pull harder.
# ```
#
# **To try.**
#
# - `papermill notebooks/08_hh_rlhf.ipynb out.ipynb -p beta 0.1`: with a larger $\beta$ the pulls
#   differ. Does the reference matter then?
# - `-p full_learning_rate 3e-4`: another rate, and what of the table of rounding.
# - In `experiments/hh_rlhf.py`, another `LENGTH`. Are long dialogues undone as soon?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
