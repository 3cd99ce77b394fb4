"""A strict place to run tests in: two devices, one thread, warnings and silent broadcasts are errors.

The environment is set before anything imports JAX, and processes that tests start inherit it.
"""

import os
from pathlib import Path

import pytest

# A program that mixes up devices shows itself only where there are two of them.
DEVICES = "--xla_force_host_platform_device_count=2"
# With one test process a core, a thread pool in each makes them wait for one another.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
# Most of the time of these tests goes into compiling small programs, which takes a third of it so; what a program computes stays the same.
COMPILE_FAST = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES} {ONE_THREAD} {COMPILE_FAST}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["MPLBACKEND"] = "agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"

# One store of compiled programs for all workers and for the next run; a program that compiles at once is not worth a file.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax-tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402 - the environment comes first

from tests import memory  # noqa: E402

# Annotations of these rooms are checked at every call; the others speak in protocols, which cannot be checked at run time.
install_import_hook(["polopt.core", "polopt.critics", "polopt.optim", "polopt.interop"], "beartype.beartype")


@pytest.fixture(autouse=True)
def forget_programs():
    yield
    memory.let_go()
