"""Chat templates: Jinja programs that write a conversation as one text, with the names that Hugging Face's templates rely on."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.data.dataset import DataError
from polopt.data.formats import common


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source and the special tokens that it may name, such as `bos_token`.

    Templates come with models from anyone, so they run in Jinja's sandbox, which lets them change nothing. They see `messages`,
    `add_generation_prompt`, `tools`, `documents`, the special tokens, `raise_exception(text)` and `strftime_now(format)`, the filter `tojson` writes
    JSON as it is, `break`, `continue` and `{% generation %}` are known, and blocks leave no blank lines.
    """

    source: str
    special: tuple[tuple[str, str], ...]
    where: str

    @classmethod
    def found(cls, directory: Path, config: dict[str, Any], special: dict[str, str]) -> ChatTemplate | None:
        """The template of a model's directory: `chat_template.jinja`, or what `tokenizer_config.json` holds, the one named default of several."""
        file = directory / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            if "default" not in named:
                raise DataError(f"{directory} has the chat templates {', '.join(named)}, but none is named default; keep one as chat_template.jinja.")
            source = named["default"]
        return None if not source else cls(source, tuple(sorted(special.items())), directory.name)

    def __call__(self, messages: list[dict[str, Any]], *, generate: bool) -> str:
        """The conversation as text; `generate` opens the assistant's next turn."""
        jinja2 = common.need("jinja2", "A chat template", "language")
        program = _environment(jinja2)
        try:
            template = program.from_string(self.source)
            return template.render(messages=messages, add_generation_prompt=generate, tools=None, documents=None, **dict(self.special))
        except Exception as error:  # a template is a program, and can fail as programs do
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise DataError(
                f"The chat template of {self.where} refuses a conversation of {roles} ({reason}); change the messages or the template."
            ) from error


def _environment(jinja2):
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} ... {% endgeneration %}` marks what the assistant wrote; the text stays as it is."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    program = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    program.filters["tojson"] = tojson
    program.globals["raise_exception"] = raise_exception
    program.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return program
