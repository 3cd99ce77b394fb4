"""SPO's oracles that concern its file; those of the surrogate itself are in tests/objectives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import Update
from polopt.loops.surrogates import ImportanceWeighted
from polopt.methods import registry
from polopt.methods.policy_gradient.ppo import Clip
from polopt.methods.policy_gradient.spo import Quadratic
from polopt.policies.distributions import Categorical


def update(ratio, advantage) -> Update:
    """Samples whose action had probability 1/2 and now has `ratio` times that."""
    ratio, advantage = jnp.asarray(ratio), jnp.asarray(advantage)
    new = jnp.stack([jnp.log(ratio / 2), jnp.log(1 - ratio / 2)], axis=-1)
    old = jnp.full_like(new, -jnp.log(2.0))
    return Update(new[:, 0], old[:, 0], advantage, Categorical(new), Categorical(old))


def objective(surrogate, ratio, advantage):
    """What is maximised, per sample, and its derivative in the ratio."""

    def value(r):
        return -surrogate.loss((), update(r, advantage))[0]

    return value(jnp.asarray(ratio)), jax.grad(lambda r: value(r).sum())(jnp.asarray(ratio))


@pytest.mark.parametrize(
    "ratio, advantage, value, slope",
    [(1.3, 1.0, 1.075, -0.5), (1.2, 1.0, 1.1, 0.0), (0.8, -2.0, -1.8, 0.0), (1.0, 0.7, 0.7, 0.7), (1.0, -3.0, -3.0, -3.0)],
)
def test_the_numbers_of_the_catalogue(ratio, advantage, value, slope):
    """Oracle 1, eps = .2."""
    got = objective(Quadratic(0.2), [ratio], [advantage])
    np.testing.assert_allclose(np.stack(got)[:, 0], [value, slope], atol=2e-5)


@pytest.mark.parametrize("width", [0.1, 0.3])
@pytest.mark.parametrize("advantage", [2.0, -0.5])
def test_each_sample_is_best_on_the_edge(width, advantage):
    """Oracle 2: the maximum A + |A| eps / 2 lies at r = 1 + sign(A) eps."""
    ratios = jnp.linspace(0.5, 1.5, 2001)
    values, _ = objective(Quadratic(width), ratios, jnp.full((2001,), advantage))
    assert abs(float(ratios[jnp.argmax(values)]) - (1 + np.sign(advantage) * width)) < 1e-3
    np.testing.assert_allclose(values.max(), advantage + abs(advantage) * width / 2, rtol=1e-4)


@pytest.mark.parametrize("other", [Clip(0.2), ImportanceWeighted()])
def test_before_the_first_step_the_gradient_is_ppos(other):
    """Oracle 3, first half; for A2C's see `tests/objectives`."""
    advantage = jnp.array([1.5, -0.3, 0.0])
    ones = jnp.ones(3) * (1 - 1e-6)  # on the corner of the clip's minimum JAX halves a tie
    np.testing.assert_allclose(objective(Quadratic(), ones, advantage)[1], objective(other, ones, advantage)[1], atol=1e-4)


def test_an_endless_width_is_the_unclipped_surrogate():
    """Oracle 3, second half."""
    ratio, advantage = jnp.array([0.4, 1.0, 1.9]), jnp.array([1.0, -2.0, 0.3])
    for got, wanted in zip(objective(Quadratic(1e9), ratio, advantage), objective(ImportanceWeighted(), ratio, advantage), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_surrogate_is_homogeneous_in_the_advantage_and_holds_it_constant():
    """Oracle 4: |A| is a constant, so doubling A doubles value and gradient, and no gradient reaches A."""
    ratio, advantage = jnp.array([0.7, 1.4]), jnp.array([1.0, -2.0])
    once, twice = objective(Quadratic(), ratio, advantage), objective(Quadratic(), ratio, 2 * advantage)
    for x, y in zip(once, twice, strict=True):
        np.testing.assert_allclose(2 * x, y, rtol=1e-6)
    through = jax.grad(lambda a: Quadratic().loss((), update(ratio, a))[0].sum())(advantage)
    np.testing.assert_array_equal(through, 0)


def test_one_pass_of_one_minibatch_is_a2c_with_the_same_parts():
    task = ControlTask(make("probe:credit"), 1000)
    same = {"num_envs": 4, "num_steps": 8, "epochs": 1, "minibatches": 1, "lam": 0.9, "standardise": "none", "normalise_rewards": False}
    same |= {"network.hidden": (8,), "critic_network.hidden": (8,), "learning_rate": 1e-3}
    ends = []
    for name in ("spo", "a2c"):
        method = parts.replace(registry.load(name)(task), same)
        ends.append(jax.jit(lambda key, m=method: m.step(task, m.init(task, key))[0].learner)(jax.random.key(0)))
    for x, y in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_the_share_outside_the_region_is_reported():
    _, metrics = Quadratic(0.2).loss((), update([0.7, 1.1, 1.3, 1.0], [1.0, 1.0, -1.0, 0.0]))
    assert float(metrics["outside_fraction"]) == 0.5
