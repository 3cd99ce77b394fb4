"""Improvers that take one natural-gradient step of the actor on the whole batch, and fit the critic apart."""

from __future__ import annotations

from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.loops.descent import Step, passes
from polopt.optim.trust_region import backtrack, hessian_product, natural_direction


class ValueFit(Protocol):
    """How the critic is fitted to its targets, apart from the actor."""

    def init(self, critic) -> Any: ...

    def refuse(self, samples: int) -> str | None: ...

    def __call__(self, loop, state, critic, batch, progress, key) -> tuple[Any, Any, jax.Array]:
        """(critic, state, value loss)."""
        ...


@part
class Regression:
    """Ordinary regression in minibatches."""

    step: Step
    epochs: int = hyper(10, at_least=1)  # passes over an iteration's data
    minibatches: int = hyper(32, at_least=1)  # steps in a pass

    def init(self, critic):
        return self.step.init(critic)

    def refuse(self, samples: int) -> str | None:
        return f"cannot split {samples} samples into {self.minibatches} minibatches" if samples % self.minibatches else None

    def __call__(self, loop, state, critic, batch, progress, key):
        def descend(carry, minibatch):
            critic, state = carry
            loss, gradient = jax.value_and_grad(loop.value_loss)(critic, minibatch)
            return self.step.update(gradient, state, critic, progress), loss

        (critic, state), losses = passes(descend, (critic, state), batch, self.epochs, self.minibatches, key)
        return critic, state, jnp.mean(losses)


@part
class TrustRegion:
    """The actor's natural step, scaled to KL(old || new) = delta and shortened until it keeps the budget and improves."""

    value_fit: ValueFit
    delta: float = hyper(0.01, above=0)  # the mean KL(old || new) that an iteration may spend
    cg_iterations: int = hyper(10, at_least=1)  # of conjugate gradients
    damping: float = hyper(0.1, at_least=0)  # added to the Fisher matrix
    tries: int = hyper(10, at_least=1)  # of the line search
    shrink: float = hyper(0.8, above=0, below=1)  # factor between two tries

    def init(self, learner):
        return () if learner.critic is None else self.value_fit.init(learner.critic)

    def refuse(self, samples: int) -> str | None:
        return self.value_fit.refuse(samples)

    def __call__(self, loop, state, learner, surrogate_state, batch, progress, key):
        def loss(actor):
            return loop.policy_loss(actor, surrogate_state, batch)[0]

        def kl(actor):
            return loop.mean_kl(actor, batch)

        old, gradient = jax.value_and_grad(loss)(learner.actor)
        uphill = jax.tree.map(jnp.negative, gradient)
        direction, curvature = natural_direction(hessian_product(kl, learner.actor), uphill, self.cg_iterations, self.damping)
        # At a converged policy gradient and curvature vanish together; the step is then none.
        length = jnp.where(curvature > 1e-12, jnp.sqrt(2 * self.delta / jnp.maximum(curvature, 1e-12)), 0.0)
        full = jax.tree.map(lambda x: length * x, direction)
        search = backtrack(learner.actor, full, lambda actor: (kl(actor) <= self.delta) & (loss(actor) < old), self.tries, self.shrink)
        _, metrics = loop.policy_loss(search.params, surrogate_state, batch)
        metrics["kl"] = kl(search.params)
        metrics |= {"line_search/accepted": search.accepted.astype(jnp.float32), "line_search/fraction": search.fraction}
        return with_fit(self.value_fit, loop, state, eqx.tree_at(lambda x: x.actor, learner, search.params), batch, progress, key, metrics)


@part
class NaturalGradient:
    """The actor's natural step of a fixed size: no budget, no search."""

    value_fit: ValueFit
    step_size: float = hyper(0.3, above=0)  # eta
    cg_iterations: int = hyper(10, at_least=1)  # of conjugate gradients
    damping: float = hyper(1e-3, at_least=0)  # added to the Fisher matrix

    def init(self, learner):
        return () if learner.critic is None else self.value_fit.init(learner.critic)

    def refuse(self, samples: int) -> str | None:
        return self.value_fit.refuse(samples)

    def __call__(self, loop, state, learner, surrogate_state, batch, progress, key):
        def kl(actor):
            return loop.mean_kl(actor, batch)

        gradient, metrics = jax.grad(loop.policy_loss, has_aux=True)(learner.actor, surrogate_state, batch)
        direction, _ = natural_direction(hessian_product(kl, learner.actor), gradient, self.cg_iterations, self.damping)
        actor = jax.tree.map(lambda p, d: p - self.step_size * d, learner.actor, direction)
        metrics["kl"] = kl(actor)
        return with_fit(self.value_fit, loop, state, eqx.tree_at(lambda x: x.actor, learner, actor), batch, progress, key, metrics)


def with_fit(value_fit: ValueFit, loop, state, learner, batch, progress, key, metrics):
    """The learner with its critic fitted, if it has one, the fit's state, and the metrics with the fit's loss.

    The critic comes after the actor: this batch's advantages are not to know what it learns from them.
    """
    if learner.critic is None:
        return learner, state, metrics
    critic, state, metrics["loss/value"] = value_fit(loop, state, learner.critic, batch, progress, key)
    return eqx.tree_at(lambda x: x.critic, learner, critic), state, metrics
