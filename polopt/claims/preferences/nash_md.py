"""Nash-MD's last iterate reaches the regularised Nash policy of a game with cycles at rate 1 / T; no reward that is fitted to it gets there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import Table, constant, game, log_probs, side, trained
from polopt.envs.exact import preferences
from polopt.envs.exact.sequences import kl
from polopt.loops.preference import Minibatches, Preference
from polopt.loops.preference_sources import Judged, Mixture, Online
from polopt.methods.preferences.nash_md import AgainstOpponent, mirror_step, step_size
from polopt.policies.language.tabular import TabularPolicy

RESPONSES, TAU, STEPS = 10, 0.1, 200
TEMPERATURES = np.geomspace(0.01, 100, 40)
PAIRS, UPDATES = 64, 3000  # of the sampled version
GAP, KL, BOUND = "duality gap", "KL from the regularised Nash policy", "largest KL / bound over the iterations"
LARGEST, WORST = "duality gap, the worst seed", "bound, the worst seed"


def problem(key):
    """(P, log mu): Bradley-Terry scores, cycles, and a random reference."""
    k_u, k_a, k_mu = jax.random.split(key, 3)
    A = jax.random.normal(k_a, (RESPONSES, RESPONSES))
    P = preferences.from_scores(0.5 * jax.random.normal(k_u, (RESPONSES,)), 1.5 * (A - A.T))
    return P, jax.nn.log_softmax(jax.random.normal(k_mu, (RESPONSES,)))


def bradley_terry_scores(P, mu, iterations: int = 200):
    """The scores of the Bradley-Terry model closest to P for pairs drawn from mu, by Newton's method (a hair of ridge fixes the constant)."""
    weight = mu[:, None] * mu[None]

    def newton(u, _):
        p = preferences.from_scores(u)
        gradient = (weight * (p - P)).sum(1)
        curvature = weight * p * (1 - p)
        hessian = jnp.diag(curvature.sum(1)) - curvature + 1e-6 * jnp.eye(u.shape[0])
        return u - jnp.clip(jnp.linalg.solve(hessian, gradient), -1, 1), None

    return jax.lax.scan(newton, jnp.zeros(P.shape[0]), length=iterations)[0]


@functools.partial(jax.jit, static_argnames="steps")
def exact(key, steps: int):
    """Of one game: Nash-MD's gap after the steps, its KL from the Nash policy after each, and the gaps of the reference and the fitted reward."""
    P, log_mu = problem(key)
    nash = jnp.log(preferences.regularised_nash(P, jnp.exp(log_mu), TAU))

    def step(log_pi, t):
        log_pi = mirror_step(log_pi, log_mu, P, step_size(t, TAU), TAU)
        return log_pi, kl(nash, log_pi)

    log_pi, distances = jax.lax.scan(step, log_mu, jnp.arange(steps))
    u = bradley_terry_scores(P, jnp.exp(log_mu))
    tempered = jax.nn.log_softmax(log_mu[None] + u[None] / jnp.asarray(TEMPERATURES)[:, None])
    gap = lambda log_p: preferences.duality_gap(P, log_p, log_mu, TAU)  # noqa: E731
    return {"gap": gap(log_pi), "KL": distances, "reference": gap(log_mu), "fitted": gap(tempered).min()}


def run(seeds: list[int]) -> dict[str, Side]:
    with jax.enable_x64(True):
        found = [exact(jax.random.key(seed), STEPS) for seed in seeds]
        games = [tuple(np.asarray(x, np.float32) for x in problem(jax.random.key(seed))) for seed in seeds]
    gap, distances, first, fitted = (np.array([np.asarray(f[name]) for f in found]) for name in ("gap", "KL", "reference", "fitted"))
    bound = 8 / (TAU**2 * (np.arange(1, STEPS + 1) + 1))
    share = (distances / bound[None]).max(1)

    tasks = [game(TabularPolicy(log_mu[None]), P, steps=UPDATES) for P, log_mu in games]
    source = Online(prompts_drawn=PAIRS, opponent=Mixture(0.125), annotator=Judged(Table(), sampled=False))
    method = Preference(source, AgainstOpponent(TAU), Minibatches(constant(0.01)))
    last = log_probs(trained(method, tasks, seeds).policies)
    sampled = np.array([float(preferences.duality_gap(P, log_p, log_mu, TAU)) for (P, log_mu), log_p in zip(games, last)])
    worst = lambda x: np.full(len(seeds), x.max())  # noqa: E731
    return {
        "Nash-MD": Side(
            {"steps": STEPS, "tau": TAU},
            {GAP: gap, LARGEST: worst(gap), KL: distances[:, -1], BOUND: share, WORST: worst(share)},
            {KL: (np.arange(1, STEPS + 1), distances, "iterations")},
        ),
        "fitted reward": Side({"temperatures": TEMPERATURES.tolist()}, {GAP: fitted}),
        "reference": Side({"tau": TAU}, {GAP: first}),
        "Nash-MD-PG": side(method, {GAP: sampled}),
    }


CLAIM = Claim(
    method="nash_md",
    statement="Nash-MD's last iterate converges to the regularised Nash policy of an intransitive game within its bound 8 / (tau^2 (T + 1)); a "
    "policy that optimises a Bradley-Terry reward of the same preferences does not reach it at any temperature.",
    baseline="mu exp(r / t) / Z with r the Bradley-Terry fit under reference sampling and the best t of 40",
    task="10 responses, P = sigmoid(u_i - u_j + cycles), random reference, tau .1; 200 exact steps, and Nash-MD-PG with 3000 batches of 64 pairs",
    run=run,
    checks=(
        Check(LARGEST, "Nash-MD", below=1e-4),
        Check(WORST, "Nash-MD", below=1.0),
        Check(GAP, "fitted reward", over="Nash-MD", ratio=True, above=20),
        Check(GAP, "Nash-MD-PG", below=0.02),
    ),
    seconds=25,
)
