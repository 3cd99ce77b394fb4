"""RvS and the Decision Transformer: outcomes by hand, what a place may see, and that asking for more gets more."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts, spaces
from polopt.core.attention import Transformer
from polopt.data.dataset import Dataset, DataTask
from polopt.loops.windows import episode_outcomes, first_rows, outcomes
from polopt.methods import registry
from polopt.methods.offline.decision_transformer import reward_loss, sequence_loss
from polopt.policies.conditioned import SequenceActor
from tests.methods.offline.helpers import BOX, OBSERVATIONS, logged

SMALL = {
    "rvs": {"rule.network.hidden": (16,), "rule.step.learning_rate": 1e-2},
    "decision_transformer": {
        "rule.width": 16,
        "rule.layers": 1,
        "rule.context": 3,
        "rule.reward_network.hidden": (16,),
        "rule.step.learning_rate": 1e-2,
        "rule.reward_step.learning_rate": 1e-2,
    },
}
KEYS = list(SMALL)


def small(key: str, **changes):
    return parts.replace(registry.load(key)(None), {**SMALL[key], **changes})


def trained(method, data, updates: int):
    task = DataTask(data, updates)
    start = method.init(task, jax.random.key(0))
    return jax.jit(lambda s: jax.lax.fori_loop(0, updates // method.updates, lambda _, s: method.step(task, s)[0], s))(start)


# -- windows -----------------------------------------------------------------------------------------------------------


def test_outcomes_by_hand():
    to_go, left = outcomes(jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), jnp.array([False, False, True, False, True]))
    np.testing.assert_array_equal(to_go, [7, 6, 4, 24, 16])
    np.testing.assert_array_equal(left, [3, 2, 1, 2, 1])
    np.testing.assert_array_equal(first_rows(jnp.array([False, False, True, False, True])), [0, 0, 0, 3, 3])


def test_outcomes_of_a_log_are_those_of_its_episodes():
    data = logged()
    returns, lengths = (np.asarray(x) for x in episode_outcomes(data))
    episodes = data.episodes()
    np.testing.assert_allclose(returns[episodes.start], episodes.returns, rtol=1e-5)
    np.testing.assert_array_equal(lengths[episodes.start], episodes.lengths)


def test_windows_stay_inside_their_episode():
    data = logged()  # episodes of 5 and 7 steps
    method = small("decision_transformer", batch_size=500, normalise_observations=False)
    state = method.init(DataTask(data, 1), jax.random.key(0))
    batch = method.sample(data, method.rows(data), state.normaliser, jax.random.key(1))
    row = np.argmin(np.abs(np.asarray(batch.inputs[0])[:, :, None] - np.asarray(data.observation)[None, None]).sum(-1), axis=2)
    inside = np.asarray(batch.mask) == 1
    step, episode = np.where(row < 5, row, row - 5), row >= 5
    assert inside[:, -1].all() and (episode == episode[:, -1:])[inside].all()
    np.testing.assert_array_equal(inside, np.asarray([-2, -1, 0])[None] + step[:, -1:] >= 0)
    np.testing.assert_array_equal(np.asarray(batch.step)[inside], step[inside])
    np.testing.assert_allclose(np.asarray(batch.action)[inside], np.asarray(data.action)[row][inside] / 2, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(batch.to_go)[inside], np.asarray(outcomes(data.reward, data.ended)[0])[row][inside], rtol=1e-5)
    assert np.bincount(row[:, -1], minlength=12).min() > 15  # every row is drawn


# -- the transformer ---------------------------------------------------------------------------------------------------


def test_a_place_sees_itself_and_what_is_before_it_unless_it_is_masked():
    network = Transformer(8, 2, 2, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 8))
    jacobian = jnp.abs(jax.jacobian(lambda x: network(x, jnp.array([0.0, 1, 1, 1, 1])))(x)).sum((1, 3))
    expected = np.tril(np.ones((5, 5), bool))
    expected[1:, 0] = False
    np.testing.assert_array_equal(np.asarray(jacobian) > 1e-7, expected)


def test_an_action_sees_its_return_and_state_but_not_itself():
    actor = SequenceActor(OBSERVATIONS, BOX, 16, lambda key: Transformer(16, 1, 2, key), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    given = jax.random.normal(keys[0], (4,)), jax.random.normal(keys[1], (4, 2)), jax.random.normal(keys[2], (4, 1))
    mean = lambda *x: actor(*x, jnp.arange(4), jnp.ones(4)).mean[:, 0]  # noqa: E731
    returns, states, actions = (np.abs(np.asarray(x)).reshape(4, 4, -1).sum(-1) > 0 for x in jax.jacobian(mean, (0, 1, 2))(*given))
    np.testing.assert_array_equal(returns, np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(states, np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(actions, np.tril(np.ones((4, 4), bool), -1))


def test_masked_steps_lose_nothing():
    data = logged()
    method = small("decision_transformer", batch_size=32)
    state = method.init(DataTask(data, 1), jax.random.key(0))
    batch = method.sample(data, method.rows(data), state.normaliser, jax.random.key(1))
    learner, scale = state.learner, 1.0
    other = batch._replace(
        to_go=jnp.where(batch.mask > 0, batch.to_go, 9.0),
        reward=jnp.where(batch.mask > 0, batch.reward, 9.0),
        inputs=(jnp.where(batch.mask[..., None] > 0, batch.inputs[0], 9.0), ()),
        action=jnp.where(batch.mask[..., None] > 0, batch.action, 0.9),
    )
    assert float(batch.mask.min()) == 0.0
    np.testing.assert_allclose(sequence_loss(learner.actor, batch, scale), sequence_loss(learner.actor, other, scale), rtol=1e-5)
    np.testing.assert_allclose(reward_loss(learner.critic, learner.actor, batch), reward_loss(learner.critic, learner.actor, other), rtol=1e-5)


# -- policies ----------------------------------------------------------------------------------------------------------


def forked(n: int = 400) -> Dataset:
    """Episodes of two steps whose first action, uniform of two, pays 0 or 1 at once, and whose second does not matter."""
    rng = np.random.default_rng(0)
    action = rng.integers(0, 2, (n, 2)).astype(np.int32)
    reward = np.stack([action[:, 0], np.zeros(n)], axis=1).astype(np.float32)
    seen = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), (n, 1, 1))
    after = np.tile(np.array([[1.0, 0.0], [0.0, 0.0]], np.float32), (n, 1, 1))
    end = np.tile([False, True], n)
    rows = seen.reshape(-1, 2), action.ravel(), reward.ravel(), after.reshape(-1, 2)
    return Dataset(*rows, end, np.zeros_like(end), OBSERVATIONS, spaces.Discrete(2)).on_device()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("target", [0.0, 1.0, None])
def test_it_does_what_it_is_asked(key, target):
    """Cloning would toss a coin; asked for the return of an action, the policy takes that action. None asks for the best."""
    asked = target if target is None or key == "decision_transformer" else target / 2  # an average over two steps
    method = small(key, **{"rule.target": asked, "batch_size": 64, "updates": 50})
    policy = method.policy(trained(method, forked(), 400))
    carry, action = policy.act(policy.initial_carry(), jnp.array([0.0, 1.0]))
    assert int(action) == (0 if target == 0.0 else 1)


def test_the_deployed_context_is_that_of_training():
    """What the policy does along an episode is what the actor does on its window, with rewards by the model."""
    data = logged()
    method = small("decision_transformer", **{"rule.target": 5.0})
    state = trained(parts.replace(method, {"updates": 10}), data, 20)
    policy, learner = method.policy(state), state.learner
    seen = np.asarray(data.observation)[5:10]
    carry, taken, earned, states = policy.initial_carry(), [], [0.0], [policy.normaliser(o)[0] for o in seen]
    for t, o in enumerate(seen):
        carry, action = policy.act(carry, jnp.asarray(o))
        taken.append(action / 2)
        if t:
            earned.append(earned[-1] + learner.critic(states[t - 1], taken[t - 1], states[t]))
        window = slice(max(0, t - 2), t + 1)
        returns = (5.0 - jnp.stack([jnp.asarray(x) for x in earned[window]])) / learner.extra.scale
        actions = jnp.stack([*taken[window][:-1], jnp.zeros(1)])
        n = len(actions)
        found = learner.actor(returns, jnp.stack(states[window]), actions, jnp.arange(t + 1 - n, t + 1), jnp.ones(n))
        np.testing.assert_allclose(taken[-1], found.mean[-1], atol=1e-5)


def test_the_reward_model_is_fitted():
    data = forked()
    method = small("decision_transformer", **{"batch_size": 64, "updates": 50})
    model = trained(method, data, 400).learner.critic
    normaliser = method.init(DataTask(data, 1), jax.random.key(0)).normaliser
    first, second = (normaliser(jnp.asarray(o))[0] for o in ([0.0, 1.0], [1.0, 0.0]))
    said = [float(model(first, jnp.eye(2)[a], second)) for a in (0, 1)]
    np.testing.assert_allclose(said, [0.0, 1.0], atol=0.1)


def test_what_does_not_fit_is_refused():
    method = small("decision_transformer", **{"rule.width": 6, "rule.heads": 2})
    assert "2 heads need a multiple of 4" in method.refuse(DataTask(logged(), 1))
    for key in KEYS:
        free = logged(spaces.Box(-np.inf, np.inf, (1,)))
        assert "needs finite bounds of the actions" in small(key).refuse(DataTask(free, 1))
