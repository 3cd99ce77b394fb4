"""The oracles of the methods that draw their own responses: REBEL, INPO and Nash-MD."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.preferences.rebel import Clipped
from polopt.claims.preferences.training import Table, game
from polopt.envs.exact import preferences, sequences
from polopt.loops.preference import LeastSquares, Minibatches, Preference
from polopt.loops.preference_sources import Judged, Mixture, Online
from polopt.methods.preferences.inpo import TwoAnchors
from polopt.methods.preferences.ipo import Squared
from polopt.methods.preferences.nash_md import AgainstOpponent, mirror_step, step_size
from polopt.methods.preferences.rebel import RelativeReward
from polopt.policies.language.mixture import GeometricMixture
from polopt.policies.language.tabular import TabularPolicy
from tests.methods.preferences.helpers import all_pairs, columns, least_squares, pair

REWARDS = jnp.array([0.0, 1.0, 2.0])
CYCLE = jnp.asarray(preferences.rock_paper_scissors(0.9).T, jnp.float32)  # the first beats the second


# -- REBEL -------------------------------------------------------------------------------------------------------------


def test_rebels_minimiser_is_mirror_descent():
    """Oracle 1: three arms, uniform pi_t, r = (0, 1, 2), eta = 1 give (.090031, .244728, .665241), with no residual."""
    residual = lambda x: RelativeReward(1.0).residual(all_pairs(x, REWARDS, previous=jnp.zeros(3)))  # noqa: E731
    found = least_squares(residual, 3)
    np.testing.assert_allclose(jax.nn.softmax(found), [0.090031, 0.244728, 0.665241], atol=1e-5)
    np.testing.assert_allclose(residual(found), 0, atol=1e-5)


def test_rebels_first_step_is_the_natural_gradient():
    """Oracle 2: of a log-linear policy, pairs in their exact proportions: d = eta F^-1 g."""
    eta, phi = 0.7, jax.random.normal(jax.random.key(0), (5, 2))
    rewards, w = jax.random.normal(jax.random.key(1), (5,)), jnp.array([0.3, -0.6])
    pi = jax.nn.softmax(phi @ w)
    i, j = np.array([(i, j) for i in range(5) for j in range(5) if i != j]).T
    weight = jnp.sqrt(pi[i] * pi[j])
    residual = lambda d: weight * RelativeReward(eta).residual(all_pairs(phi @ (w + d), rewards, previous=phi @ w))  # noqa: E731
    centred = phi - (pi @ phi)[None]
    fisher = (pi[:, None] * centred).T @ centred
    expected = eta * jnp.linalg.solve(fisher, (pi[:, None] * centred).T @ rewards)
    np.testing.assert_allclose(least_squares(residual, 2), expected, rtol=1e-3)


def test_rebel_ignores_a_constant_of_the_prompt_and_stays_without_a_step():
    """Oracles 3 and 4."""
    at = lambda x, r, eta=1.0: RelativeReward(eta)(all_pairs(x, r, previous=jnp.zeros(3)))  # noqa: E731
    np.testing.assert_allclose(at(jnp.array([0.2, 0.5, -0.1]), REWARDS + 4), at(jnp.array([0.2, 0.5, -0.1]), REWARDS), rtol=1e-5)
    difference = all_pairs(jnp.zeros(3), REWARDS).score
    np.testing.assert_allclose(at(jnp.zeros(3), REWARDS), (difference[:, 0] - difference[:, 1]) ** 2)
    tiny = least_squares(lambda x: RelativeReward(1e-4).residual(all_pairs(x, REWARDS, previous=jnp.zeros(3))), 3)
    np.testing.assert_allclose(tiny, 0, atol=1e-3)


def test_rebel_contains_ipo():
    """Oracle 5: with r - r' = 1/2 the residual is h / eta - 1/2, 0 at h = eta / 2 = 1 / (2 tau), tau = 1 / eta."""
    eta, half = 4.0, lambda h: columns([[h, 0.0]], [[0.5, 0.0]], previous=0.0)
    assert RelativeReward(eta).residual(half(eta / 2))[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(RelativeReward(eta).residual(half(1.3)) * eta, Squared(1 / eta).residual(pair(1.3)), rtol=1e-6)


def test_the_claims_ppo():
    """Its clipped surrogate by hand: a ratio of 1.5 with advantage 1 counts as 1.2, with -1 as it is."""
    given = columns([[np.log(1.5), np.log(1.5)]], [[1.0, -1.0]], previous=0.0)
    np.testing.assert_allclose(Clipped(0.2)(given), -(1.2 - 1.5) / 2, rtol=1e-5)


# -- INPO --------------------------------------------------------------------------------------------------------------


def test_inpos_minimiser_is_the_mirror_step():
    """Oracles 1 and 4: pairs of pi_t in their exact proportions, won with p, target (p - 1/2) / eta."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        now, reference, A = draw.standard_normal(4), draw.standard_normal(4), draw.standard_normal((4, 4))
        P, tau, eta = 1 / (1 + np.exp(A.T - A)), 0.2, 0.5
        pi = np.exp(now) / np.exp(now).sum()
        i, j = np.array([(i, j) for i in range(4) for j in range(4) if i != j]).T
        weight = jnp.sqrt(jnp.asarray(pi[i] * pi[j]))
        link = TwoAnchors(eta, tau / eta)
        residual = lambda x: weight * link.residual(all_pairs(x, P, start=reference, previous=now))  # noqa: E731
        expected = (1 - tau / eta) * now + tau / eta * reference + P @ pi / eta
        np.testing.assert_allclose(jax.nn.log_softmax(least_squares(residual, 4)), jax.nn.log_softmax(jnp.asarray(expected)), atol=1e-8)
        listed = all_pairs(jnp.asarray(now), P, start=reference, previous=now)
        target = link.margin(listed) - link.residual(listed)
        np.testing.assert_allclose(target, (P[i, j] - 0.5) / eta, atol=1e-12)


def test_inpo_contains_ipo():
    """Oracle 2: tau = eta has no previous policy, and with pi_t = pi_ref the anchors are one."""
    h = pair(0.8, start=0.3, previous=-5.0)
    np.testing.assert_allclose(TwoAnchors(0.4, 1.0)(h), Squared(0.4)(h), rtol=1e-6)
    same = columns([[1.0, 0.2]], [[1, 0]], start=[[0.3, 0.1]], previous=[[0.3, 0.1]])
    np.testing.assert_allclose(TwoAnchors(0.4, 0.25)(same), Squared(0.4)(same), rtol=1e-5)


def test_inpos_recursion_with_two_responses():
    """Oracle 3: z <- (tau / eta) z_ref + (1 - tau / eta) z + .3 / eta, whose fixed point z_ref + .3 / tau is the regularised Nash policy."""
    P, tau, eta, z_ref, z = jnp.array([[0.5, 0.8], [0.2, 0.5]]), 0.3, 0.5, -0.4, 0.9
    link = TwoAnchors(eta, tau / eta)

    def following(z):
        listed = lambda x: all_pairs(x, P, start=jnp.array([z_ref, 0.0]), previous=jnp.array([z, 0.0]))  # noqa: E731
        found = least_squares(lambda x: link.residual(listed(x)), 2)
        return float(found[0] - found[1])

    assert following(z) == pytest.approx(tau / eta * z_ref + (1 - tau / eta) * z + 0.3 / eta, abs=1e-5)
    fixed = z_ref + 0.3 / tau
    assert following(fixed) == pytest.approx(fixed, abs=1e-5)
    nash = preferences.regularised_nash(P, jax.nn.softmax(jnp.array([z_ref, 0.0])), tau)
    assert jnp.log(nash[0] / nash[1]) == pytest.approx(fixed, abs=1e-4)


def test_inpos_anchors_sum_to_one():
    """Oracle 5: a constant added to every model's log-probabilities changes nothing."""
    given = columns([[0.4, -1.0]], [[1, 0]], start=[[0.1, 0.2]], previous=[[0.0, 0.7]])
    moved = given._replace(log_prob=given.log_prob + 3, anchor={name: x + 3 for name, x in given.anchor.items()})
    np.testing.assert_allclose(TwoAnchors(0.4)(moved), TwoAnchors(0.4)(given), rtol=1e-4)


def test_inpo_trains_by_exact_steps():
    """With very many pairs the loop's least-squares step is the mirror step."""
    tau, eta, first = 0.2, 0.5, jnp.array([[0.6, 0.0, -0.4]])
    task = game(TabularPolicy(first), CYCLE, steps=1)
    method = Preference(Online(prompts_drawn=100_000, annotator=Judged(Table())), TwoAnchors(eta, tau / eta), LeastSquares(1e-4))
    state, _ = jax.jit(method.step)(task, method.init(task, jax.random.key(0)))
    pi = jax.nn.softmax(first[0])
    expected = jax.nn.log_softmax(first[0] + CYCLE @ pi / eta)  # pi_t = pi_ref
    np.testing.assert_allclose(method.policy(state).log_probs()[0], expected, atol=0.03)


# -- Nash-MD -----------------------------------------------------------------------------------------------------------


def test_nash_md_with_eta_one_over_tau():
    """Oracle 3: the first step of the schedule mixes to mu alone; a larger one counts as this."""
    tau, log_mu = 0.3, jax.nn.log_softmax(jnp.array([0.5, -1.0, 0.2]))
    start = jax.nn.log_softmax(jnp.array([1.0, 0.0, -2.0]))
    expected = jax.nn.log_softmax(log_mu + CYCLE @ jnp.exp(log_mu) / tau)
    np.testing.assert_allclose(mirror_step(start, log_mu, CYCLE, step_size(0, tau), tau), expected, atol=1e-5)
    assert step_size(0, tau) == pytest.approx(1 / tau)
    above = jax.nn.log_softmax(log_mu + 2 / tau * CYCLE @ jnp.exp(log_mu))
    np.testing.assert_allclose(mirror_step(start, log_mu, CYCLE, 2 / tau, tau), above, atol=1e-5)


def test_nash_md_without_preferences():
    """Oracle 4: P = 1/2 everywhere leads to mu, nearer with every step."""
    log_mu, log_pi = jax.nn.log_softmax(jnp.array([0.5, -1.0, 0.2])), jax.nn.log_softmax(jnp.array([-2.0, 1.0, 0.0]))
    distances = [float(sequences.kl(log_pi, log_mu))]
    for _ in range(20):
        log_pi = mirror_step(log_pi, log_mu, jnp.full((3, 3), 0.5), 0.5, 0.4)
        distances.append(float(sequences.kl(log_pi, log_mu)))
    assert all(b < a for a, b in zip(distances, distances[1:])) and distances[-1] < 1e-3


def test_nash_mds_fixed_point():
    """Its step leaves pi* where it is only once the mixture is near it: with small steps the bias is of order eta / tau."""
    tau, mu = 0.1, jnp.array([0.7, 0.2, 0.1])
    log_pi = jnp.log(mu)
    for t in range(3000):
        log_pi = mirror_step(log_pi, jnp.log(mu), CYCLE, step_size(t, tau), tau)
    np.testing.assert_allclose(jnp.exp(log_pi), [0.446578, 0.187854, 0.365568], atol=1e-3)


def test_nash_mds_expected_gradient():
    """Oracle 6: E[g] at a = 0 is the gradient in the first argument of P_tau(pi > pi') at pi' = pi."""
    tau, logits, mu = 0.2, jnp.array([0.4, -0.3, 0.1]), jax.nn.softmax(jnp.array([0.0, 0.5, -0.5]))
    pi = jax.nn.softmax(logits)
    link = AgainstOpponent(tau)
    i, j = jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij")
    i, j = i.ravel(), j.ravel()

    def surrogate(x):
        log_p, log_mu = jax.nn.log_softmax(x), jnp.log(mu)
        score = jnp.stack([CYCLE[i, j], CYCLE[j, i]], 1)
        listed = columns(jnp.stack([log_p[i], log_p[j]], 1), score, start=jnp.stack([log_mu[i], log_mu[j]], 1))
        return -jnp.sum(pi[i] * pi[j] * link(listed))

    payoff = lambda x: preferences.regularised_payoff(CYCLE, jax.nn.softmax(x), pi, mu, tau)  # noqa: E731
    np.testing.assert_allclose(jax.grad(surrogate)(logits), jax.grad(payoff)(logits), atol=1e-6)


def test_the_geometric_mixture():
    """Its first token is pi^(1-a) mu^a / Z, and what it scores is what it draws from."""
    first, second = (TabularPolicy(jax.random.normal(jax.random.key(i), (2, 4, 3)), "autoregressive") for i in (0, 1))
    mixed = GeometricMixture(first, second, 0.3)
    prompts, ones = jnp.array([[0], [1]]), jnp.ones((2, 1), bool)
    logits, cache = mixed.start(prompts, ones, 2)
    by_hand = lambda row: jax.nn.log_softmax(0.7 * jax.nn.log_softmax(first.logits[:, row]) + 0.3 * jax.nn.log_softmax(second.logits[:, row]))  # noqa: E731
    np.testing.assert_allclose(jax.nn.log_softmax(logits), by_hand(0), atol=1e-6)
    tokens = jnp.array([[2, 1], [2, 0]])
    after, _ = mixed.extend(cache, tokens[:, 0])
    expected = jnp.stack([by_hand(0)[jnp.arange(2), tokens[:, 0]], jax.nn.log_softmax(after)[jnp.arange(2), tokens[:, 1]]], 1)
    scores = mixed.score(prompts, ones, tokens, jnp.ones((2, 2), bool))
    np.testing.assert_allclose(scores.log_prob, expected, atol=1e-6)
    np.testing.assert_allclose(jax.nn.log_softmax(after), by_hand(3), atol=1e-6)
    for share, policy in ((0.0, first), (1.0, second)):
        np.testing.assert_allclose(
            GeometricMixture(first, second, share).score(prompts, ones, tokens, tokens != 0).log_prob,
            policy.score(prompts, ones, tokens, tokens != 0).log_prob,
            atol=1e-6,
        )


def test_nash_md_draws_the_opponent_from_the_mixture():
    """With a = 1 the second response comes from the first policy, however far the current one has moved."""
    sure = lambda k: TabularPolicy(20.0 * jax.nn.one_hot(jnp.array([k]), 3))  # noqa: E731
    task = game(sure(0), CYCLE, steps=1)
    source = Online(prompts_drawn=8, opponent=Mixture(1.0), annotator=Judged(Table(), sampled=False))
    method = Preference(source, AgainstOpponent(0.1), Minibatches())
    drawn = method.source.draw(method, task, (), {"current": sure(2), "start": task.model}, jax.random.key(0))
    assert (drawn.groups.tokens[:, 0] == 2).all() and (drawn.groups.tokens[:, 1] == 0).all()
    np.testing.assert_allclose(drawn.groups.score, np.tile([[CYCLE[2, 0], CYCLE[0, 2]]], (8, 1)), rtol=1e-6)
