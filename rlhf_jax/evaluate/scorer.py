"""Reward models as judges of completions: of one's own run, of a released folder, or of another run."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate, loop, model, ppo, sampling, sharding, weights
from rlhf_jax.data.batches import Comparisons, PackedComparisons
from rlhf_jax.data.loader import in_order
from rlhf_jax.data.ranking_batches import batch_rankings
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import rewards
from rlhf_jax.model import TransformerConfig
from rlhf_jax.rewards.functions import RewardFunction
from rlhf_jax.run import Run, open_run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import shown
from rlhf_jax.sources import Source, Trained, is_run


def completion_scores(config: TransformerConfig, params: dict, batch: Comparisons | PackedComparisons) -> jax.Array:
    """Scores f32[B, K]: the scalar on the last real token of each completion."""
    if isinstance(batch, PackedComparisons):
        hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
        last = jnp.take_along_axis(hidden, batch.ends[..., None], axis=1)
        return model.scalar_head(config, params, last)

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    scores = ppo.sequence_scores(config.of_rows(1), params, flat(batch.tokens), flat(batch.mask))
    return scores.reshape(batch.valid.shape)


_scores = jax.jit(ppo.sequence_scores, static_argnums=0)  # compiled once for all scorers
_BATCH_TOKENS = 4096  # of a batch, on each device that shares the rows


class Scorer:
    """Scores completions with a reward model, its bias included: (prompts, completions, finished, sampled) -> f32[N].

    Args:
      run: whose tokenizer and lengths hold.
      stage: the reward model's; by default the run's last finished one.
      params: its parameters; by default what the stage wrote.
      asker: the run whose policies are scored; by default the same.
      stops: whether an interrupt stops the scoring, which loses its work; a validation within a stage goes on to its end.
    """

    def __init__(
        self,
        run: Run,
        stage: str | None = None,
        params: dict | None = None,
        asker: Run | None = None,
        stops: bool = True,
    ):
        asker = asker or run
        self._run, self._mesh, self._asker, self._stops = run, asker.mesh, asker, stops
        self._reads_ids = run.tokenizer.same_ids(asker.tokenizer)
        if stage is None:
            stages = run.giving("reward")
            if not stages:
                raise InputError(f"{run.path} has no finished reward_model stage; finish one there first")
            stage = stages[-1]
        self._name = pathlib.Path(stage).name
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

    def read(self, prompts: list[Prompt]) -> np.ndarray:
        """Returns the places i64[n] of the prompts that are not too long for the reward model."""
        config = self._run.config
        return batch_prompts(prompts, self._run.tokenizer, config.prompt_length, config.too_long)[0].index

    def score_arrays(self, arrays: Comparisons) -> np.ndarray:
        """f32[N, K] of comparisons that are batched already; 0 where there is no completion.

        Equal sequences are scored once. Sequences of about the same length share a batch, so that little of it is padding;
        the scores are those of rows of the full length, up to rounding.
        """
        tokens, lengths = arrays.tokens[arrays.valid], arrays.mask[arrays.valid].sum(-1)
        places: dict[bytes, int] = {}
        keys = [ids[:length].tobytes() for ids, length in zip(tokens, lengths)]
        firsts = [number for number, key in enumerate(keys) if places.setdefault(key, number) == number]
        found = np.zeros(len(tokens), np.float32)
        ways = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        batches = list(batches_of(lengths, firsts, tokens.shape[1], ways))
        for width, size, rows in self._shown(batches):
            batch = np.zeros((size, width), np.int32)
            batch[: len(rows)] = tokens[rows, :width]
            mask = np.arange(width) < np.pad(lengths[rows], (0, size - len(rows)))[:, None]
            scores = _scores(self._shape, self._params, *sharding.put_batch((batch, mask), self._mesh))
            found[rows] = hosts.fetch(scores)[: len(rows)]
        scores = np.zeros(arrays.valid.shape, np.float32)
        scores[arrays.valid] = found[[places[key] for key in keys]]
        return scores

    def _shown(self, batches: list) -> Iterable:
        """The batches, with progress where they are more than an answer in a chat."""
        name = f"scores by {self._name}"
        if len(batches) == 1 and len(batches[0][2]) < 8:
            return batches
        if self._stops:
            return loop.each(self._asker, name, batches, len(batches))
        return shown(name, batches, len(batches))


def batches_of(
    lengths: np.ndarray, rows: Sequence[int], longest: int, ways: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (width, size, rows): batches of `size` rows of `width` tokens, of which the first are the given ones.

    The longest come first, so that a lack of memory shows at once. Widths and sizes are few, because each pair of them is
    compiled.

    Args:
      lengths: i64[N], in tokens.
      rows: those that are wanted.
      longest: no row is wider.
      ways: number of devices that share the rows; a size is a multiple of it.
    """
    order = np.array(sorted(rows, key=lambda row: -lengths[row]), int)
    while len(order):
        width = min(longest, next(width for width in _widths() if width >= lengths[order[0]]))
        most = max(_BATCH_TOKENS // width, 1)
        while most // 4 * ways >= len(order):
            most //= 4
        yield width, most * ways, order[: most * ways]
        order = order[most * ways :]


def _widths() -> Iterator[int]:
    """64, 96, 128, 192, 256, ..."""
    return (width for power in itertools.count(6) for width in (2**power, 3 * 2 ** (power - 1)))


def scorer_of(run: Run, name: str, stops: bool = True) -> Scorer | RewardFunction:
    """Returns the scorer of a reward: a stage, a source (see sources.py), or a function (see fields/rewards.py).

    A whole work directory stands for its last reward model, and reads texts as its own run does. So does a stage of a run
    with other tokens.
    """
    reward = rewards.one(name)
    if reward.function:
        return RewardFunction(reward, "reward")
    name = reward.model
    if name in run.config:
        return Scorer(run, name, stops=stops)
    source = run.source(name, last="reward")
    run.note_models({name: source})
    if isinstance(source, Trained) and not reads_ids(run, name, source):
        other = open_run(str(source.workdir))
        return Scorer(other, source.name, asker=run, stops=stops)
    return Scorer(run, name, stops=stops)


def reads_ids(run: Run, name: str, source: Source) -> bool:
    """Whether a source reads the tokens and lengths of this run, and not texts as its own run does."""
    if not isinstance(source, Trained):
        return True
    whole = any(is_run(pathlib.Path(folder, name)) for folder in (run.config.data.files.dir, "."))
    return not whole and Tokenizer.load(source.workdir).same_ids(run.tokenizer)


class ValidationReward:
    """Mean reward score of a policy's samples on validation prompts: how the paper selects SFT models."""

    def __init__(self, run: Run, reward: str):
        self._run = run
        self._scorer = scorer_of(run, reward, stops=False)
        self._prompts = run.corpus.prompts("valid", "ppo")
        self._arrays, _ = batch_prompts(self._prompts, run.tokenizer, run.config.prompt_length, run.config.too_long)

    def __call__(self, params: dict) -> float:
        run = self._run
        texts, ended, sampled = [], [], []
        size = run.config.evaluate.batch_size
        batches = in_order(self._arrays, size)
        for number, batch in enumerate(shown("validation, samples", batches, -(-len(self._arrays.index) // size))):
            sampler = sampling.sampler(run, run.config.completion_length, size)
            rollout = sampler(params, batch, run.key("select", number), run.config.evaluate.temperature)
            more, more_ended = generate.texts(rollout, run.tokenizer)
            texts, ended, sampled = texts + more, ended + more_ended, sampled + generate.sampled(rollout)
        prompts = [self._prompts[place] for place in self._arrays.index]
        count = len(prompts)
        return float(self._scorer(prompts, texts[:count], ended[:count], sampled[:count]).mean())
