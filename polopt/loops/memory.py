"""What a policy keeps from one step to the next as data, beside what a recurrent core carries."""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.envs.notes import WithNotes
from polopt.policies.actor import Actor, Policy
from polopt.policies.deployed import ActorPolicy
from polopt.policies.noting import NotingActor, NotingPolicy


class Memory(Protocol):
    """What the loop asks of a memory."""

    refresh: Any  # None where stored data stay as they are

    def environment(self, env):
        """The environment as the learner acts in it."""
        ...

    def actor(self, actor: Actor, key) -> Any:
        """The actor that uses the memory, from one that was made for the environment's observations and the task's actions."""
        ...

    def policy(self, actor, normaliser) -> Policy: ...

    def acting(self, distribution) -> Any:
        """The part of an action distribution that acts in the task: that of the loop's entropy bonus."""
        ...

    def regularised(self, loss, distribution) -> tuple[jax.Array, dict]:
        """The policy's loss with what the rest of a batch of distributions earns, and diagnostics."""
        ...

    def refreshed(self, loop, actor, batch, key) -> Any:
        """The batch after a pass over it."""
        ...


@part
class NoMemory:
    """None: an action follows from the observation, and from the core's carry where there is a core."""

    @property
    def refresh(self):
        return None

    def environment(self, env):
        return env

    def actor(self, actor, key):
        return actor

    def policy(self, actor, normaliser):
        return ActorPolicy(actor, normaliser)

    def acting(self, distribution):
        return distribution

    def regularised(self, loss, distribution):
        return loss, {}

    def refreshed(self, loop, actor, batch, key):
        return batch


@part
class Notes:
    """A note drawn with each action and read at the next step. Of size 0 it is no memory at all."""

    size: int = hyper(16, at_least=0)  # numbers in a note
    log_std: float = math.log(0.1)  # initial log standard deviation of notes
    entropy_coefficient: float = hyper(0.0, at_least=0)  # weight of the entropy bonus of notes
    previous_action: bool = True  # the policy and the critic see the previous action too
    refresh: float | None = hyper(None, above=0, at_most=1)  # tau_z: after each pass stored notes move this far towards fresh ones; none for never

    def environment(self, env):
        return WithNotes(env, self.size, self.previous_action) if self.size else env

    def actor(self, actor, key):
        return NotingActor(actor, self.size, self.log_std, jax.random.fold_in(key, 1)) if self.size else actor

    def policy(self, actor, normaliser):
        return NotingPolicy(actor, normaliser) if self.size else ActorPolicy(actor, normaliser)

    def acting(self, distribution):
        return distribution.parts["action"] if self.size else distribution

    def regularised(self, loss, distribution):
        if not self.size:
            return loss, {}
        entropy = jnp.mean(jax.vmap(lambda d: d.entropy())(distribution.parts["note"]))
        return loss - self.entropy_coefficient * entropy, {"entropy/note": entropy}

    def refreshed(self, loop, actor, batch, key):
        """z_t <- (1 - tau) z_t + tau z, with z drawn by the present policy at t - 1; the first of an episode and of the batch stay."""
        if not self.size:
            return batch
        distribution = loop.forward(actor, 0, batch)
        drawn = jax.vmap(lambda d, k: d.sample(k))(distribution.parts["note"], jax.random.split(key, distribution.parts["note"].mean.shape[0]))
        vector, pictures = batch.inputs
        at = vector.shape[-1] - self.size - self.previous_action * spaces.size(actor.actor.action_space)
        notes = vector[..., at : at + self.size]
        read, begin = loop.time_major((notes, batch.start))
        fresh = jnp.concatenate([read[:1], drawn.reshape(read.shape)[:-1]])
        moved = jnp.where(begin[..., None], read, (1 - self.refresh) * read + self.refresh * fresh)
        return batch._replace(inputs=(vector.at[..., at : at + self.size].set(loop.batch_major(moved)), pictures))
