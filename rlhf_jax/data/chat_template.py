"""A released model's own chat template: Jinja source that writes a chat as the model was taught it.

It does what data/template.py's `Template` does, for rows with messages or an instruction. The
template is somebody else's program, so it runs in Jinja's sandbox, in a process of its own with
limits (jinja_process.py).
"""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence

from rlhf_jax.data import jinja_process
from rlhf_jax.errors import InputError

# What looks like a special token in a message is put between these two, which are no characters of
# any text, so that the tokenizer reads it as text: nobody ends a turn but the template.
_OPEN, _CLOSE = '\ufdd0', '\ufdd1'
LITERAL = re.compile(f'{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}')

_PROBE = 'REPLY'


class ChatTemplate:
    """Renders messages ({role, content} each) into prompts, and replies into completions.

    Args:
        source: Jinja.
        special: the tokens that a template may name, 'bos_token' -> '<s>'.
        special_tokens: all special tokens of the tokenizer.
        name: for messages.
        now: what strftime_now tells the template; None: the time. A run fixes it, because a batch
            must not depend on the day.

    Attributes:
        end: the special token that ends a reply.

    Raises:
        InputError: no valid Jinja, or a template from which the end of a reply cannot be learned.
    """

    def __init__(self, source: str, special: Mapping[str, str], special_tokens: Iterable[str],
                 name: str = 'tokenizer', now: datetime.datetime | None = None):
        self._source, self._now = source, now
        self._name, self._special = name, dict(special)
        longest_first = sorted({*special_tokens, *special.values()}, key=len, reverse=True)
        self._special_token = re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')
        self._lead, self._tail, self.end = self._learn_reply()

    def prompt(self, instruction: str, input: str = '') -> str:
        """The prompt of an instruction, as one user turn; a blank input means none."""
        text = '\n\n'.join(part for part in (instruction.strip(), input.strip()) if part)
        return self.chat([{'role': 'user', 'content': text}])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next turn after `messages`.

        Raises:
            InputError: the template refuses these messages, e.g. a role that it does not know.
        """
        return self._render(messages, add_generation_prompt=True)

    def completion(self, output: str, *, chat: bool = False) -> str:
        """A completion as it follows a prompt, without the token that ends it."""
        del chat  # an instruction is a chat of one turn
        return self._lead + output.strip() + self._tail

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        marked = [{**message, 'content': self._as_text(message['content'])} for message in messages]
        values = {'messages': marked, 'add_generation_prompt': add_generation_prompt, 'tools': None, 'documents': None}
        try:
            return jinja_process.render(self._source, self._now, values | self._special)
        except jinja_process.TemplateError as error:
            if error.invalid:
                raise InputError(f'{self._name}: the chat template is not valid Jinja ({error})') from None
            raise InputError(f'the chat template of {self._name} refuses these messages: {error}') from None

    def _as_text(self, content: str) -> str:
        content = content.replace(_OPEN, '').replace(_CLOSE, '')
        return self._special_token.sub(lambda match: f'{_OPEN}{match[0]}{_CLOSE}', content)

    def _learn_reply(self) -> tuple[str, str, str]:
        """What stands between a prompt and the reply, between the reply and its end, and the end."""
        question = [{'role': 'user', 'content': 'question'}]
        whole = self._render([*question, {'role': 'assistant', 'content': _PROBE}], add_generation_prompt=False)
        prompt = self._render(question, add_generation_prompt=True)
        lead, found, tail = whole.removeprefix(prompt).partition(_PROBE)
        if not whole.startswith(prompt) or not found:
            raise InputError(f'{self._name}: the chat template does not write a reply behind its prompt (it writes '
                             f'{whole[:200]!r} after the prompt {prompt[:200]!r}), so that completions cannot be made with it')
        if end := self._special_token.search(tail):
            return lead, tail[:end.start()], end[0]
        if 'eos_token' not in self._special:
            raise InputError(f'{self._name}: the chat template ends a reply with no special token, and the files '
                             'name no eos_token')
        return lead, '', self._special['eos_token']
