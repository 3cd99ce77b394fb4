"""Mirror Descent Policy Optimization.

Manan Tomar, Lior Shani, Yonathan Efroni, Mohammad Ghavamzadeh. 2020. arXiv:2005.09814

Each iteration is one step of mirror descent: the linearised return minus a KL proximity to the previous policy is maximised, by
several gradient steps, and no constraint is imposed. The weight of the proximity grows over the run.

On-policy, with pi_k the policy that collected, r = pi(a|s) / pi_k(a|s), advantages A from generalised advantage estimation, and
K iterations in the run:

    L   = -( E[ r A ] - (1 / t_k) E_s[ KL( pi(.|s) || pi_k(.|s) ) ] ),    t_k = t_0 (1 - k / K)
    the exact minimum in a table: pi_{k+1}(a|s) proportional to pi_k(a|s) exp(t_k A(s, a))

The KL is exact and has the NEW policy first, other than TRPO's and PPO's. At pi_k it has no gradient, so that a single step is plain
policy gradient: it takes several. Defaults: 10 passes over 2048 samples, and those of PPO with continuous actions besides.

Off-policy (`mdpo:off_policy`, soft MDPO), with a~ = tanh(u) drawn from pi, twin critics Q, a value V with slow copy V-, and pi_k the
policy of some updates ago:

    L_pi = E[ kappa log pi(a~|s) + (lam - kappa) log pi_k(a~|s) - min_i Q_i(s, a~) ],    kappa = 1 / t_k
    L_V  = E[ (V(s) - min_i Q_i(s, a~) + lam log pi(a~|s))^2 ] / 2,    L_Q = E[ (Q(s, a) - r - gamma (1 - term) V-(s'))^2 ] / 2

kappa = lam is SAC, lam = 0 is the method without entropy. In the Tsallis form log_q(x) = (x^(q-1) - 1) / (q - 1) takes the place of log in
the proximity kappa (log pi - log pi_k); q = 1 is the logarithm. Means and log deviations are drawn to 0 a little, as in the authors' code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.critics.value import ValueNetwork
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, draw, needs_box, regress
from polopt.loops.descent import Descent, Step
from polopt.loops.exploration import Drawn
from polopt.loops.off_policy import OffPolicy
from polopt.loops.on_policy import OnPolicy
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.objectives import surrogates, values
from polopt.optim.adam import Adam
from polopt.policies.unit import GaussianActor, UnitPolicy


@part
class Proximal:
    """The importance-weighted surrogate with a proximity KL(pi || pi_old) / t, where t falls to 0 over the run."""

    step_size: float = hyper(1.0, above=0)  # t_0: of mirror descent, before the first iteration

    def init(self):
        return jnp.asarray(self.step_size, jnp.float32)

    def loss(self, state, update):
        kl = jax.vmap(lambda new, old: new.kl(old))(update.distribution, update.old_distribution)
        loss = surrogates.mdpo(update.log_prob, update.old_log_prob, update.advantage, state, kl=kl)
        return loss, {"proximity": jnp.mean(kl), "step_size": state}

    def adapt(self, state, kl, progress):
        # A run may go on past its planned end; the loss divides by t.
        return self.step_size * jnp.maximum(1 - progress, 1e-3)


@composition
def mdpo(task: ControlTask | None = None) -> OnPolicy:
    """On-policy MDPO."""
    return OnPolicy(
        Proximal(),
        GAE(),
        Descent(Adam(learning_rate=3e-4), epochs=10, minibatches=32),
        num_steps=256,
        value_clip=0.2,
        standardise="batch",
        normalise_observations=task is not None and isinstance(task.env.action_space, spaces.Box),
        normalise_rewards=True,
    )


def q_logarithm(log_x, q):
    """log_q(x) = (x^(q-1) - 1) / (q - 1) from log x; the logarithm at q = 1."""
    power = jnp.where(jnp.abs(q - 1) < 1e-6, 1.0, q - 1)
    return jnp.where(jnp.abs(q - 1) < 1e-6, log_x, jnp.expm1(power * log_x) / power)


def soft_mirror_loss(log_prob, old_log_prob, value, proximity, temperature, q=1.0):
    """kappa (log_q pi - log_q pi_k) + lam log pi_k - Q of each action drawn (n,), kappa the proximity and lam the temperature."""
    return proximity * (q_logarithm(log_prob, q) - q_logarithm(old_log_prob, q)) + temperature * old_log_prob - value


@part
class SoftMirrorDescent:
    """Mirror descent on replayed states, with entropy."""

    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = STEP
    critic_step: Step = STEP
    value_step: Step = STEP
    proximity: float = hyper(1.0, at_least=0)  # kappa = 1 / t_k: weight of the distance to the policy before
    temperature: float = hyper(0.2, at_least=0)  # lam: weight of the entropy
    tsallis: float = hyper(1.0, above=0)  # q of the logarithm in the proximity
    refresh_every: int = hyper(1_000, at_least=1)  # updates between two renewals of pi_k
    regularisation: float = hyper(1e-3, at_least=0)  # weight of the squared means and log deviations
    actor_value: str = hyper("min", choices=("min", "first"))  # of the critics, in the actor's loss; the authors' code takes the first
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the value network that its target takes in an update

    def refuse(self, env) -> str | None:
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic, k_value = jax.random.split(key, 3)
        actor = GaussianActor(self.actor_network, env.observation_space, env.action_space, k_actor)
        critic = Ensemble(lambda k: ActionValue(self.critic_network, env.observation_space, env.action_space, k), 2, k_critic)
        value = ValueNetwork(self.critic_network, env.observation_space, k_value)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic), "value": self.value_step.init(value)}
        return ActorCritic(actor, (critic, value), actor, value, (), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor.draw(*inputs, key)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def actor_loss(self, actor, learner, batch, key):
        """The mean loss, and the value and log-probability of the actions drawn (n,)."""
        now = draw(actor, batch.observation, key)
        old = jax.vmap(learner.target_actor)(*batch.observation)
        old_log_prob = jax.vmap(lambda d, raw: d.log_prob(raw))(old, now.raw)
        value = jax.vmap(learner.critic[0])(*batch.observation, now.action)
        least = jnp.min(value, axis=1)
        lead = least if self.actor_value == "min" else value[:, 0]
        loss = jnp.mean(soft_mirror_loss(now.log_prob, old_log_prob, lead, self.proximity, self.temperature, self.tsallis))
        shrink = self.regularisation * (jnp.mean(now.distribution.mean**2) + jnp.mean(now.distribution.log_std**2))
        return loss + shrink, (least, now.log_prob, jnp.mean(now.log_prob - old_log_prob))

    def update(self, learner, batch, progress, key):
        critic, value = learner.critic
        y = batch.reward + batch.discount * _value(learner.target_critic, batch.next_observation)
        (critic_loss, q), critic_gradient = jax.value_and_grad(regress, has_aux=True)(critic, batch, y)
        (loss, (least, log_prob, distance)), gradient = jax.value_and_grad(self.actor_loss, has_aux=True)(learner.actor, learner, batch, key)
        soft = jax.lax.stop_gradient(least - self.temperature * log_prob)
        value_gradient = jax.grad(lambda v: jnp.mean(values.squared(_value(v, batch.observation), soft)))(value)

        optimisers, count = learner.optimisers, learner.count + 1
        critic, optimisers = descend(self.critic_step, critic_gradient, optimisers, "critic", critic, progress)
        value, optimisers = descend(self.value_step, value_gradient, optimisers, "value", value, progress)
        actor, optimisers = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)
        old = jax.tree.map(lambda before, now: jnp.where(count % self.refresh_every == 0, now, before), learner.target_actor, actor)
        learner = ActorCritic(actor, (critic, value), old, polyak(learner.target_critic, value, self.tau), (), optimisers, count)
        metrics = {"loss/critic": critic_loss, "loss/actor": loss, "entropy": -jnp.mean(log_prob), "proximity": distance, "value": jnp.mean(q)}
        return learner, y - jnp.mean(q, axis=1), metrics


def _value(network, inputs):
    return jax.vmap(lambda *i: network((), *i)[1])(*inputs)


@composition
def off_policy(task: ControlTask | None = None) -> OffPolicy:
    """Off-policy soft MDPO."""
    return OffPolicy(SoftMirrorDescent(), Drawn())
