"""Confounded POMDPs: exact values and gradients through bridges, where they fall back on regression, and what is refused."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.offline import confounded_pomdp as claim
from polopt.data import files
from polopt.data.dataset import DataTask
from polopt.methods.offline.confounded_pomdp import (
    BridgeAscent,
    Log,
    bridge_matrices,
    bridge_matrix,
    bridged_value,
    confounded_pomdp,
    histories,
)
from polopt.policies.history_tables import Sizes
from polopt.run.run import fit
from tests.methods.offline.helpers import logged

SIZES = Sizes(2, 2)


def whole(problem, decisions: int) -> Log:
    """Every episode there can be, weighted by its probability times a million."""
    rows, problem = [], jax.tree.map(np.asarray, problem)
    for states in itertools.product((0, 1), repeat=decisions):
        for proxy, *rest in itertools.product((0, 1), repeat=1 + 2 * decisions):
            seen, taken = rest[:decisions], rest[decisions:]
            p = 0.5 * problem.proxy[states[0], proxy]
            for t, s in enumerate(states):
                p = p * problem.observe[s, seen[t]] * problem.behaviour[s, taken[t]]
                p = p * problem.transition[s, taken[t], states[t + 1]] if t + 1 < decisions else p
            paid = [float(problem.reward[s, a]) for s, a in zip(states, taken)]
            rows.append(((proxy,) * decisions, seen, taken, paid, 1e6 * float(p)))
    return Log(*(jnp.asarray(np.array(column)) for column in zip(*rows)))


@jax.jit
def through_bridges(log: Log, tables):
    matrices, _ = bridge_matrices(log, SIZES, 1e-3, 1e-3)
    return jax.value_and_grad(bridged_value)(tables, log, matrices)


def of_action_1(gradient):
    """The gradient in the logits of action 1 with those of action 0 held at 0, (O,)."""
    return gradient[0][0, :, 1]


def tables_of(key, decisions: int):
    return tuple(jax.random.normal(jax.random.fold_in(key, t), (SIZES.histories(t), 2, 2)) for t in range(decisions))


def test_the_exact_instance():
    """Oracle 1: V = .69414 and its gradient (-.03713, .15890); regression on what is seen says 1.143 and (.01776, .14738)."""
    log, tables = whole(claim.PROBLEM, 1), claim.start_tables()
    value, gradient = through_bridges(log, tables)
    np.testing.assert_allclose(value, 0.69414, atol=1e-4)
    np.testing.assert_allclose(of_action_1(gradient), [-0.03713, 0.15890], atol=1e-4)
    value, gradient = through_bridges(log._replace(proxy=log.observation), tables)
    np.testing.assert_allclose(value, 1.14300, atol=1e-4)
    np.testing.assert_allclose(of_action_1(gradient), [0.01776, 0.14738], atol=1e-4)


@pytest.mark.parametrize("decisions", [1, 2])
def test_bridges_are_exact_for_any_policy(decisions):
    """The recursion: value and gradient of policies of histories are those of the POMDP."""
    log = whole(claim.PROBLEM, decisions)
    for seed in range(2):
        tables = tables_of(jax.random.key(seed), decisions)
        value, gradient = through_bridges(log, tables)
        exact, slope = jax.jit(jax.value_and_grad(lambda t: claim.exact_value(claim.PROBLEM, t)))(tables)
        np.testing.assert_allclose(value, exact, atol=2e-3)
        for x, y in zip(gradient, slope):
            np.testing.assert_allclose(x, y, atol=2e-3)


@jax.jit
def gradient_bridges(tables, log: Log, matrices):
    """The paper's second recursion, (dim theta,): one equation for every coordinate, with the same matrices."""
    flat, shape = jax.flatten_util.ravel_pytree(tables)
    chance = lambda x, t: jax.nn.softmax(shape(x)[t])[past[:, t], log.observation[:, t], log.action[:, t]]  # noqa: E731
    past, value, slope = histories(log, SIZES), jnp.zeros(log.weight.shape), jnp.zeros((*log.weight.shape, flat.size))
    for t in reversed(range(len(tables))):
        h, o, a = past[:, t], log.observation[:, t], log.action[:, t]
        p, dp = chance(flat, t), jax.jacobian(lambda x, t=t: chance(x, t))(flat)
        earned = log.reward[:, t] + value
        w = jnp.concatenate([(earned * p)[:, None], earned[:, None] * dp + slope * p[:, None]], axis=1)
        y = jax.ops.segment_sum(log.weight[:, None] * w, (h * 2 + a) * 2 + log.proxy[:, t], SIZES.histories(t) * 4).reshape(-1, 2, 2, w.shape[1])
        both = jnp.einsum("haop,hapd->haod", matrices[t], y)[h, :, o].sum(1)
        value, slope = both[:, 0], both[:, 1:]
    return jnp.average(slope, axis=0, weights=log.weight)


def test_the_derivative_is_the_recursion_of_gradient_bridges():
    """Oracle 3, on a sampled log, where every bridge is only estimated."""
    method = BridgeAscent(decisions=2)
    log = jax.jit(method.log)(claim.logged(claim.PROBLEM, 2, 300, jax.random.key(0)))
    matrices, _ = jax.jit(lambda log: bridge_matrices(log, SIZES, method.ridge, method.critic_ridge))(log)
    tables = tables_of(jax.random.key(1), 2)
    gradient = jax.flatten_util.ravel_pytree(jax.jit(jax.grad(bridged_value))(tables, log, matrices))[0]
    np.testing.assert_allclose(gradient_bridges(tables, log, matrices), gradient, atol=1e-4 + 1e-3 * float(jnp.abs(gradient).max()))


def test_without_confounding_both_are_the_policy_gradient():
    """Oracle 2: the behaviour does not depend on the state; then b = E[R | O, A] pi, and regression is right, too."""
    problem = claim.PROBLEM._replace(behaviour=claim.two_sided([0.4, 0.4]))
    log, tables = whole(problem, 1), claim.start_tables()
    exact, slope = jax.value_and_grad(lambda t: claim.exact_value(problem, t))(tables)
    for given in (log, log._replace(proxy=log.observation)):
        value, gradient = through_bridges(given, tables)
        np.testing.assert_allclose(value, exact, atol=1e-4)
        np.testing.assert_allclose(gradient[0], slope[0], atol=1e-4)


def test_what_no_table_changes_has_no_gradient():
    """Oracle 5: a policy that does not depend on theta has a gradient of 0, and so have logits that all rise alike."""
    log, tables = whole(claim.PROBLEM, 1), claim.start_tables()
    gradient = through_bridges(log, tables)[1][0]
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)
    fixed = jax.grad(lambda theta: through_bridges(log, jax.lax.stop_gradient((tables[0] + theta,)))[0])(0.3)
    assert fixed == 0.0


def test_ridges_by_hand():
    """J = diag(4, 2), mu_F = 1, mu_B = .2: (16/5 + .2)^-1 4/5 and (4/3 + .2)^-1 2/3; the condition number of the inverted is 3.4 / 1.5333."""
    matrix, condition = bridge_matrix(jnp.diag(jnp.array([4.0, 2.0])), 0.2, 1.0)
    np.testing.assert_allclose(matrix, np.diag([0.8 / 3.4, (2 / 3) / (4 / 3 + 0.2)]), rtol=1e-5)
    np.testing.assert_allclose(condition, 3.4 / (4 / 3 + 0.2), rtol=1e-5)
    unseen, _ = bridge_matrix(jnp.zeros((2, 2)), 0.2, 1.0)
    np.testing.assert_array_equal(unseen, 0.0)  # a history that never was is worth nothing


def test_a_useless_proxy_is_refused():
    """Oracle 4."""
    problem = claim.PROBLEM._replace(proxy=claim.two_sided([0.5, 0.5]))
    data = claim.logged(problem, 1, 4000, jax.random.key(0))
    assert "as good as singular. Take another proxy" in confounded_pomdp(DataTask(data, 1)).refuse(DataTask(data, 1))


def test_what_is_no_such_log_is_refused():
    task = DataTask(logged(), 1)
    assert "observations, the proxy among them" in confounded_pomdp(task).refuse(task)
    task = DataTask(claim.logged(claim.PROBLEM, 2, 10_000, jax.random.key(0)), 1)
    assert confounded_pomdp(task).refuse(task) is None
    assert "one row for the proxy" in BridgeAscent(decisions=1).refuse(task)
    assert "one row for the proxy" in BridgeAscent(decisions=3).refuse(task)


def test_an_episode_that_is_cut_short_weighs_nothing():
    data = claim.logged(claim.PROBLEM, 2, 50, jax.random.key(0))
    method = BridgeAscent(decisions=2)
    whole_log, cut = (jax.jit(method.log)(d) for d in (data, data.take(slice(0, 148))))
    assert whole_log.weight.sum() == 50 and cut.weight.sum() == 49
    kept = cut.weight > 0
    for x, y in zip(whole_log, cut):
        np.testing.assert_array_equal(x[:49], y[kept[: len(y)]])


def test_the_deployed_history_is_that_of_training():
    """At the proxy any action is as good; then each decision reads the row of its own history."""
    tables = tables_of(jax.random.key(0), 2)
    policy = BridgeAscent(decisions=2).policy(claim.State(tables, jnp.int32(0)))
    for proxy, first, second in itertools.product((0, 1), repeat=3):
        carry, _ = policy.act(policy.initial_carry(), jnp.int32(proxy))
        carry, taken = policy.act(carry, jnp.int32(first))
        assert int(taken) == int(jnp.argmax(tables[0][0, first]))
        carry, last = policy.act(carry, jnp.int32(second))
        assert int(last) == int(jnp.argmax(tables[1][first * 2 + int(taken), second]))


def test_a_file_in_our_layout_is_learnt_from(tmp_path):
    data = claim.logged(claim.PROBLEM, 1, 8000, jax.random.key(0))
    path = files.write(jax.tree.map(np.asarray, data), tmp_path / "log.npz")
    run = fit("confounded_pomdp", data=str(path), steps=20, seeds=1, quiet=True, out=tmp_path / "run")
    assert run.status["state"] == "finished"


def test_the_best_policy_by_enumeration():
    """Of one decision: the best of the four deterministic policies."""
    each = [claim.exact_value(claim.PROBLEM, (200.0 * jax.nn.one_hot(jnp.array([actions]), 2),)) for actions in itertools.product((0, 1), repeat=2)]
    np.testing.assert_allclose(claim.best_value(claim.PROBLEM, 1), max(each), rtol=1e-5)
