"""A log-linear policy over the answers of bandits: pi(k | q) proportional to exp(base(q, k) + phi(q, k) . w), whose weights all answers share.

Unlike a table it moves answers that were never seen. A prompt is one token, the number q of the problem; an answer is one token.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.policies.language.protocol import Scored
from polopt.policies.language.tabular import TabularPolicy


class LogLinearPolicy(eqx.Module):
    """base (Q, K), features (Q, K, d), weights (d,), first 0: the weights alone learn."""

    base: jax.Array
    features: jax.Array
    weights: jax.Array

    def __init__(self, base, features, weights=None):
        if features.shape[:2] != base.shape or features.ndim != 3:
            raise ValueError(f"The features have the shape {features.shape}, but {(*base.shape, 'd')}, problems by answers by features, is expected.")
        self.base, self.features = base, features
        self.weights = jnp.zeros(features.shape[2], features.dtype) if weights is None else weights

    @property
    def vocabulary(self) -> int:
        return self.base.shape[1]

    @property
    def length(self) -> int:
        return 1

    def trainable(self):
        return eqx.tree_at(lambda p: p.weights, jax.tree.map(lambda _: False, self), True)

    def tabular(self) -> TabularPolicy:
        """The same policy as a table."""
        base, features = jax.lax.stop_gradient((self.base, self.features))
        return TabularPolicy(base + features @ self.weights)

    def log_probs(self) -> jax.Array:
        """(Q, K)."""
        return self.tabular().log_probs()

    def start(self, prompts, mask, length: int) -> tuple[jax.Array, Any]:
        return self.tabular().start(prompts, mask, length)

    def extend(self, cache, tokens) -> tuple[jax.Array, Any]:
        return self.tabular().extend(cache, tokens)

    def score(self, prompts, mask, completions, completion_mask, temperature=1.0, *, entropy: bool = True) -> Scored:
        return self.tabular().score(prompts, mask, completions, completion_mask, temperature, entropy=entropy)

    def embed(self, prompts, mask, completions, completion_mask) -> jax.Array:
        """(B, d): the features of each answer: what a reward model reads."""
        return self.features[prompts[:, -1], completions[:, 0]]
