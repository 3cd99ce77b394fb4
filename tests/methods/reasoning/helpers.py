"""Updates to try objectives on, batches to try advantages on, and the same numbers from three array libraries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from polopt.data import testbeds
from polopt.loops.language import Batch, Judged, Update
from polopt.methods import registry


def update(log_prob, advantage=0.0, *, old=None, anchor=None, learn=None, group=None, reward=None) -> Update:
    """What an objective sees; a number for each completion (n,) is given to all its tokens."""
    log_prob = jnp.asarray(log_prob, jnp.float32)
    n = log_prob.shape[0]

    def tokens(x, otherwise):
        x = jnp.asarray(otherwise if x is None else x, jnp.float32)
        return jnp.broadcast_to(x[:, None] if x.ndim == 1 else x, log_prob.shape)

    learn = jnp.ones(log_prob.shape, bool) if learn is None else jnp.asarray(learn, bool)
    old = tokens(old, log_prob)
    return Update(
        log_prob=jnp.where(learn, log_prob, 0.0),
        entropy=jnp.zeros_like(log_prob),
        old_log_prob=jnp.where(learn, old, 0.0),
        anchor_log_prob=jnp.where(learn, tokens(anchor, old), 0.0),
        sampled_log_prob=old,
        advantage=jnp.where(learn, tokens(advantage, 0.0), 0.0),
        learn=learn,
        group=jnp.zeros(n, jnp.int32) if group is None else jnp.asarray(group, jnp.int32),
        reward=jnp.zeros(n) if reward is None else jnp.asarray(reward, jnp.float32),
        group_mean=jnp.zeros(n),
        demonstration=jnp.zeros(n, bool),
    )


def weights(objective, given: Update, aggregation=None):
    """(n, T): what multiplies grad log pi downhill, the gradient of the loss's negative in the log-probabilities.

    Without an aggregation the tokens' losses are summed.
    """

    def loss(log_prob):
        losses, _ = objective.loss(given._replace(log_prob=log_prob), jax.random.key(0))
        shares = 1.0 if aggregation is None else aggregation.shares(given.learn, given.group, int(given.group.max()) + 1)
        return jnp.sum(jnp.where(given.learn, losses, 0.0) * shares)

    return -jax.grad(loss)(given.log_prob)


def judged(reward, group, *, lengths=None, valid=None, baseline=0.0, paid=None) -> Judged:
    """Completions with rewards (N,) in groups, ready for an advantage."""
    reward, group = jnp.asarray(reward, jnp.float32), jnp.asarray(group, jnp.int32)
    n = reward.shape[0]
    lengths = jnp.full(n, 2) if lengths is None else jnp.asarray(lengths)
    valid = jnp.ones(n, bool) if valid is None else jnp.asarray(valid, bool)
    mask = jnp.arange(int(lengths.max()))[None] < lengths[:, None]
    zeros = jnp.zeros(mask.shape)
    batch = Batch(
        index=group,
        group=group,
        tokens=jnp.zeros(mask.shape, jnp.int32),
        mask=mask,
        reward=reward,
        valid=valid,
        finished=jnp.ones(n, bool),
        sampled_log_prob=zeros,
        demonstration=jnp.zeros(n, bool),
        baseline=jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), (n,)),
    )
    paid = zeros if paid is None else jnp.asarray(paid, jnp.float32)
    return Judged(batch, zeros, mask & valid[:, None], paid, zeros, zeros, zeros[:, 0])


def credited(advantage, given: Judged):
    """What an advantage without statistics gives."""
    return advantage((), None, given.batch, given)[0]


def everywhere(function, *arrays, rtol=1e-5, atol=1e-6):
    """`function` of NumPy arrays in float64, after JAX and PyTorch were seen to give the same numbers."""
    arrays = [np.asarray(x) for x in arrays]
    wanted = function(*arrays)
    for found in (function(*map(jnp.asarray, arrays)), function(*map(torch.asarray, arrays))):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(np.asarray(x), y, rtol=rtol, atol=atol)
    return wanted


def chain(**changes):
    """Eight prompts of three tokens, of which many groups have right and wrong completions."""
    return testbeds.chain(**{"prompts": 8, "length": 3, "vocabulary": 4, "low": 0.6, "high": 0.9, "steps": 5, **changes})


def compositions(*keys: str) -> list[str]:
    """The names of the compositions of these methods."""
    return [name for key in keys for name in registry.compositions(key)]
