"""The off-policy loop learns probes whose values are known, and gets its bookkeeping right."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts, spaces
from polopt.core.actions import from_unit, to_unit
from polopt.envs.make import make
from polopt.envs.probes import PROBES
from polopt.envs.task import ControlTask
from polopt.loops.exploration import EpsilonGreedy, GaussianNoise, OrnsteinUhlenbeck
from polopt.methods import registry
from polopt.run.evaluate import episode_returns

GAMMA = 0.9
QUICK = {
    "num_envs": 8,
    "num_steps": 4,
    "updates": 8,
    "batch_size": 64,
    "warmup": 256,
    "capacity": 20_000,
    "rule.discount": GAMMA,
}


def quick(key: str, task, **changes):
    method = registry.load(key)(task)
    known = parts.fields(method)
    sizes = {name: (32, 32) for name in known if name.endswith("hidden")}
    rates = {name: 3e-3 for name in known if name.endswith("step.learning_rate")}
    more = {"rule.tau": 0.05} if "rule.tau" in known else {"rule.target_every": 20}
    return parts.replace(method, {**QUICK, **sizes, **rates, **more, **changes})


@functools.cache
def trained(key: str, probe: str, iterations: int = 300, **changes):
    task = ControlTask(make(f"probe:{probe}"), iterations * 32)
    method = quick(key, task, **changes)
    assert method.refuse(task) is None
    run = jax.jit(lambda k: jax.lax.fori_loop(0, iterations, lambda _, s: method.step(task, s)[0], method.init(task, k)))
    return task, method, run(jax.random.key(0))


VALUED = [("td3", "truncation"), ("td3", "termination"), ("sac:fixed", "credit"), ("dqn", "credit"), ("dqn", "truncation"), ("dqn", "termination")]


@pytest.mark.parametrize("key, probe", VALUED)
def test_the_critic_learns_the_known_values(key, probe):
    """A truncated episode keeps the value of what would have followed; a terminated one does not."""
    form = "" if key == "dqn" else "-continuous"
    changes = {"rule.temperature.alpha": 0.0} if key == "sac:fixed" else {}
    _, _, state = trained(key, probe + form, iterations=300 if probe == "credit" else 600, **changes)
    known = PROBES[probe + form].values(GAMMA)
    largest = max(abs(k.value) for k in known)
    for observation, true in known:
        if probe == "credit" and true < 0:
            continue  # what follows a wrong first action is hardly visited once the right one is learnt
        inputs = state.normaliser(jnp.asarray(observation))
        learner = state.learner
        value = learner.critic(*inputs).max() if key == "dqn" else learner.critic(*inputs, learner.actor.draw(*inputs)).mean()
        assert abs(float(value) - true) < 0.08 * max(1.0, largest), (observation, true, value)


@pytest.mark.parametrize("key", ["ddpg", "td3", "sac", "mdpo:off_policy", "dqn"])
def test_the_policy_learns_the_best_action(key):
    task, method, state = trained(key, "action" if key == "dqn" else "action-continuous")
    returns, _ = episode_returns(method.policy(state), task.env, jax.random.key(1), episodes=32)
    assert float(returns.mean()) > 0.93


@pytest.mark.parametrize("changes", [{"replay.prioritised": True}, {"replay.n_step": 3}, {"normalise_observations": True}])
def test_the_options_of_the_loop_still_learn(changes):
    task, method, state = trained("dqn", "credit", **changes)
    returns, _ = episode_returns(method.policy(state), task.env, jax.random.key(1), episodes=32)
    assert float(returns.mean()) > 0.9


def test_nothing_is_learnt_before_the_warmup_is_over():
    task = ControlTask(make("probe:action-continuous"), 1000)
    method = quick("sac", task, warmup=96)
    step = jax.jit(lambda s: method.step(task, s))
    start = state = method.init(task, jax.random.key(0))
    losses = []
    for _ in range(4):
        state, metrics = step(state)
        losses.append(float(metrics["loss/critic"]))
        moved = any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.learner), jax.tree.leaves(start.learner)))
        assert moved == (losses[-1] != 0)
    assert losses[:2] == [0, 0] and losses[2] > 0 and int(state.ring.filled) * method.num_envs == 128


def test_the_ring_holds_what_the_environment_gave():
    """The probe's successor is the true one: at an end the last observation of the old episode, not the first of the new."""
    task = ControlTask(make("probe:credit"), 320)
    method = quick("dqn", task)
    state, _ = jax.jit(lambda k: method.step(task, method.init(task, k)))(jax.random.key(0))
    steps = jax.tree.map(lambda x: np.asarray(x)[:4], state.ring.steps)
    inside = ~steps.ended[:-1]
    assert inside.any() and steps.ended.any()
    np.testing.assert_array_equal(steps.next_observation[:-1][inside], steps.observation[1:][inside])
    assert (steps.next_observation[:-1][~inside] != steps.observation[1:][~inside]).any()


def test_unit_actions_reach_the_bounds_and_come_back():
    space = spaces.Box.of(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), (2,))
    np.testing.assert_allclose(from_unit(space, jnp.array([-1.0, 1.0])), [-2, 10])
    np.testing.assert_allclose(from_unit(space, jnp.array([-3.0, 0.0])), [-2, 5])
    np.testing.assert_allclose(to_unit(space, from_unit(space, jnp.array([0.3, -0.7]))), [0.3, -0.7], atol=1e-6)


def test_gaussian_noise_is_drawn_for_every_entry_and_stays_in_the_box():
    noise = GaussianNoise(std=0.3)
    action, _ = noise(jnp.zeros((5000, 2)), (), None, 0.0, jax.random.key(0), None)
    assert np.corrcoef(np.asarray(action).T)[0, 1] < 0.1
    np.testing.assert_allclose(action.std(axis=0), 0.3, atol=0.01)
    edge, _ = noise(jnp.ones((5000, 2)), (), None, 0.0, jax.random.key(1), None)
    assert float(edge.max()) == 1.0 and float(edge.min()) < 0.7


def test_drifting_noise_has_its_stationary_deviation_and_starts_anew():
    """Oracle of DDPG's entry: theta .15, sigma .2 give sqrt(.04 / (1 - .85^2)) = .379663."""
    noise = OrnsteinUhlenbeck()
    space = spaces.Box(-1.0, 1.0, (1,))

    def step(memory, key):
        _, memory = noise(jnp.zeros((4000, 1)), memory, jnp.zeros(4000, bool), 0.0, key, space)
        return memory, ()

    memory, _ = jax.lax.scan(step, noise.init(4000, space), jax.random.split(jax.random.key(0), 60))
    np.testing.assert_allclose(memory.std(), 0.379663, rtol=0.03)
    start = jnp.arange(4000) < 2000
    _, after = noise(jnp.zeros((4000, 1)), memory, start, 0.0, jax.random.key(1), space)
    np.testing.assert_allclose(after[:2000].std(), 0.2, rtol=0.06)
    np.testing.assert_allclose(after[2000:].std(), 0.379663, rtol=0.06)


def test_epsilon_falls_to_its_last_value():
    explore = EpsilonGreedy(first=1.0, last=0.1, fraction=0.5)
    space = spaces.Discrete(4)
    for progress, epsilon in ((0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (1.0, 0.1)):
        action, _ = explore(jnp.zeros(20_000, jnp.int32), (), None, progress, jax.random.key(0), space)
        np.testing.assert_allclose((action != 0).mean(), epsilon * 0.75, atol=0.012)


@pytest.mark.parametrize(
    "key, env, message",
    [("sac", "CartPole-v1", "takes actions of a box, but CartPole-v1"), ("dqn", "Pendulum-v1", "takes one whole-number action, but Pendulum-v1")],
)
def test_a_wrong_kind_of_action_is_refused(key, env, message):
    task = ControlTask(make(env), 1000)
    assert registry.load(key)(task).refuse(task).startswith(message)
