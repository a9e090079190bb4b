"""Tokenizers of released models: the same ids and texts as transformers', from whatever files a directory has."""

import json
import lzma
import re
import shutil

import pytest
import released_tokenizers as released

from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

TEXTS = [*released.TEXTS[:5], "", " ", "a  b\n", "</s> <s> <|im_end|>", "éè 👩‍🚀 12345 don't", "  two  spaces  "]


def theirs(folder, **options):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder, **options)


def check_the_same(folder, texts=TEXTS):
    """Ids of texts and of starts, their decoding, and the special ids."""
    ours, their_tokenizer = Tokenizer.load(folder), theirs(folder)
    for text in texts:
        ids = their_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == their_tokenizer.decode(ids, skip_special_tokens=True), text
    assert ours.eos_id == their_tokenizer.eos_token_id
    if their_tokenizer.pad_token_id is not None:
        assert ours.pad_id == their_tokenizer.pad_token_id
    begins = their_tokenizer.encode("Once")[:1] != their_tokenizer.encode("Once", add_special_tokens=False)[:1]
    assert ours.bos_id == (their_tokenizer.bos_token_id if begins else None)
    assert ours.vocab_size == len(their_tokenizer)
    return ours


@pytest.mark.parametrize("kind", released.KINDS)
def test_every_kind_is_that_of_transformers(tmp_path, kind):
    tokenizer = check_the_same(released.save(tmp_path, kind))
    assert (tokenizer.bos_id is not None) == (kind in ("llama2", "llama3", "mistral", "gemma"))


@pytest.mark.parametrize("kind", released.KINDS)
def test_a_saved_directory_is_the_same_tokenizer(tmp_path, kind):
    source, saved = tmp_path / "source", tmp_path / "saved"
    source.mkdir(), saved.mkdir()
    released.save(source, kind, released.CHATML, generation_config={"eos_token_id": [0, 2], "temperature": 0.6})
    (source / "chat_template.jinja").write_text(released.CHATML, encoding="utf-8")
    tokenizer = Tokenizer.load(source)
    tokenizer.save_to(saved)
    again = check_the_same(saved)
    fields = ("eos_id", "end_ids", "pad_id", "bos_id", "vocab_size")
    assert [getattr(again, name) for name in fields] == [getattr(tokenizer, name) for name in fields]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (saved / name).read_bytes() == (source / name).read_bytes()
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and set(generation["eos_token_id"]) == set(tokenizer.end_ids) >= {0, 2}


def test_a_trained_tokenizer_is_saved_for_transformers_too(tmp_path):
    tokenizer = Tokenizer.train(released.TEXTS, 300)
    tokenizer.save_to(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert check_the_same(tmp_path).pad_id == tokenizer.pad_id


def test_what_a_model_was_trained_to_end_with_is_saved(tmp_path):
    released.save(tmp_path, "gemma", released.GEMMA, generation_config={"eos_token_id": 1, "top_k": 64})
    tokenizer = Tokenizer.load(tmp_path).for_chat()
    assert tokenizer.end_ids == (5, 1)
    tokenizer.save_to(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 2,
        "eos_token_id": [5, 1],
        "pad_token_id": 0,
        "top_k": 64,
    }
    assert Tokenizer.load(tmp_path).end_ids == (1, 5)


# --- Which tokens end, begin and pad --------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, [4]),
        ({"generation_config": {"eos_token_id": [1, 3, 4]}}, [4, 1, 3]),
        ({"generation_config": {"eos_token_id": 1}}, [4, 1]),
        ({"config": {"model_type": "llama", "eos_token_id": [1]}}, [4, 1]),
        ({"config": {"model_type": "llama", "eos_token_id": 3}, "generation_config": {"eos_token_id": 1}}, [4, 1]),
        ({"config": {"eos_token_id": 3}}, [4]),  # a run's config.json, not a model's
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": {"content": "<|end_of_text|>"}}}, [1]),
        ({"tokenizer_config": {}, "generation_config": {"eos_token_id": [3, 4]}}, [3, 4]),
        ({"tokenizer_config": {}}, [1]),  # by its name
    ],
    ids=str,
)
def test_the_ends_of_llama_3(tmp_path, files, ends):
    tokenizer = Tokenizer.load(released.save(tmp_path, "llama3", **files))
    assert list(tokenizer.end_ids) == ends and tokenizer.eos_id == tokenizer.document_end_id == ends[0]


def test_merges_of_tokens_that_are_not_there_are_one_sentence(tmp_path):
    """The library reads such a file, and not what it writes of it."""
    folder = released.save(tmp_path, "llama2")
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    last, before = sorted(vocab, key=vocab.get)[-1:-3:-1]
    vocab[last] = vocab[before]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="tokenizer.json: not a tokenizer.json of the tokenizers library"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_tokenizer_json_says_whether_a_text_begins_with_bos(tmp_path, add_bos_token):
    for kind, begins in (("llama2", True), ("qwen", False)):
        config = released.KINDS[kind]()[1] | {
            "add_bos_token": add_bos_token,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        ours = check_the_same(released.save(tmp_path, kind, tokenizer_config=config))
        assert (ours.bos_id is not None) == begins


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_without_a_tokenizer_json_the_config_says_it(tmp_path, add_bos_token):
    """OPT's files: GPT-2's pair, and </s> before every text."""
    tokenizer, _ = released.qwen()
    model = json.loads(tokenizer.to_str())["model"]
    tokens = ["</s>", "<pad>", *(token for token in model["vocab"] if not token.startswith("<|"))]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    config = {name: "</s>" for name in ("bos_token", "eos_token", "unk_token")} | {"pad_token": "<pad>"}
    config |= {"add_bos_token": add_bos_token, "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = check_the_same(tmp_path, [text for text in TEXTS if "s>" not in text])
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0 if add_bos_token else None, 0, 1)
    ours.save_to(tmp_path)
    assert check_the_same(tmp_path, TEXTS[:2]).bos_id == ours.bos_id


def test_special_tokens_of_the_config_are_special(tmp_path):
    """One that tokenizer.json does not have, and one that it has as a plain one."""
    tokenizer, config = released.qwen()
    more = {
        str(tokenizer.get_vocab_size()): {
            "content": "<|extra|>",
            "special": True,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
        }
    }
    config |= {"additional_special_tokens": ["<think>"], "added_tokens_decoder": more}
    released.save(tmp_path, "qwen", tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    ours = check_the_same(tmp_path, [*TEXTS, "<|extra|>"])
    thought, extra = tokenizer.token_to_id("<think>"), tokenizer.get_vocab_size()
    assert thought not in ours.encode("<think>") and extra == ours.vocab_size - 1
    assert ours.decode([*ours.encode("a"), extra, thought]) == "a"


@pytest.mark.parametrize("declared", [False, True])
def test_which_file_counts_is_as_in_transformers(tmp_path, declared):
    tokenizer, config = released.llama3()
    config |= {"eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if declared:
        decoder = tokenizer.get_added_tokens_decoder()
        config["added_tokens_decoder"] = {
            i: {"content": token.content, "special": True} for i, token in decoder.items()
        }
    released.save(tmp_path, "llama3", tokenizer_config=config, special_tokens_map={"eos_token": "<|eot_id|>"})
    assert check_the_same(tmp_path).eos_id == (1 if declared else 4)


def test_added_tokens_json_is_read_and_kept(tmp_path):
    tokenizer, _ = released.llama3()
    size = tokenizer.get_vocab_size()
    ours = Tokenizer.load(released.save(tmp_path, "llama3", added_tokens={"<new>": size}))
    assert ours.vocab_size == size + 1 and ours.encode("a<new>")[-1] == size
    (tmp_path / "saved").mkdir()
    ours.save_to(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("a<new>") == ours.encode("a<new>")


def test_the_config_can_make_a_plain_token_special(tmp_path):
    tokenizer, config = released.qwen()
    thought = tokenizer.token_to_id("<think>")
    config["added_tokens_decoder"] = {thought: {"content": "<think>", "special": True, "normalized": False}}
    released.save(tmp_path, "qwen", tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    assert thought not in check_the_same(tmp_path, ["<think>a"]).encode("<think>")


SPARE = ["<|spare|>"]


@pytest.mark.parametrize(
    "kind, template, chat, names, more, padding",
    [
        ("gemma", None, False, {}, [], "<pad>"),
        ("mistral", None, False, {}, [], "<|assistant|>"),
        ("mistral", released.ZEPHYR, False, {}, [], "<unk>"),  # the template writes the others
        ("llama3", None, False, {"eos_token": "<|eot_id|>"}, [], "<|end_header_id|>"),
        ("llama3", released.LLAMA3, True, {"eos_token": "<|end_of_text|>", "pad_token": "<|eot_id|>"}, [], None),
        (
            "llama3",
            released.LLAMA3,
            True,
            {"eos_token": "<|end_of_text|>", "pad_token": "<|eot_id|>"},
            SPARE,
            "<|spare|>",
        ),
        (
            "llama3",
            released.LLAMA3,
            False,
            {"eos_token": "<|end_of_text|>", "pad_token": "<|eot_id|>"},
            SPARE,
            "<|eot_id|>",
        ),
    ],
)
def test_the_padding_of_a_reward_model_ends_no_text(tmp_path, kind, template, chat, names, more, padding):
    tokenizer, config = released.KINDS[kind]()
    more = {token: tokenizer.get_vocab_size() for token in more}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"} | names
    config |= {"additional_special_tokens": list(more)} if more else {}
    released.save(tmp_path, kind, template, tokenizer_config=config | {"chat_template": template}, added_tokens=more)
    out = tmp_path / "out"
    out.mkdir()
    tokenizer = Tokenizer.load(tmp_path)
    found = (tokenizer.for_chat() if chat else tokenizer).save_for_scores(out)
    saved = theirs(out)
    assert saved.padding_side == "right"
    assert found == (None if padding is None else saved.pad_token_id)
    assert saved.pad_token == (padding or "<|eot_id|>")
    assert Tokenizer.load(out).encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


# --- Real files -----------------------------------------------------------------------------------


def unpack(source, target):
    with lzma.open(source) as file:
        target.write_bytes(file.read())


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")], ids=str)
def test_gpt_2_from_its_two_files(shared_data, tmp_path, names):
    ours, hub = tmp_path / "ours", tmp_path / "hub"
    ours.mkdir(), hub.mkdir()
    unpack(shared_data / "tokenizers" / "gpt2_encoder.json.xz", ours / names[0])
    unpack(shared_data / "tokenizers" / "gpt2_vocab.bpe.xz", ours / names[1])
    shutil.copy(ours / names[0], hub / "vocab.json"), shutil.copy(ours / names[1], hub / "merges.txt")
    their_tokenizer = pytest.importorskip("transformers").GPT2TokenizerFast.from_pretrained(hub)
    tokenizer = Tokenizer.load(ours)
    texts = [text for text in TEXTS if "<" not in text] + ["Hello world", " Hello  world\n\n\nfoo"]
    assert tokenizer.encode_batch(texts) == their_tokenizer(texts)["input_ids"]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (50257, 50256, None)
    assert tokenizer.eos_id not in tokenizer.encode("<|endoftext|>")
    tokenizer.save_to(ours)
    assert Tokenizer.load(ours).encode_batch(texts) == theirs(ours)(texts)["input_ids"] == tokenizer.encode_batch(texts)


def test_pythia(shared_data, tmp_path):
    unpack(shared_data / "tokenizers" / "neox20b_tokenizer.json.xz", tmp_path / "tokenizer.json")
    config = {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt_neox", "vocab_size": 50688, "eos_token_id": 0})
    )
    ours = check_the_same(tmp_path, [*TEXTS, "def f():\n        return 1"])
    assert (ours.vocab_size, ours.eos_id, ours.bos_id, ours.pad_id) == (50281, 0, None, 1)


def test_stories260k(shared_data):
    ours = check_the_same(shared_data / "stories260K", [text for text in TEXTS if text])
    assert (ours.bos_id, ours.eos_id, ours.end_ids, ours.pad_id, ours.vocab_size) == (1, 2, (2,), 0, 512)


def test_koelectra_s_vocabulary(shared_data, tmp_path):
    """A WordPiece vocabulary of 35,000 Korean and other pieces, as a tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    unpack(shared_data / "tokenizers" / "koelectra_vocab.txt.xz", tmp_path / "vocab.txt")
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=False).save_pretrained(tmp_path)
    ours, their_tokenizer = Tokenizer.load(tmp_path), theirs(tmp_path)
    texts = [text for text in TEXTS if "<" not in text] + ["한국어 모델을 공유합니다."]
    assert [ours.encode(text) for text in texts] == their_tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (2, 3, 0)


# --- Refused --------------------------------------------------------------------------------------


def test_a_sentencepiece_model_alone_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    sentence = rf"has only tokenizer\.model \(SentencePiece\).*AutoTokenizer.*save_pretrained\('{tmp_path}'\)"
    with pytest.raises(InputError, match=sentence):
        Tokenizer.load(tmp_path)


def test_no_tokenizer_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer\.json, and no vocab\.json and merges\.txt"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("vocab_size", "sentence"),
    [
        (485, "tokenizer.json: has 486 tokens but the model only 485"),
        (486, None),
        (1500, None),
        (1600, "has 486 tokens and the model 1600, more than padding explains"),
    ],
)
def test_another_vocabulary_than_the_model_s_is_refused(tmp_path, vocab_size, sentence):
    released.save(tmp_path, "llama2", config={"model_type": "llama", "vocab_size": vocab_size})
    if sentence is None:
        Tokenizer.load(tmp_path)
        return
    with pytest.raises(InputError, match=re.escape(sentence)):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"tokenizer_config": {"eos_token": "<stop>"}},
            r"tokenizer_config\.json: eos_token is '<stop>', which tokenizer\.json does not",
        ),
        ({"generation_config": {"eos_token_id": 9999}}, "by the model's files the id 9999 ends a text"),
        (
            {"generation_config": {"eos_token_id": "</s>"}},
            r"generation_config\.json: 'eos_token_id' is '</s>'; it must be the id",
        ),
        ({"tokenizer_config": {"eos_token": 2}}, r"tokenizer_config\.json: 'eos_token' is 2; copy the file again"),
        ({"tokenizer_config": {"chat_template": 1}}, r"tokenizer_config\.json: 'chat_template' is 1"),
        ({"generation_config": [1]}, r"generation_config\.json is not a JSON object"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"a": {"content": "<new>"}}}},
            "'added_tokens_decoder' is .*copy the file again",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"77": {"content": 5}}}},
            "'added_tokens_decoder' is .*copy the file again",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"77": {"content": "a", "special": "yes"}}}},
            "'added_tokens_decoder' is",
        ),
        ({"tokenizer_config": {"eos_token": {"content": ["</s>"]}}}, "'eos_token' is .*copy the file again"),
        ({"tokenizer_config": {"additional_special_tokens": [1]}}, "'additional_special_tokens' is"),
        ({"tokenizer_config": {"chat_template": [{"name": "default", "template": 1}]}}, "'chat_template' is"),
        ({"config": {"model_type": "llama", "vocab_size": 486.0}}, "config.json: 'vocab_size' is 486.0"),
        ({"config": {"model_type": "llama", "vocab_size": -1}}, "config.json: 'vocab_size' is -1"),
        ({"added_tokens": {"<new>": "a"}}, r"added_tokens\.json must be an object of tokens and their ids"),
        (
            {"vocab": {"</s>": 1}},
            "the token '</s>' has the id 2, but vocab.json gives it 1; take all files from one release",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"77": {"content": "<new>"}}}},
            "the token '<new>' has the id 486, but",
        ),
    ],
    ids=str,
)
def test_files_that_contradict_each_other_are_refused(tmp_path, files, sentence):
    with pytest.raises(InputError, match=sentence):
        Tokenizer.load(released.save(tmp_path, "llama2", **files))


def test_broken_json_is_named(tmp_path):
    released.save(tmp_path, "llama2")
    (tmp_path / "tokenizer_config.json").write_text("{\n!")
    with pytest.raises(InputError, match=r"tokenizer_config\.json, line 2: not valid JSON"):
        Tokenizer.load(tmp_path)


def test_a_pair_of_files_that_does_not_say_how_text_is_split_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}'), (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt of a Qwen2Tokenizer do not say how it splits"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt are not a BPE vocabulary"):
        Tokenizer.load(tmp_path)
