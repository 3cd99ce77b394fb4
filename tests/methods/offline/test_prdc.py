"""PRDC: the nearest logged pair, its limits, and that nothing flows through the search."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.data.dataset import Dataset, DataTask
from polopt.data.replay import Transitions
from polopt.loops.offline import knowing
from polopt.methods.offline.prdc import NearestLogged, keyed, prdc
from polopt.methods.offline.td3_bc import ClimbNear, td3_bc
from polopt.policies.actor import Normaliser
from tests.methods.offline.helpers import BOX, OBSERVATIONS, logged

UNIT = spaces.Box(-1.0, 1.0, (1,))


def pairs(state, action) -> Dataset:
    state, action = jnp.asarray(state, jnp.float32)[:, None], jnp.asarray(action, jnp.float32)[:, None]
    ends = jnp.ones(state.shape[0], bool)
    return Dataset(state, action, jnp.zeros(len(ends)), state, ends, ~ends, spaces.Box(-10.0, 10.0, (1,)), UNIT)


def batch_of(data: Dataset) -> Transitions:
    n = len(data)
    inputs = jax.vmap(Normaliser(data.observation_space, None))(data.observation)
    return Transitions(inputs, data.action, data.reward, jnp.zeros(n), inputs, jnp.ones(n), jnp.zeros((n, 2), jnp.int32))


def known(data: Dataset, **fields):
    """(objective with alpha = 0, batch of the whole data)."""
    objective = ClimbNear(NearestLogged(**fields), alpha=0.0)
    return knowing(objective, data, Normaliser(data.observation_space, None)), batch_of(data)


def test_the_nearest_pair_in_numbers():
    """Oracle 4: from (.4, .9) the pairs (0, 0) and (1, 1) are .97 and .37 away, squared: the target is 1."""
    data = pairs([0.0, 1.0], [0.0, 1.0])
    objective, batch = known(data, beta=1.0)
    asked = batch._replace(observation=(jnp.array([[0.4]]), ()), reward=jnp.zeros(1))
    target, strength = objective.anchor(None, jnp.array([[0.9]]), asked)
    np.testing.assert_allclose(target, [[1.0]])
    np.testing.assert_allclose(strength, [1.0])
    query, keys = keyed(asked.observation, jnp.array([[0.9]]), 1.0), keyed(batch.observation, batch.action, 1.0)
    np.testing.assert_allclose(((query - keys) ** 2).sum(1), [0.97, 0.37], rtol=1e-6)
    np.testing.assert_allclose(objective(lambda a: a[:, 0], jnp.array([[0.9]]), asked), 0.01, rtol=1e-5)


def test_a_large_beta_is_td3_bc():
    """Oracle 1: the nearest pair to a logged state is its own, whatever the action."""
    data = logged(UNIT)
    objective, batch = known(data, beta=1e3)
    action = jax.random.uniform(jax.random.key(3), (len(data), 1), minval=-1)
    critic = lambda a: 3 * a[:, 0] + 1  # noqa: E731
    for alpha in (0.0, 2.5):
        near = dataclasses.replace(objective, alpha=alpha)
        np.testing.assert_allclose(near(critic, action, batch), ClimbNear(alpha=alpha)(critic, action, batch), rtol=1e-6)


def test_without_states_the_target_is_the_nearest_action_of_all():
    """Oracle 2."""
    data = pairs([0.0, 5.0, -5.0], [-0.9, 0.1, 0.8])
    objective, batch = known(data, beta=0.0)
    target, _ = objective.anchor(None, jnp.array([[0.7], [-1.0], [0.2]]), batch)
    np.testing.assert_allclose(target[:, 0], [0.8, -0.9, 0.1], rtol=1e-6)


def test_a_pair_of_the_log_is_not_pulled():
    """Oracle 3: penalty and gradient are 0 where (s, pi(s)) was logged."""
    objective, batch = known(logged(UNIT))
    loss, gradient = jax.value_and_grad(lambda a: objective(lambda a: a[:, 0], a, batch))(batch.action)
    np.testing.assert_allclose(loss, 0.0, atol=1e-7)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_pull_is_the_gradient_of_the_squared_distance_to_the_log(beta):
    """Its action part, by finite differences of min_i || (beta s, a) - (beta s_i, a_i) ||^2; the search itself gives no gradient."""
    data = logged(UNIT)
    objective, batch = known(data, beta=beta)
    action = jax.random.uniform(jax.random.key(5), (len(data), 1), minval=-1)
    pull = len(data) * jax.grad(lambda a: objective(lambda a: a[:, 0], a, batch))(action)
    keys, query = (np.asarray(keyed(batch.observation, a, beta), np.float64) for a in (batch.action, action))

    def squared_distance(h):
        return ((query[:, None] + h * np.array([0, 0, 1.0]) - keys[None]) ** 2).sum(-1).min(1)

    ahead, behind = squared_distance(1e-6), squared_distance(-1e-6)
    np.testing.assert_allclose(pull[:, 0], (ahead - behind) / 2e-6, atol=1e-4)


def test_several_neighbours_are_averaged_and_no_more_than_there_are():
    data = pairs([0.0, 0.1, 5.0], [0.2, 0.4, -1.0])
    for count, wanted in ((2, 0.3), (100, -0.4 / 3)):
        objective, batch = known(data, neighbours=count)
        target, _ = objective.anchor(None, batch.action[:1], batch_of(pairs([0.0], [0.0])))
        np.testing.assert_allclose(target, [[wanted]], rtol=1e-5)


def test_keys_are_of_normalised_states_and_unit_actions():
    data = logged(BOX)
    normaliser = Normaliser(OBSERVATIONS, data.statistics())
    part = NearestLogged().within(data, normaliser)
    seen = np.asarray(data.observation)
    seen = 2.0 * (seen - seen.mean(0)) / (seen.std(0) + 1e-3)
    np.testing.assert_allclose(part.keys.keys.reshape(-1, 3), np.concatenate([seen, np.asarray(data.action) / 2], axis=1), rtol=1e-3, atol=1e-5)


def test_a_method_without_such_a_part_learns_as_before():
    """Knowing the log changes no part that does not ask for it."""
    data = logged(BOX)
    rule = td3_bc(None).rule
    assert jax.tree.structure(knowing(rule, data, None)) == jax.tree.structure(rule)
    assert jax.tree.leaves(knowing(rule, data, None)) == jax.tree.leaves(rule)


def test_the_log_is_no_part_of_the_state():
    sizes = [sum(x.size for x in jax.tree.leaves(prdc(None).init(DataTask(logged(BOX, n), 100), jax.random.key(0)))) for n in (12, 60)]
    assert sizes[0] == sizes[1]
