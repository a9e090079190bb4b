"""What a run, a model or a file says, shown on a terminal as text: never as a command to the terminal.

A completion, a tokenizer, a chat template or a config of somebody else's can hold escape sequences that move the
cursor, hide lines, rename the window or write into the clipboard. Every command writes through `guarded`; what rich
lays out on a `console` is made `visible` where it is put into a table.
"""

import contextlib
import re
import sys

# Control characters but tabs, line ends and \r\n; those that reverse the order of text; lone surrogates.
_HIDDEN = re.compile("\r(?!\n)|[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text) -> str:
    """`str(text)` with control characters as \\u001b and the like: valid in JSON too, with the same meaning."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


class Visible:
    """A text stream that shows control characters instead of passing them on."""

    def __init__(self, stream):
        self.raw = stream

    def write(self, text: str) -> int:
        self.raw.write(visible(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self.raw, name)


@contextlib.contextmanager
def guarded():
    """Everything printed meanwhile is visible."""
    with contextlib.redirect_stdout(_guard(sys.stdout)), contextlib.redirect_stderr(_guard(sys.stderr)):
        yield


def console(stream=None, **options):
    """A rich console, whose own colours and bars reach the stream, standard output by default."""
    import rich.console  # takes a while

    stream = sys.stdout if stream is None else stream
    return rich.console.Console(file=stream.raw if isinstance(stream, Visible) else stream, **options)


def _guard(stream):
    return stream if isinstance(stream, Visible) else Visible(stream)
