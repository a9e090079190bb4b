"""Step 3, the stage: iterations of sample -> score -> minibatch updates (the programs are in ppo.py)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import advantages as adv
from rlhf_jax import checkpoint, generate, loop, model, optim, ppo, sharding, train
from rlhf_jax.data.batches import batch_prompts
from rlhf_jax.data.loader import Loader
from rlhf_jax.evaluate import policy as evaluation
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo import options as ppo_options
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError


def coefficients(section: ConfigDict) -> ppo.Coefficients:
    """The swept numbers of a section as array arguments."""
    numbers = {name: getattr(section, name, None) for name in ppo.Coefficients.__dataclass_fields__}
    numbers["kl_target"] = section.kl_target or 0.0
    return ppo.Coefficients(**{name: jnp.float32(value) for name, value in numbers.items()})


def programs_config(
    shape: TransformerConfig,
    value_shape: TransformerConfig | None,
    eos_id: int | tuple[int, ...],
    section: ConfigDict,
    name: str = "ppo",
) -> ppo.PPOConfig:
    """What shapes the programs of a policy and a value model of these shapes, checked.

    Args:
      value_shape: of no use where the section has no value model of its own.
      name: the section's, for messages.

    Raises:
      InputError: sizes that do not divide, or choices that do not go together.
    """
    chosen = ppo_options.resolved(section)
    batch, minibatch, parts, samples = (
        section[name] for name in ("batch_size", "minibatch_size", "microbatches", "samples_per_prompt")
    )
    if batch % minibatch or minibatch % parts:
        raise InputError(
            f"{name}.batch_size={batch} must be a multiple of {name}.minibatch_size={minibatch}, and that of "
            f"{name}.microbatches={parts}"
        )
    if batch % samples:
        raise InputError(f"{name}.batch_size={batch} must be a multiple of {name}.samples_per_prompt={samples}")
    if section.advantage in adv.GROUPED and samples == 1:
        raise InputError(
            f"{name}.advantage='{section.advantage}' compares the completions of a prompt, and there is one: give "
            f"{name}.samples_per_prompt 2 or more"
        )
    if chosen.kl_in == "loss" and chosen.kl_estimator == "k1":
        raise InputError(
            f"{name}.kl_in='loss' needs {name}.kl_estimator='k2' or 'k3': the gradient of 'k1' is 0 in expectation"
        )
    steps_per_iteration = section.ppo_epochs * (batch // minibatch)
    return ppo.PPOConfig(
        policy=shape,
        value=value_shape if has_value_model(section) else None,
        eos_id=eos_id,
        missing_eos=section.missing_eos,
        advantage=section.advantage,
        samples_per_prompt=samples,
        **chosen._asdict(),
        entropy_bonus=section.entropy_coef != 0.0,
        whiten_rewards=section.whiten_rewards,
        score_parts=batch // minibatch * parts,
        microbatches=parts,
        ptx_microbatches=section.ptx_microbatches,
        schedule=section.schedule,
        total_steps=section.iterations * steps_per_iteration,
        warmup_steps=section.warmup_iterations * steps_per_iteration,
        warmup_from=section.warmup_from,
        final_fraction=section.final_fraction,
    )


def has_value_model(section: ConfigDict) -> bool:
    """Whether there is a value model of its own: not on the policy's trunk, and not without values."""
    return section.advantage == "gae" and section.value == "separate"


class Programs:
    """The programs of a PPO stage, each jitted once with explicit shardings; the state is donated."""

    def __init__(self, config: ppo.PPOConfig, reward_fn, optimizers, state_shardings, sampler, mesh):
        whole, rows = sharding.replicated(mesh), sharding.over_batch(mesh)
        self.sample = sampler
        # Round to bfloat16 wherever the program says so: extra digits that one of the two programs keeps, and the
        # other does not, would make the first ratio differ from 1.
        rounding = {"xla_allow_excess_precision": False}
        self.score = jax.jit(ppo.make_score(config, reward_fn), out_shardings=(rows, whole), compiler_options=rounding)
        self.update = jax.jit(
            ppo.make_update(config, *optimizers),
            out_shardings=(state_shardings, whole),
            donate_argnums=0,
            compiler_options=rounding,
        )
        self.take = jax.jit(lambda tree, rows: jax.tree.map(lambda x: x[rows], tree), out_shardings=rows)
        self.randomness, self.summarize = jax.jit(randomness, static_argnums=(1, 2, 3)), jax.jit(summarize)


def randomness(key: jax.Array, rows: int, minibatch: int, epochs: int) -> tuple[jax.Array, list[jax.Array]]:
    """What is random in an iteration: the key of its samples, and the rows of each optimizer step, i32[minibatch].

    Every epoch goes through all rows in an order of its own.
    """
    orders = [jax.random.permutation(jax.random.fold_in(key, 1 + epoch), rows) for epoch in range(epochs)]
    return jax.random.fold_in(key, 0), [part for order in orders for part in jnp.split(order, rows // minibatch)]


def summarize(steps: list[dict]) -> dict:
    """The metrics of an iteration's optimizer steps as one: their means, and what only one step tells."""
    columns = jax.tree.map(lambda *values: jnp.stack(values), *steps)
    return {name: jnp.mean(values) for name, values in columns.items()} | {
        "ppo/policy/ratio_max": jnp.max(columns["ppo/policy/ratio_max"]),
        "ppo/policy/first_approxkl": columns["ppo/policy/approxkl"][0],
    }


def iterate(programs: Programs, state, frozen, batch, ptx_batch, coefs, key, section, fixed_kl: bool, judge=None):
    """One iteration: a rollout, its experience, and ppo_epochs x batch/minibatch optimizer steps.

    Of one run, or of several trials at once if all arguments (and the programs) have a leading axis of trials.

    Args:
      state: PPOState, donated. frozen: (ref params, reward params). batch: Prompts.
      ptx_batch: optimizer step within the iteration -> Batch on the mesh, or None.
      judge: Rollout -> metrics of it that no program makes, or None.

    Returns:
      (state, metrics): those of the experience, and the mean of the updates'.
    """
    sample_key, minibatches = programs.randomness(key, section.batch_size, section.minibatch_size, section.ppo_epochs)
    rollout = programs.sample(state.language_model, batch, sample_key, coefs.temperature)
    experience, metrics = programs.score(
        state.policy.params, state.value_params, *frozen, rollout, state.kl_coef, coefs
    )
    steps = []
    for rows in minibatches:
        state, step_metrics = programs.update(state, programs.take(experience, rows), ptx_batch(len(steps)), coefs)
        steps.append(step_metrics)
    metrics |= programs.summarize(steps)
    kl_coef = adv.update_kl_coef(
        state.kl_coef,
        metrics["objective/kl"],
        section.batch_size,
        None if fixed_kl else coefs.kl_target,
        coefs.kl_horizon,
    )
    if judge:  # now that the devices have their work
        metrics |= judge(rollout)
    return state.replace(kl_coef=kl_coef), metrics


def build(run: Run, stage: str):
    """((policy, value parameters, kl_coef) -> PPOState, jitted; Programs) of config[stage]; see state_maker.

    Stages of one process that differ in Coefficients, kl_coef or seed alone get the same ones, compiled once.
    """
    check(run, stage)
    section = run.config[stage]
    config = programs_config(run.model, value_shape_of(run, stage), run.tokenizer.end_ids, section, stage)
    return _programs(
        config,
        ppo.SequenceScore(run.shape(section.reward), run.tokenizer.end_ids),
        optimizers_of(section),
        run.sampler(run.config.completion_length, section.sample_parts),
        run.mesh,
        tuple(run.rules.items()),
    )


@functools.lru_cache(maxsize=16)
def _programs(config: ppo.PPOConfig, reward_fn: ppo.RewardFn, optimizers: tuple, sampler, mesh, rules: tuple):
    optimizers = tuple(map(optim.make_optimizer, optimizers))
    make, shardings = state_maker(config, mesh, dict(rules), optimizers)
    return make, Programs(config, reward_fn, optimizers, shardings, sampler, mesh)


def optimizers_of(section: ConfigDict) -> tuple[optim.OptimizerConfig, optim.OptimizerConfig]:
    """Of the policy and of the value model."""
    return optim.OptimizerConfig(**section.optimizer), optim.OptimizerConfig(**section.value_optimizer)


def check(run: Run, stage: str) -> None:
    """Raises InputError for what does not fit together, or not the mesh; computes nothing."""
    section = run.config[stage]
    programs_config(run.model, value_shape_of(run, stage), run.tokenizer.end_ids, section, stage)
    for field, rows in {
        "sample_parts": section.batch_size,
        "microbatches": section.minibatch_size,
        **({"ptx_microbatches": ptx_rows(section)} if section.ptx_coef and section.ptx_ratio else {}),
    }.items():
        sharding.check_parts(f"{stage}.{field}", rows, section[field], run.mesh)
    if section.advantage == "gae" and section.value == "shared" and section.value_init == "reward":
        widths = run.shape(section.reward).embed_dim, run.model.embed_dim
        if widths[0] != widths[1]:
            raise InputError(
                f"{stage}.value='shared' with value_init='reward' takes the head of a reward model of width {widths[0]}, "
                f"and the policy's is {widths[1]}; choose value_init='random' or 'zero'"
            )
    ptx = bool(section.ptx_coef and section.ptx_ratio)
    if ptx and section.ptx_length:
        run.check_length(f"{stage}.ptx_length", section.ptx_length, run.model)
    run.check_length("prompt_length + completion_length", run.whole_length, run.shape(section.reward))
    run.need(stage, "prompts", "train")
    if ptx:
        run.need(stage, "documents", "train")
    if section.log_gold and run.config.data.source != "world":
        raise InputError(
            f"{stage}.log_gold: data.source='{run.config.data.source}' has no gold labeler; only 'world' has"
        )


def value_shape_of(run: Run, stage: str) -> TransformerConfig | None:
    """A value model of its own has the shape of what it starts from: the reward model, or the policy."""
    section = run.config[stage]
    if not has_value_model(section):
        return None
    return run.model if section.value_init in ("policy", "zero") else run.shape(section.reward)


@dataclasses.dataclass(frozen=True)
class Training:
    """A stage that is ready to be trained: iterations over prompts, and what its programs are given.

    Attributes:
      prompts, ptx: batch(iteration) and batch(optimizer step); ptx is None without it.
      trial: how it is logged; its steps are iterations.
    """

    run: Run
    stage: str
    config: ppo.PPOConfig
    prompts: Loader
    ptx: Loader | None
    trial: loop.Trial

    @property
    def steps_per_iteration(self) -> int:
        section = self.run.config[self.stage]
        return section.ppo_epochs * (section.batch_size // section.minibatch_size)

    def start(self) -> tuple[dict, dict, dict | None]:
        """The parameters of reference and reward model, and what make_state takes of a value; the policy is the reference."""
        run, stage = self.run, self.stage
        ref = run.start_params(stage)
        reward = run.load_params(run.config[stage].reward, "scalar")
        return ref, reward, _value_params(run, stage, reward, ref)

    def judge(self, iteration: int):
        """What iterate asks for metrics of the rollout; None where the gold labeler is not asked."""
        section = self.run.config[self.stage]
        if not section.log_gold:
            return None
        index = self.prompts.batch(iteration).index
        return functools.partial(gold_metrics, self.run, section.samples_per_prompt, index)

    def finish(self, state: ppo.PPOState) -> None:
        """Writes the policy's parameters, by default their moving average, and then asks the others the test prompts.

        Which are handed on changes what a run says; so both are compared, and the others' answers are all that is kept
        of them.
        """
        policies = {"ema": state.policy.ema_params, "params": state.policy.params}
        policies = {name: model.without_scalar_head(params) for name, params in policies.items()}
        written = policies.pop(self.run.config[self.stage].output)
        checkpoint.save_params(self.run.folder(self.stage) / "params", written)
        for name, params in policies.items():
            evaluation.sample_others(self.run, self.stage, name, params)


def training_of(run: Run, stage: str) -> Training:
    """What run_stage trains, and how it ends."""
    check(run, stage)
    section = run.config[stage]
    arrays, report = batch_prompts(
        run.corpus.prompts("train", "ppo"), run.tokenizer, run.config.prompt_length, run.config.too_long
    )
    run.report_data(stage, "prompts", report)
    # One name: arms see the same prompts.
    loader = Loader(arrays, section.batch_size, run.seed, name="ppo", copies=section.samples_per_prompt)
    trial = loop.Trial(
        run,
        stage,
        section.iterations,
        rows=lambda iteration: arrays.index[loader.rows(iteration)].tolist(),
        live={"score": "objective/scores", "kl": "objective/kl", "ptx": "ppo/ptx/loss"},
    )
    config = programs_config(run.model, value_shape_of(run, stage), run.tokenizer.end_ids, section, stage)
    for sentence in ppo_options.described(config, section.kl_coef != 0.0, section.gamma):
        print(f"{stage}: {sentence}")
    return Training(run, stage, config, loader, _ptx_loader(run, stage), trial)


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage] and writes the policy's parameters (by default their moving average)."""
    training = training_of(run, stage)
    section, mesh = run.config[stage], run.mesh
    make, programs = build(run, stage)
    ref, reward, value = training.start()
    state = make(ref, value, jnp.float32(section.kl_coef))
    frozen = frozen_params(run.model, ref, reward)
    del ref, reward, value  # or their float32 copies would lie on the devices for the whole stage

    coefs = coefficients(section)
    put = lambda loader, step: sharding.put_rows(functools.partial(loader.batch, step), loader.batch_size, mesh)

    def advance(state, iteration):
        first_step = iteration * training.steps_per_iteration
        return iterate(
            programs,
            state,
            frozen,
            put(training.prompts, iteration),
            lambda step: training.ptx and put(training.ptx, first_step + step),
            coefs,
            run.key("ppo", iteration),
            section,
            fixed_kl=section.kl_target is None,
            judge=training.judge(iteration),
        )

    training.finish(loop.fit(training.trial, state, advance, checkpoint_every=section.checkpoint_every))


def gold_metrics(run: Run, samples: int, index: np.ndarray, rollout) -> dict[str, float]:
    """What the gold labeler says of a rollout: the mean, and its standard error over prompts, which are the sample.

    Args:
      samples: of a prompt; they are neighbours.
      index: i32[B], which prompt each row has.
    """
    texts, finished = generate.texts(rollout, run.tokenizer)
    records = run.corpus.prompts("train", "ppo")
    rows = zip(index, texts, finished)
    totals = np.array([run.corpus.gold(records[i], text, ended).total for i, text, ended in rows])
    means = totals.reshape(-1, samples).mean(axis=1)
    error = {"objective/gold_sem": means.std(ddof=1) / np.sqrt(len(means))} if len(means) > 1 else {}
    return {"objective/gold": means.mean(), **error}


def frozen_params(shape: TransformerConfig, *params: dict) -> tuple[dict, ...]:
    """Parameters in the model's compute dtype: frozen models need no master weights."""
    if shape.dtype == "float32":
        return params
    return jax.tree.map(lambda x: x.astype(shape.dtype), params)


def _ptx_loader(run: Run, stage: str) -> Loader | None:
    """Batches of ptx_ratio x minibatch_size pretraining sequences by optimizer step; None without ptx."""
    section = run.config[stage]
    if section.ptx_coef == 0.0 or section.ptx_ratio == 0:
        return None
    length = section.ptx_length or run.config.prompt_length + run.config.completion_length
    examples, _, mixture = run.packed_documents("train", length)
    loader = Loader(examples, ptx_rows(section), run.seed, name="ptx", mixture=mixture)
    steps = section.iterations * section.ppo_epochs * (section.batch_size // section.minibatch_size)
    run.report_epochs(stage, "documents", mixture, steps * loader.batch_size)
    return loader


def ptx_rows(section: ConfigDict) -> int:
    """Pretraining sequences of an optimizer step: ptx_ratio for each episode, spread over the epochs."""
    return section.ptx_ratio * section.minibatch_size // section.ppo_epochs


def _value_params(run: Run, stage: str, reward: dict, policy: dict) -> dict | None:
    """What the value starts from: a model of its own, a head for the policy's trunk, or None."""
    section = run.config[stage]
    if section.advantage != "gae":
        return None
    separate = section.value == "separate"
    if section.value_init == "reward":
        return reward if separate else model.scalar_head_of(reward)
    if separate and section.value_init == "random":
        return run.init_params(f"{stage}/value", value_shape_of(run, stage), head="scalar")
    value = run.with_scalar_head(run.model, policy, run.key(stage, "value"))
    if section.value_init == "zero":
        value |= jax.tree.map(jnp.zeros_like, model.scalar_head_of(value))
    return value if separate else model.scalar_head_of(value)


def make_state(optimizers, policy: dict, value: dict | None, kl_coef: jax.Array) -> ppo.PPOState:
    """A fresh state; the parameters are copied, because states are donated.

    Args:
      optimizers: optax transformations, of the policy (with a shared trunk, of the head too) and of the value model.
      value: parameters of a model of its own, of a head for the policy's trunk alone, or None.
    """
    policy, value = jax.tree.map(jnp.copy, (policy, value))
    if value and model.is_scalar_head(value):
        policy, value = policy | value, None
    return ppo.PPOState(
        train.init_state(policy, optimizers[0], ema=True),
        value and train.init_state(value, optimizers[1]),
        kl_coef,
    )


def state_maker(config: ppo.PPOConfig, mesh, rules, optimizers):
    """((policy, value parameters, kl_coef) -> PPOState on the mesh, jitted; its shardings); see make_state."""
    shape, value_shape = config.policy, config.value
    axes, value_axes, value = model.logical_axes(shape), None, None
    if config.shared_value:
        axes |= model.scalar_head_of(model.logical_axes(shape, "scalar"))
        value = model.scalar_head_of(model.param_shapes(shape, "scalar"))
    elif value_shape:
        value_axes, value = model.logical_axes(value_shape, "scalar"), model.param_shapes(value_shape, "scalar")
    make = functools.partial(make_state, optimizers)
    shapes = jax.eval_shape(make, model.param_shapes(shape), value, jax.ShapeDtypeStruct((), jnp.float32))
    shard = functools.partial(train.state_shardings, mesh=mesh, rules=rules)
    shardings = ppo.PPOState(
        shard(shapes.policy, optimizers[0], axes),
        shapes.value and shard(shapes.value, optimizers[1], value_axes),
        sharding.replicated(mesh),
    )
    return jax.jit(make, out_shardings=shardings), shardings
