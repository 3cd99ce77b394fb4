"""Single-stream Policy Optimization.

Zhongwen Xu, Zihan Ding. 2025. arXiv:2509.13232

One completion of each prompt, and no groups: the baseline is a Beta posterior of each prompt's success that lasts through training and forgets as
fast as the policy moves on that prompt. Advantages are normalised over the batch, and uncertain prompts are drawn more often.

    v(x) = alpha / (alpha + beta),          w(x) = sqrt(v (1 - v)) + .05 the odds of drawing x, without replacement
    A    = (a - mean a) / (std a + 1e-8),   a = r - v(x)
    D    = mean_t | log pi_then(o_t) - log pi_now(o_t) |       on the completion o that was last written for x; 0 the first time
    rho  = clip( 2^(-D / D_half), rho_min, rho_max )
    alpha <- rho alpha + r,   beta <- rho beta + 1 - r         after the policy's update

At first n0 completions of every prompt are written, s of them right: alpha = N0 (s + .5) / (n0 + 1), beta = N0 (n0 - s + .5) / (n0 + 1), with
N0 = 1 / (1 - rho_min). Rewards must lie between 0 and 1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import forgetful
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped, surveyed, written
from polopt.loops.wording import Clipped, of_completion
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives import reduction
from polopt.objectives.backend import Array
from polopt.policies.language.sampling import Sampling


def prior(successes, trials, rho_min):
    """(alpha, beta) from `successes` of `trials`, weighing as many observations as the shortest memory holds."""
    window = 1 / (1 - rho_min)
    return window * (successes + 0.5) / (trials + 1), window * (trials - successes + 0.5) / (trials + 1)


def remembered(distance, half, rho_min, rho_max):
    """rho: what is kept of the old counts when the policy has moved by `distance`."""
    return array_namespace(distance).clip(2 ** (-distance / half), rho_min, rho_max)


def drawn_by_odds(odds, count: int, key):
    """(count,) different indices, each drawn in turn with odds (n,) among those that are left."""
    return jax.lax.top_k(jnp.log(odds) + jax.random.gumbel(key, odds.shape), count)[1].astype(jnp.int32)


@forgetful
class Standardised:
    """The reward less the tracked value, standardised over the completions of the batch."""

    epsilon: float = hyper(1e-8, above=0)  # added to the deviation

    def advantage(self, batch, judged):
        return reduction.standardise(batch.reward - batch.baseline, batch.valid, epsilon=self.epsilon)


class Tracker(NamedTuple):
    """What is known of each of the n prompts, and the completion that was last written for it."""

    alpha: Array  # (n,)
    beta: Array  # (n,)
    tokens: Array  # (n, T)
    mask: Array  # (n, T), False throughout where there is none yet
    log_prob: Array  # (n, T) when it was written

    @property
    def value(self):
        return self.alpha / (self.alpha + self.beta)


@part
class SingleStream:
    """One completion of each prompt, drawn by uncertainty; tracks each prompt's success."""

    prompts: int = hyper(64, at_least=1)  # different prompts an iteration
    trials: int = hyper(8, at_least=1)  # n0: completions of every prompt before training
    rho_min: float = hyper(0.875, at_least=0, below=1)  # least share of the old counts that is kept
    rho_max: float = hyper(0.96, at_least=0, at_most=1)  # greatest share
    half: float = hyper(0.06, above=0)  # D_half: the distance at which half is kept
    exploration: float = hyper(0.05, above=0)  # odds of a prompt that is certain
    sampling: Sampling = Sampling()

    completions = 1
    groups = Grouped.groups
    size = Grouped.groups
    temperature = Grouped.temperature
    refuse = Grouped.refuse

    def init(self, task, key) -> Tracker:
        reward, valid = surveyed(task, task.model, key, self.sampling, self.trials)
        alpha, beta = prior(jnp.sum(reward, axis=1), jnp.sum(valid, axis=1), self.rho_min)
        shape = (len(task.prompts), task.length)
        return Tracker(alpha, beta, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, alpha.dtype))

    def gather(self, state: Tracker, task, policy, key):
        k_prompts, k_write = jax.random.split(key)
        value = state.value
        prompts = drawn_by_odds(jnp.sqrt(value * (1 - value)) + self.exploration, self.prompts, k_prompts)
        return written(task, policy, prompts, k_write, self.sampling)._replace(baseline=value[prompts]), state

    def tell(self, state: Tracker, task, policy, batch) -> Tracker:
        rows, given, before = batch.index, task.prompts, jax.tree.map(lambda x: x[batch.index], state)
        now = policy.score(given.tokens[rows], given.mask[rows], before.tokens, before.mask, self.temperature).log_prob
        rho = remembered(of_completion(jnp.abs(before.log_prob - now), before.mask), self.half, self.rho_min, self.rho_max)
        alpha, beta = rho * before.alpha + batch.reward, rho * before.beta + 1 - batch.reward
        after = Tracker(alpha, beta, batch.tokens, batch.mask, batch.sampled_log_prob)

        def renewed(old, new):
            graded = batch.valid.reshape(-1, *[1] * (old.ndim - 1))
            return old.at[rows].set(jnp.where(graded, new, old[rows]).astype(old.dtype))

        return jax.tree.map(renewed, state, after)


@composition
def single_stream(task: LanguageTask | None = None) -> Language:
    """SPO with the paper's memory, clip and dual clip, and eight updates an iteration."""
    return Language(
        sampler=SingleStream(prompts=few(task, 64)),
        advantage=Standardised(),
        objective=Clipped(dual=10.0),
        step_rule=adam(task),
        aggregation=Aggregation("token"),
        minibatches=8,
    )
