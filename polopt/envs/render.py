"""Pictures of an episode."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from polopt.core import spaces
from polopt.envs.errors import UnusableEnvironment
from polopt.envs.host import HostEnvironment
from polopt.envs.jax_env import GymnaxDynamics, JaxEnvironment
from polopt.envs.make import make

# How gymnax's state becomes the state of Gymnasium's environment of the same name, which can draw itself.
_CLASSIC_CONTROL = {
    "CartPole-v1": lambda s: (s.x, s.x_dot, s.theta, s.theta_dot),
    "Acrobot-v1": lambda s: (s.joint_angle1, s.joint_angle2, s.velocity_1, s.velocity_2),
    "Pendulum-v1": lambda s: (s.theta, s.theta_dot),
    "MountainCar-v0": lambda s: (s.position, s.velocity),
    "MountainCarContinuous-v0": lambda s: (s.position, s.velocity),
}

# Well apart on black, and for readers who confuse red with green (Okabe and Ito's palette, then lighter tones).
_PALETTE = np.array(
    [
        (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
        (255, 255, 255), (153, 153, 153), (148, 103, 189),
    ],
    np.uint8,
)  # fmt: skip


def frames(environment, act: Callable, *, seed: int = 0, max_steps: int = 1000, **options) -> list[np.ndarray]:
    """One episode of `environment` (a name for `make`, or an environment made by it) as pictures, each (height, width, 3) uint8.

    act:        `act(observation) -> action`, unbatched, called once a step in the episode's order; a recurrent policy keeps its state itself.
    max_steps:  the episode is cut here if it does not end before.
    options:    what `make` takes.

    The first picture shows the state before the first action. UnusableEnvironment when there is no way to draw the environment.
    """
    env = make(environment, **options) if isinstance(environment, str) else environment
    if isinstance(env, JaxEnvironment):
        return _jax_frames(env, act, seed, max_steps)
    recipe = getattr(env.make_vector, "args", (None,))[0]
    if hasattr(recipe, "make"):
        return _gymnasium_frames(env, recipe, act, seed, max_steps)
    if isinstance(env, HostEnvironment) and env.name.startswith("envpool:"):
        name = env.name.partition(":")[2]
        raise UnusableEnvironment(f"{env.name} cannot be drawn; draw its Gymnasium twin, as in gym:{name}.")
    raise UnusableEnvironment(f"{env.name} cannot be drawn; only environments that polopt.envs.make gave can.")


def save_video(pictures: list[np.ndarray], path, fps: int = 30) -> Path:
    """Write pictures, each (height, width, 3) uint8, as a .gif or .mp4 file.

    ValueError, with one sentence, for another ending, no pictures, or a missing package.
    """
    path = Path(path)
    if not pictures:
        raise ValueError(f"There are no pictures to write to {path}; give at least one.")
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"The video {path} ends in {path.suffix or 'nothing'!r}, but .gif and .mp4 can be written; change the name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        _need("PIL", "pillow", f"The video {path}")
        from PIL import Image

        images = [Image.fromarray(picture).quantize(colors=128) for picture in pictures]
        images[0].save(path, save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0)
        return path
    for module, package in (("imageio", "imageio"), ("imageio_ffmpeg", "imageio-ffmpeg")):
        _need(module, package, f"The video {path}", " or write a .gif")
    import imageio.v2 as imageio

    # H.264 halves the resolution of colours, so each side is even.
    even = [np.pad(p, ((0, p.shape[0] % 2), (0, p.shape[1] % 2), (0, 0)), mode="edge") for p in pictures]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=RuntimeWarning)  # the fork is followed by an exec at once
        imageio.mimwrite(path, even, fps=fps, macro_block_size=None)
    return path


def _need(module: str, package: str, what: str, otherwise: str = "") -> None:
    if module not in sys.modules and importlib.util.find_spec(module) is None:
        raise UnusableEnvironment(f"{what} needs the package {package}; install it with: pip install 'polopt[video]'{otherwise}.")


# -- Gymnasium ---------------------------------------------------------------------------------------------------------


def _gymnasium_frames(environment, recipe, act, seed: int, max_steps: int) -> list[np.ndarray]:
    with _headless(), _drawable(environment.name, recipe) as env:
        observation, _ = env.reset(seed=seed)
        pictures = [_picture(env, environment.name)]
        for _ in range(max_steps):
            action = act(_ours(environment.observation_space, observation))
            observation, _, terminated, truncated, _ = env.step(_theirs(env.action_space, action))
            pictures.append(_picture(env, environment.name))
            if terminated or truncated:
                break
        return pictures


@contextlib.contextmanager
def _drawable(name: str, recipe):
    """The environment, made to draw. What goes wrong in drawing is said in one sentence."""
    import gymnasium

    env = None
    try:
        env = recipe.make(render_mode="rgb_array")
        yield env
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnusableEnvironment(
            f"{name} cannot be drawn: {str(error).rstrip('.')}; pip install 'polopt[video]' installs what Gymnasium draws with."
        ) from error
    except TypeError as error:
        if "render_mode" not in str(error) and "takes no arguments" not in str(error):
            raise
        raise UnusableEnvironment(
            f"{name} cannot be drawn, for its class takes no render_mode; let __init__ take render_mode, and render give rgb_array."
        ) from error
    finally:
        if env is not None:
            env.close()


def _picture(env, name: str) -> np.ndarray:
    import gymnasium

    try:
        picture = env.render()
    except gymnasium.error.DependencyNotInstalled:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        advice = "let render give a picture when render_mode is rgb_array"
        if "mujoco" in type(env.unwrapped).__module__:
            advice = f"MUJOCO_GL is {os.environ.get('MUJOCO_GL')}; install the system library libegl1 or libosmesa6 and set it to egl or osmesa"
        raise UnusableEnvironment(f"{name} cannot be drawn, for its render raised {what}; {advice}.") from error
    picture = np.asarray(picture) if picture is not None else np.zeros(0)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise UnusableEnvironment(
            f"render of {name} gave an array of shape {picture.shape}, but (height, width, 3) is expected; check its rgb_array mode."
        )
    return np.array(picture, np.uint8)


def _ours(space, observation):
    """Gymnasium's unbatched observation with the types and shapes of our space."""
    if isinstance(space, spaces.Dict):
        return {name: _ours(inner, observation[name]) for name, inner in space.items}
    return np.asarray(observation, space.dtype).reshape(space.shape)


def _theirs(space, action):
    array = np.asarray(action, space.dtype).reshape(space.shape)
    return array if array.ndim else array[()]


@contextlib.contextmanager
def _headless():
    """Drawing without a screen or a sound card: what SDL and MuJoCo need to know, where the user has not said it."""
    wanted = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        library = "EGL" if ctypes.util.find_library("EGL") else "OSMesa"
        wanted["MUJOCO_GL"] = library.lower()
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


# -- JAX ---------------------------------------------------------------------------------------------------------------


def _jax_frames(environment: JaxEnvironment, act, seed: int, max_steps: int) -> list[np.ndarray]:
    dynamics = environment.dynamics
    with contextlib.ExitStack() as stack:
        draw = _artist(environment, stack)
        step = jax.jit(dynamics.step)
        key, k_reset = jax.random.split(jax.random.key(seed))
        state, observation = jax.jit(dynamics.reset)(k_reset)
        pictures = [draw(state, observation, None)]
        for _ in range(max_steps):
            key, k_step = jax.random.split(key)
            action = spaces.cast(dynamics.action_space, act(jax.tree.map(np.asarray, spaces.cast(dynamics.observation_space, observation))))
            state, observation, _, _, terminated, truncated = step(state, action, k_step)
            pictures.append(draw(state, observation, action))
            if terminated or truncated:
                break
        return pictures


def _artist(environment: JaxEnvironment, stack) -> Callable:
    """`draw(state, observation, action) -> picture` for an environment."""
    dynamics = environment.dynamics
    if hasattr(dynamics, "render"):
        return lambda state, observation, action: np.asarray(dynamics.render(state), np.uint8)
    gymnax_id = dynamics.key[0] if isinstance(dynamics, GymnaxDynamics) else None
    if gymnax_id in _CLASSIC_CONTROL:
        return _classic_control(environment.name, gymnax_id, stack)
    space = environment.observation_space
    if isinstance(space, spaces.Box) and len(space.shape) in (2, 3):
        high = space.bounds()[1].max()
        return lambda state, observation, action: grid_picture(np.asarray(observation), float(high))
    drawn = ", ".join(_CLASSIC_CONTROL)
    raise UnusableEnvironment(
        f"{environment.name} cannot be drawn; {drawn}, environments with images as observations, and those of Gymnasium can. "
        "A JAX environment of your own can with a method render(state) that gives (height, width, 3) uint8."
    )


def _classic_control(name: str, gymnax_id: str, stack) -> Callable:
    from polopt.envs.simulators import Recipe

    stack.enter_context(_headless())
    env = stack.enter_context(_drawable(name, Recipe(name, gymnax_id)))
    env.reset(seed=0)

    def draw(state, observation, action):
        env.unwrapped.state = np.array([float(x) for x in _CLASSIC_CONTROL[gymnax_id](state)])
        if gymnax_id == "Pendulum-v1":
            env.unwrapped.last_u = None if action is None else float(np.clip(action[0], -2, 2))
        return _picture(env, name)

    return draw


def grid_picture(observation: np.ndarray, high: float = 1.0, size: int = 240) -> np.ndarray:
    """A grid (height, width) or (height, width, channels) as a picture with enlarged cells.

    One channel is grey; three channels up to 255 are red, green and blue. Otherwise each channel has its colour where it is above zero, and
    later channels cover earlier ones.
    """
    grid = np.asarray(observation, np.float64)
    grid = grid[..., None] if grid.ndim == 2 else grid
    height, width, channels = grid.shape
    scale = 255.0 / high if np.isfinite(high) and high > 0 else 255.0
    if channels == 1 or (channels == 3 and high == 255):
        picture = np.broadcast_to(np.clip(grid * scale, 0, 255).astype(np.uint8), (height, width, 3))
    else:
        picture = np.zeros((height, width, 3), np.uint8)
        for channel in range(channels):
            picture[grid[..., channel] > 0] = _PALETTE[channel % len(_PALETTE)]
    factor = max(1, size // max(height, width))
    return picture.repeat(factor, 0).repeat(factor, 1)
