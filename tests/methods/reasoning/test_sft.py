"""Fine-tuning's oracles: the likelihood's gradient, every token alike, and what it needs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from polopt.loops.credit import Ones
from polopt.loops.language import Aggregation
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.sft import sft
from tests.methods.reasoning.helpers import chain, credited, judged, update, weights


def test_every_token_weighs_alike():
    learn = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_array_equal(credited(Ones(), judged([1, 1], [0, 1])), 1.0)
    found = weights(LogLikelihood(), update(jnp.full((2, 3), -1.0), 1.0, learn=learn), Aggregation("token"))
    np.testing.assert_allclose(found, learn / 4, rtol=1e-6)


def test_one_step_is_one_of_maximum_likelihood():
    """On all eight prompts of three tokens: the mean over tokens of (one-hot of the demonstration - pi)."""
    from polopt.optim.sgd import Sgd

    task = chain()
    method = dataclasses.replace(sft(task), step_rule=Sgd(24.0))
    start = method.init(task, jax.random.key(0))
    after, metrics = jax.jit(method.step)(task, start)
    shown = jax.nn.one_hot(task.prompts.demonstration, 4)
    np.testing.assert_allclose(after.policy.logits - task.model.logits, shown - jax.nn.softmax(task.model.logits), atol=1e-5)
    assert metrics["episode/count"] == 0  # nothing was written


def test_demonstrations_are_needed():
    task = chain()
    without = dataclasses.replace(task, prompts=dataclasses.replace(task.prompts, demonstration=None, demonstration_mask=None))
    assert "has none" in sft(task).refuse(without)
