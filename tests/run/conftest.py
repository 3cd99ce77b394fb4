"""Run directories with known numbers."""

import numpy as np
import pytest

from polopt.run.records import append_line, write_json_atomic


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, ...) writes a run of `chunks` lines whose return rises linearly from 0 to `top` and gives its directory."""

    def make(name, method="ppo", env="CartPole-v1", seeds=5, chunks=20, top=100.0, final=None, stopped=None, state="finished", fields=None):
        directory = tmp_path / name
        directory.mkdir()
        config = {
            "format": 1,
            "method": method,
            "family": "policy_gradient",
            "fields": {"learning_rate": 3e-4, "network.hidden": [64, 64], "target_kl": None, **(fields or {})},
            "env": env,
            "steps": 1000 * chunks,
            "seeds": list(range(seeds)),
            "evaluation": {"every": 5000, "episodes": 4},
            "versions": {"polopt": "0.1.0", "jax": "0.10.2"},
            "machine": {"cpu": "a machine", "cores": 2, "load": 0.1},
            "command": f"polopt train {method} --env '{env}'",
            "started": "2026-11-21T10:00:00+00:00",
        }
        write_json_atomic(directory / "run.json", config)
        spread = np.arange(seeds, dtype=float)
        for i in range(1, chunks + 1):
            row = {"step": 1000 * i, "iteration": i, "seconds": 0.5 * i, "return": top * i / chunks + spread, "length": spread + 10}
            append_line(directory / "metrics.jsonl", row | {"loss/value": np.full(seeds, 1.0 / i), "kl": 0.01 * spread})
        final = top + spread if final is None else np.asarray(final, float)
        for policy in ("last", "best"):
            episodes = (final + (policy == "best"))[:, None] + np.array([-1.0, -1.0, 1.0, 1.0])
            row = {"step": 1000 * chunks, "policy": policy, "final": True, "returns": episodes, "lengths": np.full_like(episodes, 10)}
            append_line(directory / "evaluations.jsonl", row)
        status = {"state": state, "stopped": stopped or {}, "step": 1000 * chunks, "seconds": 0.5 * chunks, "compile_seconds": 2.0}
        write_json_atomic(directory / "status.json", status)
        return directory

    return make
