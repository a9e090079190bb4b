"""Benchmarks of sweeps: arms one after another against all arms at once, for PPO's programs and for whole arms."""

import contextlib
import itertools
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import generate, model, optim, ppo, sharding
from rlhf_jax.bench import workload
from rlhf_jax.bench.workload import Workload, rounded, timed
from rlhf_jax.config import default_config
from rlhf_jax.data.batches import Prompts
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.files import read_if_there
from rlhf_jax.sweep import arms, sequential, vectorized
from rlhf_jax.sweep.store import Store
from rlhf_jax.sweep.trials.stacked import StackedPPOPrograms


def ppo_trials(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of a PPO iteration, of one run ("alone") and of all `trials` in one program ("at_once")."""
    lm, mesh, count = workload.model_of(config), workload.one_device(), config.trials
    sizes = config.episodes, config.episodes // config.minibatches, 1
    section = ml_collections.ConfigDict(dict(zip(("batch_size", "minibatch_size", "ppo_epochs"), sizes)))
    shape = ppo.PPOConfig(lm, lm, eos_id=workload.NEVER, missing_eos="none")
    score, optimizers = ppo.SequenceScore(lm), (optim.make_optimizer(optim.OptimizerConfig()),) * 2
    make, shardings = ppo_programs.state_maker(shape, mesh, sharding.DEFAULT_RULES, optimizers)
    sampler = generate.Sampler(lm, mesh, completion_length=config.completion_length, eos_id=workload.NEVER, pad_id=0)
    alone = ppo_programs.PPOPrograms(shape, score, optimizers, shardings, sampler, mesh)
    at_once = StackedPPOPrograms(
        shape, score, optimizers, (config.completion_length, workload.NEVER, 0, 1), sizes, mesh
    )

    policy, value = (model.init_params(lm, jax.random.key(0), head) for head in ("lm", "scalar"))
    tokens = workload.tokens_of(config, (config.episodes, config.prompt_length))
    prompts = Prompts(tokens, np.ones(tokens.shape, bool), np.arange(len(tokens), dtype=np.int32))
    given = (policy, value, jnp.float32(0.1)), (policy, value), prompts, workload.coefficients()

    def stack(tree):
        return sharding.put_trials([hosts.fetch(tree)] * count, mesh)

    works = {"alone": (alone, make, given), "at_once": (at_once, at_once.make, [stack(tree) for tree in given])}
    states = {part: make(*start) for part, (_, make, (start, *_)) in works.items()}
    numbers = itertools.count()

    def iteration(part, key):
        programs, _, (_, frozen, prompts, coefs) = works[part]
        states[part], metrics = ppo_programs.iterate(
            programs, states[part], frozen, prompts, lambda step: None, coefs, key, section, fixed_kl=True
        )
        return states[part], metrics

    def run():
        key = jax.random.key(next(numbers))
        keys = {"alone": key, "at_once": jax.random.split(key, count)}
        parts = [timed(part, iteration, part, keys[part])[1] for part in works]
        return parts[0] | parts[1]

    episode = config.prompt_length + config.completion_length
    return Workload(
        run, (1 + count) * config.episodes * episode, {**workload.episode_shape(config), "alone": 1, "at_once": count}
    )


def sweep_arms(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of whole arms of a sweep of kl_coef, PPO and its evaluation, with both runners.

    Its parts are "alone", `arms_alone` arms with the sequential runner, and "at_once", `trials` arms with the
    vectorized runner. The stages that all arms share are computed beforehand. Every run uses new values of kl_coef, so
    that no arm is found in the store.
    """
    folder = tempfile.TemporaryDirectory(prefix="rlhf_jax_bench_")
    path, base = pathlib.Path(folder.name), _pipeline(config)
    store, numbers = Store(path / "stages"), itertools.count()
    runners = {"alone": (sequential.run, config.arms_alone), "at_once": (vectorized.run, config.trials)}

    def arms_of(count: int, config=base) -> list[arms.Arm]:
        return arms.expand(config, [{"seed": 0, "ppo.kl_coef": 0.01 + 1e-5 * next(numbers)} for _ in range(count)])

    def swept(runner, chosen):
        with contextlib.redirect_stdout(sys.stderr):
            runner(chosen, path / "sweep", store)
        records = [read_if_there(path / "sweep" / "arms" / arm.name / "arm.json") for arm in chosen]
        assert all(record["status"] == "done" for record in records), records

    shared = base.copy_and_resolve_references()
    shared.stages = shared.stages[:-1]
    swept(sequential.run, arms_of(1, shared))

    def run():
        parts = [timed(part, swept, runner, arms_of(count))[1] for part, (runner, count) in runners.items()]
        return parts[0] | parts[1]

    run.folder = folder  # keeps the temporary folder as long as the work exists
    counts = {part: count for part, (_, count) in runners.items()}
    length = base.prompt_length + base.completion_length
    tokens = sum(counts.values()) * config.iterations * config.episodes * length
    return Workload(
        run,
        tokens,
        {
            **workload.episode_shape(config),
            "prompt_length": base.prompt_length,
            "iterations": config.iterations,
            **counts,
        },
    )


def _pipeline(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of a pipeline with PPO of the benchmark's size, and all other stages as small as possible."""
    base = default_config()
    base.stages = ("pretrain", "sft", "collect", "reward_model", "ppo")
    with base.model.unlocked():
        base.model.update(
            {name: value for name, value in config.model.items() if name != "vocab_size"}, dtype="float32"
        )
    base.tokenizer.vocab_size = config.model.vocab_size
    base.completion_length = config.completion_length
    base.prompt_length = config.model.max_length - config.completion_length  # so that most prompts of the world fit
    base.data.world.update(
        documents=300,
        valid_documents=50,
        demonstrations=64,
        valid_demonstrations=16,
        rm_prompts=32,
        ppo_prompts=512,
        valid_prompts=32,
        test_prompts=config.test_prompts,
    )
    base.evaluate.prompts = config.test_prompts
    base.pretrain.update(length=config.model.max_length, batch_size=16, steps=20, warmup_steps=0)
    base.sft.update(epochs=1.0, batch_size=16)
    base.collect.update(models=("sft@1.0",), batch_size=32)
    base.reward_model.update(epochs=1.0, batch_size=16)
    base.ppo.update(
        iterations=config.iterations,
        batch_size=config.episodes,
        minibatch_size=config.episodes // config.minibatches,
        ppo_epochs=1,
        ptx_coef=0.0,
        checkpoint_every=config.iterations,
        warmup_iterations=0,
    )
    return base


def gain_at_once(lines: dict[str, dict], work: str) -> dict | None:
    """Returns a line that compares one after another with all at once: arms, or their PPO iterations, per hour.

    "gain" is the ratio of the two. "compilation" is in seconds: how much longer the first run took than the later ones.

    Args:
      lines: the lines of the measured works, by name.
      work: "ppo_trials" or "sweep_arms".

    Returns:
      The line; None if the work was not measured.
    """
    if work not in lines:
        return None
    line = lines[work]
    counts, parts, first = line["shape"], line["parts"], line["first_parts"]
    per_hour = {part: 3600 * counts[part] / seconds for part, seconds in parts.items()}
    return {
        "work": f"{work}_at_once",
        "trials": counts["at_once"],
        "per_hour": {part: rounded(value) for part, value in per_hour.items()},
        "gain": rounded(per_hour["at_once"] / per_hour["alone"]),
        "compilation": {part: round(first[part] - parts[part], 1) for part in parts},
    }
