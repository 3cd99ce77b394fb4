"""Free from Bellman Completeness: Trajectory Stitching via Model-based Return-conditioned Supervised Learning.

Zhaoyi Zhou, Chuning Zhu, Runlong Zhou, Qiwen Cui, Abhishek Gupta, Simon Shaolei Du. 2023. arXiv:2310.19308

Supervised learning that is told a return needs no Bellman equation, but does what single logged episodes did: it cannot stitch pieces of several.
So whoever made the log is rolled out in a model of the environment, where pieces meet by chance, and only rollouts better than every logged
episode are learnt from.

    models:     f(s' - s, r | s, a), Gaussians of several members, each on a bootstrap of its own, of which the best on held-out rows count;
                mu(a | s), a diffusion for a box, which keeps all ways of acting, and a categorical for whole numbers
    rollouts:   s_0 logged,  a_t ~ mu(.|s_t),  s_{t+1} ~ a random one of the best members,  t < H;   kept iff  G = sum_t r_t > G_max
    policy:     g_t = sum_{k >= t} r_k on the kept ones,   L_pi = -E[ log pi(a_t | s_t, g_t) ]
    deployed:   g_0 = the best kept return,   g_{t+1} = g_t - r_t

G_max is the return of the best logged episode. The first `preparation` updates fit the models, then rollouts are made until enough are kept, and
the updates that are left are the policy's. If none is good enough, that is an error, for nothing could be learnt.

A filter by return keeps what luck has made; so r_t is not drawn but the mean of the best members', also in deployment, where a policy sees no
reward. Other choices of ours: the models also tell whether an episode ends before H, the length of the longest logged one; returns to go are divided
by the largest; the diffusion is that of Karras et al. in place of Ho et al.'s; the policy of a box is a Gaussian of a learnt deviation (the paper has
the squared loss of its mean). Defaults: the authors' for point mazes, of the weight decays of a model's layers the middle one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.callbacks import keep
from polopt.core.errors import HostError
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.data.dataset import DataTask
from polopt.data.rollouts import Rollouts, added, extremes
from polopt.loops.actor_critic import STEP, descend
from polopt.loops.descent import Step
from polopt.loops.imagined import Fitted, Imagination, Rows
from polopt.loops.offline import FromLog, State
from polopt.loops.windows import episode_outcomes
from polopt.methods.offline.bc import one_action
from polopt.methods.offline.decision_transformer import Asked
from polopt.methods.offline.rvs import told_loss
from polopt.methods.registry import composition
from polopt.policies.cloned import ClonedActor
from polopt.policies.conditioned import ReturnPolicy, conditioned_actor

PREPARATION = 20_000  # updates of the models, where the run is long enough


class Learner(eqx.Module):
    """The models, the policy, the kept rollouts and how many these are, what to ask for, and the last losses."""

    fitted: Fitted
    actor: ClonedActor
    optimisers: dict[str, Any]
    kept: Rollouts
    count: jax.Array
    asked: Asked
    losses: dict[str, jax.Array]


def some_kept(count, best, threshold):
    """Raise where no rollout was kept. This runs on the host, in the middle of a compiled program."""
    if count == 0:
        error = HostError(
            f"The method mbrcsl kept no rollout: the best one earned {float(best):.4g}, but more than {float(threshold):.4g} is asked for. Either "
            "stitching does not help in this log, or the models are not good enough: try a longer preparation, more rounds, or a lower threshold."
        )
        keep(error)
        raise error


@part
class ToldReturns:
    """Models and their rollouts, and an actor that is told the return that is left of a rollout."""

    models: Imagination = Imagination()
    network: Feedforward = Feedforward(hidden=(1024, 1024), activation="relu")
    step: Step = replace(STEP, {"learning_rate": 5e-5})
    decay: float = hyper(0.1, at_least=0)  # weight of half the squared length of the actor's parameters in its loss
    batch_size: int = hyper(256, at_least=1)  # steps of kept rollouts that the actor learns from in an update
    horizon: int = hyper(200, at_least=1)  # H: steps of a rollout, by default of the longest logged episode
    rollouts: int = hyper(200, at_least=1)  # rollouts in a round
    rounds: int = hyper(1000, at_least=1)  # most rounds
    kept: int = hyper(100, at_least=1)  # rollouts to keep
    threshold: float | None = None  # return that a kept rollout exceeds; none for the best logged episode's

    def refuse(self, data) -> str | None:
        return one_action(data) or self.models.refuse(data)

    def init(self, data, key) -> Learner:
        k_models, k_actor = jax.random.split(key)
        space, shape = data.action_space, (self.kept, self.horizon)
        actor = conditioned_actor(self.network, data.observation_space, space, k_actor)
        action = jnp.zeros((*shape, *space.shape), jnp.float32 if isinstance(space, spaces.Box) else jnp.int32)
        kept = Rollouts(jnp.zeros((*shape, spaces.size(data.observation_space))), action, jnp.zeros(shape), jnp.zeros(shape, bool))
        losses = {name: jnp.zeros(()) for name in ("loss/models", "loss/behaviour", "loss/policy")}
        none, optimisers = jnp.zeros((), jnp.int32), {"actor": self.step.init(actor)}
        return Learner(self.models.init(data, k_models), actor, optimisers, kept, none, Asked(*extremes(kept, none)), losses)

    def policy(self, learner, normaliser) -> ReturnPolicy:
        return ReturnPolicy(learner.actor, normaliser, learner.fitted.models, *learner.asked)

    def fit(self, learner: Learner, rows: Rows, progress, key) -> Learner:
        """One update of the models."""
        fitted, losses = self.models.fit(learner.fitted, rows, progress, key)
        return dataclasses.replace(learner, fitted=fitted, losses={**learner.losses, **losses})

    def roll(self, learner: Learner, data, rows: Rows, key) -> Learner:
        """Rounds of rollouts until enough are kept."""
        fitted = self.models.judged(learner.fitted, rows)
        threshold = jnp.max(episode_outcomes(data)[0]) if self.threshold is None else jnp.asarray(self.threshold, jnp.float32)

        def another(carry):
            i, kept, count, best = carry
            new = self.models.roll(fitted, rows, data.action_space, self.rollouts, self.horizon, jax.random.fold_in(key, i))
            return i + 1, *added(kept, count, new, threshold), jnp.maximum(best, jnp.max(new.to_go[:, 0]))

        start = jnp.int32(0), learner.kept, learner.count, jnp.float32(-jnp.inf)
        _, kept, count, best = jax.lax.while_loop(lambda c: (c[2] < self.kept) & (c[0] < self.rounds), another, start)
        jax.debug.callback(some_kept, count, best, threshold)
        return dataclasses.replace(learner, fitted=fitted, kept=kept, count=count, asked=Asked(*extremes(kept, count)))

    def learn(self, learner: Learner, progress, key) -> Learner:
        """One update of the actor on steps of kept rollouts."""
        kept, (k_rollout, k_step) = learner.kept, jax.random.split(key)
        i = jax.random.randint(k_rollout, (self.batch_size,), 0, jnp.maximum(learner.count, 1))
        t = jax.random.randint(k_step, i.shape, 0, jnp.maximum(jnp.sum(kept.made[i], axis=1), 1))

        def loss(actor):
            penalty = 0.5 * self.decay * sum(jnp.sum(x**2) for x in jax.tree.leaves(actor))
            return told_loss(actor, (kept.vector[i, t], ()), kept.action[i, t], kept.to_go[i, t] / learner.asked.scale) + penalty

        value, gradient = jax.value_and_grad(loss)(learner.actor)
        actor, optimisers = descend(self.step, gradient, learner.optimisers, "actor", learner.actor, progress)
        return dataclasses.replace(learner, actor=actor, optimisers=optimisers, losses={**learner.losses, "loss/policy": value})


@part
class Stitching(FromLog):
    """Models first, then rollouts of them, then a policy that is told returns. A step of the run is an update."""

    rule: ToldReturns = ToldReturns()
    preparation: int = hyper(PREPARATION, at_least=1)  # updates of the models
    updates: int = hyper(100, at_least=1)  # updates in an iteration

    critic = False
    normalise_observations = True

    def refuse(self, task) -> str | None:
        if self.preparation >= task.steps:
            return f"fits its models for {self.preparation} updates, but the run has {task.steps}. Give more steps, or set a shorter preparation"
        return super().refuse(task)

    def step(self, task: DataTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_fit, k_roll, k_learn = jax.random.split(state.key, 4)
        done, rule, data = state.iteration * self.updates, self.rule, task.dataset
        fits, progress = jnp.clip(self.preparation - done, 0, self.updates), jnp.clip(done / task.steps, 0.0, 1.0)
        rolls = ((fits > 0) & (done + self.updates >= self.preparation)).astype(jnp.int32)
        rows = rule.models.rows(state.learner.fitted, data, state.normaliser, rule.horizon)
        # Loops of a length that only the program knows, rather than branches, of which seeds that run together would compute both.
        learner = jax.lax.fori_loop(0, fits, lambda i, x: rule.fit(x, rows, progress, jax.random.fold_in(k_fit, i)), state.learner)
        learner = jax.lax.fori_loop(0, rolls, lambda _, x: rule.roll(x, data, rows, k_roll), learner)
        learner = jax.lax.fori_loop(0, self.updates - fits, lambda i, x: rule.learn(x, progress, jax.random.fold_in(k_learn, i)), learner)
        metrics = {**learner.losses, "kept": learner.count.astype(jnp.float32), "kept/best": learner.asked.target}
        return State(learner, state.normaliser, state.iteration + 1, key), metrics


@composition
def mbrcsl(task: DataTask | None = None) -> Stitching:
    """MBRCSL with rollouts as long as the longest logged episode, and models fitted for half of the run at most."""
    if task is None:
        return Stitching()
    return Stitching(ToldReturns(horizon=int(task.dataset.episodes().lengths.max())), min(PREPARATION, max(1, task.steps // 2)))
