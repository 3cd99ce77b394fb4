"""TD3: its critics do not overestimate as DDPG's does."""

from polopt.claims.actor_critic.pendulum import BIAS, pendulum, sized, value_bias
from polopt.claims.claim import Check, Claim, Side
from polopt.loops.exploration import GaussianNoise
from polopt.methods.actor_critic.ddpg import ddpg
from polopt.methods.actor_critic.td3 import td3


def run(seeds: list[int]) -> dict[str, Side]:
    task = pendulum()
    methods = {}
    for name, made in (("TD3", td3(task)), ("DDPG", ddpg(task))):
        rates = {"rule.actor_step.learning_rate": 1e-3, "rule.critic_step.learning_rate": 1e-3}
        methods[name] = sized(type(made)(made.rule, GaussianNoise(0.1)), **rates)
    return {name: value_bias(method, task, seeds) for name, method in methods.items()}


CLAIM = Claim(
    method="td3",
    statement="The smaller of two critics, smoothed targets and a delayed actor keep the values from exceeding what the policy earns, as DDPG's do.",
    baseline="DDPG with the same sizes, steps and noise",
    task="Pendulum-v1, 20k steps, one update a step, 64-64 ReLU, minibatches of 128, Adam 1e-3, rewards times .1; values of first states at the end",
    run=run,
    checks=(
        Check(BIAS, "TD3", over="DDPG", below=0.0),
        Check(BIAS, "TD3", below=0.2),
        Check("return of an episode", "TD3", over="DDPG", above=-30),
    ),
    seconds=180,
    slow=True,
    analysis="Nine of the ten seeds hold: their values lie .4 to 1.6 below what the policy earns, DDPG's .9 to 2.1 above, at the same return. On one "
    "seed TD3's actor ends at a limit and earns -1440, and its values 36 too much; ten seeds with one such do not bound the mean.",
)
