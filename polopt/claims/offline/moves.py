"""What the claims on logs of random moves share: the transitions of a grid split by a wall, as a data set."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.data.dataset import Dataset
from polopt.envs.exact.tabular import TabularMDP, alive


def random_moves(mdp: TabularMDP, seen, key, n: int) -> Dataset:
    """`n` transitions from uniformly random states that can be acted in, and uniform actions; each is an episode of its own.

    seen: (S, d) what is seen of each state, from -1 to 1.
    """
    k_state, k_action, k_next = jax.random.split(key, 3)
    state = jax.random.categorical(k_state, jnp.log(alive(mdp)), shape=(n,))
    action = jax.random.randint(k_action, (n,), 0, mdp.actions)
    following = jax.random.categorical(k_next, jnp.log(mdp.transition[state, action]))
    ends, space = mdp.terminal[following], spaces.Box(-1.0, 1.0, seen.shape[1:])
    return Dataset(seen[state], action, mdp.reward[state, action], seen[following], ends, ~ends, space, spaces.Discrete(mdp.actions))
