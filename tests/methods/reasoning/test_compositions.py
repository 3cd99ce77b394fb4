"""What holds for every composition of the family: the size of micro-batches changes nothing."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.loops.language import Batch, State
from polopt.methods import registry
from polopt.policies.language.protocol import trainable
from polopt.policies.language.tabular import TabularPolicy
from tests.methods.reasoning.helpers import chain

NAMES = [name for entry in registry.entries("reasoning") for name in registry.compositions(entry.key)]


def completions(method, task) -> Batch:
    """Random ones with random rewards, of random lengths, in the groups that the sampler makes."""
    rng = np.random.default_rng(0)
    n, each = method.sampler.size, method.sampler.completions
    group = jnp.arange(n, dtype=jnp.int32) // each if each else jnp.sort(jnp.asarray(rng.integers(method.sampler.groups, size=n), jnp.int32))
    tokens = jnp.asarray(rng.integers(4, size=(n, task.length)), jnp.int32)
    reward = jnp.asarray(rng.random(n) < 0.5, jnp.float32)
    mask = jnp.arange(task.length)[None] < jnp.asarray(rng.integers(1, task.length + 1, size=(n, 1)))
    ones, zeros = jnp.ones(n, bool), jnp.zeros((n, task.length))
    return Batch(group % len(task.prompts), group, tokens, mask, reward, ones, ones, zeros - 1.0, ~ones, zeros[:, 0] + 0.3)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_change_nothing(name):
    """The gradient of an update, away from the old policy and from the anchor."""
    task = chain()
    method = registry.load(name)(task)
    assert method.refuse(task) is None
    n = method.sampler.size
    split = parts.replace(method, {"micro_batch": next(size for size in (4, 2, 1) if n // method.minibatches % size == 0)})
    batch = completions(method, task)
    start = task.model if method.penalty.refresh_every else None
    state = State(task.model, start, (), (), method.advantage.init(task, jax.random.key(0)), jnp.int32(0), jax.random.key(0))
    noise = lambda seed: 0.1 * jax.random.normal(jax.random.key(seed), task.model.logits.shape)  # noqa: E731
    policy, anchor = (TabularPolicy(task.model.logits + noise(seed), "chain") for seed in (0, 1))

    @jax.jit
    def gradient(method):
        scored = method.score(task, anchor, batch).log_prob
        judged = method.judge(task, state, batch)[0]._replace(anchor_log_prob=scored)
        moving, still = eqx.partition(policy, trainable(policy))
        rows = jnp.arange(n // method.minibatches)
        return method.gradient(task, moving, still, jax.tree.map(lambda x: x[rows], judged), jax.random.key(2))[0].logits

    whole = gradient(method)
    assert float(jnp.max(jnp.abs(whole))) > 0
    np.testing.assert_allclose(gradient(split), whole, rtol=1e-4, atol=1e-6)
