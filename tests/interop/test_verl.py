"""What verl finds under our names, called as verl calls it, against verl's own functions where both are the same algorithm."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.interop.peers import peer

torch = peer("torch")
core = peer("verl.trainer.ppo.core_algos")
ours = peer("polopt.interop.verl")
omegaconf = peer("omegaconf")
verl_config = peer("verl.workers.config")

from polopt.interop.presets import as_verl  # noqa: E402 - behind the skip
from polopt.objectives import advantages, reduction, surrogates  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")


class Batch:
    """What verl's trainer holds: uids of any strings, a group of one, padding, a tool's tokens inside, the reward at the last token."""

    def __init__(self, seed: int = 0, masked=0.0):
        rng = np.random.default_rng(seed)
        self.uid = np.array(["b", "a", "b", "c", "a", "b"], dtype=object)
        mask = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
        self.mask = torch.as_tensor(mask)
        last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
        self.scores = torch.as_tensor(rng.normal(size=6), dtype=torch.float32)
        self.rewards = torch.zeros(mask.shape)
        self.rewards[torch.arange(6), torch.as_tensor(last)] = self.scores
        hidden = self.mask == 0
        self.old, self.new, self.advantages, self.values = (
            torch.where(hidden, masked, torch.as_tensor(x, dtype=torch.float32))
            for x in (-rng.gamma(2, 0.3, mask.shape), -rng.gamma(2, 0.3, mask.shape), rng.normal(size=mask.shape), rng.normal(size=mask.shape))
        )
        self.weights = torch.as_tensor(rng.uniform(0.5, 1.5, mask.shape), dtype=torch.float32)


def algorithm(**polopt):
    """verl's `config.algorithm`, as Hydra composes it; `+algorithm.polopt.NAME=VALUE` adds ours."""
    return omegaconf.OmegaConf.create({"gamma": 1.0, "lam": 1.0, **({"polopt": polopt} if polopt else {})})


def actor(arguments=None, **fields):
    loss = verl_config.PolicyLossConfig() if arguments is None else ours.PolicyLoss(arguments=arguments)
    config = verl_config.ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, policy_loss=loss, **fields)
    config.global_batch_info.update({"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, "loss_scale_factor": None})
    return config


def estimate(name: str, batch: Batch, config=None):
    """As `compute_advantage` of verl's trainer calls an estimator that is not GAE or GRPO."""
    function = core.get_adv_estimator_fn(name)
    return function(token_level_rewards=batch.rewards.clone(), response_mask=batch.mask, config=config or algorithm(), index=batch.uid)


def loss(name: str, batch: Batch, config=None, mode="token-mean", weights=None):
    """As `ppo_loss` of verl's workers calls a policy loss: (value, gradient in log_prob, metrics)."""
    log_prob = batch.new.clone().requires_grad_()
    value, metrics = core.get_policy_loss_fn(name)(
        old_log_prob=batch.old,
        log_prob=log_prob,
        advantages=batch.advantages,
        response_mask=batch.mask.to(bool),
        loss_agg_mode=mode,
        config=config or actor(),
        rollout_is_weights=weights,
    )
    value.backward()
    return value.detach(), log_prob.grad, metrics


def equal(given, expected, tolerance=1e-5):
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


# -- how verl finds us -------------------------------------------------------------------------------------------------


def test_the_entry_point_names_this_module():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points["verl.plugins"] == {"polopt": ours.__name__}


def test_importing_verl_registers_our_names():
    """In a process that never mentions polopt, as in every worker of Ray."""
    from importlib.metadata import entry_points

    if not any(point.value == ours.__name__ for point in entry_points(group="verl.plugins")):
        pytest.skip("the polopt that is installed here is older than its entry point; `make interop` installs this one")
    program = """
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
print([n for r in (ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY) for n in r if n.startswith("polopt")])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "polopt_rloo" in done.stdout and "polopt_spo" in done.stdout


# -- advantages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "lite_ppo", "rloo", "opo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_estimators_give_what_the_trainer_stores(name):
    """An advantage for every token, 0 at masked ones, and returns of one shape; what came in is not changed."""
    batch = Batch()
    before = batch.rewards.clone()
    advantage, returns = estimate(f"polopt_{name}", batch)
    assert advantage.shape == returns.shape == batch.mask.shape and advantage.dtype == torch.float32
    assert not advantage[batch.mask == 0].any() and advantage[batch.mask == 1].any()
    equal(batch.rewards, before, 0.0)


@pytest.mark.parametrize(
    "name, theirs, arguments",
    [
        ("rloo", "rloo_vectorized", {}),
        ("rloo", "rloo", {"group_of_one": "raw"}),
        ("grpo", "grpo_vectorized", {"ddof": 1, "group_of_one": "raw"}),
        ("opo", "opo", {"group_of_one": "raw"}),
        ("reinforce_plus_plus", "reinforce_plus_plus", {"ddof": 1, "epsilon_in": "variance"}),
    ],
)
def test_estimators_equal_verls_own(name, theirs, arguments):
    batch = Batch()
    given = estimate(f"polopt_{name}", batch, algorithm(**arguments))
    expected = estimate(theirs, batch)
    for x, y in zip(given, expected):
        equal(x * batch.mask, y * batch.mask)


def test_reinforce_plus_plus_baseline_differs_in_groups_of_one_alone():
    """verl leaves the raw reward of a group of one in, which moves what everything is standardised by."""
    batch = Batch()
    keep = [i for i, uid in enumerate(batch.uid) if uid != "c"]
    batch.uid, batch.rewards, batch.mask = batch.uid[keep], batch.rewards[keep], batch.mask[keep]
    given = estimate("polopt_reinforce_plus_plus_baseline", batch, algorithm(ddof=1, epsilon_in="variance"))[0]
    equal(given, estimate("reinforce_plus_plus_baseline", batch)[0])


def test_a_group_of_one_gets_nothing():
    alone = Batch().uid == "c"
    assert not estimate("polopt_grpo", Batch())[0][alone].any() and estimate("grpo", Batch())[0][alone].any()


@pytest.mark.parametrize("arguments, message", [({"ddoff": 1}, "ddoff"), ({"rewards": 1}, "rewards")])
def test_an_estimator_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(ValueError, match=rf"polopt_grpo.*{message}.*\+algorithm.polopt"):
        estimate("polopt_grpo", Batch(), algorithm(**arguments))


def test_an_estimator_without_uids():
    batch = Batch()
    with pytest.raises(ValueError, match="uid"):
        core.get_adv_estimator_fn("polopt_rloo")(token_level_rewards=batch.rewards, response_mask=batch.mask, config=algorithm())


def test_an_estimator_of_ones_own():
    ours.register_advantage("test_of_ones_own", lambda rewards, lengths, power=1: rewards * lengths**power, power=2)
    batch = Batch()
    expected = batch.scores * batch.mask.sum(-1) ** 2
    equal(estimate("test_of_ones_own", batch)[0], expected[:, None] * batch.mask)
    equal(estimate("test_of_ones_own", batch, algorithm(power=0))[0], batch.scores[:, None] * batch.mask)


# -- policy losses -----------------------------------------------------------------------------------------------------

LOSSES = {
    "policy_gradient": {},
    "importance_weighted": {},
    "clipped": {},
    "gspo": {},
    "gspo_token": {},
    "cispo": {},
    "topr": {},
    "spo": {},
    "mdpo": {"step_size": 0.5},
}


@pytest.mark.parametrize("mode", ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_in_every_mode(name, mode):
    """A scalar with a gradient at the tokens that were acted and nowhere else, NaN at the others or not."""
    config = actor(LOSSES[name])
    value, gradient, metrics = loss(f"polopt_{name}", Batch(), config, mode)
    hidden = loss(f"polopt_{name}", Batch(masked=float("nan")), config, mode)
    assert value.shape == () and torch.isfinite(value) and all(np.isfinite(x) for x in metrics.values())
    assert not gradient[Batch().mask == 0].any() and gradient[Batch().mask == 1].any()
    if mode in ("token-mean", "token-sum"):  # verl's sums over a sequence multiply NaN by 0
        equal(hidden[0], value, 0.0)
    equal(hidden[1], gradient, 0.0)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize(
    "name, theirs, arguments",
    [
        ("clipped", "vanilla", {"dual": 3.0, "log_ratio_limit": 20.0}),
        ("gspo_token", "gspo", {}),
        ("cispo", "cispo", {"low": 0.2, "log_ratio_limit": 20.0}),
        ("policy_gradient", "gpg", {}),
    ],
)
def test_losses_equal_verls_own(name, theirs, arguments, mode):
    for weights in (None, Batch().weights):
        given = loss(f"polopt_{name}", Batch(3), actor(arguments), mode, weights)
        expected = loss(theirs, Batch(3), actor(), mode, weights)
        equal(given[0], expected[0])
        equal(given[1], expected[1])
        if expected[2]:
            assert given[2]["actor/ppo_kl"] == pytest.approx(expected[2]["actor/ppo_kl"], abs=1e-5)


def test_widths_are_verls_clip_ratios():
    batch = Batch()
    narrow = loss("polopt_clipped", batch, actor(clip_ratio_low=0.01, clip_ratio_high=0.02))[0]
    expected = reduction.reduce(surrogates.clipped(batch.new, batch.old, batch.advantages, 0.01, 0.02, mask=batch.mask), batch.mask, "token")
    equal(narrow, expected)
    assert loss("polopt_spo", batch, actor(clip_ratio=0.5))[0] != loss("polopt_spo", batch, actor())[0]
    equal(loss("polopt_spo", batch, actor(clip_ratio=0.5))[0], loss("polopt_spo", batch, actor({"width": 0.5}))[0])


def test_the_global_batch_is_what_divides():
    """Micro-batches of verl add up to the whole."""
    batch, config = Batch(), actor()
    whole = loss("polopt_spo", batch, config)[0]
    config.global_batch_info["batch_num_tokens"] = int(batch.mask.sum())
    total = 0.0
    for rows in (slice(0, 2), slice(2, 6)):
        part = Batch()
        part.old, part.new, part.advantages, part.mask = (x[rows] for x in (batch.old, batch.new, batch.advantages, batch.mask))
        total = total + loss("polopt_spo", part, config)[0]
    equal(total, whole)


@pytest.mark.parametrize("arguments, message", [({"widht": 0.3}, "widht"), ({"advantage": 1}, "advantage")])
def test_a_loss_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(ValueError, match=f"polopt_spo.*{message}.*PolicyLoss"):
        loss("polopt_spo", Batch(), actor(arguments))


def test_a_loss_says_what_it_needs():
    with pytest.raises(ValueError, match="polopt_mdpo needs.*step_size"):
        loss("polopt_mdpo", Batch())


def test_a_loss_of_ones_own():
    ours.register_surrogate("test_of_ones_own", surrogates.topr, cap=0.5)
    batch = Batch()
    expected = reduction.reduce(surrogates.topr(batch.new, batch.old, batch.advantages, cap=0.5, mask=batch.mask), batch.mask, "token")
    equal(loss("test_of_ones_own", batch)[0], expected)


def test_the_command_line_reaches_the_loss():
    """verl's own configuration, composed by Hydra from the documented overrides and made into the worker's dataclass."""
    hydra = peer("hydra")
    to_dataclass = peer("verl.utils.config").omega_conf_to_dataclass
    overrides = [
        "algorithm.adv_estimator=polopt_grpo",
        "+algorithm.polopt.ddof=1",
        "actor_rollout_ref.actor.policy_loss.loss_mode=polopt_spo",
        "actor_rollout_ref.actor.policy_loss._target_=polopt.interop.verl.PolicyLoss",
        "+actor_rollout_ref.actor.policy_loss.arguments.width=0.3",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    made = to_dataclass(config.actor_rollout_ref.actor)
    made.global_batch_info.update({"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, "loss_scale_factor": None})
    assert made.policy_loss.loss_mode == "polopt_spo" and dict(made.policy_loss.arguments) == {"width": 0.3}
    equal(loss(made.policy_loss.loss_mode, Batch(), made)[0], loss("polopt_spo", Batch(), actor({"width": 0.3}))[0])
    given = estimate(config.algorithm.adv_estimator, Batch(), config.algorithm)[0]
    equal(given, estimate("polopt_grpo", Batch(), algorithm(ddof=1))[0])


# -- presets -----------------------------------------------------------------------------------------------------------


def index(batch):
    return torch.as_tensor(np.unique(batch.uid, return_inverse=True)[1])


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized", "rloo", "rloo_vectorized"])
def test_preset_of_group_advantages(name):
    for seed in range(5):
        batch = Batch(seed)
        equal(as_verl["adv_estimator"][name](batch.scores, index(batch))[:, None] * batch.mask, estimate(name, batch)[0])


def test_preset_without_deviation():
    batch = Batch()
    for choice, preset in as_verl["norm_adv_by_std_in_grpo"].items():
        theirs = core.compute_grpo_outcome_advantage(batch.rewards.clone(), batch.mask, batch.uid, norm_adv_by_std_in_grpo=choice)[0]
        equal(preset(batch.scores, index(batch))[:, None] * batch.mask, theirs)


def test_preset_of_opo():
    batch = Batch()
    equal(as_verl["adv_estimator"]["opo"](batch.scores, batch.mask.sum(-1), index(batch))[:, None] * batch.mask, estimate("opo", batch)[0])


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_preset_of_reinforce_plus_plus_and_whitening(scale):
    """Rewards so small that epsilon matters show that it is added to the variance."""
    batch = Batch()
    batch.rewards, batch.scores = batch.rewards * scale, batch.scores * scale
    preset, whiten = as_verl["adv_estimator"], as_verl["whiten"]
    returns = preset["reinforce_plus_plus"](batch.rewards, torch.zeros_like(batch.rewards), batch.mask)
    equal(whiten(returns, batch.mask), estimate("reinforce_plus_plus", batch)[0])
    centred = preset["reinforce_plus_plus_baseline"](batch.scores, index(batch))[:, None] * batch.mask
    equal(whiten(centred, batch.mask), estimate("reinforce_plus_plus_baseline", batch)[0])


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8)])
def test_preset_of_gae(gamma, lam):
    batch = Batch()
    theirs, returns = core.compute_gae_advantage_return(batch.rewards, batch.values, batch.mask, gamma, lam)
    given = as_verl["adv_estimator"]["gae"](batch.rewards, batch.values, batch.mask, discount=gamma, lam=lam)
    equal((given + batch.values) * batch.mask, returns * batch.mask)
    equal(as_verl["whiten"](given, batch.mask), theirs * batch.mask)


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("name", ["vanilla", "gspo", "cispo", "gpg"])
def test_preset_of_losses(name, spread):
    """Also where ratios are extreme: log-ratios beyond 20 in both directions."""
    batch = Batch(7)
    batch.new = batch.new * spread if name != "gspo" else batch.new  # whose limit of the sequence's log-ratio is verl's alone
    log_prob = batch.new.clone().requires_grad_()
    preset = as_verl["loss_mode"][name]
    old = () if preset.func is surrogates.policy_gradient else (batch.old,)
    value = reduction.reduce(preset(log_prob, *old, batch.advantages, mask=batch.mask), batch.mask, "token")
    value.backward()
    expected = loss(name, batch)
    equal(value.detach(), expected[0])
    equal(log_prob.grad, expected[1])


def test_the_limit_of_the_log_ratio_is_felt():
    """Without a dual clip a punished token's ratio is free: exp(20) with verl's limit, and then without gradient."""
    log_prob, old, advantage = torch.tensor([[30.0]], requires_grad=True), torch.zeros(1, 1), -torch.ones(1, 1)
    limited = surrogates.clipped(log_prob, old, advantage, 0.2, log_ratio_limit=20.0)
    limited.backward()
    equal(limited.detach(), torch.exp(torch.tensor([[20.0]])))
    assert not log_prob.grad.any() and surrogates.clipped(log_prob, old, advantage, 0.2) > 2 * limited


@pytest.mark.parametrize("name", ["kl", "k1", "mse", "k2", "low_var_kl", "k3"])
def test_preset_of_kl(name):
    """Up to log-ratios of 60: k3 saturates at 10 there, without gradient."""
    gap = torch.linspace(-60, 60, 41)
    ref, ones = torch.full_like(gap, -61.0), torch.ones_like(gap)
    sides = []
    for function in (lambda x: as_verl["kl_loss_type"][name](x, ref), lambda x: core.kl_penalty(x, ref, name)):
        log_prob = (ref + gap).requires_grad_()
        value = function(log_prob)
        value.backward(ones)
        sides.append((value.detach(), log_prob.grad))
    equal(sides[0][0], sides[1][0])
    equal(sides[0][1], sides[1][1])


@pytest.mark.parametrize("name", list(as_verl["loss_agg_mode"]))
def test_preset_of_aggregation(name):
    batch = Batch()
    scale = {"scale": batch.mask.shape[1]} if name.endswith("norm") else {}
    equal(as_verl["loss_agg_mode"][name](batch.advantages, batch.mask, **scale), core.agg_loss(batch.advantages, batch.mask, name))
    count = {"token-mean": 40, "token-sum": None}.get(name, 9)
    if count:
        theirs = core.agg_loss(batch.advantages, batch.mask, name, batch_num_tokens=40, global_batch_size=9, loss_scale_factor=7)
        scale = {"scale": 7} if name.endswith("norm") else {}
        equal(as_verl["loss_agg_mode"][name](batch.advantages, batch.mask, count=count, **scale), theirs)


def test_preset_of_the_value_loss():
    batch = Batch()
    given = reduction.reduce(as_verl["value_loss"](batch.values, batch.old, batch.new), batch.mask, "token")
    equal(given, core.compute_value_loss(batch.values, batch.new, batch.old, batch.mask, cliprange_value=0.5)[0])


def test_defaults_of_ours_are_not_verls():
    """What the presets are for: without one, a pair gets +-1 and verl's +-0.707."""
    rewards, ids = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64)
    equal(advantages.group_relative(rewards, ids), torch.tensor([1.0, -1.0]), 1e-4)
    equal(as_verl["adv_estimator"]["grpo"](rewards, ids), torch.tensor([2**-0.5, -(2**-0.5)]), 1e-4)
