"""RvS: What is Essential for Offline RL via Supervised Learning?.

Scott Emmons, Benjamin Eysenbach, Ilya Kostrikov, Sergey Levine. 2021. arXiv:2112.10751

Cloning that is told what came of the action: the average reward from the step to the end of the episode. In deployment it is told the average
that it shall reach. (The paper's RvS-R; its other form is told a goal.)

    omega_t = 1 / (H - t) sum_{u >= t} r_u,    L_pi = -E_D[ log pi(a_t | s_t, omega_t) ]

omega enters less its mean and divided by its deviation over the log. The target is the average reward to reach; without one it is that of the best
logged episode. Defaults: two layers of 1024 and Adam 1e-3 as in the paper; minibatches of 256 (the paper's are of 16,384) and no dropout.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward
from polopt.core.parts import part, replace
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend
from polopt.loops.descent import Step
from polopt.loops.windows import OfflineWindows, episode_outcomes, outcomes
from polopt.methods.offline.bc import one_action
from polopt.methods.registry import composition
from polopt.policies.conditioned import OutcomePolicy, conditioned_actor


class Spread(NamedTuple):
    """Mean and deviation of omega over the log, and the target."""

    mean: jax.Array
    deviation: jax.Array
    target: jax.Array


def told_loss(actor, inputs, action, omega):
    """-E[ log pi(a | s, omega) ] for inputs (vectors, pictures), actions and omega with a leading axis."""
    vectors, pictures = inputs
    inputs = jnp.concatenate([vectors, omega[:, None]], axis=1), pictures
    return -jnp.mean(jax.vmap(lambda v, p, a: actor(v, p).log_prob(a))(*inputs, action))


@part
class AverageTold:
    """An actor that is told the average reward of what is left."""

    network: Feedforward = Feedforward(hidden=(1024, 1024), activation="relu")
    step: Step = replace(STEP, {"learning_rate": 1e-3})
    target: float | None = None  # average reward to reach; none for the best logged episode's

    context = 1

    def refuse(self, data) -> str | None:
        return one_action(data)

    def init(self, data, key) -> ActorCritic:
        actor = conditioned_actor(self.network, data.observation_space, data.action_space, key)
        to_go, left = outcomes(data.reward, data.ended)
        total, length = episode_outcomes(data)
        target = jnp.max(total / length) if self.target is None else jnp.asarray(self.target, jnp.float32)
        spread = Spread(jnp.mean(to_go / left), jnp.std(to_go / left) + 1e-6, target)
        return ActorCritic(actor, (), (), (), spread, {"actor": self.step.init(actor)}, jnp.zeros((), jnp.int32))

    def policy(self, learner, normaliser):
        spread = learner.extra
        return OutcomePolicy(learner.actor, normaliser, (spread.target - spread.mean) / spread.deviation)

    def update(self, learner, batch, progress, key):
        now = jax.tree.map(lambda x: x[:, -1], batch)
        omega = (now.to_go / now.left - learner.extra.mean) / learner.extra.deviation
        loss, gradient = jax.value_and_grad(told_loss)(learner.actor, now.inputs, now.action, omega)
        actor, optimisers = descend(self.step, gradient, learner.optimisers, "actor", learner.actor, progress)
        return ActorCritic(actor, (), (), (), learner.extra, optimisers, learner.count + 1), {"loss/policy": loss}


@composition
def rvs(task: DataTask | None = None) -> OfflineWindows:
    """RvS-R."""
    return OfflineWindows(AverageTold(), batch_size=256)
