"""Text to tokens and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polopt.data.chat import ChatTemplate
from polopt.data.dataset import DataError
from polopt.data.formats import common

PAD, STOP = 0, 1  # of the character tokenizer


class Tokenizer(Protocol):
    """Hashable, as it is static in compiled programs.

    size:  how many tokens there are.
    pad:   the token that stands where there is none.
    stop:  the tokens that end a completion, first the one that ends a demonstration.
    """

    size: int
    pad: int
    stop: tuple[int, ...]

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        """The tokens of a text; `begin` puts those before it that stand before any text, which a chat template writes itself."""
        ...

    def decode(self, tokens) -> str:
        """The text of tokens, without padding, stop and other special tokens."""
        ...

    def chat(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        """A conversation as text, by the chat template; `generate` opens the assistant's next turn."""
        ...


@dataclass(frozen=True)
class CharacterTokenizer:
    """A token a character: 0 is padding, 1 ends a completion, and 2 + i is the i-th character of the alphabet."""

    alphabet: str

    def __post_init__(self):
        twice = {c for c in self.alphabet if self.alphabet.count(c) > 1}
        if twice:
            raise DataError(f"The alphabet {self.alphabet!r} has {min(twice)!r} more than once, but each character is one token; name it once.")

    @property
    def size(self) -> int:
        return 2 + len(self.alphabet)

    @property
    def pad(self) -> int:
        return PAD

    @property
    def stop(self) -> tuple[int, ...]:
        return (STOP,)

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        unknown = next((c for c in text if c not in self.alphabet), None)
        if unknown is not None:
            raise DataError(f"The text {_short(text)} has the character {unknown!r}, but the alphabet is {self.alphabet!r}; give one that has it.")
        return [2 + self.alphabet.index(c) for c in text]

    def decode(self, tokens) -> str:
        return "".join(self.alphabet[int(t) - 2] for t in tokens if 2 <= int(t) < self.size)

    def chat(self, messages, *, generate: bool) -> str:
        raise DataError("The character tokenizer has no chat template, but the data are messages; give a tokenizer directory that has one.")


@dataclass(frozen=True)
class NumberTokenizer:
    """Tokens as the whole numbers that they are, 0 ... size-1, blanks between them; none stops a completion."""

    size: int
    pad: int = 0
    stop: tuple[int, ...] = ()

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        found = [int(word) if word.isdigit() else -1 for word in text.split()]
        if any(not 0 <= token < self.size for token in found):
            raise DataError(f"The text {_short(text)} is not made of whole numbers from 0 to {self.size - 1}, this task's tokens; write those.")
        return found

    def decode(self, tokens) -> str:
        return " ".join(str(int(t)) for t in tokens)

    def chat(self, messages, *, generate: bool) -> str:
        raise DataError("Tokens that are numbers have no chat template, but the data are messages; give a tokenizer directory that has one.")


class HuggingFaceTokenizer:
    """A tokenizer from a directory with `tokenizer.json`, special tokens from `tokenizer_config.json`, and a chat template there or in
    `chat_template.jinja`. Two of the same directory are equal.

    Stop tokens are the end-of-sequence token and those of `generation_config.json`.
    """

    def __init__(self, directory: str | Path):
        package = common.need("tokenizers", f"The tokenizer in {directory}", "language")
        self.directory = Path(directory).resolve()
        file = self.directory / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"{directory} has no tokenizer.json; give the directory of a model that has one, or convert it by transformers.")
        try:
            self._inner = package.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises bare Exceptions
            raise DataError(f"{file} is no tokenizer that can be read ({_first_line(error)}); copy or download it again.") from error
        self._inner.no_padding()
        self._inner.no_truncation()
        config = _json(self.directory / "tokenizer_config.json")
        special = _json(self.directory / "special_tokens_map.json") | config
        self.special = {name: _content(special[name]) for name in special if name.endswith("_token") and special[name] is not None}
        self.special = {name: text for name, text in self.special.items() if isinstance(text, str)}
        self.size = self._inner.get_vocab_size(with_added_tokens=True)
        ends = _json(self.directory / "generation_config.json").get("eos_token_id", [])
        ends = [self._inner.token_to_id(self.special.get("eos_token", "")), *(ends if isinstance(ends, list) else [ends])]
        self.stop = tuple(dict.fromkeys(t for t in ends if t is not None))
        pad = self._inner.token_to_id(self.special.get("pad_token", ""))
        self.pad = pad if pad is not None else self.stop[0] if self.stop else 0
        self.template = ChatTemplate.found(self.directory, config, self.special)

    def __eq__(self, other) -> bool:
        return isinstance(other, HuggingFaceTokenizer) and self.directory == other.directory

    def __hash__(self) -> int:
        return hash((HuggingFaceTokenizer, self.directory))

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer({str(self.directory)!r})"

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        tokens = self._inner.encode(text, add_special_tokens=begin).ids
        while begin and tokens and tokens[-1] in self.stop:  # some end every text, but a prompt goes on
            tokens = tokens[:-1]
        return tokens

    def decode(self, tokens) -> str:
        return self._inner.decode([int(t) for t in tokens], skip_special_tokens=True)

    def chat(self, messages, *, generate: bool) -> str:
        if self.template is None:
            raise DataError(
                f"The tokenizer in {self.directory.name} has no chat template, but the data are messages; add a chat_template.jinja, "
                "or give plain prompts and completions."
            )
        return self.template(messages, generate=generate)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({_first_line(error)}); copy or download it again.") from error


def _content(token) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
