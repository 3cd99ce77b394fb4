"""Action-value critics: Q(s, a) of box actions, Q(s, .) of whole-number actions, and ensembles of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear, Torso


class ActionValue(eqx.Module):
    """Q(s, a): maps (vector, images, action) to a number; the action of a box enters with the observation."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        k_torso, k_head = jax.random.split(key)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space) + math.prod(action_space.shape), pictures, k_torso)
        self.head = Linear(self.torso.features, 1, k_head, gain=1.0)

    def __call__(self, vector, pictures, action):
        return self.head(self.torso((), jnp.concatenate([vector, action.ravel()]), pictures)[1])[0]


class ActionValues(eqx.Module):
    """Q(s, .): maps (vector, images) to one number for each of n actions."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        k_torso, k_head = jax.random.split(key)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        self.head = Linear(self.torso.features, action_space.n, k_head, gain=1.0)

    def __call__(self, vector, pictures):
        return self.head(self.torso((), vector, pictures)[1])


class Ensemble(eqx.Module):
    """Several networks of one shape with weights of their own; outputs have a leading axis of members."""

    members: tuple

    def __init__(self, make: Callable, count: int, key):
        self.members = tuple(make(k) for k in jax.random.split(key, count))

    def __call__(self, *inputs):
        return jnp.stack([member(*inputs) for member in self.members])


def polyak(target, online, tau):
    """(1 - tau) target + tau online, leaf by leaf."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), target, online)
