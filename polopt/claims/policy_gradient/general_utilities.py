"""General utilities: one episode an iteration is enough for the entropy of visited states, if what it says is remembered."""

import jax
import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration, train_curves
from polopt.core.parts import replace
from polopt.envs.exact import finite
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import permuted_chain
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.methods.policy_gradient.general_utilities import general_utilities

STATES, ACTIONS, DISCOUNT, HORIZON, EPISODES = 8, 3, 0.9, 20, 2000
GAIN = "(F - F_uniform) / (F* - F_uniform)"


def entropy(logits):
    """F: of the discounted visits of states over HORIZON steps, as a distribution, exactly."""
    visits = finite.occupancy(permuted_chain(), jax.nn.softmax(logits), HORIZON, discounted=True).sum((0, 2))
    d = visits / visits.sum()
    return -jnp.sum(d * jnp.log(d))


@jax.jit
def optimum():
    """F* by exact gradient ascent from several starts, and F of the uniform policy."""

    def climb(start):
        return jax.lax.fori_loop(0, 5000, lambda _, logits: logits + jax.grad(entropy)(logits), start)

    starts = jax.random.normal(jax.random.key(0), (8, STATES, ACTIONS)).at[0].set(0.0)
    return jnp.max(jax.vmap(lambda start: entropy(climb(start)))(starts)), entropy(jnp.zeros((STATES, ACTIONS)))


def observe(before, after):
    actor = after.ascent.actor
    return {"F": entropy(jax.vmap(lambda place: actor((), place, ())[1].logits)(jnp.eye(STATES)))}


def run(seeds: list[int]) -> dict[str, Side]:
    task = ControlTask(JaxEnvironment("permuted chain", TabularDynamics(permuted_chain(), HORIZON)), EPISODES * HORIZON)
    plain = replace(general_utilities(task), {"horizon": HORIZON, "discount": DISCOUNT})
    methods = {"N-VR-PG": plain, "no momentum": replace(plain, {"memory": 0.0}), "momentum without correction": replace(plain, {"correct": False})}
    best, uniform = map(float, optimum())
    sides = {}
    for name, method in methods.items():
        curves = train_curves(method, task, seeds, observe=observe)
        gain = (curves.metrics["F"] - uniform) / (best - uniform)
        sides[name] = Side(configuration(method), {GAIN: gain[:, -1]}, {GAIN: (curves.steps / HORIZON, gain, "episodes")})
    return sides


CLAIM = Claim(
    method="general_utilities",
    statement="From one episode an iteration N-VR-PG reaches nearly the largest entropy of visited states, a utility that is not linear; without its "
    "momentum the same episodes give much less.",
    baseline="the same steps along the newest gradient alone (eta = 1); beside it momentum without the correction",
    task="a chain of 8 states whose moves forward, back and to the start have other names in every state (slip .1), discount .9, 2000 episodes of "
    "20 steps, a softmax table; the entropy of the visits is exact",
    run=run,
    checks=(
        Check(GAIN, "N-VR-PG", above=0.90, statistic="mean"),
        Check(GAIN, "no momentum", below=0.75, statistic="mean"),
    ),
    seconds=40,
)
