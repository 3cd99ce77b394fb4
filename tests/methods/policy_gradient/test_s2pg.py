"""S2PG's oracles: the estimator by enumeration, PPO without notes, the deterministic limit, and what notes are in the loop."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt.core import parts
from polopt.envs.exact import lqr, tabular
from polopt.envs.exact.problems import cue
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import draw
from polopt.methods import registry
from polopt.policies.distributions import Categorical, Gaussian, Joint
from polopt.run.collect import collect
from polopt.run.evaluate import episode_returns

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


# -- off-policy --------------------------------------------------------------------------------------------------------

LITTLE = {"rule.actor_network.hidden": (8,), "rule.critic_network.hidden": (8,), "replay.capacity": 64, "batch_size": 8, "warmup": 4}


def off_policy(name, env="probe:memory-continuous", **changes):
    """(task, method)."""
    task = ControlTask(make(env), 64)
    return task, parts.replace(registry.load(name)(task), {**LITTLE, **changes})


def trained(task, method, iterations):
    return jax.jit(lambda key: jax.lax.fori_loop(0, iterations, lambda _, s: method.step(task, s)[0], method.init(task, key)))(jax.random.key(0))


@pytest.mark.parametrize("which", ["sac", "td3"])
def test_off_policy_without_notes_it_is_the_method(which):
    """Oracle 2: dim(z) = 0."""
    task, plain = off_policy(which)
    _, noting = off_policy(f"s2pg:{which}", note_size=0)
    a, b = trained(task, plain, 12), trained(task, noting, 12)
    learnt = lambda state: jax.tree.leaves((state.learner.actor, state.learner.critic))  # noqa: E731
    for x, y in zip(learnt(a), learnt(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", ["sac", "td3"])
def test_notes_are_stored_as_they_were_written_and_read(which):
    task, method = off_policy(f"s2pg:{which}", note_size=3)
    steps = jax.tree.map(np.asarray, trained(task, method, 40).ring.steps)
    seen, after, ended = steps.observation["note"][:40, 0], steps.next_observation["note"][:40, 0], steps.ended[:40, 0]
    np.testing.assert_allclose(after, steps.action[:40, 0, 1:], atol=1e-6)  # the action of the probe is one number
    np.testing.assert_allclose(steps.next_observation["previous"][:40, 0], steps.action[:40, 0, :1], atol=1e-6)
    assert 2 <= ended.sum() < 39 and not seen[0].any()
    for t in range(39):
        np.testing.assert_array_equal(seen[t + 1], 0 * after[t] if ended[t] else after[t])


def test_action_and_note_have_a_price_each():
    """The target and the actor's loss by hand, and temperatures that go for -dim(a) and -dim(z)."""
    task, method = off_policy("s2pg:sac", note_size=3, **{"rule.note_temperature.initial": 0.3})
    state, rule = trained(task, method, 10), method.rule
    learner = state.learner
    batch = method.replay.sample(state.ring, jax.random.key(1), 6, rule.discount)
    seen, after = (jax.vmap(state.normaliser)(x) for x in (batch.observation, batch.next_observation))
    batch = batch._replace(observation=seen, next_observation=after)
    key = jax.random.key(2)

    def by_hand(actor, inputs, critic, key):
        found = draw(actor, inputs, key)
        mean, log_std = found.distribution.mean, found.distribution.log_std
        each = -0.5 * ((found.raw - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(1 - found.action**2)
        return jax.vmap(critic)(*inputs, found.action).min(1), each[:, 0], each[:, 1:].sum(1)

    alpha, alpha_z = (jnp.exp(temperature[0]) for temperature in learner.extra)
    value, action, note = by_hand(learner.actor, batch.next_observation, learner.target_critic, jax.random.split(key)[0])
    wanted = batch.reward + batch.discount * (value - alpha * action - alpha_z * note)
    np.testing.assert_allclose(rule.target(learner, batch, key), wanted, rtol=1e-3, atol=1e-3)
    value, action, note = by_hand(learner.actor, batch.observation, learner.critic, key)
    loss, log_prob = rule.actor_loss(learner.actor, learner, batch, key)
    np.testing.assert_allclose(loss, jnp.mean(alpha * action + alpha_z * note - value), rtol=1e-3)
    np.testing.assert_allclose(log_prob, jnp.stack([action, note], axis=1), rtol=1e-3, atol=1e-3)
    for entropies, rises in (((0.9, 2.9), (False, False)), ((-1.1, -2.9), (True, False)), ((-0.9, -3.1), (False, True))):
        log_prob = -jnp.broadcast_to(jnp.array(entropies), (6, 2))
        fresh = dataclasses.replace(learner, extra=(rule.temperature.init(), rule.note_temperature.init()))
        after = rule.heated(fresh, log_prob, 0.0)
        assert tuple(bool(new[0] > old[0]) for new, old in zip(after, fresh.extra)) == rises


def test_off_policy_it_remembers():
    """The probe shows a sign at the start and asks for it at the end: without memory 3/4 at best."""
    sizes = {"rule.actor_network.hidden": (32,), "rule.critic_network.hidden": (32,), "replay.capacity": 8_000, "batch_size": 64, "warmup": 200}
    fast = {f"rule.{step}.learning_rate": 3e-3 for step in ("actor_step", "critic_step", "temperature.step", "note_temperature.step")}
    mild = {"rule.temperature.initial": 0.1, "rule.note_temperature.initial": 0.02}
    task, method = off_policy("s2pg:sac", note_size=2, num_envs=4, updates=2, **sizes, **fast, **mild)
    state = trained(task, method, 2_000)
    returns, _ = episode_returns(method.policy(state), task.env, jax.random.key(3), episodes=200)
    assert float(returns.mean()) > 0.85


def test_what_a_run_keeps_is_the_environments_own(tmp_path):
    """Replay data hold no notes, and an exported policy gives the action that it remembers under both names."""
    sizes = {name.replace(".", "__"): value for name, value in LITTLE.items()}
    options = dict(steps=64, seeds=1, evaluations=1, episodes=1, final_episodes=1, quiet=True, note_size=3)
    run = polopt.fit("s2pg:sac", "probe:memory-continuous", out=tmp_path / "run", **options, **sizes)
    env = make("probe:memory-continuous")
    data = collect(run, env, steps=32, mix={"replay": 1.0})
    assert data.observation.shape == (32, *env.observation_space.shape) and data.action.shape == (32, 1)
    assert np.abs(data.action).max() <= 1 and np.isfinite(data.reward).all()
    pytest.importorskip("jax2onnx")
    assert run.export(tmp_path / "policy.onnx").largest_difference <= 1e-5
