"""The programs of a PPO stage for abstract inputs, with their work and their memory: for plans and forecasts."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rlhf_jax import abstract, lora, model, sampling, sharding
from rlhf_jax.advantages import ESTIMATORS
from rlhf_jax.fields import rewards as rewards_lib
from rlhf_jax.generate.turns import turns
from rlhf_jax.model import choice, memory, work
from rlhf_jax.ppo import packing, programs
from rlhf_jax.ppo.score import gathered_bytes
from rlhf_jax.ppo.state import PPOState
from rlhf_jax.run import Run
from rlhf_jax.stages import ppo_models, ppo_rewards


def programs_of(
    run: Run, stage: str, data: abstract.Data, make: Callable, compiled: programs.PPOPrograms
) -> list[abstract.Program]:
    """Returns the programs of an iteration, for abstract inputs, in the order in which they run.

    Args:
      run: the run.
      stage: name of the stage.
      data: the amounts of data, which have the lengths of prompts and completions.
      make: makes a PPOState; see ppo.programs.compiled.
      compiled: the programs.
    """
    config, section = run.config, run.config[stage]
    policy, value, models = run.model, ppo_models.value_shape_of(run, stage), ppo_rewards.models_of(section)
    rows, prompt, completion = section.batch_size, config.prompt_length, config.completion_length
    base, start = lora.split(abstract.params(run, policy, "lm"))
    value_params = value and lora.split(abstract.params(run, value, "scalar"))[1]
    if ESTIMATORS[section.advantage].reads_values and not value:  # a head on the policy's trunk
        value_params = model.scalar_head_of(abstract.params(run, policy, "scalar"))
    state = make.eval_shape(start, value_params, abstract.scalar())
    _, ref = lora.split(abstract.frozen(run, policy, "lm"))
    reward_params = ppo_rewards.trained(ppo_rewards.abstract_params(run, section))
    shared, frozen = {"base": base} if base else {}, {"frozen": (ref, reward_params)}
    prompts = abstract.rows_of(run, (rows, prompt), jnp.int32), abstract.rows_of(run, (rows, prompt), jnp.bool_)
    sharding.check_batch(prompts, run.mesh)
    layout, language_model = compiled.sample.layout, lora.joined(base, state.language_model)
    moved = layout.lacking(language_model)
    copy = layout.program.eval_shape(moved)
    laid_out = layout.filled(language_model, copy)
    sampled = *prompts, abstract.key(), abstract.scalar()
    rollout = compiled.sample.program.eval_shape(laid_out, *sampled)

    def sample_of_depth(layers):
        few = laid_out | {"layers": laid_out["layers"][:layers]}
        return compiled.sample.of_depth(layers).lower(few, *sampled)

    coefs = jax.eval_shape(lambda: programs.coefficients(section))
    hosted = len([reward for reward in rewards_lib.several(section.reward) if reward.function])
    given = abstract.rows_of(run, (rows, hosted), jnp.float32) if hosted else None
    picked = jax.ShapeDtypeStruct((section.minibatch_size,), jnp.int32)
    read = (
        state.policy.params,
        state.value_params,
        ref,
        reward_params,
        rollout,
        state.kl_coef,
        coefs,
        [picked] * (rows // section.minibatch_size),
        base,
        given,
        state.scales,
    )
    experience, _ = compiled.score.eval_shape(*read)
    minibatch = compiled.take.eval_shape(experience, picked)
    sharding.check_batch(minibatch, run.mesh)
    ptx, ptx_work = None, work.Work()
    if section.ptx_coef and section.ptx_ratio:
        ptx_rows = programs.ptx_rows(section)
        ptx_length = section.ptx_length or run.whole_length
        ptx = abstract.batch(run, ptx_rows, ptx_length)
        sharding.check_batch(ptx, run.mesh)
        ptx_work = work.training(policy, ptx_rows, ptx_length, ptx_rows * ptx_length, again=False)

    held = abstract.groups(state.policy, "policy ") | (abstract.groups(state.value, "value ") if value else {})
    length, part = prompt + completion, section.minibatch_size
    passed = {name: tree for name, tree in held.items() if name in ("policy parameters", "value parameters")}
    rest = {name: tree for name, tree in held.items() if name not in passed}
    once = {"policy parameters": passed["policy parameters"]}
    updates = section.ppo_epochs * (rows // part)
    lengths, room = data.lengths_of(rows, prompt, completion), (prompt, completion)

    slots = sampling.slots_of(run, rows)

    def cache(slots):
        return work.cache_bytes(policy, slots, length, run.mesh)

    def sampling_memory(change):
        own = change.get("slots", slots)
        return memory.sampling(policy, run.mesh, own, prompt, length, cache(own))

    split = run.parts(stage)

    def rows_at_once(change):
        return packing.rows_of_part(part, length, (split | change)["microbatches"], run.mesh)

    size = rows_at_once({})
    filled = packing.filled_parts(*lengths, part, size, room, packing.most_of(policy.attention))  # of all minibatches

    def packed(of, shape, **logits):
        return work.in_rows(of, shape, *lengths, filled * size, room, **logits)

    reading = packed(work.forward, policy)
    scalars = [run.shape(name) for name in models] + [value] * bool(value)
    scoring = sum((packed(work.forward, shape, logits=False) for shape in scalars), reading + reading)
    updating = packed(work.training, policy)
    if value:
        updating += packed(work.training, value, logits=False)
    updating *= part / rows
    # The loops whose turns depend on the lengths.
    scored_in = ["compared_parts", "referred_parts"] + ["valued_parts"] * bool(value)
    scored_in += [f"rewarded_parts_{number}" for number, _ in enumerate(models)]
    updated_in = ["policy_parts"] + ["value_parts"] * bool(value)
    # Score keeps the states of the reference, and a copy of the weights of one model after the other.
    ways = sharding.ways(run.mesh)
    states = memory.item(policy) * rows // ways * completion * policy.embed_dim
    gathered = _gathered_bytes(run, base, state, ref, value, models, reward_params)

    def scoring_memory(change):
        parts = rows // rows_at_once(change)
        found = memory.forward(policy, run.mesh, rows, length, completion, parts, memory.COMPARED)
        copies = gathered if change.get("gather_once", ppo_models.gathers(run, stage)) else 0
        return found | {"states": states} | ({"gathered weights": copies} if copies else {})

    microbatches = choice.parts(part, ways)
    updating_options = {"microbatches": microbatches}
    # An array that has the layout of sampling already is not copied, but read where it lies.
    moved_base, moved_policy = lora.split(moved)
    copied = (once if jax.tree.leaves(moved_policy) else {}) | (shared if jax.tree.leaves(moved_base) else {})
    everything = held | shared | frozen

    def at_once(count, parts):
        return memory.rows_at_once(count, parts, run.mesh), memory.rows_at_once(count, 1, run.mesh)

    updated = {"episodes": at_once(part, part // size)}
    if ptx is not None:
        updated["documents"] = at_once(ptx_rows, split["ptx_microbatches"])
        updating_options["ptx_microbatches"] = choice.parts(ptx_rows, ways)
    read_there = {name: tree for name, tree in (once | shared).items() if name not in copied}
    lay_out = abstract.Program(
        stage,
        "decode layout",
        lambda: layout.program.lower(moved),
        copied,
        {name: tree for name, tree in everything.items() if name not in copied},
        work.Work(),
        section.iterations,
    )
    return [lay_out] * bool(copied) + [
        abstract.Program(
            stage,
            "sample",
            lambda: compiled.sample.program.lower(laid_out, *sampled),
            {"decode copy": copy, "batch": prompts} | read_there,
            {name: tree for name, tree in everything.items() if name not in read_there},
            work.sampling(policy, *lengths),
            section.iterations,
            cache(slots),
            sampling_memory,
            turns(*lengths, prompt, compiled.sample.sizes, ways),
            options={"slots": [count for count in choice.rows_at_once(rows, ways) if count <= slots]},
            decoding=work.decoding(policy, *lengths, length, run.mesh),
            rows={"completions": (memory.rows_at_once(slots, 1, run.mesh), memory.rows_at_once(rows, 1, run.mesh))},
            of_depth=sample_of_depth if isinstance(laid_out["layers"], tuple) else None,
        ),
        abstract.Program(
            stage,
            "score",
            lambda: compiled.score.lower(*read),
            passed | frozen | shared | {"batch": rollout},
            rest,
            scoring,
            section.iterations,
            parts=dict.fromkeys(scored_in if rows > size else (), filled),
            temporaries=scoring_memory,
            options={"microbatches": microbatches} | ({"gather_once": [True, False]} if gathered else {}),
            rows={"episodes": at_once(rows, rows // size)},
        ),
        abstract.Program(
            stage,
            "update",
            lambda: compiled.update.lower(state, minibatch, ptx, coefs, base),
            held | shared | {"batch": (minibatch, ptx)},
            frozen | {"experience": experience},
            updating + ptx_work,
            section.iterations * updates,
            parts=dict.fromkeys(updated_in if part > size else (), filled * part / rows),
            temporaries=functools.partial(_update_memory, run, stage, policy, value, state),
            options=updating_options,
            rows=updated,
        ),
    ]


def _gathered_bytes(run: Run, base, state: PPOState, ref, value, models: list[str], reward_params) -> int:
    """Returns the bytes on each device of the copies of weights that score holds at once.

    It is one model's at a time, and beside that of the policy the head of the reference, because the two are compared.
    XLA ignores that order on CPUs, where all copies are held.
    """

    def copied(shape, params):
        return gathered_bytes(run.rules, shape, lora.joined(base, params), run.mesh)

    policy, reference = copied(run.model, state.policy.params), copied(run.model, ref)
    rewards = reward_params if isinstance(reward_params, tuple) else (reward_params,) * bool(models)
    others = [copied(value, state.value_params)] if value else []
    others += [copied(run.shape(name), params) for name, params in zip(models, rewards)]
    if run.mesh.devices.flat[0].platform == "cpu":
        return sum(sum(one.values()) for one in (policy, reference, *others))
    compared = policy | {"head of the reference": reference[model.lm_table(run.model)]}
    return max(sum(one.values()) for one in (compared, reference, *others))


def _update_memory(run: Run, stage: str, policy, value, state: PPOState, change: Mapping) -> dict[str, float]:
    """Returns what an update takes beside its arguments (see abstract.Program.temporaries).

    The gradients are those of the policy, of the value and of pretraining.
    """
    section = run.config[stage]
    weights = abstract.bytes_per_device(state.policy.params)

    whole: list[dict] = []
    in_parts: list[dict] = []

    def add(shape, rows, length, places, parts, weights):
        found = memory.training(shape, run.mesh, rows, length, places, parts, weights)
        (whole if parts == 1 else in_parts).append(found)

    part, completion = section.minibatch_size, run.config.completion_length
    split = run.parts(stage) | change
    parts = part // packing.rows_of_part(part, run.whole_length, split["microbatches"], run.mesh)
    add(policy, part, run.whole_length, completion, parts, weights)
    if value:
        own = abstract.bytes_per_device(state.value_params)
        add(value, part, run.whole_length, 0, parts, own)
    if section.ptx_coef and section.ptx_ratio:
        length = section.ptx_length or run.whole_length
        add(policy, programs.ptx_rows(section), length, length, split["ptx_microbatches"], weights)
    return memory.together(whole, in_parts, run.mesh.devices.flat[0].platform)
