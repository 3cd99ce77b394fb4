"""A General Theoretical Paradigm to Understand Learning from Human Preferences.

Mohammad Gheshlaghi Azar, Mark Rowland, Bilal Piot, Daniel Guo, Daniele Calandriello, Michal Valko, Remi Munos. 2023. arXiv:2310.12036

Maximise E[ Psi(p(y > y')) ] - tau KL(pi || pi_ref). With Psi the log-odds this is RLHF and DPO, and preferences that are certain outweigh any
KL penalty. With Psi the identity (IPO) the optimum stays at a finite distance from the reference,

    pi*(y) = pi_ref(y) exp( p(y > mu) / tau ) / Z,          p(y > mu) = E_{y' ~ mu}[ p(y > y') ]

and it is a regression of the margin on a constant:

    h = log pi(y_w | x) / pi_ref(y_w | x) - log pi(y_l | x) / pi_ref(y_l | x)          L = ( h - 1 / (2 tau) )^2

Two responses that are equally good have the target 0. Log-probabilities are sums over tokens, as in the paper; libraries often take means, which
is `length_normalised`. They call tau beta.

Defaults: tau .1, and DPO's batch and step size.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import START, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods._language import sized
from polopt.methods.preferences.dpo import first_over_second
from polopt.methods.registry import composition


@part
class Squared:
    """(h - 1 / (2 tau))^2."""

    tau: float = hyper(0.1, above=0)  # strength of the KL penalty

    anchors = (START,)
    responses = 2

    def weights(self):
        return {START: 1.0}

    def residual(self, columns):
        """What is squared, (B,)."""
        return first_over_second(columns) - columns.order / (2 * self.tau)

    def __call__(self, columns):
        return self.residual(columns) ** 2


def optimum(reference, preferences, opponent, tau):
    """log pi* (K,) of IPO: log pi_ref + p(y > mu) / tau - log Z, from log pi_ref (K,), P (K, K) with P[y, y'] = p(y > y'), and mu (K,)."""
    logits = reference + preferences @ opponent / tau
    return logits - jnp.logaddexp.reduce(logits)


@composition
def ipo(task: PreferenceTask | None = None) -> Preference:
    """IPO on logged pairs."""
    return sized(task, Preference(Logged(groups=64), Squared()))
