"""A plain gradient step, on a gradient of its own length or of a fixed one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from polopt.core.parts import hyper, part


@part
class Sgd:
    """params - learning_rate * gradient."""

    learning_rate: float = hyper(1.0, above=0)  # step size
    norm: float | None = hyper(None, above=0)  # scale each gradient to this global norm; none to leave it

    def init(self, params):
        return ()

    def update(self, gradient, state, params, progress):
        """One step downhill: (params, state)."""
        rate = self.learning_rate
        if self.norm is not None:
            length = optax.tree.norm(gradient)
            rate = rate * self.norm / jnp.where(length > 0, length, 1.0)
        return jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), params, gradient), state
