"""Shows the text of runs, models and files on a terminal, with control characters made visible.

A completion, a tokenizer, a chat template or a config from a third party can hold escape sequences. They could move the
cursor, hide lines, rename the window or write into the clipboard. So every command writes through `guarded`. A rich
`console` bypasses it, so text is made `visible` before it is put into a table of rich.
"""

import contextlib
import re
import sys

# Control characters except tabs, \n and \r\n; characters that change the direction of text; lone surrogates.
_HIDDEN = re.compile("\r(?!\n)|[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text) -> str:
    """Returns `str(text)` with control characters as escapes such as \\u001b, which mean the same in JSON."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


class Visible:
    """A text stream that writes control characters as visible escapes."""

    def __init__(self, stream):
        self.raw = stream

    def write(self, text: str) -> int:
        """Writes the text with control characters visible; returns its length, in characters."""
        self.raw.write(visible(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self.raw, name)


@contextlib.contextmanager
def guarded():
    """Context in which all text printed to standard output and error is made visible."""
    with contextlib.redirect_stdout(_guard(sys.stdout)), contextlib.redirect_stderr(_guard(sys.stderr)):
        yield


def console(stream=None, **options):
    """Returns a rich console on a stream, by default standard output, that bypasses `guarded`.

    Rich draws colours and bars with control sequences, which must reach the terminal unchanged.
    """
    import rich.console  # here, because the import is slow

    stream = sys.stdout if stream is None else stream
    return rich.console.Console(file=stream.raw if isinstance(stream, Visible) else stream, **options)


def _guard(stream):
    """Returns a stream that writes visible text, unless it is one already."""
    return stream if isinstance(stream, Visible) else Visible(stream)
