"""CFPI: the closed-form step improves on cloned means, and where two kinds of actions were logged that from a mixture beats that from one Gaussian.

With and without the step the same model of the log and the same critics are deployed. With both exact the mean squared distances are .604 for the
Gaussian's mean, .079 for the step from it, .0225 for the mixture's better mean and .0025 for the step from that.
"""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import spaces
from polopt.core.parts import replace
from polopt.data.dataset import Dataset, DataTask
from polopt.methods.offline.cfpi import cfpi

SAMPLES, UPDATES, JUDGED = 5000, 1500, 500
REGRET = "mean squared distance of the policy's action from the best"
SQUARE = spaces.Box(-1.0, 1.0, (2,))
SIZES = {
    "rule.actor_network.hidden": (64, 64),
    "rule.critic_network.hidden": (64, 64),
    "rule.actor_step.learning_rate": 1e-3,
    "rule.critic_step.learning_rate": 1e-3,
    "rule.cosines": 8,
    "rule.quantiles": 4,
    "batch_size": 128,
}


def centre(state):
    """The mean (n, 2) of the better of the two kinds of logged actions; the other's is minus it."""
    return jnp.stack([0.5 + 0.2 * state[:, 0], jnp.full(state.shape[0], 0.5)], axis=1)


def best(state):
    return centre(state) + 0.15 * jnp.stack([jnp.cos(2 * state[:, 1]), jnp.sin(2 * state[:, 1])], axis=1)


def log_of(key) -> Dataset:
    keys = jax.random.split(key, 4)
    state = jax.random.uniform(keys[0], (SAMPLES, 2), minval=-1)
    sign = jnp.where(jax.random.bernoulli(keys[1], 0.5, (SAMPLES, 1)), 1.0, -1.0)
    action = sign * centre(state) + 0.1 * jax.random.normal(keys[2], (SAMPLES, 2))
    reward = -jnp.sum((action - best(state)) ** 2, axis=1) + 0.1 * jax.random.normal(keys[3], (SAMPLES,))
    ends = jnp.ones(SAMPLES, bool)
    return Dataset(state, action, reward, state, ends, ~ends, SQUARE, SQUARE)


@jax.jit
def learnt(method, keys):
    """The states after training, one for each key."""

    def task(key):
        return DataTask(log_of(jax.random.fold_in(key, 0xDA7A)), UPDATES)

    starts = jax.lax.map(lambda key: method.init(task(key), key), keys)  # not by vmap; see measures._train
    many = UPDATES // method.updates
    return jax.vmap(lambda key, start: jax.lax.fori_loop(0, many, lambda _, s: method.step(task(key), s)[0], start))(keys, starts)


@jax.jit
def missed(method, states, keys):
    """REGRET (seeds,) on new states, of what a method deploys after learning."""

    def one(state, key):
        policy = method.policy(state)
        seen = jax.random.uniform(jax.random.fold_in(key, 0x0F17A1), (JUDGED, 2), minval=-1)
        return jnp.mean(jnp.sum((jax.vmap(lambda s: policy.act((), s)[1])(seen) - best(seen)) ** 2, axis=1))

    return jax.vmap(one)(states, keys)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    mixture, gaussian = (replace(cfpi(None), {**SIZES, "components": count}) for count in (2, 1))
    sides = {}
    for method, step, none in ((mixture, "CFPI of a mixture", "the mixture's better mean"), (gaussian, "CFPI of a Gaussian", "the Gaussian's mean")):
        states = learnt(method, keys)
        for name, deployed in ((step, method), (none, replace(method, {"delta": 0.0, "unlikely": "keep"}))):
            regret = np.asarray(missed(deployed, states, keys), np.float64)
            sides[name] = Side({**configuration(deployed), "updates": UPDATES, "transitions": SAMPLES}, {REGRET: regret})
    return sides


CLAIM = Claim(
    method="cfpi",
    statement="One closed-form step improves on the cloned policy, and where two kinds of actions were logged that from a mixture of Gaussians comes "
    "nearer to the best action than that from one.",
    baseline="the better of the mixture's means by the same critics (delta = 0), the step from a single Gaussian, and its mean",
    task="5000 actions of two entries, half N(m, .1^2) and half N(-m, .1^2), m = (.5 + .2 s_1, .5); reward minus the squared distance from an action "
    ".15 beside m, plus N(0, .1^2); networks of two layers of 64, Adam .001, 1500 updates of 128",
    run=run,
    checks=(
        Check(REGRET, "CFPI of a mixture", over="the mixture's better mean", ratio=True, below=0.6),
        Check(REGRET, "CFPI of a mixture", over="CFPI of a Gaussian", ratio=True, below=0.3),
    ),
    seconds=80,
)
