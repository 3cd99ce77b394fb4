"""Histories of observations and actions: as tokens, as one vector, and as what a policy remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import as_vector, vector_size
from polopt.core.networks import GRU, Feedforward, Linear, Torso
from polopt.policies.deployed import Deployed


def tokens(vectors, actions, mask):
    """(T, d + k): each observation with the action before it, none at the first one that is not masked; vectors (T, d), actions (T, k), mask (T,)."""
    before = jnp.concatenate([jnp.zeros_like(actions[:1]), (actions * mask[:, None])[:-1]])
    return jnp.concatenate([vectors, before], axis=1)


class HistoryEncoder(eqx.Module):
    """z_t = phi(o_1, a_1, ..., o_t): a recurrent unit over tokens and a linear map of what it remembers."""

    unit: GRU
    head: Linear

    def __init__(self, inputs: int, remembered: int, latent: int, key):
        k_unit, k_head = jax.random.split(key)
        self.unit, self.head = GRU(inputs, remembered, k_unit), Linear(remembered, latent, k_head, gain=1.0)

    def __call__(self, tokens, mask):
        """(T, latent) from tokens (T, d + k) and mask (T,), 0 before the history begins."""

        def read(carry, now):
            token, inside = now
            carry = jnp.where(inside > 0, self.unit(carry, token)[0], carry)
            return carry, carry

        return jax.vmap(self.head)(jax.lax.scan(read, self.unit.initial(), (tokens, mask))[1])


class HistoryValues(eqx.Module):
    """Q(phi(h), .): one number for each of n actions."""

    encoder: HistoryEncoder
    torso: Torso
    head: Linear
    action_space: spaces.Discrete = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, remembered: int, latent: int, key):
        k_encoder, k_torso, k_head = jax.random.split(key, 3)
        self.encoder = HistoryEncoder(spaces.size(observation_space) + action_space.n, remembered, latent, k_encoder)
        self.torso = Torso(spec, latent, (), k_torso)
        self.head, self.action_space = Linear(self.torso.features, action_space.n, k_head, gain=1.0), action_space

    def __call__(self, z):
        """From a latent (latent,)."""
        return self.head(self.torso((), z, ())[1])


class History(NamedTuple):
    """The last K steps: vectors (K, d), encoded actions (K, k), and which steps of the episode they are (K,), below 0 before it."""

    vectors: jax.Array
    actions: jax.Array
    step: jax.Array

    @property
    def mask(self):
        return (self.step >= 0).astype(jnp.float32)


class HistoryPolicy(Deployed):
    """A deployed actor that remembers its last K steps. The carry is zero at the start of an episode."""

    context: int = eqx.field(static=True)

    def initial_carry(self) -> dict[str, Any]:
        d, k = spaces.size(self.observation_space), vector_size(self.action_space)
        return {"vectors": jnp.zeros((self.context, d)), "actions": jnp.zeros((self.context, k)), "step": jnp.zeros((), jnp.int32)}

    def history(self, carry, observation) -> History:
        """The history with what is seen now, whose action is still nothing."""
        pushed = lambda rows, new: jnp.concatenate([rows[1:], new[None]])  # noqa: E731
        actions = pushed(carry["actions"], jnp.zeros_like(carry["actions"][0]))
        return History(pushed(carry["vectors"], self.normaliser(observation)[0]), actions, carry["step"] + jnp.arange(1 - self.context, 1))

    def after(self, history: History, action) -> dict[str, Any]:
        """The carry, once an action as learners see it is taken."""
        actions = history.actions.at[-1].set(as_vector(self.action_space, action))
        return {"vectors": history.vectors, "actions": actions, "step": history.step[-1] + 1}


class HistoryValuePolicy(HistoryPolicy):
    """The action of the highest value."""

    actor: HistoryValues

    def act(self, carry, observation, key=None):
        history = self.history(carry, observation)
        z = self.actor.encoder(tokens(history.vectors, history.actions, history.mask), history.mask)[-1]
        action = jnp.argmax(self.actor(z)).astype(jnp.int32)
        return self.after(history, action), action
