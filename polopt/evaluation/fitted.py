"""Fitted Q evaluation and a DICE estimator over linear functions of features, both solved in closed form.

With phi(s, a) the features, phi' = (1 - term) E_{a' ~ pi} phi(s', a'), phi_0 = E_{a ~ pi} phi(s_0, a), and means over the log:

    G = E[phi phi^T]        H = gamma E[phi phi'^T]        b = E[phi r]        A = G - H

FQE    Q_{k+1} is the ridge regression of r + gamma Q_k(s', pi) on phi. Its limit is (G + lambda) theta = b + H theta, and the value
       phi_0^T theta. The limit exists where the spectral radius of (G + lambda)^-1 H is below 1; it is solved for, and the radius reported.
DICE   zeta = phi^T alpha is the ratio of the policy's discounted visits to the log's: the saddle point of DualDICE,

           min_nu max_zeta  E[ (nu(s, a) - gamma nu(s', pi)) zeta(s, a) - zeta(s, a)^2 / 2 ] - nu(s_0, pi),        value = E[ zeta r ]

       with nu linear too and both ridged: (A^T (G + lambda)^-1 A + lambda) beta = phi_0 and alpha = (G + lambda)^-1 A beta.

Without ridge and on the same features the two values are equal (b^T A^-T phi_0), so that each is given features of its own: where they then
disagree, the features do not carry the problem. On a table they are the value in the process that the log estimates.

Intervals are those of episodes drawn anew (in blocks of whole episodes where there are many), everything fitted again.

Sources: Le, Voloshin and Yue, Batch policy learning under constraints (arXiv:1903.08738), for FQE; Hao et al., Bootstrapping fitted Q-evaluation
(arXiv:2102.03607), for its interval; Nachum et al., DualDICE (arXiv:1906.04733).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polopt.evaluation.weighting import LEVELS, Estimate

WAVES = (16, 256)  # random waves of a continuous problem, at least and at most
ROWS_A_WAVE = 10  # of the log
SCALES = (0.5, 1.0, 2.0)  # their lengths, in medians of the distance between two inputs
APART = 3.0  # the size of an action's entries in deviations of a state's, so that two whole-number actions share little
TABLE = 1500  # state-action pairs, up to which a table is made
BLOCKS = (20, 100)  # of whole episodes: how many at least and at most
NUMBERS = 40_000_000  # in the sums of all blocks, about
REFITS = 100
AT_ONCE = 16  # refits whose sums are made by one product
RIDGE = {"table": 1e-10, "waves": 1e-6}  # times the mean of G's diagonal
ROWS = 8192  # at once


class Rows(NamedTuple):
    """Transitions as a fit takes them, float64.

    state, after: (n, d) what is seen before and after; action: (n, k) as numbers, one-hot where it is a whole number.
    choices, weights: (n, m, k) and (n, m), what the policy does in `after`, and how likely; E_pi f = sum_m weights f(choices).
    going: (n,) 0 where the step terminated.
    """

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    after: np.ndarray
    going: np.ndarray
    choices: np.ndarray
    weights: np.ndarray


class Table:
    """A feature for each pair of whole numbers; a pair that the log lacks is worth 0."""

    kind = "table"

    def __init__(self, states: int, actions: int):
        self.size = states * actions

    def __call__(self, state, action):
        return (state[:, :, None] * action[:, None, :]).reshape(len(state), self.size)


class Waves:
    """1, the inputs, and cosines of random directions of them (Rahimi and Recht, 2007), of several lengths."""

    kind = "waves"

    def __init__(self, state, action, rng: np.random.Generator):
        count = int(np.clip(len(state) // ROWS_A_WAVE, *WAVES))
        self.middle, self.spread = state.mean(0), state.std(0) + 1e-6
        sample = self._inputs(state, action)[rng.permutation(len(state))[:512]]
        apart = np.linalg.norm(sample[:256][:, None] - sample[-256:][None], axis=-1)
        length = max(float(np.median(apart)), 1e-6) * np.resize(SCALES, count)
        self.directions = rng.normal(size=(sample.shape[1], count)) / length
        self.phases = rng.uniform(0, 2 * np.pi, count)
        self.size = 1 + sample.shape[1] + count

    def _inputs(self, state, action):
        return np.concatenate([np.clip((state - self.middle) / self.spread, -10, 10), APART * action], axis=1)

    def __call__(self, state, action):
        x = self._inputs(state, action)
        return np.concatenate([np.ones((len(x), 1)), x, np.sqrt(2 / len(self.phases)) * np.cos(x @ self.directions + self.phases)], axis=1)


def expected(features, state, choices, weights) -> np.ndarray:
    """E_pi phi(s, .): (n, size)."""
    return sum(weights[:, i : i + 1] * features(state, choices[:, i]) for i in range(choices.shape[1]))


class Sums(NamedTuple):
    """By block of whole episodes: sums over its rows of phi phi^T, phi phi'^T (without gamma) and phi r, over its episodes of phi_0, and counts."""

    gram: np.ndarray
    shift: np.ndarray
    reward: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    episodes: np.ndarray

    def weighed(self, counts) -> "Sums":
        """Their sum with each block `counts` times; with counts (resamples, blocks), the sums of each resample."""
        return Sums(*(np.reshape(counts @ x.reshape(len(x), -1), (*counts.shape[:-1], *x.shape[1:])) for x in self))


def sums(features, rows: Rows, block: np.ndarray, first: np.ndarray, start: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Sums:
    """block: (n,) of each row, rising; first: (episodes,) the block of each episode; start: its state, choices and weights."""
    count, d = int(first[-1]) + 1, features.size
    found = Sums(np.zeros((count, d, d)), np.zeros((count, d, d)), np.zeros((count, d)), np.zeros((count, d)), np.bincount(block), np.bincount(first))
    np.add.at(found.start, first, expected(features, *start))
    for i in range(count):
        low, high = np.searchsorted(block, (i, i + 1))
        for at in range(low, high, ROWS):
            part = Rows(*(x[at : min(at + ROWS, high)] for x in rows))
            phi = features(part.state, part.action)
            after = part.going[:, None] * expected(features, part.after, part.choices, part.weights)
            found.gram[i] += phi.T @ phi
            found.shift[i] += phi.T @ after
            found.reward[i] += phi.T @ part.reward
    return found


def blocks_of(episodes: int, size: int) -> np.ndarray:
    """(episodes,) the block of each, for features of a size: as many blocks as memory allows, of about equally many episodes."""
    fewest, most = BLOCKS
    count = min(episodes, max(fewest, min(most, NUMBERS // size**2)))
    return np.arange(episodes) * count // episodes


class System(NamedTuple):
    """G + lambda, H, b, phi_0 and lambda."""

    gram: np.ndarray
    shift: np.ndarray
    reward: np.ndarray
    start: np.ndarray
    ridge: float


def system(total: Sums, discount: float, kind: str) -> System:
    gram = total.gram / total.rows
    ridge = RIDGE[kind] * float(np.trace(gram)) / len(gram)
    return System(
        gram + ridge * np.eye(len(gram)), discount * total.shift / total.rows, total.reward / total.rows, total.start / total.episodes, ridge
    )


def fitted_q(s: System) -> np.ndarray:
    """theta, the limit of fitted Q evaluation."""
    return np.linalg.solve(s.gram - s.shift, s.reward)


def radius(s: System) -> float:
    """The spectral radius of one step of fitted Q evaluation: at 1 and above the steps do not converge."""
    return float(np.abs(np.linalg.eigvals(np.linalg.solve(s.gram, s.shift))).max())


def visit_ratio(s: System) -> np.ndarray:
    """alpha, the ratio of the policy's discounted visits to the log's."""
    a = s.gram - s.ridge * np.eye(len(s.gram)) - s.shift
    solved = np.linalg.solve(s.gram, a)
    return solved @ np.linalg.solve(a.T @ solved + s.ridge * np.eye(len(a)), s.start)


def fqe_value(s: System) -> float:
    return float(s.start @ fitted_q(s))


def dice_value(s: System) -> float:
    return float(s.reward @ visit_ratio(s))


def refitted(value, found: Sums, discount: float, kind: str, rng: np.random.Generator, refits: int = REFITS) -> Estimate:
    """`value` of a system (`fqe_value` or `dice_value`) with its percentile interval over blocks drawn anew."""
    blocks = len(found.rows)
    best = value(system(found.weighed(np.ones(blocks)), discount, kind))
    if blocks == 1:
        return Estimate(best, np.nan, np.nan)
    counts = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=refits).astype(float)
    drawn = []
    for at in range(0, refits, AT_ONCE):
        totals = found.weighed(counts[at : at + AT_ONCE])
        drawn += [value(system(Sums(*each), discount, kind)) for each in zip(*totals)]
    low, high = np.quantile(drawn, LEVELS)
    return Estimate(best, float(low), float(high))
