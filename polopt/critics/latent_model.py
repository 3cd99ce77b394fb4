"""A model of latents: what an action in one pays, and a Gaussian of the latent that follows."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward, Linear, Torso

LOG_STD = (-5.0, 2.0)  # bounds of the log deviation


class Outlook(NamedTuple):
    """The reward (), and mean and log deviation of the next latent, (latent,) each."""

    reward: jax.Array
    mean: jax.Array
    log_std: jax.Array


class LatentModel(eqx.Module):
    """Maps a latent and an encoded action to an outlook."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, latent: int, numbers: int, key):
        """latent: numbers of a latent; numbers: of the action."""
        k_torso, k_head = jax.random.split(key)
        self.torso = Torso(spec, latent + numbers, (), k_torso)
        self.head = Linear(self.torso.features, 1 + 2 * latent, k_head, gain=1.0)

    def __call__(self, z, action) -> Outlook:
        reward, both = jnp.split(self.head(self.torso((), jnp.concatenate([z, action]), ())[1]), [1])
        mean, log_std = jnp.split(both, 2)
        return Outlook(reward[0], mean, jnp.clip(log_std, *LOG_STD))
