"""What the offline claims share: logs of a pendulum that is swung up by a rule of thumb, well or badly, and training from them."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Side
from polopt.claims.measures import FINAL_RETURN, configuration, simulated
from polopt.core import parts, spaces
from polopt.data.dataset import Dataset, DataTask, concatenated
from polopt.run.collect import record
from polopt.run.evaluate import episode_returns

TRANSITIONS, UPDATES, EPISODES = 8_000, 8_000, 32
EXPERT, NOISY, MIXED = ((0.0, 1.0),), ((0.6, 1.0),), ((0.0, 0.25), (1.0, 0.75))  # (clumsy, share of the transitions) each
SETTING = (
    "Pendulum-v1; 8000 logged transitions of a rule that swings it up, a log of its own for each seed; 8000 updates of 128 transitions, two layers "
    "of 64, Adam 3e-4, discount .99, targets take .005"
)


class Swinger(eqx.Module):
    """Pumps energy into the pendulum and balances it near the top; each action is uniform with probability `clumsy`."""

    clumsy: jax.Array
    observation_space: spaces.Space = eqx.field(static=True)
    action_space: spaces.Space = eqx.field(static=True)

    def initial_carry(self):
        return ()

    def act(self, carry, observation, key=None):
        cosine, sine, speed = observation
        angle = jnp.arctan2(sine, cosine)  # 0 is up
        energy = speed**2 / 6 + 5 * cosine  # 5 at rest at the top, in units of m l g / 2 = 5
        pump = jnp.where(speed >= 0, 1.0, -1.0) * jnp.clip(2.0 * (5.0 - energy), -2, 2)
        balance = -12.0 * angle - 3.0 * speed
        torque = jnp.clip(jnp.where(cosine > 0.85, balance, pump), -2, 2)[None]
        if key is None:
            return carry, torque
        k_chance, k_action = jax.random.split(key)
        other = jax.random.uniform(k_action, (1,), minval=-2, maxval=2)
        return carry, jnp.where(jax.random.uniform(k_chance) < self.clumsy, other, torque)


@functools.cache
def logs(seed: int, shares: tuple[tuple[float, float], ...], n: int = TRANSITIONS) -> Dataset:
    """A log of swingers: (clumsy, share of the transitions) each."""
    env = simulated("Pendulum-v1", 1).env
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0xDA7A), len(shares))
    pieces = []
    for (clumsy, share), key in zip(shares, keys):
        pieces.append(record(Swinger(jnp.float32(clumsy), env.observation_space, env.action_space), env, round(share * n), key))
    return concatenated(pieces, "pendulum")


def sized(method, **changes):
    """The sizes of SETTING, for every method alike; rewards times .1 where they are read."""
    known = parts.fields(method)
    sizes = {name: (64, 64) for name in known if name.endswith("network.hidden")}
    scale = {"rewards.scale": 0.1} if "rewards.scale" in known else {}
    return parts.replace(method, {**sizes, **scale, "batch_size": 128, **changes})


def learnt(method, datasets: list[Dataset], seeds: list[int], updates: int = UPDATES) -> Side:
    """A side that is trained from a log of its own for each seed: the return of its last policy."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(jax.tree.map(np.asarray, d) for d in datasets))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    env = simulated("Pendulum-v1", 1).env
    reason = method.refuse(DataTask(datasets[0], updates))
    if reason:
        raise ValueError(f"{type(method).__name__} {reason}.")
    final = np.asarray(_train(method, stacked, env, keys, updates=updates), np.float64)
    return Side({**configuration(method), "updates": updates, "transitions": len(datasets[0])}, {FINAL_RETURN: final})


def made(datasets: list[Dataset]) -> Side:
    """What those who made the logs earned."""
    return Side({"transitions": len(datasets[0])}, {FINAL_RETURN: np.array([d.episodes().returns.mean() for d in datasets])})


@functools.partial(jax.jit, static_argnames="updates")
def _train(method, stacked, env, keys, *, updates: int):
    starts = jax.lax.map(lambda both: method.init(DataTask(both[0], updates), both[1]), (stacked, keys))  # not by vmap; see measures._train

    def one(data, key, state):
        task = DataTask(data, updates)
        state = jax.lax.fori_loop(0, updates // method.updates, lambda _, s: method.step(task, s)[0], state)
        return episode_returns(method.policy(state), env, jax.random.fold_in(key, 0x0F17A1), episodes=EPISODES)[0].mean()

    return jax.vmap(one)(stacked, keys, starts)
