"""PPO: the clip makes many epochs on the same data safe."""

import dataclasses

import jax

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import AREA, FINAL_RETURN, simulated, trained
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import ImportanceWeighted, LogLikelihood
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.policy_gradient.ppo import Clip
from polopt.optim.adam import Adam

DEVIATION = "|r - 1|"


def run(seeds: list[int]) -> dict[str, Side]:
    task = simulated("CartPole-v1", steps=100_000)
    adam = Adam(learning_rate=1e-3, anneal=False)
    clipped = OnPolicy(Clip(), GAE(), Descent(adam, epochs=10))
    methods = {
        "PPO": clipped,
        "no clip": dataclasses.replace(clipped, surrogate=ImportanceWeighted()),
        "one epoch": dataclasses.replace(clipped, surrogate=LogLikelihood(), improver=Descent(adam, epochs=1)),
    }

    def moved(method):
        """The mean |r - 1| of an iteration's new policy, on fresh data of the old one."""

        def observe(before, after):
            _, rollout, _ = method.collect(task.env, before, jax.random.fold_in(before.key, 1))
            batch = method.judge(before, before.acting, rollout)[0]
            return {DEVIATION: method.policy_loss(after.learner.actor, before.surrogate, batch)[1]["ratio_deviation"]}

        return observe

    return {name: trained(method, task, seeds, metrics=(DEVIATION,), observe=moved(method)) for name, method in methods.items()}


CLAIM = Claim(
    method="ppo",
    statement="Clipping the ratio makes ten epochs on the same data safe, so that PPO learns faster than the same without the clip and than "
    "a single epoch.",
    baseline="the unclipped surrogate with the same ten epochs; one epoch of the score-function surrogate (A2C)",
    task="CartPole-v1, 100k steps; 8 environments of 128 steps, 4 minibatches, Adam 1e-3 not annealed, no entropy bonus, rewards as they are",
    run=run,
    checks=(
        Check(FINAL_RETURN, "PPO", above=450),
        Check(AREA, "PPO", over="no clip", above=50),
        Check(AREA, "PPO", over="one epoch", above=50),
        Check(f"mean {DEVIATION}", "PPO", below=0.12),
        Check(f"mean {DEVIATION}", "no clip", over="PPO", ratio=True, above=3),
    ),
    seconds=40,
)
