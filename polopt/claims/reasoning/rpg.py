"""RPG: on data of a fixed policy, losses with the importance weight end at the regularised optimum, GRPO's penalty elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.envs.exact import sequences
from polopt.methods.reasoning.rpg import DIVERGENCES, differentiable_loss
from polopt.objectives.divergences import k3
from polopt.objectives.surrogates import importance_weighted

ARMS, BETA, RATE, STEPS = 10, 0.5, 0.5, 20_000
GAP = "E[R] - beta KL(pi || old): the optimum's less the policy's"
FORWARD = "E[R] - beta KL(old || pi)"
GRPO = "GRPO's penalty (k3)"


def grpo_loss(log_prob, old, ref, advantage, beta):
    return importance_weighted(log_prob, old, advantage) + beta * k3(log_prob, ref)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0))
def measured(name: str, key):
    """(gap, forward objective) after gradient steps on the exact expectation of a loss over pi_old."""
    loss = grpo_loss if name == GRPO else functools.partial(differentiable_loss, divergence=name)
    k_rewards, k_old = jax.random.split(key)
    rewards, old = jax.random.uniform(k_rewards, (ARMS,), maxval=2.0), jax.nn.log_softmax(jax.random.normal(k_old, (ARMS,)))

    def expected(logits):
        return jnp.sum(jnp.exp(old) * loss(jax.nn.log_softmax(logits), old, old, rewards, BETA))

    logits = jax.lax.fori_loop(0, STEPS, lambda _, x: x - RATE * jax.grad(expected)(x), old)
    log_p = jax.nn.log_softmax(logits)
    best = sequences.regularised_optimum(old, rewards, BETA).value
    gap = best - sequences.regularised_objective(log_p, old, rewards, BETA)
    return gap, sequences.expected(log_p, rewards) - BETA * sequences.kl(old, log_p)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    settings = {"arms": ARMS, "beta": BETA, "learning_rate": RATE, "steps": STEPS}
    sides = {}
    for name in (*DIVERGENCES, GRPO):
        gap, forward = (np.asarray(x, np.float64) for x in measured(name, keys))
        sides[name] = Side({**settings, "penalty": name}, {GAP: gap, FORWARD: forward})
    return sides


CLAIM = Claim(
    method="rpg",
    statement="On data of a fixed policy the losses of both reverse divergences end at the optimum old exp(R / beta) / Z and those of the forward "
    "divergence maximise theirs; GRPO's penalty, which has no importance weight, does not.",
    baseline="the same loss with GRPO's k3 penalty",
    task="10 arms with rewards U(0, 2), old policy softmax(N(0, I)), beta .5, exact expectations, 20000 gradient steps of rate .5",
    run=run,
    checks=(
        Check(GAP, "reverse", below=1e-4),
        Check(GAP, "unnormalised_reverse", below=1e-4),
        Check(GAP, GRPO, above=0.03),
        Check(FORWARD, "forward", over="reverse", above=0.02),
        Check(FORWARD, "unnormalised_forward", over="reverse", above=0.02),
    ),
    seconds=10,
)
