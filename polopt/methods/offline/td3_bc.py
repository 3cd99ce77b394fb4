"""A Minimalist Approach to Offline Reinforcement Learning.

Scott Fujimoto, Shixiang Shane Gu. 2021. arXiv:2106.06860

TD3 on a log, with one term more in the actor's loss: the actor climbs its critic and stays near the logged action. The critic's term is
divided by the mean size of its values, so that one weight serves rewards of any scale.

    L_pi   = -lambda E_D[ Q_1(s, pi(s)) ] + E_D[ (pi(s) - a)^2 ],   lambda = alpha / E_D[ |Q_1(s, pi(s))| ], held fixed
    critic: TD3's, smoothed targets from the smaller of two slow critics
    states: (s - mean) / (deviation + .001) of the dataset

Actions are in [-1, 1], and the squared distance is averaged over their entries, as in the authors' code. alpha = 0 leaves deterministic
cloning. What the actor is pulled to is a part, for papers that choose another action than the logged one.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import STEP
from polopt.loops.offline import Offline
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.methods.registry import composition


class Anchor(Protocol):
    """What the actor's actions (n, ...) are pulled to (n, ...), and how strongly each (n,)."""

    def __call__(self, critic, action, batch) -> tuple[jax.Array, jax.Array]: ...


@part
class LoggedAction:
    """The logged action, all alike."""

    def __call__(self, critic, action, batch):
        return batch.action, jnp.ones(batch.reward.shape)


def distance(action, anchor):
    """The squared distance of actions (n, ...), averaged over their entries: (n,)."""
    return jnp.mean((action - anchor).reshape(action.shape[0], -1) ** 2, axis=1)


@part
class ClimbNear:
    """The actor climbs its critic, whose values are brought to size alpha, and is pulled to an anchor."""

    anchor: Anchor = LoggedAction()
    alpha: float = hyper(2.5, at_least=0)  # weight of the critic against the pull

    def __call__(self, critic, action, batch):
        value = critic(action)
        scale = self.alpha / jnp.maximum(jax.lax.stop_gradient(jnp.mean(jnp.abs(value))), 1e-8)
        anchor, strength = self.anchor(critic, action, batch)
        return -scale * jnp.mean(value) + jnp.mean(strength * distance(action, anchor))


@composition
def td3_bc(task: DataTask | None = None) -> Offline:
    """TD3+BC."""
    return Offline(Deterministic(Smoothed(), ClimbNear(), critic_step=STEP, critics=2, delay=2), normalise_observations=True)
