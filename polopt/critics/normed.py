"""The state-value critic with layer normalisation."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import ACTIVATIONS, Feedforward, ImageEncoder, Linear


class NormedValue(eqx.Module):
    """V(s) whose hidden layers are normalised before the activation (Ba et al., arXiv:1607.06450).

    Maps (carry, vector, images) to (carry, value), value of shape ().
    """

    encoders: tuple[ImageEncoder, ...]
    layers: tuple[Linear, ...]
    norms: tuple[eqx.nn.LayerNorm, ...]
    head: Linear
    activation: str = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, key):
        k_images, k_layers, k_head = jax.random.split(key, 3)
        shapes = [image.shape for image in spaces.images(observation_space)]
        self.encoders = tuple(ImageEncoder(shape, jax.random.fold_in(k_images, i)) for i, shape in enumerate(shapes))
        inputs = spaces.size(observation_space) + sum(encoder.features for encoder in self.encoders)
        widths = [inputs, *spec.hidden]
        self.layers = tuple(Linear(a, b, jax.random.fold_in(k_layers, i)) for i, (a, b) in enumerate(zip(widths, widths[1:])))
        self.norms = tuple(eqx.nn.LayerNorm(width) for width in spec.hidden)
        self.head = Linear(widths[-1], 1, k_head, gain=1.0)
        self.activation = spec.activation

    def features(self, vector, pictures):
        """What the last hidden layer gives."""
        x = jnp.concatenate([vector, *(encode(image) for encode, image in zip(self.encoders, pictures))])
        for layer, norm in zip(self.layers, self.norms):
            x = ACTIVATIONS[self.activation](norm(layer(x)))
        return x

    def __call__(self, carry, vector, pictures):
        return carry, self.head(self.features(vector, pictures))[0]
