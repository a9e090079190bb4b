"""Step 1: supervised fine-tuning on demonstrations; the loss is on completion tokens alone.

InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.1; the optional pretraining mix is the
"PPO init" of C.3.
"""

import functools

import jax
import numpy as np

from rlhf_jax import checkpoint
from rlhf_jax.data.batches import Batch, batch_demonstrations
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.mixture import build
from rlhf_jax.data.packing import PackedLoader, pack_all
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, read_json, write_json
from rlhf_jax.stages import supervised
from rlhf_jax.stages.pretrain import loss_of, mean_loss


class MixedLoader:
    """Batches of demonstrations of which some rows are pretraining text instead.

    The token mean is over the whole batch, so the share holds for rows, not for the loss.
    """

    def __init__(self, demonstrations: Loader | PackedLoader, documents: Loader):
        self._demonstrations, self._documents = demonstrations, documents
        self.batch_size = demonstrations.batch_size + documents.batch_size

    def batch(self, step: int, places: np.ndarray | None = None) -> Batch:
        """Demonstrations first, then documents; only these places of the batch if any are named (see Loader)."""
        places = np.arange(self.batch_size) if places is None else places
        own = self._demonstrations.batch_size
        batch = self._demonstrations.batch(step, places[places < own])
        documents = self._documents.batch(step, places[places >= own] - own)
        return jax.tree.map(lambda *rows: np.concatenate(rows), batch, documents)

    def rows(self, step: int) -> np.ndarray:
        """Which demonstrations are in the batch of a step."""
        return self._demonstrations.rows(step)


def check(run: Run, stage: str) -> None:
    """Raises InputError for what the stage needs and there is not, or sizes that do not fit; computes nothing."""
    section = run.config[stage]
    if section.select == "reward" and not section.reward:
        raise InputError(f"{stage}.select='reward' needs {stage}.reward: an earlier stage, or a finished run")
    supervised.check(run, stage)
    mixed = round(section.pretrain_mix * section.batch_size)
    if mixed == section.batch_size:
        raise InputError(
            f"{stage}.pretrain_mix={section.pretrain_mix} leaves no demonstration of {stage}.batch_size={mixed}"
        )
    rows = run.need(stage, "demonstrations", "train")
    supervised.check_warmup(run, stage, len(rows), section.batch_size - mixed)
    run.need(stage, "demonstrations", "valid")
    if mixed:
        run.need(stage, "documents", "train")
    if section.select == "reward":
        run.need(stage, "prompts", "valid")


def run_stage(run: Run, stage: str) -> None:
    """Fine-tunes config[stage]; keeps the weights of the best validation."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.Training:
    """What run_stage trains, and how it ends."""
    check(run, stage)
    section = run.config[stage]
    length = run.config.prompt_length + run.config.completion_length
    batch = functools.partial(
        batch_demonstrations,
        tokenizer=run.tokenizer,
        length=length,
        prompt_length=run.config.prompt_length,
        too_long=run.config.too_long,
    )
    examples, report, mixture = build(run.corpus.mixed("demonstrations", "train"), batch)
    held_out, _ = batch(run.corpus.demonstrations("valid"))
    run.report_data(stage, "demonstrations", report)
    mixed = round(section.pretrain_mix * section.batch_size)  # rows of a batch
    loader = Loader(examples, section.batch_size - mixed, run.seed_of(stage), name=stage, mixture=mixture)
    total, validate_every = loader.steps(section.epochs), loader.steps(section.validate_epochs)
    run.report_epochs(stage, "demonstrations", mixture, total * loader.batch_size)
    if section.packed:
        multiple = section.microbatches * run.mesh.shape["data"] * run.mesh.shape["fsdp"]
        loader = PackedLoader(loader, examples, run.tokenizer.pad_id, total, multiple, others=mixed)
        run.report_packing(stage, loader.report)
        held_out = pack_all(held_out, run.tokenizer.pad_id)
    if mixed:
        documents, _, mixture = run.packed_documents("train", length)
        run.report_epochs(stage, "documents", mixture, total * mixed)
        documents = Loader(documents, mixed, run.seed_of(stage), name=f"{stage}/mix", mixture=mixture)
        loader = MixedLoader(loader, documents)

    selection = Selection(run, stage)

    def validate(state, done):
        loss = mean_loss(run, stage, state.params, held_out, section.batch_size)
        return {"valid/loss": loss, **selection.offer(state.params, done, loss)}

    def finish(_):
        chosen = selection.chosen()
        print(
            f"{stage}: the weights of step {chosen['step']} are kept, validation {chosen['by']} {chosen['value']:.4g}"
        )

    return supervised.Training(
        run,
        stage,
        functools.partial(run.start_params, stage),
        loss_of(run, stage),
        loader,
        total,
        finish,
        live={"loss": "loss", "held-out": "valid/loss"},
        validate=validate,
        validate_every=validate_every,
    )


_SELECTED = ("step", "by", "value", "before")  # of selection.json


class Selection:
    """Keeps the weights of the best validation in the stage's output folder.

    The paper chooses SFT models by reward score on validation prompts (C.1): it predicts people's
    preferences better than the loss. That needs a reward model, of an earlier stage or of a finished run.
    """

    def __init__(self, run: Run, stage: str):
        section = run.config[stage]
        self._run, self._by = run, section.select
        self._params = run.folder(stage) / "params"
        self._record = run.folder(stage) / "selection.json"
        self._reward = None
        if self._by == "reward":
            from rlhf_jax.stages.reward_model import ValidationReward

            self._reward = ValidationReward(run, section.reward)

    def offer(self, params: dict, step: int, loss: float) -> dict[str, float]:
        """Compares weights with the best so far; returns metrics to log."""
        metrics = {} if self._reward is None else {"valid/score": self._reward(params)}
        value = loss if self._by == "loss" else metrics["valid/score"]
        best = hosts.on_first(read_if_there, self._record, dict, _SELECTED)
        if best and best["step"] >= step:  # from a run that went further before it was resumed
            best = best["before"]
        better = best is None or (value < best["value"] if self._by == "loss" else value > best["value"])
        if better:
            checkpoint.save_params(self._params, params)
            hosts.on_first(write_json, self._record, {"step": step, "by": self._by, "value": value, "before": best})
        return metrics

    def chosen(self) -> dict:
        return hosts.on_first(read_json, self._record, dict, _SELECTED)
