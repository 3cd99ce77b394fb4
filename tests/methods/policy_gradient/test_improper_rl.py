"""The oracles of improper learning: closed forms in one state, exact gradients of the queues, and what the sampled estimates tend to."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.core.spaces import Box, Discrete, MultiBinary
from polopt.envs.exact import tabular
from polopt.envs.exact.problems import random_mdp, two_queues
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.mixing import ByState, Fixed, Mixing, collect, start_acting
from polopt.methods import registry
from polopt.methods.policy_gradient.improper_rl import (
    ActorCritic,
    GradientFree,
    exact_gradient,
    mixture,
    mixture_advantages,
    natural_direction,
    smoothed_gradient,
    sphere,
)
from polopt.policies.mixture import Constant, MixturePolicy, Weights, controllers_of
from polopt.run.run import RunError, fit


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def constants(mdp):
    """The controllers that always take one action, (A, S, A)."""
    return jnp.broadcast_to(jnp.eye(mdp.actions)[:, None], (mdp.actions, mdp.states, mdp.actions))


def objective(mdp, theta, controllers):
    return tabular.objective(mdp, mixture(theta, controllers))


# -- exact -------------------------------------------------------------------------------------------------------------


def test_one_state():
    """Oracle 1: K_1 = (.9, .1), K_2 = (.2, .8), r = (1, 0), gamma = 0."""
    mdp = tabular.TabularMDP(jnp.ones((1, 2, 1)), jnp.array([[1.0, 0.0]]), jnp.ones(1), 0.0)
    controllers = jnp.array([[[0.9, 0.1]], [[0.2, 0.8]]])
    theta = jnp.zeros(2)
    assert float(objective(mdp, theta, controllers)) == pytest.approx(0.55)
    np.testing.assert_allclose(mixture_advantages(mdp, theta, controllers), [[0.35, -0.35]], atol=1e-6)
    np.testing.assert_allclose(exact_gradient(mdp, theta, controllers), [0.175, -0.175], atol=1e-6)


def test_the_formula_is_the_derivative(double):
    """Oracle 4: autodiff through the exact linear solve."""
    mdp = random_mdp(jax.random.key(0), 6, 3, discount=0.9)
    controllers = jax.random.dirichlet(jax.random.key(1), jnp.ones(3), (4, 6))
    theta = jax.random.normal(jax.random.key(2), (4,))
    np.testing.assert_allclose(exact_gradient(mdp, theta, controllers), jax.grad(objective, argnums=1)(mdp, theta, controllers), atol=1e-10)


def test_controllers_of_one_action_are_a_softmax_without_state(double):
    """Oracle 2: the gradient of one row of logits shared by all states."""
    mdp = random_mdp(jax.random.key(3), 5, 3, discount=0.8)
    theta = jnp.array([0.3, -0.2, 0.5])
    shared = tabular.policy_gradient(mdp, jnp.broadcast_to(theta, (5, 3))).sum(0)
    np.testing.assert_allclose(exact_gradient(mdp, theta, constants(mdp)), shared, atol=1e-10)


def test_equal_controllers_leave_nothing_to_learn(double):
    """Oracle 3."""
    mdp = random_mdp(jax.random.key(3), 5, 3, discount=0.8)
    one = jax.random.dirichlet(jax.random.key(1), jnp.ones(3), (5,))
    np.testing.assert_allclose(exact_gradient(mdp, jnp.array([1.0, 0.0, -1.0]), jnp.stack([one] * 3)), 0, atol=1e-10)


def test_the_queues_are_served_best_in_turn(double):
    """Costs of the catalogue: 123 for one queue alone, 112 for (.9, .1), 66.5 for (.5, .5), where the gradient is 0 by symmetry."""
    mdp = two_queues()
    costs = [-float(objective(mdp, jnp.array(theta), constants(mdp))) for theta in ([50.0, 0.0], [1.1, -1.1], [0.0, 0.0])]
    np.testing.assert_allclose(costs, [123, 112, 66.5], atol=0.6)
    np.testing.assert_allclose(exact_gradient(mdp, jnp.zeros(2), constants(mdp)), 0, atol=1e-8)


# -- estimates ---------------------------------------------------------------------------------------------------------


def test_the_gradient_free_estimate_is_unbiased_up_to_the_square_of_the_radius(double):
    """Oracle 5: on the exact queue, the mean of many estimates against the gradient; the bias falls as the square of the radius."""
    mdp, theta = two_queues(), jnp.array([0.8, -0.8])
    controllers = constants(mdp)
    exact = exact_gradient(mdp, theta, controllers)
    angles = jnp.linspace(0, 2 * jnp.pi, 24, endpoint=False)
    circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)  # the mean over the circle, without the scatter of drawing it

    def mean_estimate(radius):
        returns = jax.vmap(lambda u: objective(mdp, theta + radius * u, controllers))(circle)
        return smoothed_gradient(returns, circle, radius)

    biases = [float(jnp.linalg.norm(mean_estimate(radius) - exact)) for radius in (0.2, 0.1, 0.05)]
    np.testing.assert_allclose([biases[0] / biases[1], biases[1] / biases[2]], 4, rtol=0.1)
    assert biases[2] < 0.01 * float(jnp.linalg.norm(exact))
    drawn = sphere(jax.random.key(0), 5000, 3)
    np.testing.assert_allclose(jnp.linalg.norm(drawn, axis=1), 1, atol=1e-10)
    np.testing.assert_allclose(drawn.T @ drawn / 5000, jnp.eye(3) / 3, atol=0.02)


def test_the_natural_direction(double):
    """Both ways to solve for it agree, and with few parameters it is the inverse times the gradient."""
    psi, delta = jax.random.normal(jax.random.key(0), (7, 4)), jax.random.normal(jax.random.key(1), (7,))
    expected = jnp.linalg.inv(psi.T @ psi / 7 + 0.01 * jnp.eye(4)) @ (psi.T @ delta / 7)
    np.testing.assert_allclose(natural_direction(psi, delta, 0.01), expected, atol=1e-10)
    wide = jax.random.normal(jax.random.key(2), (4, 7))
    expected = jnp.linalg.inv(wide.T @ wide / 4 + 0.01 * jnp.eye(7)) @ (wide.T @ delta[:4] / 4)
    np.testing.assert_allclose(natural_direction(wide, delta[:4], 0.01), expected, atol=1e-9)


def queues(**changes) -> ControlTask:
    return ControlTask(make("exact:two-queue-lengths", **changes), 10**5)


def test_rollouts_return_the_exact_value():
    """The sampled discounted return of weights on the queues against the closed form; the controller is drawn anew at every step."""
    on = queues(horizon=200)
    changes = {"num_envs": 400, "num_steps": 200, "discount": 0.95, "gate.initial": (1.1, -1.1)}
    loop = parts.replace(registry.load("improper_rl:gradient_free")(on), changes)
    state = jax.jit(lambda k: loop.init(on, k))(jax.random.key(0))
    thetas = jnp.array([[1.1, -1.1], [0.0, 0.0]])
    returns, _ = jax.jit(lambda k: loop.estimator.returns(loop, on, state.policy, thetas, k))(jax.random.key(1))
    np.testing.assert_allclose(-returns, [112.2, 66.5], atol=4)


def test_the_critics_errors_average_to_the_advantage():
    """mean(delta psi) with the exact value function is the exact gradient, up to the factor that d is normalised by; one state."""
    on = ControlTask(make("exact:bandit", arms=3, reward="gaussian"), 10**5)
    loop = parts.replace(registry.load("improper_rl:acil")(on), {"num_envs": 20_000, "num_steps": 1, "critic_steps": 30, "critic_learning_rate": 0.5})
    loop = parts.replace(loop, {"gate.initial": (0.5, 0.0, -0.5), "learning_rate": 1.0})
    before = jax.jit(lambda k: loop.init(on, k))(jax.random.key(0))
    after, _ = jax.jit(lambda s: loop.step(on, s))(before)
    moved = after.policy.gate.theta - before.policy.gate.theta
    means = jnp.asarray(on.env.dynamics.bandit.means[0], jnp.float32)
    weights = jax.nn.softmax(before.policy.gate.theta)
    np.testing.assert_allclose(moved, weights * (means - weights @ means), atol=0.03)


def test_an_unstable_pair_is_learnt():
    """NACIL, ACIL and the gradient-free estimate each bring (.9, .1) near to (.5, .5) on the queues."""
    on = queues()
    settings = {
        "improper_rl": {"num_envs": 16, "num_steps": 16, "estimator.features": "quadratic", "learning_rate": 0.02},
        "improper_rl:acil": {"num_envs": 16, "num_steps": 16, "estimator.features": "quadratic", "learning_rate": 0.1},
        "improper_rl:gradient_free": {"num_envs": 8, "num_steps": 60, "learning_rate": 0.003},
    }
    for name, changes in settings.items():
        loop = parts.replace(registry.load(name)(on), {"discount": 0.95, "gate.initial": (1.1, -1.1), **changes})
        state = jax.jit(lambda k, loop=loop: jax.lax.fori_loop(0, 150, lambda _, s: loop.step(on, s)[0], loop.init(on, k)))(jax.random.key(0))
        weights = jax.nn.softmax(state.policy.gate.theta)
        assert abs(float(weights[0]) - 0.5) < 0.2, (name, weights)


def test_a_gate_that_sees_the_state_serves_the_longer_queue():
    """Beyond the paper: weights by state do better than any fixed ones."""
    on = queues()
    loop = parts.replace(
        registry.load("improper_rl:gated")(on),
        {"discount": 0.95, "num_envs": 16, "num_steps": 16, "estimator.features": "quadratic", "learning_rate": 0.3, "gate.hidden": (16,)},
    )
    state = jax.jit(lambda k: jax.lax.fori_loop(0, 150, lambda _, s: loop.step(on, s)[0], loop.init(on, k)))(jax.random.key(0))
    shares = [jax.nn.softmax(state.policy.gate(jnp.array(lengths)))[0] for lengths in ([0.8, 0.1], [0.1, 0.8])]
    assert shares[0] > 0.6 > 0.4 > shares[1]


# -- controllers -------------------------------------------------------------------------------------------------------


def test_the_controller_is_drawn_at_every_step():
    policy = MixturePolicy(Weights(jnp.zeros(2)), controllers_of((), Discrete(3), Discrete(2)))
    env = make("exact:two-queues")
    acting = start_acting(env, policy, 4, jax.random.key(0))
    _, seen, _ = collect(env, policy, acting, 400, jax.random.key(1))
    switches = np.mean(np.asarray(seen.index[1:] != seen.index[:-1]))
    assert switches == pytest.approx(0.5, abs=0.05)


def test_constant_controllers():
    boxes = controllers_of((), Discrete(2), Box(-2.0, 4.0, (2,)))
    assert [c.action.tolist() for c in boxes] == [[-2, -2], [1, 1], [4, 4]]
    assert [c.action.tolist() for c in controllers_of((), Discrete(2), Box(-np.inf, np.inf, (1,)))] == [[-1], [0], [1]]
    assert [int(c.action) for c in controllers_of(("2", 0), Discrete(2), Discrete(3))] == [2, 0]
    assert isinstance(boxes[0], Constant)


def test_a_policy_without_a_key_takes_the_heaviest_controller():
    policy = MixturePolicy(Weights(jnp.array([0.0, 2.0, 1.0])), controllers_of((), Discrete(2), Discrete(3)))
    assert int(policy.act(policy.initial_carry(), jnp.int32(0))[1]) == 1


@pytest.mark.parametrize(
    "given, space, message",
    [
        (("7",), Discrete(3), "7 is no action: they are 0 to 2"),
        (("nowhere",), Discrete(3), "no run in nowhere"),
        ((), MultiBinary(3), "give controllers"),
        (("1",), MultiBinary(3), "no constant action"),
    ],
)
def test_controllers_that_do_not_fit(given, space, message):
    with pytest.raises(ValueError, match=message):
        controllers_of(given, Discrete(2), space)


def test_runs_as_controllers(tmp_path):
    """Two trained policies, one with memory, mixed; a run of another environment is refused in one sentence."""
    small = {"num_envs": 4, "num_steps": 8, "minibatches": 2}
    quiet = dict(steps=64, episodes=2, final_episodes=2, evaluations=1, quiet=True)
    runs = [
        fit("ppo", "probe:memory", out=tmp_path / "a", **quiet, **small),
        fit("ppo", "probe:memory", out=tmp_path / "b", network__core="gru", network__core_size=4, **quiet, **small),
    ]
    paths = tuple(str(run.directory) for run in runs)
    mixed = fit("improper_rl", "probe:memory", out=tmp_path / "mixed", controllers=paths, num_envs=4, num_steps=8, **{**quiet, "steps": 400})
    policy = mixed.policy().policy
    assert len(policy.controllers) == 2 and policy.gate.theta.shape == (2,)
    for controller, run in zip(policy.controllers, runs):
        for x, y in zip(jax.tree.leaves(controller), jax.tree.leaves(run.policy().policy)):
            np.testing.assert_array_equal(x, y)
    carry, action = policy.act(policy.initial_carry(), jnp.zeros(2))
    assert action.shape == () and jax.tree.leaves(carry[1])[0].shape == (4,)
    with pytest.raises(RunError, match="has the observations"):
        fit("improper_rl", "exact:two-queues", out=tmp_path / "wrong", controllers=paths, **quiet)
    with pytest.raises(RunError, match="there is no run.json|no run in"):
        fit("improper_rl", "probe:memory", out=tmp_path / "none", controllers=(str(tmp_path),), **quiet)


def test_what_stays_frozen():
    on = queues()
    loop = parts.replace(registry.load("improper_rl")(on), {"num_envs": 4, "num_steps": 4})
    before = jax.jit(lambda k: loop.init(on, k))(jax.random.key(0))
    after, _ = jax.jit(lambda s: loop.step(on, s))(before)
    assert not np.array_equal(after.policy.gate.theta, before.policy.gate.theta)
    assert eqx.tree_equal(after.policy.controllers, before.policy.controllers)


@pytest.mark.parametrize(
    "loop, message",
    [
        (Mixing(ActorCritic(), Fixed((1.0, 2.0, 3.0))), "3 initial logits for 2 controllers"),
        (Mixing(GradientFree(), ByState(), ("9",)), "9 is no action"),
    ],
)
def test_refusals(loop, message):
    assert message in loop.refuse(queues())


@pytest.mark.parametrize("probe", ["termination", "truncation"])
def test_a_return_without_a_critic_ends_with_the_episode(probe):
    """Eight steps of reward 1, however the episode ends; the next one, which begins in the same rollout, does not count."""
    on = ControlTask(make(f"probe:{probe}"), 1000)
    loop = parts.replace(registry.load("improper_rl:gradient_free")(on), {"num_envs": 2, "num_steps": 20, "discount": 1.0})
    state = loop.init(on, jax.random.key(0))
    returns, _ = loop.estimator.returns(loop, on, state.policy, jnp.zeros((2, 2)), jax.random.key(1))
    assert returns.tolist() == [8.0, 8.0]
