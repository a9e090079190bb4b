"""A released model's own chat template: Jinja source that writes a chat as the model was taught it.

It does what data/template.py's `Template` does, for rows with messages or an instruction. The
template is somebody else's program, so it runs in Jinja's sandbox, in a process of its own with
limits (jinja_process.py).
"""

import datetime
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.data import jinja_process
from rlhf_jax.runtime.errors import InputError

# What looks like a special token in a message is put between these two, which are no characters of
# any text, so that the tokenizer reads it as text: nobody ends a turn but the template.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
LITERAL = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
# A completion is the other way round, for a model's own text has no marks: what looks like a special token is text, but
# between these two.
_BEGIN, _END = "\ufdd2", "\ufdd3"
SPECIAL = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")
START = "\ufdd4"  # before a prompt that starts as any text does
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_BEGIN}{_END}{START}]")


def shown(text: str) -> str:
    """A prompt or completion without the marks, as people read it."""
    return _MARKS.sub("", text)


_QUESTION, _PROBE = [{"role": "user", "content": "question"}], "REPLY"


class ChatTemplate:
    """Renders messages ({role, content} each) into prompts, and replies into completions.

    Args:
        source: Jinja.
        special: the tokens that a template may name, 'bos_token' -> '<s>'.
        special_tokens: all special tokens of the tokenizer.
        bos: the one that the tokenizer puts before every sequence, or None.
        name: for messages.
        now: what strftime_now tells the template; None: the time. A run fixes it, because a batch
            must not depend on the day.

    What the template is asked for first is what shows that it is no valid Jinja, or cannot be used: an InputError.
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
        """The prompt of an instruction, as one user turn; a blank input means none."""
        text = "\n\n".join(part for part in (instruction, input) if part.strip())
        return self.chat([{"role": "user", "content": text}])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next turn after `messages`.

        Raises:
            InputError: the template refuses these messages, e.g. a role that it does not know.
        """
        return self._render(messages, add_generation_prompt=True)

    def completion(self, output: str, *, chat: bool = False) -> str:
        """A completion as it follows a prompt, without the token that ends it.

        The template itself writes it, because some templates take away the space around a reply.

        Raises:
            InputError: the template refuses this reply, or writes it elsewhere than behind its prompt.
        """
        del chat  # an instruction is a chat of one turn
        reply = self._reply
        if not reply.behind:
            raise InputError(
                f"{self._name}: the chat template does not write a reply behind its prompt (it writes "
                f"{reply.whole[:200]!r} after the prompt {reply.before[:200]!r}), so that completions cannot "
                "be made with it; give rows with prompt and completion, written as the model reads them"
            )
        whole = self._render([*_QUESTION, {"role": "assistant", "content": output}], add_generation_prompt=False)
        behind = whole.removeprefix(reply.before)
        if not whole.startswith(reply.before) or not behind.endswith(reply.after):
            raise InputError(f"the chat template of {self._name} writes this reply elsewhere than behind its prompt")
        parts = LITERAL.split(behind.removesuffix(reply.after) + reply.tail)  # every other part is literal
        return "".join(part if i % 2 else self._marked(part) for i, part in enumerate(parts))

    @property
    def end(self) -> str:
        """The special token that ends a reply."""
        return self._reply.end

    def written(self, prompt: str) -> str:
        """A prompt that a row gives as the model reads it: its special tokens are special.

        Text without any is no chat: the tokenizer begins it as every text, with its BOS. A chat has the BOS that the
        template gives it.
        """
        prompt = shown(prompt)
        if not self._bos or prompt.startswith(self._bos):
            return prompt
        if not self._special_token.search(prompt):
            return START + prompt
        return self._bos + prompt if self._reply.before.startswith(self._bos) else prompt

    def written_completion(self, text: str) -> str:
        """A completion behind such a prompt, read in the same way, without the token that ends it.

        Raises:
            InputError: it goes on after that token, or is empty before it.
        """
        text = shown(text)
        ends = {self.end, self._special.get("eos_token") or self.end}
        said, *rest = re.split("|".join(map(re.escape, ends)), text, maxsplit=1)
        if rest and rest[0].strip():
            raise InputError(
                f"the completion goes on after the token that ends a reply, {self.end}: "
                f"{rest[0].strip()[:40]!r}; it is one turn"
            )
        if not said.strip():
            raise InputError(f"the completion is empty before the token that ends a reply, {self.end}")
        return self._marked(said)

    def _marked(self, text: str) -> str:
        return self._special_token.sub(lambda match: f"{_BEGIN}{match[0]}{_END}", text)

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        marked = [{**message, "content": self._as_text(message["content"])} for message in messages]
        values = {"messages": marked, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        try:
            return jinja_process.render(self._source, self._now, values | self._special)
        except jinja_process.TemplateError as error:
            if error.invalid:
                raise InputError(f"{self._name}: the chat template is not valid Jinja ({error})") from None
            raise InputError(f"the chat template of {self._name} refuses these messages: {error}") from None

    def _as_text(self, content: str) -> str:
        return self._special_token.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", shown(content))

    @functools.cached_property
    def _reply(self) -> "_Reply":
        """What the template makes of one question and its reply."""
        before = self._render(_QUESTION, add_generation_prompt=True)
        whole = self._render([*_QUESTION, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        _, found, after = whole.rpartition(_PROBE)
        if not found:
            raise InputError(
                f"{self._name}: the chat template does not write a reply (it writes {whole[:200]!r}), so "
                "that what ends one is unknown"
            )
        if end := self._special_token.search(after):
            return _Reply(before, whole, after, after[: end.start()], end[0])
        if "eos_token" not in self._special:
            raise InputError(
                f"{self._name}: the chat template ends a reply with no special token, and the files name no eos_token"
            )
        return _Reply(before, whole, after, "", self._special["eos_token"])


class _Reply(NamedTuple):
    """A prompt, the chat with its reply, what stands after the reply, what of that belongs to it, and the end."""

    before: str
    whole: str
    after: str
    tail: str
    end: str

    @property
    def behind(self) -> bool:
        """The reply stands behind the prompt, with what the template puts between them."""
        return self.whole.startswith(self.before) and _PROBE in self.whole[len(self.before) :]
