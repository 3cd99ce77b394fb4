"""The nearest of many keys, found exactly by comparing with all of them: on the device, compiled, and mapped over seeds with everything else.

A k-d tree would have to be asked on the host in the middle of a compiled update, one seed after another, and finds little to cut off in the ten or
more dimensions of a state with its action. All distances are one product of matrices.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

BLOCK = 16_384  # keys compared at once, so that the distances of a minibatch take little memory


class Keys(eqx.Module):
    """n keys in blocks: (blocks, size, d), and half their squared lengths (blocks, size), infinite where the last block is filled up."""

    keys: jax.Array
    half: jax.Array

    @staticmethod
    def of(keys, block: int = BLOCK) -> "Keys":
        """From keys (n, d)."""
        n, size = keys.shape[0], min(block, keys.shape[0])
        extra = -n % size
        half = jnp.pad(0.5 * jnp.sum(keys**2, axis=1), (0, extra), constant_values=jnp.inf)
        return Keys(jnp.pad(keys, ((0, extra), (0, 0))).reshape(-1, size, keys.shape[1]), half.reshape(-1, size))

    def nearest(self, query, k: int = 1):
        """(m, k) the rows of the k keys nearest to each query (m, d), nearest first; k is at most the size of a block.

        Keys whose distances are equal but for rounding may change places.
        """
        size = self.half.shape[1]

        def compare(best, block):
            keys, half, first = block
            # |q - x|^2 / 2 less what is the same for all keys
            distance = half[None] - jnp.matmul(query, keys.T, precision=jax.lax.Precision.HIGHEST)
            row = jnp.argmin(distance, axis=1)[:, None] if k == 1 else jax.lax.top_k(-distance, k)[1]
            distance = jnp.concatenate([best[0], jnp.take_along_axis(distance, row, axis=1)], axis=1)
            row = jnp.concatenate([best[1], first + row], axis=1)
            order = jnp.argsort(distance, axis=1)[:, :k]
            return (jnp.take_along_axis(distance, order, axis=1), jnp.take_along_axis(row, order, axis=1)), None

        none = jnp.full((query.shape[0], k), jnp.inf), jnp.zeros((query.shape[0], k), jnp.int32)
        first = size * jnp.arange(self.half.shape[0], dtype=jnp.int32)
        return jax.lax.scan(compare, none, (self.keys, self.half, first))[0][1]
