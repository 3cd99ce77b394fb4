"""A small causal transformer: a sequence of vectors in, one of the same shape out; every leaf is an array."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Linear


class LayerNorm(eqx.Module):
    """(x - mean) / deviation, scaled and shifted; x (size,)."""

    scale: jax.Array
    shift: jax.Array

    def __init__(self, size: int):
        self.scale, self.shift = jnp.ones((size,)), jnp.zeros((size,))

    def __call__(self, x):
        centred = x - jnp.mean(x)
        return self.scale * centred * jax.lax.rsqrt(jnp.mean(centred**2) + 1e-5) + self.shift


class Block(eqx.Module):
    """Attention and a hidden layer of four times the width, each with a norm before it and a sum around it."""

    norms: tuple[LayerNorm, LayerNorm]
    ask: Linear
    key: jax.Array
    value: Linear
    project: Linear
    widen: Linear
    narrow: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, key):
        keys = jax.random.split(key, 6)
        self.norms = (LayerNorm(width), LayerNorm(width))
        self.ask, self.value = Linear(width, width, keys[0], 1.0), Linear(width, width, keys[1], 1.0)
        # A bias of the keys would change nothing: its gradient is rounding, which Adam would blow up to whole steps.
        self.key = jax.nn.initializers.orthogonal(1.0)(keys[2], (width, width))
        self.project = Linear(width, width, keys[3], 0.2)
        self.widen, self.narrow = Linear(width, 4 * width, keys[4]), Linear(4 * width, width, keys[5], 0.2)
        self.heads = heads

    def __call__(self, x, allowed):
        """x (time, width); allowed (time, time), true where a row may look at a column."""
        time, width = x.shape
        normed = jax.vmap(self.norms[0])(x)
        parts = jax.vmap(self.ask)(normed), normed @ self.key, jax.vmap(self.value)(normed)
        query, keys, value = (y.reshape(time, self.heads, width // self.heads) for y in parts)
        scores = jnp.einsum("qhd,khd->hqk", query, keys) / math.sqrt(width // self.heads)
        weights = jax.nn.softmax(jnp.where(allowed[None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("hqk,khd->qhd", weights, value).reshape(time, width)
        x = x + jax.vmap(self.project)(mixed)
        return x + jax.vmap(lambda y: self.narrow(jax.nn.gelu(self.widen(self.norms[1](y)))))(x)


class Transformer(eqx.Module):
    """Blocks, and a norm behind them. Every place sees itself and what comes before it, except what is masked."""

    blocks: tuple[Block, ...]
    norm: LayerNorm

    def __init__(self, width: int, layers: int, heads: int, key):
        self.blocks = tuple(Block(width, heads, k) for k in jax.random.split(key, layers))
        self.norm = LayerNorm(width)

    def __call__(self, x, mask):
        """x (time, width); mask (time,), 0 where there is nothing to be seen."""
        place = jnp.arange(x.shape[0])
        before, itself = place[None, :] <= place[:, None], place[None, :] == place[:, None]
        allowed = (before & (mask > 0)[None, :]) | itself
        for block in self.blocks:
            x = block(x, allowed)
        return jax.vmap(self.norm)(x)


def waves(step, width: int):
    """(width,) sines and cosines of a step, of wavelengths from 2 pi to 20000 pi (Vaswani et al., arXiv:1706.03762); width is even."""
    rates = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angle = jnp.asarray(step, jnp.float32) * rates
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)])
