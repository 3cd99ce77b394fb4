"""TD3: its critics do not overestimate as DDPG's does."""

from polopt.claims.actor_critic.pendulum import BIAS, pendulum, sized, value_bias
from polopt.claims.claim import Check, Claim, Side
from polopt.loops.exploration import GaussianNoise
from polopt.methods.actor_critic.ddpg import ddpg
from polopt.methods.actor_critic.td3 import td3


def run(seeds: list[int]) -> dict[str, Side]:
    task = pendulum(10_000)
    methods = {}
    for name, made in (("TD3", td3(task)), ("DDPG", ddpg(task))):
        rates = {"rule.actor_step.learning_rate": 1e-3, "rule.critic_step.learning_rate": 1e-3, "batch_size": 64}
        methods[name] = sized(type(made)(made.rule, GaussianNoise(0.1)), **rates)
    return {name: value_bias(method, task, seeds) for name, method in methods.items()}


CLAIM = Claim(
    method="td3",
    statement="The smaller of two critics, smoothed targets and a delayed actor keep the values from exceeding what the policy earns, as DDPG's do.",
    baseline="DDPG with the same sizes, steps and noise",
    task="Pendulum-v1, 10k steps, one update a step, 64-64 ReLU, minibatches of 64, Adam 1e-3, rewards times .1; values of first states at the end",
    run=run,
    checks=(
        Check(BIAS, "TD3", over="DDPG", below=0.0),
        Check(BIAS, "TD3", below=0.2),
        Check("return of an episode", "TD3", over="DDPG", above=-30),
    ),
    seconds=60,
    analysis="Ten thousand steps are too few: targets that move at every second update with tau .005 have not come down from 0 to the true values "
    "of about -3 yet, so all of TD3's values are too high, and one seed of ten had not learnt. A pilot at 20k steps and minibatches of 128 "
    "(seeds 1000 to 1002) gave a bias of -.85, -.88 and -.62 against DDPG's 2.6, 2.3 and 1.4. To be run again at that size.",
)
