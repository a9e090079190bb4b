"""The template of a run, which turns instructions and chats into the text that a model reads.

Every section of a template shows a whole example, with the completion as `{output}`. Only this module decides on the
space between prompt and completion: **spaces right before `{output}` belong to the completion**. Byte-level BPE joins a
space with the word after it, so a prompt must not end in a space. For example, "answer: {output}" gives the prompt
"...answer:" and the completion " yes".

Rows with the fields `prompt` and `completion` are used verbatim, without a template.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data import files
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_text

ROLES = ("system", "user", "assistant", "tool")

Turn = dict[str, Any]  # a turn of a chat: its `role` and `content`, and what else data.messages reads

_PLACEHOLDER = re.compile(r"\{(instruction|input|output|content)\}")


def _section(title: str, default: str, *placeholders: str):
    """Returns the dataclass field of a section, with its title and its placeholders."""
    metadata = {"title": f"[{title}]", "placeholders": placeholders}
    return dataclasses.field(default=default, metadata=metadata)


def _title(field: dataclasses.Field) -> str:
    """Returns the title of a section, e.g. "[user]"."""
    return field.metadata["title"]


@dataclasses.dataclass(frozen=True)
class Template:
    """A template of six sections; `template.txt` holds each section under its `[title]`.

    Raises:
        InputError: a section lacks a placeholder, has an unknown one, or continues after `{output}`.
    """

    with_input: str = _section(
        "instruction with input", "{instruction}\n{input}\nanswer: {output}", "instruction", "input", "output"
    )
    without_input: str = _section("instruction", "{instruction}\nanswer: {output}", "instruction", "output")
    system: str = _section("system", "{content}", "content")
    user: str = _section("user", "user: {content}", "content")
    assistant: str = _section("assistant", "assistant: {output}", "output")
    tool: str = _section("tool", "tool: {content}", "content")

    def __post_init__(self):
        titles = {_title(field) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            text, section = getattr(self, field.name), _title(field)
            found = _PLACEHOLDER.findall(text)
            for name in field.metadata["placeholders"]:
                if found.count(name) != 1:
                    raise InputError(
                        f"section {section} of the template has {{{name}}} "
                        f"{found.count(name)} times; it belongs there once"
                    )
            if extra := set(found) - set(field.metadata["placeholders"]):
                raise InputError(
                    f"section {section} of the template has the unknown placeholder {{{min(extra)}}}; remove it"
                )
            if text != text.strip("\n") or titles & set(text.split("\n")):
                raise InputError(
                    f"section {section} of the template cannot be kept in a file: remove empty lines at its ends, and "
                    "lines that are a [title]"
                )
            if "output" in found and not text.endswith("{output}"):
                raise InputError(
                    f"section {section} of the template goes on after {{output}}; the completion must come last"
                )
        if _cue(self.with_input)[1] != _cue(self.without_input)[1]:
            raise InputError(
                "the two instruction sections of the template have different spaces "
                "before {output}; use the same in both"
            )

    def prompt(self, instruction: str, input: str = "") -> str:
        """Returns the prompt of an instruction; a blank input counts as none."""
        if input.strip():
            return _fill(_cue(self.with_input)[0], instruction=instruction, input=input)
        return _fill(_cue(self.without_input)[0], instruction=instruction)

    def chat(self, messages: Sequence[Turn], tools: Sequence[Mapping] | None = None) -> str:
        """Returns the prompt for the assistant's next turn after `messages`.

        A system turn without text is left out.

        Raises:
            InputError: there are tools, or calls of them, which plain text has no form for.
        """
        if tools:
            raise InputError(f"field 'tools' {_NEEDS_CHAT}")
        turns = [
            self._turn(message["role"], _content(message))
            for message in messages
            if message["role"] != "system" or message["content"].strip()
        ]
        return "\n".join([*turns, _cue(self.assistant)[0]])

    def reply(self, message: Turn) -> str:
        """Returns the completion that a turn of the assistant is behind a prompt of `chat`; raises as `chat` does."""
        return self.completion(_content(message), chat=True)

    def completion(self, output: str, *, chat: bool = False) -> str:
        """Returns a completion with the space that separates it from a prompt of `prompt`, or with `chat` of `chat`."""
        return _cue(self.assistant if chat else self.without_input)[1] + output

    def written(self, prompt: str) -> str:
        """Returns the `prompt` of a row unchanged; a ChatTemplate reads special tokens in it."""
        return prompt

    def written_completion(self, text: str) -> str:
        """Returns the `completion` of a row unchanged; a ChatTemplate reads special tokens in it."""
        return text

    def _turn(self, role: str, content: str) -> str:
        """Returns a turn of a chat as text."""
        text = getattr(self, role)
        return _fill(text, **{"output" if role == "assistant" else "content": content})

    def save(self, path: str | os.PathLike) -> None:
        """Writes the sections as one readable text file."""
        sections = (f"{_title(field)}\n{getattr(self, field.name)}\n" for field in dataclasses.fields(self))
        write_text(path, "\n".join(sections))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Template":
        """Reads what `save` writes; a section that the file leaves out keeps its default.

        Raises:
            InputError: naming the file and the section.
        """
        names = {_title(field): field.name for field in dataclasses.fields(cls)}
        sections: dict[str, list[str]] = {}
        lines: list[str] | None = None
        for number, line in enumerate(files.read_text(path).split("\n"), start=1):
            if line in names:
                if names[line] in sections:
                    raise InputError(f"{path}:{number}: section {line} appears twice; keep one")
                lines = sections[names[line]] = []
            elif lines is not None:
                lines.append(line)
            elif line.strip():
                raise InputError(f"{path}:{number}: a template must start with one of the lines {', '.join(names)}")
        try:
            return cls(**{name: "\n".join(text).strip("\n") for name, text in sections.items()})
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


_NEEDS_CHAT = (
    "has calls of tools, which the plain template cannot write; set data.template='chat' and use a model whose "
    "chat template knows tools"
)


def _content(message: Turn) -> str:
    """Returns the text of a turn; raises InputError for a turn that calls tools."""
    if "tool_calls" in message:
        raise InputError(f"field 'tool_calls' {_NEEDS_CHAT}")
    return message["content"]


def _cue(section: str) -> tuple[str, str]:
    """Returns the part of a section before `{output}` in two: the text, and the spaces at its end."""
    text = section.removesuffix("{output}")
    return text.rstrip(" "), text[len(text.rstrip(" ")) :]


def _fill(section: str, **values: str) -> str:
    """Fills in all placeholders in one pass, so that values may contain braces."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], section)
