"""From a dataset and a policy to estimates: the arrays between, what is refused, what is warned of, and the command."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.data import files
from polopt.data.behaviour import behaviour_column, checked
from polopt.data.dataset import DataError, Dataset
from polopt.evaluation import offline
from polopt.policies.actor import Actor, Normaliser
from polopt.policies.cloned import ClonedActor, ClonedPolicy
from polopt.policies.density import distribution, has_density, log_prob
from polopt.policies.deployed import ActorPolicy
from polopt.policies.random import RandomPolicy
from polopt.policies.unit import DeterministicActor, GaussianActor, UnitPolicy
from polopt.run.collect import collect
from tests.evaluation.test_estimators import ACTIONS, GAMMA, STATES, exact, logged, problem
from tests.runs import finished, lines, one_sentence, polopt_says

SEEN, BOX = spaces.Discrete(STATES), spaces.Box(-2.0, 4.0, (2,))
VECTOR = spaces.Box(-1.0, 1.0, (3,))


def tabular_policy(table) -> ClonedPolicy:
    """A policy without hidden layers, which is a table of logits."""
    actor = ClonedActor(Feedforward(hidden=()), SEEN, spaces.Discrete(ACTIONS), jax.random.key(0))
    logits = jnp.asarray(np.log(table), jnp.float32)
    return ClonedPolicy(eqx.tree_at(lambda a: a.head.weight, actor, logits), Normaliser(SEEN, None))


@functools.cache
def data(episodes: int = 200, horizon: int = 12) -> Dataset:
    log, states, actions = logged(0, episodes, horizon)
    end = np.tile(np.arange(horizon) == horizon - 1, episodes)
    columns = states[:, :-1].ravel(), actions.ravel(), log.reward.ravel().astype(np.float32), states[:, 1:].ravel()
    return Dataset(*(np.asarray(c) for c in columns), np.zeros_like(end), end, SEEN, spaces.Discrete(ACTIONS))


def probabilities(dataset) -> np.ndarray:
    return problem()[1][np.asarray(dataset.observation), np.asarray(dataset.action)]


def near(found, truth: float) -> bool:
    """Whether a value lies within about four standard errors of its estimate; how often intervals cover is measured in test_estimators."""
    return abs(found["value"] - truth) < found["high"] - found["low"]


# -- estimates ---------------------------------------------------------------------------------------------------------


def test_the_value_of_a_table_with_known_and_with_cloned_probabilities():
    policy = tabular_policy(problem()[2])
    for behaviour in (probabilities(data()), None):
        log = offline.prepared(data(), behaviour, stochastic=True)
        found = offline.evaluate(log, policy, GAMMA, stochastic=True)
        assert list(found["estimates"]) == list(offline.ORDER) and not found["refused"] and not found["notes"]
        assert found["behaviour"] == ("from the data" if behaviour is not None else "estimated by behavioural cloning")
        for name, e in found["estimates"].items():
            truth = exact(12 if name in ("IS", "WIS", "PDIS", "WPDIS") else None)
            assert near(e, truth), (name, behaviour is None)
        assert found["spectral_radius"] == pytest.approx(GAMMA, rel=1e-3)
        assert "of its first 12 steps only" in found["value"]
        json.dumps(found)


def test_the_most_likely_action_is_another_policy():
    """Without draws the value is that of the greedy table."""
    target = problem()[2]
    greedy = np.eye(ACTIONS)[target.argmax(1)]
    log = offline.prepared(data(), probabilities(data()))
    found = offline.evaluate(log, tabular_policy(target), GAMMA)["estimates"]
    drawn = offline.evaluate(log, tabular_policy(0.999 * greedy + 0.0005), GAMMA, stochastic=True)["estimates"]
    for name in ("FQE", "DICE", "PDIS"):
        assert found[name]["value"] == pytest.approx(drawn[name]["value"], rel=0.03), name


def test_discount_one_is_the_return_of_an_episode_as_it_is_cut():
    log = offline.prepared(data(), probabilities(data()), stochastic=True)
    own = tabular_policy(problem()[1])
    found = offline.evaluate(log, own, 1.0, stochastic=True)
    assert found["estimates"]["PDIS"]["value"] == pytest.approx(data().episodes().returns.mean(), rel=1e-4)
    assert set(found["refused"]) == {"FQE", "DICE", "DR", "WDR"} and "undiscounted return" in found["value"]
    ended = dataclasses.replace(data(), terminated=data().truncated, truncated=data().terminated)
    found = offline.evaluate(offline.prepared(ended, probabilities(ended), stochastic=True), own, 1.0, stochastic=True)
    assert not found["refused"] and math.isfinite(found["estimates"]["FQE"]["value"])


def test_a_policy_that_the_data_do_not_cover_is_told():
    """A behaviour that nearly always takes action 0, and a policy that always takes 1."""
    few = data().take(slice(0, 240))
    log = offline.prepared(few, np.where(few.action == 0, 0.999, 0.001), stochastic=True)
    found = offline.evaluate(log, tabular_policy(np.tile([0.001, 0.999], (STATES, 1))), GAMMA, stochastic=True)
    assert found["effective_sample_size"] < 10
    assert any("are worth" in note and "not to be trusted" in note for note in found["notes"])


def test_few_episodes_are_told():
    few = data().take(slice(0, 60))
    log = offline.prepared(few, probabilities(few), stochastic=True)
    notes = offline.evaluate(log, tabular_policy(problem()[2]), GAMMA, stochastic=True)["notes"]
    assert any("There are 5 episodes" in note for note in notes)


# -- continuous actions ------------------------------------------------------------------------------------------------


def box_data(n: int = 400) -> Dataset:
    """One-step episodes paid by the first number of the action, uniform in its box."""
    rng = np.random.default_rng(0)
    observation, action = rng.uniform(-1, 1, (n, 3)).astype(np.float32), rng.uniform((-2, -2), (4, 4), (n, 2)).astype(np.float32)
    return Dataset(observation, action, action[:, 0].copy(), observation, np.ones(n, bool), np.zeros(n, bool), VECTOR, BOX)


def unit_policy(kind, mean=(0.5, 0.0)) -> UnitPolicy:
    actor = kind(Feedforward(hidden=()), VECTOR, BOX, jax.random.key(0))
    bias = jnp.arctanh(jnp.asarray(mean))
    bias = bias if kind is DeterministicActor else jnp.concatenate([bias, jnp.full(2, -1.0)])
    actor = eqx.tree_at(lambda a: (a.head.weight, a.head.bias), actor, (0 * actor.head.weight, bias))
    return UnitPolicy(actor, Normaliser(VECTOR, None))


def test_one_action_of_a_continuum_has_no_weights():
    log = offline.prepared(box_data())
    assert log.clone is None
    found = offline.evaluate(log, unit_policy(DeterministicActor), 0.9)
    assert set(found["estimates"]) == {"FQE", "DICE"} and "no log contains" in found["refused"]["IS"]
    assert found["estimates"]["FQE"]["value"] == pytest.approx(2.5, abs=0.01)  # -2 + 6 * .75, in the units of the environment


def test_a_density_of_actions_is_weighed():
    policy = unit_policy(GaussianActor)
    uniform = np.full(400, 1 / 36)
    found = offline.evaluate(offline.prepared(box_data(), uniform, stochastic=True), policy, 0.9, stochastic=True)["estimates"]
    actions = jax.vmap(lambda k: policy.act((), jnp.zeros(3), k)[1])(jax.random.split(jax.random.key(5), 4000))
    truth = float(actions[:, 0].mean())
    for name in ("WIS", "PDIS", "WDR"):
        assert near(found[name], truth), name


def test_policies_that_cannot_be_weighed():
    log = offline.prepared(box_data(), np.full(400, 1 / 36), stochastic=True)
    found = offline.evaluate(log, RandomPolicy(VECTOR, BOX), 0.9, stochastic=True)
    assert "RandomPolicy does not tell how likely its actions are" in found["refused"]["IS"] and "FQE" in found["estimates"]
    remembers = ActorPolicy(Actor(_recurrent(), VECTOR, BOX, "clip", 0.0, jax.random.key(0)), Normaliser(VECTOR, None))
    with pytest.raises(DataError, match="remembers what it has seen"):
        offline.evaluate(log, remembers, 0.9)


def _recurrent():
    from polopt.core.networks import Network

    return Network((4,), core="gru", core_size=4)


# -- densities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["squashed", "cloned", "clipped"])
def test_densities_in_the_units_of_the_environment(kind):
    """The share of draws in a part of the box is the integral of the density over it, mass on the bound included."""
    space = spaces.Box(-2.0, 4.0, (1,))
    if kind == "squashed":
        policy = UnitPolicy(GaussianActor(Feedforward((4,)), VECTOR, space, jax.random.key(1)), Normaliser(VECTOR, None))
    elif kind == "cloned":
        policy = ClonedPolicy(ClonedActor(Feedforward((4,)), VECTOR, space, jax.random.key(1)), Normaliser(VECTOR, None))
    else:
        from polopt.core.networks import Network

        policy = ActorPolicy(Actor(Network((4,)), VECTOR, space, "clip", 1.0, jax.random.key(1)), Normaliser(VECTOR, None))
    assert has_density(policy)
    seen = jnp.array([0.3, -0.2, 0.9])
    draws = np.asarray(jax.vmap(lambda k: policy.act((), seen, k)[1])(jax.random.split(jax.random.key(2), 20_000)))[:, 0]
    found = distribution(policy, seen)
    density = lambda a: np.exp(np.asarray(jax.vmap(lambda x: log_prob(found, x[None]))(jnp.asarray(a, jnp.float32))))  # noqa: E731
    grid = np.linspace(-1, 3, 400)
    assert np.trapezoid(density(grid), grid) == pytest.approx(np.mean((draws > -1) & (draws < 3)), abs=0.015)
    if kind != "squashed":
        assert density([4.0])[0] == pytest.approx(np.mean(draws >= 4.0), abs=0.01)


# -- behaviour probabilities -------------------------------------------------------------------------------------------


def test_a_column_of_probabilities_is_read(tmp_path):
    path = tmp_path / "d.npz"
    files.write(data(), path)
    assert behaviour_column(path, data()) is None
    with np.load(path) as file:
        np.savez(path, **file, behaviour=probabilities(data()), other=np.zeros(len(data())))
    dataset = files.read(path)
    np.testing.assert_allclose(behaviour_column(path, dataset), probabilities(data()))
    with pytest.raises(DataError, match="row 0 is 0, but an action that was drawn has a finite probability above 0"):
        behaviour_column(path, dataset, "other")
    with pytest.raises(DataError, match=r"has the shape \(3,\), but one probability for each of the 2400 transitions"):
        checked(np.ones(3), dataset)
    with pytest.raises(DataError, match="has no column 'nope'"):
        behaviour_column(path, dataset, "nope")
    assert checked(np.ones((2400, 1)), data()).shape == (2400,)


# -- runs and the command ----------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    run = finished()  # PPO on probe:action, two seeds
    random = collect("random", "probe:action", steps=120)
    path = files.write(random, tmp_path / "d.npz")
    code, out, err = polopt_says(capsys, "evaluate", run, "--offline", path, "--stochastic", "--discount", 0.9)
    assert (code, err) == (0, "")
    assert "discounted by 0.9 a step" in out and "probabilities of the logged actions: estimated by behavioural cloning" in out
    assert out.count("  FQE ") == 2 and out.count("  WDR ") == 2 and "effective sample size" in out
    kept = lines(run / "offline_evaluations.jsonl")[-1]
    assert set(kept["seeds"]) == {"0", "1"} and set(kept["seeds"]["0"]["estimates"]) == set(offline.ORDER)
    found = polopt.load(run).evaluate_offline(path, stochastic=True, discount=0.9)
    for name, e in found["seeds"]["0"]["estimates"].items():  # equal keys, equal numbers
        assert e == pytest.approx(kept["seeds"]["0"]["estimates"][name], rel=1e-5)
    assert polopt.load(run).evaluate_offline(random)["seeds"]["0"]["discount"] == 0.99
    for words, expected in (
        (["--discount", 0.9], "give the data too, with --offline DATA"),
        (["--offline", path, "--discount", 2], "The discount is 2.0, but a number from 0 to 1 is expected"),
        (["--offline", path, "--behaviour", "b"], "has no column 'b'"),
        (["--offline", tmp_path / "none.npz"], "is not there"),
    ):
        code, _, err = polopt_says(capsys, "evaluate", run, *words)
        assert code == 2 and expected in one_sentence(err)


def test_a_method_without_a_discount_asks_for_one(tmp_path):
    logged_ = collect("random", "probe:action", steps=60)
    options = dict(steps=8, seeds=1, evaluations=1, quiet=True, rule__network__hidden=(4,), batch_size=4, updates=4)
    run = polopt.fit("bc", data=logged_, out=tmp_path / "r", **options)
    run._data = logged_
    with pytest.raises(ValueError, match="The method bc has no discount"):
        run.evaluate_offline(logged_)
    with pytest.raises(ValueError, match="but the policy was trained on"):
        run.evaluate_offline(data(), discount=0.9)
