"""OpenAssistant: trees of messages, in which the replies to one message are ranked against each other.

A row is a prompter's message with its path from the root, and the assistant's replies to it. Messages that were deleted
or failed their review are left out, with everything that follows them.
"""

from collections.abc import Iterator
from typing import Any

from rlhf_jax.data.public.dataset import Dataset, Download, LeftOut, Row, field, filled, text
from rlhf_jax.runtime.errors import InputError

_ROLES = {"prompter": "user", "assistant": "assistant"}
_HUB = "https://huggingface.co/datasets/OpenAssistant/oasst1"


def trees(published: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields the trees of a file; a file of single messages, one tree after another, is assembled into trees.

    Args:
        published: (place, row) pairs, where a row is a tree, a message, or an InputError for a bad row.
    """
    nodes: dict[str, Row] = {}
    place, seen = "", set()
    for here, row in published:
        if isinstance(row, InputError) or "message_id" not in row:
            yield here, row
            continue
        try:
            name, tree = text(row, "message_id"), text(row, "message_tree_id")
            parent = row.get("parent_id")
            if parent is None and nodes:
                yield place, _tree(nodes)
                nodes = {}
            if parent is None and tree in seen:
                raise InputError(f"the tree {tree} is there twice; keep one")
            if parent is not None and parent not in nodes:
                raise InputError(f"the message {name} follows {parent}, which does not stand before it in its tree")
        except InputError as error:
            yield here, error
            continue
        nodes[name] = row = {**row, "replies": []}
        if parent is None:
            place = here
            seen.add(tree)
        else:
            nodes[parent]["replies"].append(row)
    if nodes:
        yield place, _tree(nodes)


def _tree(nodes: dict[str, Row]) -> Row:
    """Returns a tree in its published form, from its messages, of which the root comes first."""
    root = next(iter(nodes.values()))
    return {"message_tree_id": root["message_tree_id"], "prompt": root}


def _conversations(tree: Row) -> Iterator[tuple[list[Row], list[Row], str]]:
    """Yields, for each prompter's message, (messages from the root up to it, usable replies to it, language)."""
    waiting = [([], field(tree, "prompt", dict))]
    while waiting:
        path, node = waiting.pop()
        if node.get("deleted") is True or node.get("review_result") is False:
            continue
        if (role := text(node, "role")) not in _ROLES:
            raise InputError(f"field 'role' is {role!r}; it must be prompter or assistant")
        path = [*path, {"role": _ROLES[role], "content": text(node, "text")}]
        if not path[-1]["content"].strip():
            continue
        replies = field(node, "replies", list)
        if not all(isinstance(reply, dict) for reply in replies):
            raise InputError("field 'replies' must be a list of messages")
        if role == "prompter":
            usable = [
                reply
                for reply in replies
                if reply.get("deleted") is not True
                and reply.get("review_result") is not False
                and text(reply, "role") == "assistant"
                and text(reply, "text").strip()
            ]
            yield path, usable, node.get("lang") or ""
        waiting += [(path, reply) for reply in reversed(replies)]


def _rank(reply: Row) -> int | None:
    """Returns the rank of a reply, 0 for the best; None if it has none."""
    rank = reply.get("rank")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 0):
        raise InputError(f"field 'rank' is {rank!r}; it must be a whole number from 0")
    return rank


def _demonstrations(tree: Row, file: str) -> Iterator[Row]:
    """Yields each conversation with its best-ranked reply, or with its only one."""
    found = []
    for path, replies, lang in _conversations(tree):
        ranked = sorted((reply for reply in replies if _rank(reply) is not None), key=_rank)
        if best := ranked or (replies if len(replies) == 1 else []):
            reply = {"role": "assistant", "content": filled(best[0], "text")}
            found.append({"messages": [*path, reply], "lang": lang, "group": text(tree, "message_tree_id")})
    if not found:
        raise LeftOut("a tree without a reply that is ranked or alone")
    yield from found


def _rankings(tree: Row, file: str) -> Iterator[Row]:
    """Yields each conversation that has at least two ranked replies, with these."""
    found = []
    for path, replies, lang in _conversations(tree):
        ranked = [reply for reply in replies if _rank(reply) is not None]
        if len(ranked) > 1:
            found.append(
                {
                    "messages": path,
                    "completions": [filled(reply, "text") for reply in ranked],
                    "ranks": [_rank(reply) + 1 for reply in ranked],
                    "lang": lang,
                    "group": text(tree, "message_tree_id"),
                }
            )
    if not found:
        raise LeftOut("a tree without two ranked replies to one message")
    yield from found


_COMMON = {
    "homepage": _HUB,
    "files": {
        "train": ("*ready.trees|*ready.messages|data/train-*|train-*",),
        "valid": ("data/validation-*|validation-*|",),
    },
    "assemble": trees,
    "downloads": (
        Download(
            "2023-04-12_oasst_ready.trees.jsonl.gz",
            f"{_HUB}/resolve/5c38bf14fe3c7bb31bb8e13eb4f87b2c6fd78d93/2023-04-12_oasst_ready.trees.jsonl.gz",
            "2a9a8fd343e9b28e04a895a669d3253f82d93e9c174d440199ae19d5fafbdff7",
        ),
    ),
}
_COLUMNS = {"messages": "messages", "group": "text", "lang": "text"}

DATASETS = (
    Dataset(
        name="oasst_demonstrations",
        kind="demonstrations",
        about="OpenAssistant: conversations, each with the reply that volunteers ranked first",
        convert=_demonstrations,
        columns=_COLUMNS,
        **_COMMON,
    ),
    Dataset(
        name="oasst_rankings",
        kind="rankings",
        about="OpenAssistant: conversations, each with all replies that volunteers ranked",
        convert=_rankings,
        columns={**_COLUMNS, "completions": "texts", "ranks": "ints"},
        **_COMMON,
    ),
)
