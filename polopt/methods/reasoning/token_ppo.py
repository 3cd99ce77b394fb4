"""Fine-Tuning Language Models from Human Preferences.

Daniel M. Ziegler, Nisan Stiennon, Jeffrey Wu, Tom B. Brown, Alec Radford, et al. 2019. arXiv:1909.08593

PPO on tokens: the state is the prompt with what is written so far, an action is a token, and a critic of tokens says how the completion is
going. The reward comes at the last token, and at every token a penalty on the divergence from the policy that training started from, whose
weight is steered so that the divergence of a completion stays near a target.

    s_t     = (q, o_<t),        R_t = [t last] r(q, o) - beta (log pi_old(o_t | s_t) - log pi_ref(o_t | s_t))
    delta_t = R_t + gamma V(s_{t+1}) - V(s_t),      A_t = sum_k (gamma lam)^k delta_{t+k},      V beyond the last token is 0
    loss    = mean over tokens of - min( rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t ),   A standardised over the iteration's tokens
    V loss  = mean over tokens of max( (V - G_t)^2, (V_old + clip(V - V_old, -c, c) - G_t)^2 ) / 2,    G_t = A_t + V_old(s_t)
    e       = clip( KL / KL_target - 1, -.2, .2 ),  beta <- beta (1 + .1 e)         KL: mean over completions of sum_t log pi_old / pi_ref

The critic is a head on a copy of the model, which learns with it; the paper's shares the policy's parameters. It learns before the policy
does, from the values that gave the advantages; since the two share nothing the order does not matter. Step size and batch are our choice. The
paper's other half, a reward model learnt from comparisons, is `bt`: the policy of its run is a verifier, to be put into a task from Python.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Linear
from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.descent import Step, divisions
from polopt.loops.language import Aggregation, Batch, Judged, KLReward, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives import advantages, reduction, values
from polopt.optim.adam import Adam
from polopt.policies.language.protocol import trainable


def steered(beta, kl, target, rate=0.1, limit=0.2):
    """beta (1 + rate clip(kl / target - 1, -limit, limit))."""
    return beta * (1 + rate * jnp.clip(kl / target - 1, -limit, limit))


class TokenCritic(eqx.Module):
    """V(q, o_<t): a linear head on what a model reads before each token."""

    trunk: Any
    head: Linear

    def __call__(self, prompts, mask, completions) -> jax.Array:
        """(B, N)"""
        read = self.trunk.states(prompts, mask, completions)
        return jax.vmap(jax.vmap(self.head))(read.astype(jnp.float32))[..., 0]


class Memory(NamedTuple):
    critic: TokenCritic
    optimiser: Any
    beta: jax.Array  # what the penalty's coefficient is multiplied by
    iteration: jax.Array
    key: jax.Array


@part
class TokenValues:
    """GAE over tokens with a critic that learns from each iteration's completions."""

    discount: float = hyper(1.0, at_least=0, at_most=1)  # gamma
    trace: float = hyper(0.95, at_least=0, at_most=1)  # lam
    target: float | None = hyper(None, above=0)  # KL_target, nats a completion; none for a fixed beta
    clip: float = hyper(0.2, above=0)  # c: the value loss earns nothing beyond
    epochs: int = hyper(4, at_least=1)  # passes of the critic over an iteration's completions
    minibatches: int = hyper(1, at_least=1)  # its updates in a pass
    tune_trunk: bool = True  # the model's copy learns with the head; false: the head alone
    step: Step = Adam(learning_rate=1e-5, anneal=False, max_grad_norm=1.0, epsilon=1e-8)

    def refuse(self, task: LanguageTask) -> str | None:
        """Why it cannot take the task; None when it can."""
        if not hasattr(task.model, "states"):
            return f"reads tokens by the model's `states`, which {type(task.model).__name__} does not have"
        return None

    def init(self, task: LanguageTask, key) -> Memory:
        prompts = task.prompts
        one = prompts.tokens[:1], prompts.mask[:1], jnp.zeros((1, task.length), jnp.int32)
        size = jax.eval_shape(task.model.states, *one).shape[-1]
        critic = TokenCritic(jax.tree.map(jnp.asarray, task.model), Linear(size, 1, key, gain=0.0))
        return Memory(critic, self.step.init(self.parted(critic)[0]), jnp.ones(()), jnp.zeros((), jnp.int32), key)

    def __call__(self, state: Memory, task: LanguageTask, batch: Batch, judged: Judged):
        value = jax.lax.stop_gradient(self.value(state.critic, task, batch))
        score = batch.reward - jnp.sum(judged.paid, axis=1)
        rewards = advantages.token_rewards(score[:, None], -state.beta * judged.paid, judged.learn)
        advantage = advantages.token_advantage_estimate(rewards, value, judged.learn, self.discount, self.trace)
        critic, optimiser, key = self.fitted(state, task, batch, judged.learn, value, advantage + value)
        beta = state.beta if self.target is None else steered(state.beta, divergence(judged), self.target)
        return reduction.standardise(advantage, judged.learn), Memory(critic, optimiser, beta, state.iteration + 1, key)

    def value(self, critic: TokenCritic, task: LanguageTask, batch: Batch):
        return critic(task.prompts.tokens[batch.index], task.prompts.mask[batch.index], batch.tokens)

    def fitted(self, state: Memory, task, batch: Batch, learn, old, target):
        """(critic, optimiser, key) after the iteration's updates towards the targets (N, T)."""
        moving, still = self.parted(state.critic)
        key, k_order = jax.random.split(state.key)
        progress = jnp.clip(state.iteration / task.steps, 0.0, 1.0)

        def descend(carry, rows):
            moving, optimiser = carry
            some = jax.tree.map(lambda x: x[rows], (batch, learn, old, target))

            def loss(moving):
                drawn, learn, old, target = some
                found = self.value(eqx.combine(moving, still), task, drawn)
                each = values.clipped_squared(found, old, target, self.clip, mask=learn)
                return jnp.sum(jnp.where(learn, each, 0.0)) / jnp.maximum(jnp.sum(learn), 1)

            return self.step.update(jax.grad(loss)(moving), optimiser, moving, progress), None

        orders = divisions(k_order, self.epochs, self.minibatches, batch.reward.shape[0])
        (moving, optimiser), _ = jax.lax.scan(descend, (moving, state.optimiser), orders.reshape(self.epochs * self.minibatches, -1))
        return eqx.combine(moving, still), optimiser, key

    def parted(self, critic: TokenCritic):
        """What learns of a critic, and the rest."""
        trunk = trainable(critic.trunk) if self.tune_trunk else jax.tree.map(lambda _: False, critic.trunk)
        learns = eqx.tree_at(lambda c: c.trunk, jax.tree.map(eqx.is_inexact_array, critic), trunk)
        return eqx.partition(critic, learns)


def divergence(judged: Judged):
    """The mean over completions of sum_t log pi_old - log pi_ref."""
    gap = jnp.where(judged.learn, judged.old_log_prob - judged.anchor_log_prob, 0.0)
    return jnp.sum(gap) / jnp.maximum(jnp.sum(judged.batch.valid), 1)


@composition
def token_ppo(task: LanguageTask | None = None) -> Language:
    """PPO with a critic of tokens: four epochs on one completion of each prompt, a target of 6 nats."""
    step = adam(task, 1e-5)
    return Language(
        sampler=Grouped(prompts=few(task, 64), completions=1),
        advantage=TokenValues(target=6.0, step=Adam(step.learning_rate, anneal=False, max_grad_norm=1.0, epsilon=1e-8)),
        objective=Clipped(),
        step_rule=step,
        penalty=KLReward(0.03),
        aggregation=Aggregation("token"),
        epochs=4,
    )
