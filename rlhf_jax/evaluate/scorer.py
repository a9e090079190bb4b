"""Reward models as judges of completions: of one's own run, of a released folder, or of another run."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate, model, ppo, sampling, sharding, weights
from rlhf_jax.data.batches import Comparisons, PackedComparisons
from rlhf_jax.data.loader import in_order
from rlhf_jax.data.ranking_batches import batch_rankings
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run, open_run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sources import Trained, is_run


def completion_scores(config: TransformerConfig, params: dict, batch: Comparisons | PackedComparisons) -> jax.Array:
    """Scores f32[B, K]: the scalar on the last real token of each completion."""
    if isinstance(batch, PackedComparisons):
        hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
        last = jnp.take_along_axis(hidden, batch.ends[..., None], axis=1)
        return model.scalar_head(config, params, last)

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    scores = ppo.sequence_scores(config, params, flat(batch.tokens), flat(batch.mask))
    return scores.reshape(batch.ranks.shape)


_scores = jax.jit(completion_scores, static_argnums=0)  # compiled once for all scorers


class Scorer:
    """Scores completions with a reward model, its bias included: (prompts, completions, finished, sampled) -> f32[N].

    Args:
      run: whose tokenizer and lengths hold.
      stage: the reward model's; by default the run's last finished one.
      params: its parameters; by default what the stage wrote.
      asker: the run whose policies are scored; by default the same.
    """

    batch_size = 256

    def __init__(self, run: Run, stage: str | None = None, params: dict | None = None, asker: Run | None = None):
        asker = asker or run
        self._run, self._mesh = run, asker.mesh
        self._reads_ids = run.tokenizer.same_ids(asker.tokenizer)
        if stage is None:
            stages = run.giving("reward")
            if not stages:
                raise InputError(f"{run.path} has no finished reward_model stage; finish one there first")
            stage = stages[-1]
        self._shape = run.shape(stage)
        self._params = weights.load_params(run, stage, "scalar") if params is None else params

    def __call__(
        self, prompts: list[Prompt], completions: list[str], finished: list[bool], sampled: list | None = None
    ) -> np.ndarray:
        """
        Args:
          sampled: the token ids of completions that a policy wrote, with the one that ended each: PPO's reward is the
            score of these, and the same text tokenized anew can have others, and more. They are read wherever the
            reward model has the policy's tokenizer. None: there are texts alone.
        """
        sampled = sampled if sampled is not None and self._reads_ids else [None] * len(completions)
        rows = [
            Ranking(prompt.prompt, (text,), (1,), None, None, None, (bool(end),), {}, sampled=ids and (ids,))
            for prompt, text, end, ids in zip(prompts, completions, finished, sampled, strict=True)
        ]
        config = self._run.config
        length = config.prompt_length + config.completion_length
        arrays, report = batch_rankings(
            rows, self._run.tokenizer, length, config.prompt_length, too_long=config.too_long
        )
        if report.dropped:
            raise InputError(
                f"{report.dropped} prompts are longer than prompt_length={config.prompt_length} of {self._run.path}; "
                "give a reward model of longer prompts"
            )
        return self.score_arrays(arrays)[:, 0]

    def score_arrays(self, arrays: Comparisons) -> np.ndarray:
        """f32[N, K] of comparisons that are batched already."""
        size = max(1, self.batch_size // arrays.ranks.shape[1])
        ways = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        size = -(-size // ways) * ways
        parts = [
            hosts.fetch(_scores(self._shape, self._params, sharding.put_batch(batch, self._mesh)))
            for batch in in_order(arrays, size)
        ]
        return np.concatenate(parts)[: len(arrays.ranks)]


def scorer_of(run: Run, name: str) -> Scorer:
    """Returns the scorer of a reward model: of a stage, or of a source (see sources.py).

    A whole work directory stands for its last reward model, and reads texts as its own run does. So does a stage of a run
    with other tokens.
    """
    if name in run.config:
        return Scorer(run, name)
    source = run.source(name, last="reward")
    if isinstance(source, Trained):
        other = open_run(str(source.workdir))
        if is_run(name) or not other.tokenizer.same_ids(run.tokenizer):
            return Scorer(other, source.folder.relative_to(source.workdir).as_posix(), asker=run)
    return Scorer(run, name)


class ValidationReward:
    """Mean reward score of a policy's samples on validation prompts: how the paper selects SFT models."""

    def __init__(self, run: Run, reward: str):
        self._run = run
        self._scorer = scorer_of(run, reward)
        self._prompts = run.corpus.prompts("valid", "ppo")
        self._arrays, _ = batch_prompts(self._prompts, run.tokenizer, run.config.prompt_length, run.config.too_long)

    def __call__(self, params: dict) -> float:
        run = self._run
        texts, ended, sampled = [], [], []
        for number, batch in enumerate(in_order(self._arrays, run.config.evaluate.batch_size)):
            sampler = sampling.sampler(run, run.config.completion_length)
            rollout = sampler(params, batch, run.key("select", number), run.config.evaluate.temperature)
            more, more_ended = generate.texts(rollout, run.tokenizer)
            texts, ended, sampled = texts + more, ended + more_ended, sampled + generate.sampled(rollout)
        prompts = [self._prompts[place] for place in self._arrays.index]
        count = len(prompts)
        return float(self._scorer(prompts, texts[:count], ended[:count], sampled[:count]).mean())
