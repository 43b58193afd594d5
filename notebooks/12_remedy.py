# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (remedy)=
# # A remedy, tried
#
# **You will see** the obvious answer to unequal priorities: weight the behaviors of a mixture so
# that the first step improves all of them equally. You will see when this is possible and when it is
# not, with proof, and what it costs. Then you will see what it does over a whole run to the two pairs of
# Figure 5. For the last layer it is exact; for all parameters it is a heuristic.
#
# **It takes** fifteen minutes to read. The recorded runs are replayed in half a minute; computing them anew
# takes about an hour on two cores. **It needs** nothing to replay, and the data to train
# ({ref}`how-to-run`). Read {ref}`priorities` and {ref}`full-finetuning` first.
#
# {cite:t}`im2024understanding` end with a wish: to shape the data so that DPO learns first what we
# want it to learn first. They do not try it, so what follows goes beyond the paper, and no row of the
# scorecard depends on it. We fixed the arms, measures, learning rates, and seeds before running anything.
# There are four arms:
#
# - *as it is*: every statement has the same weight;
# - *reweighted*: behavior $j$ has the weight $w_j$ in the loss, computed once, before training;
# - *resampled*: a share $w_j$ of the statements is drawn from each behavior, as many in all as
#   there are, and training is as usual;
# - *solved at every step*: $w$ is computed anew before each step (last layer only).
#
# For each arm we report three measures. The first is the gap between the highest and the lowest held-out loss
# of the behaviors, averaged over the steps. The second is the mean loss of all behaviors. The third is the
# loss of the behavior with the shortest and of the behavior with the longest difference of means, separately,
# because a gap can be closed from either side.

# %% tags=["parameters"]
tier = "book"
model = None
data = None
learning_rate = None
steps = None
seeds = None
full_learning_rate = None
full_seeds = None
device = None

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from experiments import full_finetuning, priorities, remedy, shared
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from scipy.optimize import linprog
from scipy.special import expit

from dpo_helpers import last_layer, mixtures, plots

plots.use_style()
config = configure(globals())
records = RunStore(config)
together = remedy.mixture_behaviors(config)
eta, beta = shared.learning_rate(records), config.beta

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-equal-steps)=
# ## When can a first step be fair?
#
# By {prf:ref}`prop-first-step` the first step on groups with weights $w_a$ ($w_a \ge 0$,
# $\sum_a w_a = 1$) moves the boundary along $\bar b_w = \sum_a w_a b_a$, and increases the logit
# difference of group $a$ by $\frac{\beta\eta}4$ times
#
# $$b_a\cdot\bar b_w = (Kw)_a, \qquad K_{ab} = b_a\cdot b_b .$$
#
# ({ref}`priorities` had $w_a = n_a/N$. Here both sides of a group have the same weight, so its signed mean
# $\hat b_a$ equals the difference of means $b_a$.) Call $(Kw)_a$ the *improvement* of group $a$. Maximizing the
# smallest improvement is a linear program: find the largest $t$ for which some $w$ has $(Kw)_a \ge t$ for all $a$.
# Let $v = \max_w\min_a\,(Kw)_a$ be its value.
#
# ```{prf:theorem} Equal first steps
# :label: thm-equal
#
# 1. $v \ge 0$, and $v = 0$ if and only if the groups cancel: $\bar b_w = 0$ for some $w$.
# 2. If some weights $w^*$ improve all groups equally, $(Kw^*)_a = c$ for all $a$, then $c = v$: no
#    weights have a larger smallest improvement. But every $w$ satisfies
#    $\|\bar b_w\|^2 = c + \|\bar b_w - \bar b_{w^*}\|^2$. So the weighted mean of the improvements,
#    $\sum_a w_a (Kw)_a = \|\bar b_w\|^2$, is smallest for $w^*$. For groups of equal size,
#    $w_a = \frac1m$, the mean improvement is smaller after balancing than before, unless the groups were
#    already balanced.
# 3. Such weights exist if and only if the point nearest $0$ of the affine hull of $b_1, \dots, b_m$
#    lies in their convex hull. For linearly independent $b_a$ this means $K^{-1}\mathbf 1 \ge 0$, and
#    $w^* = K^{-1}\mathbf 1/\mathbf 1^\top K^{-1}\mathbf 1$, $c = 1/\mathbf 1^\top K^{-1}\mathbf 1$.
# 4. For two groups, $\|b_1\| \ge \|b_2\| > 0$ at an angle $\vartheta$, $b_1 \ne b_2$, such weights exist if and only if
#    $\cos\vartheta \le \|b_2\|/\|b_1\|$. Otherwise $v$ is attained by training on the longer one
#    alone, and the longer one improves by more than $v$.
# 5. Linearly independent groups that all conflict or are orthogonal, $b_a\cdot b_b \le 0$ for $a \ne b$, can
#    always be improved equally.
# ```
#
# `````{dropdown} Proof
# *1.* Let $\bar b_w$ be the point of the convex hull nearest $0$. Moving from it towards any $b_a$
# makes it no shorter, so $\bar b_w\cdot(b_a - \bar b_w) \ge 0$, that is $(Kw)_a \ge \|\bar b_w\|^2$
# for all $a$, and $v \ge \|\bar b_w\|^2 \ge 0$. If $v = 0$, then $\bar b_w = 0$. The converse is part 2
# with $c = 0$.
#
# *2.* $K$ is symmetric, so for every $w$ the mean of its improvements with weights $w^*$ is
# $\sum_a w^*_a (Kw)_a = \sum_a w_a (Kw^*)_a = c$. The smallest of them is at most this mean, so $v \le c$.
# And $\bar b_w\cdot\bar b_{w^*} = \sum_a w_a (Kw^*)_a = c$, also for $w = w^*$, which gives the
# identity. With $w_a = \frac1m$ the mean improvement is $\|\bar b_w\|^2 \ge c$.
#
# *3.* All $b_a\cdot\bar b_w$ are equal if and only if $\bar b_w$, a point of the affine hull, is
# orthogonal to all $b_a - b_b$: it is the foot of the perpendicular from $0$, and $w \ge 0$ says that it
# lies in the convex hull. For independent $b_a$, $Kw = c\mathbf 1$ has the solutions
# $w = cK^{-1}\mathbf 1$, and $\sum_a w_a = 1$ fixes $c$.
#
# *4.* The foot on the line through $b_1$ and $b_2$ has the weights
# $w_1 = (\|b_2\|^2 - b_1\cdot b_2)/\|b_1 - b_2\|^2$ and
# $w_2 = (\|b_1\|^2 - b_1\cdot b_2)/\|b_1 - b_2\|^2$. The second is never negative; the first is nonnegative
# if and only if $b_1\cdot b_2 \le \|b_2\|^2$. Otherwise $(Kw)_2 = w_1\,b_1\cdot b_2 + w_2\|b_2\|^2$ is at most
# $b_1\cdot b_2$, with equality for $w_1 = 1$, and $(Kw)_1 = \|b_1\|^2 > b_1\cdot b_2$ there.
#
# *5.* Let $x = K^{-1}\mathbf 1$, split into $x = x^+ - x^-$, both $\ge 0$ and never both positive in an entry.
# Then $\sum_a x^-_a = x^-\cdot Kx = x^-\cdot Kx^+ - x^-\cdot Kx^- \le 0$, because the first term has
# off-diagonal entries of $K$ only, and $K$ is positive definite. So $x^- = 0$. ∎
# `````
#
# So conflict is not the obstacle. It makes $c$ small, but two groups that conflict
# can always be improved equally, if only by a little. A pair cannot be balanced if
# the long vector's projection on the short one's direction exceeds the short vector. Then the long group
# improves more, whatever the weights.
#
# At the boundary of this condition several weights can attain the maximum. With $K = \begin{pmatrix}4&2\\2&2\end{pmatrix}$, $w = (1, 0)$ gives
# the improvements $(4, 2)$ and $w = (0, 1)$ gives $(2, 2)$. The linear program alone does not choose between them.
#
# To check the theorem, we solve the linear program for five hundred random mixtures of two to five groups. Its unknowns are $w$ and $t$:


# %%
def max_min_weights(K):
    """w ≥ 0, Σ w = 1, for which the smallest (Kw)_a is as large as it can be."""
    m = len(K)
    found = linprog(
        c=np.append(np.zeros(m), -1.0),  # maximize t
        A_ub=np.column_stack([-K, np.ones(m)]),  # t ≤ (Kw)_a for all a
        b_ub=np.zeros(m),
        A_eq=np.append(np.ones(m), 0.0)[None],  # Σ w = 1
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
    )
    return found.x[:m]


# %%
rng = np.random.default_rng(0)
equal = 0
for m in rng.integers(2, 6, 500):
    b = rng.normal(size=(m, 6)) + rng.normal(size=6) / 2
    alone = np.linalg.solve(b @ b.T, np.ones(m))
    w = max_min_weights(b @ b.T)
    assert abs(w - mixtures.max_min_weights(b @ b.T)).max() < 1e-7
    rises = b @ b.T @ w
    possible = (alone >= 0).all()
    assert possible == (np.ptp(rises) < 1e-6 * rises.max())
    assert not possible or abs(w - alone / alone.sum()).max() < 1e-6
    assert rises.mean() <= (b @ b.mean(0)).mean() or not possible
    equal += possible
print(
    f"equal first steps in {equal} of 500, those with K⁻¹1 ≥ 0, and no others"
)

# %% [markdown]
# **Break it.** Take two groups of lengths 3 and 1. By the theorem they can be improved equally at angles down to
# $\arccos\frac13$, about 70.5°:

# %%
for angle in (150, 90, 71, 70, 30):
    turn = np.deg2rad(angle)
    b = np.array([(3.0, 0.0), (np.cos(turn), np.sin(turn))])
    w = max_min_weights(b @ b.T)
    print(
        f"{angle:3}°: w = {w.round(3)}, improvements {(b @ b.T @ w).round(2)}"
    )

# %% [markdown]
# Below that angle all the weight goes to the longer group: its statements improve the shorter group more than
# the shorter group's own statements do.
#
# There is another way to the same weights. By the proof, if the first step can be equal, then $\bar b_{w^*}$
# is the *shortest* vector of the convex hull, which is the solution of a quadratic program. This is the direction of
# multiple-gradient descent {cite:p}`desideri2012multiple`. If the first step cannot be equal, the two programs have
# different solutions, and the smallest improvement is larger for the linear program.

# %% [markdown]
# (ev-ours)=
# ### Priorities that match ours
#
# Equal improvement is one goal among others. Let $r_a > 0$ be how much we want group $a$ to improve,
# relative to the others. Replace $b_a$ by $b_a/r_a$ in the theorem: $(Kw)_a = c\,r_a$ for all $a$ is possible
# if and only if $K^{-1}r \ge 0$ (linearly independent groups). The unknowns of the program are then
# $r_aw_a$: it normalizes $\sum_a r_aw_a = 1$, and we rescale $w$ to $\sum_a w_a = 1$. For the first pair of Figure 5
# the cell computes the weights for equal improvements, then for an improvement twice as large for the first
# behavior, then for the second:

# %%
b = priorities.differences(records, together["(a)"])
for wanted in ((1, 1), (2, 1), (1, 2)):
    w = max_min_weights(b @ b.T / np.outer(wanted, wanted)) / wanted
    w /= w.sum()
    library = mixtures.max_min_weights(b @ b.T, np.array(wanted))
    assert np.allclose(w, library, atol=1e-7)
    rises = b @ b.T @ w
    print(f"r = {wanted}: w = {w.round(3)}, improvements {rises.round(2)}")

# %% [markdown]
# (ev-plan)=
# ## The plan
#
# We solve the program for the two pairs of Figure 5, and for all their behaviors together, from
# the training statements before training. Under this model the lengths in pair (b) differ far more
# than the lengths in pair (a), so (b) has the larger gap ({ref}`priorities`). The paper says this of
# (a).
#
# In the table, an *increase* is the increase of the logit difference at the first step, in nats. It is given
# for three choices of weights: the weights before (proportional to the numbers of statements), the weights $w$
# of the program, and weights proportional to $1/\|b_j\|^2$, which would be the solution if all behaviors
# were orthogonal.

# %%
plan, shares, lengths = {}, {}, {}
for letter, behaviors in together.items():
    g, labels, group = priorities.trained_on(records, behaviors)
    b = mixtures.mean_differences(g, labels, group)
    K, sizes = b @ b.T, np.bincount(group)
    w, plain = max_min_weights(K), 1 / np.diag(K)
    shares[letter], lengths[letter] = w, np.sqrt(np.diag(K))
    before, plain = sizes / sizes.sum(), plain / plain.sum()
    rises = [beta * eta / 4 * K @ x for x in (before, w, plain)]
    assert np.allclose(rises[1], mixtures.logit_gains(b, w, eta, beta))
    assert rises[1].min() >= max(rises[0].min(), rises[2].min()) - 1e-12
    seen = w / before
    columns = (lengths[letter], before, w, *rises, seen)
    for j, row in enumerate(zip(*columns, strict=True)):
        plan[letter, plots.short(behaviors[j], 36)] = row

# %% tags=["hide-input"]
columns = ["‖b‖", "weight before", "weight w", "increase before"]
columns += ["increase for w", "increase for 1/‖b‖²", "seen"]
table = pd.DataFrame(plan, columns).T.rename_axis(["mixture", "behavior"])
table.round(4)

# %% [markdown]
# *seen* is how often a statement occurs, on average, when the mixture is resampled. Below 1, some statements
# are left out. Above 1, some are repeated. Weights in the loss leave out nothing. The two arms differ in this,
# and in the rounding to whole statements.

# %% [markdown]
# (ev-remedy-head)=
# ## The last layer
#
# We run gradient descent on all training statements, from the same start, at the same learning rate, and
# with the same number of steps in every arm. One step moves $\delta$ by $\frac{\eta\beta}4\sum_a w_ab_a(t)$. Here
# $b_a(t)$ is the sum over the two sides of the mean of $2\sigma(-m_i)s_ig_i$; at $t = 0$ it is $b_a$. The cells
# write out the training of pair (a) and compare with the recorded run:


# %%
def descend(g, labels, group, weigh, steps):
    """The path of δ for weights that ``weigh`` computes from b(t) at each step."""
    a, numbers = labels[:, None] * g, range(group.max() + 1)
    sides = [[(group == j) & (labels == s) for s in (1, -1)] for j in numbers]
    path, used = [np.zeros(g.shape[1])], []
    for _ in range(steps):
        pull = 2 * expit(-2 * beta * a @ path[-1])[:, None] * a
        b = np.array([sum(pull[at].mean(0) for at in both) for both in sides])
        used.append(weigh(b))
        path.append(path[-1] + eta * beta / 4 * used[-1] @ b)
    return np.array(path), np.array(used)


# %%
whole = priorities.problem(records, together["(a)"])
known = remedy.head_run(records, together["(a)"]).arrays
data_of_a = priorities.trained_on(records, together["(a)"])
fixed, sizes = shares["(a)"], np.bincount(data_of_a[2])
plain = [
    descend(*data_of_a, weigh, config.steps)
    for weigh in (
        lambda b: sizes / sizes.sum(),
        lambda b: fixed,
        lambda b: max_min_weights(b @ b.T),
    )
]
assert np.allclose(plain[2][1], known["weights"], atol=1e-4)


# %%
def held_out_losses(path):
    """Mean held-out loss of each behavior of pair (a) along the path."""
    g, labels, group = (
        x[~whole.train] for x in (whole.g, whole.labels, whole.group)
    )
    loss = np.logaddexp(0, -2 * beta * labels * (path @ g.T))
    return np.array([loss[:, group == j].mean(1) for j in (0, 1)])


for (path, _), losses in zip(plain, known["loss"], strict=True):
    assert np.allclose(held_out_losses(path), losses[:, 1], atol=1e-6)
g, labels, group = data_of_a
rows = mixtures.resample(labels, group, fixed, seed=0)
a = labels[rows, None] * g[rows]
path = last_layer.gradient_descent(a, eta, beta, config.steps)
resampled = known["resampled"][:, 1, :, 0]
assert np.allclose(held_out_losses(path), resampled, atol=1e-6)

# %% [markdown]
# {numref}`fig-remedy-head` shows the losses of both pairs as they are and reweighted.

# %% mystnb={"figure": {"caption": "Last layer: held-out loss against step, as it is (dashed), reweighted (solid).", "name": "fig-remedy-head"}, "image": {"alt": "Two panels, one a pair, of held-out loss against step. Each has four curves: both behaviors of the pair as it is, dashed, and both reweighted, solid."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(6.8, 4.4), sharey=True)
for ax, letter in zip(axes, ("(a)", "(b)"), strict=True):
    arms = remedy.head(records, letter)
    for j, behavior in enumerate(together[letter]):
        for arm, line in (("as it is", "--"), ("reweighted", "-")):
            name = f"{plots.short(behavior, 24)}, {arm}"
            style = dict(color=plots.color(behavior), ls=line, label=name)
            ax.plot(arms[arm][j, :, 0], **style)
    ax.set(title=f"pair {letter}", xlabel="step")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.18))
axes[0].set_ylabel("held-out loss")
plt.show()

# %% [markdown]
# {numref}`fig-remedy-gap` shows the gap, the highest less the lowest held-out loss of the behaviors of a mixture,
# for all arms, on a logarithmic axis. For resampled mixtures the line is the median and the band the 5 to 95 %
# range over draws.


# %%
def gap(losses):
    """Highest less lowest loss of the behaviors: (m, …) → (…)."""
    return losses.max(0) - losses.min(0)


gaps = {
    letter: {arm: gap(x) for arm, x in remedy.head(records, letter).items()}
    for letter in together
}

# %% mystnb={"figure": {"caption": "Last layer: gap of the held-out losses against step, in four arms.", "name": "fig-remedy-gap"}, "image": {"alt": "Three panels, one a mixture, of the gap between the losses of its behaviors against step on a logarithmic axis, with one curve each for the mixture as it is, reweighted, resampled with a band, and with weights solved for at every step."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.6), sharey=True)
for ax, (letter, arms) in zip(axes, gaps.items(), strict=True):
    for arm, values in arms.items():
        plots.band(ax, np.arange(1, config.steps + 1), values[1:], label=arm)
    ax.set(title=letter, xlabel="step", yscale="log")
axes[0].set_ylabel("gap of the held-out losses")
plots.legend_below(fig, axes[0], ncols=4)
plt.show()

# %% [markdown]
# The table gives the numbers on the training statements, which the theorem is about, and on the held-out statements.
# *Mean gap* and *mean loss* are means over the steps. *Longest leads* is the share of steps at which the behavior
# with the longest $b$ has a lower loss than the behavior with the shortest $b$. *Shortest, at the end* and *longest, at
# the end* are the losses of these two behaviors at the last step. For several draws we give the median, and the range
# in parentheses.


# %%
def ends(letter):
    """The behaviors of a mixture with the shortest and the longest b."""
    return lengths[letter].argmin(), lengths[letter].argmax()


def outcome(losses, short, long):
    """Of losses (m, T + 1, seeds), means over the steps t = 0 … T: (seeds,)."""
    return {
        "mean gap": gap(losses).mean(0),
        "longest leads": (losses[long] < losses[short])[1:].mean(0),
        "mean loss": losses.mean((0, 1)),
        "shortest, at the end": losses[short, -1],
        "longest, at the end": losses[long, -1],
    }


# %%
def in_words(what, values):
    """The median of several seeds, and their range."""
    form = {"longest leads": ".0%", "mean gap, times": ".3f"}.get(what, ".4f")
    words = f"{np.median(values):{form}}"
    if len(values) > 1:
        words += f" ({values.min():{form}} … {values.max():{form}})"
    return words


def as_table(rows):
    """Rows of values over seeds as a table of words."""
    words = {
        key: {what: in_words(what, values) for what, values in row.items()}
        for key, row in rows.items()
    }
    return pd.DataFrame(words).T


# %%
head = {
    (letter, what): remedy.head(records, letter, part)
    for letter in together
    for part, what in enumerate(("training", "held-out"))
}
rows = {
    (*key, arm): outcome(losses, *ends(key[0]))
    for key, arms in head.items()
    for arm, losses in arms.items()
}
display(as_table(rows))

# %% [markdown]
# The next table compares each arm with the mixture as it is. It has the factor by which the mean gap changes (*times*), and
# the changes of the mean loss of the behavior with the shortest $b$, of the behavior with the longest $b$, and of all. If a gap
# closes because the short behavior gains, the second column is negative. If it closes because the long behavior is
# slowed down, the third column is positive.


# %%
def change(before, after, short, long):
    """What an arm changes; below zero is faster."""
    difference = (after - before).mean(1)
    return {
        "mean gap, times": gap(after).mean(0) / gap(before).mean(0),
        "mean loss of the shortest": difference[short],
        "mean loss of the longest": difference[long],
        "mean loss of all": difference.mean(0),
    }


# %%
rows = {
    (*key, arm): change(arms["as it is"], losses, *ends(key[0]))
    for key, arms in head.items()
    for arm, losses in arms.items()
    if arm != "as it is"
}
display(as_table(rows))

# %% [markdown]
# For the last layer the remedy works, and not only at the first step. Over the whole run the gap is
# a few hundredths of what it was, on the training statements and on the held-out statements. Resampling
# statements does almost as well as weighting them. Which behavior is then ahead depends on the
# sample.
#
# The remedy levels down more than up. In every mixture the behavior with the longest $b$ is slowed down by more
# than the behavior with the shortest is sped up, and the mean loss of all is higher than before, as part 2 of
# {prf:ref}`thm-equal` says for the first step. The effect is small in pair (a), whose vectors differ little in length.
# In pair (b), where nearly all the weight goes to the short behavior, the long one loses more than
# five times what the short one gains.

# %% [markdown]
# (ev-solved)=
# ### Solving again at every step
#
# The theorem holds for one step. Later the margins differ, each statement contributes in proportion to $\sigma(-m)$,
# and the direction that improves a group is no longer $b_a$. The last arm solves the program again before every step.
# Its vectors are $b_a(t) = -\frac4\beta\nabla L_a$, so for small steps all *losses* decrease equally. If
# priorities hardly change, its weights ({numref}`fig-remedy-weights`) stay where they start, and the arm
# gains nothing over weights that were computed once.

# %% mystnb={"figure": {"caption": "Last layer: weight of each behavior against step, solved for at every step.", "name": "fig-remedy-weights"}, "image": {"alt": "Three panels, one a mixture, of the weight of each of its behaviors against step of training."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.6), sharey=True)
for ax, (letter, behaviors) in zip(axes, together.items(), strict=True):
    used = remedy.head_run(records, behaviors).arrays["weights"]
    for behavior, weights in zip(behaviors, used.T, strict=True):
        name = plots.short(behavior, 36)
        ax.plot(weights, color=plots.color(behavior), label=name)
    ax.set(title=letter, xlabel="step")
axes[0].set_ylabel("weight")
plots.legend_below(fig, axes[2])
plt.show()

# %% [markdown]
# The weights hardly move: priorities hardly change while the loss decreases this far. On the training statements,
# from which it computes the weights, the last arm closes most of the remaining gap. On held-out statements it is
# better than weights computed once in only one of the three mixtures. The gap that remains on held-out statements is the
# difference between two samples of statements, which no weights can remove.

# %% [markdown]
# (ev-remedy-full)=
# ## All parameters
#
# Now we train as in {ref}`full-finetuning`: AdamW, one epoch, every parameter. Two things
# differ from the theorem. We would have to balance the gradients of all parameters, not of the last layer
# alone. And AdamW divides gradients by their size. So the theorem promises nothing here. We still use the
# weights $w$ computed for the last layer, since they are known before training.
#
# We resample the mixture. The number of statements stays the same, and so does the number of steps. Half of the
# statements of each behavior are from either side. The table shows how many statements are available, how many are
# drawn, and how many of these are different:

# %%
rates = full_finetuning.rates(records, beta)
rows = {}
for letter in ("(a)", "(b)"):
    run = remedy.full_runs(records, letter, [*rates][-1])["resampled"]
    for behavior, counts in zip(
        together[letter], run.arrays["counts"].astype(int), strict=True
    ):
        statements = int(records.states(behavior).train.sum())
        assert counts[1] <= min(counts[0], statements)
        rows[letter, plots.short(behavior, 48)] = [statements, *counts]
columns = ["statements", "drawn", "different statements drawn"]
table = pd.DataFrame(rows, columns).T.rename_axis(["mixture", "behavior"])
display(table)

# %% [markdown]
# The runs on the mixtures as they are belong to {ref}`full-finetuning`. {numref}`fig-remedy-full` shows both arms. Each
# has one seed, the same for both.

# %% mystnb={"figure": {"caption": "All parameters: held-out loss against step, as it is (dashed), resampled (solid).", "name": "fig-remedy-full"}, "image": {"alt": "A grid of panels, one a pair and learning rate, of held-out loss against step. Each has four curves: both behaviors of the pair as it is, dashed, and both resampled, solid."}} tags=["hide-input"]
full = remedy.everything(records)
shape = dict(figsize=(6.8, 2.9 * len(rates) + 1.6), sharey=True, squeeze=False)
fig, axes = plt.subplots(len(rates), 2, **shape)
for ax, (letter, rate) in zip(axes.T.flat, full, strict=True):
    for j, behavior in enumerate(together[letter]):
        for arm, losses in full[letter, rate].items():
            line = "--" if arm == "as it is" else "-"
            name = f"{plots.short(behavior, 24)}, {arm}"
            style = dict(color=plots.color(behavior), ls=line, label=name)
            ax.plot(losses[j, :, 0], **style)
    ax.set(title=f"pair {letter}, η = {rate}", xlabel="step")
plt.setp(axes[:, 0], ylabel="held-out loss")
for ax in axes[-1]:
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2))
plt.show()

# %%
outcomes = {
    (*key, arm): outcome(losses, *ends(key[0]))
    for key, arms in full.items()
    for arm, losses in arms.items()
}
changes = {
    (*key, "resampled"): change(*arms.values(), *ends(key[0]))
    for key, arms in full.items()
}
display(as_table(outcomes), as_table(changes))

# %% [markdown]
# The tables are as above. The first shows the outcome. The second shows what resampling changed: the gap, and from which
# side it moved. The remedy helps little here.
#
# In pair (a) the gap decreases to between a half and three quarters of what it was, and from
# one side only: the behavior with the longest $b$ learns more slowly, and the other one no faster. In
# pair (b) only a few dozen statements of the long behavior are left, and the weights overshoot. Now the long
# behavior falls behind, at both learning rates, and the gap is wider than before. The short behavior gains less
# than a tenth of what the long one loses.
#
# When all parameters are trained, the vectors from which we computed the weights do not determine the speed by
# themselves ({ref}`ev-theory-carries`), and repeated statements are not additional statements.

# %% [markdown]
# ## What was shown
#
# - Weights for an equal first step solve a small linear program. They exist exactly if the foot
#   of the perpendicular from 0 lies in the convex hull. For a pair this means that the longer vector's projection
#   on the shorter one's direction does not exceed the shorter vector.
# - If they exist, no other weights give a larger smallest improvement. The price is a smaller mean improvement.
# - In the last layer the gap is a few hundredths of what it was, over the whole run (for resampled
#   mixtures, in the median). With all parameters trained, the same weights close less than half of the gap
#   in one pair, and overshoot in the other. The fast behavior is slowed down, and the slow one gains little
#   or nothing.
#
# Not shown: other ways to the same end, such as additional statements of the short behavior instead of
# repeated ones, weights in the loss of full fine-tuning, or weights from the gradients of all
# parameters. Full fine-tuning has one seed.

# %% [markdown]
# ```{exercise} Which priorities are possible?
# :label: ex-remedy-cone
#
# Two groups have $\varrho = \|b_1\|/\|b_2\|$ and an angle $\vartheta < 90°$. Which ratios $r_1/r_2$ of
# their improvements are possible with suitable weights? Which are possible at an angle above 90°?
# ```
#
# ````{solution} ex-remedy-cone
# :class: dropdown
# $r = Kw$ runs through the segment between the columns of $K$, so the ratio lies between theirs:
# $\varrho\cos\vartheta \le r_1/r_2 \le \varrho/\cos\vartheta$. The ends are training on one group
# alone. Nothing beyond them is possible, since each group's statements help the other. Equality,
# $r_1 = r_2$, is possible if both $\varrho$ and $1/\varrho$ are at least $\cos\vartheta$, which is
# the theorem's condition. Above 90° (and below 180°) both columns have a negative entry, and every
# ratio of positive numbers lies between them.
# ````
#
# **To try.**
#
# - Give pair (a) priorities of your own: after `b = priorities.differences(records, together["(a)"])`,
#   `w = mixtures.max_min_weights(b @ b.T, np.array([1, 3]))`. Train with
#   `path, _ = descend(*data_of_a, lambda _: w, config.steps)` and look at `held_out_losses(path)`. For
#   how long does the second behavior improve three times as much as the first?
# - `papermill notebooks/12_remedy.ipynb out.ipynb -p steps 1000`: the last layer is trained ten times as
#   long. Does the gap come back?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
