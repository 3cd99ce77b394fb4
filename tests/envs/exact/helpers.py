"""What the tests of the exact backend share."""

import functools

import jax
import numpy as np

from polopt.envs.exact.tabular import TabularMDP

# These tests spend their time in the compiler: it is told to hurry.
HURRY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

_programs = {}


def compiled(f):
    """`f` as one compiled program a call, from and to NumPy: whole numbers, words, None and functions are static, numbers and arrays are not.

    Of a module, the namespace of its functions, each compiled so.
    """
    if not callable(f):
        return _Compiled(f)

    @functools.wraps(f)
    def call(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [x for x in leaves if hasattr(x, "dtype") or isinstance(x, float)]
        static = tuple(None if hasattr(x, "dtype") or isinstance(x, float) else (x,) for x in leaves)

        def program(traced):
            following = iter(traced)
            args, kwargs = jax.tree.unflatten(structure, [next(following) if s is None else s[0] for s in static])
            return f(*args, **kwargs)

        key = f, structure, static, jax.config.jax_enable_x64
        return jax.tree.map(np.asarray, _programs.setdefault(key, jax.jit(program, compiler_options=HURRY))(traced))

    return call


def together(*functions):
    """One compiled program that gives what each function gives for the same arguments."""
    return compiled(lambda *args: [f(*args) for f in functions])


class _Compiled:
    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return compiled(getattr(self.module, name))


def random_process(seed, states, actions, *, discount=0.9, stages=(), objectives=(), costs=None):
    """What `problems.random_mdp` draws, from NumPy's generator: nothing to compile. Uniform start, normal rewards, kernels Dirichlet(1)."""
    rng = np.random.default_rng(seed)
    table = (*stages, states, actions)
    return TabularMDP(
        transition=rng.dirichlet(np.ones(states), table),
        reward=rng.normal(size=(*table, *objectives)),
        start=np.full(states, 1 / states),
        discount=discount,
        cost=None if costs is None else rng.random((states, actions, costs)),
    )
