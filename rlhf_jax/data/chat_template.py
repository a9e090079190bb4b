"""A released model's own chat template: Jinja source that writes a chat as the model was taught it.

It does what data/template.py's `Template` does, for rows with messages or an instruction. The
template is somebody else's program, so it runs in Jinja's sandbox.
"""

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox

from rlhf_jax.errors import InputError

# What looks like a special token in a message is put between these two, which are no characters of
# any text, so that the tokenizer reads it as text: nobody ends a turn but the template.
_OPEN, _CLOSE = '\ufdd0', '\ufdd1'
LITERAL = re.compile(f'{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}')

_QUESTION, _PROBE = [{'role': 'user', 'content': 'question'}], 'REPLY'


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
        self._name, self._special = name, dict(special)
        longest_first = sorted({*special_tokens, *special.values()}, key=len, reverse=True)
        self._special_token = re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')
        try:
            self._template = _environment(now).from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f'{name}: the chat template is not valid Jinja ({_reason(error)})') from None
        self._before, self._after, self._tail, self.end = self._learn_reply()

    def prompt(self, instruction: str, input: str = '') -> str:
        """The prompt of an instruction, as one user turn; a blank input means none."""
        text = '\n\n'.join(part for part in (instruction, input) if part.strip())
        return self.chat([{'role': 'user', 'content': text}])

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
        shown = self._render([*_QUESTION, {'role': 'assistant', 'content': output}], add_generation_prompt=False)
        behind = shown.removeprefix(self._before)
        if not shown.startswith(self._before) or not behind.endswith(self._after):
            raise InputError(f'the chat template of {self._name} writes this reply elsewhere than behind its prompt')
        return LITERAL.sub(r'\1', behind.removesuffix(self._after)) + self._tail

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        marked = [{**message, 'content': self._as_text(message['content'])} for message in messages]
        try:
            return self._template.render(
                messages=marked, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
                **self._special)
        except Exception as error:  # Whatever a template does wrong.
            raise InputError(f'the chat template of {self._name} refuses these messages: {_reason(error)}') from None

    def _as_text(self, content: str) -> str:
        content = content.replace(_OPEN, '').replace(_CLOSE, '')
        return self._special_token.sub(lambda match: f'{_OPEN}{match[0]}{_CLOSE}', content)

    def _learn_reply(self) -> tuple[str, str, str, str]:
        """What a template writes before a reply and after it; of that what belongs to the reply, and its end."""
        before = self._render(_QUESTION, add_generation_prompt=True)
        whole = self._render([*_QUESTION, {'role': 'assistant', 'content': _PROBE}], add_generation_prompt=False)
        _, found, after = whole.removeprefix(before).partition(_PROBE)
        if not whole.startswith(before) or not found:
            raise InputError(f'{self._name}: the chat template does not write a reply behind its prompt (it writes '
                             f'{whole!r} after the prompt {before!r}), so that completions cannot be made with it')
        if end := self._special_token.search(after):
            return before, after, after[:end.start()], end[0]
        if 'eos_token' not in self._special:
            raise InputError(f'{self._name}: the chat template ends a reply with no special token, and the files '
                             'name no eos_token')
        return before, after, '', self._special['eos_token']


def _environment(now: datetime.datetime | None) -> jinja2.Environment:
    """With the helpers that chat templates expect of every program that renders them."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.filters['tojson'] = to_json
    environment.globals |= {
        'raise_exception': raise_exception,
        'strftime_now': lambda form: (now or datetime.datetime.now()).strftime(form),
    }
    return environment


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what the assistant wrote; it is written as it is."""
    tags = {'generation'}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _reason(error: Exception) -> str:
    line = f', line {error.lineno}' if isinstance(error, jinja2.TemplateSyntaxError) else ''
    return f'{str(error) or type(error).__name__}{line}'
