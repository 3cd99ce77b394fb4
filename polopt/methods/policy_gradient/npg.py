"""A Natural Policy Gradient.

Sham Kakade. 2001. Advances in Neural Information Processing Systems 14

Steepest ascent in the space of policies instead of that of parameters, the baseline: the gradient is multiplied by the inverse of the
Fisher matrix, and the step has a fixed size. A step budgeted in KL with a line search is `trpo`.

With d the discounted state distribution and A the advantage:

    F      = E_{s~d, a~pi}[ grad log pi(a|s) grad log pi(a|s)^T ]
    theta <- theta + eta F^+ grad J
    for softmax logits F^+ grad J = A / (1 - gamma) up to a constant in each state: pi(a|s) is multiplied by exp( eta A(s, a) / (1 - gamma) )

In each direction the step is as long as the policy is insensitive to it, so that plateaus of nearly deterministic policies are left as fast as
any other place. The mean over a batch stands for the expectation under the normalised d, which takes the factor 1 / (1 - gamma) into eta.
Advantages are standardised, so eta is in units of their deviation. F^+ grad J is found by conjugate gradients on Fisher-vector products,
with a little damping because a batch leaves directions unseen.
"""

from __future__ import annotations

from polopt.core import spaces
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import LogLikelihood
from polopt.loops.trust_region import NaturalGradient, Regression
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.optim.adam import Adam


@composition
def npg(task: ControlTask | None = None) -> OnPolicy:
    """The natural policy gradient on batches of 2048 steps."""
    continuous = task is not None and isinstance(task.env.action_space, spaces.Box)
    return OnPolicy(
        LogLikelihood(),
        GAE(),
        NaturalGradient(Regression(Adam(learning_rate=3e-4, anneal=False))),
        num_steps=256,
        standardise="batch",
        normalise_observations=continuous,
        normalise_rewards=True,
    )
