"""Low-rank adaptation.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen (2021), arXiv:2106.09685.

    y = x W + (x A) B alpha / rank,     A ~ N(0, 1 / inputs), B = 0

W is held and A, B learn, so the policy begins as what it was. `merged` gives the plain policy of W + A B alpha / rank.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from polopt.policies.language.transformer import PROJECTIONS, LowRank, Projection, Transformer


def with_lora(policy: Transformer, rank: int, alpha: float, key: Array, targets: tuple[str, ...] = PROJECTIONS) -> Transformer:
    """The policy with low-rank factors on the named projections of every layer; only the factors are `trainable`."""
    unknown = [name for name in targets if name not in PROJECTIONS]
    if unknown or not targets:
        raise ValueError(f"The LoRA targets are {', '.join(targets) or 'none'}, but they must be some of {', '.join(PROJECTIONS)}.")
    if rank < 1:
        raise ValueError(f"The LoRA rank is {rank}, but it must be at least 1.")
    if any(isinstance(getattr(policy.layers, name), LowRank) for name in PROJECTIONS):
        raise ValueError("The policy has LoRA factors already; merge them first.")
    for name, k in zip(targets, jax.random.split(key, len(targets))):
        base = getattr(policy.layers, name)
        layers, inputs, outputs = base.weight.shape
        down = (jax.random.normal(k, (layers, inputs, rank)) * inputs**-0.5).astype(base.weight.dtype)
        adapted = LowRank(base, down, jnp.zeros((layers, rank, outputs), base.weight.dtype), alpha / rank)
        policy = _replace(policy, name, adapted)
    return policy


def merged(policy: Transformer) -> Transformer:
    """The same policy with the factors multiplied into the weights; one without factors as it is."""
    for name in PROJECTIONS:
        part = getattr(policy.layers, name)
        if isinstance(part, LowRank):
            change = jnp.einsum("lir,lro->lio", part.down, part.up) * part.scale
            policy = _replace(policy, name, Projection(part.base.weight + change, part.base.bias))
    return policy


def _replace(policy, name, projection):
    return dataclasses.replace(policy, layers=dataclasses.replace(policy.layers, **{name: projection}))
