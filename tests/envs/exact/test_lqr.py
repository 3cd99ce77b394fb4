"""Linear-quadratic systems against SciPy, sums over time and differentiation."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.linalg

from polopt.envs.exact import lqr
from tests.envs.exact.helpers import compiled

pytestmark = pytest.mark.usefixtures("x64")

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
N, M = 3, 2
E = 0.3 * np.eye(M)
lin = compiled(lqr)


@functools.cache
def system():
    rng = np.random.default_rng(0)
    return lqr.lqr(0.6 * rng.normal(size=(N, N)), rng.normal(size=(N, M)), 1.0, 1.0, noise=0.1, discount=0.9)


@functools.cache
def best():
    return lin.riccati(system())


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_riccati(discount):
    s = dataclasses.replace(system(), discount=discount, W=np.zeros((N, N)))
    P, K = lin.riccati(s)
    root = discount**0.5
    known = scipy.linalg.solve_discrete_are(*(np.asarray(x) for x in (root * s.A, root * s.B, s.Q, s.R)))
    close(P, known)
    close(K, np.linalg.solve(s.R + discount * s.B.T @ known @ s.B, discount * s.B.T @ known @ s.A))
    np.testing.assert_allclose(lin.cost_gradient(s, K), 0, atol=1e-9)
    assert lin.stable(s, K) and not lin.stable(s, -20 * np.ones((M, N)))


def everything(s, K, others):
    return dict(
        P=lqr.value_matrix(s, K),
        cost=lqr.cost(s, K, E),
        quiet_cost=lqr.cost(s, K),
        moments=lqr.state_moments(s, K, E),
        gradient=lqr.cost_gradient(s, K, E),
        autodiff=jax.grad(lqr.cost, 1)(s, K, E),
        nearby=jax.vmap(lambda k: lqr.cost(s, k, E))(others),
        natural=lqr.natural_gradient(s, K),
        H=lqr.action_value_matrix(s, K),
        improved_cost=lqr.cost(s, lqr.improved(s, K)),
    )


@functools.cache
def computed():
    """The system on NumPy, a gain that is not the best, and what is known of it."""
    K = best().gain + 0.05 * np.random.default_rng(1).normal(size=(M, N))
    step = 1e-6 * np.eye(M * N).reshape(-1, M, N)
    return jax.tree.map(np.asarray, system()), K, compiled(everything)(system(), K, np.concatenate([K + step, K - step]))


def test_value_of_a_gain():
    s, K, got = computed()
    P, F = got["P"], s.A - s.B @ K
    close(P, s.Q + K.T @ s.R @ K + 0.9 * F.T @ P @ F)
    close(P, scipy.linalg.solve_discrete_lyapunov(0.9**0.5 * F.T, s.Q + K.T @ s.R @ K))
    # sums over time of the second moments
    now, total, moments = s.start, 0.0, 0.0
    for t in range(300):
        u = K @ now @ K.T + E
        total, moments = total + 0.9**t * (np.trace(s.Q @ now) + np.trace(s.R @ u)), moments + 0.9**t * now
        now = F @ now @ F.T + s.B @ E @ s.B.T + s.W
    close(got["cost"], total)
    close(got["moments"], moments)
    close(got["quiet_cost"], np.trace(P @ s.start) + 9 * np.trace(P @ s.W))


def test_cost_gradient():
    """Closed form, automatic differentiation and finite differences agree."""
    _, _, got = computed()
    close(got["gradient"], got["autodiff"])
    up, down = np.split(got["nearby"], 2)
    np.testing.assert_allclose((up - down) / 2e-6, got["gradient"].ravel(), rtol=1e-6)
    close(got["natural"] @ got["moments"], got["gradient"])


def test_action_values():
    """Catalogue, apg oracle 3: dQ/du at u = -K x is 2 [(R + g B'PB)(-K) + g B'PA] x, and 0 at the best gain."""
    s, K, got = computed()
    x = np.arange(1.0, N + 1)
    both = np.append(x, -K @ x)
    close(both @ got["H"] @ both, x @ got["P"] @ x)
    close((2 * got["H"] @ both)[N:], -got["natural"] @ x)
    np.testing.assert_allclose(lin.natural_gradient(s, best().gain), 0, atol=1e-10)


def test_policy_iteration_never_gets_worse():
    s, _, got = computed()
    assert lin.cost(s, best().gain) <= got["improved_cost"] < got["quiet_cost"]


def test_finite_horizon():
    s = jax.tree.map(np.asarray, system())
    P, K = lin.finite_riccati(s, 3)
    assert P.shape == (4, N, N) and K.shape == (3, M, N)
    close(lin.finite_riccati(s, 400).values[0], best().values)
    x, total = np.ones(N), 0.0
    for t in range(3):
        u = -K[t] @ x
        total, x = total + 0.9**t * (x @ s.Q @ x + u @ s.R @ u), s.A @ x + s.B @ u
    close(P[0].sum(), total + 0.9**3 * x @ s.Q @ x)


def test_the_scalar_regulator():
    """Catalogue, rarl: x' = 1.1 x + u + w, q = r = 1: gain .70343; and the saddle point at price 3."""
    s = lqr.lqr([[1.1]], [[1.0]], 1.0, 1.0, noise=1.0, discount=1.0)
    np.testing.assert_allclose(lin.riccati(s).gain, 0.70343, atol=5e-6)
    P, k, l = lin.saddle(s, np.ones((1, 1)), 3.0)
    np.testing.assert_allclose([P[0, 0], k[0, 0], l[0, 0]], [2.0476, 0.952340, 0.317447], atol=5e-5)
    np.testing.assert_allclose(lin.saddle(s, np.ones((1, 1)), 1e8).gain, 0.70343, atol=1e-5)
    cost = lambda k, pole: lin.average_cost(dataclasses.replace(s, A=np.array([[pole]])), np.array([[k]]))  # noqa: E731
    found = [cost(0.95234, 1.65), cost(0.70343, 1.65), cost(0.95234, 1.1), cost(0.70343, 1.1)]
    np.testing.assert_allclose(found, [3.72, 14.38, 1.95, 1.77], rtol=3e-3)


def test_set_points():
    """A target for the position: the best affine policy reaches it and needs no force there."""
    s = jax.tree.map(np.asarray, lqr.double_integrator())
    target = np.array([1.0, 0.0])
    shift = np.eye(3)[:2] - np.outer(target, np.eye(3)[2])  # (x, 1) to x - target
    affine = lin.with_constant(s, shift.T @ s.Q @ shift)
    P, K = lin.riccati(affine)
    close(K[:, :2], lin.riccati(s).gain)
    at_target = np.append(target, 1.0)
    close(K @ at_target, 0)
    close(at_target @ P @ at_target, 0, atol=1e-8)
    assert lin.stable(affine, K)


def test_random_systems():
    s = compiled(jax.vmap(lambda key: lqr.random_lqr(key, 2, 1)))(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(s.A)).max(-1), 0.9)
    gains = compiled(jax.vmap(lqr.riccati))(s).gain
    close(gains[1], lin.riccati(jax.tree.map(lambda x: x[1], s)).gain)


def test_systems_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"A has the shape \(1, 2\)"):
        lqr.lqr([[1.0, 0.0]], [[1.0]], 1.0, 1.0)
    with pytest.raises(ValueError, match=r"Q has the shape \(2, 1\), but \(1, 1\), or a number"):
        lqr.lqr([[1.0]], [[1.0]], [[1.0], [2.0]], 1.0)
    with pytest.raises(ValueError, match=r"gain has the shape \(3, 2\), but \(2, 3\), inputs by states"):
        lqr.closed_loop(system(), np.zeros((N, M)))
    with pytest.raises(ValueError, match=r"cost has the shape \(2, 2\), but \(4, 4\), states and a constant"):
        lqr.with_constant(system(), np.eye(2))
