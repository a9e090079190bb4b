"""A template is one readable file, and says where the space before a completion belongs."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError


def test_default_prompts_and_completion():
    template = Template()
    assert template.prompt("sum", "1 2") == "sum\n1 2\nanswer:"
    assert template.prompt("sum", " \n") == "sum\nanswer:"
    assert template.completion("3") == " 3"


def test_space_around_what_fills_a_template_stays():
    template, code = Template(), "    return a\n"
    assert template.completion(code) == " " + code
    assert template.completion(code, chat=True) == " " + code
    assert template.prompt(code, code) == f"{code}\n{code}\nanswer:"
    turns = [{"role": "user", "content": code}, {"role": "assistant", "content": code}]
    assert template.chat(turns) == f"user: {code}\nassistant: {code}\nassistant:"


def test_space_before_the_output_belongs_to_the_completion_but_a_newline_does_not():
    template = Template(
        with_input="{instruction}{input}:\n{output}",
        without_input="{instruction}:\n{output}",
        assistant="bot:  {output}",
    )
    assert (template.prompt("a"), template.completion("b")) == ("a:\n", "b")
    turns = [{"role": "user", "content": "a"}]
    assert (template.chat(turns), template.completion("b", chat=True)) == ("user: a\nbot:", "  b")


def test_chat_renders_every_turn_and_ends_with_the_assistant_s_cue():
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
    ]
    assert Template().chat(turns) == "be kind\nuser: hi\nassistant: hello\nuser: and?\nassistant:"


def test_values_may_look_like_placeholders():
    assert Template().prompt("say {input}", "{output}{x}") == "say {input}\n{output}{x}\nanswer:"


def test_file_is_readable_and_comes_back(tmp_path):
    path = tmp_path / "template.txt"
    Template().save(path)
    assert path.read_text() == (
        "[instruction with input]\n{instruction}\n{input}\nanswer: {output}\n\n"
        "[instruction]\n{instruction}\nanswer: {output}\n\n"
        "[system]\n{content}\n\n[user]\nuser: {content}\n\n[assistant]\nassistant: {output}\n\n"
        "[tool]\ntool: {content}\n"
    )
    assert Template.load(path) == Template()


def test_sections_left_out_keep_their_default(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("\n[user]\n>> {content}\n\n\n")
    assert Template.load(path) == Template(user=">> {content}")


PIECE = st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85"), max_size=8).map(
    lambda text: text.replace("{", "").strip("\n")
)


@given(before=PIECE, middle=PIECE, separator=st.sampled_from(["", " ", "  "]), output=st.text(max_size=10))
def test_any_template_survives_its_file(tmp_path_factory, before, middle, separator, output):
    template = Template(
        with_input=f"<{before}{{instruction}}{middle}{{input}}:{separator}{{output}}",
        without_input=f"<{before}{{instruction}}{middle}:{separator}{{output}}",
    )
    path = tmp_path_factory.mktemp("any") / "template.txt"
    template.save(path)
    assert Template.load(path) == template
    assert template.prompt("i") == f"<{before}i{middle}:"
    assert template.completion(output) == separator + output


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"user": "hi"}, r"section \[user\] of the template has \{content\} 0 times"),
        ({"user": "{content}{content}"}, r"has \{content\} 2 times"),
        ({"without_input": "{output}"}, r"section \[instruction\] .* has \{instruction\} 0 times"),
        ({"with_input": "{instruction} {output}"}, r"\[instruction with input\] .* \{input\} 0 times"),
        ({"without_input": "{instruction}{input}{output}"}, r"has the unknown placeholder \{input\}"),
        ({"assistant": "{output} </s>"}, r"\[assistant\] .* goes on after \{output\}"),
        ({"without_input": "{instruction}:{output}"}, "different spaces"),
        ({"user": "{content}\n"}, "cannot be kept in a file"),
        ({"user": "[assistant]\n{content}"}, "cannot be kept in a file"),
    ],
)
def test_bad_templates_name_the_section(sections, words):
    with pytest.raises(InputError, match=words):
        Template(**sections)


@pytest.mark.parametrize(
    "text, words",
    [
        ("hello\n[user]\n{content}", ":1: a template must start with one of the lines"),
        ("[user]\n{content}\n[user]\n{content}", r":3: section \[user\] appears twice"),
        ("[user]\nhi", r": section \[user\] of the template has \{content\} 0 times"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    path = tmp_path / "template.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="template.txt" + words):
        Template.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Template.load(tmp_path / "template.txt")


def test_a_template_is_a_value():
    assert hash(Template()) == hash(Template())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Template().user = "x"
