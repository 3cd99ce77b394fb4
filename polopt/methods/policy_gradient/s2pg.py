"""Time-Efficient Reinforcement Learning with Stochastic Stateful Policies.

Firas Al-Hafez, Guoping Zhao, Jan Peters, Davide Tateo. 2023. arXiv:2311.04082

The internal state of a policy is drawn at random, as a part of the action, and stored as data. A policy with memory is then an ordinary
policy of a larger process: its gradient needs no backpropagation through time, and all steps are computed at once.

With z the internal state, s the observation (and the previous action), z_0 = 0 at the start of an episode:

    (a_t, z_{t+1}) ~ pi(a, z' | s_t, z_t) = pi(a | s_t, z_t) pi(z' | s_t, z_t)       one network, two heads
    grad J  = E[ sum_t grad log pi(a_t, z_{t+1} | s_t, z_t) A(s_t, z_t, a_t, z_{t+1}) ]       no gradient through z
    r       = exp( log pi(a, z') - log pi_old(a, z') ),    V = V(s, z)                    PPO as it is

The price is variance, which grows with the noise in z. The note z' is Gaussian with a learnt deviation that starts at 0.1, its entropy has a weight
of its own, and z is never normalised. After each pass stored z may move towards fresh draws, z <- (1 - tau) z + tau z_new (`refresh`), where the
stored draws and their old probabilities stay, as in the released code. With `memory.size` 0 it is PPO.

Off-policy (`s2pg:sac`, `s2pg:td3`) the note is in [-1, 1] as the action is, and the critics judge both:

    SAC-RS   L_pi = E[ alpha log pi(a|s, z) + alpha_z log pi(z'|s, z) - min_i Q_i(s, z, a, z') ],   each temperature with its own target -dim
    TD3-RS   noise on action and note, in exploring and in the targets

The replay keeps notes of older policies: a smaller `replay.capacity` keeps them fresher. A critic that sees more than the actor, and imitation
(GAIL), are not here.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from polopt.core.parts import part, replace
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP, ActorCritic, Draw, draw
from polopt.loops.exploration import Drawn, GaussianNoise
from polopt.loops.memory import Notes
from polopt.loops.noting import NotingOffPolicy
from polopt.loops.on_policy import OnPolicy
from polopt.loops.temperature import Learned, Temperature
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.actor_critic.sac import SoftActorCritic
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.methods.policy_gradient.ppo import ppo
from polopt.methods.registry import composition


def apart(found: Draw, numbers: int):
    """Log-probabilities of the action, the first `numbers` of a draw, and of the note behind it: (n, 2)."""

    def of(piece):
        return jax.vmap(lambda d, raw: jax.tree.map(lambda x: x[piece] if x.ndim else x, d).log_prob(raw[piece]))(found.distribution, found.raw)

    return jnp.stack([of(slice(numbers)), of(slice(numbers, None))], axis=1)


@part
class NotingActorCritic(SoftActorCritic):
    """SAC whose notes have a temperature of their own."""

    note_temperature: Temperature = Learned()

    def init(self, env, key) -> ActorCritic:
        learner = super().init(env, key)
        return dataclasses.replace(learner, extra=(learner.extra, self.note_temperature.init()))

    def heated(self, learner, log_prob, progress):
        action, note = learner.extra
        numbers, total = _numbers(learner.actor), math.prod(learner.actor.action_space.shape)
        action = self.temperature.update(action, log_prob[:, 0], numbers, progress)
        return action, self.note_temperature.update(note, log_prob[:, 1], total - numbers, progress)

    def heat(self, extra):
        return {"temperature": self.temperature.value(extra[0]), "temperature/note": self.note_temperature.value(extra[1])}

    def price(self, learner, log_prob):
        """alpha log pi(a) + alpha_z log pi(z'), (n,) of (n, 2)."""
        return log_prob @ jnp.stack([self.temperature.value(learner.extra[0]), self.note_temperature.value(learner.extra[1])])

    def target(self, learner, batch, key):
        """y for each transition (n,)."""
        k_action, k_subset = jax.random.split(key)
        after = draw(learner.actor, batch.next_observation, k_action)
        value = self.least(jax.vmap(learner.target_critic)(*batch.next_observation, after.action), k_subset)
        return batch.reward + batch.discount * (value - self.price(learner, apart(after, _numbers(learner.actor))))

    def actor_loss(self, actor, learner, batch, key):
        """L_pi, and the log-probabilities of the actions and notes drawn (n, 2)."""
        now = draw(actor, batch.observation, key)
        log_prob = apart(now, _numbers(actor))
        value = self.judged(jax.vmap(learner.critic)(*batch.observation, now.action))
        return jnp.mean(self.price(learner, log_prob) - value), log_prob


def _numbers(actor) -> int:
    """How many of an actor's numbers are the action; the others are the note."""
    return math.prod(getattr(actor.action_space, "action", actor.action_space).shape)


@composition
def s2pg(task: ControlTask | None = None) -> OnPolicy:
    """PPO of a policy that remembers by notes to itself, with 10 passes over the data."""
    return dataclasses.replace(replace(ppo(task), {"epochs": 10}), memory=Notes())


@composition
def sac(task: ControlTask | None = None) -> NotingOffPolicy:
    """SAC of a policy that remembers by notes to itself."""
    return NotingOffPolicy(NotingActorCritic(), Drawn())


@composition
def td3(task: ControlTask | None = None) -> NotingOffPolicy:
    """TD3 of a policy that remembers by notes to itself."""
    return NotingOffPolicy(Deterministic(Smoothed(), critic_step=STEP, critics=2, delay=2), GaussianNoise())
