"""Clones of who made a log that keep every way of acting, where a Gaussian would act between two of them."""

from __future__ import annotations

import equinox as eqx

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.policies.cloned import ClonedActor
from polopt.policies.diffusion import DiffusionActor


class DrawnActor(eqx.Module):
    """A cloned actor of whole numbers, under the names of a diffusion's: the loss of one logged action, and a draw."""

    actor: ClonedActor

    def loss(self, vector, action, key):
        return -self.actor(vector, ()).log_prob(action)

    def draw(self, vector, key):
        found = self.actor(vector, ())
        return found.action(found.sample(key))


def faithful_actor(spec: Feedforward, observation_space, action_space, steps: int, key) -> DiffusionActor | DrawnActor:
    """A diffusion of `steps` steps for a box, and the categorical of other spaces."""
    if isinstance(action_space, spaces.Box):
        return DiffusionActor(spec, spaces.size(observation_space), action_space, steps, key)
    return DrawnActor(ClonedActor(spec, observation_space, action_space, key))
