"""Instruction tuning on many tasks, and how well it carries over to tasks that were never trained on.

    python -m rlhf_jax.main --config=experiments/unseen_tasks.py --data=DIR --workdir=runs/unseen
    python -m rlhf_jax.sweep --config=experiments/unseen_tasks.py --config.data.files.dir=DIR --workdir=runs/unseen_tasks

The claim of Natural Instructions (Mishra et al. 2021), FLAN (Wei et al. 2021) and T0 (Sanh et al. 2021): the more tasks
a model is tuned on, the better it does on unseen ones. The sweep tunes on 2, 8 and 32 tasks, with as many demonstrations
and as many steps in all, so that their variety alone grows. Each seed draws its own unseen tasks, and its own
training tasks among the others; the 2 tasks are among the 8, and these among the 32. The answers to unseen tasks are
marked by exact match and ROUGE-L, and each task has the same weight.

`:natural_instructions` (the default) has 59 tasks by their field `task`, and `:t0` the 253 templates of T0's tasks by
`template`. Two templates of one dataset may lie in two splits, so T0's unseen templates are not all unseen tasks. DIR has
the files and the model's folder. Another model is named in MODEL's three fields, as in

    --config.sft.init=SmolLM2 --config.model.shape=SmolLM2 --config.tokenizer.path=SmolLM2

Hardware: 2 CPU cores. docs/unseen_tasks.md has what came out, and what it cost.
"""

from rlhf_jax.config import default_config
from rlhf_jax.report import spec
from rlhf_jax.runtime.errors import InputError

MODEL = "stories260K"  # the folder of the model, in DIR
DATA = {  # name: (file, the field that names a row's task)
    "natural_instructions": ("sft_natural_instructions.jsonl.xz", "task"),
    "t0": ("sft_t0.jsonl.xz", "template"),
}
ROWS = 256  # demonstrations of training, whatever the number of tasks
TASKS, TASK = (2, 8, 32), "data.files.training_groups"
SEEDS = range(3)


def get_config(which: str = "natural_instructions"):
    if which not in DATA:
        raise InputError(f"experiments/unseen_tasks.py:{which} is unknown; it can be {' or '.join(DATA)}")
    config = default_config()
    config.stages = ("sft",)
    config.tokenizer.path = config.model.shape = config.sft.init = MODEL
    config.model.update(dtype="float32", scan_layers=False, remat="none")
    config.prompt_length, config.completion_length = 160, 32
    config.too_long = "cut_left"  # the end of a prompt has the input and the last words of the instruction
    config.data.update(source="files", on_bad_row="skip")  # some of the real answers are empty
    file, field = DATA[which]
    config.data.files.update(demonstrations=file, group_field=field, test_share=0.2, valid_share=0.1)
    config.data.files.update(training_groups=32, training_group_rows=ROWS // 32)
    config.sft.update(epochs=4.0, batch_size=16, learning_rate=1e-3, dropout_rate=0.0, packed=True)
    config.evaluate.update(prompts=8, demonstrations=8)
    return config


def sweep(h):
    tasks = h.zipit([h.sweep(TASK, TASKS), h.sweep("data.files.training_group_rows", [ROWS // n for n in TASKS])])
    seeds = h.zipit([h.sweep("seed", SEEDS), h.sweep("data.files.split_seed", SEEDS)])
    return h.product([tasks, seeds])


MARKS = ("demonstrations/rouge_l", "demonstrations/exact_match")
FIGURES = tuple(spec.Curve(mark, "sft", TASK, scale="log", name=mark.partition("/")[2]) for mark in MARKS)
TABLES = (
    spec.Table(("sft",), (*MARKS, "history:valid/loss@last", "completion_length", "eos", "seconds"), name="marks"),
)
CLAIMS = tuple(
    spec.Claim(
        "Mishra et al. 2021; Wei et al. 2021, Fig. 6; Sanh et al. 2021, Fig. 6",
        f"The more tasks are trained on, the better the answers to unseen ones are, by {name}.",
        spec.Trend(mark, "sft", TASK, "rises"),
        figure=mark.partition("/")[2],
    )
    for mark, name in zip(MARKS, ("ROUGE-L", "exact match"))
)
