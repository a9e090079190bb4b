"""The chat template of a released model: Jinja source that writes a chat in the format that the model was trained on.

`ChatTemplate` takes the place of data/template.py's `Template`, for rows with messages or an instruction. A chat
template is a third party's program, so it runs in Jinja's sandbox, in a separate process with limits
(jinja_process.py).
"""

import datetime
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data import jinja_process
from rlhf_jax.data.template import Turn
from rlhf_jax.runtime.errors import InputError

# Text in a message that looks like a special token is put between these two marks, so that the tokenizer reads it as
# plain text: only the template may end a turn. The marks are Unicode noncharacters, which no text contains.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
LITERAL = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
# In a completion it is the other way round, because text that a model samples has no marks: what looks like a special
# token is plain text, unless it is between these two marks.
_BEGIN, _END = "\ufdd2", "\ufdd3"
SPECIAL = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")
START = "\ufdd4"  # before a prompt that is no chat, and that the tokenizer starts as any other text
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_BEGIN}{_END}{START}]")


def shown(text: str) -> str:
    """Returns a prompt or completion without the marks, for people to read."""
    return _MARKS.sub("", text)


_QUESTION: list[Turn] = [{"role": "user", "content": "question"}]
_PROBE = "REPLY"

# A chat with a tool, its call and its result: what of it a template writes, it knows.
_TOOL = {"type": "function", "function": {"name": "PROBE_TOOL", "description": "", "parameters": {"type": "object"}}}
_CALL = {"id": "callcall1", "type": "function", "function": {"name": "PROBE_CALL", "arguments": {}}}
_CALLED: list[Turn] = [
    *_QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "name": "PROBE_CALL", "tool_call_id": "callcall1", "content": "PROBE_RESULT"},
]


class ChatTemplate:
    """Renders turns of a chat (see data/messages.py) into prompts, and replies into completions.

    The template is checked at its first use: a method raises InputError if it is no valid Jinja or cannot be used.

    Args:
        source: Jinja source of the template.
        special: the tokens that the template may refer to, e.g. 'bos_token' -> '<s>'.
        special_tokens: all special tokens of the tokenizer.
        name: name of the tokenizer, for error messages.
        now: the time that strftime_now gives the template; None gives the current time. A run fixes the time, so that
            its batches do not depend on the day.
        bos: the token that the tokenizer puts before every sequence, or None.
    """

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        special_tokens: Iterable[str],
        name: str = "tokenizer",
        now: datetime.datetime | None = None,
        bos: str | None = None,
    ):
        self._bos = bos or ""
        self._source, self._now = source, now
        self._name, self._special = name, dict(special)
        longest_first = sorted({*special_tokens, *special.values()}, key=len, reverse=True)
        self._special_token = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def prompt(self, instruction: str, input: str = "") -> str:
        """Returns the prompt of an instruction, as one user turn; a blank input counts as none."""
        text = "\n\n".join(part for part in (instruction, input) if part.strip())
        return self.chat([{"role": "user", "content": text}])

    def chat(self, messages: Sequence[Turn], tools: Sequence[Mapping] | None = None) -> str:
        """Returns the prompt for the assistant's next turn after `messages`, where it may call `tools`.

        Raises:
            InputError: the template refuses these messages, e.g. because of an unknown role, or would leave out tools,
                their calls or their results without a word.
        """
        if tools:
            self._check_writes("PROBE_TOOL", "the field 'tools'")
        for message in messages:
            self._check_calls(message)
            if message["role"] == "tool":
                self._check_writes("PROBE_RESULT", "the turns of tools")
        return self._render(messages, add_generation_prompt=True, tools=tools)

    def completion(self, output: str, *, chat: bool = False) -> str:
        """Returns a completion as it follows a prompt, without the token that ends it; see `reply`."""
        del chat  # an instruction is a chat of one turn
        return self.reply({"role": "assistant", "content": output})

    def reply(self, message: Turn) -> str:
        """Returns the completion that a turn of the assistant is behind a prompt, without the token that ends it.

        The template renders the completion, because some templates strip the space around a reply, and because only
        the template knows how a call of a tool is written.

        Raises:
            InputError: the template refuses this reply, or does not write it right after its prompt.
        """
        self._check_calls(message)
        reply = self._reply
        if not reply.behind:
            raise InputError(
                f"{self._name}: the chat template does not write a reply behind its prompt (it writes "
                f"{reply.whole[:200]!r} after the prompt {reply.before[:200]!r}); give rows with the fields prompt and "
                "completion, written as the model reads them"
            )
        whole = self._render([*_QUESTION, message], add_generation_prompt=False)
        behind = whole.removeprefix(reply.before)
        if not whole.startswith(reply.before) or not behind.endswith(reply.after):
            raise InputError(
                f"{self._name}: the chat template does not write this reply right behind its prompt; give the row with "
                "the fields prompt and completion"
            )
        parts = LITERAL.split(behind.removesuffix(reply.after) + reply.tail)  # every other part is literal
        return "".join(part if i % 2 else self._marked(part) for i, part in enumerate(parts))

    @property
    def end(self) -> str:
        """The special token that ends a reply."""
        return self._reply.end

    def check_ends(self) -> None:
        """Raises InputError if the template writes no token after a reply: the chats of its model have no such end."""
        if not self._reply.ended:
            raise InputError(
                f"{self._name}: the chat template writes no special token after the assistant's turn (it ends with "
                f"{self._reply.whole[-60:]!r}), so a policy would never learn to stop; write {{{{ eos_token }}}} there"
            )

    def written(self, prompt: str) -> str:
        """Returns the prompt of a row that is written as the model reads it, with special tokens.

        A prompt without special tokens is no chat, and is marked so that the tokenizer starts it like any other text,
        with BOS. A chat gets a BOS only if the template writes one.
        """
        prompt = shown(prompt)
        if not self._bos or prompt.startswith(self._bos):
            return prompt
        if not self._special_token.search(prompt):
            return START + prompt
        return self._bos + prompt if self._reply.before.startswith(self._bos) else prompt

    def written_completion(self, text: str) -> str:
        """Returns the completion behind such a prompt, with special tokens, without the token that ends it.

        Raises:
            InputError: the completion continues after that token, or is empty before it.
        """
        text = shown(text)
        ends = {self.end, self._special.get("eos_token") or self.end}
        said, *rest = re.split("|".join(map(re.escape, ends)), text, maxsplit=1)
        if rest and rest[0].strip():
            raise InputError(
                f"the completion goes on after {self.end}, which ends a reply: {rest[0].strip()[:40]!r}; give one turn "
                "only"
            )
        if not said.strip():
            raise InputError(f"the completion is empty before {self.end}, which ends a reply; give its text")
        return self._marked(said)

    def _marked(self, text: str) -> str:
        """Returns the text of a completion with marks around its special tokens, so that they are read as such."""
        return self._special_token.sub(lambda match: f"{_BEGIN}{match[0]}{_END}", text)

    def _check_calls(self, message: Turn) -> None:
        if "tool_calls" in message:
            self._check_writes("PROBE_CALL", "the field 'tool_calls'")

    def _check_writes(self, probe: str, what: str) -> None:
        """Raises InputError if the template leaves out what the probe stands for."""
        if self._known is not None and probe not in self._known:
            raise InputError(
                f"{self._name}: the chat template does not write {what}, so the model would not read it; use a model "
                "whose template knows tools, or leave these rows out"
            )

    @functools.cached_property
    def _known(self) -> str | None:
        """What the template writes of a chat with tools; None if it refuses this one, and must be asked for each."""
        try:
            return self._render(_CALLED, add_generation_prompt=True, tools=[_TOOL])
        except InputError:
            return None

    def _render(self, messages: Sequence[Turn], add_generation_prompt: bool, tools=None) -> str:
        """Returns what the template writes for messages; raises InputError if it fails or refuses them."""
        marked = [self._as_texts(message) | {"role": message["role"]} for message in messages]
        values: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "documents": None}
        values |= {"messages": marked, "tools": self._as_texts(list(tools)) if tools else None}
        try:
            return jinja_process.render(self._source, self._now, values | self._special)
        except jinja_process.TemplateError as error:
            if error.invalid:
                raise InputError(f"{self._name}: the chat template is not valid Jinja ({error})") from None
            raise InputError(f"{self._name}: the chat template refuses these messages: {error}") from None

    def _as_texts(self, value: Any) -> Any:
        """Returns a value with `_as_text` of every text in it."""
        if isinstance(value, str):
            return self._as_text(value)
        if isinstance(value, dict):
            return {self._as_text(str(name)): self._as_texts(entry) for name, entry in value.items()}
        return [self._as_texts(entry) for entry in value] if isinstance(value, list) else value

    def _as_text(self, content: str) -> str:
        """Returns the content of a message with marks that keep special tokens in it plain text."""
        return self._special_token.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", shown(content))

    @functools.cached_property
    def _reply(self) -> "_Reply":
        """What the template writes for a sample question and its reply, which shows how it frames a reply."""
        before = self._render(_QUESTION, add_generation_prompt=True)
        whole = self._render([*_QUESTION, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        _, found, after = whole.rpartition(_PROBE)
        if not found:
            raise InputError(
                f"{self._name}: the chat template does not write the assistant's reply (it writes {whole[:200]!r}); "
                "use a template that does"
            )
        if end := self._special_token.search(after):
            return _Reply(before, whole, after, after[: end.start()], end[0], True)
        if "eos_token" not in self._special:
            raise InputError(
                f"{self._name}: the chat template ends a reply with no special token; name one as eos_token in "
                "tokenizer_config.json"
            )
        return _Reply(before, whole, after, "", self._special["eos_token"], False)


class _Reply(NamedTuple):
    """How a template writes a sample reply.

    Attributes:
        before: the prompt.
        whole: the chat with the reply.
        after: the text after the reply.
        tail: the part of `after` before the token that ends the reply; it belongs to the completion.
        end: the special token that ends the reply.
        ended: whether the template writes this token; else it is the tokenizer's eos_token.
    """

    before: str
    whole: str
    after: str
    tail: str
    end: str
    ended: bool

    @property
    def behind(self) -> bool:
        """Whether the chat starts with the prompt and has the reply after it."""
        return self.whole.startswith(self.before) and _PROBE in self.whole[len(self.before) :]
