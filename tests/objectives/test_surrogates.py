"""Surrogates: the numbers of the papers and of the catalogue, their gradients, and where they meet."""

import functools
import math

import numpy as np
import pytest
import torch

from polopt.objectives import reduction
from polopt.objectives.divergences import categorical_kl, k3
from polopt.objectives.surrogates import (
    cispo,
    clip_drift,
    clipped,
    drifted,
    gspo,
    gspo_token,
    importance_weighted,
    kl_drift,
    mdpo,
    policy_gradient,
    quadratic_drift,
    spo,
    topr,
)


def at(surrogate, ratio, advantage):
    """The objective (minus the loss) of one sample at a ratio, and its derivative in the ratio."""
    r = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    value = -surrogate(torch.log(r), torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)).sum()
    return value.item(), torch.autograd.grad(value, r)[0].item()


ppo = functools.partial(clipped, low=0.2)


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "value", "slope"),
    [
        # catalogue, ppo, oracle 1
        (ppo, 1.5, 1.0, 1.2, 0.0),
        (ppo, 1.5, -1.0, -1.5, -1.0),
        (ppo, 0.5, 1.0, 0.5, 1.0),
        (ppo, 0.5, -1.0, -0.8, 0.0),
        (ppo, 1.1, 1.0, 1.1, 1.0),
        # clip-higher: more room above, the same below
        (functools.partial(clipped, low=0.2, high=0.28), 1.25, 1.0, 1.25, 1.0),
        (functools.partial(clipped, low=0.2, high=0.28), 1.5, 1.0, 1.28, 0.0),
        (functools.partial(clipped, low=0.2, high=0.28), 0.5, -1.0, -0.8, 0.0),
        # CONFORMANCE, dual clip: off by default, c = 3 by argument, for negative advantages alone
        (ppo, 5.0, -1.0, -5.0, -1.0),
        (functools.partial(clipped, low=0.2, dual=3.0), 5.0, -1.0, -3.0, 0.0),
        (functools.partial(clipped, low=0.2, dual=3.0), 2.0, -1.0, -2.0, -1.0),
        (functools.partial(clipped, low=0.2, dual=3.0), 5.0, 1.0, 1.2, 0.0),
        # catalogue, spo, oracle 1
        (functools.partial(spo, width=0.2), 1.3, 1.0, 1.075, -0.5),
        (functools.partial(spo, width=0.2), 1.2, 1.0, 1.1, 0.0),
        (functools.partial(spo, width=0.2), 0.8, -2.0, -1.8, 0.0),
        (functools.partial(spo, width=0.2), 1.0, 0.7, 0.7, 0.7),
        # catalogue, mdpo, oracle 4: a large step forgets the divergence
        (functools.partial(mdpo, step_size=1e12), 1.5, 1.0, 1.5, 1.0),
        (functools.partial(mdpo, step_size=0.5), 1.5, 1.0, 1.5 - 2 * (1.5 * math.log(1.5) - 0.5), 1 - 2 * math.log(1.5)),
    ],
)
def test_value_and_slope(surrogate, ratio, advantage, value, slope):
    given = at(surrogate, ratio, advantage)
    assert given[0] == pytest.approx(value, abs=1e-9)
    assert given[1] == pytest.approx(slope, abs=1e-9)


def discovered(log_ratio, advantage):
    """The drift of discovered policy optimisation (arXiv 2210.05639), a drift that a method would bring along."""
    up = (torch.exp(log_ratio) - 1) * advantage
    down = log_ratio * advantage
    return torch.relu(torch.where(advantage >= 0, up - 2 * torch.tanh(up / 2), down - 0.6 * torch.tanh(down / 0.6)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, 1.4898373, None),
        (3.0, 1.0, 2.5231883, 0.4199743),
        (0.5, -1.0, -0.7014566, 0.3431090),
        (0.5, 1.0, 0.5, 1.0),
        (2.0, -1.0, -2.0, -1.0),
    ],
)
def test_any_drift_function_fits(ratio, advantage, value, slope):
    """Catalogue, discovered_po, oracles."""
    given = at(functools.partial(drifted, drift=discovered), ratio, advantage)
    assert given[0] == pytest.approx(value, abs=1e-7)
    if slope is not None:
        assert given[1] == pytest.approx(slope, abs=1e-7)


def test_clipping_is_a_drift():
    """Catalogue, discovered_po, the PPO identity, on a grid of ratios and advantages."""
    ratio, advantage = (x.reshape(-1) for x in np.meshgrid(np.linspace(0.1, 3, 41), np.linspace(-2, 2, 21)))
    log_prob, old = np.log(ratio) - 1, np.full_like(ratio, -1.0)
    np.testing.assert_allclose(drifted(log_prob, old, advantage, clip_drift(0.2, 0.3)), clipped(log_prob, old, advantage, 0.2, 0.3), atol=1e-12)
    np.testing.assert_allclose(drifted(log_prob, old, advantage, quadratic_drift(0.2)), spo(log_prob, old, advantage, 0.2), atol=1e-12)
    for drift in (clip_drift(0.2), quadratic_drift(0.2), kl_drift(0.5)):
        assert np.all(drift(np.log(ratio), advantage) >= -1e-12)
        assert not np.any(drift(np.zeros(5), np.linspace(-2, 2, 5)))


def batch(seed, rows=4, time=6):
    rng = np.random.default_rng(seed)
    old, advantage = -rng.gamma(2.0, 0.5, size=(rows, time)), rng.normal(size=(rows, time))
    mask = rng.random((rows, time)) < 0.7
    mask[:, 0] = True
    return (torch.from_numpy(x) for x in (old, old + 0.3 * rng.normal(size=old.shape), advantage, mask))


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0].numpy()


SURROGATES = {
    "importance_weighted": importance_weighted,
    "clipped": ppo,
    "dual": functools.partial(clipped, low=0.2, dual=3.0),
    "cispo": functools.partial(cispo, high=0.2),
    "topr": topr,
    "topr-token": functools.partial(topr, ratio="token"),
    "gspo_token": functools.partial(gspo_token, low=0.2),
    "spo": functools.partial(spo, width=0.2),
    "mdpo": functools.partial(mdpo, step_size=0.3),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_at_the_old_policy_all_are_the_policy_gradient(name):
    """Catalogue: trpo 2, ppo 2, pg_guide 1, mdpo 2, spo 3; element by element."""
    old, _, advantage, mask = batch(0)
    x = old.clone().requires_grad_()
    expected = gradient(policy_gradient(x, advantage, mask=mask).sum(), x)
    np.testing.assert_allclose(gradient(SURROGATES[name](x, old, advantage, mask=mask).sum(), x), expected, atol=1e-14)


def test_value_at_the_old_policy_is_minus_the_advantage():
    old, _, advantage, _ = batch(1)
    for name in ("importance_weighted", "clipped", "gspo_token", "spo", "mdpo"):
        np.testing.assert_allclose(SURROGATES[name](old, old, advantage), -advantage, atol=1e-14)


def test_wide_clips_change_nothing():
    """Catalogue, ppo 3 and spo 3."""
    old, new, advantage, _ = batch(2)
    expected = importance_weighted(new, old, advantage)
    np.testing.assert_allclose(clipped(new, old, advantage, 1e9), expected)
    np.testing.assert_allclose(spo(new, old, advantage, 1e12), expected, atol=1e-10)


def test_spo_is_best_on_the_boundary_and_homogeneous():
    """Catalogue, spo, oracles 2 and 4."""
    for a in (1.5, -0.7):
        values = [at(functools.partial(spo, width=0.2), r, a)[0] for r in np.linspace(0.5, 1.5, 1001)]
        assert np.linspace(0.5, 1.5, 1001)[np.argmax(values)] == pytest.approx(1 + math.copysign(0.2, a))
        assert max(values) == pytest.approx(a + abs(a) * 0.1)
        assert np.allclose(at(functools.partial(spo, width=0.2), 1.4, 2 * a), 2 * np.array(at(functools.partial(spo, width=0.2), 1.4, a)))


def test_cispo_has_its_bound_by_either_name():
    """CONFORMANCE: 1 + epsilon, or an absolute cap, which at 0.2 caps every weight."""
    old, new, advantage, mask = batch(3)
    x = new.clone().requires_grad_()
    ratio = torch.exp(new - old)
    by_width = gradient(cispo(x, old, advantage, high=0.2, mask=mask).sum(), x)
    np.testing.assert_allclose(by_width, -(mask * torch.clip(ratio, max=1.2) * advantage), atol=1e-14)
    np.testing.assert_array_equal(by_width, gradient(cispo(x, old, advantage, cap=1.2, mask=mask).sum(), x))
    np.testing.assert_allclose(gradient(cispo(x, old, advantage, cap=0.2).sum(), x), -(torch.clip(ratio, max=0.2) * advantage), atol=1e-14)
    assert torch.mean((ratio > 0.2).double()) == 1
    lower = gradient(cispo(x, old, advantage, high=0.2, low=0.1).sum(), x)
    np.testing.assert_allclose(lower, -(torch.clip(ratio, 0.9, 1.2) * advantage), atol=1e-14)


def test_gspo_in_both_forms():
    """The sequence form's numbers, and the token form's equal value and gradient where advantages are those of the sequence."""
    old, new, advantage, mask = batch(4)
    advantage = advantage[:, :1]
    x = new.clone().requires_grad_()
    ratio = torch.exp(torch.sum((new - old) * mask, -1) / mask.sum(-1))
    expected = -torch.minimum(ratio * advantage[:, 0], torch.clip(ratio, 0.95, 1.1) * advantage[:, 0])
    for form in (gspo, gspo_token):
        loss = form(x, old, advantage, 0.05, 0.1, mask=mask)
        np.testing.assert_allclose(loss.detach()[mask], (expected[:, None] * mask)[mask], atol=1e-14)
        total = reduction.reduce(loss, mask, "sequence")
        assert total.item() == pytest.approx(expected.mean().item())
        inside = ((ratio > 0.95) | (advantage[:, 0] > 0)) & ((ratio < 1.1) | (advantage[:, 0] < 0))
        weight = -(inside * ratio * advantage[:, 0])[:, None] * mask / mask.sum(-1, keepdim=True) / len(ratio)
        np.testing.assert_allclose(gradient(total, x), weight, atol=1e-14)
    assert gspo(new, old, advantage, 0.05).shape == new.shape


def test_topr_weighs_by_the_trajectory():
    """CONFORMANCE: one library weighs each token by its own ratio."""
    old, new, _, mask = batch(5)
    advantage = torch.tensor([[1.0], [-1.0], [-1.0], [2.0]], dtype=torch.float64)
    x = new.clone().requires_grad_()
    trajectory = torch.exp(torch.sum((new - old) * mask, -1, keepdim=True))
    weight = torch.where(advantage < 0, torch.clip(trajectory, max=1.0), 1.0)
    np.testing.assert_allclose(gradient(topr(x, old, advantage, mask=mask).sum(), x), -(weight * advantage * mask), atol=1e-14)
    token = torch.where(advantage < 0, torch.clip(torch.exp(new - old), max=1.0), 1.0)
    np.testing.assert_allclose(gradient(topr(x, old, advantage, ratio="token", mask=mask).sum(), x), -(token * advantage * mask), atol=1e-14)
    assert not np.allclose(weight * mask, token * mask)


def test_props_loss_is_the_clip_with_advantage_minus_one():
    """Catalogue, props 1: max(r, clip(r))."""
    old, new, advantage, _ = batch(6)
    ratio = torch.exp(new - old)
    np.testing.assert_allclose(clipped(new, old, -torch.ones_like(advantage), 0.3), torch.maximum(ratio, torch.clip(ratio, 0.7, 1.3)))


def test_trust_region_step_of_two_actions():
    """Catalogue, trpo, oracles 1 and 2: the gradient of the surrogate at the old policy, and the exact KL of the step."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    old = torch.log_softmax(logits.detach(), 0)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    objective = -torch.sum(old.exp() * importance_weighted(torch.log_softmax(logits, 0), old, advantage))
    np.testing.assert_allclose(gradient(objective, logits), [0.5, -0.5], atol=1e-15)
    objective = -torch.sum(old.exp() * policy_gradient(torch.log_softmax(logits, 0), advantage))
    np.testing.assert_allclose(gradient(objective, logits), [0.5, -0.5], atol=1e-15)
    beta = math.sqrt(0.02)
    new = torch.log_softmax(torch.tensor([beta, -beta], dtype=torch.float64), 0)
    assert new.exp()[0].item() == pytest.approx(0.570243, abs=1e-6)
    assert categorical_kl(old, new).item() == pytest.approx(0.0099668, abs=1e-7)


@pytest.mark.parametrize("exact", [False, True])
def test_mirror_descent_finds_its_closed_form(exact):
    """Catalogue, mdpo, oracle 1: pi prop pi_k exp(t A), with the sampled and with the exact divergence."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    old, advantage = torch.full((2,), math.log(0.5), dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    for _ in range(300):
        new = torch.log_softmax(logits, 0)
        kl = categorical_kl(new, old).expand(2) if exact else None
        loss = torch.sum(old.exp() * mdpo(new, old, advantage, 0.5, kl=kl))
        with torch.no_grad():
            logits -= 0.5 * torch.autograd.grad(loss, logits)[0]
    assert torch.softmax(logits, 0)[0].item() == pytest.approx(0.731059, abs=1e-5)


def test_k3_of_the_update():
    """Catalogue, ppo, oracle 4: with samples of the old policy, k3(old, new) is r - 1 - log r."""
    assert k3(np.array([0.0]), np.log([1.5]))[0] == pytest.approx(0.0945349, abs=1e-7)
    rng = np.random.default_rng(0)
    old, new = (x - np.log(np.sum(np.exp(x))) for x in rng.normal(size=(2, 6)))
    assert np.sum(np.exp(old) * k3(old, new)) == pytest.approx(categorical_kl(old, new))


def test_importance_weights_make_old_samples_count_for_the_new_policy():
    """Expectation over the old policy of the surrogate's gradient is the gradient of the new policy's reward, at any distance."""
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=5), requires_grad=True)
    old = torch.log_softmax(torch.tensor(rng.normal(size=5)), 0)
    reward = torch.tensor(rng.normal(size=5))
    new = torch.log_softmax(logits, 0)
    exact = gradient(torch.sum(new.exp() * reward), logits)
    given = gradient(-torch.sum(old.exp() * importance_weighted(torch.log_softmax(logits, 0), old, reward)), logits)
    np.testing.assert_allclose(given, exact, atol=1e-14)


def test_refusals():
    old, new, advantage, mask = batch(7)
    with pytest.raises(ValueError, match=r"advantage \(4,\).*x\[:, None\]"):
        clipped(new, old, advantage[:, 0], 0.2)
    with pytest.raises(ValueError, match="dual clip got 0.5"):
        clipped(new, old, advantage, 0.2, dual=0.5)
    with pytest.raises(ValueError, match="exactly one"):
        cispo(new, old, advantage)
    with pytest.raises(ValueError, match="exactly one"):
        cispo(new, old, advantage, high=0.2, cap=1.2)
    with pytest.raises(ValueError, match="ratio='sequence'.*'trajectory'"):
        topr(new, old, advantage, ratio="sequence")


def test_the_limit_of_the_log_ratio():
    """A punished token whose ratio is e^30 costs e^30 without a limit, and e^20 with no gradient with verl's."""
    log_prob, old, advantage = torch.tensor([[30.0]], dtype=torch.float64, requires_grad=True), torch.zeros(1, 1), -torch.ones(1, 1)
    loss = clipped(log_prob, old, advantage, 0.2, log_ratio_limit=20.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(np.exp(20)) and float(log_prob.grad) == 0
    assert float(clipped(log_prob.detach(), old, advantage, 0.2)) == pytest.approx(np.exp(30))
    weight = -cispo(np.full(1, 30.0), np.zeros(1), np.ones(1), cap=1e12, log_ratio_limit=20.0) / 30
    np.testing.assert_allclose(weight, np.exp(20))
