"""The protocol of environments: many copies at once, ends told apart, the last observation never lost."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from polopt.core.spaces import Space


class Timestep(NamedTuple):
    """What one step of `n` environments gives. Every array has a leading axis of length n.

    observation:        what to act on next; after an end it is the first observation of the next episode.
    final_observation:  the true successor of the state acted in; differs from `observation` only at an end.
    reward:             (n,), or (n, objectives) when the environment has several objectives.
    cost:               (n, costs); (n, 0) when the environment bears none.
    terminated:         (n,) bool: the episode ended in a terminal state, whose value is zero.
    truncated:          (n,) bool: the episode was cut (a time limit); its last state still has a value.
    """

    observation: Any
    final_observation: Any
    reward: jax.Array
    cost: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Environment(Protocol):
    """A batch of copies of one environment.

    name:              what `polopt.envs.make` was given.
    observation_space, action_space: see `polopt.core.spaces`.
    objectives:        0 for a scalar reward, else the length of the reward vector.
    costs:             how many costs a step bears.
    host:              False when reset and step are pure JAX functions. True when they call a simulator on the host:
                       then they cannot be vmapped over seeds, and a checkpoint is followed by a reset.
    """

    name: str
    observation_space: Space
    action_space: Space
    objectives: int
    costs: int
    host: bool

    def reset(self, key: jax.Array, num_envs: int) -> tuple[Any, Any]:
        """Start `num_envs` episodes: (state, observation)."""
        ...

    def step(self, state: Any, action: Any, key: jax.Array) -> tuple[Any, Timestep]:
        """One step of every copy; a copy whose episode ends starts the next one at once."""
        ...
