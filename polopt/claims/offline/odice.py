"""ODICE: the projection keeps the whole forward gradient, which the true gradient nearly cancels, and keeps consecutive states apart.

Nothing is claimed of returns: on a grid where every move is in the log nothing is unknown, and the true gradient, which is that of the loss itself,
has nothing to lose.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.claims.offline.iql import GRID
from polopt.claims.offline.moves import random_moves
from polopt.core.parts import replace
from polopt.data.dataset import DataTask
from polopt.envs.exact.problems import grid_cells, gridworld
from polopt.methods.offline.odice import TrueGradient, forward_gradient, odice, true_gradient

TRANSITIONS, UPDATES, EVERY, BEGIN = 3000, 3000, 10, 500
KEPT, ALIKE = "<G, G_f> / <G_f, G_f> of the nonlinear term", "inner product of the features of s and s'"
SIZES = {
    "rule.value_network.hidden": (64, 64),
    "rule.actor_network.hidden": (8,),  # it does not matter here
    "rule.value_step.learning_rate": 1e-3,
    "rule.values": 1,
    "rule.layer_norm": False,
    "updates": EVERY,
}


def coordinates() -> jax.Array:
    """(S, 2): row and column of each state, from -1 to 1."""
    cells, _ = grid_cells(GRID)
    return jnp.asarray(2 * np.array(cells) / (len(GRID) - 1) - 1, jnp.float32)


def looked_at(method, data, state, key):
    """(<G, G_f>, <G_f, G_f>, likeness of the features) on a minibatch."""
    rule, value = method.rule, state.learner.critic
    batch = method.minibatches(data, state.normaliser)(key)
    slow = value if isinstance(rule.gradient, TrueGradient) else state.learner.target_critic
    loss = lambda now, after: rule.nonlinear(now, after, batch)  # noqa: E731
    whole, forward = (ravel_pytree(gradient(loss, value, slow))[0] for gradient in (rule.gradient, forward_gradient))
    now, after = (jax.vmap(lambda x: value[0].torso((), x, ())[1])(o[0]) for o in (batch.observation, batch.next_observation))
    return whole @ forward, forward @ forward, jnp.mean(jnp.sum(now * after, axis=1))


@jax.jit
def measured(method, keys):
    """Both measures (seeds,), averaged over training from update BEGIN on: the share is that of the sums."""
    mdp = gridworld(GRID, step_reward=-1.0, discount=0.99)
    logs = jax.vmap(lambda key: random_moves(mdp, coordinates(), jax.random.fold_in(key, 0xDA7A), TRANSITIONS))(keys)
    starts = jax.lax.map(lambda both: method.init(DataTask(both[0], UPDATES), both[1]), (logs, keys))  # not by vmap; see measures._train

    def one(data, key, state):
        def part(state, i):
            state = method.step(DataTask(data, UPDATES), state)[0]
            return state, looked_at(method, data, state, jax.random.fold_in(key, i))

        whole, forward, alike = (x[BEGIN // EVERY :] for x in jax.lax.scan(part, state, jnp.arange(UPDATES // EVERY))[1])
        return whole.sum() / forward.sum(), alike.mean()

    return jax.vmap(one)(logs, keys, starts)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    sides = {}
    semi = replace(odice(None), {"eta": 0.0})
    for name, method in (("ODICE", odice(None)), ("true gradient", true_gradient(None)), ("semi-gradient", semi)):
        method = replace(method, SIZES)
        kept, alike = (np.asarray(x, np.float64) for x in measured(method, keys))
        sides[name] = Side({**configuration(method), "transitions": TRANSITIONS, "grid": "/".join(GRID)}, {KEPT: kept, ALIKE: alike})
    return sides


CLAIM = Claim(
    method="odice",
    statement="Forward and backward gradient of the dual loss nearly cancel. The projection keeps the whole forward gradient, and the features of "
    "consecutive states stay farther apart.",
    baseline="the gradient of the same loss without the projection, with the same sizes and updates",
    task="8x8 grid split by a wall with two gaps, -1 a step and 0 at the goal, discount .99; 3000 transitions of uniform states and actions; V of "
    "two layers of 64 from the coordinates, 3000 updates of 256 transitions, Adam .001; measured from update 500 on",
    run=run,
    checks=(
        Check(KEPT, "ODICE", above=1 - 1e-4),
        Check(KEPT, "ODICE", below=1 + 1e-4),
        Check(KEPT, "true gradient", below=0.3),
        Check(ALIKE, "ODICE", over="true gradient", ratio=True, below=0.6),
    ),
    seconds=60,
    analysis="The semi-gradient's features are as far apart as ODICE's here: what keeps them so is that the forward gradient is whole. The true "
    "gradient's are alike because its V is some hundred times as large; it rests where (f*)'(y) is 1 / (1 - gamma) times what it is at ODICE's rest.",
)
