"""Submodular Reinforcement Learning.

Manish Prajapat, Mojmir Mutny, Melanie N. Zeilinger, Andreas Krause. 2023. arXiv:2307.13372

What a trajectory is worth is a set function F of the states it visits, such as coverage, whose value falls with repetition. The marginal
gain of each newly visited state, given those before it, is the reward, and policy gradient on it is right although it depends on the history.

    F(s | X) = F(X u {s}) - F(X),    J = E[ F(tau) ],    F(tau) = F({s_0}) + sum_j F(s_{j+1} | tau_{0:j})
    grad J   = E[ sum_i grad log pi(a_i | s_i, i) ( sum_{j >= i} F(s_{j+1} | tau_{0:j}) - b(tau_{0:i}) ) ]

The environment pays the gains: `coverage:grid`, or `polopt.envs.set_rewards.SetRewards` around any environment with any F; where rewards are
those of an ordinary environment F is modular, and the method is REINFORCE. What the environment shows makes the policy Markov with the time
(SubPO-M: clock, table) or dependent on the history (SubPO-NM: history; network.core=gru on state). The baseline b is a learnt value of what the
environment shows: right whatever that is, a critic of F only where it is all that F depends on (visited). It also goes on through time limits.
With discount=0 each score is multiplied by its own gain only, as the paper's tabular script does in expectation.

Variants: `modpo`, the paper's baseline, is paid the modular part F({s_{j+1}}); `deep` has the advantages of its larger experiments.
"""

from __future__ import annotations

from polopt.core.networks import Network
from polopt.core.parts import part
from polopt.envs.set_rewards import SetRewards, with_mode
from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import LogLikelihood
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.optim.adam import Adam

HORIZON = 40  # where the task has none of its own
NETWORK = Network(hidden=(64, 32))


@part
class ModularRewards(OnPolicy):
    """Learns from each visited element's own value; evaluations are still paid as the environment pays."""

    def collect(self, env, state, key):
        return super().collect(with_mode(env, "modular"), state, key)


def _composed(task: ControlTask | None, loop):
    dynamics = None if task is None else getattr(task.env, "dynamics", None)
    known = isinstance(dynamics, SetRewards)
    return loop(
        LogLikelihood(),
        GAE(discount=1.0, lam=1.0),
        Descent(Adam(learning_rate=0.02, anneal=False, max_grad_norm=None), epochs=1, minibatches=1),
        network=NETWORK,
        critic_network=NETWORK,
        num_envs=3000 if known else 32,  # whole trajectories an iteration; on other tasks they need not be as many
        num_steps=dynamics.horizon if known else HORIZON,
        standardise="none",
    )


@composition
def subpo(task: ControlTask | None = None) -> OnPolicy:
    """Policy gradient on marginal gains to go."""
    return _composed(task, OnPolicy)


@composition
def modpo(task: ControlTask | None = None) -> ModularRewards:
    """The baseline: the same on the modular part of F."""
    return _composed(task, ModularRewards)


@composition
def deep(task: ControlTask | None = None) -> OnPolicy:
    """Discounted generalised advantages and an entropy bonus."""
    return OnPolicy(
        LogLikelihood(),
        GAE(discount=0.99, lam=0.95),
        Descent(Adam(learning_rate=3e-4), epochs=1, minibatches=1),
        num_envs=16,
        num_steps=128,
        entropy_coefficient=0.01,
        standardise="batch",
    )
