# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (distributional-changes)=
# # What training does to hidden states
#
# **You will see** the hidden states of five behaviors before and after full fine-tuning. We first
# look at pictures, fitted in two ways, and at what neither can show. Then we measure in the
# original space: how far apart are the two sides (the statements that prefer Yes and those that
# prefer No), how wide is each, and which ratio of width to distance is meaningful? Finally, does a
# linear classifier find more than before, on statements that were not trained on?
#
# **It takes** twenty minutes to read and about a minute to run. **It needs** the recorded runs of
# {ref}`full-finetuning`; read that page first. This page trains nothing else.
#
# This page follows §5.2 and Appendices D.2 and E of {cite:t}`im2024understanding`: Figures 8 and 20 to 26.
#
# ```{admonition} What differs from the paper
# :class: note
# The model and the two learning rates are those of {ref}`full-finetuning`: the paper's rate, and one
# scaled to the model by a rule. The paper gives pictures here and no numbers; we add the numbers.
# Hidden states after training are recorded for one seed, so we do not know how much another seed would
# change.
# ```

# %% tags=["parameters"]
tier = "book"
model = None
data = None
behaviors = None
beta = None
full_learning_rate = None
full_batch_size = None
device = None

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from experiments import distributional_changes, full_finetuning
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from sklearn.linear_model import LogisticRegression
from workflow import claims

from dpo_helpers import plots
from dpo_helpers.states import umap_2d

plots.use_style()
config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# ## Two claims, and pictures
#
# §5.2 says of all behaviors that "the positive and negative examples generally become more
# distinguishable after DPO, and their distributions are more concentrated as their ratios of
# variance to distinguishability are reduced". The evidence is one pair of pictures per behavior:
# before and after. The captions do not say how they were made. Figure 2 uses UMAP
# {cite:p}`mcinnes2018umap`, so we use UMAP. The states before training form one cloud of points,
# the states after training another. Should UMAP be fitted to each cloud by itself, or to both at
# once?
#
# As in the paper, we show all statements of a behavior. Training is one epoch on nine tenths of
# them. `trained_run` of {ref}`full-finetuning` records the maps, and the statistics that this page
# uses.

# %%
first = config.behaviors[0]
states = {behavior: records.states(behavior) for behavior in config.behaviors}
runs = distributional_changes.trained(records, config.behaviors, config.beta)
rates = full_finetuning.rates(records, config.beta)
print(f"β = {config.beta:g}", {name: f"η = {x:g}" for name, x in rates.items()})
print({k: x.shape for k, x in next(iter(runs.values())).items()})

# %% [markdown]
# In {numref}`fig-eight` each cloud has a map of its own. In {numref}`fig-eight-joint` both share
# one map. Green marks statements where Yes is preferred. Compare the two: how much has training
# changed?


# %% mystnb={"figure": {"caption": "UMAP of the first behavior's hidden states, before and after training fitted separately (the paper's Figure 8).", "name": "fig-eight"}, "image": {"alt": "A scatter plot of hidden states flattened by UMAP before training, and one after training for each learning rate. Green discs are statements to be answered Yes, gray crosses those to be answered No."}} tags=["hide-input"]
def draw(panels, ncols):
    """One panel per title: points (n, 2), or before (pale), after (2, n, 2); labels."""
    nrows = -(-len(panels) // ncols)
    wide = 7.4 / max(ncols, 2)
    fig, axes = plt.subplots(
        nrows, ncols, figsize=(wide * ncols, wide * nrows + 0.6), squeeze=False
    )
    sides = ((1, "o", plots.YES, "Yes"), (-1, "x", plots.NO, "No"))
    for ax, (title, (points, labels)) in zip(
        axes.flat, panels.items(), strict=True
    ):
        *before, after = points if points.ndim == 3 else [points]
        for side, marker, color, name in sides:
            how = dict(s=7, marker=marker, color=color, rasterized=True)
            for cloud in before:
                ax.scatter(*cloud[labels == side].T, **how, alpha=0.15)
            ax.scatter(*after[labels == side].T, **how, alpha=0.7, label=name)
        ax.set(title=title, xticks=[], yticks=[])
    for handle in plots.legend_below(fig, axes[0, 0]).legend_handles:
        handle.set_sizes([40])
    plt.show()


labels = states[first].labels
own = {f"after, η = {x:g}": runs[first, x] for x in rates.values()}
panels = {"before": (next(iter(own.values()))["separate"][0], labels)}
panels |= {title: (run["separate"][1], labels) for title, run in own.items()}
draw(panels, len(panels))

# %% mystnb={"figure": {"caption": "UMAP of the same states, before (pale) and after training (strong) fitted together.", "name": "fig-eight-joint"}, "image": {"alt": "For each learning rate one scatter plot with the hidden states before training in pale and after training in strong colors, on one map. Most of the pale points lie apart from the strong ones."}} tags=["hide-input"]
draw(
    {k.replace("after", "both"): (x["joint"], labels) for k, x in own.items()},
    len(own),
)

# %% [markdown]
# (ev-blind)=
# ### What neither picture can show
#
# UMAP looks at the nearest neighbors of each statement. It measures their distances relative to how
# far away the nearest ones are. To see what this hides, we take the states before training and
# change them in two known ways:
#
# - All states become **four times as long**. Distinguishability is then four times as large, and
#   the variance sixteen times as large.
# - All states are **shifted by one vector**. This changes nothing that the two claims are about.


# %%
def measured(g, labels):
    """‖b̂‖ of states g (n, d), and the larger ‖Σ̂±‖ and Tr Σ̂± of the two sides."""
    sides = [g[labels == side] for side in (1, -1)]
    b = sides[0].mean(0) - sides[1].mean(0)
    covariances = [np.cov(rows.T, bias=True) for rows in sides]  # (d, d)
    norm = max(np.linalg.eigvalsh(x)[-1] for x in covariances)
    return np.linalg.norm(b), norm, max(map(np.trace, covariances))


g = states[first].g
(b_norm, variance, _), larger = measured(g, labels), measured(4 * g, labels)
print(f"‖b̂‖ {b_norm:.2f} → {larger[0]:.2f}")
print(f"‖Σ̂±‖ {variance:.2f} → {larger[1]:.2f}")
same, again = umap_2d(g), umap_2d(4 * g)
print("from g to 4g, the map changes by at most", abs(again - same).max())
assert np.array_equal(again, same)
moved = umap_2d(np.concatenate([g, g + 1])).reshape(2, -1, 2)

# %% mystnb={"figure": {"caption": "UMAP of g, which equals UMAP of 4g (left); of g and g + c, fitted together (right).", "name": "fig-blind"}, "image": {"alt": "Two scatter plots. Left one cloud of green discs and gray crosses. Right two islands of the same shape and mixture, one pale and one strong."}} tags=["hide-input"]
pictures = {"g, and 4g": same, "g (pale) and g + c (strong)": moved}
draw({name: (points, labels) for name, points in pictures.items()}, 2)

# %% [markdown]
# A map fitted to one cloud cannot show that the cloud grew: the map of $4g$ equals the map of $g$,
# to the last digit. So two pictures that are fitted separately are no evidence for or against a
# larger distance. One map for both clouds can show motion. But a motion shared by all statements,
# which says nothing about the preference, splits it into two islands ({numref}`fig-blind`, right).
# Within an island distances are local again. The map shows whatever moved most.
#
# The axes of a map have no meaning, and the same distance can mean different things at two places.
# From here on we use no coordinates of a map.

# %% [markdown]
# (ev-measured-change)=
# ## How far apart, how wide
#
# Everything that the claims are about can be measured in the original space of $d$ dimensions.
# Write $\hat b = \hat\mu_+ - \hat\mu_-$, so that $\|\hat b\|$ is the distinguishability. Write
# $\|\hat\Sigma\|$ for the larger of $\|\hat\Sigma_+\|$ and $\|\hat\Sigma_-\|$, the variance in the
# direction in which it is largest. §5.2 does not define its variance, and prints no formula for its
# ratio. The theorems bound $\|\Sigma_\pm\|$, and the text after Theorem 4.2 calls it variance. So
# we first read the paper's ratio as
#
# $$q_1 = \frac{\|\hat\Sigma\|}{\|\hat b\|} .$$
#
# Beside it we show another common reading, with the variance in all directions, ${\rm Tr}\,\hat\Sigma_\pm$. The
# next section has two further readings.


# %%
def spread(run):
    """Statistics (2, 2) of a run: before and after training; all and held-out."""
    b, variance, trace = (
        np.asarray(run[what], np.float64)
        for what in ("apart", "covariance", "trace")
    )
    q2 = variance / b**2
    found = {"‖b̂‖": b, "‖Σ̂‖": variance, "q₁": variance / b}
    found |= {"Tr Σ̂/‖b̂‖": trace / b, "q₂": q2, "1/(1 + 4q₂)": 1 / (1 + 4 * q2)}
    return found | {"Tr Σ̂/‖Σ̂‖": trace / variance}


found = {key: spread(run) for key, run in runs.items()}
for (behavior, rate), run in runs.items():
    theirs = distributional_changes.spread(run).values()
    assert np.allclose([*found[behavior, rate].values()], [*theirs])
    recorded = [run[what][0, 0] for what in ("apart", "covariance", "trace")]
    s = states[behavior]
    assert np.allclose(measured(s.g, s.labels), recorded, rtol=1e-4)

# %% [markdown]
# Each row of the table is a run. Entries are values before → after training, over all statements of
# a behavior.

# %%
index = pd.MultiIndex.from_tuples(
    [(plots.short(name, 30), f"{rate:g}") for name, rate in found],
    names=["behavior", "η"],
)


def arrows(what, part=0, form=".3g"):
    """Before → after, one string per run."""
    values = [x[what][:, part] for x in found.values()]
    return [f"{old:{form}} → {new:{form}}" for old, new in values]


columns = ("‖b̂‖", "‖Σ̂‖", "q₁", "Tr Σ̂/‖b̂‖")
pd.DataFrame({what: arrows(what) for what in columns}, index=index)

# %% [markdown]
# In how many of these runs does each quantity rise or fall? By which factor, that is, after
# training over before?


# %%
def factors(what):
    """After over before, one value per run."""
    return np.array([x[what][1, 0] / x[what][0, 0] for x in found.values()])


rows = {
    what: {
        "rises": (factors(what) > 1).sum(),
        "falls": (factors(what) < 1).sum(),
        "smallest factor": f"{factors(what).min():.3g}",
        "largest factor": f"{factors(what).max():.3g}",
    }
    for what in (*columns, "q₂")
}
lengths = np.concatenate([np.linalg.norm(s.g, axis=1) for s in states.values()])
print(
    f"length of a state before training: {lengths.mean():.1f} ± {lengths.std():.2f}"
)
pd.DataFrame(rows).T.rename_axis(f"{len(found)} runs")

# %% [markdown]
# Could the states simply have become longer? No: $g$ is the output of the final norm, so its length
# is fixed up to the norm's gain, and AdamW moves a gain by about $\eta$ per step. The means
# separate because the states change direction, and $\|\hat b\|$ can hardly exceed twice the length
# of a state. The fixed length also ties the two claims together: the mean of $\|g\|^2$ over a side
# is $\|\hat\mu_\pm\|^2 + {\rm Tr}\,\hat\Sigma_\pm$, so a side that spreads has a shorter mean.

# %% [markdown]
# (ev-two-ratios)=
# ## Which ratio?
#
# A variance is the square of a length, so $q_1$ is itself a length. Multiply all hidden states by $c$
# and divide the unembedding by $c$: every answer of the model stays the same, and $q_1$ becomes $c$ times
# as large. Two ratios do not have this flaw,
#
# $$q_2 = \frac{\|\hat\Sigma\|}{\|\hat b\|^2}, \qquad v = \frac{\max_\pm \hat u\cdot\hat\Sigma_\pm\hat u}{\|\hat b\|^2} \le q_2, \qquad \hat u = \frac{\hat b}{\|\hat b\|} .$$
#
# $v$ uses only the variance *along* $\hat b$, the direction that separates the two sides. (If "variance" in §5.2
# means a standard deviation, the ratio is $\sqrt{q_2}$. So choosing between $q_1$ and $q_2$ is
# also choosing between two readings of the paper.)
#
# ```{prf:proposition} What the ratios say
# :label: prop-ratios
#
# For any hidden states of two sides with $\hat b \ne 0$:
#
# 1. If all states are multiplied by $c > 0$, then $q_1$ becomes $c\,q_1$; $q_2$ and $v$ do not change.
# 2. Let the part of every state along $\hat b$ be stretched by $c \ge 1$,
#    $g \mapsto g + (c - 1)(\hat u\cdot g)\,\hat u$. Then $v$ does not change, and for every
#    statement the nearer of the two means stays the same. $q_2$ does not rise. $q_1$ becomes at
#    least $c\,\|\hat b\|\,v$, so it grows without bound if $v > 0$.
# 3. Of the statements of either side, a share of at least $\dfrac1{1 + 4v} \ge \dfrac1{1 + 4q_2}$ is nearer to the mean of its own
#    side than to that of the other.
# ```
#
# `````{dropdown} Proof
# (1) $\hat b$ is multiplied by $c$, $\hat\Sigma_\pm$ by $c^2$.
#
# (2) Let $S = I + (c - 1)\,\hat u\hat u^\top$. The means are mapped by $S$ too, so $\hat b$ becomes $S\hat b = c\,\hat b$, with the same $\hat u$, and
# $\hat\Sigma_\pm$ becomes $S\hat\Sigma_\pm S$. As $S\hat u = c\,\hat u$, the variance along $\hat u$ is multiplied by $c^2$, and $v$ does not change. A statement is nearer to
# $\hat\mu_+$ if and only if $\hat b\cdot(g - \frac12(\hat\mu_+ + \hat\mu_-)) > 0$; the stretch multiplies the left side by $c^2$.
# Since $\|S\| = c$, $\|S\hat\Sigma_\pm S\| \le c^2\|\hat\Sigma_\pm\|$: so $q_2$ does not rise. And $\|S\hat\Sigma_\pm S\| \ge \hat u\cdot S\hat\Sigma_\pm S\hat u = c^2\,\hat u\cdot\hat\Sigma_\pm\hat u$;
# divide the larger one by $c\,\|\hat b\|$.
#
# (3) Draw a statement of the side $+$; let $X = \hat u\cdot(g - \hat\mu_+)$, which has mean 0 and a variance of at most $v\|\hat b\|^2$. It is not nearer to its own mean only
# if $X \le -\|\hat b\|/2$. By Cantelli's inequality the probability of that is at most
# $v\|\hat b\|^2/(v\|\hat b\|^2 + \|\hat b\|^2/4) = 4v/(1 + 4v)$. The same holds for the other side. ∎
# `````
#
# So a larger $q_1$ need not mean that the sides are harder to tell apart. If the states are
# stretched far enough along $\hat b$, $q_1$ rises, but $v$ and the share of statements nearer to
# their own mean stay the same. The next cells stretch the first behavior's states before training.
# The last column is the held-out accuracy of a linear classifier, which {ref}`ev-separable-change`
# discusses.


# %%
def along(g, labels):
    """v, and the share of states nearer to the mean of their own side."""
    means = [g[labels == side].mean(0) for side in (1, -1)]
    b, middle = means[0] - means[1], (means[0] + means[1]) / 2
    places = (g - middle) @ b / np.linalg.norm(b)  # along û, 0 in the middle
    variance = max(places[labels == side].var() for side in (1, -1))
    return variance / (b @ b), (places * labels > 0).mean()


def stretched(g, labels, factor):
    """g (n, d) with its part along b̂ ``factor`` times as long."""
    b = g[labels == 1].mean(0) - g[labels == -1].mean(0)
    unit = b / np.linalg.norm(b)
    return g + (factor - 1) * np.outer(g @ unit, unit)


# %%
def probe_accuracy(g, labels, train):
    """Held-out accuracy of logistic regression on standardized states."""
    x = (g - g[train].mean(0)) / g[train].std(0)
    probe = LogisticRegression(max_iter=2000).fit(x[train], labels[train])
    return probe.score(x[~train], labels[~train])


s, rows = states[first], {}
for factor in (1, 4, 16):
    g = stretched(s.g, s.labels, factor)
    (b_norm, variance, _), (v, nearer) = measured(g, labels), along(g, labels)
    assert np.allclose((v, nearer), distributional_changes.along(g, labels))
    assert np.allclose((v, nearer), along(s.g, labels))  # (2): no change
    assert nearer >= 1 / (1 + 4 * v) and v <= variance / b_norm**2
    row = {"‖b̂‖": b_norm, "q₁": variance / b_norm, "q₂": variance / b_norm**2}
    row |= {"v": v, "nearer to its own mean": nearer}
    row["linear classifier"] = probe_accuracy(g, labels, s.train)
    rows[f"stretched {factor:g} times"] = row
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# One caution about $q_2$: a stretch can *lower* it, down to $v$. So a lower $q_2$ alone does not
# prove that training did more than stretch. A fall of $v$ would prove it. The runs do not record
# $v$ after training, but $v \le q_2$. So where $q_2$ after training is below $v$ before training,
# $v$ has fallen, and no scaling or stretch can do that.

# %%
before = [along(states[b].g, states[b].labels)[0] for b, _ in found]
after = np.array([x["q₂"][1, 0] for x in found.values()])
proven = after < before
table = pd.DataFrame({"q₂": arrows("q₂")}, index=index)
table["v before"] = np.round(before, 3)
table["v has fallen"] = np.where(proven, "proven", "open")
table["1/(1 + 4q₂)"] = arrows("1/(1 + 4q₂)", form=".0%")
table["Tr Σ̂/‖Σ̂‖"] = arrows("Tr Σ̂/‖Σ̂‖", form=".1f")
print(f"v has fallen: proven for {proven.sum()} of {len(proven)} runs")
display(table)

# %% [markdown]
# The column $1/(1 + 4q_2)$ is the guarantee of {prf:ref}`prop-ratios`: at least this share of
# either side is nearer to its own mean. A value below one half says nothing.
#
# The last column estimates in how many directions a side spreads. If it is near 1, the side is
# nearly a line: its statements differ in how far training has moved them, and in little else. This
# is how $q_1$ can rise. If statement $i$ moves by $s_i a_i$ along one direction, $\|\hat b\|$ grows
# with the mean of the $a_i$. $\|\hat\Sigma\|$ grows with their variance, that is, with the *square*
# of how far they move. Whether $q_1$ rises or falls depends on how evenly the statements move, and
# on how far; {ref}`ex-even` derives the condition.

# %% [markdown]
# (ev-held-out-change)=
# ## Statements that were not trained on
#
# An epoch trains on nine tenths of the statements. Did only these move apart? The distance between
# the held-out means is not directly comparable, since means of few statements are noisy:
#
# $$\mathbb E\|\hat b\|^2 = \|b\|^2 + \frac{{\rm Tr}\,\Sigma_+}{n_+} + \frac{{\rm Tr}\,\Sigma_-}{n_-}.$$
#
# The fewer the statements, the larger the measured distance is on average. `denoised` subtracts the
# noise. (Only the larger of the two traces is recorded. We use it for both sides, so we subtract
# slightly too much.)


# %%
def denoised(apart, trace, counts):
    """‖b̂‖ without the noise of means of ``counts`` (n₊, n₋) states; at least 0."""
    noise = trace * sum(1 / (n - 1) for n in counts)
    return np.sqrt(np.maximum(0, apart**2 - noise))


rng, b = np.random.default_rng(0), np.array([3.0, 0, 0, 0])
sides = rng.normal(size=(2, 8000, 20, 4)) + np.array([b, -b])[:, None, None] / 2
apart = np.linalg.norm(sides[0].mean(1) - sides[1].mean(1), axis=1)
trace = sides.var(2).sum(-1).mean(0)
left = denoised(apart, trace, (20, 20)) ** 2  # on average ‖b‖² = 9
error = left.std() / np.sqrt(len(left))
assert abs(left.mean() - 9) < 4 * error < (apart**2).mean() - 9

# %%
clean = []
for (name, _), run in runs.items():
    s = states[name]
    for part, rows in enumerate((np.ones(len(s.g), bool), ~s.train)):
        counts = [(s.labels[rows] == side).sum() for side in (1, -1)]
        apart, trace = (
            np.asarray(run[what], np.float64)[:, part]
            for what in ("apart", "trace")
        )
        clean.append(denoised(apart, trace, counts))
clean = np.reshape(
    clean, (len(runs), 2, 2)
)  # run; all, held out; before, after
table = {"all": arrows("‖b̂‖"), "held-out": arrows("‖b̂‖", 1)}
for part, name in enumerate(
    ("all, noise subtracted", "held-out, noise subtracted")
):
    table[name] = [f"{a:.3g} → {b:.3g}" for a, b in clean[:, part]]
pd.DataFrame(table, index=index)

# %%
grown = [x["‖b̂‖"][1, 1] > x["‖b̂‖"][0, 1] for x in found.values()]
print(f"held-out distinguishability rises in {sum(grown)} of {len(grown)} runs")
if clean[:, :, 1].all():
    share = clean[:, 1, 1] / clean[:, 0, 1]
    print("after training, noise subtracted, held-out over all statements:")
    print(f"{share.min():.0%} to {share.max():.0%}")

# %% [markdown]
# (ev-separable-change)=
# ## Does a linear classifier find more?
#
# Distinguishability depends on two means only. A linear classifier can use all directions. We fit
# logistic regression to the standardized states of the training statements, and evaluate it on the
# held-out statements.

# %%
s = states[first]
theirs = float(runs[first, next(iter(rates.values()))]["separable"][0])
assert abs(probe_accuracy(s.g, s.labels, s.train) - theirs) <= 0.02
accuracy = np.array([run["separable"] for run in runs.values()], float)
sizes = np.array([(~states[name].train).sum() for name, _ in runs])
error = np.sqrt((accuracy * (1 - accuracy)).sum(1) / sizes)  # of the change
difference = accuracy[:, 1] - accuracy[:, 0]
table = {
    "held-out statements": sizes,
    "accuracy": [f"{a:.0%} → {b:.0%}" for a, b in accuracy],
    "change": [f"{d:+.0%}" for d in difference],
    "± two standard errors": [f"{2 * e:.0%}" for e in error],
}
pd.DataFrame(table, index=index)

# %%
start, clear = accuracy[:, 0], abs(difference) > 2 * error
print(f"accuracy before training: {start.min():.0%} to {start.max():.0%}")
for word, sign in (("rises", 1), ("falls", -1)):
    moved = sign * difference > 0
    print(f"{word} in {moved.sum()} of {len(moved)} runs,", end=" ")
    print(f"by more than two standard errors in {(moved & clear).sum()}")

# %% [markdown]
# Look first at the accuracy before training. The distinction that the classifier finds then is not
# created by DPO. DPO can move it into the direction of the one vector $W_B$ that the model uses.
# This increases the distance, not the information.
#
# Why would the accuracy fall while $\|\hat b\|$ grows? There are two possible reasons. The first is
# the classifier's penalty on its weights. When one direction dominates every standardized
# coordinate, using any other direction takes larger weights. The stretched states in
# {ref}`ev-two-ratios` lost nothing, and show how large this effect can be. The second explains any
# further fall: training has blurred a distinction. (The standard errors treat the two accuracies as
# independent. They come from the same statements, so the errors are on the wide side.)

# %% [markdown]
# (ev-all-betas)=
# ## Every β, and all behaviors
#
# {numref}`fig-factors` shows four quantities, each after training divided by before, at all values
# of $\beta$. There is one run per behavior, $\beta$, and learning rate. At $\beta = 1$ the paper
# uses a tenth of the learning rate, so the right end of each line is not the effect of $\beta$
# alone. The runs of this section are the standard runs of the tier; the parameters at the top do
# not change them.

# %%
tier_records = RunStore(
    configure({"tier": config.tier, "device": config.device})
)
rows = []
for behavior, value in distributional_changes.shown(config.tier):
    for name, rate in full_finetuning.rates(tier_records, value).items():
        run = full_finetuning.trained_run(
            tier_records, [behavior], value, rate, 0
        )
        row = {"behavior": behavior, "β": value, "rate": name, "η": rate}
        ratios = spread(run.arrays)
        row |= {what: x[1, 0] / x[0, 0] for what, x in ratios.items()}
        rows.append(row)
changes = pd.DataFrame(rows).sort_values("β", kind="stable")

# %% mystnb={"figure": {"caption": "Four quantities, after training over before, against \u03b2: scaled learning rate (solid), paper's (dashed).", "name": "fig-factors"}, "image": {"alt": "Four panels against \u03b2, both axes logarithmic, one line a behavior and learning rate: distinguishability, largest variance, the ratio q1 and the ratio q2, after training over before."}} tags=["hide-input"]
names = {
    b: f"{i} {plots.short(b, 64)}"
    for i, b in enumerate(changes["behavior"].unique(), 1)
}
fig, axes = plt.subplots(2, 2, figsize=(7.4, 7.2))
for ax, what in zip(axes.flat, ("‖b̂‖", "‖Σ̂‖", "q₁", "q₂"), strict=True):
    for (behavior, rate), part in changes.groupby(
        ["behavior", "rate"], sort=False
    ):
        how = dict(ls="--") if rate == "paper" else dict(label=names[behavior])
        ax.loglog(part["β"], part[what], color=plots.color(behavior), **how)
    ax.axhline(1, color="#6b6b6b", lw=1)
    ax.set(title=what, xlabel="β", ylabel="after / before")
plots.legend_below(fig, axes[0, 0], ncols=1)
plt.show()

# %% [markdown]
# In how many runs does each quantity rise or fall? "More distinguishable" is the column of
# $\|\hat b\|$; "more concentrated", in our first reading, is the column of $q_1$. The variance itself has a column of
# its own, since "concentrated" might be taken to mean that the sides contract.

# %%
groups = changes.groupby(["β", "η"])
table = pd.DataFrame({"runs": groups.size()})
table["‖b̂‖ larger"] = groups["‖b̂‖"].apply(lambda x: (x > 1).sum())
for name, what in (("‖Σ̂‖", "‖Σ̂‖"), ("q₁", "q₁"), ("q₂", "q₂")):
    table[f"{name} smaller"] = groups[what].apply(lambda x: (x < 1).sum())
for what, digits in (("‖b̂‖", 1), ("q₁", 2), ("q₂", 3)):
    table[f"median {what} ×"] = groups[what].median().round(digits)
table.index = [f"β = {value:g}, η = {rate:g}" for value, rate in table.index]
display(table)

# %% [markdown]
# These runs differ much in how far training has progressed. {numref}`fig-rise` orders them by how
# far the means have moved apart, at any $\beta$ and learning rate. The lines printed below it
# compare the two learning rates.

# %% mystnb={"figure": {"caption": "q\u2081 and q\u2082 against \u2016b\u0302\u2016, each after training over before; a point is a run.", "name": "fig-rise"}, "image": {"alt": "Two scatter plots with logarithmic axes, of the ratios q1 and q2 against the distance of the means, each after training over before. A point is a run, its color the behavior."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.4, 4.4))
for ax, what in zip(axes, ("q₁", "q₂"), strict=True):
    for behavior, part in changes.groupby("behavior", sort=False):
        how = dict(color=plots.color(behavior), label=names[behavior])
        ax.loglog(part["‖b̂‖"], part[what], "o", **how)
    ax.set(title=what, xlabel="‖b̂‖, after / before", ylabel="after / before")
plots.legend_below(fig, axes[0], ncols=1)
plt.show()

# %%
pair = changes.pivot(
    index=["β", "behavior"], columns="rate", values=["η", "q₁"]
)
if "scaled" in pair["η"] and (pair["η"].scaled > pair["η"].paper).all():
    fallen = pair["q₁"].scaled < pair["q₁"].paper
    print("q₁ is lower at the higher of the two learning rates for")
    for value, part in fallen.groupby("β"):
        print(f"  {part.sum()} of {len(part)} behaviors at β = {value:g}")

# %% [markdown]
# Where $q_1$ falls again as the means move further apart, a verdict on $q_1$ depends on how long a
# model has been trained. After less training $q_1$ has risen; after more it may have fallen. The
# paper's larger model may be further along at the end of its epoch. The paper does not print its
# $q_1$, so we do not know.

# %% [markdown]
# (ev-other-pictures)=
# ## The other pictures
#
# Figures 23 to 26 show the other behaviors. Figures 20 to 22 show the first behavior at the other
# values of $\beta$. In {numref}`fig-all-planes` each row is a behavior. Its columns are before
# training and after it, fitted separately, and both fitted together, at the last of the learning
# rates above. The states before training do not depend on $\beta$, so {numref}`fig-beta-planes`
# leaves that column out.

# %% mystnb={"figure": {"caption": "UMAP of each behavior's hidden states: before, after, and both (the paper's Figures 8 and 23 to 26).", "name": "fig-all-planes"}, "image": {"alt": "A grid of scatter plots, one row a behavior and three columns: states before training, after training, and both on one map with the former in pale colors."}} tags=["hide-input"]
rate = [*rates.values()][-1]
panels = {}
for i, name in enumerate(config.behaviors, 1):
    run, sides = runs[name, rate], states[name].labels
    panels[f"{i}: before"] = (run["separate"][0], sides)
    panels[f"{i}: after"] = (run["separate"][1], sides)
    panels[f"{i}: both"] = (run["joint"], sides)
draw(panels, 3)

# %% mystnb={"figure": {"caption": "UMAP of the first behavior's hidden states at other values of \u03b2 (the paper's Figures 20 to 22).", "name": "fig-beta-planes"}, "image": {"alt": "A grid of scatter plots, one row a value of \u03b2 and two columns: states after training, and those before and after on one map with the former in pale colors."}} tags=["hide-input"]
behavior, panels = full_finetuning.MAIN[config.tier][0], {}
sides = tier_records.states(behavior).labels
for value in full_finetuning.BETAS[config.tier]:
    trained = distributional_changes.trained(tier_records, [behavior], value)
    run = [*trained.values()][-1]
    panels[f"β = {value:g}: after"] = (run["separate"][1], sides)
    panels[f"β = {value:g}: both"] = (run["joint"], sides)
draw(panels, 2)

# %% [markdown]
# Where the sides look compact after training, they are compact relative to the gap between them. A
# map has its own units, so it cannot show width in any other way. What the eye compares is
# therefore free of scale, as $q_2$ is. The paper's pictures can be right whether or not its
# sentence holds for $q_1$. No picture shows that the sides are *narrow*; the table of
# {ref}`ev-measured-change` has their variances.

# %% [markdown]
# ## What was shown
#
# - A map fitted to one cloud is the same for $g$ and $4g$. A map fitted to two clouds shows a motion shared by all
#   statements as strongly as one that separates them.
# - The ratio $q_1$ has a unit: scaling or stretching along $\hat b$ can raise it while the sides
#   are as easy to tell apart as before. It cannot raise $q_2$, which gives a lower bound on how
#   many statements are nearer to their own mean.
# - Held-out distances become comparable when the noise of the means is subtracted.
# - The accuracy of a linear classifier and the distance between the means are different questions.
#   The table shows how accurate the classifier already was before training.
# - Not shown: whether both sides move equally. That would need the means after training, not only
#   their distance.
#
# The paper concludes that aligned models are easier to misalign, by Theorems 4.1 and 4.3. The first
# needs only a larger $\|\hat b\|$. The second also requires a small $\|\Sigma_\pm\|$, not a small
# ratio; the table of {ref}`ev-measured-change` shows what became of $\|\hat\Sigma\|$.
#
# Each claim below is evaluated at both learning rates. The value is the share of the rates at which
# it holds: 1 is *reproduced*, one half is *partly*. The quantity after training over before must be
# above 1 for $\|\hat b\|$ and below 1 for $q_1$. These bounds were set before these runs, but after
# a pilot at a higher learning rate, in which distances grew and $q_1$ did not always fall.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("06_distributional_changes", tier_records)))

# %% [markdown]
# **To try.**
#
# - `papermill notebooks/06_distributional_changes.ipynb out.ipynb -p full_learning_rate 1e-4`: at a
#   rate that is higher still, do the statements draw together again? (It trains;
#   {ref}`full-finetuning` says how long a run takes.)
# - Give `umap_2d` another seed in the cell before {numref}`fig-blind`. Which features of the
#   picture stay?
# - Shift the states in that cell by a short vector, `g + 0.05`, then by longer ones. When does the
#   map split?
#
# ## Exercises
#
# ```{exercise} How evenly must they move?
# :label: ex-even
#
# Before training $\|\hat b\| = b_0$, and the variance along $\hat b$ is $\sigma_0^2$ on both sides and
# the largest. Training moves statement $i$ by $s_i a_i$ along $\hat b$. The $a_i$ have mean $m$ and
# standard deviation $km$ on both sides, and are uncorrelated with where the statement was. For which $m$ is
# $q_1$ lower than before? And $q_2$?
# ```
#
# ```{solution} ex-even
# :class: dropdown
#
# After training $\|\hat b\| = b_0 + 2m$ and the variance is $\sigma_0^2 + k^2m^2$. So $q_1$ is
# lower if and only if $(\sigma_0^2 + k^2m^2)\,b_0 < \sigma_0^2\,(b_0 + 2m)$, that is
# $m < 2\sigma_0^2/(k^2 b_0)$: for a short time only. This time is shorter if the statements move
# more unevenly, or if $b_0$ is larger compared with $\sigma_0$. For $q_1$ to stay lower, $k$ has to
# fall as $m$ grows: statements that are learned have to stop moving, and the others have to catch
# up. $q_2$ is lower if and only if $(\sigma_0^2 + k^2m^2)\,b_0^2 < \sigma_0^2\,(b_0 + 2m)^2$, that
# is $m\,(k^2b_0^2 - 4\sigma_0^2) < 4\sigma_0^2 b_0$: for every $m$ if $k \le 2\sigma_0/b_0$.
# ```
#
# ```{exercise} A ratio that no linear map changes
# :label: ex-mahalanobis
#
# Let $\hat\Sigma = \frac12(\hat\Sigma_+ + \hat\Sigma_-)$ be invertible. Show that
# $D^2 = \hat b\cdot\hat\Sigma^{-1}\hat b$ is the same for the states $Ag$, for every invertible $A$,
# and that $D^2 \ge 1/q_2$. What would a comparison of $D^2$ before and after training show that
# $q_1$, $q_2$ and $v$ do not? Why is it hard to measure here?
# ```
#
# ```{solution} ex-mahalanobis
# :class: dropdown
#
# $\hat b$ becomes $A\hat b$ and $\hat\Sigma$ becomes $A\hat\Sigma A^\top$, so $D^2$ becomes
# $\hat b^\top A^\top A^{-\top}\hat\Sigma^{-1}A^{-1}A\,\hat b = D^2$. And
# $\hat b\cdot\hat\Sigma^{-1}\hat b \ge \|\hat b\|^2/\|\hat\Sigma\|$, where
# $\|\hat\Sigma\| \le \max\|\hat\Sigma_\pm\|$. $D^2$ measures how well *some* direction separates
# the sides. So a change of $D^2$ shows that the information changed, and not only the direction in
# which it lies. But $\hat\Sigma^{-1}$ is dominated by the directions of least variance. With about
# as many statements on a side as dimensions, these directions are noise (or there is no inverse),
# and $D^2$ of the sample is far too large. This is why we use a classifier that is evaluated on
# held-out statements.
# ```

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(tier_records.provenance()))
