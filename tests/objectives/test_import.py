"""The room is a dependency of its own: NumPy and array-api-compat are all it takes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import importlib.abc
import sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "torch"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Absent())
before = {name.partition(".")[0] for name in sys.modules}
import polopt.objectives
from polopt.objectives import *
import numpy as np

ones = np.ones((2, 3))
advantage = advantages.generalized_advantage_estimate(ones, ones, ones, ones > 2, ones > 2, 0.9, 0.8)
loss = reduction.reduce(surrogates.clipped(-ones, -ones, advantage, 0.2), None, "token")
divergences.kl_loss(-ones, -ones)
advantages.group_relative(ones[:, 0], np.zeros(2, int))
risk.cvar(ones, 0.5, tail="lower")
new = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
print(float(loss), sorted(name for name in new if not name.startswith("_") and getattr(sys.modules[name], "__file__", None)))
"""


def test_import_with_neither_jax_nor_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[1].strip() == "['array_api_compat', 'numpy', 'polopt']"
