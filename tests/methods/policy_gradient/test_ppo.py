"""PPO's oracles that concern its file; those of the surrogate itself are in tests/objectives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import Update
from polopt.methods import registry
from polopt.methods.policy_gradient.ppo import Clip, KLPenalty, adapted_penalty
from polopt.policies.distributions import Categorical


@pytest.mark.parametrize("kl, expected", [(0.001, 0.5), (0.02, 2.0), (0.01, 1.0)])
def test_the_penalty_adapts(kl, expected):
    """Oracle 5: d_targ = .01, beta = 1."""
    assert float(adapted_penalty(1.0, jnp.float32(kl), 0.01)) == expected
    part = KLPenalty(kl_target=0.01)
    assert float(part.adapt(part.init(), jnp.float32(kl), 0.0)) == expected


def update(ratio: float, advantage: float) -> Update:
    logits = jnp.zeros((1, 2))
    new = jnp.log(jnp.array([[ratio * 0.5, 1 - ratio * 0.5]]))
    return Update(jnp.log(jnp.array([ratio * 0.5])), jnp.log(jnp.array([0.5])), jnp.array([advantage]), Categorical(new), Categorical(logits))


@pytest.mark.parametrize("ratio, advantage, value", [(1.5, 1, 1.2), (1.5, -1, -1.5), (0.5, 1, 0.5), (0.5, -1, -0.8), (1.1, 1, 1.1)])
def test_the_clipped_surrogate(ratio, advantage, value):
    """Oracle 1, as a loss: the sign is turned."""
    loss, metrics = Clip(0.2).loss((), update(ratio, advantage))
    np.testing.assert_allclose(loss, [-value], rtol=1e-5)
    assert float(metrics["clip_fraction"]) == (abs(ratio - 1) > 0.2)


def test_the_penalised_surrogate_adds_beta_times_the_exact_kl():
    u = update(1.5, 1.0)
    loss, _ = KLPenalty().loss(jnp.float32(3.0), u)
    kl = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)  # KL(old || new)
    np.testing.assert_allclose(loss, [-1.5 + 3.0 * kl], rtol=1e-5)


def test_one_pass_of_one_minibatch_is_a2c_with_the_same_parts():
    """Oracle 3: with K = 1 and one minibatch the ratio is 1 and PPO takes A2C's step."""
    task = ControlTask(make("probe:credit"), 1000)
    same = {"num_envs": 4, "num_steps": 8, "epochs": 1, "minibatches": 1, "lam": 0.9, "standardise": "none", "normalise_rewards": False}
    same |= {"network.hidden": (8,), "critic_network.hidden": (8,), "learning_rate": 1e-3}
    ends = []
    for name in ("ppo", "a2c"):
        method = parts.replace(registry.load(name)(task), same)
        ends.append(jax.jit(lambda key, m=method: m.step(task, m.init(task, key))[0].learner)(jax.random.key(0)))
    for x, y in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_an_endless_clip_is_the_unclipped_surrogate():
    u = update(1.9, 1.0)
    np.testing.assert_allclose(Clip(1e6).loss((), u)[0], [-1.9], rtol=1e-5)


def test_the_target_kl_stops_the_steps_of_an_iteration():
    task = ControlTask(make("probe:action"), 1000)
    small = {"num_envs": 4, "num_steps": 8, "network.hidden": (8,), "critic_network.hidden": (8,), "learning_rate": 0.05, "epochs": 8}

    def after(target):
        method = parts.replace(registry.load("ppo")(task), {**small, "target_kl": target})
        state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
        return state, jax.jit(lambda s: method.step(task, s)[0])(state)

    start, stopped = after(1e-9)
    _, free = after(1e9)


    def moved(state):
        return sum(float(jnp.abs(a - b).sum()) for a, b in zip(jax.tree.leaves(start.learner), jax.tree.leaves(state.learner), strict=True))

    assert 0 < moved(stopped) < 0.5 * moved(free)
