"""The probes with a cost: 1 for an action read as above 0. `tests/contracts/costly.py:action_continuous` names one for `make`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from polopt.envs.probes import PROBES


@dataclass(frozen=True)
class Costly:
    probe: Any
    costs = 1

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "probe"), name)

    def step(self, state, action, key):
        state, observation, reward, _, terminated, truncated = self.probe.step(state, action, key)
        return state, observation, reward, jnp.float32(self.probe.signed(action) > 0)[None], terminated, truncated


globals().update({name.replace("-", "_"): functools.partial(Costly, probe) for name, probe in PROBES.items()})
