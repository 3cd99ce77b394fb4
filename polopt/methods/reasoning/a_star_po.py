"""Accelerating RL for LLM Reasoning with Optimal Advantage Regression.

Kianté Brantley, Mingyu Chen, Zhaolin Gao, Jason D. Lee, Wen Sun, Wenhao Zhan, Xuezhou Zhang. 2025. arXiv:2505.20686

A*-PO estimates the optimal regularised value of every prompt once, from completions of the first policy. Then one completion of a prompt is enough:
the optimum satisfies beta log(pi*(y|x) / pi_ref(y|x)) = r(x, y) - V*(x), and the loss is that identity in least squares.

    V*(x) = beta_1 log( 1/N sum_i exp(r_i / beta_1) ),     y_1 ... y_N ~ pi_ref           once, before training
    l     = log pi(y|x) - log pi_ref(y|x),                 y ~ pi
    loss  = mean_x ( beta_2 l - (r - V*(x)) )^2

A large beta_1 smooths the values (their mean as it grows, their maximum as it falls to 0), a small beta_2 lets the policy move far. Completions are
data: no gradient flows through their drawing. Prompts that the first policy never solved have V* = 0 and push nothing until solved once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import Raw
from polopt.loops.language import Aggregation, Anchor, Language, Update
from polopt.loops.prompting import Grouped, Order, draw_prompts, shuffled, surveyed, written
from polopt.loops.wording import each_token, log_ratios, of_completion
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives.backend import Array, as_weights, safe_divide
from polopt.policies.language.sampling import Sampling


def optimal_value(rewards, temperature, mask=None):
    """(n,): temperature log mean exp(r / temperature) of rewards (n, N); 0 where all are masked."""
    xp = array_namespace(rewards)
    weight = as_weights(mask, rewards)
    highest = xp.max(xp.where(weight > 0, rewards, -xp.inf + xp.zeros_like(rewards)), axis=1, keepdims=True)
    highest = xp.where(highest > -xp.inf, highest, xp.zeros_like(highest))
    # expm1 and log1p keep the digits where the temperature is high
    excess = xp.where(weight > 0, xp.expm1((rewards - highest) / temperature), xp.zeros_like(rewards))
    mean = safe_divide(xp.sum(excess, axis=1), xp.sum(weight, axis=1))
    return highest[:, 0] + temperature * xp.log1p(mean)


def advantage_regression(log_ratio, advantage, beta):
    """(n,): ( beta l - (r - V*) )^2. Its gradient is -2 beta w grad log pi with w = (r - V*) - beta l."""
    return (beta * log_ratio - advantage) ** 2


@part
class Regression:
    """The squared distance of the implicit advantage from the estimated one, borne by every token."""

    beta: float = hyper(1e-3, above=0)  # beta_2, the strength of the divergence from the first policy

    def loss(self, update: Update, key):
        log_ratio = log_ratios(update.log_prob, update.anchor_log_prob, update.learn)
        losses = advantage_regression(log_ratio, of_completion(update.advantage, update.learn), self.beta)
        return each_token(losses, update.learn), {"log_ratio": jnp.mean(log_ratio)}


class Values(NamedTuple):
    order: Order
    value: Array  # (prompts,) V*, never renewed


@part
class Valued:
    """One completion of each prompt; before training `trials` of every prompt are written, from which its optimal value is estimated."""

    prompts: int = hyper(64, at_least=1)  # different prompts an iteration
    trials: int = hyper(8, at_least=1)  # N
    smoothing: float = hyper(0.5, above=0)  # beta_1
    sampling: Sampling = Sampling()

    completions = 1
    groups = Grouped.groups
    size = Grouped.groups
    temperature = Grouped.temperature
    refuse = Grouped.refuse
    tell = Grouped.tell

    def init(self, task, key) -> Values:
        k_order, k_try = jax.random.split(key)
        reward, valid = surveyed(task, task.model, k_try, self.sampling, self.trials)
        return Values(shuffled(len(task.prompts), k_order), optimal_value(reward, self.smoothing, valid))

    def gather(self, state: Values, task, policy, key):
        k_order, k_write = jax.random.split(key)
        prompts, order = draw_prompts(state.order, self.prompts, k_order)
        batch = written(task, policy, prompts, k_write, self.sampling)
        return batch._replace(baseline=state.value[prompts].astype(batch.baseline.dtype)), state._replace(order=order)


@composition
def a_star_po(task: LanguageTask | None = None) -> Language:
    """A*-PO with the paper's temperatures, eight trials, and two updates an iteration."""
    return Language(
        sampler=Valued(prompts=few(task, 64)),
        advantage=Raw(),
        objective=Regression(),
        step_rule=adam(task),
        penalty=Anchor(),
        aggregation=Aggregation("sequence"),
        minibatches=2,
    )
