"""Films one episode of a run's policy."""

from __future__ import annotations

import os
from pathlib import Path

from polopt.envs.render import frames, save_video


def film(run, path: str | os.PathLike, env: str | None = None, which: str = "best", key: int = 0) -> Path:
    """Write one episode of the best seed's policy to a .gif or .mp4 and return the path."""
    agent = run.policy(which=which)
    return save_video(frames(run.environment(env), agent, seed=key), path)


__all__ = ["film"]
