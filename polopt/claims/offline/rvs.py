"""RvS: told a good outcome, cloning picks the good policy out of a mixture.

The average reward to go grows towards the goal, so that the average of the best whole episode, the default, is far below what good walkers have near
the goal: told that, RvS does not get there. The target of the claim was the best of 0, .1, .2, .3, .5, 1 and 2 on another seed.
"""

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN
from polopt.claims.offline.told import SETTING, STEP_REWARD, learnt, made
from polopt.core.parts import replace
from polopt.methods.offline.bc import bc
from polopt.methods.offline.rvs import rvs

SIZES = {"rule.network.hidden": (32, 32), "rule.step.learning_rate": 3e-3, "batch_size": 64}

TARGET = 0.5  # average reward


def run(seeds: list[int]) -> dict[str, Side]:
    asked = replace(rvs(None), SIZES | {"rule.target": TARGET})
    return {
        "RvS": learnt(asked, seeds),
        "RvS asked for the least": learnt(replace(asked, {"rule.target": STEP_REWARD}), seeds),
        "BC": learnt(replace(bc(None), SIZES), seeds),
        "who made the data": made(seeds),
    }


CLAIM = Claim(
    method="rvs",
    statement="Supervised learning that is told the average reward to come does what good episodes did, where cloning does what all did.",
    baseline="behavioural cloning with the same sizes and updates; RvS told the outcome of an episode that never comes to the goal",
    task=SETTING,
    run=run,
    checks=(
        Check(FINAL_RETURN, "RvS", over="BC", above=0.0),
        Check(FINAL_RETURN, "RvS", over="RvS asked for the least", above=0.2),
    ),
    seeds=30,
    seconds=15,
)
