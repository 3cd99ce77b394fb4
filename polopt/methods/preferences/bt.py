"""Rank Analysis of Incomplete Block Designs: I. The Method of Paired Comparisons.

Ralph Allan Bradley, Milton E. Terry. 1952. Biometrika 39(3/4), doi:10.2307/2334029

A reward model from comparisons (so used since arXiv:1706.03741), by maximum likelihood of

    P(y_w > y_l | x) = sigmoid( r(x, y_w) - r(x, y_l) )
    L = -log sigmoid( r(x, y_w) - r(x, y_l) - m ) + c ( r(x, y_w)^2 + r(x, y_l)^2 )

The rewards of a prompt are known up to a constant, which the small c pins. What is learnt is a verifier: any method that asks for rewards takes it.

Defaults: c = 1e-3, no margin m, a linear head on the model, 32 pairs a step, Adam 1e-5.
"""

from __future__ import annotations

from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import AllPairs
from polopt.loops.preference_sources import Logged
from polopt.loops.reward_model import RewardModelling
from polopt.methods._language import sized
from polopt.methods.registry import composition


@composition
def bt(task: PreferenceTask | None = None) -> RewardModelling:
    """A reward model of logged pairs."""
    return sized(task, RewardModelling(Logged(groups=32, pairs=AllPairs())))
