"""Blind pairs for judges elsewhere: a file of pairs without names, a key that says who wrote what, and the judgments back.

A line of the file of pairs has `id`, `prompt`, `first`, `second` and an empty `winner`. A judge fills in "first", "second"
or "tie"; any table with `id` and `winner` can be read back, and `judge` if several people judged. The key is a file of its
own, which no judge should see.
"""

import hashlib
import pathlib
import random
from collections.abc import Sequence

from rlhf_jax.data import rows
from rlhf_jax.data.rows import Row
from rlhf_jax.evaluate.compare.judges import verdict
from rlhf_jax.evaluate.compare.judgments import Judgment
from rlhf_jax.evaluate.compare.policies import Pair
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json_lines, write_json_lines


def key_of(path: str | pathlib.Path) -> pathlib.Path:
    """Returns where the key of a file of pairs is: `pairs.key.jsonl` for `pairs.jsonl`."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.key.jsonl")


def write(path: str, pairs: Sequence[Pair], seed: int, both: bool) -> int:
    """Writes a file of pairs and its key, in random order; returns the number of its lines.

    Pairs of equal texts are in the key alone, as ties.

    Args:
        path: the file of pairs.
        pairs: the pairs.
        seed: of the random order of lines, and of who stands first.
        both: whether each pair is there in both orders; otherwise each two policies stand first equally often.

    Raises:
        InputError: the file is there already; somebody may have begun to fill it in.
    """
    if pathlib.Path(path).exists():
        raise InputError(f"--export={path} exists already, and somebody may have judged its pairs; name another file")
    drawn = random.Random(seed)
    asked, key = [], []
    for pair, first in _orders(pairs, drawn, both):
        one, other = pair.completions[first], pair.completions[1 - first]
        name = _id(seed, pair, first)
        facts = {"id": name, "prompt": pair.prompt, "number": pair.number}
        facts |= {"first": pair.names[first], "second": pair.names[1 - first], "same": pair.same}
        key.append(facts | {"lengths": [pair.lengths[first], pair.lengths[1 - first]]})
        if not pair.same:
            asked.append({"id": name, "prompt": pair.prompt, "first": one.text, "second": other.text, "winner": None})
    drawn.shuffle(asked)
    write_json_lines(key_of(path), sorted(key, key=lambda facts: facts["id"]))
    write_json_lines(path, asked)
    return len(asked)


def read(path: str, key: str | None = None) -> tuple[list[Judgment], int]:
    """Reads judgments of a file of pairs; returns them, and how many pairs nobody has judged.

    Args:
        path: the file of pairs, filled in, or a table with `id` and `winner`.
        key: the key; None: where `write` puts it for the file of pairs.

    Raises:
        InputError: a line has another verdict, or an id that the key does not have; or nothing is judged.
    """
    key_path = pathlib.Path(key) if key else key_of(path)
    if not key_path.is_file():
        raise InputError(
            f"{key_path} is not there: name the key, which --export wrote beside the pairs, with --key=FILE"
        )
    known = {}
    for number, facts in enumerate(read_json_lines(key_path), start=1):
        if not _is_key(facts):
            raise InputError(f"{key_path}, line {number}: no line of a key that --export wrote")
        known[facts["id"]] = facts
    found = [_judgment(facts, 0.5, "", False) for facts in known.values() if facts["same"]]
    seen = {facts["id"] for facts in known.values() if facts["same"]}
    for place, row in rows.read(path):
        if isinstance(row, InputError):
            raise InputError(f"{place}: {row}")
        if row.get("id") not in known:
            raise InputError(
                f"{place}: the id {str(row.get('id'))[:40]!r} is not in {key_path}; is it the key of other pairs?"
            )
        if row.get("winner") in (None, ""):
            continue
        try:
            score = verdict(row["winner"])
        except InputError as error:
            raise InputError(f"{place}: the winner {error}") from None
        found.append(_judgment(known[row["id"]], score, str(row.get("judge") or ""), True))
        seen.add(row["id"])
    if not any(judgment.ordered for judgment in found):
        raise InputError(f"{path}: no pair has a winner yet")
    return found, len(known.keys() - seen)


def _orders(pairs: Sequence[Pair], drawn: random.Random, both: bool):
    """Yields (pair, place of the completion that stands first)."""
    if both:
        yield from ((pair, first) for pair in pairs for first in (0, 1))
        return
    contests: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        contests.setdefault(pair.names, []).append(pair)
    for members in contests.values():
        sides = [number % 2 for number in range(len(members))]
        drawn.shuffle(sides)
        yield from zip(members, sides)


def _id(seed: int, pair: Pair, first: int) -> str:
    """Returns a name that says nothing of who wrote what."""
    text = repr((seed, pair.prompt, pair.number, pair.names, first))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _is_key(facts: Row) -> bool:
    lengths = facts.get("lengths")
    texts = all(isinstance(facts.get(name), str) for name in ("id", "prompt", "first", "second"))
    numbers = isinstance(lengths, list) and len(lengths) == 2 and all(type(length) is int for length in lengths)
    return texts and numbers and type(facts.get("number")) is int and isinstance(facts.get("same"), bool)


def _judgment(facts: Row, score: float, judge: str, ordered: bool) -> Judgment:
    first, second = facts["first"], facts["second"]
    lengths = facts["lengths"][0], facts["lengths"][1]
    return Judgment(facts["prompt"], facts["number"], first, second, score, lengths, judge, ordered)
