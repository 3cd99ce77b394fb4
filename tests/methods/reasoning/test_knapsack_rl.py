"""The oracles of Knapsack RL: the value of completions, the best allocation, and what the sampler remembers."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.methods.reasoning.knapsack_rl import Knapsack, allocation, gain, knapsack_rl, value
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, trained


def test_the_value():
    """Oracles 1 and 2."""
    np.testing.assert_allclose([value(8, 0.3), value(1, 0.3)], [0.942286 * 0.147, 0.0], rtol=1e-5, atol=1e-12)
    p = np.linspace(0, 1, 3001)
    info = value(10**6, p[1:-1])
    np.testing.assert_allclose([p[1:-1][np.argmax(info)], info.max()], [1 / 3, 4 / 27], rtol=1e-6)
    np.testing.assert_allclose(gain(np.arange(9), 0.3), np.diff(value(np.arange(10), 0.3)), atol=1e-12)


def spent(success, *rest):
    found, _ = agree(lambda p: allocation(p, *rest) + 0 * p, np.array(success), moves=())
    return found.astype(int).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_allocation_against_all_others(seed):
    """Oracle 4."""
    success, budget, low, up = np.random.default_rng(seed).uniform(0.05, 0.9, 4), 13, 1, 6
    worth = [value(np.array(n), success).sum() for n in itertools.product(range(low, up + 1), repeat=4) if sum(n) == budget]
    found = spent(success, budget, low, up)
    assert sum(found) == budget
    np.testing.assert_allclose(value(np.array(found), success).sum(), max(worth), rtol=1e-12)


@pytest.mark.parametrize(
    "success, rest, wanted",
    [
        ([0.1, 0.5, 0.9], (6, 2, 8), [2, 2, 2]),  # oracle 3
        ([0.4] * 4, (16, 2, 8), [4] * 4),
        ([0.4, 0.0], (16, 2, 16, 0.02), [3, 13]),  # gains of .4 after 2: .035, after 3: .018
        ([0.0, 1.0, 0.0], (12, 2, 8), [5, 2, 5]),  # what nothing is known to help goes to the hopeless in turn
        ([0.0, 1.0, 1 - 1e-6], (17, 2, 8), [8, 4, 5]),  # then to the others, the harder first
    ],
)
def test_particular_allocations(success, rest, wanted):
    assert spent(success, *rest) == wanted


def test_identical_prompts_share_alike():
    found = spent([0.4] * 3, 10, 2, 8)
    assert sum(found) == 10 and max(found) - min(found) <= 1


TASK = testbeds.bandit(prompts=4, success=[0.999, 0.4, 0.1, 0.5], steps=4)


def gathered(sampler, state):
    return sampler.gather(state, TASK, TASK.model, jax.random.key(1))[0]


def test_the_sampler():
    """Even shares until all prompts are known, then the knapsack's; a group's completions answer its prompt."""
    sampler = Knapsack(prompts=4, completions=8, up=20)
    state = sampler.init(TASK, jax.random.key(0))
    np.testing.assert_array_equal(np.bincount(gathered(sampler, state).group), 8)
    known = state._replace(success=jnp.array([0.999, 0.4, 0.1, 0.5]), seen=jnp.ones(4, bool))
    batch = gathered(sampler, known)
    counts = np.bincount(batch.index, minlength=4)
    np.testing.assert_array_equal(counts, allocation(np.array([0.999, 0.4, 0.1, 0.5]), 32, 2, 20))
    assert counts[2] > counts[0] and len({(int(i), int(g)) for i, g in zip(batch.index, batch.group)}) == 4
    partly = known._replace(seen=jnp.array([True, True, False, True]))
    np.testing.assert_array_equal(np.bincount(gathered(sampler, partly).group), 8)


def test_what_is_remembered():
    """The mean reward of the last group, with a part of the older; failures of the verifier count for nothing."""
    sampler = Knapsack(prompts=4, completions=8, memory=0.25)
    state = sampler.init(TASK, jax.random.key(0))
    batch = gathered(sampler, state)._replace(reward=jnp.tile(jnp.array([1.0, 0.0]), 16), valid=jnp.ones(32, bool))
    first = sampler.tell(state, TASK, TASK.model, batch)
    np.testing.assert_allclose(first.success, 0.5)
    assert first.seen.all()
    second = sampler.tell(first, TASK, TASK.model, batch._replace(valid=batch.reward > 0))
    np.testing.assert_allclose(second.success, 0.25 * 0.5 + 0.75)
    none = sampler.tell(first, TASK, TASK.model, batch._replace(valid=jnp.zeros(32, bool)))
    np.testing.assert_allclose(none.success, first.success)


def test_a_budget_that_cannot_be_spent_is_refused():
    assert "from 2 to 4 completions, but 8" in Knapsack(prompts=4, up=4).refuse(TASK)
    assert "has 4" in Knapsack(prompts=5).refuse(TASK)


def test_the_loop():
    """Micro-batches change nothing, and each field of the sampler does something once groups are known."""
    method = dataclasses.replace(knapsack_rl(TASK), step_rule=Sgd(4.0), sampler=Knapsack(prompts=4, completions=8, up=20))
    base = trained(method, TASK)
    np.testing.assert_allclose(trained(dataclasses.replace(method, micro_batch=8), TASK), base, rtol=1e-5, atol=1e-6)
    for name, new in (("low", 5), ("up", 9)):
        assert np.abs(trained(replace(method, {f"sampler.{name}": new}), TASK) - base).max() > 1e-6, name
