"""Off-Policy Average Reward Actor-Critic with Deterministic Policy Search.

Naman Saxena, Subhojyoti Khastigir, Shishir Kolathaya, Shalabh Bhatnagar. 2023. arXiv:2305.12239

For a task without an end the reward of a step, averaged over a long run, is maximised in place of a discounted sum. A
deterministic actor follows the gradient of differential values, which count how much more than the average is earned, and the
average is learnt beside them.

With rho(mu) = lim (1/T) E sum_t r_t, the actor mu, two critics Q_i, the number rho and their slow copies (marked -):

    Q(s, a)  = r - rho + E[ Q(s', mu(s')) ],                  known up to a constant
    grad rho = E_{s ~ d^mu}[ grad_theta mu(s) grad_a Q(s, a) at a = mu(s) ],    d^mu the stationary distribution
    q'       = min_i Q-_i(s', mu-(s'))
    L_Q      = sum_i E[ (r - rho- + q' - Q_i(s, a))^2 ] / 2
    L_rho    = E[ (r - rho + q' - min_i Q-_i(s, a))^2 ] / 2,  moves rho alone
    every `delay` updates: the actor climbs min_i Q_i(s, mu(s)), and the slow copies move, that of rho too

No discount appears. With replayed states in the place of d^mu the gradient is approximate; the paper bounds its error by the
distance between the two policies. The authors' code has one loss, sum_i E[ (r + q' - Q_i(s, a) - rho)^2 ] / 2, which moves
critics and rho together: `rho_update=joint`.

Defaults: the authors' (two layers of 128, Adam 3e-4 for all, minibatches of 256, tau .005, blocks of 1000 steps and then 1000
updates). Our choice: q' is 0 where an episode terminated, as in their code, but not where it was cut, as in it. Such a mask makes
the task episodic, so that rho is no longer an average of it: give tasks that go on. Rewards should be of the order of 1, because
rho moves by at most a step of Adam at an update. With rewards summed over n steps by the replay, rho is their average, n times
that of a step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.data.replay import Replay
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend, needs_box
from polopt.loops.descent import Step
from polopt.loops.exploration import OrnsteinUhlenbeck
from polopt.loops.off_policy import OffPolicy
from polopt.methods.actor_critic.ddpg import action_gradient_loss
from polopt.methods.registry import composition
from polopt.policies.unit import DeterministicActor, UnitPolicy

NETWORK = Feedforward(hidden=(128, 128), activation="relu")


def differential_error(reward, rho, value, next_value, going):
    """r - rho + q' - Q: 0 on average where Q and rho solve the Poisson equation. `going` is 0 where the episode terminated, else 1."""
    return reward - rho + going * next_value - value


class Average(NamedTuple):
    """The average reward and its slow copy."""

    rho: jax.Array
    slow: jax.Array


@part
class AverageReward:
    """A deterministic actor, two critics of differential values, and the average reward."""

    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = STEP
    critic_step: Step = STEP
    rho_step: Step = STEP
    rho_update: str = hyper("separate", choices=("separate", "joint"))  # whether rho has a loss of its own, or shares the critics'
    delay: int = hyper(2, at_least=1)  # updates of the critics for one of the actor and the slow copies
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online networks that the slow ones take in an update

    discount = 1.0  # nothing is discounted: the replay gives 0 where an episode terminated, else 1

    def refuse(self, env) -> str | None:
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        actor = DeterministicActor(self.actor_network, env.observation_space, env.action_space, k_actor)
        critic = Ensemble(lambda k: ActionValue(self.critic_network, env.observation_space, env.action_space, k), 2, k_critic)
        rho = jnp.zeros(())
        steps = {"actor": (self.actor_step, actor), "critic": (self.critic_step, critic), "rho": (self.rho_step, rho)}
        optimisers = {name: step.init(params) for name, (step, params) in steps.items()}
        return ActorCritic(actor, critic, actor, critic, Average(rho, rho), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def value_loss(self, critic, rho, learner, batch):
        """L_Q + L_rho, or the joint loss; the differential errors of the critics and their values, both (n, 2)."""
        q = jax.vmap(critic)(*batch.observation, batch.action)
        next_action = jax.vmap(learner.target_actor)(*batch.next_observation)
        after = jnp.min(jax.vmap(learner.target_critic)(*batch.next_observation, next_action), axis=1)
        if self.rho_update == "joint":
            error = differential_error(batch.reward[:, None], rho, q, after[:, None], batch.discount[:, None])
            return _half_square(batch, error), (error, q)
        error = differential_error(batch.reward[:, None], learner.extra.slow, q, after[:, None], batch.discount[:, None])
        slow = jnp.min(jax.vmap(learner.target_critic)(*batch.observation, batch.action), axis=1)
        of_rho = differential_error(batch.reward, rho, slow, after, batch.discount)
        return _half_square(batch, error) + _half_square(batch, of_rho[:, None]), (error, q)

    def actor_loss(self, actor, critic, batch):
        least = lambda action: jnp.min(jax.vmap(critic)(*batch.observation, action), axis=1)  # noqa: E731
        return action_gradient_loss(least, jax.vmap(actor)(*batch.observation))

    def update(self, learner, batch, progress, key):
        slopes = jax.value_and_grad(self.value_loss, argnums=(0, 1), has_aux=True)
        (loss, (error, q)), (of_critic, of_rho) = slopes(learner.critic, learner.extra.rho, learner, batch)
        critic, optimisers = descend(self.critic_step, of_critic, learner.optimisers, "critic", learner.critic, progress)
        rho, optimisers = descend(self.rho_step, of_rho, optimisers, "rho", learner.extra.rho, progress)
        count = learner.count + 1

        def move(_):
            gradient = jax.grad(self.actor_loss)(learner.actor, critic, batch)
            actor, moved = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)
            slow = polyak((learner.target_actor, learner.target_critic, learner.extra.slow), (actor, critic, rho), self.tau)
            return actor, slow, moved

        def stay(_):
            return learner.actor, (learner.target_actor, learner.target_critic, learner.extra.slow), optimisers

        actor, slow, optimisers = move(None) if self.delay == 1 else jax.lax.cond(count % self.delay == 0, move, stay, None)
        target_actor, target_critic, slow_rho = slow
        learner = ActorCritic(actor, critic, target_actor, target_critic, Average(rho, slow_rho), optimisers, count)
        metrics = {"loss/critic": loss, "average_reward": rho, "value": jnp.mean(q)}  # the value may drift: nothing holds its constant
        return learner, error[:, 0], metrics


def _half_square(batch, error):
    """The weighted mean of half the squared errors (n, members), summed over members."""
    return 0.5 * jnp.mean(batch.weight * jnp.sum(error**2, axis=1))


@composition
def aro_ddpg(task: ControlTask | None = None) -> OffPolicy:
    """ARO-DDPG with the authors' sizes."""
    return OffPolicy(AverageReward(), OrnsteinUhlenbeck(), Replay(capacity=100_000), num_steps=1_000, updates=1_000, warmup=5_000)
