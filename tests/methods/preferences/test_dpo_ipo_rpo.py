"""The oracles of the losses on logged pairs: DPO, SimPO, IPO, RPO and KTO."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.preferences.ipo import closed_form
from polopt.core.parts import replace
from polopt.envs.exact import sequences
from polopt.loops.preference import Groups
from polopt.methods import registry
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.ipo import Squared, optimum
from polopt.methods.preferences.kto import LabelledAndMismatched, Prospect
from polopt.methods.preferences.rpo import LogisticAndLikelihood
from polopt.methods.preferences.simpo import MarginLogistic
from tests.methods.preferences.helpers import all_pairs, columns, least_squares, log_of_pairs, pair


def loss_and_slope(link, h, order=1):
    return jax.value_and_grad(lambda h: link(pair(h, order))[0])(jnp.float32(h))


# -- DPO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h, loss, slope", [(0.0, math.log(2), -0.05), (2.0, 0.598139, -0.0450166)])
def test_dpos_numbers(h, loss, slope):
    np.testing.assert_allclose(loss_and_slope(Logistic(0.1), h), (loss, slope), atol=1e-6)


def test_dpo_does_not_care_which_response_comes_first():
    for smoothing in (0.0, 0.2):
        link = Logistic(0.3, smoothing)
        np.testing.assert_allclose(link(pair(1.5)), link(pair(-1.5, order=-1)), rtol=1e-6)
    tied = loss_and_slope(Logistic(0.3), 0.0, order=0)
    np.testing.assert_allclose(tied, (math.log(2), 0), atol=1e-7)  # half of each order


def test_dpo_finds_the_regularised_optimum():
    """With Bradley-Terry labels in their exact proportions the minimiser is pi_ref exp(r / beta) / Z."""
    beta, rewards, reference = 0.7, jnp.array([0.5, -0.4, 1.0]), jnp.array([0.3, 0.0, -0.5])

    def loss(logits):
        listed = all_pairs(logits, rewards, start=reference)
        won = jax.nn.sigmoid(listed.score[:, 0] - listed.score[:, 1])
        as_winner = listed._replace(score=jnp.tile(jnp.array([[1.0, 0.0]]), (won.shape[0], 1)))
        return jnp.sum(won * Logistic(beta)(as_winner))

    logits = jax.lax.fori_loop(0, 4000, lambda _, x: x - 0.5 * jax.grad(loss)(x), jnp.zeros(3))
    best = sequences.regularised_optimum(jax.nn.log_softmax(reference), rewards, beta).log_probs
    np.testing.assert_allclose(jax.nn.log_softmax(logits), best, atol=2e-4)


# -- SimPO -------------------------------------------------------------------------------------------------------------


def test_simpos_margin():
    """Means of log-probabilities, no reference: at the margin gamma the loss is log 2."""
    link = MarginLogistic(beta=2.0, gamma_ratio=0.5)
    np.testing.assert_allclose(link(columns([[-1.0, -1.5]], [[1, 0]])), math.log(2), rtol=1e-6)
    np.testing.assert_allclose(link(columns([[-1.0, -2.0]], [[1, 0]])), math.log1p(math.exp(-1)), rtol=1e-6)
    assert link(columns([[-1.0, -2.0]], [[1, 1]]))[0] == 0  # nothing is known of two equal ones


def test_simpo_is_trained_on_means():
    method = registry.load("simpo")(None)
    assert method.length_normalised
    task = log_of_pairs()
    groups = Groups(jnp.zeros(1, int), jnp.zeros((1, 2, 1), int), jnp.array([[[True], [False]]]), jnp.zeros((1, 2)))
    assert method.log_probs(task, task.model, groups)[0, 1] == 0  # a response without a token is no NaN


# -- IPO ---------------------------------------------------------------------------------------------------------------


def test_ipo_with_two_arms():
    """Oracle 1: the margin is 1 / (2 tau); at tau = 1 pi = (.622459, .377541)."""
    found = least_squares(lambda x: Squared(1.0).residual(all_pairs(x, jnp.array([1.0, 0.0]), start=jnp.zeros(2))), 2)
    np.testing.assert_allclose(jax.nn.softmax(found), [0.622459, 0.377541], atol=1e-5)


def test_ipo_at_the_reference():
    """Oracle 2: the loss is 1 / (4 tau^2), its slope -1 / tau."""
    np.testing.assert_allclose(loss_and_slope(Squared(0.3), 0.0), (1 / (4 * 0.09), -1 / 0.3), rtol=1e-6)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_ipo_with_flipped_labels(q):
    """Oracle 3: a fraction q of wins gives h = (2q - 1) / (2 tau)."""
    tau = 0.4
    loss = lambda h: q * Squared(tau)(pair(h))[0] + (1 - q) * Squared(tau)(pair(h, order=-1))[0]  # noqa: E731
    assert jax.grad(loss)((2 * q - 1) / (2 * tau)) == pytest.approx(0, abs=1e-5)


def test_the_ipo_optimum_of_a_table():
    """The claim's second check: under mu x mu the minimiser is pi_ref exp(p(y > mu) / tau) / Z. Oracle 5 at both ends."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        A, mu, reference, tau = draw.standard_normal((4, 4)), draw.dirichlet(np.ones(4)), draw.standard_normal(4), 0.3
        P = 1 / (1 + np.exp(A.T - A))
        arms = np.array([(i, j) for i in range(4) for j in range(4) if i != j])
        weight = np.sqrt(np.concatenate([mu[arms[:, 0]] * mu[arms[:, 1]] * p for p in (P[tuple(arms.T)], 1 - P[tuple(arms.T)])]))

        def residual(logits):
            """Each pair as won with its probability, and as lost with the rest."""
            listed = all_pairs(logits, jnp.zeros(4), start=reference)
            scores = [jnp.tile(jnp.array([s]), (len(arms), 1)) for s in ([1.0, 0.0], [0.0, 1.0])]
            return jnp.asarray(weight) * jnp.concatenate([Squared(tau).residual(listed._replace(score=s)) for s in scores])

        expected = optimum(jax.nn.log_softmax(jnp.asarray(reference)), jnp.asarray(P), jnp.asarray(mu), tau)
        np.testing.assert_allclose(jax.nn.log_softmax(least_squares(residual, 4)), expected, atol=1e-6)
        np.testing.assert_allclose(optimum(expected, jnp.asarray(P), jnp.asarray(mu), 1e9), expected, atol=1e-8)
        assert jnp.max(optimum(expected, jnp.asarray(P), jnp.asarray(mu), 1e-4)) == pytest.approx(0, abs=1e-6)


def test_the_log_odds_of_bradley_terry_give_rlhf():
    """Oracle 4: with Psi the log-odds, E_{y' ~ mu} Psi(P(y > y')) is the reward up to a constant."""
    rewards, mu, tau = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.2, 0.5, 0.3]), 0.6
    P = jax.nn.sigmoid(rewards[:, None] - rewards[None])
    reference = jax.nn.log_softmax(jnp.array([0.1, 0.4, -0.3]))
    best = optimum(reference, jnp.log(P / (1 - P)), mu, tau)
    np.testing.assert_allclose(best, sequences.regularised_optimum(reference, rewards, tau).log_probs, atol=1e-5)


@pytest.mark.parametrize("tau, first", [(0.1, 0.964370), (0.5, 0.562742), (1.0, 0.448441)])
def test_the_closed_form_of_three_arms(tau, first):
    assert closed_form(tau)[0] == pytest.approx(first, abs=1e-6)


# -- RPO ---------------------------------------------------------------------------------------------------------------


def test_rpos_numbers():
    """Oracle 1: eta = 0 is DPO; beta = .1, eta = .2, h = 2, log pi(a_w) = -3 gives .658139."""
    given = columns([[-3.0, -3.0]], [[1, 0]], start=[[-5.0, -3.0]])
    np.testing.assert_allclose(LogisticAndLikelihood(Logistic(0.1), 0.2)(given), 0.658139, atol=1e-6)
    np.testing.assert_allclose(LogisticAndLikelihood(Logistic(0.1), 0.0)(given), Logistic(0.1)(given))
    averaged = LogisticAndLikelihood(Logistic(0.1), 0.2, average=True)(given._replace(length=jnp.array([[4, 2]])))
    np.testing.assert_allclose(averaged, 0.598139 + 0.2 * 3 / 4, atol=1e-6)


def test_rpos_gradient():
    """Oracle 2: at h = 0 the coefficients are -beta / 2 - eta beta and beta / 2."""
    link = LogisticAndLikelihood(Logistic(0.1), 0.2)
    slope = jax.grad(lambda x: link(columns(x, [[1, 0]], start=0.0))[0])(jnp.zeros((1, 2)))
    np.testing.assert_allclose(slope, [[-0.05 - 0.02, 0.05]], rtol=1e-6)


def test_rpo_lowers_arms_without_data():
    """Oracle 3: DPO leaves the third arm's logit alone, the likelihood lowers it by eta beta pi_3, the more the larger eta."""

    def third(eta):
        link = LogisticAndLikelihood(Logistic(0.5), eta)

        def loss(logits):
            listed = all_pairs(logits, jnp.array([1.0, 0.0, 0.5]), start=jnp.zeros(3))
            return link(jax.tree.map(lambda x: x[:1], listed))[0]  # the pair (1, 2) alone

        gradient = jax.grad(loss)(jnp.zeros(3))[2]
        logits = jax.lax.fori_loop(0, 50, lambda _, x: x - 0.5 * jax.grad(loss)(x), jnp.zeros(3))
        return gradient, jax.nn.softmax(logits)[2]

    (none, p_none), (some, p_some), (_, p_more) = third(0.0), third(0.4), third(2.0)
    assert abs(none) < 1e-7 and some == pytest.approx(0.4 * 0.5 / 3, rel=1e-5)
    assert p_none > p_some > p_more


def test_rpos_duality():
    """Oracle 4: the adversarial reward's problem and L_RPO have the same policy."""
    beta, eta = 0.5, 0.3
    reference, base = jax.nn.log_softmax(jnp.array([0.2, -0.1, 0.4])), jnp.array([0.5, 0.3, 0.2])
    wins = jnp.array([[0.0, 3.0, 2.0], [1.0, 0.0, 2.0], [1.0, 2.0, 0.0]]) / 11

    def adversarial(r):
        fit = -jnp.sum(wins * jax.nn.log_sigmoid(r[:, None] - r[None]))
        return eta * beta * jax.nn.logsumexp(reference + r / beta) - eta * base @ r + fit

    def direct(logits):
        log_pi = jax.nn.log_softmax(logits)
        h = log_pi - reference
        return -eta * beta * base @ log_pi - jnp.sum(wins * jax.nn.log_sigmoid(beta * (h[:, None] - h[None])))

    down = lambda f, x: jax.lax.fori_loop(0, 20_000, lambda _, x: x - 0.5 * jax.grad(f)(x), x)  # noqa: E731
    by_reward = jax.nn.softmax(reference + down(adversarial, jnp.zeros(3)) / beta)
    np.testing.assert_allclose(jax.nn.softmax(down(direct, jnp.zeros(3))), by_reward, atol=1e-4)

    # the second one is what the link computes, with the chosen responses as the baseline's
    chosen = wins.sum(1)
    listed = all_pairs(jnp.array([0.3, 0.1, -0.2]), jnp.zeros(3), start=reference)._replace(score=jnp.tile(jnp.array([[1.0, 0.0]]), (6, 1)))
    weight = jnp.array([wins[i, j] for i in range(3) for j in range(3) if i != j])
    log_pi = jax.nn.log_softmax(jnp.array([0.3, 0.1, -0.2]))
    expected = direct(jnp.array([0.3, 0.1, -0.2])) + eta * beta * (base - chosen) @ log_pi
    np.testing.assert_allclose(jnp.sum(weight * LogisticAndLikelihood(Logistic(beta), eta)(listed)), expected, rtol=1e-5)


def test_likelihood_alone_gives_the_empirical_distribution():
    """Oracle 5: with a negligible DPO term the minimiser is the distribution of the chosen responses."""
    chosen = jnp.array([0.5, 0.3, 0.2])
    link = LogisticAndLikelihood(Logistic(1e-6), 1e6)

    def loss(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.sum(chosen * link(columns(jnp.stack([log_p, log_p], 1), jnp.tile(jnp.array([[1, 0]]), (3, 1)), start=0.0)))

    logits = jax.lax.fori_loop(0, 500, lambda _, x: x - jax.grad(loss)(x), jnp.zeros(3))
    np.testing.assert_allclose(jax.nn.softmax(logits), chosen, atol=1e-4)


# -- KTO ---------------------------------------------------------------------------------------------------------------


def test_ktos_numbers():
    """At r = z = 0 the loss is 1/2; a gain of 1 and a loss of 1 by hand; the weights multiply."""
    link = Prospect(beta=0.5, desirable=1.0, undesirable=1.3)
    given = lambda r, label, other=-1.0: columns([[r, other]], [[label, label]], start=0.0)  # noqa: E731
    np.testing.assert_allclose(link(given(0.0, 1)), 0.5)
    np.testing.assert_allclose(link(given(1.0, 1)), 1 - 1 / (1 + math.exp(-0.5)), rtol=1e-6)
    np.testing.assert_allclose(link(given(1.0, 0)), 1.3 * (1 - 1 / (1 + math.exp(0.5))), rtol=1e-6)
    np.testing.assert_allclose(link(given(1.0, 1, other=1.0)), 0.5, rtol=1e-6)  # beside a KL of 1 it is no gain


def test_ktos_reference_point_is_a_constant():
    link = Prospect(0.5)
    slope = jax.grad(lambda x: link(columns(x, [[1, 1]], start=0.0))[0])(jnp.array([[0.3, 0.8]]))
    assert slope[0, 0] < 0 and slope[0, 1] == 0


def test_ktos_mismatched_responses():
    """Rows become responses with labels, beside each the next row's; of one response a row the score is the label."""
    tokens = jnp.arange(6).reshape(3, 2, 1)
    built = LabelledAndMismatched()(Groups(jnp.arange(3), tokens, tokens >= 0, jnp.array([[0.2, 0.9], [1.0, 0.0], [3.0, 4.0]])))
    assert built.index.tolist() == [0, 0, 1, 1, 2, 2]
    assert built.tokens[:, :, 0].tolist() == [[0, 2], [1, 3], [2, 4], [3, 5], [4, 0], [5, 1]]
    assert built.score[:, 0].tolist() == [0, 1, 1, 0, 0, 1]
    single = LabelledAndMismatched()(Groups(jnp.arange(2), tokens[:2, :1], tokens[:2, :1] >= 0, jnp.array([[1.0], [0.0]])))
    assert single.score.tolist() == [[1, 1], [0, 0]]


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpo", "simpo", "ipo", "rpo", "rpo:average", "kto", "exo"])
def test_training_raises_what_was_preferred(name):
    """Arm 0 has won every comparison: it is likelier afterwards, and no prompt that was never seen has moved."""
    task = log_of_pairs(arms=3, prompts=2, steps=30)
    responses = jnp.tile(jnp.array([[[0], [1]], [[0], [2]]]), (16, 1, 1))
    log = task.preferences
    log = type(log)(type(log.prompts)(0 * log.prompts.tokens, log.prompts.mask), responses, log.mask, log.score)
    task = type(task)(task.model, None, task.steps, 1, (), None, "pairs", preferences=log, held_out=log)
    method = replace(registry.load(name)(task), {"groups": 16, "learning_rate": 0.1})
    assert method.refuse(task) is None
    state, step = method.init(task, jax.random.key(0)), jax.jit(method.step)
    for _ in range(30):
        state, metrics = step(task, state)
    before, after = task.model.log_probs(), method.policy(state).log_probs()
    assert after[0, 0] > before[0, 0] + 0.1 and all(np.isfinite(v) for v in metrics.values())
    np.testing.assert_array_equal(after[1], before[1])
