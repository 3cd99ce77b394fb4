"""Selective state spaces: a linear recurrence whose rates, inputs and outputs depend on what is read (Gu and Dao, arXiv:2312.00752).

    x_k = exp(Delta_k A) x_{k-1} + Delta_k B_k u_k,    y_k = C_k x_k + D u_k,    each channel of u by itself, with A < 0 and x of `size` numbers

Delta -> 0 keeps x as it is; a large Delta forgets it.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.attention import LayerNorm
from polopt.core.networks import Linear

SLOWEST, FASTEST = 1e-3, 0.1  # Delta of the first and of the last channel, before anything is learnt


def selective_scan(u, delta, a, b, c):
    """C_k x_k (time, channels) for u and delta (time, channels), a (channels, size), b and c (time, size).

    One step after another: measured on a CPU with its gradient, on 64 windows of 60 tokens and 128 channels, an associative scan takes 5 times as
    long.
    """

    def step(x, now):
        u, delta, b, c = now
        x = jnp.exp(delta[:, None] * a) * x + (delta * u)[:, None] * b[None]
        return x, x @ c

    return jax.lax.scan(step, jnp.zeros_like(a), (u, delta, b, c))[1]


def causal_convolution(x, weight, group: int):
    """sum_j weight_j x_{k-j} by channel, over what lies in the same group of `group` places; x (time, channels), weight (kernel, channels)."""
    place = jnp.arange(x.shape[0]) % group
    # A product, for ONNX has no choice between a batch and nothing by a condition that is the same in all of it.
    return sum(w[None] * (place >= j)[:, None].astype(x.dtype) * jnp.roll(x, j, axis=0) for j, w in enumerate(weight))


class SelectiveBranch(eqx.Module):
    """SSM(SiLU(conv(x))): the convolution inside groups of places, or over all of them; the recurrence over all."""

    weight: jax.Array
    bias: jax.Array
    rate: Linear
    write: jax.Array
    read: jax.Array
    log_a: jax.Array
    skip: jax.Array
    group: int | None = eqx.field(static=True)

    def __init__(self, width: int, size: int, kernel: int, group: int | None, key):
        k_weight, k_rate, k_write, k_read = jax.random.split(key, 4)
        self.weight = jax.random.uniform(k_weight, (kernel, width), minval=-1.0) / math.sqrt(kernel)
        self.bias = jnp.zeros((width,))
        first = jnp.exp(jnp.linspace(math.log(SLOWEST), math.log(FASTEST), width))
        self.rate = eqx.tree_at(lambda rate: rate.bias, Linear(width, width, k_rate, 0.1), first + jnp.log(-jnp.expm1(-first)))
        orthogonal = jax.nn.initializers.orthogonal(1.0)
        self.write, self.read = orthogonal(k_write, (width, size)), orthogonal(k_read, (width, size))
        self.log_a = jnp.broadcast_to(jnp.log(jnp.arange(1.0, size + 1)), (width, size))
        self.skip, self.group = jnp.ones((width,)), group

    def __call__(self, x, mask):
        u = jax.nn.silu(causal_convolution(x, self.weight, self.group or x.shape[0]) + self.bias[None])
        delta = jax.nn.softplus(jax.vmap(self.rate)(u)) * mask[:, None]  # what is masked is neither written nor ages the memory
        return selective_scan(u, delta, -jnp.exp(self.log_a), u @ self.write, u @ self.read) + self.skip[None] * u


class SelectiveBlock(eqx.Module):
    """Branches side by side, each with a gate, a norm over their sum, and a sum around it all."""

    before: LayerNorm
    after: LayerNorm
    branches: tuple[SelectiveBranch, ...]
    gates: tuple[Linear, ...]
    project: Linear

    def __init__(self, width: int, size: int, plan: tuple[tuple[int, int | None], ...], key):
        keys = jax.random.split(key, 2 * len(plan) + 1)
        self.before, self.after = LayerNorm(width), LayerNorm(width)
        self.branches = tuple(SelectiveBranch(width, size, *shape, k) for shape, k in zip(plan, keys))
        self.gates = tuple(Linear(width, width, k, 1.0) for k in keys[len(plan) : -1])
        self.project = Linear(width, width, keys[-1], 0.2)

    def __call__(self, x, mask):
        normed = jax.vmap(self.before)(x) * mask[:, None]
        gated = [branch(normed, mask) * jax.nn.silu(jax.vmap(gate)(x)) for branch, gate in zip(self.branches, self.gates)]
        return x + jax.vmap(lambda y: self.project(self.after(y)))(sum(gated))


class StateSpace(eqx.Module):
    """Blocks, and a norm behind them; a stand-in for a causal transformer. Every place sees itself and what comes before it, except what is masked.

    plan: of each branch the convolution's kernel, and inside groups of how many places it stays (None for all).
    """

    blocks: tuple[SelectiveBlock, ...]
    norm: LayerNorm

    def __init__(self, width: int, layers: int, size: int, plan: tuple[tuple[int, int | None], ...], key):
        self.blocks = tuple(SelectiveBlock(width, size, plan, k) for k in jax.random.split(key, layers))
        self.norm = LayerNorm(width)

    def __call__(self, x, mask):
        """x (time, width); mask (time,), 0 where there is nothing to be seen."""
        for block in self.blocks:
            x = block(x, mask)
        return jax.vmap(self.norm)(x)
