"""Dual RL: the losses of V and where they come to rest, on three libraries; ReCOIL's three expectations, its minibatch, and its limits."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts, spaces
from polopt.data.dataset import DataTask
from polopt.loops.offline import knowing
from polopt.methods import registry
from polopt.methods.offline import dual_rl
from polopt.methods.offline.dual_rl import Gumbel, Imitate, Pearson, TotalVariation, dual_value_loss, matching_loss, pearson_chi2, total_variation
from polopt.policies.actor import Normaliser
from tests.methods.offline.helpers import BOX, OBSERVATIONS, logged, rule_and_batch, update


def minimiser(loss, targets, start: float, rate: float = 0.05, steps: int = 4000):
    """Where gradient steps on the mean of the loss against targets (n,) end."""
    slope = jax.grad(lambda v: jnp.mean(loss(jnp.broadcast_to(v, targets.shape), targets)))
    return float(jax.lax.fori_loop(0, steps, lambda i, v: v - rate * slope(v) * (1 - i / steps), jnp.float32(start)))


@pytest.mark.parametrize("maximum, slope", [(TotalVariation(0.7), 0.297), (Pearson(0.7), 0.282), (Gumbel(1.0, None), -385.2)])
def test_one_outlier_dominates_the_exponential_only(maximum, slope):
    """Oracle 1: 255 values of 0 and one of 12 against V = .5."""
    q = jnp.zeros(256).at[0].set(12.0)
    found = jax.grad(lambda v: jnp.mean(maximum(jnp.broadcast_to(v, q.shape), q)))(0.5)
    np.testing.assert_allclose(found, slope, atol=0.05 if slope < 0 else 5e-4)


@pytest.mark.parametrize("weight, above", [(0.8, 0.25), (0.6, 2 / 3)])
def test_total_variation_is_a_quantile(weight, above):
    """Oracle 2: a mass of (1 - lambda) / lambda lies above V."""
    q = jnp.linspace(0, 1, 101)
    assert minimiser(TotalVariation(weight), q, 0.3) == pytest.approx(1 - above, abs=0.02)


def test_the_ends_of_total_variation():
    """Oracle 2: at a half the least value is the highest V of no slope, and towards 1 V is the largest."""
    q = jnp.array([0.0, 0.3, 1.0])
    slope = jax.grad(lambda v, w: jnp.mean(TotalVariation(w)(jnp.broadcast_to(v, (3,)), q)))
    assert float(slope(-0.1, 0.5)) == pytest.approx(0.0, abs=1e-6) and float(slope(0.01, 0.5)) > 0
    assert minimiser(TotalVariation(0.999), q, 0.3) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("weight, rest", [(0.6, 1 / 3), (0.7, 1.0), (0.5, 0.0)])
def test_pearson_on_a_coin(weight, rest):
    """Oracle 3: 3 - 4 (1 - lambda) / lambda where that lies in (0, 1), else the larger or the smaller of the two values."""
    assert minimiser(Pearson(weight), jnp.array([0.0, 1.0]), 0.5) == pytest.approx(rest, abs=0.01)


@pytest.mark.parametrize("temperature, rest", [(1.0, 0.6201), (0.2, 0.8627)])
def test_the_gumbel_loss_is_the_soft_maximum(temperature, rest):
    """Oracle 4."""
    assert minimiser(Gumbel(temperature, None), jnp.array([0.0, 1.0]), 0.5, 0.02) == pytest.approx(rest, abs=1e-3)


def test_values_beyond_the_limit_move_nothing():
    slope = jax.grad(lambda v: Gumbel(1.0, 2.0)(v, jnp.float32(10.0)))
    assert float(slope(0.0)) == 0.0 and float(slope(9.0)) < 0


def test_slopes_of_the_conjugates():
    """Oracle 5: 1[y > 0] and (1 + y / 2) 1[y > 0], also far below 0, where the literal formula rises again."""
    y = jnp.array([-100.0, -5.0, -1.0, 0.5, 2.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(total_variation))(y), [0, 0, 0, 1, 1])
    np.testing.assert_allclose(jax.vmap(jax.grad(pearson_chi2))(y), [0, 0, 0, 1.25, 2])


@pytest.mark.parametrize("phi", [total_variation, pearson_chi2])
def test_three_libraries_agree(phi):
    rng = np.random.default_rng(0)
    value, target = rng.normal(size=20), 3 * rng.normal(size=20)
    with jax.enable_x64(True):
        in_jax, gradient = jax.value_and_grad(lambda v: jnp.sum(dual_value_loss(v, jnp.asarray(target), 0.7, phi)))(jnp.asarray(value))
        of_torch = torch.tensor(value, requires_grad=True)
        loss = dual_value_loss(of_torch, torch.tensor(target), 0.7, phi).sum()
        loss.backward()
        np.testing.assert_allclose([float(in_jax), loss.item()], dual_value_loss(value, target, 0.7, phi).sum(), rtol=1e-12)
        np.testing.assert_allclose(gradient, of_torch.grad.numpy(), rtol=1e-12)


def test_the_matching_loss_in_numbers():
    """Two rows of the expert, Q = 1 and 3, and two others whose actions of the policy are worth 2 and 4; targets 0:
    beta (3 - 2) + (1 + 9 + 4 + 4) / 16."""
    value, drawn = jnp.array([1.0, 3.0, 2.0, 2.0]), jnp.array([9.0, 9.0, 2.0, 4.0])
    loss = matching_loss(value, drawn, jnp.zeros(4), jnp.array([1.0, 1.0, 0.0, 0.0]), 0.5)
    np.testing.assert_allclose(loss, 0.5 * (3 - 2) + 18 / 16, rtol=1e-6)


def test_with_the_expert_alone_it_is_the_matching_of_its_visits():
    """Oracle 6: beta = 1 leaves E_E,pi[Q] - E_E[Q] + E_E[(gamma V - Q)^2] / 4."""
    keys = jax.random.split(jax.random.key(0), 3)
    value, drawn, target = (jax.random.normal(k, (8,)) for k in keys)
    found = matching_loss(value, drawn, target, jnp.ones(8), 1.0)
    np.testing.assert_allclose(found, drawn.mean() - value.mean() + ((target - value) ** 2).mean() / 4, rtol=1e-5)


def test_where_the_matching_loss_comes_to_rest():
    """On the expert's pair Q = gamma V + 2, as if it earned 2; on a pair of the other data alone that the policy never takes Q = gamma V."""
    expert = jnp.array([1.0, 0.0])
    gradient = jax.grad(lambda q: matching_loss(q, jnp.zeros(2), jnp.array([5.0, 3.0]), expert, 0.5))(jnp.array([7.0, 3.0]))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def mixed(data, **fields):
    return knowing(Imitate(**fields), data, Normaliser(OBSERVATIONS, None))


def test_the_share_of_the_expert_is_drawn_from_its_episodes():
    """The first rows are transitions of the first episode, with their ends; the others are as the loop drew them, and no reward is left."""
    data = logged(BOX)  # its first episode has 5 steps and terminates
    _, _, batch = rule_and_batch("dual_rl:recoil")
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), batch)
    found = mixed(data, share=0.75).minibatch(batch, 0.9, jax.random.key(1))
    n, m = batch.reward.shape[0], 18
    assert n == 24 and not found.reward.any()
    for x, y in zip(jax.tree.leaves(found._replace(reward=0, weight=0)), jax.tree.leaves(batch._replace(reward=0, weight=0)), strict=True):
        if jnp.ndim(x):
            np.testing.assert_array_equal(x[m:], y[m:])
    rows = [int(jnp.argmin(jnp.abs(data.observation - o[None]).sum(1))) for o in found.observation[0][:m]]
    assert set(rows) == set(range(5))
    rows = np.array(rows)
    np.testing.assert_allclose(found.action[:m], data.action[rows] / 2, rtol=1e-6)
    np.testing.assert_allclose(found.next_observation[0][:m], data.next_observation[rows])
    np.testing.assert_allclose(found.discount[:m], np.where(rows == 4, 0.0, 0.9), rtol=1e-6)


def test_a_log_of_the_expert_alone_is_refused():
    data = logged(BOX)
    assert Imitate(1).refuse(data) is None
    assert "has only 2. Put other episodes behind" in Imitate(2).refuse(data)


@pytest.mark.parametrize("name", ["dual_rl", "dual_rl:pearson", "dual_rl:xql"])
@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3)])
def test_an_update_is_iqls_with_another_maximum_and_huber(name, space):
    """V moves by its own loss; Q by Huber's of r + gamma V(s') with the new V."""
    rule, learner, batch = rule_and_batch(name, space, **{"rule.fit.delta": 0.3})
    one_hot = batch.action if space == BOX else jax.nn.one_hot(batch.action, 3)
    q = jnp.min(jax.vmap(learner.target_critic)(*batch.observation, one_hot), axis=1)

    def v(value, inputs):
        return jax.vmap(lambda vector: value((), vector, ())[1])(inputs[0])

    gradient = jax.grad(lambda value: jnp.mean(rule.maximum(v(value, batch.observation), q)))(learner.extra)
    value, _ = rule.critic_step.update(gradient, learner.optimisers["value"], learner.extra, 0.0)
    y = batch.reward + batch.discount * v(value, batch.next_observation)

    def huber(critic):
        u = jnp.abs(jax.vmap(critic)(*batch.observation, one_hot) - y[:, None])
        return jnp.mean(jnp.sum(jnp.where(u < 0.3, u**2 / 2, 0.3 * (u - 0.15)), axis=1))

    critic, _ = rule.critic_step.update(jax.grad(huber)(learner.critic), learner.optimisers["critic"], learner.critic, 0.0)
    after, _ = update(rule, learner, batch)
    for found, wanted in ((after.extra, value), (after.critic, critic)):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6)


def test_the_rewards_do_not_reach_recoil():
    data = logged(BOX)
    sizes = {"rule.actor_network.hidden": (8,), "rule.critic_network.hidden": (8,), "updates": 3, "batch_size": 8}
    method = parts.replace(dual_rl.recoil(None), sizes)
    learnt = []
    for reward in (data.reward, 100 * data.reward):
        task = DataTask(dataclasses.replace(data, reward=reward), 10)
        learnt.append(method.step(task, method.init(task, jax.random.key(0)))[0])
    for x, y in zip(jax.tree.leaves(learnt[0].learner), jax.tree.leaves(learnt[1].learner), strict=True):
        np.testing.assert_array_equal(x, y)


def test_v_is_normalised_inside():
    """The features of V do not change when a hidden layer's weights and bias are multiplied."""
    _, learner, batch = rule_and_batch("dual_rl", **{"rule.critic_network.hidden": (8, 8)})
    value, seen = learner.extra, batch.observation[0][0]
    layer = value.layers[0]
    louder = eqx.tree_at(lambda v: (v.layers[0].weight, v.layers[0].bias), value, (100 * layer.weight, 100 * layer.bias))
    np.testing.assert_allclose(value.features(seen, ()), louder.features(seen, ()), rtol=1e-3, atol=1e-4)
    assert set(registry.compositions("dual_rl")) == {"dual_rl", "dual_rl:pearson", "dual_rl:xql", "dual_rl:recoil"}
