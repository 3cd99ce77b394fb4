"""Environments whose first observation is a proxy, from before the decisions. `tests/contracts/proxied.py:credit` names one for `make`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from polopt.core.spaces import Box, Discrete


@dataclass(frozen=True)
class Proxied:
    """A coin is shown before the decisions and at each of them; an action that equals it earns 1, the one before the decisions nothing."""

    decisions: int = 1
    terminates: bool = True
    continuous: bool = False

    objectives = 0
    costs = 0
    observation_space = Discrete(2)

    @property
    def action_space(self):
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def reset(self, key):
        coin = jax.random.bernoulli(key).astype(jnp.int32)
        return (jnp.zeros((), jnp.int32), coin), coin

    def step(self, state, action, key):
        t, coin = state
        paid = ((t > 0) & (jnp.ravel(action)[0] == coin)).astype(jnp.float32)
        last = t == self.decisions
        return (t + 1, coin), coin, paid, jnp.zeros((0,)), last & self.terminates, last & (not self.terminates)


credit = functools.partial(Proxied, 2)
credit_continuous = functools.partial(Proxied, 2, continuous=True)
cut = functools.partial(Proxied, 2, terminates=False)
cut_continuous = functools.partial(Proxied, 2, terminates=False, continuous=True)
