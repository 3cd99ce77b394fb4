"""The state-value critic."""

from __future__ import annotations

import equinox as eqx

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear, Torso


class ValueNetwork(eqx.Module):
    """V(s): maps (carry, vector, images) to (carry, value), value of shape ()."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, observation_space, key):
        import jax

        k_torso, k_head = jax.random.split(key)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        self.head = Linear(self.torso.features, 1, k_head, gain=1.0)

    def __call__(self, carry, vector, pictures):
        carry, x = self.torso(carry, vector, pictures)
        return carry, self.head(x)[0]
