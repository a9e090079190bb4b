"""The sides of a tokenizer.json: for texts that start or continue, with special tokens in them read as such or not."""

import functools
import json

import tokenizers


class Sides:
    """The same tokenizer for texts at different places."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._plain = tokenizer, _without_prefix(tokenizer)

    def __call__(self, continues: bool = False, special: bool = False) -> tokenizers.Tokenizer:
        """Returns the tokenizer for texts that continue another one, or that start.

        Args:
            continues: whether nothing is added to or stripped from the start of a text.
            special: whether special tokens in a text are read as such; else they are plain text.
        """
        return (self._special if special else self._plain)[continues]

    @functools.cached_property
    def _special(self) -> tuple[tokenizers.Tokenizer, ...]:
        sides = tuple(tokenizers.Tokenizer.from_str(side.to_str()) for side in self._plain)
        for side in sides:
            side.encode_special_tokens = False
        return sides


def _without_prefix(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Returns a tokenizer for text that continues another one: it neither adds nor strips a space at the start."""
    spec = json.loads(tokenizer.to_str())
    parts = ("normalizer", "pre_tokenizer", "decoder")
    middle = {part: _strip_prefix(spec[part]) for part in parts}
    if all(spec[part] == middle[part] for part in parts):
        return tokenizer
    result = tokenizers.Tokenizer.from_str(json.dumps(spec | middle))
    result.encode_special_tokens = True
    return result


def _strip_prefix(part: dict | None) -> dict | None:
    """Returns a part of a tokenizer's description without the steps that add or strip a leading space."""
    if part is None or part["type"] in ("Prepend", "Strip"):
        return None
    if part["type"] == "Sequence":
        key = next(key for key in part if key != "type")
        return {**part, key: [kept for entry in part[key] if (kept := _strip_prefix(entry)) is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return part
