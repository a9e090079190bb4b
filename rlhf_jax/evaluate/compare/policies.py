"""The policies that are compared: their completions by prompt, from finished stages, work directories and files.

A file has JSON lines as `python -m rlhf_jax.generate --out` writes them: prompt (or instruction) and completion (or output),
and finished where it is known. Other tables that data/rows.py reads will do, too, such as AlpacaEval's outputs.json.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from rlhf_jax.data import rows
from rlhf_jax.data.rows import Row, type_name
from rlhf_jax.evaluate.policy import read_rows
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json
from rlhf_jax.sources import is_run

SAMPLES = "samples.jsonl"
_PROMPT_FIELDS, _COMPLETION_FIELDS = ("prompt", "instruction"), ("completion", "output")


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completion of a prompt.

    Attributes:
        prompt: as people read it, without the marks of a chat template.
        text: the completion.
        finished: whether it ended by itself.
        tokens: its token ids, where a stage has kept them.
    """

    prompt: str
    text: str
    finished: bool = True
    tokens: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy, known by its completions.

    Attributes:
        name: its name in tables.
        source: the file.
        completions: all of them, in the order of the file.
        run: the work directory that the file belongs to; None: it belongs to none.
    """

    name: str
    source: pathlib.Path
    completions: tuple[Completion, ...]
    run: pathlib.Path | None

    def by_prompt(self) -> dict[str, list[Completion]]:
        """Returns the completions of each prompt."""
        found: dict[str, list[Completion]] = {}
        for completion in self.completions:
            found.setdefault(completion.prompt, []).append(completion)
        return found


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two completions of one prompt.

    Attributes:
        prompt: the prompt.
        number: of the pair among those of the prompt.
        names: of the two policies.
        completions: one of each.
    """

    prompt: str
    number: int
    names: tuple[str, str]
    completions: tuple[Completion, Completion]

    @property
    def same(self) -> bool:
        """Whether both are the same text, of which none can be better."""
        one, other = self.completions
        return one.text.strip() == other.text.strip()

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the two."""
        return len(self.completions[0].text), len(self.completions[1].text)


def read(paths: Sequence[str]) -> list[Policy]:
    """Reads policies, and gives each the shortest end of its path as a name that no other has.

    Args:
        paths: finished stages, work directories, which stand for their last policy, and files. A work directory that is
            the only path stands for all its policies, the last one first.

    Raises:
        InputError: there are no completions, or fewer than two policies.
    """
    sources = [_source(path) for path in paths]
    if len(paths) == 1 and is_run(paths[0]):
        sources = _samples(pathlib.Path(paths[0]))[::-1]  # what came later is compared with what was before
    if len(sources) < 2:
        raise InputError(f"{paths[0] if paths else 'nothing'} is one policy; name two or more to compare")
    names = _names([source.absolute() for source in sources])
    return [Policy(name, source, _completions(source), _run_of(source)) for name, source in zip(names, sources)]


def pairs(first: Policy, second: Policy) -> tuple[list[Pair], int]:
    """Returns the pairs of completions of two policies, joined by prompt, and how many completions have no partner.

    Where both have several completions of a prompt, the first of one meets the first of the other, and so on.

    Raises:
        InputError: they have no prompt in common.
    """
    ours, theirs = first.by_prompt(), second.by_prompt()
    names = first.name, second.name
    found = [
        Pair(prompt, number, names, both)
        for prompt, completions in ours.items()
        for number, both in enumerate(zip(completions, theirs.get(prompt, [])))
    ]
    if not found:
        raise InputError(
            f"{first.source} and {second.source} have no prompt in common; compare answers to the same ones"
        )
    return found, len(first.completions) + len(second.completions) - 2 * len(found)


def _source(path: str) -> pathlib.Path:
    """Returns the file of completions that a path stands for."""
    folder = pathlib.Path(path)
    if is_run(folder):
        return _samples(folder)[-1]
    if not folder.is_dir():
        return folder
    if not (folder / SAMPLES).is_file():
        raise InputError(
            f"{path} has no {SAMPLES}: give a finished stage that was evaluated, a work directory, or a file of "
            "completions, which python -m rlhf_jax.generate --model=DIR --prompts=FILE --out=FILE writes"
        )
    return folder / SAMPLES


def _samples(run: pathlib.Path) -> list[pathlib.Path]:
    """Returns the samples of all policies of a run, in the order of its stages."""
    stages = read_json(run / "config.json", needs=["stages"])["stages"]
    found = [run / stage / SAMPLES for stage in stages if (run / stage / SAMPLES).is_file()]
    if not found:
        raise InputError(f"{run} has no stage with {SAMPLES} yet: no policy of it was evaluated")
    return found


def _run_of(source: pathlib.Path) -> pathlib.Path | None:
    above = source.absolute().parent.parent
    return above if is_run(above) else None


def _names(sources: list[pathlib.Path]) -> list[str]:
    """Returns the shortest ends of paths that tell them all apart; samples.jsonl is not named."""
    parts = [
        source.parent.parts if source.name == SAMPLES else (*source.parent.parts, _stem(source)) for source in sources
    ]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(source for number, source in enumerate(sources) if source in sources[:number])
    raise InputError(f"{twice} is given twice; a policy cannot be compared with itself")


def _stem(source: pathlib.Path) -> str:
    name = source.name
    for suffix in (".xz", ".gz", *rows.SUFFIXES):
        name = name.removesuffix(suffix)
    return name


def _completions(source: pathlib.Path) -> tuple[Completion, ...]:
    """Reads a file; that of a stage is checked against what the stage has noted of it."""
    places = (
        ((f"{source}:{number}", row) for number, row in enumerate(read_rows(source), start=1))
        if _run_of(source) and source.suffix == ".jsonl"
        else rows.read(source)
    )
    found = []
    for place, row in places:
        try:
            if isinstance(row, InputError):
                raise row
            found.append(_completion(row))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    if not found:
        raise InputError(f"{source}: no row")
    return tuple(found)


def _completion(row: Row) -> Completion:
    tokens, finished = row.get("tokens"), row.get("finished")
    if finished is not None and not isinstance(finished, bool):
        raise InputError(f"field 'finished' is {type_name(finished)}, and must be true or false")
    ids = tuple(tokens) if isinstance(tokens, list) and all(type(token) is int for token in tokens) else None
    return Completion(_text(row, _PROMPT_FIELDS), _text(row, _COMPLETION_FIELDS), finished is not False, ids)


def _text(row: Row, names: tuple[str, ...]) -> str:
    for name in names:
        if isinstance(row.get(name), str):
            return row[name]
        if row.get(name) is not None:
            raise InputError(f"field {name!r} is {type_name(row[name])}, and must be a string")
    raise InputError(
        f"it has no field {' or '.join(map(repr, names))}; it has {', '.join(map(repr, row)) or 'no fields'}"
    )
