"""`polopt verify`: what it prints, what it stores, and what it does not."""

import json

import numpy as np
import pytest

from polopt import cli
from polopt.claims import claim as claims
from polopt.claims import evidence, verify
from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import Curves, area, mean_squared_error, squared_bias, train_curves, trained, variance
from polopt.core.parts import replace
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.probes import PROBES
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.policy_gradient.a2c import a2c


def planted(shift=1.0, **changes):
    def run(seeds):
        x = np.linspace(0, 1, 200)
        noise = np.array([np.random.default_rng(seed).normal() for seed in seeds])
        curve = np.where(x < 0.1, np.nan, x * np.arange(1, len(seeds) + 1)[:, None])
        old = Side({"rate": 0.1}, {"score": 10 + noise}, {"return": (x, curve, "steps")})
        return {"new": Side({"rate": 0.2}, {"score": 10 + noise + shift}), "old": old}

    options = dict(method="gae", statement="New beats old.", baseline="old", task="planted", run=run, seconds=1)
    return Claim(**{**options, "checks": (Check("score", "new", over="old", above=0.5),), **changes})


@pytest.fixture
def plant(monkeypatch):
    """Every method's claim becomes this one."""

    def put(claim):
        monkeypatch.setattr(claims, "exists", lambda entry: entry.key in ("gae", "ppo"))
        monkeypatch.setattr(claims, "load", lambda entry: claim)

    return put


def test_a_verdict_is_printed_and_stored(plant, tmp_path, capsys):
    plant(planted())
    assert cli.main(["verify", "gae", "--evidence", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "gae: HOLDS",
        "New beats old. (Schulman et al. 2015, arXiv:1506.02438)",
        "score: new - old  1 [1, 1]  expected above 0.5: holds",
        "10 paired seeds",
    ):
        assert words in printed
    stored = evidence.read(tmp_path / "policy_gradient" / "gae.json")
    assert stored["verdict"] == "holds" and stored["seeds"] == list(range(10))
    assert len(stored["sides"]["new"]["numbers"]["score"]) == 10 and stored["sides"]["old"]["configuration"] == {"rate": 0.1}
    curve = stored["sides"]["old"]["curves"]["return"]
    assert len(curve["x"]) == verify.POINTS and np.shape(curve["y"]) == (10, verify.POINTS) and curve["y"][0][0] is None
    assert {"python", "jax"} <= set(stored["versions"]) and stored["machine"]["cores"] >= 1 and stored["seconds"] >= 0
    assert "polopt/objectives/advantages.py" in stored["sources"]
    entry = registry.find("gae")
    assert evidence.standing(entry, tmp_path).current


@pytest.mark.parametrize("option", [["--seeds", "7"], ["--pilot"]])
def test_other_seeds_are_shown_and_never_stored(plant, tmp_path, capsys, option):
    plant(planted())
    assert cli.main(["verify", "gae", "--evidence", str(tmp_path), "--json", str(tmp_path / "out.json"), *option]) == 0
    assert "not stored" in capsys.readouterr().out
    assert not (tmp_path / "policy_gradient").exists()
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert result["seeds"] == (list(range(7)) if "--seeds" in option else list(range(1000, 1010)))


def test_a_failing_claim_is_a_result_and_says_whether_somebody_looked(plant, tmp_path, capsys):
    plant(planted(shift=0.0))
    assert cli.main(["verify", "gae", "--evidence", str(tmp_path)]) == 0
    assert "gae: FAILS (nobody has looked into why)" in capsys.readouterr().out
    plant(planted(shift=0.0, analysis="It needs a\n  larger network."))
    assert cli.main(["verify", "gae", "--evidence", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "gae: FAILS (examined: see the analysis)" in printed and "analysis  It needs a larger network." in printed


def test_what_breaks_does_not_stop_the_others(plant, tmp_path, capsys):
    def run(seeds):
        raise ValueError("a network of size 0")

    plant(planted(run=run))
    assert cli.main(["verify", "--all", "--evidence", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "gae: BROKEN: a network of size 0" in printed and "ppo: BROKEN" in printed and "2 broken (gae, ppo)" in printed
    assert ", a2c, " in printed.partition("without a claim: ")[2]


def test_one_seed_is_refused(plant, tmp_path, capsys):
    plant(planted())
    assert cli.main(["verify", "gae", "--seeds", "1", "--evidence", str(tmp_path)]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_which_claims_are_meant(plant, tmp_path):
    plant(planted())

    def keys(*names, family=None, every=False, stale=False, slow=False):
        return [e.key for e in verify.select(names, tmp_path, family=family, every=every, stale=stale, slow=slow)]

    assert keys("ppo", "gae") == ["ppo", "gae"]
    assert keys(every=True) == keys(family="policy_gradient") == keys(stale=True) == ["gae", "ppo"]
    assert keys(slow=True) == []
    cli.main(["verify", "ppo", "--evidence", str(tmp_path)])
    assert keys(stale=True) == ["gae"]
    plant(planted(slow=True))
    assert keys(every=True) == [] and keys(slow=True) == keys(every=True, slow=True) == ["gae", "ppo"]
    with pytest.raises(ValueError, match="not both"):
        keys("ppo", every=True)
    with pytest.raises(ValueError, match="--all"):
        keys()


def test_curves_are_drawn_small(plant, tmp_path, capsys):
    plant(planted())
    cli.main(["verify", "gae", "-v", "--evidence", str(tmp_path)])
    line = next(line for line in capsys.readouterr().out.splitlines() if "ends at" in line)
    assert "▁" in line and "█" in line and line.strip().startswith("old")
    assert verify.sparkline([0, np.nan, 7], 0, 7) == "▁ █" and verify.sparkline([3, 3], 3, 3) == "▁▁"


# -- measures ----------------------------------------------------------------------------------------------------------


def test_area_carries_the_last_known_return():
    returns = np.array([[np.nan, 2.0, np.nan, 4.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(area(Curves(np.arange(4), returns, None, None, {})), [(2 + 2 + 2 + 4) / 4, 1.0])
    with pytest.raises(ValueError, match="has not finished an episode"):
        area(Curves(np.arange(2), np.full((1, 2), np.nan), None, None, {}))


def test_bias_variance_and_error_of_an_estimator():
    rng = np.random.default_rng(0)
    exact = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = exact + np.array([[0.5, 0], [0, 0]]) + rng.normal(size=(20000, 2, 2)) * np.array([[1, 2], [0.5, 0]])
    assert variance(found) == pytest.approx(1 + 4 + 0.25, rel=0.03)
    assert squared_bias(found, exact) == pytest.approx(0.25, abs=0.03)
    assert mean_squared_error(found, exact) == pytest.approx(squared_bias(found, exact) + variance(found), rel=0.01)
    few = np.mean([squared_bias(rng.normal(size=(5, 4)), np.zeros(4)) for _ in range(2000)])
    assert abs(few) < 0.05  # of 4 / 5 that the scatter of the mean adds


def test_training_for_several_seeds_at_once():
    task = ControlTask(JaxEnvironment("probe:credit", PROBES["credit"]), 16)  # an episode takes three steps
    method = replace(a2c(task), {"num_envs": 4, "num_steps": 2, "network.hidden": (4,), "critic_network.hidden": (4,)})

    def observe(before, after):
        return {"iteration": after.iteration}

    options = dict(metrics=("entropy", "iteration"), episodes=4, observe=observe)
    one, other = trained(method, task, [0, 1], **options), trained(method, task, [1, 0], **options)
    assert set(one.numbers) == {"final return", "mean return over training", "mean entropy", "mean iteration"}
    for measure, numbers in one.numbers.items():  # a seed's numbers are its own, wherever it stands
        np.testing.assert_array_equal(numbers, other.numbers[measure][::-1])
    steps, returns, _ = one.curves["return"]
    assert list(steps) == [8, 16] and returns.shape == (2, 2)
    assert np.isnan(returns[:, 0]).all() and np.isfinite(returns[:, 1]).all()
    np.testing.assert_array_equal(one.curves["iteration"][1], [[1, 2], [1, 2]])
    assert one.configuration["num_envs"] == 4 and one.configuration["surrogate"] == "LogLikelihood"


def test_what_cannot_be_trained_is_refused():
    task = ControlTask(JaxEnvironment("probe:credit", PROBES["credit"]), 16)
    with pytest.raises(ValueError, match="cannot split"):
        train_curves(replace(a2c(task), {"minibatches": 3}), task, [0, 1])
