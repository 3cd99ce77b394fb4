"""Decision Transformer: asked for a return, it continues with the actions that led to such returns."""

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN
from polopt.claims.offline.told import HORIZON, SETTING, STEP_REWARD, learnt, made
from polopt.core.parts import replace
from polopt.methods.offline.bc import bc
from polopt.methods.offline.decision_transformer import decision_transformer

SIZES = {
    "rule.context": 3,
    "rule.width": 32,
    "rule.layers": 1,
    "rule.reward_network.hidden": (32,),
    "rule.step.learning_rate": 3e-3,
    "rule.reward_step.learning_rate": 3e-3,
    "batch_size": 32,
}
CLONE = {"rule.network.hidden": (32, 32), "rule.step.learning_rate": 3e-3, "batch_size": 64}


def run(seeds: list[int]) -> dict[str, Side]:
    asked = replace(decision_transformer(None), SIZES)
    return {
        "DT": learnt(asked, seeds),
        "DT asked for the least": learnt(replace(asked, {"rule.target": STEP_REWARD * HORIZON}), seeds),
        "BC": learnt(replace(bc(None), CLONE), seeds),
        "who made the data": made(seeds),
    }


CLAIM = Claim(
    method="decision_transformer",
    statement="A sequence model asked for a high return acts as the good episodes did, and not as the average of the log, as cloning does.",
    baseline="behavioural cloning of as many updates; the same transformer asked for the return of an episode that never comes to the goal",
    task=SETTING,
    run=run,
    checks=(
        Check(FINAL_RETURN, "DT", over="BC", above=0.2),
        Check(FINAL_RETURN, "DT", over="DT asked for the least", above=0.2),
    ),
    seconds=40,
)
