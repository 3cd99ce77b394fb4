"""Tabular language policies against the exact sequences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.envs.exact import sequences as exact
from polopt.policies.language.protocol import trainable
from polopt.policies.language.sampling import Sampling, generate
from polopt.policies.language.tabular import TabularPolicy

V, T, Q = 3, 3, 2


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def policies():
    return {
        "bandit": (TabularPolicy(normal(Q, V)), 1, lambda p: jax.nn.log_softmax(p.logits)),
        "linear": (
            TabularPolicy(normal(Q, V), "linear", features=normal(Q, 4, seed=1), weights=normal(4, V, seed=2)),
            1,
            lambda p: jax.nn.log_softmax(exact.linear_logits(p.logits, p.features, p.weights)),
        ),
        "chain": (TabularPolicy(normal(Q, T, V), "chain"), T, lambda p: exact.chain_log_probs(p.logits)),
        "autoregressive": (
            TabularPolicy(normal(Q, exact.prefixes(V, T), V), "autoregressive"),
            T,
            lambda p: exact.autoregressive_log_probs(p.logits, T),
        ),
    }


KINDS = ("bandit", "linear", "chain", "autoregressive")


def everything(length):
    """A prompt, its mask and a completion for every problem and every sequence."""
    written = exact.sequences(V, length)
    prompts = jnp.repeat(jnp.arange(Q, dtype=jnp.int32), len(written))[:, None]
    return prompts, jnp.ones(prompts.shape, bool), jnp.asarray(np.tile(written, (Q, 1)), jnp.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_distribution_and_its_gradient_are_the_exact_ones(kind):
    policy, length, reference = policies()[kind]
    assert policy.length == length and policy.vocabulary == V and policy.log_probs().dtype == jnp.float64
    np.testing.assert_allclose(policy.log_probs(), reference(policy), rtol=0, atol=1e-12)
    rewards = normal(Q, V**length, seed=5)
    value, ours = jax.value_and_grad(lambda p: exact.expected(p.log_probs(), rewards).sum())(policy)
    expected, theirs = jax.value_and_grad(lambda p: exact.expected(reference(p), rewards).sum())(policy)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    name = "weights" if kind == "linear" else "logits"
    np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-12)
    assert float(jnp.abs(getattr(ours, name)).max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_all_sequences_add_up_to_the_distribution(kind):
    policy, length, reference = policies()[kind]
    prompts, mask, completions = everything(length)
    scored = policy.score(prompts, mask, completions, jnp.ones(completions.shape, bool))
    np.testing.assert_allclose(scored.log_prob.sum(1).reshape(Q, -1), reference(policy), rtol=0, atol=1e-12)
    # the chain rule of entropy: the expected entropies of the tokens add up to that of the sequences
    of_tokens = jnp.sum(jnp.exp(reference(policy)) * scored.entropy.sum(1).reshape(Q, -1), -1)
    np.testing.assert_allclose(of_tokens, exact.entropy(reference(policy)), rtol=0, atol=1e-12)
    hot = policy.score(prompts, mask, completions, jnp.zeros(completions.shape, bool).at[:, 0].set(True), 2.0)
    np.testing.assert_allclose(hot.log_prob[:, 0], jax.nn.log_softmax(policy.table()[:, 0] / 2)[prompts[:, 0], completions[:, 0]], atol=1e-12)
    assert not np.any(hot.log_prob[:, 1:]) and not np.any(hot.entropy[:, 1:])


@pytest.mark.parametrize("kind", KINDS)
def test_generated_log_probs_are_the_scores(kind):
    policy, length, _ = policies()[kind]
    prompts = jnp.asarray([[0, 1], [0, 0]], jnp.int32)  # the problem is the last token
    mask = jnp.asarray([[False, True], [True, True]])
    out = generate(policy, prompts, mask, jax.random.key(3), length=length, repeats=5)
    assert np.all(out.mask) and not np.any(out.finished)
    scored = policy.score(jnp.repeat(prompts, 5, 0), jnp.repeat(mask, 5, 0), out.tokens, out.mask)
    np.testing.assert_allclose(out.log_prob, scored.log_prob, rtol=0, atol=1e-12)


def test_samples_follow_the_distribution():
    policy, length, reference = policies()["autoregressive"]
    count = 20_000
    out = generate(policy, jnp.asarray([[1]], jnp.int32), jnp.ones((1, 1), bool), jax.random.key(0), length=length, repeats=count)
    number = out.tokens @ (V ** np.arange(length)[::-1])
    p = np.exp(reference(policy)[1])
    frequency = np.bincount(number, minlength=V**length) / count
    assert np.all(np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / count))


def test_a_stop_token_ends_a_table_too():
    policy = TabularPolicy(normal(Q, T, V), "chain")
    out = generate(policy, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool), jax.random.key(0), length=T, stop=(0,), repeats=200)
    first = np.where((out.tokens == 0).any(1), (out.tokens == 0).argmax(1), T - 1)
    stopped = (np.asarray(out.tokens) == 0) & np.asarray(out.mask)
    np.testing.assert_array_equal(out.finished, stopped.any(1))
    np.testing.assert_array_equal(out.mask.sum(1), first + 1)
    assert 0 < out.finished.sum() < 200


def test_only_the_weights_of_the_linear_kind_learn():
    policy = policies()["linear"][0]
    learn, held = eqx.partition(policy, trainable(policy))
    assert learn.logits is None and learn.features is None and learn.weights is policy.weights and held.weights is None
    gradient = jax.grad(lambda p: p.log_probs()[0, 0])(policy)
    assert not np.any(gradient.logits) and not np.any(gradient.features) and np.any(gradient.weights)
    bandit = policies()["bandit"][0]
    assert jax.tree.leaves(trainable(bandit)) == [True]


def test_greedy_takes_the_likeliest_token():
    policy = TabularPolicy(normal(Q, T, V), "chain")
    prompts = jnp.arange(Q, dtype=jnp.int32)[:, None]
    out = generate(policy, prompts, jnp.ones((Q, 1), bool), jax.random.key(0), length=T, sampling=Sampling(greedy=True))
    np.testing.assert_array_equal(out.tokens, policy.logits.argmax(-1))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: TabularPolicy(jnp.zeros((2, 3, 3))), "is None, but it must be one of bandit, linear, chain, autoregressive"),
        (lambda: TabularPolicy(jnp.zeros((2, 3)), "chain"), r"\(2, 3\), but \(problems, rows, tokens\) is expected"),
        (lambda: TabularPolicy(jnp.zeros((2, 3)), "linear"), "needs features"),
        (lambda: TabularPolicy(jnp.zeros((2, 3)), features=jnp.zeros((2, 1))), "has no features"),
        (lambda: TabularPolicy(jnp.zeros((2, 5, 3)), "autoregressive"), "has 5 rows for 3 tokens.*4 or 13 are the nearest"),
        (lambda: TabularPolicy(jnp.zeros((2, 3))).start(jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), 2), "2 tokens are asked"),
        (lambda: TabularPolicy(jnp.zeros((2, 3))).start(jnp.zeros((1, 1), int), jnp.ones((1, 2), bool), 1), "must be equal"),
    ],
)
def test_mistakes_get_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
