"""Types of argparse options, for commands that take no config."""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

from rlhf_jax.fields.ranges import Range


def option(allowed: Range) -> Callable[[str], Any]:
    """Returns the `type` of an argparse option that takes the values a range allows."""

    def read(text: str) -> Any:
        try:
            value = allowed.type(text)
        except ValueError:
            value = text
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is given, and it must be {allowed.says}")
        return value

    return read


def folder(text: str) -> pathlib.Path:
    """The `type` of an argparse option that names a folder. An empty text, as of an unset variable, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder")
    return pathlib.Path(text)
