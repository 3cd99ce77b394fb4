"""ARO-DDPG: the average reward, learnt as such, is spared what a short discount costs where the task goes on for ever."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import parts, spaces
from polopt.envs.exact import lqr
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.loops.exploration import GaussianNoise
from polopt.loops.off_policy import OffPolicy
from polopt.methods.actor_critic.aro_ddpg import aro_ddpg
from polopt.methods.actor_critic.td3 import td3

COST = "average cost of the learnt policy, in variances of the noise"
SYSTEM = lqr.lqr([[1.1]], [[1.0]], 1.0, 50.0, noise=0.01, start=0.09, discount=1.0)
NOISE, LIMIT, EDGE, FIRST, SCALE = 0.1, 2.0, 3.0, 0.3, 0.05
STEPS = EVALUATED = 20_000
NEVER = 1e6  # stands for a cost that is not finite


def cost_of_gain(gain: float) -> float:
    """The exact average cost of u = -k x, in variances of the noise; infinite where the loop is unstable."""
    loop = 1.1 - gain
    return (1 + 50 * gain**2) / (1 - loop**2) if abs(loop) < 1 else np.inf


BEST = cost_of_gain(float(lqr.riccati(SYSTEM).gain[0, 0]))


class Continuing:
    """x' = 1.1 x + u + w for ever. Where |x| exceeds 3, the step leads to a new start instead, and no episode ends."""

    objectives = 0
    costs = 0
    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-LIMIT, LIMIT, (1,))

    def __eq__(self, other):
        return isinstance(other, Continuing)

    def __hash__(self):
        return hash(Continuing)

    def reset(self, key):
        x = FIRST * jax.random.normal(key, (1,))
        return x, x

    def step(self, x, action, key):
        k_noise, k_first = jax.random.split(key)
        u = jnp.clip(action, -LIMIT, LIMIT)
        after = 1.1 * x + u + NOISE * jax.random.normal(k_noise, (1,))
        after = jnp.where(jnp.abs(after) > EDGE, self.reset(k_first)[0], after)
        reward = -SCALE * jnp.sum(x**2 + 50 * u**2)
        return after, after, reward, jnp.zeros((0,)), jnp.array(False), jnp.array(False)


def sized(method: OffPolicy) -> OffPolicy:
    """The same sizes, rates and noise for both."""
    rates = {name: 1e-3 for name in parts.fields(method) if name.endswith("learning_rate")}
    hidden = {name: (32, 32) for name in parts.fields(method) if name.endswith("network.hidden")}
    method = OffPolicy(method.rule, GaussianNoise(0.2 / LIMIT), batch_size=64, num_steps=8, updates=8, warmup=1_000)
    return parts.replace(method, {**rates, **hidden})


def trained(method: OffPolicy, seeds: list[int]) -> Side:
    """A side from the cost of the last policy without noise, over 20,000 steps."""
    task = ControlTask(JaxEnvironment("continuing system", Continuing()), STEPS)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    starts = jax.lax.map(lambda key: method.init(task, key), keys)  # not by vmap; see measures._train

    @jax.jit
    @jax.vmap
    def cost(key, state):
        state = jax.lax.fori_loop(0, STEPS // method.steps_per_iteration, lambda _, s: method.step(task, s)[0], state)
        policy = method.policy(state)
        k_first, k_run = jax.random.split(jax.random.fold_in(key, 0x0F17A1))

        def act(x, t):
            x, _, reward, *_ = task.env.dynamics.step(x, policy.act((), x)[1], jax.random.fold_in(k_run, t))
            return x, reward

        _, rewards = jax.lax.scan(act, task.env.dynamics.reset(k_first)[0], jnp.arange(EVALUATED))
        return -jnp.mean(rewards) / (SCALE * NOISE**2)

    costs = np.nan_to_num(np.asarray(cost(keys, starts), np.float64), nan=NEVER, posinf=NEVER)
    return Side(configuration(method), {COST: costs})


def run(seeds: list[int]) -> dict[str, Side]:
    short = parts.replace(sized(td3(None)), {"rule.discount": 0.8})
    return {"ARO-DDPG": trained(sized(aro_ddpg(None)), seeds), "TD3, discount .8": trained(short, seeds)}


CLAIM = Claim(
    method="aro_ddpg",
    statement="On a task that goes on for ever, climbing the average reward itself avoids the loss that a short discount brings.",
    baseline="TD3 with a discount of .8, the same networks, steps and noise; its own optimum, linear, costs 50.6",
    task="x' = 1.1 x + u + w, w ~ N(0, .1^2), reward -.05 (x^2 + 50 u^2), u within 2, a new start where |x| > 3; 20k steps, an update each, "
    "32-32 ReLU, minibatches of 64, Adam 1e-3, noise of .2; the best linear policy costs 14.86",
    run=run,
    checks=(
        Check(COST, "ARO-DDPG", below=36),
        Check(COST, "TD3, discount .8", above=48),
        Check(COST, "ARO-DDPG", over="TD3, discount .8", below=0),
    ),
    seconds=60,
    analysis="The side of the average reward holds with room to spare: every seed costs between 15.9 and 26.9, the best linear policy 14.9, "
    "and it beats the short discount. How badly TD3 with a discount of .8 ends varies much over seeds, from 18 to 160 with an "
    "interquartile mean of 76, so that ten seeds do not show it to be above 48: three come out better than the optimum of their "
    "own objective, as its critics are not exact. The pilot seeds 1000 to 1009 gave 17.5 and 102, both with intervals on the right "
    "side.",
)
