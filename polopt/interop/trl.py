"""TRL: a GRPO trainer that takes any of our advantages and surrogates.

    trainer = ObjectiveTrainer(
        model, reward_funcs=reward, args=GRPOConfig(...), train_dataset=prompts,
        advantage=advantages.leave_one_out,
        surrogate=partial(surrogates.spo, width=0.2),
    )

Everything else is TRL's: generation, rewards, references, logging. Each may be left out, and then TRL computes it as it does. With a
surrogate, GRPOConfig's `loss_type` says only how the losses of tokens are reduced, and epsilon, delta and importance_sampling_level have
no part; beta adds TRL's KL penalty, `use_bias_correction_kl` the exact one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from trl import GRPOTrainer

from polopt.interop.arguments import takes
from polopt.objectives import divergences, reduction

REDUCTIONS = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")


class ObjectiveTrainer(GRPOTrainer):
    """GRPOTrainer with an `advantage` and a `surrogate` of the user's choice.

    advantage: function of those of `rewards`, `group_ids`, `lengths` (tokens that the model wrote) and `mask` (0 where no reward function
        gave a reward) that it takes, each (batch,) over all processes; it gives an advantage for each completion, (batch,).
    surrogate: function (log_prob, old_log_prob, advantage, *, mask) of tokens (batch, time), with advantage (batch, 1); it gives the loss
        of each token, (batch, time), or of each sequence, (batch, 1). It may leave out old_log_prob.
    """

    def __init__(self, *args: Any, advantage: Callable | None = None, surrogate: Callable | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.advantage, self.surrogate = advantage, surrogate
        if surrogate is None:
            return
        if self.loss_type not in REDUCTIONS:
            raise ValueError(
                f"loss_type is {self.loss_type!r}, an objective of its own, but with a surrogate it only says how losses are reduced:"
                f" set it to one of {', '.join(REDUCTIONS)}."
            )
        if self._entropy_bonus_enabled:
            raise ValueError("An entropy bonus cannot be added to a surrogate: leave entropy_coef at 0 and use_adaptive_entropy off.")

    # -- advantages ----------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any):
        self._gathered_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._gathered_rewards

    def _generate_and_score_completions(self, inputs: Any):
        output = super()._generate_and_score_completions(inputs)
        if self.advantage is None:
            return output
        rewards = self._gathered_rewards
        group = self.num_generations if self.model.training else self.num_generations_eval
        lengths = self.accelerator.gather(_mask(output).sum(dim=-1))
        known = {
            "group_ids": torch.arange(len(rewards), device=rewards.device) // group,
            "lengths": lengths,
            "mask": ~torch.isnan(rewards).all(dim=1),
        }
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        everyone = self.advantage(rewards=total, **{name: x for name, x in known.items() if takes(self.advantage, name)})
        if tuple(everyone.shape) != tuple(total.shape):
            given, expected = tuple(everyone.shape), tuple(total.shape)
            raise ValueError(f"The advantage gave an array of shape {given}, but one number per completion, {expected}, is expected.")
        first = self.accelerator.process_index * len(output["advantages"])
        output["advantages"] = everyone[first : first + len(output["advantages"])]
        logged = self._logs["advantages"]  # TRL has just written its own
        for _ in range(min(len(everyone), len(logged))):
            logged.pop()
        logged.extend(everyone.tolist())
        return output

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Any):
        if self.surrogate is None:
            return super()._compute_loss(model, inputs)
        mask = _mask(inputs)
        log_prob, entropy, aux_loss = self._log_probs(model, inputs)
        old = inputs.get("old_per_token_logps")
        old = log_prob.detach() if old is None else old
        advantage = inputs["advantages"]
        advantage = advantage[:, None] if advantage.dim() == 1 else advantage
        before = {"old_log_prob": old} if takes(self.surrogate, "old_log_prob") else {}
        loss = self.surrogate(log_prob=log_prob, **before, advantage=advantage, mask=mask)
        if loss.dim() != 2 or loss.shape[0] != log_prob.shape[0] or loss.shape[1] not in (1, log_prob.shape[1]):
            raise ValueError(
                f"The surrogate gave an array of shape {tuple(loss.shape)}, but the loss of each token, {tuple(log_prob.shape)}, is expected:"
                " reduce nothing, the trainer does."
            )
        loss = loss * self._weights(inputs, log_prob, old, entropy, mask, advantage)
        mode = "train" if self.model.training else "eval"
        if self.beta != 0.0:
            estimator = "unnormalised_reverse" if self.args.use_bias_correction_kl else "k3"
            kl = divergences.kl_loss(log_prob, inputs["ref_per_token_logps"], old_log_prob=old, estimator=estimator, mask=mask)
            loss = loss + self.beta * kl
            self._metrics[mode]["kl"].append(self._mean(kl, mask))
        total = self._reduce(loss, mask, inputs, mode)
        if self.aux_loss_enabled:
            total = total + self.router_aux_loss_coef * aux_loss / self._accumulation(mode)
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        self._metrics[mode]["entropy"].append(self._mean(entropy, mask))
        self._metrics[mode]["ratio_deviation"].append(self._mean(torch.abs(torch.exp(log_prob.detach() - old) - 1), mask))
        return total

    def _log_probs(self, model, inputs):
        """Log-probabilities and entropies of the completion's tokens (batch, time), and a mixture of experts' balancing loss."""
        ids, seen = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        forward = self._get_per_token_logps_and_entropies
        pictures = {name: inputs[name] for name in inspect.signature(forward).parameters if name in inputs}
        options = {"compute_entropy": True, "compute_aux_loss": self.aux_loss_enabled}
        return forward(model, ids, seen, inputs["completion_ids"].size(1), **options, **pictures)

    def _weights(self, inputs, log_prob, old, entropy, mask, advantage):
        """What TRL multiplies the losses of tokens by, as its configuration says."""
        weights = torch.ones_like(log_prob)
        if self.off_policy_mask_threshold is not None:
            sampled = inputs.get("sampling_per_token_logps", old)
            weights = weights * self.get_off_policy_mask(advantage, log_prob, sampled, mask, self.off_policy_mask_threshold)
        if self.top_entropy_quantile < 1.0:
            weights = weights * self.get_high_entropy_mask(entropy, mask, 1 - self.top_entropy_quantile)
        if self.use_vllm and self.vllm_importance_sampling_correction:
            weights = weights * inputs["importance_sampling_ratio"]
        return weights

    def _reduce(self, loss, mask, inputs, mode):
        rows, accumulated = mask.shape[0], self._accumulation(mode)
        if self.loss_type == "grpo":
            return reduction.reduce(loss, mask, "sequence", count=rows * accumulated)
        if self.loss_type == "dr_grpo":
            return reduction.reduce(loss, mask, "constant", count=rows * accumulated, scale=self.max_completion_length)
        if self.loss_type == "bnpo":
            return reduction.reduce(loss, mask, "token", count=mask.sum().clamp(min=1) * accumulated)
        # num_items_in_batch counts the tokens of all processes and of everything that was generated at once.
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * accumulated / self.args.steps_per_generation
        return reduction.reduce(loss, mask, "token", count=tokens)

    def _accumulation(self, mode: str):
        return self.current_gradient_accumulation_steps if mode == "train" else 1

    def _mean(self, x, mask) -> float:
        """The mean over the tokens of all processes."""
        local = torch.stack([reduction.reduce(x.detach(), mask, "token", count=1.0), mask.sum().to(x.dtype)])
        totals = self.accelerator.reduce(local, reduction="sum")
        return float(totals[0] / totals[1].clamp(min=1))


def _mask(inputs):
    """1 where the model wrote: not on padding, and not on what a tool wrote."""
    return inputs["completion_mask"] * inputs["tool_mask"] if "tool_mask" in inputs else inputs["completion_mask"]
