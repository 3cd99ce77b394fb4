"""The off-policy loop: act, store, learn from what is stored.

One iteration acts `num_steps` steps in `num_envs` copies of the environment, stores them, and makes `updates` updates, each on a
minibatch of its own. What a paper changes is a part: the rule that learns from a minibatch, the exploration, the replay.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import from_unit
from polopt.core.normalise import RunningStatistics
from polopt.core.parts import hyper, part
from polopt.data.replay import Replay, Ring, Steps, Transitions
from polopt.envs.task import ControlTask
from polopt.loops.exploration import Exploration
from polopt.loops.layout import flat
from polopt.loops.refusals import several_objectives, unbounded_actions
from polopt.policies.actor import Normaliser


class Rule(Protocol):
    """What is learnt from a minibatch, and how. The learner is one pytree: networks, targets, optimisers, counters.

    Actions are whole numbers, or in [-1, 1] where the environment has a box. Observations come as network inputs (vector, images).
    """

    discount: float

    def refuse(self, env) -> str | None:
        """Why it cannot learn in an environment; None when it can."""
        ...

    def init(self, env, key) -> Any: ...

    def act(self, learner, inputs, key) -> jax.Array:
        """The action for one observation, as the policy in training draws it."""
        ...

    def update(self, learner, batch: Transitions, progress, key) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
        """(learner, error of each transition (n,), diagnostics); `progress` is the fraction of the run that is done."""
        ...

    def policy(self, learner, normaliser: Normaliser) -> Any:
        """What is deployed."""
        ...


class Acting(NamedTuple):
    """Where acting stands: environments, what exploration remembers, and the episodes in progress."""

    env: Any
    observation: Any
    start: jax.Array
    exploration: Any
    episode_return: jax.Array
    episode_length: jax.Array


class State(eqx.Module):
    learner: Any
    ring: Ring
    normaliser: Normaliser
    acting: Acting
    iteration: jax.Array
    key: jax.Array


@part
class OffPolicy:
    """A method of the off-policy family: its parts and its hyperparameters."""

    rule: Rule
    exploration: Exploration
    replay: Replay = Replay()
    num_envs: int = hyper(1, at_least=1)  # copies of the environment that act at once
    num_steps: int = hyper(1, at_least=1)  # steps each copy acts in an iteration
    updates: int = hyper(1, at_least=1)  # updates after these steps
    batch_size: int = hyper(256, at_least=1)  # transitions an update learns from
    warmup: int = hyper(10_000, at_least=1)  # transitions before learning begins
    warmup_actions: str = hyper("random", choices=("random", "policy"))  # until then
    reward_scale: float = hyper(1.0, above=0)  # what rewards and costs are multiplied by before they are learnt from
    normalise_observations: bool = False  # running mean and variance of observations

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    takes = ControlTask
    needs = "an environment (--env)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        env = task.env
        reason = several_objectives(env) or unbounded_actions(env) or self.rule.refuse(env)
        if reason:
            return reason
        if self.replay.capacity < self.steps_per_iteration:
            return f"collects {self.steps_per_iteration} transitions in an iteration, but keeps only {self.replay.capacity}. Set a larger capacity"
        return None

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def init(self, task: ControlTask, key) -> State:
        k_rule, k_env, key = jax.random.split(key, 3)
        env = task.env
        statistics = RunningStatistics.start(spaces.size(env.observation_space)) if self.normalise_observations else None
        acting = self._start_acting(env, k_env)
        return State(
            learner=self.rule.init(env, k_rule),
            ring=self.replay.start(self._example(env, acting), task.steps),
            normaliser=Normaliser(env.observation_space, statistics),
            acting=acting,
            iteration=jnp.zeros((), jnp.int32),
            key=key,
        )

    def step(self, task: ControlTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_collect, k_learn = jax.random.split(state.key, 3)
        acting, steps, episodes = self.collect(task, state, k_collect)
        ring = self.replay.add(state.ring, steps)
        normaliser = state.normaliser.update(jax.tree.map(flat, steps.observation))
        ready = (state.iteration + 1) * self.steps_per_iteration >= self.warmup
        learner, priority, metrics = self.learn(state.learner, ring, normaliser, ready, self._progress(task, state), k_learn)
        ring = eqx.tree_at(lambda r: r.priority, ring, priority) if self.replay.prioritised else ring
        return State(learner, ring, normaliser, acting, state.iteration + 1, key), {**episodes, **metrics}

    def policy(self, state: State):
        return self.rule.policy(state.learner, state.normaliser)

    def refresh(self, task: ControlTask, state: State) -> State:
        """The state with new episodes begun from its own key: what follows a checkpoint where environments live on the host."""
        key, k_env = jax.random.split(state.key)
        return eqx.tree_at(lambda s: (s.acting, s.key, s.ring), state, (self._start_acting(task.env, k_env), key, self.replay.cut(state.ring)))

    # -- one iteration -------------------------------------------------------------------------------------------------

    def _start_acting(self, env, key) -> Acting:
        env_state, observation = env.reset(key, self.num_envs)
        zeros = jnp.zeros((self.num_envs,))
        return Acting(env_state, observation, jnp.ones((self.num_envs,), bool), self.exploration.init(self.num_envs, env.action_space), zeros, zeros)

    def _example(self, env, acting: Acting) -> Steps:
        shape = (self.num_steps, self.num_envs)
        observation = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[1:]), x.dtype), acting.observation)
        space = env.action_space
        action = jnp.zeros((*shape, *space.shape), jnp.float32 if isinstance(space, spaces.Box) else jnp.int32)
        cost = jnp.zeros((*shape, env.costs)) if env.costs else None
        return Steps(observation, action, jnp.zeros(shape), observation, jnp.zeros(shape, bool), jnp.zeros(shape, bool), cost)

    def collect(self, task, state: State, key) -> tuple[Acting, Steps, dict[str, jax.Array]]:
        """Act for `num_steps` steps: where acting stands after it, the data, and sums over the episodes that ended."""
        env, space = task.env, task.env.action_space
        normalise = jax.vmap(state.normaliser)
        progress = self._progress(task, state)
        random = state.iteration * self.steps_per_iteration < (self.warmup if self.warmup_actions == "random" else 0)

        def act(acting: Acting, key):
            k_act, k_explore, k_random, k_env = jax.random.split(key, 4)
            inputs = normalise(acting.observation)
            action = jax.vmap(lambda i, k: self.rule.act(state.learner, i, k))(inputs, jax.random.split(k_act, self.num_envs))
            action, memory = self.exploration(action, acting.exploration, acting.start, progress, k_explore, space)
            action = jnp.where(random, _random(space, k_random, action), action)
            done = jax.vmap(lambda unit: from_unit(space, unit))(action) if isinstance(space, spaces.Box) else action
            env_state, after = env.step(acting.env, done, k_env)
            ended = after.terminated | after.truncated
            episode_return, length = acting.episode_return + after.reward, acting.episode_length + 1
            finished = {
                "episode/return": jnp.sum(jnp.where(ended, episode_return, 0.0)),
                "episode/length": jnp.sum(jnp.where(ended, length, 0.0)),
                "episode/count": jnp.sum(ended).astype(jnp.float32),
            }
            cost = after.cost if env.costs else None
            stored = Steps(acting.observation, action, after.reward, after.final_observation, after.terminated, ended, cost)
            going = Acting(env_state, after.observation, ended, memory, jnp.where(ended, 0.0, episode_return), jnp.where(ended, 0.0, length))
            return going, (stored, finished)

        acting, (steps, finished) = jax.lax.scan(act, state.acting, jax.random.split(key, self.num_steps))
        return acting, steps, jax.tree.map(jnp.sum, finished)

    def _progress(self, task, state: State):
        """The fraction of the run that is done before an iteration."""
        return jnp.clip(state.iteration * self.steps_per_iteration / task.steps, 0.0, 1.0)

    def learn(self, learner, ring: Ring, normaliser: Normaliser, ready, progress, key):
        """`updates` updates once the replay is `ready`: (learner, priorities, diagnostics, which are 0 before)."""
        inputs = jax.vmap(normaliser)

        def update(carry, key):
            learner, priority = carry
            k_sample, k_update = jax.random.split(key)
            now = Ring(ring.steps, ring.position, ring.filled, priority)
            batch = self.replay.sample(now, k_sample, self.batch_size, self.rule.discount)
            observations = inputs(batch.observation), inputs(batch.next_observation)
            reward, cost = jax.tree.map(lambda x: x * self.reward_scale, (batch.reward, batch.cost))
            batch = batch._replace(observation=observations[0], next_observation=observations[1], reward=reward, cost=cost)
            learner, error, metrics = self.rule.update(learner, batch, progress, k_update)
            return (learner, self.replay.judged(now, batch.index, error).priority), metrics

        def some(carry):
            carry, metrics = jax.lax.scan(update, carry, jax.random.split(key, self.updates))
            return carry, jax.tree.map(jnp.mean, metrics)

        start = (learner, ring.priority)
        like = jax.eval_shape(some, start)[1]
        none = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), like)
        (learner, priority), metrics = jax.lax.cond(ready, some, lambda carry: (carry, none), start)
        return learner, priority, metrics


def _random(space, key, like):
    """Uniformly random actions in the shape of `like`."""
    if isinstance(space, spaces.Box):
        return jax.random.uniform(key, like.shape, minval=-1.0)
    return jax.random.randint(key, like.shape, 0, space.n, like.dtype)
