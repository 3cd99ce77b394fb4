"""The transformer: one distribution while it writes and while it learns, whatever stands on the padding."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.policies.language.lora import merged, with_lora
from polopt.policies.language.protocol import trainable
from polopt.policies.language.sampling import Sampling, filtered, generate
from polopt.policies.language.transformer import FEW_LAYERS, Rotary, Transformer, TransformerConfig, tiny

SMALL = dict(vocabulary=17, width=24, heads=4, kv_heads=2, head_size=8, hidden=20, context=64)
CONFIGS = {
    "llama": TransformerConfig("llama", **SMALL, rotary=Rotary(scaling="llama3", factor=8, original=16), tied=False, mlp_bias=True),
    "qwen2": TransformerConfig("qwen2", **SMALL, window=3, sliding=(False, True)),
    "qwen3": TransformerConfig("qwen3", **SMALL),
    "gemma3": TransformerConfig(
        "gemma3_text",
        **SMALL,
        layers=3,
        activation="gelu_pytorch_tanh",
        rotary=Rotary(1e6, "linear", 8.0),
        local_rotary=Rotary(),
        window=4,
        sliding=(True, False, True),
        query_scale=0.3,
        softcap=4.0,
    ),
}


def policy_of(config, seed=0):
    """Every parameter, norms and biases too, is away from where it would be at rest."""
    policy = Transformer.random(config, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(policy)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(structure, [x + 0.2 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)])


def prompts_of(rows=3, length=6, seed=2):
    prompts = jax.random.randint(jax.random.key(seed), (rows, length), 0, 17)
    mask = jnp.arange(length)[None] >= jnp.arange(rows)[:, None]
    return prompts, mask


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_generation_and_scoring_agree(config):
    policy = policy_of(config)
    prompts, mask = prompts_of()
    out = generate(policy, prompts, mask, jax.random.key(0), length=10, stop=(0,), sampling=Sampling(0.8), repeats=4)
    assert out.tokens.shape == (12, 10) and not np.all(out.mask)
    scored = policy.score(jnp.repeat(prompts, 4, 0), jnp.repeat(mask, 4, 0), out.tokens, out.mask, 0.8)
    np.testing.assert_allclose(out.log_prob, scored.log_prob, rtol=0, atol=1e-5)
    assert float(scored.log_prob.std()) > 0.1 and np.all(np.asarray(scored.entropy)[out.mask] > 0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_changes_nothing(config):
    policy = policy_of(config)
    prompts, mask = prompts_of(rows=4)
    logits = policy.logits(prompts, mask)
    for row in range(4):
        alone = policy.logits(prompts[row : row + 1, row:], jnp.ones((1, 6 - row), bool))
        np.testing.assert_allclose(logits[row, row:], alone[0], rtol=0, atol=2e-6)
    other = policy.logits(jnp.where(mask, prompts, 9), mask)
    np.testing.assert_array_equal(np.asarray(logits)[mask], np.asarray(other)[mask])
    assert np.all(np.isfinite(jax.tree.leaves(jax.grad(lambda p: p.logits(prompts, mask)[:, -1].sum())(policy))[0]))


def test_a_window_forgets_and_full_attention_does_not():
    prompts, mask = prompts_of(rows=1, length=12)
    changed = prompts.at[0, 0].add(1) % 17
    for sliding, forgets in (((True, True), True), ((True, False), False)):
        policy = policy_of(dataclasses.replace(CONFIGS["qwen2"], sliding=sliding))
        # two layers of 3 tokens reach 4 tokens back
        same = np.array_equal(policy.logits(prompts, mask)[0, 5:], policy.logits(changed, mask)[0, 5:])
        assert same is forgets


def test_the_scan_over_layers_is_the_layers_one_after_another():
    """More layers than are written out, with windows and without, and with layers computed again in the backward pass."""
    count = FEW_LAYERS + 1
    prompts, mask = prompts_of()
    tokens = jnp.ones((3, 4), jnp.int32)
    for base in (CONFIGS["qwen3"], CONFIGS["gemma3"]):
        sliding = () if not base.sliding else (True, False, True, True, False)
        policy = policy_of(dataclasses.replace(base, layers=count, sliding=sliding))
        logits, cache = policy.start(prompts, mask, 2)
        np.testing.assert_allclose(logits, policy.logits(prompts, mask)[:, -1], atol=1e-5)
        # a decoding step goes through the layers without a scan
        after, _ = policy.extend(cache, prompts[:, 0])
        longer = jnp.concatenate([prompts, prompts[:, :1]], 1), jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
        np.testing.assert_allclose(after, policy.logits(*longer)[:, -1], atol=1e-5)

        def loss(policy):
            return policy.score(prompts, mask, tokens, tokens > 0).log_prob.sum()

        again = eqx.tree_at(lambda p: p.embedding, Transformer.random(dataclasses.replace(policy.config, remat=True), jax.random.key(0)), 0.0)
        again = jax.tree.unflatten(jax.tree.structure(again), jax.tree.leaves(policy))
        for x, y in zip(jax.tree.leaves(jax.grad(loss)(policy)), jax.tree.leaves(jax.grad(loss)(again))):
            np.testing.assert_allclose(x, y, atol=1e-4)


def test_repeats_are_the_rows_of_repeated_prompts():
    policy = policy_of(CONFIGS["qwen3"])
    prompts, mask = prompts_of()
    one = generate(policy, prompts, mask, jax.random.key(1), length=8, repeats=3)
    other = generate(policy, jnp.repeat(prompts, 3, 0), jnp.repeat(mask, 3, 0), jax.random.key(1), length=8)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-5)


def test_stop_tokens():
    policy = policy_of(CONFIGS["llama"])
    prompts, mask = prompts_of()
    out = generate(policy, prompts, mask, jax.random.key(5), length=12, stop=(3, 5), repeats=20)
    tokens, wrote = np.asarray(out.tokens), np.asarray(out.mask)
    stops = np.isin(tokens, (3, 5)) & wrote
    np.testing.assert_array_equal(out.finished, stops.any(1))
    for row in range(len(tokens)):
        length = wrote[row].sum()
        assert wrote[row, :length].all() and not stops[row, : length - 1].any() and not np.any(np.asarray(out.log_prob)[row, length:])
        assert length == 12 or stops[row, length - 1]
    assert 0 < np.sum(out.finished) < len(tokens)


class Counting(eqx.Module):
    """Writes 1 until its row's limit, then 0, and counts its steps in the log-probability's place: logits carry nothing else."""

    limits: jax.Array
    vocabulary: int = eqx.field(static=True, default=2)

    def start(self, prompts, mask, length):
        return self._logits(jnp.int32(0)), (jnp.int32(0), self.limits)

    def extend(self, cache, tokens):
        jax.debug.callback(_steps.append, cache[0])
        return self._logits(cache[0] + 1), (cache[0] + 1, cache[1])

    def _logits(self, step):
        ends = step + 1 >= self.limits
        return jnp.where(jnp.stack([ends, ~ends], -1), 50.0, -50.0)


_steps = []


def test_generation_ends_when_every_row_has_stopped():
    _steps.clear()
    out = generate(Counting(jnp.asarray([2, 4, 3])), jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1), bool), jax.random.key(0), length=50, stop=(0,))
    jax.block_until_ready(out)
    jax.effects_barrier()
    np.testing.assert_array_equal(out.mask.sum(1), [2, 4, 3])
    assert out.finished.all() and len(_steps) == 3


def test_generation_under_vmap_is_each_alone():
    config = CONFIGS["qwen3"]
    prompts, mask = prompts_of()
    policies = [policy_of(config, seed) for seed in (0, 5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *policies)
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.vmap(lambda p, k: generate(p, prompts, mask, k, length=8, stop=(0, 1, 2)))(stacked, keys)
    for i, policy in enumerate(policies):
        alone = generate(policy, prompts, mask, keys[i], length=8, stop=(0, 1, 2))
        np.testing.assert_array_equal(together.tokens[i], alone.tokens)
        np.testing.assert_array_equal(together.finished[i], alone.finished)


def test_top_k_top_p_and_temperature():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    logits = jnp.log(jnp.asarray([p, p[::-1]], jnp.float32))

    def kept(**sampling):
        return np.exp(filtered(logits, Sampling(**sampling)))[0]

    np.testing.assert_allclose(kept(), p, atol=1e-6)
    np.testing.assert_allclose(kept(temperature=0.5), p**2 / (p**2).sum(), atol=1e-6)
    np.testing.assert_allclose(kept(top_k=2), [4 / 7, 3 / 7, 0, 0], atol=1e-6)
    np.testing.assert_allclose(kept(top_k=9), p, atol=1e-6)
    np.testing.assert_allclose(kept(top_p=0.65), [4 / 7, 3 / 7, 0, 0], atol=1e-6)
    np.testing.assert_allclose(kept(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0], atol=1e-6)
    np.testing.assert_allclose(kept(top_p=1e-6), [1, 0, 0, 0], atol=1e-6)
    # top-p reads what top-k left: 0.4 / 0.7 is more than half
    np.testing.assert_allclose(kept(top_k=2, top_p=0.5), [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.exp(filtered(logits, Sampling(top_p=0.65)))[1], [0, 0, 3 / 7, 4 / 7], atol=1e-6)


def test_truncated_sampling_draws_only_what_is_kept():
    policy = policy_of(CONFIGS["qwen3"])
    prompts, mask = prompts_of(rows=1)
    out = generate(policy, prompts, mask, jax.random.key(0), length=1, sampling=Sampling(top_k=2), repeats=300)
    best = np.argsort(-np.asarray(policy.logits(prompts, mask)[0, -1]))[:2]
    assert set(np.asarray(out.tokens)[:, 0]) == set(best)
    scored = policy.score(jnp.repeat(prompts, 300, 0), jnp.repeat(mask, 300, 0), out.tokens, out.mask)
    assert np.all(out.log_prob > scored.log_prob)


def test_lora_begins_as_the_policy_and_only_its_factors_learn():
    policy = policy_of(CONFIGS["qwen2"])
    prompts, mask = prompts_of()
    adapted = with_lora(policy, 2, 4.0, jax.random.key(7), targets=("q", "v", "down"))
    np.testing.assert_array_equal(adapted.logits(prompts, mask), policy.logits(prompts, mask))
    learn, held = eqx.partition(adapted, trainable(adapted))
    assert len(jax.tree.leaves(learn)) == 6 and {x.shape[-1] for x in jax.tree.leaves(learn)} >= {2}
    assert len(jax.tree.leaves(held)) == len(jax.tree.leaves(policy))
    assert all(jax.tree.leaves(trainable(policy)))
    learn = jax.tree.map(lambda x: x + 0.3, learn)
    moved = eqx.combine(learn, held)
    before, after = policy.logits(prompts, mask), moved.logits(prompts, mask)
    assert float(jnp.abs(before - after).max()) > 0.01
    plain = merged(moved)
    assert jax.tree.structure(plain) == jax.tree.structure(policy)
    np.testing.assert_allclose(plain.logits(prompts, mask), after, atol=1e-4)
    np.testing.assert_allclose(generate(moved, prompts, mask, jax.random.key(0), length=4).log_prob.shape, (3, 4))


def test_bfloat16_is_near_float32():
    config = dataclasses.replace(CONFIGS["qwen3"], dtype="bfloat16")
    policy = policy_of(config)
    prompts, mask = prompts_of()
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), policy)
    logits = policy.logits(prompts, mask)
    assert logits.dtype == jnp.float32 and policy.embedding.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, wide.logits(prompts, mask), atol=0.15)
    gradient = jax.grad(lambda p: p.score(prompts, mask, prompts, mask).log_prob.sum())(policy)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert generate(policy, prompts, mask, jax.random.key(0), length=4).log_prob.dtype == jnp.float32


def test_a_policy_in_float64_scores_in_float64():
    with jax.enable_x64(True):
        policy = jax.tree.map(lambda x: x.astype(jnp.float64), policy_of(CONFIGS["gemma3"]))
        prompts, mask = prompts_of()
        assert policy.score(prompts, mask, prompts, mask).log_prob.dtype == jnp.float64


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: TransformerConfig("mamba"), "'mamba', but those covered are llama, qwen2, qwen3, gemma3_text"),
        (lambda: TransformerConfig(activation="relu"), "'relu', but those covered are silu"),
        (lambda: TransformerConfig(heads=4, kv_heads=3), "4 heads for 3 keys"),
        (lambda: TransformerConfig(sliding=(True,)), "sliding has 1 entries, but there are 2 layers"),
        (lambda: TransformerConfig(sliding=(True, False)), "the window is none"),
        (lambda: _start(60), r"Prompts of 6 tokens with 60 to follow are longer than the context of 64"),
        (lambda: _generate(length=0), "length is 0"),
        (lambda: with_lora(_small(), 2, 1.0, jax.random.key(0), ("query",)), "LoRA targets are query"),
        (lambda: with_lora(_small(), 0, 1.0, jax.random.key(0)), "rank is 0"),
        (lambda: with_lora(with_lora(_small(), 1, 1.0, jax.random.key(0)), 1, 1.0, jax.random.key(0)), "already"),
    ],
)
def test_mistakes_get_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def _small():
    return Transformer.random(tiny(5, context=64), jax.random.key(0))


def _start(length):
    return _small().start(*prompts_of(), length)


def _generate(**options):
    return generate(_small(), *prompts_of(), jax.random.key(0), **options)
