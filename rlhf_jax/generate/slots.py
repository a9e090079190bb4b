"""Sampling in slots: a slot that has ended takes the next prompt, within one compiled program.

The prompts wait in a queue, the longest first. Whenever enough slots are free, a group of prompts is read into them;
between two looks at the slots, all of them decode a page of tokens. When no prompt waits, slots stay free while the longest
completions end. So the live slots move to a stage of fewer slots as soon as they fit into it, and later to a second one. A
completion's tokens depend neither on its slot nor on its neighbours: the noise belongs to the row of the batch and the step.

Shapes: B batch, P prompt, C completion, S slots, N prompts of a group, R places of a page, V vocabulary.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax import model
from rlhf_jax.generate.draw import draw
from rlhf_jax.generate.rollout import Rollout, is_end
from rlhf_jax.generate.sizes import Sizes
from rlhf_jax.generate.truncation import Truncation, penalized
from rlhf_jax.model import TransformerConfig, decode, memory

# Scopes of the loops and switches, whose turns turns.py says; PAGES and READ are in each stage (see `in_stage`).
GROUPS, PAGES, LONGEST, READ = "groups", "pages", "longest", "read"
_GROUP = 8  # a group of prompts fills one of so many parts of the slots
_STAGES = 3  # largest number of stages, each of which adds a loop to the program
_PAGES = (
    4  # pages of a completion for each stage after the first: the tail of shorter ones is not worth compiling a loop
)
_NARROWER = 4  # a stage has so many times fewer slots than the one before it
_LEAST = 4  # least number of slots of a stage after the first


@struct.dataclass
class Slots:
    """The state of the slots between two pages, and the completions so far.

    A slot that is not live keeps its last row, which is not written again.
    """

    cache: decode.Cache  # of S rows, or fewer in later stages: keys and values of all tokens but the last one
    row: jax.Array  # i32[S], the row of the batch; B in slots that never had one
    prompt: jax.Array  # i32[S], length of the prompt
    count: jax.Array  # i32[S], number of tokens chosen so far
    token: jax.Array  # i32[S], the token that was chosen last
    live: jax.Array  # bool[S], True where a completion has not ended
    seen: jax.Array | None  # bool[S, V], tokens of the row so far; None without a repetition penalty
    read: jax.Array  # i32[], number of prompts of the queue that were read
    tokens: jax.Array  # i32[B, C]
    logprobs: jax.Array  # f32[B, C]
    lengths: jax.Array  # i32[B]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What stays the same while a batch is sampled.

    Attributes:
      config: shape of the model.
      params: parameters of a language model.
      prompts: i32[B, P], padded on the left.
      prompt_mask: bool[B, P], True on real tokens.
      noise: f32[B, C], uniform numbers.
      temperature: f32[]; 0 takes the most likely token, with log-probabilities at temperature 1.
      truncation: which tokens may be drawn, and a penalty on tokens already in the row; None: all tokens, no penalty.
        The log-probabilities are the model's in either case.
      sizes: the sizes of the program.
      layers: the layers' parameters, from `decode.decode_layers`.
      queue: the prompts' numbers in the order in which they are read, i32[B / copies].
      asked: the number of prompts, i32[]. Rows without a token fill the batch up; they come last and are not read.
      limits: i32[B], the largest number of tokens of each completion; None: C for all.
    """

    config: TransformerConfig
    params: Any
    prompts: jax.Array
    prompt_mask: jax.Array
    noise: jax.Array
    temperature: jax.Array
    truncation: Truncation | None
    sizes: Sizes
    layers: Any
    queue: jax.Array
    asked: jax.Array
    limits: jax.Array | None = None

    @classmethod
    def of(cls, config, params, prompts, prompt_mask, noise, temperature, truncation, sizes, limits=None) -> "Decoder":
        """Returns the decoder of a batch. Call it outside of loops, since it slices layers and sorts prompts."""
        lengths = prompt_mask[:: sizes.copies].sum(-1)
        queue, asked = jnp.argsort(-lengths, stable=True).astype(jnp.int32), jnp.sum(lengths > 0)
        given = config, params, prompts, prompt_mask, noise, temperature, truncation, sizes
        return cls(*given, decode.decode_layers(config, params), queue, asked, limits)

    @property
    def rows(self) -> int:
        """The number of rows of the batch, B."""
        return len(self.prompts)

    @property
    def slots(self) -> int:
        """The number of slots, S."""
        return min(self.sizes.slots or self.rows, self.rows)

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of slots of the stages, S first, and 0 at the end: a stage ends when its live slots fit the next."""
        return *stages(self.slots, self.sizes), 0

    @property
    def group(self) -> int:
        """The number of prompts that are read at once, N."""
        copies = self.sizes.copies
        refilled = self.slots if self.slots == self.rows else max(self.slots // _GROUP, copies)
        return memory.prompts_at_once(max(1, refilled // copies), self.prompts.shape[1])

    @property
    def bounds(self) -> tuple[int, ...]:
        """The bounds of the cache's chunks in the first stage."""
        page = self.sizes.page
        places = decode.places(self.prompts.shape[1], self.sizes.completion, page)
        return decode.chunks(places, page, self.sizes.chunks)

    def bounds_of(self, width: int) -> tuple[int, ...]:
        """Returns the bounds of the cache's chunks in the stage of `width` slots."""
        return self.bounds if width == self.slots else decode.joined(self.bounds)

    @property
    def read_bounds(self) -> tuple[int, ...]:
        """The lengths to which groups of prompts are read, whole pages: those of chunks, and last that of all prompts."""
        page = self.sizes.page
        whole = math.ceil(self.prompts.shape[1] / page) * page
        return (*(bound for bound in self.bounds[1:] if bound < whole), whole)

    # ------------------------------------------------------------------------ the loop

    def sample(self) -> Rollout:
        """Samples a completion for each row."""

        def turn(slots):
            return self.decode_pages(self.read_group(slots))

        with jax.named_scope(GROUPS):
            slots = jax.lax.while_loop(self.waits, turn, self.start())
        for width in self.widths[1:-1]:
            slots = self.decode_pages(narrowed(slots, width))
        return self.rollout(slots)

    def decode_pages(self, slots: Slots) -> Slots:
        """Decodes pages until a group of prompts is to be read, or the stage ends."""
        with jax.named_scope(in_stage(PAGES, len(slots.live))):
            return jax.lax.while_loop(self.goes_on, self.decode_page, slots)

    def waits(self, slots: Slots) -> jax.Array:
        """Returns whether a prompt was not read, on any device or in any trial, bool[]."""
        return self.max(self.waiting(slots)) > 0

    def waiting(self, slots: Slots) -> jax.Array:
        """Returns the number of prompts that were not read, i32[]."""
        return self.asked - slots.read

    def free(self, slots: Slots) -> jax.Array:
        """Returns the number of prompts, at most a group, that the free slots take, i32[]."""
        return jnp.minimum(self.group, jnp.sum(~slots.live) // self.sizes.copies)

    def goes_on(self, slots: Slots) -> jax.Array:
        """Returns whether another page is decoded before a group is read or the stage ends, bool[]."""
        waiting = jnp.minimum(self.group, self.waiting(slots))
        ready, wanted = self.sum(jnp.minimum(self.free(slots), waiting)), self.sum(waiting)
        fewer = self.widths[self.widths.index(len(slots.live)) + 1]
        # Half of a group: on several devices, the one whose completions are the longest is not waited for.
        return jnp.where(wanted > 0, 2 * ready < wanted, self.max(jnp.sum(slots.live)) > fewer)

    def sum(self, x: jax.Array) -> jax.Array:
        """Returns the sum of a scalar over the devices and trials."""
        return jax.lax.psum(x, self.sizes.axes) if self.sizes.axes else x

    def max(self, x: jax.Array) -> jax.Array:
        """Returns the maximum of a scalar over the devices and trials."""
        return jax.lax.pmax(x, self.sizes.axes) if self.sizes.axes else x

    # ------------------------------------------------------------------------ its parts

    def start(self) -> Slots:
        """Returns slots without prompts."""
        numbers = jnp.zeros(self.slots, jnp.int32)
        penalty = self.truncation is not None and self.truncation.repetition_penalty is not None
        completions = self.rows, self.sizes.completion
        return Slots(
            cache=decode.empty_cache(self.config, self.slots, self.bounds),
            row=jnp.full(self.slots, self.rows, jnp.int32),
            prompt=numbers,
            count=numbers,
            token=numbers,
            live=jnp.zeros(self.slots, bool),
            seen=jnp.zeros((self.slots, self.config.padded_vocab), bool) if penalty else None,
            read=jnp.int32(0),
            tokens=jnp.full(completions, self.sizes.pad_id, jnp.int32),
            logprobs=jnp.zeros(completions, jnp.float32),
            lengths=jnp.zeros(self.rows, jnp.int32),
        )

    def read_group(self, slots: Slots) -> Slots:
        """Reads the next prompts of the queue into free slots, and chooses the first token of each."""
        copies, page = self.sizes.copies, self.sizes.page
        number = jnp.arange(self.group)
        prompts = self.queue[jnp.minimum(slots.read + number, len(self.queue) - 1)] * copies
        admitted = number < jnp.minimum(self.free(slots), self.waiting(slots))
        mask = self.prompt_mask[prompts]
        # The last token of a prompt fills a page, so that its completion starts with a page.
        length = jnp.where(admitted, mask.sum(-1), 0)
        first = -length % page
        hidden, read = self._prefill(prompts, length, first)

        def each_copy(x, axis=0):
            return jnp.repeat(x, copies, axis) if copies > 1 else x

        read = jax.tree.map(lambda x: each_copy(x, -4), read)

        places = jnp.argsort(slots.live, stable=True)[: self.group * copies]  # free slots come first
        places = jnp.where(each_copy(admitted), places, self.slots)  # this one does not exist
        row = (prompts[:, None] + jnp.arange(copies)).reshape(-1)
        first, end = each_copy(first), each_copy(first + length)
        cache = decode.admit(slots.cache, places, read, first, end)

        def put(x, new):
            return x.at[places].set(new, mode="drop")

        slots = dataclasses.replace(
            slots,
            cache=cache,
            row=put(slots.row, row),
            prompt=put(slots.prompt, each_copy(length)),
            read=slots.read + admitted.sum(),
        )
        seen = None
        if slots.seen is not None:
            known = jnp.zeros((len(prompts), self.config.padded_vocab), bool)
            known = known.at[number[:, None], self.prompts[prompts]].max(mask)
            seen = each_copy(known)
        token, logprob = self.choose(each_copy(hidden), row, jnp.zeros_like(row), seen)
        if seen is not None:
            slots = dataclasses.replace(slots, seen=put(slots.seen, seen.at[jnp.arange(len(row)), token].set(True)))
        written = jnp.where(places < self.slots, row, self.rows)
        return dataclasses.replace(
            slots,
            count=put(slots.count, 1),
            token=put(slots.token, token),
            live=put(slots.live, ~self._ends(token, row, jnp.ones_like(token))),
            tokens=slots.tokens.at[written, 0].set(token, mode="drop"),
            logprobs=slots.logprobs.at[written, 0].set(logprob, mode="drop"),
            lengths=slots.lengths.at[written].set(1, mode="drop"),
        )

    def _prefill(self, prompts, length, first):
        """Returns the last hidden states [N, D] and (keys, values) of prompts, whose first tokens are at `first`.

        No place is read that is not filled in some prompt, up to the bounds of the chunks.
        """
        width, bounds = self.prompts.shape[1], self.read_bounds
        whole = bounds[-1]
        place = jnp.arange(whole)
        mask = (place >= first[:, None]) & (place < (first + length)[:, None])
        padding = width - length - first  # of the row of `prompts`, before the tokens
        gathered = jnp.clip(place + padding[:, None], 0, width - 1)
        tokens = jnp.take_along_axis(self.prompts[prompts], gathered, axis=1)

        def read(bound):
            def prefill(tokens, mask):
                tokens, mask = tokens[:, :bound], mask[:, :bound]
                hidden, found = decode.prefill(self.config, self.params, self.layers, tokens, mask)
                return hidden, jax.tree.map(lambda x: jnp.pad(x, _behind(x, whole - bound)), found)

            return prefill

        longest = self.max(jnp.max(first + length))
        branch = jnp.searchsorted(jnp.asarray(bounds), longest) if len(bounds) > 1 else 0
        with jax.named_scope(LONGEST):
            return jax.lax.switch(branch, [read(bound) for bound in bounds], tokens, mask)

    def decode_page(self, slots: Slots) -> Slots:
        """Decodes a page of tokens in all slots, reading no more chunks of the cache than are filled."""
        filled = self.max(jnp.max(jnp.where(slots.live, slots.cache.end, 0)))
        width = len(slots.live)
        bounds = self.bounds_of(width)
        branch = jnp.searchsorted(jnp.asarray(bounds[1:]), filled) if len(bounds) > 2 else 0
        chunks = [functools.partial(self._decode_page, read=read + 1) for read in range(len(bounds) - 1)]
        moving = dataclasses.replace(slots, cache=None, tokens=None, logprobs=None, lengths=None)
        with jax.named_scope(in_stage(READ, width)):
            moved, page, tokens, logprobs = jax.lax.switch(branch, chunks, slots.cache, moving)
        step = slots.count[:, None] + jnp.arange(self.sizes.page)
        written = step < moved.count[:, None]
        where = jnp.where(written, slots.row[:, None], self.rows), step  # no row where nothing was chosen
        return dataclasses.replace(
            moved,
            cache=decode.turn_page(slots.cache, page, moved.live),
            tokens=slots.tokens.at[where].set(tokens, mode="drop"),
            logprobs=slots.logprobs.at[where].set(logprobs, mode="drop"),
            lengths=slots.lengths.at[slots.row].set(moved.count, mode="drop"),
        )

    def _decode_page(self, cache: decode.Cache, slots: Slots, read: int):
        """Returns the slots after a page, the page, and its tokens i32[S, R] and log-probabilities f32[S, R]."""
        shape = len(slots.live), self.sizes.page

        def step(place, carry):
            slots, page, tokens, logprobs = carry
            positions = slots.prompt + slots.count - 1
            hidden, page = decode.decode_step(
                self.config, self.params, self.layers, slots.token, positions, cache, page, place, read
            )
            token, logprob = self.choose(hidden, slots.row, slots.count, slots.seen)
            seen = slots.seen if slots.seen is None else slots.seen.at[jnp.arange(len(token)), token].set(True)
            count = slots.count + slots.live
            slots = dataclasses.replace(
                slots, count=count, token=token, seen=seen, live=slots.live & ~self._ends(token, slots.row, count)
            )
            return slots, page, tokens.at[:, place].set(token), logprobs.at[:, place].set(logprob)

        empty = decode.empty_page(self.config, *shape)
        nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
        return jax.lax.fori_loop(0, self.sizes.page, step, (slots, empty, *nothing))

    def choose(self, hidden: jax.Array, row: jax.Array, step: jax.Array, seen) -> tuple[jax.Array, jax.Array]:
        """Returns a token i32[S] and its log-probability f32[S] for each of the hidden states [S, D].

        Args:
          hidden: the hidden states.
          row: i32[S], row of the batch.
          step: i32[S], number of the row's tokens before.
          seen: bool[S, V], the tokens of the row before; None without a repetition penalty.
        """
        divisor = jnp.where(self.temperature <= 0.0, 1.0, self.temperature)
        logits = model.lm_logits(self.config, self.params, hidden, divisor)
        logprobs = wanted = jax.nn.log_softmax(logits)
        if seen is not None:
            wanted = jax.nn.log_softmax(penalized(logits, seen, self.truncation.repetition_penalty))
        token = draw(wanted, self.noise[row, step], self.temperature, self.truncation)
        return token, jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]

    def _ends(self, token: jax.Array, row: jax.Array, count: jax.Array) -> jax.Array:
        """Returns bool[S], whether completions i32[S] of `count` tokens i32[S] end with their token i32[S]."""
        limit = self.sizes.completion if self.limits is None else self.limits[row]
        return is_end(token, self.sizes.eos_id) | (count >= limit)

    def rollout(self, slots: Slots) -> Rollout:
        """Returns the completions so far."""
        mask = jnp.arange(self.sizes.completion) < slots.lengths[:, None]
        return Rollout(jnp.concatenate([self.prompts, slots.tokens], axis=1), self.prompt_mask, mask, slots.logprobs)


def stages(slots: int, sizes: Sizes) -> list[int]:
    """Returns the numbers of slots of the stages, from the first one's on."""
    pages = math.ceil((sizes.completion - 1) / sizes.page)
    most, widths = min(_STAGES, 1 + pages // _PAGES), [slots]
    while len(widths) < most and widths[-1] // _NARROWER >= _LEAST:
        widths.append(widths[-1] // _NARROWER)
    return widths


def narrowed(slots: Slots, width: int) -> Slots:
    """Returns `width` of the slots, among them all that are live; no prompt may wait."""
    kept = jnp.argsort(~slots.live, stable=True)[:width]
    own = {name: getattr(slots, name) for name in ("row", "prompt", "count", "token", "live", "seen")}
    own = jax.tree.map(lambda x: x[kept], own)
    return dataclasses.replace(slots, cache=decode.narrowed(slots.cache, kept), **own)


def in_stage(scope: str, width: int) -> str:
    """Returns the name of a scope in the stage of `width` slots."""
    return f"{scope}_{width}"


def _behind(x: jax.Array, size: int) -> list[tuple[int, int]]:
    """Returns the padding of x by `size` places at the end of its last axis but one."""
    return [(0, 0)] * (x.ndim - 2) + [(0, size), (0, 0)]
