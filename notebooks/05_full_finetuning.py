# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (full-finetuning)=
# # Full fine-tuning
#
# **You will see** DPO train all parameters of a model: whether the behaviors that were easy to tell
# apart are still the ones learned first, at four values of $\beta$ and two learning rates; what two
# behaviors do to each other; what AdamW makes of $\beta$; and how far the theory of the last layer
# carries.
#
# **It takes** twenty minutes to read. The recorded runs are replayed in half a minute; each one made
# anew takes one to two minutes on two cores. **It needs** nothing to replay; to train, the data
# ({ref}`how-to-run`). {ref}`case-study` comes before it, {ref}`priorities` helps.
#
# This page follows §5.1 and Appendix D.1 of {cite:t}`im2024understanding`: Figures 6, 7 and 17 to 19.
#
# ```{admonition} What differs from the paper
# :class: note
# At the book tier the model is SmolLM2-135M-Instruct where the paper has Llama-2-7B, and its unembedding is tied to its
# embedding: one matrix, trained as both. Weights and optimizer are float32, matrix products bf16.
# The rest is the authors' code: AdamW at a constant learning rate without weight decay, one epoch, batches of 32,
# gradients clipped to norm 1, the held-out tenth measured before every step. Figure 6 has several seeds here
# (of the shuffle), the paper shows one run. The paper's learning rates are shown as they are; beside them stand
# rates scaled by a rule that was fixed before any run was seen.
# ```

# %% tags=["parameters"]
tier = "book"
model = None
data = None
behaviors = None
beta = None
full_learning_rate = None
full_batch_size = None
full_seeds = None
device = None

# %% [markdown]
# A run of this page is one call of `finetune.train`: the weights, the pairs and `finetune.Settings` go in, curves
# come out. One step is one forward pass over one *token tree*, in which the beginning that all 32 prompts
# share is computed once; the log-probabilities of the reference are computed once a run; and of the
# vocabulary only the rows of Yes and No are touched, since the rest cancels from (7). {ref}`hardware` has
# the speed, the memory, and what a model of 7B parameters needs.
#
# `experiments.full_finetuning` holds the runs of this page. Each is recorded by itself, and replayed where its key
# matches.

# %%
import numpy as np
import pandas as pd
from experiments import full_finetuning, shared
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

from dpo_helpers import plots

config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# (ev-scaled-rate)=
# ## Which learning rate?
#
# The paper trains 7B parameters at $\eta = 10^{-5}$. AdamW moves each parameter by about $\eta$ a step whatever the size of
# its gradient, so what a step does to a margin grows with the number of parameters that pull together: a model with fifty times fewer
# learns more slowly at the same $\eta$. So a second rate stands beside the paper's:
#
# > Multiply the paper's learning rate by the smallest of 1, 3, 10, 30, 100 at which *agreeableness*, a behavior that no
# > figure of this page shows, ends its epoch at $\beta = 0.01$ with a held-out loss of 0.5 or less.
#
# The same factor then scales all the paper's rates. The rule looks at one behavior and one number; it
# cannot know how others will be ordered.

# %% tags=["hide-input"]
rates = full_finetuning.rates(records, config.beta)
if "scaled" in rates:
    tried = full_finetuning.calibration_table(records).set_index("η")
    display(tried.astype(float).round(3))
display(
    Markdown(
        f"Learning rates: {', '.join(f'{n} **{r:g}**' for n, r in rates.items())}."
    )
)

# %% [markdown]
# (ev-figure-six)=
# ## Five behaviors, one at a time
#
# {numref}`fig-six-paper` is the paper's Figure 6 at the paper's learning rate, {numref}`fig-six-scaled` at the scaled one. Left
# the loss of each batch before it is learned, as a training log shows it, right the loss of all held-out statements. The numbers
# before the names are the paper's, from 1, the least distinguishable, to 5.


# %%
def losses(rate):
    """(behaviors, steps, seeds): of the batches, and of the held-out pairs."""
    found = full_finetuning.stacked(
        records, config.behaviors, config.beta, rate, "loss"
    )
    found = found[:, :, 0].transpose(2, 0, 3, 1)
    return {"training loss": found[0][:, :-1], "held-out loss": found[1]}


first, *_, last = rates.values() if len(rates) > 1 else [*rates.values()] * 2
curves = {rate: losses(rate) for rate in dict.fromkeys((first, last))}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Full fine-tuning at the paper's learning rate: median over seeds, with the 5 to 95 % range.", "name": "fig-six-paper"}, "image": {"alt": "Two panels of loss against step for five behaviors at the paper's learning rate, of the training batches left and of the held-out statements right. All curves start at log 2; how far each falls is in the table below."}}
plots.curves(curves[first], config.behaviors)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same at the scaled learning rate.", "name": "fig-six-scaled"}, "image": {"alt": "Two panels of loss against step for five behaviors at the scaled learning rate, of the training batches left and of the held-out statements right. All start at log 2."}}
plots.curves(curves[last], config.behaviors)

# %% [markdown]
# Is the order that of distinguishability? As before, a curve counts by its mean over the steps: the lower, the faster
# it fell. The table correlates its rank over the behaviors with that of $\|\hat\mu_+ - \hat\mu_-\|$ in the model before training.
# Five behaviors can be ordered in 120 ways, so even a perfect order has $p = 1/120$, and one
# exchange of neighbours is within the reach of luck. That is all the evidence that five
# behaviors can give, here as in the paper. (The table has medians over the seeds.)

# %% tags=["hide-input"]
apart = shared.distinguishability(records)
if len(config.behaviors) > 2:
    ranks = {
        (what, f"η = {rate:g}"): np.nanmean(values, 1)
        for rate, found in curves.items()
        for what, values in found.items()
    }
    display(full_finetuning.rank_table(apart, ranks))

# %% tags=["hide-input"]
names = [plots.short(behavior) for behavior in config.behaviors]
table = pd.DataFrame({"‖μ̂₊ − μ̂₋‖": apart}, index=names)
for rate, found in curves.items():
    ends = np.median(found["held-out loss"][:, -1], 1)
    table[f"held-out loss, η = {rate:g}"] = ends
    right = full_finetuning.stacked(
        records, config.behaviors, config.beta, rate, "accuracy"
    )
    table[f"accuracy, η = {rate:g}"] = np.median(right[:, :, 0, 1, -1], 1)
table.round(3)

# %% [markdown]
# The order of distinguishability is broken by one behavior: at the paper's rate the paper's number 2, the third most distinguishable here, is learned ahead of all others, also of those
# that are further apart before training. It is no accident of a seed, as the bands show; at the scaled rate it begins as fast, and number 5 overtakes it before the epoch ends. What made it
# fast was visible beforehand, though not in the last layer: {ref}`ev-theory-carries`.
#
# (ev-other-betas)=
# ## Other values of β
#
# Figures 17 to 19 repeat this at $\beta = 0.001$, $0.1$ and $1$; at $\beta = 1$ the paper lowers the rate tenfold, "due
# to large oscillations". {numref}`fig-betas-training` and {numref}`fig-betas-held-out` have both rates side by side, one run each.
# The oscillations can be seen here too: at $\beta = 1$ the first step carries the loss far above $\log 2$. A step of AdamW is as long
# at any $\beta$, but a margin is $\beta$ times a gap.

# %% tags=["hide-input"]
tier_records = RunStore(
    configure({"tier": config.tier, "device": config.device})
)
main = full_finetuning.MAIN[config.tier]
betas = full_finetuning.BETAS[config.tier]


def panels(part, array="loss"):
    """One panel a β and a rate, one line a behavior: (steps, values)."""
    found = {}
    for beta in betas:
        for rate in full_finetuning.rates(tier_records, beta).values():
            values = full_finetuning.stacked(
                tier_records, main, beta, rate, array, (0,)
            )[:, 0, 0, part]
            label = f"β = {beta:g}, η = {rate:g}"
            found[label] = {
                f"{i} {plots.short(b)}": (np.arange(len(v)), v)
                for i, (b, v) in enumerate(zip(main, values, strict=True), 1)
            }
    return found


colors = {
    f"{i} {plots.short(b)}": plots.color(b) for i, b in enumerate(main, 1)
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss of the batches at other values of β, at the paper's rate (left) and the scaled one (right).", "name": "fig-betas-training"}, "image": {"alt": "A grid of panels, one row a value of β and one column a learning rate, of the training loss against step for five behaviors. At β = 0.001 the loss hardly leaves log 2; at larger β it falls further and is noisier."}}
plots.lines(panels(0), "step", colors=colors, ncols=2)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Held-out loss in the same runs.", "name": "fig-betas-held-out"}, "image": {"alt": "A grid of panels, one row a value of β and one column a learning rate, of the held-out loss against step for five behaviors."}}
plots.lines(panels(1), "step", colors=colors, ncols=2)

# %% tags=["hide-input"]
if len(main) > 2:
    ranks = {
        (what, f"β = {value:g}, η = {rate:g}"): full_finetuning.areas(
            tier_records, value, rate, part
        )
        for value in sorted({0.01, *betas})
        for rate in full_finetuning.rates(tier_records, value).values()
        for part, what in enumerate(("training loss", "held-out loss"))
    }
    distances = shared.distinguishability(tier_records, main)
    display(full_finetuning.rank_table(distances, ranks))

# %% [markdown]
# ### What AdamW makes of β
#
# For small margins $\sigma(-m) \approx \frac12$, and the gradient of (4) is $-\frac\beta2$ times the mean gradient of the gaps
# $\log\pi(y_w|x) - \log\pi(y_l|x)$: $\beta$ is a factor. AdamW divides its running mean of gradients by the root of
# their running mean square, and the factor cancels (as does the clipping, up to its changes from step to
# step). So at equal $\eta$ the weights should take the same path at any $\beta$, until some margins are no longer small:
# the gaps should grow alike, and only the loss, which sees $\beta$ times their growth, should
# differ. SGD is different: there, $\beta$ scales each step.

# %% tags=["hide-input"]
growth = full_finetuning.gap_growth(tier_records)
growth.index = [plots.short(behavior) for behavior in main]
growth.astype(float).round(2)

# %% [markdown]
# That is the growth of the mean gap of the held-out pairs over the epoch, in nats, at the paper's rate for $\beta = 0.01$.
# Where neighbouring columns agree, the argument holds; where the one of the larger $\beta$ falls
# behind, its margins have left the straight part of the loss, which then asks for less. This
# is why $\beta$ is no speed under AdamW: it sets how far a gap may grow before the loss is content.
#
# (ev-boundary-moves)=
# ### How far the boundary moves
#
# In {ref}`case-study` the distance $\|W_B(t) - W_B(0)\|$ told the behaviors apart: SGD's step is proportional to the gradient.
# {numref}`fig-boundary` has the same distance here.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How far the decision boundary has moved under AdamW, at the two learning rates.", "name": "fig-boundary"}, "image": {"alt": "Two panels of the distance of the boundary from its start against step, at the paper's and the scaled learning rate. The curves of the five behaviors lie on each other for about six steps; then the more slowly learned ones bend down."}}
moved = {
    f"‖W_B(t) − W_B(0)‖, η = {rate:g}": full_finetuning.stacked(
        records, config.behaviors, config.beta, rate, "boundary"
    ).transpose(0, 2, 1)
    for rate in curves
}
plots.curves(moved, config.behaviors)

# %% [markdown]
# The first step of AdamW moves every parameter with a gradient by $\eta$, so $W_B$ by $2\eta\sqrt d$ or less whatever the
# behavior, and for some steps the curves coincide. They part later, for another reason: where the gradients of successive batches agree,
# steps add up; where they do not, AdamW's means cancel. The linear law of Figure 4 with
# distinguishability as its slope belongs to SGD, not to DPO.
#
# (ev-figure-seven)=
# ## Two behaviors at once
#
# Figure 7 trains the pairs of Figure 5 with all parameters. {numref}`fig-seven` shows each behavior's own held-out
# loss. The paper says that pair (a) has the larger priority gap and should come apart; {ref}`priorities` found that under
# this model pair (b) has it.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Held-out loss of each behavior of the two pairs, trained together, one run each.", "name": "fig-seven"}, "image": {"alt": "A grid of panels, one row a pair and one column a learning rate, each with the held-out loss of the two behaviors of the pair against step."}}
pair_rates = full_finetuning.rates(tier_records, 0.01).values()
found, pair_hues = {}, {}
for letter, pair in zip("ab", shared.PAIRS[config.tier], strict=True):
    for rate in pair_rates:
        series = found[f"({letter}) held-out loss, η = {rate:g}"] = {}
        both = full_finetuning.pair_losses(tier_records, pair, rate)
        for behavior, values in zip(pair, both, strict=True):
            name = plots.short(behavior)
            series[name] = (np.arange(len(values)), values)
            pair_hues[name] = plots.color(behavior)
plots.lines(found, "step", colors=pair_hues, ncols=2)

# %% tags=["hide-input"]
full_finetuning.pair_table(tier_records).set_index(["pair", "η"])

# %% [markdown]
# In both pairs the more distinguishable behavior leads most of the time, so here as on the last layer distinguishability decides who comes first.
# The size of the gap is another matter. The paper's pair (b) should stay close; under this model its losses lie, at the scaled rate, about as far apart as
# those of (a), and the test of F7b, which asks for no more than that (a) be ahead, is passed by a hair.
#
# (ev-theory-carries)=
# ## Does the theory of the last layer carry over?
#
# The theorems know the unembedding alone. Let $\theta$ be all parameters. One small step of gradient descent lowers the loss by
#
# $$L(\theta) - L(\theta - \eta\nabla L) \approx \eta\,\|\nabla L\|^2 = \eta\,\big(\|\nabla_{W_U}L\|^2 + \|\nabla_{\rm rest}L\|^2\big),$$
#
# so what the last layer predicts is one term of a sum, and a small one if the other layers have much
# to say. AdamW's first step, $-\eta\,{\rm sign}(\nabla L)$, lowers it by about $\eta\,\|\nabla L\|_1$. For the behaviors of
# Figures 6 and 7 and for *agreeableness*, one step of AdamW on all training statements was made at the paper's rate.
# {numref}`fig-first-step` has the fall of the training loss against two predictions: the last layer's gradient, known before any
# training from the hidden states alone, and the gradient over all parameters.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The first full-batch step of AdamW: measured fall of the training loss against the norm of the gradient, of the two rows of the unembedding (left) and of all parameters (right).", "name": "fig-first-step"}, "image": {"alt": "Two scatter plots with one point a behavior. The measured fall of the training loss in one step against the gradient norm of the last layer left, and against that of all parameters right."}}
step = full_finetuning.first_step_run(tier_records).arrays
known = full_finetuning.at_hand(tier_records.config)
fall = step["loss"][:, 0] - step["loss"][:, 1]
points = [plots.short(b) for b in known]
panels_of = {
    what: {
        name: ([x], [y])
        for name, x, y in zip(points, step[key], fall, strict=True)
    }
    for what, key in (
        ("(a) fall of the loss", "head"),
        ("(b) fall of the loss", "gradient"),
    )
}
plots.lines(
    panels_of,
    ("‖∇L‖, rows Yes and No", "‖∇L‖, all parameters"),
    dots=points,
    colors={plots.short(b): plots.color(b) for b in known},
)

# %% tags=["hide-input"]
predictors = {
    "last layer's gradient": step["head"],
    "gradient of all parameters": step["gradient"],
    "distinguishability": shared.distinguishability(tier_records, known),
}
tests = {n: full_finetuning.rank_test(v, -fall) for n, v in predictors.items()}
share = step["head"] ** 2 / step["gradient"] ** 2
display(
    pd.DataFrame(tests, index=["rank correlation with the fall", "p"]).T.round(
        4
    ),
    Markdown(
        f"Of ‖∇L‖² the rows of Yes and No hold **{share.min():.2%}** to **{share.max():.2%}**. "
        f"The loss fell for **{(fall > 0).sum()}** of {len(known)} behaviors."
    ),
)

# %% [markdown]
# And over the whole epoch? Each row below is something known before it, by which the five behaviors of Figure 6 can be put in order:
# their distinguishability; how fast the last layer alone learned them in {ref}`case-study`; the gradient of all parameters; and what one step of AdamW did. The
# columns say how well that order agrees with the one in which full fine-tuning learned them, as in the table below {numref}`fig-six-scaled`.

# %% tags=["hide-input"]
full_finetuning.predicted_table(tier_records)

# %% [markdown]
# The gradient of all parameters orders them best. It is known before training as distinguishability is, at the price of one backward
# pass instead of a forward one, and it contains distinguishability: $\|\nabla_{W_U}L\|$ is $\frac{\beta}{2\sqrt2}\|\hat b\|$ for the last layer. The behavior that broke the order of distinguishability does not
# break this one: its statements lie no further apart than others at the last layer, but the layers below can move them more.
# (Why the last layer's share differs between behaviors, this page does not say.)
#
# (ev-who-moves)=
# ### Boundary or hidden states?
#
# The gap of a statement is $s\,W_B\cdot g(x)$. Training changes both factors, and its growth is exactly
#
# $$s\,\Delta W_B\cdot g \;+\; s\,W_B\cdot\Delta g \;+\; s\,\Delta W_B\cdot\Delta g:$$
#
# the boundary moves under hidden states as they were, which is all that the theorems allow; the hidden states move
# under the boundary as it was; and both together. {numref}`fig-parts` has the mean of each over the held-out statements.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Growth of the mean gap of held-out statements, by what moved, at the scaled learning rate.", "name": "fig-parts"}, "image": {"alt": "Grouped bars for five behaviors: growth of the gap by the boundary alone, by the hidden states alone, and by both together. The bars of the hidden states alone are nearly all there is."}}
rate = [*full_finetuning.rates(tier_records, 0.01).values()][-1]
parts = full_finetuning.stacked(tier_records, main, 0.01, rate, "parts", (0,))[
    :, 0
]
moved_by = ("boundary alone", "hidden states alone", "both together")
named = dict(zip(moved_by, parts.T, strict=True))
plots.bars(named, main, "growth of the gap (nats)")

# %% tags=["hide-input"]
share = parts[:, 0] / parts.sum(1)
Markdown(
    f"The boundary alone makes between **{share.min():.1%}** and **{share.max():.1%}** of the growth "
    f"at η = {rate:g}."
)

# %% [markdown]
# So the theorems describe a part of the model that does next to none of the work. The two rows hold a good share of the squared
# gradient, but AdamW moves all parameters equally far, and of these $W_B$ has a few hundred among millions. What distinguishability gets right, it gets right as
# a symptom: behaviors that are far apart at the last layer tend to be those that the layers below can pull apart. The two come
# apart where the order above does.

# %% [markdown]
# ## What was shown
#
# A claim below counts as reproduced only if it holds at the worse of the two learning rates. The tests
# were written down before the runs they judge were complete. (F6 and F17 to F19 compare ranks as
# {ref}`case-study` does, with the same thresholds.)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("05_full_finetuning", tier_records)))

# %% [markdown]
# ```{exercise}
# :label: ex-adam-first
# The first step of AdamW is $\theta_1 = \theta_0 - \eta\,\nabla L/(|\nabla L| + \epsilon)$, entry by entry. Between which two multiples of $\eta\,\|\nabla L\|$
# does the fall of the loss lie to first order, with $p$ parameters and $\epsilon \to 0$? When is each reached?
# ```
#
# ````{solution} ex-adam-first
# :class: dropdown
# It is $\eta\,\|\nabla L\|_1$, and $\|v\| \le \|v\|_1 \le \sqrt p\,\|v\|$: the left side is reached if a single parameter has a
# gradient, the right if all entries are equally large. So AdamW gains most where many parameters agree a little, which is why its $\eta$ has to shrink
# as models grow.
# ````
#
# ```{exercise}
# :label: ex-beta-adam
# Why can the argument on $\beta$ not be exact even in the first steps, though it is for $\epsilon = 0$ and margins of 0?
# ```
#
# ````{solution} ex-beta-adam
# :class: dropdown
# AdamW adds $\epsilon = 10^{-8}$ to the root. An entry of the gradient that is not large against $\epsilon$ moves its parameter by less than
# $\eta$; the smaller $\beta$, the more entries are that small. So a smaller $\beta$ is a somewhat smaller step.
# ````
#
# **To try.**
#
# - `papermill notebooks/05_full_finetuning.ipynb out.ipynb -y 'behaviors: [risk-seeking]' -p full_learning_rate 3e-5`: any
#   curve is a matter of parameters, and is recorded for the next time.
# - `make sweep SWEEP=sweeps/beta.yml`: all values of $\beta$ for all five, on one page.
# - Add $\|\hat\mu_+ - \hat\mu_-\|$ of a sixth behavior to the table of ranks. How likely is a perfect order by chance then?

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(tier_records.provenance()))
