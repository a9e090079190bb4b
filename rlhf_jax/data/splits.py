"""Divides rows into training, validation and test splits, so that nothing leaks from one split to another.

The split of a row is given by a hash of its group (a question or a user, say), or of its prompt or text if it has no
group. It does not depend on other rows, with one exception: near-duplicate prompts stay in one split, whatever their
groups and files. With `splits = "published"`, a row keeps the split that its source gave it, as far as nothing leaks.
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


def place(name: str, seed: int = 0) -> float:
    """Returns a hash of a name as a number in [0, 1); each seed other than 0 gives another hash."""
    name = f"seed {seed}\n{name}" if seed else name
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def split_rows(config, rows: Mapping[str, Sequence[Any]]) -> tuple[dict[str, dict[str, list]], dict[str, dict]]:
    """Divides rows into splits.

    Args:
      config: the `data.files` section.
      rows: the rows of each kind; near duplicates are searched among the prompts of all kinds.

    Returns:
      kind -> split -> rows in their order. A split is one of NAMES, or HELD_OUT for rows that held-out labelers
      labelled outside the training split. Also kind -> counts of rows, of rows left out, and of near duplicates.

    Raises:
      InputError: a field of `data.files` does not fit the rows; the message names it.
    """
    prompts = sorted({row.prompt for found in rows.values() for row in found if _prompted(row)})
    cluster = {}  # prompt -> number of its cluster of near duplicates
    if config.near_duplicates != "ignore":
        cluster = dict(zip(prompts, duplicates.clusters(prompts, config.common_prefix)))
    everything = [row for found in rows.values() for row in found]

    def key_of(row):
        return group_of(row, config.group_field) or _text(row)

    home = _homes([(key_of(row), cluster.get(getattr(row, "prompt", None))) for row in everything])
    people = [row for kind, found in rows.items() if kind != "documents" for row in found]
    held_out = _held_out(config.held_out_labelers, people) if people else set()
    if config.per_user and people and all(field(row, config.user_field) is None for row in people):
        raise InputError(
            f"data.files.per_user={config.per_user}, but no row has the field '{config.user_field}'; name the field of the "
            "user in data.files.user_field"
        )
    published = _Published(config, rows, lambda row: home[key_of(row)])
    trained_on = _training_groups(config, people, published) if people else None

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
            group = group_of(row, config.group_field)
            if name == "train" and trained_on is not None and group is not None and group not in trained_on:
                dropped[f"their group is not among the {len(trained_on)} training groups"] += 1
                continue
            if _labeler(row) in held_out:
                if name == "train":
                    dropped["a held-out labeler judged a training prompt"] += 1
                    continue
                name = HELD_OUT
            splits[kind][name].append(row)
        if config.training_group_rows:
            splits[kind]["train"] = _limit_groups(config, splits[kind]["train"], dropped)
        facts[kind] = {
            "rows": {name: len(own) for name, own in splits[kind].items() if own},
            "left_out": dict(+dropped),  # the unary plus removes zero counts
            "near_duplicates": _cluster_facts({row.prompt for row in found if _prompted(row)}, cluster),
        }
    return splits, facts


def field(row, name: str):
    """Returns a field of a record, or else of the row that it was made from; None if neither has the field."""
    value = getattr(row, name, None)
    return getattr(row, "row", {}).get(name) if value is None else value


def content(row) -> str:
    """Returns all fields of a record but `row` and `split`, as JSON; two rows are equal if their contents are."""
    fields = {name: value for name, value in vars(row).items() if name not in ("row", "split")}
    return json.dumps(fields, sort_keys=True)


def group_of(row, group_field: str) -> str | None:
    """Returns the name of a row's group, which no split may divide; None if the row has none."""
    group = field(row, group_field)
    return None if group in (None, "") else str(group)


def _training_groups(config, rows: Sequence[Any], published: "_Published") -> set[str] | None:
    """Returns the groups that are trained on, or None for all of them: the first of the split train by a hash.

    Raises:
      InputError: there are fewer such groups than `training_groups`.
    """
    wanted = config.training_groups
    if not wanted:
        return None
    there = {group for row in rows if (group := group_of(row, config.group_field)) and published.split(row) == "train"}
    if len(there) < wanted:
        raise InputError(
            f"data.files.training_groups={wanted} must be at most {len(there)}, the groups of the split train by the field "
            f"'{config.group_field}' (data.files.group_field)"
        )
    return set(sorted(there, key=lambda group: (place(f"training group {group}", config.split_seed), group))[:wanted])


def _prompted(row) -> bool:
    """Whether a row has a prompt. Documents have none, and rated texts without a context have an empty one."""
    return bool(getattr(row, "prompt", None))


def _text(row) -> str:
    """Returns the text that identifies a row without a group: its first prompt, first completion, or document."""
    if _prompted(row):
        earlier = getattr(row, "earlier", ())
        return earlier[0][0] if earlier else row.prompt
    return row.completions[0] if hasattr(row, "completions") else row.text


def share_split(name: str, config, without: Collection[str] = ()) -> str:
    """Returns the split of a name by its hash and the configured shares; the splits in `without` get no share."""
    value = place(name, config.split_seed)
    test = 0 if "test" in without else config.test_share
    valid = 0 if "valid" in without else config.valid_share
    if value < test:
        return "test"
    return "valid" if value < test + valid else "train"


class _Published:
    """Assigns splits to rows: by shares, or, with splits = "published", as their source published them.

    If the sources publish no valid or no test split, this split gets its share of the rows published as train. A row
    without a published split goes into the split of the rows that it must stay with, or else by shares.

    Args:
      config: the `data.files` section.
      rows: the rows of each kind.
      home: maps a row to the key of all rows that must stay in one split.
    """

    def __init__(self, config, rows: Mapping[str, Sequence[Any]], home: Callable[[Any], str]):
        self._config, self._home = config, home
        # home -> (the split of its rows that is furthest from train, all splits that the kinds of its rows publish)
        self._splits: dict[str, tuple[str | None, set[str]]] = {}
        for found in rows.values() if config.splits == "published" else ():
            published = {split for row in found if (split := _own_split(row))}
            for row in found:
                split, without = self._splits.get(home(row), (None, set()))
                most = max(split, _own_split(row), key=(None, *NAMES).index)
                self._splits[home(row)] = most, without | published

    def split(self, row) -> str | None:
        """Returns the split of a row, or None if the row is to be left out.

        A row is left out if a row with the same home is published in a split further from train: it would leak.
        """
        home = self._home(row)
        split, without = self._splits.get(home, (None, set()))
        if split and _own_split(row) not in (split, None):
            return None
        return split if split in ("valid", "test") else share_split(home, self._config, without)


def _own_split(row) -> str | None:
    """Returns train, valid or test as a row's source published it, or None."""
    published = field(row, "split")
    return split_name(published) if isinstance(published, str) else None


def _homes(keys: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """Joins keys that are connected through clusters (union-find); returns key -> the key that represents its set.

    Args:
      keys: (key, cluster or None) of each row.
    """
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
            home[ends[1]] = ends[0]  # the alphabetically first key wins, so that the order of rows does not matter
    return {key: find(key) for key in home}


def _labeler(row) -> str | None:
    """Returns the labeler of a row, or None."""
    value = field(row, "labeler")
    return None if value is None else str(value)


def _held_out(wanted: str, rows) -> set[str]:
    """Returns the held-out labelers. `wanted` holds their names, or a share of all labelers, such as '20%'.

    Raises:
      InputError: a name labelled no row, or the share selects nobody.
    """
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
        raise InputError(
            f"data.files.held_out_labelers must select labelers of the rows, and '{missing}' selects none; they are {shown}"
        )
    return names


def _drop(rows: list, dropped: collections.Counter, reason: str, identity: Callable) -> list:
    """Returns the first row of each identity; counts the others in `dropped` under a reason."""
    kept = list({identity(row): row for row in reversed(rows)}.values())[::-1]
    dropped[reason] += len(rows) - len(kept)
    return kept


def _one_prompt_each(rows: list, dropped: collections.Counter, cluster: Mapping[str, Any]) -> list:
    """Returns the rows of one prompt per cluster: all its rows, because several labelers may have ranked it."""
    stays = {}
    for row in rows:
        if _prompted(row):
            number = cluster[row.prompt]
            stays[number] = min(stays.get(number, row.prompt), row.prompt)
    kept = [row for row in rows if not _prompted(row) or stays[cluster[row.prompt]] == row.prompt]
    dropped["a near duplicate of their prompt stays"] += len(rows) - len(kept)
    return kept


def _limit_users(rows: list, dropped: collections.Counter, user_field: str, limit: int) -> list:
    """Returns the rows of at most `limit` prompts per user, drawn by hash; rows without a user stay."""
    prompts = collections.defaultdict(set)
    for row in rows:
        user = field(row, user_field)
        if user is not None:
            prompts[user].add(_text(row))

    def draw(user, prompt):
        return place(f"{user}\n{prompt}")

    stays = {user: set(sorted(own, key=lambda prompt: draw(user, prompt))[:limit]) for user, own in prompts.items()}
    kept = [row for row in rows if field(row, user_field) is None or _text(row) in stays[field(row, user_field)]]
    dropped[f"their user has more than {limit} prompts"] += len(rows) - len(kept)
    return kept


def _limit_groups(config, rows: list, dropped: collections.Counter) -> list:
    """Returns the rows of at most `training_group_rows` per group, drawn by hash; rows without a group stay."""
    limit, by_group = config.training_group_rows, collections.defaultdict(list)
    for row in rows:
        by_group[group_of(row, config.group_field)].append(row)
    stays = {
        id(row)
        for group, own in by_group.items()
        for row in (
            own if group is None else sorted(own, key=lambda row: place(content(row), config.split_seed))[:limit]
        )
    }
    dropped[f"their group has more than {limit} rows in train"] += len(rows) - len(stays)
    return [row for row in rows if id(row) in stays]


def _cluster_facts(prompts: set[str], cluster: Mapping[str, Any]) -> dict:
    """Returns the numbers of prompts, of clusters of two or more, and of prompts in these, and the largest cluster."""
    sizes = collections.Counter(cluster[prompt] for prompt in prompts if prompt in cluster)
    sizes = [size for size in sizes.values() if size > 1]
    return {
        "prompts": len(prompts),
        "clusters": len(sizes),
        "in_clusters": sum(sizes),
        "largest": max(sizes, default=0),
    }
