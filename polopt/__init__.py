"""polopt learns policies: one library, one state, and for every method a claim that can be run.

`fit(method, env, ...)` trains, `load(directory)` opens a run, `compose(method, env)` builds a method to look at or change,
`suite(objectives, env, seeds)` compares several in one table.
The names are imported on first use, so that `import polopt.objectives` needs NumPy and array-api-compat only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polopt.run.collect import collect
    from polopt.run.data import load_data
    from polopt.run.run import Run, RunError, fit, load
    from polopt.run.suite import suite

_HOMES = dict.fromkeys(("fit", "load", "Run", "RunError"), "polopt.run.run") | {
    "collect": "polopt.run.collect",
    "load_data": "polopt.run.data",
    "make_env": "polopt.envs.make",
    "suite": "polopt.run.suite",
}

__all__ = ["Run", "RunError", "__version__", "collect", "fit", "load", "load_data", "make_env", "suite"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"polopt has no attribute {name!r}; it has {', '.join(__all__)}.")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), "make" if name == "make_env" else name)
