"""A model of the environment: what an action changes, what it pays, and whether the episode ends with it."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward, Linear, Torso

LOG_VARIANCE = (-10.0, 1.0)  # bounds


class Foreseen(NamedTuple):
    """Mean and log variance of the changes of the vector and, last, of the reward, (d + 1,) each; the logit of an end."""

    mean: jax.Array
    log_variance: jax.Array
    end: jax.Array


class Dynamics(eqx.Module):
    """Maps the vector of a state and an encoded action to independent Gaussians and the chance of an end."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, size: int, numbers: int, key):
        """size: of the vector; numbers: of the action."""
        k_torso, k_head = jax.random.split(key)
        self.torso = Torso(spec, size + numbers, (), k_torso)
        self.head = Linear(self.torso.features, 2 * (size + 1) + 1, k_head, gain=0.1)

    def __call__(self, vector, action) -> Foreseen:
        said = self.head(self.torso((), jnp.concatenate([vector, action]), ())[1])
        mean, log_variance = jnp.split(said[:-1], 2)
        return Foreseen(mean, jnp.clip(log_variance, *LOG_VARIANCE), said[-1])


def surprise(foreseen: Foreseen, change, end):
    """sum_dim[ (mu - y)^2 / var + log var ] of the change y (d + 1,), and the cross-entropy of the end, which is 0 or 1."""
    error = (foreseen.mean - change) ** 2 * jnp.exp(-foreseen.log_variance)
    return jnp.sum(error + foreseen.log_variance) + jax.nn.softplus(foreseen.end) - end * foreseen.end
