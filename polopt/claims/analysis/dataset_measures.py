"""The two measures of a dataset: cloning follows the quality, plain Q-learning the coverage, and a constrained learner works on all five kinds."""

from __future__ import annotations

import jax
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.core import spaces
from polopt.data.dataset import Dataset
from polopt.envs.exact.problems import gridworld
from polopt.methods.analysis.dataset_measures import measures, quality

SIZE, HORIZON, GAMMA, TRANSITIONS = 6, 40, 0.95, 2000
GRID = ("S" + "." * (SIZE - 1), *["." * SIZE] * (SIZE - 2), "." * (SIZE - 1) + "G")
SUPPORT = 0.05  # share of the most frequent action's count that an action needs to count as tried
KINDS = ("random", "mixed", "replay", "noisy", "expert")
BC, PLAIN, CONSTRAINED = "cloning", "Q-learning", "constrained Q-learning"
WORST = "normalised return on its worst dataset"


class World:
    """The grid as tables: `after[s, a]`, `reward[s, a]`, and the goal, in which nothing follows."""

    def __init__(self):
        mdp = gridworld(GRID, discount=GAMMA)
        self.after = np.asarray(mdp.transition).argmax(-1)
        self.reward = np.asarray(mdp.reward)
        self.goal = int(np.flatnonzero(np.asarray(mdp.terminal))[0])
        self.start = int(np.asarray(mdp.start).argmax())
        self.states, self.actions = self.reward.shape

    def episode(self, choose):
        """(states, actions, rewards, successors, whether the goal was reached) of one episode; `choose(s)` gives an action."""
        rows, s = [], self.start
        for _ in range(HORIZON):
            a = choose(s)
            after = self.after[s, a]
            rows.append((s, a, self.reward[s, a], after))
            s = after
            if s == self.goal:
                break
        return rows, s == self.goal


def logged(world: World, choose, learn=None) -> Dataset:
    """The first transitions of as many episodes as it takes; `learn(row)` sees each step as it is made."""
    rows, ends = [], []
    while len(rows) < TRANSITIONS:
        made, reached = world.episode(choose)
        for row in made if learn else ():
            learn(row)
        rows += made
        ends += [(False, False)] * (len(made) - 1) + [(reached, not reached)]
    s, a, r, after = (np.array(column) for column in zip(*rows[:TRANSITIONS]))
    terminated, truncated = np.array(ends[:TRANSITIONS]).T
    truncated[-1] |= not terminated[-1]
    space = spaces.Discrete(world.states)
    columns = (s.astype(np.int32), a.astype(np.int32), r.astype(np.float32), after.astype(np.int32), terminated, truncated)
    return Dataset(*columns, space, spaces.Discrete(world.actions))


def greedy(table, rng):
    """A choice of the best action, ties broken at random."""

    def choose(s):
        return int(rng.choice(np.flatnonzero(table[s] >= table[s].max() - 1e-12)))

    return choose


def five_kinds(world: World, rng) -> tuple[dict[str, Dataset], np.ndarray]:
    """The paper's datasets from one online run of tabular Q-learning, and the expert's table."""
    table = np.zeros((world.states, world.actions))

    def exploring(s):
        return int(rng.integers(world.actions)) if rng.random() < 0.3 else greedy(table, rng)(s)

    def learn(row):
        s, a, r, after = row
        best = 0.0 if after == world.goal else table[after].max()
        table[s, a] += 0.5 * (r + GAMMA * best - table[s, a])

    replay = logged(world, exploring, learn)
    expert = dynamic(world, np.ones((world.states, world.actions), bool), np.zeros((world.states, world.actions)))
    random = logged(world, lambda s: int(rng.integers(world.actions)))
    first = expert.argmax(1)  # the expert takes one of the shortest ways, always the same
    best = logged(world, lambda s: int(first[s]))
    noisy = logged(world, lambda s: int(rng.integers(world.actions)) if rng.random() < 0.2 else int(first[s]))
    share = TRANSITIONS // 5
    joined = [np.concatenate([np.asarray(x)[:-share], np.asarray(y)[:share]]) for x, y in zip(jax.tree.leaves(random), jax.tree.leaves(best))]
    mixed = jax.tree.unflatten(jax.tree.structure(random), joined)
    cut = mixed.truncated.copy()
    cut[[TRANSITIONS - share - 1, TRANSITIONS - 1]] = ~mixed.terminated[[TRANSITIONS - share - 1, TRANSITIONS - 1]]
    mixed = Dataset(*joined[:5], cut, random.observation_space, random.action_space)
    return {"random": random, "mixed": mixed, "replay": replay, "noisy": noisy, "expert": best}, expert


def dynamic(world: World, known, start) -> np.ndarray:
    """Q by value iteration over the pairs that are `known`; the others keep what they start with, and count in the maximum."""
    q = start.copy()
    for _ in range(300):
        value = q.max(1)
        value[world.goal] = 0.0
        q = np.where(known, world.reward + GAMMA * value[world.after], q)
    return q


def counts(world: World, data: Dataset) -> np.ndarray:
    table = np.zeros((world.states, world.actions))
    np.add.at(table, (data.observation, data.action), 1)
    return table


def earned(world: World, choose, episodes: int = 50) -> float:
    return float(np.mean([sum(GAMMA**t * row[2] for t, row in enumerate(world.episode(choose)[0])) for _ in range(episodes)]))


def discounted(data: Dataset) -> float:
    """The mean discounted return of the episodes that the log holds whole."""
    episodes = data.episodes()
    whole = [(a, b) for a, b in zip(episodes.start, episodes.end) if data.terminated[b - 1] or b - a == HORIZON]
    return float(np.mean([np.sum(GAMMA ** np.arange(b - a) * data.reward[a:b]) for a, b in whole]))


def one(seed: int) -> dict[str, np.ndarray]:
    """For the five kinds in order: both measures, and the normalised return of each learner."""
    rng, world = np.random.default_rng(seed), World()
    kinds, expert = five_kinds(world, rng)
    lowest, highest = (earned(world, choose) for choose in (lambda s: int(rng.integers(world.actions)), greedy(expert, rng)))
    found: dict[str, list[float]] = {name: [] for name in ("TQ", "SACo", BC, PLAIN, CONSTRAINED)}
    for kind in KINDS:
        data = kinds[kind]
        found["TQ"].append(quality(discounted(data), discounted(kinds["random"]), discounted(kinds["expert"])))
        found["SACo"].append(measures(data, kinds["replay"]).coverage)
        tried = counts(world, data)
        share = tried / np.maximum(tried.sum(1, keepdims=True), 1)
        share[tried.sum(1) == 0] = 1 / world.actions

        def clone(s, share=share):
            return int(rng.choice(world.actions, p=share[s]))

        plain = dynamic(world, tried > 0, rng.normal(size=tried.shape))
        enough = (tried > 0) & (tried >= SUPPORT * tried.max(1, keepdims=True))
        supported = np.where(enough, dynamic(world, enough, np.where(enough.any(1, keepdims=True), -np.inf, 0.0)), -np.inf)
        supported[~enough.any(1)] = 0.0
        for name, choose in ((BC, clone), (PLAIN, greedy(plain, rng)), (CONSTRAINED, greedy(supported, rng))):
            found[name].append((earned(world, choose) - lowest) / (highest - lowest))
    return {name: np.array(values) for name, values in found.items()}


def correlation(x, y) -> float:
    """Pearson's; 0 where a learner does equally well on all datasets, and so follows neither measure."""
    return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


def run(seeds: list[int]) -> dict[str, Side]:
    found = [one(seed) for seed in seeds]
    settings = {"grid": SIZE, "transitions": TRANSITIONS, "discount": GAMMA, "steps of an episode": HORIZON}
    names = ("TQ", "SACo")
    sides = {}
    for learner in (BC, PLAIN, CONSTRAINED):
        correlated = names if learner != CONSTRAINED else ()  # it does equally well everywhere
        numbers = {f"correlation with {name}": np.array([correlation(f[name], f[learner]) for f in found]) for name in correlated}
        numbers |= {WORST: np.array([f[learner].min() for f in found])}
        numbers |= {f"normalised return on {kind}": np.array([f[learner][i] for f in found]) for i, kind in enumerate(KINDS)}
        sides[learner] = Side({**settings, "learner": learner}, numbers)
    data = {f"{name} of {kind}": np.array([f[name][i] for f in found]) for name in names for i, kind in enumerate(KINDS)}
    return {**sides, "data": Side(settings, data)}


CLAIM = Claim(
    method="dataset_measures",
    statement="How well cloning does follows the quality of the trajectories, how well unconstrained Q-learning does their coverage, "
    "and a learner that keeps to tried actions works wherever either is high.",
    baseline="the same correlations with the measures exchanged",
    task="6x6 grid, corner to corner, 40 steps, discount .95; random, mixed, replay, noisy and expert data of 2000 transitions from one online run; "
    "tabular learners, entries never tried of Q-learning drawn from N(0, 1)",
    run=run,
    checks=(
        Check("correlation with TQ", BC, above=0.9),
        Check("correlation with SACo", PLAIN, above=0.4),
        Check(WORST, CONSTRAINED, above=0.9),
        Check("correlation with TQ", BC, over=PLAIN, above=0.0),
    ),
    seconds=60,
)
