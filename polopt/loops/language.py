"""The language loop: choose prompts, write completions, grade them, give credit, improve.

One iteration gathers N completions in groups (all of a group answer one prompt), estimates advantages from the whole groups, and moves the
policy by one or several updates. Every arrow is a slot:

    sampler     which prompts, how many completions of each, where they come from; remembers what it needs
    shaping     what is added to the verifier's rewards
    advantage   rewards -> advantages, (N,) or (N, T); may remember statistics across iterations
    selection   which tokens are learnt from
    objective   the loss of each token, from the log-probabilities of the whole update; three policies appear in it: the sampler's
                (`sampled_log_prob`), the old one at the start of the iteration, and the current one
    penalty     a divergence from an anchor, in the loss or in the reward
    aggregation how the tokens' losses become one number
    step        how parameters move

An objective is a function of the log-probabilities of a whole update; its gradient there is a weight for each token, stop-gradient, and the
parameters' gradient is the product of these weights with grad log pi. The loop computes it in exactly that order. So the result does not
depend on how an update is split into micro-batches, whatever the objective.

A step of the run is an iteration, and an episode is a completion.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.descent import Step, divisions
from polopt.objectives import divergences
from polopt.policies.language.protocol import LanguagePolicy, Scored, trainable

LOSSES = tuple(name for name in divergences.ESTIMATORS if name != "k1")  # whose gradient as a loss is nothing


class Batch(NamedTuple):
    """N completions, those of a group side by side where groups are of one size."""

    index: jax.Array  # (N,) int, the prompt's row in the task
    group: jax.Array  # (N,) int, which completions answer the same prompt in the same iteration
    tokens: jax.Array  # (N, T) int
    mask: jax.Array  # (N, T) bool, tokens of the completion, the stop token included
    reward: jax.Array  # (N,) as graded; of a demonstration 1
    valid: jax.Array  # (N,) bool, False where the verifier failed: such a completion teaches nothing
    finished: jax.Array  # (N,) bool, ended by a stop token
    sampled_log_prob: jax.Array  # (N, T) under the distribution that it was drawn from
    demonstration: jax.Array  # (N,) bool, written by somebody else
    baseline: jax.Array  # (N,) what the sampler knows of the prompt's value; 0 where it keeps none


class Judged(NamedTuple):
    """A batch with what was worked out of it before the first update."""

    batch: Batch
    advantage: jax.Array  # (N, T)
    learn: jax.Array  # (N, T) bool, tokens that are learnt from
    paid: jax.Array  # (N, T) what the penalty adds at each token to the rewards, which hold the sums of it already
    old_log_prob: jax.Array  # (N, T) of the policy at the start of the iteration; 0 where one update makes it the current one
    anchor_log_prob: jax.Array  # (N, T); 0 without a penalty
    group_mean: jax.Array  # (N,) mean reward of the whole group


class Update(NamedTuple):
    """What an objective sees of the n completions of an update; all but `log_prob` and `entropy` are constants."""

    log_prob: jax.Array  # (n, T)
    entropy: jax.Array  # (n, T)
    old_log_prob: jax.Array  # (n, T)
    anchor_log_prob: jax.Array  # (n, T)
    sampled_log_prob: jax.Array  # (n, T)
    advantage: jax.Array  # (n, T)
    learn: jax.Array  # (n, T) bool
    group: jax.Array  # (n,)
    reward: jax.Array  # (n,)
    group_mean: jax.Array  # (n,)
    demonstration: jax.Array  # (n,) bool


class Sampler(Protocol):
    """Prompts and completions. `groups` and `size` say how many groups and completions an iteration has; `completions` how many each group
    has, None where they differ."""

    groups: int
    size: int
    completions: int | None
    temperature: float

    def refuse(self, task: LanguageTask) -> str | None: ...

    def init(self, task: LanguageTask, key) -> Any: ...

    def gather(self, state, task: LanguageTask, policy: LanguagePolicy, key) -> tuple[Batch, Any]: ...

    def tell(self, state, task: LanguageTask, policy: LanguagePolicy, batch: Batch) -> Any:
        """The state after the updates; `policy` is the new one."""
        ...


class Shaping(Protocol):
    """What is added to the verifier's rewards before credit is given, (N,)."""

    def __call__(self, task: LanguageTask, batch: Batch) -> jax.Array: ...


class Advantage(Protocol):
    """From rewards to advantages, (N,) or (N, T). `fewest`, where it is said, is the smallest group that teaches anything; `refuse`, where it is
    there, says why a task cannot be taken."""

    def init(self, task: LanguageTask, key) -> Any: ...

    def __call__(self, state, task: LanguageTask, batch: Batch, judged: Judged) -> tuple[jax.Array, Any]: ...


class Selection(Protocol):
    """Which tokens are learnt from, (N, T) bool, out of those of valid completions. `reads` says whether it looks at the old policy's entropies or
    log-probabilities, which cost a pass over the completions."""

    reads: bool

    def __call__(self, judged: Judged, entropy, progress) -> jax.Array: ...


class Objective(Protocol):
    """The loss of each token (n, T), to be minimised, and diagnostics. `key` is for objectives that draw."""

    def loss(self, update: Update, key) -> tuple[jax.Array, dict[str, jax.Array]]: ...


class Penalty(Protocol):
    """A divergence from an anchor: `reward` (N, T) is what it adds to the rewards at each token, `loss` (n, T) what it adds to the losses."""

    anchored: bool
    refresh_every: int | None

    def reward(self, log_prob, anchor_log_prob, mask) -> jax.Array: ...

    def loss(self, update: Update) -> jax.Array: ...


@part
class Everything:
    """Every token."""

    reads = False

    def __call__(self, judged: Judged, entropy, progress):
        return judged.learn


@part
class AsGraded:
    """The verifier's rewards as they are."""

    def __call__(self, task: LanguageTask, batch: Batch):
        return jnp.zeros_like(batch.reward)


@part
class NoPenalty:
    """No anchor."""

    anchored = False
    refresh_every = None

    def reward(self, log_prob, anchor_log_prob, mask):
        return jnp.zeros_like(log_prob)

    def loss(self, update: Update):
        return jnp.zeros_like(update.log_prob)


@part
class Anchor:
    """An anchor that the objective reads, and no penalty."""

    refresh_every: int | None = hyper(None, at_least=1)  # iterations after which the current policy becomes the anchor; none for never

    anchored = True
    reward = NoPenalty.reward
    loss = NoPenalty.loss


@part
class KLPenalty:
    """A KL divergence in the loss, from the policy that training started from, or from one that is taken anew every few iterations."""

    coefficient: float = hyper(0.04, at_least=0)  # its weight
    estimator: str = hyper("k3", choices=LOSSES)  # of the divergence; `polopt.objectives.divergences` states the biases
    refresh_every: int | None = hyper(None, at_least=1)  # iterations after which the current policy becomes the anchor; none for never

    anchored = True
    reward = NoPenalty.reward

    def loss(self, update: Update):
        old = update.old_log_prob
        return self.coefficient * divergences.kl_loss(update.log_prob, update.anchor_log_prob, old_log_prob=old, estimator=self.estimator)


@part
class KLReward:
    """The same divergence paid in the reward, by k1, whose mean it is: each token bears what it and the later ones cost."""

    coefficient: float = hyper(0.01, at_least=0)  # its weight
    refresh_every: int | None = hyper(None, at_least=1)  # iterations after which the current policy becomes the anchor; none for never

    anchored = True
    loss = NoPenalty.loss

    def reward(self, log_prob, anchor_log_prob, mask):
        return -self.coefficient * jnp.where(mask, log_prob - anchor_log_prob, 0.0)


@part
class Aggregation:
    """One number from the losses of tokens: each counts with a share of the whole update, worked out before any split.

        token           1 / sum of all lengths                          every token alike                      DAPO's code
        sequence        1 / (T_i n)                                     every completion alike                 GRPO
        constant        1 / (scale n)                                   token sums over a constant             Dr. GRPO; scale 1: RLOO
        group           1 / (sum of the group's lengths, times B)       every group alike, in it every token   DAPO's formula
        group_sequence  1 / (T_i N_q B)                                 every group alike, in it every completion
    """

    mode: str = hyper("token", choices=("token", "sequence", "constant", "group", "group_sequence"))
    scale: float | None = hyper(None, above=0)  # for constant alone: what token sums are divided by; none for 1

    def shares(self, learn, group, groups: int):
        """(n, T): what each token's loss is multiplied by; 0 where nothing is learnt. Groups are numbered below `groups`."""
        weight = learn.astype(jnp.float32)
        length = jnp.sum(weight, axis=1)
        wrote = (length > 0).astype(weight.dtype)
        each = jnp.maximum(length, 1.0)
        count = jnp.maximum(jnp.sum(wrote), 1.0)
        if self.mode == "token":
            return weight / jnp.maximum(jnp.sum(length), 1.0)
        if self.mode == "sequence":
            return weight / (each * count)[:, None]
        if self.mode == "constant":
            return weight / ((1.0 if self.scale is None else self.scale) * count)
        total = jax.ops.segment_sum(length if self.mode == "group" else wrote, group, num_segments=groups)
        shared = jnp.maximum(total, 1.0)[group] * jnp.maximum(jnp.sum(total > 0), 1)
        return weight / (shared if self.mode == "group" else shared * each)[:, None]


class State(eqx.Module):
    policy: Any
    anchor: Any  # the refreshed one; None where it is the policy that training started from, or where there is none
    optimiser: Any
    sampler: Any
    advantage: Any
    iteration: jax.Array
    key: jax.Array


@part
class Language:
    """A method of the language families: its parts and its hyperparameters."""

    sampler: Sampler
    advantage: Advantage
    objective: Objective
    step_rule: Step
    penalty: Penalty = NoPenalty()
    shaping: Shaping = AsGraded()
    selection: Selection = Everything()
    aggregation: Aggregation = Aggregation()
    epochs: int = hyper(1, at_least=1)  # passes over an iteration's completions
    minibatches: int = hyper(1, at_least=1)  # updates in a pass
    micro_batch: int | None = hyper(None, at_least=1)  # completions that are in memory at once, without an effect on the result; none for all
    entropy_coefficient: float = hyper(0.0, at_least=0)  # weight of the entropy bonus

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    takes = LanguageTask
    needs = "a model and prompts (--model tiny --task arithmetic)"
    steps_per_iteration = 1

    @property
    def imitates(self) -> bool:
        """Whether it learns from demonstrations alone, so that it needs no verifier and no skill to begin with."""
        return getattr(self.sampler, "imitates", False)

    def refuse(self, task: LanguageTask) -> str | None:
        """Why this method cannot take the task; None when it can."""
        units = self.sampler.groups if self.sampler.completions else self.sampler.size
        if units % self.minibatches:
            return f"cannot split {units} {'groups' if self.sampler.completions else 'completions'} into {self.minibatches} minibatches"
        rows = self.sampler.size // self.minibatches
        if self.micro_batch is not None and rows % self.micro_batch:
            return f"cannot split the {rows} completions of an update into micro-batches of {self.micro_batch}"
        if self.aggregation.scale is not None and self.aggregation.mode != "constant":
            return f"aggregates by {self.aggregation.mode}, which takes no scale. Leave the scale out, or set mode to constant"
        fewest = getattr(self.advantage, "fewest", 1)
        if self.sampler.completions is not None and self.sampler.completions < fewest:
            name = type(self.advantage).__name__
            return f"compares the completions of a prompt ({name}), but has {self.sampler.completions} of each. Set completions to {fewest} or more"
        refuses = getattr(self.advantage, "refuse", lambda task: None)
        return refuses(task) or self.sampler.refuse(task)

    def init(self, task: LanguageTask, key) -> State:
        k_sampler, key = jax.random.split(key)
        policy = jax.tree.map(jnp.asarray, task.model)
        return State(
            policy=policy,
            anchor=policy if self.penalty.refresh_every else None,
            optimiser=self.step_rule.init(eqx.filter(policy, trainable(policy))),
            sampler=self.sampler.init(task, k_sampler),
            advantage=self.advantage.init(task, jax.random.fold_in(k_sampler, 1)),
            iteration=jnp.zeros((), jnp.int32),
            key=key,
        )

    def step(self, task: LanguageTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_gather, k_improve = jax.random.split(state.key, 3)
        progress = jnp.clip(state.iteration / task.steps, 0.0, 1.0)
        batch, sampler = self.sampler.gather(state.sampler, task, state.policy, k_gather)
        judged, advantage, entropy = self.judge(task, state, batch)
        judged = judged._replace(learn=judged.learn & self.selection(judged, entropy, progress))
        policy, optimiser, metrics = self.improve(task, state, judged, progress, k_improve)
        iteration = state.iteration + 1
        state = State(
            policy=policy,
            anchor=self._anchor_after(state, policy, iteration),
            optimiser=optimiser,
            sampler=self.sampler.tell(sampler, task, policy, batch),
            advantage=advantage,
            iteration=iteration,
            key=key,
        )
        return state, {**summary(batch, self.sampler.groups), **metrics}

    def policy(self, state: State) -> LanguagePolicy:
        return state.policy

    def refresh(self, task: LanguageTask, state: State) -> State:
        """The state as it is: a verifier on the host remembers nothing."""
        return state

    # -- one iteration -------------------------------------------------------------------------------------------------

    @property
    def on_policy(self) -> bool:
        """Whether a single update makes the old policy the current one."""
        return self.epochs * self.minibatches == 1

    def score(self, task: LanguageTask, policy: LanguagePolicy, batch: Batch) -> Scored:
        """Log-probabilities and entropies (n, T) of completions, at the temperature at which they were drawn."""
        prompts = task.prompts
        return policy.score(prompts.tokens[batch.index], prompts.mask[batch.index], batch.tokens, batch.mask, self.sampler.temperature)

    def judge(self, task: LanguageTask, state: State, batch: Batch) -> tuple[Judged, Any, jax.Array]:
        """Advantages of the batch, the advantage's new state, and the old policy's entropies (N, T)."""
        needs_old = not self.on_policy or self.penalty.anchored or self.selection.reads
        zeros = jnp.zeros_like(batch.sampled_log_prob)
        old = self.score_in_pieces(task, state.policy, batch) if needs_old else Scored(zeros, zeros)
        anchor = zeros
        if self.penalty.anchored:
            anchor = self.score_in_pieces(task, task.model if state.anchor is None else state.anchor, batch).log_prob
        paid = self.penalty.reward(old.log_prob, anchor, batch.mask)
        reward = batch.reward + self.shaping(task, batch) + jnp.sum(paid, axis=1).astype(batch.reward.dtype)
        batch = batch._replace(reward=reward)
        learn = batch.mask & batch.valid[:, None]
        mean = group_means(batch.reward, batch.valid, batch.group, self.sampler.groups)
        judged = Judged(batch, zeros, learn, paid, old.log_prob, anchor, mean)
        advantage, memory = self.advantage(state.advantage, task, batch, judged)
        per_token = jnp.broadcast_to(advantage[:, None], learn.shape) if advantage.ndim == 1 else advantage
        return judged._replace(advantage=jax.lax.stop_gradient(jnp.where(learn, per_token, 0.0))), memory, old.entropy

    def score_in_pieces(self, task: LanguageTask, policy: LanguagePolicy, batch: Batch) -> Scored:
        """`score` without a gradient, a micro-batch at a time."""
        if self.micro_batch is None:
            return jax.lax.stop_gradient(self.score(task, policy, batch))
        pieces = _pieces(batch, self.micro_batch)
        return jax.tree.map(_joined, jax.lax.map(lambda piece: jax.lax.stop_gradient(self.score(task, policy, piece)), pieces))

    def improve(self, task: LanguageTask, state: State, judged: Judged, progress, key):
        """(policy, optimiser, diagnostics averaged over the updates)."""
        moving, still = eqx.partition(state.policy, trainable(state.policy))
        k_order, k_objective = jax.random.split(key)
        updates = self.epochs * self.minibatches

        def descend(carry, given):
            moving, optimiser = carry
            rows, k = given
            gradient, metrics = self.gradient(task, moving, still, jax.tree.map(lambda x: x[rows], judged), k)
            moving, optimiser = self.step_rule.update(gradient, optimiser, moving, progress)
            return (moving, optimiser), metrics

        orders = self._orders(k_order).reshape(updates, -1)
        (moving, optimiser), metrics = jax.lax.scan(descend, (moving, state.optimiser), (orders, jax.random.split(k_objective, updates)))
        return eqx.combine(moving, still), optimiser, jax.tree.map(jnp.mean, metrics)

    def gradient(self, task: LanguageTask, moving, still, judged: Judged, key):
        """The gradient of an update's loss in the parameters that move, and diagnostics."""

        def score(moving, batch):
            return self.score(task, eqx.combine(moving, still), batch)

        if self.micro_batch is None:
            scored, back = jax.vjp(lambda moving: score(moving, judged.batch), moving)
            weights, metrics = self.weights(scored, judged, key)
            return back(weights)[0], metrics
        pieces = _pieces(judged.batch, self.micro_batch)
        scored = jax.tree.map(_joined, jax.lax.map(lambda piece: score(moving, piece), pieces))
        weights, metrics = self.weights(scored, judged, key)

        def add(total, given):
            piece, weight = given
            (gradient,) = jax.vjp(lambda moving: score(moving, piece), moving)[1](weight)
            return jax.tree.map(jnp.add, total, gradient), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, moving), (pieces, _pieces(weights, self.micro_batch)))
        return total, metrics

    def weights(self, scored: Scored, judged: Judged, key) -> tuple[Scored, dict[str, jax.Array]]:
        """The gradient of an update's loss in its log-probabilities and entropies, each (n, T), and diagnostics."""

        def loss(scored: Scored):
            update = self._update(scored, judged)
            losses, metrics = self.objective.loss(update, key)
            losses = losses + self.penalty.loss(update) - self.entropy_coefficient * scored.entropy
            shares = self.aggregation.shares(judged.learn, judged.batch.group, self.sampler.groups)
            return jnp.sum(jnp.where(judged.learn, losses, 0.0) * shares), (update, metrics)

        (value, (update, metrics)), weights = jax.value_and_grad(loss, has_aux=True)(scored)
        return weights, {"loss": value, **_diagnostics(update, judged.batch), **metrics}

    def _update(self, scored: Scored, judged: Judged) -> Update:
        batch, learn = judged.batch, judged.learn
        old = jax.lax.stop_gradient(scored.log_prob) if self.on_policy else judged.old_log_prob
        return Update(
            log_prob=jnp.where(learn, scored.log_prob, 0.0),
            entropy=jnp.where(learn, scored.entropy, 0.0),
            old_log_prob=jnp.where(learn, old, 0.0),
            anchor_log_prob=jnp.where(learn, judged.anchor_log_prob, 0.0),
            sampled_log_prob=jnp.where(learn, batch.sampled_log_prob, 0.0),
            advantage=judged.advantage,
            learn=learn,
            group=batch.group,
            reward=batch.reward,
            group_mean=judged.group_mean,
            demonstration=batch.demonstration,
        )

    def _orders(self, key):
        """(epochs, minibatches, rows): whole groups stay together where they are of one size."""
        sampler = self.sampler
        if self.minibatches == 1:
            return jnp.broadcast_to(jnp.arange(sampler.size), (self.epochs, 1, sampler.size))
        if not sampler.completions:
            return divisions(key, self.epochs, self.minibatches, sampler.size)
        groups = divisions(key, self.epochs, self.minibatches, sampler.groups)
        rows = groups[..., None] * sampler.completions + jnp.arange(sampler.completions)[None, None, None]
        return rows.reshape(*groups.shape[:2], -1)

    def _anchor_after(self, state: State, policy, iteration):
        every = self.penalty.refresh_every
        if not every:
            return None
        due = iteration % every == 0
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), policy, state.anchor)


def group_means(x, valid, group, groups: int):
    """(N,) the mean of x over each completion's group, those that are not valid left out."""
    weight = valid.astype(x.dtype)
    total = jax.ops.segment_sum(jnp.where(valid, x, 0.0), group, num_segments=groups)
    count = jax.ops.segment_sum(weight, group, num_segments=groups)
    return (total / jnp.maximum(count, 1.0))[group]


def informative(reward, valid, group, groups: int):
    """(groups,) bool: whether a group's rewards differ."""
    low = jax.ops.segment_min(jnp.where(valid, reward, jnp.inf), group, num_segments=groups)
    high = jax.ops.segment_max(jnp.where(valid, reward, -jnp.inf), group, num_segments=groups)
    return high > low


def summary(batch: Batch, groups: int) -> dict[str, jax.Array]:
    """What the policy's own completions earned, as episodes, and how they were."""
    own = ~batch.demonstration
    counted = own & batch.valid
    lengths = jnp.sum(batch.mask, axis=1).astype(jnp.float32)
    some = jnp.maximum(jnp.sum(own), 1)
    return {
        "episode/return": jnp.sum(jnp.where(counted, batch.reward, 0.0)).astype(jnp.float32),
        "episode/length": jnp.sum(jnp.where(counted, lengths, 0.0)),
        "episode/count": jnp.sum(counted).astype(jnp.float32),
        "finished": jnp.sum(own & batch.finished) / some,
        "ungraded": jnp.sum(own & ~batch.valid) / some,
        "groups/informative": jnp.mean(informative(batch.reward, counted, batch.group, groups)),
    }


def _diagnostics(update: Update, batch: Batch) -> dict[str, jax.Array]:
    """Of the tokens that are learnt from: how far the current policy is from the old one and from the sampler."""
    count = jnp.maximum(jnp.sum(update.learn), 1)
    drawn = update.learn & ~update.demonstration[:, None]
    log_ratio = update.log_prob - update.old_log_prob
    return {
        "entropy": jnp.sum(update.entropy) / count,
        "kl": jnp.sum(jnp.expm1(log_ratio) - log_ratio) / count,
        "gap": jnp.max(jnp.where(drawn, jnp.abs(update.old_log_prob - update.sampled_log_prob), 0.0)),
    }


def _pieces(tree, size: int):
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def _joined(x):
    return x.reshape(-1, *x.shape[2:])
