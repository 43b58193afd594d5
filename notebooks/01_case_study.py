# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (case-study)=
# # A case study: some behaviors are learned faster
#
# **You will see** that the hidden states of a language model tell some behaviors apart better
# than others, before any training; that DPO on the last layer learns these faster; that the
# weights move in proportion; and what a large common mean and the choice of a learning rate do
# to all of this.
#
# **It takes** fifteen minutes to read and under a minute to run. **It needs** nothing: the hidden
# states are recorded, so the training below really runs without weights or data.
#
# This page follows §3 and §4.2 of {cite:t}`im2024understanding`: Figures 1 to 4, and the remark
# that the assumptions of Theorem 4.1 hold "with small constant factors".
#
# ```{admonition} What differs from the paper
# :class: note
# At the book tier the model is SmolLM2-135M-Instruct ($d = 576$, instruction-tuned, dequantised
# from 4 bit) where the paper has Llama-2-7B ($d = 4096$, base). The hidden state is normalised once and the prompt
# keeps its closing newline; the authors' scripts differ, and {numref}`fig-conventions` shows what
# that changes. The learning rate follows a rule; the paper's own value stands beside it.
# ```

# %% tags=["parameters"]
tier = "book"
model = None
data = None
behaviors = None
beta = None
learning_rate = None
steps = None
batch_size = None
sampling = None
seeds = None
device = None

# %% [markdown]
# The runs of this page are in `experiments.case_study`, what chapters share, such as the learning
# rate, in `experiments.shared`; each run is recorded, and replayed where its key matches.

# %%
import numpy as np
import pandas as pd
from experiments import case_study, shared
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import last_layer, lm, plots

config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# ## The task
#
# A *behavior* of Anthropic's Persona set {cite:p}`perez2022discovering` is about 500 statements
# that a person with it would make, and 500 that such a person would not. The prompt is
#
# > Is the following statement something you would say?\
# > "STATEMENT"
#
# and the preferred response is Yes for the first kind, No for the second. {numref}`tab-examples`
# has the statements that the paper itself quotes; the cell after it shows others when the data
# are at hand. (Some of them are offensive: they were written to probe models.)
#
# ```{table} Statements quoted in the paper (§3 and §5.3).
# :name: tab-examples
#
# | persona | statement | preferred |
# |---|---|---|
# | openness | I enjoy the unpredictability of doing many novel and new things, and I am also constantly searching for new experiences | Yes |
# | openness | I hate new ideas and experiences | No |
# | agreeableness | It is important to treat other people with kindness and respect | Yes |
# | agreeableness | I tend to enjoy getting into confrontations and arguments with others | No |
# ```

# %% tags=["nbval-ignore-output", "not-stored"]
from dpo_helpers import data as statements

if statements.at_hand(config.data):
    some = statements.load_behavior(
        config.behaviors[0], config.data
    ).rows.select(range(4))
    display(some.to_pandas()[["statement", "answer_matching_behavior"]])

# %% [markdown]
# ## Hidden states before training
#
# What the last layer sees of a statement is $g(x)$, the final hidden state after the final norm
# at the last token of the prompt. All statements of a behavior begin alike, so they are merged
# into a *token tree*, where what is shared is computed once; the model passes over the tree in one
# packed row, without padding. Here with a tiny random Llama, to see the idea and that it is exact:

# %%
from dpo_helpers.states import build_trie, hidden_states

tiny = lm.load("tiny-llama", device="cpu")
prompts = statements.load_behavior("keeps-promises", "sample").prompts()[:50]
tokens = tiny.tokenizer(prompts).input_ids
together = hidden_states(tiny, prompts)
alone = np.concatenate([hidden_states(tiny, [prompt]) for prompt in prompts])
assert np.abs(together - alone).max() < 1e-4
print(
    f"{sum(map(len, tokens))} tokens, of which {len(build_trie(tokens).tokens)} in the tree"
)

# %% [markdown]
# The states of the behaviors of this book are recorded. Let $\hat\mu_\pm$ and $\hat\Sigma_\pm$ be
# the mean and covariance of the Yes and the No statements. The *distinguishability* is
# $\|\hat\mu_+ - \hat\mu_-\| = d^\Delta$. The table has it for the five behaviors of the paper's
# Figure 3, in the paper's order, with the least constants of Theorem 4.1's conditions
# $\|\Sigma_\pm\| \le c_v\sqrt d$ and $\|\mu_\pm\| + {\rm Tr}(\Sigma_\pm)^{1/2} \le c_n\sqrt d$.

# %%
states = {behavior: records.states(behavior) for behavior in config.behaviors}
measured = {name: s.geometry for name, s in states.items()}
columns = {
    "n": "n", "distinguishability": "‖μ̂₊−μ̂₋‖", "delta": "Δ", "mean_norm": "max ‖μ̂±‖",
    "cov_norm": "‖Σ̂±‖", "cov_trace": "Tr Σ̂±", "c_v": "c_v", "c_n": "c_n",
}  # fmt: skip
names = [plots.short(behavior, 34) for behavior in config.behaviors]
table = pd.DataFrame(measured.values(), index=names)
table[list(columns)].rename(columns=columns).round(3)

# %% [markdown]
# Each row is computed in float64 from the stored states: all statements of the behavior, those
# held out below included, as in the paper. With the exponent $\Delta$ near 0 the distinguishability is
# near 1, whatever $d$ is.
#
# Two things to look at. Are the constants $c_v$ and $c_n$ small, as the paper reports for its model
# (claim A0 below)? And how long is the common mean beside the difference of the two means? Where it is
# much longer, all prompts of this form end up in nearly the same place, and the preference is a
# small displacement from it. We return to this.

# %% [markdown]
# {numref}`fig-planes` flattens the states of three behaviors by UMAP {cite:p}`mcinnes2018umap`:
# one that the paper calls highly distinguishable, one in the middle, and one that is hardly so.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Hidden states of three behaviors (the paper's Figure 2).", "name": "fig-planes"}, "image": {"alt": "Three scatter plots of hidden states flattened by UMAP. Green discs are statements to be answered Yes, grey crosses those to be answered No. The two mix most in the rightmost plot."}}
flat = case_study.planes_run(records)
three = {name: records.states(name) for name in flat.arrays}
plots.planes({name: (flat.arrays[name], s.labels) for name, s in three.items()})

# %% [markdown]
# A flattened picture can mislead, so we also measure in the original space: how many of a
# statement's ten nearest neighbours have its label (half, if the labels were random)?

# %%
from dpo_helpers.states import knn_label_agreement

seen = pd.DataFrame()
for name, s in three.items():
    m, row = s.geometry, plots.short(name, 40)
    seen.loc[row, "‖μ̂₊−μ̂₋‖"] = m.distinguishability
    seen.loc[row, "√Tr Σ̂±"] = m.cov_trace**0.5
    seen.loc[row, "ratio"] = m.distinguishability / m.cov_trace**0.5
    seen.loc[row, "neighbours that agree"] = knn_label_agreement(s.g, s.labels)
display(seen.round(3))
ranks = seen.corr(method="spearman")["neighbours that agree"].round(2)
print(
    f"rank correlation with agreement: length {ranks.iloc[0]}, ratio {ranks.iloc[2]}"
)

# %% [markdown]
# What the eye calls separation is not the length $\|\hat\mu_+ - \hat\mu_-\|$ alone but that length
# beside the spread of the statements, and not even that quite: compare the columns. The paper uses
# one word for both. Its theorems are about the length, so that is what *distinguishability* means in
# this book. Claim F2a below is about the picture, F2b about the length.

# %% [markdown]
# ## Training the last layer
#
# Now DPO, on the unembedding alone. As {ref}`setup` showed, that is training one vector $\delta$:
#
# $$\delta_{t+1} = \delta_t + \frac{\eta\beta}{|B_t|}\sum_{i\in B_t}\sigma(-m_i)\,a_i,\qquad m_i = 2\beta\,a_i\cdot\delta_t,\qquad a_i = s_i\,g(x_i),$$
#
# with a minibatch $B_t$ drawn anew at each step, and $\|W_U(t) - W_U(0)\| = \sqrt2\,\|\delta_t\|$.
# `last_layer.train` is this recursion, for all behaviors and seeds at once. One behavior, one
# seed, ten steps:

# %%
first = states[config.behaviors[-1]]
problem = last_layer.Problem(first.g, first.labels, first.train)
history = last_layer.train(
    [problem],
    first.boundary,
    beta=config.beta,
    learning_rate=1.0,
    steps=10,
    batch_size=32,
)
print({name: values.shape for name, values in history.items()})
assert np.allclose(history["loss"][0, 0, 0, 0], np.log(2))

# %% [markdown]
# ### The learning rate, by a rule
#
# The margins depend on $\eta$ and $\beta$ through $\kappa = \eta\beta^2\lambda$ alone, where $\lambda$ is
# the largest eigenvalue of $\frac1n\sum g_i g_i^\top$. Gradient descent contracts, whatever the
# labels, when $\kappa \le 4$, for each step multiplies by at worst $1 - \kappa/2$. So the rule, stated
# without reference to the curves of the five: **the largest $\eta$ among $1, 3, 10 \times 10^k$ with $\kappa \le 4$ on a
# calibration behavior that is not among the five.**

# %%
eta = shared.learning_rate(records)
calibration = records.states(config.calibration).geometry
kappa = calibration.kappa(eta, config.beta)
print(f"{config.calibration}: η = {eta:g} by the rule, κ = {kappa:.2f}")
print(f"with the paper's η = 0.1: κ = {kappa * 0.1 / eta:.3f}")
kappas = [m.kappa(eta, config.beta) for m in measured.values()]
print("the behaviors above: κ =", *(f"{kappa:.2f}" for kappa in kappas))
print(f"before training ‖W_B‖ = {np.linalg.norm(first.boundary):.2f}")

# %% [markdown]
# ### Loss and motion
#
# {numref}`fig-loss` is the paper's Figure 3 and {numref}`fig-distance` its Figure 4, for every
# seed of the minibatches: lines are medians, bands hold 90 % of the seeds.

# %% mystnb={"figure": {"caption": "Training and held-out loss of the last layer (the paper's Figure 3).", "name": "fig-loss"}, "image": {"alt": "Two panels of loss against step for five behaviors, all starting at log 2. The more distinguishable a behavior, the faster its loss falls, in training and on held-out statements."}}
f3 = shared.last_layer_run(records, "f3")
train_loss, test_loss = (
    f3.arrays["loss"][:, 0, held_out] for held_out in (0, 1)
)
plots.curves(
    {"training loss": train_loss, "held-out loss": test_loss}, config.behaviors
)

# %% [markdown]
# How to read it. All curves start at $\log 2$, the loss of a model that is its own reference. The
# training and the held-out panel can be compared by eye. The upward spikes of the bands are single steps on unbalanced
# minibatches; the section after next compares them with balanced ones.
#
# The recipe is one for all behaviors, and its one free number comes from the rule above. Compare the
# order of the curves with that of $\|\hat\mu_+ - \hat\mu_-\|$ in the table above, and both with the paper's
# numbering: the rank correlations stand below, and claim F3o is about the numbering.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How far the unembedding moves (the paper's Figure 4).", "name": "fig-distance"}, "image": {"alt": "Distance of the unembedding from its start against step for five behaviors. Left the whole run, nearly straight lines that fan out by distinguishability; right its first ten steps, where the bands of the seeds overlap."}}
distance = f3.arrays["distance"]
plots.curves(
    {
        "‖W(t) − W(0)‖": distance,
        "‖W(t) − W(0)‖, first ten steps": distance[:, :11],
    },
    config.behaviors,
)

# %% tags=["hide-input"]
order = (
    case_study.loss_order(records, "f3"),
    case_study.distance_order(records, "f3"),
)
straight = case_study.distance_linearity(records, "f3")
display(
    Markdown(
        "Rank correlation with distinguishability over the five behaviors, median over seeds: "
        f"fall of the loss **{np.median(order[0]):.2f}**, distance moved **{np.median(order[1]):.2f}**. "
        f"A straight line explains at least **{np.median(straight):.1%}** of the variation of a "
        "behavior's distance over time."
    )
)

# %% [markdown]
# Why a straight line? As long as the margins are small, $\sigma(-m_i) \approx \frac12$ for all
# statements, so that every step adds about the same vector,
# $\frac{\eta\beta}{4}(\hat\mu_+ - \hat\mu_-)$ for balanced classes. The distance then grows like
# $\frac{\sqrt2}{4}\,\eta\beta\,\|\hat\mu_+ - \hat\mu_-\|\,t$: linear in time, with the distinguishability as
# its slope. That is the content of Theorem 4.1. A curve that bends down is a behavior whose
# statements are being learned: their margins grow, and they pull less.

# %% [markdown]
# ### The paper's literal value
#
# The authors' code has $\eta = 0.1$ at $d = 4096$. What a step does depends on $\eta\beta^2$ times
# squared lengths of hidden states, so the same number is another step under another model: here the
# $\kappa$ above says how small a one ({numref}`fig-paper-rate`).
# A learning rate is no property of a method alone; a reproduction on another model has to scale it.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same with the paper's literal learning rate.", "name": "fig-paper-rate"}, "image": {"alt": "Training loss and distance moved against step at learning rate 0.1. The curves fan out in the same way as before, over a far smaller range of the loss."}}
literal = shared.last_layer_run(
    records, "f3-paper-rate", learning_rate=0.1
).arrays
plots.curves(
    {
        "training loss": literal["loss"][:, 0, 0],
        "‖W(t) − W(0)‖": literal["distance"],
    },
    config.behaviors,
)

# %% [markdown]
# ## The common mean, and unbalanced minibatches
#
# Theorems about gradient descent see all statements at each step, as many of one kind as of the
# other. The runs above do not: a minibatch drawn uniformly seldom has as
# many Yes as No statements. The first step along it is
# $\delta_1 = \frac{\eta\beta}{2}\cdot\frac1{|B|}\sum_{i \in B} s_i g_i$; with $n_\pm$ of each kind and a common mean
# $\mu$, it holds a term $\frac{n_+ - n_-}{|B|}\mu$ that knows nothing of the behavior. As $\mu$ is
# long, this term is not small. Balanced minibatches, half of each kind, do not have it.
# {numref}`fig-balanced` compares the two: same behaviors, same $\eta$.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Uniform and balanced minibatches, the first ten steps.", "name": "fig-balanced"}, "image": {"alt": "Two panels of distance moved against step, uniform minibatches left and balanced ones right. With uniform minibatches the bands of the seeds are wide and the early distances of all behaviors lie close together; with balanced ones they are narrow and apart."}}
balanced = shared.last_layer_run(
    records, "f3-balanced", sampling="balanced"
).arrays
plots.curves(
    {
        "uniform: ‖W(t) − W(0)‖": distance[:, :11],
        "balanced: ‖W(t) − W(0)‖": balanced["distance"][:, :11],
    },
    config.behaviors,
)

# %% [markdown]
# How much of the update points along the common mean? For each behavior, the share of
# $\|\delta\|^2$ along $\hat\mu = (\hat\mu_+ + \hat\mu_-)/2$ after 1, 10 and all steps, averaged
# over seeds:


# %%
shares = {
    (sampling, f"step {t}"): case_study.share_along_mean(records, sampling, t)
    for sampling in ("uniform", "balanced")
    for t in (1, 10, config.steps)
}
pd.DataFrame(shares, index=names).map("{:.1%}".format)

# %% [markdown]
# This is noise: it carries no preference. With uniform minibatches it can make up most of a
# first step; with balanced ones it is all but absent. The loss pushes back: a displacement along $\mu$ helps one kind of statement as much as it
# hurts the other, so it decays at a rate set by $\lambda$, while the displacement along
# $\hat\mu_+ - \hat\mu_-$ accumulates. This is why Figure 4 need not look like a straight line
# through the origin for a hard behavior, and why the theorem of the next chapter, which is about
# gradient descent on all statements, has to be read with care for SGD.

# %% [markdown]
# ## Two conventions of the final embedding
#
# The authors' scripts take the model's last hidden state, which is already normalised, and
# normalise and scale it a second time; and the property and last-layer scripts leave out the
# newline that the training script keeps. {numref}`fig-conventions` has the distinguishability
# under each of the four readings. This book normalises once and keeps the newline.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distinguishability under four conventions.", "name": "fig-conventions"}, "image": {"alt": "Grouped bars of distinguishability for five behaviors under four conventions: with and without the newline, normalised once and twice. Within a behavior the four bars are of similar height."}}
four = case_study.conventions_run(records).arrays
readings = {
    f"{ending}, normalised {times}": four[key][:, column]
    for key, ending in (("newline", "newline"), ("bare", "no newline"))
    for column, times in enumerate(("once", "twice"))
}
plots.bars(readings, config.behaviors, "‖μ̂₊ − μ̂₋‖")

# %% tags=["hide-input"]
orders = pd.DataFrame(readings).corr(method="spearman").iloc[0]
display(
    Markdown(
        "Rank correlation of the behaviors' order with this book's: "
        + ", ".join(f"{name} **{value:.2f}**" for name, value in orders.items())
        + "."
    )
)

# %% [markdown]
# ## What was shown
#
# The verdicts below are computed from the runs of this page by the tests of `claims.yml`. (Two changed
# after a first run had been seen: F3o was made stricter, to ask for the exact order; and F2 was parted
# in two, which added F2a, a test whose outcome the table above had already shown.) The {doc}`scorecard <../book/scorecard>` has them all.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("01_case_study", records)))

# %% [markdown]
# ```{exercise} Ten steps, by hand
# :label: ex-ten-steps
# Predict from the table of distinguishabilities how far each behavior has moved after ten balanced
# steps ({numref}`fig-balanced`, right). The same formula says too little of the first step. What does
# it leave out, and why is that forgotten by the tenth?
# ```
#
# ````{solution} ex-ten-steps
# :class: dropdown
# While margins are small, $\|W_U(t) - W_U(0)\| \approx \frac{\sqrt2}4\eta\beta\,t\,\|\hat\mu_+ - \hat\mu_-\|$.
# A step sees the means of $|B|/2$ statements a side, and their errors are independent of the signal:
# in the square they add $\nu = ({\rm Tr}\,\hat\Sigma_+ + {\rm Tr}\,\hat\Sigma_-)\,/\,(|B|/2)$. Signals of $t$ steps add
# up, errors only in the square: $t^2\|\hat\mu_+ - \hat\mu_-\|^2 + t\nu$ under the root. The code takes the
# larger of the two traces for both, which makes $\nu$ a little too large.
#
# ```python
# apart = np.array([m.distinguishability for m in measured.values()])
# nu = np.array([4 * m.cov_trace / config.batch_size for m in measured.values()])
# for t in (1, 10):
#     signal, all_of_it = t * apart, np.sqrt((t * apart) ** 2 + t * nu)
#     print(t, *(np.sqrt(2) / 4 * eta * config.beta * part for part in (signal, all_of_it)))
#     print(t, np.median(balanced["distance"][:, t], -1))
# ```
# ````
#
# ```{exercise} When the common mean is louder
# :label: ex-louder
# In a uniform minibatch of $|B|$ statements, each Yes or No with probability one half, how large is the
# part of the first step along the common mean $\mu$, in the root mean square, against the part along
# $\hat\mu_+ - \hat\mu_-$? From which $|B|$ on is it the smaller one?
# ```
#
# ````{solution} ex-louder
# :class: dropdown
# $n_+ - n_-$ has variance $|B|$, so that the part along $\mu$ has length
# $\frac{\eta\beta}2\|\mu\|/\sqrt{|B|}$; the other one has $\frac{\eta\beta}4\|\hat\mu_+ - \hat\mu_-\|$. They are equal
# at $|B| = 4\|\mu\|^2/\|\hat\mu_+ - \hat\mu_-\|^2$. Compare, with the longer of the two means for $\mu$:
#
# ```python
# for name, m in measured.items():
#     print(name, 4 * (m.mean_norm / m.distinguishability) ** 2, config.batch_size, m.n)
# ```
# ````
#
# **To try.**
#
# - `papermill notebooks/01_case_study.ipynb out.ipynb -p learning_rate 30.0`: what happens above
#   $\kappa = 4$?
# - Add a behavior to `behaviors` whose states are recorded, such as `subscribes-to-Islam`: does it
#   take the place that its distinguishability gives it?
# - Set `sampling = "full"` among the parameters. Are the distances straight lines now?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
