"""Escapes text for a Markdown page, so that no part of it becomes a tag, an image, a link or a heading."""

import html
import json
import re
import textwrap
import urllib.parse

from rlhf_jax.runtime.terminal import visible

# What Markdown would take for a mark. An underscore within a word is none, and brackets make a link or a name of one only if
# ( or [ or : follows, or what the page itself writes behind the text.
_MARKS = re.compile(r"[\\`*~]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:]|$)", re.MULTILINE)
_IN_A_NAME = re.compile(r"[\\`*~_\[\]]")  # of a link, which ends with a bracket


def cell(text: str) -> str:
    """Returns any text escaped for use within a line, such as a table cell or a heading; <br> joins its lines."""
    return _escaped(text, _MARKS)


def prose(text: str) -> str:
    """Returns any text as escaped paragraphs; if all lines of a paragraph begin with four spaces, it becomes code."""
    paragraphs = re.split(r"\n(?:[ \t]*\n)+", visible(text).strip("\n"))
    return "\n\n".join(
        code(textwrap.dedent(paragraph))
        if all(line.startswith("    ") for line in paragraph.splitlines())
        else "\n".join(_at_the_start(cell(line)) for line in paragraph.splitlines())
        for paragraph in paragraphs
    )


def code(text: str) -> str:
    """Returns any text as a code block, with a fence longer than any run of backticks in it."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


def json_code(value) -> str:
    """Returns a value as inline code in JSON, which is safe in a table, too."""
    text = json.dumps(value).replace("|", "\\u007c")
    fence = "`" * (_ticks(text) + 1)
    return f"{fence}{text}{fence}"  # JSON neither begins nor ends with a backtick, so no space is needed


def image(name: str, path: str) -> str:
    """Returns an image with `name` as its alternative text."""
    return f"!{link(name, path)}"


def link(text: str, path: str) -> str:
    """Returns a link from any text to a path."""
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*", text, re.ASCII)
    return f"[{text if plain else _escaped(text, _IN_A_NAME)}]({urllib.parse.quote(path)})"


def _escaped(text: str, marks: re.Pattern) -> str:
    """Returns any text as one line, with these marks escaped."""
    text = visible(text)
    indent = len(text) - len(text.lstrip(" "))
    text = html.escape(text.strip(), quote=False).replace("|", "&#124;")
    return "&nbsp;" * indent + "<br>".join(marks.sub(r"\\\g<0>", text).splitlines())


def _ticks(text: str) -> int:
    """Returns the length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)


def _at_the_start(line: str) -> str:
    """Returns a line with its start escaped, so that it becomes no heading, list item, rule or fence."""
    return re.sub(r"^((?:&nbsp;)*\d*)(?=[#+=~.)-])", r"\1\\", line)
