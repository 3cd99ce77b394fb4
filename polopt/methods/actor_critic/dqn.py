"""Human-level control through deep reinforcement learning.

Volodymyr Mnih, Koray Kavukcuoglu, David Silver, Andrei A. Rusu, Joel Veness, Marc G. Bellemare, Alex Graves, et al. 2015. Nature 518.

Q-learning with a network: minibatches from a replay break the correlation of successive steps, and a copy of the network that moves
only now and then makes the targets stand still.

    y = r + gamma (1 - term) Q-(s', a*)
    a* = argmax_a Q-(s', a);   with `double` (arXiv:1509.06461) argmax_a Q(s', a)
    L = E[ Huber_1(Q(s, a) - y) ]
    every `target_every` updates  Q- <- Q

Prioritised replay (arXiv:1511.05952) and n-step returns are fields of the replay. Defaults: sizes for vector observations (two layers of 64
on a replay of 100,000, an update of 128 transitions for each of 4 copies), epsilon from 1 to .05 over the first fifth of the run.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import ActionValues
from polopt.data.replay import Replay
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP
from polopt.loops.descent import Step
from polopt.loops.exploration import EpsilonGreedy
from polopt.loops.off_policy import OffPolicy
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.policies.actor import Normaliser


class GreedyPolicy(eqx.Module):
    """The action of the highest value."""

    critic: ActionValues
    normaliser: Normaliser
    actions: int = eqx.field(static=True)

    @property
    def observation_space(self):
        return self.normaliser.space

    @property
    def action_space(self):
        return spaces.Discrete(self.actions)

    def initial_carry(self):
        return ()

    def act(self, carry, observation, key=None):
        return carry, greedy(self.critic(*self.normaliser(observation)))


def greedy(value):
    """argmax over the last axis, as an action."""
    return jnp.argmax(value, axis=-1).astype(jnp.int32)


def backup(reward, discount, next_target, next_online, double: bool):
    """r + discount Q-(s', a*) with Q- and Q of the next states (n, actions)."""
    best = greedy(next_online if double else next_target)
    return reward + discount * jnp.take_along_axis(next_target, best[:, None], axis=1)[:, 0]


class Learner(eqx.Module):
    critic: ActionValues
    target: ActionValues
    optimiser: object
    count: jax.Array


@part
class QLearning:
    """Q-learning of whole-number actions."""

    network: Feedforward = Feedforward(activation="relu")
    step: Step = replace(STEP, {"max_grad_norm": 10.0})
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    target_every: int = hyper(250, at_least=1)  # updates between two copies of the network to the target
    double: bool = False  # the online network chooses the action whose target value counts

    def refuse(self, env) -> str | None:
        if isinstance(env.action_space, spaces.Discrete):
            return None
        return f"takes one whole-number action, but {env.name} has {env.action_space}. Take sac or ppo"

    def init(self, env, key) -> Learner:
        critic = ActionValues(self.network, env.observation_space, env.action_space, key)
        return Learner(critic, critic, self.step.init(critic), jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return greedy(learner.critic(*inputs))

    def policy(self, learner, normaliser):
        return GreedyPolicy(learner.critic, normaliser, learner.critic.head.bias.shape[-1])

    def update(self, learner, batch, progress, key):
        after = jax.vmap(learner.target)(*batch.next_observation)
        online = jax.vmap(learner.critic)(*batch.next_observation) if self.double else after
        y = backup(batch.reward, batch.discount, after, online, self.double)

        def loss(critic):
            value = jnp.take_along_axis(jax.vmap(critic)(*batch.observation), batch.action[:, None], axis=1)[:, 0]
            return jnp.mean(batch.weight * values.huber(value, y)), value

        (total, value), gradient = jax.value_and_grad(loss, has_aux=True)(learner.critic)
        critic, optimiser = self.step.update(gradient, learner.optimiser, learner.critic, progress)
        count = learner.count + 1
        target = jax.tree.map(lambda old, new: jnp.where(count % self.target_every == 0, new, old), learner.target, critic)
        return Learner(critic, target, optimiser, count), y - value, {"loss/critic": total, "value": jnp.mean(value)}


@composition
def dqn(task: ControlTask | None = None) -> OffPolicy:
    """DQN for vector observations."""
    return OffPolicy(QLearning(), EpsilonGreedy(fraction=0.2), Replay(capacity=100_000), num_envs=4, batch_size=128, warmup=1_000)
