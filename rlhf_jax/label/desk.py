"""Who judges what: the people at work, the item that each has, and their judgments.

Every item has one labeler, the first who gets it, but for a share that everybody judges, and items with known rankings.
Each labeler meets the items in an order of their own, and the completions of an item too; both follow from the seed, the
name and the item, so that a restart goes on as if there had been none. What a person has on the page is nobody else's
meanwhile, and comes again if it is left.
"""

import dataclasses
import datetime
import hashlib
import random
import secrets
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.label import agreement, questions
from rlhf_jax.label.items import Item
from rlhf_jax.label.judgments import Judgments
from rlhf_jax.runtime.errors import InputError

LEFT = 90.0  # seconds without a sign of a page, after which its labeler counts as gone; pages give one every 15 s
LONGEST_NAME = 60


class Refused(InputError):
    """What a page asks for cannot be; `code` tells it why: "name", "session" or "item"."""

    def __init__(self, code: str, sentence: str):
        super().__init__(sentence)
        self.code = code


@dataclasses.dataclass
class Seat:
    """A labeler at work: the secret of their page, when it was last seen, and what it shows."""

    session: str
    seen: float
    item: str | None = None
    since: float = 0.0
    filled: dict | None = None  # the answers of a judgment that was taken back


class Desk:
    """The items and judgments of one run of the program. Times are seconds of `clock`.

    Args:
        items: what is to be judged.
        gold: items with known ranks; judgments of them go to `screening`.
        labels, screening: the files of judgments.
        seed: of all orders, and of which items are shared.
        shared: the share of items that everybody judges, 0 to 1.
        asked: what is asked of each completion, of questions.ASKED.
        clock: a monotonic clock.
    """

    def __init__(
        self,
        items: Sequence[Item],
        gold: Sequence[Item],
        labels: Judgments,
        screening: Judgments,
        *,
        seed: int = 0,
        shared: float = 0.1,
        asked: Sequence[str] = questions.ASKED,
        clock=time.monotonic,
    ):
        known = {item.key: item for item in gold}
        self.items: Mapping[str, Item] = {item.key: item for item in items} | known
        self.labels, self.screening, self.asked = labels, screening, tuple(asked)
        self._seed, self._clock = seed, clock
        own = sorted((key for key in self.items if key not in known), key=lambda key: self._digest("shared", key))
        self._everyones = {*known, *own[: round(shared * len(own))]}
        self._seats: dict[str, Seat] = {}
        self._sequences: dict[str, list[str]] = {}
        self._done: dict[str, set[str]] = {}  # item -> who has judged it
        for row in (*labels.rows, *screening.rows):
            self._done.setdefault(row["item"], set()).add(row["labeler"])

    def enter(self, name: Any, session: str = "") -> tuple[str, str]:
        """Gives a labeler a seat; returns the name as it is kept, and the secret of the seat.

        Raises:
            InputError: the name is none.
            Refused: somebody is at work under this name.
        """
        name = name_of(name)
        seat = self._seats.get(name)
        if seat is not None and not _same(seat.session, session) and self._is_there(seat):
            raise Refused(
                "name",
                f"{name} is at work in another window; go on there, close it, or take another name. A window that was "
                f"left without closing it is free after {LEFT:.0f} seconds",
            )
        if seat is None:
            seat = self._seats[name] = Seat("", 0.0)
        if not _same(seat.session, session):
            seat.session = secrets.token_urlsafe(16)
        seat.seen = self._clock()
        return name, seat.session

    def leave(self, session: str) -> None:
        """Frees a labeler's name at once, and the item for whoever comes."""
        self._seat(session)[1].seen = -LEFT

    def alive(self, session: str) -> None:
        """Notes that a labeler's page is open; raises Refused if it has no seat any more."""
        self._seat(session)

    def next(self, session: str) -> dict | None:
        """Returns what a labeler's page shows: the item that it has or a new one; None if there is none for them."""
        name, seat = self._seat(session)
        if seat.item is None or seat.item not in self._open_to(name):  # somebody else may have got what was left
            seat.item, seat.since, seat.filled = next(self._open_to(name), None), self._clock(), None
        if seat.item is None:
            return None
        item, order = self.items[seat.item], self._order(name, seat.item)
        return {
            "key": item.key,
            "turns": [{"role": role, "text": text} for role, text in item.turns],
            "completions": [item.texts[place] for place in order],
            "cut": [not item.finished[place] for place in order] if item.finished else [],
            "filled": seat.filled,
        }

    def judge(self, session: str, key: str, form: dict) -> None:
        """Writes a labeler's judgment of the item on their page.

        Raises:
            Refused: the page shows another item than its labeler has.
            InputError: an answer is missing, or the file cannot be written.
        """
        name, seat = self._seat(session)
        if not key or key != seat.item:
            raise Refused("item", "this item is not yours any more; the page shows the next one")
        item, order = self.items[key], self._order(name, key)
        row = item.others | item.prompt
        if item.completions:
            row["completions"] = list(item.completions)
            row |= questions.judgment(item, order, form, self.asked)
            row |= {"models": list(item.models)} if item.models else {}
            row |= {"finished": list(item.finished)} if item.finished else {}
            row |= {"order": list(order)}
        else:
            row |= questions.demonstration(form)
        row |= {"gold_ranks": list(item.gold)} if item.gold else {}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        row |= {"labeler": name, "item": key, "seconds": round(self._clock() - seat.since, 1), "time": now}
        (self.screening if item.gold else self.labels).append(row)
        self._done.setdefault(key, set()).add(name)
        seat.item = seat.filled = None

    def undo(self, session: str) -> None:
        """Takes back a labeler's last judgment; its item is on their page again, with its answers.

        Raises:
            Refused: they have none.
        """
        name, seat = self._seat(session)
        last = []
        for file in (self.labels, self.screening):
            own = [row for row in file.rows if row["labeler"] == name and row["item"] in self.items]
            last += [(own[-1], file)] if own else []
        if not last:
            raise Refused("item", "there is no judgment of yours to take back")
        row, file = max(last, key=lambda pair: pair[0].get("time", ""))
        file.retract(row)
        key = row["item"]
        self._done[key].discard(name)
        seat.item, seat.since = key, self._clock()
        seat.filled = questions.shown(row, self._order(name, key)) or {"completion": row.get("completion", "")}

    def progress(self, session: str) -> dict:
        """Returns how many items a labeler has judged, and how many are open to them."""
        name, _ = self._seat(session)
        done = sum(name in self._done.get(key, ()) for key in self.items)
        return {"done": done, "left": sum(1 for _ in self._open_to(name)), "in_file": len(self.labels.rows)}

    def summary(self) -> dict:
        """Returns `agreement.summary` of all judgments."""
        return agreement.summary(self.labels.rows, self.screening.rows)

    def _open_to(self, name: str) -> Iterator[str]:
        """Yields the items that a labeler may still get, in their order."""
        taken = {seat.item for other, seat in self._seats.items() if other != name and self._is_there(seat)}
        for key in self._sequence(name):
            done = self._done.get(key, set())
            if name not in done and (key in self._everyones or not done and key not in taken):
                yield key

    def _sequence(self, name: str) -> list[str]:
        """Returns all items in the order in which a labeler meets them."""
        if name not in self._sequences:
            self._sequences[name] = sorted(self.items, key=lambda key: self._digest("items", name, key))
        return self._sequences[name]

    def _order(self, name: str, key: str) -> list[int]:
        """Returns the order of an item's completions on a labeler's page: place there -> place in the item."""
        order = list(range(len(self.items[key].completions)))
        random.Random(self._digest("completions", name, key)).shuffle(order)
        return order

    def _digest(self, *parts: str) -> str:
        return hashlib.sha256("\0".join((str(self._seed), *parts)).encode()).hexdigest()

    def _seat(self, session: str) -> tuple[str, Seat]:
        for name, seat in self._seats.items():
            if _same(seat.session, session):
                seat.seen = self._clock()
                return name, seat
        raise Refused("session", "this window is not at work any more; enter your name again")

    def _is_there(self, seat: Seat) -> bool:
        return self._clock() - seat.seen < LEFT


def name_of(text: Any) -> str:
    """Returns a labeler's name as it is kept; raises InputError if it is none."""
    name = unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else ""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"a labeler's name has 1 to {LONGEST_NAME} characters, without line ends and control characters"
        )
    return name


def _same(secret: str, given: str) -> bool:
    return bool(secret) and secrets.compare_digest(secret.encode(), given.encode())
