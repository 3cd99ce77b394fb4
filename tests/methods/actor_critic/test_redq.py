"""REDQ: the paper's numbers, the bias of its target, and SAC as a case."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.actor_critic import draw
from polopt.methods.actor_critic.redq import redq
from tests.methods.actor_critic.test_ddpg import learner_and_batch
from tests.methods.actor_critic.test_sac import same


class Constant(eqx.Module):
    value: jax.Array

    def __call__(self, features):
        return self.value


def test_the_papers_sizes():
    """N = 10, M = 2, G = 20, and one update of the actor for them."""
    method = redq(None)
    rule = method.rule
    assert (rule.critics, rule.subset, method.updates, rule.delay, rule.actor_value) == (10, 2, 20, 20, "mean")


def test_two_critics_and_one_update_of_the_actor_each_are_sac():
    rule, learner, batch = learner_and_batch("sac")
    other, _, _ = learner_and_batch("redq", **{"rule.critics": 2, "rule.subset": None, "rule.actor_value": "min", "rule.delay": 1})
    a, b = (r.update(learner, batch, 0.0, jax.random.key(2))[0] for r in (rule, other))
    assert same(a, b)


def test_all_critics_regress_to_one_target():
    """Each critic's gradient is that of its own squared error against y, whatever pair made y."""
    rule, learner, batch = learner_and_batch("redq", **{"rule.critics": 3})
    after, error, _ = rule.update(learner, batch, 0.0, jax.random.key(0))
    y = rule.target(learner, batch, jax.random.split(jax.random.key(0))[0])
    value = jax.vmap(learner.critic)(*batch.observation, batch.action)
    np.testing.assert_allclose(error, y - value.mean(axis=1), rtol=1e-5, atol=1e-6)
    moved = jax.vmap(after.critic)(*batch.observation, batch.action)
    before, now = jnp.mean((value - y[:, None]) ** 2, axis=0), jnp.mean((moved - y[:, None]) ** 2, axis=0)
    assert (now < before).all()


@pytest.mark.parametrize("subset", [1, 2, 5, 10])
def test_the_subset_sets_the_bias_of_the_target(subset):
    """Ten critics that say 0, 1, ..., 9 everywhere: the smallest of M drawn without replacement has the mean 11 / (M + 1) - 1."""
    rule, learner, batch = learner_and_batch("redq", **{"rule.subset": subset})
    said = [eqx.tree_at(lambda c: c.head, c, Constant(jnp.array([float(i)]))) for i, c in enumerate(learner.target_critic.members)]
    learner = eqx.tree_at(lambda x: x.target_critic.members, learner, tuple(said))

    def smallest(key):
        now = draw(learner.actor, batch.next_observation, jax.random.split(key)[0])
        y = rule.target(learner, batch._replace(discount=jnp.ones(6)), key) - batch.reward
        return (y + rule.temperature.value(learner.extra) * now.log_prob)[0]

    found = jax.jit(jax.vmap(smallest))(jax.random.split(jax.random.key(1), 3000))
    np.testing.assert_allclose(found.mean(), 11 / (subset + 1) - 1, atol=0.2)
