# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (priorities)=
# # Priorities among behaviors
#
# **You will see** exactly what the first step of DPO does to each behavior of a mixture, with proof. You
# will see what the paper's *priority level* says, and what it does not say. Of two behaviors, the one with
# the longer difference of means always has the higher priority, at any angle; we prove why. Then we measure
# how well priority levels predict whole training runs, for the pairs of the paper's Figure 5, for all pairs,
# and for all behaviors at once.
#
# **It takes** twenty-five minutes to read and under a minute to run. **It needs** only the recorded
# hidden states. Read {ref}`case-study` first.
#
# This page follows the second half of §4.2 of {cite:t}`im2024understanding`: equation (5), Figure 5,
# and Appendix A.3, equations (19) to (24).
#
# ```{admonition} What differs from the paper
# :class: note
# We use the model and the learning-rate rule of {ref}`case-study`. The paper does not print the priority levels of its
# two pairs. We compute them here under our model, and they turn out to matter for Figure 5.
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

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy
import torch
from experiments import priorities, shared
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from scipy.special import expit
from workflow import claims

from dpo_helpers import last_layer, mixtures, plots
from dpo_helpers.errors import InputError

plots.use_style()
config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-first-step)=
# ## The first step on a mixture
#
# We train several behaviors together. Behavior $j$ contributes $n_j$ statements, $N = \sum_j n_j$ in all,
# and gradient descent minimizes the mean loss over all $N$. Each behavior has two vectors:
#
# $$b_j = \hat\mu_+^j - \hat\mu_-^j, \qquad \hat b_j = \frac2{n_j}\sum_{i\in j} s_i\,g(x_i) = b_j + \frac{n_+^j - n_-^j}{n_j}\,\big(\hat\mu_+^j + \hat\mu_-^j\big).$$
#
# The paper works with the difference of means $b_j$. The gradient contains the *signed mean* $\hat b_j$ of the behavior. The two are equal
# for balanced classes. Otherwise the signed mean also contains a share of the common mean, which is long.
#
# ```{prf:proposition} The first step
# :label: prop-first-step
#
# For any hidden states, labels, sizes, and reference, the first step of gradient descent on the DPO loss of a mixture
# changes the row $W_U[y_+]$ by
#
# $$\delta_1 = \frac{\eta\beta}4\,\bar b, \qquad \bar b = \sum_j \frac{n_j}N\,\hat b_j,$$
#
# the row $W_U[y_-]$ by $-\delta_1$, and no other row. The logit difference between the preferred and the other response of behavior $j$ increases on average by
#
# $$\frac1{n_j}\sum_{i\in j} 2 s_i\,g(x_i)\cdot\delta_1 = \hat b_j\cdot\delta_1 = \frac{\beta\eta}4\,\bar b\cdot\hat b_j .$$
# ```
#
# `````{dropdown} Proof
# By (7) the loss is $\frac1N\sum_i -\log\sigma(m_i)$ with $m_i = \beta s_i\,(w_+ - w_-)\cdot g(x_i)$, where $w_\pm$ are the
# changes of the rows $W_U[y_\pm]$. The normalizer of the softmax cancels, and no other row occurs. As
# $\frac{d}{dm}(-\log\sigma(m)) = -\sigma(-m)$, which is $-\frac12$ at $m = 0$,
#
# $$-\nabla_{w_+} L = \frac1N\sum_i \tfrac12\,\beta s_i\,g(x_i) = \frac\beta4\sum_j\frac{n_j}N\cdot\frac2{n_j}\sum_{i\in j} s_i\,g(x_i) = \frac\beta4\,\bar b,$$
#
# and $-\nabla_{w_-}L$ is its negative. A step with learning rate $\eta$ gives $\delta_1$. The logit difference of statement $i$ changes by
# $s_i(\delta_1 - (-\delta_1))\cdot g(x_i)$. Its mean over behavior $j$ is $\hat b_j\cdot\delta_1$. ∎
# `````
#
# The paper states this in (19) to (21) for $m$ behaviors, with $\bar b = \frac1m\sum_j b_j$. That requires behaviors of equal
# size and balanced classes. What (20) and (21) call the gradient is $-\nabla L$.
#
# To check the proposition, we take the first pair of Figure 5 and keep a third of its second behavior, so that the sizes differ.
# The cell computes the signed means and $\delta_1$ from their definitions:


# %%
def first_step(g, labels, group, eta, beta):
    """δ₁ = (ηβ/4) Σ (n_j/N) b̂_j; also the b̂_j and the n_j."""
    members = [group == j for j in range(group.max() + 1)]
    b = [2 * (labels[at, None] * g[at]).mean(0) for at in members]
    b, sizes = np.array(b), np.bincount(group)
    return eta * beta / 4 * (sizes @ b) / sizes.sum(), b, sizes


pair = shared.PAIRS[config.tier][0]
eta, beta = shared.learning_rate(records), config.beta
g, labels, group = priorities.trained_on(records, pair)
some = (group == 0) | (np.arange(len(g)) % 3 == 0)
g, labels, group = g[some], labels[some], group[some]
step, b, sizes = first_step(g, labels, group, eta, beta)
library, _ = mixtures.signed_means(g, labels, group)
assert np.allclose(b, library, rtol=1e-10)

# %% [markdown]
# We compare with automatic differentiation of the loss through the full softmax. The vocabulary has the rows of Yes and No, and 48 random rows for other tokens.


# %%
def autograd_step(g, labels, unembedding, eta, beta):
    """The change of the unembedding (V, d); token 0 is Yes, token 1 No."""
    states, start = torch.tensor(g), torch.tensor(unembedding)

    def log_ratio(w):
        log_p = (states @ w.T).log_softmax(-1)
        return torch.tensor(labels) * (log_p[:, 0] - log_p[:, 1])

    w = start.clone().requires_grad_()
    margins = beta * (log_ratio(w) - log_ratio(start))
    loss = -torch.nn.functional.logsigmoid(margins).mean()
    return -eta * torch.autograd.grad(loss, w)[0].numpy()


# %%
others = np.random.default_rng(0).standard_normal((48, g.shape[1]))
rows = np.concatenate([records.states(pair[0]).rows, others])
change = autograd_step(g, labels, rows, eta, beta)
assert abs(change[:2] - [step, -step]).max() < 1e-12 * abs(step).max()
assert abs(change[2:]).max() < 1e-12 * abs(step).max()
recorded = priorities.autograd_step(g, labels, rows, eta, beta)
assert abs(change - recorded).max() < 1e-12 * abs(step).max()
equal = np.linalg.norm(eta * beta / 4 * b.mean(0) - step)
print(f"sizes {sizes}; δ₁ as proposed: relative error below 1e-12")
print(f"equal weights, (19): error {equal / np.linalg.norm(step):.2f}")

# %% [markdown]
# **Break it.** The second printed line shows the relative error of the paper's (19) where its assumption of equal sizes
# does not hold. In a mixture a behavior has a weight proportional to its number of statements. Nothing makes DPO fair to small behaviors.

# %% [markdown]
# (ev-rise)=
# ### The constant of (24)
#
# The paper ends its derivation with $\frac{\beta^2\eta}4\,\bar b\cdot b_j$ for the average increase of the logits. Putting
# (21) into (23) gives $\frac{\beta\eta}4$ instead. The second $\beta$ belongs to the *margins* $m$, which are $\beta$
# times the logit differences. We compare both constants with the measured increase:

# %%
logits = labels * (g @ (change[0] - change[1]))
rise = np.bincount(group, logits) / sizes
formula = beta * eta / 4 * b @ (sizes @ b / sizes.sum())
assert abs(rise - formula).max() < 1e-12 * abs(formula).max()
assert np.allclose(formula, mixtures.logit_gains(b, sizes, eta, beta))
print("measured increase (22):", rise.round(5))
print("(βη/4) b̄·b̂_j:          ", formula.round(5))
print("(24), (β²η/4) b̄·b̂_j:   ", (beta * formula).round(7))

# %% [markdown]
# The paper is right that the increase is proportional to $\bar b\cdot b_j$. The correct constant
# is $1/\beta$ times its constant.

# %% [markdown]
# (ev-first-fall)=
# ### From logits to losses
#
# The paper's experiments show losses. The decrease of a loss is not quite proportional to the increase of the logits:
#
# ```{prf:proposition} The first decrease of each loss
# :label: prop-first-fall
#
# After the first step of {prf:ref}`prop-first-step` the loss $L_j$ of behavior $j$ satisfies
#
# $$\frac{\beta^2\eta}8\,\bar b\cdot\hat b_j - \frac{\beta^2}2\cdot\frac1{n_j}\sum_{i\in j}\big(g(x_i)\cdot\delta_1\big)^2 \;\le\; \log2 - L_j(1) \;\le\; \frac{\beta^2\eta}8\,\bar b\cdot\hat b_j .$$
# ```
#
# `````{dropdown} Proof
# Let $f(m) = \log 2 + \log\sigma(m)$ be the loss decrease of one statement. Then $f(0) = 0$, $f'(m) = \sigma(-m)$, so
# $f'(0) = \frac12$, and $f''(m) = -\sigma(m)\sigma(-m) \in [-\frac14, 0)$. By Taylor's theorem
#
# $$\frac m2 - \frac{m^2}8 \le f(m) \le \frac m2 \qquad\text{for all } m .$$
#
# Take the mean over behavior $j$ of $m_i = 2\beta s_i\,g(x_i)\cdot\delta_1$. The mean of $m_i/2$ is
# $\frac\beta2\hat b_j\cdot\delta_1 = \frac{\beta^2\eta}8\,\bar b\cdot\hat b_j$, and $m_i^2/8 = \frac{\beta^2}2\,(g(x_i)\cdot\delta_1)^2$ as
# $s_i^2 = 1$. ∎
# `````
#
# The next term of the Taylor series of $f$ says how tight the lower bound is:

# %%
m = sympy.symbols("m", real=True)
decrease = sympy.log(2) - sympy.log(1 + sympy.exp(-m))
series = sympy.series(decrease, m, 0, 6)
print("f(m) =", series)
assert sympy.expand(series.removeO() - m / 2 + m**2 / 8 - m**4 / 192) == 0

# %% [markdown]
# There is no cubic term, so the lower bound and the true value differ only by a fourth power of the margins. The next cell takes one step of
# gradient descent on each of the two pairs of Figure 5, with this book's $\eta$, and evaluates both bounds. By the proof the upper bound is the mean of
# $m_i/2$, and the lower bound is the mean of $m_i/2 - m_i^2/8$:

# %%
table = {}
for both in shared.PAIRS[config.tier]:
    g, labels, group = priorities.trained_on(records, both)
    step, _, _ = first_step(g, labels, group, eta, beta)
    bounds = mixtures.first_loss_decrease(g, labels, group, eta, beta)
    for j, behavior in enumerate(both):
        x, s = g[group == j], labels[group == j]
        m = 2 * beta * s * (x @ step)
        low, high = (m / 2 - m**2 / 8).mean(), (m / 2).mean()
        found = (np.log(2) - np.logaddexp(0, -m)).mean()
        assert low - 1e-15 <= found <= high + 1e-15
        assert np.allclose([low, found, high], [part[j] for part in bounds])
        along_mean = beta**2 / 2 * (x.mean(0) @ step) ** 2
        row = [low, found, high, (found - low) / high, (high - found) / high]
        table[plots.short(behavior, 30)] = [*row, along_mean / (high - low)]

# %% tags=["hide-input"]
columns = ["lower bound", "log 2 − L(1)", "upper bound"]
columns += ["(value − lower)/upper", "(upper − value)/upper"]
columns += ["due to the mean state"]
pd.DataFrame(table, columns).T.map("{:.3g}".format)

# %% [markdown]
# The lower bound is almost exact. The upper bound is proportional to the priority. It overstates the decrease by the share in the
# column *(upper − value)/upper*. The last column says how much of the difference between the bounds comes from the mean of the states. The
# training split is not quite balanced, so $\delta_1$ has a component along the common mean $\mu$, and a step along $\mu$
# costs $\frac{\beta^2}2(\mu\cdot\delta_1)^2$ for every behavior.
#
# **Break it: unbalanced labels.** We drop No statements until Yes makes up 55 or 60 % of each behavior. The
# priorities $P$ as the paper defines them hardly change. The signed means do change, and so do the losses. Each line shows the priorities of the
# two behaviors and the decrease of their losses, first on the statements that are left, and then on all statements, as if those left had been
# a minibatch:


# %%
def with_share(labels, group, share):
    """Which statements to keep: No dropped until Yes has this ``share``."""
    keep = labels > 0
    for j in (0, 1):
        no = np.flatnonzero((group == j) & (labels < 0))
        yes = ((group == j) & (labels > 0)).sum()
        keep[no[: round(yes * (1 - share) / share)]] = True
    return keep


# %%
g, labels, group = priorities.trained_on(records, pair)
for share in (0.5, 0.55, 0.6):
    keep = with_share(labels, group, share)
    left = g[keep], labels[keep], group[keep]
    step, _, _ = first_step(*left, eta, beta)
    own = mixtures.loss_decreases(step[None], *left, beta)[:, 0]
    every = mixtures.loss_decreases(step[None], g, labels, group, beta)[:, 0]
    level = mixtures.priority_levels(mixtures.mean_differences(*left))
    assert (level > 0).all() and (share == 0.5 or (every < 0).all())
    print(f"Yes {share:.0%}: P {level.round(2)}, decrease", end=" ")
    print(own.round(4), every.round(4))

# %% [markdown]
# On the statements that are left, both losses decrease far more than with balanced labels, and about equally. The step has learned that Yes is
# the more frequent answer, which no $b_j$ shows. On all statements the same step *increases* both losses, although both priorities are positive.
# (At the smoke tier the table of the bounds already has such a case: the sample's split is unbalanced by a few statements, and that is enough.)
# The minibatches of Figure 5 are drawn without regard to labels, so this happens in them by chance.

# %% [markdown]
# (ev-priority)=
# ## What equation (5) says, and what it gets wrong
#
# The paper defines the priority level of behavior $j$ as
#
# $$P_j = \frac{\bar b\cdot b_j}{\|\bar b\|\,\|b_*\|}, \qquad b_* = \arg\max_i\|b_i\|. \tag{5}$$
#
# The numerator is the inner product of {prf:ref}`prop-first-step`, and only the numerator decides the order of the behaviors. For behaviors of
# equal size the definition implies that $|P_j| \le \|b_j\|/\|b_*\| \le 1$, and that the mean of all $P_j$ is $\|\bar b\|/\|b_*\| > 0$, so at
# least one is positive. Here is (5) as code. The examples in the plane show four things that one may expect of (5), but that do not hold:


# %%
def priority_levels(b):
    """Equation (5) for the rows b_j, behaviors of equal size."""
    mean, longest = b.mean(0), np.linalg.norm(b, axis=1).max()
    return b @ mean / (np.linalg.norm(mean) * longest)


for vectors in ([(3, 0), (-2, 2), (-2, -1.9)], [(3, 0), (0, 2.5), (0, 2.5)]):
    level = priority_levels(np.array(vectors, float))
    assert np.allclose(level, mixtures.priority_levels(np.array(vectors)))
    print(f"b = {vectors}: P =", level.round(3))
try:
    mixtures.priority_levels(np.array([(1.0, 0.0), (-1.0, 0.0)]))
except InputError as problem:
    print(problem)
sizes, vectors = np.array([100, 400]), np.array([(3.0, 0.0), (0.0, 2.0)])
print("P =", priority_levels(vectors).round(2), "for sizes", sizes)
print("increases", mixtures.logit_gains(vectors, sizes, 1.0, 1.0))

# %% [markdown]
# - $P_j$ can be **negative**. In the first example this happens to the behavior with the longest $b$: the first step *unlearns* it.
# - The behavior with the **longest** $b$ need not have the highest priority. In the second example two shorter vectors
#   agree with each other and outvote it.
# - Where the behaviors cancel, $\bar b = 0$, the priority level is **undefined**, and the first step is zero.
# - With **unequal sizes** (5) uses the wrong $\bar b$, so it can rank wrongly. In the last line the small behavior has the higher $P$, and the
#   large one has the larger increase.

# %% [markdown]
# (ev-pairs)=
# ### Two behaviors: length decides, the angle does not
#
# The paper remarks that lengths and angles both play a role. For the levels this is true. But
# its experiments are about pairs, and about which loss decreases faster and by how much. There the angle
# does not matter:
#
# ```{prf:proposition} Pairs
# :label: prop-pair
#
# For two equally large behaviors with $\bar b \ne 0$,
#
# $$P_1 - P_2 = \frac{\|b_1\|^2 - \|b_2\|^2}{2\,\|\bar b\|\,\|b_*\|},$$
#
# so the behavior with the longer difference of means has the higher priority, at every angle. Let
# $\|b_2\| = \rho\,\|b_1\|$ with $\rho < 1$, and let $\vartheta$ be the angle between $b_1$ and $b_2$. Then the gap is
# $(1 - \rho^2)/\sqrt{1 + 2\rho\cos\vartheta + \rho^2}$, from $1 - \rho$ at $\vartheta = 0$ to $1 + \rho$ at $\vartheta = \pi$. (For
# $\rho = 1$ it is 0 at every angle at which it is defined.) In
# balanced classes the upper bounds of {prf:ref}`prop-first-fall` differ by
#
# $$\frac{\beta^2\eta}{16}\,\big(\|b_1\|^2 - \|b_2\|^2\big),$$
#
# which does not depend on the angle.
# ```
#
# `````{dropdown} Proof
# $\bar b\cdot(b_1 - b_2) = \frac12(b_1 + b_2)\cdot(b_1 - b_2) = \frac12(\|b_1\|^2 - \|b_2\|^2)$. For the first two claims, divide by $\|\bar b\|\|b_*\|$, with
# $2\|\bar b\| = \|b_1\|\sqrt{1 + 2\rho\cos\vartheta + \rho^2}$, which decreases from $(1 + \rho)\|b_1\|$ to $(1 - \rho)\|b_1\|$ and is positive for $\rho < 1$.
# For the last claim, multiply by $\frac{\beta^2\eta}8$. ∎
# `````
#
# So the *priority gap* $P_1 - P_2$ of a pair mixes two quantities. The first is how different the lengths are. It determines the gap between
# the bounds of the losses. The second is how much the two behaviors oppose each other. It does not affect this gap. The angle changes how
# much both losses decrease **together**: the sum of their decreases is at most $\frac{\beta^2\eta}{4}\|\bar b\|^2$. So the priority gap measures the gap of the losses
# *relative* to their decrease, up to a factor that depends on the pair: with $F_j = \frac{\beta^2\eta}8\,\bar b\cdot b_j$,
# $\frac{F_1 - F_2}{F_1 + F_2} = (P_1 - P_2)\,\frac{\|b_*\|}{2\|\bar b\|}$.
#
# {numref}`fig-angle` shows four angles, with the same two lengths and so the same
# gap between the bounds of the first decrease. The behaviors are Gaussian clouds with exactly the means $\pm b_j/2$, and training is plain gradient descent with $\beta = 1$:


# %%
def two_clouds(b, n=200, d=8):
    """Two behaviors of n states each, with exactly the means ±b_j/2."""
    labels, group = np.tile([1, -1], n), np.repeat([0, 1], n)
    g = np.random.default_rng(0).standard_normal((2 * n, d))
    for j, side in ((0, 1), (0, -1), (1, 1), (1, -1)):
        at = (group == j) & (labels == side)
        g[at] += side * np.append(b[j], np.zeros(d - 2)) / 2 - g[at].mean(0)
    return g, labels, group


def descend(g, labels, group, eta, steps=60):
    """Losses (2, steps + 1) of two behaviors trained together, β = 1."""
    a, delta, losses = labels[:, None] * g, np.zeros(g.shape[1]), []
    for _ in range(steps + 1):
        margins = 2 * a @ delta
        loss = np.logaddexp(0, -margins)
        losses.append([loss[group == j].mean() for j in (0, 1)])
        delta = delta + eta * (expit(-margins) @ a) / len(a)
    return np.array(losses).T


# %%
def at_angle(angle, first=3.0, second=2.0):
    """P_1, P_2 and the losses of two behaviors with this angle (degrees)."""
    turn = np.deg2rad(angle)
    b = np.array([(1, 0), (np.cos(turn), np.sin(turn))])
    b *= np.array([[first], [second]])
    mixture = two_clouds(b)
    assert np.allclose(mixtures.mean_differences(*mixture)[:, :2], b)
    return priority_levels(b), descend(*mixture, 0.2), mixture


for angle in (30, 75, 120, 165):
    (first, second), losses, mixture = at_angle(angle)
    print(
        f"{angle:3}°: P = {first:.2f}, {second:.2f}; gap {first - second:.2f}"
    )
a = mixture[1][:, None] * mixture[0]
path = last_layer.gradient_descent(a, 0.2, 1.0, 60)
library = np.log(2) - mixtures.loss_decreases(path, *mixture, 1.0)
assert np.allclose(losses, library, rtol=0, atol=1e-12)

# %% mystnb={"figure": {"caption": "Loss of two behaviors against step: the same two lengths, four angles.", "name": "fig-angle"}, "image": {"alt": "Four panels of loss against step for two behaviors at angles of 30, 75, 120 and 165 degrees. In each, the loss of the longer behavior decreases faster. The wider the angle, the less the loss of the shorter behavior decreases; at 165 degrees it increases."}} tags=["hide-input"]
fig, axes = plt.subplots(2, 2, figsize=(6.8, 5.6), sharex=True, sharey=True)
for ax, angle in zip(axes.flat, (30, 75, 120, 165), strict=True):
    for loss, name in zip(at_angle(angle)[1], (3, 2), strict=True):
        ax.plot(loss, label=f"‖b‖ = {name}")
    ax.set_title(f"angle {angle}°")
plt.setp(axes[1], xlabel="step")
plt.setp(axes[:, 0], ylabel="loss")
plots.legend_below(fig, axes[0, 0])
plt.show()

# %% [markdown]
# In JupyterLab the next cell has sliders for both lengths and the angle, and a button that draws.

# %% tags=["nbval-ignore-output", "not-stored", "remove-output"]
from ipywidgets import interact_manual


def draw(first=3.0, second=2.0, angle=90):
    level, losses, _ = at_angle(angle, first, second)
    _, ax = plt.subplots()
    for j in (0, 1):
        ax.plot(losses[j], label=f"behavior {j + 1}: P = {level[j]:.2f}")
    ax.set(xlabel="step", ylabel="loss")
    ax.legend()
    plt.show()


_ = interact_manual(
    draw, first=(0.5, 4.0), second=(0.5, 4.0), angle=(0, 170, 10)
)

# %% [markdown]
# (ev-overtaken)=
# ### After the first step, (5) says nothing
#
# $P_j$ depends only on the differences of means. What happens later depends on the whole distribution. Can the behavior with the higher priority
# have the higher loss later on? Yes. Here are two mixtures in the plane, each with one cause ({numref}`fig-overtaken`). In both, $b_1$ and $b_2$ are orthogonal, with $\|b_1\| = 2$ and $\|b_2\| = 1.5$.
#
# - **Overlap.** One statement in four of behavior 1 lies on the wrong side. The vector $b_1$ is still the longer one, so the loss of behavior 1
#   decreases faster at the start. But it cannot fall below the loss of the best guess for statements that overlap. Behavior 2 has a shorter $b_2$ and no overlap.
# - **Common mean.** All states share a long mean $\mu$, and $b_1$ points along it, as if Yes statements had longer states. The first step
#   moves along $\mu$, where the curvature is large: what helps one side hurts the other almost
#   as much. After a few steps behavior 1 has nothing left to gain, while the loss of behavior 2, orthogonal to $\mu$, continues to decrease.

# %%
labels, group = np.tile([1, -1], 4), np.repeat([0, 1], 4)
half = np.repeat([(1.0, 0.0), (0.0, 0.75)], 4, axis=0)  # s g = b_j/2
wrong = half.copy()
wrong[:4] = (2, 0), (2, 0), (2, 0), (-2, 0)  # the same mean
mixed = {
    "overlap": (labels[:, None] * wrong, 0.1),
    "common mean": ((20, 0) + labels[:, None] * half, 1 / 400),
}
overtaken = {}
for name, (states, rate) in mixed.items():
    b = mixtures.mean_differences(states, labels, group)
    level, loss = priority_levels(b), descend(states, labels, group, rate)
    behind = loss[0] > loss[1] + 1e-12
    assert np.allclose(b, [(2, 0), (0, 1.5)]) and level[0] > level[1]
    assert loss[0, 1] < loss[1, 1] and behind[-1]
    overtaken[name] = loss
    print(f"{name}: P = {level.round(2)}, overtaken at step {behind.argmax()}")

# %% mystnb={"figure": {"caption": "Loss against step: the behavior of higher priority is overtaken, for two reasons.", "name": "fig-overtaken"}, "image": {"alt": "Two panels of loss against step, each with two behaviors. In both, the loss of the behavior with higher priority decreases faster at the start, then flattens, and the other loss crosses it and keeps decreasing."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2)
for ax, (name, losses) in zip(axes, overtaken.items(), strict=True):
    for loss, label in zip(losses, ("higher P", "lower P"), strict=True):
        ax.plot(loss, label=label)
    ax.set(title=name, xlabel="step", ylabel="loss")
plots.legend_below(fig, axes[0])
plt.show()

# %% [markdown]
# So (5) is a statement about the start of training. How long it stays right depends on the data, and is an empirical question.

# %% [markdown]
# ## Figure 5: two pairs
#
# The paper trains two pairs of behaviors, the last layer only, on minibatches from the union: (a) "with a larger priority gap", (b) "with a smaller
# priority gap". It claims that the loss of the behavior with higher priority decreases faster, and that the losses of the pair with the larger gap lie further apart. {numref}`fig-pairs`
# shows the same pairs under our model (at the smoke tier, two pairs of the sample), trained as in {ref}`case-study`. Lines are medians over seeds, and bands run from the 5 % to the 95 % quantile.

# %%
losses = [
    priorities.figure_5_run(records, which).arrays["loss"] for which in (0, 1)
]
levels, rows = [], []
for which, both in enumerate(shared.PAIRS[config.tier]):
    b = mixtures.mean_differences(*priorities.trained_on(records, both))
    length, level = np.linalg.norm(b, axis=1), priority_levels(b)
    angle = np.degrees(np.arccos(b[0] @ b[1] / length.prod()))
    apart = np.abs(losses[which][0] - losses[which][1]).mean()
    for j in (0, 1):
        name = plots.short(both[j], 34)
        row = length[j], angle, level[j], abs(level[0] - level[1]), apart
        rows.append(("ab"[which], name, *row))
    levels.append(level)
columns = ["pair", "behavior", "‖b‖", "angle (°)", "P", "gap |P₁ − P₂|"]
table = pd.DataFrame(rows, columns=[*columns, "mean |L₁ − L₂|"])

# %% mystnb={"figure": {"caption": "Training loss of two behaviors trained together, against step (the paper's Figure 5).", "name": "fig-pairs"}, "image": {"alt": "Two panels of training loss against step, pair (a) left and pair (b) right, each with two behaviors and a band over seeds. All start at log 2 and jump upwards in single steps."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(6.8, 4))
for which, both in enumerate(shared.PAIRS[config.tier]):
    ax, steps_taken = axes[which], np.arange(losses[which].shape[1])
    for behavior, loss in zip(both, losses[which], strict=True):
        style = dict(color=plots.color(behavior), lw=1.2)
        name = plots.short(behavior, 36)
        plots.band(ax, steps_taken, loss, label=name, **style)
    ax.set(title=f"pair ({'ab'[which]})", xlabel="step", ylabel="training loss")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2))
plt.show()

# %% [markdown]
# The table has the priority levels. Its last column is the distance of the two losses, averaged over steps and seeds. Below it, the runs are summarized by the share of steps at which
# the behavior with the higher priority has the lower loss, and by the ratio of the gaps of the two pairs.

# %%
lead = []
for level, loss in zip(levels, losses, strict=True):
    high, low = loss[level.argmax()], loss[level.argmin()]
    lead.append(np.median((high < low)[1:].mean(0)))
gap = [abs(level[0] - level[1]) for level in levels]
apart = [np.abs(loss[0] - loss[1]).mean(0) for loss in losses]
assert np.allclose(gap[0] / gap[1], priorities.gaps_in_order(records, "f5-a"))
assert np.allclose(apart[0] / apart[1], priorities.paper_gaps(records, "f5-a"))

# %% tags=["hide-input"]
display(table.set_index(["pair", "behavior"]).round(3))
display(
    Markdown(
        "The behavior of higher priority has the lower loss at "
        f"**{lead[0]:.0%}** of the steps of pair (a) and **{lead[1]:.0%}** of "
        "the steps of pair (b), in the median over seeds. The priority gap of "
        f"pair (a) is **{gap[0] / gap[1]:.2f}** times the gap of pair (b). The "
        f"gap of its losses is **{np.median(apart[0] / apart[1]):.2f}** times "
        "the gap of the losses of pair (b)."
    )
)

# %% [markdown]
# Read the table with {prf:ref}`prop-pair`. The paper calls (a) the pair with the larger gap. Whether that holds is a
# property of the *model*: it depends on the two lengths $\|b_j\|$, which come from hidden states. At the book tier the order of the
# two gaps is the opposite of the paper's. Under this model subscribes-to-Islam has the longest $b_j$ of all recorded behaviors, and desire-to-influence-world
# one of the shorter ones. So the paper's pair (b) has the larger gap of priorities, and its losses lie further apart too. Hence claim F5b is *not reproduced* as it stands, and neither is the
# order of the gaps (F5c). The idea behind F5b is that a larger gap of priorities shows as a larger gap of losses. Claim F5d tests this idea with the gaps of this model. Two pairs are little evidence.
# All pairs follow below.
#
# The jumps, and losses above $\log2$, are single steps on unbalanced minibatches, as in {ref}`case-study`: a step along the common mean
# harms both behaviors alike.
#
# ### How much of the run does the first step predict?
#
# If nothing slowed training down, $t$ steps would achieve $t$ times the decrease of the first. The table has for each behavior these columns:
#
# - *first step: predicted* is the bound of {prf:ref}`prop-first-fall`, $\frac{\beta^2\eta}8\,\bar b\cdot\hat b_j$. The *descent / predicted* after it is the decrease by one step of
#   gradient descent, divided by this bound;
# - *all steps: predicted* is the bound times the number of steps. The *descent / predicted* after it is the decrease by all steps of gradient descent, divided by this product;
# - *descent / linear regime* is the decrease by all steps of gradient descent, divided by the decrease of the *linear regime* (`theory.linear_regime`), which includes the
#   curvature and needs no training either;
# - *minibatches / descent* is the median decrease with minibatches, divided by the decrease by gradient descent.

# %%
table, rises = {}, []
for which, both in enumerate(shared.PAIRS[config.tier]):
    arrays = priorities.figure_5_run(records, which).arrays
    mixture = priorities.trained_on(records, both)
    _, b, sizes = first_step(*mixture, eta, beta)
    bound = beta**2 * eta / 8 * b @ (sizes @ b / sizes.sum())
    for j, behavior in enumerate(both):
        descent = np.log(2) - arrays["descent"][j].astype(float)
        linear = np.log(2) - arrays["linear"][j].astype(float)
        minibatch = np.log(2) - np.median(arrays["loss"][j, -1])
        row = [bound[j], descent[1] / bound[j], config.steps * bound[j]]
        row += [descent[-1] / row[-1], descent[-1] / linear[-1]]
        table[plots.short(behavior, 30)] = [*row, minibatch / descent[-1]]
        first = arrays["margin"][j, 1] / (2 * bound[j])  # over seeds
        several = len(first) > 1
        error = np.std(first, ddof=1) if several else np.nan
        rises.append((first.mean(), error / len(first) ** 0.5))

# %% tags=["hide-input"]
columns = ["first step: predicted", "descent / predicted"]
columns += ["all steps: predicted", "descent / predicted "]
columns += ["descent / linear regime", "minibatches / descent"]
display(pd.DataFrame(table, columns).T.map("{:.3g}".format))
rises = ", ".join(f"{rise:.2f} ± {error:.2f}" for rise, error in rises)
display(
    Markdown(
        "Increase of the margins by the first minibatch, divided by its "
        "prediction (β²η/4) b̄·b̂, mean over seeds ± standard error, in the "
        f"order of the table: {rises}."
    )
)

# %% [markdown]
# One step of gradient descent achieves the prediction, less what the curvature costs. Over the run, $t$ times the first step overstates the
# decreases. Is the cause the saturation of the margins or the curvature of the states? The linear regime includes the curvature but not the saturation, and its decreases equal the measured ones, or
# come close to them. So the cause is the curvature. Along the common mean it matters within a few steps, along the $b_j$ themselves later.
# A single minibatch says little about a behavior: on average its margins increase as predicted (within a few standard errors), but the increase varies widely over seeds.

# %% [markdown]
# (ev-all-pairs)=
# ## All pairs
#
# Two pairs, picked by hand, show only that something can happen. Now we take every pair of the behaviors whose states are recorded,
# and train it by gradient descent on all training statements of both. {numref}`fig-matrix` shows their priority gaps and
# angles; the columns are numbered like the rows. An angle above 90° is a *conflict*: a step for one behavior is a step against the other.

# %%
everyone = shared.all_behaviors(config)
mixture = priorities.trained_on(records, everyone)
b = mixtures.mean_differences(*mixture)
signed, _ = mixtures.signed_means(*mixture)
length = np.linalg.norm(b, axis=1)
cosine = b @ b.T / np.outer(length, length)
run = priorities.pairs_run(records).arrays
pairs, (i, j) = run["pairs"], run["pairs"].T
decreases = np.log(2) - run["loss"][:, :, 1:].mean(2, dtype=float)
P = np.array([priority_levels(b[both]) for both in pairs])
P_signed = np.array([priority_levels(signed[both]) for both in pairs])
gaps, angles = np.full((2, len(b), len(b)), np.nan)
gaps[i, j] = gaps[j, i] = np.abs(P[:, 0] - P[:, 1])
angles[i, j] = angles[j, i] = np.degrees(np.arccos(cosine[i, j]))
mean_length = np.linalg.norm(b[i] + b[j], axis=1) / 2
longest = np.maximum(length[i], length[j])
by_length = (length[i] ** 2 - length[j] ** 2) / (2 * mean_length * longest)
assert np.allclose(P[:, 0] - P[:, 1], by_length), "the proposition on pairs"

# %% mystnb={"figure": {"caption": "Priority gaps and angles of all pairs of behaviors.", "name": "fig-matrix"}, "image": {"alt": "Two square heat maps over the recorded behaviors, with a number in each cell: above, the priority gap of each pair; below, the angle between their differences of means. Most angles lie below or near 90 degrees, some above."}} tags=["hide-input"]
about = ("priority gap |P₁ − P₂|", gaps, ".2f")
about = (about, ("angle between b₁ and b₂ (°)", angles, ".0f"))
names, ticks = [plots.short(name, 22) for name in everyone], range(len(b))
numbers = [f"{k + 1}" for k in ticks]
fig, axes = plt.subplots(2, 1, figsize=(6.8, 8))
for ax, (title, values, form) in zip(axes, about, strict=True):
    drawn = ax.imshow(values, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(np.nan_to_num(values)):
        hue = "white" if drawn.norm(value) < 0.6 else "black"
        label = f"{value:{form}}" if row != column else ""
        ax.text(column, row, label, ha="center", va="center", color=hue, size=9)
    rows = [f"{name} {k}" for name, k in zip(names, numbers, strict=True)]
    ax.set(title=title, xticks=ticks, yticks=ticks)
    ax.set(xticklabels=numbers, yticklabels=rows)
    ax.grid(False)
plt.show()

# %% [markdown]
# What predicts which behavior of a pair learns more over the run, and by how much? We compare four predictors. Each is the value of the first behavior minus the value of the second. The
# measured *gap* is the difference of their loss decreases, averaged over the steps, and the *relative gap* divides it by the sum of the two decreases:

# %%
found = pd.DataFrame(
    {
        "P (5)": P[:, 0] - P[:, 1],
        "b̄·b, not normalized": (length[i] ** 2 - length[j] ** 2) / 2,
        "length ‖b‖": length[i] - length[j],
        "P of the signed means b̂": P_signed[:, 0] - P_signed[:, 1],
        "gap": decreases[:, 0] - decreases[:, 1],
    }
)
found["relative gap"] = found["gap"] / decreases.sum(1)
predictors = found[list(found)[:4]]
ranks = found.abs().corr(method="spearman")[["gap", "relative gap"]]
right = np.sign(predictors).eq(np.sign(found["gap"]), axis=0)
table = ranks.loc[list(predictors)].add_prefix("rank correlation, ")
table.insert(0, "ordered right", right.mean())
wrong = found["gap"][~right["P (5)"]].abs().max() / found["gap"].abs().max()
conflicts = (cosine[i, j] < 0).sum()

# %% mystnb={"figure": {"caption": "All pairs: gap of the loss decreases against two predictors.", "name": "fig-scatter"}, "image": {"alt": "Two scatter plots, a point a pair. Left, the relative gap of the loss decreases against the priority gap; right, the gap of the mean losses against the difference of squared lengths. In both the points rise together; on the right they lie close to a curve through the origin."}} tags=["hide-input"]
fig, (left, right_ax) = plt.subplots(1, 2)
size = found.abs()
left.plot(size["P (5)"], size["relative gap"], "o")
left.set(xlabel="|P₁ − P₂|", ylabel="relative gap of the decreases")
squares = size["b̄·b, not normalized"]
right_ax.plot(squares, size["gap"], "o", label="a pair")
# t times the first step, averaged over steps t = 1 … T.
slope = beta**2 * eta / 8 * (config.steps + 1) / 2
ends = np.array([0, squares.max()])
right_ax.plot(ends, slope * ends, "--", label="predicted by the first step")
right_ax.set(xlabel="|‖b₁‖² − ‖b₂‖²|/2", ylabel="gap of the mean losses")
plots.legend_below(fig, right_ax)
plt.show()

# %% [markdown]
# {numref}`fig-scatter` shows what {prf:ref}`prop-pair` says. The priority gap (left) goes with the gap *relative* to the decreases. The difference
# of squared lengths (right) goes with the gap itself, in nats. Where points lie below the line, the losses decrease less than $t$ times the first step, as in the two pairs above. The table shows for each predictor the share of pairs that it orders
# correctly (which behavior learns more over the run), and its rank correlation with the size of the gap.

# %% tags=["hide-input"]
display(table.round(3))
display(
    Markdown(
        f"{len(found)} pairs, of which {conflicts} in conflict. (5) orders "
        f"{(~right['P (5)']).sum()} wrongly; their gap is at most "
        f"{np.nan_to_num(wrong):.1%} of the largest. (The pairs share "
        "behaviors, so their number overstates the evidence.)"
    )
)

# %% [markdown]
# Does (5) predict which behavior of a pair learns faster? Nearly always. It does so exactly as well as the length $\|b_j\|$ alone, because in pairs the two give the same
# order. Does it predict by how much? For the gap relative to the decreases, the priority gap is the best of the four predictors or close to it. For the gap itself it is better to
# omit the normalization.
#
# The last row replaces $b_j$ by the signed mean $\hat b_j$, which is *exact for the first step*. Over the run this makes little difference. Where the split is
# visibly unbalanced (the sample at the smoke tier), it is far worse: the signed mean contains a share of the common mean, along which nothing is left to gain after a few steps. So where classes are not
# balanced, the paper's choice of the difference of means is good for the run, but not for the first step, for which it is proven.

# %% [markdown]
# ## All behaviors at once
#
# Pairs cannot distinguish priority from length. A mixture of many behaviors can, since there a behavior also gains from the behaviors that agree with it. We train all
# recorded behaviors together by gradient descent. Each row of the table is a behavior; *decrease* is the decrease of its loss:

# %%
fallen = np.log(2) - priorities.all_run(records).arrays["loss"].astype(float)
columns = {
    "P": priority_levels(b),
    "P of the signed means": priority_levels(signed),
    "‖b‖": length,
    "decrease, first step": fallen[:, 1],
    "decrease, all steps": fallen[:, -1],
    "mean decrease": fallen[:, 1:].mean(1),
}
names = [plots.short(name, 34) for name in everyone]
table = pd.DataFrame(columns, index=names)
worse = (table["decrease, all steps"] < 0).sum()

# %% tags=["hide-input"]
display(table.sort_values("P", ascending=False).map("{:.3g}".format))
display(
    Markdown(
        "Behaviors whose loss is higher after all steps than before training: "
        f"**{worse}**; with a negative priority: **{(table['P'] < 0).sum()}**. "
        "Rank correlations over the behaviors:"
    )
)
table.corr(method="spearman").iloc[:3, 3:].round(2)

# %% [markdown]
# Here (5) says more than the length: it orders the decreases over the run clearly better than the length does. At the book tier it also identifies, before training, the behavior whose loss
# training *increases*: its $b_j$ points against the others. Whether the signed means order the first step better than (5) does depends on how unbalanced the split is.

# %% [markdown]
# ## What was shown
#
# - The first step on a mixture is $\frac{\eta\beta}4\bar b$, with weights $n_j/N$. The paper's (19) to (21) hold for equal sizes and balanced classes.
# - The constant of (24) is $\frac{\beta\eta}4$. For the losses, the priority gives an upper bound, and what the bound leaves out is mostly the effect of the common mean.
# - (5) can be negative or undefined, and for three or more behaviors its order need not be the order of the lengths. For two behaviors it is, and the gap between the bounds of their losses does not depend on the angle.
# - (5) says nothing about later steps, and there are mixtures where it is wrong there. On real hidden states it orders whole runs well.
# - The paper's pair with the smaller gap has the larger one under this model. The losses follow the model's gaps.
#
# The verdicts are computed by the tests of `claims.yml`. We set the tests of F5a to F5f and of T2d, and their bounds, before we saw their values, with three
# exceptions. F5a first compared the areas above the two curves relative to their sum. A first run showed that the sum can be
# negative, so we changed the test to the share of steps. We added F5c, the order of the gaps, after we had seen the gaps. We added T2d after we had seen its table, with the bounds that F3
# has. The wording of F5e was "in every pair" before; we softened it to what its test requires.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("03_priorities", records)))

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-priority-mean
#
# Show that $|P_j| \le \|b_j\|/\|b_*\|$, and that in a mixture of equally large behaviors with $\bar b \ne 0$ the first step increases the logits of at least one of them. Can it decrease the logits of
# all others?
# ```
#
# ```{solution} ex-priority-mean
# :class: dropdown
#
# Cauchy–Schwarz: $|\bar b\cdot b_j| \le \|\bar b\|\|b_j\|$. The mean of $\bar b\cdot b_j$ over $j$ is $\|\bar b\|^2 > 0$, so one of them is positive.
# Yes: $b = (3, 0), (-1, 0), (-1, 0)$ has $\bar b = (\frac13, 0)$, and both others are negative. The loss of the union still decreases, for small $\eta$.
# ```
#
# ```{exercise}
# :label: ex-horizon
#
# By the proof of {prf:ref}`thm-a`, for $\kappa \le 4$ gradient descent on a mixture satisfies $\|2\delta_t - x_t u\| \le \rho_t x_t$ with $u = \bar b/\|\bar b\|$,
# $x_t = \eta\beta t\|\bar b\|/2$, and $\rho_t = \kappa_b(t-1)/4$. Up to which step is it *certain*, without training, that behavior 1 has the larger mean margin of the two? Compute this step for
# the pairs of Figure 5 (`theory.signal` has $u$, and `slack` is $\rho_t$).
# ```
#
# ````{solution} ex-horizon
# :class: dropdown
#
# The mean margins are $\bar m_j(t) = \beta\,\hat b_j\cdot\delta_t$, so
# $\bar m_1 - \bar m_2 \ge \frac{\beta x_t}2\big((\hat b_1 - \hat b_2)\cdot u - \rho_t\,\|\hat b_1 - \hat b_2\|\big)$: positive as long as
# $\rho_t < \cos(\hat b_1 - \hat b_2, \bar b)$. With unbalanced classes $\bar b$ has a component along the common mean, which makes $\kappa_b$ large and the horizon short.
#
# ```python
# from dpo_helpers import theory
#
# for both in shared.PAIRS[config.tier]:
#     g, labels, group = priorities.trained_on(records, both)
#     signed, _ = mixtures.signed_means(g, labels, group)
#     s = theory.signal(g, labels)
#     apart = signed[1] - signed[0]
#     cosine = abs(apart @ s.unit) / np.linalg.norm(apart)
#     t = np.arange(1, 1000)
#     print(both, t[s.slack(eta, config.beta, t) < cosine].max())
# ```
# ````
#
# ```{exercise}
# :label: ex-sizes
#
# Two behaviors with orthogonal $b_1, b_2$ and balanced classes have $n_1$ and $n_2$ statements. For which sizes does the first step increase the logits of
# both equally? How would you weight the statements so that every behavior of a mixture gains the same at the first step, if the $b_j$ are orthogonal?
# ```
#
# ```{solution} ex-sizes
# :class: dropdown
#
# $\bar b\cdot b_j = \frac{n_j}N\|b_j\|^2$, so $n_1\|b_1\|^2 = n_2\|b_2\|^2$. Weight each statement of behavior $j$ by $1/(n_j\|b_j\|^2)$: then $\bar b\cdot b_j$ is the same for
# all $j$. Fairness costs speed: the most distinguishable behaviors are slowed down the most.
# ```
#
# **To try.**
#
# - `papermill notebooks/03_priorities.ipynb out.ipynb -p sampling balanced`: every minibatch now has as many Yes as No statements. Which of the jumps in {numref}`fig-pairs` disappear?
# - `papermill notebooks/03_priorities.ipynb out.ipynb -p steps 1000`: ten times as many steps. Do priority levels still order the pairs, and how far below the line of {numref}`fig-scatter` do
#   the points lie now?
# - Choose a pair in conflict from {numref}`fig-matrix`, find its row `k` in `pairs`, and plot `run["loss"][k].T`. Does the loss of the behavior with the shorter $b_j$ decrease?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
