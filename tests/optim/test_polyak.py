"""The Polyak step: exact numbers, and free of scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.optim.polyak import scale_by_polyak, twin_target


def step(gradient, value, target, cap=1e3, state=None):
    rule = scale_by_polyak(cap)
    gradient = jnp.asarray(gradient)
    move, state = rule.update(gradient, rule.init(gradient) if state is None else state, value=value, target=target)
    return move, state


def test_halves_the_way_on_a_parabola():
    """Oracle 1: J = -theta^2 / 2 gives eta = 1/2 and theta / 2, exactly."""
    theta = jnp.array([3.0])
    for _ in range(5):
        move, state = step(-theta, -(theta[0] ** 2) / 2, 0.0)
        np.testing.assert_array_equal(optax.apply_updates(theta, move), theta / 2)
        assert state.first == 0.5
        theta = theta / 2


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1e5])
def test_scale_changes_no_step(scale):
    """Oracle 2: eta' = eta / c and eta' g' = eta g; the cap scales too."""
    with jax.enable_x64(True):
        g = np.array([0.3, -1.2, 2.0])
        plain, first = step(g, 1.5, 4.0)
        scaled, scaled_first = step(scale * g, scale * 1.5, scale * 4.0)
        np.testing.assert_allclose(scaled, plain, rtol=1e-12)
        np.testing.assert_allclose(scaled_first.first * scale, first.first, rtol=1e-12)
        near = 1e-9 * g  # a plateau, where the cap binds
        flat, scaled_flat = step(near, 1.5, 4.0, 2.0, first)[0], step(scale * near, scale * 1.5, scale * 4.0, 2.0, scaled_first)[0]
        np.testing.assert_allclose(scaled_flat, flat, rtol=1e-12)
        np.testing.assert_allclose(flat, 2.0 * first.first * near, rtol=1e-12)


def test_no_step_at_the_optimum():
    """Oracle 3: an exact value stops it, however noisy the gradient; and nothing is divided by nothing."""
    assert not step([0.7, -0.1], 4.0, 4.0)[0].any()
    assert not step([0.7, -0.1], 5.0, 4.0)[0].any()
    move, state = step([0.0, 0.0], 1.0, 4.0)
    assert not move.any() and state.first == 0  # a plateau at the start sets no cap
    assert step([1.0, 0.0], 1.0, 4.0, state=state)[1].first == 3


def test_a_longest_step():
    """It shortens the move and nothing else: the first step size is what it was."""
    for scale in (1.0, 1e4):
        rule, g = scale_by_polyak(1e3, longest=0.5), scale * jnp.array([3.0, 4.0])
        move, state = rule.update(g, rule.init(g), value=0.0, target=scale * 100.0)
        np.testing.assert_allclose(move, [0.3, 0.4], rtol=1e-6)
        np.testing.assert_allclose(state.first, 4 / scale, rtol=1e-6)
        near, _ = rule.update(g, state, value=0.0, target=scale * 1.0)
        np.testing.assert_allclose(near, [3 / 25, 4 / 25], rtol=1e-6)
        assert not rule.update(0 * g, state, value=0.0, target=1.0)[0].any()


def test_one_state():
    """Oracle 4: logits (0, 0) with rewards (1, 0)."""
    move, _ = step([0.25, -0.25], 0.5, 1.0)
    np.testing.assert_allclose(move, [1, -1])
    np.testing.assert_allclose(jax.nn.softmax(move)[0], 0.880797, atol=1e-6)


def test_the_twins_target():
    np.testing.assert_allclose(twin_target(3.0, jnp.array([2.0, 1.0]), 2.0), 3 + 2 * 2)
    np.testing.assert_allclose(twin_target(-3.0, jnp.array([-3.0, -3.0]), 2.0), -3 + 2 * 0.003, rtol=1e-6)
    for scale in (0.1, 100.0):
        scaled = twin_target(scale * 3.0, scale * jnp.array([2.0, 1.0]), 2.0)
        np.testing.assert_allclose(scaled, scale * twin_target(3.0, jnp.array([2.0, 1.0]), 2.0), rtol=1e-6)
