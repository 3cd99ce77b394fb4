"""Datasets: one layout from every format, and one sentence for what is wrong."""

from __future__ import annotations

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.data import files, pieces
from polopt.data.dataset import DataError, Dataset, concatenated
from polopt.data.layout import assemble

BOX = spaces.Box(-1.0, 1.0, (2,))
FREE = spaces.Box(-np.inf, np.inf, (3,))


def has(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def columns(n=12, ends=(4, 11), terminal=(4,)):
    """Two episodes, one that terminates and one that is cut, whose observations count the steps."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(n, dtype=np.float32)[:, None], 3, axis=1)
    terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
    terminated[list(terminal)] = True
    truncated[[e for e in ends if e not in terminal]] = True
    action = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    reward = rng.normal(size=n).astype(np.float32)
    return {"observation": truth, "action": action, "reward": reward, "next_observation": truth + 1, "terminated": terminated, "truncated": truncated}


def dataset(**changes) -> Dataset:
    return assemble("made", {**columns(), **changes}, observation_space=FREE, action_space=BOX, name="made", reference=(-3.0, 5.0))


def with_dicts() -> Dataset:
    """Observations of two parts and whole-number actions."""
    given = columns()
    space = spaces.Dict((("a", FREE), ("b", spaces.Discrete(12))))
    parts = lambda x: {"a": x, "b": np.minimum(x[:, 0], 11).astype(np.int32)}  # noqa: E731
    given |= {"observation": parts(given["observation"]), "next_observation": parts(given["next_observation"]), "action": np.arange(12) % 3}
    return assemble("made", given, observation_space=space, action_space=spaces.Discrete(3), name="made")


def same(a: Dataset, b: Dataset) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return a.observation_space == b.observation_space and a.action_space == b.action_space and all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "name", ["a.npz", pytest.param("a.parquet", marks=has("pyarrow")), pytest.param("minari:polopt-test/a-v0", marks=has("minari"))]
)
@pytest.mark.parametrize("make", [dataset, with_dicts])
def test_what_is_written_is_read_again(name, make, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    path = name if ":" in name else tmp_path / name
    written = make()
    files.write(written, path)
    read = files.read(path)
    assert same(read, written)
    assert read.reference == written.reference


@has("h5py")
def test_d4rl_is_written_and_read_again(tmp_path):
    files.write(dataset(), tmp_path / "a.hdf5")
    read = files.read(tmp_path / "a.hdf5", observation_space=FREE, action_space=BOX)
    assert same(read, dataset())
    assert any("bounds of the actions" in note for note in files.read(tmp_path / "a.hdf5").notes)


@has("h5py")
def test_d4rl_without_successors_leaves_out_the_last_row_of_a_cut_episode(tmp_path):
    import h5py

    given = columns()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        names = ("observation", "action", "reward", "terminated", "truncated")
        for theirs, ours in zip(("observations", "actions", "rewards", "terminals", "timeouts"), names):
            file[theirs] = given[ours]
        file["infos/qpos"] = np.zeros((12, 2))
    read = files.read(tmp_path / "a.hdf5")
    assert len(read) == 11 and list(np.flatnonzero(read.ended)) == [4, 10] and list(np.flatnonzero(read.terminated)) == [4]
    inner = ~read.terminated
    np.testing.assert_array_equal(read.next_observation[inner], read.observation[inner] + 1)


def test_ogbench_has_a_state_more_than_steps(tmp_path):
    """Two trajectories of 3 states each: 2 transitions each, cut and not terminated, no reward."""
    states = np.array([0, 1, 2, 10, 11, 12], np.float32)[:, None]
    np.savez(tmp_path / "o.npz", observations=states, actions=np.full((6, 1), 0.5, np.float32), terminals=np.array([0, 0, 1, 0, 0, 1], np.float32))
    read = files.read(tmp_path / "o.npz")
    np.testing.assert_array_equal(read.observation[:, 0], [0, 1, 10, 11])
    np.testing.assert_array_equal(read.next_observation[:, 0], [1, 2, 11, 12])
    np.testing.assert_array_equal(read.truncated, [False, True, False, True])
    assert not read.terminated.any() and not read.reward.any() and "no rewards" in read.notes[0]


def test_a_map_of_columns(tmp_path):
    given = columns()
    np.savez(tmp_path / "p.npz", x=given["observation"], u=given["action"], r=given["reward"], e=np.repeat([7, 9], [5, 7]))
    with pytest.raises(DataError, match=r"no column for the observation; it has e, r, u, x.*--columns observation=NAME"):
        files.read(tmp_path / "p.npz")
    read = files.read(tmp_path / "p.npz", columns={"observation": "x", "action": "u", "reward": "r", "episode": "e"})
    assert list(read.episodes().lengths) == [4, 6]  # each episode's last state has no successor
    with pytest.raises(DataError, match="no column 'y'; it has"):
        files.read(tmp_path / "p.npz", columns={"observation": "y"})


@has("pyarrow")
def test_lerobot_frames(tmp_path):
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "robot"
    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 30, "total_frames": 7}))
    states = np.arange(14, dtype=np.float32).reshape(7, 2)
    table = {
        "observation.state": list(states),
        "action": list(np.full((7, 1), 0.25, np.float32)),
        "episode_index": [0, 0, 0, 1, 1, 1, 1],
        "frame_index": [0, 1, 2, 0, 1, 2, 3],
        "index": list(range(7)),
    }
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "data" / "chunk-000" / "file-000.parquet")
    read = files.read(folder)
    assert list(read.episodes().lengths) == [2, 3] and "no reward" in read.notes[0]
    np.testing.assert_array_equal(read.next_observation[0], states[1])
    (folder / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(DataError, match=r"version v2.1, but v3.0 is read"):
        files.read(folder)


WRONG = {
    "rows": ({"reward": np.zeros(11)}, r"reward has 11 rows, but observation has 12; .*cut off"),
    "shape": ({"observation": np.zeros((12, 4))}, r"the observation of a step has the shape \(4,\), but the space says \(3,\)"),
    "nan": ({"reward": np.where(np.arange(12) == 7, np.nan, 0)}, r"In made, episode 1, step 2, the reward is not finite"),
    "outside": (
        {"action": np.where(np.arange(24).reshape(12, 2) == 12, 3.0, 0)},
        r"episode 1, step 1, the action is \[3. 0.\], outside the box from -1 to 1 \(1 such",
    ),
    "endless": ({"terminated": np.zeros(12, bool), "truncated": np.zeros(12, bool)}, r"no episode ends: .* in 12 steps.*--columns"),
    "flags": ({"terminated": np.full(12, 0.5)}, r"terminated must be one flag a step"),
    "text": ({"reward": np.array(["a"] * 12)}, r"the reward holds <U1 rather than numbers"),
    "rewards": ({"reward": np.zeros((12, 2))}, r"the reward has the shape \(12, 2\), but one number a step"),
    "dict": ({"observation": {"a": np.zeros((12, 3))}}, r"the observation is a dict of a, but the space is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_that_says_where(case):
    changes, words = WRONG[case]
    with pytest.raises(DataError, match=words) as error:
        dataset(**changes)
    assert "\n" not in str(error.value)


def test_whole_number_actions_are_checked():
    with pytest.raises(DataError, match=r"episode 0, step 3, the action is 5, outside the whole numbers from 0 to 2"):
        assemble("made", {**columns(), "action": np.where(np.arange(12) == 3, 5, 0)}, observation_space=FREE, action_space=spaces.Discrete(3))
    with pytest.raises(DataError, match="takes whole numbers"):
        assemble("made", {**columns(), "action": np.full(12, 0.5)}, observation_space=FREE, action_space=spaces.Discrete(3))


def test_rounding_beyond_a_bound_is_forgiven():
    action = np.zeros((12, 2))
    action[3, 1] = 1.00005
    assert dataset(action=action).action.max() == 1.0


def test_files_that_are_no_datasets(tmp_path):
    path = tmp_path / "a.npz"
    files.write(dataset(), path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"a.npz is cut off or damaged"):
        files.read(path)
    with pytest.raises(DataError, match=r"is not there; make one with: polopt data collect"):
        files.read(tmp_path / "none.npz")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"a.csv is of no format that is known; give one of FILE.npz"):
        files.read(tmp_path / "a.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder of no format that is known"):
        files.read(tmp_path / "folder")
    np.savez(tmp_path / "objects.npz", observations=np.array([np.zeros(2), np.zeros(3)], object))
    with pytest.raises(DataError, match="rows of different shapes"):
        files.read(tmp_path / "objects.npz")


@pytest.mark.parametrize("suffix", [pytest.param(".hdf5", marks=has("h5py")), pytest.param(".parquet", marks=has("pyarrow"))])
def test_a_file_that_is_cut_off(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    files.write(dataset(), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="is cut off or damaged"):
        files.read(path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").write_bytes(b"")
    with pytest.raises(DataError, match=r"needs the package h5py; install it with: pip install 'polopt\[data\]'"):
        files.read(tmp_path / "a.hdf5")


def test_the_last_episode_counts_as_truncated():
    given = columns()
    given["truncated"] = np.zeros(12, bool)
    found = assemble("made", given, observation_space=FREE, action_space=BOX)
    assert found.truncated[-1] and "no end in the file" in found.notes[0]


def test_episodes_and_scores():
    given = columns()
    episodes = dataset().episodes()
    assert list(episodes.start) == [0, 5] and list(episodes.end) == [5, 12] and list(episodes.lengths) == [5, 7]
    np.testing.assert_allclose(episodes.returns, [given["reward"][:5].sum(), given["reward"][5:].sum()], rtol=1e-5)
    np.testing.assert_allclose(dataset().score([-3.0, 5.0, 1.0]), [0.0, 100.0, 50.0])
    with pytest.raises(DataError, match="no reference returns"):
        with_dicts().score(1.0)


def test_a_piece_of_an_episode_is_truncated():
    piece = dataset().take(slice(0, 8))
    assert len(piece) == 8 and list(np.flatnonzero(piece.truncated)) == [7] and list(np.flatnonzero(piece.terminated)) == [4]
    gaps = dataset().take(np.array([1, 2, 8, 9]))
    assert list(gaps.truncated) == [False, True, False, True]


def test_joining_needs_equal_spaces():
    both = concatenated([dataset(), dataset()], "both")
    assert len(both) == 24 and len(both.episodes().lengths) == 4 and both.name == "both"
    with pytest.raises(DataError, match="only data of one environment can be joined"):
        concatenated([dataset(), with_dicts()], "both")


def test_statistics_leave_a_constant_column_finite():
    constant = dataset(observation=np.ones((12, 3)), next_observation=np.ones((12, 3)))
    normal = constant.statistics().normalise(jnp.ones(3), 10.0)
    np.testing.assert_allclose(normal, 0.0, atol=1e-6)
    varied = dataset().statistics()
    np.testing.assert_allclose(varied.mean, 5.5)
    np.testing.assert_allclose(varied.variance, (np.std(np.arange(12)) + 1e-3) ** 2, rtol=1e-5)


def test_a_dataset_is_an_argument_of_a_compiled_function():
    mean = jax.jit(lambda d: jnp.mean(d.reward) + len(d))
    np.testing.assert_allclose(mean(dataset().on_device()), 12 + columns()["reward"].mean(), rtol=1e-6)
    assert dataset().digest() == dataset().on_device().digest() != dataset(reward=np.zeros(12)).digest()


# -- data that are mapped, not loaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.npz", "a.hdf5", pytest.param("a.parquet", marks=has("pyarrow")), pytest.param("minari:polopt-test/a-v0", marks=has("minari"))]
)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_converting_by_pieces_is_reading_at_once(name, rows, tmp_path, monkeypatch):
    """Whatever the format and wherever the pieces are cut."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    place = name if name.startswith("minari:") else tmp_path / name
    files.write(dataset(), place)
    count = pieces.convert(place, tmp_path / "a.arrays", rows=rows, observation_space=FREE, action_space=BOX)
    again, whole = files.read(tmp_path / "a.arrays"), files.read(place, observation_space=FREE, action_space=BOX)
    assert count == len(whole) and same(whole, again)
    assert again.name == whole.name and again.reference == whole.reference and set(again.notes) == set(whole.notes)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "minari") == sorted({"a.arrays", getattr(place, "name", "a.arrays")})


def test_parts_of_observations_are_mapped_too(tmp_path):
    files.write(with_dicts(), tmp_path / "a.npz")
    pieces.convert(tmp_path / "a.npz", tmp_path / "a.arrays", rows=3)
    files.write(with_dicts(), tmp_path / "b.arrays")
    assert same(with_dicts(), files.read(tmp_path / "a.arrays")) and same(with_dicts(), files.read(tmp_path / "b.arrays"))


def test_what_a_piece_cannot_tell_is_settled_before(tmp_path):
    """The bounds of actions, ends by the number of the episode, successors, and that the last episode has no end."""
    given = columns(ends=(4, 8), terminal=(4,))
    given = {name: given[name] for name in ("observation", "action", "reward", "terminated")} | {"episode": np.repeat([0, 1, 2], (5, 4, 3))}
    given["action"][10] = 3.0
    np.savez(tmp_path / "log.npz", **given)
    whole = files.read(tmp_path / "log.npz")
    assert pieces.convert(tmp_path / "log.npz", tmp_path / "log.arrays", rows=1) == len(whole) == 10
    mapped = files.read(tmp_path / "log.arrays")
    assert mapped.action_space == spaces.Box(-3.0, 3.0, (2,)) and same(whole, mapped) and set(mapped.notes) == set(whole.notes)


def test_a_mapped_array_is_not_copied(tmp_path):
    """JAX takes the file as it lies, and rows reach a compiled function all the same."""
    files.write(dataset(), tmp_path / "a.arrays")
    data = files.read(tmp_path / "a.arrays").on_device()
    place = data.observation.unsafe_buffer_pointer()
    with open("/proc/self/maps") as lines:
        spans = [line.split() for line in lines if str(tmp_path / "a.arrays" / "observation.npy") in line]
    assert any(low <= place < high for low, high in ((int(x, 16) for x in span[0].split("-")) for span in spans))
    assert float(jax.jit(lambda d: d.observation[3, 0])(data)) == 3.0


def test_a_mistake_in_a_piece_says_the_episode_and_leaves_nothing(tmp_path):
    given = columns()
    given["observation"][7, 1] = np.nan
    np.savez(tmp_path / "log.npz", **given)
    with pytest.raises(DataError, match="log.npz, episode 1, step 2, the observation is not finite"):
        pieces.convert(tmp_path / "log.npz", tmp_path / "log.arrays", rows=1)
    assert not (tmp_path / "log.arrays").exists()
    assert files.read(tmp_path / "log.npz", columns={"observation": "next_observation"}).observation.shape == (12, 3)


def test_a_folder_of_arrays_that_cannot_be_used(tmp_path):
    place = tmp_path / "a.arrays"
    files.write(dataset(), place)
    with pytest.raises(DataError, match="is there already; remove it"):
        files.write(dataset(), place)
    with pytest.raises(DataError, match="leave --columns out"):
        files.read(place, columns={"reward": "r"})
    with pytest.raises(DataError, match="was converted with the action space Box.*convert it once more"):
        files.read(place, action_space=spaces.Box(-2.0, 2.0, (2,)))
    with pytest.raises(DataError, match="was converted with the observation space"):
        files.read(place, observation_space=spaces.Box(-1.0, 1.0, (4,)))
    bounded = files.read(place, observation_space=spaces.Box(-20.0, 20.0, (3,)), action_space=BOX)
    assert bounded.observation_space.low == -20.0
    whole = (place / "action.npy").read_bytes()
    (place / "action.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match="a.arrays is cut off or damaged"):
        files.read(place)
