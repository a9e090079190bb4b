"""Packs the episodes of a minibatch into rows, so that little of what PPO computes is padding.

A rollout has P places for the prompt of each episode and C places for its completion, and most episodes fill few of
them. Here several episodes stand one after another in a row of P + C places, each in a segment of its own. The layout
depends only on the lengths of the episodes, so that `score` and `update` read a minibatch in the same rows, and the
first ratio is 1 to the bit.

All shapes are fixed, and nothing is compiled again for other lengths. There are as many rows as episodes, which is
enough in any case. The rows are computed in parts of a few rows, and the loop over the parts ends after the last part
that has an episode.

Where cuDNN computes attention, a row has at most SEGMENTS episodes, the number that programs for packed rows count on.

Shapes: N episodes of a minibatch, P prompt, C completion, T = P + C, R = N rows, M parts of r rows each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax import losses, sharding
from rlhf_jax.generate import Rollout
from rlhf_jax.model.attention import SEGMENTS

# Places of a part on each device. Fewer would not keep a device busy; more are computed for nothing, and on a CPU they
# are slower than their number (docs/measurements.md).
PLACES = {"cpu": 256, "gpu": 2048, "tpu": 2048}


@struct.dataclass
class PackedRollout:
    """Rows that have the tokens of several episodes. A row has room for T tokens, of which C are of completions."""

    tokens: jax.Array  # i32[R, T]
    segment_ids: jax.Array  # i32[R, T], 1 + the episode; 0 on padding
    positions: jax.Array  # i32[R, T], of each token in its episode
    generated: jax.Array  # bool[R, T], True on the tokens of completions
    before: jax.Array  # i32[R, C], the place of the token before each token of a completion
    completions: jax.Array  # i32[R, C], the tokens of the completions
    completion_mask: jax.Array  # bool[R, C]
    segments: int = struct.field(pytree_node=False, default=0)  # the most episodes of a row; 0: any number


@struct.dataclass
class PackedLayout:
    """Where the episodes of a minibatch stand in rows.

    Attributes:
      rollout: the rows.
      source: i32[R, C], the place in [N, C] of each token of a completion, counted over all rows; 0 on padding.
      target: i32[N, C], the place in [R, C] of each token of a completion.
      ends: i32[N], the place in [R, T] of the last token of each episode.
      mask: bool[N, C], that of the completions.
      rows: i32[], the number of rows with an episode.
    """

    rollout: PackedRollout
    source: jax.Array
    target: jax.Array
    ends: jax.Array
    mask: jax.Array
    rows: jax.Array

    def packed(self, x: jax.Array) -> jax.Array:
        """Returns numbers [N, C] of the tokens of completions in their rows, [R, C]; 0 on padding."""
        return jnp.where(self.rollout.completion_mask, x.reshape(-1)[self.source], 0)

    def unpacked(self, x: jax.Array) -> jax.Array:
        """Returns numbers [R, C] of the tokens of completions for each episode, [N, C]; 0 on padding."""
        return jnp.where(self.mask, x.reshape(-1)[self.target], 0)

    def at_ends(self, x: jax.Array) -> jax.Array:
        """Returns the numbers [N] of the last token of each episode, from those of all places [R, T]."""
        return x.reshape(-1)[self.ends]


def pack(rollout: Rollout, most: int | None = None) -> PackedLayout:
    """Returns the layout of the episodes of a minibatch, by the lengths that its masks show.

    `most` is the largest number of episodes of a row (see `most_of`).
    """
    episodes, prompt_length = rollout.prompt_mask.shape
    completion_length = rollout.completion_mask.shape[1]
    length = prompt_length + completion_length
    prompts, completions = (
        jnp.sum(mask, axis=1, dtype=jnp.int32) for mask in (rollout.prompt_mask, rollout.completion_mask)
    )
    counted = [] if most is None else [jnp.ones_like(prompts)]
    sizes = jnp.stack([prompts + completions, completions, *counted], axis=1)
    row, used = first_fit(sizes, jnp.array([length, completion_length, most][: sizes.shape[1]]))
    start, first = used[:, 0], used[:, 1]

    # Padding is sent to a place behind the last row, where `mode="drop"` leaves it out.
    column = jnp.arange(length)
    shift = (row * length + start + prompts - prompt_length)[:, None]
    place = jnp.where(rollout.mask, shift + column, episodes * length)
    token = jnp.full(episodes * length, -1).at[place].set(_numbers(place), mode="drop").reshape(episodes, length)
    real, episode, column = token >= 0, token // length, token % length
    within = (row * completion_length + first)[:, None] + jnp.arange(completion_length)
    within = jnp.where(rollout.completion_mask, within, episodes * completion_length)
    chosen = jnp.full(episodes * completion_length, -1).at[within].set(_numbers(within), mode="drop")
    chosen = chosen.reshape(episodes, completion_length)
    mask, owner, index = chosen >= 0, chosen // completion_length, chosen % completion_length
    source = jnp.where(mask, chosen, 0)

    packed = PackedRollout(
        tokens=jnp.where(real, rollout.tokens.reshape(-1)[token], 0),
        segment_ids=jnp.where(real, episode + 1, 0),
        positions=jnp.where(real, column - (prompt_length - prompts)[episode], 0),
        generated=real & (column >= prompt_length),
        before=jnp.where(mask, jnp.maximum((start + prompts)[owner] + index - 1, 0), 0),
        completions=jnp.where(mask, rollout.completions.reshape(-1)[source], 0),
        completion_mask=mask,
        segments=most or 0,
    )
    ends = row * length + jnp.maximum(start + sizes[:, 0] - 1, 0)
    target = jnp.where(rollout.completion_mask, within, 0)
    return PackedLayout(packed, source, target, ends, rollout.completion_mask, jnp.max(row) + 1)


def most_of(attention: str) -> int | None:
    """Returns the largest number of episodes of a row for an implementation of attention; None: any number."""
    return SEGMENTS if attention == "cudnn" else None


def _numbers(x: jax.Array) -> jax.Array:
    """Returns the number of each element of x, counted over all rows, in the shape of x."""
    return jnp.arange(x.size).reshape(x.shape)


def first_fit(sizes: jax.Array, room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts each item into the first row that has room for it, the largest items first.

    Args:
      sizes: i32[N, S], the sizes of each item, each at most the room for it. Items are sorted by the first size.
      room: i32[S], the room of an empty row.

    Returns:
      The row i32[N] of each item, and what the items before it fill of that row, i32[N, S].
    """
    order = jnp.argsort(-sizes[:, 0], stable=True)

    def put(used, size):
        row = jnp.argmax(jnp.all(used + size <= room, axis=1)).astype(jnp.int32)
        return used.at[row].add(size), (row, used[row])

    _, found = jax.lax.scan(put, jnp.zeros_like(sizes), sizes[order])
    return jax.tree.map(lambda x: jnp.zeros_like(x).at[order].set(x), found)


def rows_of_part(rows: int, length: int, microbatches: int, mesh=None) -> int:
    """Returns r, the number of rows of a part: as few as keep the devices busy, and at most rows / microbatches.

    Args:
      rows: R, a multiple of `microbatches`.
      length: T.
      microbatches: the smallest number of parts.
      mesh: the mesh over whose batch axes the rows are split; None for one device.
    """
    platform = mesh.abstract_mesh.abstract_device.platform if mesh else jax.default_backend()
    most, ways = rows // microbatches, sharding.ways(mesh) if mesh else 1
    least = PLACES[platform] * ways
    fitting = [size for size in range(ways, most, ways) if most % size == 0 and size * length >= least]
    return fitting[0] if fitting else most


def filled_parts(
    prompts: np.ndarray, completions: np.ndarray, rows: int, size: int, room: tuple[int, int], most: int | None = None
) -> int:
    """Returns how many parts of all minibatches have an episode.

    Args:
      prompts: i64[B], lengths of the prompts.
      completions: i64[B], lengths of the completions.
      rows: R, which divides B.
      size: r, which divides R.
      room: P and C.
      most: as in `pack`.
    """
    sizes = np.stack([prompts + completions, completions, np.ones_like(prompts)], axis=1).reshape(-1, rows, 3)
    whole = sum(room), room[1], rows if most is None else most
    return sum(-(-rows_needed(one, whole) // size) for one in sizes)


def rows_needed(sizes: np.ndarray, room: tuple[int, ...]) -> int:
    """Returns how many rows `first_fit` fills, computed on the host; the arguments are those of `first_fit`."""
    used = np.zeros((0, len(room)), np.int64)
    for size in sizes[np.argsort(-sizes[:, 0], kind="stable")]:
        fits = (used + size <= room).all(axis=1)
        if not fits.any():
            used, fits = np.append(used, np.zeros((1, len(room)), np.int64), axis=0), np.append(fits, True)
        used[np.argmax(fits)] += size
    return len(used)


@struct.dataclass
class Parts:
    """Rows in parts, of which only those with an episode are computed.

    Attributes:
      rows: a tree of [M, r, ...].
      order: i32[M], the parts; those with an episode come first.
      filled: i32[], the number of parts with an episode. Under a vmap of trials, it is the largest of all trials,
        because a loop that ends at other times for each would copy what it carries.
      places: f32[], the number of places of these parts.
    """

    rows: Any
    order: jax.Array
    filled: jax.Array
    places: jax.Array

    def part(self, number) -> Any:
        """Returns the rows [r, ...] of a part."""
        return jax.tree.map(lambda x: sharding.constrain_batch(x[number]), self.rows)

    def read(self, function: Callable, name: str) -> Any:
        """Returns function(part) of all parts, a tree of [M, r, ...]; 0 in the place of those without an episode.

        `name` is the scope of the loop, by which plans know it (see abstract.Program.parts).
        """
        if len(self.order) == 1:
            return jax.tree.map(lambda x: x[None], function(self.part(0)))

        def step(number, found):
            place = self.order[number]
            return jax.tree.map(lambda all, one: all.at[place].set(one), found, function(self.part(place)))

        shapes = jax.eval_shape(function, self.part(0))
        nothing = jax.tree.map(lambda x: jnp.zeros((len(self.order), *x.shape), x.dtype), shapes)
        with jax.named_scope(name):
            return jax.lax.fori_loop(0, self.filled, step, nothing)

    def gradients(self, loss_fn: Callable, params: dict, name: str) -> tuple[dict, losses.Loss]:
        """Returns the gradient of total / weight over all parts, and the loss with its totals over all of them.

        Args:
          loss_fn: function (params, part) -> losses.Loss, whose maxima are not negative.
          params: the parameters to differentiate with respect to.
          name: the scope of the loop, as in `read`.
        """

        def total(params, part):
            loss = loss_fn(params, part)
            return loss.total, loss

        def one(number):
            (_, loss), grads = jax.value_and_grad(total, has_aux=True)(params, self.part(number))
            return grads, loss

        def step(number, found):
            grads, loss = one(self.order[number])
            return jax.tree.map(jnp.add, found[0], grads), losses.combine(found[1], loss)

        if len(self.order) == 1:
            grads, loss = one(0)
        else:
            shapes = jax.eval_shape(loss_fn, params, self.part(0))
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            zeros = jax.tree.map(jnp.zeros_like, params)
            with jax.named_scope(name):
                grads, loss = jax.lax.fori_loop(0, self.filled, step, (zeros, nothing))
        return jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-8), grads), loss


def parts_of(rows: Any, layout: PackedLayout, microbatches: int, trials: str | None = None) -> Parts:
    """Returns the rows of several minibatches in parts.

    Args:
      rows: a tree of [K, R, ...], the rows of K minibatches.
      layout: the layouts, with a leading axis [K].
      microbatches: the smallest number of parts of a minibatch.
      trials: name of the axis of a vmap over whole batches; None without one.
    """
    _, count, length = layout.rollout.tokens.shape
    size = rows_of_part(count, length, microbatches, sharding.mesh_to_fill())

    def split(x):
        return x.reshape(-1, size, *x.shape[2:])

    full = (jnp.arange(0, count, size) < layout.rows[:, None]).reshape(-1)
    filled = jnp.sum(full, dtype=jnp.int32)
    if trials:
        filled = jax.lax.pmax(filled, trials)
    return Parts(
        jax.tree.map(split, rows), jnp.argsort(~full, stable=True), filled, filled * jnp.float32(size * length)
    )
