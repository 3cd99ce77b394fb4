"""The state space: the recurrence by hand and in parallel, and what a place may see."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core.state_space import StateSpace, causal_convolution, selective_scan
from tests.methods.offline.helpers import scattered


def parallel_scan(u, delta, a, b, c):
    """The recurrence in a logarithmic number of passes."""
    decay, drive = jnp.exp(delta[..., None] * a[None]), (delta * u)[..., None] * b[:, None]
    x = jax.lax.associative_scan(lambda first, then: (first[0] * then[0], then[0] * first[1] + then[1]), (decay, drive))[1]
    return jnp.einsum("tdn,tn->td", x, c)


def written(time: int = 13, channels: int = 4, size: int = 3):
    keys = jax.random.split(jax.random.key(0), 5)
    u, delta = jax.random.normal(keys[0], (time, channels)), jax.nn.softplus(jax.random.normal(keys[1], (time, channels)))
    b, c = (jax.random.normal(k, (time, size)) for k in keys[2:4])
    return u, delta, -jnp.exp(jax.random.normal(keys[4], (channels, size))), b, c


def test_the_recurrent_and_the_parallel_form_agree():
    """Oracle 1, gradients included."""
    given = written()

    @functools.partial(jax.jit, static_argnums=0)
    def both(scan, *given):
        return scan(*given), jax.grad(lambda x: jnp.sum(jnp.sin(scan(*x))))(given)

    for x, y in zip(*(jax.tree.leaves(both(scan, *given)) for scan in (selective_scan, parallel_scan))):
        np.testing.assert_allclose(x, y, atol=1e-4)
    np.testing.assert_allclose(both(selective_scan, *given)[0], both(parallel_scan, *given)[0], atol=1e-5)


def test_the_recurrence_by_hand():
    """One channel, one number, A = -ln 2: x_1 = 1 * 3 * 4 = 12 and y_1 = 12; x_2 = 12 / 4 + 2 * 5 * 1 = 13 and y_2 = -13."""
    u, delta, b, c = (jnp.array(x)[:, None] for x in ([4.0, 1.0], [1.0, 2.0], [3.0, 5.0], [1.0, -1.0]))
    np.testing.assert_allclose(selective_scan(u, delta, -jnp.log(2.0)[None, None], b, c)[:, 0], [12.0, -13.0], rtol=1e-6)


def test_a_small_delta_remembers_and_a_large_one_forgets():
    """Oracle 2: at Delta = 0 x stays, at a large one x_k = Delta B u, whatever was before."""
    u, _, a, b, c = written(3)
    held = selective_scan(u, jnp.array([1.0, 0.0, 0.0])[:, None] * jnp.ones_like(u), a, b, c[:1].repeat(3, 0))
    np.testing.assert_allclose(held[1:], held[:1].repeat(2, 0), rtol=1e-6)
    late = selective_scan(u, jnp.array([1.0, 1.0, 500.0])[:, None] * jnp.ones_like(u), a, b, c)
    np.testing.assert_allclose(late[2], 500 * u[2] * (b[2] @ c[2]), rtol=1e-4)


def test_the_fine_convolution_stays_inside_a_step():
    """Oracle 6; and the coarse one sees its kernel of tokens, none of them later."""
    x, weight = jax.random.normal(jax.random.key(0), (9, 2)), jnp.ones((3, 2))
    sees = lambda group: np.abs(np.asarray(jax.jacobian(lambda x: causal_convolution(x, weight, group))(x))).sum((1, 3)) > 0  # noqa: E731
    inside = np.tril(np.ones((3, 3), bool))
    np.testing.assert_array_equal(sees(3), np.kron(np.eye(3, dtype=bool), inside))
    np.testing.assert_array_equal(sees(9), np.tril(np.ones((9, 9), bool)) & ~np.tril(np.ones((9, 9), bool), -3))


def test_a_place_sees_itself_and_what_is_before_it_unless_it_is_masked():
    network = scattered(jax.jit(lambda key: StateSpace(4, 1, 3, ((4, None), (3, 3)), key))(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (6, 4))
    mask = jnp.array([0.0, 0, 0, 1, 1, 1])
    jacobian = np.abs(np.asarray(jax.jit(jax.jacobian(lambda x: network(x, mask)))(x))).sum((1, 3))[3:]
    np.testing.assert_array_equal(jacobian > 1e-7, np.tril(np.ones((6, 6), bool))[3:] & (np.arange(6) >= 3)[None])
    run = jax.jit(network.__call__)
    np.testing.assert_allclose(run(x, mask)[3:], run(x[3:], jnp.ones(3)), atol=1e-5)  # as if it began there
