"""What the claims of this family share: small learners on Pendulum-v1, one update for each step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Side
from polopt.claims.measures import configuration, simulated
from polopt.core.parts import fields, replace

STEPS = 20_000
EVALUATIONS = 5
BIAS = "value of the first state minus its discounted return"
STARTS = 64


def pendulum(steps: int = STEPS):
    return simulated("Pendulum-v1", steps)


def sized(method, **changes):
    """The method with 64-64 networks, minibatches of 128, rewards times .1 and a warm-up of 1000 steps, in iterations of 8 steps."""
    hidden = {name: (64, 64) for name in fields(method) if name.endswith("hidden")}
    updates = 8 * method.updates
    return replace(method, {**hidden, "batch_size": 128, "reward_scale": 0.1, "num_steps": 8, "updates": updates, "warmup": 1_000, **changes})


def value_bias(method, task, seeds: list[int]) -> Side:
    """What the smallest critic says of first states, less what the policy then earns of scaled rewards, discounted over an episode."""
    bias, returns = _value_bias(method, task, jnp.stack([jax.random.key(seed) for seed in seeds]))
    return Side(configuration(method), {BIAS: np.asarray(bias, np.float64), "return of an episode": np.asarray(returns, np.float64)})


@functools.partial(jax.jit, static_argnames="horizon")
def _value_bias(method, task, keys, horizon: int = 200):
    iterations = task.steps // method.steps_per_iteration

    def one(key, start):
        state = jax.lax.fori_loop(0, iterations, lambda _, s: method.step(task, s)[0], start)
        policy, learner = method.policy(state), state.learner
        k_reset, k_run = jax.random.split(jax.random.fold_in(key, 0x0F17A1))
        env_state, observation = task.env.reset(k_reset, STARTS)

        def valued(observation):
            inputs = state.normaliser(observation)
            return jnp.min(learner.critic(*inputs, learner.actor.draw(*inputs)))

        def act(carry, t):
            env_state, observation = carry
            action = jax.vmap(lambda o: policy.act((), o)[1])(observation)
            env_state, after = task.env.step(env_state, action, jax.random.fold_in(k_run, t))
            return (env_state, after.observation), after.reward

        _, rewards = jax.lax.scan(act, (env_state, observation), jnp.arange(horizon))
        discounted = method.reward_scale * method.rule.discount ** jnp.arange(horizon) @ rewards
        return jnp.mean(jax.vmap(valued)(observation) - discounted), jnp.mean(rewards.sum(axis=0))

    starts = jax.lax.map(lambda key: method.init(task, key), keys)
    return jax.vmap(one)(keys, starts)
