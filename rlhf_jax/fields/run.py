"""The table of fields, of a run: what all its stages share, and the stages that it has by default."""

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

_AXES = Text("axes of the mesh, comma-separated: data, fsdp, tensor; or empty", forms.mesh_axes)


def _axis(default, meaning):
    return Field(default, _AXES, meaning)


_SIZE = whole(1, also=-1)
_SOURCE = "name[@rows][*weight][:split][:theirs=ours;theirs=ours]"
_WEIGHTED = Text(f"comma-separated {_SOURCE}, with rows and weight above 0, or empty", forms.entries)
_FILES = Text(
    "comma-separated name[@rows][:split][:theirs=ours;theirs=ours], with rows above 0 and no weight, or empty",
    forms.entries_without_weight,
)

WORLD = Section(
    "The embedded world: how much of it is drawn.",
    {
        "seed": Field(0, SEED, "of the world"),
        "documents": Field(30_000, COUNT, "for pretraining"),
        "valid_documents": Field(400, COUNT, "to validate on"),
        "demonstrations": Field(800, COUNT, "for SFT"),
        "valid_demonstrations": Field(200, COUNT, "to validate on"),
        "careless": Field(0.0, SHARE, "share of the demonstrations that are rude or ramble, 0: none"),
        "rm_prompts": Field(1000, COUNT, "whose completions are ranked"),
        "ppo_prompts": Field(2000, COUNT, "of PPO"),
        "valid_prompts": Field(200, COUNT, "whose completions are ranked to validate on"),
        "test_prompts": Field(512, COUNT, "of the evaluation"),
    },
)

FILES = Section(
    f"Files of one's own. A file is given as {_SOURCE}, relative to `dir`; see docs/data.md.",
    {
        "dir": Field("", TEXT, "the folder of the files, which --data sets; empty: the current one"),
        "documents": Field("", _WEIGHTED, "raw text"),
        "document_end": Field(
            "",
            Text("a regular expression that does not match the empty text, or empty", forms.expression),
            "between documents of a .txt file; empty: see docs/data.md",
        ),
        "demonstrations": Field("", _WEIGHTED, "prompts with an answer"),
        "rankings": Field("", _FILES, "prompts with ranked completions, or rated ones"),
        "rated_size": Field(
            8, whole(2), "completions that are rated by themselves come together in rankings of so many"
        ),
        "rated_pairs": Field(
            "",
            Text("LOW<HIGH, such as 2<9, or empty", forms.score_limits),
            "or in pairs: '2<9' is one scored at least 9 over one scored at most 2",
        ),
        "prompts": Field("", _FILES, "prompts alone; empty: those of the demonstrations and rankings"),
        "group_field": Field(
            "group", TEXT, "rows that share its value never lie in two splits; 'user': as the paper (A.2)"
        ),
        "near_duplicates": Field(
            "together",
            OneOf("together", "drop", "ignore"),
            "of prompts: in one split; or one prompt of them stays (3.2)",
        ),
        "common_prefix": Field(100, COUNT, "characters that near duplicates share; unstated; see data/duplicates.py"),
        "user_field": Field("user", SOME_TEXT, "where rows say whose they are"),
        "per_user": Field(0, COUNT_OR_NONE, "prompts of a user at most, 0: no limit; 3.2: 200"),
        "held_out_labelers": Field(
            "",
            Text("names, comma-separated, or a share above 0 and below 100 as 20%, or empty", forms.share_or_names),
            "never in training; their other rows are 'heldout'",
        ),
        "splits": Field(
            "shares", OneOf("shares", "published"), "by shares, or by the rows' field `split`, where they have one"
        ),
        "valid_share": Field(0.1, SHARE_BELOW_ONE, "of the prompts and documents, 0: none"),
        "test_share": Field(0.1, SHARE_BELOW_ONE, "of the prompts and documents, 0: none"),
    },
)

COMMON = Section(
    "The run.",
    {
        "seed": Field(0, SEED, "of everything random"),
        "stages": Field(
            ("pretrain", "sft", "collect", "reward_model", "ppo", "ppo_ptx"),
            Several(SOME_TEXT, "names of sections with a `kind`, one or several, each once", least=1, distinct=True),
            "what is done, in order",
        ),
        "prompt_length": Field(1024, COUNT, "tokens; App. C: prompts over 1k tokens are dropped"),
        "completion_length": Field(1024, COUNT, "tokens; App. C: responses are capped at 1k"),
        "too_long": Field(
            "drop",
            OneOf("drop", "cut_left"),
            "what has a prompt over prompt_length; 'cut_left': the prompt loses its beginning (not BOS)",
        ),
        "checkpoints_kept": Field(2, COUNT, "the newest of each stage"),
        "checkpoints_every": Field(
            0, COUNT_OR_NONE, "and those of every so many steps (iterations of PPO), for good, 0: none"
        ),
        "tensorboard": Field(False, FLAG, "True: event files beside metrics.jsonl"),
        "platform": Field("", OneOf("", "cpu", "gpu", "tpu"), "what it runs on; empty: what JAX finds"),
        "mesh": Section(
            "How many devices lie along each axis; -1 takes the rest.",
            {
                "data": Field(1, _SIZE, "copies of the model, each with rows of its own, -1: the rest"),
                "fsdp": Field(-1, _SIZE, "rows, and the weights too, -1: the rest"),
                "tensor": Field(1, _SIZE, "heads, mlp and vocabulary, -1: the rest"),
            },
        ),
        "sharding": Section(
            "Logical axis of arrays -> axes of the mesh; empty: not sharded.",
            {
                "batch": _axis("data,fsdp", "rows"),
                "seq": _axis("", "places of a row"),
                "layers": _axis("", "layers"),
                "vocab": _axis("tensor", "the vocabulary"),
                "embed": _axis("fsdp", "the width"),
                "mlp": _axis("tensor", "the mlp's width"),
                "heads": _axis("tensor", "heads of attention"),
                "kv_heads": _axis("tensor", "key-value heads"),
                "head_dim": _axis("", "the width of a head"),
            },
        ),
        "model": MODEL,
        "tokenizer": Section(
            "Read, or trained on the corpus.",
            {
                "path": Field(
                    "", TEXT, "a tokenizer.json or its folder (relative to data.files.dir); empty: one is trained"
                ),
                "vocab_size": Field(
                    1024, whole(258), "tokens of one that is trained: all bytes, two special tokens, and merges"
                ),
            },
        ),
        "data": Section(
            "What is learned from.",
            {
                "source": Field("world", OneOf("world", "files"), "the embedded world, or files"),
                "template": Field(
                    "", TEXT, "a template file; empty: the default one; 'chat': the chat template of tokenizer.path"
                ),
                "chat_date": Field(
                    "2024-07-26",
                    Text("a date as 2024-07-26", forms.date, empty=False),
                    "what a chat template is told of the day: batches must not depend on it",
                ),
                "on_bad_row": Field("error", OneOf("error", "skip"), "'skip': counted and listed"),
                "world": WORLD,
                "files": FILES,
            },
        ),
        "evaluate": Section(
            "Of every policy, on test prompts.",
            {
                "prompts": Field(256, COUNT, "test prompts at most"),
                "batch_size": Field(64, COUNT, "prompts at once"),
                "temperature": Field(1.0, NOT_NEGATIVE, "as in rollouts; 0: the likeliest tokens"),
                "skill_items": Field(100, COUNT_OR_NONE, "few-shot items of each skill, 0: none"),
                "skill_prompt_length": Field(
                    96, COUNT, "tokens of a few-shot prompt; one that is longer loses its first shots"
                ),
                "skill_completion_length": Field(12, COUNT, "tokens of an answer"),
                "document_rows": Field(1024, COUNT_OR_NONE, "of held-out text at most, evenly spaced, 0: all there is"),
            },
        ),
    },
)
