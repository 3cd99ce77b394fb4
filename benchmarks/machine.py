"""What all benchmarks say of the machine."""

import os
import time

import jax
import jax.numpy as jnp


def product_rate() -> float:
    """FLOP/s of a product of two 2048 x 2048 matrices."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    start = time.perf_counter()
    for _ in range(5):
        jax.block_until_ready(product(a, a))
    return 5 * 2 * 2048**3 / (time.perf_counter() - start)


def machine(rate: float) -> str:
    return f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, jax {jax.__version__}, {rate / 1e9:.0f} GFLOP/s"
