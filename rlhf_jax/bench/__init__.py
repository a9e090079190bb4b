"""A benchmark of the programs: SFT step, reward model step, sampling, PPO iteration, sweeps, checkpoints and loader.

    python -m rlhf_jax.bench --config=experiments/bench.py:tiny

These are the programs that the stages run, on random weights and tokens. Each work runs in a separate process, so that
its peak memory can be measured, and prints one JSON line. If the loader and steps were measured, another line compares
the loader's rows/s with the rows/s that the steps consume.
"""

import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import checkpoint, generate, model, optim, ppo, sharding, train
from rlhf_jax.bench import fields, workload
from rlhf_jax.bench.sweeps import gain_at_once, ppo_trials, sweep_arms
from rlhf_jax.bench.workload import Workload, rounded, timed
from rlhf_jax.data import loader as loader_lib
from rlhf_jax.data import packing, ranking_batches, text_batches
from rlhf_jax.data.batches import Batch, Comparisons, Prompts
from rlhf_jax.data.records import Demonstration, Document, Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields.checks import check_values
from rlhf_jax.stages import pretrain, reward_model


def sft_step(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of an SFT step: forward, backward and AdamW on a batch of rows as long as the context."""
    shape = config.batch_size, config.model.max_length
    segments = np.ones(shape, np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    batch = Batch(workload.tokens_of(config, shape), (positions > 0).astype(np.float32), segments, positions)
    loss_fn = functools.partial(pretrain.token_loss, workload.model_of(config))
    run = _training(loss_fn, model.init_params(workload.model_of(config), jax.random.key(0)), batch)
    return Workload(run, batch.tokens.size, {"sequences": shape[0], "length": shape[1]})


def saving(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of the SFT steps between two checkpoints, with and without the writing of a checkpoint.

    Its parts are "steps", the steps alone; "steps_and_save", the steps while a checkpoint is written; and "blocked",
    the time that the first of these steps waits until the arrays of the checkpoint are copied.
    """
    step = sft_step(config)
    # The state that is saved is as large as SFT's: float32 weights and both moments.
    params = model.init_params(workload.model_of(config), jax.random.key(0))
    state = jax.block_until_ready(train.init_state(params, optim.make_optimizer(optim.OptimizerConfig())))
    folder = tempfile.TemporaryDirectory(prefix="rlhf_jax_bench_")
    checkpointer = checkpoint.Checkpointer(folder.name, keep=1)
    numbers = itertools.count(1)

    def steps():
        for _ in range(config.checkpoint_every):
            step.run()

    def save_and_steps():
        _, blocked = timed("blocked", checkpointer.save, next(numbers), state)
        steps()
        checkpointer.wait()
        return blocked

    def run():
        _, alone = timed("steps", steps)
        blocked, both = timed("steps_and_save", save_and_steps)
        return alone | both | blocked

    run.folder = folder  # keeps the temporary folder as long as the work exists
    return Workload(run, 2 * config.checkpoint_every * step.tokens, step.shape | {"steps": config.checkpoint_every})


def reward_step(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of a reward model step: forward, backward and AdamW on a batch of pairs."""
    shape = config.batch_size, 2, config.model.max_length
    ranks = np.broadcast_to(np.array([1, 2], np.int32), shape[:2])
    batch = Comparisons(workload.tokens_of(config, shape), np.ones(shape, bool), ranks, np.ones(shape[:2], bool))
    loss_fn = functools.partial(reward_model.reward_loss, workload.model_of(config), "kwise")
    run = _training(loss_fn, model.init_params(workload.model_of(config), jax.random.key(0), head="scalar"), batch)
    return Workload(run, batch.tokens.size, {"pairs": shape[0], "length": shape[2]})


def sample(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of sampling: prefill and decoding at temperature 1. Its tokens are those of the completions."""
    params = model.init_params(workload.model_of(config), jax.random.key(0))
    draw = _sampler(config)

    def run():
        return timed("sample", draw, params)[1]

    return Workload(run, config.episodes * config.completion_length, workload.episode_shape(config))


def ppo_iteration(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of a PPO iteration: sampling, scoring and one epoch of updates, with four separate models.

    Its tokens are those of prompts and completions.
    """
    lm, minibatches = workload.model_of(config), config.minibatches
    programs = ppo.PPOConfig(lm, lm, eos_id=workload.NEVER, missing_eos="none", score_parts=minibatches)
    optimizer = optim.make_optimizer(optim.OptimizerConfig())
    draw = _sampler(config)
    score = jax.jit(
        ppo.make_score(programs, lambda p, rollout: ppo.sequence_scores(lm, p, rollout.tokens, rollout.mask))
    )
    update = jax.jit(ppo.make_update(programs, optimizer, optimizer), donate_argnums=0)
    keys = jax.random.split(jax.random.key(0), 4)
    policy, ref = (model.init_params(lm, key) for key in keys[:2])
    value, reward = (model.init_params(lm, key, head="scalar") for key in keys[2:])
    state = ppo.PPOState(train.init_state(policy, optimizer), train.init_state(value, optimizer), jnp.float32(0.1))
    coefs = workload.coefficients()

    def updates(state, experience):
        for index in range(minibatches):
            state, _ = update(state, jax.tree.map(lambda x: x[index::minibatches], experience), None, coefs)
        return state

    def run():
        nonlocal state
        rollout, seconds = timed("sample", draw, state.policy.params)
        (experience, _), score_seconds = timed(
            "score", score, state.policy.params, state.value.params, ref, reward, rollout, state.kl_coef, coefs
        )
        state, update_seconds = timed("update", updates, state, experience)
        return seconds | score_seconds | update_seconds

    tokens = config.episodes * (config.prompt_length + config.completion_length)
    return Workload(run, tokens, {**workload.episode_shape(config), "minibatches": minibatches})


def loading(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of loading a batch of every kind of examples onto the device, as the stages do.

    Its parts are the kinds.
    """
    mesh, length, rng = workload.one_device(), config.model.max_length, np.random.default_rng(0)
    texts = [" ".join(["word"] * int(n)) for n in rng.integers(1, max(2, length // 5), config.loader_rows)]
    tokenizer = Tokenizer.train([], 258)
    rows = [Demonstration(text[: length // 2], text[: length // 3], {}) for text in texts]
    rankings = [Ranking(row.prompt, (row.completion, "no"), (1, 2), None, None, None, None, {}) for row in rows]
    demonstrations, _ = text_batches.batch_demonstrations(rows, tokenizer, length)
    documents, _ = text_batches.pack_documents([Document(text) for text in texts], tokenizer, length)
    prompts, _ = text_batches.batch_prompts(rows, tokenizer, config.prompt_length, "cut_left")

    def one(examples, rows=config.batch_size):
        return loader_lib.Loader(examples, rows, 0, name="bench")

    loaders = {
        "documents": one(documents),
        "demonstrations": one(demonstrations),
        "demonstrations_packed": packing.PackedLoader(one(demonstrations), demonstrations, 0, steps=8),
        "rankings": one(ranking_batches.batch_rankings(rankings, tokenizer, length)[0]),
        "rankings_packed": one(ranking_batches.pack_rankings(rankings, tokenizer, length, length - 1)[0]),
        "prompts": one(prompts, config.episodes),
    }
    steps = itertools.count()

    def run():
        step, seconds = next(steps), {}
        for kind, loader in loaders.items():
            gather = functools.partial(loader.batch, step)
            seconds |= timed(kind, sharding.put_rows, gather, loader.batch_size, mesh)[1]
        return seconds

    batch_rows = {kind: len(loader.rows(0)) for kind, loader in loaders.items()}
    return Workload(run, sum(batch_rows.values()) * length, batch_rows)


# Kind of examples of the loader -> the work that consumes one batch of them.
_FEEDS = {
    "documents": "sft_step",
    "demonstrations": "sft_step",
    "demonstrations_packed": "sft_step",
    "rankings": "reward_step",
    "rankings_packed": "reward_step",
    "prompts": "ppo_iteration",
}


def against_steps(lines: dict[str, dict]) -> dict | None:
    """Returns a line that compares the loader's rows/s with those that the steps consume, by kind of examples.

    "share" is the loader's time over a step's time. The next batch is loaded while a step is computed, so a share below
    1 costs nothing.

    Args:
      lines: the lines of the measured works, by name.

    Returns:
      The line, with the kinds whose step was measured; None if there are none, or if the loader was not measured.
    """
    kinds = {}
    for kind, work in _FEEDS.items():
        if "loading" in lines and work in lines:
            rows, seconds = lines["loading"]["shape"][kind], lines["loading"]["parts"][kind]
            kinds[kind] = {
                "rows_per_second": rounded(rows / seconds),
                "needed": rounded(rows / lines[work]["seconds"]),
                "share": rounded(seconds / lines[work]["seconds"]),
            }
    return {"work": "loading_against_steps", "kinds": kinds} if kinds else None


WORKS = {name: globals()[name] for name in fields.WORKS}


def measure(name: str, config: ml_collections.ConfigDict) -> dict:
    """Compiles and runs a work on one device; returns its line.

    Args:
      name: name of the work.
      config: the benchmark's config.

    Returns:
      JSON with, among others, the median "seconds" of a run, "tokens_per_second", the times of all "repeats", the
      "first_seconds" with compilation, and the peak memory in MiB.
    """
    with jax.set_mesh(workload.one_device()):
        work = WORKS[name](config)
        start = time.perf_counter()
        first_parts = work.run()
        first = time.perf_counter() - start
        runs = [work.run() for _ in range(config.repeats)]
    totals = [sum(run.values()) for run in runs]
    seconds = statistics.median(totals)
    parts = {part: rounded(statistics.median(run[part] for run in runs)) for part in runs[0]}
    return {
        "work": name,
        "size": config.size,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "model": {key: value for key, value in config.model.items()},
        "shape": work.shape,
        "seconds": rounded(seconds),
        "tokens_per_second": round(work.tokens / seconds, 1),
        **(
            {"parts": parts, "first_parts": {name: rounded(x) for name, x in first_parts.items()}}
            if len(parts) > 1
            else {}
        ),
        "repeats": [rounded(total) for total in totals],
        "first_seconds": round(first, 2),
        "peak_mib": round(_peak_bytes() / 2**20),
        "malloc": "tuned" if "GLIBC_TUNABLES" in os.environ else "default",
    }


def _training(loss_fn: train.LossFn, params: dict, batch) -> Callable[[], dict[str, float]]:
    """Returns a function that takes one step with the train step of all stages, and returns its seconds."""
    optimizer = optim.make_optimizer(optim.OptimizerConfig(weight_decay=0.01))
    step = jax.jit(train.make_train_step(loss_fn, optimizer, schedule=lambda step: 1.0), donate_argnums=0)
    state, batch = train.init_state(params, optimizer), jax.device_put(batch)
    arguments = batch, jnp.float32(1e-4), jax.random.key(0)

    def run():
        nonlocal state
        (state, _), seconds = timed("step", step, state, *arguments)
        return seconds

    return run


def _sampler(config: ml_collections.ConfigDict) -> Callable[[dict], generate.Rollout]:
    """Returns a function params -> Rollout, which draws new noise at every call."""
    sampler = generate.Sampler(
        workload.model_of(config),
        workload.one_device(),
        completion_length=config.completion_length,
        eos_id=workload.NEVER,
        pad_id=0,
    )
    shape = config.episodes, config.prompt_length
    prompts = Prompts(workload.tokens_of(config, shape), np.ones(shape, bool), np.arange(shape[0], dtype=np.int32))
    calls = itertools.count()
    return lambda params: sampler(params, prompts, jax.random.key(next(calls)), 1.0)


def _peak_bytes() -> int:
    """Returns the peak of the device's memory in bytes, or of this process's memory if the device does not count it."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(config: ml_collections.ConfigDict) -> None:
    """Prints a line for each work, and the lines that compare works.

    Raises:
      InputError: a field has a value that it does not allow.
    """
    check_values("", config, fields.FIELDS)
    fresh = multiprocessing.get_context("spawn")
    lines = {}
    for name in config.works:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            lines[name] = process.submit(measure, name, config).result()
            print(json.dumps(lines[name]), flush=True)
    compared = against_steps(lines), gain_at_once(lines, "ppo_trials"), gain_at_once(lines, "sweep_arms")
    for line in filter(None, compared):
        print(json.dumps(line), flush=True)
