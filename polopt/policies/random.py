"""The policy that every other one is measured against."""

from __future__ import annotations

import equinox as eqx
import jax

from polopt.core import spaces


class RandomPolicy(eqx.Module):
    """Uniform actions, standard normal ones where a box has no bounds; without a key always the same."""

    observation_space: spaces.Space = eqx.field(static=True)
    action_space: spaces.Space = eqx.field(static=True)

    def initial_carry(self):
        return ()

    def act(self, carry, observation, key=None):
        return carry, spaces.sample(self.action_space, jax.random.key(0) if key is None else key)
