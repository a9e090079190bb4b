"""Tokenizers: byte-level BPE and any other tokenizer.json, with the special token ids of training and sampling."""

import copy
import datetime
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers

from rlhf_jax.data import tokenizer_files
from rlhf_jax.data.chat_template import LITERAL, SPECIAL, START, ChatTemplate
from rlhf_jax.data.tokenizer_files import TokenizerFiles
from rlhf_jax.data.tokenizer_sides import Sides
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_text

PAD, EOS = "<pad>", "<eos>"

# Names that mark the special token which ends or pads a text, where the files do not say which token it is.
_EOS_NAMES = (EOS, "</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")
_PAD_NAMES = (PAD, "[PAD]", "<|padding|>", "<|pad|>", "<unk>")

# The most tokens, and the largest share of a vocabulary, that count as padding. The most among the families that are
# read is about 900 of 50,000 tokens.
_PADDING, _PADDING_SHARE = 1024, 0.03

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # stands for bytes that are no character

_MIN_VOCAB_SIZE = 2 + 256  # two special tokens and all bytes


class Tokenizer:
    """Converts text to token ids and back, without special tokens; text that looks like one is plain text.

    A prompt and its completion are tokenized separately, so that a prompt has the same tokens in training and in
    sampling. Some tokenizers, such as SentencePiece's, put a space before every text and strip it when decoding. With
    `continues=True` a text continues another one, and nothing is added to or stripped from its start.

    Attributes:
        eos_id: the id that ends completions.
        document_end_id: the id that ends documents; it differs from eos_id only after `for_chat`.
        end_ids: all ids that end a text that the model samples, eos_id first; released chat models have several.
        pad_id: the id that fills rows. If the files name no padding token, it is that of a token named like one, or of
            `<unk>`, or else eos_id. So nothing may depend on which token it is.
        bos_id: the id that this tokenizer puts before every sequence, or None.
        vocab_size: one more than the largest id.
    """

    def __init__(self, files: TokenizerFiles):
        tokenizer = files.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._start = tokenizer
        self._sides = Sides(tokenizer)
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

        Args:
            texts: the texts.
            vocab_size: number of tokens; the result has fewer if the texts have too few pairs to merge.

        Raises:
            InputError: vocab_size is below 258, the number of all bytes and two special tokens.
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
        """Reads the directory of a released model, or a tokenizer.json with the files beside it.

        Raises:
            InputError: there is no tokenizer, or it does not fit the config.json beside it; the message names the file.
        """
        return cls(tokenizer_files.read(path))

    def save(self, path: str | os.PathLike) -> None:
        """Writes only a tokenizer.json."""
        write_text(path, self._texts()[tokenizer_files.TOKENIZER])

    def save_to(self, directory: str | os.PathLike) -> None:
        """Writes all files of the tokenizer; files that were read are written unchanged.

        tokenizer.json comes last, so that it marks the others as complete. `load` and transformers' AutoTokenizer read
        the directory.
        """
        self._write(directory, self._texts())

    def save_for_scores(self, directory: str | os.PathLike) -> int | None:
        """Writes all files for a reward model, whose score transformers reads at the last token that is not padding.

        Rows are padded on the right, as every family understands. Where padding is EOS, with which a text ends, the
        padding becomes another special token, which ends no text.

        Returns:
            The id of the padding; None if it can only be EOS.
        """
        pad_id = self.pad_id if self.pad_id != self.eos_id else self._spare_id()
        token = self._start.id_to_token(self.pad_id if pad_id is None else pad_id)
        self._write(directory, tokenizer_files.padding_right(self._texts(), token))
        return pad_id

    def _write(self, directory: str | os.PathLike, texts: dict[str, str]) -> None:
        """Writes files, name -> content, tokenizer.json last."""
        directory = pathlib.Path(directory)
        for name in sorted(texts, key=lambda name: name == tokenizer_files.TOKENIZER):
            write_text(directory / name, texts[name])

    def _spare_id(self) -> int | None:
        """Returns the last special token with no role but `<unk>`'s and none in the chat template; None if there is none."""
        roles = [self._start.token_to_id(text) for name, text in self._files.special.items() if name != "unk_token"]
        taken = {self.bos_id, self.pad_id, *self.end_ids, *roles}
        template = self._files.chat_template or ""
        added = self._start.get_added_tokens_decoder().items()
        spare = [i for i, token in added if token.special and i not in taken and token.content not in template]
        return max(spare, default=None)

    def _texts(self) -> dict[str, str]:
        """Returns the content of the tokenizer's files, by name, with the special tokens where they are missing."""
        texts = {tokenizer_files.TOKENIZER: self._start.to_str(pretty=True)} | self._files.texts
        tokens = {name.removesuffix("_id"): i for name, i in self.special_ids.items() if i is not None}
        special = {name: self._start.id_to_token(i) for name, i in tokens.items()}
        texts.setdefault(tokenizer_files.CONFIG, tokenizer_files.described(special))
        generation = json.loads(texts.get(tokenizer_files.GENERATION, "{}"))
        if tokenizer_files.GENERATION not in texts or not set(self.end_ids) <= _as_set(generation.get("eos_token_id")):
            ends = list(self.end_ids)
            ids = {f"{name}_id": i for name, i in tokens.items()}
            generation = ids | generation | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
            texts[tokenizer_files.GENERATION] = json.dumps(generation, indent=2) + "\n"
        return texts

    @property
    def special_ids(self) -> dict[str, int | None]:
        """The ids of the special tokens, by their names in a model's config.json.

        bos_token_id is that of the token which the files name, even if it does not stand before every sequence, as in
        chat models whose turns begin with it. It is None if there is none.
        """
        named = self._files.special.get("bos_token")
        bos_id = self.bos_id if named is None else self._start.token_to_id(named)
        return {"bos_token_id": bos_id, "eos_token_id": self.document_end_id, "pad_token_id": self.pad_id}

    @property
    def has_chat_template(self) -> bool:
        """Whether the files have a chat template."""
        return self._files.chat_template is not None

    def chat_template(self, now: datetime.datetime | None = None) -> ChatTemplate:
        """Returns the model's chat template.

        Args:
            now: the time that the template is given; None gives the current time.

        Raises:
            InputError: the files have no chat template.
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
        """Returns the tokenizer for chats: that of `reads_written`, with the token that ends a turn as eos_id."""
        chat = self.reads_written()
        chat.eos_id = self._start.token_to_id(self.chat_template().end)
        chat.end_ids = tuple(dict.fromkeys([chat.eos_id, *self.end_ids]))
        return chat

    def reads_written(self) -> "Tokenizer":
        """Returns this tokenizer for prompts and completions that `chat_template` has rendered or a row has written.

        Special tokens in their text are read as such, and no other BOS is added.
        """
        chat = copy.copy(self)
        chat._for_chat = True
        return chat

    def encode_starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts that start a sequence, with BOS if the tokenizer has one."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return [bos + ids for ids in self.encode_batch(texts)]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of prompts: as `encode_starts`, but after `reads_written` special tokens are read as such."""
        if not self._for_chat:
            return self.encode_starts(texts)
        encoded = self._sides(special=True).encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._encode_marked(text) if text.startswith(START) or LITERAL.search(text) else encoding.ids
            for text, encoding in zip(texts, encoded)
        ]

    def _encode_marked(self, text: str) -> list[int]:
        """Returns the ids of a prompt with the marks START or LITERAL of chat_template."""
        if text.startswith(START):
            return self.encode_starts([text.removeprefix(START)])[0]
        ids = []
        for i, part in enumerate(LITERAL.split(text)):  # every other part is literal
            side = self._sides(i > 0, special=i % 2 == 0)
            ids += side.encode(part, add_special_tokens=False).ids if part else []
        return ids

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Returns the ids of a text, without special tokens."""
        return self._sides(continues).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, continues: bool = False) -> list[list[int]]:
        """Returns the ids of many texts, as `encode` does, on all cores.

        After `reads_written`, special tokens between marks are read as such.
        """
        encoded = self._sides(continues).encode_batch_fast(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encoded]
        if self._for_chat:
            ids = [
                self._encode_special(text, continues) if SPECIAL.search(text) else own for text, own in zip(texts, ids)
            ]
        return ids

    def _encode_special(self, text: str, continues: bool) -> list[int]:
        """Returns the ids of a completion with the marks SPECIAL of chat_template."""
        ids = []
        for i, part in enumerate(SPECIAL.split(text)):  # every other part is special
            side = self._sides(continues or i > 0, special=i % 2 == 1)
            ids += side.encode(part, add_special_tokens=False).ids if part else []
        return ids

    def decode(self, ids: Sequence[int], *, continues: bool = False) -> str:
        """Returns the text of ids; special tokens are left out."""
        return self._sides(continues).decode(ids)

    def decode_batch(self, batch: Sequence[Sequence[int]], *, continues: bool = False) -> list[str]:
        """Returns the texts of many sequences of ids, as `decode` does."""
        return self._sides(continues).decode_batch(batch)

    def decode_cut(self, ids: Sequence[int]) -> str:
        """Returns the text of a completion that was cut off, without the character in the middle of which it was cut.

        A character may take several tokens: two of three places in Korean text lie inside a character for GPT-2's
        vocabulary. The bytes of half a character would be shown as U+FFFD, which no model wrote.
        """
        text = self.decode(ids, continues=True)
        if not text.endswith(_BROKEN):
            return text
        # Tokens of single bytes (SentencePiece's) break the whole characters before the half one, too, in decoding.
        shorter = [text.removesuffix(_BROKEN), *(self.decode(ids[:-n], continues=True) for n in range(1, 4))]
        return next((found for found in shorter if not found.endswith(_BROKEN)), shorter[0])

    @property
    def sequence_start_id(self) -> int:
        """The id that stands before a text without a context: the files' bos_token, or else the end of documents."""
        bos_id = self.special_ids["bos_token_id"]
        return self.document_end_id if bos_id is None else bos_id

    def encode_as_released(self, text: str, *, starts: bool = True) -> list[int]:
        """Returns the ids that transformers' tokenizer gives a text: special tokens in the text are read as such.

        Args:
            text: the text.
            starts: whether to add the tokens with which this tokenizer starts a sequence, such as BOS.
        """
        return self._sides(special=True).encode(text, add_special_tokens=starts).ids

    def decode_as_released(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Returns the text that transformers' tokenizer gives ids.

        Args:
            ids: the ids.
            special: whether the text shows special tokens.
        """
        return self._sides(special=True).decode(ids, skip_special_tokens=not special)

    def absent_ids(self, vocab_size: int) -> tuple[tuple[int, int], ...]:
        """Returns the ids of a model's vocabulary that have no token, and thus no text, as ranges [first, end)."""
        known = sorted({-1, *self._start.get_vocab().values(), vocab_size})
        return tuple((low + 1, high) for low, high in zip(known, known[1:]) if low + 1 < high)

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether every token has the same id in both."""
        return self is other or self._start.get_vocab() == other._start.get_vocab()

    def spells(self, ids: object, text: str, finished: bool) -> bool:
        """Whether ids, as a file has them, are those of a sampled completion with this text.

        Args:
            ids: the ids, of which the last one of a finished completion ended it; they may be another tokenizer's.
            text: the completion.
            finished: whether it ended by itself.
        """
        if not isinstance(ids, list | tuple) or not all(type(token) is int for token in ids):
            return False
        own = ids[:-1] if finished else ids
        return all(0 <= token < self.vocab_size for token in own) and self.decode(own, continues=True) == text

    def check_fits(self, vocab_size: int) -> None:
        """Raises InputError unless this can be the tokenizer of a model with a vocabulary of `vocab_size` ids.

        The model must have all tokens of the tokenizer, and may have a few more, which pad its vocabulary.
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

    def _special_id(self, role: str, names: Sequence[str], default: Sequence[int]) -> int:
        """Returns the id of a special token: as the files name it, or else by its usual names, or else `default`.

        For eos_token the default, which the model's files give, comes before the usual names.
        """
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
    """Returns the ids of a generation_config.json, one or a list or none, as a set."""
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
