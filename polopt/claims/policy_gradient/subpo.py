"""SubPO: paid marginal gains, a policy covers much; paid for each visit by itself, it stays where much is covered at once."""

import functools

import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN, trained
from polopt.core.parts import replace
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods.policy_gradient.subpo import modpo, subpo

COVERED = "covered cells"
TRAJECTORIES, UPDATES = 300, 200
METHODS = {"SubPO": subpo, "MODPO": modpo}


@functools.cache
def task() -> ControlTask:
    env = make("coverage:grid:table")
    return ControlTask(env, UPDATES * TRAJECTORIES * env.dynamics.horizon)


def run(seeds: list[int]) -> dict[str, Side]:
    value = task().env.dynamics.value
    corner = float(value(jnp.zeros(49, bool).at[0].set(True)))  # what s_0 covers, which no reward pays
    sides = {}
    for name, method in METHODS.items():
        # No hidden layers: with one number for each state and step the policy is a table of logits. The gradient of an entry is small, since
        # it is a mean over all samples, so that Adam's epsilon is its authors' and not the larger one of this library.
        changes = {"num_envs": TRAJECTORIES, "network.hidden": (), "learning_rate": 0.05, "epsilon": 1e-8}
        side = trained(replace(method(task()), changes), task(), seeds, episodes=300)
        side.numbers[COVERED] = side.numbers[FINAL_RETURN] + corner
        sides[name] = side
    return sides


CLAIM = Claim(
    method="subpo",
    statement="Rewarding marginal gains yields trajectories with much higher set value than rewarding the modular sum.",
    baseline="MODPO: the same policy gradient, paid the value of each visited state by itself",
    task="7 x 7 grid, start in a corner, five actions, 16 steps, coverage of the visited cells and their four neighbours; a table of logits for "
    "each state and step, 200 updates of 300 trajectories, Adam .05",
    run=run,
    checks=(
        Check(COVERED, "SubPO", above=34),
        Check(COVERED, "SubPO", over="MODPO", ratio=True, above=1.5),
    ),
    seconds=100,
)
