"""Keeps a process that compiles many programs alive."""

import sys
from pathlib import Path

# Linux lets a process map 65,530 pieces of memory, and each compiled program takes some.
MOST_PIECES = 20_000


def let_go() -> None:
    """Forget compiled programs before the process may map no more memory: it would be ended without a word."""
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MOST_PIECES:
        sys.modules["jax"].clear_caches()
