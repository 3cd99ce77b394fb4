"""The offline loop: learn from a fixed dataset, and never act.

One iteration is `updates` updates, each on a minibatch drawn uniformly. The rule that learns from a minibatch is the off-policy loop's. A part of
it that looks at the whole log has `within(data, normaliser)`, so that no state and no checkpoint holds a copy of the log.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import to_unit
from polopt.core.parts import hyper, part
from polopt.data.dataset import Dataset, DataTask
from polopt.data.replay import Replay, Ring, Steps, Transitions
from polopt.loops.off_policy import Rule
from polopt.loops.refusals import unbounded_actions
from polopt.policies.actor import Normaliser


class Rewards(Protocol):
    """What of the logged rewards is learnt from, (n,), and over how many steps they are summed before a value is taken."""

    n_step: int

    def __call__(self, data: Dataset) -> jax.Array: ...


@part
class Logged:
    """The logged rewards, scaled and then shifted."""

    n_step: int = hyper(1, at_least=1)  # steps of reward before the value of the next state is taken
    scale: float = hyper(1.0, above=0)  # what rewards are multiplied by
    shift: float = 0.0  # what is then added to each
    span: float | None = hyper(None, above=0)  # scale rewards first, so that best and worst episode differ by this; none to leave them

    def __call__(self, data: Dataset):
        reward = jnp.asarray(data.reward) * self.scale
        return (reward if self.span is None else reward * self.span / return_range(data)) + self.shift


@part
class Unused:
    """No reward is learnt from."""

    n_step = 1

    def __call__(self, data: Dataset):
        return jnp.asarray(data.reward)


def return_range(data: Dataset):
    """The return of the best episode less that of the worst; 1 where they are equal."""
    ended = jnp.asarray(data.ended)
    episode = jnp.cumsum(ended) - ended
    returns = jax.ops.segment_sum(jnp.asarray(data.reward), episode, num_segments=len(data))
    real = jnp.arange(len(data)) < jnp.sum(ended)
    spread = jnp.max(returns, where=real, initial=-jnp.inf) - jnp.min(returns, where=real, initial=jnp.inf)
    return jnp.where(spread > 0, spread, 1.0)


def knowing(part, data: Dataset, normaliser: Normaliser):
    """A rule whose parts that look at the whole log, not at a minibatch only, have it: `within(data, normaliser)` says what such a part becomes."""
    if hasattr(part, "within"):
        return part.within(data, normaliser)
    inner = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}
    known = {name: knowing(value, data, normaliser) for name, value in inner.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(part, **known) if known else part


class State(eqx.Module):
    learner: Any
    normaliser: Normaliser
    iteration: jax.Array
    key: jax.Array


class FromLog:
    """What all methods share that learn from a log and never act: `updates` of their `rule` in an iteration. A step of the run is an update.

    A subclass has `minibatches(data, normaliser)`: a function of a key that draws what an update learns from.
    """

    takes = DataTask
    needs = "a dataset (--data)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        data = task.dataset
        return unbounded_actions(data, "Give the environment that they come from") or self.rule.refuse(data)

    @property
    def steps_per_iteration(self) -> int:
        return self.updates

    def init(self, task: DataTask, key) -> State:
        k_rule, key = jax.random.split(key)
        data = task.dataset
        normaliser = Normaliser(data.observation_space, data.statistics() if self.normalise_observations else None)
        return State(self.rule.init(data, k_rule), normaliser, jnp.zeros((), jnp.int32), key)

    def step(self, task: DataTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_learn = jax.random.split(state.key)
        drawn, rule = self.minibatches(task.dataset, state.normaliser), knowing(self.rule, task.dataset, state.normaliser)
        progress = jnp.clip(state.iteration * self.updates / task.steps, 0.0, 1.0)

        def update(learner, key):
            k_sample, k_update = jax.random.split(key)
            learner, *_, metrics = rule.update(learner, drawn(k_sample), progress, k_update)
            return learner, metrics

        learner, metrics = jax.lax.scan(update, state.learner, jax.random.split(k_learn, self.updates))
        return State(learner, state.normaliser, state.iteration + 1, key), jax.tree.map(jnp.mean, metrics)

    def policy(self, state: State):
        return self.rule.policy(state.learner, state.normaliser)


@part
class Offline(FromLog):
    """A method of the offline family: its rule and its hyperparameters."""

    rule: Rule
    rewards: Rewards = Logged()
    updates: int = hyper(100, at_least=1)  # updates in an iteration
    batch_size: int = hyper(256, at_least=1)  # transitions an update learns from
    normalise_observations: bool = False  # by the mean and the deviation of the dataset

    def refuse(self, task) -> str | None:
        data = task.dataset
        if self.rewards.n_step > len(data):
            return f"looks {self.rewards.n_step} steps ahead, but {data.name} has {len(data)}. Set a smaller n_step"
        return super().refuse(task)

    def minibatches(self, data: Dataset, normaliser: Normaliser):
        ring, inputs = self.ring(data), jax.vmap(normaliser)

        def draw(key) -> Transitions:
            batch = self.sample(ring, data.action_space, key)
            return batch._replace(observation=inputs(batch.observation), next_observation=inputs(batch.next_observation))

        return draw

    def ring(self, data: Dataset) -> Ring:
        """The dataset as a full replay of one environment, to which nothing is added."""
        steps = Steps(data.observation, data.action, self.rewards(data), data.next_observation, data.terminated, data.ended)
        return Ring(jax.tree.map(lambda x: jnp.asarray(x)[:, None], steps), jnp.int32(0), jnp.int32(len(data)), None)

    def sample(self, ring: Ring, action_space, key) -> Transitions:
        """A minibatch with actions as learners see them."""
        batch = Replay(1, self.rewards.n_step).sample(ring, key, self.batch_size, self.rule.discount)
        if not isinstance(action_space, spaces.Box):
            return batch
        return batch._replace(action=jax.vmap(lambda action: to_unit(action_space, action))(batch.action))
