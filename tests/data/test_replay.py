"""Replay: what is stored comes back, n-step returns stop at ends, and draws follow the stated law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data.replay import Replay, Steps

GAMMA = 0.9


def steps(rewards, ended=None, terminated=None) -> Steps:
    """Time-major steps of one or several copies whose observation is the number of the step, and whose next one is half a step on."""
    rewards = jnp.asarray(rewards, jnp.float32)
    rewards = rewards[:, None] if rewards.ndim == 1 else rewards
    ended = jnp.zeros(rewards.shape, bool) if ended is None else jnp.asarray(ended, bool).reshape(rewards.shape)
    terminated = jnp.zeros(rewards.shape, bool) if terminated is None else jnp.asarray(terminated, bool).reshape(rewards.shape)
    number = jnp.broadcast_to(jnp.arange(rewards.shape[0], dtype=jnp.float32)[:, None], rewards.shape)[..., None]
    return Steps(number, number[..., 0].astype(jnp.int32), rewards, number + 0.5, terminated, ended)


def filled(replay: Replay, *blocks: Steps, limit: int = 1000):
    ring = replay.start(blocks[0], limit)
    for block in blocks:
        ring = replay.add(ring, block)
    return ring


def drawn(replay, ring, n=400, seed=0):
    return jax.tree.map(np.asarray, replay.sample(ring, jax.random.key(seed), n, GAMMA))


def test_every_transition_comes_back_as_it_was():
    replay = Replay(capacity=8)
    batch = drawn(replay, filled(replay, steps([1.0, 2.0, 3.0, 4.0], terminated=[0, 0, 0, 1], ended=[0, 1, 0, 1])))
    assert set(batch.observation[:, 0]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(batch.reward, batch.observation[:, 0] + 1)
    np.testing.assert_array_equal(batch.next_observation[:, 0], batch.observation[:, 0] + 0.5)
    # a cut episode keeps its bootstrap, a terminated one loses it
    np.testing.assert_allclose(batch.discount, np.where(batch.observation[:, 0] == 3, 0, GAMMA), rtol=1e-6)
    np.testing.assert_array_equal(batch.weight, 1)


def test_the_oldest_are_forgotten_first_and_empty_rows_are_never_drawn():
    replay = Replay(capacity=4)
    block = steps([0.0, 0.0])
    ring = filled(replay, *(block._replace(reward=block.reward + i) for i in range(1)))
    assert set(drawn(replay, ring).reward) == {0.0}
    for i in range(1, 4):
        ring = replay.add(ring, block._replace(reward=block.reward + i))
    assert set(drawn(replay, ring).reward) == {2.0, 3.0}


def test_the_ring_is_no_larger_than_the_run():
    example = steps(np.zeros((2, 3)))
    assert Replay(capacity=1_000_000).start(example, limit=20).steps.reward.shape == (8, 3)
    assert Replay(capacity=12).start(example, limit=1_000_000).steps.reward.shape == (4, 3)


def test_n_step_returns_stop_where_an_episode_ends():
    replay = Replay(capacity=16, n_step=3)
    ring = filled(replay, steps([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], ended=[0, 0, 1, 0, 1, 0], terminated=[0, 0, 0, 0, 1, 0]))
    batch = drawn(replay, ring)
    seen = {int(o): (r, d, x) for o, r, d, x in zip(batch.observation[:, 0], batch.reward, batch.discount, batch.next_observation[:, 0])}
    g = GAMMA
    expected = {
        0: (1 + 2 * g + 4 * g**2, g**3, 2.5),
        1: (2 + 4 * g, g**2, 2.5),  # cut after step 2: bootstraps from its true successor
        2: (4, g, 2.5),
        3: (8 + 16 * g, 0, 4.5),  # terminated after step 4
    }
    assert set(seen) == set(expected), "the last two rows have no three steps after them yet"
    for number, values in expected.items():
        np.testing.assert_allclose(seen[number], values, rtol=1e-6)


def test_n_step_returns_run_on_over_the_seam_of_the_ring():
    replay = Replay(capacity=4, n_step=2)
    block = steps([1.0, 1.0])
    ring = filled(replay, block, block._replace(reward=block.reward * 10), block._replace(reward=block.reward * 100))
    # held: 10 10 100 100, with 100 100 written over the first rows
    assert set(np.round(drawn(replay, ring).reward, 3)) == {19.0, 100.0, 190.0}


def test_uniform_draws_are_uniform():
    replay = Replay(capacity=10)
    counts = np.bincount(drawn(replay, filled(replay, steps(np.zeros(10))), n=20_000).action, minlength=10)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 27.9, "beyond the 0.999 quantile of 9 degrees of freedom"


@pytest.mark.parametrize("alpha, beta", [(0.5, 1.0), (1.0, 0.4)])
def test_priorities_are_the_law_of_the_draws(alpha, beta):
    replay = Replay(capacity=6, prioritised=True, alpha=alpha, beta=beta)
    ring = filled(replay, steps(np.zeros(4)))
    error = np.array([1.0, 4.0, 9.0, 0.0])
    index = jnp.array([[0, 0], [1, 0], [2, 0], [3, 0]])
    ring = replay.judged(ring, index, jnp.asarray(-error))
    p = (error + 1e-6) ** alpha
    p /= p.sum()
    batch = drawn(replay, ring, n=40_000)
    np.testing.assert_allclose(np.bincount(batch.action, minlength=4) / 40_000, p, atol=0.01)
    weight = (4 * p) ** -beta
    np.testing.assert_allclose(batch.weight, (weight / weight[np.unique(batch.action)].max())[batch.action], rtol=1e-4)


def test_a_new_transition_has_the_largest_priority():
    replay = Replay(capacity=8, prioritised=True)
    ring = filled(replay, steps([0.0, 0.0]))
    np.testing.assert_array_equal(ring.priority[:2, 0], 1)
    ring = replay.add(replay.judged(ring, jnp.array([[0, 0]]), jnp.array([7.0])), steps([0.0, 0.0]))
    np.testing.assert_allclose(ring.priority[:4, 0], [7, 1, 7, 7], rtol=1e-5)


def test_prioritised_draws_leave_out_what_has_no_n_steps_after_it():
    replay = Replay(capacity=6, n_step=3, prioritised=True)
    assert set(drawn(replay, filled(replay, steps(np.zeros(6)), steps(np.zeros(6)))).action) == {0, 1, 2, 3}
