"""Tokenizers: characters, numbers, and directories of Hugging Face's with chat templates."""

from __future__ import annotations

import json

import pytest

from polopt.data.dataset import DataError
from polopt.data.tokenizer import CharacterTokenizer, HuggingFaceTokenizer, NumberTokenizer

CHATML = """{%- for message in messages %}
    {%- if message.role == "tool" %}{{ raise_exception("no tools here") }}{% endif %}
    {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>" + "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}"""

SPECIAL = ["<|pad|>", "<s>", "<|im_start|>", "<|im_end|>"]


def test_characters():
    tokenizer = CharacterTokenizer("ab+")
    assert tokenizer.encode("b+a") == [3, 4, 2] and tokenizer.size == 5 and tokenizer.stop == (1,) and tokenizer.pad == 0
    assert tokenizer.decode([0, 0, 3, 4, 2, 1]) == "b+a"
    assert tokenizer == CharacterTokenizer("ab+") and len({tokenizer, CharacterTokenizer("ab+"), CharacterTokenizer("a")}) == 2
    with pytest.raises(DataError, match="The text 'a-b' has the character '-', but the alphabet is 'ab\\+'"):
        tokenizer.encode("a-b")
    with pytest.raises(DataError, match="has 'a' more than once"):
        CharacterTokenizer("aba")
    with pytest.raises(DataError, match="The character tokenizer has no chat template, but the data are messages"):
        tokenizer.chat([{"role": "user", "content": "a"}], generate=True)


def test_numbers():
    tokenizer = NumberTokenizer(12)
    assert tokenizer.encode("3 11") == [3, 11] and tokenizer.decode([3, 11]) == "3 11" and tokenizer.stop == ()
    for text in ("12", "a", "-1"):
        with pytest.raises(DataError, match="not made of whole numbers from 0 to 11"):
            tokenizer.encode(text)
    with pytest.raises(DataError, match="no chat template"):
        tokenizer.chat([], generate=True)


def directory(path, template=CHATML, *, in_config=False, config=None, post=False):
    """A tokenizer of words and signs with four special tokens, as a model's directory holds it."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None, byte_fallback=False))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["hello world, what is two and two"] * 3, trainer)
    if post:
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 3)])
    path.mkdir(exist_ok=True)
    inner.save(str(path / "tokenizer.json"))
    settings = {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}, "pad_token": "<|pad|>", "bos_token": "<s>", "unk_token": None}
    settings |= {"chat_template": template} if in_config else {}
    (path / "tokenizer_config.json").write_text(json.dumps(settings | (config or {})))
    if template and not in_config:
        (path / "chat_template.jinja").write_text(template)
    return path


MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "what is 2+2?"}]


def test_a_directory(tmp_path):
    tokenizer = HuggingFaceTokenizer(directory(tmp_path / "m"))
    text = "hello wörld 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.pad, tokenizer.stop) == (0, (3,)) and tokenizer.size == len(set(range(tokenizer.size)))
    assert tokenizer.decode([0, 0, *tokenizer.encode(text), 3]) == text
    assert tokenizer.encode("<|im_end|>") == [3]
    assert tokenizer == HuggingFaceTokenizer(tmp_path / "m") and hash(tokenizer) == hash(HuggingFaceTokenizer(tmp_path / "m"))
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    assert HuggingFaceTokenizer(tmp_path / "m").stop == (3, 0)


def test_what_stands_before_any_text(tmp_path):
    tokenizer = HuggingFaceTokenizer(directory(tmp_path / "m", post=True))
    plain = tokenizer.encode("two and two")
    assert tokenizer.encode("two and two", begin=True) == [1, *plain] and 3 not in plain


@pytest.mark.parametrize("in_config", [False, True])
def test_a_chat_template(tmp_path, in_config):
    tokenizer = HuggingFaceTokenizer(directory(tmp_path / "m", in_config=in_config))
    turns = "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nwhat is 2+2?<|im_end|>\n"
    assert tokenizer.chat(MESSAGES, generate=False) == turns
    assert tokenizer.chat(MESSAGES, generate=True) == turns + "<|im_start|>assistant\n"
    with pytest.raises(DataError, match=r"The chat template of m refuses a conversation of tool \(no tools here\)"):
        tokenizer.chat([{"role": "tool", "content": "x"}], generate=False)


def test_the_names_that_templates_rely_on(tmp_path):
    template = (
        "{{ bos_token }}{% for m in messages %}\n    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "{{ m | tojson }}{% endfor %}{% generation %}é{% endgeneration %}{{ [{'a': 'é<'}] | tojson(indent=1) }}"
        "{{ strftime_now('%Y') | length }}{% if tools is none and documents is none %}none{% endif %}"
    )
    tokenizer = HuggingFaceTokenizer(directory(tmp_path / "m", template))
    said = tokenizer.chat([*MESSAGES, *MESSAGES], generate=False)
    assert said.startswith('<s>{"role": "system", "content": "be short"}')
    assert said.endswith('é[\n {\n  "a": "é<"\n }\n]4none') and said.count("role") == 2


def test_templates_run_in_a_sandbox(tmp_path):
    for template in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        tokenizer = HuggingFaceTokenizer(directory(tmp_path / "m", template))
        with pytest.raises(DataError, match="The chat template of m refuses a conversation of system, user .*(unsafe|not safely)"):
            tokenizer.chat(MESSAGES, generate=False)


def test_named_templates(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    assert HuggingFaceTokenizer(directory(tmp_path / "m", named, in_config=True)).chat(MESSAGES, generate=True) == "plain"
    with pytest.raises(DataError, match="has the chat templates tool_use, but none is named default"):
        HuggingFaceTokenizer(directory(tmp_path / "n", named[1:], in_config=True))


def test_templates_say_what_transformers_says(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = HuggingFaceTokenizer(directory(tmp_path / "m"))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "m")
    for generate in (False, True):
        text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=generate)
        assert tokenizer.chat(MESSAGES, generate=generate) == text
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_directories_that_cannot_be_used(tmp_path):
    plain = HuggingFaceTokenizer(directory(tmp_path / "plain", None))
    with pytest.raises(DataError, match="The tokenizer in plain has no chat template, but the data are messages; add a chat_template.jinja"):
        plain.chat(MESSAGES, generate=True)
    (tmp_path / "plain" / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer_config.json is no JSON"):
        HuggingFaceTokenizer(tmp_path / "plain")
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json is no tokenizer that can be read"):
        HuggingFaceTokenizer(tmp_path / "plain")
    with pytest.raises(DataError, match="has no tokenizer.json; give the directory of a model"):
        HuggingFaceTokenizer(tmp_path)
    broken = HuggingFaceTokenizer(directory(tmp_path / "broken", "{% for %}"))
    with pytest.raises(DataError, match="The chat template of broken refuses"):
        broken.chat(MESSAGES, generate=True)
