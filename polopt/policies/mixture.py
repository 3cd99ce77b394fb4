"""A policy that draws one of several frozen controllers anew at every step, and acts as that one does."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.networks import Linear, Network, Torso
from polopt.policies.actor import Policy
from polopt.policies.saved import open_policy


class Constant(eqx.Module):
    """Always the same action."""

    action: jax.Array
    observation_space: spaces.Space = eqx.field(static=True)
    action_space: spaces.Space = eqx.field(static=True)

    def initial_carry(self):
        return ()

    def act(self, carry, observation, key=None):
        return carry, self.action


class Weights(eqx.Module):
    """One weight for each controller, whatever is seen: logits theta (M,)."""

    theta: jax.Array

    def __call__(self, observation):
        return self.theta


class Gate(eqx.Module):
    """Weights that depend on what is seen: a network without memory from an observation to logits (M,). Starts with equal weights."""

    torso: Torso
    head: Linear
    space: spaces.Space = eqx.field(static=True)

    def __init__(self, spec: Network, space: spaces.Space, controllers: int, key):
        k_torso, k_head = jax.random.split(key)
        self.torso = Torso(spec, spaces.size(space), tuple(image.shape for image in spaces.images(space)), k_torso)
        self.head = Linear(self.torso.features, controllers, k_head, gain=0.01)
        self.space = space

    def __call__(self, observation):
        return self.head(self.torso((), *spaces.flatten(self.space, observation))[1])


class MixturePolicy(eqx.Module):
    """pi(a|s) = sum_m softmax(gate(s))_m K_m(a|s). All controllers see every observation, so that each remembers what it would.

    Without a key the controller of the largest weight acts, in its most likely way.
    """

    gate: Weights | Gate
    controllers: tuple[Policy, ...]

    @property
    def observation_space(self):
        return self.controllers[0].observation_space

    @property
    def action_space(self):
        return self.controllers[0].action_space

    def initial_carry(self):
        return tuple(controller.initial_carry() for controller in self.controllers)

    def act(self, carry, observation, key=None):
        carry, action, _ = self.choose(carry, observation, key)
        return carry, action

    def choose(self, carry, observation, key=None):
        """(carry, action, the index of the controller that acts)."""
        logits = self.gate(observation)
        keys = [None] * (len(self.controllers) + 1) if key is None else jax.random.split(key, len(self.controllers) + 1)
        index = jnp.argmax(logits) if key is None else jax.random.categorical(keys[0], logits)
        made = [controller.act(c, observation, k) for controller, c, k in zip(self.controllers, carry, keys[1:])]
        carries, actions = zip(*made)
        return tuple(carries), jax.tree.map(lambda *each: jnp.stack(each)[index], *actions), index.astype(jnp.int32)


def controllers_of(given: tuple, observation_space: spaces.Space, action_space: spaces.Space) -> tuple[Any, ...]:
    """The controllers that a user names: numbers for constant actions, else the folders of runs; none for a default set of constants.

    That is every action where they are numbered, and in a box the lower, the middle and the upper one (-1, 0 and 1 where it is unbounded).
    ValueError says what does not fit.
    """
    given = given or tuple(_default(action_space))
    return tuple(_controller(x, observation_space, action_space) for x in given)


def _default(space: spaces.Space):
    if isinstance(space, spaces.Discrete):
        return range(space.n)
    if isinstance(space, spaces.Box):
        return (-1.0, 0.0, 1.0) if not space.bounded else ("low", "middle", "high")
    raise ValueError(f"there are no controllers to mix, and {space} has no constant actions of its own; give controllers, the folders of runs")


def _controller(given, observation_space, action_space):
    number = _number(given)
    if number is None and given not in ("low", "middle", "high"):
        return _trained(str(given), observation_space, action_space)
    if isinstance(action_space, spaces.Discrete) and number is not None:
        if number not in range(action_space.n):
            raise ValueError(f"the controller {given} is no action: they are 0 to {action_space.n - 1}")
        return Constant(jnp.asarray(int(number), jnp.int32), observation_space, action_space)
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"the controller {given} is no constant action of {action_space}; give the folder of a run")
    low, high = action_space.bounds()
    shares = {"low": 0.0, "middle": 0.5, "high": 1.0}
    action = np.clip(np.full(action_space.shape, number), low, high) if number is not None else low + shares[given] * (high - low)
    return Constant(jnp.asarray(action, action_space.dtype), observation_space, action_space)


def _number(given) -> float | None:
    try:
        return float(given)
    except ValueError:
        return None


def _trained(directory: str, observation_space, action_space):
    policy = open_policy(directory)
    for what, theirs, ours in (
        ("observations", policy.observation_space, observation_space),
        ("actions", policy.action_space, action_space),
    ):
        if theirs != ours:
            raise ValueError(f"the run {directory} has the {what} {theirs}, but the environment has {ours}; give runs of this environment")
    return policy
