"""Who judges the policies of a run: reward models, and the reference that KL and win rates refer to.

The reward models are the finished reward stages of the run, and after them the sources (see sources.py) and the reward
functions (see fields/rewards.py) that its stages are rewarded by. The reference is the first SFT stage; in a run without
SFT stages, it is what the policy started from.
"""

import numpy as np

from rlhf_jax import loop, sharding, weights
from rlhf_jax.data import batches, loader, text_batches
from rlhf_jax.evaluate import scorer
from rlhf_jax.evaluate.answers import completion_logprob
from rlhf_jax.fields import registry, rewards
from rlhf_jax.generate import Rollout
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sources import Source, named

_REWARDS = ("reward", "judges")  # the fields in which a stage names the reward models that judge its completions


def reward_models(run: Run) -> dict[str, str]:
    """Returns the reward models and functions that can judge now: name in tables and metrics -> name in the config."""
    found = {stage: stage for stage in run.giving("reward")}
    for stage in run.config.stages:
        if registry.of(run.config, stage).gives in ("policy", "completions"):
            for field, name in named(run.config[stage]):
                source = _source(run, name) if field in _REWARDS and name not in run.config else None
                if source and scorer.reads_ids(run, name, source):
                    found[label(run, name)] = name
            for reward in rewards.functions(run.config[stage]):
                found[_function_label(run, reward)] = reward.text
    return found


def label(run: Run, name: str) -> str:
    """Returns the name of a reward in tables and metrics: that of a stage or function, or the short one of a source.

    Where another one has that name too, it is the text in the config.
    """
    reward = rewards.one(name)
    if reward.function:
        return _function_label(run, reward)
    if reward.name != name:
        return reward.name
    source = None if name in run.config else _source(run, name)
    if source is None:
        return name
    others = {other for stage in run.config.stages for _, other in named(run.config[stage])} - {name, *run.config}
    taken = {other.label for other in (_source(run, other) for other in others) if other and other != source}
    taken.update(run.config.stages, (function.name for function in _functions(run)))
    return name if source.label in taken else source.label


def _functions(run: Run) -> list[rewards.Reward]:
    """Returns the reward functions that the stages name."""
    return [reward for stage in run.config.stages for reward in rewards.functions(run.config[stage])]


def _function_label(run: Run, reward: rewards.Reward) -> str:
    """Returns the name of a reward function, or its text where a stage or an earlier function has that name."""
    first = next((other for other in _functions(run) if other.name == reward.name), reward)
    return reward.name if first.text == reward.text and reward.name not in run.config.stages else reward.text


def _source(run: Run, name: str) -> Source | None:
    """Returns the source of a name; None if it is no longer there: what it has judged stays judged."""
    try:
        return run.source(name, last="reward")
    except InputError:
        return None


def reference_of(run: Run, stage: str) -> str | None:
    """Returns the name in the config of the policy that the KL and the win rate of a stage refer to.

    It is None if the stage started from random weights, or as long as the reference is not finished.
    """
    if any(registry.of(run.config, name).reference for name in run.config.stages):
        return next(iter(run.stages(lambda kind: kind.reference)), None)
    init = run.config[stage].get("init")
    if not init or init in run.config:
        return init if init in run.giving("policy") and run.shape(init) == run.model else None
    return init if _source(run, init) else None


def judge(run: Run, stage: str, rows: list[dict], temperature: float) -> None:
    """Fills in the scores and the KL that rows of samples lack, as far as there are judges."""
    add_scores(run, rows)
    reference = reference_of(run, stage)
    if rows[0]["kl"] is not None or reference is None or not kl_is_known(run, stage, reference):
        return
    by_formula = registry.of(run.config, stage).kl_by_formula
    if reference == stage or by_formula:
        nats = 0.0 if reference == stage else by_formula(run.config[stage])
        for row in rows:
            row["kl"] = nats
    else:
        params = weights.load_params(run, reference)
        for row, logprob in zip(rows, _logprobs(run, params, _records(run, rows), rows, temperature)):
            row["kl"] = row["logprob"] - float(logprob)


def kl_is_known(run: Run, stage: str, reference: str) -> bool:
    """Whether the KL of a stage's policy to the reference can be computed: that of best of n only if it draws from it."""
    section = run.config[stage]
    return not registry.of(run.config, stage).kl_by_formula or section.init == reference


def add_scores(run: Run, rows: list[dict]) -> None:
    """Fills in the `scores` of every reward model, and `score`, that of the first, by which policies are compared."""
    said = [[row[name] for row in rows] for name in ("completion", "finished", "tokens")]
    models = reward_models(run)
    for row in rows:
        row.setdefault("scores", {})  # rows of an older version have none
    for shown, name in models.items():
        if shown not in rows[0]["scores"]:
            scores = scorer.scorer_of(run, name)(_records(run, rows), *said)
            for row, score in zip(rows, scores):
                row["scores"][shown] = float(score)
    for row in rows if models else []:
        row["score"] = row["scores"][next(iter(models))]


def prompt_arrays(run: Run, records) -> batches.Prompts:
    """Returns the prompts of records as arrays, without those that are too long."""
    config = run.config
    return text_batches.batch_prompts(records, run.tokenizer, config.prompt_length, too_long=config.too_long)[0]


def _records(run: Run, rows: list[dict]) -> list:
    """Returns the test prompts that rows of samples answer."""
    prompts = run.corpus.prompts("test", "ppo")
    return [prompts[row["index"]] for row in rows]


def _logprobs(run: Run, params: dict, records, rows: list[dict], temperature: float) -> np.ndarray:
    """Returns the log pi f32[B] of the sampled tokens of rows, under the given parameters."""
    prompts = prompt_arrays(run, records)
    tokens = np.full((len(rows), run.config.completion_length), run.tokenizer.pad_id, np.int32)
    mask = np.arange(tokens.shape[1]) < np.array([[len(row["tokens"])] for row in rows])
    tokens[mask] = np.concatenate([row["tokens"] for row in rows])
    rollouts = Rollout(
        np.concatenate([prompts.tokens, tokens], axis=1), prompts.mask, mask, np.zeros(mask.shape, np.float32)
    )
    found, size = [], run.config.evaluate.batch_size
    parts = loader.in_order(rollouts, size)
    for batch in loop.each(run, "evaluation, KL to the reference", parts, -(-len(rows) // size)):
        batch = sharding.put_batch(batch, run.mesh)
        found.append(hosts.fetch(completion_logprob(run.model, params, batch, temperature)))
    return np.concatenate(found)[: len(rows)]
