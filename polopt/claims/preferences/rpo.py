"""RPO keeps probability where the data is: DPO moves it to responses that nobody compared."""

import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import constant, log_probs, logged, side, trained
from polopt.loops.preference import Minibatches, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.rpo import LogisticAndLikelihood
from polopt.policies.language.log_linear import LogLinearPolicy

ARMS, COVERED, FEATURES, PAIRS = 60, 12, 8, 200
BETA, ETA = 0.1, 0.2
UPDATES, ITERATIONS = 100, 30  # full batches an iteration
GOLD, LEAST = "expected gold reward", "expected gold reward, the worst seed"
UNCOVERED, CHOSEN = "mass on arms without data", "change of the mean log-probability of chosen responses"


def problem(seed: int):
    """(policy, gold (60,), pairs (200, 2) winner first): the first 12 arms lie together in the space of features."""
    draw = np.random.default_rng(seed)
    centre, w = draw.standard_normal(FEATURES), draw.standard_normal(FEATURES)
    phi = draw.standard_normal((ARMS, FEATURES))
    phi[:COVERED] = centre + 0.3 * phi[:COVERED]
    gold = -1 + 0.1 * draw.standard_normal(ARMS)
    gold[:COVERED] = 1 + 0.5 * (phi[:COVERED] - centre) @ w
    a, b = np.stack([draw.permutation(COVERED)[:2] for _ in range(PAIRS)], 1)
    won = draw.random(PAIRS) < 1 / (1 + np.exp(-2 * (gold[a] - gold[b])))
    base = np.where(np.arange(ARMS) < COVERED, 2.0, 0.0)
    policy = LogLinearPolicy(jnp.asarray(base[None], jnp.float32), jnp.asarray(phi[None], jnp.float32))
    return policy, gold, np.where(won[:, None], np.stack([a, b], 1), np.stack([b, a], 1))


def run(seeds: list[int]) -> dict[str, Side]:
    made = [problem(seed) for seed in seeds]
    tasks = [logged(policy, np.zeros(PAIRS), pairs, np.tile([[1, 0]], (PAIRS, 1)), steps=ITERATIONS) for policy, _, pairs in made]
    gold = np.stack([g for _, g, _ in made])
    chosen = np.stack([pairs[:, 0] for _, _, pairs in made])
    first = np.stack([np.asarray(policy.log_probs()[0]) for policy, _, _ in made])

    def numbers(log_probs):
        pi = np.exp(log_probs)
        change = np.take_along_axis(log_probs - first, chosen, 1).mean(1)
        reward = (pi * gold).sum(1)
        return {GOLD: reward, LEAST: np.full(len(seeds), reward.min()), UNCOVERED: pi[:, COVERED:].sum(1), CHOSEN: change}

    sides = {"reference": Side({"arms": ARMS, "covered": COVERED}, numbers(first))}
    for name, eta in (("DPO", 0.0), ("RPO", ETA)):
        method = Preference(Logged(groups=None), LogisticAndLikelihood(Logistic(BETA), eta), Minibatches(constant(0.02), epochs=UPDATES))
        policies = trained(method, tasks, seeds).policies
        sides[name] = side(method, numbers(np.asarray(log_probs(policies))))
    return sides


CLAIM = Claim(
    method="rpo",
    statement="With partial coverage DPO moves probability to unseen low-quality responses; with the likelihood of chosen responses it stays on "
    "covered ones and the gold reward is higher.",
    baseline="DPO: the same loss with eta = 0",
    task="60 arms, log-linear policies with 8 shared features; 12 arms with data, close together, gold about 1, the others about -1; 200 "
    "Bradley-Terry pairs, beta .1, eta .2, 3000 full batches with Adam .02",
    run=run,
    checks=(
        Check(LEAST, "RPO", above=0.7),
        Check(GOLD, "RPO", over="DPO", above=1.0),
        Check(UNCOVERED, "DPO", above=0.5),
        Check(UNCOVERED, "RPO", below=0.15),
    ),
    seconds=15,
    analysis="RPO's mean is 1.06, the entry's, and DPO's -.96; but two of the ten problems, drawn by the seed, end at .67 and .75, and the entry "
    "asks .7 of the worst. The mass on uncovered arms is .12 on average where the entry saw .04. The entry says its clusters of "
    "features in words only; ours may overlap more, which was not tested.",
)
