"""Byte-level BPE and any other tokenizer.json, with the ids that training and sampling need."""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers

from rlhf_jax.errors import InputError
from rlhf_jax.files import write_text

PAD, EOS = '<pad>', '<eos>'

# Where a tokenizer.json does not say which of its special tokens ends or pads a text, its names do.
_EOS_NAMES = (EOS, '</s>', '<|endoftext|>', '<|end_of_text|>', '[SEP]')
_PAD_NAMES = (PAD, '[PAD]', '<|padding|>', '<|pad|>', '<unk>')

_MIN_VOCAB_SIZE = 2 + 256


class Tokenizer:
    """Text <-> token ids, without special tokens; what looks like one in a text is plain text.

    A prompt and its completion are tokenized apart, so that a prompt has the same tokens in
    training and in sampling. Some tokenizers (SentencePiece's) put a space before every text and
    strip it when decoding; `continues=True` says that a text goes on after another one, and they
    leave its start alone.

    Attributes:
        eos_id: ends completions and documents.
        pad_id: fills rows; where the file has no padding token `<unk>`, else `eos_id` (nothing may
            depend on what padding is).
        bos_id: the token that this tokenizer puts before every sequence, or None.
        vocab_size: ids are below it.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str = 'tokenizer'):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._start = tokenizer
        self._continue = _without_prefix(tokenizer)
        self._name = name
        self.vocab_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.eos_id: int = self._special_id(_EOS_NAMES)
        self.pad_id: int = self._special_id(_PAD_NAMES, default=self.eos_id)
        probe = tokenizer.encode('a')
        self.bos_id: int | None = probe.ids[0] if probe.special_tokens_mask[0] else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> 'Tokenizer':
        """Trains byte-level BPE on texts; the same texts give the same tokenizer.

        The result has fewer tokens than asked for where the texts hold too few pairs to merge.
        """
        if vocab_size < _MIN_VOCAB_SIZE:
            raise InputError(f'tokenizer: vocab_size is {vocab_size}; byte-level BPE needs at '
                             f'least {_MIN_VOCAB_SIZE}, all bytes and two special tokens')
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ))
        return cls(bpe)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Tokenizer':
        """Reads a tokenizer.json of any kind; raises InputError naming it."""
        try:
            text = pathlib.Path(path).read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f'{path}: the tokenizer cannot be read ({error}); '
                             'it must be a tokenizer.json') from None
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # The library raises plain Exception.
            raise InputError(f'{path}: not a tokenizer.json of the tokenizers library ({error})'
                             ) from None
        return cls(tokenizer, str(path))

    def save(self, path: str | os.PathLike) -> None:
        """Writes a tokenizer.json."""
        write_text(path, self._start.to_str(pretty=True))

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The ids of a text, without special tokens."""
        return self._side(continues).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, continues: bool = False) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        encoded = self._side(continues).encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], *, continues: bool = False) -> str:
        """The text of ids; special tokens are left out."""
        return self._side(continues).decode(ids)

    def decode_batch(self, batch: Sequence[Sequence[int]], *, continues: bool = False
                     ) -> list[str]:
        """`decode` of many sequences."""
        return self._side(continues).decode_batch(batch)

    def check_fits(self, vocab_size: int) -> None:
        """Raises InputError unless a model with this vocabulary can read all our tokens."""
        if vocab_size < self.vocab_size:
            raise InputError(
                f'{self._name}: has {self.vocab_size} tokens but the model only {vocab_size}; use '
                "the model's own tokenizer or give the model at least as many")

    def _side(self, continues: bool) -> tokenizers.Tokenizer:
        return self._continue if continues else self._start

    def _special_id(self, names: Sequence[str], default: int | None = None) -> int:
        for name in names:
            if (token_id := self._start.token_to_id(name)) is not None:
                return token_id
        if default is None:
            raise InputError(f'{self._name}: no token ends a text; it needs one of '
                             f'{", ".join(names)}')
        return default


def _without_prefix(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer for text in the middle: adds no space in front, strips none."""
    spec = json.loads(tokenizer.to_str())
    for part in ('normalizer', 'pre_tokenizer', 'decoder'):
        spec[part] = _strip_prefix(spec[part])
    result = tokenizers.Tokenizer.from_str(json.dumps(spec))
    result.encode_special_tokens = True
    return result


def _strip_prefix(part: dict | None) -> dict | None:
    if part is None or part['type'] in ('Prepend', 'Strip'):
        return None
    if part['type'] == 'Sequence':
        key = next(key for key in part if key != 'type')
        return {**part, key: [kept for entry in part[key]
                              if (kept := _strip_prefix(entry)) is not None]}
    if part['type'] == 'Metaspace':
        return {**part, 'prepend_scheme': 'never'}
    if part['type'] == 'ByteLevel':
        return {**part, 'add_prefix_space': False}
    return part
