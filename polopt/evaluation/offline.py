"""How good is a policy, told from logged data alone: every estimator that applies, with intervals and with what speaks against them.

The value is the discounted return of the policy from the first states of the logged episodes: E[ sum_t gamma^t r_t ]. With discount 1 it is the
return of an episode that ends where the logged ones end.

Terminated steps are worth nothing behind them. A truncated episode goes on: fitted Q evaluation, DICE and DR value what lies behind the cut,
importance sampling ends there, and says after how many steps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import parts, spaces
from polopt.core.actions import encoded, to_unit
from polopt.data.dataset import DataError, Dataset, DataTask
from polopt.evaluation import fitted, weighting
from polopt.evaluation.fitted import Rows, Sums, Table, Waves
from polopt.evaluation.weighting import Judged, Trajectories
from polopt.methods.offline.bc import bc
from polopt.objectives import importance
from polopt.policies.density import distribution, has_density, log_prob

UPDATES = 3000  # of the clone of who made the data
DRAWS = 8  # actions by which an expectation over a continuous policy is taken
FEW_EFFECTIVE = 10  # effective episodes, below which weighted estimates are not to be trusted
FEW_EPISODES = 20  # below which no interval is
CLONE = {"rule.network.hidden": (64, 64), "rule.step.learning_rate": 1e-3, "batch_size": 256, "updates": 100}

ORDER = ("FQE", "DICE", "IS", "WIS", "PDIS", "WPDIS", "DR", "WDR")
WEIGHTED = ("IS", "WIS", "PDIS", "WPDIS", "DR", "WDR")
NAMES = {
    "FQE": "fitted Q evaluation",
    "DICE": "DualDICE",
    "IS": "importance sampling",
    "WIS": "weighted importance sampling",
    "PDIS": "per-decision importance sampling",
    "WPDIS": "weighted per-decision importance sampling",
    "DR": "doubly robust",
    "WDR": "weighted doubly robust",
}


class Log(NamedTuple):
    """A dataset as evaluation takes it: arrays of NumPy, where episodes lie, and who made it."""

    dataset: Dataset
    state: np.ndarray
    after: np.ndarray
    action: np.ndarray
    start: np.ndarray
    lengths: np.ndarray
    log_behaviour: np.ndarray | None  # (n,) log b(a|s) of the logged actions, None where it is estimated
    clone: Any  # the estimated policy, or None


def prepared(dataset: Dataset, behaviour=None, *, stochastic: bool = False, key: int = 0) -> Log:
    """A dataset made ready, once for all policies. behaviour: (n,) probabilities of the logged actions; without them a clone is fitted.

    A policy that takes one action of a continuum has no weights, so that no clone is fitted for it.
    """
    space = dataset.action_space
    if isinstance(space, spaces.Dict) or spaces.images(dataset.observation_space):
        what = "actions of several parts" if isinstance(space, spaces.Dict) else "pictures"
        raise DataError(f"{dataset.name} has {what}, from which no value is fitted here; give a dataset of vectors.")
    numbers = [np.asarray(dataset.vectors(x), np.float64) for x in (dataset.observation, dataset.next_observation)]
    action = np.asarray(jax.vmap(lambda a: _numbers(space, a))(jnp.asarray(dataset.action)), np.float64)
    episodes = dataset.episodes()
    weighed = stochastic or not isinstance(space, spaces.Box)
    clone = cloned(dataset, key) if behaviour is None and weighed else None
    log_behaviour = None if behaviour is None else np.log(np.asarray(behaviour, np.float64))
    return Log(dataset, *numbers, action, episodes.start, episodes.lengths, log_behaviour, clone)


def _numbers(space: spaces.Space, action):
    """An action as features take it (k,): a bounded box's in [-1, 1], whole numbers as one-hot."""
    unit = isinstance(space, spaces.Box) and space.bounded
    return jnp.ravel(to_unit(space, action) if unit else encoded(space, action)).astype(jnp.float32)


def cloned(dataset: Dataset, key: int):
    """A policy of high likelihood for the logged actions."""
    task = DataTask(dataset.on_device(), UPDATES)
    method = parts.replace(bc(task), CLONE)
    reason = method.refuse(task)
    if reason:
        raise DataError(f"Who made {dataset.name} cannot be cloned: cloning {reason}.")

    @jax.jit
    def fit(key):
        return jax.lax.fori_loop(0, UPDATES // method.updates, lambda _, s: method.step(task, s)[0], method.init(task, key))

    return method.policy(fit(jax.random.key(key)))


def evaluate(log: Log, policy, discount: float, *, stochastic: bool = False, key: int = 0) -> dict[str, Any]:
    """All estimates of a policy's value, as JSON.

    stochastic: the policy draws its actions; else it takes the most likely ones. key: of draws, of random features and of resamples.
    """
    if not 0 <= discount <= 1:
        raise DataError(f"The discount is {discount}, but a number from 0 to 1 is expected.")
    if jax.tree.leaves(policy.initial_carry()):
        raise DataError(
            "The policy remembers what it has seen, so that its value is no function of the state, which every estimate here takes it for. "
            "Evaluate it in an environment, with `polopt evaluate DIR --env ENV`."
        )
    rng = np.random.default_rng(key)
    refused: dict[str, str] = {}
    found: dict[str, Any] = {}
    notes = []
    truncated = int(np.sum(np.asarray(log.dataset.truncated)))
    acts = _Acts(log, policy, stochastic, jax.random.key(key))
    if discount == 1 and truncated:
        reason = f"with discount 1, {truncated} truncated episodes have no value behind their ends; give a discount below 1"
        refused |= dict.fromkeys(("FQE", "DICE", "DR", "WDR"), reason)
        judged, largest = None, None
    else:
        found["FQE"], found["DICE"], judged, largest = _fits(log, acts, discount, rng)
        if largest >= 1:
            notes.append(f"Fitted Q evaluation would not converge (spectral radius {largest:.2f}): the data do not cover what the policy does.")
    reason, log_ratio = _ratios(log, policy, stochastic, acts)
    size = None
    if reason:
        refused |= dict.fromkeys(WEIGHTED, reason)
    else:
        rows = _padded(log, log_ratio)
        judged = None if judged is None else Judged(*(_rows(log, x) for x in judged[:2]), judged[2])
        for name, (each, normalised) in weighting.terms(rows, discount, judged).items():
            found[name] = weighting.estimate(each, normalised, rng)
        size = float(importance.effective_sample_size(importance.cumulative_ratios(rows.log_ratio, mask=rows.mask)[:, -1]))
    notes += _doubts(log, found, size, discount)
    return {
        "discount": discount,
        "policy": "draws its actions" if stochastic else "takes the most likely action",
        "value": _what(log, discount),
        "episodes": len(log.start),
        "transitions": len(log.dataset),
        "truncated": truncated,
        "horizon": int(log.lengths.max()),
        "behaviour": "estimated by behavioural cloning" if log.clone is not None else "not asked" if log.log_behaviour is None else "from the data",
        "effective_sample_size": size,
        "spectral_radius": largest,
        "estimates": {name: dict(found[name]._asdict()) for name in ORDER if name in found},
        "refused": {name: refused[name] for name in ORDER if name in refused},
        "notes": notes,
    }


class _Acts:
    """What a policy does: in any state its choices (n, m, k) and their weights (n, m)."""

    def __init__(self, log: Log, policy, stochastic: bool, key):
        self._space, self._policy, self._stochastic, self._key = log.dataset.action_space, policy, stochastic, key
        self._known = stochastic and isinstance(self._space, spaces.Discrete) and has_density(policy)
        self._call = jax.jit(self._probabilities if self._known else self._draws)

    def __call__(self, observation, chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
        n = len(jax.tree.leaves(observation)[0])
        keys = jax.random.split(self._key, n)
        pieces = [jax.tree.map(lambda x, at=at: jnp.asarray(x[at : at + chunk]), (observation, keys)) for at in range(0, n, chunk)]
        made = np.concatenate([np.asarray(self._call(*piece), np.float64) for piece in pieces])
        if self._known:
            return np.broadcast_to(np.eye(made.shape[1]), (n, made.shape[1], made.shape[1])), made
        return made, np.full(made.shape[:2], 1 / made.shape[1])

    def _probabilities(self, observation, keys):
        return jax.vmap(lambda o: jax.nn.softmax(distribution(self._policy, o).logits))(observation)

    def _draws(self, observation, keys):
        """(n, m, k): one action where the policy does not draw. Draws of different states are independent, so that their errors average out."""

        def one(o, key):
            draws = [(k,) for k in jax.random.split(key, DRAWS)] if self._stochastic else [()]
            return jnp.stack([_numbers(self._space, self._policy.act(self._policy.initial_carry(), o, *k)[1]) for k in draws])

        return jax.vmap(one)(observation, keys)


def _features(log: Log, rng: np.random.Generator):
    observations, actions = log.dataset.observation_space, log.dataset.action_space
    if isinstance(observations, spaces.Discrete) and isinstance(actions, spaces.Discrete) and observations.n * actions.n <= fitted.TABLE:
        return Table(observations.n, actions.n)
    return Waves(log.state, log.action, rng)


def _fits(log: Log, acts: _Acts, discount: float, rng: np.random.Generator):
    """FQE and DICE, the values that DR needs (Q and V of each step, V of each last state), and the spectral radius of FQE."""
    data = log.dataset
    ends = log.start + log.lengths - 1
    choices, weights = acts(data.next_observation)
    now = acts(data.observation)
    rows = Rows(log.state, log.action, np.asarray(data.reward, np.float64), log.after, 1.0 - np.asarray(data.terminated), choices, weights)
    start = (log.state[log.start], now[0][log.start], now[1][log.start])

    def summed(features) -> Sums:
        block = fitted.blocks_of(len(log.start), features.size)
        return fitted.sums(features, rows, np.repeat(block, log.lengths), block, start)

    features = _features(log, rng)
    total = summed(features)
    count = len(total.rows)
    fqe = fitted.refitted(fitted.fqe_value, total, discount, features.kind, rng)
    other = _features(log, rng)
    dice = fitted.refitted(fitted.dice_value, summed(other), discount, other.kind, rng)
    whole = fitted.system(total.weighed(np.ones(count)), discount, features.kind)
    # Cross-fitting: each half of the blocks is judged by what the other half was fitted to. With a single episode there is no other half.
    mine = np.repeat(fitted.blocks_of(len(log.start), features.size), log.lengths) % 2
    q, v, last = np.zeros(len(data)), np.zeros(len(data)), np.zeros(len(data))
    for half in (0, 1):
        counts = (np.arange(count) % 2 != half).astype(float) if count > 1 else np.ones(count)
        theta = fitted.fitted_q(fitted.system(total.weighed(counts), discount, features.kind))
        for at in range(0, len(data), fitted.ROWS):
            chosen = np.flatnonzero(mine[at : at + fitted.ROWS] == half) + at
            q[chosen] = features(log.state[chosen], log.action[chosen]) @ theta
            v[chosen] = fitted.expected(features, log.state[chosen], now[0][chosen], now[1][chosen]) @ theta
            behind = chosen[np.isin(chosen, ends)]
            last[behind] = rows.going[behind] * (fitted.expected(features, log.after[behind], choices[behind], weights[behind]) @ theta)
    return fqe, dice, (q, v, last[ends]), fitted.radius(whole)


def _ratios(log: Log, policy, stochastic: bool, acts: _Acts) -> tuple[str | None, np.ndarray | None]:
    """Why there are no importance weights, or log pi - log b of the logged actions."""
    data = log.dataset
    box = isinstance(data.action_space, spaces.Box)
    if box and not stochastic:
        return "the policy takes one action of a continuum, which no log contains; let it draw its actions (--stochastic) or take FQE and DICE", None
    if stochastic and not has_density(policy):
        return f"{type(policy).__name__} does not tell how likely its actions are; take FQE and DICE", None

    def likely(p):
        found = jax.jit(jax.vmap(lambda o, a: log_prob(distribution(p, o), a)))
        return np.asarray(found(jax.tree.map(jnp.asarray, data.observation), jnp.asarray(data.action)), np.float64)

    behaviour = log.log_behaviour if log.clone is None else likely(log.clone)
    if stochastic:
        return None, likely(policy) - behaviour
    same = np.all(acts(data.observation)[0][:, 0] == log.action, axis=1)
    return None, np.where(same, -behaviour, -np.inf)


def _rows(log: Log, x: np.ndarray) -> np.ndarray:
    """(n,) as (episodes, time), 0 behind the ends."""
    found = np.zeros((len(log.start), int(log.lengths.max())))
    found[np.arange(found.shape[1])[None] < log.lengths[:, None]] = x
    return found


def _padded(log: Log, log_ratio: np.ndarray) -> Trajectories:
    return Trajectories(_rows(log, log_ratio), _rows(log, np.asarray(log.dataset.reward, np.float64)), _rows(log, np.ones(len(log.dataset))))


def _what(log: Log, discount: float) -> str:
    """Which number is estimated."""
    where = "from the first states of the logged episodes"
    if discount == 1:
        return f"the undiscounted return of an episode {where}, ending where these end"
    horizon, going = int(log.lengths.max()), discount ** int(log.lengths.max())
    cut = f"; IS, WIS, PDIS and WPDIS: of its first {horizon} steps only (what follows weighs {going:.2g})" if log.dataset.truncated.any() else ""
    return f"the return {where}, discounted by {discount:g} a step, without end unless it terminates{cut}"


def _doubts(log: Log, found: dict[str, Any], size: float | None, discount: float) -> list[str]:
    """What speaks against the estimates, a sentence each."""
    doubts = []
    n = len(log.start)
    if n < FEW_EPISODES:
        doubts.append(f"There are {n} episodes: an interval from fewer than {FEW_EPISODES} is too narrow, whatever the estimator.")
    if size is not None and size < FEW_EFFECTIVE:
        doubts.append(
            f"The weights of the {n} episodes are worth {size:.1f} equally weighted ones: the policy does what the data do not, and IS, WIS, PDIS, "
            "WPDIS, DR and WDR, with their intervals, are not to be trusted."
        )
    reward = np.asarray(log.dataset.reward, np.float64)
    steps = 1 / (1 - discount) if discount < 1 else float(log.lengths.max())
    low, high = min(reward.min(), 0.0) * steps, max(reward.max(), 0.0) * steps
    slack = 1e-6 * (high - low)
    wild = [name for name in ORDER if name in found and not low - slack <= found[name].value <= high + slack]
    if wild:
        doubts.append(f"{', '.join(wild)}: no policy earns that: rewards lie between {reward.min():.4g} and {reward.max():.4g}; do not trust it.")
    for other in ("DICE", "WDR"):
        if "FQE" in found and other in found and not _overlap(found["FQE"], found[other]):
            doubts.append(f"FQE and {other} disagree, their intervals lie apart: trust neither before the policy has acted.")
    return doubts


def _overlap(a: weighting.Estimate, b: weighting.Estimate) -> bool:
    known = not any(math.isnan(x) for x in (*a, *b))
    return not known or (a.low <= b.high and b.low <= a.high)
