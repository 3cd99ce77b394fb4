"""The nearest keys are those of a k-d tree and of brute force, in however many blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from polopt.data.nearest import Keys


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 3])
def test_the_nearest_are_those_of_a_tree_and_of_brute_force(block, k):
    rng = np.random.default_rng(0)
    keys, query = rng.normal(size=(200, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    rows = np.asarray(Keys.of(jnp.asarray(keys), block).nearest(jnp.asarray(query), k))
    tree = cKDTree(keys).query(query, k=list(range(1, k + 1)))[1]
    brute = np.argsort(((query[:, None] - keys[None]) ** 2).sum(-1), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, tree)
    np.testing.assert_array_equal(rows, brute)


def test_what_fills_the_last_block_is_never_near():
    rows = Keys.of(jnp.full((5, 2), 100.0), 3).nearest(jnp.zeros((4, 2)), 2)
    assert int(rows.max()) <= 4


def test_of_equal_keys_the_first_is_taken_in_every_block():
    keys = jnp.concatenate([jnp.ones((3, 2)), jnp.zeros((6, 2))])
    np.testing.assert_array_equal(Keys.of(keys, 4).nearest(jnp.zeros((1, 2)))[:, 0], [3])


def test_a_key_itself_is_nearest_to_itself_under_a_map():
    keys = jax.random.normal(jax.random.key(0), (2, 50, 3))
    rows = jax.vmap(lambda x: Keys.of(x, 16).nearest(x))(keys)
    np.testing.assert_array_equal(rows[..., 0], np.broadcast_to(np.arange(50), (2, 50)))
