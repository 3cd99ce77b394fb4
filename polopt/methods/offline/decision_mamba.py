"""Decision Mamba: A Multi-Grained State Space Model with Self-Evolution Regularization for Offline RL.

Qi Lv, Xiang Deng, Gongwei Chen, Michael Yu Wang, Liqiang Nie. 2024. arXiv:2406.05427

The Decision Transformer's tokens in a selective state space of two branches: a coarse one that convolves over all tokens, and a fine one that
convolves within the return, state and action of a step. Its labels are the logged actions, mixed more and more with what it predicted before, so
that wrong ones are not learnt by heart.

    SSM: x_k = exp(Delta_k A) x_{k-1} + Delta_k B_k u_k,   y_k = C_k x_k + D u_k   with Delta_k, B_k, C_k read off u_k   (polopt.core.state_space)
    c = SSM(SiLU(conv(LN(h)))) over all tokens,   f = SSM(SiLU(conv_3(LN(h)))) with the convolution inside a step
    h <- h + W_o LN( c SiLU(W_c h) + f SiLU(W_f h) )
    a~ = (1 - beta_k) a + beta_k pi_{k-1},    beta_k = beta times the share of the run that is done, and 0 in the first stage
    L  = |pi_k - a~|^2 + l_s |s^_{t+1} - s_{t+1}|^2 + l_R |R^_{t+1} - R_{t+1}|^2,    a~ held fixed, s^ and R^ read off the token of a_t

pi_{k-1} is the policy of `refresh_every` updates ago or less. A convolution sees no later token, so that no action is seen by its own prediction.
Of whole-number actions a~ is a mixture of distributions and |.|^2 their cross-entropy (less what no parameter changes). Deployed as the Decision
Transformer, with its model of the reward.

K = 20, Adam 1e-4 and clipping at .25 are the Decision Transformer's; l_s = l_R = .05 and the linear rise those of the released code. Our choices: 3
blocks of width 128, a stage of 100 updates, squared losses for s and R, R divided by the largest of the log. The released code is not followed where
it leaves the equations: it mixes the label with the present prediction, gradient and all, which scales the loss by (1 - beta)^2 and no more, before
it sets beta to 0; and its fine branch puts what it reads of a step on tokens of earlier steps, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.core.state_space import StateSpace
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend
from polopt.loops.descent import Step
from polopt.loops.windows import OfflineWindows, vectors_only
from polopt.methods.offline.bc import one_action
from polopt.methods.offline.decision_transformer import Asked, asked, encoded_actions, reward_loss
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.policies.conditioned import STEP_TOKENS, Foresight, RewardModel, SequenceActor, SequencePolicy
from polopt.policies.distributions import Gaussian


class Beside(NamedTuple):
    """What is learnt beside the policy, and what is asked of it."""

    foresight: Foresight
    asked: Asked


def refined(label, previous, beta):
    """a~: labels, of which the share beta is what the policy said before. NumPy, JAX or PyTorch."""
    return (1 - beta) * label + beta * previous


def refined_loss(found, previous, action, beta):
    """What a distribution loses against a logged action that is mixed with what the distribution was before. None where it is both."""
    if isinstance(found, Gaussian):
        return jnp.mean(values.squared(found.mean, jax.lax.stop_gradient(refined(action, previous.mean, beta))))
    return (1 - beta) * -found.log_prob(action) + beta * jax.lax.stop_gradient(previous).kl(found)


@part
class SelfEvolving:
    """A state space over returns to go, states and actions that refines its own labels, and a model of the reward."""

    context: int = hyper(20, at_least=1)  # K: steps that it sees
    width: int = hyper(128, at_least=2)  # of a token
    layers: int = hyper(3, at_least=1)  # blocks
    state_size: int = hyper(16, at_least=1)  # numbers that a channel remembers
    kernel: int = hyper(4, at_least=1)  # tokens that the coarse convolution sees
    fine: bool = True  # keep the second convolution within a step; off lets it see over all tokens, too
    beta: float = hyper(0.85, at_least=0, at_most=1)  # share of a label that is its own in the end
    refresh_every: int = hyper(100, at_least=1)  # updates of a stage, after which the policy is the next one's previous
    state_weight: float = hyper(0.05, at_least=0)  # l_s
    return_weight: float = hyper(0.05, at_least=0)  # l_R
    reward_network: Feedforward = Feedforward(hidden=(128, 128), activation="relu")
    step: Step = replace(STEP, {"learning_rate": 1e-4, "max_grad_norm": 0.25})
    reward_step: Step = STEP
    target: float | None = None  # return to ask for; none for the best logged episode's

    def refuse(self, data) -> str | None:
        if self.width % 2:
            return f"has tokens of width {self.width}, but their clock needs an even one. Set another width"
        return vectors_only(data) or one_action(data)

    def network(self, key) -> StateSpace:
        plan = ((self.kernel, None), (STEP_TOKENS, STEP_TOKENS if self.fine else None))
        return StateSpace(self.width, self.layers, self.state_size, plan, key)

    def init(self, data, key) -> ActorCritic:
        k_actor, k_foresight, k_reward = jax.random.split(key, 3)
        actor = SequenceActor(data.observation_space, data.action_space, self.width, self.network, k_actor, learnt_deviation=False)
        foresight = Foresight(self.width, spaces.size(data.observation_space), k_foresight)
        model = RewardModel(self.reward_network, data.observation_space, data.action_space, k_reward)
        optimisers = {"actor": self.step.init((actor, foresight)), "reward": self.reward_step.init(model)}
        return ActorCritic(actor, model, actor, (), Beside(foresight, asked(data, self.target)), optimisers, jnp.zeros((), jnp.int32))

    def policy(self, learner, normaliser):
        wanted = learner.extra.asked
        return SequencePolicy(learner.actor, normaliser, learner.critic, wanted.target, wanted.scale, self.context)

    def loss(self, both, previous, batch, scale, beta) -> tuple[jax.Array, dict[str, Any]]:
        """(L, its terms) of an actor and its foresight, averaged over the steps that are inside their episode."""
        actor, foresight = both

        def one(to_go, states, actions, steps, mask, action, reward, after):
            given = to_go / scale, states, actions, steps, mask
            features = actor.features(*given)
            of_action = jax.vmap(lambda f, p, a: refined_loss(f, p, a, beta))(actor.read(features), previous(*given), action)
            state, left = foresight(features)
            return of_action, jnp.mean(values.squared(state, after), axis=1), values.squared(left, (to_go - reward) / scale)

        given = batch.to_go, batch.inputs[0], encoded_actions(actor, batch.action), batch.step, batch.mask
        errors = jax.vmap(one)(*given, batch.action, batch.reward, batch.next_inputs[0])
        policy, state, to_go = (jnp.sum(batch.mask * error) / jnp.sum(batch.mask) for error in errors)
        total = policy + self.state_weight * state + self.return_weight * to_go
        return total, {"loss/policy": policy, "loss/state": state, "loss/return": to_go}

    def update(self, learner, batch, progress, key):
        beta = jnp.where(learner.count < self.refresh_every, 0.0, self.beta * progress)  # the first policy of all has learnt nothing
        both, scale = (learner.actor, learner.extra.foresight), learner.extra.asked.scale
        (_, metrics), gradient = jax.value_and_grad(self.loss, has_aux=True)(both, learner.target_actor, batch, scale, beta)
        (actor, foresight), optimisers = descend(self.step, gradient, learner.optimisers, "actor", both, progress)
        error, gradient = jax.value_and_grad(reward_loss)(learner.critic, learner.actor, batch)
        model, optimisers = descend(self.reward_step, gradient, optimisers, "reward", learner.critic, progress)
        ends = (learner.count + 1) % self.refresh_every == 0
        previous = jax.tree.map(lambda new, old: jnp.where(ends, new, old), actor, learner.target_actor)
        learner = ActorCritic(actor, model, previous, (), learner.extra._replace(foresight=foresight), optimisers, learner.count + 1)
        return learner, {**metrics, "loss/reward": error, "beta": beta}


@composition
def decision_mamba(task: DataTask | None = None) -> OfflineWindows:
    """Decision Mamba."""
    return OfflineWindows(SelfEvolving())
