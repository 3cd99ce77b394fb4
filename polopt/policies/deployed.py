"""What deployed policies share: an actor, and the normaliser of what it sees."""

from __future__ import annotations

from typing import Any

import equinox as eqx

from polopt.core import spaces
from polopt.core.actions import from_unit
from polopt.policies.actor import Actor, Normaliser


class Deployed(eqx.Module):
    """A policy without memory but for its actor's: a subclass says how it acts, and starts a carry where it has one."""

    actor: Any
    normaliser: Normaliser

    @property
    def observation_space(self):
        return self.normaliser.space

    @property
    def action_space(self):
        return self.actor.action_space

    def initial_carry(self) -> Any:
        return ()


class ActorPolicy(Deployed):
    """A deployed actor of any action space; it remembers what its recurrent core does."""

    actor: Actor

    def initial_carry(self):
        return self.actor.torso.initial()

    def act(self, carry, observation, key=None):
        carry, distribution = self.actor(carry, *self.normaliser(observation))
        raw = distribution.mode() if key is None else distribution.sample(key)
        return carry, distribution.action(raw)


def taken(space, distribution, key):
    """(the draw as learners see it, the action of the environment) from a distribution over the actions of `space`; its mode without a key."""
    action = distribution.action(distribution.mode() if key is None else distribution.sample(key))
    return action, from_unit(space, action) if isinstance(space, spaces.Box) else action
