"""GAE: between a biased and a noisy gradient lies a better one."""

import dataclasses

import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import mean_squared_error, variance
from polopt.objectives.advantages import generalized_advantage_estimate

STATES, ACTIONS, DISCOUNT = 10, 3, 0.95
REPEATS, TRAJECTORIES, STEPS = 200, 8, 60  # a gradient estimate is made of 8 trajectories of 60 steps, 200 times
BETWEEN = (0.8, 0.9, 0.95)


def estimates(seed: int) -> tuple[dict[float, np.ndarray], np.ndarray]:
    """On a random problem: gradient estimates (repeats, states, actions) in the logits by lambda, and the exact gradient."""
    rng = np.random.default_rng(seed)
    transition, reward = rng.dirichlet(np.full(STATES, 0.3), size=(STATES, ACTIONS)), rng.normal(size=(STATES, ACTIONS))
    policy = np.exp(rng.normal(size=(STATES, ACTIONS)))
    policy /= policy.sum(axis=1, keepdims=True)
    moves = np.einsum("sa,sat->st", policy, transition)
    value = np.linalg.solve(np.eye(STATES) - DISCOUNT * moves, (policy * reward).sum(axis=1))
    advantage = reward + DISCOUNT * transition @ value - value[:, None]
    visits = sum(np.linalg.matrix_power(moves, t) for t in range(STEPS)).mean(axis=0) / STEPS  # from a uniform start
    exact = visits[:, None] * policy * advantage
    wrong = value + 2 * value.std() * rng.normal(size=STATES)

    def draw(probabilities):
        return (rng.random(len(probabilities))[:, None] > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)

    s, a, following = np.zeros((3, REPEATS * TRAJECTORIES, STEPS), int)
    state = rng.integers(STATES, size=REPEATS * TRAJECTORIES)
    for t in range(STEPS):
        action = draw(policy[state])
        s[:, t], a[:, t], state = state, action, draw(transition[state, action])
        following[:, t] = state
    never, last = np.zeros(s.shape, bool), np.broadcast_to(np.arange(STEPS) == STEPS - 1, s.shape)
    score = np.eye(ACTIONS)[a] - policy[s]
    found = {}
    for lam in (0.0, 0.5, *BETWEEN, 1.0):
        credit = generalized_advantage_estimate(reward[s, a], wrong[s], wrong[following], never, last, DISCOUNT, lam)
        by_state = np.stack([(score * (credit * (s == k))[..., None]).mean(axis=1) for k in range(STATES)], axis=1)
        found[lam] = by_state.reshape(REPEATS, TRAJECTORIES, STATES, ACTIONS).mean(axis=1)
    return found, exact


def error_of_mean(found, exact) -> float:
    """The squared bias and what is left of the scatter in the mean of all repeats, which makes the ratio below smaller than that of the biases."""
    return float(((found.mean(axis=0) - exact) ** 2).sum())


def run(seeds: list[int]) -> dict[str, Side]:
    problems = [estimates(seed) for seed in seeds]
    lambdas = list(problems[0][0])
    error, bias, spread = (
        {lam: np.array([measure(found[lam], exact) for found, exact in problems]) for lam in lambdas}
        for measure in (mean_squared_error, error_of_mean, lambda found, _: variance(found))
    )
    setting = {"discount": DISCOUNT, "repeats": REPEATS, "trajectories": TRAJECTORIES, "steps": STEPS}

    def best_of(chosen):
        return Side(setting | {"lambda": chosen}, {"mean squared error": np.min([error[lam] for lam in chosen], axis=0)})

    by_lambda = {"mean squared error by lambda": (lambdas, np.stack(list(error.values()), axis=1), "lambda")}
    return {
        "best lambda between": dataclasses.replace(best_of(BETWEEN), curves=by_lambda),
        "better end": best_of((0.0, 1.0)),
        **{f"lambda {lam:g}": Side(setting | {"lambda": lam}, {"squared bias": bias[lam], "variance": spread[lam]}) for lam in (0.0, 0.5, 0.9, 1.0)},
    }


CLAIM = Claim(
    method="gae",
    statement="With a wrong value function, a lambda between 0 and 1 estimates the policy gradient with a smaller error than either end: "
    "bias falls and variance rises with lambda.",
    baseline="the better of lambda = 0 (one-step) and lambda = 1 (whole returns) on the same trajectories",
    task="a random problem of 10 states and 3 actions for every seed, with values wrong by twice their spread; error against the exact gradient",
    run=run,
    checks=(
        Check("mean squared error", "best lambda between", over="better end", ratio=True, below=0.85),
        Check("squared bias", "lambda 0", over="lambda 0.9", ratio=True, above=5.0),
        Check("variance", "lambda 1", over="lambda 0.5", ratio=True, above=2.0),
    ),
    seconds=5,
)
