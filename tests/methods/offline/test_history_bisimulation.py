"""Bisimulation of histories: distances by hand, that they can be reached, and that nothing but the latents is moved by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts, spaces
from polopt.critics.latent_model import Outlook
from polopt.data.dataset import DataTask
from polopt.methods.offline.history_bisimulation import behavioural_distance, bisimulation_loss, history_bisimulation
from polopt.policies.histories import tokens
from tests.methods.offline.helpers import begun, logged

SIZES = {
    "rule.host.network.hidden": (8,),
    "rule.model_network.hidden": (8,),
    "rule.context": 4,
    "rule.remembered": 6,
    "rule.latent": 3,
    "batch_size": 16,
}


def outlook(reward, mean, std) -> Outlook:
    return Outlook(jnp.float32(reward), jnp.array(mean), jnp.log(jnp.array(std)))


def rule(**changes):
    return parts.replace(history_bisimulation(None), {**SIZES, **changes}).rule


@jax.jit
def judged(of, learner, batch):
    """(L, diagnostics, slopes in values, encoder and model)."""
    given = (learner.critic, learner.extra[0]), learner.target_critic, of.host.weight.value(learner.extra[1]), batch, jax.random.key(2)
    (loss, (metrics, _)), slope = jax.value_and_grad(of.loss, has_aux=True)(*given)
    return loss, metrics, slope


def host_slope(learner, batch):
    """The slope of discrete CQL where phi(h) is what it sees."""
    of, last = rule(), jax.tree.map(lambda x: x[:, -1], batch)
    discount = of.host.discount * (1 - last.terminated)

    def loss(critic):
        z, after = of.latents(critic, batch)
        best = jnp.argmax(jax.vmap(critic)(after), axis=1)
        slow = jax.vmap(learner.target_critic)(of.latents(learner.target_critic, batch)[1])
        y = jax.lax.stop_gradient(last.reward + discount * slow[jnp.arange(len(best)), best])
        every = jax.vmap(critic)(z)
        value = every[jnp.arange(len(best)), last.action]
        return jnp.mean((value - y) ** 2) / 2 + of.host.weight.weight * jnp.mean(jax.nn.logsumexp(every, axis=1) - value)

    return jax.grad(loss)(learner.critic)


def test_distances_by_hand():
    """Oracles 2, 3 and 4: 0 to itself, the same both ways; 1 where rewards differ by 1; N(0, 1) and N(3, 5^2) are 5 apart, times gamma."""
    first, second = outlook(1.0, [0.0], [1.0]), outlook(0.0, [0.0], [1.0])
    assert float(behavioural_distance(first, first, 0.9)) == 0.0
    assert float(behavioural_distance(first, second, 0.9)) == pytest.approx(1.0)
    far = outlook(-1.0, [3.0], [5.0])
    assert float(behavioural_distance(first, far, 0.9)) == pytest.approx(2 + 0.9 * 5, rel=1e-5)
    assert float(behavioural_distance(far, first, 0.9)) == pytest.approx(2 + 0.9 * 5, rel=1e-5)


def test_entries_add_up():
    """Outlooks that differ by 3 in one entry and by 4 in another are 7 apart, as the latents themselves are."""
    first, second = outlook(0.0, [0.0, 0.0], [1.0, 1.0]), outlook(0.0, [3.0, 4.0], [1.0, 1.0])
    assert float(behavioural_distance(first, second, 1.0)) == pytest.approx(7.0)


def test_histories_of_one_state_come_together():
    """Oracle 1: four histories of two states that pay 1 and 0 with the same next law. J falls to 0, and the two of a state to one place."""
    state = jnp.array([0, 0, 1, 1])
    said = jax.vmap(lambda r: Outlook(r, jnp.zeros(2), jnp.zeros(2)))(1.0 - state)
    pairs = jnp.repeat(jnp.arange(4), 4), jnp.tile(jnp.arange(4), 4)
    pick = lambda which: jax.tree.map(lambda x: x[which], said)  # noqa: E731
    distance = jax.vmap(lambda x, y: behavioural_distance(x, y, 0.9))(pick(pairs[0]), pick(pairs[1]))
    loss = lambda z: jnp.mean(bisimulation_loss(z[pairs[0]], z[pairs[1]], distance))  # noqa: E731
    z = jax.random.normal(jax.random.key(0), (4, 2))
    rates = 0.3 * 0.98 ** jnp.arange(400)
    z, _ = jax.jit(lambda z: jax.lax.scan(lambda z, rate: (z - rate * jax.grad(loss)(z), None), z, rates))(z)
    assert float(loss(z)) < 1e-3
    apart = jnp.abs(z[:, None] - z[None]).sum(-1)
    np.testing.assert_allclose(apart, (state[:, None] != state[None]).astype(float), atol=0.05)


def test_collapse_is_penalised():
    """Oracle 5: where phi is constant J = E d^2."""
    z, distance = jnp.ones((5, 3)), jnp.arange(5.0)
    np.testing.assert_allclose(bisimulation_loss(z, z, distance), distance**2)


def test_other_arrays_have_the_same_losses():
    """NumPy, JAX and PyTorch agree in J, and JAX and PyTorch in its gradient."""
    rng = np.random.default_rng(0)
    z, i, reward, other, mean, far, log_std, wide = (rng.normal(size=(5, *shape)) for shape in ((3,), (3,), (), (), (3,), (3,), (3,), (3,)))

    def loss(z, i, *outlooks):
        return bisimulation_loss(z, i, behavioural_distance(Outlook(*outlooks[:3]), Outlook(*outlooks[3:]), 0.9)).sum()

    given = z, i, reward, mean, log_std, other, far, wide
    tensors = [torch.tensor(x, requires_grad=True) for x in given]
    value = loss(*tensors)
    value.backward()
    np.testing.assert_allclose(value.detach(), loss(*given), rtol=1e-9)
    found, slope = jax.value_and_grad(loss)(*map(jnp.asarray, given))
    np.testing.assert_allclose(found, loss(*given), rtol=1e-5)
    np.testing.assert_allclose(slope, tensors[0].grad, rtol=1e-4, atol=1e-5)


def test_the_distance_is_held_fixed():
    slope = jax.grad(lambda d: jnp.sum(bisimulation_loss(jnp.zeros((2, 3)), jnp.ones((2, 3)), d)))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(slope, 0.0)


def test_without_weight_it_is_the_host():
    """Oracle 5: alpha_b = eta = 0 leaves the host's gradient in the values and the encoder; with a weight only the encoder's changes."""
    state, batch = begun("history_bisimulation", tuple(SIZES.items()), spaces.Discrete(2))
    bare, host = judged(rule(**{"rule.bisimulation": 0.0, "rule.grounding": 0.0}), state.learner, batch), jax.jit(host_slope)(state.learner, batch)
    for x, y in zip(jax.tree.leaves(bare[2][0]), jax.tree.leaves(host)):
        np.testing.assert_allclose(x, y, atol=1e-6)
    plain, weighted, double = (judged(rule(**{"rule.bisimulation": w}), state.learner, batch) for w in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(weighted[0] - plain[0], plain[1]["bisimulation"], rtol=1e-4)
    (none, _), (once, model), (twice, again) = plain[2], weighted[2], double[2]
    for x, y in zip(jax.tree.leaves((none.torso, none.head)), jax.tree.leaves((once.torso, once.head))):
        np.testing.assert_allclose(x, y, atol=1e-6)
    for x, y in zip(jax.tree.leaves(model), jax.tree.leaves(again)):
        np.testing.assert_allclose(x, y, atol=1e-6)
    for x, y, z in zip(*(jax.tree.leaves(slope.encoder) for slope in (none, once, twice))):
        np.testing.assert_allclose(y - x, z - y, atol=1e-4)  # linear in the weight
    assert max(float(jnp.abs(y - x).max()) for x, y in zip(jax.tree.leaves(none.encoder), jax.tree.leaves(once.encoder))) > 1e-3


def test_what_is_before_an_episode_is_no_part_of_its_history():
    state, batch = begun("history_bisimulation", tuple(SIZES.items()), spaces.Discrete(2))
    inside = batch.mask > 0
    other = batch._replace(inputs=(jnp.where(inside[..., None], batch.inputs[0], 9.0), ()), action=jnp.where(inside, batch.action, 1))
    assert float(batch.mask.min()) == 0.0
    np.testing.assert_allclose(judged(rule(), state.learner, batch)[0], judged(rule(), state.learner, other)[0], rtol=1e-5)


def test_tokens_by_hand():
    """Each observation with the action before it; the first of a history has none."""
    found = tokens(jnp.arange(3.0)[:, None], jnp.array([[7.0], [8.0], [9.0]]), jnp.array([0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(found, [[0, 0], [1, 0], [2, 8]])


def test_the_deployed_history_is_that_of_training():
    """Along an episode the policy takes the action of the highest value of the window's last history."""
    data, (state, _) = logged(spaces.Discrete(2)), begun("history_bisimulation", tuple(SIZES.items()), spaces.Discrete(2))
    of = rule()
    policy, critic = of.policy(state.learner, state.normaliser), state.learner.critic
    seen = [policy.normaliser(o)[0] for o in np.asarray(data.observation)[5:11]]
    carry, taken = policy.initial_carry(), []
    act, values = jax.jit(lambda carry, o: policy.act(carry, o)), jax.jit(lambda v, a, m: critic(critic.encoder(tokens(v, a, m), m)[-1]))
    for t, o in enumerate(np.asarray(data.observation)[5:11]):
        carry, action = act(carry, jnp.asarray(o))
        taken.append(jax.nn.one_hot(action, 2))
        window = range(max(0, t - 3), t + 1)
        value = values(jnp.stack([seen[u] for u in window]), jnp.stack([taken[u] for u in window]), jnp.ones(len(window)))
        assert int(action) == int(jnp.argmax(value))


def test_a_history_is_as_long_as_the_longest_episode():
    data = logged(spaces.Discrete(2))  # episodes of 5 and 7 steps
    assert history_bisimulation(DataTask(data, 1)).rule.context == 7


def test_other_actions_are_refused():
    assert "takes one whole-number action" in history_bisimulation(None).refuse(DataTask(logged(), 1))
