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
# **You will see** the obvious answer to unequal priorities: weigh the behaviors of a mixture so
# that the first step improves all of them alike. When that can be had, and when not, with proof;
# what it costs; and what it does over a whole run to a pair that comes apart, in the last layer,
# where it is exact, and in all parameters, where it is a guess.
#
# **It takes** fifteen minutes to read. The recorded runs are replayed in half a minute; made anew
# they take about an hour on two cores. **It needs** nothing to replay; to train, the data
# ({ref}`how-to-run`). {ref}`priorities` and {ref}`full-finetuning` come before it.
#
# {cite:t}`im2024understanding` end with a wish: to shape the data so that what DPO prioritises is
# what we would. They try nothing, so what follows is beyond the paper, and no row of the scorecard
# hangs on it. Arms, measures, learning rates and seeds were fixed before anything was run:
#
# - *as it is*: every statement weighs the same;
# - *reweighted*: the behaviors weigh $w_j$ in the loss, found once, before training;
# - *resampled*: a share $w_j$ of the statements is drawn from each behavior, as many in all as
#   there are, and trained on as usual;
# - *solved at every step*: $w$ is found anew before each step (last layer only).
#
# Of each arm: the gap between the highest and the lowest loss of the behaviors, mean over the
# steps, held out; the mean loss of all; and the loss of the behaviors with the shortest and the
# longest difference of means, by themselves. For a gap can be closed from either side.

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

# %% [markdown]
# `balance` holds the three functions of this page: `weights` solves for $w$, `descend` trains the
# last layer with weights, `resample` draws statements. `experiments.remedy` holds the runs.

# %%
import numpy as np
from experiments import priorities, remedy
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore

from dpo_helpers import mixtures, plots

config = configure(globals())
records = RunStore(config)
together = remedy.mixture_behaviors(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-equal-steps)=
# ## When can a first step be fair?
#
# By {prf:ref}`prop-first-step` the first step on groups that weigh $w_a$ ($w_a \ge 0$,
# $\sum_a w_a = 1$) moves the boundary along $\bar b_w = \sum_a w_a b_a$, and raises the logit
# difference of group $a$ by $\frac{\beta\eta}4$ times
#
# $$b_a\cdot\bar b_w = (Kw)_a, \qquad K_{ab} = b_a\cdot b_b .$$
#
# ({ref}`priorities` had $w_a = n_a/N$. Here both sides of a group weigh the same, so that its pull
# $\hat b_a$ is the difference of means $b_a$.) To do most for the group that the step does least
# for is a linear programme: find the largest $t$ for which some $w$ has $(Kw)_a \ge t$ for all $a$.
# Let $v = \max_w\min_a\,(Kw)_a$ be its value.
#
# ```{prf:theorem} Equal first steps
# :label: thm-equal
#
# 1. $v \ge 0$, and $v = 0$ if and only if the groups cancel: $\bar b_w = 0$ for some $w$.
# 2. If some weights $w^*$ improve all groups equally, $(Kw^*)_a = c$ for all $a$, then $c = v$: no
#    weights do more for the group that they do least for. But every $w$ has
#    $\|\bar b_w\|^2 = c + \|\bar b_w - \bar b_{w^*}\|^2$. So the weighted mean of the improvements,
#    $\sum_a w_a (Kw)_a = \|\bar b_w\|^2$, is smallest for $w^*$; and for groups of equal size,
#    $w_a = \frac1m$, the mean improvement is less after balancing than before, unless it was
#    balanced.
# 3. Such weights exist if and only if the point nearest $0$ of the affine hull of $b_1, \dots, b_m$
#    lies in their convex hull. For independent $b_a$ that is $K^{-1}\mathbf 1 \ge 0$, and
#    $w^* = K^{-1}\mathbf 1/\mathbf 1^\top K^{-1}\mathbf 1$, $c = 1/\mathbf 1^\top K^{-1}\mathbf 1$.
# 4. For two groups, $\|b_1\| \ge \|b_2\| > 0$ at an angle $\vartheta$, $b_1 \ne b_2$, it is
#    $\cos\vartheta \le \|b_2\|/\|b_1\|$. Otherwise $v$ is attained by training on the longer one
#    alone, and the longer one improves by more than $v$.
# 5. Independent groups that all conflict or are orthogonal, $b_a\cdot b_b \le 0$ for $a \ne b$, can
#    always be improved equally.
# ```
#
# `````{dropdown} Proof
# *1.* Let $\bar b_w$ be the point of the convex hull nearest $0$. Moving from it towards any $b_a$
# makes it no shorter, so $\bar b_w\cdot(b_a - \bar b_w) \ge 0$, that is $(Kw)_a \ge \|\bar b_w\|^2$
# for all $a$, and $v \ge \|\bar b_w\|^2 \ge 0$. If $v = 0$, then $\bar b_w = 0$; the converse is 2
# with $c = 0$.
#
# *2.* $K$ is symmetric, so for every $w$ the mean of its improvements with weights $w^*$ is
# $\sum_a w^*_a (Kw)_a = \sum_a w_a (Kw^*)_a = c$; the least of them is at most that, and $v \le c$.
# And $\bar b_w\cdot\bar b_{w^*} = \sum_a w_a (Kw^*)_a = c$, also for $w = w^*$, which gives the
# identity. With $w_a = \frac1m$ the mean improvement is $\|\bar b_w\|^2 \ge c$.
#
# *3.* All $b_a\cdot\bar b_w$ are equal if and only if $\bar b_w$, a point of the affine hull, is
# orthogonal to all $b_a - b_b$: it is the foot of the perpendicular from $0$, and $w$ says that it
# is in the convex hull. For independent $b_a$, $Kw = c\mathbf 1$ has the solutions
# $w = cK^{-1}\mathbf 1$, and $\sum_a w_a = 1$ fixes $c$.
#
# *4.* The foot on the line through $b_1$ and $b_2$ has the weights
# $w_1 = (\|b_2\|^2 - b_1\cdot b_2)/\|b_1 - b_2\|^2$ and
# $w_2 = (\|b_1\|^2 - b_1\cdot b_2)/\|b_1 - b_2\|^2$. The second is never negative, the first is not
# if $b_1\cdot b_2 \le \|b_2\|^2$. Otherwise $(Kw)_2 = w_1\,b_1\cdot b_2 + w_2\|b_2\|^2$ is at most
# $b_1\cdot b_2$, with equality for $w_1 = 1$, and $(Kw)_1 = \|b_1\|^2 > b_1\cdot b_2$ there.
#
# *5.* Let $x = K^{-1}\mathbf 1$, split into $x = x^+ - x^-$, both $\ge 0$ and never both positive.
# Then $\sum_a x^-_a = x^-\cdot Kx = x^-\cdot Kx^+ - x^-\cdot Kx^- \le 0$, for the first term has
# entries of $K$ off the diagonal only, and $K$ is positive definite. So $x^- = 0$. ∎
# `````
#
# So conflict is not what stands in the way. It makes $c$ small, but two groups that pull against
# each other can always be improved equally, if only by a little. What cannot be balanced is a short
# group on whose direction a long one casts a shadow longer than it: whatever the weights, the other
# gets more.
#
# To check, five hundred random mixtures of two to five groups, and the linear programme:


# %%
rng = np.random.default_rng(0)
equal = 0
for m in rng.integers(2, 6, 500):
    b = rng.normal(size=(m, 6)) + rng.normal(size=6) / 2
    alone = np.linalg.solve(b @ b.T, np.ones(m))
    w = mixtures.max_min_weights(b @ b.T)
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
# **Break it.** Two groups of lengths 3 and 1. By the theorem they can be equal down to
# $\arccos\frac13$, about 70.5°:

# %%
for angle in (150, 90, 71, 70, 30):
    turn = np.deg2rad(angle)
    b = np.array([(3.0, 0.0), (np.cos(turn), np.sin(turn))])
    w = mixtures.max_min_weights(b @ b.T)
    print(
        f"{angle:3}°: w = {w.round(3)}, improvements {(b @ b.T @ w).round(2)}"
    )

# %% [markdown]
# Below that angle all the weight goes to the longer group: it does more for the shorter one than
# the shorter one's own statements do.
#
# The same weights by another way: by the proof, where the first step can be equal, $\bar b_{w^*}$
# is the *shortest* vector of the convex hull, a quadratic programme. That is the direction of
# multiple-gradient descent {cite:p}`desideri2012multiple`. Where it cannot, the two differ, and the
# linear programme does more for the group that gains least.

# %% [markdown]
# (ev-ours)=
# ### Priorities that match ours
#
# All alike is one wish among others. Let $r_a > 0$ be how much we want group $a$ to improve,
# relative to the others. Put $b_a/r_a$ for $b_a$ in the theorem: $(Kw)_a = c\,r_a$ for all $a$ can
# be had if and only if $K^{-1}r \ge 0$ (independent groups). `balance.weights` takes $r$ as its
# second argument. For the first pair of Figure 5, twice as much for the first as for the second,
# then the other way round:

# %%
b = priorities.differences(records, together["(a)"])
for wanted in ((1, 1), (2, 1), (1, 2)):
    w = mixtures.max_min_weights(b @ b.T, np.array(wanted))
    rises = b @ b.T @ w
    print(f"r = {wanted}: w = {w.round(3)}, improvements {rises.round(2)}")

# %% [markdown]
# (ev-plan)=
# ## The plan
#
# What the programme says of the two pairs of Figure 5, and of all their behaviors together, from
# the training statements before training. Under this model the lengths in pair (b) differ far more
# than those in pair (a), and so it has the larger gap ({ref}`priorities`); (a) is the pair of which the paper says
# so. The *rise* is that of the logit difference at the first step, in nats: before, for the weights
# $w$, and for weights proportional to $1/\|b_j\|^2$, which would be the solution if all behaviors
# were orthogonal.

# %% tags=["hide-input"]
plan = remedy.plan_table(records)
plan.rename(index=lambda name: plots.short(name, 36)).round(4)

# %% [markdown]
# *seen* is how often a statement comes, on average, when the mixture is resampled. Below 1,
# statements are left out; above 1, some come again. Weights in the loss leave out nothing: where
# the two arms differ, it is that, and rounding to whole statements.

# %% [markdown]
# (ev-remedy-head)=
# ## The last layer
#
# Gradient descent on all training statements, from the same start, at the same learning rate and
# with as many steps in every arm. {numref}`fig-remedy-head` has the losses of both pairs as they
# are and reweighted.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Last layer: held-out loss of each behavior of the two pairs, as it is (dashed) and reweighted for an equal first step (solid).", "name": "fig-remedy-head"}, "image": {"alt": "Two panels, one a pair, of held-out loss against step. Each has four curves: both behaviors of the pair as it is, dashed, and both reweighted, solid."}}
panels, colors = {}, {}
for letter in ("(a)", "(b)"):
    found = remedy.head(records, letter)
    series = {}
    for j, behavior in enumerate(together[letter]):
        for arm in remedy.ARMS[:2]:
            name = f"{plots.short(behavior, 26)}, {arm}"
            series[name] = (np.arange(config.steps + 1), found[arm][j, :, 0])
            colors[name] = plots.color(behavior)
    panels[f"held-out loss, pair {letter}"] = series
dashed = [name for name in colors if name.endswith("as it is")]
plots.lines(panels, "step", colors=colors, dashed=dashed, ncols=2)

# %% [markdown]
# {numref}`fig-remedy-gap` has the gap alone, of all arms, on a logarithmic axis.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Last layer: highest less lowest held-out loss of the behaviors of a mixture; of resampled mixtures the median and the 5 to 95 % range over draws.", "name": "fig-remedy-gap"}, "image": {"alt": "Three panels, one a mixture, of the gap between the losses of its behaviors against step on a logarithmic axis, with one curve each for the mixture as it is, reweighted, resampled with a band, and with weights solved for at every step."}}
panels = {}
for letter in together:
    series = {}
    for arm, losses in remedy.head(records, letter).items():
        low, middle, high = np.quantile(
            remedy.gap(losses)[1:], (0.05, 0.5, 0.95), axis=-1
        )
        several = losses.shape[-1] > 1
        band = np.stack([low, middle, high]) if several else middle
        series[arm] = (np.arange(1, config.steps + 1), band)
    panels[f"gap, {letter}"] = series
plots.lines(panels, "step", scale=("linear", "log"), colors=remedy.HUES)

# %% [markdown]
# In numbers, on the training statements, of which the theorem speaks, and on the held-out ones.
# *Longest leads* is the share of steps at which the behavior with the longest $b$ has a lower loss
# than that with the shortest. Of several draws: median, and range in brackets.

# %% tags=["hide-input"]
found = {
    (letter, what): remedy.head(records, letter, part)
    for letter in together
    for part, what in enumerate(("training", "held-out"))
}
remedy.outcome_table(records, found)

# %% [markdown]
# What each arm changes against the mixture as it is: by which factor the gap, and by how much the
# mean losses of the behaviors at either end, and of all. A gap that closes because the short one
# gains has a negative number in the second column; one that closes because the long one waits has a
# positive one in the third.

# %% tags=["hide-input"]
remedy.change_table(records, found)

# %% [markdown]
# For the last layer the remedy works, and not at the first step alone: over the whole run the gap is
# a few hundredths of what it was, on the training statements and on the held-out ones. Drawing
# statements does almost as well as weighing them. Which behavior is then ahead is a matter of the
# sample.
#
# It levels down more than up. In every mixture the behavior with the longest $b$ is slowed by more
# than that with the shortest is sped up, and the mean loss of all is higher than before, as 2 of
# {prf:ref}`thm-equal` has it for the first step. Little so in pair (a), whose vectors differ little.
# In pair (b), where nearly all the weight goes to the short one, the long one gives up more than
# five times what the short one gets.

# %% [markdown]
# (ev-solved)=
# ### Solving again at every step
#
# The theorem holds for one step. Later the margins differ, each statement pulls with $\sigma(-m)$,
# and what a group asks for is no longer $b_a$. The last arm asks again before every step: the
# vectors are then $-\frac4\beta\nabla L_a$, which for small steps makes all *losses* fall alike. If
# priorities hardly change, its weights, {numref}`fig-remedy-weights`, stay where they start, and it
# gains nothing over weights that were found once.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Last layer: the weights of the behaviors, solved for at every step.", "name": "fig-remedy-weights"}, "image": {"alt": "Three panels, one a mixture, of the weight of each of its behaviors against step of training."}}
panels, colors = {}, {}
for letter, behaviors in mixtures.items():
    used = remedy.head_run(records, behaviors).arrays["weights"]
    names = [plots.short(behavior, 36) for behavior in behaviors]
    colors |= dict(zip(names, map(plots.color, behaviors), strict=True))
    panels[f"weight, {letter}"] = {
        name: (np.arange(len(used)), row)
        for name, row in zip(names, used.T, strict=True)
    }
plots.lines(panels, "step", colors=colors)

# %% [markdown]
# They stay: priorities hardly change while the loss falls this far. On the training statements,
# which it looks at, the last arm closes what gap there was left. On held-out statements it is the
# better one in a single mixture of the three: what is left there is the difference between two
# samples of statements, and no weights know of that.

# %% [markdown]
# (ev-remedy-full)=
# ## All parameters
#
# Now DPO as {ref}`full-finetuning` has it: AdamW, one epoch, every parameter. Two things are no
# longer as in the theorem. The gradients that would have to be balanced are those of all
# parameters, not of the last layer alone; and AdamW divides by their size. The weights are still
# those of the last layer, since these are known before training, and so nothing is promised.
#
# The mixture is resampled: as many statements, so as many steps. Half of those of each behavior are
# of either side. What that takes:

# %% tags=["hide-input"]
drawn = remedy.drawn_table(records)
drawn.rename(index=lambda name: plots.short(name, 48))

# %% [markdown]
# The runs as they are belong to {ref}`full-finetuning`. {numref}`fig-remedy-full` has both arms, each
# with one seed, the same.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "All parameters: held-out loss of each behavior of the two pairs, as it is (dashed) and resampled (solid).", "name": "fig-remedy-full"}, "image": {"alt": "A grid of panels, one a pair and learning rate, of held-out loss against step. Each has four curves: both behaviors of the pair as it is, dashed, and both resampled, solid."}}
found, panels, colors = remedy.everything(records), {}, {}
for (letter, rate), arms in found.items():
    series = {}
    for j, behavior in enumerate(together[letter]):
        for arm, losses in arms.items():
            name = f"{plots.short(behavior, 26)}, {arm}"
            series[name] = (np.arange(losses.shape[1]), losses[j, :, 0])
            colors[name] = plots.color(behavior)
    panels[f"held-out loss, {letter}, η = {rate}"] = series
dashed = [name for name in colors if name.endswith("as it is")]
plots.lines(panels, "step", colors=colors, dashed=dashed, ncols=2)

# %% tags=["hide-input"]
display(remedy.outcome_table(records, found))
remedy.change_table(records, found)

# %% [markdown]
# The first table has the outcome, the second what resampling changed: the gap, and then from which
# side it moved. Nothing was promised here, and little is kept.
#
# In pair (a) the gap becomes smaller, to between a half and three quarters of what it was, and from
# one side only: the behavior with the longest $b$ learns more slowly, and the other one no faster. In
# pair (b), of whose long behavior a few dozen statements are left, the weights overshoot: now that
# behavior falls behind, at both rates, and the gap is wider than before. The short one gains less
# than a tenth of what the other loses.
#
# With all parameters trained, the vectors that the weights were made of do not set the speed by
# themselves ({ref}`ev-theory-carries`), and statements that are repeated are not more statements.

# %% [markdown]
# ## What was shown
#
# - Weights for an equal first step are a small linear programme. They exist exactly where the foot
#   of the perpendicular lies in the hull: for a pair, where the longer vector casts on the shorter
#   one's direction a shadow no longer than that.
# - Where they exist, no weights do more for the group that gains least, and the mean improvement is
#   the price.
# - In the last layer the gap stays at a few hundredths of what it was, over the whole run (of resampled
#   mixtures, in the median). With all parameters trained, the same weights close less than half of it
#   in one pair, and overshoot in the other; the fast behavior is slowed, and the slow one gains little
#   or nothing.
#
# Not shown: other ways to the same end, such as more statements of the short behavior in place of
# repeated ones, a weight in the loss of all parameters, or weights from the gradients of all
# parameters. In full training there is one seed.

# %% [markdown]
# ```{exercise} Which priorities can be had?
# :label: ex-remedy-cone
#
# Two groups, $\varrho = \|b_1\|/\|b_2\|$, at an angle $\vartheta < 90°$. Which ratios $r_1/r_2$ of
# the improvements can weights bring about? And at an angle above 90°?
# ```
#
# ````{solution} ex-remedy-cone
# :class: dropdown
# $r = Kw$ runs through the segment between the columns of $K$, so the ratio lies between theirs:
# $\varrho\cos\vartheta \le r_1/r_2 \le \varrho/\cos\vartheta$. The ends are training on one group
# alone; nothing beyond them can be had, since each group's statements help the other. Equality,
# $r_1 = r_2$, is possible if both $\varrho$ and $1/\varrho$ are at least $\cos\vartheta$, which is
# the theorem's condition. Above 90° (and below 180°) both columns have a negative entry, and every
# ratio of positive numbers lies between them.
# ````
#
# **To try.**
#
# - `balance.weights(b @ b.T, np.array([1, 3]))`: priorities of your own, for pair (a); then
#   `balance.descend` with these weights, and see how long they last.
# - `papermill notebooks/12_remedy.ipynb out.ipynb -p steps 1000`: the last layer trained on. Does
#   the gap come back?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
