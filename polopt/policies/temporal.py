"""A U-Net over time: sequences of vectors in, sequences of the same shape out, seen coarsely and finely; every leaf is an array."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.attention import LayerNorm, waves
from polopt.core.networks import Linear

CLOCK = 16  # numbers that tell the noise
SPEED = 4.0  # of the waves that make them


class Convolution(eqx.Module):
    """A linear map of each row and its two neighbours, zeros behind both ends; x (rows, inputs) to (rows, outputs).

    One product of matrices: several networks side by side, as seeds are, would make a grouped convolution, which CPUs are slow at.
    """

    linear: Linear

    def __init__(self, inputs: int, outputs: int, key):
        self.linear = Linear(3 * inputs, outputs, key)

    def __call__(self, x):
        padded = jnp.pad(x, ((1, 1), (0, 0)))
        return jax.vmap(self.linear)(jnp.concatenate([padded[:-2], x, padded[2:]], axis=1))


class Level(eqx.Module):
    """Two convolutions, each with a norm and a ReLU behind it; what is told of the noise is added after the first."""

    convolutions: tuple[Convolution, Convolution]
    told: Linear
    norms: tuple[LayerNorm, LayerNorm]

    def __init__(self, inputs: int, width: int, told: int, key):
        keys = jax.random.split(key, 3)
        self.convolutions = (Convolution(inputs, width, keys[0]), Convolution(width, width, keys[1]))
        self.told = Linear(told, width, keys[2])
        self.norms = (LayerNorm(width), LayerNorm(width))

    def __call__(self, x, told):
        x = jax.nn.relu(jax.vmap(self.norms[0])(self.convolutions[0](x) + self.told(told)[None]))
        return jax.nn.relu(jax.vmap(self.norms[1])(self.convolutions[1](x)))


class TemporalUNet(eqx.Module):
    """F(x, c): maps (rows, size) and a number that tells the noise to (rows, size).

    Each of `blocks` levels has half the rows of the one before and twice the features; on the way back it is joined with what it was on the way
    down. There are to be at least 2^(blocks - 1) rows.
    """

    clock: tuple[Linear, Linear]
    down: tuple[Level, ...]
    up: tuple[Level, ...]
    head: Linear

    def __init__(self, size: int, features: int, blocks: int, key):
        keys = iter(jax.random.split(key, 2 * blocks + 2))
        widths = [features * 2**i for i in range(blocks)]
        self.clock = (Linear(CLOCK, features, next(keys)), Linear(features, features, next(keys)))
        self.down = tuple(Level(inputs, width, features, next(keys)) for inputs, width in zip([size, *widths], widths))
        self.up = tuple(Level(2 * inputs + inputs, inputs, features, next(keys)) for inputs in reversed(widths[:-1]))
        self.head = Linear(features, size, next(keys), gain=0.01)

    def __call__(self, x, noise):
        told = jax.nn.swish(self.clock[1](jax.nn.swish(self.clock[0](waves(SPEED * noise, CLOCK)))))
        seen = []
        for level in self.down:
            x = level(x if not seen else halved(seen[-1]), told)
            seen.append(x)
        for level, fine in zip(self.up, reversed(seen[:-1])):
            row = jnp.arange(fine.shape[0]) * x.shape[0] // fine.shape[0]
            x = level(jnp.concatenate([x[row], fine], axis=1), told)
        return jax.vmap(self.head)(x)


def halved(x):
    """(rows // 2, size) the larger of two rows each."""
    rows = x.shape[0] // 2
    return jnp.max(x[: 2 * rows].reshape(rows, 2, -1), axis=1)
