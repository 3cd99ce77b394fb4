"""Nothing that was saved is lost: full disks, damaged files, and a process that is killed."""

import errno
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt.run import records
from polopt.run.checkpoint import CheckpointError, Checkpoints
from polopt.run.training import Training
from tests.runs import as_interrupted, digests, finished, fit, lines, one_sentence, options, polopt_says, training

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["probe:action", "gym:CartPole-v1"])
def test_killed_at_a_random_moment_a_run_goes_on_bit_for_bit(env, tmp_path, capsys):
    run = tmp_path / "run"
    with training(run, "ppo", "--env", env, *options()) as process:
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
    code, out, err = polopt_says(capsys, "resume", run)
    assert code == 0 and not err and "last policy: return" in out
    assert digests(run) == digests(finished(env))
    assert (run / "evaluation.json").read_text() == (finished(env) / "evaluation.json").read_text()
    resumed, whole = records.read_record(run), records.read_record(finished(env))
    assert resumed.steps.tolist() == whole.steps.tolist()  # no step is missing, none is there twice
    for name, values in whole.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values)


# -- damaged -----------------------------------------------------------------------------------------------------------


def _flip(folder: Path) -> None:
    """Change a byte in the middle of each file of numbers."""
    for path in (folder / "tree").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))


def _truncate(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _lie(folder: Path) -> None:
    """Contents that read well and are not what was saved."""
    path = folder / "meta" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "0" * 64}))


DAMAGES = {
    "a byte": _flip,
    "half of everything": _truncate,
    "no meta": lambda folder: (folder / "meta" / "metadata").unlink(),
    "no tree": lambda folder: shutil.rmtree(folder / "tree"),
    "other contents": _lie,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(damage, tmp_path, capsys):
    """The newest checkpoint is of an iteration that training comes past again, and then writes anew."""
    run = as_interrupted(finished(), tmp_path / "run", 18)
    DAMAGES[damage](run / "checkpoints" / "18")
    code, out, err = polopt_says(capsys, "resume", run)
    assert code == 0 and not err
    (said,) = [line for line in out.splitlines() if line.startswith("The checkpoint ")]
    assert said.startswith(f"The checkpoint {run / 'checkpoints' / '18'} is damaged (") and said.endswith("): the one before it, 16, is used.")
    assert lines(run / "notes.jsonl")[-1]["note"] == said
    assert digests(run) == digests(finished())


def test_a_damaged_checkpoint_does_not_stop_a_look_at_the_run(tmp_path, capsys):
    run = as_interrupted(finished(), tmp_path / "run", 18)
    _flip(run / "checkpoints" / "18")
    code, out, err = polopt_says(capsys, "evaluate", run, "--episodes", 1)
    assert code == 0 and out and "18 is damaged" in err and "16, is used" in err


def test_when_all_are_damaged_each_is_named(tmp_path, capsys):
    run = as_interrupted(finished(), tmp_path / "run", 18)
    for folder in (run / "checkpoints").iterdir():
        _truncate(folder)
    for command in ("resume", "evaluate"):
        code, _, err = polopt_says(capsys, command, run)
        assert code == 1
        sentence = one_sentence(err)
        assert sentence.startswith("No checkpoint can be restored: ") and "copy" in sentence
        assert all(f"{run / 'checkpoints' / n} is damaged" in sentence for n in ("16", "18"))


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["checkpoint", "metrics", "evaluation"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(where, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"

    def full(*_, **__):
        raise FULL

    with monkeypatch.context() as patch:
        if where == "checkpoint":
            save = Checkpoints.save
            patch.setattr(Checkpoints, "save", lambda self, iteration, *rest: full() if iteration > 4 else save(self, iteration, *rest))
        else:
            append, name = records.append_line, {"metrics": "metrics.jsonl", "evaluation": "evaluations.jsonl"}[where]
            crowded = lambda path, row: full() if path.name == name and row["iteration"] > 5 else append(path, row)  # noqa: E731
            patch.setattr(records, "append_line", crowded)
        code, _, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", run, *options())
    assert code != 0
    sentence = one_sentence(err)
    assert f"Cannot write to {run}: No space left on device" in sentence and f"`polopt resume {run}`" in sentence
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert max(digests(run)) == 4
    assert polopt_says(capsys, "evaluate", run, "--episodes", 1)[0] == 0
    assert polopt_says(capsys, "resume", run, "--quiet")[0] == 0
    assert digests(run) == digests(finished())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 240 KiB, where this may be made."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240k", "polopt-test", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes rights that are not given here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_indeed(small_disk, capsys):
    run = small_disk / "run"
    code, _, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", run, *options())
    assert code != 0 and f"Cannot write to {run}: No space left on device" in one_sentence(err)
    assert digests(run) and max(digests(run)) < 20
    assert not list((run / "checkpoints").glob("*tmp*"))  # what is not whole gives its room back
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert polopt_says(capsys, "resume", run, "--quiet")[0] == 0
    assert digests(run) == digests(finished())


def test_a_report_that_has_no_room_comes_with_the_next_resume(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"

    def full(*_):
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(polopt.Run, "report", full)
        code, _, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", run, *options())
    assert code != 0 and "No space left" in one_sentence(err) and not (run / "report.html").exists()
    code, out, err = polopt_says(capsys, "resume", run)
    assert (code, err) == (0, "") and (run / "report.html").exists() and "last policy: return" in out


# -- the store ---------------------------------------------------------------------------------------------------------

LIKE = {"x": jax.ShapeDtypeStruct((3,), jnp.float32), "key": jax.eval_shape(lambda: jax.random.key(0))}


def _tree(i: float):
    return {"x": jnp.array([jnp.nan, -0.0, i]), "key": jax.random.key(int(i))}


def test_the_newest_three_are_kept_and_come_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    for i in range(1, 6):
        checkpoints.save(i, _tree(i), {"iteration": i, "note": "µ"})
    assert checkpoints.iterations() == [3, 4, 5]
    tree, meta, notes = Checkpoints(tmp_path / "c").restore(LIKE)
    assert not notes and (meta["iteration"], meta["note"]) == (5, "µ")
    assert np.asarray(tree["x"]).tobytes() == np.asarray(_tree(5)["x"]).tobytes()
    assert np.array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(jax.random.key(5)))


def test_a_save_that_fails_leaves_the_earlier_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, _tree(1), {"iteration": 1})
    with pytest.raises(TypeError):
        checkpoints.save(2, _tree(2), {"iteration": object()})
    assert checkpoints.iterations() == [1]
    assert Checkpoints(tmp_path / "c").restore(LIKE)[1]["iteration"] == 1


def test_nothing_to_restore(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in .*Resume it"):
        Checkpoints(tmp_path / "c").restore(LIKE)


def test_the_best_policy_outlives_its_checkpoint(tmp_path, monkeypatch):
    """Every checkpoint carries the best policy so far, so that keeping the newest keeps the best."""
    scores = iter([[9.0, 1.0], *[[1.0, 2.0]] * 9])
    evaluate = Training.evaluate

    def scripted(self, policy, episodes, salt):
        """The first seed is best at its first evaluation, the second at its second."""
        returns, lengths = evaluate(self, policy, episodes, salt)
        score = next(scores, None)
        return (returns if score is None else np.repeat(np.array(score)[:, None], episodes, axis=1)), lengths

    policies = []
    save = Training.save

    def remember(self):
        policies.append(self.method.policy(self.state))
        save(self)

    monkeypatch.setattr(Training, "evaluate", scripted)
    monkeypatch.setattr(Training, "save", remember)
    run = fit(out=tmp_path / "run")
    assert sorted(digests(run.directory)) == [16, 18, 20]
    best = jax.tree.leaves(run.policies("best"))
    for seed, when in ((0, 0), (1, 1)):
        assert all(np.array_equal(a[seed], b[seed]) for a, b in zip(best, jax.tree.leaves(policies[when])))
    assert any(not np.array_equal(a, b) for a, b in zip(best, jax.tree.leaves(run.policies("last"))))
