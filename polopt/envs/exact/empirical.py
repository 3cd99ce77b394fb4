"""What a log says of a process with finitely many states: how often each pair was tried, by whom, and the process that it estimates."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from polopt.envs.exact.tabular import TabularMDP, alive


def uniform_log(mdp: TabularMDP, key, n: int) -> Array:
    """(S, A, S): how often each transition is among `n` from uniformly random states that can be acted in, and uniform actions."""
    k_state, k_action, k_next = jax.random.split(key, 3)
    state = jax.random.categorical(k_state, jnp.log(alive(mdp)), shape=(n,))
    action = jax.random.randint(k_action, (n,), 0, mdp.actions)
    following = jax.random.categorical(k_next, jnp.log(mdp.transition[state, action]))
    return jnp.zeros(mdp.transition.shape).at[state, action, following].add(1.0)


def behaviour(counts: Array) -> Array:
    """(S, A): the shares of the actions in each state; uniform where none was tried."""
    tried = counts.sum(-1)
    total = tried.sum(-1, keepdims=True)
    return jnp.where(total > 0, tried / jnp.maximum(total, 1), 1 / counts.shape[1])


def empirical(mdp: TabularMDP, counts: Array) -> TabularMDP:
    """The process with the transitions of the log; a pair that was never tried stays where it is, unrewarded."""
    tried = counts.sum(-1, keepdims=True)
    stays = jnp.broadcast_to(jnp.eye(mdp.states)[:, None, :], counts.shape)
    reward = jnp.where(tried[..., 0] > 0, mdp.reward, 0.0)
    return dataclasses.replace(mdp, transition=jnp.where(tried > 0, counts / jnp.maximum(tried, 1), stays), reward=reward)
