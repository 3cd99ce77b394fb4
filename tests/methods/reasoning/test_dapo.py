"""DAPO's oracles: the four changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.language import Aggregation
from polopt.loops.wording import Clipped
from polopt.methods.reasoning.dapo import SoftOverlong, dapo, overlong
from tests.methods.reasoning.helpers import chain, judged, update, weights


@pytest.mark.parametrize("length, wanted", [(1, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (30000, -1.0)])
def test_long_answers_are_punished_softly(length, wanted):
    np.testing.assert_allclose(overlong(length, 20480, 4096), wanted, atol=1e-7)


def test_the_punishment_is_a_share_of_the_greatest_length():
    task = chain(length=10)
    batch = judged([1, 0, 1], [0, 0, 0], lengths=[5, 8, 10]).batch
    np.testing.assert_allclose(SoftOverlong(cache=0.4)(task, batch), [0.0, -0.5, -1.0], atol=1e-6)
    np.testing.assert_allclose(SoftOverlong(cache=0.4, weight=2.0)(task, batch), [0.0, -1.0, -2.0], atol=1e-6)


def test_rare_tokens_may_grow():
    ratio = jnp.array([[1.25, 1.3, 0.75]])
    given = update(jnp.log(ratio), [1.0], old=jnp.zeros((1, 3)))
    np.testing.assert_allclose(weights(dapo().objective, given), [[1.25, 0.0, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(weights(Clipped(), given), [[0.0, 0.0, 0.75]], rtol=1e-6)


def test_every_token_counts_alike():
    learn = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
    found = weights(Clipped(), update(jnp.full((2, 3), -1.0), [1.0, 1.0], learn=learn), Aggregation("token"))
    np.testing.assert_allclose(found, learn / 4, rtol=1e-6)


def test_groups_have_right_and_wrong_answers():
    """Prompts that are solved nearly always are drawn again, until every group says something."""
    task = chain(prompts=8, length=1, success=(0.999, 0.999, 0.999, 0.999, 0.5, 0.5, 0.5, 0.5))
    method = dapo(task)

    @jax.jit
    def drawn(key):
        batch, _ = method.sampler.gather(method.sampler.init(task, key), task, task.model, key)
        return batch.reward.reshape(8, 8), batch.mask.any(axis=1).reshape(8, 8)

    reward, there = drawn(jax.random.key(0))
    right = np.asarray(jnp.sum(reward, axis=1))
    assert there.all() and ((right > 0) & (right < 8)).all()
