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

This is the on-policy method. The off-policy one (a replay buffer, reparameterised actions, soft MDPO with SAC as the case where the
weight of the proximity equals the temperature) is not here yet: it needs the replay loop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.objectives import surrogates
from polopt.optim.adam import Adam


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
