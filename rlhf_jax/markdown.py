"""Any text in a Markdown page, shown as it is: nothing of it becomes a tag, an image, a link or a heading."""

import html
import re

from rlhf_jax.terminal import visible


def cell(text: str) -> str:
    """Any text as one line, in a table or behind the first character of a line; its own lines are divided by <br>."""
    text = visible(text)
    indent = len(text) - len(text.lstrip(" "))
    text = html.escape(text.strip(), quote=False).replace("|", "&#124;")
    for mark in "\\`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return "&nbsp;" * indent + "<br>".join(text.splitlines())


def prose(text: str) -> str:
    """Any text as paragraphs of its lines."""
    paragraphs = re.split(r"\n\s*\n", visible(text).strip())
    return "\n\n".join("\n".join(_line(line) for line in paragraph.splitlines()) for paragraph in paragraphs)


def code(text: str) -> str:
    """Any text as a block of code."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


def _line(text: str) -> str:
    """What begins a line cannot make it a heading, an item or a rule."""
    return re.sub(r"^((?:&nbsp;)*)(?=[#+=~-])", r"\1\\", re.sub(r"^((?:&nbsp;)*\d+)(?=[.)])", r"\1\\", cell(text)))
