"""Hidden layers whose last features have length 1."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import ImageEncoder, Linear
from polopt.core.parts import hyper, part

SLOPE = 0.01  # of the rectifiers below 0


@part
class UnitFeatures:
    """The shape of hidden layers with leaky rectifiers."""

    hidden: tuple[int, ...] = hyper((256, 256), at_least=1)  # width of each hidden layer
    unit: bool = True  # bring the last features to length 1


def unit_length(x):
    """x / |x|; 0, which has no direction, stays 0, and its gradient is that of x."""
    square = jnp.sum(x**2)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1.0))


class UnitTorso(eqx.Module):
    """Encoder and hidden layers, orthogonal with a gain of 1; maps (carry, vector, images) to (carry, features) as `networks.Torso` does."""

    encoders: tuple[ImageEncoder, ...]
    layers: tuple[Linear, ...]
    unit: bool = eqx.field(static=True)
    features: int = eqx.field(static=True)

    def __init__(self, spec: UnitFeatures, inputs: int, images: tuple[tuple[int, int, int], ...], key):
        k_images, k_layers = jax.random.split(key)
        self.encoders = tuple(ImageEncoder(shape, jax.random.fold_in(k_images, i)) for i, shape in enumerate(images))
        widths = [inputs + sum(encoder.features for encoder in self.encoders), *spec.hidden]
        keys = jax.random.split(k_layers, len(spec.hidden))
        self.layers = tuple(Linear(before, after, k, gain=1.0) for before, after, k in zip(widths, widths[1:], keys))
        self.unit, self.features = spec.unit, widths[-1]

    def __call__(self, carry, vector, images):
        x = jnp.concatenate([vector, *(encode(image) for encode, image in zip(self.encoders, images))])
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), SLOPE)
        return carry, unit_length(x) if self.unit else x
