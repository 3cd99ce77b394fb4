"""APG's oracles: the residual starts at nothing, the guard sleeps then, and an optimal policy has no gradient."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt.core import parts, spaces
from polopt.data.replay import Transitions
from polopt.envs.exact import lqr
from polopt.envs.exact.dynamics import LQRDynamics
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import make
from polopt.envs.probes import PROBES
from polopt.envs.task import ControlTask
from polopt.methods.policy_gradient.apg import Adaptation, apg, guard
from polopt.policies.residual import FromRun, Gain, ResidualActor

SYSTEM = lqr.double_integrator()
BEST = np.asarray(lqr.riccati(SYSTEM).gain, np.float64)
LIMIT = 20.0


class WithCost:
    """A system whose steps bear a cost of 0."""

    costs = 1

    def __init__(self, dynamics):
        self.dynamics = dynamics

    def __getattr__(self, name):
        return getattr(self.dynamics, name)

    def step(self, state, action, key):
        state, observation, reward, _, terminated, truncated = self.dynamics.step(state, action, key)
        return state, observation, reward, jnp.zeros((1,)), terminated, truncated


ENV = JaxEnvironment("double integrator", WithCost(LQRDynamics(SYSTEM, 100, limit=LIMIT)))


def rule(**changes) -> Adaptation:
    sizes = {"actor_network.hidden": (8,), "critic_network.hidden": (8,), "preparation": 2, "critic_steps": 2}
    gain = tuple(tuple(-float(x) for x in row) for row in BEST)
    return parts.replace(Adaptation(Gain(gain)), {**sizes, **changes})


def batch_of(n=32) -> Transitions:
    k1, k2, k3 = jax.random.split(jax.random.key(1), 3)
    x, u = jax.random.normal(k1, (n, 2)), jax.random.uniform(k2, (n, 1), minval=-0.3, maxval=0.3)
    after = x @ jnp.asarray(SYSTEM.A, jnp.float32).T + LIMIT * u @ jnp.asarray(SYSTEM.B, jnp.float32).T
    reward, cost = jax.random.normal(k3, (n,)), jnp.ones((n, 1))
    return Transitions((x, ()), u, reward, jnp.full(n, 0.99), (after, ()), jnp.ones(n), jnp.zeros((n, 2), jnp.int32), cost)


class Quadratic(eqx.Module):
    """The exact Q of the gain: z^T M z of (x, u)."""

    matrix: jax.Array

    def __call__(self, vector, pictures, action):
        z = jnp.concatenate([vector, LIMIT * action])
        return z @ self.matrix @ z


def exact(gain) -> Quadratic:
    return Quadratic(jnp.asarray(lqr.action_value_matrix(SYSTEM, jnp.asarray(gain)), jnp.float32))


def test_the_policy_starts_as_the_trained_one():
    """Oracle 2."""
    learner = rule().init(ENV, jax.random.key(0))
    for x in np.random.default_rng(0).normal(size=(20, 2)):
        unit = learner.actor(jnp.asarray(x, jnp.float32), ())
        np.testing.assert_allclose(LIMIT * unit, np.clip(-BEST @ x, -LIMIT, LIMIT), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_an_optimal_policy_has_no_gradient(factor):
    """Oracles 1 and 3: with w = 0 and the exact Q of mu_0's own gain the gradient is 0 if and only if the gain is the best."""
    learner = rule(additional=0.0).init(ENV, jax.random.key(0))
    gain = factor * BEST
    actor = eqx.tree_at(lambda a: a.trained.gain, learner.actor, jnp.asarray(-gain / LIMIT, jnp.float32))
    critic, batch = exact(gain), batch_of()
    gradient = jax.grad(lambda a: rule(additional=0.0).actor_loss(a, critic, critic, batch)[0])(actor)
    length = float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient))))
    assert length < 1e-3 if factor == 1.0 else length > 0.1
    x = batch.observation[0][0]
    slope = jax.grad(lambda u: critic(x, (), u))(-jnp.asarray(gain, jnp.float32) @ x / LIMIT)
    P = np.asarray(lqr.value_matrix(SYSTEM, jnp.asarray(gain)))
    A, B, R, g = (np.asarray(m) for m in (SYSTEM.A, SYSTEM.B, SYSTEM.R, SYSTEM.discount))
    expected = 2 * ((R + g * B.T @ P @ B) @ -gain + g * B.T @ P @ A) @ np.asarray(x)
    np.testing.assert_allclose(slope / LIMIT, expected, rtol=2e-3, atol=2e-3)


def test_the_guard_sleeps_at_the_start_and_wakes_beyond_the_slack():
    """Oracle 4, and the guard by hand for both signs of a cost."""
    now, before = jnp.array([1.0, 1.04, 1.2, -1.0, -0.9]), jnp.array([1.0, 1.0, 1.0, -1.0, -1.0])
    np.testing.assert_allclose(guard(now, before, 0.05), [0, 0, 0.15, 0, 0.05], atol=1e-6)
    learner = rule().init(ENV, jax.random.key(0))
    flat = Quadratic(jnp.zeros((3, 3)))
    loss = lambda a: rule(kappa=7.0).actor_loss(a, flat, exact(BEST), batch_of())[0]  # noqa: E731
    assert float(loss(learner.actor)) == 0 and all(not np.any(g) for g in jax.tree.leaves(jax.grad(loss)(learner.actor)))
    moved = eqx.tree_at(lambda a: a.head.bias, learner.actor, jnp.array([0.3]))
    assert float(loss(moved)) > 0 and np.any(jax.grad(loss)(moved).head.bias)


def test_the_residual_learns_and_the_trained_policy_does_not():
    learner, batch = rule(critic_steps=1).init(ENV, jax.random.key(0)), batch_of()
    first, actors = [], []
    for i in range(4):
        after, _, _ = rule(critic_steps=1).update(learner, batch, 0.0, jax.random.key(i))
        first.append(not _same(after.extra, learner.extra))
        actors.append(not _same(after.actor, learner.actor))
        assert _same(after.actor.trained, learner.actor.trained) and not _same(after.critic, learner.critic)
        learner = after
    assert first == [True, True, False, False], "Q_0 stands still after the preparation"
    assert actors == [False, False, True, True], "and then the actor moves"


def test_a_small_gradient_ends_the_adaptation():
    patient = rule(preparation=1, critic_steps=1, tolerance=1e9)
    learner = patient.init(ENV, jax.random.key(0))
    for i in range(3):
        learner, _, _ = patient.update(learner, batch_of(), 0.0, jax.random.key(i))
    assert not np.any(learner.actor.head.weight)


def test_the_middle_of_the_box_stands_for_no_run():
    learner = parts.replace(rule(), {}).__class__(FromRun()).init(ENV, jax.random.key(0))
    assert isinstance(learner.actor, ResidualActor) and not np.any(learner.actor(jnp.ones(2), ()))


def test_the_policy_of_a_run_is_where_it_starts(tmp_path):
    """`run` names a folder; what stands there acts until the adaptation moves away from it."""
    sizes = dict.fromkeys(("rule__actor_network__hidden", "rule__critic_network__hidden"), (8,))
    options = dict(steps=64, evaluations=1, episodes=1, final_episodes=1, quiet=True)
    trained = polopt.fit("ddpg", "probe:action-continuous", out=tmp_path / "run", warmup=8, **sizes, **options)
    env = JaxEnvironment("probe", WithCost(PROBES["action-continuous"]))
    learner = parts.replace(Adaptation(), {"trained.run": str(trained.directory)}).init(env, jax.random.key(0))
    agent = trained.policy()
    for x in np.linspace(-1, 1, 5, dtype=np.float32):
        np.testing.assert_allclose(learner.actor(jnp.array([x]), ()), agent(np.array([x])), atol=1e-6)
    assert np.any(learner.actor(jnp.ones(1), ()))
    with pytest.raises(ValueError, match="There is no run in"):
        parts.replace(Adaptation(), {"trained.run": str(tmp_path / "nothing")}).init(env, jax.random.key(0))


def test_what_cannot_work_is_refused():
    task = ControlTask(make("Pendulum-v1"), 1000)
    assert "states as its cost, but Pendulum-v1 bears 0" in apg(task).refuse(task)
    assert isinstance(ENV.action_space, spaces.Box) and apg(ControlTask(ENV, 1000)).refuse(ControlTask(ENV, 1000)) is None


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
