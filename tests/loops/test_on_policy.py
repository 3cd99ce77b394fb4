"""The on-policy loop learns probes whose values are known, and gets its bookkeeping right."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.probes import PROBES
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.run.evaluate import episode_returns

GAMMA = 0.9


def ppo(task, **changes):
    quick = {
        "num_envs": 16,
        "num_steps": 16,
        "epochs": 4,
        "minibatches": 2,
        "learning_rate": 1e-2,
        "anneal": True,
        "network.hidden": (16,),
        "critic_network.hidden": (16,),
        "discount": GAMMA,
        "normalise_observations": False,
        "normalise_rewards": False,
        "value_coefficient": 1.0,
    }
    return parts.replace(registry.load("ppo")(task), {**quick, **changes})


@functools.cache
def trained(name: str, iterations: int = 120, **changes):
    task = ControlTask(make(f"probe:{name}"), iterations * 256)
    method = ppo(task, **changes)
    assert method.refuse(task) is None
    run = jax.jit(lambda key: jax.lax.fori_loop(0, iterations, lambda _, s: method.step(task, s)[0], method.init(task, key)))
    return task, method, run(jax.random.key(0))


def learnt_values(name, state, policy):
    known = PROBES[name].values(GAMMA, policy)
    inputs = [state.normaliser(jnp.asarray(k.observation)) for k in known]
    learnt = [float(state.learner.critic((), *i)[1]) for i in inputs]
    return np.array(learnt), np.array([k.value for k in known])


PROBED = ["value", "credit", "credit-continuous", "discount", "action", "action-continuous", "truncation", "termination-continuous"]


@pytest.mark.parametrize("name", PROBED)
def test_the_critic_learns_the_known_values(name):
    slow = {"iterations": 500, "anneal": False} if name == "truncation" else {}  # a bootstrap without end converges slowly
    _, _, state = trained(name, **slow)
    learnt, true = learnt_values(name, state, "best")
    if name.startswith("credit"):  # what follows a wrong first action is visited no longer once the right one is learnt
        learnt, true = learnt[true >= 0], true[true >= 0]
    np.testing.assert_allclose(learnt, true, atol=0.08 * max(1.0, np.abs(true).max()))


@pytest.mark.parametrize("form", ["", "-continuous"])
@pytest.mark.parametrize("name, best", [("action", 1.0), ("credit", 1.0)])
def test_the_policy_learns_the_best_action(name, best, form):
    task, method, state = trained(name + form)
    returns, _ = episode_returns(method.policy(state), task.env, jax.random.key(1), episodes=32)
    assert float(returns.mean()) > best - 0.05


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_a_recurrent_policy_remembers(core):
    changes = {"network.core": core, "critic_network.core": core, "network.core_size": 16, "critic_network.core_size": 16}
    task = ControlTask(make("probe:memory"), 100 * 256)
    method = ppo(task, **changes, minibatches=2, epochs=2)
    run = jax.jit(lambda key: jax.lax.fori_loop(0, 100, lambda _, s: method.step(task, s)[0], method.init(task, key)))
    state = run(jax.random.key(0))
    returns, _ = episode_returns(method.policy(state), task.env, jax.random.key(1), episodes=64)
    assert float(returns.mean()) > 0.95 > task.env.dynamics.without_memory


def test_before_the_first_step_the_new_policy_is_the_old_one():
    """At theta = theta_old the ratio is 1, the KL 0, and the gradient that of the score function."""
    task = ControlTask(make("probe:action-continuous"), 1000)
    for core in ("none", "gru"):
        method = ppo(task, **{"network.core": core, "critic_network.core": core})
        state = jax.jit(lambda key, m=method: m.init(task, key))(jax.random.key(0))
        acting, rollout, _ = method.collect(task.env, state, jax.random.key(1))
        batch, *_ = method.judge(state, state.acting, rollout)
        metrics = method.policy_loss(state.learner.actor, state.surrogate, batch)[1]
        assert float(metrics["ratio_deviation"]) < 1e-5
        assert abs(float(metrics["kl"])) < 1e-6

        def score_function(learner, m=method, b=batch):
            distribution = m.forward(learner.actor, 0, b)
            raw, advantage = m.samples((b.raw_action, b.advantage))
            log_prob = jax.vmap(lambda d, r: d.log_prob(r))(distribution, raw)
            return -jnp.mean(log_prob * (advantage - advantage.mean()) / (advantage.std() + 1e-8))

        def surrogate(learner, m=method, b=batch, s=state):
            return parts.replace(m, {"entropy_coefficient": 0.0}).policy_loss(learner.actor, s.surrogate, b)[0]

        ours, expected = jax.grad(surrogate)(state.learner), jax.grad(score_function)(state.learner)
        for x, y in zip(jax.tree.leaves(ours.actor), jax.tree.leaves(expected.actor), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5)


def test_float_hyperparameters_can_be_vmapped():
    """Several learning rates and clips in one compiled program give what each gives alone."""
    task = ControlTask(make("probe:action"), 1000)
    small = {"num_envs": 4, "num_steps": 8, "network.hidden": (8,), "critic_network.hidden": (8,)}
    methods = [ppo(task, **small, learning_rate=rate, clip=clip) for rate, clip in ((1e-3, 0.1), (3e-2, 0.3))]
    stacked = jax.tree.map(lambda *x: jnp.array(x), *methods)

    def run(method):
        return jax.lax.fori_loop(0, 3, lambda _, s: method.step(task, s)[0], method.init(task, jax.random.key(0))).learner

    together = jax.jit(jax.vmap(run))(stacked)
    for i, method in enumerate(methods):
        for x, y in zip(jax.tree.leaves(jax.tree.map(lambda leaf, i=i: leaf[i], together)), jax.tree.leaves(jax.jit(run)(method)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def test_episode_sums_count_whole_episodes_across_rollouts():
    """Episodes of 8 steps of reward 1, rollouts of 5: every finished episode counts 8, whatever it straddles."""
    task = ControlTask(make("probe:truncation"), 1000)
    method = ppo(task, num_envs=2, num_steps=5, minibatches=2, epochs=1)
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    step = jax.jit(lambda s: method.step(task, s))
    counts, returns = [], []
    for _ in range(8):
        state, metrics = step(state)
        counts.append(float(metrics["episode/count"]))
        returns.append(float(metrics["episode/return"]))
    assert sum(counts) == 2 * (40 // 8)
    assert sum(returns) == 8 * sum(counts)


def test_minibatch_orders_arepermutations():
    from polopt.loops.descent import permutations

    for n in (6, 100, 4096, 5000):
        orders = np.asarray(permutations(jax.random.key(0), 3, n))
        assert all(sorted(order) == list(range(n)) for order in orders.tolist())
        assert not np.array_equal(orders[0], orders[1])
    first = np.asarray(jax.vmap(lambda k: permutations(k, 1, 4)[0, 0])(jax.random.split(jax.random.key(1), 4000)))
    assert np.abs(np.bincount(first) / 4000 - 0.25).max() < 0.03


@pytest.mark.parametrize("bounds", ["clip", "squash"])
def test_actions_stay_inside_the_box(bounds):
    task = ControlTask(make("Pendulum-v1"), 1000)
    method = ppo(task, bounds=bounds, log_std=2.0)
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    policy = method.policy(state)
    keys = jax.random.split(jax.random.key(1), 200)
    actions = jax.vmap(lambda k: policy.act((), jnp.ones(3), k)[1])(keys)
    assert float(jnp.abs(actions).max()) <= 2.0
    assert float(actions.std()) > 1.0


def test_reward_scaling_divides_by_the_deviation_of_the_discounted_return():
    task = ControlTask(make("probe:truncation"), 1000)
    method = ppo(task, normalise_rewards=True)
    rewards, ended = jnp.ones((50, 1)), jnp.zeros((50, 1), bool)
    from polopt.core.normalise import RunningStatistics

    scaled, statistics, last = method._scale_rewards(RunningStatistics.start(1), jnp.zeros(1), rewards, ended)
    returns = np.array([(1 - GAMMA ** (t + 1)) / (1 - GAMMA) for t in range(50)])
    np.testing.assert_allclose(last, returns[-1:], rtol=1e-5)
    np.testing.assert_allclose(scaled, rewards / returns.std(), rtol=1e-4)
