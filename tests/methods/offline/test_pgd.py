"""PGD: where guidance points and how far, what a log becomes and comes back from, and that the host learns from both in their shares."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.parts import replace
from polopt.data.dataset import DataTask
from polopt.data.replay import Transitions
from polopt.data.segments import Drawn, Segments, longest_piece
from polopt.loops.synthetic import log_likelihood
from polopt.methods.offline.pgd import TowardsPolicy, action_score, pgd, strength, unit_length
from polopt.methods.offline.pgd import iql as pgd_iql
from polopt.policies.cloned import ClonedActor
from polopt.policies.diffusion import Churned, noise_levels, undone
from polopt.policies.temporal import TemporalUNet
from tests.methods.offline.helpers import BOX, OBSERVATIONS, logged

SMALL = {
    "actor_network.hidden": (8,),
    "critic_network.hidden": (8,),
    "loop.batch_size": 8,
    "loop.updates": 4,
    "sampler.levels": 4,
    "channels": 4,
    "blocks": 2,
    "model_batch": 4,
    "preparation": 2,
    "length": 3,
    "segments": 2,
    "lifetime": 4,
    "share": 0.5,
}


# -- guidance ----------------------------------------------------------------------------------------------------------


def likelihood(row):
    """Of rows (state, state, action): a Gaussian around the sum of the states."""
    return -0.5 * ((row[2] - row[0] - row[1]) / 0.5) ** 2


IS_ACTION = jnp.array([False, False, True])


def test_only_actions_are_moved():
    """Oracle 2, and the gradient by hand: (m - a) / s^2, though the likelihood depends on the states, too."""
    x = jnp.array([[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    score = action_score(likelihood, x, IS_ACTION)
    np.testing.assert_allclose(score, [[0, 0, 12.0], [0, 0, -2.0]], rtol=1e-6)
    moved = TowardsPolicy(1.0)(lambda x, sigma: x, likelihood, IS_ACTION, 10)(0, x, 1.0)
    np.testing.assert_array_equal(moved[:, :2], x[:, :2])
    np.testing.assert_allclose(jnp.linalg.norm(moved - x), strength(0, 10, 1.0, 0.3), rtol=1e-5)


def test_a_normalised_score_has_length_one():
    """Oracle 5; one of 0 stays 0."""
    np.testing.assert_allclose(unit_length(jnp.array([[3.0, 0.0], [0.0, 4.0]])), [[0.6, 0], [0, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(unit_length(jnp.zeros((2, 2))), 0.0)


def test_the_strength_along_the_way():
    """lambda at the start but for the bump, which is highest where i + 1 is half of the steps."""
    np.testing.assert_allclose(strength(jnp.arange(4), 4, 2.0, 0.0), [2, 1.5, 1, 0.5])
    np.testing.assert_allclose(strength(1, 4, 2.0, 0.3) - strength(1, 4, 2.0, 0.0), 0.6, rtol=1e-6)


def test_the_policy_is_asked_at_the_guess():
    guess = jnp.array([[0.0, 0.0, 1.0]])
    for denoised, points in ((True, -1.0), (False, 1.0)):
        guide = TowardsPolicy(1.0, denoised=denoised)(lambda x, sigma: guess, likelihood, IS_ACTION, 10)
        moved = guide(0, jnp.array([[0.0, 0.0, -1.0]]), 1.0) - jnp.array([[0.0, 0.0, -1.0]])
        assert jnp.sign(moved[0, 2]) == points


def test_no_weight_is_no_guidance():
    """Oracle 1: equal keys give equal arrays."""
    denoiser = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731
    sampler = Churned(levels=8)
    draw = jax.jit(lambda key, weight: sampler(denoiser, (2, 3), key, TowardsPolicy(weight)(denoiser, likelihood, IS_ACTION, 8)))
    plain = jax.jit(lambda key: sampler(denoiser, (2, 3), key))(jax.random.key(0))
    np.testing.assert_array_equal(draw(jax.random.key(0), 0.0), plain)
    assert not np.array_equal(draw(jax.random.key(0), 1.0), plain)


def test_the_target_of_a_gaussian():
    """Oracle 4: N(0, 1) tilted by N(1.5, .25)^lambda at lambda .25 is N(.75, .5). The heuristic sampler goes the same way, and overshoots."""
    weight, mean, variance = 0.25, 1.5, 0.25
    centre, width = weight * mean / variance / (1 + weight / variance), 1 / (1 + weight / variance)
    np.testing.assert_allclose([centre, width], [0.75, 0.5])
    x = np.linspace(-8, 8, 20001)
    density = np.exp(-0.5 * x**2 - weight * 0.5 * (x - mean) ** 2 / variance)
    np.testing.assert_allclose(np.average(x, weights=density), centre, rtol=1e-6)
    np.testing.assert_allclose(np.average((x - centre) ** 2, weights=density), width, rtol=1e-6)
    log_prob = lambda row: -0.5 * (row[0] - mean) ** 2 / variance  # noqa: E731
    denoiser = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731

    def drawn(weight):
        guide = TowardsPolicy(weight, normalised=False)(denoiser, log_prob, jnp.array([True]), 32)
        one = lambda key: undone(denoiser, noise_levels(32), (1, 1), key, guide=guide)[0, 0]  # noqa: E731
        return jnp.mean(jax.vmap(one)(jax.random.split(jax.random.key(0), 500)))

    means = jax.jit(jax.vmap(drawn))(jnp.array([0.0, 0.01, 0.05, 0.25]))
    assert (jnp.diff(means) > 0).all() and abs(means[0]) < 0.1 and means[3] > centre


def test_the_likelihood_of_actors():
    """A deterministic actor's is a Gaussian's of deviation 1; a cloned one has its own."""
    deterministic = lambda vector, pictures: vector[:1]  # noqa: E731
    np.testing.assert_allclose(log_likelihood(deterministic, jnp.array([0.5, 9.0]), jnp.array([0.2])), -0.5 * 0.09, rtol=1e-5)
    actor = ClonedActor(replace(pgd_iql(None), SMALL).rule.actor_network, OBSERVATIONS, BOX, jax.random.key(0))
    slope = jax.grad(lambda a: log_likelihood(actor, jnp.zeros(2), a))(jnp.array([0.3]))
    np.testing.assert_allclose(slope, actor(jnp.zeros(2), ()).mean - 0.3, rtol=1e-4)


# -- sequences of a log ------------------------------------------------------------------------------------------------


def segments(length=3, **flags) -> Segments:
    data = dataclasses.replace(logged(), **flags)
    return Segments.of(jnp.asarray(data.observation), jnp.asarray(data.action) / 2, data.reward, data.terminated, data.truncated, length)


def test_rows_are_made_alike_and_come_back():
    found, data = segments(), logged()
    np.testing.assert_allclose(found.rows.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.rows.std(0), 1.0, rtol=1e-4)
    np.testing.assert_array_equal(found.is_action, [False, False, True, False, False])
    vector, action, reward, ends, following = found.transitions(found.rows[None])
    np.testing.assert_allclose(vector, data.observation[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(action, jnp.clip(data.action[:-1] / 2, -0.999, 0.999), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(reward, data.reward[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ends, data.terminated[:-1])
    np.testing.assert_allclose(following, data.observation[1:], rtol=1e-4, atol=1e-5)


def test_a_segment_runs_over_a_terminal_state_and_not_over_a_cut():
    """Of 12 rows: all starts up to the last but two; with a cut after row 6 none that has row 6 before its last row."""
    found = segments()
    assert found.count == 10
    cut = segments(truncated=jnp.arange(12) == 6)
    np.testing.assert_array_equal(cut.start[: cut.count], [0, 1, 2, 3, 4, 7, 8, 9])
    assert longest_piece(np.arange(12) == 6) == 7 and longest_piece(np.zeros(12, bool)) == 12
    drawn = cut.drawn(jax.random.key(0), 50)
    first = {tuple(np.round(row, 4)) for row in np.asarray(drawn[:, 0])}
    assert first <= {tuple(np.round(row, 4)) for row in np.asarray(cut.rows)[[0, 1, 2, 3, 4, 7, 8, 9]]}


def test_the_u_net_keeps_shapes_and_sees_both_ways():
    network, rows = TemporalUNet(3, 4, 2, jax.random.key(0)), 5
    x = jax.random.normal(jax.random.key(1), (rows, 3))
    far = jnp.abs(jax.jit(jax.jacobian(lambda x: network(x, 0.1)))(x)).sum((1, 3))
    assert far.shape == (rows, rows) and (far[0, 1] > 0) and (far[1, 0] > 0)


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_minibatch_has_its_share_from_the_set():
    method, n = replace(pgd(None), SMALL), 8
    drawn = Drawn(jnp.full((6, 2), 7.0), jnp.full((6, 1), 0.5), jnp.full(6, 3.0), jnp.arange(6) < 6, jnp.full((6, 2), 9.0))
    inputs = jnp.zeros((n, 2)), ()
    batch = Transitions(inputs, jnp.zeros((n, 1)), jnp.zeros(n), jnp.full(n, 0.99), inputs, jnp.ones(n), jnp.zeros((n, 2), jnp.int32))
    mixed = method.mixed(batch, drawn, jax.random.key(0))
    np.testing.assert_array_equal(mixed.reward, [3.0] * 4 + [0.0] * 4)
    np.testing.assert_array_equal(mixed.discount, jnp.array([0.0] * 4 + [0.99] * 4))  # all that was drawn ends
    np.testing.assert_array_equal(mixed.observation[0][:, 0], [7.0] * 4 + [0.0] * 4)
    np.testing.assert_array_equal(mixed.next_observation[0][:, 0], [9.0] * 4 + [0.0] * 4)


def test_the_model_first_then_sets_anew_of_which_the_first_is_not_guided():
    task = DataTask(logged(), 14)
    method = replace(pgd(task), SMALL)
    step = jax.jit(lambda method, state: method.step(task, state)[0])
    states = [method.init(task, jax.random.key(0))]
    for _ in range(3):
        states.append(step(method, states[-1]))
    learners = [state.learner for state in states]
    assert [int(x.sets) for x in learners] == [0, 1, 1, 2] and [int(x.age) for x in learners] == [4, 2, 6, 4]
    assert [int(x.host.count) for x in learners] == [0, 2, 6, 10]
    other = replace(method, {"weight": 5.0})
    np.testing.assert_array_equal(step(other, states[0]).learner.drawn.action, learners[1].drawn.action)
    assert not np.array_equal(step(other, states[2]).learner.drawn.action, learners[3].drawn.action)


def test_what_does_not_fit_is_refused():
    task = DataTask(logged(), 1000)
    method = replace(pgd(task), SMALL)
    assert method.refuse(task) is None
    assert pgd(task).preparation == 500 and pgd(task).length == 12
    assert "fits its model for 1000 updates, but the run has 1000" in replace(method, {"preparation": 1000}).refuse(task)
    assert "takes sequences of 13 rows, but data has none so long" in replace(method, {"length": 13}).refuse(task)
    assert "sums rewards over 2" in replace(method, {"n_step": 2}).refuse(task)
    assert "need sequences of 16 rows" in replace(method, {"blocks": 5}).refuse(task)
    whole = DataTask(logged(spaces.Discrete(2)), 1000)
    assert "takes actions of a box" in method.refuse(whole)
