"""Actors that are fitted to logged actions: a density at any action of the space, the bounds of a box included."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.policies.deployed import Deployed, taken
from polopt.policies.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical
from polopt.policies.experts import Mixture

LOG_STD = (-5.0, 2.0)  # bounds of the log deviation of a box's actions


class ClonedActor(eqx.Module):
    """pi(a|s): maps (vector, images) to a distribution of actions as learners see them.

    Of a box a Gaussian with tanh on its mean, none on its draw, and a deviation that no state changes; else the space's categorical.
    """

    torso: Torso
    head: Linear
    log_std: jax.Array | None
    action_space: spaces.Space = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        k_torso, k_head = jax.random.split(key)
        box = isinstance(action_space, spaces.Box)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        self.head = Linear(self.torso.features, math.prod(action_space.shape) if box else spaces.size(action_space), k_head, gain=0.01)
        self.log_std = jnp.zeros(action_space.shape) if box else None
        self.action_space = action_space

    def __call__(self, vector, pictures):
        return cloned(self.action_space, self.head(self.torso((), vector, pictures)[1]), self.log_std)


def cloned(space, x, log_std):
    """The distribution of a space's actions from a head's numbers x (n,) and, of a box, the log deviation."""
    if isinstance(space, spaces.Discrete):
        return Categorical(x)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical(x, space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(x)
    return Gaussian(jnp.tanh(x.reshape(space.shape)), jnp.clip(log_std, *LOG_STD), jnp.float32(-1), jnp.float32(1))


class ClonedMixture(eqx.Module):
    """Maps (vector, images) to a mixture of K Gaussians of unit actions: tanh on the means, none on a draw, and all of it from the state.

    The means start at draws from N(0, .5^2) before tanh, in every state the same: Gaussians that start as one would stay one.
    """

    torso: Torso
    head: Linear
    action_space: spaces.Box = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, count: int, key):
        k_torso, k_head, k_spread = jax.random.split(key, 3)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        numbers = count * math.prod(action_space.shape)
        head = Linear(self.torso.features, count + 2 * numbers, k_head, gain=0.01)
        spread = head.bias.at[count : count + numbers].set(0.5 * jax.random.normal(k_spread, (numbers,)))
        self.head = eqx.tree_at(lambda h: h.bias, head, spread)
        self.action_space, self.count = action_space, count

    def __call__(self, vector, pictures) -> Mixture:
        x = self.head(self.torso((), vector, pictures)[1])
        mean, log_std = (y.reshape(self.count, *self.action_space.shape) for y in jnp.split(x[self.count :], 2))
        bounds = jnp.full(self.count, -1.0), jnp.full(self.count, 1.0)
        return Mixture(x[: self.count], Gaussian(jnp.tanh(mean), jnp.clip(log_std, *LOG_STD), *bounds))


class ClonedPolicy(Deployed):
    """A deployed actor: actions in the bounds of the environment."""

    actor: ClonedActor

    def act(self, carry, observation, key=None):
        return carry, taken(self.action_space, self.actor(*self.normaliser(observation)), key)[1]
