"""JAX environments under the batched protocol, and gymnax's."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs import gymnax_catalogue
from polopt.envs.make import make


@pytest.mark.parametrize("name", sorted({*gymnax_catalogue.IDS} - {"MNISTBandit-bsuite"}))  # which downloads MNIST
@jax.numpy_rank_promotion("allow")  # gymnax's own code relies on it
def test_every_gymnax_environment_keeps_its_spaces(name):
    env = make(f"gymnax:{name}")
    state, first = jax.eval_shape(lambda: env.reset(jax.random.key(0), 2))
    action = jax.eval_shape(lambda: jax.vmap(lambda k: spaces.sample(env.action_space, k))(jax.random.split(jax.random.key(0), 2)))
    after, step = jax.eval_shape(env.step, state, action, jax.eval_shape(lambda: jax.random.key(0)))
    wanted = jax.eval_shape(lambda: jax.tree.map(lambda z: jnp.stack([z, z]), spaces.zeros(env.observation_space)))
    assert after == state and first == wanted and step.observation == wanted and step.final_observation == wanted
    assert [x.shape for x in step[2:]] == [(2,), (2, 0), (2,), (2,)] and step.reward.dtype == "float32"


def test_cartpole_is_truncated_at_500_and_keeps_the_final_observation():
    """An unstable pole is kept up by feedback, so that the time limit ends the episode."""
    env = make("CartPole-v1")

    def step(loop, key):
        state, observation = loop
        state, after = env.step(state, (observation @ jnp.array([0.1, 0.3, 1.0, 0.3]) > 0).astype(jnp.int32), key)
        return (state, after.observation), after

    _, steps = jax.jit(lambda key: jax.lax.scan(step, env.reset(key, 3), jax.random.split(key, 501)))(jax.random.key(0))
    steps = jax.tree.map(np.asarray, steps)
    assert steps.truncated[499].all() and not steps.truncated[:499].any() and not steps.terminated.any()
    np.testing.assert_array_less(np.abs(steps.observation[499]), 0.0501)
    assert (steps.observation[499] != steps.final_observation[499]).all()
    np.testing.assert_array_equal(steps.observation[:499], steps.final_observation[:499])


def test_equal_keys_equal_episodes():
    env = make("Pendulum-v1")
    run = jax.jit(lambda key: env.step(env.reset(key, 2)[0], jnp.ones((2, 1)), key))
    jax.tree.map(np.testing.assert_array_equal, run(jax.random.key(1)), run(jax.random.key(1)))
    assert (np.asarray(run(jax.random.key(1))[1].observation) != np.asarray(run(jax.random.key(2))[1].observation)).all()


PROGRAM = """
import sys
from polopt.envs.make import make
env = make("CartPole-v1")
heavy = [m for m in ("matplotlib", "seaborn", "scipy", "pandas") if m in sys.modules]
assert not heavy, heavy
assert "gymnax" not in sys.modules
import gymnax
assert type(gymnax.make("CartPole-v1")[0]) is type(env.dynamics.env)
assert gymnax.environments.classic_control.CartPole is type(env.dynamics.env)
assert make("CartPole-v1") == env

from polopt.envs.gymnax_catalogue import IDS
theirs = {name: f"{kind.__module__.removeprefix('gymnax.environments.')}:{kind.__name__}" for name, kind in gymnax.registration._builtins.items()}
assert theirs == IDS, theirs
"""


def test_a_start_does_not_load_all_of_gymnax_nor_hinder_it():
    """In a process of its own; the catalogue is compared with gymnax's there, too."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
