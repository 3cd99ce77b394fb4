"""Actions as learners see them: those of a box with each entry in [-1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def encoded_space(space: spaces.Space) -> spaces.Box:
    """The box of what `encoded` gives."""
    return space if isinstance(space, spaces.Box) else spaces.Box(0.0, 1.0, (spaces.size(space),))


def encoded(space: spaces.Space, action):
    """An action as a network takes it: a box's unit action as it is, whole numbers as one-hot."""
    return action if isinstance(space, spaces.Box) else spaces.flatten(space, action)[0]


@dataclass(frozen=True)
class NotedBox(spaces.Box):
    """A flat box of an action and of a note behind it; `action` is the box of the action alone."""

    action: spaces.Box | None = None


def parted(space: NotedBox, both) -> dict:
    """The action, in the shape of its own space, and the note."""
    at = math.prod(space.action.shape)
    return {"action": both[:at].reshape(space.action.shape).astype(space.action.dtype), "note": both[at:]}


def as_vector(space: spaces.Space, action):
    """`encoded` as one vector of floats."""
    return jnp.ravel(encoded(space, action)).astype(jnp.float32)


def vector_size(space: spaces.Space) -> int:
    """How many numbers `as_vector` gives."""
    return math.prod(encoded_space(space).shape)
