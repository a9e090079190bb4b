"""Judgments that others have published: AlpacaEval's annotations, Chatbot Arena's battles and MT-bench's pairs.

AlpacaEval (annotations.json)  instruction, output_1, output_2, generator_1, generator_2, preference: 1 where output_1 is
                               better, 2 where output_2 is, or between them; 0 and 1.5 are ties. Its annotators shuffle the
                               two outputs and turn them back, so the file does not say which was shown first.
Chatbot Arena                  model_a, model_b, winner (model_a, model_b, tie, "tie (bothbad)", both_bad), conversation_a,
                               conversation_b: lists of {role, content}, where newer files have a list of {type, text} as
                               content. model_a stands at the left. The table of 55,000 battles has winner_model_a,
                               winner_model_b and winner_tie instead, one of which is 1.
MT-bench (gpt-4_pair.jsonl)    question_id, turn, model_1, model_2, and g1_winner and g2_winner (model_1, model_2, tie or
                               error) with model_1 first, and with model_2 first.
"""

from collections.abc import Callable
from typing import Any

from rlhf_jax.data import rows
from rlhf_jax.data.rows import Row
from rlhf_jax.evaluate.compare.judgments import Judgment
from rlhf_jax.runtime.errors import InputError

_TIES = ("tie", "tie (bothbad)", "both_bad", "bothbad")


def read(path: str) -> tuple[list[Judgment], int] | None:
    """Reads a file of judgments; returns them, and how many rows have no verdict.

    Returns None where the first row is of none of these forms.

    Raises:
        InputError: a row is of another form than the first.
    """
    form, found, without = None, [], 0
    for number, (place, row) in enumerate(rows.read(path)):
        if isinstance(row, InputError):
            raise InputError(f"{place}: {row}")
        form = form or _form(row)
        if form is None:
            return None
        try:
            judgments = form(row, place, number)
        except (KeyError, TypeError, IndexError):
            raise InputError(f"{place}: it lacks a field that the first row has, or has it in another form") from None
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        without += not judgments
        found += judgments
    if form and not found:
        raise InputError(f"{path}: no row has a verdict")
    return found, without


def _form(row: Row) -> Callable[[Row, str, int], list[Judgment]] | None:
    """Returns the reader of rows with these fields."""
    forms = {
        ("generator_1", "generator_2", "preference"): _alpaca_eval,
        ("model_1", "model_2", "g1_winner", "g2_winner"): _mt_bench,
        ("model_a", "model_b", "winner"): _arena,
        ("model_a", "model_b", "winner_model_a", "winner_model_b"): _arena_columns,
    }
    return next((form for names, form in forms.items() if all(name in row for name in names)), None)


def _alpaca_eval(row: Row, place: str, number: int) -> list[Judgment]:
    preference = row["preference"]
    if preference is None:
        return []
    if type(preference) not in (int, float) or not (preference == 0 or 1 <= preference <= 2):
        raise InputError(f"field 'preference' is {str(preference)[:40]!r}; AlpacaEval's are 0, or from 1 to 2")
    score = 0.5 if preference == 0 else float(preference) - 1
    lengths = _length(row["output_2"]), _length(row["output_1"])
    names = _name(row["generator_2"]), _name(row["generator_1"])
    return [Judgment(row["instruction"], 0, *names, score, lengths, _name(row.get("annotator") or ""), ordered=False)]


def _arena(row: Row, place: str, number: int) -> list[Judgment]:
    winner = row["winner"]
    if winner not in ("model_a", "model_b", *_TIES):
        raise InputError(
            f"field 'winner' is {str(winner)[:40]!r}; it must be model_a, model_b or one of {', '.join(_TIES)}"
        )
    return _battle(row, place, number, {"model_a": 1.0, "model_b": 0.0}.get(winner, 0.5))


def _arena_columns(row: Row, place: str, number: int) -> list[Judgment]:
    return _battle(row, place, number, (1 + int(row["winner_model_a"]) - int(row["winner_model_b"])) / 2)


def _battle(row: Row, place: str, number: int, score: float) -> list[Judgment]:
    """Returns a battle's judgment; people are many, and are one judge here."""
    turns = row.get("conversation_a"), row.get("conversation_b")
    known = all(isinstance(conversation, list) for conversation in turns)
    asked = next((_content(turn) for turn in turns[0] if turn["role"] == "user"), None) if known else row.get("prompt")
    lengths = (
        tuple(sum(len(_content(turn)) for turn in said if turn["role"] == "assistant") for said in turns)
        if known
        else None
    )
    prompt = asked or row.get("question_id") or row.get("id") or place
    return [Judgment(str(prompt), number, _name(row["model_a"]), _name(row["model_b"]), score, lengths, "people")]


def _mt_bench(row: Row, place: str, number: int) -> list[Judgment]:
    names = _name(row["model_1"]), _name(row["model_2"])
    judge = row.get("judge")
    judge = "/".join(map(str, judge)) if isinstance(judge, list) else str(judge or "")
    found = []
    for winner, first, second in ((row["g1_winner"], *names), (row["g2_winner"], *names[::-1])):
        if winner not in ("model_1", "model_2", "tie", "error"):
            raise InputError(f"a winner is {str(winner)[:40]!r}; it must be model_1, model_2, tie or error")
        if winner != "error":
            score = 0.5 if winner == "tie" else float(names[winner == "model_2"] == first)
            found.append(Judgment(row["question_id"], int(row.get("turn", 1)), first, second, score, None, judge))
    return found


def _content(turn: Any) -> str:
    """Returns the text of a turn, which may consist of parts."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _length(text: Any) -> int:
    if not isinstance(text, str):
        raise InputError("an output is no text")
    return len(text)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"a name is {str(value)[:40]!r}, and no text")
    return value
