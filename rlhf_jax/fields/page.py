"""The table of fields in readable form: docs/config.md, and what --help prints."""

import textwrap
from collections.abc import Iterator

from rlhf_jax.fields.field import Field, Section

_PREFACE = """# Fields of a config

This page lists every field of a config, with its default, the values that it can have, and its meaning.

## How to set a field

Set a field in an experiment file, with `--config.FIELD=VALUE` on the command line, or by a sweep. FIELD is the name of
the section, a dot and the name of the field, as in `--config.ppo.kl_coef=0.05`. The fields of [The run](#the-run) have
no section. On the command line, several names or numbers are separated by commas, as in
`--config.stages=sft,reward_model`; a name that has a comma itself needs a tuple of Python, as in
`--config.stages='("sft", "reward_model")'`. `None` is None where a field can be None.

Values are checked before anything is computed. A value that a field cannot have, or a field that does not exist, ends
the command with one sentence and exit status 2. A sweep checks the values of all its arms before the first one runs.
Numbers must fit into 32 bits, so that a whole number is at most 2147483647 unless its field says otherwise.

`python -m rlhf_jax.config` prints this page. `python -m rlhf_jax.config kl_` prints the fields with `kl_` in their
names.

## Stages

A stage is a section with a `kind`. The field `stages` names the stages to run. An experiment may add more of them:
after `config.ppo_init = sft_config()`, the stage `ppo_init` has the fields of [sft](#sft). Sections without a kind
belong to the experiment, and are not checked.

## Sources of the defaults

"App. C", "C.4", "section 3.5" and "Fig. 38" are parts of the InstructGPT paper (Ouyang et al. 2022). The defaults of
the stages are the paper's numbers. If it does not state one, the meaning says so, and names another source if there is
one. Stiennon et al. is [2009.01325](https://arxiv.org/abs/2009.01325), and Ziegler et al. is
[1909.08593](https://arxiv.org/abs/1909.08593). Huang et al. is [The N Implementation Details of RLHF with
PPO](https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo), whose details have numbers, and Huang
et al. 2024 is [2403.17031](https://arxiv.org/abs/2403.17031).

## Sections
"""

_TO_ADD = """## To add a field

1. Add `Field(default, allowed, meaning)` to a table. The table of a stage is in its file in `rlhf_jax/stages/`, and
   that of PPO in `rlhf_jax/ppo/fields.py`. The fields that all stages share are in `rlhf_jax/fields/run.py` and
   `model.py`.
2. Choose the allowed values from `rlhf_jax/fields/ranges.py`. In the meaning, say what the field does, its unit, its
   source, and what 0 or an empty text means.
3. Print this page again: `python -m rlhf_jax.config > docs/config.md`.

The field is then in the default config, in `--help` and on this page, and its values are checked. If it must fit
together with other fields, the stage that reads it checks that.
"""


def markdown(table: Section) -> str:
    """Returns the text of docs/config.md for a table of fields."""
    sections = list(_sections(table))
    own = [(name, section) for name, section, _, differing in sections if differing and not section.partial]
    rows = [f"| {_link(name)} | {_cell(section.about)} |" for name, section in own]
    contents = "\n".join(["| section | content |", "|---|---|", *rows]) + "\n"
    return "\n".join([_PREFACE, contents, *(_described(*found) for found in sections), _TO_ADD])


def _described(name: str, section: Section, same: str, differing: dict[str, Field]) -> str:
    """Returns a section of the page; the arguments are those that `_sections` yields."""
    parts = [f"## {_title(name)}", section.about]
    if same and not section.partial:
        parts.append(f"The fields and defaults are those of {_link(same)}" + (", except for:" if differing else "."))
    if differing and not section.partial:
        rows = [
            f"| `{key}` | {_default(field)} | {_cell(field.says)} | {_cell(field.meaning)} |"
            for key, field in differing.items()
        ]
        parts.append("\n".join(["| field | default | allowed values | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _title(name: str) -> str:
    """Returns the heading of a section on the page."""
    return name or "The run"


def _link(name: str) -> str:
    """Returns a Markdown link to a section of the page."""
    anchor = _title(name).lower().replace(" ", "-").replace(".", "")
    return f"[{_title(name)}](#{anchor})"


def text(table: Section, word: str = "") -> str:
    """Returns what --help prints about the fields; with a word, about those with the word in their name."""
    lines = ["Fields of the config (docs/config.md has them as tables):"]
    for name, section, same, differing in _sections(table):
        prefix = f"{name}." if name else ""
        chosen = {prefix + key: field for key, field in differing.items() if word in prefix + key}
        if section.partial:
            continue
        if same and not word:
            lines.append(f"\n  --config.{name}.*: the fields of {same}" + (", but" if differing else ""))
        elif chosen and not word:
            lines.append(f"\n{section.about}")
        for key, field in chosen.items():
            lines.append(f"  --config.{key}={field.default!r}")
            for line in (field.meaning, f"Allowed: {field.says}."):
                lines += textwrap.wrap(line, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _sections(table: Section) -> Iterator[tuple[str, Section, str, dict[str, Field]]]:
    """Yields a table's section and all sections below it, each as a tuple.

    The tuple is (dotted name, section, name of an earlier section with the same fields or "", the section's fields); if
    there is such an earlier section, only the fields that differ from it are given.
    """
    seen: list[tuple[str, Section]] = []

    def walk(name: str, section: Section):
        fields = {key: part for key, part in section.parts.items() if isinstance(part, Field)}
        same = next((known for known in seen if known[1].parts.keys() == section.parts.keys()), None)
        if same:
            fields = {key: field for key, field in fields.items() if field != same[1].parts[key]}
        yield name, section, same[0] if same else "", fields
        seen.append((name, section))
        for key, part in section.parts.items():
            if isinstance(part, Section) and not section.partial and not (same and part == same[1].parts[key]):
                yield from walk(f"{name}.{key}".lstrip("."), part)

    yield from walk("", table)


def _default(field: Field) -> str:
    """Returns a field's default as Markdown code."""
    return f"`{field.default!r}`"


def _cell(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
