"""Enumerated sequence policies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.envs.exact import sequences, tabular
from tests.envs.exact.helpers import compiled

pytestmark = pytest.mark.usefixtures("x64")

close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
V, T = 3, 4
COUNT = V**T
seq, tab = compiled(sequences), compiled(tabular)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@functools.cache
def problem():
    return seq.autoregressive_problem(jax.random.key(0))


def everything(logits, rewards, other):
    log_probs = sequences.autoregressive_log_probs(logits, T)
    token = lambda x: sequences.autoregressive_token_log_probs(x, T)  # noqa: E731
    objective = lambda x: sequences.expected(sequences.autoregressive_log_probs(x, T), rewards)  # noqa: E731
    best, value = sequences.regularised_optimum(log_probs, rewards, 0.5)
    regularised = lambda x: sequences.regularised_objective(sequences.autoregressive_log_probs(x, T), log_probs, rewards, 0.5)  # noqa: E731
    represented = sequences.conditionals(best, V, T)
    others = jax.nn.log_softmax(best[None] + other)
    return dict(
        token=token(logits),
        log_probs=log_probs,
        conditionals=sequences.conditionals(log_probs, V, T),
        batch=sequences.autoregressive_log_probs(jnp.stack([logits, 2 * logits]), T),
        j=objective(logits),
        gradient=jax.grad(objective)(logits),
        score=jax.jacrev(token)(logits),
        values=sequences.prefix_values(log_probs, rewards, V, T),
        best=best,
        value=value,
        best_value=sequences.regularised_objective(best, log_probs, rewards, 0.5),
        represented=sequences.autoregressive_log_probs(represented, T),
        slope=jax.grad(regularised)(represented),
        others=sequences.regularised_objective(others, log_probs[None], rewards[None], 0.5),
        lost=sequences.kl(others, best[None]),
    )


@functools.cache
def computed():
    return compiled(everything)(*problem(), np.random.default_rng(1).normal(size=(1000, COUNT)))


def test_all_sequences():
    every = sequences.sequences(V, T)
    assert every.shape == (81, 4) and len({tuple(y) for y in every}) == 81
    assert [tuple(y) for y in every] == sorted(tuple(y) for y in every)
    index = sequences.prefix_index(V, T)
    assert sequences.prefixes(V, T) == 40 and index.max() == 39
    # two sequences share a prefix number exactly where they agree so far
    for i, j in [(0, 1), (5, 77), (13, 14), (27, 80), (30, 33)]:
        for t in range(T):
            assert (index[i, t] == index[j, t]) == (tuple(every[i, :t]) == tuple(every[j, :t]))
    with pytest.raises(ValueError, match=r"8\^10 sequences"):
        sequences.sequences(8, 10)


def test_autoregressive_probabilities():
    (logits, rewards), got = problem(), computed()
    assert logits.shape == (40, 3) and rewards.sum() == 32 and set(rewards) == {0, 1}
    close(np.exp(got["log_probs"]).sum(), 1)
    close(got["token"].sum(-1), got["log_probs"])
    # one sequence by hand: prefixes (), (2), (2, 0), (2, 0, 1) have the numbers 0, 1+2, 4+6, 13+19
    y = [2, 0, 1, 2]
    by_hand = [log_softmax(logits[p])[a] for p, a in zip((0, 3, 10, 32), y)]
    close(got["token"][int(np.flatnonzero((sequences.sequences(V, T) == y).all(1))[0])], by_hand)
    close(got["conditionals"], log_softmax(logits))
    close(got["batch"][0], got["log_probs"])
    close(np.exp(got["batch"][1]).sum(), 1)
    with pytest.raises(ValueError, match=r"logits have the shape \(40, 3\), but \(..., 13, 3\)"):
        sequences.autoregressive_log_probs(logits, 3)


def test_gradients():
    """REINFORCE summed over all sequences is the derivative of J; token advantages give the same gradient."""
    (_, rewards), got = problem(), computed()
    p = np.exp(got["log_probs"])
    close(got["j"], p @ rewards)
    close(np.einsum("n,ntpv->pv", p * rewards, got["score"]), got["gradient"])
    close(got["values"][:, 0], got["j"])
    close(got["values"][:, -1], rewards)
    close(np.einsum("n,nt,ntpv->pv", p, np.diff(got["values"]), got["score"]), got["gradient"])
    bandit = np.random.default_rng(2).normal(size=(2, COUNT))
    close(
        seq.policy_gradient(log_softmax(bandit), rewards[None]),
        compiled(jax.grad(lambda z, r: sequences.expected(jax.nn.log_softmax(z), r).sum()))(bandit, rewards[None]),
    )


def test_writing_is_a_process():
    (logits, rewards), got = problem(), computed()
    mdp = seq.as_mdp(rewards, V, T)
    tabular.check(mdp)
    padded = np.concatenate([logits, np.zeros((1, V))])
    close(tab.softmax_objective(mdp, padded), got["j"])
    close(tab.policy_gradient(mdp, padded)[:-1], got["gradient"])
    close(tab.optimal(mdp).values[0], 1)


def test_regularised_optimum():
    """pi* = ref exp(r / beta) / Z with the value beta log Z, better than any other policy, and within reach of the prefix tables."""
    (_, rewards), got = problem(), computed()
    weights = np.exp(got["log_probs"] + rewards / 0.5)
    close(np.exp(got["best"]), weights / weights.sum())
    close(got["value"], 0.5 * np.log(weights.sum()))
    close(got["best_value"], got["value"])
    close(got["represented"], got["best"])
    np.testing.assert_allclose(got["slope"], 0, atol=1e-12)
    assert np.all(got["others"] < got["value"])
    close(got["value"] - got["others"], 0.5 * got["lost"])  # what is lost is beta KL(pi || pi*)


def test_divergences():
    with np.errstate(divide="ignore"):
        p, q = np.log([0.5, 0.5, 0.0]), np.log([0.25, 0.25, 0.5])
    close(seq.kl(p, q), np.log(2))
    assert seq.kl(q, p) == np.inf
    close(seq.entropy(p), np.log(2))


@pytest.mark.parametrize("correct", [1, 4])
def test_bandit_problem(correct):
    """T-BANDIT: initial success p0, wrong mass over the others."""
    p0 = np.array([0.005, 0.3, 0.995])
    logits, rewards = seq.bandit_problem(jax.random.key(0), p0, 10, correct=correct)
    pi = np.exp(log_softmax(logits))
    close((pi * rewards).sum(1), p0)
    close(rewards.sum(1), correct)
    close(pi[:, :correct], np.repeat(p0[:, None] / correct, correct, 1))
    assert pi[:, correct:].std(1).min() > 0
    with pytest.raises(ValueError, match="10 of 10 answers"):
        sequences.bandit_problem(jax.random.key(0), p0, 10, correct=10)


def test_linear_problem():
    """T-LIN: the same success at weights 0; the gradient is phi outer pi (r - J)."""
    p0 = np.array([0.2, 0.9])
    base, phi, rewards = seq.linear_problem(jax.random.key(0), p0, 5, 12)

    def j(w, base, phi, rewards):
        return sequences.expected(jax.nn.log_softmax(sequences.linear_logits(base, phi, w)), rewards).mean()

    value, gradient = compiled(jax.value_and_grad(j))(np.zeros((12, 5)), base, phi, rewards)
    close(value, p0.mean())
    close(gradient, np.einsum("qd,qk->dk", phi, seq.policy_gradient(log_softmax(base), rewards)) / 2)


def test_chain_problem():
    """T-CHAIN: the closed form of success agrees with the enumeration."""
    p_tok = np.array([0.85, 0.15])
    logits = seq.chain_problem(p_tok, T, V)
    close(seq.chain_success(logits), p_tok**T)
    log_probs = seq.chain_log_probs(logits)
    close(np.exp(log_probs).sum(-1), 1)
    close(np.exp(log_probs[:, 0]), p_tok**T)
    close(seq.chain_token_log_probs(logits).sum(-1), log_probs)
    assert seq.chain_success(seq.chain_problem(p_tok, 6, 8)).shape == (2,)  # 8^6 sequences need not be listed


def test_samples():
    with np.errstate(divide="ignore"):
        log_probs = np.log([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]])
    drawn = seq.sample(jax.random.key(0), log_probs, 2000)
    assert drawn.shape == (2, 2000)
    shares = np.stack([(drawn == k).mean(1) for k in range(3)], 1)
    np.testing.assert_allclose(shares, np.exp(log_probs), atol=0.05)
    assert shares[0, 2] == 0
