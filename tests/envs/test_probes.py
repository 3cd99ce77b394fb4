"""The probes' stated values are their true ones, from exact rollouts of every action sequence that matters."""

import itertools

import jax
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs.make import make
from polopt.envs.probes import PROBES

GAMMA = 0.9
# Rewards are at most quadratic in each action, so that two Gauss-Legendre points average over a uniform action exactly.
NODES = {False: [-1.0, 1.0], True: [-1 / np.sqrt(3), 1 / np.sqrt(3)]}


def episode(probe, step, key, action_of):
    """Observations (each step's and the last), rewards, costs, and whether the end was terminal."""
    state, observation = jax.jit(probe.reset)(key)
    observations, rewards, costs = [np.asarray(observation)], [], []
    for t in itertools.count():
        state, observation, reward, cost, terminated, truncated = step(state, action_of(t, state), key)
        observations.append(np.asarray(observation)), rewards.append(np.asarray(reward, np.float64)), costs.append(np.asarray(cost, np.float64))
        if terminated or truncated:
            return observations, rewards, costs, bool(terminated)


def value_of(known, observation):
    close = [v for o, v in known if np.allclose(o, observation, atol=1e-6)]
    assert len(close) == 1, (observation, known)
    return np.asarray(close[0])


def returns(rewards, terminated, last_value):
    """The discounted return from each step, bootstrapped where the episode was cut."""
    total, out = 0.0 if terminated else last_value, []
    for reward in reversed(rewards):
        total = reward + GAMMA * total
        out.append(total)
    return out[::-1]


@pytest.mark.parametrize("name", PROBES)
def test_best_values(name):
    probe = PROBES[name]
    step, known, seen = jax.jit(probe.step), probe.values(GAMMA), set()
    for seed in range(6):
        observations, rewards, _, terminated = episode(probe, step, jax.random.key(seed), lambda t, state: probe.best_action(state))
        last = 0.0 if terminated else value_of(known, observations[-1])
        for observation, value in zip(observations, returns(rewards, terminated, last)):
            np.testing.assert_allclose(value, value_of(known, observation), rtol=1e-6)
            seen.add(observation.tobytes())
    starts = {o.tobytes() for o, _ in known}
    assert seen <= starts


@pytest.mark.parametrize("name", PROBES)
def test_random_values(name):
    """The mean over all action sequences, for each first observation."""
    probe = PROBES[name]
    step, known = jax.jit(probe.step), probe.values(GAMMA, "random")
    length = getattr(probe, "length", 2)
    indifferent = "truncation" in name or "termination" in name  # whatever is done, the rewards are the same
    for seed in range(4):
        totals = []
        for sequence in itertools.product(NODES[probe.continuous], repeat=1 if indifferent else length):
            act = lambda t, state, s=sequence: probe.action(s[t % len(s)])  # noqa: E731
            observations, rewards, _, terminated = episode(probe, step, jax.random.key(seed), act)
            last = 0.0 if terminated else value_of(known, observations[-1])
            totals.append(returns(rewards, terminated, last)[0])
        np.testing.assert_allclose(np.mean(totals, 0), value_of(known, observations[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["", "-continuous"])
def test_no_action_is_better_than_the_best(form):
    for name in ("value", "credit", "action", "memory"):
        probe = PROBES[name + form]
        step, known = jax.jit(probe.step), probe.values(GAMMA)
        tried = np.linspace(-1, 1, 9) if form else (-1.0, 1.0)
        for seed, a in itertools.product(range(3), tried):
            observations, rewards, _, terminated = episode(probe, step, jax.random.key(seed), lambda t, state, a=a, p=probe: p.action(a))
            assert returns(rewards, terminated, 0.0)[0] <= value_of(known, observations[0]) + 1e-6


@pytest.mark.parametrize("form", ["", "-continuous"])
def test_vector_costs(form):
    probe = PROBES["vector" + form]
    *_, costs, _ = episode(probe, jax.jit(probe.step), jax.random.key(0), lambda t, state: probe.best_action(state))
    np.testing.assert_allclose(costs[0], probe.cost_values(GAMMA)[0].value)
    averages = [episode(probe, probe.step, jax.random.key(0), lambda t, s, a=a: probe.action(a))[2][0] for a in NODES[bool(form)]]
    np.testing.assert_allclose(np.mean(averages, 0), probe.cost_values(GAMMA, "random")[0].value, rtol=1e-6)


@pytest.mark.parametrize("form", ["", "-continuous"])
def test_memory_cannot_be_solved_without_memory(form):
    """The best constant last action earns `without_memory` on average, and the cue is gone after the first observation."""
    probe = PROBES["memory" + form]
    tried = np.linspace(-1, 1, 41) if form else (-1.0, 1.0)
    mean = max(np.mean([float(probe.match(probe.action(a), sign)) for sign in (-1.0, 1.0)]) for a in tried)
    np.testing.assert_allclose(mean, probe.without_memory, atol=1e-6)
    runs = [episode(probe, jax.jit(probe.step), jax.random.key(seed), lambda t, s: probe.action(1.0))[0] for seed in range(8)]
    assert len({run[0].tobytes() for run in runs}) == 2 and len({np.stack(run[1:]).tobytes() for run in runs}) == 1


@pytest.mark.parametrize("name", PROBES)
def test_under_the_protocol(name):
    env = make(f"probe:{name}")
    n = 3

    @jax.jit
    def run(key):
        state, first = env.reset(key, n)
        actions = jax.vmap(lambda k: spaces.sample(env.action_space, k))(jax.random.split(key, n))
        return first, jax.lax.scan(lambda s, k: env.step(s, actions, k), state, jax.random.split(key, 9))[1]

    first, steps = run(jax.random.key(0))
    assert first.shape == (n, *env.observation_space.shape)
    assert steps.reward.shape == ((9, n, env.objectives) if env.objectives else (9, n)) and steps.cost.shape == (9, n, env.costs)
    assert (steps.truncated if "truncation" in name else steps.terminated).any()
    assert not (steps.terminated if "truncation" in name else steps.truncated).any()
    low, high = env.observation_space.bounds()
    assert (steps.final_observation >= low[None, None]).all() and (steps.final_observation <= high[None, None]).all()
