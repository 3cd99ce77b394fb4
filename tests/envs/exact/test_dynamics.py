"""The exact problems as environments: what sampling finds is what the closed forms say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs.exact import bandits, finite, lqr, problems
from polopt.envs.exact.dynamics import EXACT, BanditDynamics, LQRDynamics, TabularDynamics, named
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import UnknownEnvironment, UnusableEnvironment, make, names
from tests.envs.exact.helpers import compiled, random_process


def play(env, policy, steps, count, seed=0):
    """`policy(observation, key)` in `count` copies: the timesteps, (steps, count, ...)."""

    def step(loop, key):
        state, observation = loop
        k_act, k_step = jax.random.split(key)
        actions = jax.vmap(policy)(observation, jax.random.split(k_act, count))
        state, after = env.step(state, actions, k_step)
        return (state, after.observation), (observation, actions, after)

    return compiled(lambda key: jax.lax.scan(step, env.reset(key, count), jax.random.split(key, steps))[1])(jax.random.key(seed))


def uniform(actions):
    return lambda observation, key: jax.random.randint(key, (), 0, actions)


@pytest.mark.parametrize("name", [*EXACT, "random-mdp-17"])
def test_every_problem_keeps_its_spaces(name):
    env = make(f"exact:{name}")
    state, first = jax.eval_shape(lambda: env.reset(jax.random.key(0), 2))
    action = jax.eval_shape(lambda: jax.vmap(lambda k: spaces.sample(env.action_space, k))(jax.random.split(jax.random.key(0), 2)))
    after, step = jax.eval_shape(env.step, state, action, jax.eval_shape(lambda: jax.random.key(0)))
    wanted = jax.eval_shape(lambda: jax.tree.map(lambda z: jnp.stack([z, z]), spaces.zeros(env.observation_space)))
    assert after == state and first == wanted and step.observation == wanted and step.final_observation == wanted
    rewards = (2, env.objectives) if env.objectives else (2,)
    assert [x.shape for x in step[2:]] == [rewards, (2, env.costs), (2,), (2,)]
    assert env == make(f"exact:{name}") and hash(env) == hash(make(f"exact:{name}"))
    assert make(JaxEnvironment(name, env.dynamics).dynamics).dynamics == env.dynamics


SAMPLED = [
    ("exact:random-mdp-0", dict(horizon=6)),
    ("exact:cue", dict(length=5)),
    ("exact:deep-sea-treasure", dict(horizon=8)),
    ("exact:combination-lock", dict(decoy=0.3)),
]


@pytest.mark.parametrize("name, options", SAMPLED)
def test_sampling_agrees_with_exact_values(name, options):
    """Mean returns within their standard error; episodes end by the last step, in one way."""
    count, env = 3000, make(name, **options)
    mdp, steps = env.dynamics.mdp, env.dynamics.horizon or 5
    _, _, after = play(env, uniform(mdp.actions), steps, count)
    undiscounted = dataclasses.replace(mdp, discount=1.0)
    exact = compiled(finite.objective)(undiscounted, np.full((mdp.states, mdp.actions), 1 / mdp.actions, np.float32), steps)
    ends = after.terminated | after.truncated
    first = np.cumsum(ends, 0) - ends == 0  # steps of the first episode
    returns = (after.reward * first.reshape(first.shape + (1,) * (after.reward.ndim - 2))).sum(0)
    assert np.all(np.abs(returns.mean(0) - exact) < 4 * returns.std(0) / count**0.5 + 1e-6)
    assert np.all(ends.any(0)) and not np.any(after.terminated & after.truncated)


def test_visits_agree_with_the_occupancy():
    count, horizon = 3000, 5
    mdp = problems.gridworld(["S..", ".#H", "..G"], slip=0.2)
    env = JaxEnvironment("grid", TabularDynamics(mdp, horizon, observe="clock"))
    seen, _, _ = play(env, uniform(4), horizon, count, seed=1)
    d = compiled(finite.occupancy)(mdp, np.full((mdp.states, 4), 0.25, np.float32), horizon, discounted=False).sum(-1)
    shares = np.zeros_like(d)
    for t in range(horizon):
        now = seen[t][seen[t][:, 1] == t]  # the copies still in their first episode
        shares[t] = np.bincount(now[:, 0], minlength=mdp.states) / count
    assert np.all(np.abs(shares - d) < 5 * np.sqrt(d * (1 - d) / count) + 1e-6)


def test_a_horizon_truncates_and_an_end_terminates():
    """Walking right on a row of four cells, goal at the end."""
    row = problems.gridworld(["S..G"])

    def walk(**settings):
        env = JaxEnvironment("row", TabularDynamics(row, **settings))
        return play(env, lambda observation, key: jnp.int32(1), 4, 1)[2]

    steps = walk(horizon=3)  # the goal is reached with the last step
    assert steps.terminated[:, 0].tolist() == [False, False, True, False] and not steps.truncated.any()
    assert steps.reward[:, 0].tolist() == [0, 0, 1, 0] and steps.final_observation[2, 0] == 3 and steps.observation[2, 0] == 0
    steps = walk(horizon=2)
    assert steps.truncated[:, 0].tolist() == [False, True, False, True] and not steps.terminated.any()
    assert steps.final_observation[1, 0] == 2 and steps.observation[1, 0] == 0
    steps = walk(horizon=2, ends="terminated")
    assert steps.terminated[:, 0].tolist() == [False, True, False, True] and not steps.truncated.any()


def test_observations():
    mdp = problems.cue(3)
    stay = lambda observation, key: jnp.int32(0)  # noqa: E731
    seen, _, _ = play(JaxEnvironment("cue", TabularDynamics(mdp)), stay, 6, 50)
    assert set(seen[0]) == set(seen[3]) == {0, 1} and set(seen[[1, 2, 4, 5]].ravel()) == {2}
    dynamics = TabularDynamics(problems.chain(), 3, observe="one-hot")
    assert dynamics.observation_space == spaces.Box(0.0, 1.0, (5,))
    _, first = compiled(dynamics.reset)(jax.random.key(0))
    np.testing.assert_array_equal(first, [1, 0, 0, 0, 0])
    assert TabularDynamics(problems.chain(), 3, observe="clock").observation_space == spaces.MultiDiscrete((5, 4))


def test_noise_and_costs():
    mdp = random_process(0, 3, 2, costs=2)
    mdp = mdp.with_reward(np.random.default_rng(1).random((3, 2)))
    for noise in ("bernoulli", 0.5):
        env = JaxEnvironment("noisy", TabularDynamics(mdp, 4, noise=noise))
        seen, actions, steps = play(env, uniform(2), 8, 500)
        left = steps.reward - mdp.reward[seen, actions]
        assert abs(left.mean()) < 4 * left.std() / left.size**0.5
        np.testing.assert_allclose(steps.cost, mdp.cost[seen, actions], rtol=1e-6)
        if noise == "bernoulli":
            assert set(np.unique(steps.reward)) == {0.0, 1.0}
        else:
            np.testing.assert_allclose(left.std(), 0.5, rtol=0.05)


def test_bandits():
    bandit = bandits.bernoulli(np.array([[0.2, 0.9], [0.7, 0.1]]), np.array([0.25, 0.75]))
    env = JaxEnvironment("bandit", BanditDynamics(bandit))
    contexts, arms, steps = play(env, uniform(2), 4, 2000)
    assert steps.terminated.all() and not steps.truncated.any()
    assert abs(contexts.mean() - 0.75) < 0.03
    for c, k in np.ndindex(2, 2):
        rewards = steps.reward[(contexts == c) & (arms == k)]
        assert abs(rewards.mean() - bandit.means[c, k]) < 4 * 0.5 / rewards.size**0.5
    assert make("exact:bandit").observation_space == spaces.Discrete(1)
    assert make("exact:contextual-bandit", contexts=3).observation_space == spaces.Discrete(3)


def test_lqr():
    """The mean discounted cost of a gain with exploration agrees with the Lyapunov solution."""
    count, horizon, gamma = 3000, 60, 0.8
    system = lqr.lqr([[0.9, 0.5], [-0.3, 0.8]], [[0.2], [1.0]], 1.0, 1.0, noise=0.2, discount=gamma)
    gain = compiled(lqr.riccati)(system).gain
    deviation = 0.3
    act = lambda x, key: -gain @ x + deviation * jax.random.normal(key, (1,))  # noqa: E731
    _, _, steps = play(JaxEnvironment("lqr", LQRDynamics(system, horizon)), act, horizon, count)
    returns = (steps.reward * (gamma ** np.arange(horizon))[:, None]).sum(0)
    exact = float(compiled(lqr.cost)(system, gain, np.full((1, 1), deviation**2, np.float32)))
    assert abs(-returns.mean() - exact) < 4 * returns.std() / count**0.5 + gamma**horizon * exact
    assert steps.truncated[-1].all() and not steps.truncated[:-1].any() and not steps.terminated.any()
    fixed = LQRDynamics(lqr.double_integrator(), first=(1.0, 2.0), limit=1.0)
    (x, _), _, reward, *_ = compiled(lambda key: fixed.step(fixed.reset(key)[0], jnp.array([5.0]), key))(jax.random.key(0))
    np.testing.assert_allclose(x, [1.2, 2.1], rtol=1e-6)
    np.testing.assert_allclose(reward, -(1 + 0.1 * 4 + 0.1 * 1), rtol=1e-6)
    assert fixed.action_space.bounded and not LQRDynamics(lqr.double_integrator()).action_space.bounded


def test_names_and_mistakes():
    assert {"exact:chain", "exact:lqr", "exact:random-mdp-0"} <= set(names())
    assert make("exact:random-mdp-3") != make("exact:random-mdp-4") and named("nothing") is None
    assert make("exact:chain", horizon=7, observe="one-hot").dynamics.horizon == 7
    with pytest.raises(UnknownEnvironment, match="no environment 'exact:gridwrold'; did you mean exact:gridworld"):
        make("exact:gridwrold")
    with pytest.raises(UnusableEnvironment, match="does not take what it was given.*colour"):
        make("exact:chain", colour="red")
    with pytest.raises(ValueError, match="observe is 'pixels', but one of 'integer', 'one-hot', 'clock', 'features' is expected"):
        TabularDynamics(problems.chain(), 5, observe="pixels")
    with pytest.raises(ValueError, match="speaks of a horizon, but there is none"):
        TabularDynamics(problems.chain(), observe="clock")
    with pytest.raises(ValueError, match="describes 8 steps; leave it out"):
        TabularDynamics(problems.combination_lock(), 5)
    with pytest.raises(ValueError, match="first state has 3 numbers, but the system has 2 states"):
        LQRDynamics(lqr.double_integrator(), first=(1, 2, 3))
