"""Another step, whose length falls to 0 along half a cosine over the run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core.parts import part
from polopt.optim.adam import Adam


@part
class Cosine:
    """`step` times (1 + cos(pi progress)) / 2."""

    step: Adam

    def init(self, params):
        return self.step.init(params)

    def update(self, gradient, state, params, progress):
        """One step downhill: (params, state)."""
        moved, state = self.step.update(gradient, state, params, progress)
        share = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jax.tree.map(lambda old, new: old + share * (new - old), params, moved), state
