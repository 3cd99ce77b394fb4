"""Running mean and variance, as part of the state and of the deployed policy."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp


class RunningStatistics(eqx.Module):
    """Mean and variance of a stream of vectors, merged batch by batch (Chan et al., 1979).

    mean, variance: (size,); count: (). Starts at mean 0, variance 1 with no samples.
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array

    @staticmethod
    def start(size: int) -> "RunningStatistics":
        return RunningStatistics(jnp.zeros((size,)), jnp.ones((size,)), jnp.zeros(()))

    def update(self, batch: jax.Array) -> "RunningStatistics":
        """Merge a batch of shape (samples, size)."""
        n = batch.shape[0]
        mean, variance = jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
        total = self.count + n
        delta = mean - self.mean
        spread = self.variance * self.count + variance * n + delta**2 * self.count * n / total
        return RunningStatistics(self.mean + delta * n / total, spread / total, total)

    def normalise(self, x: jax.Array, clip: float) -> jax.Array:
        """(x - mean) / standard deviation, clipped to +-clip."""
        return jnp.clip((x - self.mean) / jnp.sqrt(self.variance + 1e-8), -clip, clip)
