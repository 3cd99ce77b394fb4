"""The guide's oracles: what its five objectives share at the old policy, and V-MPO's weights, temperature and multipliers."""

from __future__ import annotations

import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import Update
from polopt.loops.vmpo import VMPO, decoupled, lagrangian, softmax_weights, temperature_loss, upper_half
from polopt.methods import registry
from polopt.policies.distributions import Categorical, Gaussian

SMALL = {"num_envs": 4, "num_steps": 8, "network.hidden": (8,), "critic_network.hidden": (8,)}
LIBRARIES = (np.asarray, lambda x: jnp.asarray(x), lambda x: torch.tensor(np.asarray(x), dtype=torch.float64))


@functools.cache
def collected(env: str):
    """A task, a small PPO of the suite, its first state and one rollout."""
    task = ControlTask(make(env), 1000)
    method = parts.replace(registry.load("pg_guide:ppo")(task), SMALL)
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    return task, method, state, jax.jit(lambda s: method.collect(task.env, s, jax.random.key(1))[1])(state)


# -- the frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["probe:credit", "probe:action-continuous"])
def test_at_the_old_policy_three_objectives_have_one_gradient(env):
    """Oracle 1."""
    task, method, state, rollout = collected(env)
    batch = method.judge(state, state.acting, rollout)[0]
    gradients = []
    for name in ("a2c", "ppo", "trpo"):
        own = dataclasses.replace(method, surrogate=registry.load(f"pg_guide:{name}")(task).surrogate, entropy_coefficient=0.0)
        gradients.append(jax.grad(lambda actor, m=own: m.policy_loss(actor, (), batch)[0])(state.learner.actor))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients[0])) > 1e-3
    for other in gradients[1:]:
        for x, y in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_without_values_a2c_weighs_samples_as_reinforce_does():
    """Oracle 2: lambda = 1 and V = 0, on episodes that end."""
    task, method, state, rollout = collected("probe:credit")
    last = jnp.cumsum(rollout.terminated[::-1], 0)[::-1] > 0  # steps whose episode ends within the rollout
    silent = eqx.tree_at(lambda s: s.learner.critic.head, state, jax.tree.map(jnp.zeros_like, state.learner.critic.head))
    a2c = dataclasses.replace(method, advantage=parts.replace(method.advantage, {"lam": 1.0}))
    with_critic = a2c.judge(silent, state.acting, rollout)[0].advantage
    bare = eqx.tree_at(lambda s: s.learner.critic, state, None)
    reinforce = dataclasses.replace(registry.load("pg_guide:reinforce")(task), num_envs=4, num_steps=8)
    without = reinforce.judge(bare, state.acting, rollout)[0].advantage
    assert float(jnp.abs(without).max()) > 0 and bool(last.any())
    np.testing.assert_allclose(with_critic[last.ravel()], without[last.ravel()], atol=1e-6)


def test_a_baseline_has_no_gradient_on_average():
    """Oracle 4: E_a[grad log pi b(s)] = 0, by summation over the actions."""
    with jax.enable_x64(True):
        logits, baseline = jax.random.normal(jax.random.key(0), (5, 4)), jax.random.normal(jax.random.key(1), (5,))
        old = jax.nn.softmax(logits)
        gradient = jax.grad(lambda z: jnp.sum(old * jax.nn.log_softmax(z) * baseline[:, None]))(logits)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_all_of_the_suite_have_the_same_frame():
    task = ControlTask(make("Pendulum-v1"), 1000)
    methods = [registry.load(name)(task) for name in registry.compositions("pg_guide")]
    assert len(methods) == 6
    for field in ("network", "critic_network", "num_steps", "normalise_observations", "normalise_rewards", "bounds", "log_std"):
        assert len({getattr(m, field) for m in methods}) == 1, field
    assert {m.bounds for m in methods} == {"squash"}
    assert registry.load("pg_guide")(task) == registry.load("pg_guide:ppo")(task)


def test_the_kl_of_an_iteration_is_that_of_its_policies():
    task, method, state, _ = collected("probe:credit")
    after, metrics = jax.jit(lambda s: method.step(task, s))(state)
    _, rollout, _ = method.collect(task.env, state, jax.random.split(state.key, 3)[1])
    batch = method.judge(state, state.acting, rollout)[0]
    assert float(metrics["kl/iteration"]) > 0
    np.testing.assert_allclose(metrics["kl/iteration"], method.mean_kl(after.learner.actor, batch), rtol=1e-4)


# -- V-MPO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_numbers_of_the_catalogue(library):
    """Oracle 3: A = (1, 0), eta = 1."""
    with jax.enable_x64(True):
        advantage, one = library([1.0, 0.0]), library(1.0)
        kept = library([1.0, 1.0])
        np.testing.assert_allclose(np.asarray(softmax_weights(advantage, one, kept)), [0.7310586, 0.2689414], atol=1e-7)
        np.testing.assert_allclose(float(temperature_loss(advantage, one, kept, 0.01)), 0.630115, atol=1e-6)
        np.testing.assert_allclose(np.asarray(softmax_weights(advantage, library(1e9), kept)), [0.5, 0.5], atol=1e-8)
        assert np.asarray(upper_half(library([3.0, -1.0, 2.0, 5.0, 0.0]))).tolist() == [1, 0, 1, 1, 0]
        assert np.asarray(upper_half(library([1.0, 4.0, 2.0, 3.0]))).tolist() == [0, 1, 0, 1]
        assert np.asarray(upper_half(library([1.0, 1.0, 0.0, 1.0]))).tolist() == [1, 1, 0, 1]  # ties with the median stay


def test_jax_and_torch_agree_in_gradients():
    rng = np.random.default_rng(0)
    advantage, kl = rng.normal(size=20), rng.gamma(1.0, size=20)

    def total(advantage, kl, temperature, multiplier):
        kept = upper_half(advantage)
        weighed = (softmax_weights(advantage, temperature, kept) * kl).sum()
        return weighed + temperature_loss(advantage, temperature, kept, 0.01) + lagrangian(multiplier, kl, 0.1).sum()

    given = kl, np.array(0.7), np.array(1.3)
    with jax.enable_x64(True):
        value, found = jax.value_and_grad(lambda *x: total(jnp.asarray(advantage), *x), argnums=(0, 1, 2))(*map(jnp.asarray, given))
    tensors = [torch.tensor(x, requires_grad=True) for x in given]
    loss = total(torch.tensor(advantage), *tensors)
    np.testing.assert_allclose(loss.item(), float(value), rtol=1e-12)
    np.testing.assert_allclose(total(advantage, *given), float(value), rtol=1e-12)
    for x, y in zip(found, torch.autograd.grad(loss, tensors), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_rests_where_the_weights_spend_their_limit(temperature):
    """Oracle 3: dL/deta = eps - KL(psi || uniform over what is kept)."""
    with jax.enable_x64(True):
        advantage = jax.random.normal(jax.random.key(0), (30,))
        kept = upper_half(advantage)
        psi = softmax_weights(advantage, jnp.float64(temperature), kept)
        spent = jnp.sum(jax.scipy.special.xlogy(psi, psi * kept.sum()))
        slope = jax.grad(lambda eta: temperature_loss(advantage, eta, kept, 0.01))(jnp.float64(temperature))
        np.testing.assert_allclose(slope, 0.01 - spent, atol=1e-10)
        assert float(jnp.sum(psi * (1 - kept))) == 0.0


def test_a_multiplier_rises_where_its_limit_is_passed():
    for kl, sign in ((0.5, -1), (0.01, 1)):  # gradient descent: a negative slope raises
        slope_multiplier, slope_kl = jax.grad(lambda a, k: lagrangian(a, k, 0.1), argnums=(0, 1))(2.0, kl)
        assert math.copysign(1, slope_multiplier) == sign and float(slope_kl) == 2.0


def test_the_two_divergences_of_a_gaussian():
    old = Gaussian(jnp.array([0.0, 1.0]), jnp.array([0.1, -0.3]), jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf))
    new = Gaussian(jnp.array([0.5, 0.7]), jnp.array([-0.2, 0.0]), old.low, old.high)
    found = decoupled(old, new)
    mean = 0.5 * np.sum((np.array([0.5, -0.3]) / np.exp([0.1, -0.3])) ** 2)
    ratio = np.exp(2 * (np.array([0.1, -0.3]) - np.array([-0.2, 0.0])))
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["deviation"], 0.5 * np.sum(ratio - 1 - np.log(ratio)), rtol=1e-5)
    assert float(decoupled(old, old)["mean"]) == 0
    chances = Categorical(jnp.array([0.0, 1.0])), Categorical(jnp.array([0.5, 0.0]))
    np.testing.assert_allclose(decoupled(*chances)["mean"], chances[0].kl(chances[1]))


def test_the_loss_is_the_weighted_likelihood_of_the_better_half():
    """At the old policy the divergences vanish: the gradient is that of -sum psi log pi alone, and the worse half has no part in it."""
    advantage = jnp.array([2.0, -1.0, 0.5, -3.0])
    part = VMPO()
    old = Categorical(jnp.zeros((4, 3)))
    actions = jnp.array([0, 1, 2, 0])

    def loss(logits):
        new = Categorical(logits)
        update = Update(new.log_prob(actions), old.log_prob(actions), advantage, new, old, part.multipliers())
        return jnp.mean(part.loss((), update)[0])

    gradient = jax.grad(loss)(jnp.zeros((4, 3)))
    psi = np.exp([2.0, 0.5]) / np.exp([2.0, 0.5]).sum()
    np.testing.assert_allclose(gradient[0], -psi[0] * (np.array([1, 0, 0]) - 1 / 3), atol=1e-6)
    np.testing.assert_allclose(gradient[2], -psi[1] * (np.array([0, 0, 1]) - 1 / 3), atol=1e-6)
    np.testing.assert_allclose(gradient[jnp.array([1, 3])], 0, atol=1e-7)


@pytest.mark.parametrize("env", ["probe:credit", "probe:action-continuous"])
def test_multipliers_are_learnt_and_stay_positive(env):
    task = ControlTask(make(env), 3000)
    changes = {**SMALL, "learning_rate": 0.3, "anneal": False, "max_grad_norm": None}
    method = parts.replace(registry.load("pg_guide:vmpo")(task), changes)

    def step(state, _):
        state = method.step(task, state)[0]
        return state, state.learner.multipliers

    start = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    _, seen = jax.jit(lambda s: jax.lax.scan(step, s, None, length=8))(start)
    for name, values in seen.items():
        moved = float(jnp.abs(values - start.learner.multipliers[name]).max())
        assert (moved > 0.05) == (name != "deviation" or env.endswith("continuous")), name
        assert float(values.min()) >= 9e-9
