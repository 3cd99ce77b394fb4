"""PMOE: weights that follow how often an expert is the best let a mixture keep several optima, at little cost in value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.actor_critic.pendulum import pendulum, sized
from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN, trained
from polopt.methods.actor_critic.pmoe import best_expert, frequency_loss, pmoe, primary_loss
from polopt.methods.actor_critic.sac import sac
from polopt.optim.adam import Adam
from polopt.policies.distributions import SquashedGaussian
from polopt.policies.experts import Mixture

COVERED, VALUE = "share of starts that keep both optima", "expected value of an action"
ALPHA, STEPS, BATCH, STARTS = 0.02, 3_000, 128, 5
ADAM = Adam(learning_rate=3e-3, anneal=False, max_grad_norm=None, epsilon=1e-8)


def worth(action):
    """Q(a): two equal optima at -.6 and .6."""
    return 1 - 8 * jnp.minimum((action - 0.6) ** 2, (action + 0.6) ** 2)


def mixture(params) -> Mixture:
    mean, log_std, logits = params
    return Mixture(logits, jax.vmap(lambda m, s: SquashedGaussian(m[None], s[None], jnp.float32(-1), jnp.float32(1)))(mean, log_std))


def loss(params, key):
    """L_pi with the values known."""
    policy = mixture(params)
    raw = jax.vmap(policy.sample_each)(jax.random.split(key, BATCH))
    log_prob = jax.vmap(policy.log_prob_each)(raw)
    value = worth(jax.vmap(policy.action_each)(raw)[..., 0])
    best = best_expert(value)
    return jnp.mean(primary_loss(log_prob, value, best, ALPHA) + frequency_loss(policy.weights[None], best))


def started(count: int, key):
    """(whether both optima are kept, the expected value) of one start with `count` experts."""
    k_start, k_train, k_judge = jax.random.split(key, 3)
    params = 0.5 * jax.random.normal(k_start, (count,)), jnp.full((count,), -1.0), jnp.zeros((count,))

    def step(carry, key):
        params, state = carry
        return ADAM.update(jax.grad(loss)(params, key), state, params, 0.0), None

    (params, _), _ = jax.lax.scan(step, (params, ADAM.init(params)), jax.random.split(k_train, STEPS))
    policy = mixture(params)
    mean, heavy = jnp.tanh(params[0]), policy.weights >= 0.05
    both = jnp.any(heavy & (mean > 0.4)) & jnp.any(heavy & (mean < -0.4))
    drawn = jax.vmap(lambda k: policy.action(policy.sample(k))[0])(jax.random.split(k_judge, 2_000))
    return both.astype(jnp.float32), jnp.mean(worth(drawn))


def bandit(count: int, seeds: list[int]) -> Side:
    """Means over the starts of each seed."""
    keys = jnp.stack([jax.random.split(jax.random.key(seed), STARTS) for seed in seeds])
    covered, value = jax.jit(jax.vmap(jax.vmap(lambda key: started(count, key))))(keys)
    numbers = {COVERED: np.asarray(covered, np.float64).mean(1), VALUE: np.asarray(value, np.float64).mean(1)}
    return Side({"experts": count, "alpha": ALPHA, "steps": STEPS, "batch": BATCH, "starts": STARTS}, numbers)


def run(seeds: list[int]) -> dict[str, Side]:
    task = pendulum(10_000)
    rates = {f"rule.{name}.learning_rate": 1e-3 for name in ("actor_step", "critic_step", "temperature.step")}
    methods = {"PMOE on Pendulum": pmoe(task), "SAC on Pendulum": sac(task)}
    sides = {f"{count} expert{'s' * (count > 1)}": bandit(count, seeds) for count in (4, 1)}
    for name, method in methods.items():
        sides[name] = trained(sized(method, **rates, **{"batch_size": 64, "rule.tau": 0.005}), task, seeds, episodes=20, stochastic=False)
    return sides


CLAIM = Claim(
    method="pmoe",
    statement="Regressing the weights onto which expert is the best lets a mixture keep several optima that a single Gaussian cannot, "
    "at little cost in value.",
    baseline="the same with one expert; SAC with the same sizes and steps",
    task="One step, Q(a) = 1 - 8 min((a - .6)^2, (a + .6)^2) known, alpha .02, 3000 Adam steps of 3e-3 on 128 draws, 5 starts a seed, "
    "an optimum kept by a mean beyond .4 of a weight of .05 or more; Pendulum-v1, 10k steps, an update each, 64-64 ReLU, minibatches of 64, "
    "Adam 1e-3, rewards times .1",
    run=run,
    checks=(
        Check(COVERED, "4 experts", above=0.4),
        Check(COVERED, "1 expert", below=0.05),
        Check(VALUE, "4 experts", above=0.75),
        Check(FINAL_RETURN, "PMOE on Pendulum", over="SAC on Pendulum", above=-50),
    ),
    seconds=150,
)
