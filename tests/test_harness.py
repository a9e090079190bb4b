"""lm-eval with our models as its backend: the numbers of its own Hugging Face backend, kept answers, plain refusals."""

import functools
import json
import types

import jax
import numpy as np
import pytest
import released_tokenizers as released
import tiny
from toy import get_config as toy_config

from rlhf_jax import checkpoint, model, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import __main__ as command
from rlhf_jax.evaluate.harness import fingerprint, likelihood, results, tasks
from rlhf_jax.evaluate.harness.answers import Answers
from rlhf_jax.evaluate.harness.backend import Backend, Decoding
from rlhf_jax.evaluate.harness.likelihood import Likelihood
from rlhf_jax.evaluate.harness.packing import Request
from rlhf_jax.language_model import LanguageModel, open_model
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Stopped

pytest.importorskip("lm_eval", reason="lm-eval is not installed: EXTRAS=test")

STORY = "Once upon a time there was a {}. The {} was"
CHOICES = [" happy", " sad and lonely", " very very big", "."]


def request(*arguments):
    return types.SimpleNamespace(args=arguments)


def backend_of(language_model, path=None, asked=lambda: 0, **options):
    return Backend(
        language_model, Answers(path, "model"), hosts.Stop(asked), **{"batch_tokens": 512, "stream": None} | options
    )


@pytest.fixture(scope="module")
def stories(shared_data):
    return shared_data / "stories260K"


@pytest.fixture(scope="module")
def hugging_face(stories):
    """lm-eval's own backend on the same weights."""
    pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    pytest.importorskip("accelerate", reason="accelerate is not installed: bash launch/test.sh --torch")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(stories), dtype="float32", batch_size=4, device="cpu")


@pytest.fixture
def ours(stories, one_device):
    language_model = open_model(str(stories))
    with jax.set_mesh(language_model.mesh):
        yield backend_of(language_model)


# --- the numbers ----------------------------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_lm_evals_backend(ours, hugging_face):
    asked = [request(STORY.format(who, who), choice) for who in ("girl", "dog") for choice in CHOICES]
    asked += [request("", " Lily liked to play."), request("Tom was sad. ", "He cried"), request("<s>", "One day")]
    asked += [request("Once. " * 300, "upon a time")]  # longer than the context
    asked += asked[:2]
    theirs, found = hugging_face.loglikelihood(asked, disable_tqdm=True), ours.loglikelihood(asked)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in theirs]
    np.testing.assert_allclose([total for total, _ in found], [total for total, _ in theirs], atol=1e-3)
    assert ours.cut == {"loglikelihood": 1}


def test_a_continuation_of_likeliest_tokens_is_greedy(ours):
    text = ours.generate_until([request("Once upon a time", {"max_gen_toks": 5})])[0]
    [(_, greedy), (_, other)] = ours.loglikelihood([request("Once upon a time", text), request("Once", " zebra")])
    assert greedy and not other


def test_texts_longer_than_the_context_are_read_in_the_windows_of_lm_evals_backend(ours, hugging_face):
    asked = [request("Once upon a time there was a girl."), request("One day, " * 300), request("")]
    theirs = hugging_face.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(asked), theirs, rtol=1e-6, atol=1e-3)


def test_completions_are_those_of_lm_evals_backend(ours, hugging_face):
    asked = [
        request("Once upon a time", {"until": ["."], "max_gen_toks": 40}),
        request("Tom and his dog", {"until": ["\n\n", "girl", "park"], "max_gen_toks": 60}),
        request("Lily", {"until": "\n", "max_gen_toks": 40}),
        request("Once. " * 300, {"max_gen_toks": 8, "until": []}),
        request("Lily", {"do_sample": False, "temperature": 0.7, "max_gen_toks": 12, "until": []}),
    ]
    theirs = hugging_face.generate_until(asked, disable_tqdm=True)
    found = ours.generate_until(asked)
    # Our text keeps a space at its start that transformers' tokenizer strips in a batch of its own.
    assert found == theirs
    assert any("." in text for text in found) and not any("park" in text for text in found[1:2])


LATE = ("1x1x1", True), ("2x2x2", False), ("8x1x1", True), ("8x1x1", False)


@pytest.mark.parametrize(
    "mesh, scan", [("1x1x1", False), ("2x2x2", True)] + [pytest.param(*case, marks=pytest.mark.slow) for case in LATE]
)
def test_packed_requests_have_the_numbers_of_rows_of_their_own(mesh, scan):
    config, mesh = tiny.llama(scan_layers=scan), tiny.mesh_of(mesh)
    params = tiny.params_of(config, 0)
    random = np.random.default_rng(0)

    def text(low, high):
        return tuple(random.integers(1, config.vocab_size, random.integers(low, high)).tolist())

    root = text(12, 13)
    asked = [Request(root + context, text(1, 5)) for context in [text(1, 4) for _ in range(3)] for _ in range(3)]
    asked += [Request(text(1, 9), text(1, 9)) for _ in range(4)]
    language_model = LanguageModel(config, tiny.place(params, config, mesh), None, None, mesh, {})
    with jax.set_mesh(mesh):
        found = {n: (total, greedy) for part in Likelihood(language_model, 64)(asked) for n, total, greedy in part}
    assert sorted(found) == list(range(len(asked)))
    for n, (context, continuation) in enumerate(asked):
        tokens = np.array([context + continuation])
        hidden = model.masked_hidden_states(config, params, tokens, np.ones(tokens.shape, bool))
        logprobs = jax.nn.log_softmax(model.lm_logits(config, params, hidden))[0, len(context) - 1 : -1]
        total = sum(float(logprobs[k, token]) for k, token in enumerate(continuation))
        assert found[n][0] == pytest.approx(total, abs=1e-3)
        assert found[n][1] == all(int(np.argmax(logprobs[k])) == token for k, token in enumerate(continuation))


def test_logits_in_parts_change_no_number(ours, monkeypatch):
    asked = [request(STORY.format("girl", "girl"), " " + "very " * 9 + "big")]
    whole = ours.loglikelihood(asked)
    monkeypatch.setattr(likelihood, "_LOGITS", 2048)
    monkeypatch.setattr(ours, "_answers", Answers(None, ""))
    np.testing.assert_allclose(ours.loglikelihood(asked)[0][0], whole[0][0], atol=1e-4)


# --- settings -------------------------------------------------------------------------------------------------------


def test_generation_settings_are_read_as_lm_eval_reads_them():
    assert Decoding.of({}) == Decoding(256, ())
    assert Decoding.of({"until": "x", "max_gen_toks": 3, "max_tokens": 9}) == Decoding(3, ("x",))
    assert Decoding.of({"do_sample": True}).temperature == 1.0
    assert Decoding.of({"do_sample": False, "temperature": 0.5}).temperature == 0.0
    assert Decoding.of({"temperature": 0.5, "top_p": 0.9, "top_k": 5}) == Decoding(256, (), 0.5, 5, 0.9)
    assert Decoding.of({}, 1.3).repetition_penalty == 1.3
    with pytest.raises(InputError, match="num_beams cannot be followed here"):
        Decoding.of({"num_beams": 4})


def test_what_cannot_be_asked_is_a_sentence(ours):
    with pytest.raises(InputError, match="a continuation of .* tokens, and the model's context is 512 tokens"):
        ours.loglikelihood([request("a", " word" * 600)])
    with pytest.raises(InputError, match="completions of up to 512 tokens, and the model's context is 512"):
        ours.generate_until([request("a", {"max_gen_toks": 512})])
    with pytest.raises(InputError, match="has no token"):
        ours.loglikelihood([request("a", "")])


def test_samples_differ_between_copies_and_seeds_and_not_between_runs(stories, one_device):
    language_model = open_model(str(stories))
    asked = [request("Once upon a time", {"temperature": 1.0, "max_gen_toks": 40, "until": []})] * 3
    with jax.set_mesh(language_model.mesh):
        first, again, other = (backend_of(language_model, seed=seed).generate_until(asked) for seed in (0, 0, 1))
    assert len(set(first)) == 3 and first == again and not set(first) & set(other)


# --- answers that are kept ------------------------------------------------------------------------------------------


class Counting(Likelihood):
    """Counts the requests that are computed."""

    computed = 0

    def __call__(self, requests):
        Counting.computed += len(requests)
        return super().__call__(requests)


def test_a_stopped_command_goes_on_and_gives_the_same(stories, one_device, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_jax.evaluate.harness.backend.Likelihood", Counting)
    language_model = open_model(str(stories))
    asked = [request("Once upon a time " * n, choice) for n in range(1, 7) for choice in CHOICES]
    with jax.set_mesh(language_model.mesh):
        whole = backend_of(language_model).loglikelihood(asked)
        signals = iter([0, 2])
        stopped = backend_of(language_model, tmp_path / "a" / "answers.jsonl", lambda: next(signals), batch_tokens=64)
        with pytest.raises(Stopped, match="run the same command to go on"):
            stopped.loglikelihood(asked)
        kept = len((tmp_path / "a" / "answers.jsonl").read_text().splitlines())
        assert 0 < kept < len(asked)
        with open(tmp_path / "a" / "answers.jsonl", "a") as file:
            file.write('{"key": "cut')  # as a kill leaves it
        Counting.computed = 0
        found = backend_of(language_model, tmp_path / "a" / "answers.jsonl").loglikelihood(asked)
        assert Counting.computed == len(asked) - kept
        np.testing.assert_allclose([x for x, _ in found], [x for x, _ in whole], atol=1e-4)
        Counting.computed = 0
        assert backend_of(language_model, tmp_path / "a" / "answers.jsonl").loglikelihood(asked) == found
        assert Counting.computed == 0


def test_completions_go_on_after_a_stop_and_are_the_same(stories, one_device, tmp_path):
    """Also drawn ones, in batches that have more rows than slots, and a last one that is not full."""
    language_model = open_model(str(stories))
    asked = [
        request(f"One day {who} saw", {"temperature": 1.0, "max_gen_toks": 24, "until": ["."]})
        for who in ("Tim", "a girl", "the cat", "Lily", "her mom", "Ben", "a dog", "the sun", "Sue", "a boy")
    ]
    with jax.set_mesh(language_model.mesh):
        whole = backend_of(language_model, batch_tokens=96).generate_until(asked)
        answers, signals = tmp_path / "answers.jsonl", iter([2])
        stopped = backend_of(language_model, answers, lambda: next(signals), batch_tokens=96)
        with pytest.raises(Stopped, match="run the same command to go on"):
            stopped.generate_until(asked)
        assert len(answers.read_text().splitlines()) == 8  # two slots, four times as many rows
        assert backend_of(language_model, answers, batch_tokens=96).generate_until(asked) == whole
    assert len(set(whole)) == 10


@pytest.mark.parametrize("ways", [1, 4])
def test_batches_of_completions_have_few_shapes_and_no_more_rows_than_they_need(stories, one_device, ways):
    def batches(lengths):
        asked = [("Once" + " upon" * length, {"max_gen_toks": 48}) for length in lengths]
        ours = backend_of(open_model(str(stories)), batch_tokens=192)
        ours._ways, ours._batch_tokens = ways, 192 * ways
        found = list(ours._batches(asked))
        assert sorted(row for batch in found for row in batch.rows) == list(range(len(asked)))
        return [(len(batch.rows), batch.size // ways, batch.slots // ways) for batch in found]  # of a device

    assert batches([3]) == [(1, 1, 1)]
    assert batches([3] * 2 * ways + [4] * ways) == [(3 * ways, 3, 3)]
    assert batches([3] * 4 * ways) == [(4 * ways, 6, 3)]  # a slot takes two of them, or none
    assert batches([3] * 26 * ways) == [(12 * ways, 12, 3)] * 2 + [(2 * ways, 12, 3)]
    assert [shape[1:] for shape in batches([60] + [3] * 10 * ways)] == [(4, 1), (12, 3)]


def test_answers_are_those_of_one_model(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = Answers(path, "one")
    first.add([(first.key("loglikelihood", ("a", "b")), [1.5, True])])
    assert Answers(path, "one")[first.key("loglikelihood", ("a", "b"))] == [1.5, True]
    assert Answers(path, "other").key("loglikelihood", ("a", "b")) not in Answers(path, "other")
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match="answers.jsonl, line 1 is no answer: delete the file"):
        Answers(path, "one")


def test_a_changed_file_of_a_model_changes_its_fingerprint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(bytes((3 << 20) - 1) + b"x")
    changed = fingerprint(tmp_path)
    assert changed != before
    (tmp_path / "sft" / "params").mkdir(parents=True)  # a work directory, whose stage was trained anew
    (tmp_path / "sft" / "params" / "manifest.json").write_text("{}")
    assert fingerprint(tmp_path) != changed


# --- estimates ------------------------------------------------------------------------------------------------------


def test_intervals_are_over_items():
    mean = lambda items: sum(items) / len(items)  # noqa: E731
    right = [1, 0, 0, 1, 1, 0, 1, 1] * 50
    found = results.estimate(5 / 8, right, mean)
    # Wilson's interval, written out.
    z, n, p = 1.959964, 400, 5 / 8
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found == pytest.approx((p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)), abs=2e-3)
    values = np.random.default_rng(1).normal(size=200)
    largest = results.estimate(float(np.median(values)), list(values), np.median)  # no mean: by resampling
    error = 1.2533 * values.std() / np.sqrt(200)  # of a median of normal values
    assert (largest.high - largest.low) / 2 == pytest.approx(1.96 * error, rel=0.25)
    assert results.estimate(0.5, [], None).low == -np.inf
    assert results.estimate(0.0, [("a", "b")] * 9, lambda items: 0.0).high == np.inf


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_tasks(tmp_path):
    """A folder with two tasks of one's own: --include=FOLDER, task names toy_mc and toy_gen."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": STORY.format(who, who), "choices": CHOICES[:3], "label": n % 3}
        for n, who in enumerate(("girl", "dog", "boy", "cat", "bird") * 3)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = f"dataset_path: json\ndataset_kwargs:\n  data_files: {folder}/rows.jsonl\ntest_split: train\n"
    shared += 'doc_to_text: "{{question}}"\nmetadata:\n  version: 3\n'
    (folder / "mc.yaml").write_text(
        f"task: toy_mc\noutput_type: multiple_choice\n{shared}doc_to_choice: choices\ndoc_to_target: label\n"
        "metric_list:\n  - metric: acc\n"
    )
    (folder / "gen.yaml").write_text(
        f"task: toy_gen\noutput_type: generate_until\n{shared}"
        'doc_to_target: "{{choices[label]}}"\ngeneration_kwargs:\n  until: ["."]\n  max_gen_toks: 12\n'
        "metric_list:\n  - metric: exact_match\n  - metric: bleu\n"
    )
    return folder


def run(capsys, *arguments, status=0):
    assert command.main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_the_command_gives_the_results_of_lm_evals_backend(
    stories, hugging_face, own_tasks, capsys, tmp_path, one_device
):
    from lm_eval import evaluator

    out = tmp_path / "out"
    printed = run(
        capsys, f"--model={stories}", f"--include={own_tasks}", "--tasks=toy_mc,toy_gen", f"--out={out}", "--limit=12"
    )
    assert "toy_mc" in printed and "stories260K" in printed and str(out / "lm_eval.json") in printed
    written = json.loads((out / "lm_eval.json").read_text())
    loaded = tasks.Tasks(["toy_mc", "toy_gen"], [str(own_tasks)])
    theirs = evaluator.evaluate(hugging_face, loaded.loaded, limit=12, bootstrap_iters=0)
    assert written.keys() == {"toy_mc", "toy_gen"}
    for task, metric in (("toy_mc", "acc"), ("toy_gen", "exact_match"), ("toy_gen", "bleu")):
        value = theirs["results"][task][f"{metric},none"]
        assert written[task]["estimates"][metric]["value"] == pytest.approx(float(value))
        assert written[task]["items"] == 12 and written[task]["version"] == 3
        assert written[task]["options"] == {"limit": 12}
    rows = [json.loads(line) for line in (out / "lm_eval.toy_gen.jsonl").read_text().splitlines()]
    expected = {row["doc_id"]: row["filtered_resps"] for row in theirs["samples"]["toy_gen"]}
    assert {row["doc_id"]: row["filtered_resps"] for row in rows} == expected


def test_unknown_tasks_folders_and_settings_are_sentences(stories, own_tasks, capsys, tmp_path, one_device):
    asked = f"--model={stories}", f"--include={own_tasks}"
    assert "--tasks=toy_mcc is no task of lm-eval" in run(capsys, *asked, "--tasks=toy_mcc", status=2)
    assert "is no folder of task files" in run(
        capsys, f"--model={stories}", "--include=/nowhere", "--tasks=toy_mc", status=2
    )
    assert "'x' is no NAME=VALUE" in run(capsys, *asked, "--tasks=toy_gen", "--gen_kwargs=x", status=2)
    assert "--tasks=, names no task" in run(capsys, *asked, "--tasks=,", status=2)
    assert "give either --workdir=DIR, a run, or --model" in run(capsys, "--tasks=toy_mc", status=2)
    (own_tasks / "rows.jsonl").unlink()
    said = run(capsys, *asked, "--tasks=toy_mc", status=2)
    assert "--tasks=toy_mc: the task or its data cannot be read" in said and "Traceback" not in said


@functools.cache
def finished_run(path):
    """A run of the toy's shape whose base model is finished, and random."""
    config = toy_config()
    config.mesh.update(data=-1, fsdp=1)
    with run_lib.start(config, path) as run:
        checkpoint.save_params(run.folder("pretrain") / "params", weights.init_params(run, "pretrain", run.model))
        run.workdir.mark_done("pretrain", 0.0)
        run.workdir.stage("sft")
    return path


def test_results_of_a_stage_lie_in_its_folder(own_tasks, capsys, tmp_path, one_device):
    path = finished_run(tmp_path / "run")
    (path / "pretrain" / "evaluation.json").write_text(json.dumps({"estimates": {"valid_loss": None}}))
    run(capsys, f"--workdir={path}", f"--include={own_tasks}", "--tasks=toy_mc")
    written = json.loads((path / "pretrain" / "lm_eval.json").read_text())
    estimates = json.loads((path / "pretrain" / "evaluation.json").read_text())["estimates"]
    assert estimates == {"valid_loss": None, "lm_eval/toy_mc/acc": written["toy_mc"]["estimates"]["acc"]}
    said = run(capsys, f"--workdir={path}", "--stage=sft", f"--include={own_tasks}", "--tasks=toy_mc", status=2)
    assert "--stage=sft is no finished policy" in said and "there is pretrain" in said
    said = run(capsys, f"--model={own_tasks}", "--tasks=no_such_task", status=2)
    assert f"--model={own_tasks} has no config.json" in said  # before the tasks and their data are looked for


@pytest.mark.parametrize("kind, template", [("qwen", released.CHATML), ("llama3", released.LLAMA3)])
def test_chats_are_written_and_read_as_by_lm_evals_backend(kind, template, tmp_path, one_device):
    """lm-eval's backend hands chats to transformers; the last message without a generation prompt is to be continued."""
    import transformers

    folder = released.save(tmp_path, kind, template)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    language_model = LanguageModel(tiny.llama(), None, tokenizer, tokenizer.chat_template(), tiny.mesh_of("1x1x1"), {})
    ours = backend_of(language_model)
    user, system = {"role": "user", "content": "What is 2 + 2?"}, {"role": "system", "content": "Be brief."}
    turns = [user, {"role": "assistant", "content": "4"}, user]
    for messages in ([user], turns, [system, *turns]):
        written = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.apply_chat_template(messages) == written
        starts = bool(theirs.bos_token) and written.startswith(theirs.bos_token)  # lm-eval adds no second BOS
        assert ours.encode(written) == theirs.encode(written, add_special_tokens=not starts)
        begun = [*messages, {"role": "assistant", "content": "The answer is"}]
        written = theirs.apply_chat_template(begun, tokenize=False, continue_final_message=True)
        assert ours.apply_chat_template(begun, add_generation_prompt=False) == written
