"""The language loop: shares that do not depend on a split, groups that stay whole, anchors, samplers."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.data import testbeds
from polopt.data.prompts import Graded
from polopt.loops.credit import GroupRelative, LeaveOneOut, Ones, Raw, Whitened
from polopt.loops.language import Aggregation, KLPenalty, KLReward, Language, NoPenalty, group_means, informative
from polopt.loops.prompting import Demonstrated, Grouped, Informative, Order, draw_prompts, joined, shuffled, written
from polopt.loops.wording import Clipped, LogLikelihood
from polopt.optim.sgd import Sgd

TASK = testbeds.chain(prompts=8, length=3, vocabulary=4, low=0.4, high=0.6, steps=50)
STOPPING = dataclasses.replace(TASK, stop=(3,))  # so that lengths differ


def method(**changes) -> Language:
    plain = Language(Grouped(4, 6), GroupRelative(), Clipped(), Sgd(1.0), aggregation=Aggregation("sequence"))
    return parts.replace(plain, changes)


def after(loop, task=STOPPING, iterations=1, seed=0):
    return jax.jit(lambda m, k: jax.lax.fori_loop(0, iterations, lambda _, s: m.step(task, s)[0], m.init(task, k)))(loop, jax.random.key(seed))


# -- aggregation -------------------------------------------------------------------------------------------------------

LEARN = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
GROUP = jnp.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    "mode, scale, expected",
    [
        ("token", 1.0, [1 / 6, 1 / 6, 1 / 6, 0]),
        ("sequence", 1.0, [1 / 9, 1 / 3, 1 / 6, 0]),
        ("constant", 1.0, [1 / 3, 1 / 3, 1 / 3, 0]),
        ("constant", 4.0, [1 / 12, 1 / 12, 1 / 12, 0]),
        ("group", 1.0, [1 / 8, 1 / 8, 1 / 4, 0]),
        ("group_sequence", 1.0, [1 / 12, 1 / 4, 1 / 4, 0]),
    ],
)
def test_shares_of_tokens(mode, scale, expected):
    shares = Aggregation(mode, scale).shares(LEARN, GROUP, 5)
    np.testing.assert_allclose(shares, np.array(expected)[:, None] * LEARN, rtol=1e-6)
    if mode != "constant":
        np.testing.assert_allclose(jnp.sum(shares), 1, rtol=1e-6)


def test_nothing_to_learn_has_no_share():
    for mode in ("token", "sequence", "constant", "group", "group_sequence"):
        assert not np.any(Aggregation(mode).shares(jnp.zeros((2, 3), bool), jnp.zeros(2, int), 2))


# -- the gradient ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["token", "sequence", "constant", "group", "group_sequence"])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_micro_batches_change_nothing(mode, size):
    options = {"aggregation.mode": mode, "epochs": 2, "minibatches": 2, "entropy_coefficient": 0.1}
    whole, split = method(**options), method(**options, micro_batch=size)
    np.testing.assert_allclose(after(whole).policy.logits, after(split).policy.logits, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_loss_in_the_parameters():
    """The chain rule through log-probabilities against automatic differentiation of the whole."""
    loop = dataclasses.replace(method(epochs=2, entropy_coefficient=0.3), penalty=KLPenalty(0.2))
    state = loop.init(STOPPING, jax.random.key(0))
    batch, _ = loop.sampler.gather(state.sampler, STOPPING, state.policy, jax.random.key(1))
    judged, _, _ = loop.judge(STOPPING, state, batch)
    other = eqx.tree_at(lambda p: p.logits, state.policy, state.policy.logits + 0.3 * jax.random.normal(jax.random.key(2), state.policy.logits.shape))
    found, _ = loop.gradient(STOPPING, other, jax.tree.map(lambda _: None, other), judged, jax.random.key(3))

    def loss(policy):
        scored = loop.score(STOPPING, policy, batch)
        ratio = jnp.exp(jnp.where(judged.learn, scored.log_prob - judged.old_log_prob, 0))
        clipped = jnp.clip(ratio, 0.8, 1.2)
        gap = jnp.where(judged.learn, judged.anchor_log_prob - scored.log_prob, 0)
        token = -jnp.minimum(ratio * judged.advantage, clipped * judged.advantage) + 0.2 * (jnp.exp(gap) - 1 - gap) - 0.3 * scored.entropy
        length = jnp.sum(judged.learn, axis=1)
        return jnp.mean(jnp.sum(jnp.where(judged.learn, token, 0), axis=1) / length)

    np.testing.assert_allclose(found.logits, jax.grad(loss)(other).logits, rtol=2e-5, atol=1e-7)


def test_one_update_sees_a_ratio_of_one_and_the_sampler_agrees_with_the_trainer():
    metrics = jax.jit(lambda m, k: m.step(STOPPING, m.init(STOPPING, k))[1])(method(), jax.random.key(0))
    assert metrics["clipped"] == 0 and metrics["kl"] == 0 and metrics["gap"] < 1e-5
    tempered = method(**{"sampler.sampling.temperature": 0.7})
    assert jax.jit(lambda m, k: m.step(STOPPING, m.init(STOPPING, k))[1])(tempered, jax.random.key(0))["gap"] < 1e-5


def test_whole_groups_stay_together():
    loop = method(minibatches=2, epochs=3)
    orders = np.asarray(loop._orders(jax.random.key(0)))
    assert orders.shape == (3, 2, 12)
    groups = orders.reshape(3, 2, 2, 6) // 6
    assert (groups == groups[..., :1]).all()
    assert all(sorted(epoch.ravel()) == list(range(24)) for epoch in orders)


def test_it_learns():
    start = jnp.mean(testbeds.exact_returns(TASK, TASK.model))
    learnt = after(dataclasses.replace(method(), step_rule=Sgd(4.0)), TASK, iterations=60).policy
    assert jnp.mean(testbeds.exact_returns(TASK, learnt)) > start + 0.5


# -- anchors -----------------------------------------------------------------------------------------------------------


def test_a_strong_penalty_holds_the_policy_at_its_anchor():
    free = dataclasses.replace(method(epochs=2), step_rule=Sgd(2.0))
    held = dataclasses.replace(free, penalty=KLPenalty(5.0, "k2"))

    def moved(loop):
        return float(jnp.abs(jax.nn.log_softmax(after(loop, iterations=20).policy.logits) - jax.nn.log_softmax(TASK.model.logits)).max())

    assert moved(held) < 0.5 * moved(free)


def test_a_penalty_in_the_reward_is_paid_token_by_token():
    penalty = KLReward(0.5)
    log_prob, anchor = jnp.array([[-1.0, -2.0], [-1.0, -9.0]]), jnp.array([[-1.5, -1.0], [-2.0, -1.0]])
    mask = jnp.array([[1, 1], [1, 0]], bool)
    np.testing.assert_allclose(penalty.reward(log_prob, anchor, mask), [[-0.25, 0.5], [-0.5, 0.0]])


def test_an_anchor_is_refreshed_on_time():
    loop = dataclasses.replace(method(), penalty=KLPenalty(0.1, refresh_every=2))
    one, two = after(loop, iterations=1), after(loop, iterations=2)
    np.testing.assert_array_equal(one.anchor.logits, TASK.model.logits)
    np.testing.assert_array_equal(two.anchor.logits, two.policy.logits)
    assert NoPenalty().refresh_every is None and after(method()).anchor is None


# -- samplers ----------------------------------------------------------------------------------------------------------


def test_every_prompt_comes_once_before_any_comes_again():
    order, seen = shuffled(8, jax.random.key(0)), []
    for i in range(6):
        rows, order = draw_prompts(order, 4, jax.random.key(i))
        seen.append(np.asarray(rows))
    for first, second in zip(seen[::2], seen[1::2]):
        assert sorted([*first, *second]) == list(range(8))


def test_a_rest_that_is_too_small_is_left():
    rows, order = draw_prompts(Order(jnp.arange(8), jnp.int32(6)), 4, jax.random.key(0))
    assert len(set(np.asarray(rows))) == 4 and order.position == 4


def test_only_groups_whose_rewards_differ_are_kept():
    easy = testbeds.chain(prompts=8, length=1, vocabulary=3, success=[0.999] * 6 + [0.5] * 2)
    sampler = Informative(prompts=4, completions=8, tries=6)
    batch, _ = jax.jit(lambda k: sampler.gather(sampler.init(easy, k), easy, easy.model, k))(jax.random.key(0))
    full = np.asarray(batch.mask[:, 0]).reshape(4, 8)
    differ = np.asarray(informative(batch.reward, batch.valid, batch.group, 4))
    assert (full.all(1) == differ).all() and differ.sum() >= 2
    assert set(np.asarray(batch.index)[full.ravel()]) <= {6, 7}
    few, _ = jax.jit(lambda k: dataclasses.replace(sampler, tries=1).gather(sampler.init(easy, k), easy, easy.model, k))(jax.random.key(0))
    assert informative(few.reward, few.valid, few.group, 4).sum() <= 2


def test_an_empty_place_teaches_nothing():
    hopeless = testbeds.chain(prompts=4, length=1, vocabulary=3, success=[1 - 1e-6] * 4)
    loop = dataclasses.replace(method(), sampler=Informative(4, 6))
    np.testing.assert_array_equal(after(loop, hopeless).policy.logits, hopeless.model.logits)


def test_demonstrations_raise_their_own_likelihood():
    loop = Language(Demonstrated(8), Ones(), LogLikelihood(), Sgd(20.0))
    learnt = after(loop, TASK, iterations=30).policy
    assert jnp.mean(testbeds.exact_returns(TASK, learnt)) > 0.9


def test_joined_batches_keep_their_rows():
    a = written(TASK, TASK.model, jnp.array([1, 2]), jax.random.key(0), Grouped().sampling, repeats=2)
    short = jax.tree.map(lambda x: x if x.ndim == 1 else x[:, :2], a)
    both = joined([a, short])
    assert both.tokens.shape == (8, 3) and not both.mask[4:, 2].any()
    np.testing.assert_array_equal(both.tokens[:4], a.tokens)


# -- credit ------------------------------------------------------------------------------------------------------------


class HalfFails(eqx.Module):
    """Grades the first of every two completions only."""

    host = False

    def __call__(self, prompts, index, tokens, mask):
        valid = jnp.arange(index.shape[0]) % 2 == 0
        return Graded(jnp.where(valid, jnp.arange(index.shape[0], dtype=jnp.float32), jnp.nan), valid)


def test_what_was_not_graded_teaches_nothing_and_is_counted():
    task = dataclasses.replace(STOPPING, verifier=HalfFails())
    loop = method()
    state = loop.init(task, jax.random.key(0))
    batch, _ = loop.sampler.gather(state.sampler, task, state.policy, jax.random.key(1))
    judged, _, _ = loop.judge(task, state, batch)
    assert not judged.learn[1::2].any() and judged.learn[::2].any() and np.isfinite(judged.advantage).all()
    np.testing.assert_allclose(judged.group_mean[:6], 2.0)
    metrics = loop.step(task, state)[1]
    assert metrics["ungraded"] == 0.5 and metrics["episode/count"] == 12


def test_means_of_groups():
    means = group_means(jnp.array([1.0, 3.0, 7.0, 5.0]), jnp.array([True, True, False, True]), jnp.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(means, [2, 2, 5, 5])


def judged_rewards(rewards, baseline=0.0):
    batch = written(TASK, TASK.model, jnp.array([0, 1]), jax.random.key(0), Grouped().sampling, repeats=2)
    batch = batch._replace(reward=jnp.array(rewards), baseline=jnp.full(4, baseline))
    loop = method()
    return batch, loop.judge(TASK, loop.init(TASK, jax.random.key(0)), batch)[0]


def test_closed_forms_of_advantages():
    batch, judged = judged_rewards([1.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(GroupRelative(epsilon=0.0)((), None, batch, judged)[0], [1, -1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(LeaveOneOut()((), None, batch, judged)[0], [1, -1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(GroupRelative("none")((), None, batch, judged)[0], [0.5, -0.5, 0, 0], atol=1e-6)
    whitened = Whitened()((), None, batch, judged)[0]
    np.testing.assert_allclose(whitened[:, 0], np.array([1, -3, 1, 1]) / np.sqrt(3), rtol=1e-5)
    batch, judged = judged_rewards([1.0, 0.0, 1.0, 1.0], baseline=0.25)
    np.testing.assert_allclose(Raw()((), None, batch, judged)[0], [0.75, -0.25, 0.75, 0.75])


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, task, reason",
    [
        ({"minibatches": 3}, TASK, "cannot split 4 groups into 3 minibatches"),
        ({"micro_batch": 5}, TASK, "cannot split the 24 completions of an update into micro-batches of 5"),
        ({"sampler.prompts": 9, "minibatches": 1}, TASK, "takes 9 prompts an iteration, but t-chain has 8"),
        ({}, dataclasses.replace(TASK, verifier=None), "has no verifier"),
    ],
)
def test_what_cannot_be_done_is_refused(changes, task, reason):
    assert reason in method(**changes).refuse(task)


def test_demonstrations_are_needed_where_they_are_learnt():
    bare = dataclasses.replace(TASK, prompts=dataclasses.replace(TASK.prompts, demonstration=None, demonstration_mask=None))
    assert "has none" in Language(Demonstrated(8), Ones(), LogLikelihood(), Sgd(1.0)).refuse(bare)
