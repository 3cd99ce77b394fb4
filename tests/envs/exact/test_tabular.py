"""Discounted processes: values, occupancy, gradients and optimum against independent computations and identities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.envs.exact import problems, tabular
from polopt.envs.exact.tabular import TabularMDP
from tests.envs.exact.helpers import compiled, random_process

pytestmark = pytest.mark.usefixtures("x64")

S, A, GAMMA = 5, 3, 0.9
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)
tab = compiled(tabular)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def everything(mdp, logits, vectors, reward):
    policy = jax.nn.softmax(logits)
    other = policy[::-1]
    natural = {n: tabular.natural_gradient(mdp, logits, normalised=n) for n in (True, False)}

    def utility(logits):
        d = tabular.occupancy(mdp, jax.nn.softmax(logits), normalised=False)
        return -jnp.sum(d * jnp.log(d))

    d = tabular.occupancy(mdp, policy, normalised=False)
    best = tabular.optimal(mdp)
    return dict(
        v=tabular.values(mdp, policy),
        q=tabular.state_action_values(mdp, policy),
        a=tabular.advantages(mdp, policy),
        j=tabular.objective(mdp, policy),
        d=d,
        d_normalised=tabular.occupancy(mdp, policy, normalised=True),
        d_states=tabular.state_occupancy(mdp, policy, normalised=True),
        gradient=tabular.policy_gradient(mdp, logits),
        autodiff=jax.grad(tabular.softmax_objective, 1)(mdp, logits),
        hessian=jax.vmap(lambda v: tabular.hessian_vector_product(mdp, logits, v))(vectors),
        fisher_natural={n: tabular.fisher_vector_product(mdp, logits, x, normalised=n) for n, x in natural.items()},
        natural=natural,
        difference=tabular.performance_difference(mdp, other, policy),
        j_other=tabular.objective(mdp, other),
        utility=jax.grad(utility)(logits),
        shadow=tabular.policy_gradient(mdp.with_reward(-jnp.log(d) - 1), logits),
        best=best,
        best_again=tabular.values(mdp, best.policy),
        best_derivative=jax.grad(lambda r: mdp.start @ tabular.optimal(mdp.with_reward(r)).values)(reward),
        best_occupancy=tabular.occupancy(mdp, best.policy, normalised=False),
    )


@functools.cache
def computed():
    mdp = random_process(0, S, A, discount=GAMMA)
    logits = np.random.default_rng(0).normal(size=(S, A))
    return mdp, logits, compiled(everything)(mdp, logits, np.eye(S * A).reshape(-1, S, A), mdp.reward)


def test_values_are_sums_of_rewards():
    mdp, logits, got = computed()
    policy = softmax(logits)
    kernel, reward = np.einsum("sa,sap->sp", policy, mdp.transition), (policy * mdp.reward).sum(1)
    v, d, at = np.zeros(S), np.zeros(S), mdp.start.copy()
    for t in range(400):
        v, d, at = reward + GAMMA * kernel @ v, d + GAMMA**t * at, at @ kernel
    close(got["v"], v)
    close(got["q"], mdp.reward + GAMMA * mdp.transition @ v)
    close(got["a"], got["q"] - v[:, None])
    close((policy * got["a"]).sum(1), 0)
    close(got["j"], mdp.start @ v)
    close(got["d"], d[:, None] * policy)


def test_occupancy():
    mdp, _, got = computed()
    close(got["d"].sum(), 1 / (1 - GAMMA))
    close(got["d_normalised"].sum(), 1)
    close(got["d_normalised"], (1 - GAMMA) * got["d"])
    close(got["d_states"], got["d_normalised"].sum(1))
    close(got["d"].sum(1), mdp.start + GAMMA * np.einsum("sa,sap->p", got["d"], mdp.transition))
    close((got["d"] * mdp.reward).sum(), got["j"])


@functools.cache
def differences():
    """Finite differences of J and of its gradient along every logit."""
    mdp, logits, _ = computed()
    steps = np.concatenate([1e-5 * np.eye(S * A), -1e-5 * np.eye(S * A)]).reshape(-1, S, A)

    def both(mdp, logits):
        return jax.vmap(lambda x: (tabular.softmax_objective(mdp, x), tabular.policy_gradient(mdp, x)))(logits)

    values, gradients = compiled(both)(mdp, logits + steps)
    return [(x[: S * A] - x[S * A :]) / 2e-5 for x in (values, gradients)]


def test_policy_gradient_theorem():
    """The closed form, automatic differentiation and finite differences agree."""
    _, _, got = computed()
    close(got["gradient"], got["autodiff"])
    np.testing.assert_allclose(got["gradient"].ravel(), differences()[0], rtol=1e-6, atol=1e-9)
    close(got["gradient"].sum(1), 0)


def test_hessian():
    hessian = computed()[2]["hessian"].reshape(S * A, S * A)
    close(hessian, hessian.T)
    np.testing.assert_allclose(hessian, differences()[1].reshape(S * A, S * A), rtol=1e-6, atol=1e-8)


def test_natural_gradient_is_the_advantage():
    """Catalogue, trpo oracle 3: F x = g at x = A / (1 - gamma), and at A with the unnormalised occupancy."""
    _, _, got = computed()
    for normalised in (True, False):
        close(got["fisher_natural"][normalised], got["gradient"])
        close(got["natural"][normalised], got["a"] / (1 - GAMMA if normalised else 1))


def test_performance_difference_lemma():
    _, _, got = computed()
    close(got["difference"], got["j_other"] - got["j"])


def test_pseudo_reward_gradient():
    """Catalogue, general_utilities oracle 3: the gradient of any F(occupancy) is a policy gradient with the reward dF/dd held fixed."""
    _, _, got = computed()
    close(got["shadow"], got["utility"])


def test_the_optimum_beats_a_thousand_policies():
    mdp, _, got = computed()
    best = got["best"]
    close(best.values, (mdp.reward + GAMMA * mdp.transition @ best.values).max(1))
    close(best.action_values.max(1), best.values)
    assert set(np.unique(best.policy)) == {0.0, 1.0}
    close(got["best_again"], best.values)
    others = np.random.default_rng(1).dirichlet(np.full(A, 0.3), (1000, S))
    v = compiled(jax.vmap(tabular.values, (None, 0)))(mdp, others)
    assert np.all(v <= best.values + 1e-12)


def test_the_derivative_of_the_optimum_is_its_occupancy():
    got = computed()[2]
    close(got["best_derivative"], got["best_occupancy"])


def test_problems_are_vmapped():
    keys = jax.random.split(jax.random.key(0), 3)

    def solve(key):
        mdp = problems.random_mdp(key, S, A, discount=GAMMA, objectives=2, costs=1, reward="uniform")
        return mdp, tabular.optimal(mdp.with_reward(mdp.reward[..., 0]))

    mdps, optima = compiled(jax.vmap(solve))(keys)
    assert mdps.reward.shape == (3, S, A, 2) and mdps.cost.shape == (3, S, A, 1) and 0 <= mdps.reward.min() < mdps.reward.max() <= 1
    for i in range(3):
        mdp = jax.tree.map(lambda x: x[i], mdps)
        tabular.check(mdp)
        jax.tree.map(lambda many, one: close(many[i], one), optima, tab.optimal(mdp.with_reward(mdp.reward[..., 0])))


def test_objectives_are_separate():
    mdp = random_process(1, S, A, objectives=(2,))
    logits = np.random.default_rng(1).normal(size=(S, A))
    assert mdp.objectives == 2 and mdp.states == S and mdp.actions == A

    def all_of_them(mdp, logits):
        policy = jax.nn.softmax(logits)
        found = [f(mdp, policy) for f in (tabular.values, tabular.state_action_values, tabular.advantages, tabular.objective)]
        return [*found, tabular.policy_gradient(mdp, logits), tabular.performance_difference(mdp, policy[::-1], policy)]

    both = compiled(all_of_them)(mdp, logits)
    for m in range(2):
        for many, one in zip(both, compiled(all_of_them)(mdp.with_reward(mdp.reward[..., m]), logits)):
            close(many[..., m], one)
    weights = np.array([0.3, 0.7])
    close(tab.objective(mdp.scalarised(weights), softmax(logits)), both[3] @ weights)
    with pytest.raises(ValueError, match="needs one reward, but this process has 2 objectives; weigh them"):
        tabular.optimal(mdp)


def test_undiscounted_paths_end():
    """With -1 a step and discount 1 the value is minus the distance to the goal, and a process that only pays at the end may tie everywhere."""
    rows = ["S..", ".#.", "..G"]
    mdp = problems.gridworld(rows, step_reward=-1.0, goal_reward=0.0, discount=1.0)
    close(tab.optimal(mdp).values, [-4, -3, -2, -3, -1, -2, -1, 0])
    free = problems.gridworld(rows, discount=1.0)
    best = tab.optimal(free)
    close(best.values, [1] * 7 + [0])
    close(tab.values(free, best.policy), best.values)
    # the occupancy counts the steps that are made
    uniform = np.full((8, 4), 1 / 4)
    close(tab.occupancy(mdp, uniform, normalised=False).sum(), -tab.objective(mdp, uniform))


def test_arrays_behind_the_end_do_not_matter():
    mdp = problems.gridworld(["S.G"], slip=0.1)
    policy = np.full((3, 4), 1 / 4)
    P, reward = np.array(mdp.transition), np.array(mdp.reward)
    P[2], reward[2] = [1, 0, 0], 5
    odd = dataclasses.replace(mdp, transition=P, reward=reward)
    close(tab.values(odd, policy), tab.values(mdp, policy))
    close(tab.occupancy(odd, policy, normalised=True), tab.occupancy(mdp, policy, normalised=True))
    assert tab.values(odd, policy)[2] == 0


def test_memory():
    """Catalogue, s2pg: without memory the cue task is worth 1/2, with one bit it can be solved."""
    cue = problems.cue(4)
    seen = compiled(lambda mdp, table: tabular.objective(mdp, tabular.observed(mdp, table)))
    close(seen(cue, np.eye(2)[[0, 1, 0]]), 0.5)
    close(cue.start @ tab.optimal(cue).values, 1)
    noted = tab.with_memory(cue, 2)
    tabular.check(noted)
    assert noted.states == 18 and noted.actions == 4
    # rows: (observation, note); columns: (action, next note). Write the bit down, then keep and show it.
    close(seen(noted, np.eye(4)[[0, 0, 1, 1, 0, 3]]), 1)
    # a note that is never read changes nothing
    rng = np.random.default_rng(0)
    act, note = rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.ones(2), 6)
    joint = (np.repeat(act, 2, 0)[:, :, None] * note[:, None, :]).reshape(6, 4)
    close(seen(noted, joint), seen(cue, act))


def test_numbers_have_the_type_of_the_arrays():
    with jax.enable_x64(False):
        mdp = problems.chain(A)
        best = tab.optimal(mdp)
        found = mdp.transition, mdp.start, best, tab.occupancy(mdp, best.policy, normalised=True)
        assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}
    assert computed()[2]["best"].values.dtype == "float64" == problems.chain().transition.dtype


def test_what_is_not_a_process_is_refused():
    mdp, logits, _ = computed()
    tabular.check(mdp)
    bad = {
        r"reward has the shape \(3, 5\)": dict(reward=mdp.reward.T),
        r"start distribution has the shape \(3,\)": dict(start=mdp.start[:3]),
        "row of transition is not a distribution": dict(transition=mdp.transition * 1.1),
        r"transition has the shape \(5, 3, 4\)": dict(transition=mdp.transition[..., 1:]),
        "discount is 1.5": dict(discount=1.5),
        r"terminal has the shape \(2,\)": dict(terminal=np.zeros(2, bool)),
        r"cost has the shape \(5, 3\)": dict(cost=mdp.reward),
    }
    for sentence, change in bad.items():
        with pytest.raises(ValueError, match=sentence):
            tabular.check(dataclasses.replace(mdp, **change))
    with pytest.raises(ValueError, match=r"policy has the shape \(3, 5\), but \(5, 3\), states by actions"):
        tabular.values(mdp, logits.T)
    staged = problems.combination_lock()
    tabular.check(staged)
    with pytest.raises(ValueError, match="depends on the step"):
        tabular.values(staged, np.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="reward is 'large', but one of"):
        problems.random_mdp(jax.random.key(0), S, A, reward="large")


# -- the named problems ------------------------------------------------------------------------------------------------

NAMED = ["chain", "permuted_chain", "stay_move", "riverswim", "two_queues", "cue", "gridworld", "coverage_grid", "deep_sea_treasure"]


@pytest.mark.parametrize("name", NAMED)
def test_named_problems_are_processes(name):
    tabular.check(getattr(problems, name)())


def test_two_queues():
    """Catalogue, improper_rl: the better of the two controllers costs 123, the initial mixture 112, the best 66.5."""
    mdp = problems.two_queues()
    cost = jax.vmap(lambda mdp, w: -tabular.objective(mdp, jnp.broadcast_to(w, (mdp.states, 2))), (None, 0))
    weights = np.array([[1.0, 0.0], [0.0, 1.0], softmax(np.array([1.1, -1.1])), [0.5, 0.5]])
    np.testing.assert_allclose(compiled(cost)(mdp, weights), [122.975, 122.975, 112.363, 66.469], atol=2e-3)


def test_deep_sea_treasure():
    """Catalogue, multi_objective: the discounted front."""
    mdp = problems.deep_sea_treasure()
    best = jax.vmap(lambda mdp, w: tabular.objective(mdp, tabular.optimal(mdp.scalarised(w)).policy), (None, 0))
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_allclose(compiled(best)(mdp, weights), [[19.778, -17.383], [0.7, -1.0], [13.181, -6.793]], atol=1e-3)


def test_permuted_chain_has_the_three_moves_everywhere():
    moves = np.asarray(problems.permuted_chain(slip=0.0).transition).argmax(-1)
    for s, row in enumerate(moves):
        assert sorted(row) == sorted([min(s + 1, 7), max(s - 1, 0), 0])
    assert len({tuple(np.argsort(row)) for row in moves[2:]}) > 1
    assert np.asarray(problems.permuted_chain(slip=0.3).transition)[5].max() == pytest.approx(0.8)


def test_coverage():
    mdp, covers = problems.coverage_grid(), np.asarray(problems.neighbourhood())
    assert mdp.states == 49 and mdp.actions == 5 and covers.shape == (49, 49)
    assert covers.sum(1).min() == 3 and covers.sum(1).max() == 5
    moves = np.asarray(mdp.transition).argmax(-1)
    assert all(covers[s, to] for s in range(49) for to in moves[s])
    assert np.asarray(mdp.start)[0] == 1


def test_stay_and_move():
    close(tab.optimal(problems.stay_move()).values, [38, 40])  # move once, then 2 for ever


def test_a_grid_is_drawn_properly():
    with pytest.raises(ValueError, match="letters 'X'"):
        problems.gridworld(["S.X"])
    with pytest.raises(ValueError, match=r"rows of the lengths \[2, 1\]"):
        problems.gridworld(["S.", "G"])
    # catalogue, iql: 14 moves, the last of which earns 1
    walls = ["S......."] + ["........"] * 2 + ["..####.."] + ["........"] * 3 + [".......G"]
    np.testing.assert_allclose(tab.optimal(problems.gridworld(walls)).values[0], 0.95**13)


def test_a_process_is_a_pytree():
    mdp = TabularMDP(np.ones((1, 1, 1)), np.ones((1, 1)), np.ones(1), 0.5)
    assert len(jax.tree.leaves(mdp)) == 4
    close(tab.objective(mdp, np.ones((1, 1))), 2)
