"""The oracles of reward models: Bradley-Terry, ensembles of them, and best-of-n."""

from __future__ import annotations

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data.prompts import Graded
from polopt.loops.preference import AllPairs, Minibatches
from polopt.loops.preference_sources import Logged
from polopt.loops.reward_model import BradleyTerry, RewardModelling
from polopt.methods import registry
from polopt.methods.preferences.rm_ensemble import Mean, Uncertainty, Worst, best_of_n, best_of_n_kl, rank_weights
from polopt.optim.adam import Adam
from tests.methods.preferences.helpers import columns, log_of_pairs, pair


def learnt(method, task, updates: int, seed: int = 0):
    state = method.init(task, jax.random.key(seed))
    state, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: method.step(task, s), s, length=updates))(state)
    return state, jax.tree.map(lambda x: x[-1], metrics)


# -- Bradley-Terry -----------------------------------------------------------------------------------------------------


def test_bradley_terrys_numbers():
    """-log sigmoid of the difference less the offset; a penalty pins the rewards; equal ones are half of each order."""
    np.testing.assert_allclose(BradleyTerry(penalty=0.0)(pair(2.0)), math.log1p(math.exp(-2)), rtol=1e-6)
    np.testing.assert_allclose(BradleyTerry(offset=0.5, penalty=0.0)(pair(2.0)), math.log1p(math.exp(-1.5)), rtol=1e-6)
    np.testing.assert_allclose(BradleyTerry(penalty=0.1)(columns([[2.0, 1.0]], [[1, 0]])), math.log1p(math.exp(-1)) + 0.1 * 5, rtol=1e-6)
    np.testing.assert_allclose(BradleyTerry(penalty=0.0)(pair(2.0, order=-1)), math.log1p(math.exp(2)), rtol=1e-6)
    tied = (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2
    np.testing.assert_allclose(BradleyTerry(penalty=0.0)(pair(2.0, order=0)), tied, rtol=1e-6)


def test_a_reward_model_finds_the_log_odds():
    """Two arms of which one wins 3 of 4 comparisons: the rewards differ by log 3, and the ensemble's verifier says which is better."""
    task = log_of_pairs(arms=2, pairs=32)
    log = task.preferences
    responses = jnp.tile(jnp.array([[[0], [1]]] * 3 + [[[1], [0]]]), (8, 1, 1))
    log = type(log)(log.prompts, responses, log.mask, log.score)
    task = type(task)(task.model, None, 200, 1, (), None, "coins", preferences=log, held_out=log)
    fit = Minibatches(Adam(learning_rate=0.05, max_grad_norm=None))
    method = RewardModelling(Logged(groups=32), BradleyTerry(penalty=1e-6), fit, tune_trunk=False)
    state, metrics = learnt(method, task, 200)
    ensemble = method.policy(state)
    tokens = jnp.array([[0], [1]])
    raw = ensemble.members(log.prompts, jnp.zeros(2, int), tokens, tokens >= 0) * state.deviation[:, None]
    assert raw[0, 0] - raw[0, 1] == pytest.approx(math.log(3), abs=0.01)
    assert metrics["accuracy"] == pytest.approx(0.75)
    graded = ensemble(log.prompts, jnp.zeros(2, int), tokens, tokens >= 0)
    assert isinstance(graded, Graded) and graded.reward[0] > graded.reward[1] and graded.valid.all()


def test_rewards_are_on_one_scale():
    """Of the responses of the last iteration each member's rewards have mean 0 and deviation 1."""
    task = log_of_pairs(pairs=32)
    method = replace(registry.load("rm_ensemble")(task), {"groups": 32, "members": 3, "learning_rate": 0.05})
    state, _ = learnt(method, task, 5)
    log = task.preferences
    scores = method.policy(state).members(log.prompts, jnp.repeat(jnp.arange(32), 2), log.responses.reshape(64, 1), log.mask.reshape(64, 1))
    np.testing.assert_allclose(scores.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(1), 1, rtol=1e-4)
    assert not np.allclose(scores[0], scores[1])  # another head, another order


def test_a_frozen_trunk_stays():
    task = log_of_pairs()
    for tuned in (False, True):
        method = RewardModelling(Logged(groups=8, pairs=AllPairs()), tune_trunk=tuned, members=2)
        state, _ = learnt(method, task, 2)
        held = jax.tree.leaves(state.params.trunk)
        assert bool(held) == tuned
        if tuned:
            assert held[0].shape == (2, *task.model.logits.shape)


class Unreadable(eqx.Module):
    """A model that embeds nothing."""

    weight: jax.Array


def test_a_model_that_cannot_be_read_is_refused():
    task = log_of_pairs()
    bare = type(task)(Unreadable(jnp.zeros(1)), None, 1, 1, (), None, "bare", preferences=task.preferences, held_out=task.preferences)
    assert "`embed`, which Unreadable does not have" in registry.load("bt")(bare).refuse(bare)


# -- ensembles ---------------------------------------------------------------------------------------------------------


def test_the_aggregates():
    """Oracle 1: of 1, 2, 3 they are 2, 1 and 2 - .5 * 2/3 with the population's variance (2/3; the unbiased one would give 1.5)."""
    rewards = jnp.array([[1.0], [2.0], [3.0]])
    np.testing.assert_allclose([Mean()(rewards)[0], Worst()(rewards)[0], Uncertainty(0.5)(rewards)[0]], [2, 1, 1.666667], atol=1e-6)


def test_aggregates_of_one_and_of_identical_members():
    """Oracle 2."""
    one = jnp.array([[0.3, -2.0]])
    for aggregate in (Mean(), Worst(), Uncertainty(0.7)):
        np.testing.assert_allclose(aggregate(one), one[0])
        np.testing.assert_allclose(aggregate(jnp.tile(one, (4, 1))), one[0], rtol=1e-6)


def test_scales_of_the_aggregates():
    """Oracle 5: the worst case follows c R + d, the uncertainty only if lambda becomes lambda / c."""
    rewards = jax.random.normal(jax.random.key(0), (5, 7))
    np.testing.assert_allclose(Worst()(3 * rewards + 2), 3 * Worst()(rewards) + 2, rtol=1e-5)
    np.testing.assert_allclose(Uncertainty(0.5 / 3)(3 * rewards), 3 * Uncertainty(0.5)(rewards), rtol=1e-4, atol=1e-5)
    assert not np.allclose(Uncertainty(0.5)(3 * rewards), 3 * Uncertainty(0.5)(rewards), atol=0.1)


# -- best-of-n ---------------------------------------------------------------------------------------------------------


def test_best_of_ns_weights():
    """Oracle 3: N = 4, n = 2: 1/6, 2/6, 3/6 on ranks 2, 3, 4; n = 1 is the mean, n = N the best by the proxy."""
    np.testing.assert_allclose(rank_weights(4, 2), [0, 1 / 6, 2 / 6, 3 / 6])
    gold = np.array([3.0, -1.0, 0.5, 9.0])
    proxy = np.array([0.1, 0.9, 0.3, 0.2])
    assert best_of_n(proxy, gold, 1) == pytest.approx(gold.mean())
    assert best_of_n(proxy, gold, 4) == -1
    with pytest.raises(ValueError, match="n = 5, but must have 1 to 4"):
        best_of_n(proxy, gold, 5)


@pytest.mark.parametrize("n", [2, 3])
def test_best_of_n_is_the_mean_over_subsets(n):
    draw = np.random.default_rng(0)
    proxy, gold = draw.standard_normal((2, 6))
    subsets = [gold[list(s)][np.argmax(proxy[list(s)])] for s in itertools.combinations(range(6), n)]
    assert best_of_n(proxy, gold, n) == pytest.approx(np.mean(subsets))


def test_best_of_n_of_many():
    """No overflow: 12,500 responses, the paper's count; the weights sum to 1."""
    for n in (1, 100, 6000, 12_500):
        assert rank_weights(12_500, n).sum() == pytest.approx(1, rel=1e-9)


def test_the_kl_of_best_of_n():
    """Oracle 4."""
    np.testing.assert_allclose(best_of_n_kl(np.array([1, 4, 16])), [0, 0.636294, 1.835089], atol=1e-6)
