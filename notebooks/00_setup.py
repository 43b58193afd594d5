# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (setup)=
# # From preferences to DPO
#
# **You will see** what the book's runs are made of, and the three objectives it starts from:
# Bradley–Terry, the RLHF objective, and DPO. You will see by computation that the last two have
# the same optimum, what happens when an assumption behind that is dropped, and why DPO on
# one-token answers touches two rows of one matrix.
#
# **It takes** ten minutes to read and seconds to run. **It needs** nothing beyond the two
# commands of the README.
#
# This page follows §2 of {cite:t}`im2024understanding`, equations (1) to (4), and the
# beginning of its appendix A.1, equations (6) and (7). Symbols are listed under {ref}`notation`.

# %% [markdown]
# ## Settings
#
# Every notebook of the book begins with the cell below. `None` stands for what the tier says:
# `smoke` is small and runs anywhere, `book` replays the recorded runs, `paper` is the paper's own
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
# `configure` checks them: an unknown, misspelt or ill-typed parameter stops the run with one
# line. `Records` is the store of recorded runs, and knows which of them still match the code.

# %%
from experiments import objectives
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore

config = configure(globals())
records = RunStore(config)

# %% [markdown]
# What is at hand:

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-objective)=
# ## Preferences and rewards
#
# A prompt $x$ has two responses; a person prefers $y_w$ to $y_l$. The Bradley–Terry model
# {cite:p}`bradley1952rank` says that this happens with a probability set by a reward $r$:
#
# ```{math}
# :label: eq-bt
# p(y_w \succ y_l \mid x) = \sigma\big(r(x, y_w) - r(x, y_l)\big)
# ```
#
# RLHF fits the reward by maximum likelihood,
#
# ```{math}
# :label: eq-reward
# \mathcal L_R = -\mathbb E_{(x, y_w, y_l)}\big[\log\sigma\big(r(x, y_w) - r(x, y_l)\big)\big],
# ```
#
# and then looks for the policy $\pi$ of high reward that stays close to a reference
# $\pi_{\rm ref}$:
#
# ```{math}
# :label: eq-rlhf
# R(\pi) = \mathbb E_{x}\,\mathbb E_{y\sim\pi(\cdot\mid x)}\Big[r(x, y) - \beta\log\frac{\pi(y\mid x)}{\pi_{\rm ref}(y\mid x)}\Big]
# ```
#
# ```{admonition} A correction
# :class: note
# The paper prints the log-ratio of (3) outside the expectation over $y$, and leaves out the
# expectation over $x$. The form above is the one that its references use.
# ```
#
# DPO {cite:p}`rafailov2023direct` skips the reward, and fits the policy to the preferences:
#
# ```{math}
# :label: eq-dpo
# \mathcal L_{\rm DPO} = -\mathbb E\Big[\log\sigma\Big(\underbrace{\beta\Big(\log\frac{\pi(y_w\mid x)}{\pi(y_l\mid x)} - \log\frac{\pi_{\rm ref}(y_w\mid x)}{\pi_{\rm ref}(y_l\mid x)}\Big)}_{\text{margin } m}\Big)\Big]
# ```
#
# In the code these are a line each. The loss is written in `dpo_helpers.dpo`, and nowhere else:

# %%
import torch

from dpo_helpers import dpo

print(dpo.loss(torch.tensor([-2.0, 0.0, 2.0])))

# %% [markdown]
# A margin of 0 costs $\log 2$: every run of this book begins there, since it begins at the
# reference.

# %% [markdown]
# ## The two optima agree
#
# ```{prf:theorem} Rafailov et al.
# :label: thm-optima
#
# If preferences follow {eq}`eq-bt` with reward $r$, every pair of responses is compared, and
# $\pi_{\rm ref} > 0$, then {eq}`eq-rlhf` and the expectation of {eq}`eq-dpo` have the same optimum,
#
# $$\pi^*(y\mid x) \propto \pi_{\rm ref}(y\mid x)\,e^{r(x, y)/\beta}.$$
# ```
#
# ````{dropdown} Proof
# Let $Z(x) = \sum_y \pi_{\rm ref}(y\mid x)e^{r(x,y)/\beta}$. Then
# $R(\pi) = \mathbb E_x[\beta\log Z(x) - \beta\,{\rm KL}(\pi(\cdot\mid x)\,\|\,\pi^*(\cdot\mid x))]$,
# largest exactly at $\pi = \pi^*$.
#
# For a pair $y, y'$ let $p = p(y \succ y'\mid x)$, and $m$ the margin of $y$ over $y'$. The pair
# costs $-p\log\sigma(m) - (1-p)\log\sigma(-m)$, least exactly where $\sigma(m) = p$, that is
# $m = r(x,y) - r(x,y')$. The policy $\pi^*$ has these margins for all pairs at once; and a policy
# with these margins has $\log(\pi/\pi_{\rm ref}) - r/\beta$ constant in $y$, so it is $\pi^*$. ∎
# ````
#
# The check: a policy that is a table, of three prompts and four responses, so that nothing but
# the objective is in play. Both optima are found numerically, by a general-purpose search from
# the uniform policy.

# %%
draw = torch.Generator().manual_seed(0)
logits, rewards = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
reference, temperature = logits.log_softmax(-1), 0.5

rlhf = dpo.fit(
    lambda p: -dpo.rlhf_objective(p, reference, rewards, temperature), (3, 4)
)
direct = dpo.fit(
    lambda p: dpo.population_loss(p, reference, rewards, temperature), (3, 4)
)
closed = dpo.rlhf_optimum(reference, rewards, temperature).exp()
assert torch.allclose(rlhf, direct, atol=1e-6) and torch.allclose(
    rlhf, closed, atol=1e-6
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two objectives, one optimum.", "name": "fig-optima"}, "image": {"alt": "Bars of the probability of four responses to the first prompt, under the reference, the RLHF optimum and the DPO optimum. The bars of the two optima are equal and differ from the reference's."}}
from dpo_helpers import plots

plots.bars(
    {
        "reference": reference.exp()[0].tolist(),
        "RLHF optimum": rlhf[0].tolist(),
        "DPO optimum": direct[0].tolist(),
    },
    ["y1", "y2", "y3", "y4"],
    "probability",
)

# %% [markdown]
# {numref}`fig-optima` shows the first prompt. The recorded run repeats this with other prompts,
# responses, rewards and seeds, and keeps the largest difference of a probability.

# %%

t0 = objectives.policy_run(records)
for name in ("between", "rlhf", "dpo"):
    print(
        f"{name:8} differs by less than 1e-6: {bool((t0.arrays[name] < 1e-6).all())}"
    )

# %% [markdown]
# ### Break it: a pair that is never compared
#
# The theorem asks that all pairs are compared. Below, the last response is never shown. The DPO
# loss then says nothing about it: two policies of equal loss give it quite different
# probabilities, and at most one of them is the RLHF optimum. Data decide what DPO can know.


# %%
def seen_loss(log_policy):
    return dpo.population_loss(
        log_policy[:, :3], reference[:, :3], rewards[:, :3], temperature
    )


def with_last(share):
    others = closed[:, :3] / closed[:, :3].sum(-1, keepdim=True) * (1 - share)
    return torch.cat(
        [others, torch.full((3, 1), share, dtype=torch.float64)], -1
    ).log()


losses = [seen_loss(with_last(share)).item() for share in (0.01, 0.99)]
print(f"equal losses: {abs(losses[0] - losses[1]) < 1e-12}")

# %% [markdown]
# ## One-token answers: two rows of one matrix
#
# The paper studies prompts that are answered by *Yes* or *No*: one token each, after the same
# prompt. Let $g(x) \in \mathbb R^d$ be the final hidden state and $W_U$ the unembedding, so that
# $\pi(\cdot\mid x) = {\rm softmax}(W_U g(x))$. In a difference of log-probabilities over the
# same prompt the normaliser cancels,
#
# ```{math}
# :label: eq-logits
# \log\pi(y_w\mid x) - \log\pi(y_l\mid x) = (W_U[y_w] - W_U[y_l])\cdot g(x),
# ```
#
# and with it the rest of the vocabulary; {eq}`eq-dpo` with this put in is the paper's equation (7). So if only $W_U$ is trained, only the rows of Yes and
# No move, by opposite amounts $\pm\delta$; with $s_i = +1$ where Yes is preferred and $-1$ where
# No is, the margin of statement $i$ is $m_i = 2\beta\,s_i\,g(x_i)\cdot\delta$.
#
# The check, on real hidden states. The rows of Yes and No are the model's own; the other rows
# are random, since whatever they are, they must not matter.

# %%
states = records.states(config.behaviors[-1])
g, signs = (
    torch.tensor(states.g[:40]),
    torch.tensor(states.labels[:40].astype(float)),
)
others = torch.randn(500, g.shape[1], generator=draw, dtype=torch.float64)
head = torch.cat([torch.tensor(states.rows), others])
log_probs = (g @ head.T).log_softmax(-1)
two_rows = g @ (head[0] - head[1])
assert torch.allclose(log_probs[:, 0] - log_probs[:, 1], two_rows, atol=1e-10)

# %% [markdown]
# And one step of gradient descent on all rows, by automatic differentiation of {eq}`eq-dpo`
# through the full softmax:

# %%
weights = head.clone().requires_grad_()
ratio = (g @ weights.T).log_softmax(-1)[:, :2] - log_probs[:, :2]
margins = config.beta * signs * (ratio[:, 0] - ratio[:, 1])
dpo.loss(margins).mean().backward()
moved = weights.grad.norm(dim=1) > 1e-12 * weights.grad.norm()
assert torch.allclose(weights.grad[0], -weights.grad[1])
print(
    f"rows that move: {moved.nonzero().flatten().tolist()} of {len(head)} (0 is Yes, 1 is No)"
)

# %% [markdown]
# ## What was shown
#
# - The RLHF objective and DPO have the same optimum when every pair is compared
#   ({prf:ref}`thm-optima`); a response that is never compared is left free.
# - For one-token answers the normaliser cancels, {eq}`eq-logits`: training the unembedding is
#   training one vector $\delta$. The next page, {ref}`case-study`, watches it move.

# %% tags=["hide-input", "nbval-ignore-output"]
from workflow import claims

display(Markdown(claims.table("00_setup", records)))

# %% [markdown]
# ```{exercise} What preferences cannot say
# :label: ex-shift
# Add to the reward any function $c(x)$ of the prompt alone. Show that neither {eq}`eq-bt` nor
# {eq}`eq-reward` nor the optimum of {prf:ref}`thm-optima` changes. What does change, and can any
# number of preferences between two responses to the same prompt tell?
# ```
#
# ````{solution} ex-shift
# :class: dropdown
# In $r(x, y_w) - r(x, y_l)$ the shift cancels, so preferences, and with them $\mathcal L_R$, are the
# same. In $\pi^*$ the factor $e^{c(x)/\beta}$ does not depend on $y$ and goes into $Z(x)$. The
# *value* changes: {eq}`eq-rlhf` rises by $\mathbb E_x[c(x)]$ for every policy. Preferences between
# responses to one prompt say nothing of it: how good a prompt's answers are as a whole, they cannot
# tell.
#
# ```python
# shifted = rewards + torch.tensor([[5.0], [0.0], [-5.0]])
# print(torch.allclose(dpo.rlhf_optimum(reference, shifted, temperature).exp(), closed))
# ```
# ````
#
# ```{exercise} The other 500 rows
# :label: ex-other-rows
# Training adds $\delta$ to the row of Yes and takes it from the row of No. Let $u = \delta\cdot g(x)$.
# At what rates, as $u$ grows from 0, do $\log\pi({\rm Yes}\mid x)$, $\log\pi({\rm No}\mid x)$ and
# $\log\pi(y\mid x)$ of another token $y$ change? Their rows stay: do their probabilities?
# ```
#
# ````{solution} ex-other-rows
# :class: dropdown
# With $Z = \sum_y e^{W_U[y]\cdot g}$ over all tokens,
# $\frac{d}{du}\log Z = \pi({\rm Yes}) - \pi({\rm No}) =: D$, and so the rates are $1 - D$, $-1 - D$ and
# $-D$. As $|D| < 1$, Yes always rises and No always falls: for one-token answers DPO cannot, as it
# may for longer ones, lower the chosen response's probability along with the rejected one's. All other
# tokens share the rate $-D$: they lose where Yes is the likelier answer, and gain where No is.
#
# ```python
# delta = torch.randn(g.shape[1], generator=draw, dtype=torch.float64) / 100
# after = (g @ torch.cat([head[:1] + delta, head[1:2] - delta, head[2:]]).T).log_softmax(-1)
# change, up = after - log_probs, g @ delta > 0
# print((change[up, 0] > 0).all(), (change[up, 1] < 0).all(), change[:, 2:].std(1).max())
# ```
# ````
#
# **To try.** Set `temperature` to 0.05: how close do the numerical optima still come to the closed
# form? Which of the two searches suffers first, and why? (Look at how flat $\sigma$ is.)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
