"""A2C: an actor with a critic learns from rollouts shorter than an episode.

On CartPole, where every step is paid, A2C without its critic learns as fast (pilot: ratio 0.99 [0.94, 1.07] on ten other seeds): there the
short rollouts do it. What the critic adds is seen on Catch, where the only reward comes after the ninth step and rollouts have five.
"""

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import AREA, simulated, trained
from polopt.core.parts import replace
from polopt.methods.policy_gradient.a2c import a2c
from polopt.methods.policy_gradient.reinforce import reinforce


def run(seeds: list[int]) -> dict[str, Side]:
    cartpole, catch = simulated("CartPole-v1", steps=100_000), simulated("Catch-bsuite", steps=100_000)
    short = {"num_steps": 5}  # of the paper
    return {
        "A2C on CartPole": trained(a2c(cartpole), cartpole, seeds),
        "REINFORCE on CartPole": trained(replace(reinforce(cartpole), {"critic": False}), cartpole, seeds),
        "A2C on Catch": trained(replace(a2c(catch), short), catch, seeds),
        "REINFORCE on Catch": trained(replace(reinforce(catch), {"critic": False}), catch, seeds),
        "A2C without its critic on Catch": trained(replace(a2c(catch), {**short, "critic": False}), catch, seeds),
    }


CLAIM = Claim(
    method="a2c",
    statement="An actor with a critic learns from short parallel rollouts, faster than from whole returns; the critic helps where the reward comes "
    "later than a rollout ends.",
    baseline="REINFORCE without a critic, with its own defaults; A2C without its critic",
    task="CartPole-v1 and Catch-bsuite, 100k steps each; A2C with its defaults on CartPole and rollouts of 5 steps on Catch",
    run=run,
    checks=(
        Check(AREA, "A2C on CartPole", over="REINFORCE on CartPole", ratio=True, above=1.5),
        Check(AREA, "A2C on Catch", over="REINFORCE on Catch", above=0.5),
        Check(AREA, "A2C on Catch", over="A2C without its critic on Catch", above=0),
    ),
    seconds=60,
)
