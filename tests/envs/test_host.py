"""Host simulators inside compiled programs: nothing is lost on the way, and what breaks says so."""

import functools
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.envs import host
from polopt.envs.host import ActionError, SimulatorError, clear_errors
from polopt.envs.make import make
from polopt.envs.protocol import Timestep

SAMPLES = Path(__file__).with_name("sample_envs.py")


def sample(name, **options):
    return make(f"{SAMPLES}:{name}", **options)


@functools.partial(jax.jit, static_argnums=(2, 3))
def random_actions(env, key, steps, num_envs):
    return jax.vmap(jax.vmap(lambda k: spaces.sample(env.action_space, k)))(jax.random.split(key, (steps, num_envs)))


@jax.jit
def act(env, state, actions):
    """Time-major Timesteps of given actions."""
    return jax.lax.scan(lambda s, a: env.step(s, a, jax.random.key(0)), state, actions)


@jax.jit
def run(env, key, actions):
    state, first = env.reset(key, jax.tree.leaves(actions)[0].shape[1])
    return first, act(env, state, actions)[1]


def rollout(env, key, actions):
    """First observations and time-major Timesteps of an episode start and given actions, in one compiled program."""
    return jax.tree.map(np.asarray, run(env, key, actions))


def by_hand(makers, key, actions):
    """The same from Gymnasium environments that are driven one by one."""
    seeds = np.asarray(jax.random.bits(key, (len(makers),), "uint32") >> 1).tolist()
    envs = [make() for make in makers]
    now = [env.reset(seed=seed)[0].copy() for env, seed in zip(envs, seeds)]
    first, steps = np.float32(now), []
    for row in np.asarray(actions):
        finals, rewards, ends, cuts = [], [], [], []
        for i, (env, action) in enumerate(zip(envs, row)):
            observation, reward, terminated, truncated, _ = env.step(np.array(action, env.action_space.dtype))
            finals.append(np.float32(observation))
            now[i] = env.reset()[0].copy() if terminated or truncated else observation.copy()
            rewards.append(reward), ends.append(terminated), cuts.append(truncated and not terminated)
        n = len(envs)
        steps.append(Timestep(np.float32(now), np.stack(finals), np.float32(rewards), np.zeros((n, 0), np.float32), np.array(ends), np.array(cuts)))
    return first, jax.tree.map(lambda *x: np.stack(x), *steps)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -- what the simulator said is what arrives ------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_same_as_driven_by_hand(monkeypatch, in_place):
    """Bit for bit, with both kinds of ends in one run, on both ways to call the host."""
    if not in_place:
        monkeypatch.setattr(host, "buffer_callback", None)
    env = make("gym:CartPole-v1", max_episode_steps=12)
    key = jax.random.key(1)
    actions = random_actions(env, key, 60, 3)
    first, steps = rollout(env, key, actions)
    expected = by_hand([lambda: gymnasium.make("CartPole-v1", max_episode_steps=12)] * 3, key, actions)
    assert_equal((first, steps), expected)
    assert steps.terminated.any() and steps.truncated.any() and not (steps.terminated & steps.truncated).any()
    ended = steps.terminated | steps.truncated
    assert (steps.observation[ended] != steps.final_observation[ended]).any(1).all()
    assert_equal(steps.observation[~ended], steps.final_observation[~ended])


def test_final_observation_survives_reused_memory():
    """Also when the environment overwrites its observation and its action."""
    env = sample("short_walk")
    key = jax.random.key(2)
    actions = random_actions(env, key, 20, 2)
    module = sys.modules[type(env.make_vector(1).vector.envs[0].unwrapped).__module__]
    assert_equal(rollout(env, key, actions), by_hand([module.short_walk] * 2, key, actions))


def test_terminal_at_the_time_limit_is_terminal():
    _, steps = rollout(sample("BothEnds"), jax.random.key(0), jnp.zeros((7, 2), jnp.int32))
    np.testing.assert_array_equal(steps.terminated[:, 0], [0, 0, 1, 0, 0, 1, 0])
    assert not steps.truncated.any()
    np.testing.assert_array_equal(steps.final_observation[:, 1, 0], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(steps.observation[:, 1, 0], [1, 2, 0, 1, 2, 0, 1])


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary", "box", "dict"])
def test_every_kind_of_space(action):
    env = sample("Kinds", action=action)
    n, steps = 2, 4
    actions = random_actions(env, jax.random.key(3), steps, n)
    first, after = rollout(env, jax.random.key(4), actions)
    for observation, lead in ((first, (n,)), (after.observation, (steps, n)), (after.final_observation, (steps, n))):
        expected = jax.tree.map(lambda z: (*lead, *z.shape), jax.tree.map(np.asarray, spaces.zeros(env.observation_space)))
        assert jax.tree.map(np.shape, observation) == expected
        assert jax.tree.map(lambda x: x.dtype, observation) == jax.tree.map(lambda z: z.dtype, spaces.zeros(env.observation_space))
    flat = np.concatenate([np.reshape(x, (steps, n, -1)) for x in jax.tree.leaves(actions)], -1).astype(np.float32)
    np.testing.assert_array_equal(after.final_observation["vector"][..., : flat.shape[-1]], flat)
    assert after.truncated[2].all() and not after.truncated[:2].any()
    assert (after.observation["image"][2] != after.final_observation["image"][2]).any()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_reward_vectors_and_costs(asynchronous):
    env = sample("Many", asynchronous=asynchronous)
    assert (env.objectives, env.costs) == (2, 1)
    _, steps = rollout(env, jax.random.key(0), jnp.array([[0, 1]] * 4))
    np.testing.assert_array_equal(steps.reward[:, 0], [[1, -1], [2, -1], [1, -1], [2, -1]])
    np.testing.assert_array_equal(steps.reward[:, 1], [[1, -2], [2, -2], [1, -2], [2, -2]])
    np.testing.assert_array_equal(steps.cost[..., 0], [[10, 10], [20, 20], [10, 10], [20, 20]])
    np.testing.assert_array_equal(steps.final_observation[:, 0, 0], [1, 2, 1, 2])
    env.close()


def test_processes_give_the_same_and_fail_as_clearly(capfd):
    key, options = jax.random.key(5), dict(max_episode_steps=5)
    actions = jnp.zeros((12, 2), jnp.int32)
    apart = make("gym-async:CartPole-v1", **options)
    assert_equal(rollout(apart, key, actions), rollout(make("gym:CartPole-v1", **options), key, actions))
    apart.close()
    with pytest.raises(SimulatorError, match=r"raised ZeroDivisionError: division by zero in step\(0\) at step 3 of copy \d"), clear_errors():
        rollout(sample("Broken", fault="raise", asynchronous=True), key, actions)
    assert capfd.readouterr().err == ""


def test_inside_while_and_cond():
    env = make("gym:CartPole-v1")

    @jax.jit
    def first_end(env, key):
        state, _ = env.reset(key, 2)

        def step(loop):
            state, t, _ = loop
            left, right = (lambda s, a=a: env.step(s, jnp.full(2, a), key) for a in (0, 1))
            state, after = jax.lax.cond(t % 2 == 0, left, right, state)
            return state, t + 1, after.terminated.any()

        return jax.lax.while_loop(lambda loop: ~loop[2] & (loop[1] < 300), step, (state, jnp.int32(0), jnp.bool(False)))[1:]

    t, ended = first_end(env, jax.random.key(0))
    assert ended and 10 < t < 300


# -- seeds and slots ------------------------------------------------------------------------------------------------------


def test_equal_keys_equal_episodes_also_after_use():
    pytest.importorskip("mujoco")
    env = make("gym:HalfCheetah-v5", max_episode_steps=15)
    actions = random_actions(env, jax.random.key(6), 25, 2)
    once = rollout(env, jax.random.key(7), actions)
    other = rollout(env, jax.random.key(8), actions)
    assert_equal(once, rollout(env, jax.random.key(7), actions))
    assert_equal(once, rollout(make("gym:HalfCheetah-v5", max_episode_steps=15), jax.random.key(7), actions))
    assert (once[0] != other[0]).all() and (once[0][0] != once[0][1]).all()


PROGRAM = """
import sys, jax, numpy as np, hashlib
from polopt.envs.make import make
env = make("gym:Acrobot-v1")
state, first = env.reset(jax.random.key(3), 2)
_, after = env.step(state, np.array([0, 2], np.int32), jax.random.key(0))
print(hashlib.sha256(np.asarray(first).tobytes() + np.asarray(after.observation).tobytes()).hexdigest())
"""


def test_equal_keys_equal_episodes_in_a_new_process():
    import contextlib
    import io

    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(PROGRAM, {})
    there = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    assert here.getvalue() == there


def test_slots_are_independent_and_share_one_program():
    env = make("gym:CartPole-v1", max_episode_steps=9)
    keys = jax.random.split(jax.random.key(9), 2)
    actions = random_actions(env, jax.random.key(10), 20, 2)
    alone = [rollout(make("gym:CartPole-v1", max_episode_steps=9), k, actions)[1] for k in keys]

    reset = jax.jit(lambda env, key: env.reset(key, 2)[0])
    states = [reset(env.with_slot(i), k) for i, k in enumerate(keys)]
    compiled = act._cache_size()
    parts = [[], []]
    for half in (actions[:10], actions[10:]):
        for i in range(2):
            states[i], steps = act(env.with_slot(i), states[i], half)
            parts[i].append(steps)
    assert act._cache_size() == compiled + 1
    for i in range(2):
        assert_equal(jax.tree.map(lambda *x: np.concatenate(x), *parts[i]), alone[i])
    assert set(env.simulators.running) == {0, 1}
    env.close()
    assert not env.simulators.running


def test_simulators_are_made_once_a_slot():
    env = make("gym:CartPole-v1")
    env.reset(jax.random.key(0), 2)
    running = env.simulators.running[0].copies
    env.reset(jax.random.key(1), 2)
    assert env.simulators.running[0].copies is running
    env.reset(jax.random.key(1), 3)
    assert env.simulators.running[0].copies is not running


def test_a_pytree_whose_leaf_is_the_slot():
    env = make("gym:CartPole-v1").with_slot(4)
    assert jax.tree.leaves(env) == [4]
    shape, _ = jax.eval_shape(lambda env: env.reset(jax.random.key(0), 3), env)
    assert jax.tree.map(lambda s: (s.shape, str(s.dtype)), shape) == host.HostState(((), "int32"), ((), "int32"))
    assert not env.simulators.running


# -- what goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("raise", r"raised ZeroDivisionError: division by zero in step\(1\) at step 3 of copy 0"),
        ("shape", r"gave an observation of shape \(3,\) at step 3 of copy 0, but shape \(4,\)"),
        ("text", r"gave an observation of type <U1 at step 3 .* but float32"),
        ("fraction", r"gave an observation of type float64 at step 3 .* but uint8"),
        ("outside", r"gave an observation 4 at step 3 .* Discrete\(4\)"),
        ("nan", r"gave an observation that is not finite at step 3 of copy 0 .*nan"),
        ("infinite reward", r"gave a reward that is not finite at step 3 of copy 0"),
        ("reward vector", r"gave the reward \[0\. 0\.\] at step 3 .* one number"),
        ("no reward", r"gave the reward None at step 3"),
        ("no flag", r"gave terminated = None at step 3 .* true or false"),
        ("old api", r"from step at step 3 .* \(observation, reward, terminated, truncated, info\)"),
        ("bare reset", r"from reset at step 0 .* \(observation, info\)"),
    ],
)
def test_broken_environments(fault, sentence, capfd):
    env = sample("Broken", fault=fault)
    compiled = jax.jit(lambda env: act(env, env.reset(jax.random.key(0), 2)[0], jnp.ones((5, 2), jnp.int32))).lower(env).compile()
    with pytest.raises(SimulatorError, match=sentence) as caught, clear_errors():
        jax.block_until_ready(compiled(env))
    message = str(caught.value)
    assert message.startswith(f"The environment {SAMPLES}:Broken ") and message.endswith(".") and "\n" not in message and "expected" in message
    assert capfd.readouterr() == ("", "")
    assert not env.simulators.running
    # nothing of it stays behind
    rollout(make("gym:CartPole-v1"), jax.random.key(0), jnp.zeros((2, 1), jnp.int32))


def test_the_cause_is_kept():
    with pytest.raises(SimulatorError) as caught, clear_errors():
        rollout(sample("Broken", fault="raise"), jax.random.key(0), jnp.zeros((5, 1), jnp.int32))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_other_errors_pass_through():
    with pytest.raises(KeyError, match="mine"), clear_errors(), clear_errors():
        raise KeyError("mine")


def test_uncaught_errors_are_loud():
    with pytest.raises(jax.errors.JaxRuntimeError, match="raised ZeroDivisionError"):
        rollout(sample("Broken", fault="raise"), jax.random.key(0), jnp.zeros((5, 1), jnp.int32))


def test_missing_cost():
    with pytest.raises(SimulatorError, match=r"gave no info\['cost'\] at step 1 of copy 0, but 1 cost"), clear_errors():
        rollout(sample("Many", forget=True), jax.random.key(0), jnp.zeros((3, 1), jnp.int32))


def test_actions_that_are_not_finite():
    env = make("gym:Pendulum-v1")
    actions = jnp.zeros((4, 2, 1)).at[2, 1].set(jnp.nan)
    with pytest.raises(ActionError, match=r"given the action \[nan\] at step 3 of copy 1.*learning rate"), clear_errors():
        rollout(env, jax.random.key(0), actions)


def test_only_the_newest_state_can_be_stepped():
    env = make("gym:CartPole-v1")
    action = jnp.zeros(2, jnp.int32)
    start, _ = env.reset(jax.random.key(0), 2)
    env.step(start, action, None)
    with pytest.raises(SimulatorError, match="for a state after 0 steps, but 2 copies after 1 steps run there"), clear_errors():
        env.step(start, action, None)
    with pytest.raises(SimulatorError, match="nothing runs there; call reset first"), clear_errors():
        env.step(start, action, None)


def test_a_reset_in_the_middle_of_a_program():
    """It waits for the state that it follows."""
    env = make("gym:CartPole-v1")
    actions = jnp.zeros((5, 2), jnp.int32)

    @jax.jit
    def thrice(env, keys):
        state, seen = None, []
        for key in keys:
            state, _ = env.reset(key, 2, after=state)
            state, steps = act(env, state, actions)
            seen.append(steps.observation)
        return seen

    keys = jax.random.split(jax.random.key(0), 3)
    for key, seen in zip(keys, thrice(env, keys)):
        np.testing.assert_array_equal(seen, rollout(env, key, actions)[1].observation)


def test_vmap_is_refused():
    env = make("gym:CartPole-v1")
    with pytest.raises((NotImplementedError, ValueError), match="vmap"):
        jax.vmap(lambda k: env.reset(k, 2))(jax.random.split(jax.random.key(0), 2))


# -- EnvPool --------------------------------------------------------------------------------------------------------------


def test_envpool():
    pytest.importorskip("envpool")
    env = make("envpool:CartPole-v1", max_episode_steps=12)
    key = jax.random.key(11)
    actions = random_actions(env, key, 60, 3)
    first, steps = rollout(env, key, actions)
    assert_equal((first, steps), rollout(env, key, actions))
    assert not np.array_equal(first, rollout(env, jax.random.key(12), actions)[0])
    ended = steps.terminated | steps.truncated
    assert steps.terminated.any() and steps.truncated.any()
    assert_equal(steps.observation[~ended], steps.final_observation[~ended])
    # a first observation of CartPole is near zero, a terminal one is not
    assert (np.abs(steps.observation[ended]) <= 0.05).all() and (np.abs(steps.final_observation[steps.terminated]).max(1) > 0.05).all()
    length = np.diff(np.flatnonzero(np.concatenate([[True], ended[:, 0]])))
    assert length.max() <= 12
    # the dynamics are Gymnasium's: the step after an end starts from the first observation of the new episode
    t, i = np.argwhere(ended[:-1])[0]
    twin = gymnasium.make("CartPole-v1").unwrapped
    twin.reset()
    twin.state = steps.observation[t, i].astype(np.float64)
    np.testing.assert_allclose(twin.step(int(actions[t + 1, i]))[0], steps.final_observation[t + 1, i], atol=1e-5)
    env.close()
