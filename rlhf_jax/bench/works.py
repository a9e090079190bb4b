"""The works of the benchmark: the programs that the stages run, on random weights and tokens."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import generate, model, optim, ppo, train
from rlhf_jax.bench import workload
from rlhf_jax.bench.drawn import drawn_lengths
from rlhf_jax.bench.workload import Cost, Workload, timed
from rlhf_jax.data import ranking_batches
from rlhf_jax.data.batches import Batch, Comparisons, Prompts
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import memory, work
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.stages import pretrain, reward_model

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
COMPLETIONS = 9  # K of the paper: 36 pairs of a prompt


def sft_step(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of an SFT step: forward, backward and AdamW on a batch of rows as long as the context."""
    shape, lm = (config.batch_size, config.model.max_length), workload.model_of(config)
    batch = whole_rows(workload.tokens_of(config, shape))
    loss_fn = functools.partial(pretrain.token_loss, lm)
    run, found = _training(loss_fn, model.init_params(lm, jax.random.key(0)), batch)
    cost = Cost(work.training(lm, *shape, batch.tokens.size).flops)
    weights = 4 * work.parameters(lm)
    parts = memory.training(lm, workload.one_device(), *shape, shape[1], 1, weights)
    planned = 3 * weights + sum(parts.values())  # the weights and both moments of Adam
    numbers = {"sequences": shape[0], "length": shape[1]}
    return Workload(run, batch.tokens.size, numbers, {"step": cost}, planned, found)


def reward_step(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of a reward model step: forward, backward and AdamW on a batch of pairs."""
    shape = config.batch_size, 2, config.model.max_length
    ranks = np.broadcast_to(np.array([1, 2], np.int32), shape[:2])
    batch = Comparisons(workload.tokens_of(config, shape), np.ones(shape, bool), ranks, np.ones(shape[:2], bool))
    return _reward_training(config, batch, batch.tokens.size, {"pairs": shape[0], "length": shape[2]})


def reward_step_packed(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of a reward model step on prompts with 9 completions each, which are 36 pairs.

    A row has a prompt and all its completions, as the stage packs them, and is about as long as the context. There are
    as many rows as an SFT step has. The tokens are those without padding.
    """
    length, rows, rng = config.model.max_length, config.batch_size, np.random.default_rng(0)
    part = max(1, length // (COMPLETIONS + 1) - 1)  # letters, a token each, beside the token that ends a completion
    tokenizer = Tokenizer.train(["word"] * 1000, min(300, config.model.vocab_size))

    def text(words):
        return "".join(chr(ord("a") + letter) for letter in rng.integers(0, 26, words))

    rankings = [
        Ranking(
            text(part), tuple(text(part) for _ in range(COMPLETIONS)), tuple(range(1, COMPLETIONS + 1)), *[None] * 4, {}
        )
        for _ in range(rows)
    ]
    examples, _ = ranking_batches.pack_rankings(rankings, tokenizer, length, length - 1, length)
    tokens = int((examples.segment_ids != 0).sum())
    shape = {"prompts": rows, "completions": COMPLETIONS, "length": length, "tokens": tokens}
    return _reward_training(config, examples, tokens, shape)


def _reward_training(config, batch, tokens: int, shape: dict[str, int]) -> Workload:
    lm = workload.model_of(config)
    loss_fn = functools.partial(reward_model.reward_loss, lm, "kwise")
    run, found = _training(loss_fn, model.init_params(lm, jax.random.key(0), head="scalar"), batch)
    length = batch.tokens.shape[-1]
    return Workload(
        run, tokens, shape, {"step": Cost(work.training(lm, batch.tokens.size // length, length).flops)}, found=found
    )


def sample(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of sampling: prefill and decoding at temperature 1. Its tokens are those of the completions."""
    return _sampling(config, np.full(config.episodes, config.completion_length), None)


def sample_drawn(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of sampling completions that end at drawn lengths, each row in a slot of its own."""
    lengths = drawn_lengths(config.episodes, config.completion_length)
    return _sampling(config, lengths, lengths)


def sample_drawn_slots(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of `sample_drawn` in `slots` slots, each of which takes the next prompt when it has ended."""
    lengths = drawn_lengths(config.episodes, config.completion_length)
    return _sampling(config, lengths, lengths, config.slots)


def _sampling(config, lengths: np.ndarray, limits: np.ndarray | None, slots: int = 0) -> Workload:
    params = model.init_params(workload.model_of(config), jax.random.key(0))
    draw, found = sampler(config, limits, slots), {"lengths": []}

    def run():
        rollout, seconds = timed("sample", draw, params)
        found["lengths"] = np.asarray(rollout.completion_mask).sum(1).tolist()
        return seconds

    shape = workload.episode_shape(config) | {"slots": slots or config.episodes}
    if limits is not None:
        shape |= {"mean_length": round(float(lengths.mean()), 1), "longest": int(lengths.max())}
    costs = {"sample": _sampling_cost(config, lengths)}
    return Workload(run, int(lengths.sum()), shape, costs, found=found)


def _sampling_cost(config, lengths: np.ndarray) -> Cost:
    """Returns the FLOPs of sampling, and the bytes that decoding reads at least.

    The bytes are the weights once for a step of as many rows as there are, as if no row had ended before another, and
    the keys and values of each row as far as they are filled.
    """
    lm = workload.model_of(config)
    prompts, lengths = np.full(len(lengths), config.prompt_length), lengths.astype(np.int64)
    places = config.prompt_length + config.completion_length
    decoding = work.decoding(lm, prompts, lengths, places, workload.one_device())
    filled = decoding.bytes_read(len(lengths)) - decoding.weights * int(lengths.max() - 1)
    return Cost(work.sampling(lm, prompts, lengths).flops, filled + decoding.weights * float(np.mean(lengths - 1)))


def ppo_iteration(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of a PPO iteration: sampling, scoring and one epoch of updates, with four separate models.

    Its tokens are those of prompts and completions.
    """
    return _ppo(config, 0)


def ppo_ptx_iteration(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of `ppo_iteration` with `ptx_ratio` pretraining rows for each episode, as long as an episode."""
    return _ppo(config, config.ptx_ratio)


def _ppo(config: ml_collections.ConfigDict, ptx_ratio: int) -> Workload:
    lm, minibatches = workload.model_of(config), config.minibatches
    programs = ppo.PPOConfig(lm, lm, eos_id=workload.NEVER, missing_eos="none", ptx_microbatches=max(1, ptx_ratio))
    optimizer = optim.make_optimizer(optim.OptimizerConfig())
    draw = sampler(config)
    score = jax.jit(ppo.make_score(programs, ppo.SequenceScore(lm)))
    update = jax.jit(ppo.make_update(programs, optimizer, optimizer), donate_argnums=0)
    keys = jax.random.split(jax.random.key(0), 4)
    policy, ref = (model.init_params(lm, key) for key in keys[:2])
    value, reward = (model.init_params(lm, key, head="scalar") for key in keys[2:])
    ref, reward = ppo_programs.frozen_params(lm, ref, reward)
    state = ppo.PPOState(train.init_state(policy, optimizer), train.init_state(value, optimizer), jnp.float32(0.1))
    del policy, value  # they would be a second copy beside the state's, which is donated
    coefs = workload.coefficients(1.0 if ptx_ratio else 0.0)
    length = config.prompt_length + config.completion_length
    rows = config.episodes, ptx_ratio * config.episodes // minibatches
    ptx = whole_rows(workload.tokens_of(config, (rows[1], length))) if ptx_ratio else None
    found: dict[str, list] = {"lengths": [], "ratio": []}

    parts = [np.arange(index, config.episodes, minibatches) for index in range(minibatches)]

    def updates(state, experience):
        metrics = []
        for part in parts:
            state, step_metrics = update(state, jax.tree.map(lambda x: x[part], experience), ptx, coefs)
            metrics.append(step_metrics)
        return state, metrics

    def run():
        nonlocal state
        rollout, seconds = timed("sample", draw, state.policy.params)
        models = state.policy.params, state.value.params, ref, reward
        (experience, _), score_seconds = timed("score", score, *models, rollout, state.kl_coef, coefs, parts)
        (state, metrics), update_seconds = timed("update", updates, state, experience)
        found["lengths"] = np.asarray(rollout.completion_mask).sum(1).tolist()
        found["ratio"] = [float(metrics[0]["ppo/policy/ratio"])]
        return seconds | score_seconds | update_seconds

    logits = config.episodes * config.completion_length
    with_logits, without = (work.forward(lm, config.episodes, length, n).flops for n in (logits, 0))
    trained = work.training(lm, config.episodes, length, logits) + work.training(lm, config.episodes, length)
    if ptx_ratio:
        trained += work.training(lm, rows[1] * minibatches, length, rows[1] * minibatches * length)
    costs = {
        "sample": _sampling_cost(config, np.full(config.episodes, config.completion_length)),
        "score": Cost(2 * (with_logits + without)),
        "update": Cost(trained.flops),
    }
    shape = {**workload.episode_shape(config), "minibatches": minibatches, "ptx_rows": rows[1] * minibatches}
    return Workload(run, config.episodes * length, shape, costs, found=found)


def whole_rows(tokens: np.ndarray) -> Batch:
    """Returns rows of one text each as a Batch: every token but the first is a target."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Batch(tokens, (positions > 0).astype(np.float32), np.ones(tokens.shape, np.int32), positions)


def prompts_of(config: ml_collections.ConfigDict) -> Prompts:
    """Returns the prompts of the episodes, all of the same length."""
    shape = config.episodes, config.prompt_length
    return Prompts(workload.tokens_of(config, shape), np.ones(shape, bool), np.arange(shape[0], dtype=np.int32))


def sampler(
    config: ml_collections.ConfigDict, limits: np.ndarray | None = None, slots: int = 0
) -> Callable[[dict], generate.Rollout]:
    """Returns a function params -> Rollout, which draws new noise at every call; limits and slots are `sample`'s."""
    draw = generate.Sampler(
        workload.model_of(config),
        workload.one_device(),
        completion_length=config.completion_length,
        eos_id=workload.NEVER,
        pad_id=0,
        slots=slots,
    )
    calls = itertools.count()
    return lambda params: draw(params, prompts_of(config), jax.random.key(next(calls)), 1.0, limits=limits)


def greedy(config: ml_collections.ConfigDict, length: int) -> list[int]:
    """Returns the first `length` tokens of the most likely completion of the first prompt, by the weights of `sample`."""
    lm = workload.model_of(config)
    prompts, params = prompts_of(config), model.init_params(lm, jax.random.key(0))
    one = Prompts(prompts.tokens[:1], prompts.mask[:1], prompts.index[:1])
    draw = generate.Sampler(lm, workload.one_device(), completion_length=length, eos_id=workload.NEVER, pad_id=0)
    return np.asarray(draw(params, one, jax.random.key(0), 0.0).completions)[0].tolist()


def _training(loss_fn: train.LossFn, params: dict, batch) -> tuple[Callable[[], dict[str, float]], dict[str, list]]:
    """Returns a function that takes one step with the train step of all stages and returns its seconds, and its losses."""
    optimizer = optim.make_optimizer(optim.OptimizerConfig(weight_decay=WEIGHT_DECAY))
    rows, weights = len(batch.tokens), sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    parts = memory.free_parts(jax.devices()[0].platform, rows, batch.tokens.size // rows, weights)
    step = jax.jit(train.make_train_step(loss_fn, optimizer, lambda step: 1.0, parts), donate_argnums=0)
    state, batch = train.init_state(params, optimizer), jax.device_put(batch)
    arguments = batch, jnp.float32(LEARNING_RATE), jax.random.key(0)
    found: dict[str, list] = {"loss": []}

    def run():
        nonlocal state
        (state, metrics), seconds = timed("step", step, state, *arguments)
        found["loss"].append(float(metrics["loss"]))
        return seconds

    return run, found


# Names of these works; host.py and sweeps.py have more.
WORKS = {
    function.__name__: function
    for function in (
        sft_step,
        reward_step,
        reward_step_packed,
        sample,
        sample_drawn,
        sample_drawn_slots,
        ppo_iteration,
        ppo_ptx_iteration,
    )
}
