"""Momentum that follows the parameters: exact on quadratics, where plain momentum lags behind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.optim.momentum import between, displacement, falling, hessian_aided, implicit_transport, lookahead, recursive_momentum, to_length

H = np.array([[-2.0, 0.3, 0.0], [0.3, -1.0, 0.2], [0.0, 0.2, -0.5]])
START = np.array([1.0, -2.0, 0.5])
WEIGHTS = {"constant": lambda t: 0.3, "small": lambda t: 0.01, "falling": falling(2**0.8, 2, 0.8), "one": lambda t: 1.0}


def slope(x):
    """The gradient of x^T H x / 2 + sum x, in a tree."""
    return {"x": jnp.asarray(H) @ x["x"] + 1.0}


def climbed(update, weight, steps=30):
    """(theta, d) at each of some normalised steps, in float64."""
    with jax.enable_x64(True):
        theta = {"x": jnp.asarray(START)}
        momentum = recursive_momentum(weight).init(theta)
        reach = to_length(falling(0.3, 2, 0.5))
        count, found = reach.init(theta), []
        for _ in range(steps):
            direction, momentum = update(theta, momentum)
            found.append((theta, direction))
            move, count = reach.update(direction, count)
            theta = optax.apply_updates(theta, move)
        return [(np.asarray(t["x"]), np.asarray(d["x"])) for t, d in found]


def transported(weight):
    return lambda theta, state: implicit_transport(weight).update(slope(lookahead(weight, state, theta)), state, theta)


def plain(weight):
    return lambda theta, state: recursive_momentum(weight).update(slope(theta), state, theta)


def curved(weight):
    return lambda theta, state: hessian_aided(weight).update(slope(theta), state, theta, hvp=lambda u: {"x": jnp.asarray(H) @ u["x"]})


def reused(weight):
    def update(theta, state):
        change = jax.tree.map(jnp.subtract, slope(theta), slope(state.previous))
        return recursive_momentum(weight).update(slope(theta), state, theta, change=change)

    return update


def errors(update, weight):
    return [np.abs(d - (H @ x + 1)).max() for x, d in climbed(update, weight)]


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rule", [transported, curved, reused])
def test_the_estimate_is_the_gradient_at_the_present_parameters(rule, weight):
    """Oracles 1 and 2 of npg_igt: for every weight, when nothing is noisy."""
    assert max(errors(rule(WEIGHTS[weight]), WEIGHTS[weight])) < 1e-10


@pytest.mark.parametrize("weight", ["constant", "small", "falling"])
def test_plain_momentum_lags(weight):
    assert max(errors(plain(WEIGHTS[weight]), WEIGHTS[weight])) > 0.05


def test_steps_have_the_length_of_the_schedule():
    """Oracle 3."""
    path = climbed(transported(WEIGHTS["falling"]), WEIGHTS["falling"])
    moves = [np.linalg.norm(after[0] - before[0]) for before, after in zip(path, path[1:])]
    np.testing.assert_allclose(moves, [0.3 / (t + 2) ** 0.5 for t in range(len(moves))], rtol=1e-12)


def test_with_weight_one_nothing_is_remembered():
    """Oracle 4: the look-ahead is where we are, and the direction is the newest gradient."""
    weight = WEIGHTS["one"]
    state = recursive_momentum(weight).init({"x": jnp.ones(3)})
    for x in (jnp.ones(3), 3 * jnp.ones(3)):
        theta = {"x": x}
        np.testing.assert_array_equal(lookahead(weight, state, theta)["x"], x)
        direction, state = recursive_momentum(weight).update({"x": x + 1}, state, theta)
        np.testing.assert_array_equal(direction["x"], x + 1)


def test_before_the_first_update_nothing_has_moved():
    """theta_{-1} = theta_0, and the first direction is the first gradient whatever the weight says."""
    weight, theta = (lambda t: 0.1), {"x": jnp.array([1.0, 2.0])}
    state = recursive_momentum(weight).init(theta)
    np.testing.assert_array_equal(displacement(state, theta)["x"], 0)
    np.testing.assert_array_equal(lookahead(weight, state, theta)["x"], theta["x"])
    np.testing.assert_array_equal(recursive_momentum(weight).update({"x": jnp.array([3.0, 4.0])}, state, theta)[0]["x"], [3, 4])


def test_between_two_points():
    state = recursive_momentum(lambda t: 0.5).init({"x": jnp.array([0.0, 2.0])})
    now = {"x": jnp.array([4.0, 0.0])}
    for fraction, there in ((0.0, [0, 2]), (1.0, [4, 0]), (0.25, [1, 1.5])):
        np.testing.assert_allclose(between(state, now, fraction)["x"], there)


def test_nothing_to_follow_moves_nothing():
    move, count = to_length(lambda t: 1.0).update({"x": jnp.zeros(2), "y": jnp.zeros(())}, jnp.zeros((), jnp.int32))
    assert not move["x"].any() and not move["y"] and count == 1


def test_they_chain_with_others():
    """A transformation of optax like any other: momentum, then length, then downhill."""
    weight = WEIGHTS["constant"]
    rule = optax.chain(implicit_transport(weight), to_length(lambda t: 0.1), optax.scale(-1.0))
    theta = {"x": jnp.asarray(START, jnp.float32)}
    state = rule.init(theta)
    worth = []
    for _ in range(40):
        downhill = jax.tree.map(jnp.negative, slope(lookahead(weight, state[0], theta)))
        move, state = rule.update(downhill, state, theta)
        theta = optax.apply_updates(theta, move)
        worth.append(float(theta["x"] @ jnp.asarray(H, jnp.float32) @ theta["x"] / 2 + theta["x"].sum()))
    assert worth[-1] > worth[0] + 1
