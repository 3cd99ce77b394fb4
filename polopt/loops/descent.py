"""The improver most on-policy methods use: epochs of minibatch steps along the gradient of the whole loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part


class Step(Protocol):
    """How parameters move along a gradient of the loss."""

    def init(self, params) -> Any: ...

    def update(self, gradient, state, params, progress) -> tuple[Any, Any]:
        """(params, state); `progress` is the fraction of the run that is done."""
        ...


class Selection(Protocol):
    """Which of a batch's n samples (or sequences) a pass learns from, chosen anew before each pass."""

    def count(self, n: int) -> int:
        """How many are chosen."""
        ...

    def __call__(self, loop, actor, batch, key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The chosen ones' indices (count,), rising, and diagnostics."""
        ...


@part
class Everything:
    """All samples."""

    def count(self, n: int) -> int:
        return n

    def __call__(self, loop, actor, batch, key):
        return jnp.arange(jax.tree.leaves(batch)[0].shape[0]), {}


@part
class Descent:
    """`epochs` passes of `minibatches` steps, each minibatch drawn anew without replacement."""

    step: Step
    epochs: int = hyper(4, at_least=1)  # passes over an iteration's data
    minibatches: int = hyper(4, at_least=1)  # steps in a pass
    value_coefficient: float = hyper(0.5, at_least=0)  # weight of the value loss
    target_kl: float | None = hyper(None, above=0)  # stop an iteration's steps once the KL estimate exceeds this
    select: Selection = Everything()

    def init(self, learner):
        return self.step.init(learner)

    def refuse(self, samples: int) -> str | None:
        if samples % self.minibatches:
            return f"cannot split {samples} samples into {self.minibatches} minibatches"
        if self.select.count(samples) < self.minibatches:
            return f"cannot split the {self.select.count(samples)} samples that are kept of {samples} into {self.minibatches} minibatches"
        return None

    def __call__(self, loop, state, learner, surrogate_state, batch, progress, key):
        def descend(carry, minibatch):
            learner, optimiser, stopped = carry
            gradient, metrics = jax.grad(loop.loss, has_aux=True)(learner, surrogate_state, minibatch, self.value_coefficient)
            after, moments = self.step.update(gradient, optimiser, learner, progress)
            moved = loop.project(after), moments
            if self.target_kl is not None:
                stopped = stopped | (metrics["kl"] > self.target_kl)
                moved = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), moved, (learner, optimiser))
            return (*moved, stopped), metrics

        # A batch that does not change is no part of what the passes carry: that would cost a copy.
        changes = loop.memory.refresh is not None

        def one_pass(carry, slice):
            (carry, moving), (order, k_pass) = carry, slice
            data = moving if changes else batch
            chosen, report = self.select(loop, carry[0].actor, data, k_pass)
            carry, metrics = over(descend, carry, data, chosen[order])
            moving = loop.memory.refreshed(loop, carry[0].actor, data, jax.random.fold_in(k_pass, 1)) if changes else ()
            return (carry, moving), {**metrics, **report}

        orders = divisions(key, self.epochs, self.minibatches, self.select.count(jax.tree.leaves(batch)[0].shape[0]))
        keys = jax.random.split(jax.random.fold_in(key, 1), self.epochs)
        start = (learner, state, jnp.array(False)), batch if changes else ()
        ((learner, state, _), _), metrics = jax.lax.scan(one_pass, start, (orders, keys))
        return learner, state, jax.tree.map(jnp.mean, metrics)


def passes(step: Callable, carry, batch, epochs: int, minibatches: int, key):
    """`step(carry, minibatch) -> (carry, output)` over `epochs` random divisions of a batch into `minibatches`: (carry, outputs)."""
    orders = divisions(key, epochs, minibatches, jax.tree.leaves(batch)[0].shape[0])
    return over(step, carry, batch, orders.reshape(epochs * minibatches, -1))


def over(step: Callable, carry, batch, orders):
    """`step(carry, minibatch) -> (carry, output)` over the minibatches whose indices are the rows of `orders`."""
    return jax.lax.scan(lambda carry, chosen: step(carry, jax.tree.map(lambda x: x[chosen], batch)), carry, orders)


def divisions(key, epochs: int, minibatches: int, n: int):
    """`epochs` random divisions of 0 ... n-1, as (epochs, minibatches, size); of what does not divide evenly some are left out at random."""
    size = n // minibatches
    return permutations(key, epochs, n)[:, : size * minibatches].reshape(epochs, minibatches, size)


def permutations(key, count: int, n: int):
    """`count` random orders of 0 ... n-1, as (count, n)."""
    if n > 4096:
        return jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(key, count))
    # One sort of words whose low bits are the index and whose high bits are random takes a quarter of the time that
    # jax.random.permutation takes on a CPU. At least 20 random bits: ties, which keep their order, are too rare to matter.
    low = jnp.uint32((1 << (n - 1).bit_length()) - 1)
    words = (jax.random.bits(key, (count, n)) & ~low) | jnp.arange(n, dtype=jnp.uint32)[None]
    return (jax.lax.sort(words, dimension=1, is_stable=False) & low).astype(jnp.int32)
