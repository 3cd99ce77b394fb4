"""The arguments with which our functions give the numbers of verl 0.9 and of TRL 1.16.

Both presets are tables by the name of the library's option and of its value. An entry is the function of `polopt.objectives` with its
arguments bound (`functools.partial`): call it, call it with others of the library's settings in their place, or read `.keywords`.

    as_verl["loss_mode"]["vanilla"](log_prob, old_log_prob, advantage, mask=mask)
    as_verl["loss_mode"]["vanilla"](log_prob, old_log_prob, advantage, high=0.28, mask=mask)       # clip_ratio_high=0.28
    as_trl["loss_type"]["dapo"].keywords                                                           # {'low': 0.2, 'high': 0.2}

The numbers bound are the libraries' defaults. What remains different is said beside the entry. Nothing but `polopt.objectives` is
imported; the tests compare with the libraries' own functions where those are installed.
"""

from __future__ import annotations

from functools import partial

from polopt.objectives import advantages, divergences, preferences, reduction, surrogates, values

as_verl = {
    # algorithm.adv_estimator: (rewards, group_ids) -> (batch,). verl then multiplies by the mask.
    "adv_estimator": {
        # Of a group of one verl gives r / (1 + 1e-6).
        "grpo": partial(advantages.group_relative, ddof=1, epsilon=1e-6, group_of_one="raw"),
        "grpo_vectorized": partial(advantages.group_relative, ddof=1, epsilon=1e-6, group_of_one="raw"),
        "rloo": partial(advantages.leave_one_out, group_of_one="raw"),
        "rloo_vectorized": partial(advantages.leave_one_out),
        "opo": partial(advantages.length_weighted, group_of_one="raw"),  # (rewards, lengths, group_ids)
        # These two and gae are whitened afterwards.
        "reinforce_plus_plus_baseline": partial(advantages.group_relative, scale="none", group_of_one="raw"),
        "reinforce_plus_plus": partial(advantages.token_advantage_estimate, discount=1.0, lam=1.0),  # (rewards, values of 0, mask)
        "gae": partial(advantages.token_advantage_estimate, discount=1.0, lam=1.0),  # (rewards, values, mask)
    },
    # algorithm.norm_adv_by_std_in_grpo, where adv_estimator is grpo
    "norm_adv_by_std_in_grpo": {
        True: partial(advantages.group_relative, ddof=1, epsilon=1e-6, group_of_one="raw"),
        False: partial(advantages.group_relative, scale="none", group_of_one="raw"),
    },
    # masked_whiten: (x, mask). Ours is 0 where the mask is, which verl's GAE is not.
    "whiten": partial(reduction.standardise, ddof=1, epsilon=1e-8, epsilon_in="variance"),
    # actor.policy_loss.loss_mode: (log_prob, old_log_prob, advantage, mask=mask)
    "loss_mode": {
        "vanilla": partial(surrogates.clipped, low=0.2, high=0.2, dual=3.0, log_ratio_limit=20.0),
        "gspo": partial(surrogates.gspo_token, low=0.2, high=0.2),  # verl cuts the sequence's log-ratio at 10 from above
        "cispo": partial(surrogates.cispo, low=0.2, high=0.2, log_ratio_limit=20.0),
        "gpg": partial(surrogates.policy_gradient),  # (log_prob, advantage)
    },
    # actor.kl_loss_type: (log_prob, ref_log_prob)
    "kl_loss_type": {
        "kl": partial(divergences.k1),
        "k1": partial(divergences.k1),
        "mse": partial(divergences.k2),
        "k2": partial(divergences.k2),
        "low_var_kl": partial(divergences.k3, cap=10.0),
        "k3": partial(divergences.k3, cap=10.0),
    },
    # actor.loss_agg_mode: (loss, mask, count=) with verl's batch_num_tokens or global_batch_size as count
    "loss_agg_mode": {
        "token-mean": partial(reduction.reduce, mode="token"),
        "token-sum": partial(reduction.reduce, mode="token", count=1.0),
        "seq-mean-token-mean": partial(reduction.reduce, mode="sequence"),
        "seq-mean-token-sum": partial(reduction.reduce, mode="constant", scale=1.0),
        # scale is loss_scale_factor; where that is null, verl takes the padded width of the batch, loss.shape[-1]
        "seq-mean-token-sum-norm": partial(reduction.reduce, mode="constant"),
    },
    # critic.cliprange_value: (value, old_value, target)
    "value_loss": partial(values.clipped_squared, clip=0.5),
}

as_trl = {
    # GRPOConfig.scale_rewards: (rewards, group_ids) -> (batch,)
    "scale_rewards": {
        "group": partial(advantages.group_relative, ddof=1, epsilon=1e-4),
        "batch": partial(advantages.group_relative, scale="uncentred_batch", ddof=1, epsilon=1e-4),
        "none": partial(advantages.group_relative, scale="none"),
    },
    # RLOOTrainer, and its normalize_advantages: (x,)
    "rloo": partial(advantages.leave_one_out),
    "normalize_advantages": partial(reduction.standardise, ddof=1, epsilon=1e-4),
    # GRPOConfig.loss_type: (log_prob, old_log_prob, advantage, mask=mask). epsilon is low, epsilon_high is high, delta is dual.
    "loss_type": {
        **{name: partial(surrogates.clipped, low=0.2, high=0.2) for name in ("grpo", "bnpo", "dr_grpo", "dapo")},
        "cispo": partial(surrogates.cispo, cap=0.2),  # epsilon_high left at epsilon caps every weight; the paper's is above 1
    },
    # GRPOConfig.importance_sampling_level, with the clipped loss types
    "importance_sampling_level": {
        "token": partial(surrogates.clipped, low=0.2, high=0.2),
        "sequence": partial(surrogates.gspo, low=0.2, high=0.2),
    },
    # GRPOConfig.use_bias_correction_kl: (log_prob, ref_log_prob, old_log_prob=)
    "use_bias_correction_kl": {
        False: partial(divergences.kl_loss, estimator="k3"),
        True: partial(divergences.kl_loss, estimator="unnormalised_reverse"),
    },
    # How GRPOConfig.loss_type reduces: (loss, mask, count=), count being rows of the batch for grpo and dr_grpo, tokens for the others
    "reduction": {
        "grpo": partial(reduction.reduce, mode="sequence"),
        "bnpo": partial(reduction.reduce, mode="token"),
        "dr_grpo": partial(reduction.reduce, mode="constant", scale=256),  # max_completion_length
        "dapo": partial(reduction.reduce, mode="token"),
        "cispo": partial(reduction.reduce, mode="token"),
    },
    # DPOConfig.loss_type: (chosen, rejected, ref_chosen, ref_rejected) -> (batch,)
    "dpo": {
        "sigmoid": partial(preferences.dpo, beta=0.1),
        "ipo": partial(preferences.ipo, tau=0.1, length_normalised=True),  # lengths=(of chosen, of rejected)
    },
}
