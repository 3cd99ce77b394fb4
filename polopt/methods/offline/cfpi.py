"""Offline Reinforcement Learning with Closed-Form Policy Improvement Operators.

Jiachen Li, Edwin Zhang, Ming Yin, Qinxun Bai, Yu-Xiang Wang, William Yang Wang. 2022. arXiv:2211.15956

A policy that stays near the log may take the critics for linear around the cloned mean, and within a bound on the likelihood the best action of a
linear critic has a closed form: no actor is trained. Of a mixture of Gaussians it comes from either of two bounds of the likelihood.

    pi_b   = sum_k w_k N(mu_k, S_k), of the highest likelihood;   Q = mean_i Q_i - p std_i Q_i of quantile critics of r + gamma (1 - term) Z(s', a')
    one    a = mu + kappa S g / sqrt(g' S g),  g = grad Q(s, mu):  max of a' g where (a - mu)' S^-1 (a - mu) <= kappa^2 = 2 delta
    max    log sum_k exp(x_k) >= max_k x_k: such an a for each, kappa_k^2 = 2 (delta + l_k - max_j l_j) with l_k = log w_k - log det(2 pi S_k) / 2
    mean   log sum_k w_k N_k >= sum_k w_k log N_k: such an a for S = (sum w_k S_k^-1)^-1 and mu = S sum w_k S_k^-1 mu_k,
           kappa^2 = 2 delta - sum w_k mu_k' S_k^-1 mu_k + mu' S^-1 mu

Of all candidates whose kappa^2 is not negative that with the largest Q is done; `components` 1 is the operator of one Gaussian. a' is the log's next
action, or the actor's where the episode was cut. `iterative` takes the improved action with noise once the critics are warm, and the smallest of
the critics' quantiles; `every` and `warmup` of 200,000 make it the multi-step form. `iql` improves what IQL has learnt. The mathematics is in
`polopt/policies/closed_form.py`. Defaults: the authors' for locomotion, of `iterative` those for mazes, where they take `rewards.shift` -1.

The authors' code has 4 where kappa_k^2 has 2, so that one component would not give `one`, and takes components that are too unlikely at their
means (`unlikely=keep`). Our choices: densities of actions in [-1, 1], to which candidates are clipped, rather than of what is before a tanh, where a
logged action on the bound would have none; components of a weight below `least` are left out of `max` altogether; policy and critics learn at once.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import Ensemble, polyak
from polopt.critics.quantile import QuantileNetwork, midpoints, quantile_regression
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, needs_box
from polopt.loops.descent import Step
from polopt.loops.following import Improved, NextAction, OneStep, Sarsa
from polopt.loops.off_policy import Rule
from polopt.loops.offline import Offline
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.methods.offline.bc import cloning_loss
from polopt.methods.offline.iql import ImplicitQ
from polopt.methods.policy_gradient.pg_rainbow import quantiles_of
from polopt.methods.registry import composition
from polopt.policies.cloned import ClonedMixture
from polopt.policies.closed_form import FromGaussian, FromMixture, ImprovedPolicy, improved

DEEP = replace(NETWORK, {"hidden": (256, 256, 256)})


class QuantileValue(eqx.Module):
    """Q(s, a) of a box action, as the mean of the quantiles of Z(s, a) at `count` midpoints."""

    network: QuantileNetwork
    count: int = eqx.field(static=True)

    def __call__(self, vector, pictures, action):
        return jnp.mean(quantiles_of(self.network, (vector, pictures), action, midpoints(self.count)))


def deployed(improvement, learner, normaliser) -> ImprovedPolicy:
    """The policy of a learner. Where this is one of several seeds, so are the numbers of the improvement."""
    numbers = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), learner.count.shape), improvement)
    return ImprovedPolicy(learner.actor, normaliser, learner.critic, numbers)


@part
class ClosedForm:
    """A model of who made the log and quantile critics, from which the policy follows."""

    improvement: FromMixture = FromMixture()
    following: NextAction = Sarsa()
    actor_network: Feedforward = DEEP
    critic_network: Feedforward = DEEP
    actor_step: Step = replace(STEP, {"learning_rate": 1e-4})
    critic_step: Step = STEP
    components: int = hyper(4, at_least=1)  # Gaussians in the model of who made the log
    critics: int = hyper(2, at_least=1)  # critics
    targets: str = hyper("own", choices=("own", "least"))  # a critic is fitted to its own slow copy's quantiles, or to the smallest of all
    quantiles: int = hyper(8, at_least=1)  # random fractions at which a critic is fitted
    midpoints: int = hyper(32, at_least=1)  # even fractions of which its value is the mean
    cosines: int = hyper(64, at_least=1)  # waves that a fraction is seen by
    kappa: float = hyper(1.0, above=0)  # where the critics' loss becomes linear
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online critics that the targets take in an update

    def refuse(self, env) -> str | None:
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        inputs = env.observation_space, env.action_space
        actor = ClonedMixture(self.actor_network, *inputs, self.components, k_actor)

        def critic_of(key):
            return QuantileValue(QuantileNetwork(self.critic_network, *inputs, self.cosines, key), self.midpoints)

        critic = Ensemble(critic_of, self.critics, k_critic)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic)}
        return ActorCritic(actor, critic, (), critic, self.following.start(actor, critic), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return improved(self.improvement, learner.actor, learner.critic, *inputs)

    def policy(self, learner, normaliser):
        return deployed(self.improvement, learner, normaliser)

    def critic_loss(self, critic, slow, batch, following, key):
        """The quantile regression of every Z_i(s, a) to r + gamma (1 - term) Z-(s', a') of its own slow copy or the smallest, a' (n, ...)."""

        def each(critics, inputs, action, tau):
            return jnp.stack([quantiles_of(member.network, inputs, action, tau) for member in critics.members])

        def one(inputs, action, reward, discount, after, later, key):
            tau, tau_after = jax.random.uniform(key, (2, self.quantiles))
            found = each(slow, after, later, tau_after)
            found = jnp.broadcast_to(jnp.min(found, axis=0), found.shape) if self.targets == "least" else found
            pairs = zip(each(critic, inputs, action, tau), reward + discount * found)
            return sum(quantile_regression(z, tau, y, self.kappa) for z, y in pairs)

        keys = jax.random.split(key, batch.reward.shape[0])
        losses = jax.vmap(one)(batch.observation, batch.action, batch.reward, batch.discount, batch.next_observation, following, keys)
        return jnp.mean(batch.weight * losses)

    def update(self, learner, batch, progress, key):
        k_next, k_critic = jax.random.split(key)
        following, held = self.following(self, learner, batch, k_next)
        loss, gradient = jax.value_and_grad(self.critic_loss)(learner.critic, learner.target_critic, batch, following, k_critic)
        critic, optimisers = descend(self.critic_step, gradient, learner.optimisers, "critic", learner.critic, progress)
        model_loss, gradient = jax.value_and_grad(cloning_loss)(learner.actor, batch, batch.weight)
        actor, optimisers = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)
        learner = ActorCritic(actor, critic, (), polyak(learner.target_critic, critic, self.tau), held, optimisers, learner.count + 1)
        return learner, jnp.zeros(batch.reward.shape), {"loss/critic": loss, "loss/model": model_loss}


@part
class OnTop:
    """A rule whose actor gives Gaussians of unit actions learns, and its actions are improved by its own critics where it is deployed."""

    base: Rule = ImplicitQ()
    improvement: FromGaussian = FromGaussian()

    @property
    def discount(self):
        return self.base.discount

    def refuse(self, env) -> str | None:
        return needs_box(env) or self.base.refuse(env)

    def init(self, env, key) -> ActorCritic:
        return self.base.init(env, key)

    def act(self, learner, inputs, key):
        return improved(self.improvement, learner.actor, learner.critic, *inputs)

    def policy(self, learner, normaliser):
        return deployed(self.improvement, learner, normaliser)

    def update(self, learner, batch, progress, key):
        return self.base.update(learner, batch, progress, key)


@composition
def cfpi(task: DataTask | None = None) -> Offline:
    """One step from a mixture that models who made the log."""
    return Offline(ClosedForm(), OneStep(), normalise_observations=True)


@composition
def iterative(task: DataTask | None = None) -> Offline:
    """Critics of the improved policy, so that one step follows on another."""
    return Offline(ClosedForm(FromMixture(bounds="max"), Improved(Smoothed(0.1, 0.5)), targets="least", components=8), OneStep())


@composition
def iql(task: DataTask | None = None) -> Offline:
    """IQL whose policy is improved by its critics."""
    return Offline(OnTop())
