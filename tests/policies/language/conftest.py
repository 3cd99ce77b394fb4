"""Policies for tests."""

import equinox as eqx
import jax
import numpy as np
import pytest

from polopt.policies.language.transformer import Transformer


def filled(config, seed=0):
    """A transformer whose every parameter, norms and biases too, is N(0, 0.3^2): none at rest, none like another, and nothing to compile."""
    shapes = eqx.filter_eval_shape(Transformer.random, config, jax.random.key(0))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.numpy.asarray(0.3 * generator.standard_normal(x.shape), x.dtype), shapes)


@pytest.fixture
def policy_of():
    return filled
