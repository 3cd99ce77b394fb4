"""Policies that are told what return to reach: by the average of what is left, or by a return to go, alone or beside the last states and actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import as_vector, encoded
from polopt.core.attention import waves
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.policies.cloned import LOG_STD, ClonedActor, cloned
from polopt.policies.deployed import Deployed, taken

STEP_TOKENS = 3  # of a sequence actor: return, state, action


def conditioned_actor(spec: Feedforward, observation_space, action_space, key) -> ClonedActor:
    """pi(a|s, omega): a cloned actor whose vector ends with one number more."""
    both = spaces.Dict((("observation", observation_space), ("outcome", spaces.Box(-math.inf, math.inf, (1,)))))
    return ClonedActor(spec, both, action_space, key)


class OutcomePolicy(Deployed):
    """A deployed actor with the outcome that it is always told."""

    actor: ClonedActor
    outcome: jax.Array

    def act(self, carry, observation, key=None):
        vector, pictures = self.normaliser(observation)
        found = self.actor(jnp.concatenate([vector, self.outcome[None]]), pictures)
        return carry, taken(self.action_space, found, key)[1]


class ReturnPolicy(Deployed):
    """A deployed actor that is told what is left of a return to reach; models tell what each step has earned of it, which it remembers.

    models: `reward(vector, encoded action)` is a number. target and scale: the return to reach, and what returns are divided by.
    """

    actor: ClonedActor
    models: Any
    target: jax.Array
    scale: jax.Array

    def initial_carry(self):
        return jnp.zeros(())

    def act(self, carry, observation, key=None):
        vector, pictures = self.normaliser(observation)
        left = (self.target - carry) / self.scale
        drawn, action = taken(self.action_space, self.actor(jnp.concatenate([vector, left[None]]), pictures), key)
        return carry + self.models.reward(vector, as_vector(self.action_space, drawn)), action


class SequenceActor(eqx.Module):
    """pi(a_t | R_1, s_1, a_1, ..., R_t, s_t): three tokens a step in a causal network, the action read off the token of its state.

    Of a box a Gaussian with tanh on its mean and a deviation that no state changes (the least there is unless it is learnt), else the space's
    categorical. network: maps tokens (time, width) and a mask (time,) to features of the same shape.
    """

    returns: Linear
    states: Linear
    actions: Linear
    clock: Linear
    network: Any
    head: Linear
    log_std: jax.Array | None
    action_space: spaces.Space = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, observation_space, action_space, width: int, network: Callable, key, learnt_deviation: bool = True):
        keys = jax.random.split(key, 6)
        box = isinstance(action_space, spaces.Box)
        numbers = math.prod(action_space.shape) if box else spaces.size(action_space)
        self.returns, self.states = Linear(1, width, keys[0], 1.0), Linear(spaces.size(observation_space), width, keys[1], 1.0)
        self.actions, self.clock = Linear(numbers, width, keys[2], 1.0), Linear(width, width, keys[3], 0.2)
        self.network = network(keys[4])
        self.head = Linear(width, numbers, keys[5], gain=0.01)
        self.log_std = jnp.zeros(action_space.shape) if box and learnt_deviation else None
        self.action_space, self.width = action_space, width

    def __call__(self, returns, states, actions, step, mask):
        """The distributions (K,) of the actions, from returns to go (K,), states (K, d), encoded actions (K, k), steps (K,) and mask (K,).

        The action of a place is seen by later places only.
        """
        return self.read(self.features(returns, states, actions, step, mask))

    def features(self, returns, states, actions, step, mask):
        """What the network gives for return, state and action of each step, (K, 3, width), from what a call takes."""
        clock = jax.vmap(lambda t: self.clock(waves(t, self.width)))(step)
        tokens = jax.vmap(self.returns)(returns[:, None]), jax.vmap(self.states)(states), jax.vmap(self.actions)(actions)
        interleaved = jnp.stack([token + clock for token in tokens], axis=1).reshape(-1, self.width)
        return self.network(interleaved, jnp.repeat(mask, STEP_TOKENS)).reshape(-1, STEP_TOKENS, self.width)

    def read(self, features):
        """The distributions (K,) of the actions from the features."""
        log_std = LOG_STD[0] if self.log_std is None else self.log_std
        return jax.vmap(lambda x: cloned(self.action_space, self.head(x), log_std))(features[:, 1])


class Foresight(eqx.Module):
    """The next state and the next return to go, read off the token of the action before them."""

    state: Linear
    to_go: Linear

    def __init__(self, width: int, numbers: int, key):
        k_state, k_to_go = jax.random.split(key)
        self.state, self.to_go = Linear(width, numbers, k_state, 1.0), Linear(width, 1, k_to_go, 1.0)

    def __call__(self, features):
        """((K, d), (K,)) from the features (K, 3, width)."""
        return jax.vmap(self.state)(features[:, 2]), jax.vmap(self.to_go)(features[:, 2])[:, 0]


class RewardModel(eqx.Module):
    """r(s, a, s'): from two vectors and an encoded action to a number."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        k_torso, k_head = jax.random.split(key)
        numbers = math.prod(action_space.shape) if isinstance(action_space, spaces.Box) else spaces.size(action_space)
        self.torso = Torso(spec, 2 * spaces.size(observation_space) + numbers, (), k_torso)
        self.head = Linear(self.torso.features, 1, k_head, gain=1.0)

    def __call__(self, vector, action, following):
        return self.head(self.torso((), jnp.concatenate([vector, action, following]), ())[1])[0]


class SequencePolicy(Deployed):
    """A deployed sequence actor. It remembers its last K steps, and what its reward model says that it has earned of the target.

    target and scale: the return to reach, and what returns are divided by. The carry is zero at the start of an episode.
    """

    actor: SequenceActor
    reward: RewardModel
    target: jax.Array
    scale: jax.Array
    context: int = eqx.field(static=True)

    def initial_carry(self) -> dict[str, Any]:
        d, k = spaces.size(self.observation_space), self.actor.actions.weight.shape[0]
        zeros = {"returns": jnp.zeros((self.context,)), "states": jnp.zeros((self.context, d)), "actions": jnp.zeros((self.context, k))}
        return {**zeros, "earned": jnp.zeros(()), "step": jnp.zeros((), jnp.int32)}

    def act(self, carry, observation, key=None):
        vector, _ = self.normaliser(observation)
        t = carry["step"]
        paid = self.reward(carry["states"][-1], carry["actions"][-1], vector)  # of the step before, which the first has not
        earned = carry["earned"] + jnp.where(t > 0, paid, 0.0)
        returns = _pushed(carry["returns"], (self.target - earned) / self.scale)
        states, actions = _pushed(carry["states"], vector), _pushed(carry["actions"], jnp.zeros_like(carry["actions"][0]))
        place = jnp.arange(1 - self.context, 1)
        steps = jnp.maximum(t + place, 0)
        found = self.actor(returns, states, actions, steps, (t + place >= 0).astype(jnp.float32))
        found = jax.tree.map(lambda x: x[-1], found)
        drawn, action = taken(self.action_space, found, key)
        actions = actions.at[-1].set(jnp.ravel(encoded(self.action_space, drawn)).astype(actions.dtype))
        carry = {"returns": returns, "states": states, "actions": actions, "earned": earned, "step": t + 1}
        return carry, action


def _pushed(rows, new):
    """The rows with the first one dropped and a new one behind."""
    return jnp.concatenate([rows[1:], new[None]])
