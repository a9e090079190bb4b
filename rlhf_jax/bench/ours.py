"""Our side of a comparison: the works of the benchmark; and what the other sides are given, the same weights and tokens."""

import pathlib

import jax
import ml_collections
import numpy as np

from rlhf_jax import hf, model
from rlhf_jax.bench import sides, workload, works
from rlhf_jax.runtime import machine

HEADS = {"reward_step": "scalar"}  # of the models whose weights others are given; "lm" elsewhere


def prepare(name: str, config: ml_collections.ConfigDict, folder: str) -> None:
    """Writes the weights and the tokens of a work, for other sides: a Hugging Face folder, and tokens.npy beside it."""
    path, lm, head = pathlib.Path(folder), workload.model_of(config), HEADS.get(name, "lm")
    shape: tuple[int, ...] = (config.batch_size, config.model.max_length)
    if name == "sample":
        shape = config.episodes, config.prompt_length
    if name == "reward_step":
        shape = shape[0], 2, shape[1]
    np.save(path / "tokens.npy", workload.tokens_of(config, shape))
    (path / "model").mkdir()
    hf.save(path / "model", lm, model.init_params(lm, jax.random.key(0), head=head), head=head)


def make(given: dict) -> sides.Work:
    """Returns the work `given["name"]` of the config `given["config"]`."""
    config = ml_collections.ConfigDict(given["config"])
    machine.give_back_after_compiling()
    jax.set_mesh(workload.one_device())
    work = works.WORKS[given["name"]](config)

    def found():
        greedy = {"greedy": works.greedy(config, given["greedy"])} if given["name"] == "sample" else {}
        return work.found | greedy

    return sides.Work(work.run, found, workload.peak_bytes)


if __name__ == "__main__":
    sides.serve(make)
