"""What tests of this family share: one formula on three libraries, an objective's weights, and what training makes of a method."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch

from polopt.core.parts import replace
from polopt.loops.language import Update


def agree(function, *arrays, moves=(0,), rtol=1e-9):
    """The value in NumPy (float64) and the gradients of its sum in the inputs `moves`, equal in NumPy, JAX and PyTorch."""
    value = np.asarray(function(*arrays))
    with jax.enable_x64(True):
        given = [jnp.asarray(x) for x in arrays]
        in_jax = np.asarray(function(*given))
        slopes = [np.asarray(g) for g in jax.grad(lambda *x: jnp.sum(function(*x)), argnums=moves)(*given)] if moves else []
    tensors = [torch.tensor(x, requires_grad=i in moves) for i, x in enumerate(arrays)]
    in_torch = function(*tensors)
    np.testing.assert_allclose(in_jax, value, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(in_torch.detach().numpy(), value, rtol=rtol, atol=1e-12)
    if moves:
        for j, t in zip(slopes, torch.autograd.grad(in_torch.sum(), [tensors[i] for i in moves]), strict=True):
            np.testing.assert_allclose(j, t.numpy(), rtol=rtol, atol=1e-12)
    return value, slopes


def an_update(log_prob, *, old=None, **given) -> Update:
    """An update of which the rest says nothing: every token is learnt from, in a group of its own, with advantages and rewards of 0."""
    log_prob = jnp.asarray(log_prob, jnp.float32)
    n = log_prob.shape[0]
    zeros, old = jnp.zeros_like(log_prob), log_prob if old is None else jnp.asarray(old, jnp.float32)
    facts = dict(entropy=zeros, old_log_prob=old, anchor_log_prob=zeros, sampled_log_prob=zeros)
    rows = dict(group=jnp.arange(n), reward=jnp.zeros(n), group_mean=jnp.zeros(n), demonstration=jnp.zeros(n, bool))
    rest = {**facts, **rows, "advantage": zeros, "learn": jnp.ones(log_prob.shape, bool), **given}
    return Update(log_prob=log_prob, **{name: jnp.asarray(x) for name, x in rest.items()})


def weights(objective, update: Update, key=None):
    """(n, T): what multiplies grad log pi of each token in the direction of improvement."""
    key = jax.random.key(0) if key is None else key
    return -np.asarray(jax.grad(lambda x: jnp.sum(objective.loss(update._replace(log_prob=x), key)[0]))(update.log_prob))


# Numbers of a method are traced: methods that differ in numbers alone share a program.
_step = jax.jit(lambda method, task, state: method.step(task, state)[0])


def trained(method, task, steps: int = 2) -> np.ndarray:
    """What the policy holds after some iterations, as one vector."""
    state = method.init(task, jax.random.key(3))
    for _ in range(steps):
        state = _step(method, task, state)
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(method.policy(state))])


def same_in_pieces(method, task, micro_batch: int) -> None:
    """Micro-batches change nothing."""
    whole, pieces = trained(method, task), trained(dataclasses.replace(method, micro_batch=micro_batch), task)
    assert np.abs(whole - trained(method, task, 0)).max() > 1e-4
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)


def every_field_counts(method, task, steps: int = 2, **changes) -> None:
    """Each of the changes, a field's new value by its dotted name with __ for the dot, changes what is learnt."""
    before = trained(method, task, steps)
    for name, value in changes.items():
        after = trained(replace(method, {name.replace("__", "."): value}), task, steps)
        assert np.abs(after - before).max() > 1e-6, f"{name} = {value} changes nothing"


def every_field_weighs(objective, update: Update, **changes) -> None:
    """Each of the changes, a field's new value by its name, changes the weights of the update."""
    before = weights(objective, update)
    for name, value in changes.items():
        after = weights(dataclasses.replace(objective, **{name: value}), update)
        assert np.abs(after - before).max() > 1e-6, f"{name} = {value} changes nothing"
