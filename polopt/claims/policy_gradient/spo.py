"""SPO: the quadratic surrogate keeps the ratio near the trust region where PPO's clip lets it drift."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN, simulated, trained
from polopt.core.networks import Network
from polopt.core.spaces import Box, Discrete
from polopt.loops.descent import Descent, passes
from polopt.loops.on_policy import OnPolicy, Update
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.policy_gradient.ppo import Clip
from polopt.methods.policy_gradient.spo import Quadratic
from polopt.optim.adam import Adam
from polopt.policies.actor import Actor

SAMPLES, FEATURES, ACTIONS = 512, 8, 4
DEEP = Network(hidden=(64,) * 7)
EPOCHS, RATES = (10, 40), (3e-4, 1e-3, 3e-3)
DEVIATION = "|r - 1|"


@functools.partial(jax.jit, static_argnums=(0, 1))
def deviations(surrogate, epochs: int, rate, keys):
    """Mean and largest |r - 1| (seeds,) over a fixed batch of random states and advantages, after so many epochs on it."""

    def start(key):
        return Actor(DEEP, Box(-1.0, 1.0, (FEATURES,)), Discrete(ACTIONS), "clip", 0.0, key)

    # One seed after the other: XLA's CPU backend hangs on many orthogonal initialisations of several seeds at once.
    actors = jax.lax.map(start, keys)
    return jax.vmap(lambda actor, key: deviation(surrogate, epochs, rate, actor, jax.random.fold_in(key, 1)))(actors, keys)


def deviation(surrogate, epochs: int, rate, actor, key):
    k_state, k_action, k_advantage, k_passes = jax.random.split(key, 4)
    states = jax.random.normal(k_state, (SAMPLES, FEATURES))
    advantages = jax.random.normal(k_advantage, (SAMPLES,))

    def distributions(actor, states):
        return jax.vmap(lambda s: actor((), s, ())[1])(states)

    old = distributions(actor, states)
    actions = old.sample(k_action)

    def log_prob(distribution, actions):
        return jax.vmap(lambda d, a: d.log_prob(a))(distribution, actions)

    def loss(actor, batch):
        states, actions, advantages, old = batch
        new = distributions(actor, states)
        update = Update(log_prob(new, actions), log_prob(old, actions), advantages, new, old)
        return surrogate.loss((), update)[0].mean()

    adam = Adam(learning_rate=rate, anneal=False)

    def descend(carry, batch):
        actor, state = carry
        return adam.update(jax.grad(loss)(actor, batch), state, actor, 0.0), None

    (actor, _), _ = passes(descend, (actor, adam.init(actor)), (states, actions, advantages, old), epochs, 4, k_passes)
    moved = jnp.abs(jnp.expm1(log_prob(distributions(actor, states), actions) - log_prob(old, actions)))
    return moved.mean(), moved.max()


def names(epochs: int, rate: float) -> tuple[str, str]:
    setting = f"{DEVIATION} after {epochs} epochs of Adam {rate:g}"
    return f"mean {setting}", f"largest {setting}"


def run(seeds: list[int]) -> dict[str, Side]:
    task = simulated("CartPole-v1", steps=100_000)
    ppo = OnPolicy(Clip(), GAE(), Descent(Adam(learning_rate=1e-3, anneal=False), epochs=10))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    sides = {}
    for name, surrogate in (("SPO", Quadratic()), ("PPO", Clip())):
        method = dataclasses.replace(ppo, surrogate=surrogate)

        def observe(before, after, method=method):
            """|r - 1| of an iteration's new policy, on fresh data of the old one."""
            _, rollout, _ = method.collect(task.env, before, jax.random.fold_in(before.key, 1))
            batch = method.judge(before, before.acting, rollout)[0]
            return {DEVIATION: method.policy_loss(after.learner.actor, before.surrogate, batch)[1]["ratio_deviation"]}

        side = trained(method, task, seeds, metrics=(DEVIATION,), observe=observe)
        for epochs in EPOCHS:
            for rate in RATES:
                side.numbers.update(zip(names(epochs, rate), map(np.asarray, deviations(surrogate, epochs, rate, keys)), strict=True))
        sides[name] = side
    return sides


SETTINGS = [names(epochs, rate) for epochs in EPOCHS for rate in RATES]

CLAIM = Claim(
    method="spo",
    statement="At the same learning rate and number of epochs SPO keeps the ratio near the trust region, where PPO lets it drift, "
    "also with a deep policy.",
    baseline="PPO: the clipped surrogate with everything else the same",
    task="512 fixed random states with 4 actions and N(0, 1) advantages, a policy of 7 tanh layers of 64, 4 minibatches; "
    "CartPole-v1, 100k steps, with the settings of PPO's claim",
    run=run,
    checks=(
        *(Check(mean, "SPO", over="PPO", ratio=True, below=0.65) for mean, _ in SETTINGS),
        *(Check(largest, "SPO", over="PPO", ratio=True, below=0.55) for _, largest in SETTINGS),
        Check(FINAL_RETURN, "SPO", above=450),
        Check(f"mean {DEVIATION}", "SPO", over="PPO", ratio=True, below=0.6),
    ),
    seconds=60,
    analysis="With Adam 3e-4 and 40 epochs the largest |r - 1| is 0.65 of PPO's, not below 0.55; three more checks at small moves are inconclusive. "
    "There PPO itself stays near the clipping range (mean |r - 1| of 0.15, largest 0.45), so little is left to pull back. The gap opens with "
    "the step size: at 3e-3 the largest is a fifth of PPO's. The catalogue's numbers were piloted at 3e-3 and 40 epochs; its thresholds are kept.",
)
