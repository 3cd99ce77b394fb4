"""TRPO: a step measured in KL crosses a plateau on which the plain gradient stalls, and keeps its budget."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import simulated, trained
from polopt.envs.exact import problems, tabular
from polopt.methods.policy_gradient.trpo import trpo
from polopt.optim.trust_region import backtrack, hessian_product, natural_direction

DELTA, DAMPING, ITERATIONS, TRIES, SHRINK = 0.01, 0.0, 10, 10, 0.8
LONG, SHORT = 3000, 100  # updates of gradient ascent and of TRPO
RATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NEAR = 0.98  # of the optimal return
NUMBER = "updates to 0.98 J*"


def start(seed: int):
    """The logits of the catalogue's plateau, (stay, move) by state, with a little noise so that seeds differ."""
    return jnp.array([[3.0, 0.0], [-1.0, 1.0]]) + 0.1 * jax.random.normal(jax.random.key(seed), (2, 2))


def exact_trpo(mdp, logits):
    """One update with exact advantages and state distribution: (logits, KL)."""
    old = jax.nn.softmax(logits)
    advantage = tabular.advantages(mdp, old)
    visits = tabular.occupancy(mdp, old, normalised=True).sum(axis=1)

    def surrogate(new):
        return jnp.sum(visits[:, None] * jax.nn.softmax(new) * advantage) / (1 - mdp.discount)

    def kl(new):
        return jnp.sum(visits[:, None] * old * (jnp.log(old) - jax.nn.log_softmax(new)))

    direction, curvature = natural_direction(hessian_product(kl, logits), jax.grad(surrogate)(logits), ITERATIONS, DAMPING)
    full = jnp.sqrt(2 * DELTA / jnp.maximum(curvature, 1e-12)) * direction
    found = backtrack(logits, full, lambda new: (kl(new) <= DELTA) & (surrogate(new) > surrogate(logits)), TRIES, SHRINK)
    return found.params, kl(found.params)


def climb(update, mdp, logits, updates: int):
    """Returns (updates + 1,), and what each update reports (updates,)."""

    def step(logits, _):
        logits, report = update(logits)
        return logits, (tabular.objective(mdp, jax.nn.softmax(logits)), report)

    _, (returns, reports) = jax.lax.scan(step, logits, length=updates)
    return jnp.concatenate([tabular.objective(mdp, jax.nn.softmax(logits))[None], returns]), reports


def run(seeds: list[int]) -> dict[str, Side]:
    with jax.enable_x64(True):
        mdp = problems.stay_move()
        goal = NEAR * float(tabular.objective(mdp, tabular.optimal(mdp).policy))
        starts = jnp.stack([start(seed) for seed in seeds])

        def ascent(rate):
            def update(logits):
                return logits + rate * tabular.policy_gradient(mdp, logits), jnp.zeros(())

            return jax.jit(jax.vmap(lambda logits: climb(update, mdp, logits, LONG)[0]))(starts)

        ours, kl = jax.jit(jax.vmap(lambda logits: climb(lambda z: exact_trpo(mdp, z), mdp, logits, SHORT)))(starts)
        plain = np.stack([np.asarray(ascent(rate)) for rate in RATES], axis=1)
        ours, kl = np.asarray(ours), np.asarray(kl)
    arrival = [np.where((x >= goal).any(axis=-1), (x >= goal).argmax(axis=-1), x.shape[-1]).astype(float) for x in (ours, plain)]
    task = simulated("CartPole-v1", steps=60_000)
    sampled = trained(trpo(task), task, seeds, metrics=("kl",))
    sampled.numbers["largest mean KL of an update"] = sampled.curves["kl"][1].max(axis=1)
    shown = {"J": (np.arange(SHORT + 1), ours, "updates")}
    setting = {"delta": DELTA, "damping": DAMPING, "cg_iterations": ITERATIONS, "tries": TRIES, "shrink": SHRINK}
    numbers = {NUMBER: arrival[0], "smallest gain of an update": np.diff(ours, axis=1).min(axis=1), "largest KL": kl.max(axis=1)}
    return {
        "TRPO": Side(setting, numbers, shown),
        "best gradient ascent": Side({"rates": RATES}, {NUMBER: arrival[1].min(axis=1)}),
        "sampled TRPO": sampled,
    }


CLAIM = Claim(
    method="trpo",
    statement="Steps of a given KL improve monotonically, keep their budget, and leave a plateau on which plain gradient ascent stalls.",
    baseline="gradient ascent with the best of the step sizes 0.001, 0.01, 0.1, 1 and 10, from the same logits",
    task="a two-state stay-or-move problem with exact advantages, from near-deterministic logits; and CartPole-v1, 60k steps",
    run=run,
    checks=(
        Check(NUMBER, "TRPO", below=40),
        Check(NUMBER, "best gradient ascent", over="TRPO", ratio=True, above=3),
        Check("smallest gain of an update", "TRPO", above=-1e-9),
        Check("largest KL", "TRPO", below=0.01 + 1e-9),
        Check("final return", "sampled TRPO", above=350),
        Check("largest mean KL of an update", "sampled TRPO", below=0.015),
    ),
    seconds=20,
)
