"""Byte-level BPE and any other tokenizer.json, with the ids that training and sampling need."""

import copy
import datetime
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers

from rlhf_jax.data import tokenizer_files
from rlhf_jax.data.chat_template import LITERAL, SPECIAL, START, ChatTemplate
from rlhf_jax.data.tokenizer_files import TokenizerFiles
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_text

PAD, EOS = "<pad>", "<eos>"

# Where the files do not say which of the special tokens ends or pads a text, its name does.
_EOS_NAMES = (EOS, "</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")
_PAD_NAMES = (PAD, "[PAD]", "<|padding|>", "<|pad|>", "<unk>")

# A model's vocabulary may be padded: the most is about 900 of 50,000 tokens among the families we read.
_PADDING, _PADDING_SHARE = 1024, 0.03

_MIN_VOCAB_SIZE = 2 + 256


class Tokenizer:
    """Text <-> token ids, without special tokens; what looks like one in a text is plain text.

    A prompt and its completion are tokenized apart, so that a prompt has the same tokens in
    training and in sampling. Some tokenizers (SentencePiece's) put a space before every text and
    strip it when decoding; `continues=True` says that a text goes on after another one, and they
    leave its start alone.

    Attributes:
        eos_id: ends completions.
        document_end_id: ends documents: the same, but after `for_chat`.
        end_ids: all that end a text which the model wrote, eos_id first: released chat models have several.
        pad_id: fills rows; where the files name no padding token `<unk>`, else `eos_id` (nothing may
            depend on what padding is).
        bos_id: the token that this tokenizer puts before every sequence, or None.
        vocab_size: ids are below it.
    """

    def __init__(self, files: TokenizerFiles):
        tokenizer = files.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._start = tokenizer
        self._continue = _without_prefix(tokenizer)
        self._files, self._name = files, files.name
        self._for_chat = False
        self.vocab_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.eos_id: int = self._special_id("eos_token", _EOS_NAMES, files.end_ids[:1])
        self.document_end_id: int = self.eos_id
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys([self.eos_id, *files.end_ids]))
        self.pad_id: int = self._special_id("pad_token", _PAD_NAMES, (self.eos_id,))
        probe = tokenizer.encode("a")
        self.bos_id: int | None = probe.ids[0] if probe.special_tokens_mask[0] else None
        if max(self.end_ids) >= self.vocab_size:
            raise InputError(
                f"{self._name}: has {self.vocab_size} tokens, but by the model's files the id "
                f"{max(self.end_ids)} ends a text; use the model's own tokenizer"
            )
        if files.model_vocab_size is not None:
            self.check_fits(files.model_vocab_size)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Trains byte-level BPE on texts; the same texts give the same tokenizer.

        The result has fewer tokens than asked for where the texts hold too few pairs to merge.
        """
        if vocab_size < _MIN_VOCAB_SIZE:
            raise InputError(
                f"tokenizer: vocab_size is {vocab_size}; byte-level BPE needs at "
                f"least {_MIN_VOCAB_SIZE}, all bytes and two special tokens"
            )
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        bpe.train_from_iterator(
            texts,
            tokenizers.trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[PAD, EOS],
                initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
                show_progress=False,
            ),
        )
        return cls(TokenizerFiles("tokenizer", bpe))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a directory as released models have it, or a tokenizer.json and what lies beside it.

        Raises:
            InputError: naming the file: no tokenizer, or one that does not fit the config.json beside it.
        """
        return cls(tokenizer_files.read(path))

    def save(self, path: str | os.PathLike) -> None:
        """Writes a tokenizer.json alone."""
        write_text(path, self._texts()[tokenizer_files.TOKENIZER])

    def save_to(self, directory: str | os.PathLike) -> None:
        """Writes every file of the tokenizer; what was read is written again to the letter.

        tokenizer.json comes last: where it is, the others are. `load` and transformers' AutoTokenizer
        read the directory.
        """
        directory = pathlib.Path(directory)
        texts = self._texts()
        for name in sorted(texts, key=lambda name: name == tokenizer_files.TOKENIZER):
            write_text(directory / name, texts[name])

    def _texts(self) -> dict[str, str]:
        texts = {tokenizer_files.TOKENIZER: self._start.to_str(pretty=True)} | self._files.texts
        tokens = {"bos_token": self.bos_id, "eos_token": self.document_end_id, "pad_token": self.pad_id}
        special = {name: self._start.id_to_token(i) for name, i in tokens.items() if i is not None}
        texts.setdefault(tokenizer_files.CONFIG, tokenizer_files.described(special))
        generation = json.loads(texts.get(tokenizer_files.GENERATION, "{}"))
        if tokenizer_files.GENERATION not in texts or not set(self.end_ids) <= _as_set(generation.get("eos_token_id")):
            ends = list(self.end_ids)
            ids = {f"{name}_id": i for name, i in tokens.items() if i is not None}
            generation = ids | generation | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
            texts[tokenizer_files.GENERATION] = json.dumps(generation, indent=2) + "\n"
        return texts

    @property
    def has_chat_template(self) -> bool:
        return self._files.chat_template is not None

    def chat_template(self, now: datetime.datetime | None = None) -> ChatTemplate:
        """How this model's chats are written; `now` is what the template is told of the time (None: the time).

        Raises:
            InputError: the files have no chat template, or one that cannot be used.
        """
        if not self.has_chat_template:
            raise InputError(
                f"{self._name}: there is no chat template beside it, neither {tokenizer_files.CHAT_TEMPLATE} nor "
                f"'chat_template' in {tokenizer_files.CONFIG}; put one there, or use a model that has one"
            )
        added = self._start.get_added_tokens_decoder().values()
        bos = None if self.bos_id is None else self._start.id_to_token(self.bos_id)
        return ChatTemplate(
            self._files.chat_template,
            self._files.special,
            [token.content for token in added if token.special],
            self._name,
            now,
            bos,
        )

    def for_chat(self) -> "Tokenizer":
        """`reads_written`, and eos_id is the token that ends a turn."""
        chat = self.reads_written()
        chat.eos_id = self._start.token_to_id(self.chat_template().end)
        chat.end_ids = tuple(dict.fromkeys([chat.eos_id, *self.end_ids]))
        return chat

    def reads_written(self) -> "Tokenizer":
        """The same tokenizer for prompts and completions that `chat_template` has rendered, or a row has written.

        Their special tokens are read as such, and no other BOS is put before them.
        """
        chat = copy.copy(self)
        chat._for_chat = True
        return chat

    def encode_starts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that start a sequence: with BOS, where the tokenizer has one."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return [bos + ids for ids in self.encode_batch(texts)]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_starts`; but after `for_chat` the ids of prompts as the chat template wrote them."""
        if not self._for_chat:
            return self.encode_starts(texts)
        encoded = self._special_sides[0].encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._encode_marked(text) if text.startswith(START) or LITERAL.search(text) else encoding.ids
            for text, encoding in zip(texts, encoded)
        ]

    def _encode_marked(self, text: str) -> list[int]:
        if text.startswith(START):
            return self.encode_starts([text.removeprefix(START)])[0]
        ids = []
        for i, part in enumerate(LITERAL.split(text)):  # every other part is literal
            side = self._side(i > 0) if i % 2 else self._special_sides[i > 0]
            ids += side.encode(part, add_special_tokens=False).ids if part else []
        return ids

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The ids of a text, without special tokens."""
        return self._side(continues).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, continues: bool = False) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        encoded = self._side(continues).encode_batch_fast(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encoded]
        if self._for_chat:
            ids = [
                self._encode_special(text, continues) if SPECIAL.search(text) else own for text, own in zip(texts, ids)
            ]
        return ids

    def _encode_special(self, text: str, continues: bool) -> list[int]:
        ids = []
        for i, part in enumerate(SPECIAL.split(text)):  # every other part is special
            side = self._special_sides[True] if i % 2 else self._side(continues or i > 0)
            ids += side.encode(part, add_special_tokens=False).ids if part else []
        return ids

    def decode(self, ids: Sequence[int], *, continues: bool = False) -> str:
        """The text of ids; special tokens are left out."""
        return self._side(continues).decode(ids)

    def decode_batch(self, batch: Sequence[Sequence[int]], *, continues: bool = False) -> list[str]:
        """`decode` of many sequences."""
        return self._side(continues).decode_batch(batch)

    def absent_ids(self, vocab_size: int) -> tuple[tuple[int, int], ...]:
        """Ranges [first, end) of the ids of a model's vocabulary that no token has: no text can be made of them."""
        known = sorted({-1, *self._start.get_vocab().values(), vocab_size})
        return tuple((low + 1, high) for low, high in zip(known, known[1:]) if low + 1 < high)

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether every token has the same id in both."""
        return self is other or self._start.get_vocab() == other._start.get_vocab()

    def check_fits(self, vocab_size: int) -> None:
        """Raises InputError unless this can be the tokenizer of a model with that vocabulary.

        The model must have all our tokens, and may have a few more, with which its vocabulary was padded.
        """
        if vocab_size < self.vocab_size:
            raise InputError(
                f"{self._name}: has {self.vocab_size} tokens but the model only {vocab_size}; use "
                "the model's own tokenizer or give the model at least as many"
            )
        if vocab_size - self.vocab_size > max(_PADDING, _PADDING_SHARE * vocab_size):
            raise InputError(
                f"{self._name}: has {self.vocab_size} tokens and the model {vocab_size}, more than padding explains; "
                "use the model's own tokenizer"
            )

    def _side(self, continues: bool) -> tokenizers.Tokenizer:
        return self._continue if continues else self._start

    @functools.cached_property
    def _special_sides(self) -> list[tokenizers.Tokenizer]:
        """`_side(False)` and `_side(True)`, but reading special tokens in a text."""
        sides = [tokenizers.Tokenizer.from_str(self._side(continues).to_str()) for continues in (False, True)]
        for side in sides:
            side.encode_special_tokens = False
        return sides

    def _special_id(self, role: str, names: Sequence[str], default: Sequence[int]) -> int:
        if role in self._files.special:
            return self._start.token_to_id(self._files.special[role])
        if role == "eos_token" and default:
            return default[0]
        for name in names:
            if (token_id := self._start.token_to_id(name)) is not None:
                return token_id
        if not default:
            raise InputError(f"{self._name}: no token ends a text; it needs one of {', '.join(names)}")
        return default[0]


def _as_set(ids: int | list[int] | None) -> set[int]:
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _without_prefix(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer for text in the middle: adds no space in front, strips none."""
    spec = json.loads(tokenizer.to_str())
    parts = ("normalizer", "pre_tokenizer", "decoder")
    middle = {part: _strip_prefix(spec[part]) for part in parts}
    if all(spec[part] == middle[part] for part in parts):
        return tokenizer
    result = tokenizers.Tokenizer.from_str(json.dumps(spec | middle))
    result.encode_special_tokens = True
    return result


def _strip_prefix(part: dict | None) -> dict | None:
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
