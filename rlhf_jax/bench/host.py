"""The works of the host beside the steps: checkpoints and the loading of batches."""

import functools
import itertools
import tempfile

import jax
import ml_collections
import numpy as np

from rlhf_jax import checkpoint, model, optim, sharding, train
from rlhf_jax.bench import workload
from rlhf_jax.bench.workload import Workload, rounded, timed
from rlhf_jax.bench.works import sft_step
from rlhf_jax.data import loader as loader_lib
from rlhf_jax.data import packing, ranking_batches, text_batches
from rlhf_jax.data.records import Demonstration, Document, Ranking
from rlhf_jax.data.tokenizer import Tokenizer


def saving(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of the SFT steps between two checkpoints, with and without the writing of a checkpoint.

    Its parts are "steps", the steps alone; "steps_and_save", the steps while a checkpoint is written; and "blocked",
    the time that the first of these steps waits until the arrays of the checkpoint are copied.
    """
    step = sft_step(config)
    # The state that is saved is as large as SFT's: float32 weights and both moments.
    params = model.init_params(workload.model_of(config), jax.random.key(0))
    state = jax.block_until_ready(train.init_state(params, optim.make_optimizer(optim.OptimizerConfig())))
    folder = tempfile.TemporaryDirectory(prefix="rlhf_jax_bench_")
    checkpointer = checkpoint.Checkpointer(folder.name, keep=1)
    numbers = itertools.count(1)

    def steps():
        for _ in range(config.checkpoint_every):
            step.run()

    def save_and_steps():
        _, blocked = timed("blocked", checkpointer.save, next(numbers), state)
        steps()
        checkpointer.wait()
        return blocked

    def run():
        _, alone = timed("steps", steps)
        blocked, both = timed("steps_and_save", save_and_steps)
        return alone | both | blocked

    run.folder = folder  # keeps the temporary folder as long as the work exists
    return Workload(run, 2 * config.checkpoint_every * step.tokens, step.shape | {"steps": config.checkpoint_every})


def loading(config: ml_collections.ConfigDict) -> Workload:
    """Returns the work of loading a batch of every kind of examples onto the device, as the stages do.

    Its parts are the kinds.
    """
    mesh, length, rng = workload.one_device(), config.model.max_length, np.random.default_rng(0)
    texts = [" ".join(["word"] * int(n)) for n in rng.integers(1, max(2, length // 5), config.loader_rows)]
    tokenizer = Tokenizer.train([], 258)
    rows = [Demonstration(text[: length // 2], text[: length // 3], {}) for text in texts]
    rankings = [Ranking(row.prompt, (row.completion, "no"), (1, 2), None, None, None, None, {}) for row in rows]
    demonstrations, _ = text_batches.batch_demonstrations(rows, tokenizer, length)
    documents, _ = text_batches.pack_documents([Document(text) for text in texts], tokenizer, length)
    prompts, _ = text_batches.batch_prompts(rows, tokenizer, config.prompt_length, "cut_left")

    def one(examples, rows=config.batch_size):
        return loader_lib.Loader(examples, rows, 0, name="bench")

    loaders = {
        "documents": one(documents),
        "demonstrations": one(demonstrations),
        "demonstrations_packed": packing.PackedLoader(one(demonstrations), demonstrations, 0, steps=8),
        "rankings": one(ranking_batches.batch_rankings(rankings, tokenizer, length)[0]),
        "rankings_packed": one(ranking_batches.pack_rankings(rankings, tokenizer, length, length - 1)[0]),
        "prompts": one(prompts, config.episodes),
    }
    steps = itertools.count()

    def run():
        step, seconds = next(steps), {}
        for kind, loader in loaders.items():
            gather = functools.partial(loader.batch, step)
            seconds |= timed(kind, sharding.put_rows, gather, loader.batch_size, mesh)[1]
        return seconds

    batch_rows = {kind: len(loader.rows(0)) for kind, loader in loaders.items()}
    return Workload(run, sum(batch_rows.values()) * length, batch_rows)


# Kind of examples of the loader -> the work that consumes one batch of them.
_FEEDS = {
    "documents": "sft_step",
    "demonstrations": "sft_step",
    "demonstrations_packed": "sft_step",
    "rankings": "reward_step",
    "rankings_packed": "reward_step",
    "prompts": "ppo_iteration",
}


def against_steps(lines: dict[str, dict]) -> dict | None:
    """Returns a line that compares the loader's rows/s with those that the steps consume, by kind of examples.

    "share" is the loader's time over a step's time. The next batch is loaded while a step is computed, so a share below
    1 costs nothing.

    Args:
      lines: the lines of the measured works, by name.

    Returns:
      The line, with the kinds whose step was measured; None if there are none, or if the loader was not measured.
    """
    kinds = {}
    for kind, work in _FEEDS.items():
        if "loading" in lines and work in lines:
            rows, seconds = lines["loading"]["shape"][kind], lines["loading"]["parts"][kind]
            kinds[kind] = {
                "rows_per_second": rounded(rows / seconds),
                "needed": rounded(rows / lines[work]["seconds"]),
                "share": rounded(seconds / lines[work]["seconds"]),
            }
    return {"work": "loading_against_steps", "kinds": kinds} if kinds else None
