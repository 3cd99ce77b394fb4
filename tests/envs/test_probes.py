"""The probes' stated values are their true ones, from exact rollouts of every action sequence that matters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs.make import make
from polopt.envs.probes import PROBES

GAMMA = 0.9
STEPS = 8  # of the longest probe
KEYS = 4  # enough that both signs come up
# Rewards are at most quadratic in each action, so that two Gauss-Legendre points average over a uniform action exactly.
NODES = {False: [-1.0, 1.0], True: [-1 / np.sqrt(3), 1 / np.sqrt(3)]}


def episodes(probe, sequences=None):
    """One episode for each of KEYS keys and each sequence of signed actions, (sequences, steps); without sequences by the best policy.

    A list of (observations, rewards, costs, terminated): each step's observation and the last one's, and whether the end was terminal.
    """
    sequences = jnp.full((1, STEPS), jnp.nan) if sequences is None else jnp.asarray(sequences, jnp.float32)

    def episode(key, signs):
        def step(state, sign):
            best = probe.best_action(state)
            action = jnp.where(jnp.isnan(sign), best, probe.action(sign)).astype(best.dtype)
            state, *after = probe.step(state, action, key)
            return state, after

        state, first = probe.reset(key)
        return first, jax.lax.scan(step, state, signs)[1]

    run = jax.jit(jax.vmap(jax.vmap(episode, (None, 0)), (0, None)))
    found = []
    first, after = jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), KEYS), sequences))
    for index in np.ndindex(first.shape[:2]):
        observations, rewards, costs, terminated, truncated = (x[index] for x in after)
        last = int(np.argmax(terminated | truncated))
        observations = [first[index], *observations[: last + 1]]
        found.append((observations, rewards[: last + 1].astype(np.float64), costs[: last + 1], bool(terminated[last])))
    return found


def value_of(known, observation):
    close = [v for o, v in known if np.allclose(o, observation, atol=1e-6)]
    assert len(close) == 1, (observation, known)
    return np.asarray(close[0])


def returns(rewards, last_value):
    """The discounted return from each step, given what follows the last one."""
    total, out = last_value, []
    for reward in reversed(rewards):
        total = reward + GAMMA * total
        out.append(total)
    return out[::-1]


def after_the_end(known, observations, terminated):
    return 0.0 if terminated else value_of(known, observations[-1])


@pytest.mark.parametrize("name", PROBES)
def test_best_values(name):
    probe = PROBES[name]
    known, seen = probe.values(GAMMA), set()
    for observations, rewards, _, terminated in episodes(probe):
        for observation, value in zip(observations, returns(rewards, after_the_end(known, observations, terminated))):
            np.testing.assert_allclose(value, value_of(known, observation), rtol=1e-6)
            seen.add(tuple(observation))
    assert any(tuple(o) in seen for o, _ in known)


@pytest.mark.parametrize("name", PROBES)
def test_random_values(name):
    """The mean over all action sequences, for each first observation."""
    probe = PROBES[name]
    known = probe.values(GAMMA, "random")
    indifferent = "truncation" in name or "termination" in name  # whatever is done, the rewards are the same
    length = 1 if indifferent else getattr(probe, "length", 2)
    sequences = [[s[t % length] for t in range(STEPS)] for s in itertools.product(NODES[probe.continuous], repeat=length)]
    found = {}
    for observations, rewards, _, terminated in episodes(probe, sequences):
        total = returns(rewards, after_the_end(known, observations, terminated))[0]
        found.setdefault(tuple(observations[0]), []).append(total)
    for observation, totals in found.items():
        np.testing.assert_allclose(np.mean(totals, 0), value_of(known, np.array(observation)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["value", "credit", "action", "memory"])
@pytest.mark.parametrize("form", ["", "-continuous"])
def test_no_action_is_better_than_the_best(name, form):
    probe = PROBES[name + form]
    known = probe.values(GAMMA)
    tried = np.linspace(-1, 1, 9) if form else np.array([-1.0, 1.0])
    for observations, rewards, _, _ in episodes(probe, np.repeat(tried[:, None], STEPS, 1)):
        assert returns(rewards, 0.0)[0] <= value_of(known, observations[0]) + 1e-6


@pytest.mark.parametrize("form", ["", "-continuous"])
def test_vector_costs(form):
    probe = PROBES["vector" + form]
    np.testing.assert_allclose(episodes(probe)[0][2][0], probe.cost_values(GAMMA)[0].value)
    costs = [found[2][0] for found in episodes(probe, np.repeat(np.array(NODES[bool(form)])[:, None], STEPS, 1))]
    np.testing.assert_allclose(np.mean(costs, 0), probe.cost_values(GAMMA, "random")[0].value, rtol=1e-6)


@pytest.mark.parametrize("form", ["", "-continuous"])
def test_memory_cannot_be_solved_without_memory(form):
    """The best constant last action earns `without_memory` on average, and the cue is gone after the first observation."""
    probe = PROBES["memory" + form]
    tried = [-1.0, -0.5, 0.0, 0.5, 1.0] if form else [-1.0, 1.0]
    mean = max(np.mean([float(probe.match(probe.action(a), sign)) for sign in (-1.0, 1.0)]) for a in tried)
    np.testing.assert_allclose(mean, probe.without_memory, atol=1e-6)
    seen = [observations for observations, *_ in episodes(probe)]
    assert len({tuple(run[0]) for run in seen}) == 2 and len({np.stack(run[1:]).tobytes() for run in seen}) == 1


@pytest.mark.parametrize("name", ["truncation", "termination-continuous", "memory-continuous", "vector"])
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
