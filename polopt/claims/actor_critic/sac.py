"""SAC: off-policy learning with entropy is as quick as the deterministic gradient, and the temperature keeps the entropy where it should be."""

import numpy as np

from polopt.claims.actor_critic.pendulum import EVALUATIONS, pendulum, sized
from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import EVALUATED, FINAL_RETURN, STEPS, configuration, train_curves
from polopt.loops.exploration import GaussianNoise
from polopt.methods.actor_critic.ddpg import ddpg
from polopt.methods.actor_critic.sac import sac

DISTANCE = "distance of the entropy from its target, last quarter of the training, nats"
TARGET = -1.0


def run(seeds: list[int]) -> dict[str, Side]:
    task = pendulum(10_000)
    base = ddpg(task)
    rates = {"rule.actor_step.learning_rate": 1e-3, "rule.critic_step.learning_rate": 1e-3, "batch_size": 64}
    methods = {
        "SAC": sized(sac(task), **rates, **{"rule.temperature.step.learning_rate": 1e-3}),
        "DDPG": sized(type(base)(base.rule, GaussianNoise(0.1)), **rates),
    }
    sides = {}
    for name, method in methods.items():
        curves = train_curves(method, task, seeds, episodes=20, stochastic=False, evaluations=EVALUATIONS)
        numbers = {FINAL_RETURN: curves.final, EVALUATED: curves.evaluated.mean(axis=1)}
        drawn = {"return": (curves.steps, curves.returns, STEPS)}
        if name == "SAC":
            entropy = curves.metrics["entropy"]
            numbers[DISTANCE] = np.abs(entropy[:, -entropy.shape[1] // 4 :].mean(axis=1) - TARGET)
            drawn["entropy"] = (curves.steps, entropy, STEPS)
        sides[name] = Side(configuration(method), numbers, drawn)
    return sides


CLAIM = Claim(
    method="sac",
    statement="Maximising return and entropy together learns as quickly as the deterministic gradient and more reliably over seeds, "
    "and the learnt temperature holds the entropy at its target.",
    baseline="DDPG with the same sizes and steps, exploring with noise .1",
    task="Pendulum-v1, 10k steps, one update a step, 64-64 ReLU, minibatches of 64, Adam 1e-3, rewards times .1",
    run=run,
    checks=(
        Check(FINAL_RETURN, "SAC", above=-250),
        Check(EVALUATED, "SAC", over="DDPG", above=-30),
        Check(DISTANCE, "SAC", below=0.15),
    ),
    seconds=60,
)
