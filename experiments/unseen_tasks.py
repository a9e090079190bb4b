"""Instruction tuning on more and more tasks, and how well it carries over to tasks that were never trained on.

The claim of Natural Instructions (Mishra et al. 2021), FLAN (Wei et al. 2021) and T0 (Sanh et al. 2021): the more tasks
a model is tuned on, the better it does on unseen ones. DIR holds the Hugging Face folder of the model, SmolLM2-135M-Instruct,
and the file of demonstrations. The first command keeps the short demonstrations, and sets some tasks apart for validation:

    python experiments/unseen_tasks.py DIR
    python -m rlhf_jax.main --config=experiments/unseen_tasks.py --data=DIR --workdir=runs/unseen
    python -m rlhf_jax.sweep --config=experiments/unseen_tasks.py --config.data.files.dir=DIR --workdir=runs/unseen_tasks

The sweep tunes on 1, 4 and 16 tasks, with as many demonstrations and as many steps in all, so that their variety alone
grows. Its last arms are the model as it was released: they learn at a rate of 0. Each seed has a third of the tasks as its
unseen ones, and draws its training tasks among the others; the 1 task is among the 4, and these among the 16. The tasks
for validation are the same in all seeds, and are never judged, so that learning rate and template may be chosen on them.
Answers to unseen tasks are marked by exact match and ROUGE-L, and each task has the same weight.

`python experiments/unseen_tasks.py DIR t0` takes T0's templates as tasks instead. Two templates of one dataset may lie in
two splits, so T0's unseen templates are not all unseen tasks.

Hardware: a CPU core. docs/unseen_tasks.md has what came out, and what it cost.
"""

import collections
import gzip
import json
import lzma
import pathlib
import sys

from rlhf_jax.config import default_config
from rlhf_jax.data.splits import place
from rlhf_jax.report import spec
from rlhf_jax.runtime.errors import InputError

MODEL = "SmolLM2-135M-Instruct"  # the folder of the model, in DIR
FOLDER = "unseen_tasks"  # of the divided demonstrations, in DIR
DATA = {  # name: (file, the field that names a row's task)
    "natural_instructions": ("sft_natural_instructions.jsonl.xz", "task"),
    "t0": ("sft_t0.jsonl.xz", "template"),
}
LONGEST_PROMPT, LONGEST_ANSWER = 1000, 60  # in characters
VALID = 6  # tasks for validation
ROWS, BATCH = 32, 4  # demonstrations of training, whatever the number of tasks; of a step
TASKS, TASK = (1, 4, 16), "data.files.training_groups"
RATE = 6e-4
SEEDS = range(3)


def get_config():
    config = default_config()
    config.stages = ("sft",)
    config.tokenizer.path = config.model.shape = config.sft.init = MODEL
    config.model.update(dtype="float32", remat="none", attention="xla", logits_chunk=0)
    config.model.lora.rank = 16  # a third of the work of whole weights is saved, and checkpoints are small
    config.prompt_length, config.completion_length = 288, 16
    config.data.update(source="files", template="chat")
    config.data.files.update(demonstrations=f"{FOLDER}/0", group_field="task", splits="published")
    config.data.files.update(training_groups=max(TASKS), training_group_rows=ROWS // max(TASKS))
    config.sft.update(epochs=1.0, batch_size=BATCH, learning_rate=RATE, dropout_rate=0.0, packed=True)
    config.sft.update(validate_rows=6, checkpoint_every=2)
    config.evaluate.update(prompts=1, batch_size=4, demonstrations=4)
    return config


def sweep(h):
    tasks = h.zipit([h.sweep(TASK, TASKS), h.sweep("data.files.training_group_rows", [ROWS // n for n in TASKS])])
    untrained = h.zipit([h.sweep("sft.learning_rate", [0.0]), h.sweep("sft.epochs", [BATCH / ROWS])])  # one step
    seed = h.zipit(
        [
            h.sweep("seed", SEEDS),
            h.sweep("data.files.split_seed", SEEDS),
            h.sweep("data.files.demonstrations", [f"{FOLDER}/{seed}" for seed in SEEDS]),
        ]
    )
    return h.product([seed, h.chain([tasks, untrained])])


def divide(folder: pathlib.Path, which: str = "natural_instructions") -> None:
    """Writes folder/FOLDER/SEED/{train,valid,test}.jsonl.gz: the tasks of each split, drawn by a hash.

    Each seed has other tasks in test, so that every task but those for validation is judged once.

    Long demonstrations are left out, because no prompt is cut and each costs as much as the longest. So are tasks that
    have fewer than ROWS short ones, because the smallest arm trains on one task.
    """
    if which not in DATA:
        raise InputError(f"{which} is no data of experiments/unseen_tasks.py; give {' or '.join(DATA)}")
    file, field = DATA[which]
    tasks = collections.defaultdict(list)
    with lzma.open(folder / file, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if _short(row):
                tasks[row[field]].append(row | {"task": row[field]})
    names = sorted((name for name, rows in tasks.items() if len(rows) >= ROWS), key=place)
    valid, others = names[:VALID], names[VALID:]
    for seed in SEEDS:
        test = others[seed :: len(SEEDS)]
        target = folder / FOLDER / str(seed)
        target.mkdir(parents=True, exist_ok=True)
        train = [name for name in others if name not in test]
        for split, own in (("train", train), ("valid", valid), ("test", test)):
            with gzip.open(target / f"{split}.jsonl.gz", "wt", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for name in own for row in tasks[name])
        print(f"{target}: {len(train)} tasks to train on, {len(valid)} for validation, {len(test)} to judge by")


def _short(row: dict) -> bool:
    """Whether a demonstration has an answer, and both its prompt and its answer are short."""
    prompt = row["prompt"] if "prompt" in row else row["instruction"] + row["input"]
    answer = row["completion"] if "completion" in row else row["output"]
    return len(prompt) <= LONGEST_PROMPT and 0 < len(answer.strip()) <= len(answer) <= LONGEST_ANSWER


MARKS = ("demonstrations/rouge_l", "demonstrations/exact_match")
TRAINED = {"sft.learning_rate": RATE}
FIGURES = tuple(
    spec.Curve(mark, "sft", TASK, where=TRAINED, scale="log", name=mark.partition("/")[2]) for mark in MARKS
)
TABLES = (
    spec.Table(("sft",), (*MARKS, "history:valid/loss@last", "completion_length", "eos", "seconds"), name="marks"),
)
CLAIMS = tuple(
    spec.Claim(
        "Mishra et al. 2021; Wei et al. 2021, Fig. 6; Sanh et al. 2021, Fig. 6",
        f"{text}, by {name}.",
        rule,
        figure=mark.partition("/")[2],
    )
    for mark, name in zip(MARKS, ("ROUGE-L", "exact match"))
    for text, rule in (
        (
            "The more tasks are trained on, the better the answers to unseen ones are",
            spec.Trend(mark, "sft", TASK, "rises", TRAINED),
        ),
        (
            f"Tuning on {max(TASKS)} tasks makes the answers to unseen ones better",
            spec.Greater(
                spec.Pick("sft", {TASK: max(TASKS)} | TRAINED),
                spec.Pick("sft", {"sft.learning_rate": 0.0}, label="the released model"),
                mark,
            ),
        ),
    )
)


if __name__ == "__main__":
    divide(pathlib.Path(sys.argv[1]), *sys.argv[2:])
