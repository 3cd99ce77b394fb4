"""Policies that write themselves notes: the internal state is drawn like an action and read as an observation."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import from_unit, parted
from polopt.core.networks import Linear
from polopt.policies.actor import Actor, Normaliser
from polopt.policies.deployed import Deployed
from polopt.policies.distributions import Gaussian, Joint
from polopt.policies.unit import DeterministicActor, GaussianActor

LOG_STD = (-20.0, 2.0)  # a note's log standard deviation is kept in this range


class NotingActor(eqx.Module):
    """An actor that with each action also draws a note: one torso, two heads, a Gaussian note with a state-independent deviation.

    The note's head starts with a gain of 1, so that different observations leave different notes from the beginning.
    """

    actor: Actor
    note: Linear
    note_log_std: jax.Array

    def __init__(self, actor: Actor, size: int, log_std: float | jax.Array, key):
        self.actor = actor
        self.note = Linear(actor.torso.features, size, key, gain=1.0)
        self.note_log_std = jnp.full((size,), log_std)

    @property
    def torso(self):
        return self.actor.torso

    def __call__(self, carry, vector, pictures):
        """(carry, input) to (carry, the joint distribution of action and note)."""
        carry, x = self.actor.torso(carry, vector, pictures)
        endless = jnp.full(self.note_log_std.shape, jnp.inf)
        note = Gaussian(self.note(x), jnp.clip(self.note_log_std, *LOG_STD), -endless, endless)
        return carry, Joint({"action": self.actor.distribution(x), "note": note})


class NotingPolicy(eqx.Module):
    """A deployed noting actor. Its carry is what the core remembers, the note, and the previous action where the actor reads it."""

    noting: NotingActor
    inputs: Normaliser

    @property
    def observation_space(self):
        return dict(self.inputs.space.items)["observation"]

    @property
    def action_space(self):
        return self.noting.actor.action_space

    def initial_carry(self):
        return self.noting.torso.initial(), spaces.zeros(spaces.Dict(self.inputs.space.items[1:]))

    def act(self, carry, observation, key=None):
        memory, written = carry
        memory, distribution = self.noting(memory, *self.inputs({"observation": observation, **written}))
        draw = distribution.action(distribution.mode() if key is None else distribution.sample(key))
        after = {"note": draw["note"], "previous": spaces.flatten(self.action_space, draw["action"])[0]}
        return (memory, {name: after[name] for name in written}), draw["action"]


class UnitNotingPolicy(Deployed):
    """A deployed actor of action and note in one box. Its carry is the note, and the previous action where the actor reads it."""

    actor: DeterministicActor | GaussianActor

    @property
    def observation_space(self):
        return dict(self.normaliser.space.items)["observation"]

    @property
    def action_space(self):
        return self.actor.action_space.action

    def initial_carry(self):
        return spaces.zeros(spaces.Dict(self.normaliser.space.items[1:]))

    def act(self, carry, observation, key=None):
        unit = self.actor.draw(*self.normaliser({"observation": observation, **carry}), key)
        found = parted(self.actor.action_space, from_unit(self.actor.action_space, unit))
        after = {"note": found["note"], "previous": spaces.flatten(self.action_space, found["action"])[0]}
        return {name: after[name] for name in carry}, found["action"]
