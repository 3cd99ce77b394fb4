"""The testbed whose completions stop: its exact returns are those of what is written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.language import stopping
from polopt.data import testbeds
from polopt.loops.prompting import written
from polopt.policies.language.sampling import Sampling


def test_what_comes_behind_the_stop_earns_nothing_of_its_own():
    task = stopping(testbeds.autoregressive(prompts=2))
    rows = jnp.arange(2, dtype=jnp.int32)
    batch = jax.jit(lambda key: written(task, task.model, rows, key, Sampling(), repeats=4000))(jax.random.key(0))
    length = np.asarray(batch.mask.sum(axis=1))
    assert set(length.tolist()) == {1, 2, 3, 4}
    np.testing.assert_array_equal(np.asarray(batch.finished)[length < 4], True)
    np.testing.assert_allclose(batch.reward.reshape(2, -1).mean(axis=1), testbeds.exact_returns(task, task.model), atol=0.03)
