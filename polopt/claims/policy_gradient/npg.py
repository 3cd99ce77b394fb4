"""The natural policy gradient: its tabular step is the advantage, it leaves a plateau at once, and it beats the plain gradient from samples."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN, simulated, trained
from polopt.core.parts import replace
from polopt.envs.exact import problems, tabular
from polopt.methods.policy_gradient.npg import npg
from polopt.methods.policy_gradient.reinforce import reinforce
from polopt.optim.trust_region import natural_direction

NEAR = 0.98  # of the optimal return
LONG = 3000  # exact updates
RATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of either exact side
SAMPLED = {"NPG": (0.1, 0.3, 1.0), "REINFORCE": (1e-2, 3e-2, 1e-1)}  # step sizes, of which the best counts; smaller ones reached less
NUMBER = "updates to 0.98 J*"
ERROR = "largest distance of F^+ grad J from A / (1 - gamma)"


def start(seed: int):
    """The logits of the plateau, (stay, move) by state, with a little noise so that seeds differ."""
    return jnp.array([[3.0, 0.0], [-1.0, 1.0]]) + 0.1 * jax.random.normal(jax.random.key(seed), (2, 2))


def direction(mdp, logits):
    """F^+ grad J by conjugate gradients, with the mean under the policy in each state taken away."""
    product = lambda v: tabular.fisher_vector_product(mdp, logits, v, normalised=True)  # noqa: E731
    found, _ = natural_direction(product, tabular.policy_gradient(mdp, logits), 50, 0.0)
    return found - tabular.expectation(jax.nn.softmax(logits), found)[:, None]


def error(key):
    """In a random problem at random logits."""
    k_mdp, k_logits = jax.random.split(key)
    mdp = problems.random_mdp(k_mdp, 8, 4, discount=0.9)
    logits = jax.random.normal(k_logits, (8, 4))
    return jnp.abs(direction(mdp, logits) - tabular.natural_gradient(mdp, logits, normalised=True)).max()


def arrivals(mdp, uphill, starts, goal: float) -> np.ndarray:
    """Updates to the goal (seeds,), with the best of RATES; LONG where it is never reached."""

    def climb(logits, rate):
        def step(logits, _):
            logits = logits + rate * uphill(logits)
            return logits, tabular.objective(mdp, jax.nn.softmax(logits)) >= goal

        arrived = jax.lax.scan(step, logits, length=LONG)[1]
        return jnp.where(arrived.any(), jnp.argmax(arrived) + 1, LONG)

    over_seeds = jax.vmap(climb, in_axes=(0, None))
    return np.asarray(jax.jit(jax.vmap(over_seeds, in_axes=(None, 0)))(starts, jnp.array(RATES)), np.float64).min(axis=0)


def best_of(name: str, seeds: list[int]) -> Side:
    """The sampled method with the step size whose mean final return is highest."""
    task = simulated("CartPole-v1", steps=60_000)
    field = {"NPG": "step_size", "REINFORCE": "improver.step.learning_rate"}[name]
    method = {"NPG": npg, "REINFORCE": reinforce}[name](task)
    sides = [trained(replace(method, {field: size}), task, seeds) for size in SAMPLED[name]]
    return max(sides, key=lambda side: side.numbers[FINAL_RETURN].mean())


def run(seeds: list[int]) -> dict[str, Side]:
    with jax.enable_x64(True):
        mdp = problems.stay_move()
        goal = NEAR * float(tabular.objective(mdp, tabular.optimal(mdp).policy))
        starts = jnp.stack([start(seed) for seed in seeds])
        natural = arrivals(mdp, lambda x: tabular.natural_gradient(mdp, x, normalised=True), starts, goal)
        plain = arrivals(mdp, lambda x: tabular.policy_gradient(mdp, x), starts, goal)
        errors = np.asarray(jax.jit(jax.vmap(error))(jnp.stack([jax.random.key(seed) for seed in seeds])))
    return {
        "natural gradient": Side({"rates": RATES}, {NUMBER: natural, ERROR: errors}),
        "gradient": Side({"rates": RATES}, {NUMBER: plain}),
        **{f"sampled {name}": best_of(name, seeds) for name in SAMPLED},
    }


CLAIM = Claim(
    method="npg",
    statement="The tabular natural gradient is the advantage, it leaves a plateau in a fraction of the plain gradient's updates, and estimated "
    "from samples it reaches more than the plain gradient.",
    baseline="gradient ascent with the best of as many step sizes; from samples REINFORCE with a value baseline, the best of three step sizes each",
    task="a two-state stay-or-move problem from near-deterministic logits, random problems of 8 states and 4 actions; CartPole-v1, 60k steps",
    run=run,
    checks=(
        Check(ERROR, "natural gradient", below=1e-6),
        Check(NUMBER, "gradient", over="natural gradient", ratio=True, above=3),
        Check(FINAL_RETURN, "sampled NPG", over="sampled REINFORCE", above=0),
    ),
    seconds=60,
)
