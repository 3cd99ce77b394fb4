"""General utilities: the pseudo-reward is the chain rule, the recursion carries the past over without bias, and regression finds densities."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.core import parts
from polopt.core.spaces import Box, Discrete
from polopt.critics.occupancy import Regression, Table
from polopt.envs.exact import finite, tabular
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import permuted_chain
from polopt.envs.exact.tabular import TabularMDP
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Trajectories
from polopt.loops.utilities import Entropy, Features, Imitation, Penalised, Reward, numbered, share
from polopt.methods import registry
from polopt.methods.policy_gradient.general_utilities import VarianceReduced
from polopt.optim.momentum import MomentumState
from tests.loops.enumerated import HORIZON, close, everything, exact, logits, loop, one_by_one, problem, tabular_actor

TARGET = (0.1, 0.2, 0.3, 0.4)
UTILITIES = {"reward": Reward(), "states": Entropy(), "pairs": Entropy(of="pairs"), "imitation": Imitation(target=TARGET)}


def exact_utility(name, mdp, method, actor):
    """F from the exact occupancy of HORIZON steps."""
    occupancy = finite.occupancy(mdp, jax.nn.softmax(logits(actor, mdp.states)), HORIZON, discounted=True).sum(0)
    d = occupancy * share(method)
    if name == "reward":
        return jnp.sum(occupancy * mdp.reward)
    if name == "imitation":
        return -jnp.sum((d - jnp.array(TARGET).reshape(d.shape)) ** 2) / 2
    d = d.sum(1) if name == "states" else d
    return -jnp.sum(d * jnp.log(d))


def ready(name, seed=0):
    method, mdp = loop(), problem()
    env = JaxEnvironment("exact", TabularDynamics(mdp))
    utility = UTILITIES[name]
    basis, _ = utility.init(method, env, jax.random.key(0))
    actor = tabular_actor(method, mdp, seed)
    trajectories, found = everything(mdp)
    probability = finite.trajectory_probabilities(found, jax.nn.softmax(logits(actor, mdp.states)))
    return method, mdp, utility, basis, actor, trajectories, found, probability


@pytest.mark.parametrize("name", UTILITIES)
def test_the_policy_gradient_of_the_pseudo_reward_is_that_of_the_utility(name):
    """Oracles 1 and 3: the expectation over all episodes equals the derivative of F(lambda(theta))."""
    with jax.enable_x64(True):
        method, mdp, utility, basis, actor, trajectories, _, probability = ready(name)
        moments = probability @ utility.moments(method, basis, trajectories)
        np.testing.assert_allclose(utility.value(basis, moments), exact_utility(name, mdp, method, actor), rtol=1e-10)

        def estimate(t):
            return method.gradient(actor, t, utility.rewards(method, basis, moments, t))

        expected = jax.grad(lambda a: exact_utility(name, mdp, method, a))(actor)
        close(one_by_one(estimate, trajectories, probability), expected, 1e-8)


def test_the_endless_problem():
    """Oracle 3 as it stands: lambda = (I - gamma P^T)^-1 rho pi, and the policy gradient theorem with the pseudo-reward."""
    with jax.enable_x64(True):
        mdp, x = permuted_chain(5), jax.random.normal(jax.random.key(0), (5, 3))

        def utility(d):
            return -jnp.sum(d.sum(1) * jnp.log(d.sum(1)))

        def occupancy(x):
            return tabular.occupancy(mdp, jax.nn.softmax(x), normalised=True)

        pseudo = jax.grad(utility)(occupancy(x)) * (1 - mdp.discount)
        np.testing.assert_allclose(jax.grad(lambda x: utility(occupancy(x)))(x), tabular.policy_gradient(mdp.with_reward(pseudo), x), atol=1e-8)


def test_the_numbers_of_one_state():
    """Oracle 2: pi = (.8, .2) and gamma = 0."""
    method = parts.replace(loop(), {"discount": 0.0, "horizon": 1})
    utility = Entropy(of="pairs")
    basis, _ = utility.init(method, _Env(Discrete(1), Discrete(2)), jax.random.key(0))
    each = jnp.eye(2, dtype=jnp.float32)[:, None]
    t = Trajectories((jnp.ones((2, 1, 1)), ()), jnp.arange(2)[:, None], each, jnp.zeros((2, 1)), jnp.zeros((2, 1, 0)), jnp.ones((2, 1), bool))
    probability = jnp.array([0.8, 0.2])
    moments = probability @ utility.moments(method, basis, t)
    np.testing.assert_allclose(moments, probability)
    rewards = utility.rewards(method, basis, moments, t)
    np.testing.assert_allclose(rewards[:, 0], [-0.776856, 0.609438], atol=1e-6)
    actor = method.actor(_Env(Discrete(1), Discrete(2)), jax.random.key(0))
    actor = eqx.tree_at(lambda a: (a.head.weight, a.head.bias), actor, (jnp.zeros((1, 2)), jnp.log(probability)))
    gradient = one_by_one(lambda e: method.gradient(actor, e, utility.rewards(method, basis, moments, e)), t, probability)
    np.testing.assert_allclose(gradient.head.bias, [-0.221807, 0.221807], atol=1e-6)


class _Env:
    name, dynamics = "small", None

    def __init__(self, observation_space, action_space, costs=0):
        self.observation_space, self.action_space, self.costs = observation_space, action_space, costs


def test_the_correction_carries_the_occupancy_over():
    """Oracle 5: E[lam(tau) (1 - w)] over episodes of the new policy is lambda of the new less lambda of the old."""
    with jax.enable_x64(True):
        method, mdp, utility, basis, new, trajectories, found, probability = ready("pairs")
        old = tabular_actor(method, mdp, seed=7)
        before = finite.trajectory_probabilities(found, jax.nn.softmax(logits(old, mdp.states)))
        seen = utility.moments(method, basis, trajectories)
        weights = method.weights(old, new, trajectories)
        np.testing.assert_allclose(probability @ (seen * (1 - weights)[:, None]), (probability - before) @ seen, atol=1e-12)


def run(name, iterations=4, **changes):
    """The states of some iterations on `exact:permuted-chain`, and each one's metrics."""
    task = ControlTask(make("exact:permuted-chain"), 10_000)
    method = parts.replace(registry.load(name)(task), {"horizon": 10, "num_envs": 4, "discount": 0.9, **changes})
    assert method.refuse(task) is None
    states, log = [jax.jit(lambda key: method.init(task, key))(jax.random.key(0))], []
    step = jax.jit(lambda s: method.step(task, s))
    for _ in range(iterations):
        state, metrics = step(states[-1])
        states.append(state)
        log.append(metrics)
    return method, states, log


def test_standing_still_averages():
    """Oracle 4: steps of almost no length give w = 1, and what is left is momentum with weights eta_t.

    Of d that holds where the pseudo-reward stands still too, as it does when F is linear; of lambda always.
    """
    for name in ("general_utilities", "general_utilities:reward"):
        _, states, log = run(name, step_size=1e-9)
        _, plain, _ = run(name, step_size=1e-9, correct=False)
        np.testing.assert_allclose([m["weight"] for m in log], 1.0, atol=1e-5)
        found, expected = (s[-1].ascent.momentum.direction for s in (states, plain))
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
        if name == "general_utilities":
            np.testing.assert_allclose(found[1].sum(), 1.0, rtol=1e-5)  # episodes as long as the horizon: d is a distribution
        else:
            close(found[0], expected[0], 1e-5)


def test_which_estimates_the_pseudo_rewards_use():
    """The last parameters of the momentum are theta_{t-1} and lambda_{t-2}: what the old term of the correction takes."""
    _, states, _ = run("general_utilities")
    for now, after in zip(states[1:], states[2:]):
        used = after.ascent.momentum.previous
        np.testing.assert_array_equal(used[0].head.weight, now.ascent.actor.head.weight)
        np.testing.assert_array_equal(used[1], now.ascent.momentum.direction[1])
    first = states[1].ascent.momentum
    np.testing.assert_array_equal(first.previous[1], first.direction[1])  # r_0 comes from lambda_0 = lam(tau_0)


def test_one_update_is_right_on_average():
    """The recursion as the method runs it, on every episode of a problem where the new policy makes all of them equally likely."""
    with jax.enable_x64(True):
        method, reach = loop(), jnp.broadcast_to(jnp.eye(2), (2, 2, 2))  # action a leads to state a
        mdp = TabularMDP(reach, jnp.zeros((2, 2)), jnp.array([1.0, 0.0]), 0.8)
        task = ControlTask(JaxEnvironment("exact", TabularDynamics(mdp)), 1)
        ascent = VarianceReduced(Entropy(of="pairs"))
        old, new = tabular_actor(method, mdp, seed=1), tabular_actor(method, mdp, scale=0.0)
        trajectories, found = everything(mdp)
        episodes = jax.tree.map(lambda x: x[np.asarray(found.chance) > 0], trajectories)
        direction, remembered, used = tabular_actor(method, mdp, seed=2), jnp.array([0.4, 0.3, 0.2, 0.1]), jnp.array([0.1, 0.5, 0.1, 0.3])
        start = ascent.init(method, task, jax.random.key(0))
        state = start._replace(actor=new, momentum=MomentumState(jnp.array(3), (direction, remembered), (old, used)))
        after, _ = ascent(method, lambda actor, key: episodes, state, 0.0, jax.random.key(1))

        def visits(actor):
            occupancy = finite.occupancy(mdp, jax.nn.softmax(logits(actor, 2)), HORIZON, discounted=True).sum(0)
            return occupancy.ravel() * share(method)

        def slope(actor, moments):
            reward = share(method) * (-jnp.log(moments) - 1)
            return jax.grad(lambda a: exact(mdp.with_reward(reward.reshape(2, 2)), a))(actor)

        eta = (2 / 4) ** (2 / 3)
        expected = eta * visits(new) + (1 - eta) * (remembered + visits(new) - visits(old))
        np.testing.assert_allclose(after.momentum.direction[1], expected, rtol=1e-6)
        terms = direction, slope(new, remembered), slope(old, used)
        close(after.momentum.direction[0], jax.tree.map(lambda d, n, o: eta * n + (1 - eta) * (d + n - o), *terms), 1e-6)


def test_reward_is_the_ordinary_policy_gradient():
    """Oracle 1 through the loop: without memory the direction is the gradient of the return."""
    task = ControlTask(make("exact:chain"), 10_000)
    method = parts.replace(registry.load("general_utilities:reward")(task), {"horizon": 10, "num_envs": 4, "memory": 0.0})
    state = method.init(task, jax.random.key(0))
    seen = {}

    def sample(actor, key):
        seen["episodes"] = method.act(task.env, None, state.normaliser, actor, key)[1]
        return seen["episodes"]

    after, _ = method.ascent(method, sample, state.ascent, 0.0, jax.random.key(1))
    close(after.momentum.direction[0], method.gradient(state.ascent.actor, seen["episodes"]), 1e-6)


def test_the_entropy_rises():
    _, _, log = run("general_utilities", iterations=300, num_envs=4)
    early, late = (np.mean([m["utility"] for m in part]) for part in (log[5:25], log[-20:]))
    assert late > early + 0.2


def test_a_penalty_above_the_limit_only():
    method, utility = loop(discount=0.5), Penalised(limit=1.0, penalty=3.0)
    reward, cost = jnp.array([[1.0, 2.0]]), jnp.array([[[1.0, 0.0], [2.0, 4.0]]])
    t = Trajectories((), (), (), reward, cost, jnp.ones((1, 2), bool))
    moments = utility.moments(method, (), t)[0]
    np.testing.assert_allclose(moments, [2, 2, 2])
    np.testing.assert_allclose(utility.value((), moments), 2 - 1.5 * 2)
    np.testing.assert_allclose(utility.rewards(method, (), moments, t), [[1 - 3, 2 - 3 * 6]])
    np.testing.assert_allclose(utility.rewards(method, (), jnp.array([2, 1, 0.5]), t), reward)


def test_the_table_of_an_exact_problem_is_the_same_in_numbers_and_units():
    number, unit = make("exact:permuted-chain"), make("exact:permuted-chain", observe="one-hot")
    assert numbered(number, "pairs") and numbered(unit, "pairs") and not numbered(make("CartPole-v1"), "states")
    for env in (number, unit):
        basis, zeros = Features().init(env, "pairs", jax.random.key(0))
        assert isinstance(basis, Table) and zeros.shape == (24,)


# -- the regression of large spaces ----------------------------------------------------------------------------------------


def uniform(key):
    return jax.random.uniform(key, (2,))


def test_regression_finds_a_density():
    """Visits with the density 2 x_0 on the unit square: m = E_nu[phi lambda] gives lambda back, up to the ridge and the sampling of nu."""
    basis = Regression(uniform, 24, 0.5, jax.random.key(0))
    places = jax.vmap(uniform)(jax.random.split(jax.random.key(1), 20_000))
    density = 2 * places[:, 0]
    moments = jnp.mean(jax.vmap(basis.features)(places) * density[:, None], axis=0)
    found = jax.vmap(lambda place: basis.density(moments, place))(places)
    assert jnp.sqrt(jnp.mean((found - density) ** 2)) < 0.1 < 0.5 < density.std()


def test_even_visits_have_density_one_everywhere():
    basis = Regression(uniform, 24, 0.5, jax.random.key(0))
    places = jax.vmap(uniform)(jax.random.split(jax.random.key(1), 200))
    np.testing.assert_allclose(jax.vmap(lambda place: basis.density(basis.even(), place))(places), 1.0, atol=0.05)
    np.testing.assert_allclose(basis.integral(lambda d: d, basis.even()), 1.0, atol=0.05)
    crowded = jax.vmap(basis.features)(0.2 * places).mean(0)
    assert basis.density(crowded, jnp.array([0.1, 0.1])) > 3 > 1 > basis.density(crowded, jnp.array([0.8, 0.8]))


def test_spaces_of_vectors_get_a_regression():
    env = _Env(Box(-1.0, 1.0, (2,)), Box(-2.0, 2.0, (1,)))
    for of, coordinates in (("states", 2), ("pairs", 3)):
        basis, zeros = Features(count=5).init(env, of, jax.random.key(0))
        assert isinstance(basis, Regression) and basis.centres.shape == (5, coordinates) and zeros.shape == (5,)


@pytest.mark.parametrize(
    "utility, env, words",
    [
        (Penalised(), "probe:action", "bears none"),
        (Imitation(target=(1.0, 2.0)), "exact:permuted-chain", "needs 24"),
        (Imitation(target=(1.0, 2.0)), "probe:action", "needs 64"),
    ],
)
def test_mistakes_are_sentences(utility, env, words):
    task = ControlTask(make(env), 1)
    reason = VarianceReduced(utility).refuse(loop(), task)
    assert words in reason and ". " in reason


def test_gradients_of_utilities_are_not_those_of_the_return():
    """A guard for the tests above: the utilities differ on their problem."""
    with jax.enable_x64(True):
        mdp, method = problem(), loop()
        actor = tabular_actor(method, mdp)
        found = [jax.grad(lambda a, n=name: exact_utility(n, mdp, method, a))(actor) for name in UTILITIES]
        close(found[0], jax.grad(lambda a: exact(mdp, a))(actor))
        assert all(optax.tree.norm(optax.tree.sub(a, b)) > 1e-3 for i, a in enumerate(found) for b in found[:i])
