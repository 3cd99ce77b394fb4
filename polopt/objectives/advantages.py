"""Advantages and returns: how credit for rewards is given to actions.

Conventions. Steps of an environment: arrays of one shape with time along `axis` (last unless said). `terminated` marks a step after which
the problem is over and the future is worth 0; `ended` marks the last step of an episode for any reason (termination, time limit, end of
the segment), behind which no credit flows. Both are bool or float. `next_values[t]` is the value of the observation that truly followed
step t, before any reset, so values bootstrap through a time limit.

Tokens: (batch, time) with a `mask`, 1 where the model acted, 0 on padding and on tokens that a tool wrote; `segment_ids` for packed or
concatenated sequences. What is masked never matters, NaN included, and gets advantage 0.

Groups: one reward per completion (batch,), and `group_ids` (batch,) of any integers in any order; groups may have any size.

Nothing here stops gradients: the surrogates do. Advantages are higher-is-better.
"""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from polopt.objectives.backend import (
    Array,
    as_weights,
    check_choice,
    check_shapes,
    group_index,
    group_sum,
    reverse_recurrence,
    safe_divide,
    safe_sqrt,
    zero_masked,
)
from polopt.objectives.layout import last_positions

# -- steps of an environment -------------------------------------------------------------------------------------------


def generalized_advantage_estimate(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    ended: Array,
    discount: float,
    lam: float,
    *,
    axis: int = -1,
) -> Array:
    """GAE (arXiv 1506.02438): an exponential mixture of k-step advantages.

        delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - ended_t) A_{t+1},     A = 0 behind the last position

    lam = 0 gives delta (biased by V's error), lam = 1 the discounted return minus V. The critic's target is A + V. Brax's estimator leaves
    lambda out of the first link and is another one: r_t + gamma (1 - terminated_t) v_{t+1} - V_t with v the `lambda_returns`.

    All arrays have one shape, time along `axis`.
    """
    check_shapes("generalized_advantage_estimate", rewards=rewards, values=values, next_values=next_values, terminated=terminated, ended=ended)
    xp = array_namespace(rewards, values, next_values, terminated, ended)
    delta = rewards + discount * (1 - xp.astype(terminated, values.dtype)) * next_values - values
    return reverse_recurrence(discount * lam * (1 - xp.astype(ended, values.dtype)), delta, axis=axis)


def returns_to_go(
    rewards: Array,
    ended: Array,
    discount: float,
    *,
    bootstrap: Array | None = None,
    axis: int = -1,
) -> Array:
    """Discounted sum of the rewards from t to the end of the episode (REINFORCE, Williams, 1992).

        G_t = r_t + gamma G_{t+1}       inside an episode
        G_t = r_t + gamma bootstrap_t   where ended_t is 1, and at the last position of the array

    Args:
        rewards, ended: of one shape.
        bootstrap: of rewards' shape, the value of what follows step t; read only where `ended` is 1 and at the last position. Give 0
            where the episode terminated, V(s_{t+1}) where it was cut. None is 0 everywhere.
    """
    check_shapes("returns_to_go", rewards=rewards, ended=ended, bootstrap=bootstrap)
    xp = array_namespace(rewards, ended, bootstrap)
    going = (1 - xp.astype(ended, rewards.dtype)) * _before_last(rewards, axis)
    if bootstrap is not None:
        (bootstrap,) = zero_masked(going == 0, bootstrap)
        rewards = rewards + discount * bootstrap
    return reverse_recurrence(discount * going, rewards, axis=axis)


def lambda_returns(
    rewards: Array,
    next_values: Array,
    terminated: Array,
    ended: Array,
    discount: float,
    lam: float,
    *,
    axis: int = -1,
) -> Array:
    """TD(lambda)'s target, the exponential mixture of k-step returns (Sutton, 1988).

        G_t = r_t + gamma (1 - terminated_t) [ (1 - lambda) V(s_{t+1}) + lambda G_{t+1} ],    with V(s_{t+1}) for G_{t+1} where ended_t is 1

    and at the last position. With values that agree, V(s_t) = next_values[t - 1] inside an episode, it is GAE + V.
    """
    check_shapes("lambda_returns", rewards=rewards, next_values=next_values, terminated=terminated, ended=ended)
    xp = array_namespace(rewards, next_values, terminated, ended)
    mix = lam * (1 - xp.astype(ended, next_values.dtype)) * _before_last(rewards, axis)
    alive = discount * (1 - xp.astype(terminated, next_values.dtype))
    return reverse_recurrence(alive * mix, rewards + alive * (1 - mix) * next_values, axis=axis)


class VTrace(NamedTuple):
    targets: Array
    """v_t, for the critic."""
    advantages: Array
    """rho_t (r_t + gamma v_{t+1} - V_t), for -A log pi."""


def vtrace(
    log_prob: Array,
    behaviour_log_prob: Array,
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    ended: Array,
    discount: float,
    lam: float = 1.0,
    *,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    axis: int = -1,
) -> VTrace:
    """V-trace (IMPALA, arXiv 1802.01561): lambda-returns of pi from data of another policy mu.

        rho_t = min(rho_clip, pi / mu),   c_t = lambda min(c_clip, pi / mu)
        delta_t = rho_t ( r_t + gamma (1 - terminated_t) V(s_{t+1}) - V_t )
        v_t - V_t = delta_t + gamma (1 - ended_t) c_t ( v_{t+1} - V_{t+1} )
        A_t = rho_t ( r_t + gamma (1 - terminated_t) v_{t+1} - V_t ),    with V(s_{t+1}) for v_{t+1} where ended_t is 1, and at the last position

    On data of pi itself v is `lambda_returns`, and A is GAE without lambda on the first link.
    """
    steps = {"rewards": rewards, "values": values, "next_values": next_values, "terminated": terminated, "ended": ended}
    check_shapes("vtrace", log_prob=log_prob, behaviour_log_prob=behaviour_log_prob, **steps)
    xp = array_namespace(log_prob, behaviour_log_prob, *steps.values())
    ratio = xp.exp(log_prob - behaviour_log_prob)
    rho, c = xp.clip(ratio, max=rho_clip), lam * xp.clip(ratio, max=c_clip)
    alive = discount * (1 - xp.astype(terminated, values.dtype))
    going = (1 - xp.astype(ended, values.dtype)) * _before_last(values, axis)
    delta = rho * (rewards + alive * next_values - values)
    targets = values + reverse_recurrence(discount * going * c, delta, axis=axis)
    following = xp.where(going > 0, xp.roll(targets, -1, axis=axis), next_values)
    return VTrace(targets, rho * (rewards + alive * following - values))


def _before_last(x: Array, axis: int) -> Array:
    """1 along `axis` and 0 at its last position, in x's dtype and in a shape that broadcasts with x."""
    xp = array_namespace(x)
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return xp.reshape(xp.astype(xp.arange(x.shape[axis]) < x.shape[axis] - 1, x.dtype), tuple(shape))


# -- tokens ------------------------------------------------------------------------------------------------------------


def token_rewards(score: Array, penalty: Array, mask: Array, *, segment_ids: Array | None = None) -> Array:
    """A reward per token from a score per sequence: -penalty at every token, plus the score at the last token that the model wrote.

    The reward of RLHF's PPO (arXiv 1909.08593), RLOO and REINFORCE++, whose penalty is beta (log pi_old - log pi_ref), k1 of the sampler.

    Args:
        score: per sequence, as (batch, 1); or (batch, time) with the sequence's score at all its tokens, as packed rows need it.
        penalty, mask: (batch, time).
    """
    check_shapes("token_rewards", score=score, penalty=penalty, mask=mask, segment_ids=segment_ids)
    xp = array_namespace(score, penalty, mask)
    (penalty,) = zero_masked(mask, penalty)
    acted = as_weights(mask, penalty)
    last = acted * (1 - _acts_later(acted, segment_ids))
    (score,) = zero_masked(last, xp.broadcast_to(score, penalty.shape))
    return score - penalty


def token_advantage_estimate(
    rewards: Array,
    values: Array,
    mask: Array,
    discount: float,
    lam: float,
    *,
    bootstrap: Array | None = None,
    segment_ids: Array | None = None,
    tool_tokens: str = "skip",
) -> Array:
    """GAE (arXiv 1506.02438) over the tokens that the model wrote; 0 at the others.

    Between the tokens of a sequence there may be tokens that a tool or the environment wrote (mask 0). Their values are nobody's
    prediction, and libraries differ in what they do there. With lam = 1 all agree. `tool_tokens`:

        skip        credit flows from acted token to acted token: the next value and advantage of a token are those of the next acted one,
                    gamma and lambda count acted tokens, and what stands at tool tokens is not read (verl, AReaL, Tunix)
        zero        tool tokens are steps of value and reward 0, and so break the chain (OpenRLHF)
        bootstrap   tool tokens are steps like others, with their values and rewards as given (SkyRL, slime, ROLL)

    Args:
        rewards, values, mask: (batch, time).
        bootstrap: value of what follows the last acted token of a sequence, for a completion that was cut: (batch, 1), or (batch, time)
            constant over each sequence. None is 0.
        segment_ids: (batch, time), for packed or concatenated sequences.

    Padding behind the last acted token is never read, in any form.
    """
    check_choice("token_advantage_estimate", "tool_tokens", tool_tokens, ("skip", "zero", "bootstrap"))
    check_shapes("token_advantage_estimate", rewards=rewards, values=values, mask=mask, bootstrap=bootstrap, segment_ids=segment_ids)
    xp = array_namespace(rewards, values, mask)
    acted = as_weights(mask, values)
    ends = xp.astype(last_positions(values, segment_ids), values.dtype)
    beyond = 0 if bootstrap is None else bootstrap
    if tool_tokens == "skip":
        rewards, values = zero_masked(mask, rewards, values)
        handed_on = (1 - ends) * (1 - acted)
        following = reverse_recurrence(handed_on, acted * values + ends * (1 - acted) * beyond)
        next_values = (1 - ends) * _shift_back(following) + ends * beyond
        return acted * reverse_recurrence(handed_on + (1 - ends) * acted * discount * lam, acted * (rewards + discount * next_values - values))
    later = _acts_later(acted, segment_ids)
    step = xp.maximum(acted, later)
    rewards, values = zero_masked(step if tool_tokens == "bootstrap" else mask, rewards, values)
    next_values = later * _shift_back(values) + (1 - later) * beyond
    delta = step * (rewards + discount * next_values - values)
    return zero_masked(mask, reverse_recurrence(discount * lam * later, delta))[0]


def _acts_later(acted: Array, segment_ids: Array | None) -> Array:
    """1 where a later token of the same sequence is acted, else 0."""
    xp = array_namespace(acted)
    inside = 1 - xp.astype(last_positions(acted, segment_ids), acted.dtype)
    return inside * _shift_back(reverse_recurrence(inside * (1 - acted), acted))


def _shift_back(x: Array) -> Array:
    """x_{t+1} at t, 0 at the last position."""
    xp = array_namespace(x)
    return xp.concat([x[..., 1:], xp.zeros_like(x[..., :1])], axis=-1)


# -- groups of completions ---------------------------------------------------------------------------------------------


def group_relative(
    rewards: Array,
    group_ids: Array,
    *,
    scale: str = "group",
    ddof: int = 0,
    epsilon: float = 1e-6,
    group_of_one: str = "zero",
    mask: Array | None = None,
) -> Array:
    """(r_i - mean of the group) / (std + epsilon), the advantage of GRPO (arXiv 2402.03300).

    Args:
        rewards: (batch,), one per completion.
        group_ids: (batch,), which prompt each completion answers.
        scale: 'group' divides by the group's deviation (GRPO); 'batch' by that of the centred rewards of all completions (Lite PPO, arXiv
            2508.08221); 'uncentred_batch' by that of the rewards themselves of all completions, differences between groups included (TRL's
            scale_rewards="batch"); 'none' not at all (Dr. GRPO, arXiv 2503.20783). `reduction.standardise` of the latter over all tokens is
            REINFORCE++-baseline (arXiv 2501.03262).
        ddof: std = sqrt( sum (r - mean)^2 / (n - ddof) ), where there is a scale. Libraries have 0 or 1: a pair gets +-1 or +-0.707.
        epsilon: added to the deviation. Libraries have 1e-4, 1e-6, 1e-9.
        group_of_one: 'zero', or 'raw' for the reward itself, which some libraries give.
        mask: (batch,), 0 for completions that are left out of every statistic; they get 0.

    A group whose rewards are all equal gets exactly 0.
    """
    check_choice("group_relative", "scale", scale, ("group", "batch", "uncentred_batch", "none"))
    rewards, weight, index = _grouped("group_relative", rewards, group_ids, mask)
    size = group_sum(weight, index)
    centred = (rewards - _group_mean(rewards, weight, index)) * weight
    if scale == "none":
        advantage = centred
    else:
        xp = array_namespace(centred)
        n = size if scale == "group" else xp.sum(weight)
        spread = (rewards - safe_divide(xp.sum(rewards * weight), n)) * weight if scale == "uncentred_batch" else centred
        total = group_sum(spread**2, index) if scale == "group" else xp.sum(spread**2)
        advantage = safe_divide(centred, safe_sqrt(safe_divide(total, n - ddof)) + epsilon)
    return _with_singles(advantage, rewards, size, group_of_one)


def leave_one_out(rewards: Array, group_ids: Array, *, group_of_one: str = "zero", mask: Array | None = None) -> Array:
    """r_i - mean of the others in the group, the advantage of RLOO (arXiv 2402.14740). Arguments as in `group_relative`."""
    rewards, weight, index = _grouped("leave_one_out", rewards, group_ids, mask)
    size = group_sum(weight, index)
    centred = (rewards - _group_mean(rewards, weight, index)) * weight
    return _with_singles(safe_divide(size * centred, size - 1), rewards, size, group_of_one)


def length_weighted(rewards: Array, lengths: Array, group_ids: Array, *, group_of_one: str = "zero", mask: Array | None = None) -> Array:
    """r_i - sum_j T_j r_j / sum_j T_j over the group, the optimal baseline of OPO (arXiv 2505.23585).

    It minimises the variance of the policy gradient when a completion's score has a squared norm proportional to its length T_i, and
    belongs with token sums: `reduce` in mode 'constant'.

    Args:
        lengths: (batch,), tokens that the model wrote, the end token included.
    """
    check_shapes("length_weighted", rewards=rewards, lengths=lengths)
    rewards, weight, index = _grouped("length_weighted", rewards, group_ids, mask)
    (lengths,) = zero_masked(mask, array_namespace(rewards).astype(lengths, rewards.dtype))
    size = group_sum(weight, index)
    return _with_singles((rewards - _group_mean(rewards, lengths, index)) * weight, rewards, size, group_of_one)


def groups_of_one(group_ids: Array, *, mask: Array | None = None) -> Array:
    """How many groups have a single completion, and so say nothing: a metric. group_ids, mask: (batch,)."""
    xp = array_namespace(group_ids)
    there = xp.ones_like(group_ids) if mask is None else xp.astype(mask, group_ids.dtype)
    return xp.sum(there * xp.astype(group_sum(there, group_index(group_ids)) == 1, group_ids.dtype))


def _grouped(function: str, rewards: Array, group_ids: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Rewards with 0 where masked, the weight of each, and the index of its group."""
    check_shapes(function, rewards=rewards, group_ids=group_ids, mask=mask)
    if rewards.ndim != 1:
        raise ValueError(f"{function} got rewards of shape {tuple(rewards.shape)}, but takes one per completion, (batch,): flatten them first.")
    (rewards,) = zero_masked(mask, rewards)
    return rewards, as_weights(mask, rewards), group_index(group_ids)


def _group_mean(x: Array, weight: Array, index: Array) -> Array:
    """Weighted mean over the group of each element."""
    total = group_sum(weight, index)
    mean = safe_divide(group_sum(weight * x, index), total)
    # The rounding error of the first mean, which 1/epsilon would blow up in a group of equal rewards.
    return mean + safe_divide(group_sum(weight * (x - mean), index), total)


def _with_singles(advantage: Array, rewards: Array, size: Array, group_of_one: str) -> Array:
    check_choice("the group advantage", "group_of_one", group_of_one, ("zero", "raw"))
    xp = array_namespace(advantage)
    return xp.where(size == 1, xp.zeros_like(rewards) if group_of_one == "zero" else rewards, advantage)
