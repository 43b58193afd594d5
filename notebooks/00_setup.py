# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (setup)=
# # From preferences to DPO
#
# **You will see** how the book's runs are configured, and the three objectives it starts from:
# Bradley–Terry, the RLHF objective, and DPO. We check numerically that the last two have the same
# optimum, and see what happens when an assumption of that theorem is dropped. We also show why DPO on
# one-token answers changes only two rows of one matrix.
#
# **It takes** ten minutes to read and seconds to run. **It needs** nothing beyond the two
# commands of the README.
#
# This page follows §2 of {cite:t}`im2024understanding`, equations (1) to (4), and the
# beginning of its appendix A.1, equations (6) and (7). Symbols are listed under {ref}`notation`.

# %% [markdown]
# ## Settings
#
# Every notebook of the book begins with the cell below. `None` means the default of the tier:
# `smoke` is small and runs anywhere, `book` replays the recorded runs, and `paper` is the paper's own
# setting on a GPU. Change a value here, or pass it with `papermill -p`.

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
# `configure` checks the parameters: an unknown, misspelled, or ill-typed one stops the run with a
# one-line error. `RunStore` holds the recorded runs and knows which of them still match the code.

# %%
import torch
from experiments import objectives
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from matplotlib import pyplot as plt

from dpo_helpers import dpo, plots

config = configure(globals())
records = RunStore(config)
plots.use_style()

# %% [markdown]
# This is what is available:

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-objective)=
# ## Preferences and rewards
#
# A prompt $x$ has two responses, and a person prefers $y_w$ to $y_l$. The Bradley–Terry model
# {cite:p}`bradley1952rank` sets the probability of this preference by a reward $r$:
#
# ```{math}
# :label: eq-bt
# p(y_w \succ y_l \mid x) = \sigma\big(r(x, y_w) - r(x, y_l)\big)
# ```
#
# The functions of this page take arrays of shape (prompts, responses), so that they see all
# prompts and all pairs of responses at once.


# %%
def bradley_terry(rewards):
    """(prompts, y) → the probability that y is preferred to y′, (prompts, y, y′)."""
    return torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])


# %% [markdown]
# RLHF fits the reward by maximum likelihood,
#
# ```{math}
# :label: eq-reward
# \mathcal L_R = -\mathbb E_{(x, y_w, y_l)}\big[\log\sigma\big(r(x, y_w) - r(x, y_l)\big)\big].
# ```
#
# It then looks for the policy $\pi$ that has a high reward and stays close to a reference
# $\pi_{\rm ref}$:
#
# ```{math}
# :label: eq-rlhf
# R(\pi) = \mathbb E_{x}\,\mathbb E_{y\sim\pi(\cdot\mid x)}\Big[r(x, y) - \beta\log\frac{\pi(y\mid x)}{\pi_{\rm ref}(y\mid x)}\Big]
# ```
#
# ```{admonition} A correction
# :class: note
# The paper prints the log-ratio of (3) outside the expectation over $y$, and omits the
# expectation over $x$. The form above is the one that its references use.
# ```


# %%
def rlhf_objective(log_policy, log_reference, rewards, beta):
    """R(π), eq. (3), with all prompts equally likely."""
    penalty = beta * (log_policy - log_reference)
    return (log_policy.exp() * (rewards - penalty)).sum(-1).mean()


# %% [markdown]
# DPO {cite:p}`rafailov2023direct` skips the reward and fits the policy to the preferences:
#
# ```{math}
# :label: eq-dpo
# \mathcal L_{\rm DPO} = -\mathbb E\Big[\log\sigma\Big(\underbrace{\beta\Big(\log\frac{\pi(y_w\mid x)}{\pi(y_l\mid x)} - \log\frac{\pi_{\rm ref}(y_w\mid x)}{\pi_{\rm ref}(y_l\mid x)}\Big)}_{\text{margin } m}\Big)\Big]
# ```
#
# The margin and the loss are one line of code each. Every run of this book uses the versions in
# `dpo_helpers.dpo`, so we check that those give the same values.


# %%
def margin(chosen, rejected, reference_chosen, reference_rejected, beta):
    return beta * (
        (chosen - rejected) - (reference_chosen - reference_rejected)
    )


def loss(margins):
    return -torch.nn.functional.logsigmoid(margins)


# %%
draw = torch.Generator().manual_seed(0)
logits, rewards = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
four = (*logits[:2], *rewards[:2])
assert torch.equal(dpo.margin(*four, 0.3), margin(*four, 0.3))
assert torch.equal(dpo.loss(logits), loss(logits))
print(loss(torch.tensor([-2.0, 0.0, 2.0])))

# %% [markdown]
# The loss at margin 0 is $\log 2$. Every run of this book begins at its reference, so all its margins
# begin at 0 and its loss at $\log 2$.

# %% [markdown]
# ## The two optima agree
#
# ```{prf:theorem} Rafailov et al.
# :label: thm-optima
#
# If preferences follow {eq}`eq-bt` with reward $r$, every pair of responses is compared, and
# $\pi_{\rm ref} > 0$, then over all policies {eq}`eq-rlhf` and the expectation of {eq}`eq-dpo` have
# the same optimum,
#
# $$\pi^*(y\mid x) \propto \pi_{\rm ref}(y\mid x)\,e^{r(x, y)/\beta}.$$
# ```
#
# ````{dropdown} Proof
# Let $Z(x) = \sum_y \pi_{\rm ref}(y\mid x)e^{r(x,y)/\beta}$. Then
# $R(\pi) = \mathbb E_x[\beta\log Z(x) - \beta\,{\rm KL}(\pi(\cdot\mid x)\,\|\,\pi^*(\cdot\mid x))]$,
# which is largest exactly at $\pi = \pi^*$.
#
# For a pair $y, y'$ let $p = p(y \succ y'\mid x)$, and $m$ the margin of $y$ over $y'$. The pair
# costs $-p\log\sigma(m) - (1-p)\log\sigma(-m)$. This is smallest exactly where $\sigma(m) = p$, that
# is, $m = r(x,y) - r(x,y')$. The policy $\pi^*$ has these margins for all pairs at once. Conversely, a
# policy with these margins has $\log(\pi/\pi_{\rm ref}) - r/\beta$ constant in $y$, so it is $\pi^*$. ∎
# ````
#
# We check the theorem on a policy that is a table of three prompts and four responses, so that
# nothing but the objective matters. The cell defines the expectation of the DPO loss over all pairs
# of responses, and the optimum in closed form:


# %%
def population_loss(log_policy, log_reference, rewards, beta):
    """Eq. (4), with prompts and pairs (y, y′) drawn uniformly."""
    ratio = log_policy - log_reference
    margins = beta * (ratio[:, :, None] - ratio[:, None, :])
    return (bradley_terry(rewards) * loss(margins)).mean()


def rlhf_optimum(log_reference, rewards, beta):
    """log π*, the closed form of the theorem."""
    return (log_reference + rewards / beta).log_softmax(-1)


# %% [markdown]
# A general-purpose optimizer, L-BFGS, finds both optima numerically, from the uniform policy:


# %%
def fit(objective, shape):
    """The policy, (prompts, responses), that minimizes an objective of its log-probabilities."""
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    limits = dict(max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16)
    search = torch.optim.LBFGS(
        [logits], line_search_fn="strong_wolfe", **limits
    )

    def step():
        search.zero_grad()
        value = objective(logits.log_softmax(-1))
        value.backward()
        return value

    search.step(step)
    return logits.detach().softmax(-1)


# %%
reference, temperature = logits.log_softmax(-1), 0.5
given = (reference, rewards, temperature)
rlhf = fit(lambda p: -rlhf_objective(p, *given), (3, 4))
direct = fit(lambda p: population_loss(p, *given), (3, 4))
closed = rlhf_optimum(*given).exp()
assert torch.allclose(rlhf, direct, atol=1e-6)
assert torch.allclose(rlhf, closed, atol=1e-6)

# %% mystnb={"figure": {"caption": "Probability of each response under the reference and both optima.", "name": "fig-optima"}, "image": {"alt": "Bars of the probability of four responses to the first prompt, under the reference, the RLHF optimum, and the DPO optimum. The bars of the two optima are equal and differ from the reference's."}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 3.2))
bars = {
    "reference": reference.exp(),
    "RLHF optimum": rlhf,
    "DPO optimum": direct,
}
for k, (name, policy) in enumerate(bars.items()):
    ax.bar(torch.arange(4) + 0.27 * (k - 1), policy[0], 0.27, label=name)
ax.set_xticks(range(4), ["$y_1$", "$y_2$", "$y_3$", "$y_4$"])
ax.set(xlabel="response", ylabel="probability")
plots.legend_below(fig, ax, ncols=3)
plt.show()

# %% [markdown]
# {numref}`fig-optima` shows the first prompt. The bars of the two optima are equal.
#
# The recorded run repeats this check with other prompts, responses, rewards, and seeds. For each seed
# it keeps the largest difference between two probabilities. `between` compares the two numerical optima
# with each other; `rlhf` and `dpo` compare each of them with the closed form. The functions of the run
# are in `experiments.objectives`. The second cell checks that they agree with the functions above.

# %%
t0 = objectives.policy_run(records)
for name in ("between", "rlhf", "dpo"):
    print(
        f"{name:8} differs by less than 1e-6: {bool((t0.arrays[name] < 1e-6).all())}"
    )

# %%
for ours in (rlhf_objective, population_loss):
    theirs = getattr(objectives, ours.__name__)
    assert torch.equal(ours(logits, *given), theirs(logits, *given))
assert torch.equal(objectives.rlhf_optimum(*given).exp(), closed)

# %% [markdown]
# ### Break it: a pair that is never compared
#
# The theorem requires that all pairs are compared. Below, the last response is never compared. The
# DPO loss then does not depend on its probability. Two policies have the same loss, although one gives
# this response a probability of 0.01 and the other 0.99. At most one of the two is the RLHF optimum.
# The data limit what DPO can learn.


# %%
def seen_loss(log_policy):
    return population_loss(
        log_policy[:, :3], reference[:, :3], rewards[:, :3], temperature
    )


def with_last(share):
    """The optimum of the three responses seen, with a probability of the last."""
    others = closed[:, :3] / closed[:, :3].sum(-1, keepdim=True) * (1 - share)
    last = torch.full((3, 1), share, dtype=torch.float64)
    return torch.cat([others, last], -1).log()


losses = [seen_loss(with_last(share)).item() for share in (0.01, 0.99)]
print(f"equal losses: {abs(losses[0] - losses[1]) < 1e-12}")

# %% [markdown]
# ## One-token answers: two rows of one matrix
#
# The paper studies prompts that are answered by *Yes* or *No*: one token each, after the same
# prompt. Let $g(x) \in \mathbb R^d$ be the final hidden state and $W_U$ the unembedding, so that
# $\pi(\cdot\mid x) = {\rm softmax}(W_U g(x))$. The normalizer cancels in a difference of
# log-probabilities of two responses to the same prompt,
#
# ```{math}
# :label: eq-logits
# \log\pi(y_w\mid x) - \log\pi(y_l\mid x) = (W_U[y_w] - W_U[y_l])\cdot g(x),
# ```
#
# and so do the rows of all other tokens. Substituting this into {eq}`eq-dpo` gives the paper's
# equation (7). So if only $W_U$ is trained, only the rows of Yes and No change, by opposite amounts
# $\pm\delta$. Let $s_i = +1$ where Yes is preferred and $-1$ where No is. Then the margin of statement
# $i$ is $m_i = 2\beta\,s_i\,g(x_i)\cdot\delta$.
#
# We check this on real hidden states. The rows of Yes and No are the model's own. The other rows
# are random, because the result should not depend on them.

# %%
states = records.states(config.behaviors[-1])
g, signs = (
    torch.tensor(states.g[:40]),
    torch.tensor(states.labels[:40].astype(float)),
)
others = torch.randn(500, g.shape[1], generator=draw, dtype=torch.float64)
unembedding = torch.cat([torch.tensor(states.rows), others])
log_probs = (g @ unembedding.T).log_softmax(-1)
two_rows = g @ (unembedding[0] - unembedding[1])
assert torch.allclose(log_probs[:, 0] - log_probs[:, 1], two_rows, atol=1e-10)

# %% [markdown]
# The next cell computes the gradient for all rows, by automatic differentiation of {eq}`eq-dpo`
# through the full softmax. The rows with a nonzero gradient are those that a step of gradient descent
# moves.

# %%
weights = unembedding.clone().requires_grad_()
yes, no = (g @ weights.T).log_softmax(-1)[:, :2].T
margins = signs * margin(yes, no, *log_probs[:, :2].T, config.beta)
loss(margins).mean().backward()
moved = weights.grad.norm(dim=1) > 1e-12 * weights.grad.norm()
assert torch.allclose(weights.grad[0], -weights.grad[1])
print(
    f"rows that move: {moved.nonzero().flatten().tolist()} of {len(unembedding)} (0 is Yes, 1 is No)"
)

# %% [markdown]
# ## What was shown
#
# - The RLHF objective and DPO have the same optimum when every pair is compared
#   ({prf:ref}`thm-optima`). The DPO loss does not constrain a response that is never compared.
# - For one-token answers the normalizer cancels, {eq}`eq-logits`. Training the unembedding is
#   training one vector $\delta$. The next page, {ref}`case-study`, follows it through training.

# %% tags=["hide-input", "nbval-ignore-output"]
from workflow import claims

display(Markdown(claims.table("00_setup", records)))

# %% [markdown]
# ```{exercise} What preferences cannot say
# :label: ex-shift
# Add to the reward any function $c(x)$ of the prompt alone. Show that neither {eq}`eq-bt` nor
# {eq}`eq-reward` nor the optimum of {prf:ref}`thm-optima` changes. What does change? Can any
# number of preferences between two responses to the same prompt reveal $c$?
# ```
#
# ````{solution} ex-shift
# :class: dropdown
# In $r(x, y_w) - r(x, y_l)$ the shift cancels, so the preferences, and with them $\mathcal L_R$, are the
# same. In $\pi^*$ the factor $e^{c(x)/\beta}$ does not depend on $y$ and goes into $Z(x)$. The
# *value* changes: {eq}`eq-rlhf` increases by $\mathbb E_x[c(x)]$ for every policy. Preferences between
# responses to one prompt cannot reveal $c$: they do not depend on how good the responses to that
# prompt are as a whole.
#
# ```python
# shifted = rewards + torch.tensor([[5.0], [0.0], [-5.0]])
# print(torch.allclose(rlhf_optimum(reference, shifted, temperature).exp(), closed))
# ```
# ````
#
# ```{exercise} The other 500 rows
# :label: ex-other-rows
# Training adds $\delta$ to the row of Yes and subtracts it from the row of No. Let
# $u = \delta\cdot g(x)$. At what rates, as $u$ grows from 0, do $\log\pi({\rm Yes}\mid x)$,
# $\log\pi({\rm No}\mid x)$, and $\log\pi(y\mid x)$ of another token $y$ change? The rows of other
# tokens do not change. Do their probabilities?
# ```
#
# ````{solution} ex-other-rows
# :class: dropdown
# With $Z = \sum_y e^{W_U[y]\cdot g}$ over all tokens,
# $\frac{d}{du}\log Z = \pi({\rm Yes}) - \pi({\rm No}) =: D$, and so the rates are $1 - D$, $-1 - D$, and
# $-D$. As $|D| < 1$, Yes always becomes more likely and No less likely. For longer responses DPO may
# lower the probability of both the chosen and the rejected response; for one-token answers it cannot.
# All other tokens share the rate $-D$: their probabilities decrease where Yes is the likelier answer,
# and increase where No is.
#
# ```python
# delta = torch.randn(g.shape[1], generator=draw, dtype=torch.float64) / 100
# rows = torch.cat([unembedding[:1] + delta, unembedding[1:2] - delta, unembedding[2:]])
# change, up = (g @ rows.T).log_softmax(-1) - log_probs, g @ delta > 0
# print((change[up, 0] > 0).all(), (change[up, 1] < 0).all(), change[:, 2:].std(1).max())
# ```
# ````
#
# **To try.**
#
# - Set `temperature` to 0.05, and print the differences that the cell asserts to be small. How close
#   do the numerical optima still come to the closed form? Which of the two searches gets worse first,
#   and why?
# - Give the response that is never compared another probability, `with_last(0.5)`. What is the loss
#   now, and what is the value of `rlhf_objective`?
# - Multiply `others`, the random rows, by 10. Does `weights.grad[:2]` change?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
