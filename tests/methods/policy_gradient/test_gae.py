"""GAE's oracles: the recursion's numbers, its limits, its unbiasedness under the true values, and the value's trust region."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.policy_gradient.gae import GAE, ValueTrustRegion


def column(*numbers):
    return jnp.array(numbers, jnp.float32)[:, None]


def estimate(part, terminal: bool):
    values = column(0.5, 0.5, 0.5)
    flags = column(0, 0, 1) > 0
    return part(column(1, 1, 1), values, values, flags if terminal else jnp.zeros_like(flags), flags)


def test_the_numbers_of_oracle_1():
    advantage, target = estimate(GAE(0.5, 0.5), terminal=True)
    np.testing.assert_allclose(advantage[:, 0], [0.96875, 0.875, 0.5], rtol=1e-6)
    np.testing.assert_allclose(target, advantage + 0.5, rtol=1e-6)
    np.testing.assert_allclose(estimate(GAE(0.5, 0.5), terminal=False)[0][:, 0], [0.984375, 0.9375, 0.75], rtol=1e-6)


def test_the_variant_without_lambda_on_the_first_link():
    advantage, _ = estimate(GAE(0.5, 0.5, first_link="one"), terminal=True)
    np.testing.assert_allclose(advantage[:, 0], [1.1875, 1.0, 0.5], rtol=1e-6)


def test_the_target_may_have_a_lambda_of_its_own():
    advantage, target = estimate(GAE(0.5, 0.5, target_lam=1.0), terminal=True)
    np.testing.assert_allclose(advantage[:, 0], [0.96875, 0.875, 0.5], rtol=1e-6)
    np.testing.assert_allclose(target[:, 0], [1.75, 1.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_the_true_values_every_lambda_is_unbiased(lam):
    """Oracle 3, by enumeration: 2 states, 2 actions, 4 steps, from the first of them on."""
    rng = np.random.default_rng(0)
    kernel, reward, policy, gamma = rng.dirichlet([1, 1], (2, 2)), rng.normal(size=(2, 2)), rng.dirichlet([1, 1], 2), 0.9
    transition, mean = np.einsum("sa,sat->st", policy, kernel), (policy * reward).sum(1)
    v = np.linalg.solve(np.eye(2) - gamma * transition, mean)
    q = reward + gamma * kernel @ v
    for s, a in itertools.product(range(2), range(2)):
        total = 0.0
        for path in itertools.product(range(2), repeat=5):  # s1, a1, s2, a2, s3
            states, actions = [s, path[0], path[2]], [a, path[1], path[3]]
            weight = kernel[s, a, path[0]] * policy[path[0], path[1]] * kernel[path[0], path[1], path[2]]
            weight *= policy[path[2], path[3]] * kernel[path[2], path[3], path[4]]
            nexts = [path[0], path[2], path[4]]
            end = column(0, 0, 1) > 0
            arrays = [column(*x) for x in (reward[states, actions], v[states], v[nexts])]
            total += weight * float(GAE(gamma, lam)(*arrays, jnp.zeros_like(end), end)[0][0, 0])
        np.testing.assert_allclose(total, q[s, a] - v[s], atol=1e-5)


class Linear:
    """A loop whose critic is a weight vector: enough for the value fit, which asks for values and value_loss only."""

    def __init__(self, features, targets):
        self.features, self.targets = features, targets

    def values(self, critic, batch):
        return self.features @ critic

    def value_loss(self, critic, batch):
        return 0.5 * jnp.mean((self.features @ critic - self.targets) ** 2)


def test_the_value_fit_is_least_squares_when_the_constraint_is_slack_and_sits_on_it_when_tight():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        features, targets = rng.normal(size=(50, 4)), rng.normal(size=50)
        loop, start = Linear(features, targets), jnp.zeros(4)
        free, _, loss = ValueTrustRegion(epsilon=1e6, damping=0.0, cg_iterations=20)(loop, (), start, None, 0.0, None)
        np.testing.assert_allclose(free, np.linalg.lstsq(features, targets)[0], atol=1e-6)
        np.testing.assert_allclose(loss, 0.5 * np.mean(targets**2))
        tight, _, _ = ValueTrustRegion(epsilon=1e-3, damping=0.0, cg_iterations=20)(loop, (), start, None, 0.0, None)
        moved = np.mean((features @ tight) ** 2) / (2 * np.mean(targets**2))
        np.testing.assert_allclose(moved, 1e-3, rtol=1e-4)


def test_the_method_keeps_both_trust_regions_on_a_probe():
    task = ControlTask(make("probe:credit"), 1000)
    method = parts.replace(registry.load("gae")(task), {"num_envs": 8, "num_steps": 12, "network.hidden": (8,), "critic_network.hidden": (8,)})

    def step(state, _):
        return method.step(task, state)

    _, metrics = jax.jit(lambda key: jax.lax.scan(step, method.init(task, key), None, length=30))(jax.random.key(0))
    assert float(metrics["kl"].max()) <= 0.01 + 1e-6
    assert float(metrics["explained_variance"][-5:].mean()) > 0.5
