"""Chunked scores against the plain expression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.policies.language.scoring import token_scores

n, D, V = 23, 5, 11


def plain(hidden, head, targets, mask, temperature, softcap):
    """Written out: all the logits, rows that count chosen by hand."""
    s = hidden[mask] @ head.T
    s = s if softcap is None else softcap * jnp.tanh(s / softcap)
    log_p = jax.nn.log_softmax(s / temperature)
    log_prob = log_p[np.arange(log_p.shape[0]), targets[mask]]
    return log_prob, -jnp.sum(jnp.exp(log_p) * log_p, -1)


def problem(dtype=jnp.float64, empty=False):
    k = jax.random.split(jax.random.key(0), 4)
    mask = np.zeros(n, bool) if empty else np.asarray(jax.random.bernoulli(k[3], 0.6, (n,)))
    hidden, head = jax.random.normal(k[0], (n, D), dtype), jax.random.normal(k[1], (V, D), dtype)
    return hidden, head, jax.random.randint(k[2], (n,), 0, V), mask


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1, 4, 7, 22, 23, 100, None])
def test_values_and_gradients_equal_the_plain_ones(chunk, softcap):
    with jax.enable_x64(True):
        hidden, head, targets, mask = problem()
        a, b = jax.random.normal(jax.random.key(9), (2, int(mask.sum())), jnp.float64)

        def ours(hidden, head, temperature):
            log_prob, entropy = token_scores(hidden, head, targets, jnp.asarray(mask), temperature, chunk=chunk, softcap=softcap)
            return (log_prob[mask] * a).sum() + (entropy[mask] * b).sum(), (log_prob, entropy)

        def theirs(hidden, head, temperature):
            log_prob, entropy = plain(hidden, head, targets, mask, temperature, softcap)
            return (log_prob * a).sum() + (entropy * b).sum(), (log_prob, entropy)

        arguments = (hidden, head, jnp.float64(0.7))
        (_, values), gradients = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(*arguments)
        (_, expected), expected_gradients = jax.value_and_grad(theirs, (0, 1, 2), has_aux=True)(*arguments)
        for x, y in zip(values, expected):
            np.testing.assert_allclose(x[mask], y, rtol=0, atol=1e-10)
            assert not np.any(x[~mask])
        for x, y in zip(gradients, expected_gradients):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [4, 100])
def test_nothing_at_a_masked_position_matters(chunk):
    hidden, head, targets, mask = problem(jnp.float32)
    dirty = jnp.where(jnp.asarray(mask)[:, None], hidden, jnp.nan)
    wrong = jnp.where(jnp.asarray(mask), targets, -100)

    def loss(hidden, head, targets):
        log_prob, entropy = token_scores(hidden, head, targets, jnp.asarray(mask), chunk=chunk)
        return (log_prob - 0.1 * entropy).sum()

    clean = jax.value_and_grad(loss, (0, 1))(hidden, head, targets)
    for x, y in zip(jax.tree.leaves(clean), jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(dirty, head, wrong))):
        np.testing.assert_array_equal(x, y)
    assert not np.any(clean[1][0][~mask])


@pytest.mark.parametrize("chunk", [4, 100])
def test_no_position_counts(chunk):
    hidden, head, targets, mask = problem(jnp.float32, empty=True)
    log_prob, entropy = token_scores(hidden, head, targets, jnp.asarray(mask), chunk=chunk)
    assert not np.any(log_prob) and not np.any(entropy)
    gradient = jax.grad(lambda h: token_scores(h, head, targets, jnp.asarray(mask), chunk=chunk)[0].sum())(hidden)
    assert not np.any(gradient)


@pytest.mark.parametrize("chunk", [4, 100])
def test_without_entropy(chunk):
    hidden, head, targets, mask = problem(jnp.float32)
    mask = jnp.asarray(mask)

    def loss(hidden, entropy):
        found = token_scores(hidden, head, targets, mask, 1.3, chunk=chunk, entropy=entropy)
        return found[0].sum(), found

    one, (log_prob, none) = jax.grad(loss, has_aux=True)(hidden, False)
    other, (expected, _) = jax.grad(loss, has_aux=True)(hidden, True)
    assert not np.any(none)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_under_vmap_and_jit():
    hidden, head, targets, mask = problem(jnp.float32)
    masks = jnp.stack([jnp.asarray(mask), ~jnp.asarray(mask)])

    def loss(mask):
        return jax.grad(lambda h: token_scores(h, head, targets, mask, chunk=4)[0].sum())(hidden)

    together = jax.jit(jax.vmap(loss))(masks)
    for i in range(2):
        np.testing.assert_allclose(together[i], loss(masks[i]), atol=1e-6)


def test_memory_at_a_large_vocabulary():
    """No buffer of the size of all the logits: 4,096 tokens of 151,936 would be 2.3 GiB."""
    tokens, vocabulary, width = 4096, 151_936, 8

    def loss(hidden, head, targets, mask):
        log_prob, entropy = token_scores(hidden, head, targets, mask)
        return (log_prob - entropy).sum()

    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((tokens, width), "float32"), ((vocabulary, width), "float32"), ((tokens,), "int32"))]
    program = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, jax.ShapeDtypeStruct((tokens,), bool)).compile()
    assert program.memory_analysis().temp_size_in_bytes < tokens * vocabulary * 4 / 3
