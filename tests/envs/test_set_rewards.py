"""Rewards of set functions: what each mode pays, what is shown, and what a user's own set function needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.tabular import TabularMDP
from polopt.envs.make import UnknownEnvironment, UnusableEnvironment, make, names
from polopt.envs.set_rewards import GRIDS, MODES, OBSERVATIONS, Coverage, SetRewards, with_mode

# A is worth 3; B adds 2 to it, and is worth 4 alone (catalogue: subpo, oracle 3).
PAIR = Coverage([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])


def walk(states: int, start: int = 0) -> TabularDynamics:
    """Action a leads to state a for sure."""
    P = np.broadcast_to(np.eye(states), (states, states, states))
    return TabularDynamics(TabularMDP(jnp.asarray(P), jnp.zeros((states, states)), jnp.eye(states)[start], 1.0))


def play(env: SetRewards, actions):
    """(observations, rewards, terminated, truncated), the first observation included."""
    state, observation = env.reset(jax.random.key(0))
    observations, rest = [observation], []
    for k, action in enumerate(actions):
        state, observation, reward, _, terminated, truncated = env.step(state, jnp.int32(action), jax.random.key(k))
        observations.append(observation)
        rest.append((float(reward), bool(terminated), bool(truncated)))
    return observations, *map(list, zip(*rest))


@pytest.mark.parametrize(
    "mode, expected",
    [("marginal", [2, 0, 0]), ("modular", [4, 3, 4]), ("final", [0, 0, 5]), ("prefix", [5, 5, 5])],
)
def test_each_mode_on_a_path(mode, expected):
    """F({A}) = 3, F({A, B}) = 5, path A, B, A, B."""
    _, rewards, terminated, truncated = play(SetRewards(walk(2), PAIR, 2, 3, mode=mode), [1, 0, 1])
    assert rewards == expected and terminated == [False, False, True] and not any(truncated)


def test_marginal_rewards_sum_to_the_value_of_the_trajectory():
    """Oracle 2, on random walks in the grid: sum of gains = F(tau) - F({s_0}), the corner covering three cells."""
    env = make("coverage:grid").dynamics
    for seed in range(5):
        actions = np.random.default_rng(seed).integers(0, 5, env.horizon)
        observations, rewards, *_ = play(env, actions)
        visited = np.zeros(env.size, bool)
        visited[[int(o["observation"]) for o in observations]] = True
        start = np.zeros(env.size, bool)
        start[int(observations[0]["observation"])] = True
        assert float(env.value(jnp.asarray(start))) == 3
        assert sum(rewards) == float(env.value(jnp.asarray(visited))) - 3
        assert play(with_mode(make("coverage:grid"), "final").dynamics, actions)[1][-1] == sum(rewards) + 3


def test_gains_diminish():
    """Oracle 5: F(s | X) >= F(s | Y) where X is a subset of Y."""
    value = make("coverage:two-rooms").dynamics.value
    rng = np.random.default_rng(0)
    n = value.covers.shape[0]
    for _ in range(50):
        larger = rng.random(n) < 0.4
        smaller = larger & (rng.random(n) < 0.5)
        more = np.eye(n, dtype=bool)[rng.integers(n)]
        gains = [float(value(jnp.asarray(x | more)) - value(jnp.asarray(x))) for x in (smaller, larger)]
        assert gains[0] >= gains[1] >= 0


def test_the_set_begins_anew_with_the_episode():
    """Two episodes in a row in the batched environment, the same walk: the same rewards."""
    env = make("coverage:grid", horizon=3)
    state, _ = env.reset(jax.random.key(0), 2)
    seen = []
    for k in range(6):
        state, step = env.step(state, jnp.array([1, 2], jnp.int32), jax.random.key(k))
        seen.append(np.asarray(step.reward))
        assert bool(step.terminated[0]) == (k % 3 == 2)
    np.testing.assert_array_equal(seen[:3], seen[3:])
    assert seen[0].tolist() == [2.0, 2.0]  # beside the corner: the cell itself was covered, its two further neighbours were not


@pytest.mark.parametrize("observe", OBSERVATIONS)
def test_what_is_shown(observe):
    env = SetRewards(walk(3), lambda visited: visited.sum(), 3, 2, observe=observe)
    observations, *_ = play(env, [2, 1])
    for observation in observations:
        shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: spaces.zeros(env.observation_space)))
        assert jax.tree.map(jnp.shape, observation) == shapes
    last = {
        "state": 1,
        "clock": {"observation": 1, "time": 2},
        "table": 2 * 3 + 1,
        "history": [1, 3, 2],
        "visited": {"observation": 1, "time": 2, "visited": [1, 1, 1]},
    }
    assert jax.tree.map(lambda x: np.asarray(x).tolist(), observations[-1]) == last[observe]
    if observe == "history":
        assert observations[0].tolist() == [1, 0, 0]


def test_names():
    assert {f"coverage:{grid}" for grid in GRIDS} <= set(names())
    env = make("coverage:two-rooms:history:final")
    assert env.dynamics.mode == "final" and env.dynamics.observe == "history" and env.dynamics.horizon == 40 and env.dynamics.size == 92
    assert make("coverage:grid").dynamics == make("coverage:grid").dynamics and hash(make("coverage:grid").dynamics) is not None
    assert make("coverage:grid", horizon=4, slip=0.1).dynamics.horizon == 4
    assert with_mode(make("probe:value"), "modular") == make("probe:value")
    assert [with_mode(make("coverage:grid"), mode).dynamics.mode for mode in MODES] == list(MODES)


def test_every_cell_of_the_rooms_can_be_reached():
    env = make("coverage:two-rooms").dynamics
    reached = np.asarray(env.inner.mdp.start) > 0
    for _ in range(env.size):
        reached = reached | (np.einsum("s,sap->p", reached, np.asarray(env.inner.mdp.transition)) > 0)
    assert reached.all()


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("coverage:grd", UnknownEnvironment, "did you mean coverage:grid"),
        ("coverage:grid:histroy", UnusableEnvironment, "histroy.*history"),
        ("coverage:grid:final:modular", UnusableEnvironment, "names mode twice"),
    ],
)
def test_names_that_nothing_has(name, error, message):
    with pytest.raises(error, match=message):
        make(name)


@dataclasses.dataclass(frozen=True)
class Cells:
    """A user's own: how many tenths of the line have been seen, in an environment that shows a number in [0, 1)."""

    inner = None

    def __call__(self, visited):
        return jnp.sqrt(jnp.sum(visited))


def tenth(observation):
    return jnp.clip((observation[0] * 5 + 5).astype(jnp.int32), 0, 9)


def test_a_set_function_of_ones_own_around_another_environment():
    inner = make("probe:credit").dynamics
    env = make(SetRewards(inner, Cells(), 10, 4, element=tenth, observe="visited"))
    state, observation = env.reset(jax.random.key(0), 1)
    assert observation["visited"][0].sum() == 1
    _, step = env.step(state, jnp.ones(1, jnp.int32), jax.random.key(0))
    assert step.reward[0] == pytest.approx(2**0.5 - 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "sum"}, "mode is 'sum'"),
        ({"observe": "all"}, "observe is 'all'"),
        ({"size": 2}, "give element"),
        ({"horizon": 0}, "horizon is 0"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        SetRewards(**{"inner": walk(3), "value": PAIR, "size": 3, "horizon": 2, **changes})


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="below 0"):
        Coverage([[1, 0]], [1.0, -1.0])
