"""PSFT's oracles: where a demonstrated token stops to count, and where it is fine-tuning."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.loops.prompting import Demonstrated
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.psft import ProximalLikelihood, proximal_likelihood, psft
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, an_update, every_field_counts, same_in_pieces, trained, weights


@pytest.mark.parametrize("ratio, high, weight", [(1.3, 0.28, 0.0), (1.2, 0.28, 1.2), (0.5, 0.28, 0.5), (1.0, 0.28, 1.0), (30.0, np.inf, 30.0)])
def test_the_weight(ratio, high, weight):
    """Oracles 1 and 3: no lower bound; without an upper one it is importance-weighted."""
    value, (slope,) = agree(lambda x, o: proximal_likelihood(x, o, high), np.array([np.log(ratio) - 2.0]), np.array([-2.0]))
    np.testing.assert_allclose((value[0], -slope[0]), (-min(ratio, 1 + high), weight), rtol=1e-9)


def test_the_region_binds_on_unlikely_tokens_only():
    """Oracle 4: pi_old = .9 never reaches the bound, pi_old = .01 is cut at .0128."""
    old = jnp.log(jnp.array([[0.9], [0.01], [0.01]]))
    found = weights(ProximalLikelihood(), an_update(jnp.log(jnp.array([[1.0], [0.0127], [0.0129]])), old=old, advantage=jnp.ones((3, 1))))
    np.testing.assert_allclose(found, [[1 / 0.9], [1.27], [0.0]], rtol=1e-4)


def plain(task, **changes):
    method = dataclasses.replace(psft(task), sampler=Demonstrated(8), step_rule=Sgd(8.0), minibatches=1)
    return dataclasses.replace(method, **changes)


def test_the_first_update_is_fine_tuning():
    """Oracle 2, in the loop; and several updates are not."""
    task = testbeds.chain(prompts=8, length=2, vocabulary=4, low=0.1, high=0.3, steps=4)
    for minibatches, same in ((1, True), (4, False)):
        method = plain(task, minibatches=minibatches, epochs=minibatches)
        gap = np.abs(trained(method, task, 1) - trained(dataclasses.replace(method, objective=LogLikelihood()), task, 1)).max()
        assert (gap < 1e-6) == same


def test_probabilities_stop_near_the_bound():
    """Small steps, many updates a batch: no demonstrated token passes the bound by more than a step."""
    task = testbeds.bandit(prompts=8, answers=5, success=0.1, steps=4)
    p = trained(plain(task, epochs=50, step_rule=Sgd(0.1)), task, 1).reshape(8, 5)
    p = np.exp(p[:, 0]) / np.exp(p).sum(1)
    assert (p > 0.127).all() and (p < 0.132).all()


def test_the_loop():
    task = testbeds.chain(prompts=8, length=2, vocabulary=4, low=0.1, high=0.3, steps=4)
    same_in_pieces(plain(task, epochs=2, minibatches=2), task, 2)
    every_field_counts(plain(task, epochs=4), task, objective__high=0.1)
    with pytest.raises(ValueError, match="above 0"):
        replace(psft(task), {"high": 0.0})
