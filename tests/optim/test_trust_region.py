"""Conjugate gradients against a solved system, alone and for several seeds at once."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core.networks import Network
from polopt.core.spaces import Box, Discrete
from polopt.optim.trust_region import conjugate_gradients, hessian_product
from polopt.policies.actor import Actor


def test_a_system_is_solved_in_as_many_steps_as_it_has_unknowns():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    matrix, b = jnp.asarray(root @ root.T + np.eye(5)), {"x": jnp.asarray(rng.normal(size=3)), "y": jnp.asarray(rng.normal(size=2))}

    def product(v):
        both = matrix @ jnp.concatenate([v["x"], v["y"]])
        return {"x": both[:3], "y": both[3:]}

    found = conjugate_gradients(product, b, 5)
    wanted = np.linalg.solve(matrix, np.concatenate([b["x"], b["y"]]))
    np.testing.assert_allclose(np.concatenate([found["x"], found["y"]]), wanted, rtol=1e-3)
    for x in jax.tree.leaves(conjugate_gradients(product, jax.tree.map(jnp.zeros_like, b), 5)):
        np.testing.assert_array_equal(x, 0 * x)


def test_seeds_together_are_solved_as_alone():
    """With the curvature of an actor's divergence, where a derivative lies inside the product."""

    def solved(key):
        actor = Actor(Network((64, 64)), Box(-1.0, 1.0, (4,)), Discrete(2), "clip", 0.0, key)
        inputs = jax.random.normal(key, (32, 4))
        logits = lambda actor: jax.vmap(lambda x: actor((), x, ())[1].logits)(inputs)  # noqa: E731
        old = jax.nn.softmax(logits(actor))
        kl = lambda new: jnp.mean(jnp.sum(-old * jax.nn.log_softmax(logits(new)), axis=1))  # noqa: E731
        product = hessian_product(kl, actor)
        gradient = jax.grad(lambda actor: jnp.mean(logits(actor) ** 2 + logits(actor)))(actor)
        return conjugate_gradients(lambda v: jax.tree.map(lambda f, x: f + 0.1 * x, product(v), v), gradient, 5)

    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    together = jax.jit(jax.vmap(solved))(keys)
    for i in range(2):
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(jax.jit(solved)(keys[i])), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-3, atol=1e-5)
