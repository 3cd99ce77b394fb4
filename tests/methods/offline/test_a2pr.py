"""A2PR: which action is chosen and whether at all, what the autoencoder learns from, the order of an update, and the limits."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import spaces
from polopt.methods.actor_critic.ddpg import Climb
from polopt.methods.offline.a2pr import Selected, rebuilding_loss, selected
from polopt.methods.offline.iql import value_of
from polopt.methods.offline.td3_bc import ClimbNear, LoggedAction, td3_bc
from polopt.objectives.divergences import gaussian_kl
from tests.methods.offline.helpers import logged, rule_and_batch, update


def as_jax(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("kind", [np.asarray, as_jax, torch.tensor])
def test_selection_in_numbers(kind):
    """Oracle 4 with V = 1: Q = .8 against 1.3 of the model takes the model's; .8 against .7 the logged one, and nothing pulls.

    An advantage of the model's action of 0 pulls, one of the logged action does not.
    """
    of_logged, of_rebuilt = kind([-0.2, -0.2, 0.3, 0.0, -1.0]), kind([0.3, -0.3, -0.1, -0.5, 0.0])
    rows = kind([[1.0], [2.0], [3.0], [4.0], [5.0]])
    target, gate = selected(rows, -rows, of_logged, of_rebuilt)
    np.testing.assert_allclose(np.asarray(target)[:, 0], [-1, 2, 3, 4, -5])
    np.testing.assert_allclose(np.asarray(gate), [1, 0, 1, 0, 1])


class Model:
    """An autoencoder that rebuilds every action as `rebuild` says, from codes of one mean and log deviation."""

    def __init__(self, rebuild, mean=0.0, log_std=0.0):
        self.rebuild, self.code = rebuild, (jnp.full(2, mean), jnp.full(2, log_std))

    def rebuilt(self, vector, pictures, action, key):
        return self.rebuild(action), *self.code


@pytest.mark.parametrize("mean, log_std, wanted", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.5), (0.3, np.log(0.5), np.log(2) + 0.34 / 2 - 0.5)])
def test_the_divergence_of_a_code(mean, log_std, wanted):
    """Oracle 5: 0 for N(0, 1), a half an entry for N(1, 1), and half of it in the loss, whatever the mask."""
    _, _, batch = rule_and_batch("a2pr")
    loss = rebuilding_loss(Model(lambda a: a, mean, log_std), batch, jnp.zeros(6), 1.0, jax.random.key(0))
    np.testing.assert_allclose(loss, wanted / 2, atol=1e-6)


def test_what_is_rebuilt_is_weighed_and_masked():
    """w mean(m |a^ - a|^2) over all rows, those of the mask or not."""
    _, _, batch = rule_and_batch("a2pr")
    mask = jnp.array([1.0, 0, 1, 0, 0, 0])
    loss = rebuilding_loss(Model(lambda a: a + 0.5), batch, mask, 3.0, jax.random.key(0))
    np.testing.assert_allclose(loss, 3 * 2 * 0.25 / 6, rtol=1e-5)


def q(action):
    return 3.0 * action[:, 0] + 1.0


def pulled(rebuild, value: float, alpha: float = 2.5) -> ClimbNear:
    return ClimbNear(Selected(jnp.full(6, value), Model(rebuild), jax.random.key(0)), alpha)


def loss_and_gradient(objective, batch):
    action = jax.random.uniform(jax.random.key(1), batch.action.shape)
    return jax.value_and_grad(lambda a: objective(q, a, batch))(action)


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_where_all_is_good_and_rebuilt_it_is_td3_bc(alpha):
    """Oracle 1: advantages at least 0, and the model's action that of the log."""
    _, _, batch = rule_and_batch("a2pr")
    target, gate = selected(batch.action, batch.action, jnp.zeros(6), jnp.zeros(6))
    np.testing.assert_array_equal(target, batch.action)
    np.testing.assert_array_equal(gate, jnp.ones(6))
    for rebuild in (lambda a: a - 10, lambda a: -10 + 0 * a):  # worse than the log's, which then is the target
        found = loss_and_gradient(pulled(rebuild, -100.0, alpha), batch)
        for x, y in zip(found, loss_and_gradient(ClimbNear(LoggedAction(), alpha), batch), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def test_where_nothing_is_good_nothing_pulls():
    """Oracle 2: the loss is -lambda E[Q] alone, which is -alpha as Q > 0 here."""
    _, _, batch = rule_and_batch("a2pr")
    loss, gradient = loss_and_gradient(pulled(lambda a: 0 * a, 100.0), batch)
    free = loss_and_gradient(Climb(), batch)[1]
    np.testing.assert_allclose(gradient / jnp.linalg.norm(gradient), free / jnp.linalg.norm(free), rtol=1e-5)
    np.testing.assert_allclose(loss, -2.5, rtol=1e-5)


def test_no_gradient_flows_through_the_models_action():
    _, _, batch = rule_and_batch("a2pr")
    still, through = (lambda a: jnp.ones_like(a)), (lambda a: 1 + 0.5 * (a - jax.lax.stop_gradient(a)))
    for x, y in zip(*(loss_and_gradient(pulled(rebuild, -100.0, 0.0), batch) for rebuild in (still, through)), strict=True):
        np.testing.assert_allclose(x, y)


def test_poor_actions_are_not_rebuilt_but_keep_their_codes():
    """Oracle 3: with a mask of 0 the decoder has no gradient at all, and the encoder that of the codes' divergence."""
    _, learner, batch = rule_and_batch("a2pr")
    model, key = learner.extra.model, jax.random.key(0)
    gradient = jax.grad(rebuilding_loss)(model, batch, jnp.zeros(6), 1.0, key)
    assert not any(jnp.any(x) for x in jax.tree.leaves((gradient.decoder, gradient.head)))

    def divergence(model):
        mean, log_std = jax.vmap(model.encode)(*batch.observation, batch.action)
        return 0.5 * jnp.mean(gaussian_kl(mean, log_std, 0 * mean, 0 * mean)) / 2  # two entries a code

    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(jax.grad(divergence)(model)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)
    some = jax.grad(rebuilding_loss)(model, batch, jnp.eye(6)[0], 1.0, key)
    assert jnp.any(some.head.weight)


def same(found, wanted) -> bool:
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))


def test_one_update_in_its_order():
    """Critics as TD3's, V towards the smaller of both backups, the model by what the new critic and V hold for better; the actor at the second."""
    rule, learner, batch = rule_and_batch("a2pr")
    after, metrics = update(rule, learner, batch)
    k_host = jax.random.split(jax.random.key(0), 3)[0]
    alone, _ = jax.jit(td3_bc().rule.update)(learner, batch, 0.0, k_host)[::2]  # no actor moves at the first update
    assert same(after.critic, alone.critic) and same(after.actor, learner.actor)
    following = rule.host.target_action(jax.vmap(learner.target_actor)(*batch.next_observation), k_host)
    values = (jnp.min(jax.vmap(c)(*batch.next_observation, following), axis=1) for c in (learner.target_critic, after.critic))
    lower = batch.reward + batch.discount * jnp.minimum(*values)
    error = jnp.mean((value_of(learner.extra.value, batch.observation) - lower) ** 2)
    np.testing.assert_allclose(metrics["loss/value"], error, rtol=1e-5)
    better = jax.vmap(after.critic.members[0])(*batch.observation, batch.action) > value_of(after.extra.value, batch.observation)
    np.testing.assert_allclose(metrics["better"], better.mean())
    twice, _ = update(rule, learner, batch, 2)
    assert not same(twice.actor, learner.actor) and not same(twice.extra.model, after.extra.model)


def test_the_value_takes_the_lower_backup():
    """Online critics that are all lower by 5 lower the target of V; higher ones do not raise it."""
    rule, learner, batch = rule_and_batch("a2pr")

    def shifted(by):
        heads = lambda c: [m.head.bias for m in c.members]  # noqa: E731
        critic = eqx.tree_at(heads, learner.critic, [b + by for b in heads(learner.critic)])
        return update(rule, eqx.tree_at(lambda x: x.critic, learner, critic), batch)[1]["loss/value"]

    np.testing.assert_allclose(shifted(5.0), shifted(10.0), rtol=1e-5)
    assert abs(float(shifted(-5.0) - shifted(5.0))) > 0.1


def test_the_autoencoder_learns_what_was_done():
    """Of two actions that were done alike often, what is rebuilt of each is near it."""
    rule, learner, batch = rule_and_batch("a2pr", **{"rule.model_network.hidden": (32,)})
    n, step = 64, rule.model_step
    action = jnp.where(jnp.arange(n) % 2 == 0, 0.7, -0.7)[:, None]
    data = batch._replace(observation=(jnp.zeros((n, 2)), ()), action=action)

    def descend(i, carry):
        gradient = jax.grad(rebuilding_loss)(carry[0], data, jnp.ones(n), 1.0, jax.random.key(i))
        return step.update(gradient, carry[1], carry[0], 0.0)

    model = learner.extra.model
    model, _ = jax.jit(lambda carry: jax.lax.fori_loop(0, 1500, descend, carry))((model, step.init(model)))
    rebuilt = jax.vmap(model.rebuilt)(*data.observation, action, jax.random.split(jax.random.key(9), n))[0]
    assert float(jnp.abs(rebuilt - action).mean()) < 0.3


def test_whole_number_actions_are_refused_with_what_fits():
    rule, _, _ = rule_and_batch("a2pr")
    assert "Take bc, iql or cql" in rule.refuse(logged(spaces.Discrete(3)))
