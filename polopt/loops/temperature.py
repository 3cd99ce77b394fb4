"""How much entropy counts beside value: the temperature alpha of maximum-entropy methods (Haarnoja et al., arXiv:1812.05905)."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.loops.actor_critic import STEP
from polopt.loops.descent import Step


def temperature_loss(log_alpha, log_prob, target_entropy):
    """-log(alpha) (log pi + H), averaged: alpha rises while the entropy -log pi is below H."""
    return -jnp.mean(log_alpha * (log_prob + target_entropy))


class Temperature(Protocol):
    """alpha and how it moves; `init` gives (log alpha, the state of its step)."""

    def init(self) -> Any: ...

    def value(self, state) -> jax.Array: ...

    def update(self, state, log_prob, dimensions: int, progress) -> Any: ...


@part
class Learned:
    """alpha keeps the entropy at a target."""

    initial: float = hyper(1.0, above=0)  # alpha before the first update
    target_entropy: float | None = None  # H in nats; none for minus the number of action dimensions
    step: Step = STEP

    def init(self):
        log_alpha = jnp.log(jnp.asarray(self.initial, jnp.float32))
        return log_alpha, self.step.init(log_alpha)

    def value(self, state):
        return jnp.exp(state[0])

    def update(self, state, log_prob, dimensions, progress):
        log_alpha, optimiser = state
        target = -float(dimensions) if self.target_entropy is None else self.target_entropy
        gradient = jax.grad(temperature_loss)(log_alpha, jax.lax.stop_gradient(log_prob), target)
        return self.step.update(gradient, optimiser, log_alpha, progress)


@part
class Fixed:
    """alpha as given."""

    alpha: float = hyper(0.2, at_least=0)  # weight of the entropy

    def init(self):
        return ()

    def value(self, state):
        return jnp.asarray(self.alpha, jnp.float32)

    def update(self, state, log_prob, dimensions, progress):
        return state
