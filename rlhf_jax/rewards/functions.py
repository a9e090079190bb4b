"""Reward functions of a user's modules: found, checked before anything is computed, and called with a batch.

A reward function maps (texts, prompts, rows) to scores. It runs on the host, and on the first process alone:

    texts    list of the completions, without special tokens
    prompts  list of their prompts, as people read them
    rows     list of the records from which the prompts were read, with all their fields
    scores   list or array of as many finite numbers; a higher one is better

Its options, if it has any, are keyword arguments. A function may have an attribute `check`, which is called with the
options before anything is computed, and raises ValueError for an option that has no meaning.
"""

import difflib
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.chat_template import shown
from rlhf_jax.data.files import checksum
from rlhf_jax.data.records import Prompt
from rlhf_jax.fields.rewards import Reward, functions
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError

_SHOWN = 120  # characters of a prompt in a message


class RewardFunction:
    """A function of a user's module, as a judge of completions: (prompts, completions) -> f32[N].

    Args:
      reward: the function and its options.
      field: the field of the config that names it, for messages.

    Attributes:
      file: the file of its module.

    Raises:
      InputError: there is no such function, or it cannot be called with the options.
    """

    def __init__(self, reward: Reward, field: str):
        self._reward, self._said = reward, f"{field}: {reward.function}"
        self._function, self.file = _found(reward, field)
        try:
            inspect.signature(self._function).bind([], [], [], **reward.options)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self._said} in {self.file} must take (texts, prompts, rows{_named(reward.options)}): {error}"
            ) from None
        try:
            getattr(self._function, "check", lambda **_: None)(**reward.options)
        except ValueError as error:
            raise InputError(f"{field}: {reward.text}: {error}") from None

    @property
    def name(self) -> str:
        """The name of the scores."""
        return self._reward.name

    @property
    def module(self) -> str:
        """The name of its module."""
        return self._reward.function.partition(":")[0]

    @property
    def checksum(self) -> str:
        """The SHA-256 of the module's file; "" if the module has no file of its own."""
        return checksum(self.file) if os.path.isfile(self.file) else ""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished=None, sampled=None
    ) -> np.ndarray:
        """Returns the scores f32[N]; all processes of the job must call this, and the first one computes.

        Args:
          prompts: N prompts.
          completions: their completions.
          finished, sampled: not used; they are there so that a function can stand wherever a reward model does.

        Raises:
          InputError: the function fails, or returns something else than N finite numbers. The sentence has the prompt.
        """
        del finished, sampled
        return np.array(hosts.on_first(self._scores, list(prompts), list(completions)), np.float32)

    def _scores(self, prompts: list[Prompt], completions: list[str]) -> list[float]:
        try:
            found = self._called(prompts, completions)
        except Exception as error:
            raise InputError(self._failure(error, prompts, completions)) from error
        try:
            with np.errstate(over="ignore"):  # a number that float32 cannot hold is not finite
                scores = np.asarray(found).astype(np.float32)
        except (TypeError, ValueError):
            scores = np.zeros(())
        if scores.shape != (len(prompts),):
            what = f"{len(found)} values" if isinstance(found, (list, tuple)) else f"{type(found).__name__}"
            what = f"an array of shape {scores.shape}" if scores.ndim > 1 else what
            what = f"{len(scores)} scores" if scores.ndim == 1 else what
            raise InputError(
                f"{self._said} returned {what} for a batch of {len(prompts)} completions, and must return a number for "
                f"each; the batch begins with the prompt {_quoted(prompts[0])}"
            )
        if len(bad := np.flatnonzero(~np.isfinite(scores))):
            raise InputError(
                f"{self._said} returned {scores[bad[0]]} for the prompt {_quoted(prompts[bad[0]])}; a score must be a "
                "finite number"
            )
        return scores.tolist()

    def _called(self, prompts: list[Prompt], completions: list[str]) -> Any:
        """Calls the function with copies, so that nothing it changes is seen by anyone else."""
        texts = [shown(prompt.prompt) for prompt in prompts]
        return self._function(
            completions.copy(), texts, [dict(prompt.row) for prompt in prompts], **self._reward.options
        )

    def _failure(self, error: Exception, prompts: list[Prompt], completions: list[str]) -> str:
        """Returns the sentence about a call that raised; it names the first prompt that also fails alone."""
        place = f"a batch that begins with the prompt {_quoted(prompts[0])}"
        for prompt, completion in zip(prompts, completions):
            try:
                self._called([prompt], [completion])
            except Exception as alone:
                error, place = alone, f"the prompt {_quoted(prompt)}"
                break
        return f"{self._said} raised {_in_words(error, self.file)} for {place}"


def check(section: Mapping, stage: str) -> None:
    """Raises InputError if a stage's section names a reward function that is not there; computes nothing."""
    for reward in functions(section):
        RewardFunction(reward, f"{stage}.reward")


def _found(reward: Reward, field: str) -> tuple[Callable, str]:
    """Returns the function of a reward and the file of its module; raises InputError if there is none."""
    module_name, _, name = reward.function.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if missing:
            raise InputError(
                f"{field}='{reward.function}': there is no module {module_name}; put {module_name.split('.')[0]}.py "
                "beside the experiment file or into the current folder"
            ) from None
        file = getattr(error, "filename", None) or _last_file(error) or module_name
        raise InputError(
            f"{field}='{reward.function}': importing {module_name} raised {_in_words(error, file)}"
        ) from error
    file = getattr(module, "__file__", None) or module_name
    known = [word for word in dir(module) if callable(getattr(module, word)) and not word.startswith("_")]
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, known, 1, 0.6)
        raise InputError(
            f"{field}='{reward.function}': {file} has no function {name}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    function = getattr(module, name)
    if not callable(function):
        raise InputError(
            f"{field}='{reward.function}': {name} in {file} is {type(function).__name__}, and must be a function of "
            "(texts, prompts, rows)"
        )
    return function, file


def let_import(*folders: str) -> None:
    """Adds folders to the end of the import path, so that reward functions of the user's files are found."""
    for folder in map(os.path.abspath, folders):
        if folder not in map(os.path.abspath, sys.path):
            sys.path.append(folder)


def _named(options: dict) -> str:
    return "".join(f", {name}" for name in options)


def _quoted(prompt: Prompt) -> str:
    text = shown(prompt.prompt)
    return json.dumps(text if len(text) <= _SHOWN else text[:_SHOWN] + "...", ensure_ascii=False)


def _last_file(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename if frames else ""


def _in_words(error: BaseException, file: str) -> str:
    """Returns an error on one line, with the line of the file in which it was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    lines = [error.lineno] if isinstance(error, SyntaxError) else lines
    said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}: {said}" + (f" ({os.path.basename(file)}, line {lines[-1]})" if lines else "")
