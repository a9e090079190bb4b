"""Step 3: PPO against a reward model, iterations of sample -> score -> minibatch updates.

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.4. The mathematics and the programs are in
rlhf_jax/ppo/.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from rlhf_jax import abstract, generate, inputs, journal, loop, lora, metrics, model, sampling, sharding, weights
from rlhf_jax.advantages import ESTIMATORS
from rlhf_jax.data import packing
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.evaluate import policy as evaluation
from rlhf_jax.fields import rewards as rewards_lib
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.model.attention import SEGMENTS
from rlhf_jax.ppo import options, programs
from rlhf_jax.ppo.fields import FIELDS
from rlhf_jax.ppo.state import PPOConfig, PPOState
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import ppo_abstract, ppo_models, ppo_rewards, ppo_validation


def build(run: Run, stage: str, config: PPOConfig | None = None):
    """Returns (function that makes a PPOState, PPOPrograms) of config[stage]; see ppo.programs.compiled.

    The function is jitted, and maps (policy, value parameters, kl_coef) to a PPOState. Stages of one process that
    differ only in Coefficients, kl_coef or seed share the programs, compiled once. `config` is that of a PPOTraining, which
    knows its data.
    """
    check(run, stage)
    section = run.config[stage]
    return programs.compiled(
        config or _static_config(run, stage),
        ppo_rewards.reward_fn_of(run, section),
        programs.optimizers_of(section),
        sampling.sampler(run, run.config.completion_length, section.batch_size, copies=section.samples_per_prompt),
        run.mesh,
        tuple(run.rules.items()),
    )


def _static_config(run: Run, stage: str) -> PPOConfig:
    value, ends = ppo_models.value_shape_of(run, stage), run.tokenizer.end_ids
    parts = run.parts(stage) | {"gather_once": ppo_models.gathers(run, stage)}
    return programs.static_config(run.model, value, ends, run.config[stage], stage, parts)


def check(run: Run, stage: str) -> None:
    """Raises InputError if settings do not fit each other or the mesh, or data are missing; computes nothing."""
    section = run.config[stage]
    if ESTIMATORS[section.advantage].reads_values:
        ppo_rewards.check_value_init(run, stage)
    _static_config(run, stage)
    for field, count in run.parts(stage).items():
        sharding.check_parts(f"{stage}.{field}", parts(section)[field], count, run.mesh)
    ppo_models.check_adapters(run, stage)
    ptx = bool(section.ptx_coef and section.ptx_ratio)
    if ptx and section.ptx_length:
        run.check_length(f"{stage}.ptx_length", section.ptx_length, run.model)
    for model_name in ppo_rewards.models_of(section):
        run.check_length("prompt_length + completion_length", run.whole_length, run.shape(model_name))
    inputs.need(run, stage, "prompts", "train")
    if ptx:
        inputs.need(run, stage, "documents", "train")
    ppo_validation.check(run, stage)
    if section.log_gold and run.config.data.source != "world":
        raise InputError(
            f"{stage}.log_gold needs data.source='world', which alone has a gold labeler; it is "
            f"'{run.config.data.source}'"
        )


@dataclasses.dataclass(frozen=True)
class PPOTraining:
    """A stage that is ready to be trained: iterations over prompts, and the inputs of its programs.

    Attributes:
      run: the run.
      stage: name of the stage.
      config: static configuration of the programs.
      prompts: loader of prompts, with batch(iteration).
      ptx: loader of pretraining sequences, with batch(optimizer step); None without ptx.
      functions: the rewards that are computed on the host; None without any.
      trial: the stage as loop.fit takes it; its steps are iterations.
    """

    run: Run
    stage: str
    config: PPOConfig
    prompts: Loader
    ptx: Loader | None
    functions: ppo_rewards.HostRewards | None
    trial: loop.Trial

    @property
    def steps_per_iteration(self) -> int:
        """Number of optimizer steps of an iteration."""
        section = self.run.config[self.stage]
        return section.ppo_epochs * (section.batch_size // section.minibatch_size)

    def start(self) -> tuple[dict, dict | tuple[dict, ...], dict | None]:
        """Returns the parameters (reference, reward models, value); the policy starts as the reference.

        The reward models are what `ppo_rewards.load` returns, and the value is what `programs.make_state` takes.
        """
        run, stage = self.run, self.stage
        ref = weights.start_params(run, stage)
        reward = ppo_rewards.load(run, run.config[stage])
        return ref, reward, ppo_models.value_params(run, stage, reward, ref)

    def judge(self, iteration: int):
        """Returns the `judge` that `programs.iterate` calls for metrics of the rollout; None without log_gold."""
        section = self.run.config[self.stage]
        if not section.log_gold:
            return None
        index = self.prompts.batch(iteration).index
        return functools.partial(gold_metrics, self.run, section.samples_per_prompt, index)

    def given(self, iteration: int):
        """Returns the function from a Rollout to the scores f32[B, H] of the functions; None if there are none."""
        return self.functions and functools.partial(self.functions, self.prompts.batch(iteration).index)

    def finish(self, state: PPOState) -> None:
        """Writes the policy's parameters, and samples test completions from the parameters that are not written.

        The parameters of `state.policy` are whole, with the base of adapters.

        `output` selects the moving average (the default) or the last parameters. The choice changes a run's results, so
        the completions of both are compared. Of the parameters that are not written, only the completions are kept.
        There is no average if ema_decay is 0.
        """
        policies = {"ema": state.policy.ema_params, "params": state.policy.params}
        policies = {name: model.without_scalar_head(params) for name, params in policies.items() if params is not None}
        section = self.run.config[self.stage]
        handed_on = programs.output_of(section)
        if section["output"] == "best":  # these were written at their validation
            policies = {handed_on: policies[handed_on]}
        else:
            weights.save_params(self.run, self.stage, policies.pop(handed_on))
        for name, params in policies.items():
            evaluation.sample_others(self.run, self.stage, name, params)


def training_of(run: Run, stage: str) -> PPOTraining:
    """Returns what run_stage trains, with its logging and its end."""
    check(run, stage)
    section = run.config[stage]
    arrays, report = batch_prompts(
        run.corpus.prompts("train", "ppo"), run.tokenizer, run.config.prompt_length, run.config.too_long
    )
    inputs.report_data(run, stage, "prompts", report)
    # The name is the same for all PPO stages, so that arms of an experiment see the same prompts.
    loader = Loader(arrays, section.batch_size, run.seed, name="ppo", copies=section.samples_per_prompt)
    trial = loop.Trial(
        run,
        stage,
        section.iterations,
        rows=lambda iteration: arrays.index[loader.rows(iteration)].tolist(),
        live={"score": "objective/scores", "kl": "objective/kl", "ptx": "ppo/ptx/loss"},
    )
    config = _static_config(run, stage)
    functions = ppo_rewards.host_rewards(run, stage)
    for sentence in options.described(config, section.kl_coef != 0.0, section.gamma):
        print(f"{stage}: {sentence}")
    ptx, segments = _ptx_loader(run, stage)
    config = dataclasses.replace(config, ptx_segments=segments)
    return PPOTraining(run, stage, config, loader, ptx, functions, trial)


def run_stage(run: Run, stage: str) -> dict[str, str]:
    """Trains config[stage] and writes the policy's parameters (by default their moving average).

    Returns:
      {"stopped": why the stage ended before its last iteration}, or {}.
    """
    training = training_of(run, stage)
    section, mesh = run.config[stage], run.mesh
    make, compiled = build(run, stage, training.config)
    ref, reward, value = training.start()
    # Adapters of one base: only they are trained and handed around, and the base is passed beside them.
    (base, ref), (_, value), reward = lora.split(ref), lora.split(value or {}), ppo_rewards.trained(reward)
    state = make(ref, value or None, jnp.float32(section.kl_coef))
    frozen = programs.frozen_params(run.model, ref, reward)
    del ref, reward, value  # otherwise their float32 copies would stay on the devices for the whole stage

    coefs = programs.coefficients(section)
    watch = ppo_validation.Watch(run, stage, training.prompts, ppo_validation.Inputs(compiled, frozen, base, coefs))

    def put(loader, step):
        return sharding.put_rows(functools.partial(loader.batch, step), loader.batch_size, mesh)

    def advance(state, iteration):
        first_step = iteration * training.steps_per_iteration
        given = training.given(iteration)
        return programs.iterate(
            compiled,
            state,
            frozen,
            put(training.prompts, iteration),
            lambda step: training.ptx and put(training.ptx, first_step + step),
            coefs,
            run.key("ppo", iteration),
            section,
            fixed_kl=section.kl_target is None,
            judge=training.judge(iteration),
            mark=training.trial.clock.mark,
            base=base,
            given=given and (lambda rollout: sharding.put_batch(given(rollout), mesh)),
            keep=functools.partial(watch.keep, iteration + 1),
        )

    state = loop.fit(watch.over(training.trial), state, advance, checkpoint_every=section.checkpoint_every)
    policy = state.policy
    ema = policy.ema_params
    whole = {"params": lora.joined(base, policy.params), "ema_params": ema and lora.joined(base, ema)}
    training.finish(state.replace(policy=policy.replace(**whole)))
    hosts.on_first(_say_padding, run, stage)
    return watch.conclusion()


def _say_padding(run: Run, stage: str) -> None:
    """Prints how much of the rollouts was padding, and of the rows that were computed, as means over the iterations."""
    names = "objective/padding", "objective/padding_packed"
    rows = [row for row in metrics.read_metrics(run.folder(stage) / journal.METRICS) if names[1] in row]
    if rows:  # an earlier version has not written them
        before, after = (100 * np.mean([row[name] for row in rows]) for name in names)
        print(f"{stage}: packed rows have {after:.1f} % padding instead of {before:.1f} %")


def gold_metrics(run: Run, samples: int, index: np.ndarray, rollout) -> dict[str, float]:
    """Returns the mean gold score of a rollout, and its standard error.

    The standard error is over prompts, because prompts, and not completions, are the independent units.

    Args:
      run: the run.
      samples: number of completions of a prompt, in neighbouring rows.
      index: i32[B], the prompt of each row.
      rollout: the completions.
    """
    texts, finished = generate.texts(rollout, run.tokenizer)
    records = run.corpus.prompts("train", "ppo")
    rows = zip(index, texts, finished)
    totals = np.array([run.corpus.gold(records[i], text, ended).total for i, text, ended in rows])
    means = totals.reshape(-1, samples).mean(axis=1)
    error = {"objective/gold_sem": means.std(ddof=1) / np.sqrt(len(means))} if len(means) > 1 else {}
    return {"objective/gold": means.mean(), **error}


def _ptx_loader(run: Run, stage: str) -> tuple[Loader | None, int]:
    """Returns the loader of each optimizer step's pretraining sequences, None without ptx, and PPOConfig.ptx_segments."""
    section = run.config[stage]
    if section.ptx_coef == 0.0 or section.ptx_ratio == 0:
        return None, SEGMENTS
    length = section.ptx_length or run.config.prompt_length + run.config.completion_length
    examples, _, mixture = inputs.packed_documents(run, "train", length)
    loader = Loader(examples, programs.ptx_rows(section), run.seed, name="ptx", mixture=mixture)
    steps = section.iterations * section.ppo_epochs * (section.batch_size // section.minibatch_size)
    inputs.report_epochs(run, stage, "documents", mixture, steps * loader.batch_size)
    return loader, run.model.of_rows(packing.segments(examples)).segments


def parts(section: Mapping) -> dict[str, int]:
    """Returns the fields that split a batch to save memory, each with the number of rows that it splits."""
    with_ptx = section["ptx_coef"] and section["ptx_ratio"]
    ptx = {"ptx_microbatches": programs.ptx_rows(section)} if with_ptx else {}
    return {"microbatches": section["minibatch_size"]} | ptx


def _inconsistent(name: str, section: Mapping) -> Iterator[str]:
    """Yields what is wrong with combinations of values that are allowed one by one."""
    rewards = len(rewards_lib.several(section["reward"]))
    if len(section["reward_weights"]) not in (0, rewards):
        yield (
            f"{name}.reward_weights={tuple(section['reward_weights'])} must have a weight for each of the {rewards} rewards "
            f"that {name}.reward='{section['reward']}' names, or be ()"
        )
    if section["kl_target"] is not None:
        # An iteration multiplies the coefficient by at least 1 - 0.2 x batch_size / kl_horizon (Ziegler et al. 2019).
        if section["kl_horizon"] <= 0.2 * section["batch_size"]:
            yield (
                f"{name}.kl_horizon={section['kl_horizon']} must be above a fifth of {name}.batch_size="
                f"{section['batch_size']}: with {name}.kl_target the KL coefficient would become 0 or negative"
            )
        if section["kl_coef"] == 0:
            yield (
                f"{name}.kl_target={section['kl_target']} multiplies {name}.kl_coef, and {name}.kl_coef=0 stays 0: give "
                f"{name}.kl_coef above 0, or {name}.kl_target=None"
            )
    if section["ptx_coef"] and section["ptx_ratio"]:
        sequences = section["ptx_ratio"] * section["minibatch_size"]
        if sequences % section["ppo_epochs"]:
            yield (
                f"{name}.ptx_ratio x {name}.minibatch_size = {sequences} pretraining sequences do not divide over "
                f"{name}.ppo_epochs={section['ppo_epochs']}: every epoch has its part of them"
            )


def _rows_read(run: Run, stage: str) -> int:
    section = run.config[stage]
    return section.iterations * section.batch_size * section.ppo_epochs


def programs_of(run: Run, stage: str, data: abstract.Data) -> list[abstract.Program]:
    """Returns the programs of an iteration, for abstract inputs, in the order in which they run."""
    return ppo_abstract.programs_of(run, stage, data, *build(run, stage))


register(
    Stage(
        "ppo",
        FIELDS,
        check,
        run_stage,
        gives="policy",
        label="PPO",
        evaluate=evaluation.evaluate_policy,
        judged=True,
        rows_read=_rows_read,
        training=training_of,
        alone=lambda section: bool(section["validate_every"]),
        programs=programs_of,
        planned_last=True,  # in InstructGPT's pipeline, that is the one with the pretraining mix
        paper_compute=60.0,  # section 5.1
        parts=parts,
        batch_field="minibatch_size",
        weight_bytes=lambda section: 16 if section["ema_decay"] else 12,  # with the moving average of the weights
        inconsistent=_inconsistent,
        fill=options.fill,
        state_part=lambda section: {"ema": "policy/ema_params", "params": "policy/params"}[programs.output_of(section)],
    )
)
