"""Any text in a Markdown page, shown as it is: nothing of it becomes a tag, an image, a link or a heading."""

import html
import json
import re
import textwrap
import urllib.parse

from rlhf_jax.runtime.terminal import visible


def cell(text: str) -> str:
    """Any text within a line: of a table, of a heading, behind other words; its own lines are divided by <br>."""
    text = visible(text)
    indent = len(text) - len(text.lstrip(" "))
    text = html.escape(text.strip(), quote=False).replace("|", "&#124;")
    for mark in "\\`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return "&nbsp;" * indent + "<br>".join(text.splitlines())


def prose(text: str) -> str:
    """Any text as paragraphs of its lines; one whose lines all have four spaces before them is code."""
    paragraphs = re.split(r"\n(?:[ \t]*\n)+", visible(text).strip("\n"))
    return "\n\n".join(
        code(textwrap.dedent(paragraph))
        if all(line.startswith("    ") for line in paragraph.splitlines())
        else "\n".join(_at_the_start(cell(line)) for line in paragraph.splitlines())
        for paragraph in paragraphs
    )


def code(text: str) -> str:
    """Any text as a block of code."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


def json_code(value) -> str:
    """A value as JSON within a line, also of a table."""
    text = json.dumps(value).replace("|", "\\u007c")
    fence = "`" * (_ticks(text) + 1)
    return f"{fence}{text}{fence}"  # it begins and ends with no tick


def image(name: str, path: str) -> str:
    """An image that is called `name`."""
    return f"!{link(name, path)}"


def link(text: str, path: str) -> str:
    """Any text that leads to a path."""
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*", text, re.ASCII)
    return f"[{text if plain else cell(text)}]({urllib.parse.quote(path)})"


def _ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _at_the_start(line: str) -> str:
    """What begins a line cannot make it a heading, an item, a rule or a fence."""
    return re.sub(r"^((?:&nbsp;)*\d*)(?=[#+=~.)-])", r"\1\\", line)
