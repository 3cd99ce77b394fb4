"""Decision Mamba: refined labels forget what is wrong in the log, and a branch that stays within a step sees what is between its parts.

Logs are made of single numbers to be regressed: of the first, a third of the actions is wrong; of the second, the action is the product of the return
to go and the sign of the state. The first is learnt by a plain network from all rows at once, too, which shows refined labels without the rest: with
a share beta that is whole from the second stage on, and with one that rises over the run, as the method's does.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import replace
from polopt.data.dataset import Dataset, DataTask
from polopt.methods.offline.decision_mamba import decision_mamba, refined
from polopt.optim.adam import Adam
from polopt.policies.cloned import ClonedActor

STATES, NUMBERS, WRONG = 300, 5, 0.3  # to learn from, in each, and the share whose action is replaced
LENGTH, EPISODES = 8, 200  # of the second log
UPDATES, STAGE = 1_000, 50  # all of them, and those between two refinements of the labels
ERROR, LEARNT_ERROR = "squared error on fresh states", "squared error to the right action on states with a wrong one"
NETWORK, ADAM = Feedforward((256, 256), "relu"), Adam(learning_rate=1e-3, anneal=False, max_grad_norm=None, epsilon=1e-8)
SIZES = {"rule.width": 32, "rule.layers": 1, "rule.state_size": 8, "rule.reward_network.hidden": (8,), "rule.step.learning_rate": 1e-3}
SIZES |= {"rule.step.max_grad_norm": None, "updates": STAGE, "normalise_observations": False}
NOISE = {"rule.context": 1, "rule.refresh_every": STAGE, "batch_size": 100}
PRODUCT = {"rule.context": 4, "rule.beta": 0.0, "batch_size": 32}
of_log = functools.partial(jax.random.fold_in, data=0xDA7A)  # the key of what is drawn for a learner's log
STATE, ACTION = spaces.Box(-3.0, 3.0, (NUMBERS,)), spaces.Box(-1.0, 1.0, (1,))


def right(weight, states):
    """What is to be done in states (..., NUMBERS)."""
    return jnp.sin(states @ weight)[..., None] * 0.9


def log(states, actions, reward, last) -> Dataset:
    """Episodes (n, steps) that end with their last step."""
    after = jnp.concatenate([states[:, 1:], states[:, -1:]], axis=1)
    ends = jnp.broadcast_to(jnp.arange(states.shape[1]) == last, states.shape[:2])
    columns = (x.reshape(-1, *x.shape[2:]) for x in (states, actions, reward, after, ends, jnp.zeros_like(ends)))
    return Dataset(*columns, STATE, ACTION, "made")


def said(learner, to_go, states, actions):
    """The mean of the last action of windows (n, K, ...)."""
    steps, mask = jnp.arange(states.shape[1]), jnp.ones(states.shape[1])
    return jax.vmap(lambda *x: learner.actor(*x, steps, mask).mean[-1])(to_go / learner.extra.asked.scale, states, actions)


class Corrupted(NamedTuple):
    """States, actions of which some are wrong, and what is measured of a function that says an action of a state."""

    states: jax.Array
    actions: jax.Array
    fresh: jax.Array
    wrong: jax.Array
    weight: jax.Array

    def judge(self, says):
        error = lambda s: (says(s) - right(self.weight, s))[:, 0] ** 2  # noqa: E731
        return jnp.mean(error(self.fresh)), jnp.average(error(self.states), weights=self.wrong[:, 0])


def drawn(key) -> Corrupted:
    keys = jax.random.split(key, 5)
    weight = jax.random.normal(keys[0], (NUMBERS,))
    states, fresh = jax.random.normal(keys[1], (STATES, NUMBERS)), jax.random.normal(keys[2], (1_000, NUMBERS))
    wrong = jax.random.bernoulli(keys[3], WRONG, (STATES, 1))
    return Corrupted(states, jnp.where(wrong, jax.random.uniform(keys[4], (STATES, 1), minval=-1.0), right(weight, states)), fresh, wrong, weight)


def corrupted(key):
    """(log of one-step episodes, what is measured of a learner: ERROR, and LEARNT_ERROR)."""
    problem = drawn(key)

    def judge(learner):
        return problem.judge(lambda s: said(learner, jnp.zeros((len(s), 1)), s[:, None], jnp.zeros((len(s), 1, 1))))

    return log(problem.states[:, None], problem.actions[:, None], jnp.zeros((STATES, 1)), 0), judge


def products(key):
    """The same of episodes whose action is sign(s_1) R / 3, brought into the bounds; ERROR only."""

    def episodes(key, n: int):
        k_state, k_reward = jax.random.split(key)
        states = jax.random.normal(k_state, (n, LENGTH, NUMBERS))
        reward = jax.random.uniform(k_reward, (n, LENGTH), minval=-1.0)
        to_go = jnp.cumsum(reward[:, ::-1], axis=1)[:, ::-1]
        return states, reward, to_go, jnp.sign(states[..., :1]) * jnp.clip(to_go[..., None] / 3, -1, 1)

    k_data, k_fresh = jax.random.split(key)
    states, reward, _, actions = episodes(k_data, EPISODES)
    seen, _, to_go, taken = (x[:, : PRODUCT["rule.context"]] for x in episodes(k_fresh, 1_000))
    data = log(states, actions, reward, LENGTH - 1)
    return data, lambda learner: (jnp.mean((said(learner, to_go, seen, taken) - taken[:, -1]) ** 2),)


@functools.partial(jax.jit, static_argnums=0)
def measured(made, method, keys):
    """What is measured of a learner of each key after UPDATES updates on a log of its own."""

    def one(key, start):
        data, judge = made(of_log(key))
        task = DataTask(data, UPDATES)
        return judge(jax.lax.fori_loop(0, UPDATES // STAGE, lambda _, s: method.step(task, s)[0], start).learner)

    starts = jax.lax.map(lambda key: method.init(DataTask(made(of_log(key))[0], UPDATES), key), keys)  # not by vmap; see measures._train
    return jax.vmap(one)(keys, starts)


@jax.jit
def plain(betas, keys):
    """The same of a plain network that learns from all rows of the first log in every update; betas (stages,)."""
    says = lambda actor, states: jax.vmap(lambda s: actor(s, ()).mean)(states)  # noqa: E731

    def one(key, actor):
        problem = drawn(of_log(key))

        def stage(k, now):
            label = refined(problem.actions, says(now[0], problem.states), betas[k])

            def update(_, now):
                slope = jax.grad(lambda actor: jnp.mean((says(actor, problem.states) - label) ** 2))(now[0])
                return ADAM.update(slope, now[1], now[0], 0.0)

            return jax.lax.fori_loop(0, STAGE, update, now)

        actor, _ = jax.lax.fori_loop(0, UPDATES // STAGE, stage, (actor, ADAM.init(actor)))
        return problem.judge(functools.partial(says, actor))

    return jax.vmap(one)(keys, jax.lax.map(functools.partial(ClonedActor, NETWORK, STATE, ACTION), keys))


def run(seeds: list[int]) -> dict[str, Side]:
    method, sides, keys = replace(decision_mamba(None), SIZES), {}, jax.vmap(jax.random.key)(jnp.array(seeds))

    def side(setting, found) -> Side:
        return Side({**setting, "updates": UPDATES}, {measure: np.asarray(x, np.float64) for measure, x in zip((ERROR, LEARNT_ERROR), found)})

    stage = np.arange(UPDATES // STAGE) * STAGE / UPDATES  # its share of the run that is done
    for name, betas in (("beta 0", 0 * stage), ("beta 0.95", 0.95 * (stage > 0)), ("beta rising to 0.95", 0.95 * stage)):
        setting = {"betas": [round(float(beta), 4) for beta in betas], **configuration(NETWORK), **configuration(ADAM)}
        sides[f"plain network, {name}"] = side(setting, plain(jnp.asarray(betas, jnp.float32), keys))
    plan = {f"beta {beta:g}": (corrupted, NOISE | {"rule.beta": beta}) for beta in (0.0, 0.95)}
    plan |= {name: (products, PRODUCT | {"rule.fine": fine}) for name, fine in (("coarse and fine", True), ("both coarse", False))}
    for name, (made, changes) in plan.items():
        changed = replace(method, changes)
        sides[name] = side(configuration(changed), measured(made, changed, keys))
    return sides


CLAIM = Claim(
    method="decision_mamba",
    statement="Labels that are mixed with what the policy said before keep wrong actions from being learnt by heart, and a branch that stays within "
    "a step learns better what hangs on return and state together.",
    baseline="the same network on the labels of the log; the same with a second branch that convolves over all tokens, of equally many numbers",
    task=f"regression of the right action: {STATES} states of {NUMBERS} numbers, {WRONG:.0%} of the actions uniform; {EPISODES} episodes of {LENGTH} "
    f"steps with a_t = sign(s_t) R_t / 3; {UPDATES} updates, one block of width 32 or a plain network of 256 x 256, Adam 1e-3; a log of its own "
    "for each seed",
    run=run,
    checks=(
        Check(ERROR, "plain network, beta 0.95", over="plain network, beta 0", ratio=True, below=0.8),
        Check(ERROR, "beta 0.95", over="beta 0", ratio=True, below=0.8),
        Check(LEARNT_ERROR, "beta 0.95", over="beta 0", ratio=True, below=0.9),
        Check(ERROR, "coarse and fine", over="both coarse", ratio=True, below=0.8),
    ),
    seconds=200,
    slow=True,
    analysis="Refined labels keep their promise where they come at once: a plain network whose labels are its own by .95 from the second stage on "
    "has 0.71 of the error on fresh states, and half of that to the right action where the log is wrong. A share that rises over the run, as the "
    "paper's, comes too late for it (0.96). The state space of width 32 learns fewer wrong actions by heart to begin with (an error of 0.38 there, "
    "the plain network 0.74), so that there is less to win: 0.86, its interval on both sides of 0.8. Held at .95 from the second stage on it learns "
    "half as many of them (pilot: 0.19 for 0.38), but is hardly better on fresh states (0.17 for 0.18), for what it is held to has learnt for 50 "
    "updates only. The fine branch: at the token of a state a convolution of four tokens sees return and state, too, and the recurrence carries the "
    "return there by itself; staying within a step takes only what was before it away. On the pilot's seeds the error is 0.011 without any "
    "convolution, 0.007 with the fine one alone, 0.006 with two coarse ones.",
)
