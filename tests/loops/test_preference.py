"""The preference loop: what it draws, what it compares with, what moves, and that none of it depends on how the work is split."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.preferences.training import Table, game, scored
from polopt.core.parts import replace
from polopt.data.prompts import Graded
from polopt.data.testbeds import linear
from polopt.loops.preference import (
    AllPairs,
    Averaged,
    BestAndWorst,
    Columns,
    EveryIteration,
    Groups,
    LeastSquares,
    Minibatches,
    Preference,
    Refreshed,
    best_first,
    log_probs,
    mean_loss,
    pick,
)
from polopt.loops.preference_sources import Comparisons, Draws, Judged, Logged, Online, Rewards
from polopt.methods.preferences.copg import Contrastive
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.ipo import Squared
from polopt.methods.preferences.rebel import RelativeReward
from polopt.objectives.preferences import dpo, ipo
from polopt.optim.adam import Adam
from polopt.policies.language.sampling import Sampling
from polopt.policies.language.tabular import TabularPolicy
from tests.methods.preferences.helpers import log_of_pairs

REWARDS = jnp.array([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])


def table(seed: int = 0, prompts: int = 2, arms: int = 4) -> TabularPolicy:
    return TabularPolicy(jax.random.normal(jax.random.key(seed), (prompts, arms)))


def groups_of(scores) -> Groups:
    scores = jnp.asarray(scores)
    tokens = jnp.arange(scores.size).reshape(*scores.shape, 1)
    return Groups(jnp.arange(scores.shape[0]), tokens, tokens >= 0, scores)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_all_pairs():
    built = AllPairs()(groups_of([[0.3, 0.1, 0.2], [1.0, 1.0, 5.0]]))
    assert built.index.tolist() == [0, 0, 0, 1, 1, 1]
    assert built.tokens[:, :, 0].tolist() == [[0, 1], [0, 2], [2, 1], [3, 4], [5, 3], [5, 4]]  # equal ones as they came
    assert (built.score[:, 0] >= built.score[:, 1]).all()


def test_best_and_worst():
    built = BestAndWorst()(groups_of([[0.3, 0.1, 0.2], [1.0, 4.0, 5.0]]))
    assert built.tokens[:, :, 0].tolist() == [[0, 1], [5, 3]]
    assert best_first(groups_of([[0.3, 0.1, 0.2]])).tokens[0, :, 0].tolist() == [0, 2, 1]


def test_everything_is_picked_before_anything_is_picked_twice():
    chosen = pick(jax.random.key(0), 5, 12)
    assert sorted(chosen[:5].tolist()) == sorted(chosen[5:10].tolist()) == list(range(5)) and chosen.shape == (12,)
    assert len(set(pick(jax.random.key(1), 40, 7).tolist())) == 7


# -- log-probabilities -------------------------------------------------------------------------------------------------


def test_the_columns_are_sums_of_token_log_probabilities():
    policy = TabularPolicy(jax.random.normal(jax.random.key(0), (2, 13, 3)), "autoregressive")
    prompts = log_of_pairs(prompts=2).preferences.prompts
    tokens = jax.random.randint(jax.random.key(1), (5, 2, 3), 0, 3)
    mask = jnp.arange(3)[None, None] < jnp.array([[3, 1], [2, 3], [3, 3], [0, 2], [1, 1]])[..., None]
    groups = Groups(jnp.arange(5), tokens, mask, jnp.zeros((5, 2)))
    whole = log_probs(policy, prompts, groups)
    token = policy.score(prompts.tokens[:5], prompts.mask[:5], tokens[:, 1], mask[:, 1]).log_prob
    np.testing.assert_allclose(whole[:, 1], jnp.where(mask[:, 1], token, 0).sum(1), rtol=1e-6)
    assert whole[3, 0] == 0  # a response without a token


@pytest.mark.parametrize("rows", [1, 3, 10, 64])
def test_scoring_in_parts_changes_no_number(rows):
    policy, task = table(), log_of_pairs(pairs=5, prompts=2)
    log = task.preferences
    groups = Groups(jnp.arange(5), log.responses, log.mask, log.score)
    sums = lambda logits, rows: log_probs(TabularPolicy(logits), log.prompts, groups, rows=rows)  # noqa: E731
    np.testing.assert_allclose(sums(policy.logits, rows), sums(policy.logits, None), rtol=1e-6)
    weighted = lambda logits, rows: (sums(logits, rows) * jnp.arange(10.0).reshape(5, 2)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(weighted)(policy.logits, rows), jax.grad(weighted)(policy.logits, None), atol=1e-5)


# -- a log -------------------------------------------------------------------------------------------------------------


def test_logged_pairs_with_a_frozen_reference():
    """The first loss is that of the objectives' function with the model as reference, and the reference's column never changes."""
    task = log_of_pairs(pairs=12)
    method = Preference(Logged(groups=None), Logistic(0.3), Minibatches(Adam(learning_rate=0.1)))
    state = method.init(task, jax.random.key(0))
    held = state.held["start"]
    step = jax.jit(method.step)
    state, metrics = step(task, state)
    zero = np.zeros(12)
    assert metrics["loss"] == pytest.approx(float(dpo(zero, zero, zero, zero, 0.3).mean()))
    state, metrics = step(task, state)
    np.testing.assert_array_equal(state.held["start"], held)
    log = task.preferences
    now = log_probs(state.policy, log.prompts, Groups(jnp.arange(12), log.responses, log.mask, log.score))
    _, metrics = step(task, state)
    expected = dpo(*(np.asarray(x, np.float64) for x in (now[:, 0], now[:, 1], held[:, 0], held[:, 1])), 0.3)
    assert metrics["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert metrics["accuracy"] > 0.5


def test_length_normalisation_is_that_of_the_objective():
    """IPO with means is `ipo(length_normalised=True)`."""
    policy = TabularPolicy(jax.random.normal(jax.random.key(0), (1, 13, 3)), "autoregressive")
    other = TabularPolicy(policy.logits + jax.random.normal(jax.random.key(2), policy.logits.shape), "autoregressive")
    task = log_of_pairs(pairs=6)
    log = task.preferences
    tokens = jax.random.randint(jax.random.key(1), (6, 2, 3), 0, 3)
    lengths = jnp.array([[3, 1], [2, 3], [3, 3], [1, 2], [1, 1], [2, 1]])
    groups = Groups(jnp.arange(6), tokens, jnp.arange(3)[None, None] < lengths[..., None], log.score)
    method = Preference(Logged(), Squared(0.4), length_normalised=True)
    columns = Columns(method.log_probs(task, policy, groups), {"start": method.log_probs(task, other, groups)}, groups.score, lengths)
    now, before = (np.asarray(log_probs(p, log.prompts, groups), np.float64) for p in (policy, other))
    expected = ipo(now[:, 0], now[:, 1], before[:, 0], before[:, 1], 0.4, length_normalised=True, lengths=tuple(np.asarray(lengths).T))
    np.testing.assert_allclose(Squared(0.4)(columns), expected, rtol=1e-4)


def test_minibatches_visit_every_pair_once_a_pass():
    """With a step that is far too small to matter, the mean loss of a pass is the loss of the whole."""
    task = log_of_pairs(pairs=12)
    losses = []
    for minibatches in (1, 4):
        method = Preference(Logged(groups=None), Contrastive(0.3), Minibatches(Adam(learning_rate=1e-9), epochs=2, minibatches=minibatches))
        losses.append(jax.jit(method.step)(task, method.init(task, jax.random.key(0)))[1]["loss"])
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-5)


# -- responses drawn now -----------------------------------------------------------------------------------------------


def test_rewards_of_drawn_responses():
    task = scored(table(), REWARDS, steps=2)
    method = Preference(Online(prompts_drawn=6, responses=3, kl_coefficient=0.5), Contrastive(0.3))
    policies = {"current": table(1), "start": task.model}
    drawn = method.source.draw(method, task, (), policies, jax.random.key(0))
    prompt, answer = task.prompts.tokens[drawn.groups.index, -1][:, None], drawn.groups.tokens[:, :, 0]
    ratio = policies["current"].log_probs()[prompt, answer] - task.model.log_probs()[prompt, answer]
    np.testing.assert_allclose(drawn.groups.score, REWARDS[prompt, answer] - 0.5 * ratio, atol=1e-5)
    np.testing.assert_allclose(drawn.anchor["start"], task.model.log_probs()[prompt, answer], rtol=1e-5)
    assert drawn.metrics["kl"] == pytest.approx(float(ratio[:, 0].mean()), abs=1e-5)
    assert sorted(drawn.groups.index.tolist()) == [0, 0, 0, 1, 1, 1]


def test_the_temperature_is_that_of_the_drawing():
    """A column of a policy that is drawn from at a temperature is the log-probability at that temperature."""
    task = scored(table(), REWARDS, steps=2)
    method = Preference(Online(prompts_drawn=4, sampling=Sampling(temperature=0.5)), Contrastive(0.3))
    drawn = method.source.draw(method, task, (), {"current": task.model, "start": task.model}, jax.random.key(0))
    prompt, answer = drawn.groups.index[:, None], drawn.groups.tokens[:, :, 0]
    np.testing.assert_allclose(drawn.anchor["start"], jax.nn.log_softmax(task.model.logits / 0.5)[prompt, answer], rtol=1e-5)


def test_comparisons():
    """Of three responses each has the share of the other two that it beats; probabilities or wins; without a judge the rewards decide."""
    P = jnp.array([[0.5, 1.0, 0.7], [0.0, 0.5, 0.2], [0.3, 0.8, 0.5]])
    task = game(table(prompts=1, arms=3), P, steps=1)
    groups = Groups(jnp.zeros(1, int), jnp.array([[[0], [1], [2]]]), jnp.ones((1, 3, 1), bool), jnp.zeros((1, 3)))
    shares = Judged(Table(), sampled=False)(task, groups, jax.random.key(0))
    np.testing.assert_allclose(shares, [[0.85, 0.1, 0.55]], rtol=1e-6)
    many = jax.vmap(lambda k: Judged(Table())(task, groups, k))(jax.random.split(jax.random.key(1), 4000))
    assert set(np.unique(many)) <= {0.0, 0.5, 1.0}
    np.testing.assert_allclose(many.mean(0), shares, atol=0.03)
    np.testing.assert_allclose(many.sum(2), 1.5)
    by_reward = Comparisons(sampled=False)(scored(table(), REWARDS, steps=1), groups, jax.random.key(0))
    np.testing.assert_allclose(by_reward, [[0.0, 0.5, 1.0]])


def test_the_opponents_are_drawn_by_their_own_sampler():
    sure = lambda k: TabularPolicy(20.0 * jnp.tile(jax.nn.one_hot(jnp.array([k]), 4), (2, 1)))  # noqa: E731
    task = scored(sure(0), REWARDS, steps=1)
    method = Preference(Online(prompts_drawn=4, responses=3, opponent=Draws("previous")), Contrastive())
    drawn = method.source.draw(method, task, (), {"current": sure(1), "start": sure(0), "previous": sure(3)}, jax.random.key(0))
    assert (drawn.groups.tokens[:, 0] == 1).all() and (drawn.groups.tokens[:, 1:] == 3).all()


class Failing(eqx.Module):
    """Fails on answer 0."""

    host = False

    def __call__(self, prompts, index, tokens, mask):
        return Graded(jnp.where(tokens[:, 0] == 0, 0.0, 1.0), tokens[:, 0] != 0)


def test_a_response_that_could_not_be_graded_is_left_out():
    """Its group counts neither in the loss nor in the gradient, and the share of such responses is reported."""
    task = dataclasses.replace(scored(table(), REWARDS, steps=4), verifier=Failing())
    method = Preference(Online(prompts_drawn=64), Contrastive(0.3), Minibatches(Adam(learning_rate=0.1)))
    state = method.init(task, jax.random.key(0))
    for _ in range(3):
        state, metrics = jax.jit(method.step)(task, state)
        assert np.isfinite(metrics["loss"]) and 0 < metrics["skipped"] < 1
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.policy))
    columns = Columns(jnp.array([[1.0, 2.0], [5.0, 5.0]]), {"start": jnp.zeros((2, 2))}, jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.ones((2, 2)))
    alone = mean_loss(Contrastive(0.3), jax.tree.map(lambda x: x[:1], columns), jnp.array([True]))[0]
    assert mean_loss(Contrastive(0.3), columns, jnp.array([True, False]))[0] == pytest.approx(float(alone))


# -- anchors and what moves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [EveryIteration(), Refreshed(2), Averaged(0.75)])
def test_what_previous_means(schedule):
    """The policy of this iteration, the one of the last refresh, or the moving average."""
    task = scored(table(), REWARDS, steps=10)
    method = Preference(Online(prompts_drawn=8, pairs=AllPairs()), RelativeReward(), Minibatches(Adam(learning_rate=0.1)), schedule=schedule)
    state = method.init(task, jax.random.key(0))
    seen, average, step = [task.model.logits], task.model.logits, jax.jit(method.step)
    for i in range(4):
        state, _ = step(task, state)
        seen.append(state.policy.logits)
        average = 0.75 * average + 0.25 * seen[-1]
        if isinstance(schedule, EveryIteration):
            assert state.previous == ()  # the policy itself serves
        else:
            expected = average if isinstance(schedule, Averaged) else seen[(i + 1) // 2 * 2]
            np.testing.assert_allclose(state.previous.logits, expected, atol=1e-6)


def test_only_trainable_leaves_move():
    task = dataclasses.replace(linear(prompts=8, answers=4, features=3), steps=4)
    method = Preference(Online(prompts_drawn=8), Contrastive(), Minibatches(Adam(learning_rate=0.1)))
    state, _ = jax.jit(method.step)(task, method.init(task, jax.random.key(0)))
    np.testing.assert_array_equal(state.policy.logits, task.model.logits)
    np.testing.assert_array_equal(state.policy.features, task.model.features)
    assert not np.allclose(state.policy.weights, task.model.weights)


def test_the_least_squares_fit_is_exact():
    """REBEL's regression on every pair of four answers: pi exp(eta r) / Z; what was not drawn stays."""
    task = scored(table(prompts=2), REWARDS, steps=1)
    method = Preference(Online(prompts_drawn=400, pairs=AllPairs()), RelativeReward(0.7), LeastSquares(1e-5))
    state, metrics = jax.jit(method.step)(task, method.init(task, jax.random.key(0)))
    np.testing.assert_allclose(state.policy.log_probs(), jax.nn.log_softmax(task.model.logits + 0.7 * REWARDS), atol=1e-3)
    assert metrics["loss"] < 1e-6
    never = TabularPolicy(task.model.logits.at[:, 0].set(-60.0))
    alone = dataclasses.replace(task, model=never)
    state, _ = jax.jit(method.step)(alone, method.init(alone, jax.random.key(0)))
    np.testing.assert_array_equal(state.policy.logits[:, 0], never.logits[:, 0])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_refused():
    task = log_of_pairs(pairs=8)
    reason = Preference(Logged(groups=9), Logistic()).refuse(task)
    assert "learns from 9 groups an iteration" in reason and "has 8" in reason
    single = jax.tree.map(lambda x: x, task.preferences)
    single = type(single)(single.prompts, single.responses[:, :1], single.mask[:, :1], single.score[:, :1])
    alone = dataclasses.replace(task, preferences=single)
    assert "compares 2 responses to a prompt, but an exact problem gives 1" in Preference(Logged(groups=8), Logistic()).refuse(alone)
    assert "is not a square" in Preference(Logged(groups=8), Logistic(), LeastSquares()).refuse(task)
    assert "cannot split 8 groups an iteration into 9" in Preference(Logged(groups=8), Logistic(), Minibatches(minibatches=9)).refuse(task)
    paired = Preference(Online(prompts_drawn=2, responses=3, pairs=AllPairs()), Logistic(), Minibatches(minibatches=7))
    assert "cannot split 6 groups" in paired.refuse(scored(table(), REWARDS, steps=1))
    three = Preference(Online(responses=3), Logistic())
    assert "compares 2 responses to a prompt, but is given 3" in three.refuse(scored(table(), REWARDS, steps=1))
    assert replace(three, {"responses": 2}).refuse(scored(table(), REWARDS, steps=1)) is None
    no_verifier = game(table(prompts=1), jnp.full((4, 4), 0.5), steps=1)
    assert "no verifier" in Preference(Online(annotator=Rewards()), Contrastive()).refuse(no_verifier)
    assert "no verifier" in Preference(Online(annotator=Comparisons()), Logistic()).refuse(no_verifier)
