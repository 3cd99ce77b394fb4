"""AWAC: cloning weighted by the advantage gets more out of a noisy log than cloning does."""

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN
from polopt.claims.offline.pendulum import NOISY, SETTING, learnt, logs, made, sized
from polopt.methods.offline.awac import awac
from polopt.methods.offline.bc import bc


def run(seeds: list[int]) -> dict[str, Side]:
    noisy = [logs(seed, NOISY) for seed in seeds]
    methods = {"AWAC": sized(awac(None)), "BC": sized(bc(None))}
    return {name: learnt(method, noisy, seeds) for name, method in methods.items()} | {"who made the data": made(noisy)}


CLAIM = Claim(
    method="awac",
    statement="Cloning that is weighted by how much better an action is than the policy improves on a log of mixed quality beyond cloning.",
    baseline="behavioural cloning with the same sizes and updates, and who made the log",
    task=SETTING + "; noisy: an action in .6 of the steps uniform",
    run=run,
    checks=(
        Check(FINAL_RETURN, "AWAC", over="BC", above=0),
        Check(FINAL_RETURN, "AWAC", over="who made the data", above=0),
    ),
    seconds=60,
)
