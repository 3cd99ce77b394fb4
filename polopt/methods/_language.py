"""What the compositions of the language families share: step sizes and batches that fit a small model and a small task."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import parts
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.optim.adam import Adam
from polopt.policies.language.tabular import TabularPolicy

SMALL = 10_000_000  # parameters below which a model is taught its task here rather than tuned
SMALL_RATE, TABULAR_RATE = 2e-3, 0.05


def small_rate(task: LanguageTask | PreferenceTask | None) -> float | None:
    """The step size for a task's model if it is a small one or a table, and else None: papers state theirs for models of billions of parameters."""
    if task is None or sum(x.size for x in jax.tree.leaves(task.model) if jnp.issubdtype(x.dtype, jnp.inexact)) >= SMALL:
        return None
    return TABULAR_RATE if isinstance(task.model, TabularPolicy) else SMALL_RATE


def adam(task: LanguageTask | None, rate: float = 1e-6, **more) -> Adam:
    """Adam at the paper's constant step size; small models take a larger one that decays."""
    small = small_rate(task)
    return Adam(learning_rate=rate if small is None else small, anneal=small is not None, max_grad_norm=1.0, epsilon=1e-8, **more)


def few(task: LanguageTask | None, prompts: int) -> int:
    """So many prompts, or all of a task that has fewer."""
    return prompts if task is None else min(prompts, len(task.prompts))


def sized(task: LanguageTask | PreferenceTask | None, method):
    """A preference method with the step size of a small model, and with no more groups than a log has."""
    known, small = parts.fields(method), small_rate(task)
    changes = {} if small is None else {name: small for name in known if name.endswith("step.learning_rate")}
    if isinstance(task, PreferenceTask) and known.get("source.groups") is not None:
        changes["source.groups"] = min(known["source.groups"], len(task.preferences))
    return parts.replace(method, changes)
