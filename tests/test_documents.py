"""Where documents of a text end, also by an expression of the user's that never would."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import documents
from rlhf_jax.runtime.errors import InputError


def test_marked_else_blank_lines():
    assert documents.split("a\n\nb\n<|endoftext|> \nc\n") == ["a\n\nb", "c"]
    assert documents.split("a\nb\n \n\t\n\nc <|endoftext|>\n") == ["a\nb", "c <|endoftext|>"]


@given(st.text("ab\n -", max_size=60), st.sampled_from(["\n", "-+", "(?<!\n)\n(?!\n)", "a|b", "(?=b)", "(?m)^-"]))
def test_an_expression_divides_as_re_does(text, end):
    wanted = [part.strip("\n") for part in re.split(end, text) if part.strip()]
    assert documents.split(text, end) == wanted


def test_what_its_groups_match_is_no_document():
    assert documents.split("a-b+c", "(-)|([+])") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "end, words",
    [
        ("(", "is not a regular expression (missing"),
        ("((a{1000}){1000}){1000}", "the numbers in its braces multiply to"),
        ("(" * 5000 + ")" * 5000, "is not a regular expression ("),
    ],
)
def test_what_is_no_expression_is_a_sentence(end, words):
    with pytest.raises(InputError) as caught:
        documents.split("a", end)
    assert words in str(caught.value) and "data.files.document_end=" in str(caught.value)


@pytest.mark.parametrize(
    ("end", "text"),
    [("(a|aa)+$", "a" * 60 + "c"), ("(?:a?){12}a{12}b|c", ("a" * 12 + "c") * 100_000)],
    ids=["one match", "many"],
)
def test_an_expression_that_backtracks_is_stopped(monkeypatch, end, text):
    monkeypatch.setattr(documents, "SECONDS", 0.2)
    monkeypatch.setattr(documents, "SECONDS_A_CHARACTER", 0.0)
    with pytest.raises(InputError, match="was stopped after 0 s: it tries the same text in ever new ways"):
        documents.split(text, end)
