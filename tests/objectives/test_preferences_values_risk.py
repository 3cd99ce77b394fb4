"""Losses of pairs, losses of values, and risk measures against closed forms and the catalogue's numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.objectives.preferences import (
    bradley_terry,
    dpo,
    ensemble_reward,
    hinge,
    ipo,
    logistic,
    margin,
    sequence_log_prob,
    squared_link,
)
from polopt.objectives.risk import cvar, cvar_bound, entropic, mixed_quantile, range_value_at_risk
from polopt.objectives.values import clipped_squared, expectile, gumbel, huber, quantile, quantile_huber, squared

properties = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def tensor(*x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def slope(loss, x):
    return torch.autograd.grad(loss.sum(), x)[0].numpy()


# -- preferences -------------------------------------------------------------------------------------------------------


def test_dpo():
    """Catalogue, preferences, the DPO numbers."""
    h, zero = tensor(0.0), torch.zeros(1, dtype=torch.float64)
    loss = dpo(h, zero, zero, zero, 0.1)
    assert loss.item() == pytest.approx(math.log(2)) and slope(loss, h) == pytest.approx(-0.05)
    h = tensor(2.0)
    loss = dpo(h, zero, zero, zero, 0.1)
    assert loss.item() == pytest.approx(0.598139, abs=1e-6) and slope(loss, h) == pytest.approx(-0.0450166, abs=1e-7)
    smooth = dpo(h, zero, zero, zero, 0.1, label_smoothing=0.2).item()
    assert smooth == pytest.approx(-0.8 * math.log(1 / (1 + math.exp(-0.2))) - 0.2 * math.log(1 / (1 + math.exp(0.2))))
    assert dpo(*(np.array([1e4 * s]) for s in (-1, 1, 0, 0)), 0.1)[0] == 2000  # no overflow


def test_ipo_sums():
    """CONFORMANCE and catalogue, ipo, oracle 2: at the reference the loss is 1 / (4 tau^2) and its slope -1 / tau."""
    tau, h, zero = 0.3, tensor(0.0), torch.zeros(1, dtype=torch.float64)
    loss = ipo(h, zero, zero, zero, tau)
    assert loss.item() == pytest.approx(1 / (4 * tau**2)) and slope(loss, h) == pytest.approx(-1 / tau)
    best = tensor(1 / (2 * tau))
    assert ipo(best, zero, zero, zero, tau).item() == 0  # the margin is exactly 1 / (2 tau)


def test_ipo_averages_when_asked():
    """CONFORMANCE: `length_normalised=True` for the other convention; an empty response is no NaN."""
    columns = [np.array([x, x]) for x in (-6.0, -9.0, -4.0, -3.0)]
    lengths = (np.array([4, 0]), np.array([3, 3]))
    given = ipo(*columns, 0.5, length_normalised=True, lengths=lengths)
    np.testing.assert_allclose(given, [(-2 / 4 + 6 / 3 - 1) ** 2, (0 + 6 / 3 - 1) ** 2])
    np.testing.assert_allclose(ipo(*columns, 0.5), [(-2 + 6 - 1) ** 2] * 2)
    with pytest.raises(ValueError, match="without lengths.*go together"):
        ipo(*columns, 0.5, length_normalised=True)
    with pytest.raises(ValueError, match="with lengths.*go together"):
        ipo(*columns, 0.5, lengths=lengths)


def test_sequence_log_prob():
    log_prob = np.array([[-1.0, -2.0, math.nan], [math.nan] * 3])
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(sequence_log_prob(log_prob, mask), [-3, 0])
    np.testing.assert_array_equal(sequence_log_prob(log_prob, mask, length_normalised=True), [-1.5, 0])


@properties
@given(seeds)
def test_the_family_is_one_margin(seed):
    rng = np.random.default_rng(seed)
    y, y2, ref, ref2, old, old2, r, r2 = rng.normal(size=(8, 4))
    tau, eta, beta = 0.2, 0.5, 0.3
    anchors = [(tau / eta, ref, ref2), (1 - tau / eta, old, old2)]
    inpo = margin(y, y2, anchors)
    np.testing.assert_allclose(inpo, y - y2 - tau / eta * (ref - ref2) - (eta - tau) / eta * (old - old2))
    # inpo 2 and 5: one anchor is IPO; a constant on every model's log-probabilities changes nothing
    np.testing.assert_allclose(squared_link(margin(y, y2, [(1.0, ref, ref2)]), 1 / (2 * eta)), ipo(y, y2, ref, ref2, eta))
    np.testing.assert_allclose(margin(y + 3, y2, [(c, a + 3, b) for c, a, b in anchors]), inpo, atol=1e-12)
    # copg 2: rewards half apart give IPO times beta^2 / 2
    h = margin(y, y2, [(1.0, ref, ref2)])
    np.testing.assert_allclose(0.5 * squared_link(beta * h, 0.5), beta**2 / 2 * ipo(y, y2, ref, ref2, beta))
    # rebel 5: the same with its own anchor and eta = 1 / tau
    np.testing.assert_allclose(squared_link(h / eta, 0.5), squared_link(h, eta / 2) / eta**2)
    # dno 2 and 5: hard labels are DPO; the slope is sigmoid(h) - s
    np.testing.assert_allclose(logistic(beta * h, 1.0), dpo(y, y2, ref, ref2, beta))
    x, s = torch.tensor(h, requires_grad=True), torch.tensor(1 / (1 + np.exp(-(r - r2))))
    np.testing.assert_allclose(slope(logistic(x, s), x), torch.sigmoid(x.detach()) - s, atol=1e-12)


def test_margin_refuses_anchors_that_do_not_add_up():
    x = np.zeros(2)
    with pytest.raises(ValueError, match="must sum to 1"):
        margin(x, x, [(0.5, x, x)])
    assert not np.any(margin(x, x))  # no reference at all is a choice


def test_bradley_terry_and_hinge():
    r = np.array([1.0]), np.array([0.0])
    assert bradley_terry(*r)[0] == pytest.approx(math.log(1 + math.exp(-1)))
    assert bradley_terry(*r, offset=1.0)[0] == pytest.approx(math.log(2))
    assert bradley_terry(*r, penalty=0.1)[0] == pytest.approx(math.log(1 + math.exp(-1)) + 0.1)
    # compass_judger 1
    np.testing.assert_allclose(hinge(np.array([-0.1 + 3, 10.0, 11.0]), 10.0), [7.1, 0, 0])


def test_ensemble():
    """Catalogue, rm_ensemble: mean, worst case, mean minus variance."""
    rewards = np.array([[1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_allclose(ensemble_reward(rewards, "mean"), [2, 2])
    np.testing.assert_allclose(ensemble_reward(rewards, "worst"), [1, 2])
    np.testing.assert_allclose(ensemble_reward(rewards, "uncertainty", coefficient=0.5), [1.5, 2])
    with pytest.raises(ValueError, match="mode='median'"):
        ensemble_reward(rewards, "median")
    with pytest.raises(ValueError, match="belongs to 'uncertainty'"):
        ensemble_reward(rewards, "mean", coefficient=0.5)


# -- values ------------------------------------------------------------------------------------------------------------


def minimiser(loss, low=-3.0, high=5.0):
    """Where a convex loss of one number has its smallest value, by bisection of its slope."""
    for _ in range(60):
        middle = tensor((low + high) / 2)
        low, high = (low, middle.item()) if slope(loss(middle), middle)[0] > 0 else (middle.item(), high)
    return low


def test_clipped_value_loss():
    """Catalogue, ppo_max, oracle 5."""
    one = np.ones(1)
    assert clipped_squared(one, 0 * one, 0.5 * one, 0.2)[0] == pytest.approx(0.125)
    assert clipped_squared(one, 0 * one, 0 * one, 0.2)[0] == pytest.approx(0.5)
    assert clipped_squared(one, 0 * one, 0.5 * one, 9.0)[0] == squared(one, 0.5 * one)[0]


def test_huber_joins_its_branches():
    u = np.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(huber(np.zeros(5), u, 1.0), [2.5, 0.125, 0, 0.125, 2.5])
    np.testing.assert_allclose(huber(np.zeros(5), u, 20.0), 0.5 * u**2)


@pytest.mark.parametrize(("tau", "p", "expected"), [(0.9, 0.1, 0.5), (0.7, 0.5, 0.7), (0.5, 0.3, 0.3), (0.9, 0.5, 0.9)])
def test_expectiles_of_a_coin(tau, p, expected):
    """Catalogue, iql, oracle 1; preferences' and robotics' {0, 1} with tau 0.9."""
    targets, weight = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1 - p, p], dtype=torch.float64)
    assert minimiser(lambda v: weight * expectile(v.expand(2), targets, tau)) == pytest.approx(expected)


def test_expectile_slopes():
    """Catalogue, iql, oracles 2 and 3."""
    v = tensor(0.0)
    assert slope(expectile(v, torch.ones(1, dtype=torch.float64), 0.9), v) == pytest.approx(-1.8)
    assert slope(expectile(v, -torch.ones(1, dtype=torch.float64), 0.9), v) == pytest.approx(0.2)
    u = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(expectile(0 * u, u, 0.5), squared(0 * u, u))


def test_quantile_huber():
    """Catalogue, pg_rainbow, oracle 1."""
    delta = np.array([-1.0, 1.0, 2.0])
    np.testing.assert_allclose(quantile_huber(np.zeros(3), delta, 0.25, 1.0), [0.375, 0.125, 0.375])
    np.testing.assert_allclose(quantile_huber(np.zeros(3), delta, 0.25, 1e-9), quantile(np.zeros(3), delta, 0.25), atol=1e-8)


def test_quantiles_are_quantiles():
    """Catalogue, dqc, oracle 4: 0.2 with chance 0.75, 0.8 with chance 0.25."""
    targets, weight = torch.tensor([0.2, 0.8], dtype=torch.float64), torch.tensor([0.75, 0.25], dtype=torch.float64)
    for tau, expected in ((0.9, 0.8), (0.5, 0.2)):
        assert minimiser(lambda v, tau=tau: weight * quantile(v.expand(2), targets, tau)) == pytest.approx(expected)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.6201), (0.2, 0.8627)])
def test_gumbel_is_the_soft_maximum(beta, expected):
    """Catalogue, dual_rl, oracle 4: v = beta log E exp(q / beta) on a fair coin."""
    targets = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert minimiser(lambda v: gumbel(v.expand(2), targets, beta)) == pytest.approx(expected, abs=1e-4)


def test_gumbel_outlier_and_its_clip():
    """Catalogue, dual_rl, oracle 1: one target of 12 in 256 dominates the slope; cut at 5 it has none."""
    targets = torch.zeros(256, dtype=torch.float64)
    targets[0] = 12
    v = tensor(0.5)
    assert slope(gumbel(v.expand(256), targets, 1.0) / 256, v)[0] == pytest.approx(-385.2, abs=0.05)
    assert slope(gumbel(v.expand(256), targets, 1.0, clip=5.0), v)[0] == pytest.approx(255 * (1 - math.exp(-0.5)))


# -- risk --------------------------------------------------------------------------------------------------------------


def test_cvar_of_three_atoms():
    """Catalogue, ra_dpo, oracle 1, and the gradient it states: minus the truncated weights over the level."""
    x, p = tensor(1.0, 0.0, -1.0), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for level, expected in ((0.4, 1.0), (0.6, 0.833333), (1.0, 0.3)):
        assert cvar(x, level, tail="upper", weights=p).item() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(slope(cvar(x, 0.6, tail="upper", weights=p), x), np.array([0.5, 0.1, 0.0]) / 0.6, atol=1e-12)


def test_mixed_quantile():
    """Catalogue, riskpo, oracle 1: the gamble against the sure thing (its second option, normal, by a fine grid of quantiles)."""
    gamble, chance = np.array([5.0, 0.0]), np.array([0.7, 0.3])
    assert range_value_at_risk(gamble, 0.2, 0.8, weights=chance) == pytest.approx(2.5 / 0.6)
    assert cvar(gamble, 0.2, tail="lower", weights=chance) == pytest.approx(0)
    assert mixed_quantile(gamble, 0.2, 0.8, 1.5, weights=chance) == pytest.approx(1.6667, abs=1e-4)
    u = torch.distributions.Normal(3.0, 0.1).icdf((torch.arange(100000, dtype=torch.float64) + 0.5) / 100000).numpy()
    assert mixed_quantile(u, 0.2, 0.8, 1.5) == pytest.approx(2.916, abs=1e-3)


@properties
@given(seeds, st.floats(0.05, 1.0))
def test_cvar_is_its_bound_and_orders_its_levels(seed, level):
    """The variational form at the best threshold; level 1 is the mean; the tails are mirror images."""
    rng = np.random.default_rng(seed)
    x, p = rng.normal(size=7), rng.gamma(1.0, size=7) + 0.01
    p = p / p.sum()
    upper, lower = cvar(x, level, tail="upper", weights=p), cvar(x, level, tail="lower", weights=p)
    bounds = np.sum(p * cvar_bound(x[None, :], x[:, None], level, tail="upper"), axis=1)
    assert upper == pytest.approx(np.min(bounds), abs=1e-10)
    bounds = np.sum(p * cvar_bound(x[None, :], x[:, None], level, tail="lower"), axis=1)
    assert lower == pytest.approx(np.max(bounds), abs=1e-10)
    assert cvar(-x, level, tail="upper", weights=p) == pytest.approx(-lower)
    assert cvar(x, 1.0, tail="upper", weights=p) == pytest.approx(np.sum(p * x))
    assert lower <= np.sum(p * x) + 1e-12 and upper >= np.sum(p * x) - 1e-12
    assert cvar(x, level / 2, tail="upper", weights=p) >= upper - 1e-12


@properties
@given(seeds, st.floats(-3, 3))
def test_entropic(seed, beta):
    """Its definition; increasing in beta with the mean at 0; translation invariant."""
    rng = np.random.default_rng(seed)
    x, p = rng.normal(size=6), rng.gamma(1.0, size=6) + 0.01
    p = p / p.sum()
    given = entropic(x, beta, weights=p)
    if abs(beta) > 1e-3:
        assert given == pytest.approx(np.log(np.sum(p * np.exp(beta * x))) / beta, abs=1e-9)
    assert entropic(x, beta + 0.5, weights=p) >= given
    assert entropic(x + 7, beta, weights=p) == pytest.approx(given + 7)
    assert entropic(x, 0.0, weights=p) == pytest.approx(np.sum(p * x))


def test_entropic_keeps_its_digits():
    x = np.array([1.0, 3.0])
    assert entropic(x, 1e-7) == pytest.approx(2 + 0.5e-7, abs=1e-14)  # mean + beta variance / 2
    assert entropic(x, 1e4) == pytest.approx(3 - math.log(2) / 1e4)
    assert entropic(x, -1e4) == pytest.approx(1 + math.log(2) / 1e4)


def test_refusals():
    with pytest.raises(ValueError, match="levels are 0.8 and 0.2"):
        range_value_at_risk(np.ones(3), 0.8, 0.2)
    with pytest.raises(ValueError, match="tail='left'.*'upper'"):
        cvar(np.ones(3), 0.1, tail="left")
