"""Policies over token sequences so small that all of them can be listed: what a language model is, with every expectation exact.

Q prompts, a vocabulary of V tokens, T tokens a sequence, N = V^T sequences in lexicographic order. Three parameterisations:

    bandit          logits (Q, K): one token, the answer
    chain           logits (Q, T, V): each position by itself
    autoregressive  logits (..., prefixes, V): every prefix by itself, so any distribution over sequences can be represented

Distributions over the N sequences are log-probabilities (..., N), and

    J = sum_y pi(y) r(y)        dJ / d log-weights(y) = pi(y) [r(y) - J]        KL(p || q) = sum_y p(y) [log p(y) - log q(y)]
    argmax_pi J - beta KL(pi || ref):  pi*(y) = ref(y) exp(r(y) / beta) / Z,  value beta log Z

Other gradients are `jax.grad` of these expressions, exact in whatever parameters gave the log-probabilities. The test problems T-BANDIT, T-LIN,
T-CHAIN and T-AR of the catalogue (families reasoning and preferences) are made below.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.tabular import TabularMDP, as_array

LARGEST = 2_000_000  # sequences


def sequences(vocabulary: int, length: int) -> np.ndarray:
    """(N, T) int: all sequences, in lexicographic order."""
    if vocabulary**length > LARGEST:
        raise ValueError(f"There are {vocabulary}^{length} sequences, more than {LARGEST}; take fewer tokens or a shorter length.")
    return np.stack(np.unravel_index(np.arange(vocabulary**length), (vocabulary,) * length), -1)


def prefixes(vocabulary: int, length: int) -> int:
    """How many prefixes of 0 ... T-1 tokens there are: (V^T - 1) / (V - 1)."""
    return sum(vocabulary**t for t in range(length))


def prefix_index(vocabulary: int, length: int) -> np.ndarray:
    """(N, T) int: which prefix each token of each sequence follows on. They are numbered by length, then lexicographically; 0 is empty."""
    number = np.arange(vocabulary**length)
    first = np.cumsum([0, *(vocabulary**t for t in range(length))])
    return np.stack([first[t] + number // vocabulary ** (length - t) for t in range(length)], -1)


# -- log-probabilities -------------------------------------------------------------------------------------------------


def autoregressive_token_log_probs(logits: Array, length: int) -> Array:
    """(..., N, T): the log-probability of each token of each sequence, given those before it; logits (..., prefixes, V)."""
    vocabulary = logits.shape[-1]
    if logits.ndim < 2 or logits.shape[-2] != prefixes(vocabulary, length):
        wanted = f"(..., {prefixes(vocabulary, length)}, {vocabulary})"
        raise ValueError(f"The logits have the shape {logits.shape}, but {wanted}, prefixes by tokens, is expected for sequences of {length}.")
    return jax.nn.log_softmax(logits)[..., prefix_index(vocabulary, length), sequences(vocabulary, length)]


def autoregressive_log_probs(logits: Array, length: int) -> Array:
    """(..., N): the log-probability of each sequence; logits (..., prefixes, V)."""
    return autoregressive_token_log_probs(logits, length).sum(-1)


def chain_token_log_probs(logits: Array) -> Array:
    """(..., N, T) for logits (..., T, V)."""
    length, vocabulary = logits.shape[-2:]
    return jax.nn.log_softmax(logits)[..., np.arange(length), sequences(vocabulary, length)]


def chain_log_probs(logits: Array) -> Array:
    """(..., N) for logits (..., T, V)."""
    return chain_token_log_probs(logits).sum(-1)


def chain_success(logits: Array) -> Array:
    """(...): the probability that every token is token 0, for logits (..., T, V) of any size. Differentiable."""
    return jnp.exp(jax.nn.log_softmax(logits)[..., 0].sum(-1))


def linear_logits(base: Array, features: Array, weights: Array) -> Array:
    """T-LIN: base (Q, K) + features (Q, d) weights (d, K)."""
    return base + features @ weights


def conditionals(log_probs: Array, vocabulary: int, length: int) -> Array:
    """(..., prefixes, V): the log-probability of each token after each prefix, under a distribution (..., N). Logits that represent it."""
    rows = []
    for t in range(length):
        shape = (*log_probs.shape[:-1], vocabulary**t, vocabulary, vocabulary ** (length - t - 1))
        rows.append(jax.nn.log_softmax(jax.nn.logsumexp(log_probs.reshape(shape), axis=-1)))
    return jnp.concatenate(rows, -2)


def prefix_values(log_probs: Array, rewards: Array, vocabulary: int, length: int) -> Array:
    """(..., N, T+1): E[r | the first t tokens] along each sequence, for a distribution and rewards (..., N). At t = 0 it is J, at T the reward.

    Its differences along t are the exact advantages of the tokens.
    """
    values = []
    for t in range(length + 1):
        shape = (*log_probs.shape[:-1], vocabulary**t, vocabulary ** (length - t))
        mean = jnp.sum(jax.nn.softmax(log_probs.reshape(shape)) * rewards.reshape(shape), -1)
        values.append(jnp.repeat(mean, vocabulary ** (length - t), axis=-1))
    return jnp.stack(values, -1)


# -- expectations ------------------------------------------------------------------------------------------------------


def expected(log_probs: Array, values: Array) -> Array:
    """E[values] (...,) over distributions (..., N); an impossible sequence counts 0."""
    return jnp.sum(jnp.exp(log_probs) * values, -1)


def policy_gradient(log_probs: Array, rewards: Array) -> Array:
    """dJ / dlogits (..., N) for softmax logits over whole sequences (or a bandit's answers): pi(y) [r(y) - J]."""
    return jnp.exp(log_probs) * (rewards - expected(log_probs, rewards)[..., None])


def kl(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) (...,) over distributions (..., N)."""
    possible = log_p > -jnp.inf
    return jnp.sum(jnp.where(possible, jnp.exp(log_p) * (jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)), 0), -1)


def entropy(log_p: Array) -> Array:
    """-sum p log p (...,)."""
    possible = log_p > -jnp.inf
    return -jnp.sum(jnp.where(possible, jnp.exp(log_p) * jnp.where(possible, log_p, 0), 0), -1)


class RegularisedOptimum(NamedTuple):
    """log_probs (..., N) of the best policy, and value (...,), the greatest J - beta KL(pi || ref)."""

    log_probs: Array
    value: Array


def regularised_optimum(ref_log_probs: Array, rewards: Array, beta: float | Array) -> RegularisedOptimum:
    """The maximiser of E[r] - beta KL(pi || ref): ref exp(r / beta) / Z, with the value beta log Z."""
    weights = ref_log_probs + rewards / beta
    return RegularisedOptimum(jax.nn.log_softmax(weights), beta * jax.nn.logsumexp(weights, axis=-1))


def regularised_objective(log_probs: Array, ref_log_probs: Array, rewards: Array, beta: float | Array) -> Array:
    """E[r] - beta KL(pi || ref) (...,)."""
    return expected(log_probs, rewards) - beta * kl(log_probs, ref_log_probs)


def sample(key: Array, log_probs: Array, count: int) -> Array:
    """(..., count) int: drawn sequences, by number, from distributions (..., N)."""
    batch = log_probs.shape[:-1]
    return jnp.moveaxis(jax.random.categorical(key, log_probs, shape=(count, *batch)), 0, -1)


# -- problems ----------------------------------------------------------------------------------------------------------


class BanditProblem(NamedTuple):
    """logits (Q, K) of the first policy, rewards (Q, K): 1 for a correct answer."""

    logits: Array
    rewards: Array


def bandit_problem(key: Array, success: Array, answers: int, *, correct: int = 1, concentration: float = 1.0) -> BanditProblem:
    """T-BANDIT: prompt q is solved with probability success[q] (Q,), shared alike by the first `correct` answers; the rest of the mass is
    Dirichlet(concentration) over the others."""
    if not 0 < correct < answers:
        raise ValueError(f"{correct} of {answers} answers are correct, but at least one must be, and not all.")
    success = as_array(success)
    wrong = jax.random.dirichlet(key, jnp.full(answers - correct, concentration, float), success.shape)
    right = jnp.broadcast_to(success[:, None] / correct, (*success.shape, correct))
    probabilities = jnp.concatenate([right, (1 - success)[:, None] * wrong], -1)
    # Dirichlet draws may underflow to 0
    logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
    rewards = jnp.broadcast_to(jnp.arange(answers) < correct, probabilities.shape).astype(probabilities.dtype)
    return BanditProblem(logits, rewards)


class LinearProblem(NamedTuple):
    """base (Q, K), features (Q, d), rewards (Q, K); the policy is `linear_logits(base, features, weights)`, with weights (d, K) first 0."""

    base: Array
    features: Array
    rewards: Array


def linear_problem(key: Array, success: Array, answers: int, features: int, *, correct: int = 1, concentration: float = 1.0) -> LinearProblem:
    """T-LIN: a T-BANDIT whose prompts share parameters through features N(0, I / d)."""
    k_base, k_features = jax.random.split(key)
    base, rewards = bandit_problem(k_base, success, answers, correct=correct, concentration=concentration)
    return LinearProblem(base, jax.random.normal(k_features, (base.shape[0], features)) / features**0.5, rewards)


def chain_problem(success: Array, length: int, vocabulary: int) -> Array:
    """T-CHAIN: logits (Q, T, V) with success[q] (Q,) the probability of token 0 at every position, the others alike.

    The reward is 1 if every token is token 0; its mean is `chain_success`.
    """
    success = as_array(success)
    others = jnp.broadcast_to(((1 - success) / (vocabulary - 1))[:, None], (*success.shape, vocabulary - 1))
    row = jnp.log(jnp.concatenate([success[:, None], others], -1))
    return jnp.broadcast_to(row[:, None, :], (success.shape[0], length, vocabulary))


class AutoregressiveProblem(NamedTuple):
    """logits (prefixes, V), rewards (N,)."""

    logits: Array
    rewards: Array


def autoregressive_problem(key: Array, *, vocabulary: int = 3, length: int = 4, ones: float = 0.4) -> AutoregressiveProblem:
    """T-AR: logits N(0, 1) for every prefix, and rewards that are 1 for a share `ones` of the sequences, at random, and else 0."""
    k_logits, k_rewards = jax.random.split(key)
    logits = jax.random.normal(k_logits, (prefixes(vocabulary, length), vocabulary))
    count = vocabulary**length
    rewards = jax.random.permutation(k_rewards, (np.arange(count) < round(ones * count)).astype(logits.dtype))
    return AutoregressiveProblem(logits, jnp.asarray(rewards, logits.dtype))


def as_mdp(rewards: Array, vocabulary: int, length: int) -> TabularMDP:
    """Writing a sequence as a process: the states are the prefixes, and an end; a token leads on, and the last one earns rewards (N,). Undiscounted.

    The softmax policy of logits (prefixes, V), with any row for the end, has the J of `expected(autoregressive_log_probs(...), rewards)`.
    """
    end = prefixes(vocabulary, length)
    rewards = jnp.asarray(rewards)
    if rewards.shape != (vocabulary**length,):
        raise ValueError(f"The rewards have the shape {rewards.shape}, but ({vocabulary**length},), one for each sequence, is expected.")
    # the prefixes one token longer are numbered in the order of (prefix, token)
    following = np.minimum(1 + np.arange(end * vocabulary).reshape(end, vocabulary), end)
    P = np.zeros((end + 1, vocabulary, end + 1))
    P[np.arange(end)[:, None], np.arange(vocabulary)[None, :], following] = 1
    P[end, :, end] = 1
    last = prefixes(vocabulary, length - 1)
    reward = jnp.zeros((end + 1, vocabulary), rewards.dtype).at[last:end].set(rewards.reshape(-1, vocabulary))
    start = jnp.zeros(end + 1, rewards.dtype).at[0].set(1)
    return TabularMDP(jnp.asarray(P, rewards.dtype), reward, start, 1.0, terminal=jnp.arange(end + 1) == end)
