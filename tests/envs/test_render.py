"""Pictures of episodes: of the right state, in files that can be read again."""

import importlib.util
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

from polopt.envs.errors import UnusableEnvironment
from polopt.envs.make import make
from polopt.envs.render import frames, grid_picture, save_video

SAMPLES = Path(__file__).with_name("sample_envs.py")


@pytest.fixture
def pygame():
    return pytest.importorskip("pygame")


def test_gymnax_is_drawn_as_gymnasium_draws_it(pygame):
    env = make("CartPole-v1")
    pictures = frames(env, lambda observation: 0, seed=3)
    assert 9 <= len(pictures) <= 13 and all(p.shape == (400, 600, 3) and p.dtype == np.uint8 for p in pictures)
    state, _ = env.dynamics.reset(jax.random.split(jax.random.key(3))[1])
    twin = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    twin.reset()
    twin.unwrapped.state = np.array([state.x, state.x_dot, state.theta, state.theta_dot], np.float64)
    np.testing.assert_array_equal(pictures[0], twin.render())
    twin.close()
    # pushed to the left throughout: the cart moves left and the pole falls to the right
    dark = [np.argwhere((p == 0).all(-1) & (np.arange(400) > 280)[:, None] & (np.arange(400) < 298)[:, None])[:, 1].mean() for p in pictures]
    pole = [np.argwhere((p == [202, 152, 101]).all(-1))[:, 1].mean() for p in pictures]
    assert dark[-1] < dark[0] - 5 and pole[-1] - dark[-1] > pole[0] - dark[0] + 5


@pytest.mark.parametrize("name", ["Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"])
def test_classic_control(pygame, name):
    act = (lambda o: np.ones(1, np.float32)) if name[:4] == "Pend" or "Cont" in name else (lambda o: 2)
    pictures = frames(name, act, seed=0, max_steps=4)
    assert len(pictures) == 5 and (pictures[0] != pictures[-1]).any()


def test_gymnasium_by_its_own_picture(pygame):
    pictures = frames("gym:CartPole-v1", lambda observation: int(observation[2] > 0), seed=3, max_steps=5)
    twin = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    twin.reset(seed=3)
    np.testing.assert_array_equal(pictures[0], twin.render())
    twin.close()
    assert len(pictures) == 6


def test_images_as_observations_become_coloured_grids():
    pictures = frames("gymnax:Catch-bsuite", lambda observation: 1, max_steps=20)
    assert len(pictures) == 10 and pictures[0].shape == (240, 120, 3)
    np.testing.assert_array_equal(pictures[0][::24, ::24, 0].sum(), 2 * 255)  # a ball and a paddle


def test_grids():
    grid = np.zeros((2, 3, 5))
    grid[0, 1, 4] = grid[1, 2, 0] = 1
    picture = grid_picture(grid, size=6)
    assert picture.shape == (4, 6, 3)
    assert (picture[:2, 2:4] == picture[0, 2]).all() and picture[0, 2].any() and not picture[:2, :2].any()
    assert (picture[0, 2] != picture[2, 4]).any()
    np.testing.assert_array_equal(grid_picture(np.full((1, 1, 3), 200), 255, size=1)[0, 0], [200, 200, 200])


def test_what_cannot_be_drawn_says_what_can():
    with pytest.raises(UnusableEnvironment, match="probe:value cannot be drawn; CartPole-v1.*render"):
        frames("probe:value", lambda o: 0)
    with pytest.raises(UnusableEnvironment, match="takes no render_mode"):
        frames(f"{SAMPLES}:BothEnds", lambda o: 0)
    with pytest.raises(UnusableEnvironment, match=r":Walk cannot be drawn, for its render raised NotImplementedError; let render give"):
        frames(f"{SAMPLES}:Walk", lambda o: 0.0)


def test_video_files(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pictures = [np.full((31, 20, 3), c, np.uint8) for c in rng.integers(0, 255, (5, 3))]
    with image.open(save_video(pictures, tmp_path / "deep" / "a.gif", fps=10)) as gif:
        assert gif.n_frames == 5 and gif.size == (20, 31) and gif.info["duration"] == 100
        for k, picture in enumerate(pictures):
            gif.seek(k)
            np.testing.assert_allclose(np.asarray(gif.convert("RGB")), picture, atol=8)
    with pytest.raises(ValueError, match=r"ends in '.avi', but .gif and .mp4"):
        save_video(pictures, tmp_path / "a.avi")
    with pytest.raises(ValueError, match="no pictures"):
        save_video([], tmp_path / "a.gif")


def test_mp4(tmp_path, monkeypatch):
    pictures = [np.full((31, 20, 3), 40 * c, np.uint8) for c in range(5)]
    if importlib.util.find_spec("imageio_ffmpeg"):
        path = save_video(pictures, tmp_path / "a.mp4", fps=10)
        assert path.stat().st_size > 500 and b"ftyp" in path.read_bytes()[:16]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "imageio_ffmpeg" else real(name, *a))
    monkeypatch.delitem(__import__("sys").modules, "imageio_ffmpeg", raising=False)
    with pytest.raises(UnusableEnvironment, match=r"pip install 'polopt\[video\]' or write a .gif"):
        save_video(pictures, tmp_path / "b.mp4")
