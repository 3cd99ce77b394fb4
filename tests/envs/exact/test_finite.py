"""Finite horizons: backward passes against the sum over all trajectories, and sampling against both."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.envs.exact import finite, problems, tabular
from tests.envs.exact.helpers import compiled, random_process

pytestmark = pytest.mark.usefixtures("x64")

S, A, H, GAMMA = 2, 2, 3, 0.8
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
fin, tab = compiled(finite), compiled(tabular)


def everything(mdp, logits):
    """The closed forms, and the same from all trajectories."""
    policy = jax.nn.softmax(logits)
    every = finite.enumerate_trajectories(mdp, H)
    probability = lambda x: finite.trajectory_probabilities(every, jax.nn.softmax(x))  # noqa: E731
    returns = jax.vmap(lambda r: finite.discounted_return(mdp, r))(every.rewards)
    score = jax.jacrev(lambda x: jnp.log(probability(x)))(logits)
    return dict(
        policy=jnp.broadcast_to(policy, (H, S, A)),
        every=every,
        probabilities=probability(logits),
        returns=returns,
        v=finite.values(mdp, policy, H),
        q=finite.state_action_values(mdp, policy, H),
        a=finite.advantages(mdp, policy, H),
        j=finite.objective(mdp, policy, H),
        d=finite.occupancy(mdp, policy, H, discounted=False),
        discounted=finite.occupancy(mdp, policy, H, discounted=True),
        gradient=finite.policy_gradient(mdp, logits, H),
        autodiff=jax.grad(lambda x: finite.objective(mdp, jax.nn.softmax(x), H))(logits),
        reinforce=jnp.einsum("n,n...->...", probability(logits) * returns, score),
        best=finite.optimal(mdp, H),
    )


@functools.cache
def problem():
    """Transition and reward that depend on the step, and logits that do."""
    mdp = random_process(0, S, A, discount=GAMMA, stages=(H,))
    return mdp, np.random.default_rng(0).normal(size=(H, S, A))


@functools.cache
def computed(stationary):
    mdp, logits = problem()
    return mdp, compiled(everything)(mdp, logits[0] if stationary else logits)


def test_values_are_expected_returns():
    _, got = computed(False)
    every, probabilities, returns = got["every"], got["probabilities"], got["returns"]
    assert every.states.shape == (S * (A * S) ** H, H + 1)
    close(probabilities.sum(), 1)
    close(got["j"], probabilities @ returns)
    v, q = got["v"], got["q"]
    close((got["policy"] * q).sum(-1), v[:-1])
    close(v[-1], 0)
    close(got["a"], q - v[:-1, :, None])
    # V_0 and Q_0 by conditioning on the first state and action
    for s in range(S):
        here = probabilities * (every.states[:, 0] == s)
        close(here @ returns / here.sum(), v[0, s])
        for a in range(A):
            taken = here * (every.actions[:, 0] == a)
            close(taken @ returns / taken.sum(), q[0, s, a])


def test_occupancy_counts_visits():
    mdp, got = computed(False)
    every, probabilities = got["every"], got["probabilities"]
    for t, s, a in np.ndindex(H, S, A):
        close(got["d"][t, s, a], probabilities @ ((every.states[:, t] == s) & (every.actions[:, t] == a)))
    close(got["discounted"], got["d"] * (GAMMA ** np.arange(H))[:, None, None])
    close((got["discounted"] * mdp.reward).sum(), got["j"])


@pytest.mark.parametrize("stationary", [False, True])
def test_policy_gradient(stationary):
    """Closed form = automatic differentiation = the mean of REINFORCE over all trajectories, for policies a step and for one policy."""
    _, got = computed(stationary)
    close(got["gradient"], got["autodiff"])
    close(got["gradient"], got["reinforce"])


def test_the_optimum_is_the_best_of_all_deterministic_policies():
    mdp, got = computed(False)
    best = got["best"]
    tables = np.stack([np.eye(A)[np.array(choice).reshape(H, S)] for choice in itertools.product(range(A), repeat=H * S)])
    j = compiled(jax.vmap(lambda mdp, p: finite.objective(mdp, p, H), (None, 0)))(mdp, np.concatenate([tables, best.policy[None]]))
    close(mdp.start @ best.values[0], j[:-1].max())
    close(j[-1], j[:-1].max())
    close(best.action_values.max(-1), best.values[:-1])


def test_a_long_horizon_is_none():
    mdp = random_process(1, 4, 3, discount=GAMMA)
    policy = np.random.default_rng(2).dirichlet(np.ones(3), 4)
    steps = finite.steps_for(GAMMA, 1e-14)
    assert GAMMA**steps <= 1e-14 < GAMMA ** (steps - 1)
    close(fin.values(mdp, policy, steps)[0], tab.values(mdp, policy), atol=1e-11)
    close(fin.optimal(mdp, steps).values[0], tab.optimal(mdp).values, atol=1e-11)


def test_episodes_that_end():
    cue = problems.cue(3)
    policy = np.random.default_rng(0).dirichlet(np.ones(2), cue.states)
    close(fin.objective(cue, policy, 3), tab.objective(cue, policy))
    close(fin.objective(cue, policy, 5), tab.objective(cue, policy))
    close(fin.occupancy(cue, policy, 5, discounted=False).sum(), 3)
    grid, uniform = problems.gridworld(["SG"], slip=0.5, discount=1.0), np.full((2, 4), 0.25)
    every = fin.enumerate_trajectories(grid, 2)
    probabilities = fin.trajectory_probabilities(every, uniform)
    close(probabilities.sum(), 1)
    close(probabilities @ every.rewards.sum(1), fin.objective(grid, uniform, 2))


def test_objectives():
    mdp = random_process(1, S, A, objectives=(2,), stages=(H,))
    _, logits = problem()
    both = compiled(lambda mdp, x: (finite.values(mdp, jax.nn.softmax(x), H), finite.policy_gradient(mdp, x, H)))
    many = both(mdp, logits)
    for m in range(2):
        for several, one in zip(many, both(mdp.with_reward(mdp.reward[..., m]), logits)):
            close(several[..., m], one)


@pytest.mark.parametrize("ends", [False, True])
def test_rollouts_agree_with_values(ends):
    count, horizon = 4000, 6
    mdp = problems.gridworld(["S.", "HG"], slip=0.2, discount=GAMMA) if ends else random_process(1, 4, 3, discount=GAMMA)
    policy = np.random.default_rng(2).dirichlet(np.ones(mdp.actions), mdp.states)

    def play(mdp, policy, key):
        runs = jax.vmap(lambda k: finite.rollout(mdp, policy, k, horizon))(jax.random.split(key, count))
        returns = jax.vmap(lambda r: finite.discounted_return(mdp, r))(runs.rewards)
        return runs, returns, finite.objective(mdp, policy, horizon), finite.occupancy(mdp, policy, horizon, discounted=False)

    runs, returns, exact, d = compiled(play)(mdp, policy, jax.random.key(3))
    assert abs(returns.mean() - exact) < 4 * returns.std() / count**0.5
    visits = np.zeros((horizon, mdp.states, mdp.actions))
    np.add.at(visits, (np.arange(horizon)[None, :], runs.states[:, :-1], runs.actions), runs.alive.astype(float))
    assert np.all(np.abs(visits / count - d) < 5 * np.sqrt(d * (1 - d) / count) + 1e-9)
    assert ends != runs.alive.all()


@pytest.mark.parametrize("where", [compiled, lambda f: f], ids=["jax", "numpy"])
def test_no_impossible_entry_is_drawn(where):
    rows = np.zeros((4, 11))
    rows[0, [1, 3]], rows[1, 0], rows[2, 2], rows[3, :10] = 0.5, 1, 1, 0.1
    for dtype in (np.float32, np.float64):
        c = where(finite.cumulative)(rows.astype(dtype))
        uniforms = np.array([0, 0.25, 0.5, 0.75, np.nextafter(dtype(1), dtype(0))], dtype)
        drawn = (c[:, None, :] <= uniforms[:, None]).sum(-1)
        assert all(rows[i, k] > 0 for i in range(4) for k in drawn[i])
        assert all(compiled(finite.draw)(c[i], uniforms[j]) == drawn[i, j] for i, j in [(0, 1), (0, 2), (3, 4)])


def test_combination_lock():
    mdp = problems.combination_lock(decoy=0.1)
    close(fin.optimal(mdp, 8).values[0], [1, 0])
    close(fin.objective(mdp, np.full((2, 3), 1 / 3), 8), 3.0**-8 + 0.1 / 3)


def test_what_does_not_fit_is_refused():
    mdp, logits = problem()
    with pytest.raises(ValueError, match="horizon is 4, but the process describes 3 steps"):
        finite.values(mdp, logits[0], 4)
    with pytest.raises(ValueError, match=r"policy has the shape \(2, 2, 2\), but \(2, 2\) or \(3, 2, 2\)"):
        finite.values(mdp, logits[:2], H)
    with pytest.raises(ValueError, match="more than 2000000"):
        finite.enumerate_trajectories(problems.chain(), 20)
