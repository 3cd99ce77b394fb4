"""Behavioural cloning: as good as who made the data where one good policy did, and no better than the mixture where several did."""

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN
from polopt.claims.offline.pendulum import EXPERT, MIXED, SETTING, learnt, logs, made, sized
from polopt.methods.offline.bc import bc


def run(seeds: list[int]) -> dict[str, Side]:
    sides = {}
    for name, shares in (("expert", EXPERT), ("mixed", MIXED)):
        datasets = [logs(seed, shares) for seed in seeds]
        sides[f"BC from {name} data"] = learnt(sized(bc(None)), datasets, seeds)
        sides[f"who made the {name} data"] = made(datasets)
    return sides


CLAIM = Claim(
    method="bc",
    statement="Cloning earns what the policy earns that made the data, and cannot pick the good policy out of a mixture.",
    baseline="who made the data; the same cloning of a quarter of expert and three quarters of random transitions",
    task=SETTING,
    run=run,
    checks=(
        Check(FINAL_RETURN, "BC from expert data", over="who made the expert data", above=-150),
        Check(FINAL_RETURN, "BC from mixed data", over="who made the mixed data", below=50),
        Check(FINAL_RETURN, "BC from mixed data", over="BC from expert data", below=-300),
    ),
    seconds=40,
)
