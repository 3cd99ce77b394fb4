"""How likely a deployed policy is to take a given action of the environment, where that can be said.

A Gaussian that is clipped to a box has a density inside and a mass on each bound; both are given, so that the ratio of two such policies is right
everywhere.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from polopt.core import spaces
from polopt.policies.cloned import ClonedPolicy
from polopt.policies.deployed import ActorPolicy
from polopt.policies.distributions import Gaussian, SquashedGaussian
from polopt.policies.unit import GaussianActor, UnitPolicy

EDGE = 1e-6  # how near to a bound a squashed action is taken to lie at most, in units of half the box


def has_density(policy) -> bool:
    """Whether `distribution` knows a policy."""
    known = isinstance(policy, (ActorPolicy, ClonedPolicy)) or (isinstance(policy, UnitPolicy) and isinstance(policy.actor, GaussianActor))
    return known and not jax.tree.leaves(policy.initial_carry())


def distribution(policy, observation) -> Any:
    """The distribution of a policy without memory at one observation; that of a box in the units of the environment."""
    inputs, space = policy.normaliser(observation), policy.action_space
    if isinstance(policy, ActorPolicy):
        return policy.actor((), *inputs)[1]
    found = policy.actor(*inputs)
    if not isinstance(space, spaces.Box):
        return found
    low, high = (jnp.asarray(bound) for bound in space.bounds())
    if isinstance(found, SquashedGaussian):
        return SquashedGaussian(found.mean, found.log_std, low, high)
    half = (high - low) / 2
    return Gaussian(low + half * (found.mean + 1), found.log_std + jnp.log(half), low, high)


def log_prob(found, action) -> jax.Array:
    """log pi(action) under a distribution of `distribution`, for an action as the environment got it."""
    if isinstance(found, SquashedGaussian):
        box = (2 * (action - found.low) / (found.high - found.low)) - 1
        return found.log_prob(jnp.arctanh(jnp.clip(box, -1 + EDGE, 1 - EDGE)))
    if isinstance(found, Gaussian):
        std = jnp.exp(jnp.broadcast_to(found.log_std, found.mean.shape))
        inside = norm.logpdf(action, found.mean, std)
        below, above = norm.logcdf((found.low - found.mean) / std), norm.logcdf((found.mean - found.high) / std)
        return jnp.sum(jnp.where(action <= found.low, below, jnp.where(action >= found.high, above, inside)))
    return found.log_prob(action)
