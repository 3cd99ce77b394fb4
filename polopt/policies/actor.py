"""The stochastic policy of control: observation to action distribution."""

from __future__ import annotations

from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.networks import Linear, Network, Torso
from polopt.core.normalise import RunningStatistics
from polopt.policies.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical, SquashedGaussian


class Policy(Protocol):
    """What is deployed: a pytree that maps (carry, observation) to (carry, action), one observation at a time.

    The carry is what a recurrent policy remembers; `initial_carry()` starts an episode, and it is () without memory.
    With a key the action is drawn, without one it is the most likely action.
    """

    observation_space: spaces.Space
    action_space: spaces.Space

    def initial_carry(self) -> Any: ...

    def act(self, carry, observation, key=None) -> tuple[Any, Any]: ...


class Normaliser(eqx.Module):
    """Observation to network input: flattening, and running normalisation of the vector part when it is on.

    Statistics are kept of as many numbers as they were started with; what a policy writes for itself comes behind these, and stays as it is.
    """

    space: spaces.Space = eqx.field(static=True)
    statistics: RunningStatistics | None
    clip: float = eqx.field(static=True, default=10.0)

    def __call__(self, observation):
        vector, pictures = spaces.flatten(self.space, observation)
        if self.statistics is not None:
            known = self.statistics.mean.shape[0]
            normalised = self.statistics.normalise(vector[:known], self.clip)
            vector = normalised if known == vector.shape[0] else jnp.concatenate([normalised, vector[known:]])
        return vector, pictures

    def update(self, observations) -> "Normaliser":
        """Merge observations with any leading axes into the statistics."""
        if self.statistics is None:
            return self
        vector = jax.vmap(lambda o: spaces.flatten(self.space, o)[0])(observations)
        return Normaliser(self.space, self.statistics.update(vector[:, : self.statistics.mean.shape[0]]), self.clip)


class Actor(eqx.Module):
    """Torso and head for any action space: categorical, multi-categorical, Bernoulli, or a Gaussian with a state-independent deviation.

    `bounds` says how a box's bounds are kept: "clip" clips the Gaussian's draw, "squash" sends it through tanh (finite bounds only).
    """

    torso: Torso
    head: Linear
    log_std: jax.Array | None
    action_space: spaces.Space = eqx.field(static=True)
    bounds: str = eqx.field(static=True)

    def __init__(self, spec: Network, observation_space, action_space, bounds: str, log_std: float | jax.Array, key):
        k_torso, k_head = jax.random.split(key)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        continuous = isinstance(action_space, spaces.Box)
        outputs = int(np.prod(action_space.shape)) if continuous else spaces.size(action_space)
        self.head = Linear(self.torso.features, outputs, k_head, gain=0.01)
        self.log_std = jnp.full(action_space.shape, log_std) if continuous else None
        self.action_space, self.bounds = action_space, bounds
        if continuous and bounds == "squash" and not action_space.bounded:
            raise ValueError(f"bounds='squash' needs finite action bounds, but the action space is {action_space}. Use bounds='clip'.")

    def __call__(self, carry, vector, pictures):
        """(carry, input) to (carry, distribution)."""
        carry, x = self.torso(carry, vector, pictures)
        return carry, self.distribution(x)

    def distribution(self, features):
        """The distribution that the head gives for the torso's features."""
        x = self.head(features)
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return Categorical(x)
        if isinstance(space, spaces.MultiDiscrete):
            return MultiCategorical(x, space.nvec)
        if isinstance(space, spaces.MultiBinary):
            return Bernoulli(x)
        low, high = (jnp.asarray(b) for b in space.bounds())
        kind = SquashedGaussian if self.bounds == "squash" else Gaussian
        return kind(x.reshape(space.shape), self.log_std, low, high)
