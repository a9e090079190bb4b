"""python -m rlhf_jax.generate: the text of transformers, whichever way it is asked for, and top-k and top-p."""

import functools
import json
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_tokenizers as released
import tiny
from toy import get_config as toy_config

from rlhf_jax import checkpoint, generate, sharding, weights
from rlhf_jax import run as run_lib
from rlhf_jax.generate import __main__ as command
from rlhf_jax.generate import settings
from rlhf_jax.generate.truncation import Truncation, keep_likely
from rlhf_jax.runtime import progress
from rlhf_jax.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("one_device")
PROMPTS = ["once upon a time", "lily and tom went to the park. they saw a big dog and", "the"]


def lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


def run_command(capsys, *arguments):
    """Standard output; the command must succeed."""
    assert command.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The sentence on standard error."""
    assert command.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def stories(shared_data):
    return shared_data / "stories260K"


@functools.cache
def transformers_greedy(folder, prompt, count, chat=False):
    """transformers' completion without the token that ends it, and without special ones."""
    torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if chat:
        turn = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    completion = out[0, ids.shape[1] :].tolist()
    ends = network.generation_config.eos_token_id
    if completion[-1] in (ends if isinstance(ends, list) else [ends]):
        completion.pop()
    return tokenizer.decode(completion, skip_special_tokens=True)


def check_texts(found, theirs):
    """Ours are transformers' texts; one that was cut lacks its last character where that is not whole (U+FFFD)."""
    wanted = [text if row["finished"] else text.rstrip("\ufffd") for row, text in zip(found, theirs, strict=True)]
    assert [row["completion"] for row in found] == wanted


# --- Against transformers -------------------------------------------------------------------------


def test_the_greedy_text_is_that_of_transformers(stories, capsys):
    arguments = f"--model={stories}", "--temperature=0", "--max_new_tokens=40"
    # Rows and lengths as below, so that the program is compiled once.
    texts = run_command(capsys, *arguments, f"--prompt={PROMPTS[1]}", "--samples=3").removesuffix("\n").split("\n---\n")
    # Prompt and completion are decoded apart, so that ours keeps a space that transformers strips.
    assert [text.lstrip() for text in texts] == 3 * [transformers_greedy(stories, PROMPTS[1], 40).lstrip()]


@pytest.mark.slow
def test_a_model_split_over_devices_writes_the_same(stories, capsys, monkeypatch):
    arguments = f"--model={stories}", "--temperature=0", "--max_new_tokens=40", f"--prompt={PROMPTS[0]}"
    text = run_command(capsys, *arguments)
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh.func, devices=jax.devices()[:4]))
    assert run_command(capsys, *arguments, "--tensor=2") == text


def test_a_batch_of_prompts_of_all_lengths_is_that_of_transformers(stories, capsys, tmp_path):
    rows = [{"prompt": text, "source": f"row {n}"} for n, text in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = f"--model={stories}", f"--prompts={tmp_path}/prompts.jsonl", "--temperature=0", "--max_new_tokens=40"
    out = lines(run_command(capsys, *arguments))
    for row, found in zip(rows, out, strict=True):
        assert row.items() <= found.items() and found["sample"] == 0 and found["logprob"] < 0
        assert found["completion"].lstrip() == transformers_greedy(stories, row["prompt"], 40).lstrip()
        assert found["tokens"] == 40 and not found["finished"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A random Llama with the tokenizer of a chat model, which ends a text by tokens that it does write."""
    torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    import transformers

    folder = released.save(tmp_path_factory.mktemp("chat"), "qwen", released.CHATML)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=360,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        eos_token_id=2,
        bos_token_id=None,
        pad_token_id=0,
    )
    network = transformers.LlamaForCausalLM(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    network.save_pretrained(folder)
    generation = {"eos_token_id": [2, *range(3, 358, 12)]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_a_chat_ends_where_transformers_ends_it(chat_model, capsys, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"What is {n} + 2?"}], "n": n} for n in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = f"--model={chat_model}", "--temperature=0", "--max_new_tokens=24"
    out = lines(run_command(capsys, *arguments, f"--prompts={tmp_path}/prompts.jsonl"))
    expected = [transformers_greedy(chat_model, row["messages"][0]["content"], 24, chat=True) for row in rows]
    check_texts(out, expected)
    assert out[0]["prompt"] == "<|im_start|>user\nWhat is 0 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert {found["finished"] for found in out} == {True, False}, "the test needs both"
    assert all(found["finished"] == (found["tokens"] < 24) for found in out)
    model = command.open_model(str(chat_model))
    [prompt] = command.read_prompts(model, command.parse([arguments[0], "--chat", "--prompt=What is 0 + 2?"]))
    assert prompt.text == out[0]["prompt"] and prompt.rendered


def test_a_prompt_that_somebody_rendered_is_read_as_transformers_reads_it(chat_model, capsys, tmp_path):
    rows = [
        {"prompt": f"<|im_start|>user\nWhat is {n} + 2?<|im_end|>\n<|im_start|>assistant\n", "completion": "mine"}
        for n in range(8)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = lines(
        run_command(
            capsys,
            f"--model={chat_model}",
            "--temperature=0",
            "--max_new_tokens=24",
            f"--prompts={tmp_path}/prompts.jsonl",
        )
    )
    expected = [transformers_greedy(chat_model, row["prompt"], 24) for row in rows]
    check_texts(out, expected)
    assert all(
        found["prompt"] == row["prompt"] and found["given"] == {"completion": "mine"} for row, found in zip(rows, out)
    )


def test_a_template_without_replies_does_not_hinder_a_plain_prompt(chat_model, capsys, tmp_path):
    shutil.copytree(chat_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    for template in ("{{ messages[0].content }}", "{% if %}"):
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        arguments = f"--model={tmp_path}/model", "--temperature=0", "--max_new_tokens=24", "--prompt=What is 0 + 2?"
        assert run_command(capsys, *arguments).rstrip("\n") == transformers_greedy(chat_model, "What is 0 + 2?", 24)
        assert command.main([*arguments, "--chat"]) == 2


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_of_generation_config_is_that_of_transformers(stories, capsys, tmp_path, penalty):
    shutil.copytree(stories, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": penalty, "min_length": 3})
    )
    arguments = (
        f"--model={tmp_path}/model",
        "--temperature=0",
        "--max_new_tokens=40",
        f"--prompt={PROMPTS[1]}",
        "--samples=3",
    )
    texts = run_command(capsys, *arguments).removesuffix("\n").split("\n---\n")
    theirs = transformers_greedy(tmp_path / "model", PROMPTS[1], 40).lstrip()
    assert [text.lstrip() for text in texts] == 3 * [theirs]
    plain = run_command(capsys, *arguments, "--repetition_penalty=1").removesuffix("\n").split("\n---\n")
    assert (
        [text.lstrip() for text in plain] == 3 * [transformers_greedy(stories, PROMPTS[1], 40).lstrip()] != 3 * [theirs]
    )


def test_what_is_not_followed_of_a_generation_config_is_named(tmp_path):
    given = {
        "_from_model_config": True,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 1.0,
        "do_sample": True,
        "num_beams": 1,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [7],
        "bad_words_ids": None,
        "eos_token_id": [1, 2],
        "transformers_version": "5.0",
        "watermarking_config": {},
        "new_in_2027": 4,
        "max_length": 20,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    others = {"no_repeat_ngram_size": 3, "suppress_tokens": [7], "new_in_2027": 4}
    assert settings.read(tmp_path, greedy=True) == (1.05, others)
    assert settings.read(tmp_path, greedy=False) == (1.05, {"temperature": 0.7, "top_k": 20} | others)
    assert settings.read(tmp_path / "nothing", greedy=False) == (1.0, {})
    for wrong in (0, -1, "a", True, [1], float("nan"), float("inf")):
        (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": wrong}))
        with pytest.raises(
            InputError, match="generation_config.json: 'repetition_penalty' is .* must be a number above 0"
        ):
            settings.read(tmp_path, greedy=True)


def test_a_default_generation_config_of_transformers_says_nothing_that_is_ignored(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    import transformers

    transformers.GenerationConfig().save_pretrained(tmp_path)
    whole = transformers.GenerationConfig().to_dict()
    assert settings.read(tmp_path, greedy=False) == (1.0, {})
    (tmp_path / "generation_config.json").write_text(json.dumps(whole))
    assert settings.read(tmp_path, greedy=False) == (1.0, {})


# --- Samples, files, resuming ---------------------------------------------------------------------


def ask(stories, *more):
    """Always the same program: rows of 8, the same lengths."""
    return f"--model={stories}", "--max_new_tokens=12", "--top_p=0.9", "--samples=8", "--batch_size=8", *more


def test_samples_differ_and_a_seed_repeats_them(stories, capsys):
    out = run_command(capsys, *ask(stories, "--prompt=once", "--seed=1"))
    assert out.count("---\n") == 7 and len(set(out.split("---\n"))) > 4
    assert run_command(capsys, *ask(stories, "--prompt=once", "--seed=1")) == out
    assert run_command(capsys, *ask(stories, "--prompt=once", "--seed=2")) != out
    assert len(set(run_command(capsys, *ask(stories, "--prompt=once", "--top_k=1")).split("---\n"))) == 1


def test_a_stopped_file_goes_on_and_becomes_the_same(stories, capsys, tmp_path, monkeypatch):
    path = tmp_path / "prompts.jsonl"
    odd = "U+2028 \u2028 and others \x85\u2029\x0c end no line"
    path.write_text("".join(f'{{"prompt": "{text}", "note": "{odd}"}}\n' for text in PROMPTS).replace("\x0c", "\\f"))
    arguments = ask(stories, f"--prompts={path}")
    run_command(capsys, *arguments, f"--out={tmp_path}/whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text()
    assert len(lines(whole)) == 24 and capsys.readouterr().out == ""

    class Stopping(progress.Interrupt):
        """Asked to stop before the first batch is done."""

        def __enter__(self):
            self.requested = True
            return self

        def __exit__(self, *_):
            pass

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(progress, "Interrupt", Stopping)
        assert command.main([*arguments, f"--out={out}"]) == 130
    assert "stopped at generate step 1; run the same command to go on" in capsys.readouterr().err
    [part] = tmp_path.glob(".out.jsonl.*.part")
    assert part.read_text() == "".join(f"{line}\n" for line in whole.split("\n")[:8]) and not out.exists()
    part.write_text(part.read_text() + '{"half a line')
    batches = []
    sampler = generate.Sampler.__call__
    monkeypatch.setattr(generate.Sampler, "__call__", lambda *a: batches.append(1) or sampler(*a))
    run_command(capsys, *arguments, f"--out={out}")
    assert out.read_text() == whole and len(batches) == 2 and not list(tmp_path.glob(".*"))
    run_command(capsys, *arguments, "--seed=1", f"--out={out}")  # another question replaces the answer
    assert out.read_text() != whole


# --- A stage of ours ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the toy's shape whose base model is finished, and random."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = toy_config()
    config.model.scan_layers = True
    config.mesh.update(data=-1, fsdp=1)
    with run_lib.start(config, path) as run:
        checkpoint.save_params(run.folder("pretrain") / "params", weights.init_params(run, "pretrain", run.model))
        run.mark_done("pretrain", 0.0)
        run.workdir.stage("sft")
    return path


def test_a_finished_stage_and_its_work_directory_complete(workdir, capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"instruction": "say hello", "input": "mira"}\n{"prompt": "say"}\n')
    arguments = f"--prompts={tmp_path}/p.jsonl", "--max_new_tokens=8", "--temperature=0"
    out = run_command(capsys, f"--model={workdir}/pretrain", *arguments)
    assert run_command(capsys, f"--model={workdir}", *arguments) == out
    first, second = lines(out)
    assert first["prompt"] == "say hello\nmira\nanswer:" and second["prompt"] == "say"
    model = command.open_model(str(workdir))
    [prompt] = command.read_prompts(model, command.parse([f"--model={workdir}", "--chat", "--prompt=hi"]))
    assert prompt.text == "user: hi\nassistant:" and prompt.rendered
    [prompt] = command.read_prompts(model, command.parse([f"--model={workdir}", "--instruction=say hello"]))
    assert prompt.text == "say hello\nanswer:" and prompt.rendered
    (tmp_path / "p.jsonl").write_text('{"instruction": "say hello"}\n')
    [row] = lines(run_command(capsys, f"--model={workdir}", *arguments))
    said = run_command(capsys, f"--model={workdir}", "--instruction=say hello", *arguments[1:])
    assert said == row["completion"] + "\n"


def test_what_is_no_finished_policy_is_named(workdir, capsys, tmp_path):
    shutil.copytree(workdir / "pretrain", workdir / "reward_model", dirs_exist_ok=True)
    error = refused(capsys, f"--model={workdir}/reward_model", "--prompt=a")
    shutil.rmtree(workdir / "reward_model")
    assert f"{workdir}/reward_model is not a policy; the finished policies of {workdir}: pretrain" in error
    assert "is not a finished stage: it has no done.json" in refused(capsys, f"--model={workdir}/sft", "--prompt=a")
    assert "has no config.json" in refused(capsys, f"--model={tmp_path}/nowhere", "--prompt=a")


@pytest.mark.parametrize("text", ["", "{}", "{"])
def test_a_damaged_mark_of_a_stage_is_named(workdir, capsys, tmp_path, text):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "pretrain" / "done.json").write_text(text)
    for model in (tmp_path / "run", tmp_path / "run" / "pretrain"):
        said = refused(capsys, f"--model={model}", "--prompt=a")
        assert f"{tmp_path}/run/pretrain/done.json is damaged: delete it and start the run again" in said


def test_a_model_whose_config_was_edited_is_refused(workdir, capsys, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["model"]["norm_eps"] = 0.5  # every array still has its shape
    file.write_text(json.dumps(config))
    said = refused(capsys, f"--model={tmp_path}/run/pretrain", "--prompt=a")
    assert "config.json was changed after stage 'pretrain' was finished (model.norm_eps was" in said


# --- Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--prompt=a", "--max_new_tokens=512"],
            "--max_new_tokens=512 leaves no room for a prompt in the model's context of 512",
        ),
        (
            ["--prompt=" + 300 * "a b", "--max_new_tokens=12"],
            "prompt 1 has 601 tokens; with --max_new_tokens=12 it can have 1 to 500",
        ),
        (["--prompt=a", "--chat"], "there is no chat template beside it"),
        (["--instruction=a"], "there is no chat template beside it"),
        (["--instruction=a", "--chat"], "--chat goes with --prompt or --prompts"),
        (["--prompts=DIR/rows.jsonl"], "rows.jsonl:2: field 'prompt' is 7"),
        (["--prompts=DIR/chat.jsonl"], "there is no chat template beside it"),
        (["--prompts=DIR/none.jsonl"], "none.jsonl: no such file"),
        (["--prompt=a", "--tensor=3"], "mesh data=-1 fsdp=1 tensor=3 does not fill 1 devices"),
        (["--prompt=a", "--out=DIR"], "is a directory; give a file"),
        (
            ["--prompt=a", "--out=DIR/no/where.jsonl", "--max_new_tokens=4"],
            "where.jsonl cannot be written: No such file",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_sentence(stories, capsys, tmp_path, arguments, sentence):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": 7}\n')
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    arguments = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
    assert sentence.replace("is 7", "is a number") in refused(capsys, f"--model={stories}", *arguments)


@pytest.mark.parametrize(
    "flag",
    [
        "--temperature=-1",
        "--temperature=nan",
        "--top_p=0",
        "--top_p=1.1",
        "--top_k=-1",
        "--samples=0",
        "--max_new_tokens=0",
        "--seed=x",
        "--prompts=x",
    ],
)
def test_a_flag_out_of_range_is_named(capsys, flag):
    with pytest.raises(SystemExit) as raised:
        command.main(["--model=x", "--prompt=a", flag])
    assert raised.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err


def test_a_model_with_another_tokenizer_is_refused(chat_model, capsys, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    assert "tokens but the model only 100; use the model's own tokenizer" in refused(
        capsys, f"--model={folder}", "--prompt=a"
    )


# --- Top-k and top-p ------------------------------------------------------------------------------


def truncated(logprobs, top_k, top_p):
    return np.asarray(_keep(logprobs, Truncation(jnp.int32(top_k), jnp.float32(top_p))))


@pytest.mark.parametrize("context, tokens", [(128, 64), (255, 127), (256, 128), (4096, 128)])
def test_by_default_a_prompt_has_half_of_the_context_at_least(context, tokens):
    assert command.new_tokens(context) == tokens


_keep = jax.jit(keep_likely)


def by_a_plain_loop(row, top_k, top_p):
    """The places that are kept, in float64."""
    order = sorted(range(len(row)), key=lambda i: -row[i])
    kept = order[: top_k or len(row)]
    probabilities = np.exp(row[kept].astype(np.float64))
    probabilities /= probabilities.sum()
    total, result = 0.0, []
    for place, probability in zip(kept, probabilities):
        result.append(place)
        total += probability
        if top_p < 1.0 and total >= top_p:
            break
    return set(result)


@pytest.mark.parametrize("top_k", [0, 1, 5, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_truncation_is_that_of_a_plain_loop_and_of_transformers(top_k, top_p):
    rng = np.random.default_rng(0)
    logprobs = np.asarray(jax.nn.log_softmax(3 * rng.normal(size=(40, 100)).astype(np.float32)))
    kept = truncated(logprobs, top_k, top_p)
    for row, result in zip(logprobs, kept):
        assert set(np.flatnonzero(np.isfinite(result))) == by_a_plain_loop(row, top_k, top_p)
    np.testing.assert_array_equal(kept[np.isfinite(kept)], logprobs[np.isfinite(kept)])
    torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    from transformers.generation import logits_process

    theirs = torch.from_numpy(logprobs.copy())
    theirs = logits_process.TopKLogitsWarper(min(top_k, 100))(None, theirs) if top_k else theirs
    theirs = logits_process.TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
    np.testing.assert_array_equal(kept, theirs.numpy())


@hypothesis.given(
    weights=st.lists(st.sampled_from([1e-20, 0.1, 0.2, 1.0]), min_size=1, max_size=30),
    top_k=st.integers(0, 40),
    top_p=st.floats(2**-20, 1.0, width=32),
)
def test_something_likeliest_is_always_kept_and_ties_stay_together(weights, top_k, top_p):
    logprobs = np.full(30, -1e9, np.float32)
    logprobs[: len(weights)] = np.log(weights)
    kept = truncated(logprobs[None], top_k, top_p)[0]
    assert np.isfinite(kept[np.argmax(logprobs)])
    chosen = np.isfinite(kept)
    assert logprobs[chosen].min() > logprobs[~chosen].max(initial=-np.inf)


def test_the_sampler_draws_what_is_kept_and_nothing_changes_without():
    config, prompts = tiny.SCANNED, tiny.prompts_of(16, 6)
    mesh = tiny.mesh_of("1x1x1")
    with jax.set_mesh(mesh):
        params = tiny.place(tiny.params_of(config, 0), config, mesh)
        sampler = generate.Sampler(config, mesh, completion_length=8, eos_id=tiny.EOS, pad_id=tiny.PAD)

        def draw(temperature, *truncation):
            return jax.tree.map(
                np.asarray,
                sampler(
                    params,
                    prompts,
                    jax.random.key(0),
                    temperature,
                    *(Truncation(jnp.int32(k), jnp.float32(p)) for k, p in truncation),
                ),
            )

        plain, greedy = draw(1.0), draw(0.0)
        np.testing.assert_array_equal(draw(1.0, (0, 1.0)).tokens, plain.tokens)
        np.testing.assert_array_equal(draw(1.0, (1, 1.0)).tokens, greedy.tokens)
        np.testing.assert_array_equal(draw(1.0, (0, 1e-6)).tokens, greedy.tokens)
        few = draw(1.0, (3, 0.8))
        assert sampler.program._cache_size() == 2  # with and without, whatever the numbers
    assert not np.array_equal(few.tokens, plain.tokens) and not np.array_equal(few.tokens, greedy.tokens)
    assert few.logprobs[few.completion_mask].min() > plain.logprobs[plain.completion_mask].min()


def test_bytes_that_are_no_text_are_no_prompt():
    with pytest.raises(InputError, match="--prompt holds bytes that are not UTF-8"):
        command.read_prompts(None, command.parse(["--model=x", "--prompt=a\udcff"]))
    with pytest.raises(InputError, match="--instruction holds bytes"):
        command.read_prompts(None, command.parse(["--model=x", "--instruction=a\udcff"]))
