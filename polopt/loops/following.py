"""What an offline rule needs whose critics look at the action that follows: which one that is, and rewards one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.actions import to_unit
from polopt.core.parts import hyper, part
from polopt.loops.actor_critic import draw
from polopt.loops.offline import Logged
from polopt.policies.closed_form import improved


class NextAction(Protocol):
    """a', at which the critics' targets are taken. What it remembers between updates is the learner's `extra`."""

    def start(self, actor, critic) -> Any:
        """What it remembers at first."""
        ...

    def within(self, data, normaliser) -> Callable:
        """`(rule, learner, batch, key)` to a' (n, ...) as unit actions, and what it remembers from now on."""
        ...


class LoggedNext(eqx.Module):
    """`Sarsa` with the unit actions and ends of the log."""

    action: jax.Array
    ended: jax.Array

    def __call__(self, rule, learner, batch, key):
        row = batch.index[:, 0]
        drawn = draw(learner.actor, batch.next_observation, key).action
        cut = self.ended[row].reshape(-1, *(1,) * (drawn.ndim - 1))
        return jnp.where(cut, drawn, self.action[(row + 1) % self.action.shape[0]]), learner.extra


@part
class Sarsa:
    """What the log did next, or the actor would where the log ends: the critics judge who made the log."""

    def start(self, actor, critic):
        return ()

    def within(self, data, normaliser) -> LoggedNext:
        action = jax.vmap(lambda a: to_unit(data.action_space, a))(jnp.asarray(data.action))
        return LoggedNext(action, jnp.asarray(data.ended))


class Noise(Protocol):
    """What is added to unit actions (n, ...)."""

    def __call__(self, action, key) -> jax.Array: ...


class ImprovedNext(eqx.Module):
    """`Improved` with the log."""

    logged: LoggedNext
    noise: Noise
    warmup: int = eqx.field(static=True)
    every: int = eqx.field(static=True)

    def __call__(self, rule, learner, batch, key):
        k_logged, k_noise = jax.random.split(key)
        since = learner.count - self.warmup
        renewed = (since >= 0) & (since % self.every == 0)
        held = jax.tree.map(lambda new, old: jnp.where(renewed, new, old), (learner.actor, learner.critic), learner.extra)

        def own(_):
            action = jax.vmap(lambda *inputs: improved(rule.improvement, *held, *inputs))(*batch.next_observation)
            return self.noise(action, k_noise)

        return jax.lax.cond(since < 0, lambda _: self.logged(rule, learner, batch, k_logged)[0], own, None), held


@part
class Improved:
    """What the policy does that a rule's `improvement` makes of its actor and critics, with noise, once these are warm; what the log did before."""

    noise: Noise
    warmup: int = hyper(20_000, at_least=0)  # updates with the log's next actions
    every: int = hyper(1, at_least=1)  # updates for which the policy is held

    def start(self, actor, critic):
        return actor, critic

    def within(self, data, normaliser) -> ImprovedNext:
        return ImprovedNext(Sarsa().within(data, normaliser), self.noise, self.warmup, self.every)


@part
class OneStep:
    """The logged rewards, scaled and then shifted, one at a time: only the action that follows one step is in the log."""

    scale: float = hyper(1.0, above=0)  # what rewards are multiplied by
    shift: float = 0.0  # what is then added to each
    span: float | None = hyper(None, above=0)  # scale rewards first, so that best and worst episode differ by this; none to leave them

    n_step = 1

    def __call__(self, data):
        return Logged(1, self.scale, self.shift, self.span)(data)
