"""A suite trains what it is given and says what came out."""

from __future__ import annotations

import numpy as np
import pytest

import polopt
from polopt.methods.policy_gradient.pg_guide import ABLATION, OBJECTIVES
from polopt.run.records import read_record
from polopt.run.run import RunError

SIZES = {"num_envs": 4, "num_steps": 8, "network__hidden": (4,), "critic_network__hidden": (4,)}


def test_a_table_of_methods(tmp_path):
    table = polopt.suite(["pg_guide:ppo", "pg_guide:a2c"], "probe:action", 2, steps=320, out=tmp_path / "suite", **SIZES)
    assert [row.name for row in table] == ["pg_guide:ppo", "pg_guide:a2c"]
    for row in table:
        record = read_record(tmp_path / "suite" / row.name.replace(":", "-"))
        scores = record.evaluation("last").scores
        np.testing.assert_allclose(row.scores, scores)
        np.testing.assert_allclose((row.mean, row.deviation), (scores.mean(), scores.std(ddof=1)))
        assert row.kl > 0 and row.seconds > 0
        assert row.name in str(table)
    assert table[0].kl != table[1].kl


def test_rows_may_change_hyperparameters_and_nothing_need_be_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {name: ABLATION[name] for name in ("PPO", "KL penalty, no clip")}
    table = polopt.suite(rows, "probe:action", [3], steps=64, **SIZES)
    assert [row.name for row in table] == list(rows) and table[0].kl != table[1].kl
    assert np.isnan(table[0].deviation) and not list(tmp_path.iterdir())


def test_what_would_be_refused_later_is_refused_at_once(tmp_path):
    with pytest.raises(RunError, match="at least one method"):
        polopt.suite([], "probe:action", steps=64)
    with pytest.raises(ValueError, match="no field 'clop'"):
        polopt.suite({"a": ("pg_guide:ppo", {}), "b": ("pg_guide:ppo", {"clop": 1})}, "probe:action", steps=64, out=tmp_path / "suite")
    assert not (tmp_path / "suite").exists()
    assert len(OBJECTIVES) == 5
