"""The step most methods take: a clipped Adam step with an optional linear decay."""

from __future__ import annotations

import jax
import optax

from polopt.core.parts import hyper, part


@part
class Adam:
    """Adam (Kingma & Ba, arXiv:1412.6980) on a gradient clipped by its global norm."""

    learning_rate: float = hyper(3e-4, above=0)  # step size
    anneal: bool = True  # decay the step size linearly to 0 over the run
    max_grad_norm: float | None = hyper(0.5, above=0)  # clip the gradient's global norm; none to leave it
    epsilon: float = hyper(1e-5, above=0)  # added to the root of the second moment
    beta1: float = hyper(0.9, at_least=0, below=1)  # decay of the first moment
    beta2: float = hyper(0.999, at_least=0, below=1)  # decay of the second moment

    def _transformation(self):
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        return adam if self.max_grad_norm is None else optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam)

    def init(self, params):
        return self._transformation().init(params)

    def update(self, gradient, state, params, progress):
        """One step downhill: (params, state). `progress` is the fraction of the run that is done."""
        direction, state = self._transformation().update(gradient, state, params)
        rate = self.learning_rate * (1 - progress) if self.anneal else self.learning_rate
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), state
