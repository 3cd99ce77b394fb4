"""APG: adapting a trained policy takes a fraction of the steps that learning the combined task from nothing takes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core.networks import Feedforward
from polopt.core.parts import replace
from polopt.core.spaces import Box
from polopt.envs.exact import lqr
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.loops.exploration import GaussianNoise
from polopt.loops.off_policy import OffPolicy
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.policy_gradient.apg import Adaptation, apg
from polopt.policies.residual import Gain

STEPS = 10_000
EVERY = 400  # steps between two evaluations
HORIZON = 50  # steps of an episode
NEEDED = "steps until the cost is within 10 % of the optimum"
LOST = "cost of keeping the new set point / the best regulator's, at the end"
SYSTEM = lqr.double_integrator()  # costs diag(1, .1) and .1, discount .99
REGULATOR = np.asarray(lqr.riccati(SYSTEM).gain, np.float64)
LIMIT = 5.0  # of the force
STARTS = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)), -1).reshape(-1, 2)


class Shifted:
    """The double integrator from N(0, I) / 4; the reward is that of keeping 0, and the cost makes 1 the place to keep: (x_1 - 1)^2 - x_1^2."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Box(-LIMIT, LIMIT, (1,))
    objectives = 0
    costs = 1

    def __init__(self, combined: bool):
        self.combined = combined  # the reward counts the cost too, and steps bear none
        self.costs = 0 if combined else 1

    def __eq__(self, other):
        return isinstance(other, Shifted) and other.combined == self.combined

    def __hash__(self):
        return hash(("shifted", self.combined))

    def reset(self, key):
        x = 0.5 * jax.random.normal(key, (2,))
        return (x, jnp.zeros((), jnp.int32)), x

    def step(self, state, action, key):
        x, t = state
        first, second = stage_costs(x, action)
        A, B = (jnp.asarray(m, jnp.float32) for m in (SYSTEM.A, SYSTEM.B))
        after = A @ x + B @ action
        reward, cost = (-first - second, jnp.zeros((0,))) if self.combined else (-first, second[None])
        return (after, t + 1), after, reward, cost, jnp.array(False), t + 1 >= HORIZON


def stage_costs(x, u):
    """c_0 and c_1."""
    Q, R = (jnp.asarray(m, jnp.float32) for m in (SYSTEM.Q, SYSTEM.R))
    return x @ Q @ x + u @ R @ u, (x[0] - 1) ** 2 - x[0] ** 2


def combined_cost(act):
    """The discounted combined cost of a policy over 400 steps, averaged over a grid of starts."""

    def one(x):
        def step(x, t):
            u = jnp.clip(act(x), -LIMIT, LIMIT)
            return jnp.asarray(SYSTEM.A, jnp.float32) @ x + jnp.asarray(SYSTEM.B, jnp.float32) @ u, 0.99**t * sum(stage_costs(x, u))

        return jnp.sum(jax.lax.scan(step, x, jnp.arange(400))[1])

    return jnp.mean(jax.vmap(one)(jnp.asarray(STARTS, jnp.float32)))


def best():
    """The affine optimum: the regulator about (1, 0), for c_0 + c_1 is the regulator's cost with x_1 - 1 in the place of x_1."""
    gain = jnp.asarray(REGULATOR, jnp.float32)
    return combined_cost(lambda x: -gain @ (x - jnp.array([1.0, 0.0])))


@functools.partial(jax.jit, static_argnames="task")
def costs(method, task, keys):
    """The combined cost after every EVERY steps, (seeds, evaluations)."""

    def one(key, start):
        def part(state, _):
            state = jax.lax.fori_loop(0, EVERY // method.steps_per_iteration, lambda _, s: method.step(task, s)[0], state)
            policy = method.policy(state)
            return state, combined_cost(lambda x: policy.act((), x)[1])

        return jax.lax.scan(part, start, length=STEPS // EVERY)[1]

    starts = jax.lax.map(lambda key: method.init(task, key), keys)
    return jax.vmap(one)(keys, starts)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    optimum = float(best())
    gain = tuple(tuple(-float(x) for x in row) for row in REGULATOR)
    affine, critic = Feedforward(hidden=()), Feedforward(hidden=(64, 64), activation="relu")
    shared = {"num_steps": 8, "updates": 8, "batch_size": 64, "reward_scale": 0.1}
    adapted, scratch = (ControlTask(JaxEnvironment("shifted double integrator", Shifted(combined)), STEPS) for combined in (False, True))
    first = dataclasses.replace(apg(adapted), rule=Adaptation(Gain(gain), affine, critic))
    first = replace(first, shared)
    from_nothing = OffPolicy(Deterministic(actor_network=affine, critic_network=critic), GaussianNoise(0.1))
    same = {"rule.actor_step.learning_rate": 1e-3, "rule.critic_step.learning_rate": 1e-3, "rule.tau": 0.01, "warmup": 1_000}
    from_nothing = replace(from_nothing, {**shared, **same})
    sides = {}
    for name, method, task in (("APG", first, adapted), ("DDPG from nothing", from_nothing, scratch)):
        found = np.asarray(costs(method, task, keys), np.float64)
        reached = found <= 1.1 * optimum
        needed = np.where(reached.any(axis=1), EVERY * (1 + reached.argmax(axis=1)), 2.0 * STEPS)
        x = EVERY * np.arange(1, found.shape[1] + 1)
        numbers = {NEEDED: needed, LOST: found[:, -1] / optimum}
        sides[name] = Side(configuration(method), numbers, {"combined cost / optimum": (x, found / optimum, "environment steps per seed")})
    return sides


CLAIM = Claim(
    method="apg",
    statement="Adapting a trained policy to an additional task takes a third of the steps, or less, that learning both together from nothing takes.",
    baseline="DDPG from nothing on the sum of both costs, with the same networks and steps",
    task="10k steps on the double integrator with the best regulator as trained policy and a new set point as additional task; "
    "affine policies, exact optimum",
    run=run,
    checks=(
        Check(NEEDED, "APG", over="DDPG from nothing", ratio=True, below=1 / 3),
        Check(LOST, "APG", below=1.05),
    ),
    seconds=90,
    analysis="APG is within 10 % of the optimum in seven of ten seeds, after 3.6k to 7.2k steps; DDPG from nothing in two, and the run ends at "
    "10k, where a seed that is not there counts as 20k: the ratio of .42 is from above. At its end APG's cost wavers between 1.03 and 1.3 "
    "of the best (2.2 and 3 in two seeds). The exploration noise, steps of a constant size and the guard, which pulls towards the old set "
    "point, may each be why; they have not been separated.",
)
