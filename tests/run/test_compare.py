"""Comparing runs that are there, and methods that are trained for it."""

import json
import os
import re
import signal

import numpy as np
import pytest

import polopt
from polopt.data import files
from polopt.run import compare
from polopt.run.collect import collect
from polopt.run.compare import comparison
from polopt.run.training import Training
from tests.runs import ONE_PASS, PLAN, as_interrupted, finished, lines, one_sentence, polopt_says

METHODS = ["compare", "a2c", "reinforce", "--env", "probe:action", "--seeds", 2, "--quiet"]
LINE = re.compile(r"  (\S+) +(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\](?:   beats (\S+) with probability ([\d.]+) \[([\d.]+), ([\d.]+)\])?$")


def test_runs_are_compared_and_the_numbers_kept(capsys, tmp_path):
    ppo, a2c = finished(), finished(method="a2c")
    code, out, err = polopt_says(capsys, "compare", ppo, a2c, "--policy", "last", "--html", tmp_path / "report.html")
    assert (code, err) == (0, "")
    head, first, second, where = out.splitlines()
    assert head == "probe:action, last policy: interquartile mean of the return with its 95 % bootstrap interval"
    assert where == f"report: {tmp_path / 'report.html'}" and (tmp_path / "report.html").exists() and (tmp_path / "curve.png").exists()
    kept = lines(ppo / "comparisons.jsonl")[-1]
    assert (kept["env"], kept["policy"]) == ("probe:action", "last")
    for line, row, name, directory in zip((first, second), kept["runs"], ("ppo", "a2c"), (ppo, a2c)):
        said = LINE.match(line).groups()
        assert said[0] == row["method"] == name and row["run"] == str(directory)
        assert [float(x) for x in said[1:4]] == [round(x, 1) for x in (row["iqm"], *row["interval"])]
        final = json.loads((directory / "evaluation.json").read_text())["last"]
        np.testing.assert_allclose(row["scores"], final["per_seed"], rtol=1e-6)
    said = LINE.match(second).groups()
    assert said[4] == "ppo" and [float(x) for x in said[5:]] == [round(x, 2) for x in kept["runs"][1]["improvement"]]


def test_a_run_beats_itself_with_probability_one_half():
    """P(X > Y) + P(X = Y) / 2 over all pairs of seeds."""
    run = polopt.load(finished())
    rows = comparison([run, run], "last")
    assert rows[1]["improvement"].value == 0.5 and "improvement" not in rows[0]


@pytest.fixture
def small(monkeypatch):
    """Methods that are trained for a comparison have the sizes and the plan of the other runs."""
    whole = compare.fit
    monkeypatch.setattr(compare, "fit", lambda *args, **given: whole(*args, **{**given, **ONE_PASS, **PLAN}))


def test_methods_are_trained_and_compared(capsys, tmp_path, small):
    out = tmp_path / "both"
    words = [*METHODS, "--out", out]
    code, said, err = polopt_says(capsys, *words)
    assert (code, err) == (0, "") and said.endswith(f"report: {out / 'report.html'}\n") and "beats a2c with probability" in said
    for name in ("a2c", "reinforce"):
        assert json.loads((out / name / "status.json").read_text())["state"] == "finished"
        assert json.loads((out / name / "run.json").read_text())["command"].startswith("polopt compare a2c reinforce --env probe:action")
    assert (out / "curve.png").exists() and lines(out / "a2c" / "comparisons.jsonl")
    code, _, err = polopt_says(capsys, *words)
    assert code == 2 and f"{out / 'a2c'} holds a run already" in one_sentence(err)
    code, again, _ = polopt_says(capsys, "compare", out / "a2c", out / "reinforce")
    assert code == 0 and again == said.rpartition("report: ")[0]


def test_methods_are_compared_on_data(capsys, tmp_path, monkeypatch):
    path = files.write(collect("random", "probe:action", steps=60), tmp_path / "d.npz")
    whole, sizes = compare.fit, {"batch_size": 4, "updates": 4, "evaluations": 1, "episodes": 2, "final_episodes": 2}
    monkeypatch.setattr(compare, "fit", lambda *args, **given: whole(*args, **given, **sizes, rule__network__hidden=(4,)))
    words = ["compare", "bc", "rvs", "--data", path, "--steps", 8, "--seeds", 2, "--quiet", "--out", tmp_path / "both"]
    code, said, err = polopt_says(capsys, *words, "--env", "probe:action")
    assert (code, err) == (0, "") and "beats bc with probability" in said
    for name in ("bc", "rvs"):
        assert json.loads((tmp_path / "both" / name / "run.json").read_text())["data"]["source"] == str(path)
    code, _, err = polopt_says(capsys, *words)
    assert code == 2 and f"--data {path} --env" in one_sentence(err)
    code, _, err = polopt_says(capsys, "compare", "bc", "ppo", "--data", path, "--env", "probe:action", "--out", tmp_path / "other")
    assert code == 2 and "The method ppo needs an environment" in one_sentence(err)


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "start", lambda self: pytest.fail("something was trained"))
    (tmp_path / "a2c").mkdir()
    (tmp_path / "a2c" / "run.json").write_text("{}")
    for words, expected in (
        (["ppo", "a2c"], "a2c holds a run already"),
        (["ppo", "nope"], "no method 'nope'"),
        (["ppo"], "at least 2 runs or methods"),
        (["ppo", "reinforce", "--steps", "0"], "steps is 0"),
        (["ppo", "reinforce", "--seeds", "0"], "seeds is 0"),
    ):
        code, out, err = polopt_says(capsys, "compare", *words, "--env", "probe:action", "--out", tmp_path)
        assert code == 2 and not out and expected in one_sentence(err)
    assert [p.name for p in tmp_path.iterdir()] == ["a2c"]


def test_runs_on_different_environments_are_refused(capsys):
    code, _, err = polopt_says(capsys, "compare", finished(), finished("gym:CartPole-v1"))
    assert code == 2 and "different environments (gym:CartPole-v1, probe:action)" in one_sentence(err)


def test_a_run_that_is_not_finished_is_refused_with_advice(capsys, tmp_path):
    run = as_interrupted(finished(), tmp_path / "run", 18)
    kept = [line for line in (run / "evaluations.jsonl").read_text().splitlines(True) if '"final":false' in line]
    (run / "evaluations.jsonl").write_text("".join(kept))
    code, _, err = polopt_says(capsys, "compare", finished(), run)
    assert code == 2 and f"{run} has no final evaluation: it is running. Finish it by `polopt resume {run}`." in one_sentence(err)
    assert polopt_says(capsys, "resume", run, "--quiet")[0] == 0
    assert polopt_says(capsys, "compare", finished(), run)[0] == 0


def test_ctrl_c_stops_the_whole_comparison(capsys, tmp_path, monkeypatch, small):
    advance = Training._advance

    def interrupted(self, *args):
        advance(self, *args)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Training, "_advance", interrupted)
    code, out, err = polopt_says(capsys, *METHODS, "--out", tmp_path)
    assert (code, err) == (130, "") and out.endswith(f"Go on with: polopt resume {tmp_path / 'a2c'}\n")
    assert not (tmp_path / "reinforce").exists()
