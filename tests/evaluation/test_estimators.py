"""The estimators on processes whose values are known."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.envs.exact import finite, tabular
from polopt.envs.exact.empirical import empirical
from polopt.envs.exact.problems import random_mdp
from polopt.evaluation import fitted, weighting
from polopt.evaluation.fitted import Rows, Table, Waves
from polopt.evaluation.weighting import Judged, Trajectories
from polopt.objectives import importance

STATES, ACTIONS, GAMMA = 3, 2, 0.8
SAMPLED = ("IS", "WIS", "PDIS", "WPDIS")


@functools.cache
def problem():
    """(process, behaviour, target), the target twice as fond of some actions as the behaviour."""
    with jax.enable_x64(True):
        k_mdp, k_policy = jax.random.split(jax.random.key(3))
        mdp = random_mdp(k_mdp, STATES, ACTIONS, discount=GAMMA, concentration=1.0)
        logits = jax.random.normal(k_policy, (STATES, ACTIONS))
        return jax.tree.map(np.asarray, mdp), np.asarray(jax.nn.softmax(0.5 * logits)), np.asarray(jax.nn.softmax(1.5 * logits))


def log_ratios(states, actions):
    _, behaviour, target = problem()
    return np.log(target[states, actions] / behaviour[states, actions])


def logged(seed: int, episodes: int, horizon: int):
    """(trajectories, states (episodes, horizon + 1), actions) of the behaviour, all cut at the horizon."""
    mdp, behaviour, _ = problem()
    keys = jax.random.split(jax.random.key(seed), episodes)
    made = _rollouts(jax.tree.map(jnp.asarray, mdp), jnp.asarray(behaviour), keys, horizon)
    states, actions, rewards = (np.asarray(x) for x in made[:3])
    mask = np.ones(actions.shape)
    return Trajectories(log_ratios(states[:, :-1], actions), rewards.astype(float), mask), states, actions


@functools.partial(jax.jit, static_argnums=3)
def _rollouts(mdp, behaviour, keys, horizon):
    return jax.vmap(lambda key: finite.rollout(mdp, behaviour, key, horizon))(keys)


def judged(q, states, actions, policy) -> Judged:
    v = (policy * q).sum(1)
    return Judged(q[states[:, :-1], actions], v[states[:, :-1]], v[states[:, -1]])


def exact(horizon: int | None = None) -> float:
    mdp, _, target = problem()
    with jax.enable_x64(True):
        return float(tabular.objective(mdp, target) if horizon is None else finite.objective(mdp, target, horizon))


# -- weights -----------------------------------------------------------------------------------------------------------


def every_trajectory(horizon: int = 3):
    mdp, behaviour, _ = problem()
    with jax.enable_x64(True):
        found = finite.enumerate_trajectories(jax.tree.map(jnp.asarray, mdp), horizon)
        probability = np.asarray(finite.trajectory_probabilities(found, jnp.asarray(behaviour)))
    states, actions, rewards = (np.asarray(x) for x in found[:3])
    return Trajectories(log_ratios(states[:, :-1], actions), rewards, np.ones(actions.shape)), states, actions, probability


@pytest.mark.parametrize("name", ["IS", "PDIS", "DR"])
def test_unbiased_by_enumeration(name):
    """The expectation of one episode's estimate, summed over every trajectory, is the value of so many steps.

    DR with any Q at all, if nothing is added behind the end.
    """
    log, states, actions, probability = every_trajectory()
    _, _, target = problem()
    any_q = np.arange(6.0).reshape(3, 2) ** 2
    anything = judged(any_q, states, actions, target)._replace(last_value=np.zeros(len(states)))
    parts, normalised = weighting.terms(log, GAMMA, anything)[name]
    assert not normalised
    expectation = weighting.values(parts, False, probability[None])[0]  # counts that sum to 1
    assert expectation == pytest.approx(exact(3), rel=1e-9)


def test_a_right_q_takes_all_of_the_actions_chance_out_of_dr():
    """With the true Q and a process without chance, DR is the value itself on every single trajectory."""
    mdp, _, target = problem()
    with jax.enable_x64(True):
        still = tabular.TabularMDP(jnp.eye(3)[jnp.array([[1, 2], [2, 0], [0, 1]])], jnp.asarray(mdp.reward), jnp.eye(3)[0], GAMMA)
        q = np.asarray(tabular.state_action_values(still, jnp.asarray(target)))
        found = finite.enumerate_trajectories(still, 3)
        value = float(tabular.objective(still, jnp.asarray(target)))
    possible = np.asarray(found.chance) > 0
    states, actions, rewards = (np.asarray(x)[possible] for x in found[:3])
    log = Trajectories(log_ratios(states[:, :-1], actions), rewards, np.ones(actions.shape))
    parts, _ = weighting.terms(log, GAMMA, judged(q, states, actions, target))["DR"]
    each = weighting.values(parts, False, np.eye(len(states)))
    np.testing.assert_allclose(each, value, rtol=1e-9)


def test_weighted_estimates_of_the_behaviour_itself_are_the_mean_return():
    log, *_ = logged(0, 50, 4)
    log = log._replace(log_ratio=np.zeros_like(log.log_ratio))
    mean = (log.reward * GAMMA ** np.arange(4)).sum(1).mean()
    for name, (parts, normalised) in weighting.terms(log, GAMMA).items():
        assert weighting.values(parts, normalised, np.ones((1, 50)))[0] == pytest.approx(mean), name


def test_weights_of_short_episodes_stay_behind_their_ends():
    """A hand-made log of two lengths: what is behind an end earns nothing, and still counts among the weights of WPDIS."""
    ratio = np.log(np.array([[2.0, np.nan], [0.5, 4.0]]))
    log = Trajectories(ratio, np.array([[1.0, np.nan], [3.0, 5.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    log = log._replace(reward=np.nan_to_num(log.reward))
    found = {name: weighting.values(*pair, np.ones((1, 2)))[0] for name, pair in weighting.terms(log, 0.5).items()}
    assert found["PDIS"] == pytest.approx(((2 * 1) + (0.5 * 3 + 2 * 0.5 * 5)) / 2)
    assert found["WPDIS"] == pytest.approx((2 * 1 + 0.5 * 3) / 2.5 + 0.5 * (2 * 5) / 4)
    assert found["IS"] == pytest.approx((2 * 1 + 2 * (3 + 2.5)) / 2) and found["WIS"] == pytest.approx((2 * 1 + 2 * 5.5) / 4)


def test_dr_goes_on_behind_a_cut_and_not_behind_an_end():
    log = Trajectories(np.zeros((2, 2)), np.ones((2, 2)), np.array([[1.0, 1.0], [1.0, 0.0]]))
    values = Judged(np.zeros((2, 2)), np.zeros((2, 2)), np.array([10.0, 0.0]))
    parts, _ = weighting.terms(log._replace(reward=log.reward * log.mask), 0.5, values)["DR"]
    np.testing.assert_allclose(weighting.values(parts, False, np.eye(2)), [1 + 0.5 + 0.25 * 10, 1.0])


def test_an_action_that_the_policy_never_takes_ends_the_weight():
    weight = importance.cumulative_ratios(np.array([[0.0, -np.inf, 0.0]]))
    np.testing.assert_array_equal(weight, [[1.0, 0.0, 0.0]])
    assert importance.effective_sample_size(np.array([2.0, 2.0, 0.0])) == 2.0


# -- fits --------------------------------------------------------------------------------------------------------------


def rows_of(states, actions, rewards, target) -> tuple[Rows, np.ndarray, tuple]:
    """A log of a table as `fitted` takes it, the block of each episode, and its first states."""
    eye_s, eye_a = np.eye(STATES), np.eye(ACTIONS)
    horizon = actions.shape[1]
    flat, after = states[:, :-1].ravel(), states[:, 1:].ravel()
    choices = lambda n: np.broadcast_to(eye_a, (n, ACTIONS, ACTIONS))  # noqa: E731
    rows = Rows(eye_s[flat], eye_a[actions.ravel()], rewards.ravel(), eye_s[after], np.ones(len(flat)), choices(len(flat)), target[after])
    first = states[:, 0]
    return rows, fitted.blocks_of(len(states), STATES * ACTIONS), (eye_s[first], choices(len(first)), target[first]), horizon


def sums_of(seed: int, episodes: int, horizon: int, features):
    log, states, actions = logged(seed, episodes, horizon)
    _, _, target = problem()
    rows, block, start, horizon = rows_of(states, actions, log.reward, target)
    return fitted.sums(features, rows, np.repeat(block, horizon), block, start), states, actions


def test_on_a_table_both_fits_are_the_value_in_the_process_that_the_log_estimates():
    """The value of the target in the empirical process, from the empirical start: by tabular.objective, a linear solve of its own."""
    total, states, actions = sums_of(0, 40, 10, Table(STATES, ACTIONS))
    mdp, _, target = problem()
    counts = np.zeros((STATES, ACTIONS, STATES))
    np.add.at(counts, (states[:, :-1], actions, states[:, 1:]), 1.0)
    with jax.enable_x64(True):
        process = empirical(jax.tree.map(jnp.asarray, mdp), jnp.asarray(counts))
        start = jnp.asarray(np.bincount(states[:, 0], minlength=STATES) / len(states))
        v = float(start @ tabular.values(process, jnp.asarray(target)))
    s = fitted.system(total.weighed(np.ones(len(total.rows))), GAMMA, "table")
    assert fitted.fqe_value(s) == pytest.approx(v, rel=1e-6)
    assert fitted.dice_value(s) == pytest.approx(v, rel=1e-6)
    assert fitted.radius(s) == pytest.approx(GAMMA, rel=1e-6)  # every pair is there: a step contracts by gamma


def test_the_ratio_of_dice_is_that_of_visits():
    total, states, actions = sums_of(1, 4000, 20, Table(STATES, ACTIONS))
    mdp, _, target = problem()
    s = fitted.system(total.weighed(np.ones(len(total.rows))), GAMMA, "table")
    with jax.enable_x64(True):
        visits = np.asarray(tabular.occupancy(jax.tree.map(jnp.asarray, mdp), jnp.asarray(target), normalised=False))
    share = np.bincount(states[:, :-1].ravel() * ACTIONS + actions.ravel(), minlength=STATES * ACTIONS) / actions.size
    np.testing.assert_allclose(fitted.visit_ratio(s) * share, visits.ravel(), rtol=0.05)


def test_fitted_steps_converge_to_what_is_solved_for():
    total, *_ = sums_of(0, 40, 10, Table(STATES, ACTIONS))
    s = fitted.system(total.weighed(np.ones(len(total.rows))), GAMMA, "table")
    theta = np.zeros(STATES * ACTIONS)
    for _ in range(200):
        theta = np.linalg.solve(s.gram, s.reward + s.shift @ theta)
    np.testing.assert_allclose(theta, fitted.fitted_q(s), rtol=1e-8)


def test_what_terminates_is_worth_nothing_behind():
    """One state that pays 1 a step: cut it is worth 1 / (1 - gamma), terminated 1."""
    one = np.ones((10, 1))
    for going, value in ((1.0, 5.0), (0.0, 1.0)):
        rows = Rows(one, one, np.ones(10), one, np.full(10, going), one[:, None], one)
        block = np.arange(10)
        total = fitted.sums(Table(1, 1), rows, block, block, (one, one[:, None], one))
        s = fitted.system(total.weighed(np.ones(10)), GAMMA, "table")
        assert fitted.fqe_value(s) == pytest.approx(value, rel=1e-6) and fitted.dice_value(s) == pytest.approx(value, rel=1e-6)


def test_random_waves_come_near_the_table():
    """Features that know nothing of the table fit it too."""
    _, states, actions = logged(0, 200, 20)
    rng = np.random.default_rng(0)
    features = Waves(np.eye(STATES)[states[:, :-1].ravel()], np.eye(ACTIONS)[actions.ravel()], rng)
    a, *_ = sums_of(0, 200, 20, features)
    b, *_ = sums_of(0, 200, 20, Table(STATES, ACTIONS))
    table = fitted.fqe_value(fitted.system(b.weighed(np.ones(len(b.rows))), GAMMA, "table"))
    waves = fitted.system(a.weighed(np.ones(len(a.rows))), GAMMA, "waves")
    assert fitted.fqe_value(waves) == pytest.approx(table, abs=0.01) and fitted.dice_value(waves) == pytest.approx(table, abs=0.02)


# -- intervals ---------------------------------------------------------------------------------------------------------

DATASETS, EPISODES, HORIZON = 40, 100, 6


@functools.cache
def many():
    """By estimator its estimates from data sets of 100 episodes of 6 steps, and the value that each is of."""
    found: dict[str, list] = {}
    _, _, target = problem()
    for seed in range(DATASETS):
        rng = np.random.default_rng(seed)
        log, states, actions = logged(seed, EPISODES, HORIZON)
        total, *_ = sums_of(seed, EPISODES, HORIZON, Table(STATES, ACTIONS))
        other, *_ = sums_of(seed + 1000, EPISODES, HORIZON, Table(STATES, ACTIONS))  # Q comes from another log
        theta = fitted.fitted_q(fitted.system(other.weighed(np.ones(EPISODES)), GAMMA, "table"))
        values = judged(theta.reshape(STATES, ACTIONS), states, actions, target)
        for name, (parts, normalised) in weighting.terms(log, GAMMA, values).items():
            found.setdefault(name, []).append(weighting.estimate(parts, normalised, rng, 300))
        for name, value in (("FQE", fitted.fqe_value), ("DICE", fitted.dice_value)):
            found.setdefault(name, []).append(fitted.refitted(value, total, GAMMA, "table", rng, 60))
    return {name: np.array(each) for name, each in found.items()}


@pytest.mark.parametrize("name", ["FQE", "DICE", "IS", "WIS", "PDIS", "WPDIS", "DR", "WDR"])
def test_the_mean_over_data_sets_is_the_value_and_intervals_cover_it(name):
    value, low, high = many()[name].T
    truth = exact(HORIZON if name in SAMPLED else None)
    error = value.std(ddof=1) / np.sqrt(DATASETS)
    bias = 0.03 if name not in ("IS", "PDIS") else 0.0  # of ratios and of fits, which falls as 1 / episodes
    assert abs(value.mean() - truth) < 3 * error + bias
    covered = float(np.mean((low <= truth) & (truth <= high)))
    assert covered >= 0.8, f"{name} covers in {covered:.2f} of {DATASETS} data sets"


def test_one_episode_has_no_interval():
    log, *_ = logged(0, 1, 4)
    assert np.isnan(weighting.estimate(*weighting.terms(log, GAMMA)["IS"], np.random.default_rng(0))[1])
