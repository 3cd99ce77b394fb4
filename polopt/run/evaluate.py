"""Evaluation: whole episodes on environments and keys of their own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

MAX_STEPS = 50_000


@functools.partial(jax.jit, static_argnames=("episodes", "stochastic", "max_steps"))
def episode_returns(policy, env, key, *, episodes: int, stochastic: bool = False, max_steps: int = MAX_STEPS):
    """Returns and lengths, each (episodes,), of one episode in each of `episodes` copies of `env`.

    An episode that does not end within `max_steps` counts with what it has earned by then.
    """
    k_reset, k_run = jax.random.split(key)
    state, observation = env.reset(k_reset, episodes)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (episodes, *x.shape)), policy.initial_carry())
    zeros = jnp.zeros((episodes,))

    def going(loop):
        return ~jnp.all(loop[4]) & (loop[0] < max_steps)

    def act(loop):
        t, state, observation, carry, done, returns, lengths = loop
        k_act, k_env = jax.random.split(jax.random.fold_in(k_run, t))
        if stochastic:
            carry, action = jax.vmap(policy.act)(carry, observation, jax.random.split(k_act, episodes))
        else:
            carry, action = jax.vmap(policy.act)(carry, observation)
        state, after = env.step(state, action, k_env)
        returns = returns + jnp.where(done, 0.0, after.reward)
        lengths = lengths + jnp.where(done, 0.0, 1.0)
        return t + 1, state, after.observation, carry, done | after.terminated | after.truncated, returns, lengths

    start = (jnp.zeros((), jnp.int32), state, observation, carry, jnp.zeros((episodes,), bool), zeros, zeros)
    *_, returns, lengths = jax.lax.while_loop(going, act, start)
    return returns, lengths
