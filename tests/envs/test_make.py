"""From names to environments, and what is said to those who mistype."""

import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs import gymnax_catalogue
from polopt.envs.host import HostEnvironment
from polopt.envs.jax_env import GymnaxDynamics, JaxEnvironment
from polopt.envs.make import UnknownEnvironment, UnusableEnvironment, make, names
from polopt.envs.probes import PROBES

SAMPLES = Path(__file__).with_name("sample_envs.py")


def test_gymnax_comes_first():
    env = make("CartPole-v1")
    assert isinstance(env, JaxEnvironment) and isinstance(env.dynamics, GymnaxDynamics) and env.name == "CartPole-v1" and not env.host
    assert env == make("CartPole-v1") and hash(env) == hash(make("CartPole-v1"))
    assert make("gymnax:CartPole-v1").dynamics == env.dynamics


def test_gymnasium_comes_second(monkeypatch):
    assert isinstance(make("FrozenLake-v1"), HostEnvironment)
    assert make("FrozenLake-v1").observation_space == spaces.Discrete(16)
    assert make("gym:CartPole-v1").host
    monkeypatch.setattr(gymnax_catalogue, "installed", lambda: False)
    assert make("CartPole-v1").host


def test_options_reach_the_environment():
    assert make("gym:FrozenLake-v1", map_name="8x8").observation_space == spaces.Discrete(64)
    assert make("gymnax:Catch-bsuite", rows=8).observation_space.shape == (8, 5)
    with pytest.raises(UnusableEnvironment, match="does not take what it was given.*colour"):
        make("gym:CartPole-v1", colour="red")


def test_probes():
    assert make("probe:credit-continuous").dynamics == PROBES["credit-continuous"]
    with pytest.raises(UnknownEnvironment, match="no environment 'probe:valeu'; did you mean probe:value"):
        make("probe:valeu")


def test_a_users_file(tmp_path, monkeypatch):
    assert make(f"{SAMPLES}:Walk").observation_space == spaces.Box(-np.inf, np.inf, (2,))
    assert make(f"{SAMPLES}:short_walk").host
    jax_env = make(f"{SAMPLES}:JaxWalk")
    assert isinstance(jax_env, JaxEnvironment)
    state, observation = jax_env.reset(jax.random.key(0), 3)
    assert jax_env.step(state, jnp.zeros(3, jnp.int32), jax.random.key(1))[1].reward.shape == (3,)
    # a file that was changed is read again
    file = tmp_path / "mine.py"
    for limit in (1.0, 2.0):
        file.write_text(
            "import gymnasium, numpy as np\nclass Mine(gymnasium.Env):\n    action_space = gymnasium.spaces.Discrete(2)\n"
            f"    observation_space = gymnasium.spaces.Box(0, {limit}, (1,))\n"
        )
        assert make(f"{file}:Mine").observation_space.high == limit


def test_a_users_module(tmp_path, monkeypatch):
    (tmp_path / "my_package_of_envs.py").write_text(
        "import gymnasium\nclass Own(gymnasium.Env):\n    action_space = observation_space = gymnasium.spaces.Discrete(2)\n"
        "gymnasium.register('MyOwn-v3', entry_point=Own, max_episode_steps=5)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        for attribute in ("MyOwn-v3", "Own"):
            env = make(f"my_package_of_envs:{attribute}")
            assert env.host and env.action_space == spaces.Discrete(2)
        with pytest.raises(UnknownEnvironment, match="has no environment 'MyOwn-v2'.*try MyOwn-v3"):
            make("my_package_of_envs:MyOwn-v2")
    finally:
        gymnasium.registry.pop("MyOwn-v3", None)


def test_from_python_also_classes_and_objects():
    class Own(gymnasium.Env):
        action_space = observation_space = gymnasium.spaces.Discrete(2)

    env = make(Own)
    assert env.host and env.name.endswith("Own")
    assert make(env) is env
    assert make(PROBES["value"]).dynamics is PROBES["value"]
    assert make(lambda: Own()).host
    with pytest.raises(UnusableEnvironment, match="is a int, but a gymnasium.Env class"):
        make(7)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("cartpole-v1", "did you mean CartPole-v1"),
        ("HalfCheeta-v5", "did you mean HalfCheetah-v5"),
        ("gym:CartPole-v9", "did you mean gym:CartPole-v1"),
        ("gymnax:Breakout", "did you mean gymnax:Breakout-MinAtar"),
        ("qqq", "give one of these forms: CartPole-v1, gymnax:ID, gym:HalfCheetah-v5"),
        ("no_such_module:Thing", "no Python module 'no_such_module'.*install it"),
        ("no/such/file.py:Thing", "no file no/such/file.py"),
        (f"{SAMPLES}:Brokn", "has no environment 'Brokn'.*try Broken or BothEnds after the colon"),
    ],
)
def test_unknown_names(name, sentence):
    with pytest.raises(UnknownEnvironment, match=sentence) as caught:
        make(name)
    assert "\n" not in str(caught.value) and str(caught.value)[-1] in ".?"


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("Blackjack-v1", {}, "cannot be used: The space Tuple.*supported are Discrete"),
        (f"{SAMPLES}:Broken", {"fault": "start"}, "could not be made: OSError: no display"),
        (f"{SAMPLES}:NOT_AN_ENVIRONMENT", {}, "is a int, but a gymnasium.Env class"),
        (f"{SAMPLES}:JaxWalk", {"fault": "shape"}, r"the observation of reset has the shape \(2,\), but \(1,\) is expected"),
        (f"{SAMPLES}:JaxWalk", {"fault": "five"}, "gives 5 values, but"),
    ],
)
def test_unusable_environments(name, options, sentence):
    with pytest.raises(UnusableEnvironment, match=sentence) as caught:
        make(name, **options)
    assert "\n" not in str(caught.value)


def test_missing_packages(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in ("mujoco", "envpool", "gymnax") else real(name, *a))
    for module in [m for m in sys.modules if m == "mujoco" or m.startswith(("mujoco.", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UnusableEnvironment, match=r"needs a package that is not here.*pip install 'polopt\[mujoco\]'"):
        make("gym:Hopper-v5")
    with pytest.raises(UnusableEnvironment, match=r"pip install 'polopt\[envpool\]', or use gym:Hopper-v5"):
        make("envpool:Hopper-v5")


def test_names():
    known = names()
    assert {"CartPole-v1", "gym:HalfCheetah-v5", "probe:memory", "Breakout-MinAtar"} <= set(known) and len(known) == len(set(known))


def test_envpool_names():
    pytest.importorskip("envpool")
    with pytest.raises(UnknownEnvironment, match="did you mean envpool:HalfCheetah-v5"):
        make("envpool:HalfCheeta-v5")
