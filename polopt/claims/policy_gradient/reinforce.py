"""REINFORCE: the estimate is right on average with any baseline, and varies less with a good one."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration, squared_bias, variance
from polopt.core.parts import replace
from polopt.core.spaces import Box, Discrete
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.methods.policy_gradient.reinforce import reinforce

STATES, ACTIONS, HORIZON = 6, 3, 10
_rng = np.random.default_rng(0)
TRANSITION = _rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS)).astype(np.float32)
REWARD = _rng.uniform(size=(STATES, ACTIONS)).astype(np.float32)

ITERATIONS, ESTIMATES = 50, 2000  # of training, and gradient estimates of 8 episodes each


@dataclass(frozen=True)
class Walk:
    """A random problem that ends after HORIZON steps; the state is seen as a unit vector."""

    observation_space = Box(0.0, 1.0, (STATES,))
    action_space = Discrete(ACTIONS)
    objectives = costs = 0

    def reset(self, key):
        state = jax.random.randint(key, (), 0, STATES)
        return (state, 0), jax.nn.one_hot(state, STATES)

    def step(self, state, action, key):
        place, time = state
        after = jax.random.categorical(key, jnp.log(jnp.asarray(TRANSITION)[place, action]))
        reward = jnp.asarray(REWARD)[place, action]
        return (after, time + 1), jax.nn.one_hot(after, STATES), reward, jnp.zeros((0,)), time + 1 == HORIZON, False


def expected_return(actor):
    """The exact return of an episode, divided by its length as the mean loss is."""
    policy = jax.nn.softmax(jax.vmap(lambda observation: actor((), observation, ())[1].logits)(jnp.eye(STATES)))
    moves = jnp.einsum("sa,sat->st", policy, TRANSITION)
    earned = jnp.sum(policy * REWARD, axis=1)
    there = jnp.full((STATES,), 1 / STATES)
    total = 0.0
    for _ in range(HORIZON):
        total += there @ earned
        there = there @ moves
    return total / HORIZON


def gradients(key, *, method):
    """After some training: gradient estimates with the critic as baseline and without one, on the same episodes, and the exact gradient."""
    task = ControlTask(JaxEnvironment("walk", Walk()), ITERATIONS * method.steps_per_iteration)
    state = jax.lax.fori_loop(0, ITERATIONS, lambda _, s: method.step(task, s)[0], method.init(task, key))

    def estimate(method, state, rollout):
        batch = method.judge(state, state.acting, rollout)[0]
        return jax.grad(lambda actor: method.policy_loss(actor, state.surrogate, batch)[0])(state.learner.actor)

    def both(key):
        fresh = method.refresh(task, eqx.tree_at(lambda s: s.key, state, key))  # episodes that start anew
        rollout = method.collect(task.env, fresh, fresh.key)[1]
        bare = eqx.tree_at(lambda s: s.learner.critic, fresh, None)
        return estimate(method, fresh, rollout), estimate(replace(method, {"critic": False}), bare, rollout)

    estimates = jax.lax.map(both, jax.random.split(jax.random.fold_in(key, 1), ESTIMATES), batch_size=100)
    return (*estimates, jax.grad(lambda actor: -expected_return(actor))(state.learner.actor))


def run(seeds: list[int]) -> dict[str, Side]:
    # Not standardised and not discounted: then the estimate is that of Williams' paper, and what it estimates is known exactly.
    sizes = {"num_steps": HORIZON, "network.hidden": (16,), "critic_network.hidden": (16,), "learning_rate": 1e-2}
    method = replace(reinforce(), {"standardise": "none", "discount": 1.0, **sizes})
    names = "value baseline", "no baseline"
    numbers = {name: {"relative squared bias": [], "relative variance": []} for name in names}
    compiled = jax.jit(lambda key: gradients(key, method=method))
    for seed in seeds:
        *estimates, exact = compiled(jax.random.key(seed))
        exact = _flat(exact)
        for name, found in zip(names, estimates):
            found = _flat(found, ESTIMATES)
            numbers[name]["relative squared bias"].append(squared_bias(found, exact) / float(exact @ exact))
            numbers[name]["relative variance"].append(variance(found) / float(exact @ exact))
    return {name: Side(configuration(replace(method, {"critic": name == names[0]})), numbers[name]) for name in names}


def _flat(tree, *shape) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).reshape(*shape, -1) for leaf in jax.tree.leaves(tree)], axis=-1)


CLAIM = Claim(
    method="reinforce",
    statement="The estimate follows the gradient of the expected return on average, whatever baseline is subtracted, and a learnt value as "
    "baseline makes it vary less.",
    baseline="the same estimate without a baseline, on the same episodes",
    task="a random problem of 6 states, 3 actions and 10 steps, a small network after 50 iterations; exact gradient by enumeration",
    run=run,
    checks=(
        Check("relative squared bias", "value baseline", below=0.005),
        Check("relative squared bias", "no baseline", below=0.005),
        Check("relative variance", "no baseline", over="value baseline", ratio=True, above=2.0),
    ),
    seconds=20,
)
