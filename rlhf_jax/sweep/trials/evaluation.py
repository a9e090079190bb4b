"""Samples the evaluation answers of many runs' policies in one program: evaluate.programs, batched over trials."""

import collections
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sharding, weights
from rlhf_jax.evaluate import policy
from rlhf_jax.evaluate.answers import Answers, Questions, ask, completion_logprob, row_losses
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts, progress
from rlhf_jax.sweep.trials import stacked as programs


def answers(runs: Sequence[Run], stage: str, at_once: int = 0) -> dict[int, tuple[Answers, float]]:
    """Returns the answers of a finished stage's policies, in the form that `policy.evaluate_policy` takes.

    Args:
      runs: the runs, which share a mesh and an interrupt.
      stage: name of the stage.
      at_once: the largest number of runs in one program; 0 sets no limit. If memory runs out, the number is halved.

    Returns:
      Place in `runs` -> (answers, seconds per run). A run has no entry if no other run has the same program and shapes,
      or if something failed; it is to be evaluated by itself.

    Raises:
      progress.Stopped: the process was asked to stop.
    """
    prepared, alike = {}, collections.defaultdict(list)
    for place, run in enumerate(runs):
        try:
            prepared[place] = policy.questions(run), hosts.fetch(weights.load_params(run, stage))
        except Exception as error:  # concerns this run only; it raises it again when it is evaluated by itself
            if hosts.lost_peer(error):
                raise
        else:
            leaves, tree = jax.tree.flatten(prepared[place][0])
            alike[_program(run), tree, tuple(map(np.shape, leaves))].append(place)
    found, waiting = {}, []
    for places in alike.values():
        size = at_once or len(places)
        waiting += [places[start : start + size] for start in range(0, len(places), size)]
    while waiting:
        places = waiting.pop(0)
        if len(places) == 1:
            continue
        print(f"{stage}: evaluation of {len(places)} arms", flush=True)
        started = time.monotonic()
        try:
            said = _together([runs[place] for place in places], *zip(*(prepared[place] for place in places)))
        except progress.Stopped:
            raise
        except Exception as error:  # no arm fails here, because each can still be evaluated by itself
            if hosts.count() > 1:  # other processes may be waiting inside the program
                raise
            if "RESOURCE_EXHAUSTED" in str(error):
                half = (len(places) + 1) // 2
                print(
                    f"{stage}: no memory to evaluate {len(places)} arms at once; {half} are evaluated and then the others",
                    flush=True,
                )
                waiting = [places[:half], places[half:], *waiting]
            else:
                print(
                    f"{stage}: {len(places)} arms are evaluated one by one, because of this error: {error!r}",
                    flush=True,
                )
        else:
            seconds = (time.monotonic() - started) / len(places)
            found |= {place: (own, seconds) for place, own in zip(places, said)}
    return found


def _program(run: Run) -> tuple:
    """Returns the arguments of StackedEvaluationPrograms for a run."""
    lengths = run.config.completion_length, run.config.evaluate.skill_completion_length
    return run.model, lengths, run.tokenizer.end_ids, run.tokenizer.pad_id, run.mesh


def _together(runs: Sequence[Run], questions: Sequence[Questions], params: Sequence[dict]) -> list[Answers]:
    """Returns the answers of runs with equal programs and shapes, computed together."""
    first = runs[0]
    # The stack is filled up with copies of the first run, so that it divides over the devices; they are not read.
    places = [*range(len(runs)), *[0] * (-len(runs) % first.mesh.size)]
    stacked = sharding.put_trials([params[place] for place in places], first.mesh)
    batches = Questions(
        *([list(batch) for batch in zip(*part)] for part in zip(*(questions[place] for place in places)))
    )
    said = ask(first, _programs(*_program(first)), stacked, batches)
    return [jax.tree.map(lambda answer, place=place: answer[place], said) for place in range(len(runs))]


class StackedEvaluationPrograms:
    """EvaluationPrograms for several trials.

    Parameters and answers have a leading axis of trials; a batch is a list with one batch per trial.

    Args:
      shape: shape of the policies.
      lengths: completion lengths of samples and of the skill tests' answers, in tokens.
      eos_id: the token ids that end a completion.
      pad_id: the token id of padding.
      mesh: the devices over which the trials are split.
    """

    def __init__(self, shape: TransformerConfig, lengths: tuple[int, int], eos_id, pad_id: int, mesh):
        draw, complete = (programs.draw_of(shape, length, eos_id, pad_id) for length in lengths)

        def greedy(write):
            return lambda params, prompts: write(
                params, prompts.tokens, prompts.mask, jax.random.key(0), jnp.float32(0.0)
            )

        def sample(params, batch):
            prompts, key, temperature = batch
            rollout = draw(params, prompts.tokens, prompts.mask, jax.random.wrap_key_data(key), temperature)
            return rollout, completion_logprob(shape, params, rollout, temperature)

        def program(function):
            run = programs.spread(function, mesh)
            return lambda params, batches: run(params, sharding.put_trials(batches, mesh))

        self.sample, self.answer, self.demonstrate = program(sample), program(greedy(complete)), program(greedy(draw))
        self.losses = program(functools.partial(row_losses, shape))


@functools.lru_cache(maxsize=16)
def _programs(
    shape: TransformerConfig, lengths: tuple[int, int], eos_id, pad_id: int, mesh
) -> StackedEvaluationPrograms:
    """Returns StackedEvaluationPrograms, cached by its arguments, so that each is compiled once."""
    return StackedEvaluationPrograms(shape, lengths, eos_id, pad_id, mesh)
