"""Policies that are tables over whole histories of observations and actions, each one whole number."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.policies.distributions import Categorical


class Sizes(NamedTuple):
    """How many different observations and actions there are."""

    observations: int
    actions: int

    def histories(self, t: int) -> int:
        """How many histories there are before decision t, from 0."""
        return (self.observations * self.actions) ** t


def longer(history, observation, action, sizes: Sizes):
    """The number of a history that goes on by an observation and an action."""
    return (history * sizes.observations + observation) * sizes.actions + action


class HistoryPolicy(eqx.Module):
    """A deployed table of histories. At the proxy, and after the last decision, no action is better than another."""

    tables: tuple[jax.Array, ...]
    observation_space: spaces.Discrete = eqx.field(static=True)
    action_space: spaces.Discrete = eqx.field(static=True)

    def initial_carry(self) -> dict[str, Any]:
        return {"step": jnp.zeros((), jnp.int32), "history": jnp.zeros((), jnp.int32)}

    def act(self, carry, observation, key=None):
        t, sizes = carry["step"] - 1, Sizes(self.observation_space.n, self.action_space.n)
        known = jnp.stack([table[jnp.clip(carry["history"], 0, table.shape[0] - 1), observation] for table in self.tables])
        decides = (t >= 0) & (t < len(self.tables))
        found = Categorical(jnp.where(decides, known[jnp.clip(t, 0, len(self.tables) - 1)], 0.0))
        action = found.mode() if key is None else found.sample(key)
        history = jnp.where(decides, longer(carry["history"], observation, action, sizes), 0)
        return {"step": carry["step"] + 1, "history": history.astype(jnp.int32)}, action
