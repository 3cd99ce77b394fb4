"""Nash Learning from Human Feedback.

Remi Munos, Michal Valko, Daniele Calandriello, Mohammad Gheshlaghi Azar, Mark Rowland, Zhaohan Daniel Guo, et al. 2023. arXiv:2312.00886

Instead of a reward, a preference model P(y > y' | x), and the policy that no other beats: the Nash equilibrium of

    P(pi > pi') - tau KL(pi || mu) + tau KL(pi' || mu),     mu the first policy,     pi*(y) ~ mu(y) exp( P(y > pi*) / tau )

Nash-MD is mirror descent against a geometric mixture of the policy with mu; its last iterate converges:

    pi_t^mix ~ pi_t^(1 - eta tau) mu^(eta tau)          pi_{t+1} ~ pi_t^mix exp( eta P(. > pi_t^mix) )

with eta_t = 2 / (tau (t + 2)): KL(pi* || pi_T) <= 8 / (tau^2 (T + 1)). For language models, y ~ pi and y' ~ pi^a, the mixture of every token's
distribution with share a of mu, and one climbs

    grad log pi(y | x) ( P(y > y' | x) - 1/2 - tau log( pi(y | x) / mu(y | x) ) )

with the log-ratio of the whole response. a = 0 is self-play, a = 1 the best response to mu. `nash_md:ema` lets a moving average of the policy
draw y' instead (Nash-EMA-PG).

Defaults: tau .008 and a = .125, the paper's for summaries as far as known; 64 prompts, Adam 5e-7.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.preference import PREVIOUS, START, Averaged, Minibatches, Preference
from polopt.loops.preference_sources import Comparisons, Draws, Mixture, Online
from polopt.methods._language import sized
from polopt.methods.registry import composition


def mirror_step(log_pi, log_mu, preferences, eta, tau):
    """log pi_{t+1} (K,) of Nash-MD from log pi_t and log mu (K,) and P (K, K). eta tau above 1 counts as 1: the mixture is mu then."""
    share = jnp.minimum(eta * tau, 1.0)
    mixed = jax.nn.log_softmax((1 - share) * log_pi + share * log_mu)
    return jax.nn.log_softmax(mixed + eta * preferences @ jnp.exp(mixed))


def step_size(t, tau):
    """eta_t = 2 / (tau (t + 2))."""
    return 2 / (tau * (t + 2))


@part
class AgainstOpponent:
    """-log pi(y) ( P(y > y') - 1/2 - tau log(pi(y) / mu(y)) ), the bracket a constant: y is the first response, y' the second."""

    tau: float = hyper(0.008, at_least=0)  # strength of the KL penalty

    anchors = (START,)
    responses = 2

    def __call__(self, columns):
        log_prob = columns.log_prob[:, 0]
        advantage = columns.score[:, 0] - 0.5 - self.tau * columns.ratio()[:, 0]
        return -jax.lax.stop_gradient(advantage) * log_prob


@composition
def nash_md(task: LanguageTask | None = None) -> Preference:
    """Nash-MD-PG against the geometric mixture with the first policy."""
    return sized(task, Preference(Online(opponent=Mixture(0.125), annotator=Comparisons(sampled=False)), AgainstOpponent(), Minibatches()))


@composition
def ema(task: LanguageTask | None = None) -> Preference:
    """Nash-EMA-PG: against a moving average of the policy."""
    source = Online(opponent=Draws(PREVIOUS), annotator=Comparisons(sampled=False))
    return sized(task, Preference(source, AgainstOpponent(), Minibatches(), schedule=Averaged(0.999)))
