"""What the compositions of this family share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.data.language import LanguageTask
from polopt.optim.adam import Adam
from polopt.policies.language.tabular import TabularPolicy

SMALL = 10_000_000  # parameters below which a model is taught its task here rather than tuned
SMALL_RATE, TABULAR_RATE = 2e-3, 0.05


def adam(task: LanguageTask | None, rate: float = 1e-6, **more) -> Adam:
    """Adam at the paper's constant step size, which is for models of billions of parameters; small models and tables take larger ones that decay."""
    small = task is not None and sum(x.size for x in jax.tree.leaves(task.model) if jnp.issubdtype(x.dtype, jnp.inexact)) < SMALL
    if small:
        rate = TABULAR_RATE if isinstance(task.model, TabularPolicy) else SMALL_RATE
    return Adam(learning_rate=rate, anneal=small, max_grad_norm=1.0, epsilon=1e-8, **more)


def few(task: LanguageTask | None, prompts: int) -> int:
    """So many prompts, or all of a task that has fewer."""
    return prompts if task is None else min(prompts, len(task.prompts))
