"""The run directory: what is written comes back, and what a kill leaves behind does no harm."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.run.records import NotARun, append_line, read_json, read_record, write_json_atomic


def test_a_run_comes_back(make_run):
    record = read_record(make_run("one", seeds=3, chunks=4, stopped={"2": "kl was nan at step 3000"}))
    assert record.title == "ppo on CartPole-v1" and record.seeds == [0, 1, 2]
    assert record.steps.tolist() == [1000, 2000, 3000, 4000] and record.seconds.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert set(record.metrics) == {"return", "length", "loss/value", "kl"}
    np.testing.assert_array_equal(record.metrics["return"], 25.0 * np.arange(1, 5)[:, None] + np.arange(3))
    assert record.stopped == {2: "kl was nan at step 3000"}
    assert record.status["state"] == "finished" and record.unreadable == 0
    assert record.evaluation("last").scores.tolist() == [100, 101, 102]
    assert record.evaluation("best").scores.tolist() == [101, 102, 103]


def test_a_half_written_last_line_is_left_out_and_does_not_swallow_the_next(make_run):
    directory = make_run("killed", chunks=3)
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"step": 4000, "return": [1.0, 2.')
    record = read_record(directory)
    assert record.steps.tolist() == [1000, 2000, 3000] and record.unreadable == 1
    append_line(directory / "metrics.jsonl", {"step": 4000, "return": [9.0] * 5})
    record = read_record(directory)
    assert record.steps.tolist() == [1000, 2000, 3000, 4000] and record.metrics["return"][-1].tolist() == [9.0] * 5
    assert np.isnan(record.metrics["kl"][-1]).all()  # a name that a line lacks


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(make_run):
    directory = make_run("resumed", chunks=5)
    append_line(directory / "metrics.jsonl", {"step": 3000, "return": [7.0] * 5})
    append_line(directory / "evaluations.jsonl", {"step": 5000, "policy": "last", "final": True, "returns": [[1.0]] * 5, "lengths": [[1]] * 5})
    record = read_record(directory)
    assert record.steps.tolist() == [1000, 2000, 3000] and record.metrics["return"][-1].tolist() == [7.0] * 5
    assert record.evaluation().scores.tolist() == [1.0] * 5


def test_only_run_json_is_needed(make_run):
    directory = make_run("young")
    for name in ("metrics.jsonl", "evaluations.jsonl", "status.json"):
        (directory / name).unlink()
    record = read_record(directory)
    assert record.steps.size == 0 and record.metrics == {} and record.evaluation() is None and record.status == {}
    (directory / "metrics.jsonl").touch()
    assert read_record(directory).metrics == {}


def test_nulls_are_nan_and_a_seed_without_an_episode_has_no_score(make_run):
    directory = make_run("nulls", seeds=2, chunks=1)
    append_line(directory / "metrics.jsonl", {"step": 2000, "return": [None, 3.0], "learning_rate": 0.5, "kl": None})
    append_line(directory / "evaluations.jsonl", {"step": 2000, "policy": "last", "final": True, "returns": [[], [1.0, None]], "lengths": [[], [1]]})
    record = read_record(directory)
    np.testing.assert_array_equal(record.metrics["return"][-1], [np.nan, 3.0])
    np.testing.assert_array_equal(record.metrics["learning_rate"], [[np.nan, np.nan], [0.5, 0.5]])
    np.testing.assert_array_equal(record.evaluation().scores, [np.nan, 1.0])


def test_a_final_evaluation_comes_before_a_later_one(make_run):
    directory = make_run("marks", seeds=1, chunks=2)
    append_line(directory / "evaluations.jsonl", {"step": 9000, "policy": "last", "final": False, "returns": [[5.0]], "lengths": [[1]]})
    assert read_record(directory).evaluation().scores.tolist() == [100.0]


def test_lines_are_valid_json_with_sensible_digits(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"step": np.int64(3), "x": np.float32(0.1), "y": [np.nan, np.inf, -np.inf], "z": jnp.array([1 / 3, jnp.nan]), "big": 12345678.9, "no": None}
    append_line(path, row)
    text = path.read_text()
    assert text.endswith("\n") and "NaN" not in text and "Infinity" not in text
    expected = {"step": 3, "x": 0.1, "y": [None] * 3, "z": [0.3333333, None], "big": 12345680.0, "no": None}
    assert json.loads(text) == expected


def test_json_files_keep_every_digit_and_say_infinity_in_words(tmp_path):
    path = tmp_path / "run.json"
    write_json_atomic(path, {"a": 0.1234567890123, "b": float("inf"), "c": float("nan"), "d": (1, 2), "e": True, "f": "ü", "g": np.float64(2)})
    assert read_json(path) == {"a": 0.1234567890123, "b": "inf", "c": None, "d": [1, 2], "e": True, "f": "ü", "g": 2.0}
    assert float(read_json(path)["b"]) == float("inf")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(moment, tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_json_atomic(path, {"state": "running"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError):
        write_json_atomic(path, {"state": "finished"})
    assert read_json(path) == {"state": "running"}


def test_what_is_not_a_run_gets_a_sentence(tmp_path, make_run):
    with pytest.raises(NotARun, match="There is no directory"):
        read_record(tmp_path / "nothing")
    with pytest.raises(NotARun, match="holds no run.json"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 1')
    with pytest.raises(NotARun, match="is damaged"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"name": "something else"}')
    with pytest.raises(NotARun, match="lacks format, method, env, seeds"):
        read_record(tmp_path)
    write_json_atomic(tmp_path / "run.json", {"format": 2, "method": "ppo", "env": "x", "seeds": [0]})
    with pytest.raises(NotARun, match="has format 2, but this polopt reads format 1"):
        read_record(tmp_path)
    directory = make_run("odd", seeds=2)
    append_line(directory / "metrics.jsonl", {"step": 10**6, "return": [1.0, 2.0, 3.0]})
    with pytest.raises(NotARun, match="'return' .* has 3 values, but the run has 2 seeds"):
        read_record(directory)
