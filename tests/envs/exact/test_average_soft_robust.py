"""Average-reward, regularised, robust and constrained values."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from polopt.envs.exact import average, constrained, problems, robust, soft, tabular
from tests.envs.exact.helpers import compiled, random_process, together

pytestmark = pytest.mark.usefixtures("x64")

S, A, GAMMA = 4, 3, 0.9
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
tab, avg, sft = compiled(tabular), compiled(average), compiled(soft)
EVERY = np.stack([np.eye(A)[list(choice)] for choice in itertools.product(range(A), repeat=S)])  # deterministic policies


@functools.cache
def problem():
    """A process, logits and their softmax."""
    logits = np.random.default_rng(0).normal(size=(S, A))
    return random_process(0, S, A, discount=GAMMA), logits, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


# -- average reward ----------------------------------------------------------------------------------------------------


def test_gain_and_bias():
    mdp, _, policy = problem()
    kernel, reward = np.einsum("sa,sap->sp", policy, mdp.transition), (policy * mdp.reward).sum(1)
    near = lambda mdp, policy: tabular.values(dataclasses.replace(mdp, discount=1 - 1e-6), policy)  # noqa: E731
    d, g, h, q, v = together(average.stationary, average.gain, average.bias, average.state_action_values, near)(mdp, policy)
    close(d.sum(), 1)
    close(d @ kernel, d)
    close(g, d @ reward)
    close(h + g, reward + kernel @ h)
    close(d @ h, 0)
    close((policy * q).sum(1), h)
    # the discounted value is g / (1 - gamma) + h up to terms that vanish with 1 - gamma
    np.testing.assert_allclose(v - g / 1e-6, h, atol=1e-4)


def test_gain_gradient():
    mdp, logits, policy = problem()
    autodiff = jax.grad(lambda mdp, x: average.gain(mdp, jax.nn.softmax(x)), 1)
    closed_form, derivative, a = together(average.policy_gradient, autodiff, lambda mdp, x: average.advantages(mdp, jax.nn.softmax(x)))(mdp, logits)
    close(closed_form, derivative)
    close((policy * a).sum(1), 0)


def test_best_gain():
    mdp, _, _ = problem()
    best = avg.optimal(mdp)
    close(best.gain, compiled(jax.vmap(average.gain, (None, 0)))(mdp, EVERY).max())
    close(best.bias, best.action_values.max(1))


def test_riverswim():
    """Catalogue, average_reward_loop: gain .42862, span of the bias 6.310."""
    best = avg.optimal(problems.riverswim())
    np.testing.assert_allclose(best.gain, 0.42862, atol=5e-6)
    np.testing.assert_allclose(np.ptp(best.bias), 6.310, atol=5e-4)


def test_a_cycle():
    """Catalogue, average_reward_loop oracle 1."""
    mdp = tabular.TabularMDP(np.eye(2)[::-1][:, None, :], np.array([[0.0], [1.0]]), np.array([1.0, 0.0]), 1.0)
    one = np.ones((2, 1))
    gain, bias = together(average.gain, average.bias)(mdp, one)
    close(gain, 0.5)
    close(bias, [-0.25, 0.25])
    with pytest.raises(ValueError, match="no average reward"):
        average.gain(problems.cue(), np.full((11, 2), 0.5))


# -- regularised -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_prior", [False, True])
def test_soft_optimum(with_prior):
    mdp, _, policy = problem()
    prior = policy if with_prior else None
    tau = 0.3

    def solve(mdp, prior, reward, others):
        best = soft.optimal(mdp, tau, prior)
        j = lambda x: soft.objective(mdp, jax.nn.softmax(x), tau, prior)  # noqa: E731
        gradient = jax.grad(lambda r: mdp.start @ soft.optimal(mdp.with_reward(r), tau, prior).values)(reward)
        again = soft.values(mdp, best.policy, tau, prior)
        occupancy = tabular.occupancy(mdp, best.policy, normalised=False)
        return best, jax.grad(j)(jax.numpy.log(best.policy)), jax.vmap(j)(others), gradient, again, occupancy

    others = np.random.default_rng(1).normal(size=(200, S, A))
    best, slope, j, derivative, again, occupancy = compiled(solve)(mdp, prior, mdp.reward, others)
    close(best.action_values, mdp.reward + GAMMA * mdp.transition @ best.values)
    weights = np.exp(best.action_values / tau) * (1 if prior is None else prior)
    close(best.values, tau * np.log(weights.sum(1)))
    close(best.policy, weights / weights.sum(1, keepdims=True))
    close(again, best.values)
    np.testing.assert_allclose(slope, 0, atol=1e-8)
    assert np.all(j <= mdp.start @ best.values)
    close(derivative, occupancy, atol=1e-7)


def test_soft_limits():
    mdp, _, _ = problem()

    def everything(mdp, uniform):
        hard = tabular.optimal(mdp)
        cool, plain = soft.optimal(mdp, 1e-4).values, tabular.values(mdp, uniform)
        mixed = [soft.values(mdp, uniform, 0.5, prior) for prior in (None, uniform)]
        return hard.values, cool, soft.values(mdp, hard.policy, 0.5), plain, *mixed

    hard, cool, deterministic, plain, entropy, relative = compiled(everything)(mdp, np.full((S, A), 1 / A))
    np.testing.assert_allclose(cool, hard, atol=2e-3)
    close(deterministic, hard)  # no entropy in a deterministic policy
    close(entropy, plain + 0.5 * np.log(A) / (1 - GAMMA))
    close(relative, plain)


def test_soft_values_end():
    best = sft.optimal(problems.cue(2), 1.0)
    close(best.values[4], 0)
    close(best.values[:2], np.log(2) + np.log(1 + np.e))


# -- robust ------------------------------------------------------------------------------------------------------------

FUNCTIONALS = {
    "expected": robust.expected,
    "contamination": robust.contamination(0.1),
    "total_variation": robust.total_variation(0.2),
    "kl_ball": robust.kl_ball(0.1),
    "entropic": robust.entropic(2.0),
}


def test_worst_cases_in_closed_form():
    """Catalogue, robust (baselines) and robust_risk oracle 1."""
    P, V = np.array([[[0.5, 0.5]]]), np.array([0.0, 1.0])
    known = [(robust.kl_ball(0.1), 0.280205), (robust.kl_ball(5.0), 0), (robust.entropic(1.0), 0.37989), (robust.contamination(0.2), 0.4)]
    known += [(robust.total_variation(0.1), 0.4), (robust.total_variation(0.9), 0)]
    found = compiled(lambda P, V: [worst(P, V)[0, 0] for worst, _ in known])(P, V)
    np.testing.assert_allclose(found, [value for _, value in known], atol=5e-6)
    flat, outside = compiled(
        lambda P, V, P3, V3: (robust.kl_ball(0.1)(P, V), robust.kl_ball(5.0)(P3, V3)),
    )(P, np.ones(2), np.array([[[0.0, 0.3, 0.7]]]), np.array([-1.0, 0.0, 1.0]))
    close(flat, 1)
    np.testing.assert_allclose(outside, 0, atol=1e-6)  # what the kernel never reaches stays out of reach
    kernel = compiled(jax.jacrev(lambda V, P: robust.entropic(1.0)(P, V)[0, 0]))(V, P)
    np.testing.assert_allclose(kernel, [0.7311, 0.2689], atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_worst_is_least(name):
    """No kernel of the set gives less, at its price."""
    rng = np.random.default_rng(0)
    P, V = rng.dirichlet(np.ones(4)), rng.normal(size=4)
    worst = float(together(*FUNCTIONALS.values())(P[None, None], V)[list(FUNCTIONALS).index(name)][0, 0])
    others = rng.dirichlet(np.full(4, 0.5), 3000) * rng.random((3000, 1))
    others = others + (1 - others.sum(1, keepdims=True)) * P
    divergence = (others * np.log(others / P)).sum(1)
    inside = {
        "expected": np.zeros(3000, bool),
        "contamination": (others >= 0.9 * P).all(1),
        "total_variation": np.abs(others - P).sum(1) <= 0.4,
        "kl_ball": divergence <= 0.1,
        "entropic": np.ones(3000, bool),
    }[name]
    price = divergence / 2.0 if name == "entropic" else np.zeros(3000)
    found = (others @ V + price)[inside]
    assert worst <= P @ V + 1e-12
    if name == "expected":
        close(worst, P @ V)
    else:
        assert worst - 1e-9 <= found.min() and found.min() - worst < 0.3 * (P @ V - worst) + 1e-9


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_robust_policy_gradient(name):
    """The gradient of the process with the adversary's answer held fixed is that of the robust objective (finite differences)."""
    mdp, logits, _ = problem()
    worst = FUNCTIONALS[name]
    direction = np.random.default_rng(5).normal(size=logits.shape)

    def everything(mdp, logits):
        values = jax.vmap(lambda x: robust.values(mdp, jax.nn.softmax(x), worst))(logits)
        nominal = robust.nominal(mdp, values[0], worst)
        return values, nominal.transition, tabular.values(nominal, jax.nn.softmax(logits[0])), tabular.policy_gradient(nominal, logits[0])

    points = np.stack([logits, logits + 1e-5 * direction, logits - 1e-5 * direction])
    (v, up, down), kernel, nominal_values, gradient = compiled(everything)(mdp, points)
    close(kernel.sum(-1), 1)
    close(nominal_values, v, atol=1e-8)
    np.testing.assert_allclose((gradient * direction).sum(), mdp.start @ (up - down) / 2e-5, rtol=1e-5)


def test_robust_optimum():
    mdp, _, _ = problem()
    worst = FUNCTIONALS["total_variation"]

    def everything(mdp, policies):
        no_risk, best = robust.optimal(mdp, robust.expected), robust.optimal(mdp, worst)
        return tabular.optimal(mdp).values, no_risk.values, best.values, jax.vmap(lambda p: robust.values(mdp, p, worst))(policies)

    hard, no_risk, best, every = compiled(everything)(mdp, EVERY)
    close(no_risk, hard)
    close(best, every.max(0), atol=1e-9)
    assert np.all(best < hard)


# -- constrained -------------------------------------------------------------------------------------------------------


@functools.cache
def cmdp():
    """Catalogue, reload: rewards and costs that conflict; the process, the one that earns its cost, the least cost, that of the free optimum."""
    mdp = random_process(4, S, A, discount=GAMMA, costs=1)
    mdp = dataclasses.replace(mdp, cost=0.8 * mdp.reward[..., None] + 0.2 * mdp.cost)
    cost = mdp.with_reward(mdp.cost[..., 0])
    most = tab.objective(cost, tab.optimal(mdp).policy)
    least = -(mdp.start @ tab.optimal(cost.with_reward(-cost.reward)).values)
    return mdp, cost, float(least), float(most)


def test_constrained_optimum():
    mdp, cost, least, most = cmdp()
    limit = (least + most) / 2
    best = constrained.optimal(mdp, np.array([limit]), normalised=False)
    np.testing.assert_allclose(best.policy.sum(1), 1)
    close(best.costs, limit, rtol=1e-7)
    close(best.value, tab.objective(mdp, best.policy))
    close(best.costs[0], tab.objective(cost, best.policy))
    close(best.occupancy, tab.occupancy(mdp, best.policy, normalised=False))
    # strong duality: the best of the Lagrangian is the same value
    weight = best.multipliers[0]
    assert weight > 0
    dual = mdp.start @ tab.optimal(mdp.with_reward(mdp.reward - weight * cost.reward)).values + weight * limit
    np.testing.assert_allclose(best.value, dual, rtol=1e-7)
    nearby = [constrained.optimal(mdp, np.array([limit + e]), normalised=False).value for e in (-1e-3, 1e-3)]
    np.testing.assert_allclose((nearby[1] - nearby[0]) / 2e-3, weight, rtol=1e-4)
    averaged = constrained.optimal(mdp, np.array([limit * (1 - GAMMA)]), normalised=True)
    close(averaged.value, best.value * (1 - GAMMA), rtol=1e-7)
    close(averaged.occupancy.sum(), 1)
    np.testing.assert_allclose(averaged.multipliers, best.multipliers, rtol=1e-6)


def test_limits_that_do_not_bind_and_that_cannot_be_kept():
    mdp, _, least, most = cmdp()
    free = constrained.optimal(mdp, np.array([most + 1]), normalised=False)
    close(free.value, mdp.start @ tab.optimal(mdp).values)
    close(free.multipliers, 0)
    with pytest.raises(ValueError, match="No policy keeps the limits"):
        constrained.optimal(mdp, np.array([least - 0.1]), normalised=False)
    with pytest.raises(ValueError, match="give one limit for each cost"):
        constrained.optimal(mdp, np.array([1.0, 2.0]), normalised=False)
