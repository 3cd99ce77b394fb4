"""S2PG's oracles: the estimator by enumeration, PPO without notes, the deterministic limit, and what notes are in the loop."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.exact import lqr, tabular
from polopt.envs.exact.problems import cue
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.policies.distributions import Categorical, Gaussian, Joint

SMALL = {"num_envs": 4, "num_steps": 8, "epochs": 2, "minibatches": 2, "network.hidden": (8,), "critic_network.hidden": (8,)}


# -- the estimator -----------------------------------------------------------------------------------------------------


LENGTH, NOTES = 4, 2  # of the cue task, and values of a tabular note


def estimates(logits, worth=(1.0, 1.0)):
    """The probability, return and score of every course of the cue task, where a bit that is answered right is worth so much.

    The logits are (shown and note, action and note).
    """
    log_policy = np.asarray(jax.nn.log_softmax(logits))
    rows, columns = log_policy.shape
    for bit, *choices in itertools.product(range(2), *[range(columns)] * LENGTH):
        note, log_prob, score = 0, np.log(0.5), np.zeros((rows, columns))
        for t, choice in enumerate(choices):
            row = (bit if t == 0 else 2) * NOTES + note
            log_prob += log_policy[row, choice]
            score[row] += np.eye(columns)[choice] - np.exp(log_policy[row])
            action, note = divmod(choice, NOTES)
        yield np.exp(log_prob), worth[bit] * (action == bit), score


def test_the_expected_estimate_is_the_gradient_of_the_return():
    """Oracle 1: by full enumeration, against autodiff of the exact J."""
    with jax.enable_x64(True):
        mdp = tabular.with_memory(cue(LENGTH), NOTES)
        logits = jax.random.normal(jax.random.key(0), (3 * NOTES, 2 * NOTES))
        exact = jax.grad(lambda z: tabular.objective(mdp, tabular.observed(mdp, jax.nn.softmax(z))))(logits)
        found = sum(probability * earned * score for probability, earned, score in estimates(logits))
        assert np.abs(exact).max() > 1e-3
        np.testing.assert_allclose(found, exact, atol=1e-12)


def test_notes_that_nobody_reads_have_no_gradient():
    """Oracle 3: two heads, the action's blind to z; the estimate of the note's logits vanishes on average."""
    with jax.enable_x64(True):
        k_action, k_note = jax.random.split(jax.random.key(1))
        blind = jnp.repeat(jax.random.normal(k_action, (3, 2)), NOTES, axis=0)  # (shown and note, action), the same for every note
        note = jax.random.normal(k_note, (3 * NOTES, NOTES))
        logits = (blind[:, :, None] + note[:, None, :]).reshape(3 * NOTES, 2 * NOTES)
        found = sum(p * earned * score for p, earned, score in estimates(logits, worth=(1.0, 3.0))).reshape(3 * NOTES, 2, NOTES)
        np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)  # of the note's head
        assert np.abs(found.sum(axis=2)).max() > 1e-3  # of the action's


def scalar_system():
    """x' = 0.9 x + u with a note z of one number beside it: the state is (x, z), the input (u, z')."""
    return lqr.lqr([[0.9, 0.0], [0.0, 0.0]], np.eye(2), np.diag([1.0, 0.0]), np.diag([0.1, 0.0]), noise=0.01, discount=0.9)


def gain(theta):
    """u = m z + n x and z' = k z + l x as the gain of -K (x, z)."""
    m, n, k, l = theta
    return -jnp.array([[n, m], [l, k]])


def test_the_stochastic_gradient_tends_to_the_deterministic_formula():
    """Oracle 4 on a linear system: the error of the gradient with noise sigma is of order sigma^2."""
    with jax.enable_x64(True):
        system, theta = scalar_system(), jnp.array([-0.2, -0.3, 0.4, 0.5])
        n = system.A.shape[0]

        def deterministic(theta):
            """E[ grad mu_a . grad_a Q + grad mu_z . grad_z' Q ] at the means."""
            K = gain(theta)
            H, moments = lqr.action_value_matrix(system, K), lqr.state_moments(system, K)
            slope = 2 * (H[n:, :n] - H[n:, n:] @ K) @ moments  # grad_(a, z') Q times the state
            return jax.vjp(lambda x: -gain(x), theta)[1](slope)[0]

        limit = deterministic(theta)
        errors = []
        for sigma in (0.4, 0.2, 0.1):
            stochastic = jax.grad(lambda x, s=sigma: lqr.cost(system, gain(x), s**2 * jnp.eye(2)))(theta)
            errors.append(float(jnp.abs(stochastic - limit).max()))
        assert errors[0] > 1e-3
        np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4.0, rtol=1e-6)


def test_the_score_of_a_gaussian_note_weighs_the_slope_of_q():
    """What links the two: E[ (z' - mu) / sigma^2 Q(z') ] is Q'(mu) for a quadratic Q, whatever sigma."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    for sigma in (1.0, 0.1):
        draw = 0.3 + sigma * nodes
        score = (draw - 0.3) / sigma**2
        expected = (weights * score * (1.7 * draw**2 - 0.4 * draw + 2)).sum() / weights.sum()
        np.testing.assert_allclose(expected, 2 * 1.7 * 0.3 - 0.4, rtol=1e-9)


# -- the loop ----------------------------------------------------------------------------------------------------------


@functools.cache
def collected(env: str, **changes):
    task = ControlTask(make(env), 1000)
    method = parts.replace(registry.load("s2pg")(task), {**SMALL, "memory.size": 3, **changes})
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    return task, method, state, jax.jit(lambda s: method.collect(task.env, s, jax.random.key(1))[1])(state)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("core", ["none", "gru"])
def test_without_notes_it_is_ppo_bit_for_bit(env, core):
    """Oracle 2."""
    task = ControlTask(make(env), 1000)
    same = {**SMALL, "network.core": core, "critic_network.core": core, "network.core_size": 4, "critic_network.core_size": 4}
    ends = []
    for name, changes in (("s2pg", {"memory.size": 0}), ("ppo", {})):
        method = parts.replace(registry.load(name)(task), {**same, **changes})
        ends.append(jax.jit(lambda key, m=method: m.step(task, m.step(task, m.init(task, key))[0])[0])(jax.random.key(0)))
    assert jax.tree.structure(ends[0]) == jax.tree.structure(ends[1])
    for x, y in zip(jax.tree.leaves(ends[0].learner), jax.tree.leaves(ends[1].learner), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("env", ["probe:memory", "probe:memory-continuous", "probe:truncation"])
def test_notes_are_read_at_the_next_step_and_forgotten_with_the_episode(env):
    _, _, _, rollout = collected(env)
    start, ended = np.asarray(rollout.start), np.asarray(rollout.terminated | rollout.truncated)
    assert start[1:].any() or env == "probe:truncation"
    np.testing.assert_array_equal(start[1:], ended[:-1])
    for name, written in (("note", rollout.raw_action["note"]), ("previous", previous(rollout, env))):
        written, read = np.asarray(written), np.asarray(rollout.observation[name])
        assert np.abs(written).max() > 0
        np.testing.assert_array_equal(rollout.final_observation[name], written)
        np.testing.assert_array_equal(read[1:], np.where(start[1:, :, None], 0, written[:-1]))
        np.testing.assert_array_equal(read[0], 0)


def previous(rollout, env):
    action = rollout.raw_action["action"]
    return jnp.clip(action, -1, 1) if env.endswith("continuous") else jax.nn.one_hot(action, 2)


def test_the_ratio_is_joint_and_the_critic_sees_the_note():
    _, method, state, rollout = collected("probe:memory")
    batch = method.judge(state, state.acting, rollout)[0]
    apart = [np.asarray(jax.vmap(lambda d, r: d.log_prob(r))(batch.distribution.parts[k], batch.raw_action[k])) for k in ("action", "note")]
    np.testing.assert_allclose(batch.log_prob, apart[0] + apart[1], rtol=1e-5)
    slope = jax.grad(lambda vector: method.values(state.learner.critic, batch._replace(inputs=(vector, ()))).sum())(batch.inputs[0])
    assert float(jnp.abs(slope[:, 2:5]).min(axis=0).max()) > 0  # observation 2, note 3, previous action 2


def test_a_joint_distribution_adds_up():
    joint = Joint({"a": Categorical(jnp.array([0.3, -0.2])), "b": Gaussian(jnp.zeros(2), jnp.zeros(2), jnp.full(2, -1.0), jnp.ones(2))})
    other = Joint({"a": Categorical(jnp.zeros(2)), "b": Gaussian(jnp.ones(2), jnp.zeros(2), jnp.full(2, -1.0), jnp.ones(2))})
    raw = joint.sample(jax.random.key(0))
    for method, arguments in (("log_prob", (raw,)), ("entropy", ()), ("kl", (other,))):
        pieces = [getattr(joint.parts[k], method)(*(x.parts[k] if isinstance(x, Joint) else x[k] for x in arguments)) for k in "ab"]
        np.testing.assert_allclose(getattr(joint, method)(*arguments), sum(pieces), rtol=1e-6)
    assert joint.mode()["a"] == 0 and float(jnp.abs(joint.action({"a": 1, "b": jnp.array([3.0, -3.0])})["b"]).max()) == 1


def test_the_entropy_of_notes_has_its_own_weight():
    _, method, state, rollout = collected("probe:memory")
    batch = method.judge(state, state.acting, rollout)[0]

    def loss(**changes):
        own = parts.replace(method, {"entropy_coefficient": 0.0, **{k.replace("__", "."): v for k, v in changes.items()}})
        return own.policy_loss(state.learner.actor, (), batch)

    plain, metrics = loss()
    np.testing.assert_allclose(loss(entropy_coefficient=1.0)[0], plain - metrics["entropy"], rtol=1e-5)
    np.testing.assert_allclose(loss(memory__entropy_coefficient=1.0)[0], plain - metrics["entropy/note"], rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy/note"], 3 * (np.log(0.1) + 0.5 * np.log(2 * np.pi * np.e)), rtol=1e-5)
    assert 0 < float(metrics["entropy"]) <= np.log(2) + 1e-6


@pytest.mark.parametrize("core", ["none", "gru"])
def test_refreshing_moves_stored_notes_towards_the_present_policys(core):
    changes = {"network.core": core, "critic_network.core": core, "network.core_size": 4, "critic_network.core_size": 4}
    _, method, state, rollout = collected("probe:memory", **changes, **{"memory.refresh": 0.25})
    batch = method.judge(state, state.acting, rollout)[0]
    after = method.memory.refreshed(method, state.learner.actor, batch, jax.random.key(2))
    before, moved = (np.asarray(method.time_major(b.inputs[0])) for b in (batch, after))
    notes = slice(2, 5)
    untouched = np.delete(np.arange(before.shape[-1]), np.arange(2, 5))
    np.testing.assert_array_equal(moved[..., untouched], before[..., untouched])
    start = np.asarray(rollout.start)
    np.testing.assert_array_equal(moved[..., notes][start], before[..., notes][start])
    np.testing.assert_array_equal(moved[0], before[0])
    step = (moved - before)[1:, :, notes][~start[1:]] / 0.25  # z_new - z, the difference of two draws of deviation 0.1
    assert 0.05 < step.std() < 0.3 and np.abs(step.mean()) < 0.1
    np.testing.assert_array_equal(after.log_prob, batch.log_prob)


def test_the_deployed_policy_carries_its_notes():
    task, method, state, rollout = collected("probe:memory")
    policy = method.policy(state)
    assert policy.observation_space == task.env.observation_space and policy.action_space == task.env.action_space
    carry = policy.initial_carry()
    assert all(not leaf.any() for leaf in jax.tree.leaves(carry))
    observation = rollout.observation["observation"][0, 0]
    after, action = policy.act(carry, observation)
    distribution = state.learner.actor((), jnp.concatenate([observation, jnp.zeros(5)]), ())[1]
    np.testing.assert_allclose(after[1]["note"], distribution.parts["note"].mean, rtol=1e-6)
    np.testing.assert_array_equal(after[1]["previous"], jax.nn.one_hot(action, 2))
