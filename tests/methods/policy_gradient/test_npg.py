"""The natural policy gradient's oracles: the tabular closed form, and the step that is taken."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import parts
from polopt.envs.exact import tabular
from polopt.envs.exact.problems import random_mdp
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.optim.trust_region import natural_direction


def test_the_tabular_direction_is_the_advantage_over_one_minus_gamma():
    """F^+ grad J = A / (1 - gamma) up to a constant in each state, and the step multiplies the policy by exp(eta A / (1 - gamma))."""
    with jax.enable_x64(True):
        mdp = random_mdp(jax.random.key(0), 5, 3, discount=0.9, start="uniform")
        logits = jax.random.normal(jax.random.key(1), (5, 3))

        def fisher(v):
            return tabular.fisher_vector_product(mdp, logits, v, normalised=True)

        direction, _ = natural_direction(fisher, tabular.policy_gradient(mdp, logits), 50, 0.0)
        policy = jax.nn.softmax(logits)
        expected = tabular.advantages(mdp, policy) / (1 - 0.9)
        difference = direction - expected
        np.testing.assert_allclose(difference, jnp.broadcast_to(difference.mean(axis=1, keepdims=True), (5, 3)), atol=1e-6)
        stepped = policy * jnp.exp(0.3 * expected)
        np.testing.assert_allclose(jax.nn.softmax(logits + 0.3 * direction), stepped / stepped.sum(axis=1, keepdims=True), atol=1e-8)


def test_the_step_solves_the_damped_fisher_system():
    """Against the dense Fisher matrix of the batch, with eta before it."""
    task = ControlTask(make("probe:credit"), 1000)
    changes = {"num_envs": 4, "num_steps": 8, "network.hidden": (), "critic": False, "damping": 0.1, "cg_iterations": 30, "step_size": 0.5}
    method = parts.replace(registry.load("npg")(task), changes)
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    rollout = method.collect(task.env, state, jax.random.key(1))[1]
    batch = method.judge(state, state.acting, rollout)[0]
    actor = state.learner.actor
    flat, restore = jax.flatten_util.ravel_pytree(actor)

    def log_probs(x):
        return method.update(restore(x), batch).distribution

    logits = log_probs(flat).logits
    jacobian = jax.jacobian(lambda x: jax.nn.log_softmax(log_probs(x).logits))(flat)
    fisher = jnp.einsum("na,nai,naj->ij", jax.nn.softmax(logits), jacobian, jacobian) / logits.shape[0]
    gradient = jax.grad(lambda x: method.policy_loss(restore(x), (), batch)[0])(flat)
    expected = flat - 0.5 * jnp.linalg.solve(fisher + 0.1 * jnp.eye(flat.size), gradient)
    learner, _, metrics = method.improver(method, (), state.learner, (), batch, jnp.float32(0), jax.random.key(2))
    moved = jax.flatten_util.ravel_pytree(learner.actor)[0]
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    assert float(jnp.abs(moved - flat).max()) > 0.05
    np.testing.assert_allclose(metrics["kl"], method.mean_kl(learner.actor, batch), rtol=1e-5)
    assert eqx.tree_equal(learner.critic, None)
