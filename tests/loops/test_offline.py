"""The offline loop: minibatches of the data, rewards as they are asked for, and no action anywhere."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data.dataset import DataTask
from polopt.loops.offline import Logged, Unused, return_range
from polopt.methods.offline.iql import iql
from tests.methods.offline.helpers import logged


def sampled(rewards, n: int = 4000):
    data = logged()
    method = dataclasses.replace(iql(None), rewards=rewards, batch_size=n)
    return data, method.sample(method.ring(data), data.action_space, jax.random.key(0)), method


def row_of(data, batch):
    """Which transition each sample is, by its observation."""
    return np.argmin(np.abs(np.asarray(batch.observation)[:, None] - np.asarray(data.observation)[None]).sum(-1), axis=1)


def test_minibatches_are_uniform_and_whole():
    data, batch, _ = sampled(Logged())
    row = row_of(data, batch)
    np.testing.assert_allclose(np.bincount(row, minlength=12) / 4000, 1 / 12, atol=0.02)
    np.testing.assert_array_equal(batch.reward, np.asarray(data.reward)[row])
    np.testing.assert_array_equal(batch.next_observation, np.asarray(data.next_observation)[row])
    np.testing.assert_allclose(batch.action, np.asarray(data.action)[row] / 2, rtol=1e-6)  # the box is from -2 to 2
    np.testing.assert_allclose(batch.discount, np.where(row == 4, 0.0, 0.99), rtol=1e-6)  # 4 terminated, 11 was only cut


def test_steps_of_reward_end_with_the_episode():
    data, batch, _ = sampled(Logged(n_step=3))
    row, reward = row_of(data, batch), np.asarray(data.reward)
    last = np.where(row <= 4, 4, 11)
    wanted = sum(np.where(row + k <= last, 0.99**k * reward[np.minimum(row + k, 11)], 0.0) for k in range(3))
    np.testing.assert_allclose(batch.reward, wanted, rtol=1e-4, atol=1e-5)
    steps = np.minimum(row + 2, last) - row + 1
    np.testing.assert_allclose(batch.discount, np.where(np.minimum(row + 2, last) == 4, 0.0, 0.99**steps), rtol=1e-5)
    assert row.max() == 9  # the last two rows have no three steps after them


def test_rewards_are_scaled_and_shifted():
    data = logged()
    reward = np.asarray(data.reward)
    returns = [reward[:5].sum(), reward[5:].sum()]
    np.testing.assert_allclose(return_range(data), max(returns) - min(returns), rtol=1e-5)
    np.testing.assert_allclose(Logged(scale=2.0, shift=-1.0)(data), 2 * reward - 1, rtol=1e-6)
    np.testing.assert_allclose(Logged(span=1000.0)(data), reward * 1000 / abs(returns[0] - returns[1]), rtol=1e-4)
    np.testing.assert_array_equal(Unused()(data), reward)
    still = dataclasses.replace(data, reward=jnp.zeros(12))
    np.testing.assert_array_equal(Logged(span=1000.0)(still), 0.0)


def test_a_dataset_too_short_is_refused():
    method = dataclasses.replace(iql(None), rewards=Logged(n_step=20))
    assert "looks 20 steps ahead, but data has 12" in method.refuse(DataTask(logged(), 10))


def test_unbounded_actions_are_refused():
    from polopt.core import spaces

    data = dataclasses.replace(logged(), action_space=spaces.Box(-np.inf, np.inf, (1,)))
    assert "needs finite bounds of the actions" in iql(None).refuse(DataTask(data, 10))


@pytest.mark.parametrize("updates, iterations", [(10, 4), (20, 2)])
def test_progress_is_the_share_of_the_updates(updates, iterations):
    """The actor's cosine: at the end of the run its step is small, wherever the iterations are cut."""
    task = DataTask(logged(), 40)
    method = dataclasses.replace(iql(None), updates=updates, batch_size=4)
    state = method.init(task, jax.random.key(0))
    for _ in range(iterations - 1):
        state, _ = jax.jit(method.step)(task, state)
    assert int(state.iteration) * updates / task.steps == pytest.approx(1 - 1 / iterations)
