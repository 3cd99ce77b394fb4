"""TD3+BC: the pull, the scale of the critic's term, and its limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.data.dataset import DataTask
from polopt.methods.actor_critic.ddpg import Climb
from polopt.methods.offline.td3_bc import ClimbNear, distance, td3_bc
from tests.methods.offline.helpers import BOX, logged, rule_and_batch, update


def critic(action):
    return 3.0 * action[:, 0] + 1.0


def test_the_loss_in_numbers():
    """Q = 3 a + 1 at a = (0, .5), logged (.5, .5): mean |Q| = 1.75, lambda = 2.5 / 1.75, L = -2.5 + .125."""
    _, _, batch = rule_and_batch("td3_bc")
    batch = batch._replace(action=jnp.full((2, 1), 0.5), reward=jnp.zeros(2))
    np.testing.assert_allclose(ClimbNear()(critic, jnp.array([[0.0], [0.5]]), batch), -2.5 + 0.125, rtol=1e-6)


def test_the_scale_is_held_fixed():
    """grad L = -lambda grad Q / n + 2 (a - logged) / n; with a moving lambda it would lose the first term's part along Q."""
    _, _, batch = rule_and_batch("td3_bc")
    batch = batch._replace(action=jnp.full((2, 1), 0.5), reward=jnp.zeros(2))
    gradient = jax.grad(lambda a: ClimbNear()(critic, a, batch))(jnp.array([[0.0], [0.5]]))
    scale = 2.5 / 1.75
    np.testing.assert_allclose(gradient[:, 0], [-scale * 3 / 2 - 0.5, -scale * 3 / 2], rtol=1e-5)


def test_values_of_any_scale_give_the_same_step():
    _, _, batch = rule_and_batch("td3_bc")
    action = jax.random.uniform(jax.random.key(0), (6, 1))
    a, b = (jax.grad(lambda x, k=k: ClimbNear()(lambda y: k * critic(y), x, batch))(action) for k in (1.0, 1000.0))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_distance_is_averaged_over_the_entries():
    np.testing.assert_allclose(distance(jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])), [1.0])


def test_without_the_critic_it_clones():
    """alpha = 0: the actor comes to the logged action of each state, whatever the rewards."""
    changes = {"rule.objective.alpha": 0.0, "rule.actor_step.learning_rate": 1e-3, "rule.actor_network.hidden": (64,)}
    rule, learner, batch = rule_and_batch("td3_bc", **changes)
    batch = batch._replace(action=0.5 * batch.action)
    learner, _ = update(rule, learner, batch, 4000)
    np.testing.assert_allclose(jax.vmap(learner.actor)(*batch.observation), batch.action, atol=0.03)


def test_a_large_alpha_is_td3():
    """The pull is nothing beside the critic's term: the actor's gradient points where DDPG's does."""
    _, _, batch = rule_and_batch("td3_bc")
    action = jax.random.uniform(jax.random.key(0), (6, 1))
    near, free = (jax.grad(lambda x, o=o: o(critic, x, batch))(action) for o in (ClimbNear(alpha=1e8), Climb()))
    np.testing.assert_allclose(near / jnp.linalg.norm(near), free / jnp.linalg.norm(free), rtol=1e-5)


def test_states_are_normalised_by_the_data():
    data = logged(BOX)
    state = td3_bc(None).init(DataTask(data, 100), jax.random.key(0))
    seen = np.asarray(jax.vmap(state.normaliser)(data.observation)[0])
    np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-5)
    deviation = np.asarray(data.observation).std(0)
    np.testing.assert_allclose(seen.std(0), deviation / (deviation + 1e-3), rtol=1e-4)


def test_whole_number_actions_are_refused_with_what_fits():
    rule, _, _ = rule_and_batch("td3_bc")
    assert "Take bc, iql or cql" in rule.refuse(logged(spaces.Discrete(3)))
