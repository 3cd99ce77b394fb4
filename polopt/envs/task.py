"""The control task: an environment and a budget of steps."""

from __future__ import annotations

from polopt.core.parts import part
from polopt.envs.protocol import Environment


@part
class ControlTask:
    """Act in `env` for `steps` environment steps a seed, all copies counted."""

    env: Environment
    steps: int
