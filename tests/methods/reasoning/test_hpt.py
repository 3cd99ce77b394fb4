"""HPT's oracles: the unified estimator against the losses of its rows, the gate, and what a failing question contributes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.loops.language import Judged
from polopt.loops.prompting import Accompanied
from polopt.methods.reasoning.hpt import Gate, Hybrid, clip_mask, hpt, unified
from polopt.objectives import surrogates
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, every_field_counts, same_in_pieces

RNG = np.random.default_rng(0)
LOG_PROB, ADVANTAGE = np.log(RNG.uniform(0.1, 0.9, (3, 4))), RNG.normal(size=(3, 4))
OLD = LOG_PROB + 0.3 * RNG.normal(size=(3, 4))
ONES = np.ones((3, 4))


def slope(function, *arrays):
    return agree(function, *arrays)[1][0]


def test_fine_tuning_and_reinforce():
    """Oracle 2: with the policy as its denominator, A grad log pi."""
    np.testing.assert_allclose(slope(lambda x, a: unified(x, x, a, 1.0), LOG_PROB, ONES), -1.0)
    np.testing.assert_allclose(slope(lambda x, a: unified(x, x, a, 1.0), LOG_PROB, ADVANTAGE), -ADVANTAGE)


def test_ppo():
    """Oracle 2: with the old policy and the clip's mask, the gradient of the clipped surrogate."""
    found = slope(lambda x, o, a: unified(x, o, a, clip_mask(x, o, a, 0.2, 0.2)), LOG_PROB, OLD, ADVANTAGE)
    wanted = slope(lambda x, o, a: surrogates.clipped(x, o, a, 0.2), LOG_PROB, OLD, ADVANTAGE)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert (found == 0).any() and (found != 0).any()


def test_cispo():
    """With the larger of the old policy and pi / (1 + eps) as its denominator: the ratio is cut and no token is."""
    found = slope(lambda x, d, a: unified(x, d, a, 1.0), LOG_PROB, np.maximum(OLD, LOG_PROB - np.log(1.2)), ADVANTAGE)
    wanted = slope(lambda x, o, a: surrogates.cispo(x, o, a, high=0.2), LOG_PROB, OLD, ADVANTAGE)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_demonstrations_without_a_denominator():
    """Oracle 3: SRFT's weight is pi, LUFFY's pi f'(pi), the gradient of f(pi) = pi / (pi + .1)."""
    p = np.exp(LOG_PROB)
    np.testing.assert_allclose(-slope(lambda x, z: unified(x, z, 1.0, 1.0), LOG_PROB, 0 * ONES), p, rtol=1e-9)
    shaped = np.log((p + 0.1) ** 2 / 0.1)
    np.testing.assert_allclose(-slope(lambda x, z: unified(x, z, 1.0, 1.0), LOG_PROB, shaped), 0.1 * p / (p + 0.1) ** 2, rtol=1e-9)


TASK = testbeds.chain(prompts=6, length=2, vocabulary=3, success=0.7, steps=4)


def judged(rewards):
    """Own completions with these rewards (questions, n), each group with its demonstration, before credit is given."""
    sampler = Accompanied(*rewards.shape)
    batch = sampler.gather(sampler.init(TASK, jax.random.key(0)), TASK, TASK.model, jax.random.key(1))[0]
    reward = np.concatenate([rewards, np.ones((len(rewards), 1))], 1).ravel().astype(np.float32)
    zeros = jnp.zeros(batch.mask.shape)
    return Judged(batch._replace(reward=jnp.asarray(reward)), zeros, batch.mask, zeros, None, None, None)


def test_the_sampler():
    """A group is the policy's completions of a prompt, and behind them its demonstration."""
    batch = judged(np.zeros((4, 3))).batch
    np.testing.assert_array_equal(batch.demonstration.reshape(4, 4), [[False] * 3 + [True]] * 4)
    np.testing.assert_array_equal(batch.group.reshape(4, 4), np.repeat(np.arange(4)[:, None], 4, 1))
    assert (batch.index.reshape(4, 4) == batch.index.reshape(4, 4)[:, :1]).all()
    shown = np.asarray(batch.tokens)[np.asarray(batch.demonstration)]
    np.testing.assert_array_equal(shown, np.asarray(TASK.prompts.demonstration)[batch.index[3::4]])
    without = dataclasses.replace(TASK, prompts=dataclasses.replace(TASK.prompts, demonstration=None, demonstration_mask=None))
    assert "has none" in Accompanied(4, 3).refuse(without)


@pytest.mark.parametrize("gate, solved", [(0.0, [False, True, True]), (0.25, [False, False, True]), (1.0, [False] * 3), (-0.5, [True] * 3)])
def test_the_gate(gate, solved):
    """Oracles 1 and 4: all of a solved question's own completions, or the demonstration alone."""
    given = judged(np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0.0]]))
    found = np.asarray(Gate(gate)(given, None, 0.0))[:, 0].reshape(3, 5)
    np.testing.assert_array_equal(found, [[True] * 4 + [False] if s else [False] * 4 + [True] for s in solved])


def test_the_credit():
    """(r - P) T / L_max, which the aggregation's 1 / T makes a sum over L_max; c for demonstrations."""
    given = judged(np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
    found = np.asarray(Hybrid(0.3, 10.0).advantage(given.batch, given)).reshape(3, 5)
    centred = np.array([[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5], [0, 0, 0, 0]])
    np.testing.assert_allclose(found, np.concatenate([centred * 2 / 10, np.full((3, 1), 0.3)], 1), rtol=1e-5)


def test_the_loop():
    method = dataclasses.replace(hpt(TASK), step_rule=Sgd(10.0), minibatches=1, sampler=Accompanied(4, 3), selection=Gate(0.4))
    same_in_pieces(method, TASK, 4)
    changes = dict(advantage__demonstration=0.2, advantage__length=5.0, entropy_coefficient=0.3)
    every_field_counts(replace(method, {"minibatches": 2}), TASK, selection__gate=-1.0, **changes)
