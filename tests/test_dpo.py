"""The DPO loss and the objectives that it comes from, against closed forms in float64."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from dpo_helpers import dpo
from experiments import objectives

pytestmark = pytest.mark.usefixtures("one_thread")


def _policies(seed, prompts=4, responses=5):
    """Two random policies (log-probabilities) and random rewards."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn((3, prompts, responses), generator=draw, dtype=torch.float64)
    return (2 * x[0]).log_softmax(-1), x[1].log_softmax(-1), x[2]


# The loss


def test_loss_is_minus_log_sigmoid():
    m = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    np.testing.assert_allclose(dpo.loss(m), -np.log(expit(m.numpy())), rtol=1e-6)
    np.testing.assert_allclose(dpo.loss(m), np.logaddexp(0, -m.numpy()), rtol=1e-13)
    assert dpo.loss(torch.zeros((), dtype=torch.float64)).item() == pytest.approx(np.log(2))


def test_loss_is_stable_far_out():
    m = torch.tensor([-1000.0, -700, -100, -40, -25, -20.5, 25, 40, 100, 700, 1000]).double()
    # softplus counts log(1 + exp(x)) as x where x > 20: at most 2.1e-9 off.
    np.testing.assert_allclose(dpo.loss(m), np.logaddexp(0, -m.numpy()), rtol=2e-10, atol=0)
    assert dpo.loss(m)[0] == 1000
    assert 0 < dpo.loss(m)[-2] < 1e-300
    assert dpo.loss(m)[-1] == 0
    assert torch.isfinite(dpo.loss(torch.tensor([-1000.0, 1000.0]))).all()


def test_loss_keeps_the_shape():
    m = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(2, 3, 4)
    one_by_one = torch.stack([dpo.loss(x) for x in m.flatten()]).reshape(2, 3, 4)
    torch.testing.assert_close(dpo.loss(m), one_by_one, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("limit", "rtol"), [(20, 1e-13), (1000, 3e-9)])
def test_gradient_of_the_loss(limit, rtol):
    m = torch.linspace(-limit, limit, 2001, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dpo.loss(m).sum(), m)
    np.testing.assert_allclose(gradient, -expit(-m.detach().numpy()), rtol=rtol, atol=1e-300)


def test_second_derivative_of_the_loss():
    m = torch.linspace(-15, 15, 301, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(dpo.loss(m).sum(), m, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), m)
    x = m.detach().numpy()
    np.testing.assert_allclose(second, expit(x) * expit(-x), rtol=1e-9, atol=1e-15)


# The margin


def test_margin_by_hand():
    # π/π_ref is 2 for the chosen response and 1/3 for the rejected: m = β log 6.
    log = torch.tensor([0.5, 0.1, 0.25, 0.3], dtype=torch.float64).log()
    assert dpo.margin(*log, beta=0.7).item() == pytest.approx(0.7 * np.log(6), rel=1e-14)


def test_margin_properties():
    policy, reference, _ = _policies(0)
    c, r, rc, rr = policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1]
    m = dpo.margin(c, r, rc, rr, 0.3)
    assert (dpo.margin(rc, rr, rc, rr, 0.3) == 0).all(), "the reference has no margin"
    torch.testing.assert_close(dpo.margin(r, c, rr, rc, 0.3), -m, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(dpo.margin(c, r, rc, rr, 0.9), 3 * m, rtol=1e-13, atol=1e-15)
    shift = torch.arange(4.0, dtype=torch.float64)  # log-partition functions cancel
    shifted = dpo.margin(c + shift, r + shift, rc - shift, rr - shift, 0.3)
    torch.testing.assert_close(shifted, m, rtol=1e-12, atol=1e-14)


# Preferences and objectives


def test_bradley_terry():
    _, _, rewards = _policies(1)
    p = objectives.bradley_terry(rewards)
    assert p.shape == (4, 5, 5)
    torch.testing.assert_close(p + p.mT, torch.ones_like(p), rtol=1e-15, atol=0)
    for x, r in enumerate(rewards.exp().numpy()):
        np.testing.assert_allclose(p[x], r[:, None] / (r[:, None] + r[None, :]), rtol=1e-13)


def test_bradley_terry_sees_only_differences_of_a_prompt():
    _, _, rewards = _policies(2)
    shift = torch.tensor([[3.0], [-2.0], [0.5], [10.0]], dtype=torch.float64)
    p = objectives.bradley_terry(rewards)
    torch.testing.assert_close(objectives.bradley_terry(rewards + shift), p, rtol=1e-13, atol=0)


def test_objectives_by_enumeration():
    policy, reference, rewards = _policies(3, prompts=2, responses=3)
    beta = 0.4
    p, q, r = policy.exp().numpy(), reference.exp().numpy(), rewards.numpy()
    value, loss = 0.0, 0.0
    for x in range(2):
        for y in range(3):
            value += p[x, y] * (r[x, y] - beta * np.log(p[x, y] / q[x, y])) / 2
            for other in range(3):
                odds = (p[x, y] / q[x, y]) / (p[x, other] / q[x, other])
                preferred = expit(r[x, y] - r[x, other])
                loss -= preferred * np.log(expit(beta * np.log(odds))) / (2 * 9)
    found = objectives.rlhf_objective(policy, reference, rewards, beta).item()
    assert found == pytest.approx(value, rel=1e-13)
    found = objectives.population_loss(policy, reference, rewards, beta).item()
    assert found == pytest.approx(loss, rel=1e-13)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_rlhf_objective_is_log_partition_minus_divergence(beta):
    """J(π) = E_x[β log Z(x) − β KL(π‖π*)], with π* = π_ref exp(r/β)/Z: so π* is the optimum."""
    for seed in range(5):
        policy, reference, rewards = _policies(seed)
        log_z = (reference + rewards / beta).logsumexp(-1)
        best = reference + rewards / beta - log_z[:, None]
        divergence = (policy.exp() * (policy - best)).sum(-1)
        value = objectives.rlhf_objective(policy, reference, rewards, beta).item()
        assert value == pytest.approx(beta * (log_z - divergence).mean().item(), rel=1e-12)
        optimum = objectives.rlhf_optimum(reference, rewards, beta)
        torch.testing.assert_close(optimum, best, rtol=1e-12, atol=1e-14)
        top = objectives.rlhf_objective(optimum, reference, rewards, beta).item()
        assert top == pytest.approx(beta * log_z.mean().item(), rel=1e-12)
        assert top > value


def test_optimum_has_the_rewards_as_its_margins():
    """β[log(π*/π_ref)(y) − log(π*/π_ref)(y′)] = r(y) − r(y′): what turns (3) into (4)."""
    _, reference, rewards = _policies(6)
    best = objectives.rlhf_optimum(reference, rewards, 0.3)
    margins = dpo.margin(best[:, 0], best[:, 1], reference[:, 0], reference[:, 1], 0.3)
    torch.testing.assert_close(margins, rewards[:, 0] - rewards[:, 1], rtol=1e-12, atol=1e-14)


def test_population_loss_is_least_where_its_gradient_vanishes():
    policy, reference, rewards = _policies(7)
    best = objectives.rlhf_optimum(reference, rewards, 0.5).requires_grad_()
    least = objectives.population_loss(best, reference, rewards, 0.5)
    (gradient,) = torch.autograd.grad(least, best)
    assert gradient.abs().max() < 1e-14
    assert least < objectives.population_loss(reference, reference, rewards, 0.5) - 1e-3
    assert least < objectives.population_loss(policy, reference, rewards, 0.5) - 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_both_optima_agree(seed):
    """T0: the numerical optima of (3) and (4) are one policy, that of the closed form."""
    _, reference, rewards = _policies(seed)
    best = objectives.rlhf_optimum(reference, rewards, 0.5).exp()
    rlhf = objectives.fit(lambda p: -objectives.rlhf_objective(p, reference, rewards, 0.5), (4, 5))
    direct = objectives.fit(
        lambda p: objectives.population_loss(p, reference, rewards, 0.5), (4, 5)
    )
    assert (rlhf - direct).abs().max() < 1e-6
    assert (rlhf - best).abs().max() < 1e-6
    assert (direct - best).abs().max() < 1e-6
    assert (best - reference.exp()).abs().max() > 0.05, "the optimum is not where it began"


def test_fit_finds_a_known_policy():
    target = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]], dtype=torch.float64)
    found = objectives.fit(
        lambda p: -(target * p).sum(), (2, 3)
    )  # cross-entropy: least at the target
    torch.testing.assert_close(found, target, rtol=0, atol=1e-8)
