"""MDPO's oracles of the on-policy method: the closed form of a mirror step, its limits, and the schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import Update
from polopt.loops.surrogates import ImportanceWeighted, LogLikelihood
from polopt.methods import registry
from polopt.methods.policy_gradient.mdpo import Proximal
from polopt.policies.distributions import Categorical


def update(logits, old_logits, advantage) -> Update:
    """Each action of one state once, so that means over samples of a uniform old policy are exact expectations."""
    n = logits.shape[0]
    new, old = (Categorical(jnp.broadcast_to(x, (n, n))) for x in (logits, old_logits))
    return Update(jax.nn.log_softmax(logits), jax.nn.log_softmax(old_logits), advantage, new, old)


def gradient(surrogate, state, logits, advantage):
    old = jnp.zeros_like(logits)
    return jax.grad(lambda x: surrogate.loss(state, update(x, old, advantage))[0].mean())(logits)


def descended(step_size: float, rate: float, steps: int = 3000):
    """Probabilities after many plain gradient steps from pi_k = (1/2, 1/2) with A = (1, -1)."""
    advantage = jnp.array([1.0, -1.0])

    def step(_, logits):
        return logits - rate * gradient(Proximal(), jnp.float32(step_size), logits, advantage)

    return jax.nn.softmax(jax.lax.fori_loop(0, steps, step, jnp.zeros(2)))


def test_many_steps_reach_the_closed_form():
    """Oracle 1: t = 1/2, p = sigmoid(1)."""
    np.testing.assert_allclose(descended(0.5, rate=0.5)[0], 0.731059, atol=1e-4)
    np.testing.assert_allclose(descended(0.8, rate=0.5), jax.nn.softmax(0.8 * jnp.array([1.0, -1.0])), atol=1e-4)


@pytest.mark.parametrize("step_size", [0.01, 1.0, 50.0])
def test_the_first_step_is_that_of_a2c(step_size):
    """Oracle 2: the proximity has no gradient at pi_k, whatever its weight."""
    advantage, logits = jnp.array([0.4, -1.0, 2.0]), jnp.zeros(3)
    expected = gradient(LogLikelihood(), (), logits, advantage)
    np.testing.assert_allclose(gradient(Proximal(), jnp.float32(step_size), logits, advantage), expected, atol=1e-5)


def test_the_limits_of_the_step_size():
    """Oracle 4: an endless step drops the proximity, and a step of almost nothing leaves the policy as it is."""
    logits, advantage = jnp.array([0.5, -0.2, 0.1]), jnp.array([1.0, -2.0, 0.3])
    free = gradient(ImportanceWeighted(), (), logits, advantage)
    np.testing.assert_allclose(gradient(Proximal(), jnp.float32(1e6), logits, advantage), free, atol=1e-5)
    np.testing.assert_allclose(descended(1e-3, rate=1e-3), [0.5, 0.5], atol=1e-3)


def test_the_proximity_has_the_new_policy_first():
    logits = jnp.array([1.0, 0.0])
    u = update(logits, jnp.zeros(2), jnp.zeros(2))
    p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    loss, metrics = Proximal().loss(jnp.float32(0.25), u)
    np.testing.assert_allclose(metrics["proximity"], (p * np.log(p / 0.5)).sum(), rtol=1e-5)
    np.testing.assert_allclose(loss, 4 * metrics["proximity"] * np.ones(2), rtol=1e-5)


def test_the_step_size_falls_linearly_to_zero_over_the_run():
    """t_k = t_0 (1 - k / K), and never 0, by which the loss would divide."""
    task = ControlTask(make("probe:action"), 5 * 32)
    changes = {"num_envs": 4, "num_steps": 8, "epochs": 1, "minibatches": 1, "step_size": 2.0, "network.hidden": (4,), "critic_network.hidden": (4,)}
    method = parts.replace(registry.load("mdpo")(task), changes)
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    step = jax.jit(lambda s: method.step(task, s))
    seen = []
    for _ in range(7):
        state, metrics = step(state)
        seen.append(float(metrics["step_size"]))
    np.testing.assert_allclose(seen[:5], [2.0, 1.6, 1.2, 0.8, 0.4], rtol=1e-5)
    assert 0 < seen[5] == seen[6] < 0.01
