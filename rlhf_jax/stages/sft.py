"""Step 1: supervised fine-tuning on demonstrations; the loss is on completion tokens, unless `loss_on` says otherwise.

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.1. The optional pretraining mix is the "PPO init"
of C.3.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from rlhf_jax import abstract, inputs, weights
from rlhf_jax.data import packing
from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.mixture import Source, build
from rlhf_jax.data.packing import PackedLoader, pack_all
from rlhf_jax.data.text_batches import batch_demonstrations
from rlhf_jax.evaluate import policy
from rlhf_jax.evaluate.scorer import ValidationReward
from rlhf_jax.fields.field import Field, kind
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, FLAG, POSITIVE, SHARE_BELOW_ONE, OneOf
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.rewards import REWARD_OR_NONE
from rlhf_jax.fields.training import SFT_RATES, learning_rate, trained
from rlhf_jax.model.attention import SEGMENTS
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.selection import Selection
from rlhf_jax.stages import supervised
from rlhf_jax.stages.pretrain import loss_of, mean_loss
from rlhf_jax.world import instructions

FIELDS = trained(
    "Step 1: supervised fine-tuning on demonstrations.",
    kind=kind("sft"),
    init="pretrain",
    epochs=Field(16.0, POSITIVE, "The number of passes over the demonstrations (C.1)."),
    batch_size=Field(32, COUNT, "The number of demonstrations of a step. C.1 has 32, and 8 at 175B."),
    learning_rate=learning_rate(9.65e-6, SFT_RATES, "C.1 has 9.65e-6 at 1.3B and 6B, and 5.03e-6 at 175B."),
    dropout_rate=Field(
        0.2, SHARE_BELOW_ONE, "The share of the residual branches' outputs that is dropped (C.1). 0 means none."
    ),
    loss_on=Field(
        "completion",
        OneOf("completion", "sequence", "unprompted"),
        "The tokens that are learned: those of the 'completion' alone, or of the whole 'sequence' with its prompt. The "
        "paper does not state it; Huang et al. 2024 learn the sequence. "
        "'unprompted' is there to compare: it learns completions that have no prompt before them.",
    ),
    kinds=Field(
        0,
        COUNT_OR_NONE,
        "The number of kinds of the embedded world's tasks that are learned, in equal parts, and with as many demonstrations in "
        "all. The seed draws them; those of a smaller number are among those of a larger one. "
        "0 means all of them, in the proportions of Table 1.",
        before=0,
    ),
    packed=Field(
        False,
        FLAG,
        "Whether several demonstrations share a row. A batch then has the same demonstrations in fewer rows.",
    ),
    pretrain_mix=Field(
        0.0,
        SHARE_BELOW_ONE,
        "The share of a batch's rows that is pretraining text. 0 means none; the 'PPO init' of C.3 has 0.1.",
    ),
    validate_epochs=Field(
        1.0, POSITIVE, "The number of epochs between two validations. The weights of the best validation are kept."
    ),
    validate_rows=Field(
        None,
        COUNT_OR_NONE,
        "The largest number of held-out demonstrations whose loss a validation measures. They are spread evenly over the "
        "split. 0 uses all of them. None means half of those that are trained on between two validations, and at least "
        "64.",
    ),
    select=Field(
        "loss",
        OneOf("loss", "reward"),
        "What the best validation is chosen by: its loss, or the mean score of completions as in the paper (C.1).",
    ),
    reward=Field(
        "",
        REWARD_OR_NONE,
        "The reward model that scores them if `select` is 'reward': an earlier stage, the work directory of a finished "
        "run, or a reward function, module:function.",
    ),
)


class MixedLoader:
    """Batches of demonstrations in which some rows are pretraining text instead.

    `pretrain_mix` is a share of rows and not of the loss, because the loss is the token mean over the whole batch.
    """

    def __init__(self, demonstrations: Loader | PackedLoader, documents: Loader):
        self._demonstrations, self._documents = demonstrations, documents
        self.batch_size = demonstrations.batch_size + documents.batch_size

    def batch(self, step: int, places: np.ndarray | None = None) -> Batch:
        """Returns the batch of a step, demonstrations first, then documents.

        Args:
          step: the optimizer step.
          places: ascending places of the batch to return; None: all (see Loader).
        """
        places = np.arange(self.batch_size) if places is None else places
        own = self._demonstrations.batch_size
        batch = self._demonstrations.batch(step, places[places < own])
        documents = self._documents.batch(step, places[places >= own] - own)
        return jax.tree.map(lambda *rows: np.concatenate(rows), batch, documents)

    def rows(self, step: int) -> np.ndarray:
        """Returns which demonstrations are in the batch of a step."""
        return self._demonstrations.rows(step)


def check(run: Run, stage: str) -> None:
    """Raises InputError if data that the stage needs are missing, or sizes do not fit; computes nothing."""
    section = run.config[stage]
    if section.select == "reward" and not section.reward:
        raise InputError(f"{stage}.select='reward' needs {stage}.reward: an earlier stage, or a finished run")
    if not section.packed:  # packed batches need no check: their number of rows is rounded up to one that divides
        supervised.check(run, stage)
    supervised.check_whole_length(run, stage)
    mixed = round(section.pretrain_mix * section.batch_size)
    if mixed == section.batch_size:
        raise InputError(
            f"{stage}.pretrain_mix={section.pretrain_mix} leaves no demonstration in a batch of {stage}.batch_size={mixed}; "
            "lower it"
        )
    rows = inputs.need(run, stage, "demonstrations", "train")
    known = len(instructions.kinds_of("train"))
    if section.kinds and (run.config.data.source != "world" or section.kinds > known):
        raise InputError(
            f"{stage}.kinds={section.kinds} must be at most {known}, the kinds of the embedded world; your files have "
            "data.files.training_groups instead"
        )
    supervised.check_warmup(run, stage, len(rows), section.batch_size - mixed)
    inputs.need(run, stage, "demonstrations", "valid")
    if mixed:
        inputs.need(run, stage, "documents", "train")
    if section.select == "reward":
        inputs.need(run, stage, "prompts", "valid")


def run_stage(run: Run, stage: str) -> None:
    """Fine-tunes config[stage], and keeps the weights of the best validation."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.SupervisedTraining:
    """Returns what run_stage trains, with its validation and its end."""
    check(run, stage)
    section = run.config[stage]
    length = run.config.prompt_length + run.config.completion_length
    batch = functools.partial(
        batch_demonstrations,
        tokenizer=run.tokenizer,
        length=length,
        prompt_length=run.config.prompt_length,
        too_long=run.config.too_long,
        prompt_targets=section.loss_on == "sequence",
        long_completions=run.config.long_completions,
    )
    if section.kinds:
        rows = run.corpus.demonstrations_of_kinds(section.kinds, run.seed_of(stage))
        sources = [Source("demonstrations", None, rows)]
    else:
        sources = run.corpus.mixed("demonstrations", "train")
    examples, report, mixture = build(sources, _unprompted(batch) if section.loss_on == "unprompted" else batch)
    held_out, _ = batch(run.corpus.demonstrations("valid"))
    inputs.report_data(run, stage, "demonstrations", report)
    mixed = round(section.pretrain_mix * section.batch_size)  # rows of pretraining text in a batch
    loader = Loader(examples, section.batch_size - mixed, run.seed_of(stage), name=stage, mixture=mixture)
    total, validate_every = loader.steps(section.epochs), loader.steps(section.validate_epochs)
    between = min(total, validate_every) * loader.batch_size
    held_out = inputs.spread(
        held_out, max(64, between // 2) if section.validate_rows is None else section.validate_rows
    )
    inputs.report_epochs(run, stage, "demonstrations", mixture, total * loader.batch_size)
    segments = packing.segments(examples)
    if section.packed:
        multiple = run.parts(stage)["microbatches"] * run.mesh.shape["data"] * run.mesh.shape["fsdp"]
        loader = PackedLoader(loader, examples, run.tokenizer.pad_id, total, multiple, others=mixed)
        inputs.report_packing(run, stage, loader.report)
        segments = loader.segments
        held_out = pack_all(held_out, run.tokenizer.pad_id)
    if mixed:
        documents, _, mixture = inputs.packed_documents(run, "train", length)
        inputs.report_epochs(run, stage, "documents", mixture, total * mixed)
        segments = max(segments, packing.segments(documents))
        documents = Loader(documents, mixed, run.seed_of(stage), name=f"{stage}/mix", mixture=mixture)
        loader = MixedLoader(loader, documents)

    selection = Selection(run, stage, section.select, highest=section.select == "reward")
    reward = ValidationReward(run, section.reward) if section.select == "reward" else None

    def validate(state, done):
        metrics = {"valid/loss": mean_loss(run, stage, state.params, held_out, section.batch_size)}
        if reward:
            metrics["valid/score"] = reward(state.params)
        selection.offer(state.params, done, metrics["valid/score" if reward else "valid/loss"])
        return metrics

    def finish(_):
        chosen = selection.chosen()
        print(
            f"{stage}: the weights of step {chosen['step']} are kept; validation {chosen['by']} {chosen['value']:.4g}"
        )

    return supervised.SupervisedTraining(
        run,
        stage,
        functools.partial(weights.start_params, run, stage),
        loss_of(run, stage, segments),
        loader,
        total,
        finish,
        live={"loss": "loss", "held-out": "valid/loss"},
        validate=validate,
        validate_every=validate_every,
    )


def _unprompted(batch: Callable) -> Callable:
    """Returns a builder of batches that leaves the prompts of its demonstrations out."""
    return lambda rows: batch([dataclasses.replace(row, prompt="", earlier=()) for row in rows])


def programs_of(run: Run, stage: str, data: abstract.Data) -> list[abstract.Program]:
    """Returns the train step, for abstract inputs.

    It is that of batches without packing: packed batches have fewer rows, but their number depends on the data.
    """
    section = run.config[stage]
    demonstrations = section.batch_size - round(section.pretrain_mix * section.batch_size)
    batch = abstract.batch(run, section.batch_size, run.whole_length)
    steps = max(1, math.ceil(section.epochs * data.demonstrations / demonstrations))
    several = section.packed or demonstrations < section.batch_size
    loss_fn = loss_of(run, stage, SEGMENTS if several else 1)
    return [supervised.train_program(run, stage, loss_fn, batch, steps)]


register(
    Stage(
        "sft",
        FIELDS,
        check,
        run_stage,
        gives="policy",
        label="SFT",
        evaluate=policy.evaluate_policy,
        judged=True,
        reference=True,
        rows_read=lambda run, stage: run.config[stage].epochs * len(run.corpus.demonstrations("train")),
        training=training_of,
        programs=programs_of,
        paper_compute=4.9,  # InstructGPT, section 5.1
        loss_unit="nats per completion token",
        reads_text=True,
    )
)
