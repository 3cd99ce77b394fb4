"""D3S's oracles: the subset of the greatest variance, the tokens in it, and the shares along the training."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.loops.language import Everything
from polopt.methods.reasoning.d3s import DownSampling, d3s, widest
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, same_in_pieces, trained


@pytest.mark.parametrize("x, kept", [([2.65, *[-0.38] * 7], [2.65, -0.38]), ([-1.0, -1, 1, 1], [1, -1])])
def test_two_of_a_few(x, kept):
    """Oracles 1 and 2."""
    x = np.array(x)
    found, _ = agree(lambda x: widest(x, 2) + 0 * x, x, moves=())
    assert sorted(x[found > 0], reverse=True) == kept


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 10])
def test_every_subset_tried(count):
    """Oracle 2, and the lemma (oracle 4): what is chosen never has less variance than the whole."""
    x = np.random.default_rng(count).normal(size=10)
    found = widest(x, count)
    assert found.sum() == count
    best = max(np.var(s) for s in itertools.combinations(x, count))
    np.testing.assert_allclose(np.var(x[found]), best, atol=1e-12)
    assert count == 1 or np.var(x[found]) >= np.var(x) - 1e-12


def judged(advantage, tokens):
    learn = jnp.ones((len(advantage), tokens), bool)
    return SimpleNamespace(advantage=jnp.asarray(advantage, jnp.float32)[:, None] * learn, learn=learn)


def test_the_shares_along_the_training():
    """(1 - x) first + x last, of completions and of their tokens; each field counts."""
    advantage, entropy = np.linspace(-1, 1, 20), jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (20, 10)), jnp.float32)
    chosen = DownSampling(0.1, 0.5, 0.2, 0.6)
    for progress, rows, tokens in ((0.0, 2, 4), (0.5, 6, 24), (1.0, 10, 60)):
        found = np.asarray(chosen(judged(advantage, 10), entropy, progress))
        assert found.any(1).sum() <= rows and found.sum() == tokens
    for name in ("first", "last", "first_tokens", "last_tokens"):
        other = dataclasses.replace(chosen, **{name: 1.0})
        assert (other(judged(advantage, 10), entropy, 0.5) != chosen(judged(advantage, 10), entropy, 0.5)).any()


def test_the_most_telling_tokens():
    """Large |advantage| times entropy, among the chosen completions alone."""
    entropy = jnp.array([[0.1, 3.0], [5.0, 5.0], [0.2, 1.0], [0.1, 0.1]])
    found = DownSampling(0.5, 0.5, 0.5, 0.5)(judged([2.0, 0.0, -2.0, 0.5], 2), entropy, 0.0)
    np.testing.assert_array_equal(found, [[False, True], [False, False], [False, True], [False, False]])


def small(task, **changes):
    method = dataclasses.replace(d3s(task), step_rule=Sgd(10.0), minibatches=1)
    return replace(method, {"sampler.prompts": 4, "sampler.completions": 8, **changes})


def test_all_of_it_is_the_host():
    """Oracle 3, in the loop; and what is left out matters, in micro-batches too."""
    task = testbeds.chain(prompts=6, length=2, vocabulary=3, success=0.7, steps=4)
    whole = small(task, **{f"selection.{name}": 1.0 for name in ("first", "last", "first_tokens", "last_tokens")})
    host = trained(dataclasses.replace(whole, selection=Everything()), task)
    np.testing.assert_allclose(trained(whole, task), host, atol=1e-6)
    assert np.abs(trained(small(task), task) - host).max() > 1e-3
    same_in_pieces(small(task), task, 8)
