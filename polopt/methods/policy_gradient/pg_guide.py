"""The Definitive Guide to Policy Gradients in Deep Reinforcement Learning: Theory, Algorithms and Implementations.

Matthias Lehmann. 2024. arXiv:2401.13662

Five on-policy methods in one frame, so that what differs between them is the actor's objective alone: a weight w, a function f of the
policy and a regulariser, on the same networks, advantages, normalisation and step. Here that frame is a suite of compositions.

    maximise E[ sum_t w_t f(pi(a_t|s_t)) ]
    reinforce   w = return             f = log pi         no regulariser                       1 pass, no critic
    a2c         w = A                  f = log pi         entropy                              1 pass
    trpo        w = A                  f = r              KL(old || new) <= delta              1 natural step
    ppo         w = A                  f = clipped r      the clip                             10 passes
    vmpo        w = softmax(A / eta)   f = log pi         Lagrangian KL(old || new) <= eps     10 passes over the better half; see `polopt.loops.vmpo`

The frame's value loss is half the mean squared error; the deviation of continuous actions does not depend on the state, as everywhere here.
Advantages are standardised but for V-MPO, where eta scales them. Iterations report the KL they spend as `kl/iteration`.

The key itself is `ppo`, whose surrogate also takes the guide's other regularisers: `ABLATION` switches them for `polopt.suite`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Network
from polopt.core.parts import hyper
from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import ImportanceWeighted, LogLikelihood, stateless
from polopt.loops.trust_region import Regression, TrustRegion
from polopt.loops.vmpo import VMPO
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.objectives import surrogates
from polopt.optim.adam import Adam

OBJECTIVES = tuple(f"pg_guide:{name}" for name in ("reinforce", "a2c", "trpo", "ppo", "vmpo"))
ABLATION = {
    "PPO": ("pg_guide:ppo", {}),
    "without clip": ("pg_guide:ppo", {"clip": None}),
    "KL penalty, no clip": ("pg_guide:ppo", {"clip": None, "kl_coefficient": 1.0}),
    "KL penalty and clip": ("pg_guide:ppo", {"kl_coefficient": 1.0}),
    "entropy bonus": ("pg_guide:ppo", {"entropy_coefficient": 0.01}),
    "raw advantages": ("pg_guide:ppo", {"standardise": "none"}),
}
"""The guide's study of regularisation: what each row changes in the suite's PPO."""


@stateless
class Regularised:
    """The importance-weighted surrogate with the regularisers of the guide's study: a clip, and a penalty on KL(old || new)."""

    clip: float | None = hyper(0.2, above=0)  # eps: the ratio earns nothing beyond 1 +- clip; none for no clip
    kl_coefficient: float = hyper(0.0, at_least=0)  # weight of the penalty

    def loss(self, state, update):
        sample = update.log_prob, update.old_log_prob, update.advantage
        loss = surrogates.importance_weighted(*sample) if self.clip is None else surrogates.clipped(*sample, self.clip)
        kl = jax.vmap(lambda old, new: old.kl(new))(update.old_distribution, update.distribution)
        return loss + self.kl_coefficient * kl, {"kl_penalty": self.kl_coefficient * jnp.mean(kl)}


@composition
def pg_guide(task: ControlTask | None = None) -> OnPolicy:
    """The suite's best default, `pg_guide:ppo`."""
    return ppo(task)


@composition
def reinforce(task: ControlTask | None = None) -> OnPolicy:
    """REINFORCE: returns without a critic, one environment, one step a batch."""
    return _frame(task, LogLikelihood(), _descent(1, 1), lam=1.0, critic=False, num_envs=1)


@composition
def a2c(task: ControlTask | None = None) -> OnPolicy:
    """A2C: one pass, and an entropy bonus."""
    return _frame(task, LogLikelihood(), _descent(1), entropy_coefficient=0.1)


@composition
def trpo(task: ControlTask | None = None) -> OnPolicy:
    """TRPO: a natural step inside a KL budget."""
    return _frame(task, ImportanceWeighted(), TrustRegion(Regression(Adam(), minibatches=8)))


@composition
def ppo(task: ControlTask | None = None) -> OnPolicy:
    """PPO: the clip, and 10 passes."""
    return _frame(task, Regularised(), _descent(10))


@composition
def vmpo(task: ControlTask | None = None) -> OnPolicy:
    """V-MPO: learnt weights and multipliers, and 10 passes."""
    continuous = task is not None and isinstance(task.env.action_space, spaces.Box)
    surrogate = VMPO(initial_multiplier=1.0 if continuous else 5.0)
    return _frame(task, surrogate, _descent(10, value_coefficient=1.0), standardise="none")


def _descent(epochs: int, minibatches: int = 8, **more) -> Descent:
    return Descent(Adam(), epochs=epochs, minibatches=minibatches, **more)


def _frame(task: ControlTask | None, surrogate, improver, *, lam: float = 0.95, **more) -> OnPolicy:
    """What all five share."""
    space = None if task is None else task.env.action_space
    return OnPolicy(
        surrogate,
        GAE(lam=lam),
        improver,
        network=Network((32,) * 4, "swish"),
        critic_network=Network((256,) * 5, "swish"),
        normalise_observations=True,
        normalise_rewards=True,
        bounds="squash" if isinstance(space, spaces.Box) and space.bounded else "clip",
        measure_kl=True,
        **{"num_envs": 8, "num_steps": 2048, **more},
    )
