"""Any text survives; what a text says never becomes a special token."""

import json
import re
import time

import pytest
import released_tokenizers as released
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

TEXTS = ["the cat sat on the mat", "answer: the red cat", "고양이가 앉았다", "one two three"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, vocab_size=300)


@pytest.fixture(scope="module")
def stories(shared_data):
    return Tokenizer.load(shared_data / "stories260K" / "tokenizer.json")


def test_special_tokens_come_first(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, None)
    assert 258 < tokenizer.vocab_size <= 300


def test_merges_are_learned(tokenizer):
    assert len(tokenizer.encode("the cat")) < len("the cat")


@given(text=TEXT, continues=st.booleans())
def test_any_text_survives(tokenizer, text, continues):
    ids = tokenizer.encode(text, continues=continues)
    assert all(1 < i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids, continues=continues) == text


@pytest.mark.parametrize(
    "text",
    ["<eos>", "a<pad>b", "<eos><eos>", "\x00\x01\x7f", "\r\n\t  ", "안녕 하세요", "👩\u200d👩\u200d👧 🇰🇷", "", " "],
)
def test_awkward_texts_survive(tokenizer, text):
    for continues in (False, True):
        ids = tokenizer.encode(text, continues=continues)
        assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
        assert tokenizer.decode(ids, continues=continues) == text


BYTE = re.compile("<0x(..)>")


def written(tokenizer, ids, byte_level):
    """The bytes of ids: a byte-level token spells each byte as one letter, SentencePiece's names single bytes."""
    tokens = map(tokenizer._start.id_to_token, ids)
    if byte_level:
        codes = {letter: byte for byte, letter in released.bytes_by_letter().items()}
        return bytes(codes[letter] for token in tokens for letter in token)
    bytes_of = (bytes.fromhex(byte[1]) if (byte := BYTE.fullmatch(token)) else token.encode() for token in tokens)
    return b"".join(bytes_of).replace("\u2581".encode(), b" ")


@pytest.mark.parametrize("kind", ["qwen", "llama2"])
def test_a_completion_that_is_cut_inside_a_character_ends_before_it(tmp_path, kind):
    tokenizer = Tokenizer.load(released.save(tmp_path, kind))
    inside = 0
    for text in ("고양이가 앉았다.", "naïve 👩\u200d🚀 café", "漢字とかな", "plain"):
        ids = tokenizer.encode(text, continues=True)
        for place in range(len(ids) + 1):
            whole = written(tokenizer, ids[:place], kind == "qwen").decode(
                errors="ignore"
            )  # bytes of a half character are left out
            assert tokenizer.decode_cut(ids[:place]) == whole and text.startswith(whole)
            inside += tokenizer.decode(ids[:place], continues=True) != whole
    assert inside > 10


def test_special_ids_are_not_decoded(tokenizer):
    assert tokenizer.decode([0, 0, *tokenizer.encode("the cat"), 1, 0]) == "the cat"


def test_batches_are_the_same_as_single_calls(tokenizer):
    ids = tokenizer.encode_batch(TEXTS, continues=True)
    assert ids == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.decode_batch(ids) == TEXTS


def test_training_is_repeatable_and_saved_exactly(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = tmp_path / "again.json"
    Tokenizer.train(iter(TEXTS * 3), vocab_size=300).save(again)
    assert path.read_text() == again.read_text()
    loaded = Tokenizer.load(path)
    assert loaded.encode("the <eos> cat") == tokenizer.encode("the <eos> cat")
    assert (loaded.pad_id, loaded.eos_id, loaded.vocab_size) == (0, 1, tokenizer.vocab_size)


def test_twenty_thousand_short_texts_take_seconds(tokenizer):
    start = time.monotonic()
    tokenizer.encode_batch([f"{TEXTS[i % 4]} number {i}" for i in range(20_000)])
    assert time.monotonic() - start < 10


def test_truncation_and_padding_of_the_file_are_ignored(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    spec = json.loads(path.read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    path.write_text(json.dumps(spec))
    assert Tokenizer.load(path).encode_batch(["one two three"]) == [tokenizer.encode("one two three")]


def test_model_must_be_large_enough(tokenizer, tmp_path):
    tokenizer.check_fits(tokenizer.vocab_size)
    tokenizer.check_fits(512)
    with pytest.raises(InputError):
        tokenizer.check_fits(tokenizer.vocab_size - 1)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    with pytest.raises(InputError, match=r"tokenizer.json: has \d+ tokens but the model only 258"):
        Tokenizer.load(path).check_fits(258)


def test_vocabulary_must_hold_all_bytes():
    with pytest.raises(InputError, match="vocab_size is 257; .* at least 258"):
        Tokenizer.train(TEXTS, 257)
    assert Tokenizer.train(TEXTS, 258).decode(Tokenizer.train(TEXTS, 258).encode("é")) == "é"


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "cannot be read"),
        ("{", "not a tokenizer.json"),
        ("{}", "not a tokenizer.json"),
        (b"\xff", "cannot be read"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"{path}: .*{words}"):
        Tokenizer.load(path)


def test_a_tokenizer_without_an_end_is_refused(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    path.write_text(path.read_text().replace("<eos>", "<stop>"))
    with pytest.raises(InputError, match="no token ends a text; it needs one of <eos>, </s>"):
        Tokenizer.load(path)


def test_pad_falls_back_to_eos(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    path.write_text(path.read_text().replace("<pad>", "<first>"))
    assert Tokenizer.load(path).pad_id == tokenizer.eos_id


# A released tokenizer: SentencePiece's, which puts a space before every text.


def test_released_tokenizer_keeps_its_special_tokens(stories):
    assert (stories.bos_id, stories.eos_id, stories.pad_id, stories.vocab_size) == (1, 2, 0, 512)
    assert 2 not in stories.encode("</s>")


def test_completion_continues_its_prompt_without_a_second_space(stories):
    prompt, completion = stories.encode("once upon a"), stories.encode(" time", continues=True)
    assert prompt + completion == stories.encode("once upon a time")
    assert stories.decode(completion, continues=True) == " time"
    assert stories.decode(prompt + completion) == "once upon a time"


@given(text=TEXT.filter(lambda text: "\u2581" not in text), continues=st.booleans())
def test_any_text_survives_the_released_tokenizer(stories, text, continues):
    ids = stories.encode(text, continues=continues)
    assert stories.decode(ids, continues=continues) == text
