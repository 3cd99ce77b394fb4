"""The geometric mixture of two language policies, token by token (Munos et al., Nash Learning from Human Feedback, arXiv:2312.00886).

    log pi^a(. | s) = (1 - a) log pi(. | s) + a log mu(. | s) - log Z(s)
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.policies.language.protocol import LanguagePolicy, Scored
from polopt.policies.language.scoring import logit_scores


class GeometricMixture(eqx.Module):
    """first: pi; second: mu, over the same tokens; share: a."""

    first: LanguagePolicy
    second: LanguagePolicy
    share: float | jax.Array

    @property
    def vocabulary(self) -> int:
        return self.first.vocabulary

    def start(self, prompts, mask, length: int) -> tuple[jax.Array, Any]:
        return self._mixed(self.first.start(prompts, mask, length), self.second.start(prompts, mask, length))

    def extend(self, cache, tokens) -> tuple[jax.Array, Any]:
        return self._mixed(self.first.extend(cache[0], tokens), self.second.extend(cache[1], tokens))

    def score(self, prompts, mask, completions, completion_mask, temperature=1.0, *, entropy: bool = True) -> Scored:
        """Token after token, since the constants Z need the logits of both."""
        logits, cache = self.start(prompts, mask, completions.shape[1])

        def step(carry, tokens):
            logits, cache = carry
            return self.extend(cache, tokens), logit_scores(logits / temperature, tokens, entropy=entropy)

        _, scores = jax.lax.scan(step, (logits, cache), completions.T)
        log_prob, spread = (jnp.where(completion_mask, s.T, 0) for s in scores)
        return Scored(log_prob, spread)

    def _mixed(self, first, second):
        (a, cache_a), (b, cache_b) = first, second
        mixed = (1 - self.share) * jax.nn.log_softmax(a) + self.share * jax.nn.log_softmax(b)
        return jax.nn.log_softmax(mixed), (cache_a, cache_b)
