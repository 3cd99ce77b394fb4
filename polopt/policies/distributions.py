"""Action distributions, one observation at a time.

A distribution draws a *raw* action; `action(raw)` is what the environment receives. The two differ only for boxes, where
the raw action is the Gaussian's draw and the environment's is that draw brought into the bounds. Objectives always work
with raw actions, so that a stored draw has the same log-probability under the policy that drew it.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp


class Distribution(Protocol):
    """`sample(key)` draws a raw action; `mode()` is its most likely raw action; `log_prob`, `entropy` and `kl` are in nats."""

    def sample(self, key) -> Any: ...

    def mode(self) -> Any: ...

    def log_prob(self, raw) -> jax.Array: ...

    def entropy(self) -> jax.Array: ...

    def kl(self, other) -> jax.Array:
        """KL(self || other)."""
        ...

    def action(self, raw) -> Any: ...


class Categorical(eqx.Module):
    """One choice of n; `logits` (n,) need not be normalised."""

    logits: jax.Array

    def sample(self, key):
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self):
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, raw):
        chosen = jax.nn.one_hot(raw, self.logits.shape[-1], dtype=self.logits.dtype)
        return jnp.sum(chosen * jax.nn.log_softmax(self.logits), axis=-1)

    def entropy(self):
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, other):
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    def action(self, raw):
        return raw


class MultiCategorical(eqx.Module):
    """Independent choices, the i-th of `sizes[i]`; `logits` (sum of sizes,) are the concatenated logits."""

    logits: jax.Array
    sizes: tuple[int, ...] = eqx.field(static=True)

    def _parts(self):
        cuts = [sum(self.sizes[:i]) for i in range(1, len(self.sizes))]
        return [Categorical(part) for part in jnp.split(self.logits, cuts, axis=-1)]

    def sample(self, key):
        keys = jax.random.split(key, len(self.sizes))
        return jnp.stack([part.sample(k) for part, k in zip(self._parts(), keys)], axis=-1)

    def mode(self):
        return jnp.stack([part.mode() for part in self._parts()], axis=-1)

    def log_prob(self, raw):
        return sum(part.log_prob(raw[..., i]) for i, part in enumerate(self._parts()))

    def entropy(self):
        return sum(part.entropy() for part in self._parts())

    def kl(self, other):
        return sum(p.kl(q) for p, q in zip(self._parts(), other._parts()))

    def action(self, raw):
        return raw


class Bernoulli(eqx.Module):
    """A vector of independent zeros and ones; `logits` (n,) of a one."""

    logits: jax.Array

    def sample(self, key):
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.int32)

    def mode(self):
        return (self.logits > 0).astype(jnp.int32)

    def log_prob(self, raw):
        return -jnp.sum(jax.nn.softplus(jnp.where(raw == 1, -self.logits, self.logits)), axis=-1)

    def entropy(self):
        p = jax.nn.sigmoid(self.logits)
        return jnp.sum(p * jax.nn.softplus(-self.logits) + (1 - p) * jax.nn.softplus(self.logits), axis=-1)

    def kl(self, other):
        p = jax.nn.sigmoid(self.logits)
        ones = jax.nn.softplus(-other.logits) - jax.nn.softplus(-self.logits)
        zeros = jax.nn.softplus(other.logits) - jax.nn.softplus(self.logits)
        return jnp.sum(p * ones + (1 - p) * zeros, axis=-1)

    def action(self, raw):
        return raw


class Gaussian(eqx.Module):
    """A diagonal Gaussian over a box of any shape, its draws clipped to the bounds when the environment gets them.

    The density is that of the unclipped draw. Infinite bounds clip nothing.
    """

    mean: jax.Array
    log_std: jax.Array
    low: jax.Array
    high: jax.Array

    def sample(self, key):
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self):
        return self.mean

    def log_prob(self, raw):
        z = (raw - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * z**2 + self.log_std + 0.5 * math.log(2 * math.pi))

    def entropy(self):
        return jnp.sum(jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 * math.log(2 * math.pi * math.e))

    def kl(self, other):
        ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return 0.5 * jnp.sum(ratio + shift - 1 - 2 * (self.log_std - other.log_std))

    def action(self, raw):
        return jnp.clip(raw, self.low, self.high)


class SquashedGaussian(eqx.Module):
    """A diagonal Gaussian sent through tanh and scaled to finite bounds.

    `log_prob` is the density of the scaled action, at a raw draw: log N(u) - sum log |da/du|. Its entropy has no closed
    form; `entropy` is the Gaussian's plus the log-derivative at the mean, exact in the limit of small deviations.
    """

    mean: jax.Array
    log_std: jax.Array
    low: jax.Array
    high: jax.Array

    def _gaussian(self):
        return Gaussian(self.mean, self.log_std, self.low, self.high)

    def _log_derivative(self, raw):
        # log(1 - tanh(u)^2) without cancellation
        log_sech2 = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
        return jnp.sum(log_sech2 + jnp.log((self.high - self.low) / 2))

    def sample(self, key):
        return self._gaussian().sample(key)

    def mode(self):
        return self.mean

    def log_prob(self, raw):
        return self._gaussian().log_prob(raw) - self._log_derivative(raw)

    def entropy(self):
        return self._gaussian().entropy() + self._log_derivative(self.mean)

    def kl(self, other):
        # a common invertible map changes no KL
        return self._gaussian().kl(other._gaussian())

    def action(self, raw):
        return self.low + (self.high - self.low) * (jnp.tanh(raw) + 1) / 2


class Joint(eqx.Module):
    """Independent draws by name, such as an action and a note; raw draws and actions are dicts with these names."""

    parts: dict[str, Any]

    def _of_parts(self, method: str, *arguments):
        """{name: what the part's method gives}, each argument a value by name."""
        return {name: getattr(self.parts[name], method)(*(a[name] for a in arguments)) for name in sorted(self.parts)}

    def sample(self, key):
        return self._of_parts("sample", dict(zip(sorted(self.parts), jax.random.split(key, len(self.parts)))))

    def mode(self):
        return self._of_parts("mode")

    def log_prob(self, raw):
        return sum(self._of_parts("log_prob", raw).values())

    def entropy(self):
        return sum(self._of_parts("entropy").values())

    def kl(self, other):
        return sum(self._of_parts("kl", other.parts).values())

    def action(self, raw):
        return self._of_parts("action", raw)
