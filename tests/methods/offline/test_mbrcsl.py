"""MBRCSL: what is kept and told, how often rollouts stitch in a known model, and the models they are made of."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.offline import mbrcsl as claim
from polopt.core import spaces
from polopt.core.callbacks import clear_errors
from polopt.core.errors import HostError
from polopt.core.parts import replace
from polopt.critics.dynamics import Foreseen, surprise
from polopt.data.dataset import DataTask
from polopt.data.rollouts import Rollouts, added, extremes
from polopt.loops.imagined import Imagination
from polopt.methods.offline.mbrcsl import mbrcsl
from polopt.policies.actor import Normaliser
from polopt.policies.conditioned import ReturnPolicy
from tests.methods.offline.helpers import logged

SMALL = {
    "dynamics_network.hidden": (8,),
    "behaviour_network.hidden": (8,),
    "rule.network.hidden": (8,),
    "members": 2,
    "elites": 1,
    "models.batch_size": 8,
    "rule.batch_size": 8,
    "preparation": 2,
    "updates": 2,
    "rollouts": 4,
    "rounds": 2,
    "kept": 3,
}


add, extreme = jax.jit(added), jax.jit(extremes)


def rollouts(rewards, made=None) -> Rollouts:
    reward = jnp.asarray(rewards, jnp.float32)
    n, h = reward.shape
    made = jnp.ones((n, h), bool) if made is None else jnp.asarray(made)
    return Rollouts(jnp.arange(1.0, n + 1)[:, None, None] * jnp.ones((n, h, 1)), jnp.zeros((n, h), jnp.int32), reward, made)


# -- what is kept and told ---------------------------------------------------------------------------------------------


def test_returns_to_go_telescope():
    """Oracle 2: g_t - g_{t+1} = r_t and g_H = r_H; what is behind an end counts nothing."""
    np.testing.assert_array_equal(rollouts([[1.0, 2.0, 4.0]]).to_go, [[7, 6, 4]])
    np.testing.assert_array_equal(rollouts([[1.0, 2.0, 4.0]], [[True, True, False]]).to_go[:, :2], [[3, 2]])


def test_only_what_earned_more_is_kept_while_there_is_place():
    """1 and 3 are not more than 3; of 4, 5, 6 and 7 the first two find a place behind what is there."""
    kept, count = add(rollouts(np.zeros((3, 1))), 1, rollouts([[1.0], [4.0], [3.0], [5.0], [6.0], [7.0]]), 3.0)
    assert count == 3
    np.testing.assert_array_equal(kept.reward[:, 0], [0, 4, 5])
    np.testing.assert_array_equal(kept.vector[1:, 0, 0], [2, 4])
    same, count = add(kept, 1, rollouts([[1.0]]), 3.0)
    assert count == 1 and same.reward[1, 0] == 4


def test_what_is_asked_for_is_of_kept_steps_only():
    kept = rollouts([[1.0, 1.0], [3.0, 9.0], [-4.0, 5.0], [50.0, 50.0]], [[True, True], [True, False], [True, True], [True, True]])
    assert extreme(kept, 3) == (3.0, 5.0)  # returns 2, 3 and 1; returns to go up to 5
    assert extreme(kept, 0) == (0.0, 1.0)


# -- rollouts in a known model -----------------------------------------------------------------------------------------


class Graph(eqx.Module):
    """The claim's graph as a model without doubt."""

    unused: jax.Array

    def __call__(self, vector, action):
        state, action = jnp.argmax(vector), jnp.argmax(action)
        after = jnp.asarray(claim.TO)[state, action]
        change = jnp.append(jax.nn.one_hot(after, 6) - vector, jnp.asarray(claim.REWARD)[state, action])
        return Foreseen(change, jnp.full(7, -60.0), jnp.where(jnp.isin(after, jnp.array(claim.ENDS)), 50.0, -50.0))


@functools.cache
def known():
    """(part, fitted, rows, data): models that are right, and a behaviour that tosses a coin."""
    data = claim.logs(0).on_device()
    models = replace(Imagination(), {"dynamics_network.hidden": (8,), "behaviour_network.hidden": (8,), "members": 2, "elites": 1})
    fitted = models.init(data, jax.random.key(0))
    coin = jax.tree.map(lambda x: 0 * x, fitted.behaviour)
    right = dataclasses.replace(fitted.models, members=Graph(jnp.zeros(2)), pay=jnp.array([0.0, 1.0]))
    fitted = dataclasses.replace(fitted, models=right, behaviour=coin)
    return models, fitted, models.rows(fitted, data, Normaliser(data.observation_space, None), 2), data


@functools.cache
def rolled():
    """4000 rollouts of the right models."""
    models, fitted, rows, data = known()
    return jax.jit(lambda f, r: models.roll(f, r, data.action_space, 4000, 2, jax.random.key(1)))(fitted, rows)


def test_rollouts_stitch_as_often_as_they_should():
    """Oracles 1 and 4: from A a quarter of the rollouts go by B to E, which no logged episode does; they and no others beat the log's best."""
    found = rolled()
    from_a = np.asarray(found.vector[:, 0].argmax(-1) == claim.A)
    good = np.asarray(found.to_go[:, 0]) > claim.BEST_LOGGED + 1e-6
    assert abs(from_a.mean() - 134 / 200) < 0.04
    assert abs(good[from_a].mean() - 0.25) < 0.04 and not good[~from_a].any()
    leaves = np.asarray(found.action[:, 0] == 1) & from_a
    np.testing.assert_array_equal(np.asarray(found.made[:, 1]), ~leaves)
    assert float(jnp.max(found.to_go[:, 0])) == claim.BEST


def test_without_a_toll_no_rollout_beats_the_log():
    """Oracle 1: what is stitched from A earns the 1 that the log's best episode earned, which is not more."""
    free = np.where(np.arange(6)[:, None] == claim.D, 0.0, claim.REWARD)
    found = rolled()
    paid = jnp.asarray(free[np.asarray(found.vector).argmax(-1), np.asarray(found.action)])
    assert jnp.max(found._replace(reward=paid).to_go[:, 0]) == 1.0
    assert add(jax.tree.map(lambda x: x[:20], found), 0, found._replace(reward=paid), 1.0)[1] == 0


def test_a_bar_that_the_best_episodes_pass_is_filtered_cloning():
    """Oracle 3: where nothing can be stitched, what reaches the best logged return does what the best logged episodes did."""
    from_d = np.asarray(rolled().vector[:, 0].argmax(-1) == claim.D)
    found = jax.tree.map(lambda x: x[from_d], rolled())
    kept, count = add(jax.tree.map(lambda x: x[:20], found), 0, found, -0.01)
    assert count == 20 and (kept.action[:, 1] == 1).all() and (kept.to_go[:, 0] == 0).all()


def test_what_is_left_falls_by_what_the_models_say():
    _, fitted, _, data = known()
    actor = replace(mbrcsl(None), SMALL).init(DataTask(data, 10), jax.random.key(0)).learner.actor
    policy = ReturnPolicy(actor, Normaliser(data.observation_space, None), fitted.models, jnp.float32(1.0), jnp.float32(2.0))
    earned, action = policy.act(policy.initial_carry(), jnp.eye(6)[claim.A])
    np.testing.assert_allclose(earned, claim.REWARD[claim.A, int(action)], rtol=1e-6)
    for earned, left in ((0.0, 0.5), (0.6, 0.2)):
        _, action = policy.act(jnp.float32(earned), jnp.eye(6)[claim.A])
        assert int(action) == int(actor(jnp.append(jnp.eye(6)[claim.A], left), ()).mode())


# -- models ------------------------------------------------------------------------------------------------------------


def test_surprise_by_hand():
    """(1 - 3)^2 / e + 1 for the change, and log 2 for an end at a coin's chance; least where the variance is the squared error."""
    said = Foreseen(jnp.array([1.0]), jnp.array([1.0]), jnp.float32(0.0))
    np.testing.assert_allclose(surprise(said, jnp.array([3.0]), 1.0), 4 / np.e + 1 + np.log(2), rtol=1e-6)
    slope = jax.grad(lambda v: surprise(Foreseen(jnp.array([1.0]), v, jnp.float32(0.0)), jnp.array([3.0]), 0.0))(jnp.log(jnp.array([4.0])))
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_rows_are_drawn_anew_for_each_member_and_judged_on_others():
    _, _, rows, data = known()
    assert rows.drawn.shape == (2, len(data) - len(rows.held)) and not np.array_equal(*rows.drawn)
    assert not np.isin(np.asarray(rows.drawn), np.asarray(rows.held)).any()
    early = np.asarray(data.ended) & (np.asarray(rows.vector).argmax(-1) == claim.A)  # only the exit ends before the horizon
    np.testing.assert_array_equal(np.asarray(rows.end) == 1, early)
    assert rows.episodes == 200
    np.testing.assert_array_equal(rows.start[:200], data.episodes().start)


class Off(eqx.Module):
    """A model whose every mean is off by a number."""

    by: jax.Array

    def __call__(self, vector, action):
        return Foreseen(jnp.full(7, self.by), jnp.zeros(7), jnp.float32(0.0))


def test_the_best_members_on_held_out_rows_are_asked():
    models, fitted, rows, _ = known()
    models = replace(models, {"members": 4, "elites": 2})
    fitted = dataclasses.replace(fitted, models=dataclasses.replace(fitted.models, members=Off(jnp.array([9.0, 0.0, 5.0, 1.0]))))
    judged = models.judged(fitted, rows)
    np.testing.assert_array_equal(judged.models.share, [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(judged.models.reward(rows.vector[0], rows.encoded[0]), 0.5)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_nothing_kept_is_a_clear_error():
    """Oracle 1: where no rollout beats the log, nothing is trained on nothing."""
    method, task = replace(mbrcsl(None), {**SMALL, "horizon": 2, "threshold": 1e9}), DataTask(claim.logs(0).on_device(), 6)
    with pytest.raises(HostError, match="kept no rollout: the best one earned .*, but more than 1e\\+09 is asked for"), clear_errors():
        jax.jit(lambda key: method.step(task, method.init(task, key)))(jax.random.key(0))


def test_what_does_not_fit_is_refused():
    task = DataTask(logged(), 1000)
    assert mbrcsl(task).refuse(task) is None and mbrcsl(task).preparation == 500
    assert "fits its models for 1000 updates, but the run has 1000" in replace(mbrcsl(task), {"preparation": 1000}).refuse(task)
    assert "takes the best 5 models, but has 2" in replace(mbrcsl(task), {"members": 2}).refuse(task)
    free = DataTask(logged(spaces.Box(-np.inf, np.inf, (1,))), 1000)
    assert "needs finite bounds of the actions" in mbrcsl(free).refuse(free)
