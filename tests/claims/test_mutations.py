"""Breaking a method on purpose turns an oracle test or a verdict red: a line of the real source is changed, and the real test is run on it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.claims import evidence, verify
from polopt.claims.claim import FAILS, HOLDS
from polopt.claims.policy_gradient.gae import CLAIM as GAE_CLAIM
from polopt.core.parts import replace
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.probes import PROBES
from polopt.envs.task import ControlTask
from polopt.loops import temperature
from polopt.loops.episodes import Episodes
from polopt.loops.on_policy import OnPolicy
from polopt.loops.trust_region import TrustRegion
from polopt.loops.utilities import Imitation
from polopt.methods.actor_critic import ddpg, dqn, sac, td3
from polopt.methods.policy_gradient import d_ppo, mdpo, polyak_pg, ppo
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.policy_gradient.general_utilities import VarianceReduced
from polopt.objectives import advantages, divergences, reduction, surrogates, values
from polopt.policies.distributions import Categorical
from tests.loops import test_episodes as of_episodes
from tests.methods.actor_critic import test_ddpg as of_ddpg
from tests.methods.actor_critic import test_dqn as of_dqn
from tests.methods.actor_critic import test_sac as of_sac
from tests.methods.policy_gradient import test_d_ppo as of_d_ppo
from tests.methods.policy_gradient import test_gae as of_gae
from tests.methods.policy_gradient import test_general_utilities as of_utilities
from tests.methods.policy_gradient import test_mdpo as of_mdpo
from tests.methods.policy_gradient import test_polyak_pg as of_polyak
from tests.methods.policy_gradient import test_ppo as of_ppo
from tests.methods.policy_gradient import test_trpo as of_trpo
from tests.objectives import test_advantages as of_advantages
from tests.objectives import test_divergences as of_divergences
from tests.objectives import test_preferences_values_risk as of_values
from tests.objectives import test_reduction as of_reduction
from tests.objectives import test_surrogates as of_surrogates


@contextlib.contextmanager
def broken(function: Callable, old: str, new: str):
    """Inside, the function has `new` where its source has `old`, for everybody who holds it."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} no longer has {old!r} exactly once; mend the mutation"
    made: dict = {}
    code = compile(source.replace(old, new), inspect.getsourcefile(function), "exec", flags=annotations.compiler_flag)
    exec(code, dict(function.__globals__), made)
    before, function.__code__ = function.__code__, made[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = before


def cases(test: Callable) -> Callable[[], None]:
    """All cases of a test: of a parametrised one each, of a property the first few seeds."""
    inner = test.hypothesis.inner_test if hasattr(test, "hypothesis") else None

    def run():
        if inner:
            for seed in range(5):
                inner(seed)
            return
        marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        axes = []
        for names, rows in marks:
            names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
            axes.append([dict(zip(names, row if len(names) > 1 else (row,), strict=True)) for row in rows])
        for chosen in itertools.product(*axes):
            test(**{name: value for case in chosen for name, value in case.items()})

    return run


# -- oracles of what no file of its own tests yet ------------------------------------------------------------------------


def nothing_flows_through_constants():
    """Advantages and the old policy are data: the loss has no gradient in them."""
    new, old, advantage = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (-1.0, -1.1, 2.0))
    found = torch.autograd.grad(surrogates.clipped(new, old, advantage, 0.2).sum(), (new, old, advantage), allow_unused=True)
    assert found[0] is not None and found[1] is None and found[2] is None


@functools.cache
def collected():
    """A small PPO with one iteration's data on episodes that a time limit cuts after 8 steps."""
    task = ControlTask(JaxEnvironment("probe:truncation", PROBES["truncation"]), 1000)
    sizes = {"num_envs": 2, "num_steps": 8, "network.hidden": (4,), "critic_network.hidden": (4,), "normalise_rewards": False}
    method = replace(ppo.ppo(task), {**sizes, "lam": 0.0, "discount": 0.9, "entropy_coefficient": 0.0})

    @jax.jit
    def start(key):
        state = method.init(task, key)
        return state, method.collect(task.env, state, key)[1]

    return method, *start(jax.random.key(0))


def values_go_on_through_a_time_limit():
    method, state, rollout = collected()
    batch = method.judge(state, state.acting, rollout)[0]
    last = np.array(rollout.truncated).ravel()
    following = [float(state.learner.critic((), jnp.ones(1), ())[1])] * 2
    np.testing.assert_allclose(np.array(batch.target)[last], 1 + 0.9 * np.array(following), rtol=1e-5)


def policy_loss(advantage_of=lambda a: a, **changes):
    method, state, rollout = collected()
    batch = method.judge(state, state.acting, rollout)[0]
    varied = batch._replace(advantage=advantage_of(jnp.arange(16.0) % 5))
    return replace(method, changes).policy_loss(state.learner.actor, (), varied)


def an_entropy_bonus_lowers_the_loss():
    plain, _ = policy_loss()
    with_bonus, metrics = policy_loss(entropy_coefficient=1.0)
    np.testing.assert_allclose(with_bonus, plain - metrics["entropy"], rtol=1e-5)


def advantages_are_standardised():
    for change in (lambda a: 7 * a, lambda a: a + 3):
        np.testing.assert_allclose(policy_loss(change)[0], policy_loss()[0], atol=1e-5)


def nothing_leaks_across_episodes():
    """A reward behind the end of a cut episode changes nothing before it."""
    zeros, cut = np.zeros(4), np.array([False, True, False, True])
    found = advantages.generalized_advantage_estimate(np.array([0.0, 0, 5, 5]), zeros, zeros, cut & False, cut, 0.9, 0.9)
    assert not found[:2].any() and found[2:].all()


# -- mutations -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    what: str
    function: Callable
    old: str
    new: str
    oracle: Callable


gae = advantages.generalized_advantage_estimate
three_steps = of_advantages.test_gae_on_three_steps
slopes = cases(of_surrogates.test_value_and_slope)
at_old = cases(of_surrogates.test_at_the_old_policy_all_are_the_policy_gradient)
penalised = of_ppo.test_the_penalised_surrogate_adds_beta_times_the_exact_kl
adapts = cases(of_ppo.test_the_penalty_adapts)
standardised = cases(of_reduction.test_standardise)
biases = cases(of_divergences.test_stated_biases_are_true)
mirror = of_mdpo.test_many_steps_reach_the_closed_form
within_budget = cases(of_trpo.test_no_iteration_spends_more_than_the_budget)
largest_go = of_d_ppo.test_where_the_sum_is_zero_the_largest_of_each_sign_go
smaller = of_ddpg.test_the_smaller_critic_makes_the_targets
soft = of_sac.test_the_target_counts_the_entropy
with_equal_weights = of_sac.test_with_equal_weights_mdpo_is_sac_in_value_and_gradient
temperature_rises = of_sac.test_the_temperature_rises_while_the_entropy_is_too_small
leads_by_the_mean = of_sac.test_an_ensemble_draws_its_critics_and_leads_by_their_mean

halves = of_episodes.test_the_gradient_and_the_hessian_product_are_unbiased
one_update = of_utilities.test_one_update_is_right_on_average
others = of_episodes.test_credit_by_hand
chain_rule = functools.partial(of_utilities.test_the_policy_gradient_of_the_pseudo_reward_is_that_of_the_utility, "imitation")
one_function = of_polyak.test_the_value_and_the_gradient_are_of_one_function

MUTATIONS = [
    Mutation("episodes: half a Hessian", Episodes.hessian_product, "self.weights(there, jax.lax.stop_gradient(actor), trajectories)", "None", halves),
    Mutation("episodes: own return in the baseline", Episodes.credit, " - returns * going)", ")", others),
    Mutation("n-vr-pg: the new policy above", VarianceReduced.__call__, "(before, actor, episodes)", "(actor, before, episodes)", one_update),
    Mutation("n-vr-pg: one pseudo-reward for both", VarianceReduced.__call__, "gradient(before, earlier", "gradient(before, now", one_update),
    Mutation("imitation: away from the expert", Imitation.rewards, "self._target(basis) - moments", "moments - self._target(basis)", chain_rule),
    Mutation("polyak: value without the entropy", polyak_pg.estimate, "loop.value(episodes, rewards)", "loop.value(episodes)", one_function),
    Mutation("ppo: the optimistic of both terms", surrogates._clipped, "xp.maximum(-ratio", "xp.minimum(-ratio", slopes),
    Mutation("ppo: sign of the clipped term", surrogates._clipped, "-near * advantage", "near * advantage", slopes),
    Mutation("ppo: ratio inverted", surrogates._log_ratio, "log_prob - stop_gradient(old_log_prob)", "old_log_prob - log_prob", slopes),
    Mutation("ppo: gradient through the advantage", surrogates._log_ratio, "stop_gradient(advantage)", "advantage", nothing_flows_through_constants),
    Mutation("ppo: KL of the wrong order", ppo.KLPenalty.loss, "old.kl(new)", "new.kl(old)", penalised),
    Mutation("ppo: penalty as a bonus", ppo.KLPenalty.loss, "surrogate + state", "surrogate - state", penalised),
    Mutation("ppo: penalty adapts the wrong way", ppo.adapted_penalty, "1.5, beta / 2", "1.5, beta * 2", adapts),
    Mutation("ppo: KL of categoricals", Categorical.kl, "jnp.exp(log_p)", "jnp.exp(log_q)", penalised),
    Mutation("a2c: uphill", surrogates.policy_gradient, "return -stop", "return stop", at_old),
    Mutation("gae: a time limit ends the value", gae, "xp.astype(terminated,", "xp.astype(ended,", three_steps),
    Mutation("gae: credit across a time limit", gae, "xp.astype(ended,", "xp.astype(terminated,", nothing_leaks_across_episodes),
    Mutation("gae: no lambda", gae, "discount * lam *", "discount *", three_steps),
    Mutation("gae: sign of the value", gae, "next_values - values", "next_values + values", three_steps),
    Mutation("gae: target is A - V", GAE.__call__, ") + values", ") - values", of_gae.test_the_numbers_of_oracle_1),
    Mutation("spo: half the width", surrogates.quadratic_drift, "(2 * width)", "width", slopes),
    Mutation("mdpo: divides by nothing", surrogates.mdpo, "kl / step_size", "kl * step_size", mirror),
    Mutation("mdpo: the policy before as a bonus", mdpo.soft_mirror_loss, "+ temperature * old", "- temperature * old", with_equal_weights),
    Mutation("trpo: downhill", TrustRegion.__call__, "jnp.negative", "jnp.positive", within_budget),
    Mutation("d_ppo: a sample counts with itself", d_ppo.cross_terms, "(phi) - phi)", "(phi) + phi)", of_d_ppo.test_the_numbers_of_the_catalogue),
    Mutation("d_ppo: keeps the harmful", d_ppo.kept, "argsort(-cross_terms", "argsort(cross_terms", largest_go),
    Mutation("ddpg: downhill", ddpg.action_gradient_loss, "return -jnp", "return jnp", of_ddpg.test_the_actor_climbs_a_known_critic),
    Mutation("td3: noise without its clip", td3.Smoothed.__call__, "-self.clip, self.clip)", "-9, 9)", of_ddpg.test_smoothing_is_clipped_noise),
    Mutation("td3: the larger critic", ddpg.Deterministic.target, "jnp.min(value", "jnp.max(value", smaller),
    Mutation("sac: entropy as a cost", sac.soft_value, "value - alpha", "value + alpha", soft),
    Mutation("sac: the temperature runs away", temperature.temperature_loss, "return -jnp", "return jnp", temperature_rises),
    Mutation("sac: an ensemble leads by its least", sac.SoftActorCritic.judged, 'else jnp.mean(value', 'else jnp.min(value', leads_by_the_mean),
    Mutation("dqn: both choices by one network", dqn.backup, "next_online if double", "next_target if double", of_dqn.test_the_backup_by_hand),
    Mutation("dqn: the episode goes on", dqn.backup, "reward + discount *", "reward + 0.5 *", of_dqn.test_the_backup_by_hand),
    Mutation("loop: a time limit ends the value", OnPolicy.judge, "rollout.terminated, ended)", "ended, ended)", values_go_on_through_a_time_limit),
    Mutation("loop: sign of the entropy", OnPolicy.policy_loss, "surrogate - self.", "surrogate + self.", an_entropy_bonus_lowers_the_loss),
    Mutation("loop: advantages as they are", OnPolicy.update, "reduction.standardise(advantages)", "advantages", advantages_are_standardised),
    Mutation("standardise: not centred", reduction.standardise, "centred = (x - mean) * weight", "centred = x * weight", standardised),
    Mutation("value: the optimistic of both errors", values.clipped_squared, "xp.maximum(", "xp.minimum(", of_values.test_clipped_value_loss),
    Mutation("value: sign of the target", values._residual, "target - value", "-target - value", of_values.test_expectile_slopes),
    Mutation("k3: the other direction", divergences.k3, "return xp.expm1(-u) + u", "return xp.expm1(u) - u", of_surrogates.test_k3_of_the_update),
    Mutation("KL: of the wrong order", divergences.categorical_kl, "xp.exp(log_p) *", "-xp.exp(log_q) *", biases),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what)
def test_an_oracle_sees_it(mutation):
    mutation.oracle()
    with broken(mutation.function, mutation.old, mutation.new), pytest.raises(AssertionError):
        mutation.oracle()
    mutation.oracle()


def test_a_verdict_sees_it():
    """Without lambda all lambdas are one, and none has a smaller error than the ends."""
    assert verify.run(GAE_CLAIM, range(5))["verdict"] == HOLDS
    with broken(gae, "discount * lam *", "discount *"):
        assert verify.run(GAE_CLAIM, range(5))["verdict"] == FAILS


def test_a_broken_source_is_stale(tmp_path, monkeypatch):
    """Whatever is broken in a source that a claim depends on, its evidence no longer counts."""
    entry = next(e for e in evidence.registry.entries() if e.key == "gae")
    now = evidence.fingerprints_of(entry)
    evidence.write(evidence.path_of(entry, tmp_path), {"format": 1, "verdict": "holds", "claim": {"fingerprint": now.text}, "sources": now.sources})
    assert evidence.standing(entry, tmp_path).current
    read = evidence.sources.Path.read_text

    def mutated(path, *args, **kwargs):
        text = read(path, *args, **kwargs)
        return text.replace("discount * lam *", "discount *") if path.name == "advantages.py" else text

    evidence.sources._parse.cache_clear()
    monkeypatch.setattr(evidence.sources.Path, "read_text", mutated)
    try:
        assert evidence.standing(entry, tmp_path).changed == ("polopt/objectives/advantages.py",)
    finally:
        evidence.sources._parse.cache_clear()
