"""Decision Mamba: labels that refine themselves, and what is learnt beside the policy."""

from __future__ import annotations

import array_api_compat
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts, spaces
from polopt.data.dataset import DataTask
from polopt.methods.offline.decision_mamba import decision_mamba, refined, refined_loss
from polopt.methods.offline.decision_transformer import encoded_actions, sequence_loss
from polopt.policies.cloned import LOG_STD, cloned
from tests.methods.offline.helpers import BOX, begun, logged, scattered

SIZES = {"rule.width": 8, "rule.layers": 1, "rule.context": 4, "rule.state_size": 3, "rule.reward_network.hidden": (8,), "batch_size": 16}


def started(**changes):
    """(rule, learner, batch)."""
    state, batch = begun("decision_mamba", tuple(SIZES.items()))
    return parts.replace(decision_mamba(None), {**SIZES, **changes}).rule, state.learner, batch


@jax.jit
def total(rule, learner, batch, scale, beta):
    """(L, its terms, its slopes in actor and foresight, and in the previous actor)."""
    judged = lambda *both: rule.loss(*both, batch, scale, beta)  # noqa: E731
    given = (learner.actor, learner.extra.foresight), learner.target_actor
    (loss, terms), slopes = jax.value_and_grad(judged, argnums=(0, 1), has_aux=True)(*given)
    return loss, terms, slopes


def test_an_action_sees_its_return_and_state_but_not_itself():
    """Oracle 3."""
    _, learner, batch = started()
    actor, given = scattered(learner.actor), (batch.to_go[0], batch.inputs[0][0], batch.action[0])
    mean = lambda *x: actor(*x, jnp.arange(4), jnp.ones(4)).mean[:, 0]  # noqa: E731
    returns, states, actions = (np.abs(np.asarray(x)).reshape(4, 4, -1).sum(-1) > 0 for x in jax.jit(jax.jacobian(mean, (0, 1, 2)))(*given))
    np.testing.assert_array_equal(returns, np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(states, np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(actions, np.tril(np.ones((4, 4), bool), -1))


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3), spaces.MultiDiscrete((2, 3)), spaces.MultiBinary(2)])
def test_labels_of_the_log_and_labels_of_its_own(space):
    """Oracle 4: beta = 0 is plain regression; with beta = 1 nothing pulls a policy away from what it was, whatever the log says."""
    box = isinstance(space, spaces.Box)
    head = 0.3 * jax.random.normal(jax.random.key(0), (1 if box else spaces.size(space),))
    action = jnp.array([0.7]) if box else jnp.array([1, 0]) if space.shape else jnp.int32(2)

    @jax.jit
    def slope(x, before, beta):
        return jax.value_and_grad(lambda x: refined_loss(cloned(space, x, -5.0), cloned(space, before, -5.0), action, beta))(x)

    plain = lambda x: 0.5 * jnp.sum((jnp.tanh(x) - action) ** 2) if box else -cloned(space, x, -5.0).log_prob(action)  # noqa: E731
    pulled, own = jax.grad(plain)(head), slope(head, head, 1.0)
    np.testing.assert_allclose(own[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(own[1], 0.0, atol=1e-6)
    np.testing.assert_allclose(slope(head, head + 1.0, 0.0)[1], pulled, rtol=1e-5)
    mixed = 0.6 * pulled + 0.4 * slope(head, head + jnp.arange(1.0, 1 + head.size), 1.0)[1]  # what is pulled to a mixture is pulled to both
    np.testing.assert_allclose(slope(head, head + jnp.arange(1.0, 1 + head.size), 0.4)[1], mixed, rtol=1e-4, atol=1e-6)


def test_without_refinement_it_is_a_decision_transformer_of_another_network():
    """Oracle 4 for a whole batch: beta = 0 and no foresight leave the loss of the shared sequence actor, whose deviation is no weight here."""
    rule, learner, batch = started(**{"rule.state_weight": 0.0, "rule.return_weight": 0.0})
    loss, _, (slope, _) = total(rule, learner, batch, scale := learner.extra.asked.scale, 0.0)
    plain, gradient = jax.jit(jax.value_and_grad(sequence_loss))(learner.actor, batch, scale)
    variance = np.exp(2 * LOG_STD[0])
    np.testing.assert_allclose(loss, variance * (plain - LOG_STD[0] - 0.5 * np.log(2 * np.pi)), rtol=1e-4)
    for x, y in zip(jax.tree.leaves(slope[0]), jax.tree.leaves(gradient)):
        np.testing.assert_allclose(x, variance * y, atol=1e-6)


def test_no_gradient_through_the_refined_label():
    rule, learner, batch = started()
    _, _, (_, through) = total(rule, learner, batch, learner.extra.asked.scale, 0.5)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(through))


def convert(x, library: str):
    return {"numpy": np.asarray, "jax": jnp.asarray, "torch": torch.as_tensor}[library](np.asarray(x))


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_refined_labels_leave_a_linear_fit_where_it_is(library):
    """Oracle 5: least squares on (1 - b) a + b P a, with P the projection on the columns of X, is P a; whatever the kind of array."""
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    projection = x @ np.linalg.inv(x.T @ x) @ x.T
    label = refined(convert(a, library), convert(projection @ a, library), 0.85)
    assert array_api_compat.array_namespace(label) is array_api_compat.array_namespace(convert(a, library))
    np.testing.assert_allclose(projection @ np.asarray(label), projection @ a, atol=1e-6)


def test_the_previous_policy_is_the_stages():
    """It changes at the end of a stage only, and until the first end labels are the log's."""
    rule, learner, batch = started(**{"rule.refresh_every": 2})
    step = jax.jit(lambda learner: rule.update(learner, batch, 0.5, jax.random.key(0)))
    first, metrics = step(learner)
    second, _ = step(first)
    third, later = step(second)
    same = lambda x, y: all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (x, y))))  # noqa: E731
    assert same(first.target_actor, learner.actor) and same(second.target_actor, second.actor) and same(third.target_actor, second.actor)
    np.testing.assert_allclose([metrics["beta"], later["beta"]], [0.0, 0.5 * 0.85], rtol=1e-6)


def test_masked_steps_lose_nothing():
    rule, learner, batch = started()
    inside = batch.mask > 0
    other = batch._replace(
        to_go=jnp.where(inside, batch.to_go, 9.0),
        reward=jnp.where(inside, batch.reward, 9.0),
        inputs=(jnp.where(inside[..., None], batch.inputs[0], 9.0), ()),
        next_inputs=(jnp.where(inside[..., None], batch.next_inputs[0], 9.0), ()),
        action=jnp.where(inside[..., None], batch.action, 0.9),
    )
    assert float(batch.mask.min()) == 0.0
    losses = [total(rule, learner, b, learner.extra.asked.scale, 0.5)[0] for b in (batch, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_what_is_foreseen_is_what_follows():
    """The state and return to go after the action, from all that is known with it."""
    rule, learner, batch = started()
    actor, foresight, scale = learner.actor, learner.extra.foresight, learner.extra.asked.scale
    given = batch.to_go / scale, batch.inputs[0], encoded_actions(actor, batch.action), batch.step, batch.mask
    state, to_go = jax.jit(jax.vmap(lambda *x: foresight(actor.features(*x))))(*given)
    _, metrics, _ = total(rule, learner, batch, scale, 0.5)
    inside = np.asarray(batch.mask) > 0
    np.testing.assert_allclose(metrics["loss/state"], 0.5 * np.mean((state - batch.next_inputs[0])[inside] ** 2), rtol=1e-4)
    left = (batch.to_go - batch.reward) / scale
    np.testing.assert_allclose(metrics["loss/return"], 0.5 * np.mean((to_go - left)[inside] ** 2), rtol=1e-4)


def test_an_odd_width_is_refused():
    method = parts.replace(decision_mamba(None), {"rule.width": 7})
    assert "but their clock needs an even one" in method.refuse(DataTask(logged(), 1))
