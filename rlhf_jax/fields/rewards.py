"""Parses what a field says about where scores come from: reward models and reward functions, with their names.

reward_model                                            a stage, or the folder of a model
my_rewards:polite                                       a function of a Python module
rlhf_jax.rewards:length(limit=40)                       one with options, which are Python literals
helpful=reward_model, short=my_rewards:length(limit=40) several, with names of their own
"""

import ast
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlhf_jax.fields.ranges import Text

_NAMED = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_FUNCTION = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*)(\(.*\))?", re.DOTALL)
_CALL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\(")


class Reward(NamedTuple):
    """A reward that a field names.

    Attributes:
      name: its name in metrics, files and tables.
      text: the stage, folder or function as it is written, without NAME=.
      function: "module:function", or "" for a reward model.
      options: the options of the function.
    """

    name: str
    text: str
    function: str
    options: dict[str, Any]

    @property
    def model(self) -> str:
        """The stage or folder of a reward model, or "" for a function."""
        return "" if self.function else self.text


def several(text: str) -> list[Reward]:
    """Parses one or several rewards.

    Raises:
      ValueError: one has another form, there is none, or two have the same name.
    """
    found, begun = [], ""
    for piece in text.split(","):
        begun = f"{begun},{piece}" if begun else piece
        if not _open(begun):
            found.append(one(begun))
            begun = ""
    if begun:
        raise ValueError(f"'{begun.strip()}' has no closing parenthesis, or its options are no Python literals")
    names = [reward.name for reward in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two are called '{twice.pop()}'")
    return found


def one(text: str) -> Reward:
    """Parses a single reward; raises ValueError for a text of another form."""
    text = text.strip()
    named = _NAMED.fullmatch(text)
    name, text = (named[1], named[2].strip()) if named else ("", text)
    if not text:
        raise ValueError("one of them is empty")
    call = _FUNCTION.fullmatch(text)
    if not call:
        if _CALL.match(text):
            raise ValueError(f"'{text}' is not of the form module:function(option=value)")
        return Reward(name or text, text, "", {})
    return Reward(name or call[1].rpartition(":")[2], text, call[1], _options(call[2] or "()"))


def single(text: str) -> Reward:
    """Parses a field that names one reward; raises ValueError as `several` does, or if there are several."""
    found = several(text)
    if len(found) > 1:
        raise ValueError(f"'{text}' names {len(found)} rewards, and must name one")
    return found[0]


def models(text: str) -> list[str]:
    """Returns the stages and folders of reward models that a field names; [] for a text that is empty or not valid."""
    try:
        return [reward.model for reward in several(text) if reward.model] if text else []
    except ValueError:
        return []


def functions(section: Mapping) -> list[Reward]:
    """Returns the reward functions that a stage's section names in its fields `reward` and `judges`."""
    named = [section.get("reward") or "", *(section.get("judges") or ())]
    return [reward for text in named if text for reward in several(text) if reward.function]


def _open(text: str) -> bool:
    """Whether a call in the text is not complete, so that its last comma lies between options or inside one."""
    if not _CALL.search(text):
        return False
    call = text[text.index("(") :].strip()
    try:
        ast.parse(f"f{call}", mode="eval")
    except (SyntaxError, ValueError):
        return True
    return False


def _options(call: str) -> dict[str, Any]:
    """Returns the options in parentheses by name; raises ValueError if one has no name, or is no literal."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        assert isinstance(tree, ast.Call)
        if tree.args or any(word.arg is None for word in tree.keywords):
            raise ValueError(f"each option in {call} needs a name, as in (limit=40)")
        return {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
    except (SyntaxError, AssertionError, RecursionError):
        raise ValueError(f"{call} is not of the form (option=value)") from None


_FORM = "a stage, a folder of a model, or module:function(option=value)"
REWARD = Text(_FORM, single, empty=False)
REWARD_OR_NONE = Text(f"{_FORM}, or empty", single)
REWARDS = Text(f"{_FORM}, or several of these separated by commas, each named as NAME=...", several, empty=False)
