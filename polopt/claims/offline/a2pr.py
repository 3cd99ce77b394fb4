"""A2PR: where most logged actions are poor, the pull to the better of the logged and the model's action costs less than that to the logged one.

Every reward is less 1.5, which changes no order of actions, as in the claim on PRDC and for its reason: where the best value is 0
lambda = alpha / E|Q| grows without bound as the policy comes near it, and no pull holds anything. With the best at .6 and the logged mean at -.38 a
balance, alpha / d = .98 - d at a distance d from the best, is there for alpha < .24 only.

So the claim is one of values away from 0. Without the shift, at alpha = .5, it is the other way round: TD3+BC, which nothing holds, comes to .038
and A2PR stays at .119 (seeds 0 to 9; measured beside the claim, and no check of it).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import parts, spaces
from polopt.data.dataset import Dataset, DataTask
from polopt.methods.offline.a2pr import a2pr
from polopt.methods.offline.td3_bc import td3_bc

SAMPLES, UPDATES, BEST, SHIFT = 1000, 3000, 0.6, -1.5
POOR, GOOD, SHARE, SPREAD = -0.6, 0.5, 0.2, 0.15
REGRET = "mean squared distance of the policy's action from the best"
UNIT = spaces.Box(-1.0, 1.0, (1,))


def log_of(key) -> Dataset:
    """Actions around -.6, every fifth around .5, with the reward -(a - .6)^2; the state says nothing."""
    k_state, k_good, k_action = jax.random.split(key, 3)
    state = jax.random.uniform(k_state, (SAMPLES, 1), minval=-1)
    centre = jnp.where(jax.random.uniform(k_good, (SAMPLES, 1)) < SHARE, GOOD, POOR)
    action = centre + SPREAD * jax.random.normal(k_action, (SAMPLES, 1))
    ends = jnp.ones(SAMPLES, bool)
    return Dataset(state, action, -((action[:, 0] - BEST) ** 2), state, ends, ~ends, UNIT, UNIT)


def sized(method, alpha: float, shift: float):
    """Networks of two layers of 16 and steps of .001 for every method alike."""
    known = parts.fields(method)
    sizes = {name: (16, 16) for name in known if name.endswith("network.hidden")}
    steps = {name: 1e-3 for name in known if name.endswith("step.learning_rate")}
    return parts.replace(method, {**sizes, **steps, "alpha": alpha, "rewards.shift": shift})


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0))
def missed(method, key, start):
    """The last policy's REGRET over the logged states."""
    data = log_of(jax.random.fold_in(key, 0xDA7A))
    task = DataTask(data, UPDATES)
    policy = method.policy(jax.lax.fori_loop(0, UPDATES // method.updates, lambda _, s: method.step(task, s)[0], start))
    return jnp.mean((jax.vmap(lambda s: policy.act((), s)[1])(data.observation) - BEST) ** 2)


@jax.jit
def begun(method, keys):
    """Where training starts, for each key; not by vmap, see measures._train."""
    return jax.lax.map(lambda key: method.init(DataTask(log_of(jax.random.fold_in(key, 0xDA7A)), UPDATES), key), keys)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    sides = {}
    for alpha, shift, word in ((0.5, SHIFT, ""), (2.5, SHIFT, ""), (0.5, 0.0, ", values near 0")):
        for name, composed in (("A2PR", a2pr), ("TD3+BC", td3_bc)):
            method = sized(composed(None), alpha, shift)
            regret = np.asarray(missed(method, keys, begun(method, keys)), np.float64)
            sides[f"{name}, alpha = {alpha:g}{word}"] = Side({**configuration(method), "updates": UPDATES, "transitions": SAMPLES}, {REGRET: regret})
    return sides


CLAIM = Claim(
    method="a2pr",
    statement="Where most logged actions are poor and values are away from 0, the pull to whichever of the logged and the model's action is better "
    "leaves the policy nearer to the best action than the pull to the logged one, at the same weight of the critic.",
    baseline="TD3+BC with the same alpha, sizes, steps and updates",
    task="1000 actions, four fifths N(-.6, .15^2) and a fifth N(.5, .15^2), reward -(a - .6)^2 - 1.5, episodes of one step; all networks two layers "
    "of 16, Adam .001, 3000 updates of 256; critic, V and autoencoder learnt",
    run=run,
    checks=tuple(Check(REGRET, f"A2PR, alpha = {a}", over=f"TD3+BC, alpha = {a}", ratio=True, below=0.4) for a in ("0.5", "2.5")),
    seconds=60,
)
