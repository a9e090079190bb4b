"""Lists of messages in the published forms -> the turns of a chat, as chat templates take them.

These forms are read, and may be mixed:

    OpenAI, TRL     {"role": "user", "content": "hi"}; the content may be a list of text parts
    ShareGPT        {"from": "human", "value": "hi"}
    calls of tools  {"role": "assistant", "tool_calls": [{"function": {"name": ..., "arguments": {...}}}]}, and then
                    {"role": "tool", "content": ...}; in ShareGPT's form "function_call" and "observation"

A turn keeps the other fields of its message (`name`, `reasoning_content`, ...), because a template may write them.
"""

import json
from typing import Any, NamedTuple

from rlhf_jax.data.row_fields import not_blank, shown, string_of
from rlhf_jax.data.rows import Row, type_name
from rlhf_jax.data.template import ROLES, Turn
from rlhf_jax.runtime.errors import InputError

# Other names of the roles: ShareGPT's, Gemma's and OpenAI's. A developer's turn is what OpenAI made of the system's.
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
}


class Chat(NamedTuple):
    """The turns of a chat, and descriptions of the tools that the assistant may call (None: there are none)."""

    turns: list[Turn]
    tools: list[dict] | None


def is_chat(value: Any) -> bool:
    """Whether a field holds messages, one or a list of them, and no text."""
    return isinstance(value, list | dict)


def chat_of(row: Row, name: str) -> Chat:
    """Returns the chat of a field of a row, with the row's `system` text (as in ShareGPT's form) and its `tools`.

    Raises:
        InputError: the field is no list of messages, or a message is not of a form that is read.
    """
    turns = turns_of(row.get(name), name)
    if any(_is_sharegpt(message) for message in row[name]) and isinstance(system := row.get("system"), str):
        if system.strip() and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": string_of(system, "system")})
    return Chat(turns, tools_of(row))


def turns_of(value: Any, name: str) -> list[Turn]:
    """Returns the turns of a list of messages, or of one message.

    Raises:
        InputError: a message is not of a form that is read, says nothing, or is a system turn after another turn.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"field {name!r} is {type_name(value)}; it must be a list")
    turns = [_turn(message, f"{name}[{i}]") for i, message in enumerate(value)]
    if not any("tool_calls" in turn or turn["content"].strip() for turn in turns):
        raise InputError(f"field {name!r} is empty; a chat has at least one turn")
    begun = False
    for i, turn in enumerate(turns):
        if turn["role"] == "system" and begun:
            raise InputError(
                f"field '{name}[{i}]' is a system turn after another turn; a chat has its system turn at its beginning"
            )
        begun = begun or turn["role"] != "system"
    return turns


def reply_of(value: Any, name: str) -> Turn:
    """Returns the one turn of the assistant that a completion is; raises InputError if it is something else."""
    turns = turns_of(value, name)
    if len(turns) > 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise InputError(
            f"field {name!r} has turns of {roles[:80]}; a completion is one turn of the assistant, and what comes before "
            "it belongs in the prompt"
        )
    return turns[0]


def tools_of(row: Row) -> list[dict] | None:
    """Returns the descriptions of tools in a row's field `tools`, a list or its JSON; None if it has none."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"field 'tools' is {shown(tools)}; it must be a list of JSON schemas of functions")
    return [_without_nulls(tool) for tool in tools]


def _is_sharegpt(message: Any) -> bool:
    return isinstance(message, dict) and message.get("from") is not None


def _turn(message: Any, name: str) -> Turn:
    """Returns the turn of a message; null counts as absent, as tables write it where some rows have a field."""
    if not isinstance(message, dict):
        raise InputError(f'field {name!r} is {type_name(message)}; a message is {{"role": ..., "content": ...}}')
    role_name, content_name = ("from", "value") if _is_sharegpt(message) else ("role", "content")
    said = message.get(role_name)
    role = _OTHER_NAMES.get(said, said) if isinstance(said, str) else said
    if role not in ROLES:
        raise InputError(f"field '{name}.{role_name}' is {shown(said)}; roles are {', '.join(ROLES)}")
    others = {key: value for key, value in message.items() if key not in (role_name, content_name)}
    turn = {"role": role} | _without_nulls(others)
    content = message.get(content_name)
    if said == "function_call":
        return turn | {"tool_calls": _calls([_json(string_of(content, f"{name}.value"), f"{name}.value")], name)}
    if calls := turn.pop("tool_calls", None):
        if role != "assistant":
            raise InputError(f"field '{name}.tool_calls' belongs to a turn of the {role}; the assistant calls tools")
        turn["tool_calls"] = _calls(calls, name)
        if content is None:
            return turn
    return turn | {"content": _content(content, f"{name}.{content_name}", blank=role == "system" or bool(calls))}


def _content(content: Any, name: str, blank: bool) -> str:
    """Returns the text of a message; the parts of a list are joined. Only some turns may be `blank`.

    A system turn without text is one that says nothing; some templates then leave their own away.
    """
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}[{i}]") for i, part in enumerate(content))
    return string_of(content, name) if blank else not_blank(content, name)


def _part(part: Any, name: str) -> str:
    """Returns the text of a part of a message; raises InputError for pictures, sound and other parts."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InputError(f'field {name!r} is {type_name(part)}; a part of a message is {{"type": "text", "text": ...}}')
    if part.get("type") != "text":
        raise InputError(f"field '{name}.type' is {shown(part.get('type'))}; only parts of the type \"text\" are read")
    return string_of(part.get("text"), f"{name}.text")


def _calls(calls: Any, name: str) -> list[dict]:
    """Returns calls of tools, each as {"type": "function", "function": {"name", "arguments"}}, and its id where it has one.

    OpenAI writes the arguments as JSON text; templates expect the object.
    """
    name = f"{name}.tool_calls"
    if not isinstance(calls, list):
        raise InputError(f"field {name!r} is {type_name(calls)}; it must be a list")
    found = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f'field \'{name}[{i}]\' is {shown(call)}; a call is {{"function": {{"name": ..., "arguments": {{...}}}}}}'
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            arguments = _json(arguments, f"{name}[{i}].function.arguments")
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        function = {"name": function["name"], "arguments": arguments or {}}
        found.append(known | {"type": "function", "function": function})
    return found


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"field {name!r} is {shown(text)}; it must be JSON") from None


def _without_nulls(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if value is not None}
