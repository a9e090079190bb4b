"""Trains a judge: a language model on the verdicts of labelled answers, of which the best by held-out questions is kept."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import checkpoint, loop, model, optim, sharding, train
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.packing import PackedLoader
from rlhf_jax.evaluate.judge import form
from rlhf_jax.evaluate.judge.form import Kind
from rlhf_jax.evaluate.judge.labelled import Answer
from rlhf_jax.evaluate.judge.scoring import Judge
from rlhf_jax.language_model import LanguageModel
from rlhf_jax.runtime import hosts, keys
from rlhf_jax.runtime.files import read_if_there, read_json, write_json
from rlhf_jax.runtime.progress import Interrupt
from rlhf_jax.runtime.workdir import Workdir
from rlhf_jax.statistics import calibration
from rlhf_jax.token_loss import TokenLoss
from rlhf_jax.trackers import Trackers

STAGE = "judge"  # the folder in the work directory, and the name of the progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a judge is trained.

    Attributes:
        epochs: how often each answer is seen.
        batch_size: answers of an optimizer step.
        microbatches: parts in which the gradient of a step is computed.
        learning_rate: its peak; it is warmed up over a tenth of the steps, and falls to a tenth by a cosine.
        validate_epochs: epochs between two looks at the answers to choose by.
        checkpoint_every: steps between two checkpoints.
        seed: of the order of the answers.
    """

    epochs: float = 5.0
    batch_size: int = 32
    microbatches: int = 1
    learning_rate: float = 2e-5
    validate_epochs: float = 1.0
    checkpoint_every: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Home:
    """What the loop of training needs of a run (see loop.Trial), for a training outside of runs."""

    workdir: Workdir
    interrupt: Interrupt
    config: ConfigDict = dataclasses.field(
        default_factory=lambda: ConfigDict({"checkpoints_kept": 1, "checkpoints_every": 0})
    )
    trackers: Trackers = dataclasses.field(default_factory=Trackers)


def fit(
    language_model: LanguageModel,
    kind: Kind,
    parts: dict[str, list[Answer]],
    length: int,
    settings: Settings,
    home: Home,
) -> tuple[Judge, dict]:
    """Returns the judge with the best log-loss on the answers to choose by, and facts about its training.

    The parameters of `language_model` are given away: they become the first state of the training.

    Args:
        language_model: the model to start from, opened for training.
        kind: the kind of judge.
        parts: the answers to train on and to choose by (see labelled.divide).
        length: of a row, in tokens.
        settings: how it is trained.
        home: where its state is kept.

    Raises:
        Stopped: an interrupt was asked for; the state is kept.
        NonFinite: the loss or its gradient is not finite.
    """
    loader, total, report = _loader(language_model, kind, parts["train"], length, settings)
    make, step = _programs(language_model, settings, total)
    best = Best(home.workdir.stage(STAGE))

    def judge(params) -> Judge:
        return Judge(dataclasses.replace(language_model, params=params), kind, length)

    def validate(state, done):
        chosen_by = parts["choose"]
        probabilities = judge(state.params).probabilities([(one.question, one.answer) for one in chosen_by])
        labels = np.array([one.label for one in chosen_by])
        loss = calibration.log_loss(np.clip(probabilities, 1e-7, 1 - 1e-7), labels)
        best.offer(state.params, done, loss)
        accuracy = float(((probabilities > form.THRESHOLD) == labels).mean())
        return {"choose/log_loss": loss, "choose/accuracy": accuracy}

    def advance(state, number):
        batch = sharding.put_rows(functools.partial(loader.batch, number), loader.batch_size, language_model.mesh)
        key = keys.named_key(settings.seed, STAGE, number)
        return step(state, batch, jnp.float32(settings.learning_rate), key)

    trial = loop.Trial(
        home,
        STAGE,
        total,
        lambda number: loader.rows(number).tolist(),
        {"loss": "loss", "held-out": "choose/log_loss", "accuracy": "choose/accuracy"},
        validate,
        max(1, round(settings.validate_epochs * total / settings.epochs)),
    )
    loop.fit(trial, make(language_model.params), advance, checkpoint_every=settings.checkpoint_every)
    facts = {"steps": total, "packed": str(loader.report), "texts": str(report)} | best.facts()
    return judge(best.params(language_model)), facts


def _loader(language_model: LanguageModel, kind: Kind, answers: Sequence[Answer], length: int, settings: Settings):
    """Returns the loader of packed batches, the number of steps, and the report of lengths."""
    tokenizer, mesh = language_model.tokenizer, language_model.mesh
    texts = [kind.text(one.question, one.answer) for one in answers]
    examples, report = form.batch(texts, [one.label for one in answers], tokenizer, length)
    loader = Loader(examples, settings.batch_size, settings.seed, name=STAGE)
    total = loader.steps(settings.epochs)
    multiple = settings.microbatches * mesh.shape["data"] * mesh.shape["fsdp"]
    return PackedLoader(loader, examples, tokenizer.pad_id, total, multiple), total, report


def _programs(language_model: LanguageModel, settings: Settings, total: int):
    """Returns (function from parameters to a TrainState, train step), jitted with explicit shardings; both donate."""
    shape, mesh = language_model.config, language_model.mesh
    optimizer = optim.make_optimizer(optim.OptimizerConfig(max_grad_norm=1.0))
    make = functools.partial(train.init_state, optimizer=optimizer)
    state = jax.eval_shape(make, model.param_shapes(shape))
    places = train.state_shardings(state, optimizer, model.logical_axes(shape), mesh, language_model.rules)
    schedule = optim.Schedule("cosine", total, total // 10)
    step = jax.jit(
        train.make_train_step(TokenLoss(shape), optimizer, schedule, settings.microbatches),
        in_shardings=(places, sharding.over_batch(mesh), None, None),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return jax.jit(make, out_shardings=places, donate_argnums=0), step


class Best:
    """The weights of the best validation so far, in a folder."""

    def __init__(self, folder: pathlib.Path):
        self._params, self._record = folder / "params", folder / "best.json"

    def offer(self, params: dict, step: int, loss: float) -> None:
        """Keeps weights if their loss is the smallest; a resumed training that repeats a step changes nothing."""
        found = hosts.on_first(read_if_there, self._record)
        if found is None or loss < found["log_loss"]:
            checkpoint.save_params(self._params, params)
            hosts.on_first(write_json, self._record, {"step": step, "log_loss": loss})

    def facts(self) -> dict:
        """Returns the step of the weights that are kept, and their loss."""
        found = hosts.on_first(read_json, self._record)
        return {"kept_step": found["step"], "choose_log_loss": found["log_loss"]}

    def params(self, language_model: LanguageModel) -> dict:
        """Returns the weights that are kept, on the mesh."""
        shape, mesh = language_model.config, language_model.mesh
        shapes = model.param_shapes(shape)
        places = sharding.param_shardings(model.logical_axes(shape), shapes, mesh, language_model.rules)
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
        )
        return checkpoint.load_params(self._params, abstract)
