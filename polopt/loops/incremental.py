"""The incremental loop: act one step, learn from it, forget it.

There is one copy of the environment, no replay and no batch. One iteration is `num_steps` such steps, with an update in each.
What a paper changes is the rule that learns from a transition. The rule is given the key with which the action was drawn, so that
it can draw that same action again as a function of its parameters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import from_unit
from polopt.core.normalise import RunningStatistics
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.refusals import several_objectives, unbounded_actions
from polopt.policies.actor import Normaliser


class Transition(NamedTuple):
    """One step. Observations are network inputs (vector, images), normalised as they were when they were seen.

    key:  `rule.act(learner, inputs, key)` is the action that was taken.
    after: the true successor, also at an end.
    ended: whether the episode terminated or was cut.
    """

    inputs: Any
    key: jax.Array
    reward: jax.Array
    after: Any
    terminated: jax.Array
    ended: jax.Array


class Rule(Protocol):
    """What is learnt from a transition, and how. The learner is one pytree. Actions of a box are in [-1, 1]."""

    def refuse(self, env) -> str | None:
        """Why it cannot learn in an environment; None when it can."""
        ...

    def init(self, env, key) -> Any: ...

    def act(self, learner, inputs, key) -> jax.Array:
        """The action for one observation; equal keys give equal actions."""
        ...

    def update(self, learner, transition: Transition, progress, key) -> tuple[Any, dict[str, jax.Array]]:
        """(learner, diagnostics); the learner is the one that acted, and `progress` the fraction of the run that is done."""
        ...

    def policy(self, learner, normaliser: Normaliser) -> Any:
        """What is deployed."""
        ...


class Acting(NamedTuple):
    """Where acting stands: the environment, what it shows as network inputs, and the episode in progress."""

    env: Any
    inputs: Any
    episode_return: jax.Array
    episode_length: jax.Array


class State(eqx.Module):
    learner: Any
    normaliser: Normaliser
    acting: Acting
    iteration: jax.Array
    key: jax.Array


@part
class Incremental:
    """A method of the incremental family: its rule and its hyperparameters."""

    rule: Rule
    num_steps: int = hyper(100, at_least=1)  # steps of an iteration, each with an update
    normalise_observations: bool = True  # running mean and variance of observations, each counted before it is shown

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    takes = ControlTask
    needs = "an environment (--env)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        env = task.env
        return several_objectives(env) or unbounded_actions(env) or self.rule.refuse(env)

    @property
    def steps_per_iteration(self) -> int:
        return self.num_steps

    def init(self, task: ControlTask, key) -> State:
        k_rule, k_env, key = jax.random.split(key, 3)
        space = task.env.observation_space
        statistics = RunningStatistics.start(spaces.size(space)) if self.normalise_observations else None
        acting, normaliser = self._start_acting(task.env, Normaliser(space, statistics, clip=math.inf), k_env)
        return State(self.rule.init(task.env, k_rule), normaliser, acting, jnp.zeros((), jnp.int32), key)

    def step(self, task: ControlTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_steps = jax.random.split(state.key)
        progress = jnp.clip(state.iteration * self.num_steps / task.steps, 0.0, 1.0)

        def once(carry, key):
            learner, normaliser, acting = carry
            k_act, k_env, k_update = jax.random.split(key, 3)
            acting, normaliser, transition, finished = self._act(task.env, learner, normaliser, acting, k_act, k_env)
            learner, metrics = self.rule.update(learner, transition, progress, k_update)
            return (learner, normaliser, acting), (finished, metrics)

        start = (state.learner, state.normaliser, state.acting)
        carry, (finished, metrics) = jax.lax.scan(once, start, jax.random.split(k_steps, self.num_steps))
        metrics = {**jax.tree.map(jnp.sum, finished), **jax.tree.map(jnp.mean, metrics)}
        return State(*carry, state.iteration + 1, key), metrics

    def policy(self, state: State):
        return self.rule.policy(state.learner, state.normaliser)

    def refresh(self, task: ControlTask, state: State) -> State:
        """The state with a new episode begun from its own key: what follows a checkpoint where environments live on the host."""
        key, k_env = jax.random.split(state.key)
        acting, normaliser = self._start_acting(task.env, state.normaliser, k_env)
        return eqx.tree_at(lambda s: (s.acting, s.normaliser, s.key), state, (acting, normaliser, key))

    # -- one step ------------------------------------------------------------------------------------------------------

    def _start_acting(self, env, normaliser: Normaliser, key) -> tuple[Acting, Normaliser]:
        env_state, observation = env.reset(key, 1)
        normaliser = normaliser.update(observation)
        return Acting(env_state, normaliser(_only(observation)), jnp.zeros(()), jnp.zeros(())), normaliser

    def _act(self, env, learner, normaliser: Normaliser, acting: Acting, k_act, k_env):
        """(where acting stands, normaliser, transition, sums over the episode if it ended) after one step."""
        action = self.rule.act(learner, acting.inputs, k_act)
        action = from_unit(env.action_space, action) if isinstance(env.action_space, spaces.Box) else action
        env_state, timestep = env.step(acting.env, action[None], k_env)
        reward, terminated, truncated = (x[0] for x in (timestep.reward, timestep.terminated, timestep.truncated))
        ended = terminated | truncated
        normaliser = normaliser.update(timestep.final_observation)
        after = normaliser(_only(timestep.final_observation))
        # At an end the first observation of the next episode is seen as well.
        again = normaliser.update(timestep.observation)
        normaliser = jax.tree.map(lambda seen, not_yet: jnp.where(ended, seen, not_yet), again, normaliser)
        shown = normaliser(_only(timestep.observation))
        transition = Transition(acting.inputs, k_act, reward, after, terminated, ended)
        total, length = acting.episode_return + reward, acting.episode_length + 1
        sums = {"return": total, "length": length, "count": jnp.ones(())}
        finished = {f"episode/{name}": jnp.where(ended, x, 0.0) for name, x in sums.items()}
        return Acting(env_state, shown, jnp.where(ended, 0.0, total), jnp.where(ended, 0.0, length)), normaliser, transition, finished


def _only(observation):
    return jax.tree.map(lambda x: x[0], observation)
