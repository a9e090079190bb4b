"""The fields that all stages of a run share, and which stages a run has by default."""

from rlhf_jax.fields import forms
from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.model import MODEL
from rlhf_jax.fields.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FLAG,
    NOT_NEGATIVE,
    SEED,
    SHARE,
    SHARE_BELOW_ONE,
    SOME_TEXT,
    TEXT,
    OneOf,
    Several,
    Text,
    whole,
)

_AXES = Text("one or several of data, fsdp and tensor, separated by commas, or empty", forms.mesh_axes)


def _axis(default: str, axis: str) -> Field:
    """Returns the field that says how a logical axis of arrays is split."""
    return Field(default, _AXES, f"The mesh axes over which {axis} are split. Empty keeps them whole on every device.")


_SIZE = whole(1, also=-1)
_SOURCE = "name[@rows][*weight][:split][:theirs=ours;theirs=ours]"
_WEIGHTED = Text(f"entries {_SOURCE} separated by commas, with rows and weight above 0, or empty", forms.entries)
_FILES = Text(
    "entries name[@rows][:split][:theirs=ours;theirs=ours] separated by commas, with rows above 0 and without weight, "
    "or empty",
    forms.entries_without_weight,
)

WORLD = Section(
    "The embedded world: its seed, and how many examples are drawn from it. It is used if `data.source` is 'world'.",
    {
        "seed": Field(0, SEED, "The seed that the world's facts and examples are drawn from."),
        "documents": Field(30_000, COUNT, "The number of documents for pretraining."),
        "valid_documents": Field(400, COUNT, "The number of documents for validation."),
        "demonstrations": Field(800, COUNT, "The number of demonstrations for SFT."),
        "valid_demonstrations": Field(200, COUNT, "The number of demonstrations for validation."),
        "careless": Field(
            0.0, SHARE, "The share of the demonstrations whose writers are rude or ramble. 0 means none of them."
        ),
        "rm_prompts": Field(
            1000, COUNT, "The number of prompts whose completions are ranked to train the reward model."
        ),
        "ppo_prompts": Field(2000, COUNT, "The number of prompts that PPO trains on."),
        "valid_prompts": Field(
            200,
            COUNT,
            "The number of validation prompts. "
            "Reward models are validated on them, and SFT weights and prefixes are chosen by them.",
        ),
        "test_prompts": Field(512, COUNT, "The number of test prompts, on which policies are evaluated."),
        "test_kinds": Field(
            "known",
            OneOf("known", "unseen"),
            "The kinds of tasks of the test prompts: those of the other prompts, or 'unseen' ones in equal parts, which no "
            "stage but pretraining ever sees.",
            before="known",
        ),
    },
)

FILES = Section(
    "Your own files, used if `data.source` is 'files'. "
    "Their paths are relative to `dir`; docs/data.md explains the form in "
    "which they are given.",
    {
        "dir": Field("", TEXT, "The folder of the files. The flag --data sets it. Empty means the current folder."),
        "documents": Field("", _WEIGHTED, "The files of raw text, for pretraining and PPO-ptx."),
        "document_end": Field(
            "",
            Text("a regular expression that does not match the empty text, or empty", forms.expression),
            "What divides the documents of a .txt file. "
            "Empty means lines that are <|endoftext|>, or blank lines if there is no such line.",
        ),
        "demonstrations": Field("", _WEIGHTED, "The files of prompts with one answer each."),
        "rankings": Field("", _FILES, "The files of prompts with ranked completions, or with rated ones."),
        "rated_size": Field(
            8,
            whole(2),
            "The largest number of completions that one ranking has, if the completions were rated one by one. "
            "Such completions of one prompt are put together at random.",
        ),
        "rated_pairs": Field(
            "",
            Text("LOW<HIGH, such as 2<9, or empty", forms.score_limits),
            "The scores that make a pair of two completions that were rated one by one. "
            "With '2<9', one scored at least 9 is preferred to one scored at most 2. "
            "Empty makes rankings of `rated_size` instead.",
        ),
        "prompts": Field(
            "", _FILES, "The files of prompts alone. Empty means the prompts of the demonstrations and rankings."
        ),
        "group_field": Field(
            "group",
            TEXT,
            "The field of a row that names its group. "
            "Rows of one group never lie in two splits; a row without a group is grouped by its prompt. "
            "The paper groups by user, which is 'user' here (A.2).",
        ),
        "turns": Field(
            "last",
            OneOf("last", "all"),
            "The turns of the assistant that SFT learns, in demonstrations that are chats. 'last' learns the last one, "
            "for which the paper's labelers wrote a demonstration; the turns before it are its prompt. 'all' makes each "
            "turn a demonstration of its own, behind the turns before it. All turns of a chat lie in one split.",
        ),
        "training_groups": Field(
            0,
            COUNT_OR_NONE,
            "The number of groups that are trained on, drawn among those of the split train; the others are left out. "
            "The groups of a smaller number are among those of a larger one. 0 means all.",
        ),
        "training_group_rows": Field(
            0,
            COUNT_OR_NONE,
            "The largest number of rows of one group that are trained on. "
            "With `training_groups` it keeps the number of rows while that of groups grows. 0 sets no limit.",
        ),
        "split_seed": Field(
            0,
            SEED,
            "The seed by which groups and rows are placed in the splits, and by which `training_groups` and their rows "
            "are drawn.",
        ),
        "near_duplicates": Field(
            "together",
            OneOf("together", "drop", "ignore"),
            "What happens to prompts that share a long beginning. "
            "'together' keeps them in one split, 'drop' keeps only one of them (section 3.2), and 'ignore' does not "
            "look for them.",
        ),
        "common_prefix": Field(
            100,
            COUNT,
            "The length of the beginning, in characters, that two near duplicates share at least. "
            "The paper does not state it; data/duplicates.py has the exact rule.",
        ),
        "user_field": Field("user", SOME_TEXT, "The field of a row that names its user, for `per_user`."),
        "per_user": Field(
            0, COUNT_OR_NONE, "The largest number of prompts of one user. 0 sets no limit; the paper's is 200 (3.2)."
        ),
        "held_out_labelers": Field(
            "",
            Text(
                "names separated by commas, or a share above 0% and below 100% such as 20%, or empty",
                forms.share_or_names,
            ),
            "The labelers whose rankings are never trained on, by name or as a share of all labelers. "
            "Their rankings outside the training split make the split 'heldout'. Empty means nobody.",
        ),
        "splits": Field(
            "shares",
            OneOf("shares", "published"),
            "How rows come into the splits train, valid and test. "
            "'shares' draws them by `valid_share` and `test_share`; 'published' follows the rows' field `split`, and "
            "draws only where there is none.",
        ),
        "valid_share": Field(
            0.1, SHARE_BELOW_ONE, "The share of the prompts and documents that is for validation. 0 means none."
        ),
        "test_share": Field(
            0.1, SHARE_BELOW_ONE, "The share of the prompts and documents that is for testing. 0 means none."
        ),
    },
)

COMMON = Section(
    "What all stages share.",
    {
        "seed": Field(0, SEED, "The seed of everything random in the run."),
        "stages": Field(
            ("pretrain", "sft", "collect", "reward_model", "ppo", "ppo_ptx"),
            Several(SOME_TEXT, "names of sections with a `kind`, one or several, each once", least=1, distinct=True),
            "The stages to run, in this order.",
        ),
        "prompt_length": Field(
            1024,
            COUNT,
            "The length of the longest prompt, in tokens. The paper drops prompts over 1k tokens (App. C). "
            "None means the length that 95 % of the prompts of your files have at most.",
            of_data=True,
        ),
        "completion_length": Field(
            1024,
            COUNT,
            "The length of the longest completion, in tokens. The paper caps responses at 1k (App. C). "
            "None means the length that 95 % of the completions of your files have at most.",
            of_data=True,
        ),
        "too_long": Field(
            "drop",
            OneOf("drop", "cut_left"),
            "What happens to an example whose prompt is longer than `prompt_length`. "
            "'drop' leaves the example out; 'cut_left' cuts the prompt's beginning, but keeps its BOS token.",
        ),
        "long_completions": Field(
            "cut",
            OneOf("cut", "drop"),
            "What happens to a completion of the data that does not fit behind its prompt into `prompt_length` + "
            "`completion_length`. 'cut' cuts its end, and it then has no EOS; 'drop' leaves it out, with its example "
            "where nothing to learn is left.",
        ),
        "slots": Field(
            None,
            COUNT_OR_NONE,
            "The number of completions that are sampled at once, over all devices: when some have ended, the next prompts "
            "of the batch take their place. 0 means all completions of a batch. Fewer take less memory. On a CPU, None "
            "means 32 of a batch of 128 or more, and 128 of 512 or more. Elsewhere it means all, or as many as memory "
            "allows (docs/scaling.md). "
            "The completions do not depend on it, but for rounding.",
        ),
        "checkpoints_kept": Field(2, COUNT, "The number of newest checkpoints that each stage keeps."),
        "checkpoints_every": Field(
            0,
            COUNT_OR_NONE,
            "The interval of the checkpoints that are kept for good, in steps (in iterations for PPO). "
            "A checkpoint stays if its step is a multiple of this number. 0 keeps only `checkpoints_kept`.",
        ),
        "trackers": Field(
            (),
            Several(
                OneOf("wandb", "trackio", "tensorboard", "mlflow"),
                "one or several of wandb, trackio, tensorboard and mlflow, each once, or ()",
                distinct=True,
            ),
            "Where the run is shown while it trains, beside its own files; docs/watching.md. "
            "Nothing is sent to another machine unless the tracker's own environment variables ask for it.",
        ),
        "tracker_project": Field(
            "rlhf_jax", SOME_TEXT, "The project, or experiment, that the trackers show the run in."
        ),
        "platform": Field(
            "", OneOf("", "cpu", "gpu", "tpu"), "The kind of device to run on. Empty means the one that JAX finds."
        ),
        "mesh": Section(
            "The number of devices along each axis of the mesh. One axis may be -1, which takes the rest.",
            {
                "data": Field(
                    1,
                    _SIZE,
                    "The number of groups of devices that each have a full copy of the weights, and rows of their own. "
                    "-1 takes the rest of the devices.",
                ),
                "fsdp": Field(
                    -1,
                    _SIZE,
                    "The number of devices over which both the rows and the weights are split. "
                    "-1 takes the rest of the devices.",
                ),
                "tensor": Field(
                    1,
                    _SIZE,
                    "The number of devices over which heads, MLP and vocabulary are split. "
                    "-1 takes the rest of the devices.",
                ),
            },
        ),
        "sharding": Section(
            "The axes of the mesh over which each logical axis of the arrays is split.",
            {
                "batch": _axis("data,fsdp", "the rows of a batch"),
                "seq": _axis("", "the learned positions"),
                "layers": _axis("", "the layers"),
                "vocab": _axis("tensor", "the rows of the embedding and of the output layer"),
                "embed": _axis("fsdp", "the columns along the model's width"),
                "mlp": _axis("tensor", "the hidden units of the MLP"),
                "heads": _axis("tensor", "the attention heads"),
                "kv_heads": _axis("tensor", "the key-value heads"),
                "head_dim": _axis("", "the columns along a head's width"),
                "rank": _axis("", "the rank of the adapters"),
            },
        ),
        "model": MODEL,
        "tokenizer": Section(
            "The tokenizer, which is read from a file or trained on the corpus.",
            {
                "path": Field(
                    "",
                    TEXT,
                    "A tokenizer.json, or the folder that has one, relative to `data.files.dir`. "
                    "Empty means that a tokenizer is trained.",
                ),
                "vocab_size": Field(
                    1024,
                    whole(258),
                    "The number of tokens of a tokenizer that is trained: the 256 bytes, two special tokens, and "
                    "merges.",
                ),
            },
        ),
        "data": Section(
            "The corpus that the stages learn from.",
            {
                "source": Field(
                    "world", OneOf("world", "files"), "Where the corpus comes from: the embedded world, or your files."
                ),
                "template": Field(
                    "",
                    TEXT,
                    "The file of the template that makes a text of an instruction. "
                    "Empty means the default template, and 'chat' the chat template beside `tokenizer.path`.",
                ),
                "chat_date": Field(
                    "2024-07-26",
                    Text("a date such as 2024-07-26", forms.date, empty=False),
                    "The day that a chat template is told. It is fixed, so that batches do not depend on today's date.",
                ),
                "on_bad_row": Field(
                    "error",
                    OneOf("error", "skip"),
                    "What happens at a row that breaks its format. "
                    "'error' ends the command; 'skip' leaves the row out, and the report counts and lists such rows.",
                ),
                "world": WORLD,
                "files": FILES,
            },
        ),
        "evaluate": Section(
            "The evaluation of every policy on test prompts.",
            {
                "prompts": Field(256, COUNT, "The largest number of test prompts that are used."),
                "batch_size": Field(64, COUNT, "The number of prompts that are completed at once."),
                "temperature": Field(
                    1.0, NOT_NEGATIVE, "The sampling temperature. 0 takes the likeliest token each time."
                ),
                "skill_items": Field(
                    100, COUNT_OR_NONE, "The number of few-shot questions for each skill of the world. 0 asks none."
                ),
                "skill_prompt_length": Field(
                    96,
                    COUNT,
                    "The length of the longest few-shot prompt, in tokens. A longer one loses its first shots.",
                ),
                "demonstrations": Field(
                    0,
                    COUNT_OR_NONE,
                    "The number of demonstrations of each group of the split test (`data.files.group_field`) that every "
                    "policy answers, with the likeliest tokens. "
                    "The answers are marked by exact match and ROUGE-L. 0 asks none.",
                ),
                "skill_completion_length": Field(
                    12, COUNT, "The length of the longest answer to a few-shot question, in tokens."
                ),
                "document_rows": Field(
                    None,
                    COUNT_OR_NONE,
                    "The largest number of rows of held-out text on which the loss is measured. "
                    "They are spread evenly over the text. 0 uses all of it. "
                    "None means a tenth of the rows that the longest stage reads, from 64 to 1,024 of them; "
                    "give a number where runs that train for different times are compared.",
                ),
                "tasks": Field(
                    (),
                    Several(SOME_TEXT, "names of tasks, each once, or ()", distinct=True),
                    "The benchmarks that every policy is evaluated on: tasks, groups or tags of lm-eval, or task files. "
                    "`python -m rlhf_jax.evaluate --tasks=list` prints their names.",
                ),
                "task_folders": Field(
                    (),
                    Several(SOME_TEXT, "folders, each once, or ()", distinct=True),
                    "Folders with task files of your own. Those of experiments/evals are always there.",
                ),
                "task_data": Field(
                    "", TEXT, "The folder with the data of the tasks in experiments/evals. Empty means none."
                ),
                "task_download": Field(
                    False, FLAG, "Whether lm-eval may fetch the data of tasks from the Hugging Face hub."
                ),
                "task_limit": Field(0, COUNT_OR_NONE, "The number of questions of each task. 0 asks all of them."),
                "task_chat": Field(
                    False, FLAG, "Whether tasks are asked as turns of a chat, in the run's own chat template."
                ),
            },
        ),
    },
)
