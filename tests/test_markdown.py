"""Any text in a page is shown as it is, against another reader of Markdown: the HTML of markdown-it."""

import json
import re

import hypothesis
import hypothesis.strategies as st
from markdown_it import MarkdownIt

from rlhf_jax.runtime import markdown, terminal

TEXTS = st.text(alphabet=st.sampled_from("ab _*`~#>+-=!|\\[](){}<&;:/.1\n\t\"'$^\x1b"), max_size=40) | st.text(
    max_size=40
)


def read(page: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").render(page)


def words(page: str) -> str:
    """The text of HTML without its tags, spaces taken together."""
    text = re.sub("<[^>]*>", " ", page)
    for entity, mark in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "\xa0": " ", "&amp;": "&"}.items():
        text = text.replace(entity, mark)
    return text.split()


def tags(page: str) -> set[str]:
    return set(re.findall(r"</?(\w+)", page))


@hypothesis.given(TEXTS)
def test_a_cell_is_its_text(text):
    page = read(f"| {markdown.cell('head')} |\n| --- |\n| {markdown.cell(text)} |\n")
    assert tags(page) <= {"table", "thead", "tbody", "tr", "th", "td", "br"} and page.count("<td>") == 1
    assert words(page)[1:] == terminal.visible(text).split()
    heading = read(f"# x {markdown.cell(text)}")
    assert tags(heading) <= {"h1", "br"}


@hypothesis.given(TEXTS)
def test_prose_is_paragraphs_and_code(text):
    page = read(markdown.prose(text))
    assert tags(page) <= {"p", "br", "pre", "code"}
    assert words(page) == terminal.visible(text).split()


@hypothesis.given(TEXTS)
def test_code_ends_where_it_ends(text):
    page = read(f"{markdown.code(text)}\n\nend")
    assert tags(page) == {"p", "pre", "code"} and page.endswith("<p>end</p>\n")


@hypothesis.given(st.dictionaries(TEXTS, TEXTS, max_size=2))
def test_json_in_a_table_is_that_json(value):
    page = read(f"| a | b |\n| --- | --- |\n| {markdown.json_code(value)} | c |\n")
    assert tags(page) <= {"table", "thead", "tbody", "tr", "th", "td", "code"} and page.count("<td>") == 2
    [found] = re.findall(r"<code>(.*?)</code>", page, re.DOTALL)
    for entity, mark in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}.items():
        found = found.replace(entity, mark)
    assert json.loads(found) == value


@hypothesis.given(TEXTS, TEXTS)
def test_an_image_and_a_link_are_one(name, path):
    assert tags(read(f"see {markdown.link(name, path)}.")) <= {"p", "a", "br"}
    assert read(markdown.image(name, path)).count("<img") <= 1
