"""Answers that a model has given, kept in a file as they come, so that a run which was stopped goes on."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import not_through_links, whole_lines


class Answers:
    """The answers of one model, by the request that each of them answers.

    Args:
        path: the file of JSON lines that keeps them; None: they are not kept.
        identity: everything that decides about the answers beside the requests, as text.
    """

    def __init__(self, path: pathlib.Path | None, identity: str):
        self._path, self._identity = path, identity
        self._known: dict[str, Any] = {}
        if path is not None:
            self._known = hosts.on_first(_read, path)

    def key(self, kind: str, arguments: tuple, copy: int = 0) -> str:
        """Returns the name of a request.

        Args:
            kind: the method of the model.
            arguments: what lm-eval gives that method.
            copy: number of the request among equal ones.
        """
        asked = json.dumps([self._identity, kind, arguments, copy], sort_keys=True, default=str)
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def add(self, answers: Iterable[tuple[str, Any]]) -> None:
        """Adds answers, and writes them to the file at once."""
        found = dict(answers)
        self._known |= found
        if self._path is not None:
            hosts.on_first(_append, self._path, found)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the answers in a file; a last line that was cut is removed from it."""
    if not path.exists():
        return {}
    known = {}
    lines = whole_lines(path)
    whole = sum(len(line) + 1 for line in lines)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            known[row["key"]] = row["answer"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number} is no answer: delete the file, and all is computed again"
            ) from None
    return known


def _append(path: pathlib.Path, found: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", opener=lambda name, flags: not_through_links(name, flags | os.O_CREAT)) as file:
            file.writelines(json.dumps({"key": key, "answer": found[key]}).encode() + b"\n" for key in found)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from None
