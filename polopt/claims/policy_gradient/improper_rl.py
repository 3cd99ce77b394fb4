"""Improper learning: two controllers that each let a queue grow are mixed into one that keeps both short."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core.parts import replace
from polopt.envs.exact import tabular
from polopt.envs.exact.problems import two_queues
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods.policy_gradient.improper_rl import acil, exact_gradient, gradient_free, improper_rl, mixture

START = (1.1, -1.1)  # about (.9, .1)
COST, IMBALANCE, RELATIVE = "discounted cost", "distance of the weights from (.5, .5)", "discounted cost over the best controller's"
RATE, STEPS = 0.01, 200  # of the exact gradient
ITERATIONS = 150
QUEUES = {"discount": 0.95, "gate.initial": START}
SAMPLED = {
    "NACIL": (improper_rl, {"num_envs": 16, "num_steps": 16, "estimator.features": "quadratic", "learning_rate": 0.02}),
    "ACIL": (acil, {"num_envs": 16, "num_steps": 16, "estimator.features": "quadratic", "learning_rate": 0.1}),
    "gradient-free": (gradient_free, {"num_envs": 8, "num_steps": 60, "learning_rate": 0.003}),
}


def exact():
    """(the queues, the two controllers (2, S, 2)) in the precision at hand."""
    mdp = two_queues()
    return mdp, jnp.broadcast_to(jnp.eye(2)[:, None], (2, mdp.states, 2))


def cost(mdp, theta, controllers):
    return -tabular.objective(mdp, mixture(theta, controllers))


def measured(thetas, base: float) -> dict[str, np.ndarray]:
    """The exact measures of final logits (seeds, 2)."""
    with jax.enable_x64(True):
        mdp, controllers = exact()
        costs = np.array([float(cost(mdp, jnp.asarray(np.asarray(theta, np.float64)), controllers)) for theta in thetas])
    weights = jax.nn.softmax(np.asarray(thetas, np.float32), axis=-1)
    return {COST: costs, RELATIVE: costs / base, IMBALANCE: np.abs(np.asarray(weights, np.float64)[:, 0] - 0.5)}


def ascended() -> np.ndarray:
    """The logits after the exact steps; nothing is random."""
    with jax.enable_x64(True):
        mdp, controllers = exact()
        step = jax.jit(lambda _, theta: theta + RATE * exact_gradient(mdp, theta, controllers))
        return np.asarray(jax.lax.fori_loop(0, STEPS, step, jnp.asarray(START)))


def run(seeds: list[int]) -> dict[str, Side]:
    with jax.enable_x64(True):
        mdp, controllers = exact()
        base = min(-float(tabular.objective(mdp, controller)) for controller in controllers)
    same = {COST: np.full(len(seeds), base), RELATIVE: np.ones(len(seeds))}
    sides = {"best controller": Side({}, same), "exact gradient": Side({"rate": RATE, "steps": STEPS}, measured([ascended()] * len(seeds), base))}
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    for name, (composition, changes) in SAMPLED.items():
        env = make("exact:two-queue-lengths")
        method = replace(composition(None), {**QUEUES, **changes})
        task = ControlTask(env, ITERATIONS * method.steps_per_iteration)

        def trained(key, method=method, task=task):
            state = jax.lax.fori_loop(0, ITERATIONS, lambda _, s: method.step(task, s)[0], method.init(task, key))
            return state.policy.gate.theta

        sides[name] = Side(configuration(method), measured(jax.jit(jax.vmap(trained))(keys), base))
    return sides


CLAIM = Claim(
    method="improper_rl",
    statement="A learnt mixture beats every base controller, also where each of them alone is unstable.",
    baseline="the better of the two controllers",
    task="two queues with buffers of 10 and arrivals of .45 each; one controller always serves the first, the other the second; the cost is the "
    "backlog, discount .95, start empty, weights at the start about (.9, .1); exact costs of the mixtures learnt",
    run=run,
    checks=(
        Check(RELATIVE, "exact gradient", below=0.6),
        Check(IMBALANCE, "exact gradient", below=0.05),
        Check(RELATIVE, "NACIL", below=0.7),
        Check(RELATIVE, "ACIL", below=0.7),
        Check(RELATIVE, "gradient-free", below=0.7),
    ),
    seconds=40,
)
