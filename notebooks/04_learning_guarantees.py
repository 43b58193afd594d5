# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (learning-guarantees)=
# # What learning guarantees
#
# **You will see** that the paper's Theorem 4.2 is false as printed, where it can be repaired, and how
# little it can then say; that Theorem 4.3 says nothing at all; what takes their place; and a
# *certificate*: from hidden states and labels alone, without training, proven bounds of the loss, the
# distance, the boundary and the statements learned, tight enough to prove the order of Figure 3.
#
# **It takes** forty minutes to read and under a minute to run. **It needs** nothing: the hidden states are
# recorded.
#
# This page follows §4.3 and the appendices A.4 and A.5 of {cite:t}`im2024understanding`, equations (25) to
# (38). It uses Theorem A, {prf:ref}`thm-a`, of {ref}`rate-of-change`.

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
from experiments import learning_guarantees, shared
from IPython.display import Markdown, display
from ledger.config import configure
from ledger.store import RunStore
from scipy.stats import norm
from workflow import claims

from dpo_helpers import last_layer, plots, theory
from dpo_helpers.theory import certificate, printed, synthetic

config = configure(globals())
records = RunStore(config)

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.header()))

# %% [markdown]
# ## Theorem 4.2, as printed
#
# ```{prf:theorem} Theorem 4.2 of the paper, as printed
# :label: thm-4-2
#
# Let $\|\Sigma_\pm\| \le c_v d^{\frac12-2v}$ with $\frac{4\log 2}{\log d} \le v \le \frac12-\Delta$, and
# $\max_\pm(\|\mu_\pm\| + {\rm Tr}(\Sigma_\pm)^{1/2}) \le c_n\sqrt d$ with $c_n = c_n' d^{\Delta-\frac12}$. Let
# $\beta = \beta' d^{-\frac12}$, $\beta'^2\eta c_n^2 \le \frac14$, and $\phi$ the cosine of $W_B$ and $b = \mu_+ - \mu_-$. Then, with
# probability at least $1 - 2n\exp(-c'd^{\alpha/4}) - 4\exp(-\gamma d^{\alpha\Delta}/(4c_v))$, for every
# $t \le t_{\max} = d^{\frac12-\Delta-v}/(72\beta'^2\eta c_n')$ the cosine of the boundary after $t$ steps and $b$ is at least
#
# $$\phi + \frac{(1-13d^{-v}-\phi)\,\beta'\eta t\,d^{\Delta-\frac12}}{8\|W_B\| + \frac{1}{24\beta'c_n'}},\qquad \Delta \le \tfrac12 - \tfrac{4\log 2}{\log d}.$$
# ```
#
# The module `paper` has the paper's bounds as printed; outside their conditions they are NaN.
#
# (ev-v-range)=
# ### Where it speaks
#
# The lower end of the range of $v$ is $d^v \ge 16$. So the range is not empty only if $\Delta \le \frac12 - \frac{4\log 2}{\log d}$,
# that is $\|b\| = d^\Delta \le \sqrt d/16$ and $d \ge 16^{1/(\frac12-\Delta)}$: the theorem is about behaviors that are *hard* to tell apart.

# %%
d = np.array([256, 576, 1024, 4096, 65536])
lowest, highest = printed.v_range(d, 0.0)
where = pd.DataFrame({"d": d, "least v": lowest, "largest Δ": highest - lowest})
where["largest ‖b‖"] = d ** where["largest Δ"]
assert np.allclose(where["largest ‖b‖"], d**0.5 / 16)
where.round(4)

# %% [markdown]
# The other conditions can hold together: for $\Sigma_\pm = s^2 I$ with $s^2 = d^{2\Delta-1}$ the root of the trace is $d^\Delta$, as large as
# $c_n\sqrt d = c_n' d^\Delta$ allows up to a constant, and $s^2 \le d^{\frac12-2v}$ since $v \le \frac12-\Delta$. But what they ask is strong. As
# $2\max\|\mu_\pm\| \ge \|b\| = d^\Delta$, always $c_n' \ge \frac12$; and the average variance of a coordinate is at most
# $c_n'^2d^{2\Delta-1}$, a standard deviation of $O(d^{\Delta-\frac12})$. Theorem 4.1 was argued for with coordinates of $O(1)$. On the
# hidden states of chapter {ref}`case-study`, with the least constants (`shared.measured`):

# %%
real = learning_guarantees.real_range(records)
columns = ["‖b̂‖", "√d/16", "in range", "c_n′", "claimed failure"]
names = [plots.short(behavior, 34) for behavior in config.behaviors]
colors = dict(zip(names, map(plots.color, config.behaviors), strict=True))
pd.DataFrame(real.values(), names, columns).round(3)

# %% [markdown]
# The last column is the part $4\exp(-\gamma d^{\alpha\Delta}/(4c_v))$ of the failure probability, at $\alpha = 2$ and its best $v$. Where
# it is above 1 the theorem says nothing, whatever the range.
#
# (ev-gain)=
# ### How much it can say
#
# Put $t = t_{\max}$: the gain is $\varepsilon d^{-v}/(576\beta'c_n'\|W_B\| + 3)$ with $\varepsilon = 1 - \phi - 13d^{-v}$, so at most
# $(1-\phi-13z)z/3$ with $z = d^{-v}$. This is largest at $z = (1-\phi)/26$:
#
# $$\text{certified gain} \;\le\; \frac{(1-\phi)^2}{156}.$$
#
# No $d$, $\eta$, $t$ or data beat this. For $\phi \ge 0$ it is at most $1/156$. (The looseness is in the constants 13 and 24: {ref}`ex-cap`.) The cell takes the
# smallest boundary, $\|W_B\| \to 0$, through all $d^v$:

# %%
for phi in (0.0, 0.3, 0.5):
    power, gain = learning_guarantees.gains(phi)
    best, cap = power[gain.argmax()], printed.largest_gain(phi)
    assert 0.999 * cap < gain.max() <= cap * (1 + 1e-12)
    print(f"φ = {phi}: at most {gain.max():.5f}, at d^v = {best:.1f}")

# %% [markdown]
# ## Its proof, step by step
#
# (ev-spike)=
# ### Norms: the exponent
#
# The proof takes over (15) and (16): with probability $1 - 2n\exp(-c'd^{\alpha/4})$ all $\|g(x_i)\| \le 2c_n\sqrt d$. In Theorem 4.1 the
# exponent comes from the ratio of $c_n\sqrt d$ to $\|\Sigma\|^{1/2} \le (c_v\sqrt d)^{1/2}$. Here $c_n\sqrt d = c_n'd^\Delta$ and
# $\|\Sigma\| \le c_vd^{\frac12-2v}$, so the ratio to the power $\alpha$ is a constant times $d^{\alpha(\Delta + v - \frac14)}$: **that is the exponent**, and it
# need not grow. Take $\Delta = 0$, $v = \frac14$ (so $d \ge 65536$) and all variance, 4, in one direction orthogonal to $b$. Then $c_n' = 2.5$, and with a
# standard normal $z$
#
# $$P(\|g\| \ge 2c_n') = P\big(\tfrac14 + 4z^2 \ge 25\big)$$
#
# does not depend on $d$, while the claimed probability falls to 0. (`synthetic.clouds` draws states of given mean and covariance; the coordinates
# in which all states are 0 are left out.)

# %%
exact = 2 * norm.sf(np.sqrt((25 - 0.25) / 4))
rng, b = np.random.default_rng(0), np.array([1.0, 0.0])
g, _ = synthetic.clouds(rng, 400_000, b, root=np.array([0.0, 2.0]))
share = (np.linalg.norm(g, axis=1) >= 5).mean()
assert abs(share - exact) < 4 * np.sqrt(exact / len(g))
print(f"P(‖g‖ ≥ 2c_n′) = {exact:.5f} at every d; drawn: {share:.5f}")

# %% [markdown]
# (ev-increment)=
# ### One increment: (25)
#
# With $A_\pm$ the mean of $\sigma(-m_i)$ over one side, let $A_- \le A_+$. The paper splits the increment as
#
# $$\delta_{t+1}-\delta_t = \tfrac{\beta\eta}{2}\big(A_-b + T_1 + T_2\big),$$
#
# where $T_1$ is $\frac{A_-}{A_+}$ times the mean of $\sigma(-m_i)(g_i-\mu_+)$ over $+$, less that of $\sigma(-m_i)(g_i-\mu_-)$ over $-$, and $T_2$ is
# $\frac{A_+-A_-}{A_+}$ times the mean of $\sigma(-m_i)g_i$ over $+$. Two things are wrong.
#
# - **Before (25)** the paper writes $\sigma(\mp\beta\,g_i\cdot\delta)$; the identity needs $\sigma(\mp2\beta\,g_i\cdot\delta) = \sigma(-m_i)$.
# - **(25)** bounds $\|T_1\|$ by the largest $\sigma$ times $\|\hat\mu_\pm-\mu_\pm\|$. But $\sigma(-m_i)$ is correlated with $g_i-\mu_\pm$ and does not factor
#   out. Where $\hat\mu_\pm = \mu_\pm$ exactly, that "bound" is 0, and $T_1$ is not. What is true is
#   $\|T_1\| \le \frac12\sum_\pm\|\hat\mu_\pm-\mu_\pm\| + \sum_\pm\max|\sigma-\frac12|\,\|g_i-\mu_\pm\|$.
#
# The cell has states whose class means are exact, after some steps of gradient descent:

# %%
rng, b = np.random.default_rng(0), np.eye(64)[0]
g, labels = synthetic.clouds(rng, 100, b)
for side in (1, -1):
    g[labels == side] += side * b / 2 - g[labels == side].mean(0)
path = last_layer.gradient_descent(labels[:, None] * g, 0.1, 1.0, 4)
step = np.diff(path, axis=0)[3] / (0.1 / 2)
for factor in (2, 1):
    parts = learning_guarantees.split(g, labels, b, path[3], 1.0, factor)
    gap = np.linalg.norm(sum(parts) - step) / np.linalg.norm(step)
    print(f"with σ(∓{factor}β …): relative error {max(gap, 1e-12):.1e} or less")
    assert (gap < 1e-12) == (factor == 2)
_, t1, _ = learning_guarantees.split(g, labels, b, path[3], 1.0, 2)
off = [np.linalg.norm(g[labels == k].mean(0) - k * b / 2) for k in (1, -1)]
print(f"‖T₁‖ = {np.linalg.norm(t1):.1e}; factored: 0 to rounding")
assert np.linalg.norm(t1) > 1e6 * sum(off) and sum(off) < 1e-12

# %% [markdown]
# With $q = 3\beta'^2\eta c_nt\,d^{\Delta-\frac12} \ge \max|\sigma(-m_i)-\frac12|$ and $\|g_i - \mu_\pm\| \le 3c_n\sqrt d$ the true bound is
# $\|T_1\| + \|T_2\| \le d^{\Delta-v} + 10\,q\,c_n\sqrt d$, so that the bracket of (25) reads
#
# $$1 + 30\,\beta'^2\eta c_n^2\,t\,d^v\qquad\text{for}\qquad 1 + 6\beta'^2\eta c_nt\,d^{\Delta-\frac12} + 36\beta'^2\eta c_nt\,d^v.$$
#
# (The printed one also has $c_n$ for $c_n^2$.) The printed value is the larger one if $c_n \le 1.2$.
#
# (ev-sum)=
# ### From increments to the boundary
#
# Four more steps need repair.
#
# - **13** is loose. For $t \le t_{\max}$ the bracket is at most $1.51$ and $A \ge .4998$, so the increments have a cosine of at least
#   $1 - 6.1d^{-v}$; and as all of them lie in one cone around $b$, even $\sqrt{1-\rho^2}$ with $\rho = 3.1d^{-v}$: the loss is $O(d^{-2v})$.
# - **(30)** adds up norms of increments, which do not bound the norm of their sum from below. Their projections on $b$ do, with the same constant.
# - **The last step** replaces $\|W_B + 2\delta_t\|$ by $\|W_B\| + 2\|\delta_t\|$, and $\|\delta_t\|$ by a lower bound. The first needs a numerator that is not negative,
#   the second $\phi \le 1 - 13d^{-v}$. Neither is a condition of Theorem 4.2. ($1/(24\beta'c_n')$ could be $1/(1152\beta'c_n')$.)
# - $t$ counts steps, so $t_{\max} \ge 1$ is needed.
#
# ```{prf:proposition} Theorem 4.2, repaired
# :label: prop-4-2-repaired
#
# Let $\hat\mu_\pm$ and $g(x_i)$ satisfy $\|\hat\mu_\pm-\mu_\pm\| \le d^{\Delta-v}$ and $\|g(x_i)\| \le 2c_n\sqrt d$, in balanced classes. Let $d^v \ge 16$,
# $v \le \frac12 - \Delta$, $\beta'^2\eta c_n^2 \le \frac14$, $c_n \le 1.2$, $1 \le t \le t_{\max}$, **and $0 \le \phi \le 1-6.1d^{-v}$**. Then the bound of {prf:ref}`thm-4-2` holds,
# even with $6.1$ for $13$ and $1152$ for $24$.
# ```
#
# ````{dropdown} Proof
# Write $u = b/\|b\|$. *Margins.* $\|\hat b\| \le d^\Delta + 2d^{\Delta-v} \le 1.125\,d^\Delta$. As $\lambda \le 4c_n^2d$, $\kappa \le 4\beta'^2\eta c_n^2 \le 1$, and
# {prf:ref}`thm-a` gives $\|\delta_k\| \le \frac{\eta\beta k}4\|\hat b\|$. So $|\sigma(-m_i)-\frac12| \le \frac{|m_i|}{4} \le \beta c_n\sqrt d\,\|\delta_k\| \le q_k$ with
# $q_k = 3\beta'^2\eta c_nk\,d^{\Delta-\frac12}$ to spare. (The paper takes this from its A.2, whose induction fails.)
#
# *Increments.* Let $A_- \le A_+$; the other case is the same with the sides exchanged. The mean over one side of $\sigma(-m_i)(g_i-\mu)$ is
# $\frac12(\hat\mu-\mu)$ plus that of $(\sigma(-m_i)-\frac12)(g_i-\mu)$, so at most $\frac12d^{\Delta-v} + 3q_kc_n\sqrt d$ long, and $\|T_1\| \le d^{\Delta-v} + 6q_kc_n\sqrt d$.
# And $\|T_2\| \le (A_+-A_-)\max\|g_i\| \le 4q_kc_n\sqrt d$, for $T_2/(A_+-A_-)$ is a weighted mean of $g_i$. Together
# $\|T_1+T_2\| \le d^{\Delta-v}(1 + 30\beta'^2\eta c_n^2k\,d^v)$. Since $\beta'^2\eta c_nk \le d^{-v}/72$ for $k \le t_{\max}$, this is at most
# $d^{\Delta-v}(1 + \frac{30c_n}{72}) \le 1.5\,d^{\Delta-v}$, and $A_- \ge \frac12-q_k \ge \frac12 - \frac{1}{24}d^{-v}d^{\Delta-\frac12} \ge .4998$. So
# $\delta_{k+1}-\delta_k = \frac{\beta\eta A_-}2(b + e_k)$ with $\|e_k\| \le 3.01\,d^{-v}\|b\|$.
#
# *Sum.* Each increment has a product with $u$ of at least $\frac{1-3.01d^{-v}}{1+3.01d^{-v}} \ge 1 - 6.1d^{-v}$ times its length, and of at least
# $\frac{\beta\eta}2(.4998)(1-\frac{3.01}{16})d^\Delta \ge \frac{\beta\eta}{16}d^\Delta$. Add up: $\delta_t\cdot u \ge (1-6.1d^{-v})\sum\|\delta_{k+1}-\delta_k\| \ge (1-6.1d^{-v})\|\delta_t\|$, and
# $\|\delta_t\| \ge \delta_t\cdot u \ge \frac{\beta\eta t}{16}d^\Delta$.
#
# *Boundary.* With $y = 2\|\delta_t\|$ and $\varepsilon = 1-6.1d^{-v}-\phi \ge 0$, and as the numerator is not negative,
#
# $$\frac{(W_B+2\delta_t)\cdot u}{\|W_B+2\delta_t\|} \ge \frac{\phi\|W_B\| + (1-6.1d^{-v})y}{\|W_B\|+y} = \phi + \frac{\varepsilon y}{\|W_B\|+y},$$
#
# which increases in $y \ge Y = \frac18\beta'\eta t\,d^{\Delta-\frac12}$. Put $Y$ in: $\phi + \frac{8\varepsilon Y}{8\|W_B\|+8Y}$ with $8Y \le \frac{d^{-v}}{72\beta'c_n'} \le \frac{1}{1152\beta'c_n'}$. ∎
# ````
#
# Each step beside its value, in the setting of the next section; checked at all $t$, shown as means over them.

# %%
rows = learning_guarantees.proof_steps(records)
table = pd.DataFrame(rows, ["measured", "printed", "repaired"]).T
table.round(4).astype(object).fillna("–")

# %% [markdown]
# (ev-feasible)=
# ## Does it hold?
#
# ### A setting in which it does
#
# Gaussian states ($\alpha = 2$), $\Delta = 0$, $\Sigma_\pm = I/d$, $d^v = 26$ (the best of the cap above), $n = 4096$, $\phi = 0$, and $\eta$ such that
# $t_{\max} = 20$. Every condition is checked in `Setting.conditions`; the event of {prf:ref}`prop-4-2-repaired` was seen to hold in the table above.
# The theorem holds: the bound lies below the cosine, by a wide margin.

# %%
found, table = learning_guarantees.feasible_run(records).arrays["cosine"], {}
for cosine, boundary in zip(found, (1.0, 1e-6), strict=True):
    s = learning_guarantees.feasible(config.tier, boundary)
    bound = s.bound(np.arange(21))
    assert all(s.conditions().values()) and (cosine >= bound).all()
    table[f"‖W_B‖ = {boundary:g}"] = [cosine[20], bound[20]]
pd.DataFrame(table, ["cosine, t = 20", "bound"]).T.map("{:.4g}".format)

# %% [markdown]
# (ev-counterexamples)=
# ### Break it: three settings that meet every stated condition
#
# With the same states, $\Delta = 0$ and $\Sigma_\pm$ a multiple of $I$:
#
# - **A**, few statements: $d = 65536$, $n = 8$, $d^v = 44$, ${\rm Tr}^{1/2} = 2$, $\phi = .7$, $\|W_B\| = 10^{-6}$. The concentration (12) to (14)
#   that the probability rests on is wrong ({ref}`rate-of-change`): the deviation of $\hat b$ from $b$ has the mean square $2{\rm Tr}(\Sigma_++\Sigma_-)/n$.
# - **B**, $\phi = 1$: $n = d/2$, $d^v = 16$, ${\rm Tr}^{1/2} = 1$, $\eta = 10^{-3}$, $\|W_B\| = 10^{-9}$. The boundary starts at $b$ and can
#   only leave it, by the sampling error of $\hat b$.
# - **C**, $\phi = -1$: $n = d/2$, $d^v = 26$, ${\rm Tr}^{1/2} = 1$, $\|W_B\| = 1$. A boundary opposite to $b$ stays opposite until it has been
#   shortened to nothing: a step along $b$ does not turn it, but the theorem has the cosine rise at once.
#
# Each is drawn afresh with many seeds. Beside it stand the logarithms of the two parts of the claimed failure probability: $4\exp(-\gamma d^{\alpha\Delta}/(4c_v))$
# as the theorem has it; and, since it leaves $c'$ open, a true bound of the probability that some $\|g(x_i)\| \ge 2c_n\sqrt d$, for these Gaussians
# at most $n\exp(-c_n'^2/(2\|\Sigma_\pm\|))$.

# %%
rows = learning_guarantees.broken(records)
columns = ["largest cos, t = 1", "claimed ≥", "broken in", "of"]
columns += ["claimed failure, log₁₀", "norms, log₁₀"]
assert all(row[2] == row[3] for row in rows.values())
table = pd.DataFrame(rows, columns, dtype=object).T
table.map("{:.8g}".format)

# %% [markdown]
# All repetitions break the bound. A is a matter of probability; B and C break the proof's last step, and are what $\phi \le 1 - 13d^{-v}$ and
# $\phi \ge 0$ exclude. C needs no chance at all: it fails at every $d$ ({ref}`ex-opposite`).
#
# ## Theorem 4.3, as printed
#
# ```{prf:theorem} Theorem 4.3 of the paper, as printed
# :label: thm-4-3
#
# Let also $13d^{-v} < 1-\phi$ and $\phi \ge 0$. If at least $p$ % of the samples are linearly separable by the boundary corresponding to $b$ with margin
#
# $$m \;\ge\; \frac{2c_n'd^{\Delta+v}(576\beta'c_n'\|W_B\|+3)}{3\phi d^v + (1-13d^{-v}-\phi)},$$
#
# then, with the probability of {prf:ref}`thm-4-2`, after $t_{\max}$ steps the boundary has at least $p$ % accuracy.
# ```
#
# (ev-margin)=
# ### The sharp condition
#
# A.5 writes $S$ for the bound (31) at $t_{\max}$, which is (32), and decomposes the boundary along $u = b/\|b\|$. The cosine is *at least* $S$; (33) has it equal, which is harmless, for a larger
# cosine only helps a sample of positive margin. Then (34) throws away that $v_O$ is orthogonal to $u$.
#
# ```{prf:proposition} What (34) should say
# :label: prop-sharp-margin
#
# Let a unit vector $w$ have cosine at least $S > 0$ with $u$, and $g\cdot u = m > 0$. If $m \ge \sqrt{1-S^2}\,\|g\|$ then $w\cdot g \ge 0$; no smaller
# multiple of $\|g\|$ does.
# ```
#
# ````{dropdown} Proof
# The angle of $w$ and $u$ is at most $\arccos S$, and that of $g$ and $u$ is $\arccos(m/\|g\|)$. If $m \ge \sqrt{1-S^2}\|g\|$ they add to at most
# $\frac\pi2$, so $w$ and $g$ are at most at a right angle. If $m$ is smaller, the $w$ at angle $\arccos S$ from $u$, away from $g$ in the plane of both, has $w\cdot g < 0$. ∎
# ````
#
# (36) asks for $m \ge \sqrt{1-S^2}\,\|g\|/S$. As $m \le \|g\|$, only $S \ge 1/\sqrt2$ can satisfy it. By the cap above $S \le \phi + \frac{(1-\phi)^2}{156}$, so
# a boundary that starts at a right angle to $b$ never gets there by {prf:ref}`thm-4-2`, and even the sharp condition would ask for $m \ge .9999\,\|g\|$.
#
# (ev-empty)=
# ### It is empty
#
# ```{prf:proposition} Theorem 4.3 certifies nothing
# :label: prop-empty
#
# On the event that all $\|g(x_i)\| < 2c_n\sqrt d$, on which the proof rests, no sample has the margin that {prf:ref}`thm-4-3` asks for: $p = 0$, for
# every $d, v, \Delta, \phi, \beta', \eta, W_B$ that it admits.
# ```
#
# ````{dropdown} Proof
# Let $K = 576\beta'c_n'\|W_B\|+3 \ge 3$ and $\varepsilon = 1-13d^{-v}-\phi > 0$. The margin asked for is
# $2c_n\sqrt d\,\big/\big(\frac{3\phi}{K}+\frac{\varepsilon d^{-v}}{K}\big)$, since $c_n'd^\Delta = c_n\sqrt d$. The denominator is at most
# $\phi + \varepsilon d^{-v} < \phi+\varepsilon = 1-13d^{-v} < 1$. So it asks for $m > 2c_n\sqrt d > \|g\| \ge m$. The paper's own (37) does so already, as $S < 1$. ∎
# ````
#
# On a grid of admissible settings, the margins that (38) and (37) ask for, over the longest $2c_n\sqrt d$ that a sample can be; and the sharp condition, tried with
# many samples just above and just below it, against the worst boundary of cosine $S$:

# %%
rng = np.random.default_rng(0)
asked, milder = learning_guarantees.asked_margins()
assert (asked >= milder * (1 - 1e-12)).all() and (milder > 1).all()
print(
    f"{len(asked)} settings: (38) ≥ {asked.min():.3f}, (37) ≥ {milder.min():.3f}"
)
for above in (1 + 1e-9, 1 - 1e-3):
    S, length = rng.uniform(0.05, 0.99, 10_000), rng.exponential(size=10_000)
    m = np.minimum(above * np.sqrt(1 - S**2), 1) * length
    worst = S * m - np.sqrt((1 - S**2) * (length**2 - m**2))
    assert ((worst >= -1e-15) == (above > 1)).all()

# %% [markdown]
# ## What is true instead
#
# From here on there is no distribution: hidden states $g_i$, signs $s_i$, any reference. Recall $\hat b = \frac2n\sum s_ig_i$, $u = \hat b/\|\hat b\|$, $\hat C = \frac1n\sum g_ig_i^\top$ with
# largest eigenvalue $\lambda$, $\kappa = \eta\beta^2\lambda$, $r^2 = u^\top\hat Cu$, $\kappa_b = \eta\beta^2\sqrt\lambda\,r \le \kappa$, and the identity
#
# ```{math}
# :label: eq-contraction
# \delta_{t+1} = M_t\delta_t + \tfrac{\eta\beta}4\hat b,\qquad M_t = I - \tfrac{\eta\beta^2}2H_t,\qquad H_t = \tfrac1n\sum_i\theta_i\,g_ig_i^\top,
# ```
#
# where $\theta_i = \theta(m_i) = \tanh(m_i/2)/(m_i/2) \in (0, 1]$, for $\sigma(-m)-\frac12 = -\frac m4\theta(m)$. As $0 \preceq H_t \preceq \hat C$, $\|M_t\| \le 1$ if $\kappa \le 4$. Everything below assumes that. `theory.signal` holds what the bounds need of the states.
#
# ### Who has learned has moved
#
# ```{prf:proposition} Loss to motion
# :label: prop-loss-to-motion
#
# For every $\delta$, on a path or not, let $m^*$ be the margin of loss $L(\delta)$, $-\log\sigma(m^*) = L(\delta) \le \log 2$. Then
#
# $$\sqrt2\,\|\delta\| \;\ge\; \frac{\sqrt2\,m^*}{\beta\|\hat b\|} \;\ge\; \frac{2\sqrt2\,(\log2-L(\delta))}{\beta\|\hat b\|}.$$
# ```
#
# ````{dropdown} Proof
# $F(m) = \log2+\log\sigma(m)$ is concave and increases, and the mean of $m_i = 2\beta a_i\cdot\delta$ is $\beta\hat b\cdot\delta$. By Jensen
# $F(m^*) = \frac1n\sum F(m_i) \le F(\beta\hat b\cdot\delta) \le F(\beta\|\hat b\|\|\delta\|)$, so $m^* \le \beta\|\hat b\|\|\delta\|$. And $F(m) \le \frac m2$, its tangent at 0. ∎
# ````
#
# ### The speed limit
#
# ```{prf:proposition} Speed limit
# :label: prop-speed-limit
#
# If $\kappa \le 4$, then for all $t \ge 1$, with $\rho_t = \kappa_b(t-1)/4$,
#
# $$1-\rho_t-\tfrac{\beta^2\eta t}4\big(r+\sqrt\lambda\,\rho_t\big)^2 \;\le\; \frac{\log2-L_t}{\frac{\beta^2\eta t}8\|\hat b\|^2} \;\le\; 1.$$
# ```
#
# ````{dropdown} Proof
# *The ray.* Unroll {eq}`eq-contraction`: $\delta_t = \frac{\eta\beta}4\sum_{j<t}M_{t-1}\cdots M_{j+1}\hat b$. Telescope
# $M_{t-1}\cdots M_{j+1}\hat b-\hat b = -\sum_{k=j+1}^{t-1}M_{t-1}\cdots M_{k+1}\frac{\eta\beta^2}2H_k\hat b$, where
# $\|H_k\hat b\| \le \|H_k^{1/2}\|\|H_k^{1/2}\hat b\| \le \sqrt\lambda\,r\|\hat b\|$. So each differs from $\hat b$ by at most $(t-1-j)\frac{\kappa_b}2\|\hat b\|$, and with $x_t = \frac12\eta\beta t\|\hat b\|$
#
# $$\|2\delta_t-x_tu\| \le \rho_tx_t .$$
#
# *Right.* $L$ is convex with $\nabla L(0) = -\frac\beta2\hat b$, so $\log2-L_t \le \frac\beta2\|\hat b\|\|\delta_t\|$, and $\|\delta_t\| \le \frac{x_t}2$ by {prf:ref}`thm-a`.
#
# *Left.* $\nabla^2L \preceq \beta^2\hat C$ everywhere, so $\log2-L_t \ge \frac\beta2\hat b\cdot\delta_t-\frac{\beta^2}2\|\hat C^{1/2}\delta_t\|^2$. By the ray
# $\hat b\cdot\delta_t \ge \frac{x_t}2\|\hat b\|(1-\rho_t)$ and $\|\hat C^{1/2}\delta_t\| \le \frac{x_t}2(r+\sqrt\lambda\rho_t)$. ∎
# ````
#
# The check, on the training statements of the last behavior, with the learning rate of chapter {ref}`case-study`:

# %%
s = records.states(config.behaviors[-1])
g, labels, eta = s.g[s.train], s.labels[s.train], shared.learning_rate(records)
signal, t, beta = theory.signal(g, labels), np.arange(101), config.beta
path = last_layer.gradient_descent(labels[:, None] * g, eta, beta, 100)
fallen = theory.loss_decrease(2 * beta * labels * (path @ g.T)).mean(1)
distance = np.sqrt(2) * np.linalg.norm(path, axis=1)
moved = theory.distance_from_loss(fallen, signal.b_norm, beta)
low, high = theory.loss_decrease_bounds(signal, eta, beta, t)
assert (moved <= distance * (1 + 1e-9)).all() and (low <= fallen + 1e-12).all()
assert (fallen <= high * (1 + 1e-9)).all()
at, rows = [1, 3, 10, 30, 100], [distance, moved, fallen, low, high]
index = ["distance", "≥", "log 2 − L", "≥", "≤"]
pd.DataFrame([row[at] for row in rows], index, at).round(4)

# %% [markdown]
# ### The boundary
#
# ```{prf:theorem} 4.2′
# :label: thm-4-2-prime
#
# Let $\kappa \le 4$, $x = \frac12\eta\beta t\|\hat b\|$, $\rho = \kappa_b(t-1)/4$, $\hat\phi = \cos(W_B,\hat b)$ and $R^2 = \|W_B\|^2+2\hat\phi\|W_B\|x+x^2$. If $x\rho < R$, and the angle below is
# less than $\pi$,
#
# $$\cos(W_B+2\delta_t,\hat b) \;\ge\; \cos\!\Big(\arccos\frac{\hat\phi\|W_B\|+x}R+\arcsin\frac{x\rho}R\Big).$$
#
# For the population's $b$ add $\arcsin(\|\hat b-b\|/\|b\|)$ to the angle, if $\|\hat b - b\| < \|b\|$.
# ```
#
# ````{dropdown} Proof
# $W_B+xu$ has length $R$ and the first angle with $u$. By the ray (proof of {prf:ref}`prop-speed-limit`) $W_B+2\delta_t$ lies within $x\rho < R$ of it, so at an angle of at most
# $\arcsin(x\rho/R)$. Angles obey the triangle inequality, and $\cos$ falls on $[0,\pi]$. Likewise $\hat b$ is within $\|\hat b-b\|$ of $b$. ∎
# ````
#
# ```{prf:theorem} 4.3′
# :label: thm-4-3-prime
#
# If the boundary has cosine at least $S > 0$ with $\hat b$, every statement with $s_ig_i\cdot u \ge \sqrt{1-S^2}\,\|g_i\|$ is answered as preferred (or lies on the boundary). And with
# $x$ and $\rho$ as above, every statement with
#
# $$s_iW_B\cdot g_i+x\,\big(s_ig_i\cdot u-\rho\,\|g_i\|\big) > 0$$
#
# is answered as preferred after $t$ steps.
# ```
#
# ````{dropdown} Proof
# The first is {prf:ref}`prop-sharp-margin` for $s_ig_i$. The second: $s_i(W_B+2\delta_t)\cdot g_i \ge s_iW_B\cdot g_i+x\,s_iu\cdot g_i-x\rho\|g_i\|$ by the ray. ∎
# ````
#
# The check is a setting like the paper's: Gaussian, $\Delta = 0$, ${\rm Tr}^{1/2} = \frac12$, $\phi = 0$, $\|W_B\| = 1$, $\beta' = .64$ and $\eta$ such that $\kappa = .01$,
# with $n = d$ and at the book tier $d = 4096$ (recorded: the eigenvalue takes seconds, the states 134 MB).

# %%
r = learning_guarantees.accuracy_run(records).arrays
pairs = [
    "certified",
    "true",
    "population",
    "true_population",
    "proven",
    "right",
]
for proven, true in zip(pairs[::2], pairs[1::2], strict=True):
    assert (r[proven] <= r[true] + 1e-10).all()
print(
    f"(38): m ≥ {r['asked'][0]:.3g}; longest state {r['longest'][0]:.3f}: p = 0"
)
columns = ["cos(·, b̂) ≥", "cos(·, b̂)", "cos(·, b) ≥", "cos(·, b)"]
columns += ["proven right", "right"]
at = [0, 1, 4, 16]
pd.DataFrame([r[key][at] for key in pairs], columns, at).T.round(4)

# %% [markdown]
# One step is enough to prove all statements right; the paper's margin is out of reach of every one of them.
#
# ## A tube around the linear regime
#
# The ray is straight, gradient descent is not. Closer to it is the *linear regime*, in which all $\theta_i = 1$:
# $\delta^{\rm lin}_{t+1} = (I-\frac{\eta\beta^2}2\hat C)\delta^{\rm lin}_t+\frac{\eta\beta}4\hat b$, solved by
#
# $$\delta^{\rm lin}_t = \tfrac1{2\beta}\,\hat C^+\big(I-(I-\tfrac{\eta\beta^2}2\hat C)^t\big)\hat b.$$
#
# One singular value decomposition (`theory.spectrum`) gives it for all $t$ (`theory.linear_regime`), labels, $\eta$ and $\beta$.
#
# ```{prf:theorem} Theorem B, the tube
# :label: thm-b
#
# If $\kappa \le 4$, then $\|\delta_t-\delta^{\rm lin}_t\| \le E_t$ for all $t$, where $E_0 = 0$ and, with $m^{\rm lin}_i = 2\beta a_i\cdot\delta^{\rm lin}_t$,
#
# $$E_{t+1} = E_t+\tfrac{\eta\beta\sqrt\lambda}4\;\Big(\tfrac1n\sum_i\big[\big(1-\theta(|m^{\rm lin}_i|+2\beta\|g_i\|E_t)\big)\,m^{\rm lin}_i\big]^2\Big)^{1/2}.$$
# ```
#
# ````{dropdown} Proof
# Let $e_t = \delta_t-\delta^{\rm lin}_t$. Subtract the two recursions:
# $e_{t+1} = M_te_t+\frac{\eta\beta^2}2(\hat C-H_t)\delta^{\rm lin}_t$, and $\|M_t\| \le 1$. The last vector is $(\hat C-H_t)\delta^{\rm lin}_t = \frac1n\sum_ig_iy_i$ with
# $y_i = (1-\theta_i)\,g_i\cdot\delta^{\rm lin}_t$. The matrix with rows $g_i$ has norm $\sqrt{n\lambda}$, so it is at most $\frac1n\sqrt{n\lambda}\,\|y\| = \sqrt\lambda\,(\frac1n\sum y_i^2)^{1/2}$ long.
# Here $|g_i\cdot\delta^{\rm lin}_t| = |m^{\rm lin}_i|/(2\beta)$. The $\theta_i$ are those of the true margins, and $|m_i| \le |m_i^{\rm lin}|+2\beta\|g_i\|\|e_t\|$; as $\tanh$ is concave on $[0,\infty)$ with
# $\tanh 0 = 0$, $\theta$ falls with $|m|$, so $1-\theta_i$ is at most its value there, with $E_t$ for $\|e_t\|$ by induction. ∎
# ````
#
# {numref}`fig-tube` compares the tube with the true error on the behaviors of chapter {ref}`case-study`. At $t = 1$ the linear regime is exact. (The run behind it, `certificate_run`, is used
# from here to the end: for each behavior's training statements it holds what is proven beside what gradient descent does.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Error of the linear regime: true, and its proven bound.", "name": "fig-tube"}, "image": {"alt": "Two log-log panels against the step, a line a behavior: left the true relative error of the linear regime, right the bound of Theorem B. Both start many orders of magnitude below 1 and rise; the bound lies above, by more as steps go by, and passes 1 within the plot."}}
run = learning_guarantees.certificate_run(records).arrays
t, length = np.arange(len(run["tube"][0])), run["true_distance"] / 2**0.5
panels = {}
for label, key in (("true error / ‖δ‖", "error"), ("Eₜ / ‖δ‖", "tube")):
    relative = run[key][:, 2:] / length[:, 2:]
    series = zip(names, relative, strict=True)
    panels[label] = {n: (t[2:], y) for n, y in series}
plots.lines(panels, "step", scale=("log", "log"), colors=colors)

# %% [markdown]
# How good is the linear regime? It is a matter of the margins: the first three lines have the largest relative error over the behaviors while all $|m_i|$ are at most the value given.
#
# The other closed form is gradient flow, $\eta \to 0$ at fixed $\tau = \eta t$, when all $a_i$ are one vector $a$: $m' = 2\beta^2\|a\|^2\sigma(-m)$, so $m+e^m = 1+2\beta^2\|a\|^2\tau$: at first linear in $\tau$, in the end
# logarithmic. `theory.gradient_flow` solves it without overflow; gradient descent with small steps approaches it.

# %%
relative = run["error"][:, 1:] / length[:, 1:]
assert (run["error"] <= run["tube"] + 1e-10 * length.max()).all()
assert relative[:, 0].max() < 1e-12, "exact at t = 1"
for most in (0.1, 0.3, 1.0):
    until = (np.maximum.accumulate(run["margin"], 1) <= most)[:, 1:]
    print(f"while max |m| ≤ {most}: error ≤ {relative[until].max():.1e}")
for count in (100, 1000, 10_000):
    margin, _ = theory.gradient_flow(1.0, 1.0, 30.0)
    off = (
        2
        * last_layer.gradient_descent(np.ones((1, 1)), 30 / count, 1.0, count)[
            -1, 0
        ]
    )
    print(f"{count:6} steps to τ = 30: m off by {abs(off / margin - 1):.1e}")

# %% [markdown]
# ## The certificate
#
# ```{prf:theorem} The certificate
# :label: thm-certificate
#
# Let $\kappa \le 4$, $F(m) = \log2+\log\sigma(m)$, $f(\delta) = \log2-L(\delta)$ and $E_t$ as in {prf:ref}`thm-b`. For all $t \ge 1$:
#
# 1. *Distance.* $\sqrt2\,(\|\delta^{\rm lin}_t\|-E_t) \le \|W_U(t)-W_U(0)\| \le \sqrt2\,(\|\delta^{\rm lin}_t\|+E_t)$.
# 2. *Loss.* $f(\delta^{\rm lin}_t)-\frac\beta2\|\hat b\|E_t \;\le\; \log2-L_t \;\le\; f(\delta^{\rm lin}_t)+\frac\beta2\|\hat b\|E_t+\frac{\beta^2\lambda}2E_t^2$.
# 3. *Reach.* For every $z$: $\;L_t \le L(z)+\dfrac{\|z\|^2}{\eta t}+\max\!\Big(0,\dfrac1{1-\kappa/4}-2\Big)\dfrac{\log2}{2t}$. The loss never rises.
# 4. *Jensen.* $\log2-L_t \le F(\beta\|\hat b\|\,\|\delta_t\|)$.
# 5. *Boundary.* If $2E_t < R = \|W_B+2\delta^{\rm lin}_t\|$, its angle with $\hat b$ is at most that of $W_B+2\delta^{\rm lin}_t$ plus $\arcsin(2E_t/R)$.
# 6. *Statements.* If $s_iW_B\cdot g_i+2a_i\cdot\delta^{\rm lin}_t > 2\|g_i\|E_t$, statement $i$ is answered as preferred.
# ```
#
# ````{dropdown} Proof
# 1, 5 and 6 are {prf:ref}`thm-b` and the triangle inequality, 4 is {prf:ref}`prop-loss-to-motion`.
#
# *2.* $f$ is concave, with curvature at most $\beta^2\lambda$. The increment is $-\frac\eta2\nabla L(\delta_t)$, and by {prf:ref}`thm-a` increments do not grow, so on the path $\|\nabla f(\delta_t)\| \le \|\nabla f(0)\| = \frac\beta2\|\hat b\|$.
# Expand at $\delta_t$, with $e_t = \delta_t-\delta^{\rm lin}_t$:
# $-\frac{\beta^2\lambda}2\|e_t\|^2 \le f(\delta^{\rm lin}_t)-f(\delta_t)+\nabla f(\delta_t)\cdot e_t \le 0$.
#
# *3.* Write $f_k$ here for $L(\delta_k)$. As the curvature is at most $\beta^2\lambda$,
# $f_{k+1} \le f_k-\frac\eta2\|\nabla f_k\|^2(1-\frac\kappa4)$: the loss never rises. And by convexity
#
# $$\begin{aligned}\|\delta_{k+1}-z\|^2 &= \|\delta_k-z\|^2-\eta\nabla f_k\cdot(\delta_k-z)+\tfrac{\eta^2}4\|\nabla f_k\|^2 \\ &\le \|\delta_k-z\|^2-\eta(f_k-L(z))+\tfrac\eta2\,\frac{f_k-f_{k+1}}{1-\kappa/4}.\end{aligned}$$
#
# Sum over $k < t$ and use $\sum_{k<t}f_k = \sum_{k\le t,\,k\ge1}f_k+f_0-f_t \ge tf_t+f_0-f_t$:
#
# $$\eta t\,(f_t-L(z)) \le \|z\|^2+\tfrac\eta2(f_0-f_t)\Big(\frac1{1-\kappa/4}-2\Big),$$
#
# and $0 \le f_0-f_t \le \log2$. For $\kappa = 4$ it says nothing. ∎
# ````
#
# `certificate` takes the best of these at every step: for the distance also {prf:ref}`thm-a`, its saturation ({prf:ref}`prop-saturation`) and
# {prf:ref}`prop-loss-to-motion`; for $z$ points of the linear regime at other times; and what is proven of the loss at one step stays proven at all later ones. It needs the hidden states, the labels and $W_B$. **No training is run.**

# %%
how = dict(learning_rate=eta, beta=beta)
proven = certificate(g, labels, s.boundary, **how, steps=100)
(low, high), true = proven.loss[:, -1], np.log(2) - fallen[-1]
print(f"{plots.short(s.behavior)}: κ = {proven.kappa:.2f}; after 100 steps")
print(f"proven {low:.4f} ≤ L ≤ {high:.4f}; gradient descent: {true:.4f}")
assert low - 1e-12 <= true <= high + 1e-12

# %% [markdown]
# ### On real behaviors
#
# {numref}`fig-certificate` has, for every behavior, what is proven (band) and what gradient descent then does (line). For tens of steps the bands are hardly wider than the lines; then they open, first for the behavior
# whose margins grow first: the tube grows by what the margins could do at worst, and past its reach only {prf:ref}`thm-a` and the bounds 3 and 4 are left.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Proven bounds (bands) and gradient descent (lines).", "name": "fig-certificate"}, "image": {"alt": "Two panels against the step on a log scale up to 1000, fall of the loss left and distance moved right, a line a behavior inside a band of the same colour. For tens of steps the bands are as thin as the lines; far beyond they open and overlap."}}
loss, true_loss = (np.log(2) - run[key] for key in ("fall", "true_fall"))
distance_bounds = run["distance"], run["true_distance"]
both = {
    "training loss": (loss[:, ::-1], true_loss),
    "‖W(t) − W(0)‖": distance_bounds,
}
panels = {label: {} for label in both}
for label, (band, line) in both.items():
    for n, (low, high), true in zip(names, band, line, strict=True):
        panels[label][n] = t[1:], np.stack([low, true, high])[:, 1:]
plots.lines(panels, "step", scale=("log", "linear"), colors=colors)

# %% [markdown]
# In JupyterLab the next cell has sliders: another $\eta$ (as a share of the rule's), another horizon, another behavior; a button draws. Halve $\eta$ and double the steps: what changes?

# %% tags=["nbval-ignore-output", "not-stored", "remove-output"]
from ipywidgets import interact_manual


def draw(behavior=config.behaviors[-1], share=(0.05, 1.3, 0.05), horizon=300):
    one, rate = records.states(behavior), eta * share
    x, y = one.g[one.train], one.labels[one.train]
    known = certificate(
        x, y, one.boundary, learning_rate=rate, beta=beta, steps=horizon
    )
    path = last_layer.gradient_descent(y[:, None] * x, rate, beta, horizon)
    true = theory.loss_decrease(2 * beta * y * (path @ x.T)).mean(1)
    band = np.stack([known.loss_decrease[0], true, known.loss_decrease[1]])
    series = {plots.short(behavior): (np.arange(horizon + 1), band)}
    return plots.lines({"log 2 − L": series}, "step", colors=colors)


_ = interact_manual(
    draw, behavior=list(config.behaviors), horizon=(10, 1000, 10)
)
# %% [markdown]
# The same for what the boundary does, at some steps: the least cosine with $\hat b$ that is proven beside the true one, and the share of statements proven to be answered as
# preferred beside the true share, as proven / true. NaN: nothing is proven.

# %% tags=["hide-input"]
assert (run["proven"] <= run["right"] + 1e-12).all()
assert not (run["cosine"] > run["true_cosine"] + 1e-10).any()
table, about = (
    {},
    {"cos": ("cosine", "true_cosine"), "right": ("proven", "right")},
)
for what, keys in about.items():
    for step in (1, 10, 100, 300, 1000):
        pairs = zip(*(run[key][:, step] for key in keys), strict=True)
        table[what, step] = [f"{p:.3f} / {q:.3f}" for p, q in pairs]
display(pd.DataFrame(table, names).T)

# %% [markdown]
# ### The order of Figure 3, proven
#
# Two certificates whose loss bounds do not overlap prove which of two behaviors has the lower loss (`certain_until`). A cell of the table is the last step up to which, from step 1 on,
# **the loss of the column's behavior is proven to be below that of the row's**; a dot is 0, and 1000 is the end of the computation.

# %% tags=["hide-input"]
certain, count = run["certain"].T, len(names)
rows = [f"{k + 1} {plots.short(b, 24)}" for k, b in enumerate(config.behaviors)]
display(pd.DataFrame(certain, rows, range(1, count + 1)).replace(0, "·"))
for slow, fast in zip(*np.nonzero(certain), strict=True):
    ahead = run["true_fall"][fast] - run["true_fall"][slow]
    assert (ahead[1 : certain[slow, fast] + 1] > 0).all()
pairs, known = np.triu_indices(count, 1), {}
for key in ("certain", "certain_by_limit"):
    either = np.maximum(run[key], run[key].T)[pairs]
    whole = (either >= min(config.steps, len(t) - 1)).sum()
    known[key] = (
        f"**{whole} of {len(either)}** pairs, for every pair up to step {min(either)}"
    )
text = f"Over the whole run of {config.steps} steps the order is proven for {known['certain']}. "
text += f"By the speed limit alone: for {known['certain_by_limit']}."
display(Markdown(text))

# %% [markdown]
# Say exactly what this is. For a pair whose order is proven for the whole run, the order of the two curves of Figure 3 is, for full gradient descent, no longer an observation but **a theorem about these hidden states**: gradient descent on all training statements,
# with this reference, this $\eta$ and $\beta$, must produce it (up to the rounding of float64). (Whether it is the paper's numbering of the five is another question, claim F3o.) The second sentence above shows what the tube buys: the lower side of the speed
# limit gives away a term that grows like $\kappa\kappa_b^2t^3$, and at the $\kappa$ of this learning rate nothing is left of it within a few steps.
#
# ### Break it: what is not covered
#
# The certificate is about gradient descent on the training statements. Stochastic gradient descent does not follow that path, and held-out statements are others. The cell trains by SGD as in
# chapter {ref}`case-study` and counts the steps at which the loss lies outside the proven bounds. (Above $\kappa = 4$ `certificate` stops with one line that says so.)

# %%
everyone = [records.states(behavior) for behavior in config.behaviors]
problems = [last_layer.Problem(s.g, s.labels, s.train) for s in everyone]
batch = dict(batch_size=config.batch_size, seeds=3, steps=100, **how)
low, high = loss[:, ::-1, :101, None].swapaxes(0, 1)
for sampling in ("full", "balanced", "uniform"):
    found = last_layer.train(problems, s.boundary, **batch, sampling=sampling)
    for held_out, name in enumerate(("training", "held-out")):
        seen = found["loss"][:, 0, held_out]
        outside = ((seen < low - 1e-9) | (seen > high + 1e-9)).mean()
        assert sampling != "full" or held_out or outside == 0
        print(f"{sampling:8} {name:8} outside the bounds: {outside:.0%}")

# %% [markdown]
# ## What was shown
#
# - {prf:ref}`thm-4-2` speaks of hard behaviors only, certifies a gain of at most $(1-\phi)^2/156$, and is false as printed: for few statements, for $\phi$ near 1, and for $\phi$ near $-1$. {prf:ref}`prop-4-2-repaired` is what its proof gives.
# - {prf:ref}`thm-4-3` is empty ({prf:ref}`prop-empty`).
# - {prf:ref}`thm-4-2-prime`, {prf:ref}`thm-4-3-prime` and {prf:ref}`prop-speed-limit` hold for any data and can be evaluated; {prf:ref}`thm-b` and {prf:ref}`thm-certificate` bracket a run of gradient descent without running it.
#
# The verdicts are computed by the tests of `claims.yml`; the threshold of T3c is this book's. All four outcomes followed from the derivations above before they were computed.

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(claims.table("04_learning_guarantees", records)))

# %% [markdown]
# ### Exercises
#
# ```{exercise}
# :label: ex-opposite
#
# Show that {prf:ref}`thm-4-2` fails for $\phi = -1$ at *every* $d$ and $v$ it admits with $\Delta = 0$, $\beta' = 1$ and $\|W_B\| = 1$, at $t = 1$ and for every $\eta$ with $t_{\max} \ge 1$, whatever the states are, as long as $\|\hat b\| \le 2$.
# ```
#
# ```{solution} ex-opposite
# :class: dropdown
#
# $W_B = -u$. A vector within $y < 1$ of $-u$ has an angle of at least $\pi-\arcsin y$ with $u$, so a cosine of at most $-\sqrt{1-y^2} \le -1+y^2$. Here $y = \|2\delta_1\| = \frac12\eta\beta\|\hat b\| \le \eta\beta$. The theorem claims a cosine of at least
# $-1+(2-13d^{-v})\eta\beta/(8+\frac1{24c_n'}) \ge -1+\frac{19}{16}\eta\beta/(8+\frac1{12})$, as $d^v \ge 16$ and $c_n' \ge \frac12$. The second exceeds the first once $\eta\beta < .14$; and $t_{\max} \ge 1$ means $\eta\beta \le d^{-v}/(72c_n') \le \frac1{576}$. Nothing here is random but $\|\hat b\|$.
# ```
#
# ```{exercise}
# :label: ex-cap
#
# The cap $(1-\phi)^2/156$ uses $13$. What is the cap of {prf:ref}`prop-4-2-repaired`, with its constants 6.1 and 1152? What limits it then?
# ```
#
# ```{solution} ex-cap
# :class: dropdown
#
# At $t_{\max}$ the gain is $\varepsilon z/(576\beta'c_n'\|W_B\|+\frac1{16})$ with $z = d^{-v}$ and $\varepsilon = 1-\phi-6.1z$: at most $16(1-\phi-6.1z)z$, largest at $z = (1-\phi)/12.2$, but $z \le \frac1{16}$. For $\phi = 0$, $z = \frac1{16}$: $1-\frac{6.1}{16} = .62$. So the repaired constants matter,
# but only for a tiny $\|W_B\|$; with $\beta'c_n'\|W_B\| = 1$ it is below $10^{-4}$. The horizon is what limits it: up to $t_{\max}$ the boundary has moved by no more than the order of $d^{-v}/(72\beta'c_n')$.
# ```
#
# ```{exercise}
# :label: ex-flow
#
# Divide $\eta$ by 10 and take 10 times as many steps. Does the order of two behaviors stay proven for longer, in units of $\eta t$? Run it, and explain with {prf:ref}`thm-b`.
# ```
#
# ````{solution} ex-flow
# :class: dropdown
#
# ```python
# from dpo_helpers.certificate import certain_until
#
# ends = (config.behaviors[0], config.behaviors[-1])
# first, last = (records.states(behavior) for behavior in ends)
# for share in (1, 0.1):
#     pair = [
#         certificate(
#             s.g[s.train], s.labels[s.train], s.boundary, beta=config.beta,
#             learning_rate=eta * share, steps=int(1000 / share),
#         )
#         for s in (last, first)
#     ]
#     print(share, certain_until(*pair) * share)
# ```
#
# It stays the same to within a few steps (or ends with the computation both times). $E_{t+1}-E_t$ is proportional to $\eta$ at given margins, and $\delta^{\rm lin}_t$ depends on $\eta t$ alone where $\kappa$ is small along the directions that matter. The certificate is about time, not about steps.
# ````
#
# ```{exercise}
# :label: ex-kappa
#
# For which $\kappa$ does the last term of bound 3 vanish, and why must something like it be there for larger $\kappa$?
# ```
#
# ```{solution} ex-kappa
# :class: dropdown
#
# For $\kappa \le 2$. Then a step does not overshoot in any direction, $I-\frac\eta2\nabla^2L$ has only eigenvalues between 0 and 1, and descent is at least as good as the bound of gradient flow. For $\kappa$ near 4 it may jump to and fro across a valley and gain almost nothing by a step,
# while $L(z)+\|z\|^2/(\eta t)$ falls as before.
# ```

# %% tags=["hide-input", "nbval-ignore-output"]
display(Markdown(records.provenance()))
