"""An environment whose episodes are cut, with anything at all behind the cut."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from polopt.core.spaces import Box, Discrete
from polopt.envs.protocol import Timestep


@jax.tree_util.register_static
@dataclass(frozen=True)
class Cut:
    """Copies whose one episode ends after `length` steps; from then on they show, pay and bill `behind`, until they are reset.

    A step pays and bills an eighth of its action; the last one `last` times that, and it is shown with `last` beside the number of the step.
    """

    length: int = 3
    last: float = 1.0
    behind: float = 0.0
    terminates: bool = False

    name = "cut"
    observation_space = Box(-1.0, 1.0, (2,))
    action_space = Discrete(2)
    objectives = 0
    costs = 1
    host = False

    def reset(self, key, num_envs: int):
        t = jnp.zeros((num_envs,), jnp.int32)
        return t, self._show(t)

    def step(self, t, action, key):
        paid = jnp.where(t < self.length, action * self._factor(t) / 8, self.behind)
        end = t + 1 == self.length
        seen = self._show(t + 1)
        return t + 1, Timestep(seen, seen, paid, paid[:, None], end & self.terminates, end & jnp.logical_not(self.terminates))

    def _factor(self, t):
        return jnp.where(t + 1 == self.length, self.last, 1.0)

    def _show(self, t):
        shown = jnp.stack([t / 8, self._factor(t)], axis=1)
        return jnp.where((t < self.length)[:, None], shown, self.behind).astype(jnp.float32)
