"""Abstract programs of a stage, for the planner: the inputs are shapes, dtypes and shardings without any data.

No array is made here, and nothing is computed. Each trained kind of stage lists its programs
(`registry.Stage.programs`), built from the functions that the stage itself calls.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import lora, model, sharding, weights
from rlhf_jax.data.batches import Batch
from rlhf_jax.model import lengths
from rlhf_jax.model.lengths import Lengths
from rlhf_jax.model.work import Decoding, Work
from rlhf_jax.run import Run

Groups = dict[str, Any]  # name of a group of arrays, such as "optimizer" -> a tree of abstract arrays


@dataclasses.dataclass(frozen=True)
class Data:
    """The amounts of data and the tokenizer's numbers, which a plan cannot know from the config alone.

    It stands in for a tokenizer in `run.without_data`.

    Attributes:
      demonstrations: number of demonstrations.
      rankings: number of prompts with ranked completions.
      completions: largest number of ranked completions of a prompt (K).
      vocab_size: vocabulary size of the tokenizer.
      end_ids: ids of the tokens that end a completion.
      pad_id: id of the padding token.
      lengths: mean lengths of prompts and completions while a policy is trained or sampled; None: as long as they can be.
    """

    demonstrations: int
    rankings: int
    completions: int
    vocab_size: int
    end_ids: tuple[int, ...] = (0,)
    pad_id: int = 0
    lengths: Lengths | None = None

    def lengths_of(self, rows: int, prompt_length: int, completion_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lengths of the prompts and completions of a batch, i64[rows] each, cut at the given lengths."""
        if self.lengths is None:
            return lengths.full(rows, prompt_length, completion_length)
        return self.lengths.drawn(rows, prompt_length, completion_length)

    def absent_ids(self, vocab_size: int) -> tuple[tuple[int, int], ...]:
        """Returns the ranges [start, end) of the model's ids without a token, as Tokenizer.absent_ids does.

        Args:
          vocab_size: vocabulary size of the model.
        """
        return ((self.vocab_size, vocab_size),) if vocab_size > self.vocab_size else ()


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a stage.

    Attributes:
      stage: name of the stage.
      name: name of the program.
      lower: () -> jax.stages.Lowered.
      passed: the program's arguments, by group.
      resident: other arrays that lie on the devices while the program runs, by group.
      work: work of one run.
      runs: number of times that the stage runs the program.
      cache: bytes per device of the keys and values among the program's temporaries.
      temporaries: {field: value} -> name -> bytes per device that the program takes beside its arguments, by the formulas
        of model/memory.py, with these values of `options`.
      options: fields of the stage that lower the program's memory -> their values, from the fastest to the one of the
        least memory.
      parts: how often each part of the program runs in one run of it: the bodies of loops whose turns the data decide, and
        the branches of conditionals (see plan/hlo/module.py for their names). {} if nothing depends on the data.
      decoding: what a device must read to sample token by token; None for a program that does not sample.
      of_depth: number of layers -> the same program of a model with so many of them, lowered, for a program to which each
        layer adds; None where the program loops over layers.
      rows: what the rows of a batch hold -> (rows that a device computes at once, rows of the batch on a device).
    """

    stage: str
    name: str
    lower: Callable[[], Any]
    passed: Groups
    resident: Groups
    work: Work
    runs: int
    cache: int = 0
    temporaries: Callable[[Mapping], dict[str, float]] = lambda change: {}
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decoding: Decoding | None = None
    options: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    of_depth: Callable[[int], Any] | None = None


def bytes_per_device(tree) -> int:
    """Returns the bytes that a tree of abstract arrays takes on each device.

    An array without a sharding is whole on every device.
    """

    def size(leaf):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def groups(state, prefix: str = "") -> Groups:
    """Returns the groups of a train state: parameters, optimizer and, if there is one, the average of the parameters.

    Args:
      state: the train state.
      prefix: text before the names of the groups, such as "policy ".
    """
    groups = {f"{prefix}parameters": state.params, f"{prefix}optimizer": state.opt_state}
    return groups if state.ema_params is None else groups | {f"{prefix}average": state.ema_params}


def params(run: Run, shape, head: str):
    """Returns the abstract parameters of a model, sharded as `run` shards them.

    They are float32; the base of adapters has the dtype that it computes in.
    """

    def place(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    found = jax.tree.map(place, model.param_shapes(shape, head), weights.param_shardings(run, shape, head))
    base, trained = lora.split(found)
    return lora.joined(_cast(base, shape.dtype), trained)


def frozen(run: Run, shape, head: str):
    """Returns the abstract parameters of a model that is not trained, in the dtype that it computes in."""

    return _cast(params(run, shape, head), shape.dtype)


def _cast(tree, dtype: str):
    def cast(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)

    return jax.tree.map(cast, tree)


def rows_of(run: Run, shape: tuple[int, ...], dtype):
    """Returns an abstract array whose first axis is split over the batch axes of the mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_batch(run.mesh))


def batch(run: Run, rows: int, length: int) -> Batch:
    """Returns an abstract batch with fields of shape [rows, length]."""
    whole = rows_of(run, (rows, length), jnp.int32)
    return Batch(whole, rows_of(run, (rows, length), jnp.float32), whole, whole)


def scalar():
    """Returns an abstract f32[]."""
    return jax.ShapeDtypeStruct((), jnp.float32)


def key():
    """Returns an abstract random key."""
    return jax.eval_shape(lambda: jax.random.key(0))
