"""The part of a policy's evaluation that runs on the devices: the programs that turn batches of questions into answers.

All policies of a run get the same questions. Questions and answers are arrays on the host; policy.py and skills.py turn the
answers into rows and estimates.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import loop, model, ppo, sampling, sharding
from rlhf_jax.data.batches import Batch, Prompts
from rlhf_jax.generate import Rollout
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts


class Questions(NamedTuple):
    """What a run asks each of its policies, in batches; each of the lists may be empty."""

    samples: list[
        tuple[Prompts, np.ndarray, np.float32]
    ]  # test prompts, the data u32[...] of a random key, and temperature
    skills: list[Prompts]  # few-shot items, answered greedily
    documents: list[Batch]  # held-out text
    demonstrations: Sequence[Prompts] = ()  # prompts of test demonstrations, answered greedily


class Answers(NamedTuple):
    """What a policy answers, batch by batch, including the rows that only fill up the last batch."""

    samples: list[tuple[Rollout, np.ndarray]]  # completions, and their log pi f32[B] at the temperature
    skills: list[Rollout]
    documents: list[tuple[np.ndarray, np.ndarray]]  # the losses and numbers of targets of `row_losses`
    demonstrations: list[Rollout]


def ask(run: Run, programs: "EvaluationPrograms", params: dict, questions: Questions) -> Answers:
    """Asks a policy, or several at once if params, questions and programs have a leading axis of trials.

    Raises:
      progress.Stopped: the run was asked to stop before all questions were answered.
    """

    def each(part, program, batches):
        work = loop.each(run, f"evaluation, {part}", batches, len(batches))
        return [hosts.fetch(program(params, batch)) for batch in work]

    return Answers(
        each("samples", programs.sample, questions.samples),
        each("skills", programs.answer, questions.skills),
        each("pretraining loss", programs.losses, questions.documents),
        each("demonstrations", programs.demonstrate, questions.demonstrations),
    )


class EvaluationPrograms:
    """The programs of one run; each takes parameters and a batch of questions, and answers on the mesh."""

    def __init__(self, run: Run):
        self._shape, self._mesh, rows = run.model, run.mesh, run.config.evaluate.batch_size
        self._sampler = sampling.sampler(run, run.config.completion_length, rows)
        self._answerer = sampling.sampler(run, run.config.evaluate.skill_completion_length, rows)

    def sample(self, params: dict, batch) -> tuple[Rollout, jax.Array]:
        prompts, key, temperature = batch
        rollout = self._sampler(params, prompts, jax.random.wrap_key_data(key), temperature)
        return rollout, completion_logprob(self._shape, params, rollout, temperature)

    def answer(self, params: dict, prompts: Prompts) -> Rollout:
        return self._answerer(params, prompts, jax.random.key(0), temperature=0.0)  # greedy: the key is not used

    def demonstrate(self, params: dict, prompts: Prompts) -> Rollout:
        return self._sampler(params, prompts, jax.random.key(0), temperature=0.0)  # greedy, as above

    def losses(self, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return row_losses(self._shape, params, sharding.put_batch(batch, self._mesh))


@functools.partial(jax.jit, static_argnums=0)
def completion_logprob(config: TransformerConfig, params: dict, rollout: Rollout, temperature):
    """The log pi f32[B] of whole completions at the sampling temperature, by teacher forcing."""
    return jnp.sum(ppo.completion_logprobs(config, params, rollout, temperature), axis=1)


@functools.partial(jax.jit, static_argnums=0)
def row_losses(config: TransformerConfig, params: dict, batch: Batch):
    """The summed negative log-likelihood f32[B] of each row, in nats, and its number of targets f32[B]."""
    hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
    logprobs = model.target_logprobs(config, params, hidden[:, :-1], batch.tokens[:, 1:])
    targets = batch.loss_mask[:, 1:]
    return -jnp.sum(jnp.where(targets > 0, logprobs, 0.0), axis=1), jnp.sum(targets, axis=1)
