"""The environments of gymnax 1.x, found without loading all of gymnax."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from contextlib import contextmanager
from pathlib import Path

IDS = {
    "CartPole-v1": "classic_control.cartpole:CartPole",
    "Pendulum-v1": "classic_control.pendulum:Pendulum",
    "Acrobot-v1": "classic_control.acrobot:Acrobot",
    "MountainCar-v0": "classic_control.mountain_car:MountainCar",
    "MountainCarContinuous-v0": "classic_control.continuous_mountain_car:ContinuousMountainCar",
    "Asterix-MinAtar": "minatar.asterix:MinAsterix",
    "Breakout-MinAtar": "minatar.breakout:MinBreakout",
    "Freeway-MinAtar": "minatar.freeway:MinFreeway",
    "Seaquest-MinAtar": "minatar.seaquest:MinSeaquest",
    "SpaceInvaders-MinAtar": "minatar.space_invaders:MinSpaceInvaders",
    "Catch-bsuite": "bsuite.catch:Catch",
    "DeepSea-bsuite": "bsuite.deep_sea:DeepSea",
    "MemoryChain-bsuite": "bsuite.memory_chain:MemoryChain",
    "UmbrellaChain-bsuite": "bsuite.umbrella_chain:UmbrellaChain",
    "DiscountingChain-bsuite": "bsuite.discounting_chain:DiscountingChain",
    "MNISTBandit-bsuite": "bsuite.mnist:MNISTBandit",
    "SimpleBandit-bsuite": "bsuite.bandit:SimpleBandit",
    "FourRooms-misc": "misc.rooms:FourRooms",
    "MetaMaze-misc": "misc.meta_maze:MetaMaze",
    "PointRobot-misc": "misc.point_robot:PointRobot",
    "BernoulliBandit-misc": "misc.bernoulli_bandit:BernoulliBandit",
    "GaussianBandit-misc": "misc.gaussian_bandit:GaussianBandit",
    "Reacher-misc": "misc.reacher:Reacher",
    "Swimmer-misc": "misc.swimmer:Swimmer",
    "Pong-misc": "misc.pong:Pong",
    "FrozenLake-misc": "misc.frozen_lake:FrozenLake",
}

_PACKAGES = ("gymnax", "gymnax.environments", *(f"gymnax.environments.{group}" for group in ("classic_control", "minatar", "bsuite", "misc")))


def installed() -> bool:
    return "gymnax" in sys.modules or importlib.util.find_spec("gymnax") is not None


def known(name: str) -> bool:
    """Whether gymnax has this environment; also one that the user registered in this process."""
    return installed() and (name in IDS or name in getattr(sys.modules.get("gymnax"), "registered_envs", ()))


def make(name: str, **options):
    """gymnax's environment and its default parameters. KeyError when gymnax has no such environment."""
    if name in IDS and "gymnax" not in sys.modules:
        module, _, attribute = IDS[name].partition(":")
        with _packages_without_their_init():
            environment = getattr(importlib.import_module(f"gymnax.environments.{module}"), attribute)(**options)
        return environment, environment.default_params
    if not known(name):
        raise KeyError(name)
    import gymnax

    return gymnax.make(name, **options)


@contextmanager
def _packages_without_their_init():
    """Empty stand-ins for gymnax's packages while one of its modules is imported.

    gymnax's own `__init__` files import every environment and with them matplotlib, seaborn and SciPy: 1.3 s of each start of a
    training. The module that is wanted takes 0.15 s. It stays in `sys.modules`, so a later `import gymnax` has the same classes.
    """
    root = Path(importlib.util.find_spec("gymnax").submodule_search_locations[0])
    for name in _PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in _PACKAGES:
            sys.modules.pop(name, None)
