"""A released chat model goes in and out again: its tokens, logits, completions and scores are those of transformers.

Most tests here use a model in the form of SmolLM2-Instruct with random weights: a Llama with grouped heads and tied
embeddings in bfloat16, a byte-level tokenizer without a BOS before a text, ChatML, and EOS as padding. The slow tests do
the same with the released model itself.
"""

import functools
import json

import jax
import numpy as np
import pytest
import tokenizers
from released import torch_and_transformers

from rlhf_jax import checkpoint, generate, hf, model, ppo, shapes
from rlhf_jax.config import default_config
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.hf import __main__ as command
from rlhf_jax.runtime import files

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
QUESTIONS = (
    "Name three colours.",
    "What is the capital of France?",
    "안녕하세요? Who wrote <|im_end|> and why, please?",
)
ANSWERS = ("Red, green and blue.", "It is Paris, as far as I know.", "Nobody")
LENGTH = 12  # tokens of a completion


def write_model(folder):
    """A model in the form of SmolLM2-Instruct with random weights, written by transformers."""
    torch, transformers = torch_and_transformers()
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*QUESTIONS, *ANSWERS, CHATML], trainer)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **IDS,
    )
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    network.tie_weights()
    network.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # SmolLM2's folder has none
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    names = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2], "unk_token": SPECIAL[0]}
    files.write_json(folder / "tokenizer_config.json", names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


@pytest.fixture(scope="module", params=["alike", pytest.param("released", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    if request.param == "released":
        return request.getfixturevalue("released_chat_model")
    return write_model(tmp_path_factory.mktemp("alike") / "model")


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A work directory whose policy and reward model started from that folder and have moved off bfloat16's numbers."""
    config = default_config()
    config.stages = ("sft", "reward_model")
    config.model.shape = config.tokenizer.path = folder.name
    config.model.update(dtype="float32", attention="xla")
    config.data.files.dir = str(folder.parent)
    config.prompt_length = config.completion_length = 64
    path = tmp_path_factory.mktemp("run")
    shape = hf.load_config(folder, vocab_multiple=config.model.vocab_multiple)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (x * rng.normal(1, 0.01, x.shape)).astype(np.float32), hf.load_params(folder, shape)
    )
    scorer = model.with_scalar_head(params, model.init_scalar_head(shape, jax.random.key(0))) | {
        "scalar_bias": np.float32(0)
    }
    scorer["scalar_kernel"] = rng.normal(0, 0.1, scorer["scalar_kernel"].shape).astype(np.float32)
    for stage, kept in (("sft", params), ("reward_model", scorer)):
        (path / stage).mkdir()
        checkpoint.save_params(path / stage / "params", kept)
        files.write_json(path / stage / "done.json", {"seconds": 1.0})
    files.write_json(path / "config.json", shapes.filled(config).to_dict())
    files.write_json(path / "overrides.json", {})
    Tokenizer.load(folder).save_to(path)
    return path


def exported(workdir, stage, folder):
    assert command.main(["export", str(workdir / stage), str(folder)]) == 0
    return folder


def our(folder, head="lm"):
    """Our config and parameters of a folder, computed in float32."""
    config = hf.load_config(folder, dtype="float32", attention="xla")
    return config, hf.load_params(folder, config, head=head)


def their(folder, classes="AutoModelForCausalLM"):
    """Transformers' tokenizer and network of a folder, computed in float32."""
    torch, transformers = torch_and_transformers()
    network = getattr(transformers, classes).from_pretrained(folder, dtype=torch.float32).eval()
    return transformers.AutoTokenizer.from_pretrained(folder), network


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, mask):
    return model.lm_logits(config, params, model.masked_hidden_states(config, params, tokens, mask))


def chats(tokenizer):
    """The questions as transformers' chat template writes them."""
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]


def padded(tokenizer, texts, side):
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    assert not batch.attention_mask.all()
    return batch, batch.input_ids.numpy().astype(np.int32), batch.attention_mask.numpy().astype(bool)


def test_the_tokens_of_texts_and_chats_are_those_of_transformers(folder):
    theirs, _ = their(folder)
    ours = Tokenizer.load(folder)
    for text in (*QUESTIONS, *ANSWERS, " a\n\nb  c "):
        assert ours.encode_as_released(text) == theirs(text).input_ids
    template, chat = ours.chat_template(), ours.for_chat()
    for question in QUESTIONS[:2]:
        turns = [{"role": "user", "content": question}]
        wanted = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert chat.encode_prompts([template.chat(turns)]) == [wanted]
    assert (ours.eos_id, chat.eos_id, ours.pad_id) == (theirs.eos_token_id,) * 2 + (theirs.pad_token_id,)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("way", ["in", "out"])
def test_the_logits_of_a_padded_batch_are_those_of_transformers(folder, workdir, tmp_path, side, way):
    """In: of the folder. Out: of a policy that started from it."""
    torch, _ = torch_and_transformers()
    source = folder if way == "in" else exported(workdir, "sft", tmp_path / "out")
    tokenizer, network = their(source)
    config, params = our(source)
    batch, tokens, mask = padded(tokenizer, chats(tokenizer), side)
    with torch.no_grad():
        logits = network(**batch).logits.numpy()[mask]
    found = np.asarray(_logits(config, params, tokens, mask))[mask][:, : config.vocab_size]
    assert np.abs(found - logits).max() < 1e-5 * np.abs(logits).max()
    assert np.std(logits) > 1


def test_an_exported_policy_has_the_ids_of_the_folder_it_started_from(folder, workdir, tmp_path):
    out = exported(workdir, "sft", tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        found = json.loads((out / name).read_text())
        assert {key: found.get(key) for key in IDS} == IDS, name
    assert (out / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    given, kept = (json.loads((place / "config.json").read_text()) for place in (folder, out))
    assert {name: kept[name] for name in IDS} == {name: given[name] for name in IDS}


def test_an_exported_policy_completes_a_padded_batch_as_ours_does(workdir, tmp_path):
    torch, _ = torch_and_transformers()
    out = exported(workdir, "sft", tmp_path / "out")
    tokenizer, network = their(out)
    config, params = our(out)
    batch, tokens, mask = padded(tokenizer, chats(tokenizer), "left")
    theirs = network.generate(**batch, do_sample=False, max_new_tokens=LENGTH).numpy()[:, tokens.shape[1] :]
    sample = jax.jit(functools.partial(generate.sample, config, sizes=generate.Sizes(LENGTH, 2, 2)))
    ours = np.asarray(sample(params, tokens, mask, jax.random.key(0), 0.0).completions)
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
    assert (ours[:, theirs.shape[1] :] == 2).all() and len(np.unique(ours)) > 3


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_exported_reward_model_scores_a_padded_batch_as_ours_does(workdir, tmp_path, side):
    """Its padding is a token that ends no text: at one that does, transformers would read the score too early."""
    torch, _ = torch_and_transformers()
    out = exported(workdir, "reward_model", tmp_path / "out")
    tokenizer, network = their(out, "AutoModelForSequenceClassification")
    assert tokenizer.pad_token_id == network.config.pad_token_id not in (1, 2)
    config, params = our(out, "scalar")
    ended = [f"{prompt}{answer}<|im_end|>" for prompt, answer in zip(chats(tokenizer), ANSWERS)]
    batch, tokens, mask = padded(tokenizer, ended, side)
    with torch.no_grad():
        theirs = network(**batch).logits[:, 0].numpy()
        alone = [network(**tokenizer(text, return_tensors="pt")).logits.item() for text in ended]
    ours = np.asarray(jax.jit(ppo.sequence_scores, static_argnums=0)(config, params, tokens, mask))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    np.testing.assert_allclose(theirs, alone, atol=1e-4 * np.abs(theirs).max())
    assert np.ptp(theirs) > 0.01
