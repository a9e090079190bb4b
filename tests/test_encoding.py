"""Large texts are tokenized in parts, with the ids that one call would give, and once."""

import numpy as np
import pytest

from rlhf_jax.data import encoding
from rlhf_jax.data.records import Document
from rlhf_jax.data.text_batches import pack_documents
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

TEXTS = ["one two", "", "three", "äöü €", "four five six", "x" * 40]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(encoding, "PART", 10)


class WithBos:
    """A tokenizer whose sequences begin with id 7."""

    def __init__(self, tokenizer):
        self._tokenizer, self.bos_id = tokenizer, 7

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_parts_give_the_ids_of_one_call_and_progress(tokenizer, small_parts, capsys):
    found = encoding.encode(tokenizer, TEXTS, "texts")
    assert [ids.tolist() for ids in found] == tokenizer.encode_batch(TEXTS, continues=True)
    assert all(ids.dtype == np.int32 for ids in found)
    assert "tokenizing texts" in capsys.readouterr().out
    assert encoding.lengths(tokenizer, TEXTS, "texts").tolist() == [len(ids) for ids in found]


def test_texts_that_start_a_sequence_get_bos(tokenizer):
    found = encoding.encode(WithBos(tokenizer), TEXTS, "texts", starts=True)
    assert [ids.tolist() for ids in found] == [[7] + ids for ids in tokenizer.encode_batch(TEXTS)]
    assert encoding.encode(WithBos(tokenizer), TEXTS, "texts")[1].tolist() == []


def test_only_texts_that_go_on_after_another_are_encoded_so():
    """As with SentencePiece, which puts a space before what starts."""

    class Sides:
        bos_id = None

        def encode_batch(self, texts, *, continues=False):
            return [[int(continues), len(text)] for text in texts]

    for starts, first in ((True, 0), (False, 1)):
        found = encoding.encode(Sides(), ["ab", "c"], "texts", starts=starts)
        assert [ids.tolist() for ids in found] == [[first, 2], [first, 1]]


def test_small_data_is_tokenized_without_a_word(tokenizer, capsys, tmp_path):
    encoding.encode_once(tmp_path, tokenizer, TEXTS, "texts")
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_large_data_is_tokenized_once_and_again_when_it_changes(tokenizer, small_parts, tmp_path, monkeypatch):
    calls = []
    real = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args, **named: calls.append(1) or real(*args, **named))
    first = encoding.encode_once(tmp_path / "tokens", tokenizer, TEXTS, "texts")
    made = len(calls)
    again = encoding.encode_once(tmp_path / "tokens", tokenizer, TEXTS, "texts")
    assert len(calls) == made > 0
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in again] == real(tokenizer, TEXTS, continues=True)
    assert len(again) == len(TEXTS)
    encoding.encode_once(tmp_path / "tokens", tokenizer, TEXTS[::-1], "texts")
    encoding.encode_once(tmp_path / "tokens", tokenizer, TEXTS, "texts", starts=True)
    assert len(calls) > made and len(list((tmp_path / "tokens").iterdir())) == 3


def test_documents_are_packed_alike_from_memory_and_from_disk(tokenizer, small_parts, tmp_path):
    documents = [Document(text) for text in TEXTS if text]
    batches = [pack_documents(documents, tokenizer, 7, folder)[0] for folder in (None, tmp_path / "t", tmp_path / "t")]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch.tokens, batches[0].tokens)
        np.testing.assert_array_equal(batch.segment_ids, batches[0].segment_ids)


def test_nothing_half_written_is_left(tokenizer, small_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot write .*tokens/texts-.*: No space left on device"):
        encoding.encode_once(tmp_path / "tokens", tokenizer, TEXTS, "texts")
    assert list((tmp_path / "tokens").iterdir()) == []
