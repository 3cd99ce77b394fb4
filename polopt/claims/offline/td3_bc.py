"""TD3+BC: improves on who made a noisy log as cloning cannot, and holds on narrow data, where TD3 breaks down."""

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN
from polopt.claims.offline.pendulum import EXPERT, NOISY, SETTING, learnt, logs, sized
from polopt.core import parts
from polopt.methods.offline.bc import bc
from polopt.methods.offline.td3_bc import td3_bc

FREE = 1e6  # alpha at which the pull to the log is nothing beside the critic


def run(seeds: list[int]) -> dict[str, Side]:
    methods = {"TD3+BC": td3_bc(None), "BC": bc(None), "TD3": parts.replace(td3_bc(None), {"rule.objective.alpha": FREE})}
    sides = {}
    for data, shares in (("noisy", NOISY), ("expert", EXPERT)):
        datasets = [logs(seed, shares) for seed in seeds]
        for name, method in methods.items():
            sides[f"{name} from {data} data"] = learnt(sized(method), datasets, seeds)
    return sides


CLAIM = Claim(
    method="td3_bc",
    statement="One added term lets TD3 learn from a log: it improves on a noisy policy's data far beyond cloning, and on an expert's narrow data it "
    "keeps what TD3 loses.",
    baseline="behavioural cloning, and TD3 on the same log, with the same sizes, updates and normalisation",
    task=SETTING + "; noisy: an action in .6 of the steps uniform",
    run=run,
    checks=(
        Check(FINAL_RETURN, "TD3+BC from noisy data", over="BC from noisy data", above=150),
        Check(FINAL_RETURN, "TD3+BC from expert data", over="TD3 from expert data", above=300),
        Check(FINAL_RETURN, "TD3+BC from expert data", over="BC from expert data", above=-60),
    ),
    seconds=120,
)
