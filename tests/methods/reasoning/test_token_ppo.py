"""PPO's oracles for tokens: where rewards come, what the critic learns, how the penalty's weight is steered."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data import testbeds
from polopt.loops.language import KLReward, NoPenalty
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.token_ppo import TokenValues, divergence, steered, token_ppo
from polopt.objectives import reduction
from polopt.optim.adam import Adam
from polopt.policies.language.log_linear import LogLinearPolicy
from polopt.policies.language.transformer import Transformer, tiny
from tests.contracts import wording
from tests.methods.reasoning.helpers import judged

STEP = Adam(0.1, anneal=False, max_grad_norm=None, epsilon=1e-8)


@pytest.mark.parametrize(("kl", "wanted"), [(2.0, 0.102), (1.1, 0.101), (1.0, 0.1), (0.95, 0.0995), (0.0, 0.098)])
def test_the_weight_is_steered(kl, wanted):
    """By .1 of the error, and never by more than 2 %."""
    np.testing.assert_allclose(steered(0.1, kl, 1.0), wanted, rtol=1e-6)


def test_the_divergence_of_a_completion():
    given = judged([1.0, 0.0], [0, 1], lengths=[2, 1], valid=[True, True])
    given = given._replace(old_log_prob=jnp.array([[-1.0, -1.0], [-1.0, 7.0]]), anchor_log_prob=jnp.array([[-1.5, -2.0], [-0.5, 0.0]]))
    np.testing.assert_allclose(divergence(given), (0.5 + 1.0 - 0.5) / 2, rtol=1e-6)


def task(**more):
    return testbeds.autoregressive(prompts=4, length=3, vocabulary=2, seed=1, steps=4, **more)


def scored(part, on, penalty=None, completions=16):
    """(the first batch as judged, the part's memory before it, what the part makes of it)."""
    method = dataclasses.replace(token_ppo(on), sampler=Grouped(4, completions), penalty=penalty or NoPenalty(), advantage=part)
    state = method.init(on, jax.random.key(3))
    batch, _ = method.sampler.gather(state.sampler, on, state.policy, jax.random.key(4))
    return method.judge(on, state, batch)[0], state.advantage, part(state.advantage, on, batch, method.judge(on, state, batch)[0])


def test_the_first_advantages_are_the_returns():
    """Values start at 0, so that with lam = 1 every token of a completion has its reward, standardised."""
    given, _, (advantage, _) = scored(TokenValues(trace=1.0, step=STEP), task())
    wanted = reduction.standardise(jnp.broadcast_to(given.batch.reward[:, None], given.learn.shape), given.learn)
    np.testing.assert_allclose(advantage, wanted, atol=1e-5)


def test_the_penalty_is_borne_from_each_token_on():
    """A_t holds the penalties of t and later tokens, not those before."""
    on = task()
    other = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(0), x.shape), on.model)
    given, _, (advantage, _) = scored(TokenValues(trace=1.0, step=STEP), on.with_model(other), KLReward(0.5))
    score = given.batch.reward - given.paid.sum(1)
    raw = score[:, None] + jnp.cumsum(given.paid[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(advantage, reduction.standardise(raw, given.learn), atol=1e-5)


def test_the_critic_learns_the_exact_values():
    """On a table with a row for every prefix, V is the chance that the sequence will be right."""
    on = task()
    part = TokenValues(trace=1.0, clip=1e3, epochs=200, step=dataclasses.replace(STEP, learning_rate=0.05))
    given, before, (_, after) = scored(part, on, completions=2000)
    np.testing.assert_array_equal(part.value(before.critic, on, given.batch), 0.0)
    values = part.value(after.critic, on, given.batch)
    right = testbeds.exact_returns(on, on.model)
    for q in range(4):
        np.testing.assert_allclose(values[given.batch.index == q, 0], right[q], atol=0.05)


def test_tokens_behind_the_end_do_not_matter():
    """Put NaN into the log-probabilities where nothing was written, and look."""
    part = TokenValues(target=1.0, step=STEP)
    on = wording.prompts()
    given, state, (advantage, memory) = scored(part, on)
    hidden = jnp.where(given.batch.mask, given.old_log_prob, jnp.nan)
    again = part(state, on, given.batch, given._replace(old_log_prob=hidden))
    np.testing.assert_array_equal(advantage, again[0])
    np.testing.assert_array_equal(memory.beta, again[1].beta)
    assert not given.batch.mask.all()


def test_only_the_head_learns_where_the_trunk_is_held():
    on = wording.prompts().with_model(Transformer.random(dataclasses.replace(tiny(8), layers=1), jax.random.key(1)))
    for tuned in (False, True):
        part = TokenValues(tune_trunk=tuned, epochs=2, step=STEP)
        given, before, _ = scored(part, on)
        rewards = jnp.arange(given.batch.reward.shape[0], dtype=jnp.float32)
        _, after = part(before, on, given.batch._replace(reward=rewards), given)
        moved = [not np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(m.critic.trunk) for m in (before, after)))]
        assert any(moved) == tuned
        assert not np.array_equal(before.critic.head.weight, after.critic.head.weight)


def test_a_model_without_states_is_refused():
    model = LogLinearPolicy(jnp.zeros((4, 2)), jnp.ones((4, 2, 3)))
    on = eqx.tree_at(lambda t: t.model, task(), model)
    assert "states" in token_ppo(on).refuse(on)
