"""What a language policy does: begin after a prompt, go on by a token, and score completions.

    start   p(y_1 | x), and a cache that remembers x and has room for the tokens to come
    extend  p(y_{t+1} | x, y_1 ... y_t), and the cache with y_t in it
    score   log pi(y_t | x, y_{<t}) and the entropy of pi(. | x, y_{<t}) for whole completions at once, differentiable

The three speak of one distribution: the log-softmax of what `start` and `extend` give, at a temperature, is what `score` gives.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
from jax import Array


class Scored(NamedTuple):
    """log_prob (B, N): of each completion token at the temperature asked for; entropy (B, N): of that distribution, in nats. Both 0 where masked."""

    log_prob: Array
    entropy: Array


class LanguagePolicy(Protocol):
    """A pytree of arrays, sizes and callables static.

    prompts are (B, P) int32 padded on the left, with a mask (B, P) that is True on their tokens; completions are (B, N) int32.
    Of a cache, scalars belong to all rows and every other array has the rows as its first axis.
    """

    vocabulary: int

    def start(self, prompts: Array, mask: Array, length: int) -> tuple[Array, Any]:
        """Logits (B, V) of the first token and a cache with room for `length` tokens."""
        ...

    def extend(self, cache: Any, tokens: Array) -> tuple[Array, Any]:
        """Logits (B, V) after tokens (B,) followed, and the cache with them."""
        ...

    def score(
        self, prompts: Array, mask: Array, completions: Array, completion_mask: Array, temperature: float | Array = 1.0, *, entropy: bool = True
    ) -> Scored:
        """Scores of the completion tokens where completion_mask (B, N) is True.

        A masked token is not scored, but the tokens after it were written in view of it: so are those that a tool put into a completion.
        Without `entropy` it is not computed and is 0.
        """
        ...


def trainable(policy: Any) -> Any:
    """A pytree of bools of the policy's structure: which leaves learn. All do, unless the policy has a `trainable()` that says which.

    `equinox.partition(policy, trainable(policy))` gives what to differentiate and what to hold.
    """
    if hasattr(policy, "trainable"):
        return policy.trainable()
    return jax.tree.map(eqx.is_inexact_array, policy)
