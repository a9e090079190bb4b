"""The table of fields in readable form: docs/config.md, and what --help prints."""

import textwrap
from collections.abc import Iterator

from rlhf_jax.fields.field import Field, Section

_PREFACE = """# Fields of a config

This page is printed from the table by which values are checked: `python -m rlhf_jax.config > docs/config.md`. With a word, as in
`python -m rlhf_jax.config kl_`, the command prints the fields that have it in their name.

A field is set in an experiment file, or with `--config.FIELD=VALUE` on the command line, or by a sweep. A value that it cannot
have ends the command before anything is computed, with a sentence and exit status 2; so does a field that there is not. In a
sweep the values of all arms are checked before the first runs. Numbers fit into 32 bits: a whole
number is at most 2147483647 where nothing else is said.

A stage is a section with a `kind`; `stages` names those that run. An experiment may add more: `config.ppo_init = sft_config()`
has the fields of `sft`. Sections without a kind are an experiment's own, and are not checked.

"App. C", "C.4", "section 3.5" and "Fig. 38" are those of Ouyang et al. 2022 (InstructGPT); "unstated" is what it leaves unsaid. The
defaults of the stages are its numbers where it has some.

**To add a field**, add `Field(default, what it can be, meaning)` to a table: that of a stage is in its file of
`rlhf_jax/stages/` (of PPO in `rlhf_jax/ppo/fields.py`), those that all stages share are in `rlhf_jax/fields/run.py` and
`model.py`. The ranges are in `ranges.py`; the meaning says its unit, its source and what 0 or an empty text does. Then print
this page anew. The field is then in the default config, in `--help` and here, and its values are checked; what does not fit
together with other fields is checked by the stage that reads it.
"""


def markdown(table: Section) -> str:
    """Returns the text of docs/config.md for a table of fields."""
    parts = [_PREFACE]
    for name, section, same, differing in _sections(table):
        parts.append(f"## {name or 'The run'}\n\n{section.about if name else 'What all stages share.'}\n")
        if section.partial:
            continue
        if same:
            parts[-1] += f"The fields and defaults are those of `{same}`" + (", but:\n" if differing else ".\n")
        if differing:
            rows = [
                f"| `{key}` | {_default(field)} | {_cell(field.says)} | {_cell(field.meaning)} |"
                for key, field in differing.items()
            ]
            parts.append("\n".join(["| field | default | can be | meaning |", "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


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
            lines += textwrap.wrap(
                f"{field.says}; {field.meaning}", 110, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
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
            if isinstance(part, Section) and not (same and part == same[1].parts[key]):
                yield from walk(f"{name}.{key}".lstrip("."), part)

    yield from walk("", table)


def _default(field: Field) -> str:
    """Returns a field's default as Markdown code."""
    return f"`{field.default!r}`"


def _cell(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
