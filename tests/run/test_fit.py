"""`polopt.fit`, `polopt.load` and what they give: the numbers, the folder, the sentences."""

import functools
import json
import math
import pickle
import signal
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt.core import parts, spaces
from polopt.loops.on_policy import OnPolicy
from polopt.methods.policy_gradient import ppo
from polopt.run import records
from polopt.run.agent import Agent
from polopt.run.run import RunError
from polopt.run.training import Training, TrainingFailed
from tests.envs.sample_envs import Kinds
from tests.run import own_envs
from tests.runs import SIZES, as_interrupted, copy_of, digests, finished, fit, lines, one_sentence, options, polopt_says, signal_after

HOST = "gym:CartPole-v1"
OWN = Path(__file__).with_name("own_envs.py")


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


# -- a user's mistakes -------------------------------------------------------------------------------------------------

MISTAKES = {
    "no seed": (dict(seeds=0), "seeds is 0, .*seeds=5"),
    "half a seed": (dict(seeds=2.5), "seeds is 2.5"),
    "a seed in words": (dict(seeds="3"), "seeds is '3'"),
    "yes": (dict(seeds=True), "seeds is True"),
    "an empty list": (dict(seeds=[]), r"seeds is \[\]"),
    "a seed twice": (dict(seeds=[1, 1]), r"seeds is \[1, 1\], .*different"),
    "a seed below zero": (dict(seeds=[-1]), r"seeds is \[-1\]"),
    "a seed beyond 32 bits": (dict(seeds=[2**40]), "seeds is"),
    "no steps": (dict(steps=0), "steps is 0, .*at least 1"),
    "steps in words": (dict(steps="many"), "steps is 'many', .*whole number"),
    "half a step": (dict(steps=2.5), "steps is 2.5, .*whole number"),
    "steps that are no number": (dict(steps=math.nan), "steps is nan"),
    "endless": (dict(steps=math.inf), "steps is inf"),
    "no evaluation": (dict(evaluations=0), "evaluations is 0"),
    "no episode": (dict(final_episodes=-1), "final_episodes is -1"),
    "an unknown field": (dict(learning_rat=1e-3), "no field 'learning_rat'.*learning_rate"),
    "a word for a number": (dict(clip="wide"), "clip is 'wide', .*a number"),
    "a fraction": (dict(epochs=2.5), "epochs is 2.5, .*a whole number"),
    "a bool for a number": (dict(num_envs=True), "num_envs is True"),
    "out of range": (dict(discount=1.5), "discount is 1.5, .*at most 1"),
    "no such choice": (dict(bounds="squish"), "bounds is 'squish', .*'clip', 'squash'"),
    "a method that is none": (dict(method=3), "method is 3, .*a key such as 'ppo'"),
    "a class": (dict(method=OnPolicy), "method is .*OnPolicy.*composed method"),
    "a dataset": (dict(env={"observations": np.zeros((3, 4))}), "dict, but a gymnasium.Env class.* is expected"),
    "a path to a dataset": (dict(env=Path("data.npz")), "Path, but a gymnasium.Env class.* is expected"),
    "an environment in use": (dict(env=gymnasium.Env()), "Env, but a gymnasium.Env class.* is expected"),
    "actions in a dict": (dict(env=functools.partial(Kinds, action="dict")), "Dict|dict"),
    "several objectives": (dict(env="probe:vector"), "ppo takes one reward, but probe:vector has 2 objectives"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_a_sentence_before_anything_is_made(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes, expected = MISTAKES[case]
    with pytest.raises(ValueError, match=expected) as caught:
        fit(**changes)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_method_that_cannot_be_saved_is_refused(tmp_path):
    @parts.part
    class Local(ppo.Clip):
        pass

    method = parts.replace(ppo.ppo(), {"num_envs": 4})
    method = type(method)(**{**{f: getattr(method, f) for f in vars(method)}, "surrogate": Local()})
    with pytest.raises(RunError, match="OnPolicy cannot be saved .*top of a module"):
        polopt.fit(method, "probe:action", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the folder of a run -----------------------------------------------------------------------------------------------


def test_the_folder_has_the_whole_configuration(tmp_path):
    config = json.loads((finished() / "run.json").read_text())
    found = [config[key] for key in ("method", "family", "env", "seeds", "steps")]
    assert found == ["ppo", "policy_gradient", "probe:action", [0, 1], 640]
    assert config["evaluation"] == {"evaluations": 10, "episodes": 2, "final_episodes": 2}
    task = polopt.run.run.ControlTask(polopt.make_env("probe:action"), 640)
    composed = polopt.run.run.compose("ppo", task, {k.replace("__", "."): v for k, v in SIZES.items()})
    assert config["fields"] == json.loads(json.dumps(parts.fields(composed)))
    assert {"python", "polopt", "jax", "numpy"} <= set(config["versions"]) and {"system", "cores", "device"} <= set(config["machine"])
    assert config["command"].startswith("polopt.fit('ppo', 'probe:action', steps=640, seeds=2")


def test_the_folder_has_every_number(capsys):
    record = records.read_record(finished())
    assert record.steps.tolist() == list(range(32, 641, 32)) and record.unreadable == 0
    assert {"return", "length", "episodes", "loss/policy", "loss/value", "entropy", "kl"} <= set(record.metrics)
    assert all(values.shape == (20, 2) for values in record.metrics.values())
    assert [e.step for e in record.evaluations if not e.final] == list(range(64, 641, 64))
    final = json.loads((finished() / "evaluation.json").read_text())
    for which in ("last", "best"):
        np.testing.assert_allclose(final[which]["per_seed"], record.evaluation(which).scores, rtol=1e-6)


def test_by_default_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polopt.run.run._train", lambda run, *_, **__: run)
    assert [str(fit().directory) for _ in range(2)] == ["runs/ppo-probe-action-1", "runs/ppo-probe-action-2"]


# -- the same numbers --------------------------------------------------------------------------------------------------


def test_a_seed_has_the_same_numbers_alone_and_among_others(tmp_path):
    both, alone = fit(seeds=[1, 3], out=tmp_path / "both"), fit(seeds=[3], out=tmp_path / "alone")
    for which in ("last", "best"):
        for x, y in zip(leaves(both.policies(which)), leaves(alone.policies(which)), strict=True):
            np.testing.assert_allclose(x[1], y[0], rtol=1e-4, atol=1e-6)
    metrics = [records.read_record(run.directory).metrics["return"] for run in (both, alone)]
    np.testing.assert_allclose(metrics[0][:, 1], metrics[1][:, 0], rtol=1e-6)
    assert any(not np.array_equal(x[0], x[1]) for x in leaves(both.policies()))


def test_on_the_host_a_seed_has_the_same_bits_alone_and_among_others(tmp_path):
    both, alone = polopt.load(finished(HOST)), fit(env=HOST, seeds=[1], out=tmp_path / "alone")
    for which in ("last", "best"):
        for x, y in zip(leaves(both.policies(which)), leaves(alone.policies(which)), strict=True):
            np.testing.assert_array_equal(x[1], y[0])
    records_ = [records.read_record(run.directory) for run in (both, alone)]
    for name, values in records_[1].metrics.items():
        np.testing.assert_array_equal(records_[0].metrics[name][:, 1], values[:, 0])
    assert records_[0].evaluation("best").scores[1] == records_[1].evaluation("best").scores[0]


# -- objects instead of names ------------------------------------------------------------------------------------------


def test_a_composed_method_and_an_environment_object_are_resumed_bit_for_bit(tmp_path, monkeypatch, capsys):
    """The same method and environment as by their names, so the same bits too."""
    environment, method = polopt.make_env("probe:action"), parts.replace(ppo.ppo(None), {k.replace("__", "."): v for k, v in SIZES.items()})
    plan = dict(steps=640, seeds=2, evaluations=10, episodes=2, final_episodes=2, quiet=True)
    with monkeypatch.context() as patch:
        signal_after(patch, 3, signal.SIGTERM)
        run = polopt.fit(method, environment, out=tmp_path / "run", **plan)
    assert run.status["state"] == "interrupted" and run.config["method"] == "OnPolicy"
    code, _, err = polopt_says(capsys, "resume", run.directory)
    assert code == 2 and "started with an environment object; pass it again: load(directory, env=...)" in one_sentence(err)
    resumed = polopt.load(run.directory, env=environment).resume(quiet=True)
    assert resumed.status["state"] == "finished" and digests(run.directory) == digests(finished())
    assert resumed.evaluate(2)["env"] == "probe:action"
    assert resumed.policy()(np.ones(1, np.float32)) in (0, 1)


def test_a_pickled_method_that_is_gone_is_a_sentence(tmp_path):
    run = copy_of(finished(), tmp_path / "run")
    (run / "method.pkl").write_bytes(pickle.dumps(OnPolicy).replace(b"polopt.loops.on_policy", b"polopt.loops.forgotten"))
    with pytest.raises(RunError, match="method.pkl cannot be read .*importable"):
        polopt.load(run).policy()


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_resume_with_other_versions_says_so_and_goes_on(tmp_path, capsys):
    run = as_interrupted(finished(), tmp_path / "run", 18)
    config = json.loads((run / "run.json").read_text())
    config["versions"] |= {"jax": "0.1.2", "gone": "3.0"}
    (run / "run.json").write_text(json.dumps(config))
    code, out, err = polopt_says(capsys, "resume", run)
    assert code == 0 and not err
    (note,) = [line for line in out.splitlines() if line.startswith("The run was started with other versions")]
    assert f"jax 0.1.2 -> {jax.__version__}" in note and "gone 3.0 -> absent" in note and "goes on" in note
    assert note in [line["note"] for line in lines(run / "notes.jsonl")]
    assert digests(run) == digests(finished())


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda c: c["fields"].update({"surrogate.magic": 1}),
            "has the fields surrogate.magic, which ppo of this version does not have. Use polopt 0.1.0",
        ),
        (lambda c: c["fields"].update({"surrogate.clip": -1}), "surrogate.clip is -1"),
        (lambda c: c.update(method="forgotten"), "no method 'forgotten'"),
        (lambda c: c.update(env="NoSuch-v0"), "no environment 'NoSuch-v0'"),
        (lambda c: c.update(format=7), "written in format 7"),
        (lambda c: c.pop("fields"), "run.json has no fields"),
    ],
)
def test_resume_of_what_this_version_does_not_know(change, expected, tmp_path, capsys):
    run = as_interrupted(finished(), tmp_path / "run", 18)
    config = json.loads((run / "run.json").read_text())
    change(config)
    (run / "run.json").write_text(json.dumps(config))
    before = digests(run)
    code, _, err = polopt_says(capsys, "resume", run)
    assert code == 2 and expected in one_sentence(err) and digests(run) == before


def test_a_damaged_configuration(tmp_path, capsys):
    run = as_interrupted(finished(), tmp_path / "run", 18)
    (run / "run.json").write_text((run / "run.json").read_text()[:100])
    code, _, err = polopt_says(capsys, "resume", run)
    assert code == 2 and "run.json is damaged" in one_sentence(err) and "copy" in err


def test_a_finished_run_is_returned_as_it_is():
    run = polopt.load(finished())
    before = digests(run.directory)
    assert run.resume(quiet=True) is run and digests(run.directory) == before


# -- what goes wrong in training ---------------------------------------------------------------------------------------


def test_an_environment_that_goes_wrong_is_named_and_the_run_kept(tmp_path, capsys):
    run, env = tmp_path / "run", f"{OWN}:Raises"
    code, out, err = polopt_says(capsys, "train", "ppo", "--env", env, "--out", run, *options(seeds=1))
    assert code == 1 and not out
    assert f"The environment {env} raised ZeroDivisionError: division by zero in step(" in one_sentence(err)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 128)
    assert lines(run / "notes.jsonl")[-1]["note"] == one_sentence(err)
    assert max(digests(run)) == 4 and polopt_says(capsys, "evaluate", run, "--episodes", 1)[0] == 0


@pytest.mark.parametrize(
    "fault, expected", [("GivesNaN", "gave an observation that is not finite"), ("BreaksItsSpace", "gave an observation of shape (3,)")]
)
def test_an_environment_that_goes_wrong_in_an_evaluation(fault, expected, capsys):
    kept = (finished(HOST) / "requested.jsonl").exists() and lines(finished(HOST) / "requested.jsonl")
    code, out, err = polopt_says(capsys, "evaluate", finished(HOST), "--env", f"{OWN}:{fault}", "--episodes", 2)
    assert code == 1 and not out and f"{OWN}:{fault} {expected}" in one_sentence(err)
    assert kept == ((finished(HOST) / "requested.jsonl").exists() and lines(finished(HOST) / "requested.jsonl"))


def test_what_is_not_an_environment(capsys):
    code, _, err = polopt_says(capsys, "train", "ppo", "--env", f"{OWN}:NotAnEnvironment")
    assert code == 2 and "gives a NotAnEnvironment, but a gymnasium.Env or a JAX Dynamics is expected" in one_sentence(err)


def test_seeds_whose_numbers_are_not_finite_stop_and_the_others_go_on(tmp_path):
    """Each seed draws its own luck, so that some meet a reward that is not a number."""
    run = fit("a2c", f"{OWN}:Lottery", seeds=8, out=tmp_path / "run")
    status, record = run.status, records.read_record(run.directory)
    assert status["state"] == "finished" and 0 < len(status["stopped"]) < 8
    assert [line["note"].split(":")[0] for line in lines(run.directory / "notes.jsonl")] == [f"Seed {s} stopped" for s in status["stopped"]]
    for seed in range(8):
        rewards = record.metrics["return"][:, seed]
        if str(seed) in status["stopped"]:
            name, _, step = status["stopped"][str(seed)].partition(" was nan at step ")
            at = record.steps.tolist().index(int(step))
            assert name in record.metrics or name == "episode/return"
            assert np.isfinite(rewards[:at]).all() and np.isnan(rewards[at:]).all()
        else:
            assert np.isfinite(rewards).all()
    assert all(np.isfinite(x).all() for which in ("last", "best") for x in leaves(run.policies(which)))
    final = json.loads((run.directory / "evaluation.json").read_text())["last"]
    assert len(final["per_seed"]) == 8


@pytest.mark.parametrize(
    "env, plan, why",
    [("probe:action", {}, " was nan at step 32"), ("gym:Pendulum-v1", dict(steps=3840, evaluations=1), "the action was not finite after step 0")],
)
def test_when_every_seed_has_stopped_the_run_has_failed(env, plan, why, tmp_path, capsys):
    """On the host a chunk of several iterations ends with an action that is not finite, before its metrics are seen."""
    run = tmp_path / "run"
    code, out, err = polopt_says(capsys, "train", "ppo", "--env", env, "--out", run, *options(**plan, learning_rate=1e30))
    assert code == 1 and not out
    sentence = one_sentence(err)
    assert sentence.startswith("Every seed stopped: seed 0: ") and "; seed 1: " in sentence and sentence.count(why) == 2
    assert f"kept in {run}" in sentence and "smaller learning rate" in sentence
    kept = polopt.load(run)
    assert kept.status["state"] == "failed" and set(kept.status["stopped"]) == {"0", "1"}
    assert all(np.isfinite(x).all() for x in leaves(kept.policies("last")))
    assert len(lines(run / "notes.jsonl")) == 3
    with pytest.raises(TrainingFailed, match="Every seed stopped"):
        kept.resume(quiet=True)


def test_a_policy_that_breaks_in_the_last_update_is_not_saved(tmp_path, monkeypatch):
    """Its metrics are finite still: they are of the losses before the update."""
    advance = Training._advance

    def poisoned(self, chunk, count):
        def broken(method, state, n):
            state, log = chunk(method, state, n)
            if self.iteration == 4:
                state = jax.tree.map(lambda x: x.at[1].set(jnp.inf) if x.dtype == jnp.float32 and x.ndim == 3 else x, state)
            return state, log

        advance(self, broken, count)

    monkeypatch.setattr(Training, "_advance", poisoned)
    run = fit(out=tmp_path / "run")
    assert list(run.status["stopped"]) == ["1"] and "weight was not finite at step 160" in run.status["stopped"]["1"]
    assert all(np.isfinite(x).all() for x in leaves(run.policies("last")))
    for x, y in zip(leaves(run.policies("last")), leaves(polopt.load(finished()).policies("last")), strict=True):
        np.testing.assert_array_equal(x[0], y[0])  # the other seed has not noticed


def test_a_policy_whose_evaluation_is_not_finite_goes_back_to_its_checkpoint(tmp_path, monkeypatch):
    evaluate, calls = Training.evaluate, []

    def unscored(self, policy, episodes, salt):
        returns, lengths = evaluate(self, policy, episodes, salt)
        calls.append(salt)
        return (np.where(np.arange(2)[:, None] == 1, np.nan, returns), lengths) if salt == 6 else (returns, lengths)

    monkeypatch.setattr(Training, "evaluate", unscored)
    run = fit(out=tmp_path / "run")
    assert run.status["stopped"] == {"1": "the return of its evaluation was not finite at step 192"} and len(calls) == 12
    monkeypatch.undo()
    short = as_interrupted(finished(), tmp_path / "short", 20)
    last = [leaves(polopt.load(d).policies("last")) for d in (run.directory, short)]
    assert all(np.array_equal(x[0], y[0]) for x, y in zip(*last)) and any(not np.array_equal(x[1], y[1]) for x, y in zip(*last))


# -- every kind of environment and network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env, changes",
    [
        ("Breakout-MinAtar", {}),
        ("probe:action", dict(network__core="gru", network__core_size=4)),
        (own_envs.Copying(), {}),
        (own_envs.Copying(spaces.MultiBinary(3)), {}),
    ],
    ids=["image", "recurrent", "dict and multi-discrete", "dict and multi-binary"],
)
def test_two_iterations_and_an_agent(env, changes, tmp_path):
    run = fit("a2c", env, steps=64, seeds=1, evaluations=1, out=tmp_path / "run", **changes)
    assert run.status["state"] == "finished" and run.status["step"] == 64
    agent = run.policy()
    sample = jax.tree.map(np.asarray, spaces.zeros(agent.policy.observation_space))
    one, batch = agent(sample), Agent(agent.policy)(jax.tree.map(lambda x: np.stack([x] * 3), sample))
    assert one.shape == agent.policy.action_space.shape and batch.shape == (3, *one.shape)
    np.testing.assert_array_equal(batch, np.stack([one] * 3))


# -- the agent ---------------------------------------------------------------------------------------------------------


def test_an_agent_acts_on_one_observation_or_a_batch():
    agent = polopt.load(finished(HOST)).policy(seed=0)
    observations = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    batch = agent(observations)
    assert batch.shape == (6,) and batch.dtype == np.int32 and isinstance(batch, np.ndarray)
    assert [int(agent(o)) for o in observations] == batch.tolist() == agent(observations.astype(np.float64)).tolist()
    assert int(agent(observations[0].tolist())) == batch[0]
    drawn = np.array([agent(observations[0], jax.random.key(i)) for i in range(40)])
    assert set(drawn.tolist()) == {0, 1}
    assert len(set(agent(np.stack([observations[0]] * 40), jax.random.key(0)).tolist())) == 2


@pytest.mark.parametrize("observation", [np.zeros(3), np.zeros((2, 3)), np.zeros((1, 1, 4)), 1.0])
def test_an_observation_of_another_shape_is_refused(observation):
    agent = polopt.load(finished(HOST)).policy()
    with pytest.raises(ValueError, match=r"observation has shape \(.*\), but the policy expects \(4,\), or a batch"):
        agent(observation)


def test_a_dict_observation_is_checked():
    space = spaces.Dict((("a", spaces.Box(-1.0, 1.0, (2,))), ("b", spaces.Discrete(3))))
    policy = type("Policy", (), {"observation_space": space, "initial_carry": lambda self: ()})()
    agent = Agent(policy)
    with pytest.raises(ValueError, match="dict with the names a, b"):
        agent({"a": np.zeros(2)})
    with pytest.raises(ValueError, match="a batch of 3, b one"):
        agent({"a": np.zeros((3, 2)), "b": 1})


class Counts:
    """A recurrent policy that acts by how many observations its episode has had."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))

    def initial_carry(self):
        return jnp.zeros((), jnp.int32)

    def act(self, carry, observation, key=None):
        return carry + 1, carry


jax.tree_util.register_static(Counts)


def test_a_recurrent_agent_remembers_until_it_is_reset():
    agent, one, two = Agent(Counts()), np.zeros(1), np.zeros((2, 1))
    assert [int(agent(one)) for _ in range(3)] == [0, 1, 2]
    agent.reset()
    assert int(agent(one)) == 0
    with pytest.raises(ValueError, match=r"given a batch of 2 observations. Call reset\(\)"):
        agent(two)
    agent.reset()
    assert [agent(two).tolist() for _ in range(2)] == [[0, 0], [1, 1]]


def test_a_policy_that_is_not_there():
    run = polopt.load(finished())
    with pytest.raises(RunError, match="seed is 7, but the run .* has the seeds 0, 1"):
        run.policy(seed=7)
    with pytest.raises(RunError, match="which is 'first', but it must be 'best' or 'last'"):
        run.policy(which="first")
