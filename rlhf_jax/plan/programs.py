"""The very programs of a config, for abstract inputs that lie as the real ones do.

They come from what the stages themselves call: `supervised.build` and `ppo_stage.build`. Nothing is computed
here, and no array is made.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import model, sharding
from rlhf_jax.data.batches import Batch, Comparisons, PackedComparisons
from rlhf_jax.plan import estimate
from rlhf_jax.plan.estimate import Work
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import dpo, pretrain, reward_model, supervised
from rlhf_jax.stages import ppo as ppo_stage

Groups = dict[str, Any]  # what an array is for -> a tree of abstract arrays


@dataclasses.dataclass(frozen=True)
class Data:
    """How much there is to train on, and the tokenizer's numbers: what a plan cannot know from the config alone."""

    demonstrations: int
    rankings: int
    completions: int  # K of a ranking, at most
    vocab_size: int
    end_ids: tuple[int, ...] = (0,)
    pad_id: int = 0

    def absent_ids(self, vocab_size: int) -> tuple[tuple[int, int], ...]:
        """As Tokenizer.absent_ids has it: those with which the model's vocabulary is padded."""
        return ((self.vocab_size, vocab_size),) if vocab_size > self.vocab_size else ()


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a stage.

    Attributes:
      lower: () -> jax.stages.Lowered.
      passed: its arguments, by what they are for.
      resident: what else lies on the devices meanwhile.
      cache: bytes per device of keys and values among its temporaries.
      work: of one run.
      runs: how often the stage runs it.
    """

    stage: str
    name: str
    lower: Callable[[], Any]
    passed: Groups
    resident: Groups
    work: Work
    runs: int
    cache: int = 0


def chosen_stages(config, names: str = "") -> list[str]:
    """Which stages to plan: those named, comma-separated, or the first of each kind, of PPO the last (with ptx).

    Raises:
      InputError: a name that is no stage of the config.
    """
    if names:
        listed = list(config.stages) if names == "all" else names.split(",")
        for name in listed:
            if name not in config.stages or config[name].get("kind") not in _STAGES:
                raise InputError(f"--stages names '{name}'; this config trains {', '.join(_trained(config))}")
        return listed
    first = {}
    for name in _trained(config):
        kind = config[name].kind
        if kind == "ppo" or kind not in first:
            first[kind] = name
    return list(first.values())


def _trained(config) -> list[str]:
    return [name for name in config.stages if config[name].kind in _STAGES]


def of_stage(run: Run, stage: str, data: Data) -> list[Program]:
    """The programs of a stage, in the order in which it runs them.

    Raises:
      InputError: sizes that do not fit one another or the mesh.
    """
    return _STAGES[run.config[stage].kind](run, stage, data)


def bytes_per_device(tree) -> int:
    """Of abstract arrays, as they lie; one without a sharding lies whole on every device."""

    def size(leaf):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


# ---------------------------------------------------------------------------- the stages


def _pretrain(run: Run, stage: str, data: Data) -> list[Program]:
    section = run.config[stage]
    batch = _batch(run, section.batch_size, section.length)
    return [_supervised(run, stage, pretrain.loss_of(run, stage), batch, section.steps)]


def _sft(run: Run, stage: str, data: Data) -> list[Program]:
    section = run.config[stage]
    shown = section.batch_size - round(section.pretrain_mix * section.batch_size)  # the rest is pretraining text
    batch = _batch(run, section.batch_size, _whole_length(run))  # packed ones have fewer rows: how many, the data say
    steps = max(1, math.ceil(section.epochs * data.demonstrations / shown))
    return [_supervised(run, stage, pretrain.loss_of(run, stage), batch, steps)]


def _reward_model(run: Run, stage: str, data: Data) -> list[Program]:
    section = run.config[stage]
    rows, _ = _rankings(run, stage, data)
    ranked = _abstract(run, (section.batch_size, data.completions), jnp.int32)
    valid = _abstract(run, ranked.shape, jnp.bool_)
    if section.packed:
        batch = PackedComparisons(**rows, ends=ranked, ranks=ranked, valid=valid)
    else:
        batch = Comparisons(**rows, ranks=ranked, valid=valid)
    steps = max(1, math.ceil(section.epochs * data.rankings / section.batch_size))
    return [_supervised(run, stage, reward_model.loss_of(run, stage), batch, steps, head="scalar")]


def _dpo(run: Run, stage: str, data: Data) -> list[Program]:
    section = run.config[stage]
    rows, (count, length) = _rankings(run, stage, data)
    of_rows = functools.partial(_abstract, run)
    ranked, number = (section.batch_size, data.completions), of_rows((section.batch_size,), jnp.float32)
    of_rankings = {
        "ranks": of_rows(ranked, jnp.int32),
        "valid": of_rows(ranked, jnp.bool_),
        "ref_logprobs": of_rows(ranked, jnp.float32),
        "beta": number,
        "label_smoothing": number,
    }
    if section.packed:
        batch = dpo.PackedPreferences(**rows, **of_rankings)
    else:
        batch = dpo.Preferences(**rows, starts=of_rows((section.batch_size,), jnp.int32), **of_rankings)
    loss_fn = dpo.loss_of(run, stage)
    shape, params = loss_fn.config, _params(run, loss_fn.config, "lm")
    reference = Program(
        stage,
        "reference",
        lambda: dpo.logprobs.lower(shape, params, batch),
        {"parameters": params, "batch": batch},
        {},
        estimate.forward(shape, count, length, count * length),
        math.ceil(data.rankings / section.batch_size),
    )
    steps = max(1, math.ceil(section.epochs * data.rankings / section.batch_size))
    return [reference, _supervised(run, stage, loss_fn, batch, steps)]


def _rankings(run: Run, stage: str, data: Data) -> tuple[dict, tuple[int, int]]:
    """The arrays of the sequences of a batch of rankings, and the size of all sequences together (number, length)."""
    section, k = run.config[stage], data.completions
    if section.packed:
        length = section.length or run.config.prompt_length + k * run.config.completion_length
        whole = _abstract(run, (section.batch_size, length), jnp.int32)
        return {"tokens": whole, "segment_ids": whole, "positions": whole}, whole.shape
    length = section.length or _whole_length(run)
    size = (section.batch_size, k, length)
    return {"tokens": _abstract(run, size, jnp.int32), "mask": _abstract(run, size, jnp.bool_)}, (k * size[0], length)


def _supervised(run: Run, stage: str, loss_fn, batch, steps: int, head: str = "lm") -> Program:
    shape = run.shape(stage)
    sharding.check_batch(batch, run.mesh)
    make, step = supervised.build(run, stage, loss_fn, steps, head)
    state = make.eval_shape(_params(run, shape, head))
    length = batch.tokens.shape[-1]
    rows = math.prod(batch.tokens.shape[:-1])
    return Program(
        stage,
        "train step",
        lambda: step.lower(state, batch, _scalar(), _key()),
        _groups(state) | {"batch": batch},
        {},
        estimate.training(shape, rows, length, rows * length if head == "lm" else 0),
        steps,
    )


def _ppo(run: Run, stage: str, data: Data) -> list[Program]:
    config, section = run.config, run.config[stage]
    policy, value, reward = run.model, ppo_stage.value_shape_of(run, stage), run.shape(section.reward)
    rows, prompt, completion = section.batch_size, config.prompt_length, config.completion_length
    make, programs = ppo_stage.build(run, stage)
    value_params = value and _params(run, value, "scalar")
    if section.advantage == "gae" and not value:  # a head on the policy's trunk
        value_params = model.scalar_head_of(_params(run, policy, "scalar"))
    state = make.eval_shape(_params(run, policy, "lm"), value_params, _scalar())
    ref, reward_params = _frozen(run, policy, "lm"), _frozen(run, reward, "scalar")
    frozen = {"frozen": (ref, reward_params)}
    prompts = _abstract(run, (rows, prompt), jnp.int32), _abstract(run, (rows, prompt), jnp.bool_)
    sharding.check_batch(prompts, run.mesh)
    copy = programs.sample.layout.eval_shape(state.language_model)
    sampled = copy, *prompts, _key(), _scalar()
    rollout = programs.sample.program.eval_shape(*sampled)
    coefs = jax.eval_shape(lambda: ppo_stage.coefficients(section))
    read = state.policy.params, state.value_params, ref, reward_params, rollout, state.kl_coef, coefs
    experience, _ = programs.score.eval_shape(*read)
    picked = jax.ShapeDtypeStruct((section.minibatch_size,), jnp.int32)
    minibatch = programs.take.eval_shape(experience, picked)
    sharding.check_batch(minibatch, run.mesh)
    ptx, ptx_work = None, Work()
    if section.ptx_coef and section.ptx_ratio:
        ptx_rows = ppo_stage.ptx_rows(section)
        ptx_length = section.ptx_length or _whole_length(run)
        ptx = _batch(run, ptx_rows, ptx_length)
        sharding.check_batch(ptx, run.mesh)
        ptx_work = estimate.training(policy, ptx_rows, ptx_length, ptx_rows * ptx_length)

    held = _groups(state.policy, "policy ") | (_groups(state.value, "value ") if value else {})
    length, part = prompt + completion, section.minibatch_size
    passed = {name: tree for name, tree in held.items() if name in ("policy parameters", "value parameters")}
    rest = {name: tree for name, tree in held.items() if name not in passed}
    once = {"policy parameters": passed["policy parameters"]}
    others = {name: tree for name, tree in held.items() if name not in once}
    updates = section.ppo_epochs * (rows // part)
    forward = lambda shape, logits: estimate.forward(shape, rows, length, logits)
    value_work = (forward(value, 0), estimate.training(value, part, length)) if value else (Work(), Work())
    return [
        Program(
            stage,
            "decode layout",
            lambda: programs.sample.layout.lower(state.language_model),
            once,
            others | frozen,
            Work(),
            section.iterations,
        ),
        Program(
            stage,
            "sample",
            lambda: programs.sample.program.lower(*sampled),
            {"decode copy": copy, "batch": prompts},
            held | frozen,
            estimate.sampling(policy, rows, prompt, completion),
            section.iterations,
            estimate.cache_bytes(policy, rows // section.sample_parts, length, run.mesh),
        ),
        Program(
            stage,
            "score",
            lambda: programs.score.lower(*read),
            passed | frozen | {"batch": rollout},
            rest,
            forward(policy, rows * completion)
            + forward(policy, rows * completion)
            + value_work[0]
            + forward(reward, 0),
            section.iterations,
        ),
        Program(
            stage,
            "update",
            lambda: programs.update.lower(state, minibatch, ptx, coefs),
            held | {"batch": (minibatch, ptx)},
            frozen | {"experience": experience},
            estimate.training(policy, part, length, part * completion) + value_work[1] + ptx_work,
            section.iterations * updates,
        ),
    ]


_STAGES = {"pretrain": _pretrain, "sft": _sft, "reward_model": _reward_model, "dpo": _dpo, "ppo": _ppo}


# ---------------------------------------------------------------------------- abstract inputs


def _whole_length(run: Run) -> int:
    return run.config.prompt_length + run.config.completion_length


def _groups(state, prefix: str = "") -> Groups:
    """A train state by what its parts are for."""
    groups = {f"{prefix}parameters": state.params, f"{prefix}optimizer": state.opt_state}
    return groups if state.ema_params is None else groups | {f"{prefix}average": state.ema_params}


def _params(run: Run, shape, head: str):
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, model.param_shapes(shape, head), run.param_shardings(shape, head))


def _frozen(run: Run, shape, head: str):
    """Parameters in the compute dtype."""
    cast = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(shape.dtype), sharding=leaf.sharding)
    return jax.tree.map(cast, _params(run, shape, head))


def _abstract(run: Run, shape: tuple[int, ...], dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_batch(run.mesh))


def _batch(run: Run, rows: int, length: int) -> Batch:
    whole = _abstract(run, (rows, length), jnp.int32)
    return Batch(whole, _abstract(run, (rows, length), jnp.float32), whole, whole)


def _scalar():
    return jax.ShapeDtypeStruct((), jnp.float32)


def _key():
    return jax.eval_shape(lambda: jax.random.key(0))
