"""The preference loop: several responses to a prompt, what they are worth next to each other, and a loss of their log-probabilities.

An iteration, which is one step of the run:

    source   groups of K responses, from a log or drawn now, scored and built into pairs where the loss wants pairs
    anchors  log pi_a of every response under the policies that the loss compares with: columns of data, constants for the loss
    fit      epochs of minibatches, or the exact least-squares step, on `link`: (log pi, anchors, scores, lengths) -> a loss a group

A group is (x, y_1 ... y_K). Its columns are sums over the tokens of a response, or means if `length_normalised`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.prompts import Prompts
from polopt.loops.descent import Step, passes, permutations
from polopt.objectives.backend import safe_divide
from polopt.optim.adam import Adam
from polopt.optim.trust_region import dot, gauss_newton_product, natural_direction
from polopt.policies.language.protocol import trainable

START, PREVIOUS = "start", "previous"  # the anchors' names


class Groups(NamedTuple):
    """index (B,): the prompt of each group; tokens, mask (B, K, N): its responses; score (B, K): what they are worth, higher is better.

    A score that is not finite is none: the group is left out.
    """

    index: jax.Array
    tokens: jax.Array
    mask: jax.Array
    score: jax.Array

    def chosen(self, rows, which) -> Groups:
        """New groups of the responses `which` (n, k) of the old groups `rows` (n,)."""
        at = rows[:, None], which
        return Groups(self.index[rows], self.tokens[at], self.mask[at], self.score[at])


class Columns(NamedTuple):
    """What a link sees of B groups, (B, K) each: log pi, the same of each anchor by name, the scores, and the tokens of each response.

    anchor: of the policy that the run began with ("start"), and of the one that this iteration began with ("previous", or what the schedule makes
    of that: an older one, or an average).
    """

    log_prob: jax.Array
    anchor: dict[str, jax.Array]
    score: jax.Array
    length: jax.Array

    def ratio(self, name: str = START) -> jax.Array:
        """log pi - log pi_a of every response, (B, K)."""
        return self.log_prob - self.anchor[name]

    @property
    def order(self) -> jax.Array:
        """Of pairs: 1 where the first is better, -1 where the second is, 0 where they are equal; (B,)."""
        return jnp.sign(self.score[:, 0] - self.score[:, 1])


class Link(Protocol):
    """From the log-probabilities of K responses to the loss of their group.

    One that is a square also has `residual(columns) -> (B,)`, whose square it is, and `weights()`, how much each anchor counts by name: the
    least-squares fit asks for them. One whose responses are not compared with one another has `metrics(columns, real)` instead of `pair_metrics`.
    """

    anchors: tuple[str, ...]  # the names of the policies whose log-probabilities it compares with
    responses: int | None  # K, if it is fixed

    def __call__(self, columns: Columns) -> jax.Array: ...


# -- from groups to what the link compares -----------------------------------------------------------------------------


class Pairs(Protocol):
    """Which responses of a group are compared."""

    fewest: int  # responses that a group must have

    def __call__(self, groups: Groups) -> Groups: ...


@part
class AsDrawn:
    """All K of them together, in the order they came in."""

    fewest = 2

    def __call__(self, groups):
        return groups


@part
class AllPairs:
    """Every pair of the K, the better one first."""

    fewest = 2

    def __call__(self, groups):
        size, count = groups.score.shape
        first, second = jnp.triu_indices(count, 1)
        rows = jnp.repeat(jnp.arange(size), first.shape[0])
        return best_first(groups.chosen(rows, jnp.tile(jnp.stack([first, second], 1), (size, 1))))


@part
class BestAndWorst:
    """The pair of the best and the worst of the K."""

    fewest = 2

    def __call__(self, groups):
        which = jnp.stack([jnp.argmax(groups.score, axis=1), jnp.argmin(groups.score, axis=1)], 1)
        return groups.chosen(jnp.arange(which.shape[0]), which)


def best_first(groups: Groups) -> Groups:
    """The responses of each group from the best to the worst; equal ones stay in order."""
    order = jnp.argsort(-groups.score, axis=1, stable=True)
    return groups.chosen(jnp.arange(order.shape[0]), order)


# -- log-probabilities -------------------------------------------------------------------------------------------------


def log_probs(policy, prompts: Prompts, groups: Groups, *, temperature=1.0, rows: int | None = None) -> jax.Array:
    """(B, K): log pi(y | x) of every response, the sum over its tokens. At most `rows` responses are scored at once, which changes no number."""
    size, count, length = groups.tokens.shape
    index = jnp.repeat(groups.index, count)
    total = size * count
    rows = total if rows is None else min(rows, total)

    def sums(chunk):
        index, tokens, mask = chunk
        return policy.score(prompts.tokens[index], prompts.mask[index], tokens, mask, temperature, entropy=False).log_prob.sum(-1)

    flat = index, groups.tokens.reshape(total, length), groups.mask.reshape(total, length)
    if rows == total:
        return sums(flat).reshape(size, count)
    chunks = -(-total // rows)
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, chunks * rows - total)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, rows, *x.shape[1:]), flat)
    return jax.lax.map(jax.checkpoint(sums), padded).reshape(-1)[:total].reshape(size, count)


def pick(key, n: int, count: int) -> jax.Array:
    """(count,) of 0 ... n-1 at random; none comes a second time before all have come once."""
    return permutations(key, -(-count // n), n).reshape(-1)[:count]


class Drawn(NamedTuple):
    """What a source gives an iteration: groups, the columns of anchors (B, K) by name, and diagnostics."""

    groups: Groups
    anchor: dict[str, jax.Array]
    metrics: dict[str, jax.Array]


class Source(Protocol):
    """Where groups come from: `polopt.loops.preference_sources`."""

    takes: Any
    needs: str
    temperature: Any

    def refuse(self, task, link: Link) -> str | None: ...

    def prompts(self, task) -> Prompts: ...

    def count(self, task) -> int:
        """The groups of an iteration, as the link compares them."""
        ...

    def init(self, loop: Preference, task) -> Any: ...

    def draw(self, loop: Preference, task, held, policies: dict[str, Any], key) -> Drawn: ...


# -- the fit -----------------------------------------------------------------------------------------------------------


class Fit(Protocol):
    """How the policy's trainable leaves move on an iteration's groups."""

    def refuse(self, link: Link, groups: int) -> str | None:
        """Why it cannot fit the link to so many groups an iteration."""
        ...

    def init(self, params) -> Any: ...

    def __call__(self, columns_of, link: Link, params, state, data, anchors, progress, key) -> tuple[Any, Any, dict[str, jax.Array]]:
        """`columns_of(params, minibatch)` are the columns of a minibatch of `data` and which groups count, (B,); anchors: parameters by name."""
        ...


def mean_loss(link: Link, columns: Columns, real):
    """The mean loss of the groups that count, and diagnostics of it."""
    loss = mean_where(real, link(columns))
    metrics = {"loss": loss, **(link.metrics(columns, real) if hasattr(link, "metrics") else pair_metrics(link, columns, real))}
    return loss, metrics


def pair_metrics(link: Link, columns: Columns, real) -> dict[str, jax.Array]:
    """The log-probability of the best response, how far it has risen above the worst beside the link's first anchor, and how often it has."""
    best, worst = (find(columns.score, axis=1)[:, None] for find in (jnp.argmax, jnp.argmin))
    of = lambda x, which: jnp.take_along_axis(x, which, axis=1)[:, 0]  # noqa: E731
    ratio = columns.ratio(link.anchors[0]) if link.anchors else columns.log_prob
    h = of(ratio, best) - of(ratio, worst)
    ordered = real & (of(columns.score, best) > of(columns.score, worst))
    log_prob = mean_where(real, of(columns.log_prob, best))
    return {"log_prob/best": log_prob, "margin": mean_where(ordered, h), "accuracy": mean_where(ordered, h > 0)}


def mean_where(keep, x):
    """The mean of x where `keep`; 0 where nothing is kept."""
    return safe_divide(jnp.sum(jnp.where(keep, x, 0)), jnp.sum(keep).astype(jnp.float32))


@part
class Minibatches:
    """`epochs` passes of `minibatches` gradient steps, each minibatch drawn anew without replacement."""

    step: Step = Adam(learning_rate=5e-7, max_grad_norm=1.0, epsilon=1e-8)
    epochs: int = hyper(1, at_least=1)  # passes over an iteration's groups
    minibatches: int = hyper(1, at_least=1)  # steps in a pass

    def refuse(self, link, groups) -> str | None:
        if groups < self.minibatches:
            return f"cannot split {groups} groups an iteration into {self.minibatches} minibatches. Set fewer minibatches"
        return None

    def init(self, params):
        return self.step.init(params)

    def __call__(self, columns_of, link, params, state, data, anchors, progress, key):
        def descend(carry, minibatch):
            params, state = carry
            gradient, metrics = jax.grad(lambda p: mean_loss(link, *columns_of(p, minibatch)), has_aux=True)(params)
            return self.step.update(gradient, state, params, progress), metrics

        if self.minibatches == 1:  # nothing to divide
            (params, state), metrics = jax.lax.scan(lambda carry, _: descend(carry, data), (params, state), length=self.epochs)
        else:
            (params, state), metrics = passes(descend, (params, state), data, self.epochs, self.minibatches, key)
        return params, state, jax.tree.map(jnp.mean, metrics)


@part
class LeastSquares:
    """The minimiser of sum residual^2 + ridge |theta - c|^2: exact where residuals are linear in the parameters, else by Gauss-Newton steps.

    c is the mean of the anchors' parameters with the link's weights: of a table, their geometric mixture. A response that was not drawn stays there.
    """

    ridge: float = hyper(1e-3, above=0)  # weight of the squared distance from the anchors beside the sum of the squares
    steps: int = hyper(1, at_least=1)  # Gauss-Newton steps; one is exact for tables and log-linear policies
    iterations: int = hyper(30, at_least=1)  # of conjugate gradients in a step

    def refuse(self, link, groups) -> str | None:
        return None if hasattr(link, "residual") else f"solves least squares, but the loss {type(link).__name__} is not a square; take Minibatches"

    def init(self, params):
        return ()

    def __call__(self, columns_of, link, params, state, data, anchors, progress, key):
        weights = link.weights()
        centre = jax.tree.map(lambda *x: sum(c * y for c, y in zip(weights.values(), x)), *(anchors[name] for name in weights))

        def residual(params):
            columns, real = columns_of(params, data)
            return jnp.where(real, link.residual(columns), 0)

        def objective(params):
            away = jax.tree.map(jnp.subtract, params, centre)
            return 0.5 * (jnp.sum(residual(params) ** 2) + self.ridge * dot(away, away))

        def step(params, _):
            product = gauss_newton_product(residual, params, 1.0)
            direction, _ = natural_direction(product, jax.grad(objective)(params), self.iterations, self.ridge)
            return jax.tree.map(jnp.subtract, params, direction), None

        params, _ = jax.lax.scan(step, centre, length=self.steps)
        return params, state, mean_loss(link, *columns_of(params, data))[1]


# -- what "previous" means ---------------------------------------------------------------------------------------------


class Schedule(Protocol):
    """The policy that is called "previous"."""

    kept: bool  # whether it is another one than this iteration began with, so that it has to be kept

    def __call__(self, old, new, iteration):
        """What becomes of an array of it, given the policy's after so many iterations."""
        ...


@part
class EveryIteration:
    """The one that the iteration began with."""

    kept = False

    def __call__(self, old, new, iteration):
        return new


@part
class Refreshed:
    """The one of some iterations ago, taken anew after every so many."""

    every: int = hyper(10, at_least=1)  # iterations for which it stays

    kept = True

    def __call__(self, old, new, iteration):
        return jnp.where(iteration % self.every == 0, new, old)


@part
class Averaged:
    """An exponential moving average of the policy's parameters."""

    decay: float = hyper(0.99, at_least=0, below=1)  # share that is kept in an iteration

    kept = True

    def __call__(self, old, new, iteration):
        return self.decay * old + (1 - self.decay) * new


# -- the method --------------------------------------------------------------------------------------------------------


class State(eqx.Module):
    """previous: the policy of this name where the schedule keeps it, else (); held: what the source keeps."""

    policy: Any
    previous: Any
    optimiser: Any
    held: Any
    iteration: jax.Array
    key: jax.Array


class Data(NamedTuple):
    groups: Groups
    anchor: dict[str, jax.Array]


@part
class Preference:
    """A method of the preference family: its source, its link and its fit. A step of the run is an iteration."""

    source: Source
    link: Link
    fit: Fit = Minibatches()
    length_normalised: bool = False  # log-probabilities of a response are means over its tokens, not sums
    schedule: Schedule = EveryIteration()
    rows: int | None = hyper(None, at_least=1)  # responses scored at once, to save memory; the numbers stay. none: all
    steps_per_iteration = 1

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    @property
    def takes(self):
        return self.source.takes

    @property
    def needs(self) -> str:
        return self.source.needs

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        return self.source.refuse(task, self.link) or self.fit.refuse(self.link, self.source.count(task))

    def init(self, task, key) -> State:
        params, _ = self.parted(task.model)
        previous = task.model if self.schedule.kept else ()
        return State(task.model, previous, self.fit.init(params), self.source.init(self, task), jnp.zeros((), jnp.int32), key)

    def step(self, task, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_draw, k_fit = jax.random.split(state.key, 3)
        progress = jnp.clip(state.iteration / task.steps, 0.0, 1.0)
        policies = {"current": state.policy, START: task.model, PREVIOUS: state.previous if self.schedule.kept else state.policy}
        drawn = self.source.draw(self, task, state.held, policies, k_draw)
        params, rest = self.parted(state.policy)

        def columns_of(params, data):
            now = self.log_probs(task, eqx.combine(params, rest), data.groups)
            real = jnp.isfinite(data.groups.score).all(1)
            score = jnp.where(real[:, None], data.groups.score, 0)
            return Columns(now, data.anchor, score, data.groups.mask.sum(-1)), real

        wanted = {name: drawn.anchor[name] for name in self.link.anchors}
        data = Data(drawn.groups, jax.lax.stop_gradient(wanted))
        anchors = {name: self.parted(policies[name])[0] for name in self.link.anchors}
        params, optimiser, metrics = self.fit(columns_of, self.link, params, state.optimiser, data, anchors, progress, k_fit)
        policy = eqx.combine(params, rest)
        after = State(policy, self.moved(state, policy) if self.schedule.kept else (), optimiser, state.held, state.iteration + 1, key)
        return after, {**metrics, **drawn.metrics}

    def policy(self, state: State):
        return state.policy

    # -- its pieces ----------------------------------------------------------------------------------------------------

    def parted(self, policy):
        """What learns of a policy, and the rest."""
        return eqx.partition(policy, trainable(policy))

    def log_probs(self, task, policy, groups: Groups):
        """The column of a policy (B, K)."""
        prompts = self.source.prompts(task)
        sums = log_probs(policy, prompts, groups, temperature=self.source.temperature, rows=self.rows)
        return safe_divide(sums, groups.mask.sum(-1).astype(sums.dtype)) if self.length_normalised else sums

    def moved(self, state: State, policy):
        """The previous policy after an iteration: its trainable leaves by the schedule, the others as they are."""
        old, rest = self.parted(state.previous)
        new, _ = self.parted(policy)
        return eqx.combine(jax.tree.map(lambda o, n: self.schedule(o, n, state.iteration + 1), old, new), rest)
