"""Probes whose kind of end can be an argument of a compiled program. `tests.contracts.ends:credit` names one for `make`.

As `polopt.envs.probes.Credit`; but the episode either terminates or is cut, and a step may have a cost, 1 for an action read as above 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from polopt.envs.probes import Credit


@dataclass(frozen=True)
class Ends(Credit):
    costs: int = 0
    terminates: Any = True

    def step(self, state, action, key):
        after, observation, reward, _, last, _ = super().step(state, action, key)
        cost = jnp.float32(self.signed(action) > 0)[None][: self.costs]
        return after, observation, reward, cost, last & self.terminates, last & jnp.logical_not(self.terminates)


credit = Ends
credit_continuous = functools.partial(Ends, continuous=True)
costly_credit = functools.partial(Ends, costs=1)
costly_credit_continuous = functools.partial(Ends, continuous=True, costs=1)
cut = functools.partial(Ends, terminates=False)
cut_continuous = functools.partial(Ends, continuous=True, terminates=False)
