"""Box actions as learners see them: each entry in [-1, 1]."""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core import spaces


def to_unit(space: spaces.Box, action):
    """From the bounds of the box to [-1, 1]."""
    low, high = space.bounds()
    return 2 * (jnp.asarray(action, jnp.float32) - low) / (high - low) - 1


def from_unit(space: spaces.Box, unit):
    """From [-1, 1] to the bounds of the box; what lies outside is brought to the bound."""
    low, high = space.bounds()
    return (low + (high - low) * (jnp.clip(unit, -1, 1) + 1) / 2).astype(space.dtype)
