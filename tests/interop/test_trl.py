"""The trainer against TRL's own on the same tensors, and a training run of a model of a few thousand weights made here."""

from functools import partial

import numpy as np
import pytest

from tests.interop.peers import peer

torch = peer("torch")
trl = peer("trl")
transformers = peer("transformers")
tokenizers = peer("tokenizers")
datasets = peer("datasets")
peer("tokenizers.models")
peer("tokenizers.pre_tokenizers")
ours = peer("polopt.interop.trl")

from polopt.interop.presets import as_trl  # noqa: E402 - behind the skip
from polopt.objectives import advantages, preferences, reduction, surrogates  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = ["<pad>", "<eos>", "say", "a", "b", "c", "d", "e"]
GROUP = 4


def tokenizer():
    table = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    table.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model(seed: int = 0):
    transformers.set_seed(seed)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    config = transformers.LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    return transformers.LlamaForCausalLM(config)


def prompts():
    return datasets.Dataset.from_dict({"prompt": ["say a", "say b", "say c", "say d"] * 8})


def says_a(completions, **_):
    """The share of a in what was said."""
    return [text.split().count("a") / 6 for text in completions]


def trainer(directory, kind=None, reward=says_a, seed=0, objectives=(), **settings):
    base = dict(
        output_dir=str(directory),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=2 * GROUP,
        num_generations=GROUP,
        max_completion_length=6,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    args = trl.GRPOConfig(**{**base, **settings})
    kind = ours.ObjectiveTrainer if kind is None else kind
    made = directory / "model"  # by its folder, from where TRL loads the reference model
    model(seed).save_pretrained(made)
    return kind(str(made), reward_funcs=reward, args=args, train_dataset=prompts(), processing_class=tokenizer(), **dict(objectives))


def batch(seed=0, rows=2 * GROUP, time=5):
    """What TRL's `_compute_loss` is given; the old policy is not the present one, and a tool wrote a token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, time + 1, rows)
    lengths[0] = time
    tool = np.ones((rows, time), int)
    tool[0, 2] = 0
    return {
        "prompt_ids": torch.as_tensor(rng.integers(2, 8, (rows, 2))),
        "prompt_mask": torch.ones((rows, 2), dtype=torch.int64),
        "completion_ids": torch.as_tensor(rng.integers(1, 8, (rows, time))),
        "completion_mask": torch.as_tensor((np.arange(time) < lengths[:, None]).astype(int)),
        "tool_mask": torch.as_tensor(tool),
        "advantages": torch.as_tensor(rng.normal(size=rows), dtype=torch.float32),
        "old_per_token_logps": torch.as_tensor(rng.normal(-2.1, 0.4, (rows, time)), dtype=torch.float32),
        "ref_per_token_logps": torch.as_tensor(rng.normal(-2.1, 0.4, (rows, time)), dtype=torch.float32),
        "num_items_in_batch": torch.tensor(50),
    }


def loss(subject, inputs, accumulation=2):
    """(value, gradient of every weight)."""
    subject.current_gradient_accumulation_steps = accumulation
    subject.model.train()
    subject.model.zero_grad()
    value = subject._compute_loss(subject.model, inputs)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in subject.model.parameters()])


def equal(given, expected, tolerance=1e-5):
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"beta": 0.3}, {"beta": 0.3, "use_bias_correction_kl": True}], ids=["plain", "kl", "exact-kl"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
def test_the_presets_surrogate_gives_trls_loss_and_gradient(tmp_path, loss_type, settings):
    theirs = trainer(tmp_path, trl.GRPOTrainer, loss_type=loss_type, **settings)
    given = trainer(tmp_path, loss_type=loss_type, objectives={"surrogate": as_trl["loss_type"][loss_type]}, **settings)
    for x, y in zip(loss(given, batch()), loss(theirs, batch())):
        equal(x, y)


OTHERS = {"delta": {"delta": 1.3}, "higher": {"epsilon_high": 0.4}, "sequence": {"importance_sampling_level": "sequence"}}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_trls_other_settings_are_arguments(tmp_path, settings):
    arguments = {"delta": {"dual": 1.3}, "epsilon_high": {"high": 0.4}, "importance_sampling_level": {}}[next(iter(settings))]
    preset = as_trl["importance_sampling_level"][settings.get("importance_sampling_level", "token")]
    theirs = trainer(tmp_path, trl.GRPOTrainer, loss_type="grpo", **settings)
    given = trainer(tmp_path, loss_type="grpo", objectives={"surrogate": partial(preset, **arguments)})
    for x, y in zip(loss(given, batch()), loss(theirs, batch())):
        equal(x, y)


@pytest.mark.parametrize("settings", [{"top_entropy_quantile": 0.5}, {"off_policy_mask_threshold": 0.05}], ids=["entropy", "off-policy"])
def test_what_trl_masks_is_masked(tmp_path, settings):
    theirs = trainer(tmp_path, trl.GRPOTrainer, loss_type="grpo", **settings)
    given = trainer(tmp_path, loss_type="grpo", objectives={"surrogate": as_trl["loss_type"]["grpo"]}, **settings)
    plain = trainer(tmp_path, loss_type="grpo", objectives={"surrogate": as_trl["loss_type"]["grpo"]})
    equal(loss(given, batch())[1], loss(theirs, batch())[1])
    assert not torch.allclose(loss(given, batch())[1], loss(plain, batch())[1], atol=1e-6)


def test_without_a_surrogate_the_loss_is_trls(tmp_path):
    for x, y in zip(loss(trainer(tmp_path), batch()), loss(trainer(tmp_path, trl.GRPOTrainer), batch())):
        equal(x, y, 0.0)


def test_another_surrogate_gives_another_gradient(tmp_path):
    spo, topr = (trainer(tmp_path, objectives={"surrogate": s}) for s in (partial(surrogates.spo, width=0.2), surrogates.topr))
    assert not torch.allclose(loss(spo, batch())[1], loss(topr, batch())[1], atol=1e-4)


def test_a_surrogate_of_two_arguments(tmp_path):
    given = trainer(tmp_path, loss_type="grpo", objectives={"surrogate": surrogates.policy_gradient})
    assert torch.isfinite(loss(given, batch())[0])


# -- advantages --------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Run a generation with an advantage of ours: (ours, TRL's, what was logged)."""
    inner = trl.GRPOTrainer._generate_and_score_completions
    seen = []

    def recording(self, inputs):
        output = inner(self, inputs)
        seen.append(output["advantages"].clone())
        return output

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_and_score_completions", recording)

    def run(advantage, reward=says_a, **settings):
        subject = trainer(tmp_path, reward=reward, objectives={"advantage": advantage}, **settings)
        subject.model.train()
        rows = [{"prompt": prompt} for prompt in ("say a", "say b") for _ in range(GROUP)]
        output = subject._generate_and_score_completions(rows)
        return output["advantages"], seen[-1], list(subject._logs["advantages"])

    return run


def some_are_none(completions, **_):
    return [None if i % 3 == 1 else float(len(text) % 5) for i, text in enumerate(completions)]


@pytest.mark.parametrize("reward", [says_a, some_are_none], ids=["all", "some-unscored"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_presets_advantage_is_trls(both, scale, reward):
    given, theirs, logged = both(as_trl["scale_rewards"][scale], reward, scale_rewards=scale)
    equal(given, theirs)
    assert given.any() and len(logged) == len(given)
    np.testing.assert_allclose(logged, given.numpy(), atol=1e-6)


def test_leave_one_out(both):
    given, theirs, logged = both(advantages.leave_one_out, scale_rewards="none")
    equal(given, theirs * GROUP / (GROUP - 1))
    np.testing.assert_allclose(logged, given.numpy(), atol=1e-6)


def test_lengths_are_given_to_what_takes_them(both):
    seen = {}

    def advantage(rewards, lengths, group_ids):
        seen.update(lengths=lengths, group_ids=group_ids)
        return advantages.length_weighted(rewards, lengths, group_ids)

    given, _, _ = both(advantage)
    assert seen["lengths"].min() >= 1 and seen["lengths"].max() <= 6 and seen["group_ids"].tolist() == [0] * GROUP + [1] * GROUP
    assert given.shape == (2 * GROUP,)


def test_an_advantage_of_the_wrong_shape(both):
    with pytest.raises(ValueError, match="one number per completion"):
        both(lambda rewards: rewards[:, None])


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_reduced_surrogate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reduce nothing"):
        loss(trainer(tmp_path, objectives={"surrogate": lambda log_prob, advantage, mask: log_prob.mean()}), batch())


@pytest.mark.parametrize("settings, message", [({"loss_type": "sapo"}, "sapo"), ({"entropy_coef": 0.1}, "entropy")])
def test_settings_that_a_surrogate_leaves_no_place_for(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, objectives={"surrogate": surrogates.topr}, **settings)


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_raises_the_reward(tmp_path):
    """Leave-one-out advantages and SPO's surrogate: from a sixth of a's to most."""
    objectives = {"advantage": advantages.leave_one_out, "surrogate": partial(surrogates.spo, width=0.2)}
    subject = trainer(tmp_path, objectives=objectives, learning_rate=2e-2, max_steps=40, num_iterations=2, per_device_train_batch_size=32)
    subject.train()
    rewards = [line["reward"] for line in subject.state.log_history if "reward" in line]
    assert np.mean(rewards[:3]) < 0.4 < 0.7 < np.mean(rewards[-3:])
    assert any("ratio_deviation" in line for line in subject.state.log_history)


# -- presets of the other trainers -------------------------------------------------------------------------------------


def test_preset_of_rloo():
    """RLOOTrainer's lines on two groups of three: reward minus the mean of the others, then standardised."""
    rewards, ids = torch.tensor([1.0, 0.0, 2.0, 5.0, 5.0, 4.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    expected = torch.tensor([0.0, -1.5, 1.5, 0.5, 0.5, -1.0])
    equal(as_trl["rloo"](rewards, ids), expected)
    equal(as_trl["normalize_advantages"](expected), (expected - expected.mean()) / (expected.std() + 1e-4))


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_preset_of_dpo(tmp_path, loss_type):
    """DPOTrainer's loss of pairs of different lengths, the reference being another model."""
    pairs = {"prompt": ["say ", "say "], "chosen": ["a b c", "a"], "rejected": ["d", "e d b a"]}
    args = trl.DPOConfig(str(tmp_path), loss_type=loss_type, beta=0.3, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=2)
    data = datasets.Dataset.from_dict(pairs)
    subject = trl.DPOTrainer(model(0), model(1), args=args, train_dataset=data, processing_class=tokenizer())
    subject.model.eval()
    inputs = next(iter(subject.get_train_dataloader()))
    theirs = subject.compute_loss(subject.model, inputs).detach()
    columns, lengths = [], []
    for network in (subject.model, subject.ref_model):
        logits = network(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        per_token = torch.log_softmax(logits, -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0].detach()
        mask = inputs["completion_mask"][:, 1:]
        columns += preferences.sequence_log_prob(per_token, mask).chunk(2)
        lengths = mask.sum(-1).chunk(2)
    arguments = {"tau": 0.3, "lengths": lengths} if loss_type == "ipo" else {"beta": 0.3}
    equal(as_trl["dpo"][loss_type](*columns, **arguments).mean(), theirs)


def test_preset_of_reductions():
    rng = np.random.default_rng(0)
    x, mask = torch.as_tensor(rng.normal(size=(3, 4))), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    equal(as_trl["reduction"]["grpo"](x, mask), ((x * mask).sum(-1) / mask.sum(-1)).mean())
    equal(as_trl["reduction"]["dr_grpo"](x, mask, scale=9), (x * mask).sum() / (3 * 9))
    equal(as_trl["reduction"]["dapo"](x, mask, count=20.0), (x * mask).sum() / 20)
    equal(as_trl["reduction"]["bnpo"](x, mask), reduction.reduce(x, mask, "token"))
