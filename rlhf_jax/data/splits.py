"""Which rows are for training, validation and test, so that nothing leaks from one to another.

A row's split is a hash of what it must not be divided from: its group, where the rows have one (a
question, a user), else its prompt or text. It depends on no other row, unless prompts are near
duplicates: these stay together, whatever their groups and files. With `splits = "published"` it is the
one that the source gave, as far as that leaks nothing.
"""

import collections
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlhf_jax.data import duplicates
from rlhf_jax.data.folders import split_name
from rlhf_jax.fields import forms
from rlhf_jax.runtime.errors import InputError

NAMES = ("train", "valid", "test")
HELD_OUT = "heldout"


def place(name: str) -> float:
    """A number in [0, 1) that a name always has."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def split_rows(config, rows: Mapping[str, Sequence[Any]]) -> tuple[dict[str, dict[str, list]], dict[str, dict]]:
    """Divides rows into splits.

    Args:
      config: the `data.files` section.
      rows: of each kind; near duplicates are looked for among the prompts of all of them.

    Returns:
      kind -> split -> rows in their order, where split is one of NAMES or, with held-out labelers,
      HELD_OUT: what they labelled outside the training split. And kind -> what was found and left out.

    Raises:
      InputError: naming the field of `data.files` that does not fit the rows.
    """
    prompts = sorted({row.prompt for found in rows.values() for row in found if _prompted(row)})
    cluster = {}  # prompt -> that of its near duplicates which comes first
    if config.near_duplicates != "ignore":
        cluster = dict(zip(prompts, duplicates.clusters(prompts, config.common_prefix)))
    everything = [row for found in rows.values() for row in found]
    key_of = lambda row: _key(row, config.group_field)
    home = _homes([(key_of(row), cluster.get(getattr(row, "prompt", None))) for row in everything])
    people = [row for kind, found in rows.items() if kind != "documents" for row in found]
    held_out = _held_out(config.held_out_labelers, people) if people else set()
    if config.per_user and people and all(field(row, config.user_field) is None for row in people):
        raise InputError(f"data.files.per_user = {config.per_user}, but no row has the field '{config.user_field}'")
    published = _Published(config, rows, lambda row: home[key_of(row)])

    splits, facts = {}, {}
    for kind, found in rows.items():
        kept, dropped = list(found), collections.Counter()
        if config.near_duplicates == "drop":
            kept = _drop(kept, dropped, "they repeat another row", content)
            kept = _one_prompt_each(kept, dropped, cluster)
        if config.per_user and kind != "documents":
            kept = _limit_users(kept, dropped, config.user_field, config.per_user)
        splits[kind] = {name: [] for name in (*NAMES, HELD_OUT)}
        for row in kept:
            name = published.split(row)
            if name is None:
                dropped["their group is in valid or test too"] += 1
                continue
            if _labeler(row) in held_out:
                if name == "train":
                    dropped["a held-out labeler judged a training prompt"] += 1
                    continue
                name = HELD_OUT
            splits[kind][name].append(row)
        facts[kind] = {
            "rows": {name: len(own) for name, own in splits[kind].items() if own},
            "left_out": dict(+dropped),  # without zeros
            "near_duplicates": _cluster_facts({row.prompt for row in found if _prompted(row)}, cluster),
        }
    return splits, facts


def field(row, name: str):
    """A field of a record, or else of the row that it was made from; None where neither has it."""
    value = getattr(row, name, None)
    return getattr(row, "row", {}).get(name) if value is None else value


def content(row) -> str:
    """What makes two rows equal: all fields but the source's own."""
    fields = {name: value for name, value in vars(row).items() if name not in ("row", "split")}
    return json.dumps(fields, sort_keys=True)


def _key(row, group_field: str) -> str:
    group = field(row, group_field)
    return str(group) if group not in (None, "") else _text(row)


def _prompted(row) -> bool:
    """Documents have no prompt, and texts that are rated by themselves an empty one."""
    return bool(getattr(row, "prompt", None))


def _text(row) -> str:
    """What tells rows of no group apart."""
    if _prompted(row):
        return row.prompt
    return row.completions[0] if hasattr(row, "completions") else row.text


def share_split(name: str, config, without: Collection[str] = ()) -> str:
    """The split of a name by its hash; those in `without` have no share."""
    value = place(name)
    test = 0 if "test" in without else config.test_share
    valid = 0 if "valid" in without else config.valid_share
    if value < test:
        return "test"
    return "valid" if value < test + valid else "train"


class _Published:
    """The split of a row: by shares, or where `splits` is "published" the one that the source gave it.

    Of what is published as train, a valid or test split that its sources do not publish gets its share.
    Rows without a split of their own go where those are that they must not be divided from, else by shares.
    """

    def __init__(self, config, rows: Mapping[str, Sequence[Any]], home: Callable[[Any], str]):
        self._config, self._home = config, home
        # home -> the most held out of the splits of its rows, and all that the kinds of these rows publish
        self._splits: dict[str, tuple[str | None, set[str]]] = {}
        for found in rows.values() if config.splits == "published" else ():
            published = {split for row in found if (split := _own_split(row))}
            for row in found:
                split, without = self._splits.get(home(row), (None, set()))
                most = max(split, _own_split(row), key=(None, *NAMES).index)
                self._splits[home(row)] = most, without | published

    def split(self, row) -> str | None:
        """None where the row is published in a split from which its home is held out."""
        home = self._home(row)
        split, without = self._splits.get(home, (None, set()))
        if split and _own_split(row) not in (split, None):
            return None
        return split if split in ("valid", "test") else share_split(home, self._config, without)


def _own_split(row) -> str | None:
    published = field(row, "split")
    return split_name(published) if isinstance(published, str) else None


def _homes(keys: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """(key, cluster) of rows -> key -> the key that decides for all that hang together through clusters."""
    home = {key: key for key, _ in keys}

    def find(key):
        while home[key] != key:
            home[key] = home[home[key]]
            key = home[key]
        return key

    first = {}
    for key, cluster in keys:
        if cluster is not None:
            ends = sorted((find(key), find(first.setdefault(cluster, key))))
            home[ends[1]] = ends[0]  # the alphabetically first, so that the order of rows does not matter
    return {key: find(key) for key in home}


def _labeler(row) -> str | None:
    value = field(row, "labeler")
    return None if value is None else str(value)


def _held_out(wanted: str, rows) -> set[str]:
    """The labelers of `held_out_labelers`: names, or a share of all as '20%'."""
    if not wanted:
        return set()
    there = {_labeler(row) for row in rows} - {None}
    names = forms.share_or_names(wanted)
    if isinstance(names, float):
        ordered = sorted(there, key=lambda name: (place(f"labeler {name}"), name))
        names = set(ordered[: round(names * len(ordered))])
    if names - there or not names:
        shown = ", ".join(sorted(there)[:12]) or "none"
        missing = ", ".join(sorted(names - there)) or wanted
        raise InputError(f"data.files.held_out_labelers: '{missing}' labelled no row; the labelers are {shown}")
    return names


def _drop(rows: list, dropped: collections.Counter, reason: str, identity: Callable) -> list:
    """The first of the rows that are the same."""
    kept = list({identity(row): row for row in reversed(rows)}.values())[::-1]
    dropped[reason] += len(rows) - len(kept)
    return kept


def _one_prompt_each(rows: list, dropped: collections.Counter, cluster: Mapping[str, Any]) -> list:
    """All rows of one prompt of each cluster: several labelers may have ranked it."""
    stays = {}
    for row in rows:
        if _prompted(row):
            number = cluster[row.prompt]
            stays[number] = min(stays.get(number, row.prompt), row.prompt)
    kept = [row for row in rows if not _prompted(row) or stays[cluster[row.prompt]] == row.prompt]
    dropped["a near duplicate of their prompt stays"] += len(rows) - len(kept)
    return kept


def _limit_users(rows: list, dropped: collections.Counter, user_field: str, limit: int) -> list:
    """The rows of at most `limit` prompts a user, drawn by hash; rows without a user stay."""
    prompts = collections.defaultdict(set)
    for row in rows:
        user = field(row, user_field)
        if user is not None:
            prompts[user].add(_text(row))
    draw = lambda user, prompt: place(f"{user}\n{prompt}")
    stays = {user: set(sorted(own, key=lambda prompt: draw(user, prompt))[:limit]) for user, own in prompts.items()}
    kept = [row for row in rows if field(row, user_field) is None or _text(row) in stays[field(row, user_field)]]
    dropped[f"their user has more than {limit} prompts"] += len(rows) - len(kept)
    return kept


def _cluster_facts(prompts: set[str], cluster: Mapping[str, Any]) -> dict:
    sizes = collections.Counter(cluster[prompt] for prompt in prompts if prompt in cluster)
    sizes = [size for size in sizes.values() if size > 1]
    return {
        "prompts": len(prompts),
        "clusters": len(sizes),
        "in_clusters": sum(sizes),
        "largest": max(sizes, default=0),
    }
