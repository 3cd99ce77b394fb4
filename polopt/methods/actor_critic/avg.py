"""Deep Policy Gradient Methods Without Batch Updates, Target Networks, or Replay Buffers.

Gautham Vasan, Mohamed Elsayed, Alireza Azimi, Jiamin He, Fahim Shariar, Colin Bellinger, Martha White, A. Rupam Mahmood. 2024. arXiv:2411.15370

Action Value Gradient learns from each transition once, as it happens, and forgets it. Three normalisations keep that stable: of
observations, of the last features of both networks, and of the temporal-difference errors by the spread of the return.

With phi = features / |features|, a = tanh(u), u = mean(phi) + std(phi) eps, and after a step (o, a, r, o') with the eps of the
action that was taken:

    r_e     = r - alpha log pi(a|o),   G = sum of r_e in the episode so far,   gamma' = 0 where it terminated, else gamma
    sigma^2 = Var(r_e) + Var(gamma') mean(G^2 of whole episodes),   at least 1e-4; 1 while no return is known and it is at most .01
    delta   = ( r + gamma (1 - term) (Q(o', a~') - alpha log pi(a~'|o')) - Q(o, a) ) / sigma,   a~' drawn from pi
    L_pi    = alpha log pi(a|o) - Q(o, a),   through a, with eps as it was
    L_Q     = delta^2,                       with a held fixed

Both losses are taken before either network moves. Observations are counted before they are normalised. Our choice: G is reset and
its square recorded also where an episode is cut; the authors' code does so at terminations alone, so that no return is ever known
where there are only time limits.

Defaults: two layers of 256 with leaky rectifiers, Adam without a first moment, alpha .3. The paper's step sizes (actor, critic,
alpha) differ much between tasks: 1.1e-5, 7.7e-5, .3 for Hopper and Walker2d; 6.3e-3, 8.7e-3, .07 for Ant, HalfCheetah and
Humanoid. Ours, 2e-4 and 1e-3, lie between them.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.features import UnitFeatures, UnitTorso
from polopt.core.networks import Feedforward, Linear
from polopt.core.normalise import RunningStatistics
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import ActionValue
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend, needs_box
from polopt.loops.descent import Step
from polopt.loops.incremental import Incremental
from polopt.methods.actor_critic.sac import soft_value
from polopt.methods.registry import composition
from polopt.policies.unit import GaussianActor, UnitPolicy

ADAM = replace(STEP, {"beta1": 0.0})


class ReturnScale(NamedTuple):
    """What sigma follows from: statistics of r_e, of gamma' and of G^2, and G."""

    reward: RunningStatistics
    discount: RunningStatistics
    square: RunningStatistics
    so_far: jax.Array

    @staticmethod
    def start() -> "ReturnScale":
        return ReturnScale(*(RunningStatistics.start(1) for _ in range(3)), jnp.zeros(()))

    def push(self, reward, discount, ended) -> "ReturnScale":
        """After one step with its r_e and gamma'."""
        total = self.so_far + reward
        square = jax.tree.map(lambda new, old: jnp.where(ended, new, old), _counted(self.square, total**2), self.square)
        return ReturnScale(_counted(self.reward, reward), _counted(self.discount, discount), square, jnp.where(ended, 0.0, total))

    def sigma(self) -> jax.Array:
        square = return_variance(self.reward.variance[0], self.discount.variance[0], self.square.mean[0])
        return jnp.where((self.square.count == 0) & (square <= 0.01), 1.0, jnp.sqrt(jnp.maximum(square, 1e-4)))


def return_variance(reward_variance, discount_variance, squared_return):
    """Var(r) + Var(gamma) E[G^2], return-based scaling (Schaul et al., arXiv:2105.05347)."""
    return reward_variance + discount_variance * squared_return


def _counted(statistics: RunningStatistics, x) -> RunningStatistics:
    return statistics.update(jnp.reshape(x, (1, 1)))


@part
class ActionValueGradient:
    """A stochastic actor and one critic, both with unit features."""

    actor_network: UnitFeatures = UnitFeatures()
    critic_network: UnitFeatures = UnitFeatures()
    actor_step: Step = replace(ADAM, {"learning_rate": 2e-4})
    critic_step: Step = replace(ADAM, {"learning_rate": 1e-3})
    alpha: float = hyper(0.3, at_least=0)  # weight of the entropy
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    scale_errors: bool = True  # divide the temporal-difference error by sigma

    def refuse(self, env) -> str | None:
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        plain = Feedforward(hidden=(1,))  # only the head's shape is kept of it
        actor = _with_features(GaussianActor(plain, env.observation_space, env.action_space, k_actor), self.actor_network, env, 0, k_actor)
        actions = spaces.size(env.action_space)
        critic = ActionValue(plain, env.observation_space, env.action_space, k_critic)
        critic = _with_features(critic, self.critic_network, env, actions, k_critic)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic)}
        return ActorCritic(actor, critic, (), (), ReturnScale.start(), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor.draw(*inputs, key)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def actor_loss(self, actor, critic, inputs, key):
        """L_pi of the action that the key draws; that action and its log-probability."""
        action, log_prob = _drawn(actor, inputs, key)
        return -soft_value(critic(*inputs, action), log_prob, self.alpha), (action, log_prob)

    def update(self, learner, transition, progress, key):
        slopes = jax.value_and_grad(self.actor_loss, has_aux=True)
        (actor_loss, (action, log_prob)), of_actor = slopes(learner.actor, learner.critic, transition.inputs, transition.key)

        going = self.discount * (1.0 - transition.terminated)
        scale = learner.extra.push(transition.reward - self.alpha * log_prob, going, transition.ended)
        sigma = scale.sigma() if self.scale_errors else jnp.ones(())

        after, after_log_prob = _drawn(learner.actor, transition.after, key)
        y = transition.reward + going * soft_value(learner.critic(*transition.after, after), after_log_prob, self.alpha)
        loss, of_critic = jax.value_and_grad(lambda critic: ((y - critic(*transition.inputs, action)) / sigma) ** 2)(learner.critic)

        actor, optimisers = descend(self.actor_step, of_actor, learner.optimisers, "actor", learner.actor, progress)
        critic, optimisers = descend(self.critic_step, of_critic, optimisers, "critic", learner.critic, progress)
        metrics = {"loss/actor": actor_loss, "loss/critic": loss, "entropy": -log_prob, "sigma": sigma}
        return ActorCritic(actor, critic, (), (), scale, optimisers, learner.count + 1), metrics


def _drawn(actor, inputs, key):
    """(action, log pi) of the action that `actor.draw` gives for the key."""
    distribution = actor(*inputs)
    raw = distribution.sample(key)
    return distribution.action(raw), distribution.log_prob(raw)


def _with_features(network, spec: UnitFeatures, env, more: int, key):
    """The network with features of this shape, of `more` numbers beside the observation's, and a head that is orthogonal with a gain of 1."""
    k_torso, k_head = jax.random.split(key)
    pictures = tuple(image.shape for image in spaces.images(env.observation_space))
    torso = UnitTorso(spec, spaces.size(env.observation_space) + more, pictures, k_torso)
    head = Linear(torso.features, network.head.bias.shape[0], k_head, gain=1.0)
    return eqx.tree_at(lambda n: (n.torso, n.head), network, (torso, head))


@composition
def avg(task: ControlTask | None = None) -> Incremental:
    """AVG."""
    return Incremental(ActionValueGradient())
