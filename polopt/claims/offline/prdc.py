"""PRDC: where good actions were logged at some states only, the pull to the nearest logged pair lets the policy use them at the states beside.

Every reward is less 1.5, which changes no order of actions. Where the best value is 0 lambda = alpha / E|Q| grows without bound as the policy comes
near it, and no pull holds anything: with the best at .8 and seven tenths of the pulls towards -.8 a balance would need lambda / (1 + lambda)^2 = 1.4,
which is never above a quarter. How it goes without is measured beside it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import spaces
from polopt.core.parts import replace
from polopt.data.dataset import Dataset
from polopt.data.replay import Transitions
from polopt.loops.actor_critic import STEP
from polopt.loops.offline import knowing
from polopt.methods.offline.prdc import prdc
from polopt.methods.offline.td3_bc import td3_bc
from polopt.policies.actor import Normaliser

STATES, GOOD, SHARE, NOISE = 400, 0.8, 0.3, 0.1
UPDATES, RATE, SHIFT = 1500, 0.02, -1.5
REWARD = "mean reward of the policy, without the shift"
UNIT = spaces.Box(-1.0, 1.0, (1,))


def log_of(key) -> Dataset:
    """One action for each state, near .8 or near -.8, and the reward -(a - .8)^2."""
    k_state, k_good, k_noise = jax.random.split(key, 3)
    state = jax.random.uniform(k_state, (STATES, 1), minval=-1)
    sign = jnp.where(jax.random.uniform(k_good, (STATES, 1)) < SHARE, 1.0, -1.0)
    action = GOOD * sign + NOISE * jax.random.normal(k_noise, (STATES, 1))
    ends = jnp.ones(STATES, bool)
    return Dataset(state, action, reward(action), state, ends, ~ends, UNIT, UNIT)


def reward(action):
    return -((action[:, 0] - GOOD) ** 2)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def earned(method, shift, key):
    """Mean reward, without the shift, of one action a state that is moved along the gradient of the method's actor loss, the critic being exact."""
    data = log_of(key)
    normaliser = Normaliser(UNIT, data.statistics())
    objective = knowing(method.rule, data, normaliser).objective
    seen, nothing = jax.vmap(normaliser)(data.observation), jnp.zeros(STATES)
    batch = Transitions(seen, data.action, data.reward, nothing, seen, nothing + 1, jnp.zeros((STATES, 2), jnp.int32))
    step = replace(STEP, {"learning_rate": RATE})

    def update(_, carry):
        gradient = jax.grad(lambda action: objective(lambda a: reward(a) + shift, action, batch))(carry[0])
        return step.update(gradient, carry[1], carry[0], 0.0)

    start = jnp.zeros((STATES, 1))
    return jnp.mean(reward(jax.lax.fori_loop(0, UPDATES, update, (start, step.init(start)))[0]))


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    methods = {"TD3+BC": (td3_bc(None), SHIFT)}
    methods |= {f"PRDC, beta = {b:g}": (replace(prdc(None), {"beta": b}), SHIFT) for b in (2.0, 10.0, 1000.0)}
    methods |= {"TD3+BC, values near 0": (td3_bc(None), 0.0)}
    sides = {}
    for name, (method, shift) in methods.items():
        settings = {"updates of the actions": UPDATES, "their step": RATE, "shift of the rewards": shift}
        sides[name] = Side({**configuration(method), **settings}, {REWARD: np.asarray(earned(method, jnp.float32(shift), keys), np.float64)})
    return sides


CLAIM = Claim(
    method="prdc",
    statement="Where good actions were logged at some states only, the pull to the nearest logged pair lets the policy take them at the states "
    "beside; the pull to the state's own logged action does not, nor does a beta so large that the nearest pair is the state's own.",
    baseline="TD3+BC, and PRDC with beta = 1000, with the same weight alpha = 2.5 of the critic",
    task="400 states in [-1, 1] with one logged action each, near .8 with probability .3, else near -.8, deviation .1; reward -(a - .8)^2 - 1.5, "
    "exact critic, one action a state, 1500 Adam steps of .02",
    run=run,
    checks=(
        Check(REWARD, "PRDC, beta = 2", above=-0.02),
        Check(REWARD, "TD3+BC", below=-0.2),
        Check(REWARD, "PRDC, beta = 1000", below=-0.2),
    ),
    seconds=45,
)
