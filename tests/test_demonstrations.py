"""Marks of answers to demonstrations of unseen tasks: those of a plain loop, with each task counted once."""

import gzip
import itertools
import json
import lzma
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments import unseen_tasks
from rlhf_jax import language_model, model, pipeline, statistics, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.records import Demonstration
from rlhf_jax.evaluate import answers, demonstrations, marks, policy
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, read_json_lines
from rlhf_jax.sweep import arms, grid
from rlhf_jax.sweep.trials import evaluation

pytest.importorskip("rouge_score")
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 30 tasks of 64 demonstrations in the form of Natural Instructions, divided as the experiment does."""
    path = tmp_path_factory.mktemp("data")
    rows = [
        {
            "task": f"task{task}",
            "instruction": f"Repeat word {task} of the input.",
            "input": f"{task * 31 + n} green {n} trees",
            "output": f"word {n % 3}",
            "references": [f"word {n % 3}", "a green tree"],
        }
        for task in range(30)
        for n in range(unseen_tasks.ROWS)
    ]
    rows += [row | {"task": "few"} for row in rows[1:9]]
    rows += [row | {"task": "long", "input": row["input"] * 200} for row in rows[: unseen_tasks.ROWS]]
    with lzma.open(path / "sft_natural_instructions.jsonl.xz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    unseen_tasks.divide(path)
    return path


def tiny(folder, **files):
    """Returns the experiment's config at the smallest size, with a model of random weights."""
    config = unseen_tasks.get_config()
    config.tokenizer.path = config.model.shape = config.sft.init = ""
    config.tokenizer.vocab_size = 300
    config.model.lora.rank = None
    config.model.update(num_layers=1, embed_dim=16, num_heads=2, max_length=64)
    config.prompt_length, config.completion_length = 48, 6
    config.too_long, config.data.template = "cut_left", ""
    config.data.files.update(dir=str(folder), training_groups=4, training_group_rows=4, **files)
    config.sft.update(epochs=1.0, batch_size=8)
    config.evaluate.update(prompts=4, batch_size=8, demonstrations=3)
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    pipeline.run_stages(tiny(folder), path)
    return path


def test_marks_are_those_of_a_plain_loop_over_unseen_tasks(run, folder):
    rows = read_json_lines(run / "sft/demonstrations.jsonl")
    tasks = sorted({row["task"] for row in rows})
    assert len(tasks) > 2 and len(rows) == 3 * len(tasks)
    means = {"exact_match": [], "rouge_l": []}
    for task in tasks:
        own = [row for row in rows if row["task"] == task]
        means["exact_match"].append(
            sum(max(marks.exact_match(row["given"], text) for text in row["references"]) for row in own) / len(own)
        )
        means["rouge_l"].append(
            sum(max(marks.rouge_l(row["given"], text) for text in row["references"]) for row in own) / len(own)
        )
    found = read_json(run / "sft/evaluation.json")["estimates"]
    for name, of_tasks in means.items():
        expected = statistics.share(of_tasks)  # tasks are the independent units
        assert found[f"demonstrations/{name}"] == pytest.approx(expected.to_json(), abs=1e-9)
    assert max(means["rouge_l"]) <= 1.0


def test_answers_are_the_likeliest_tokens(run):
    opened = language_model.open_model(str(run / "sft"))
    forward = jax.jit(lambda ids: _logits(opened.config, opened.params, ids))
    row = read_json_lines(run / "sft/demonstrations.jsonl")[-1]
    tokens, written = opened.tokenizer.encode_prompts([row["prompt"]])[0], []
    tokens = [tokens[0], *tokens[-47:]] if len(tokens) > 48 else tokens  # too_long="cut_left" keeps BOS
    for _ in range(6):  # without cache and padding before the prompt
        ids = np.zeros((1, 54), np.int32)
        ids[0, : len(tokens) + len(written)] = tokens + written
        written.append(int(np.argmax(forward(ids)[0, len(tokens) + len(written) - 1])))
        if written[-1] in opened.tokenizer.end_ids:
            break
    assert row["given"] == demonstrations.answer_of(opened.tokenizer.decode(written, continues=True), row["references"])


def _logits(config, params, ids):
    hidden = model.hidden_states(config, params, ids, np.arange(ids.shape[1])[None], jnp.ones_like(ids))
    return model.lm_logits(config, params, hidden)


def test_policies_that_answer_together_answer_as_alone(run):
    opened = run_lib.open_run(str(run))
    params = weights.load_params(opened, "sft")
    alone = answers.ask(opened, answers.EvaluationPrograms(opened), params, policy.questions(opened))
    together = evaluation.answers([opened, opened], "sft")
    assert len(alone.demonstrations) > 1
    for found, _ in together.values():
        for ours, theirs in zip(found.demonstrations, alone.demonstrations, strict=True):
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def rows_of(*marked):
    return [{"task": task, "exact_match": 0.0, "rouge_l": mark} for task, mark in marked]


def test_each_task_has_the_same_weight_and_its_rows_are_one_unit():
    found = demonstrations.summarize(rows_of(("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 0.0), ("c", 0.5)))
    assert found["demonstrations/rouge_l"] == pytest.approx(tuple(statistics.share([1.0, 0.0, 0.5])))
    many = demonstrations.summarize(rows_of(*[("a", 1.0)] * 300, *[("b", 0.0)] * 300))["demonstrations/rouge_l"]
    assert many.value == pytest.approx(0.5) and many.high - many.low > 0.9  # two tasks say little, whatever their rows


def test_rows_without_tasks_or_of_one_task_are_units_themselves():
    values = [0.0, 0.25, 1.0, 1.0]
    for task in (None, "a"):
        found = demonstrations.summarize(rows_of(*((task, value) for value in values)))
        assert found["demonstrations/rouge_l"] == pytest.approx(tuple(statistics.share(values)))


def test_policies_are_compared_on_the_same_tasks():
    def answered(*marked):
        return [row | {"prompt": str(n)} for n, row in enumerate(rows_of(*marked))]

    first = answered(("a", 1.0), ("a", 1.0), ("b", 0.6), ("c", 0.2), ("d", 0.4))
    second = answered(("a", 0.5), ("a", 0.7), ("b", 0.3), ("c", 0.1), ("d", 0.1))
    found = demonstrations.differences(first, second)["demonstrations/rouge_l"]
    tasks = [0.4, 0.3, 0.1, 0.3]  # the mean difference of each task
    assert found.value == pytest.approx(sum(tasks) / 4)
    mean = sum([*tasks, 1, -1]) / 6  # Bonett and Price 2012: two more units, one won and one lost
    half = scipy.stats.t.ppf(0.975, 5) * np.std([*tasks, 1, -1], ddof=1) / math.sqrt(6)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    with pytest.raises(InputError, match="^the two policies answered other demonstrations"):
        demonstrations.differences(first, second[::-1])


@pytest.mark.parametrize(
    "completion, references, answer",
    [
        (" Yes.\nAnd then more", ["yes"], "Yes."),
        ("\n\n Yes.\nmore", ["yes"], "Yes."),
        ("one\ntwo\nthree", ["1\n2", "1"], "one\ntwo"),
        ("subjective idealism<|endoftext|>", ["subjective idealism"], "subjective idealism"),
        ("", ["yes"], ""),
    ],
)
def test_an_answer_has_as_many_lines_as_its_longest_reference(completion, references, answer):
    assert demonstrations.answer_of(completion, references) == answer


def test_references_are_those_of_the_row_or_its_completion():
    def of(**row):
        return demonstrations.references_of(Demonstration("p", " done<|endoftext|>", row))

    assert of(references=["a ", "b"]) == ["a", "b"]
    assert of() == of(references=[]) == of(references=3) == ["done"]


def test_more_are_asked_of_a_task_with_the_same_first(run, folder, tmp_path):
    config = tiny(folder)
    config.evaluate.demonstrations = 1
    pipeline.run_stages(config, tmp_path / "run")
    few = {row["prompt"] for row in read_json_lines(tmp_path / "run/sft/demonstrations.jsonl")}
    assert few < {row["prompt"] for row in read_json_lines(run / "sft/demonstrations.jsonl")}


def test_none_are_asked_by_default_and_the_world_has_none(folder, tmp_path):
    config = tiny(folder)
    assert unseen_tasks.default_config().evaluate.demonstrations == 0
    config.data.source, config.data.world.test_prompts = "world", 8
    with pytest.raises(InputError, match="^evaluate.demonstrations needs data.source='files'"):
        pipeline.run_stages(config, tmp_path / "run")


def test_every_task_is_judged_by_one_seed_and_those_for_validation_by_none(folder):
    def tasks(seed, split):
        with gzip.open(folder / unseen_tasks.FOLDER / str(seed) / f"{split}.jsonl.gz", "rt") as file:
            return {json.loads(line)["task"] for line in file}

    judged = [tasks(seed, "test") for seed in unseen_tasks.SEEDS]
    valid = tasks(0, "valid")
    assert len(valid) == unseen_tasks.VALID
    assert sorted([*valid, *itertools.chain(*judged)]) == sorted(f"task{task}" for task in range(30))
    for seed, test in zip(unseen_tasks.SEEDS, judged):
        assert tasks(seed, "valid") == valid and not tasks(seed, "train") & (valid | test)
        assert len(tasks(seed, "train")) == max(unseen_tasks.TASKS)


def test_the_sweep_has_as_many_rows_for_few_tasks_as_for_many():
    trained = []
    for arm in arms.expand(unseen_tasks.get_config(), unseen_tasks.sweep(grid), "unseen_tasks.py"):
        files, section = arm.config.data.files, arm.config.sft
        assert files.training_groups * files.training_group_rows == unseen_tasks.ROWS
        assert files.split_seed == arm.config.seed and files.demonstrations.endswith(f"/{arm.config.seed}")
        if section.learning_rate:
            trained.append(files.training_groups)
        else:
            assert section.epochs * unseen_tasks.ROWS == section.batch_size  # one step, in which nothing is learned
    assert sorted(trained) == sorted([*unseen_tasks.TASKS] * len(unseen_tasks.SEEDS))
