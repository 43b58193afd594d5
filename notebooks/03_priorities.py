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
# **You will see** what the first step of DPO does to each behavior of a mixture, exactly and with proof;
# what the paper's *priority level* says, and what it does not; that of two behaviors the one with the
# longer difference of means always has the higher priority, at whatever angle; and how well priorities foretell whole training runs,
# for the pairs of the paper's Figure 5, for all pairs, and for all behaviors at once.
#
# **It takes** twenty-five minutes to read and under a minute to run. **It needs** nothing but the
# recorded hidden states; {ref}`case-study` comes before it.
#
# This page follows the second half of §4.2 of {cite:t}`im2024understanding`: equation (5), Figure 5,
# and Appendix A.3, equations (19) to (24).
#
# ```{admonition} What differs from the paper
# :class: note
# The model and the learning-rate rule are those of {ref}`case-study`. The paper does not print the priority levels of its two pairs; here they
# are computed, under this model, and they turn out to matter.
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
import numpy as np
import pandas as pd
from experiments import priorities, shared
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import mixtures, plots
from dpo_helpers.errors import InputError

config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-first-step)=
# ## The first step on a mixture
#
# Several behaviors are trained together: behavior $j$ brings $n_j$ statements, $N = \sum_j n_j$ in all,
# and gradient descent minimises the mean loss of all $N$. Two vectors belong to each behavior:
#
# $$b_j = \hat\mu_+^j - \hat\mu_-^j, \qquad \hat b_j = \frac2{n_j}\sum_{i\in j} s_i\,g(x_i) = b_j + \frac{n_+^j - n_-^j}{n_j}\,\big(\hat\mu_+^j + \hat\mu_-^j\big).$$
#
# The paper speaks of the difference of means $b_j$. What gradient descent feels is $\hat b_j$, the *pull* of the behavior. They are equal
# for balanced classes; otherwise the pull holds a share of the common mean, which is long.
#
# ```{prf:proposition} The first step
# :label: prop-first-step
#
# For any hidden states, labels, sizes and reference, the first step of gradient descent on the DPO loss of a mixture
# changes the row $W_U[y_+]$ by
#
# $$\delta_1 = \frac{\eta\beta}4\,\bar b, \qquad \bar b = \sum_j \frac{n_j}N\,\hat b_j,$$
#
# the row $W_U[y_-]$ by $-\delta_1$, and no other row. The logit difference between the preferred and the other response of behavior $j$ rises on average by
#
# $$\frac1{n_j}\sum_{i\in j} 2 s_i\,g(x_i)\cdot\delta_1 = \hat b_j\cdot\delta_1 = \frac{\beta\eta}4\,\bar b\cdot\hat b_j .$$
# ```
#
# `````{dropdown} Proof
# By (7) the loss is $\frac1N\sum_i -\log\sigma(m_i)$ with $m_i = \beta s_i\,(w_+ - w_-)\cdot g(x_i)$, where $w_\pm$ are the
# changes of the rows $W_U[y_\pm]$; the normaliser of the softmax cancels, and no other row occurs. As
# $\frac{d}{dm}(-\log\sigma(m)) = -\sigma(-m)$, which is $-\frac12$ at $m = 0$,
#
# $$-\nabla_{w_+} L = \frac1N\sum_i \tfrac12\,\beta s_i\,g(x_i) = \frac\beta4\sum_j\frac{n_j}N\cdot\frac2{n_j}\sum_{i\in j} s_i\,g(x_i) = \frac\beta4\,\bar b,$$
#
# and $-\nabla_{w_-}L$ is its negative. A step of length $\eta$ gives $\delta_1$. The logit difference of statement $i$ changes by
# $s_i(\delta_1 - (-\delta_1))\cdot g(x_i)$; its mean over behavior $j$ is $\hat b_j\cdot\delta_1$. ∎
# `````
#
# The paper has this in (19) to (21) with $\bar b = \frac1m\sum_j b_j$. That needs behaviors of equal size and
# balanced classes; and what (20) and (21) call the gradient is $-\nabla L$. To check, take the first pair of Figure 5,
# cut its second behavior to a third, so that the sizes differ, and let torch differentiate the
# full softmax: the rows of Yes and No, and random rows for other tokens.
#
# `mixture` holds the formulas of this page, `priorities` its runs.

# %%
pair = shared.PAIRS[config.tier][0]
eta, beta = shared.learning_rate(records), config.beta
g, labels, group = priorities.trained_on(records, pair)
some = (group == 0) | (np.arange(len(g)) % 3 == 0)
g, labels, group = g[some], labels[some], group[some]
others = np.random.default_rng(0).standard_normal((48, g.shape[1]))
rows = np.concatenate([records.states(pair[0]).rows, others])

change = priorities.autograd_step(g, labels, rows, eta, beta)
b, sizes = mixtures.signed_means(g, labels, group)
step = eta * beta / 4 * (sizes @ b) / sizes.sum()
assert abs(change[:2] - [step, -step]).max() < 1e-12 * abs(step).max()
assert abs(change[2:]).max() < 1e-12 * abs(step).max()
equal = np.linalg.norm(eta * beta / 4 * b.mean(0) - step)
print(f"sizes {sizes}; δ₁ as proposed: relative error below 1e-12")
print(f"equal weights, (19): error {equal / np.linalg.norm(step):.2f}")

# %% [markdown]
# **Break it.** The second line is the paper's (19) where its assumption of equal sizes does not hold. In a mixture
# a behavior weighs as much as it has statements: nothing makes DPO fair to small ones.

# %% [markdown]
# (ev-rise)=
# ### The constant of (24)
#
# The paper ends its derivation with $\frac{\beta^2\eta}4\,\bar b\cdot b_j$ for the average rise of the logits. Put
# (21) into (23) and it is $\frac{\beta\eta}4$. A second $\beta$ belongs to the *margins* $m$, which are $\beta$
# times the logit differences:

# %%
logits = labels * (g @ (change[0] - change[1]))
rise = np.bincount(group, logits) / sizes
formula = mixtures.logit_gains(b, sizes, eta, beta)
assert abs(rise - formula).max() < 1e-12 * abs(formula).max()
print("measured rise (22):  ", rise.round(5))
print("(βη/4) b̄·b̂_j:        ", formula.round(5))
print("(24), (β²η/4) b̄·b̂_j: ", (beta * formula).round(7))

# %% [markdown]
# The direction of the paper's statement is right: the rise is proportional to $\bar b\cdot b_j$. Its constant
# is too small by a factor of $1/\beta$.

# %% [markdown]
# (ev-first-fall)=
# ### From logits to losses
#
# The paper's experiments show losses. How much a loss falls is not quite what the logits rise:
#
# ```{prf:proposition} The first fall of each loss
# :label: prop-first-fall
#
# After the first step of {prf:ref}`prop-first-step` the loss $L_j$ of behavior $j$ satisfies
#
# $$\frac{\beta^2\eta}8\,\bar b\cdot\hat b_j - \frac{\beta^2}2\cdot\frac1{n_j}\sum_{i\in j}\big(g(x_i)\cdot\delta_1\big)^2 \;\le\; \log2 - L_j(1) \;\le\; \frac{\beta^2\eta}8\,\bar b\cdot\hat b_j .$$
# ```
#
# `````{dropdown} Proof
# Let $f(m) = \log 2 + \log\sigma(m)$, the fall of the loss of one statement. Then $f(0) = 0$, $f'(m) = \sigma(-m)$, so
# $f'(0) = \frac12$, and $f''(m) = -\sigma(m)\sigma(-m) \in [-\frac14, 0)$. By Taylor's theorem
#
# $$\frac m2 - \frac{m^2}8 \le f(m) \le \frac m2 \qquad\text{for all } m .$$
#
# Take the mean over behavior $j$ of $m_i = 2\beta s_i\,g(x_i)\cdot\delta_1$. The mean of $m_i/2$ is
# $\frac\beta2\hat b_j\cdot\delta_1 = \frac{\beta^2\eta}8\,\bar b\cdot\hat b_j$, and $m_i^2/8 = \frac{\beta^2}2\,(g(x_i)\cdot\delta_1)^2$ as
# $s_i^2 = 1$. ∎
# `````
#
# The next term of the series says how tight the lower side is:

# %%
import sympy

m = sympy.symbols("m", real=True)
fall = sympy.log(2) - sympy.log(1 + sympy.exp(-m))
series = sympy.series(fall, m, 0, 6)
print("f(m) =", series)
assert sympy.expand(series.removeO() - m / 2 + m**2 / 8 - m**4 / 192) == 0

# %% [markdown]
# No cubic term: between lower bound and truth there is only a fourth power of the margins. On the real
# behaviors, both pairs of Figure 5, one step of gradient descent with this book's $\eta$:

# %% tags=["hide-input"]
table = pd.DataFrame(priorities.first_falls(records))
low, fallen, high = table.iloc[:3].to_numpy()
assert (low <= fallen + 1e-15).all() and (fallen <= high + 1e-15).all()
table.columns = [plots.short(name, 30) for name in table]
table.T.map("{:.3g}".format)

# %% [markdown]
# The lower bound is all but exact. The upper bound, which is proportional to the priority, overstates the fall by the share in the
# last column but one, and the last column says how much of that comes from the mean of the states: the training split is not
# quite balanced, so $\delta_1$ has a part along the common mean $\mu$, and a step along $\mu$
# costs $\frac{\beta^2}2(\mu\cdot\delta_1)^2$ whatever the behavior.
#
# **Break it: unbalanced labels.** Drop No statements, until Yes makes up 55 or 60 % of each behavior. The
# priorities as the paper defines them hardly change. The pulls do, and so do the losses, those of
# the statements that are left, and those of all statements, as if the others had been a minibatch:


# %%
g, labels, group = priorities.trained_on(records, pair)
for share in (0.5, 0.55, 0.6):
    left = priorities.with_share(g, labels, group, share)
    _, own, _ = mixtures.first_loss_decrease(*left, eta, beta)
    step = priorities.first_step(*left, eta, beta)
    every = mixtures.loss_decreases(step[None], g, labels, group, beta)[:, 0]
    level = mixtures.priority_levels(mixtures.mean_differences(*left)).round(2)
    print(f"Yes {share:.0%}: P {level}, fall", own.round(4), every.round(4))

# %% [markdown]
# The losses of what is left fall by far more than before, and about equally: the step has learned that Yes is the more frequent answer,
# which no $b_j$ shows. On all statements the same step makes both losses *rise*, while both priorities are positive. (At the smoke tier the table above has a case of this without any help: the sample's split is unbalanced by a few statements, and that is enough.) The minibatches of Figure 5 are
# drawn without regard to labels, so this happens in them by chance.

# %% [markdown]
# (ev-priority)=
# ## What equation (5) says, and what it gets wrong
#
# The paper defines the priority level of behavior $j$ as
#
# $$P_j = \frac{\bar b\cdot b_j}{\|\bar b\|\,\|b_*\|}, \qquad b_* = \arg\max_i\|b_i\|. \tag{5}$$
#
# Numerator and order are those of {prf:ref}`prop-first-step`. From the definition, for equally
# large behaviors: $|P_j| \le \|b_j\|/\|b_*\| \le 1$, and the mean of all $P_j$ is $\|\bar b\|/\|b_*\| > 0$, so that at least one is
# positive. Four things it does not say, each with an example in the plane:

# %%
for vectors in ([(3, 0), (-2, 2), (-2, -1.9)], [(3, 0), (0, 2.5), (0, 2.5)]):
    level = mixtures.priority_levels(np.array(vectors, float))
    print(f"b = {vectors}: P =", level.round(3))
try:
    mixtures.priority_levels(np.array([(1.0, 0.0), (-1.0, 0.0)]))
except InputError as problem:
    print(problem)
sizes, vectors = np.array([100, 400]), np.array([(3.0, 0.0), (0.0, 2.0)])
print("P =", mixtures.priority_levels(vectors).round(2), "for sizes", sizes)
print("rises", mixtures.logit_gains(vectors, sizes, 1.0, 1.0))

# %% [markdown]
# - $P_j$ can be **negative**. In the first example the longest $b$ of all has it: the first step *unlearns* that behavior.
# - The **longest** $b$ need not have the largest priority. In the second example two shorter ones
#   agree with each other, and outvote it.
# - Where the behaviors cancel, $\bar b = 0$, it is **undefined**, and the first step is none.
# - With **unequal sizes** (5) ranks by the wrong $\bar b$. In the last line the small behavior has the higher $P$, and the
#   large one the larger rise.

# %% [markdown]
# (ev-pairs)=
# ### Two behaviors: length decides, the angle does not
#
# The paper remarks that the lengths and the angles both play a role. For the levels this is so. But
# its experiments are about pairs, and about which loss falls faster and by how much. There:
#
# ```{prf:proposition} Pairs
# :label: prop-pair
#
# For two equally large behaviors with $\bar b \ne 0$,
#
# $$P_1 - P_2 = \frac{\|b_1\|^2 - \|b_2\|^2}{2\,\|\bar b\|\,\|b_*\|},$$
#
# so the behavior with the longer difference of means has the higher priority, at every angle. With
# $\|b_2\| = \rho\,\|b_1\|$, $\rho \le 1$, and the angle $\vartheta$ between them the gap is
# $(1 - \rho^2)/\sqrt{1 + 2\rho\cos\vartheta + \rho^2}$, from $1 - \rho$ at $\vartheta = 0$ to $1 + \rho$ near $\vartheta = \pi$. In
# balanced classes the upper bounds of {prf:ref}`prop-first-fall` differ by
#
# $$\frac{\beta^2\eta}{16}\,\big(\|b_1\|^2 - \|b_2\|^2\big),$$
#
# which does not depend on the angle.
# ```
#
# `````{dropdown} Proof
# $\bar b\cdot(b_1 - b_2) = \frac12(b_1 + b_2)\cdot(b_1 - b_2) = \frac12(\|b_1\|^2 - \|b_2\|^2)$. Divide by $\|\bar b\|\|b_*\|$, with
# $2\|\bar b\| = \|b_1\|\sqrt{1 + 2\rho\cos\vartheta + \rho^2}$, which falls from $(1 + \rho)\|b_1\|$ to $(1 - \rho)\|b_1\|$, for the first two claims;
# multiply by $\frac{\beta^2\eta}8$ for the last. ∎
# `````
#
# So the *priority gap* of a pair mixes two things: how different the lengths are, which the gap of the losses
# feels, and how much the two behaviors oppose each other, which it does not. What the angle does change is how
# much both losses fall **together**: their sum falls by $\frac{\beta^2\eta}{4}\|\bar b\|^2$ at most. The priority gap is thus a measure of the gap
# *relative* to the fall, by a factor that depends on the pair: with $F_j = \frac{\beta^2\eta}8\,\bar b\cdot b_j$,
# $\frac{F_1 - F_2}{F_1 + F_2} = (P_1 - P_2)\,\frac{\|b_*\|}{2\|\bar b\|}$. {numref}`fig-angle` shows four angles: the same two lengths, the same
# gap between the bounds of the first fall.


# %%
steps_taken = np.arange(61)
trained = {
    angle: priorities.two_trained(3, 2, angle) for angle in (30, 75, 120, 165)
}
for angle, ((first, second), _) in trained.items():
    print(
        f"{angle:3}°: P = {first:.2f}, {second:.2f}; gap {first - second:.2f}"
    )

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two behaviors, the same lengths, four angles.", "name": "fig-angle"}, "image": {"alt": "Four panels of loss against step for two behaviors at angles of 30, 75, 120 and 165 degrees. The loss of the longer one falls faster in each. The wider the angle, the less that of the shorter one falls; at 165 degrees it rises."}}
panels = {
    f"loss at {angle}°": {
        "‖b‖ = 3": (steps_taken, longer),
        "‖b‖ = 2": (steps_taken, shorter),
    }
    for angle, (_, (longer, shorter)) in trained.items()
}
plots.lines(panels, "step", ncols=2)

# %% [markdown]
# In JupyterLab the next cell has sliders for both lengths and the angle, and a button that draws.

# %% tags=["nbval-ignore-output", "not-stored", "remove-output"]
from ipywidgets import interact_manual


def draw(first=3.0, second=2.0, angle=90):
    level, loss = priorities.two_trained(first, second, angle)
    names = [f"b{j + 1}: P = {level[j]:.2f}" for j in (0, 1)]
    series = {names[j]: (steps_taken, loss[j]) for j in (0, 1)}
    display(plots.lines({"loss": series}, "step"))


_ = interact_manual(
    draw, first=(0.5, 4.0), second=(0.5, 4.0), angle=(0, 170, 10)
)

# %% [markdown]
# (ev-overtaken)=
# ### After the first step, (5) says nothing
#
# $P_j$ looks at two vectors. What comes later depends on the whole distribution. Is there a mixture in which the behavior of the higher priority
# has the higher loss later on? Two, each with one cause ({numref}`fig-overtaken`):
#
# - **Overlap.** Of behavior 1, one statement in four lies on the wrong side. Its mean is far out,
#   so it starts first; but its loss cannot fall below that of the best guess. Behavior 2 is shorter, and clean.
# - **Common mean.** All states share a long mean $\mu$, and $b_1$ points along it: Yes statements have longer states, as it were. The first step
#   moves along $\mu$, and there the curvature is large: what helps one side hurts the other almost
#   as much. After a few steps nothing is left to gain, while behavior 2, across $\mu$, goes on.

# %%
for name, (level, loss) in priorities.overtaken().items():
    behind = loss[0] > loss[1] + 1e-12
    assert level[0] > level[1] and loss[0, 1] < loss[1, 1] and behind[-1]
    print(f"{name}: P = {level.round(2)}, overtaken at step {behind.argmax()}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The higher priority overtaken, for two reasons.", "name": "fig-overtaken"}, "image": {"alt": "Two panels of loss against step, each with two behaviors. In both the one of higher priority falls faster at first, then flattens and is crossed by the other, which goes on falling."}}
panels = {
    f"loss ({name})": {
        "higher P at the start": (steps_taken, loss[0]),
        "lower P at the start": (steps_taken, loss[1]),
    }
    for name, (_, loss) in priorities.overtaken().items()
}
plots.lines(panels, "step")

# %% [markdown]
# So (5) is a statement on the start. How far it carries is a matter of the data, and an empirical one.

# %% [markdown]
# ## Figure 5: two pairs
#
# The paper trains two pairs of behaviors, the last layer only, on minibatches from the union: (a) "with a larger priority gap", (b) "with a smaller
# priority gap". It claims that the loss of the behavior of higher priority falls faster, and that a larger gap shows in the losses. {numref}`fig-pairs`
# has the same pairs under our model (at the smoke tier, two pairs of the sample), the recipe that of {ref}`case-study`.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two behaviors trained together (the paper's Figure 5).", "name": "fig-pairs"}, "image": {"alt": "Two panels of training loss against step, pair (a) left and pair (b) right, each with two behaviors and a band over seeds. All start at log 2 and spike upwards in single steps."}}
panels, colors = {}, {}
for which, both in enumerate(shared.PAIRS[config.tier]):
    loss = priorities.figure_5_run(records, which).arrays["loss"]
    bands = np.quantile(loss, (0.05, 0.5, 0.95), axis=-1)
    names = [plots.short(name, 44) for name in both]
    colors |= dict(zip(names, map(plots.color, both), strict=True))
    panels[f"training loss, pair ({'ab'[which]})"] = {
        names[j]: (np.arange(loss.shape[1]), bands[:, j]) for j in (0, 1)
    }
plots.lines(panels, "step", colors=colors)

# %% tags=["hide-input"]
table = pd.DataFrame(priorities.pair_table(records))
table["behavior"] = [plots.short(name, 34) for name in table["behavior"]]
display(table.set_index(["pair", "behavior"]).round(3))
lead = [np.median(priorities.lead(records, f"f5-{x}")) for x in "ab"]
gaps = float(priorities.gaps_in_order(records, "f5-a"))
apart = np.median(priorities.paper_gaps(records, "f5-a"))
display(
    Markdown(
        "The behavior of higher priority has the lower loss at "
        f"**{lead[0]:.0%}** of the steps of pair (a) and **{lead[1]:.0%}** "
        "of those of pair (b), in the median over seeds. The priority gap of "
        f"pair (a) is **{gaps:.2f}** times that of pair (b), its gap of the "
        f"losses **{apart:.2f}** times."
    )
)

# %% [markdown]
# Read the table with {prf:ref}`prop-pair`. The paper calls (a) the pair of the larger gap. Whether that is so is a
# property of the *model*: it depends on the two lengths $\|b_j\|$, and these are hidden states. At the book tier the order of the
# two gaps is the opposite of the paper's, since under this model subscribes-to-Islam has the longest $b_j$ of all recorded behaviors, and desire-to-influence-world
# one of the shorter ones. The paper's (b) is then the pair that lies further apart, and its losses do too. So claim F5b is *not reproduced* as it stands, and neither is the
# order of the gaps (F5c); what it stands for, that a larger gap of priorities shows as a larger gap of losses, is claim F5d, about the gaps of this model. Two pairs are little to
# judge that by. All pairs follow below.
#
# The spikes, and losses above $\log2$, are single steps on unbalanced minibatches, as in {ref}`case-study`: a step along the common mean
# harms both behaviors alike.
#
# ### The first step foretells how much of the run?
#
# If nothing held training back, $t$ steps would give $t$ times the first. Below, for each behavior: the bound of
# {prf:ref}`prop-first-fall`, $\frac{\beta^2\eta}8\,\bar b\cdot\hat b_j$, and what gradient descent does in one step, over that; $t$ times the bound, and
# what descent does in all steps, over that; and over the fall of the *linear regime* (`theory.linear_regime`), which knows the
# curvature too and needs no training either. The last column has the median fall of minibatches over that of descent.

# %% tags=["hide-input"]
table = pd.DataFrame(priorities.predicted(records)).T
table.index = [plots.short(name, 30) for name in table.index]
display(table.iloc[:, :6].map("{:.3g}".format))
rises = [
    f"{rise:.2f} ± {error:.2f}" for rise, error in table.iloc[:, 6:].values
]
display(
    Markdown(
        "Rise of the margins by the first minibatch, over its prediction "
        "(β²η/4) b̄·b̂, mean over seeds ± standard "
        f"error, in the order of the table: {', '.join(rises)}."
    )
)

# %% [markdown]
# One step of gradient descent is as predicted, less the curvature. Over the run, $t$ times the first step overstates the
# falls. By what: the margins that saturate, or the curvature of the states? The linear regime has the second and not the first, and its falls are those measured, or
# close to them; so it is the curvature. Along the common mean it bites within a few steps, along the $b_j$ themselves later.
# A single minibatch says little of a behavior: the rise of its margins is as predicted on average (within the standard error, or a few of them), but its spread over seeds is wide.

# %% [markdown]
# (ev-all-pairs)=
# ## All pairs
#
# Two pairs, picked by hand, show that something can happen. Now every pair of the behaviors whose states are recorded,
# trained together by gradient descent on all statements of both. {numref}`fig-matrix` has their priority gaps and
# angles. Angles above 90° are *conflicts*: a step for one behavior is a step against the other.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Priority gaps and angles of all pairs.", "name": "fig-matrix"}, "image": {"alt": "Two square heat maps over the recorded behaviors, a number in each cell: above the priority gap of each pair, below the angle between their differences of means. Most angles lie below or near 90 degrees, some above."}}
everyone = priorities.everyone(records)
plots.matrices(priorities.pair_matrices(records), everyone)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "All pairs: gap of the losses, and what predicts it.", "name": "fig-scatter"}, "image": {"alt": "Two scatter plots, a point a pair. Left the relative gap of the falls against the priority gap, right the gap of the losses against the difference of squared lengths. In both the points rise together; on the right they lie close to a curve through the origin."}}
found = {name: abs(x) for name, x in priorities.pair_gaps(records).items()}
# t times the first step, averaged over steps t = 1 … T.
line = beta**2 * eta / 8 * (config.steps + 1) / 2
squares = found["b̄·b, not normalised"]
ends = np.array([0, squares.max()])
panels = {
    "relative gap of the falls": {
        "a pair": (found["P (5)"], found["relative gap"])
    },
    "gap of the mean losses": {
        "a pair": (squares, found["gap"]),
        "as the first step foretells": (ends, line * ends),
    },
}
plots.lines(
    panels,
    ["|P₁ − P₂|", "|‖b₁‖² − ‖b₂‖²|/2"],
    dots=["a pair"],
    dashed=["as the first step foretells"],
)

# %% [markdown]
# {numref}`fig-scatter` is what {prf:ref}`prop-pair` says. The priority gap (left) goes with the gap *relative* to the falls, the difference
# of squared lengths (right) with the gap itself, in nats; where points lie below the line, the losses bend as those of the two pairs above. The table compares predictors: by each, the share of pairs that it orders
# right (who learns more over the run), and its rank correlation with the size of the gap.

# %% tags=["hide-input"]
found = pd.DataFrame(priorities.pair_gaps(records))
predictors = found[list(found)[:4]]
ranks = found.abs().corr(method="spearman")[["gap", "relative gap"]]
right = np.sign(predictors).eq(np.sign(found["gap"]), axis=0)
table = ranks.loc[list(predictors)].add_prefix("rank correlation, ")
table.insert(0, "ordered right", right.mean())
display(table.round(3))
wrong = found["gap"][~right["P (5)"]].abs().max() / found["gap"].abs().max()
display(
    Markdown(
        f"{len(found)} pairs, of which {(found['cosine'] < 0).sum()} in "
        f"conflict; (5) orders {(~right['P (5)']).sum()} wrongly, whose gap is "
        f"at most {np.nan_to_num(wrong):.1%} of the largest. (The pairs share "
        "behaviors, so that their number overstates the evidence.)"
    )
)

# %% [markdown]
# Does (5) predict which behavior of a pair learns faster? Nearly always; and it does so exactly as well as the length $\|b_j\|$ alone, for in pairs the two have one
# order. By how much? Relative to the falls, the priority gap is the best of the four or close to it; for the gap itself it is better to
# leave the normalisation out.
#
# The last row replaces $b_j$ by the pull $\hat b_j$, which is *exact for the first step*. Over the run there is little in it, and where the split is
# visibly unbalanced (the sample at the smoke tier) it is far worse: what the pull adds is the common mean, which is used up at once. So where classes are not
# balanced, the paper's choice of the difference of means serves for the run, and not for the step for which it is proven.

# %% [markdown]
# ## All behaviors at once
#
# Pairs cannot tell priority from length. A mixture of many can: there a behavior also gains from its allies. All
# recorded behaviors together, gradient descent, a row a behavior:

# %% tags=["hide-input"]
names = [plots.short(name, 34) for name in everyone]
table = pd.DataFrame(priorities.all_table(records), index=names)
display(table.sort_values("P", ascending=False).map("{:.3g}".format))
worse = (table["fall, all steps"] < 0).sum()
display(
    Markdown(
        "Behaviors whose loss is higher after all steps than before training: "
        f"**{worse}**; with a negative priority: **{(table['P'] < 0).sum()}**. "
        "Rank correlations over the behaviors:"
    )
)
table.corr(method="spearman").iloc[:3, 3:].round(2)

# %% [markdown]
# Here (5) earns its keep: it orders the falls of the run clearly better than the length does. At the book tier it also names, before training, the behavior that
# training makes *worse*: its $b_j$ points against the others'. Whether the first step is ordered better by the pulls than by (5) depends on how unbalanced the split is.

# %% [markdown]
# ## What was shown
#
# - The first step on a mixture is $\frac{\eta\beta}4\bar b$, with weights $n_j/N$; the paper's (19) to (21) hold for equal sizes and balanced classes.
# - The constant of (24) is $\frac{\beta\eta}4$. In losses, what the priority stands for is an upper bound, and what it leaves out is mostly the common mean.
# - (5) can be negative or undefined, and for three behaviors and more it need not be the order of the lengths. For two it is, and the angle does not enter the gap of the losses.
# - It says nothing of later steps, and there are mixtures where it is wrong there; on real hidden states it orders whole runs well.
# - The paper's pair of the smaller gap has the larger one under this model. The losses follow the model's gaps.
#
# The verdicts are computed by the tests of `claims.yml`. The tests of F5a to F5f and of T2d, and their bounds, were set before their values
# were seen, with three exceptions. F5a first compared the areas above the two curves relative to their sum; a first run showed that the sum can be
# negative, and it became the share of steps. F5c, the order of the gaps, was added after the gaps had been seen, and T2d after its table, with the bounds that F3
# has. The wording of F5e, "in every pair" at first, was softened to what its test asks.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("03_priorities", records)))

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-priority-mean
#
# Show that $|P_j| \le \|b_j\|/\|b_*\|$, and that in a mixture of equally large behaviors with $\bar b \ne 0$ the first step raises the logits of at least one of them. Can it lower those of
# all others?
# ```
#
# ```{solution} ex-priority-mean
# :class: dropdown
#
# Cauchy–Schwarz: $|\bar b\cdot b_j| \le \|\bar b\|\|b_j\|$. The mean of $\bar b\cdot b_j$ over $j$ is $\|\bar b\|^2 > 0$, so one of them is positive.
# Yes: $b = (3, 0), (-1, 0), (-1, 0)$ has $\bar b = (\frac13, 0)$, and both others are negative. The union's loss still falls, for small $\eta$.
# ```
#
# ```{exercise}
# :label: ex-horizon
#
# By the proof of {prf:ref}`thm-a`, for $\kappa \le 4$ gradient descent on a mixture satisfies $\|2\delta_t - x_t u\| \le \rho_t x_t$ with $u = \bar b/\|\bar b\|$,
# $x_t = \eta\beta t\|\bar b\|/2$ and $\rho_t = \kappa_b(t-1)/4$. Up to which step is it *certain*, without training, that the mean margin of behavior 1 lies above that of behavior 2? Compute it for
# the pairs of Figure 5 (`theory.signal` has $u$, and `slack` is $\rho_t$).
# ```
#
# ````{solution} ex-horizon
# :class: dropdown
#
# The mean margins are $\bar m_j(t) = \beta\,\hat b_j\cdot\delta_t$, so
# $\bar m_1 - \bar m_2 \ge \frac{\beta x_t}2\big((\hat b_1 - \hat b_2)\cdot u - \rho_t\,\|\hat b_1 - \hat b_2\|\big)$: positive as long as
# $\rho_t < \cos(\hat b_1 - \hat b_2, \bar b)$. With classes that are not balanced $\bar b$ has a part along the common mean, which makes $\kappa_b$ large and the horizon short.
#
# ```python
# from dpo_helpers import theory
#
# for both in shared.PAIRS[config.tier]:
#     g, labels, group = priorities.trained_on(records, both)
#     pulls, _ = mixture.pulls(g, labels, group)
#     s = theory.signal(g, labels)
#     apart = pulls[1] - pulls[0]
#     cosine = abs(apart @ s.unit) / np.linalg.norm(apart)
#     t = np.arange(1, 1000)
#     print(both, t[s.slack(eta, config.beta, t) < cosine].max())
# ```
# ````
#
# ```{exercise}
# :label: ex-sizes
#
# Two behaviors with orthogonal $b_1, b_2$ and balanced classes have $n_1$ and $n_2$ statements. For which sizes does the first step raise the logits of
# both equally? How would you weight the statements so that every behavior of a mixture gains the same at the first step, if the $b_j$ are orthogonal?
# ```
#
# ```{solution} ex-sizes
# :class: dropdown
#
# $\bar b\cdot b_j = \frac{n_j}N\|b_j\|^2$, so $n_1\|b_1\|^2 = n_2\|b_2\|^2$. Weight each statement of behavior $j$ by $1/(n_j\|b_j\|^2)$: then $\bar b\cdot b_j$ is the same for
# all $j$. Fairness costs speed: the most distinguishable behaviors are held back most.
# ```

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
