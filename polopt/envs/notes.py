"""An environment whose agent also writes itself a note with each action, and reads it at the next step.

Notes are part of the state and of the action of a larger process, in which a policy that remembers by its notes is an ordinary policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.actions import NotedBox, parted
from polopt.core.spaces import Box, Dict, Space
from polopt.envs.protocol import Environment, Timestep


@dataclass(frozen=True)
class WithNotes:
    """`env` with observations {observation, note, previous} and actions {action, note}.

    A note is a vector of `size` numbers, 0 at the start of an episode. `previous` is the last action as `spaces.flatten` has it, 0 at the start
    too; it is there if `previous_action` says so. The final observation of an episode holds the note written with the last action.
    """

    env: Environment
    size: int
    previous_action: bool

    @property
    def name(self) -> str:
        return self.env.name

    @property
    def host(self) -> bool:
        return self.env.host

    @property
    def objectives(self) -> int:
        return self.env.objectives

    @property
    def costs(self) -> int:
        return self.env.costs

    @property
    def observation_space(self) -> Space:
        written = [("note", self.size)] + [("previous", spaces.size(self.env.action_space))] * self.previous_action
        return Dict((("observation", self.env.observation_space), *((name, Box(-math.inf, math.inf, (size,))) for name, size in written)))

    @property
    def action_space(self) -> Space:
        return Dict((("action", self.env.action_space), ("note", Box(-math.inf, math.inf, (self.size,)))))

    def reset(self, key, num_envs: int):
        state, observation = self.env.reset(key, num_envs)
        blank = spaces.zeros(Dict(self.observation_space.items[1:]))
        return state, {"observation": observation, **jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *x.shape)), blank)}

    def step(self, state, action, key) -> tuple[object, Timestep]:
        state, after = self.env.step(state, action["action"], key)
        written = self.written(action)
        ended = after.terminated | after.truncated
        kept = jax.tree.map(lambda x: jnp.where(ended[:, None], 0.0, x), written)
        seen = {"observation": {"observation": after.observation, **kept}, "final_observation": {"observation": after.final_observation, **written}}
        return state, after._replace(**seen)

    def written(self, action) -> dict:
        """What a batch of actions leaves for the next observations."""
        previous = {"previous": jax.vmap(lambda a: spaces.flatten(self.env.action_space, a)[0])(action["action"])} if self.previous_action else {}
        return {"note": action["note"], **previous}


class WithUnitNotes(WithNotes):
    """The same where actions are a bounded box: action and note are one flat box, the note behind, its numbers from -1 to 1."""

    @property
    def action_space(self) -> NotedBox:
        low, high = (np.concatenate([np.ravel(bound), np.full(self.size, end)]) for bound, end in zip(self.env.action_space.bounds(), (-1.0, 1.0)))
        box = Box.of(low, high, low.shape)
        return NotedBox(box.low, box.high, box.shape, box.dtype, self.env.action_space)

    def step(self, state, action, key) -> tuple[object, Timestep]:
        return super().step(state, jax.vmap(lambda both: parted(self.action_space, both))(action), key)
