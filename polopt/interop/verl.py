"""verl: our advantage estimators and policy losses, selectable by name in its configuration.

`pip install polopt[verl]` is enough: verl loads what stands in the entry-point group `verl.plugins`, in the driver and in every worker.

    algorithm.adv_estimator=polopt_rloo
    actor_rollout_ref.actor.policy_loss.loss_mode=polopt_spo

Arguments of an estimator are given as `+algorithm.polopt.epsilon=1e-4`. verl's configuration of a policy loss refuses names it does not
know, so that arguments of a loss need ours in its place:

    actor_rollout_ref.actor.policy_loss._target_=polopt.interop.verl.PolicyLoss
    +actor_rollout_ref.actor.policy_loss.arguments.width=0.3

Widths of a clip are verl's `clip_ratio`, `clip_ratio_low` and `clip_ratio_high` unless given so. The conventions are ours: no dual clip
unless `dual` is given, deviations with ddof 0, nothing for a group of one. `polopt.interop.presets.as_verl` has verl's.

`register_advantage` and `register_surrogate` do the same for functions of your own, from a module named in VERL_USE_EXTERNAL_MODULES.
verl hands the critic's values to its own GAE alone, so there is no estimator with a critic here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss
from verl.workers.config import PolicyLossConfig

from polopt.interop.arguments import check_arguments, takes
from polopt.objectives import advantages, divergences, reduction, surrogates

ADVANTAGE_ARGUMENT = "+algorithm.polopt.NAME=VALUE"
SURROGATE_ARGUMENT = (
    "actor_rollout_ref.actor.policy_loss._target_=polopt.interop.verl.PolicyLoss +actor_rollout_ref.actor.policy_loss.arguments.NAME=VALUE"
)


@dataclass
class PolicyLoss(PolicyLossConfig):
    """verl's configuration of a policy loss, with arguments for one of ours."""

    arguments: dict[str, Any] = field(default_factory=dict)


# -- advantages --------------------------------------------------------------------------------------------------------


def register_advantage(name: str, function: Callable, **arguments: Any) -> None:
    """Make `function(rewards, group_ids, ...)` -> (batch,) selectable as `algorithm.adv_estimator=name`.

    It is called with those of `rewards`, `group_ids` and `lengths`, the tokens that the model wrote, that it takes, each (batch,). Its
    value is given to every token of a completion.
    """
    function = partial(function, **arguments)
    ours = ("rewards", "group_ids", "lengths", "mask")

    def estimate(token_level_rewards, response_mask, index=None, config=None, **_):
        given = _given(config, "polopt")
        check_arguments(name, function, given, ours, ADVANTAGE_ARGUMENT)
        known = {"group_ids": _group_ids(name, index, token_level_rewards.device), "lengths": response_mask.sum(dim=-1)}
        passed = {k: x for k, x in known.items() if takes(function, k)}
        per_token = function(rewards=token_level_rewards.sum(dim=-1), **passed, **given)[:, None] * response_mask
        return per_token, per_token

    _register_estimator(name, estimate)


def _register_estimator(name: str, estimate: Callable) -> None:
    register_adv_est(name)(torch.no_grad()(estimate))


def _group_ids(name: str, index: Any, device: torch.device) -> torch.Tensor:
    if index is None:
        raise ValueError(f"{name} compares the completions of a prompt, but the batch has no 'uid' that says which belong together.")
    return torch.as_tensor(np.unique(np.asarray(index), return_inverse=True)[1].reshape(-1), device=device)


def _given(config: Any, key: str) -> dict[str, Any]:
    """The user's arguments, of a DictConfig or one of verl's dataclasses."""
    given = None if config is None else config.get(key, None)
    return dict(given) if isinstance(given, Mapping) else {}


def _reinforce_plus_plus(token_level_rewards, response_mask, config=None, **_):
    """Returns over the tokens that the model wrote, standardised over all of them."""
    given = _given(config, "polopt")
    check_arguments("polopt_reinforce_plus_plus", reduction.standardise, given, ("x", "mask"), ADVANTAGE_ARGUMENT)
    discount = 1.0 if config is None else config.get("gamma", 1.0)
    returns = advantages.token_advantage_estimate(token_level_rewards, torch.zeros_like(token_level_rewards), response_mask, discount, 1.0)
    return reduction.standardise(returns, response_mask, **given), returns


def _reinforce_plus_plus_baseline(token_level_rewards, response_mask, index=None, config=None, **_):
    """Rewards minus the group's mean, standardised over all tokens."""
    name = "polopt_reinforce_plus_plus_baseline"
    given = _given(config, "polopt")
    check_arguments(name, reduction.standardise, given, ("x", "mask"), ADVANTAGE_ARGUMENT)
    ids = _group_ids(name, index, token_level_rewards.device)
    centred = advantages.group_relative(token_level_rewards.sum(dim=-1), ids, scale="none")
    advantage = reduction.standardise(centred[:, None], response_mask, **given)
    return advantage, advantage


# -- policy losses -----------------------------------------------------------------------------------------------------


def register_surrogate(name: str, function: Callable, *, from_config: Mapping[str, str] | None = None, **arguments: Any) -> None:
    """Make `function(log_prob, old_log_prob, advantage, *, mask)`, the loss of each token, selectable as `policy_loss.loss_mode=name`.

    arguments:   what it is called with besides.
    from_config: arguments that have the value of a field of verl's actor configuration, by that field's name.
    """
    function = partial(function, **arguments)
    from_config = dict(from_config or {})
    ours = ("log_prob", "old_log_prob", "advantage", "mask", "segment_ids", "kl")

    def loss(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None, rollout_is_weights=None):
        if config is None:
            raise ValueError(f"{name} needs verl's actor configuration as config, but got None.")
        known = {k: _field(config, name) for k, name in from_config.items()}
        given = {**known, **_given(config.policy_loss, "arguments")}
        check_arguments(name, function, given, ours, SURROGATE_ARGUMENT)
        old = {"old_log_prob": old_log_prob} if takes(function, "old_log_prob") else {}
        losses = function(log_prob=log_prob, **old, advantage=advantages, mask=response_mask, **given)
        if rollout_is_weights is not None:
            losses = losses * torch.where(response_mask.bool(), rollout_is_weights, 0.0)
        total = agg_loss(loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
        return total, _metrics(log_prob.detach(), old_log_prob, response_mask)

    register_policy_loss(name)(loss)


def _field(config: Any, name: str) -> Any:
    """A width of verl's configuration; the sides of the clip are `clip_ratio` where they are null."""
    value = config.get(name, None)
    return config.clip_ratio if value is None and name.startswith("clip_ratio_") else value


def _metrics(log_prob: torch.Tensor, old_log_prob: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    def mean(x):
        return float(reduction.reduce(x, mask, "token"))

    ratio = torch.exp(log_prob - old_log_prob)
    return {"actor/ppo_kl": mean(divergences.k1(old_log_prob, log_prob, mask=mask)), "actor/ratio_deviation": mean(torch.abs(ratio - 1))}


# -- what is registered ------------------------------------------------------------------------------------------------

CLIP = {"low": "clip_ratio_low", "high": "clip_ratio_high"}

register_advantage("polopt_grpo", advantages.group_relative)
register_advantage("polopt_dr_grpo", advantages.group_relative, scale="none")
register_advantage("polopt_lite_ppo", advantages.group_relative, scale="batch")
register_advantage("polopt_rloo", advantages.leave_one_out)
register_advantage("polopt_opo", advantages.length_weighted)
_register_estimator("polopt_reinforce_plus_plus", _reinforce_plus_plus)
_register_estimator("polopt_reinforce_plus_plus_baseline", _reinforce_plus_plus_baseline)

register_surrogate("polopt_policy_gradient", surrogates.policy_gradient)
register_surrogate("polopt_importance_weighted", surrogates.importance_weighted)
register_surrogate("polopt_clipped", surrogates.clipped, from_config=CLIP)
register_surrogate("polopt_gspo", surrogates.gspo, from_config=CLIP)
register_surrogate("polopt_gspo_token", surrogates.gspo_token, from_config=CLIP)
register_surrogate("polopt_cispo", surrogates.cispo, from_config={"high": "clip_ratio_high"})
register_surrogate("polopt_topr", surrogates.topr)
register_surrogate("polopt_spo", surrogates.spo, from_config={"width": "clip_ratio"})
register_surrogate("polopt_mdpo", surrogates.mdpo)
