"""Runs from data, collection, and what `polopt data` tells of a dataset."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import polopt
from polopt.data import files
from polopt.data.dataset import DataError
from polopt.envs.make import make
from polopt.policies.random import RandomPolicy
from polopt.run.collect import collect, record
from polopt.run.describe import warnings
from polopt.run.run import RunError, load
from tests.runs import finished, one_sentence, polopt_says

TINY = dict(rule__network__hidden=(8,), batch_size=8, updates=4)
PLAN = dict(steps=40, seeds=2, evaluations=2, episodes=2, final_episodes=2, quiet=True)
DISCRETE, BOX = "probe:credit", "probe:truncation-continuous"


@functools.cache
def logged(env: str = DISCRETE, steps: int = 96):
    return collect("random", env, steps=steps)


def fit(out, data=None, **more):
    return polopt.fit("bc", data=logged() if data is None else data, out=out, **{**TINY, **PLAN, **more})


def test_collected_data_are_whole_episodes():
    data = logged(BOX, 200)
    episodes = data.episodes()
    assert len(data) == 200 and (data.terminated | data.truncated)[-1]
    assert len(set(episodes.lengths[:-1].tolist())) == 1  # this probe's are all alike; only the last one is cut
    inner = ~data.ended[:-1]
    np.testing.assert_array_equal(np.asarray(data.next_observation)[:-1][inner], np.asarray(data.observation)[1:][inner])


def test_equal_seeds_collect_equal_data():
    assert collect("random", DISCRETE, steps=50).digest() == collect("random", DISCRETE, steps=50).digest()
    assert collect("random", DISCRETE, steps=50).digest() != collect("random", DISCRETE, steps=50, seed=1).digest()


def test_noise_takes_the_place_of_so_many_actions():
    env = make("CartPole-v1")
    data = record(Left(env.observation_space, env.action_space), env, 4000, jax.random.key(0), epsilon=0.5)
    assert np.mean(data.action == 1) == pytest.approx(0.25, abs=0.03)  # half of the random half


class Left(RandomPolicy):
    def act(self, carry, observation, key=None):
        return carry, jax.numpy.zeros((), jax.numpy.int32)


def test_a_run_without_an_environment(tmp_path):
    run = fit(tmp_path / "a")
    assert run.status["state"] == "finished" and json.loads((tmp_path / "a" / "evaluation.json").read_text()) == {}
    assert (tmp_path / "a" / "report.html").exists() and run.config["data"]["transitions"] == 96
    with pytest.raises(RunError, match="has no environment, for it learnt from data; name one that fits them with --env"):
        run.evaluate(2)
    assert len(run.evaluate(2, env=DISCRETE)["per_seed"]) == 2
    assert run.policy()(np.asarray(logged().observation)[0]).shape == ()


def test_a_run_that_is_evaluated_draws_its_evaluations(tmp_path):
    run = fit(tmp_path / "a", evaluate_on=DISCRETE)
    assert set(json.loads((tmp_path / "a" / "evaluation.json").read_text())) == {"last", "best"}
    assert "return against updates for bc" in (tmp_path / "a" / "report.html").read_text()
    assert run.config["command"].startswith("polopt.fit('bc', data=data, evaluate_on='probe:credit'")


def test_the_data_of_a_run_are_asked_for_and_checked(tmp_path):
    fit(tmp_path / "a", steps=8)
    with pytest.raises(RunError, match=r"started with a dataset object; pass it again: load\(directory, data=\.\.\.\)"):
        load(tmp_path / "a").policy()
    with pytest.raises(RunError, match="is not the one that .* was started with"):
        load(tmp_path / "a", data=collect("random", DISCRETE, steps=96, seed=5)).policy()
    assert load(tmp_path / "a", data=logged()).policy()


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(RunError, match="There is nothing to learn from"):
        polopt.fit("bc")
    with pytest.raises(RunError, match="learns from one of them"):
        polopt.fit("bc", DISCRETE, data=logged())
    with pytest.raises(RunError, match="evaluate_on is for methods that learn from data"):
        polopt.fit("ppo", DISCRETE, evaluate_on=DISCRETE)
    with pytest.raises(RunError, match="Evaluate on the environment that the data come from"):
        fit(tmp_path / "a", evaluate_on=BOX)
    with pytest.raises(RunError, match=r"td3_bc takes actions of a box, .* Take bc, iql or cql"):
        polopt.fit("td3_bc", data=logged())


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(mix="medium:0.5,expert:0.5"), "medium, expert data need a run that has learnt"),
        (dict(mix="good:1"), "no kind of data 'good'; known are random, medium"),
        (dict(mix="random:0.5"), "must be above 0 and sum to 1"),
        (dict(mix="random:x"), "kinds with their shares are expected"),
        (dict(steps=0), "a whole number of at least 1"),
        (dict(env=None), "An environment is needed to collect in"),
    ],
)
def test_collecting_what_is_not_there(options, words):
    with pytest.raises(DataError, match=words):
        collect("random", **{"env": DISCRETE, "steps": 10, **options})


def test_a_mix_from_a_run():
    data = collect(finished(), steps=60, mix="random:0.25,medium:0.25,expert:0.25,noisy:0.25")
    assert len(data) == 60 and len(data.reference) == 2 and "medium0.25" in data.name
    with pytest.raises(DataError, match="has no replay, as its method keeps none; take a run of sac"):
        collect(finished(), steps=60, mix="replay:1")


def test_replay_data_are_what_the_run_kept(tmp_path):
    sizes = dict(num_envs=2, num_steps=4, updates=1, batch_size=4, warmup=8, rule__network__hidden=(8,), replay__capacity=64)
    run = polopt.fit("dqn", DISCRETE, out=tmp_path / "a", steps=160, seeds=1, evaluations=1, episodes=2, final_episodes=2, quiet=True, **sizes)
    data = collect(run, steps=40, mix="replay:1")
    assert len(data) == 40
    inner = ~data.ended[:-1]
    np.testing.assert_array_equal(np.asarray(data.next_observation)[:-1][inner], np.asarray(data.observation)[1:][inner])
    with pytest.raises(DataError, match="holds 64 transitions, but 100 are asked for"):
        collect(run, steps=100, mix="replay:1")


def test_warnings_say_what_looks_wrong():
    data = logged(BOX, 200)
    clipped = dataclasses.replace(data, action=np.ones_like(data.action) * data.action_space.bounds()[1])
    assert any("100.0% of the transitions have an action on a bound" in w for w in warnings(clipped))
    assert any(w.startswith("The action number 0 never changes") for w in warnings(clipped))
    assert any(w.startswith("The reward never changes") for w in warnings(dataclasses.replace(data, reward=np.zeros(200, np.float32))))
    pendulum = collect("random", "Pendulum-v1", steps=600)
    assert not warnings(pendulum)
    lost = pendulum.truncated.copy()
    lost[199] = False
    (found,) = warnings(dataclasses.replace(pendulum, truncated=lost))
    assert "At 1 step the successor is not where the next row begins (first in episode 0, step 199)" in found
    swapped = dataclasses.replace(pendulum, terminated=pendulum.truncated, truncated=pendulum.terminated)
    assert any("3 episodes terminate after exactly 200 steps" in w for w in warnings(swapped))


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = polopt_says(capsys, "data", "collect", "random", "--env", DISCRETE, "--steps", 96, "--to", "d.npz")
    assert code == 0 and "96 transitions" in out and "polopt data show d.npz" in out
    code, out, _ = polopt_says(capsys, "data", "show", "d.npz")
    assert code == 0 and "SACo needs" in out and "TQ needs" in out and (tmp_path / "d.png").stat().st_size > 1000
    code, out, _ = polopt_says(capsys, "data", "show", "d.npz", "--reference", "d.npz", "--picture", "p.png")
    assert code == 0 and "SACo 1.000" in out and (tmp_path / "p.png").exists()
    code, out, _ = polopt_says(capsys, "data", "convert", "d.npz", "--to", "e.npz")
    assert code == 0 and files.read("e.npz").digest() == files.read("d.npz").digest()
    words = [f"--{k.replace('__', '.')}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in TINY.items()]
    words = [w.replace("_", "-") for w in words]
    code, out, err = polopt_says(capsys, "train", "bc", "--data", "d.npz", "--steps", 40, "--evaluations", 2, "--quiet", "--out", "r", *words)
    assert code == 0 and "Nothing was evaluated" in out, err
    code, _, err = polopt_says(capsys, "train", "bc", "--env", DISCRETE)
    assert code == 2 and "The method bc needs a dataset (--data)" in one_sentence(err)
    code, _, err = polopt_says(capsys, "train", "ppo")
    assert code == 2 and "There is nothing to learn from: give an environment (--env CartPole-v1), or data (--data FILE)" in one_sentence(err)
    code, _, err = polopt_says(capsys, "train", "dataset_measures", "--data", "d.npz")
    assert code == 2 and "is an analysis: nothing is trained by it" in one_sentence(err)
    code, _, err = polopt_says(capsys, "data", "show", "none.npz")
    assert code == 2 and "is not there; make one with" in one_sentence(err)
    code, _, err = polopt_says(capsys, "data", "shout")
    assert code == 2 and "takes collect, show, convert" in one_sentence(err)
