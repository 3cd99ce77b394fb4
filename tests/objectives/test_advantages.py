"""Advantages against closed forms, exact problems and the other libraries' conventions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.objectives import layout, reduction, surrogates
from polopt.objectives.advantages import (
    generalized_advantage_estimate,
    group_relative,
    groups_of_one,
    lambda_returns,
    leave_one_out,
    length_weighted,
    returns_to_go,
    token_advantage_estimate,
    token_rewards,
    vtrace,
)

properties = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


# -- steps -------------------------------------------------------------------------------------------------------------

ONES, HALVES = np.ones(3), np.full(3, 0.5)
LAST = np.array([False, False, True])


def test_gae_on_three_steps():
    """Catalogue, gae, oracle 1: by termination, then cut with V(last) = 0.5."""
    never = LAST & False
    terminated = generalized_advantage_estimate(ONES, HALVES, HALVES, LAST, LAST, 0.5, 0.5)
    np.testing.assert_allclose(terminated, [0.96875, 0.875, 0.5], rtol=0, atol=1e-15)
    truncated = generalized_advantage_estimate(ONES, HALVES, HALVES, never, LAST, 0.5, 0.5)
    np.testing.assert_allclose(truncated, [0.984375, 0.9375, 0.75], rtol=0, atol=1e-15)


def test_the_estimator_of_brax_is_another_one():
    """Catalogue, gae, pitfall (ii): delta_t + gamma A_{t+1}, as the docstring writes it."""
    targets = lambda_returns(ONES, HALVES, LAST, LAST, 0.5, 0.5)
    brax = ONES + 0.5 * np.array([1, 1, 0]) * np.roll(targets, -1) - HALVES
    np.testing.assert_allclose(brax, [1.1875, 1.0, 0.5], rtol=0, atol=1e-15)


def steps(seed, time=9):
    """Two random rollouts with episodes that terminate and that are cut, and values that agree with each other inside an episode."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, 2, time))
    terminated, truncated = rng.random((2, 2, time)) < 0.2
    ended = terminated | truncated
    next_values[:, :-1] = np.where(ended[:, :-1], next_values[:, :-1], values[:, 1:])
    return rewards, values, next_values, terminated, ended


@properties
@given(seeds, st.floats(0.5, 1), st.floats(0, 1))
def test_limits_and_identities_of_gae(seed, discount, lam):
    rewards, values, next_values, terminated, ended = arrays = steps(seed)
    zero = np.zeros_like(values)
    alive = discount * (1 - terminated)
    np.testing.assert_allclose(generalized_advantage_estimate(*arrays, discount, 0.0), rewards + alive * next_values - values)
    monte_carlo = returns_to_go(rewards, ended, discount, bootstrap=np.where(terminated, 0, next_values))
    np.testing.assert_allclose(generalized_advantage_estimate(*arrays, discount, 1.0), monte_carlo - values, atol=1e-12)
    np.testing.assert_allclose(
        generalized_advantage_estimate(rewards, zero, zero, terminated, ended, discount, 1.0), returns_to_go(rewards, ended, discount), atol=1e-12
    )
    targets = lambda_returns(rewards, next_values, terminated, ended, discount, lam)
    advantage = generalized_advantage_estimate(*arrays, discount, lam)
    np.testing.assert_allclose(targets, advantage + values, atol=1e-12)
    on_policy = vtrace(zero, zero, *arrays, discount, lam)
    np.testing.assert_allclose(on_policy.targets, targets, atol=1e-12)
    # The actor's advantage leaves lambda out of the first link only.
    np.testing.assert_allclose(vtrace(zero, zero, *arrays, discount, 1.0).advantages, monte_carlo - values, atol=1e-12)


@properties
@given(seeds)
def test_episodes_in_one_buffer_do_not_touch(seed):
    """Catalogue, gae, oracle 4: every episode alone gives what it gives in the buffer."""
    rewards, values, next_values, terminated, ended = arrays = steps(seed)
    together = generalized_advantage_estimate(*arrays, 0.9, 0.8)
    for row in range(2):
        cuts = [0, *(np.flatnonzero(ended[row]) + 1), rewards.shape[1]]
        for start, stop in itertools.pairwise(cuts):
            if stop > start:
                alone = generalized_advantage_estimate(*(x[row, start:stop] for x in arrays), 0.9, 0.8)
                np.testing.assert_allclose(together[row, start:stop], alone, atol=1e-12)


@properties
@given(seeds, st.floats(0, 1), st.floats(0.5, 2), st.floats(0.5, 2))
def test_vtrace_is_its_definition(seed, lam, rho_clip, c_clip):
    """The sum over the future of the paper, on one episode."""
    rewards, values, next_values, _, _ = (x[0] for x in steps(seed, time=5))
    rng = np.random.default_rng(seed + 1)
    new, old = rng.normal(size=(2, 5))
    never = np.zeros(5, bool)
    never_but_last = np.arange(5) == 4
    rho, c = np.minimum(rho_clip, np.exp(new - old)), lam * np.minimum(c_clip, np.exp(new - old))
    following = np.append(values[1:], next_values[-1])
    delta = rho * (rewards + 0.9 * following - values)
    expected = [values[s] + sum(0.9 ** (t - s) * np.prod(c[s:t]) * delta[t] for t in range(s, 5)) for s in range(5)]
    given_next = np.append(values[1:], next_values[-1])
    result = vtrace(new, old, rewards, values, given_next, never, never_but_last, 0.9, lam, rho_clip=rho_clip, c_clip=c_clip)
    np.testing.assert_allclose(result.targets, expected, atol=1e-12)
    np.testing.assert_allclose(result.advantages, rho * (rewards + 0.9 * np.append(expected[1:], next_values[-1]) - values), atol=1e-12)


def test_gae_with_exact_values_is_exact_on_average():
    """Catalogue, gae, oracle 3: with V = V^pi, E[A_t | s_t, a_t] = A^pi(s_t, a_t) for every lambda; all paths of a 2-state problem."""
    rng = np.random.default_rng(0)
    horizon, gamma = 4, 0.9
    transition = rng.dirichlet(np.ones(2), size=(2, 2))  # [state, action, next state]
    reward, policy = rng.normal(size=(2, 2)), rng.dirichlet(np.ones(2), size=2)
    v, q = np.zeros((horizon + 1, 2)), np.zeros((horizon, 2, 2))
    for t in reversed(range(horizon)):
        q[t] = reward + gamma * transition @ v[t + 1]
        v[t] = np.sum(policy * q[t], axis=1)
    ended = np.arange(horizon) == horizon - 1
    for lam in (0.0, 0.6, 1.0):
        for state, action in itertools.product(range(2), repeat=2):
            mean = 0.0
            for path in itertools.product(range(2), repeat=2 * (horizon - 1)):
                states, actions = (state, *path[::2]), (action, *path[1::2])
                moves = zip(states, actions, states[1:], actions[1:])
                chance = np.prod([transition[s, a, after] * policy[after, then] for s, a, after, then in moves])
                values = np.array([v[t, s] for t, s in enumerate(states)])
                rewards = np.array([reward[s, a] for s, a in zip(states, actions)])
                mean += chance * generalized_advantage_estimate(rewards, values, np.append(values[1:], 0), ended, ended, gamma, lam)[0]
            assert mean == pytest.approx(q[0, state, action] - v[0, state], abs=1e-12)


def test_returns_bootstrap_where_they_are_cut():
    rewards = np.array([1.0, 2.0, 4.0, 8.0])
    ended = np.array([0.0, 1.0, 0.0, 0.0])
    bootstrap = np.array([np.nan, 10.0, np.nan, 20.0])  # read where an episode ends and behind the last step, and nowhere else
    np.testing.assert_array_equal(returns_to_go(rewards, ended, 0.5, bootstrap=bootstrap), [4.5, 7.0, 13.0, 18.0])
    np.testing.assert_array_equal(returns_to_go(rewards, ended, 0.5), [2.0, 2.0, 8.0, 8.0])


# -- tokens ------------------------------------------------------------------------------------------------------------

VALUES = np.array([[0.5, 0.6, 9.0, -9.0, 0.7, 0.8]])
REWARDS = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
ACTED = np.array([[True, True, False, False, True, True]])


@pytest.mark.parametrize(("tool_tokens", "expected"), [("skip", 0.376), ("zero", 0.280), ("bootstrap", 0.303)])
def test_tool_tokens_as_the_libraries_treat_them(tool_tokens, expected):
    """CONFORMANCE, row 1: lambda 0.95, gamma 1, tool values +-9 at positions 2 and 3; the advantage of the token before them."""
    advantage = token_advantage_estimate(REWARDS, VALUES, ACTED, 1.0, 0.95, tool_tokens=tool_tokens)
    assert advantage[0, 1] == pytest.approx(expected, abs=6e-4)


def test_tool_tokens_make_no_difference_at_lambda_one():
    results = [token_advantage_estimate(REWARDS, VALUES, ACTED, 1.0, 1.0, tool_tokens=t) for t in ("skip", "zero", "bootstrap")]
    np.testing.assert_allclose(results[0], [[0.5, 0.4, 0, 0, 0.3, 0.2]], atol=1e-12)
    np.testing.assert_allclose(results[0], results[1], atol=1e-12)
    np.testing.assert_allclose(results[0], results[2], atol=1e-12)


@properties
@given(seeds, st.floats(0.5, 1), st.floats(0, 1), st.booleans())
def test_skipping_is_gae_of_what_was_acted(seed, discount, lam, cut):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 1, 8))
    mask = rng.random((1, 8)) < 0.6
    bootstrap = rng.normal(size=(1, 1)) if cut else None
    given = token_advantage_estimate(rewards, values, mask, discount, lam, bootstrap=bootstrap)
    n = int(mask.sum())
    if n:
        v, last = values[mask], np.arange(n) == n - 1
        following = np.append(v[1:], bootstrap if cut else 0.0)
        expected = generalized_advantage_estimate(rewards[mask], v, following, last & (not cut), last, discount, lam)
        np.testing.assert_allclose(given[mask], expected, atol=1e-12)
    assert not np.any(given[~mask])


def test_the_score_stands_on_the_last_token_the_model_wrote():
    """Not on the last position; catalogue, ppo_max, (3)."""
    mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    penalty = np.where(mask == 1, 0.25, np.nan)
    expected = [[-0.25, -0.25, 0, 1.75, 0], [2.75, 0, 0, 0, 0]]
    np.testing.assert_array_equal(token_rewards(np.array([[2.0], [3.0]]), penalty, mask), expected)


# -- layouts -----------------------------------------------------------------------------------------------------------


def in_layouts(rng, sequences):
    """The same sequences (each (features, length)) padded, packed in two rows, and concatenated: arrays, mask, ids, and a way back."""
    features, lengths = sequences[0].shape[0], [s.shape[1] for s in sequences]
    width = max(lengths) + 2
    padded = np.full((features, len(sequences), width), np.nan)
    mask = np.zeros((len(sequences), width))
    for i, s in enumerate(sequences):
        padded[:, i, : s.shape[1]] = s
        mask[i, : s.shape[1]] = 1
    yield padded, mask, None, lambda x: [x[i, :n] for i, n in enumerate(lengths)]

    half = len(sequences) // 2
    rows = [sequences[:half], sequences[half:]]
    width = max(sum(s.shape[1] for s in row) for row in rows) + 3
    packed, mask, ids = np.full((features, 2, width), np.nan), np.zeros((2, width)), np.full((2, width), -1)
    places = []
    for r, row in enumerate(rows):
        at = 1  # packing may leave a gap, at the start too
        for k, s in enumerate(row):
            packed[:, r, at : at + s.shape[1]], mask[r, at : at + s.shape[1]], ids[r, at : at + s.shape[1]] = s, 1, k
            places.append((r, slice(at, at + s.shape[1])))
            at += s.shape[1]
    yield packed, mask, ids, lambda x: [x[p] for p in places]

    joined = np.concatenate(sequences, axis=1)
    ids = layout.ids_from_lengths(np.array(lengths), joined.shape[1])
    yield joined, np.ones(joined.shape[1]), ids, lambda x: np.split(x, np.cumsum(lengths)[:-1])


def through_layouts(seed, function):
    """What `function(features, mask, segment_ids)` gives for each sequence, in the three layouts. Some tokens are a tool's."""
    rng = np.random.default_rng(seed)
    sequences = [rng.normal(size=(4, n)) for n in rng.integers(1, 6, size=4)]
    wrote = [rng.random(s.shape[1]) < 0.7 for s in sequences]
    for s, w in zip(sequences, wrote):
        w[rng.integers(len(w))] = True
        s[3] = np.where(w, 1, 0)  # the last feature tells where the model acted
    for features, mask, ids, back in in_layouts(rng, sequences):
        mask = mask * np.nan_to_num(features[3])
        yield back, function(features[:3], mask, ids)


def assert_same_in_all_layouts(seed, function):
    results = [np.concatenate(back(result)) for back, result in through_layouts(seed, function)]
    np.testing.assert_allclose(results[1], results[0], atol=1e-12)
    np.testing.assert_allclose(results[2], results[0], atol=1e-12)


@properties
@given(seeds, st.sampled_from(["skip", "zero", "bootstrap"]))
def test_token_advantages_in_all_layouts(seed, tool_tokens):
    def function(x, mask, ids):
        # A tool token's value is read by `bootstrap`, so there it must be a number.
        rewards, values = np.nan_to_num(x[0]), np.nan_to_num(x[1])
        return token_advantage_estimate(rewards, values, mask, 0.9, 0.8, segment_ids=ids, tool_tokens=tool_tokens)

    assert_same_in_all_layouts(seed, function)


@properties
@given(seeds)
def test_everything_of_the_sequence_in_all_layouts(seed):
    def of_each(x, ids):
        """A number per sequence, at all its tokens: the sum of a feature."""
        return np.broadcast_to(layout.sequence_sum(np.nan_to_num(x), ids), x.shape)

    functions = [
        lambda x, m, i: token_rewards(of_each(x[0], i), x[1], m, segment_ids=i),
        lambda x, m, i: surrogates.gspo(x[0], x[1], of_each(x[2], i), 0.1, mask=m, segment_ids=i) * m,
        lambda x, m, i: surrogates.gspo_token(x[0], x[1], x[2], 0.1, mask=m, segment_ids=i),
        lambda x, m, i: surrogates.topr(x[0], x[1], x[2], mask=m, segment_ids=i),
    ]
    for function in functions:
        assert_same_in_all_layouts(seed, function)
    for mode in ("token", "sequence", "constant"):
        scale = 5.0 if mode == "constant" else None
        totals = [total for _, total in through_layouts(seed, lambda x, m, i: reduction.reduce(x[0], m, mode, scale=scale, segment_ids=i))]
        np.testing.assert_allclose(totals, totals[0], atol=1e-12)


# -- groups ------------------------------------------------------------------------------------------------------------


def test_groups_on_one_success_in_four():
    """Catalogue, reasoning, binary reward facts."""
    rewards, ids = np.array([1.0, 0, 0, 0]), np.zeros(4, int)
    np.testing.assert_allclose(group_relative(rewards, ids, epsilon=0.0), [3**0.5, *[-(3**-0.5)] * 3])
    np.testing.assert_allclose(group_relative(rewards, ids, ddof=1, epsilon=0.0), [1.5, -0.5, -0.5, -0.5])
    np.testing.assert_allclose(group_relative(rewards, ids, scale="none"), [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(leave_one_out(rewards, ids), [1, -1 / 3, -1 / 3, -1 / 3])


def test_a_pair_and_the_degrees_of_freedom():
    """CONFORMANCE: ddof 0 or 1; a pair gets +-1 or +-0.707."""
    rewards, ids = np.array([1.0, 0.0]), np.zeros(2, int)
    np.testing.assert_allclose(group_relative(rewards, ids, epsilon=0.0), [1, -1])
    np.testing.assert_allclose(group_relative(rewards, ids, ddof=1, epsilon=0.0), [2**-0.5, -(2**-0.5)])
    for epsilon in (1e-4, 1e-6, 1e-9):
        np.testing.assert_allclose(group_relative(rewards, ids, epsilon=epsilon)[0], 0.5 / (0.5 + epsilon), rtol=1e-14)


def test_scale_of_the_batch():
    """Catalogue, tricks_or_traps, oracle 1: Lite PPO against GRPO."""
    rewards, ids = np.array([1.0, 0.0, 1.0, 0.99]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(group_relative(rewards, ids, scale="batch", epsilon=0.0), [1.414, -1.414, 0.01414, -0.01414], rtol=1e-3)
    np.testing.assert_allclose(group_relative(rewards, ids, epsilon=0.0), [1, -1, 1, -1], rtol=1e-9)


def test_the_batchs_deviation_of_the_rewards_themselves():
    """TRL's scale_rewards="batch": 1, 0, 11, 10 have deviation 5.0249 and within their groups 0.5."""
    rewards, ids = np.array([1.0, 0.0, 11.0, 10.0]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(group_relative(rewards, ids, scale="batch", epsilon=0.0), [1, -1, 1, -1])
    np.testing.assert_allclose(group_relative(rewards, ids, scale="uncentred_batch", epsilon=0.0), np.array([0.5, -0.5, 0.5, -0.5]) / 25.25**0.5)


def test_length_weighted_baseline():
    """Catalogue, opo, oracles 1 to 4."""
    ids = np.zeros(2, int)
    rewards, lengths = np.array([1.0, 0.0]), np.array([10, 30])
    advantage = length_weighted(rewards, lengths, ids)
    np.testing.assert_allclose(advantage, [0.75, -0.25])
    assert abs(np.sum(lengths * advantage)) < 1e-15
    np.testing.assert_allclose(length_weighted(rewards, np.array([7, 7]), ids), [0.5, -0.5])
    np.testing.assert_array_equal(length_weighted(np.array([0.3, 0.3]), lengths, ids), [0, 0])


@pytest.mark.parametrize(
    "function", [group_relative, leave_one_out, lambda r, g, **k: length_weighted(r, np.arange(1, len(r) + 1), g, **k)], ids=["grpo", "rloo", "opo"]
)
def test_a_group_of_one(function):
    """CONFORMANCE: 0 here, the raw reward elsewhere, and their number for the metrics."""
    rewards, ids = np.array([1.0, 0.0, 5.0, -3.0]), np.array([4, 4, 9, -1])
    assert list(function(rewards, ids)[2:]) == [0, 0]
    assert list(function(rewards, ids, group_of_one="raw")[2:]) == [5, -3]
    np.testing.assert_array_equal(function(rewards, ids)[:2], function(rewards, ids, group_of_one="raw")[:2])
    assert groups_of_one(ids) == 2
    assert groups_of_one(ids, mask=np.array([1, 0, 1, 0])) == 2  # the pair is one now, and one is gone


@properties
@given(seeds, st.sampled_from([np.float32, np.float64]), st.sampled_from(["group", "batch"]))
def test_equal_rewards_get_exactly_nothing(seed, dtype, scale):
    """With a small epsilon the rounding error of a mean would become an advantage of order 1."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 3, size=17)
    rewards = rng.normal(size=3).astype(dtype)[ids]
    assert not np.any(group_relative(rewards, ids, epsilon=1e-9, scale=scale))
    assert not np.any(leave_one_out(rewards, ids))
    assert not np.any(reduction.standardise(np.full(17, rewards[0]), epsilon=1e-9))


@properties
@given(seeds)
def test_groups_are_told_by_ids_alone(seed):
    """Against a loop over groups; any size, any order, any numbers for ids; left out means left out."""
    rng = np.random.default_rng(seed)
    ids = rng.choice([-7, 0, 3, 1000], size=15)
    rewards, lengths, mask = rng.normal(size=15), rng.integers(1, 9, size=15), rng.random(15) < 0.8
    hidden = np.where(mask, rewards, np.nan)
    expected = {name: np.zeros(15) for name in ("grpo", "rloo", "opo")}
    singles = 0
    for g in set(ids):
        i = np.flatnonzero((ids == g) & mask)
        r, t = rewards[i], lengths[i]
        singles += len(i) == 1
        if len(i) > 1:
            expected["grpo"][i] = (r - r.mean()) / (r.std(ddof=1) + 1e-4)
            expected["rloo"][i] = [r[k] - np.delete(r, k).mean() for k in range(len(i))]
            expected["opo"][i] = r - np.sum(t * r) / np.sum(t)
    np.testing.assert_allclose(group_relative(hidden, ids, ddof=1, epsilon=1e-4, mask=mask), expected["grpo"], atol=1e-12)
    np.testing.assert_allclose(leave_one_out(hidden, ids, mask=mask), expected["rloo"], atol=1e-12)
    np.testing.assert_allclose(length_weighted(hidden, lengths, ids, mask=mask), expected["opo"], atol=1e-12)
    assert groups_of_one(ids, mask=mask) == singles


def test_expected_gradients_of_group_advantages():
    """All outcomes of a group of three on a four-armed bandit: leave-one-out is unbiased, the group's mean shrinks by (G - 1) / G."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=4), requires_grad=True)
    reward = rng.normal(size=4)
    probability = torch.softmax(logits, 0)
    exact = torch.autograd.grad(torch.sum(probability * torch.tensor(reward)), logits)[0].numpy()
    p, size = probability.detach().numpy(), 3

    def expected_gradient(advantage):
        total = np.zeros(4)
        for arms in itertools.product(range(4), repeat=size):
            a = advantage(reward[list(arms)], np.zeros(size, int))
            total += np.prod(p[list(arms)]) * sum(a[k] * (np.eye(4)[arm] - p) for k, arm in enumerate(arms)) / size
        return total

    np.testing.assert_allclose(expected_gradient(leave_one_out), exact, atol=1e-14)
    np.testing.assert_allclose(expected_gradient(lambda r, g: group_relative(r, g, scale="none")), exact * (size - 1) / size, atol=1e-14)
    np.testing.assert_allclose(
        expected_gradient(lambda r, g: length_weighted(r, np.full(size, 5), g)), exact * (size - 1) / size, atol=1e-14
    )  # equal lengths: the group's mean


def test_refusals():
    with pytest.raises(ValueError, match=r"values \(2, 4\).*must match"):
        generalized_advantage_estimate(np.ones((2, 3)), np.ones((2, 4)), *[np.ones((2, 3))] * 3, 1.0, 1.0)
    with pytest.raises(ValueError, match="tool_tokens='drop'.*'skip'"):
        token_advantage_estimate(REWARDS, VALUES, ACTED, 1.0, 1.0, tool_tokens="drop")
    with pytest.raises(ValueError, match="scale='std'.*'group'"):
        group_relative(np.ones(2), np.ones(2, int), scale="std")
    with pytest.raises(ValueError, match="group_of_one='drop'"):
        group_relative(np.ones(2), np.ones(2, int), group_of_one="drop")
    with pytest.raises(ValueError, match="one per completion"):
        leave_one_out(np.ones((2, 2)), np.ones((2, 2), int))
