"""N-PG-IGT and N-HARPG as the loop runs them: exact without noise, sampled where they should, and steps of known length.

The recursions alone are in tests/optim/test_momentum.py, the unbiased Hessian product in tests/loops/test_episodes.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.policy_gradient.npg_igt import HessianAided, Transported

H = jnp.array([[-2.0, 0.3], [0.3, -0.5]])


class Quadratic:
    """A loop without noise whose actors are vectors: J = x^T H x / 2 + sum x. An episode is the point that it was sampled at."""

    def __init__(self):
        self.sampled = []

    def actor(self, env, key):
        return jnp.array([1.0, -2.0])

    def sample(self, actor, key):
        self.sampled.append(np.asarray(actor))
        return actor

    def gradient(self, actor, episode):
        np.testing.assert_array_equal(actor, episode)  # data and score at one point
        return H @ actor + 1

    def hessian_product(self, actor, episode, direction):
        np.testing.assert_array_equal(actor, episode)
        return H @ direction


def path(ascent, steps=12):
    """[(theta, d)] and where it sampled."""
    with jax.enable_x64(True):
        loop, found = Quadratic(), []
        state = ascent.init(loop, ControlTask(None, 1), jax.random.key(0))
        for t in range(steps):
            before = state.actor
            state, _ = ascent(loop, loop.sample, state, 0.0, jax.random.key(t))
            found.append((np.asarray(before), np.asarray(state.momentum.direction)))
        return found, loop.sampled


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", [Transported, HessianAided])
def test_without_noise_the_direction_is_the_gradient(kind, memory):
    """Oracles 1 and 2."""
    for theta, direction in path(kind(memory=memory))[0]:
        np.testing.assert_allclose(direction, np.asarray(H) @ theta + 1, rtol=1e-6)


def test_plain_momentum_is_not():
    theta, direction = path(Transported(transport=False))[0][-1]
    assert np.abs(direction - (np.asarray(H) @ theta + 1)).max() > 0.05


def test_it_samples_ahead():
    """theta~_t = theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1}), and theta_{-1} = theta_0."""
    found, sampled = path(Transported())
    thetas = [theta for theta, _ in found]
    np.testing.assert_array_equal(sampled[0], thetas[0])
    for t in range(1, len(thetas)):
        eta = (2 / (t + 2)) ** 0.8
        np.testing.assert_allclose(sampled[t], thetas[t] + (1 - eta) / eta * (thetas[t] - thetas[t - 1]), rtol=1e-6)


def test_harpg_samples_where_it_is_and_between():
    found, sampled = path(HessianAided())
    thetas = [theta for theta, _ in found]
    for t in range(1, len(thetas)):
        here, there = sampled[2 * t], sampled[2 * t + 1]
        np.testing.assert_array_equal(here, thetas[t])
        moved = thetas[t] - thetas[t - 1]
        fraction = (there - thetas[t - 1]) @ moved / (moved @ moved)
        assert 0 <= fraction <= 1
        np.testing.assert_allclose(there, thetas[t - 1] + fraction * moved, atol=1e-6)


def actors(name, iterations=4, **changes):
    task = ControlTask(make("exact:chain"), 10_000)
    method = parts.replace(registry.load(name)(task), {"horizon": 10, "num_envs": 8, **changes})
    assert method.network.hidden == ()  # numbered states make a softmax table
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    step, found = jax.jit(lambda s: method.step(task, s)), [state.ascent.actor]
    for _ in range(iterations):
        state, metrics = step(state)
        found.append(state.ascent.actor)
    return found, metrics


@pytest.mark.parametrize("name", ["npg_igt", "npg_igt:harpg"])
def test_steps_have_their_length(name):
    """Oracle 3, through the whole loop."""
    found, _ = actors(name, step_size=0.5, delay=3.0)
    for t, (before, after) in enumerate(zip(found, found[1:])):
        np.testing.assert_allclose(optax.tree.norm(optax.tree.sub(after, before)), 0.5 / (t + 3) ** 0.5, rtol=1e-4)


def test_harpg_without_a_length_steps_by_its_momentum():
    found, metrics = actors("npg_igt:harpg", normalised=False, step_size=0.5, delay=3.0)
    moved = optax.tree.norm(optax.tree.sub(found[-1], found[-2]))
    np.testing.assert_allclose(moved, 0.5 / (3 + 3) ** 0.5 * metrics["momentum_norm"], rtol=1e-3)


def test_without_memory_it_is_normalised_gradient_ascent():
    """Oracle 4: eta = 1, so that looking ahead or not is one and the same."""
    ahead, metrics = actors("npg_igt", memory=0.0)
    here, _ = actors("npg_igt", memory=0.0, transport=False)
    for x, y in zip(jax.tree.leaves(ahead[-1]), jax.tree.leaves(here[-1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], metrics["momentum_norm"], rtol=1e-6)
