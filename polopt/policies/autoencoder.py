"""The conditional variational autoencoder of logged actions (Fujimoto et al., arXiv:1812.02900): what may have been done in a state."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear, Torso

LOG_STD = (-4.0, 15.0)  # bounds of the log deviation of a code


class ActionAutoencoder(eqx.Module):
    """Encoder e(z | s, a) = N(mean, std^2) and decoder D(s, z) of unit actions, z of twice as many entries as an action."""

    encoder: Torso
    code: Linear
    decoder: Torso
    head: Linear
    action_space: spaces.Box = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        keys = jax.random.split(key, 4)
        entries = math.prod(action_space.shape)
        size, pictures = spaces.size(observation_space), tuple(image.shape for image in spaces.images(observation_space))
        self.encoder = Torso(spec, size + entries, pictures, keys[0])
        self.code = Linear(self.encoder.features, 4 * entries, keys[1], gain=1.0)
        self.decoder = Torso(spec, size + 2 * entries, pictures, keys[2])
        self.head = Linear(self.decoder.features, entries, keys[3], gain=1.0)
        self.action_space = action_space

    def encode(self, vector, pictures, action):
        """(mean, log std) of the code of a unit action."""
        x = self.encoder((), jnp.concatenate([vector, action.ravel()]), pictures)[1]
        mean, log_std = jnp.split(self.code(x), 2)
        return mean, jnp.clip(log_std, *LOG_STD)

    def decode(self, vector, pictures, code):
        """A unit action."""
        x = self.decoder((), jnp.concatenate([vector, code]), pictures)[1]
        return jnp.tanh(self.head(x)).reshape(self.action_space.shape)

    def rebuilt(self, vector, pictures, action, key):
        """(action that a drawn code of this one decodes to, mean and log std of the code)."""
        mean, log_std = self.encode(vector, pictures, action)
        return self.decode(vector, pictures, mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)), mean, log_std
