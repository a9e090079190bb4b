"""Sampling: prefill, then decode token by token until every row has ended.

Shapes: B batch, P prompt, C completion, V vocabulary.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax import model, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.generate.truncation import Truncation, keep_likely, penalized
from rlhf_jax.model import TransformerConfig, decode
from rlhf_jax.runtime import hosts


@struct.dataclass
class Rollout:
    """Completions sampled from a policy, with the log-probabilities they were sampled with."""

    tokens: jax.Array  # i32[B, P+C]; prompts are padded on the left, completions on the right
    prompt_mask: jax.Array  # bool[B, P]
    completion_mask: jax.Array  # bool[B, C]; True up to and including EOS
    logprobs: jax.Array  # f32[B, C] at the sampling temperature, 0 outside the mask

    @property
    def mask(self) -> jax.Array:
        """bool[B, P+C], True on real tokens."""
        return jnp.concatenate([self.prompt_mask, self.completion_mask], axis=1)

    @property
    def completions(self) -> jax.Array:
        """i32[B, C], the tokens of the completions."""
        return self.tokens[:, self.prompt_mask.shape[1] :]


def sample(
    config: TransformerConfig,
    params: dict,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    truncation: Truncation | None = None,
    *,
    completion_length: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    parts: int = 1,
    trials: str | None = None,
) -> Rollout:
    """Samples one completion per row.

    Args:
      config: shape of the model.
      params: parameters of a language model.
      prompts: i32[B, P], padded on the left.
      prompt_mask: bool[B, P], True on real tokens.
      key: one key for the batch; rows and steps get independent noise.
      temperature: f32 scalar; 0 takes the most likely token, with log-probabilities at temperature 1.
      truncation: which tokens may be drawn, and a penalty on tokens already in the row; None: all tokens, no penalty.
        The log-probabilities are the model's in either case.
      completion_length: C.
      eos_id: the token that ends a completion, or all such tokens.
      pad_id: the token after the end of a completion.
      parts: number of parts in which the batch is sampled one after another, so that the keys and values of only one
        part exist at once. The tokens do not depend on it.
      trials: name of the axis of a vmap over whole batches. All batches continue until the last one has ended, because
        a step made by only some of them would copy the keys and values of all.
    """
    fixed = dict(truncation=truncation, completion_length=completion_length, eos_id=eos_id, pad_id=pad_id)
    noise = row_noise(key, len(prompts))
    if parts == 1:
        return _sample(config, params, prompts, prompt_mask, noise, temperature, trials, **fixed)

    # Row i goes to part i % parts, so that each device keeps its own rows.
    def split(x):
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def one(part):
        prompts, prompt_mask, rows = part
        part_noise = lambda step: noise(step)[rows]  # noqa: E731
        return _sample(config, params, prompts, prompt_mask, part_noise, temperature, trials, **fixed)

    batch = prompts, prompt_mask, jnp.arange(len(prompts))
    return jax.tree.map(join, jax.lax.map(one, jax.tree.map(split, batch)))


def row_noise(key: jax.Array, rows: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function of the step that gives one uniform number to each row, f32[B, 1]."""
    return lambda step: jax.random.uniform(jax.random.fold_in(key, step), (rows, 1))


@struct.dataclass
class SamplerState:
    """The state of a batch between two of its tokens."""

    step: jax.Array  # i32, the number of tokens chosen so far
    token: jax.Array  # i32[B], the token that was chosen last
    done: jax.Array  # bool[B], True for rows that have ended
    tokens: jax.Array  # i32[B, C]
    mask: jax.Array  # bool[B, C], True on the tokens of completions, the end token included
    logprobs: jax.Array  # f32[B, C]
    cache: decode.Cache  # keys and values of all tokens but the last one


def _sample(config, params, prompts, prompt_mask, noise, temperature, trials, **fixed) -> Rollout:
    """Samples a batch; `noise` maps a step to uniform numbers f32[B, 1], and the other arguments are `sample`'s."""
    decoder = Decoder(config, params, prompts, prompt_mask, noise, temperature, **fixed)

    def goes_on(state):
        unfinished = jnp.any(~state.done)
        if trials:
            unfinished = jax.lax.psum(unfinished.astype(jnp.int32), trials) > 0
        return (state.step < decoder.completion_length) & unfinished

    layers = decode.decode_layers(config, params)
    state = jax.lax.while_loop(goes_on, functools.partial(decoder.next_token, layers), decoder.first_token())
    return decoder.rollout(state)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What stays the same from token to token of a batch, and how each token is chosen; the fields are `sample`'s."""

    config: TransformerConfig
    params: dict
    prompts: jax.Array
    prompt_mask: jax.Array
    noise: Callable[[jax.Array], jax.Array]
    temperature: jax.Array
    truncation: Truncation | None
    completion_length: int
    eos_id: int | tuple[int, ...]
    pad_id: int

    def first_token(self) -> SamplerState:
        """Reads the prompts and chooses the first token of each row."""
        batch, prompt_length = self.prompts.shape
        hidden, cache = decode.prefill(
            self.config, self.params, self.prompts, self.prompt_mask, prompt_length + self.completion_length
        )
        shape = (batch, self.completion_length)
        empty = SamplerState(
            step=jnp.int32(0),
            token=jnp.zeros(batch, jnp.int32),
            done=jnp.zeros(batch, bool),
            tokens=jnp.full(shape, self.pad_id, jnp.int32),
            mask=jnp.zeros(shape, bool),
            logprobs=jnp.zeros(shape, jnp.float32),
            cache=cache,
        )
        return self._choose(hidden, empty)

    def next_token(self, layers, state: SamplerState) -> SamplerState:
        """Reads the last token of each row, and chooses the next one.

        Args:
          layers: the layers' parameters, from `decode.decode_layers`.
          state: the state before.
        """
        positions = self.prompt_mask.sum(-1) + state.step - 1
        slot = self.prompts.shape[1] + state.step - 1
        hidden, cache = decode.decode_step(self.config, self.params, layers, state.token, positions, state.cache, slot)
        return self._choose(hidden, dataclasses.replace(state, cache=cache))

    def _choose(self, hidden: jax.Array, state: SamplerState) -> SamplerState:
        """Chooses the tokens of a step, and writes them into its column for the rows that are not done."""
        greedy = self.temperature <= 0.0
        logits = model.lm_logits(self.config, self.params, hidden, jnp.where(greedy, 1.0, self.temperature))
        all_logprobs = jax.nn.log_softmax(logits)
        wanted = all_logprobs
        penalty = None if self.truncation is None else self.truncation.repetition_penalty
        if penalty is not None:
            rows = jnp.arange(len(logits))[:, None]
            seen = jnp.zeros(logits.shape, bool)
            seen = seen.at[rows, self.prompts].max(self.prompt_mask).at[rows, state.tokens].max(state.mask)
            wanted = jax.nn.log_softmax(penalized(logits, seen, penalty))
        token = jax.lax.cond(greedy, _most_likely, self._draw, wanted, state.step)
        logprob = jnp.take_along_axis(all_logprobs, token[:, None], axis=-1)[:, 0]
        token = jnp.where(state.done, self.pad_id, token)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            token=token,
            done=state.done | is_end(token, self.eos_id),
            tokens=state.tokens.at[:, state.step].set(token),
            mask=state.mask.at[:, state.step].set(~state.done),
            logprobs=state.logprobs.at[:, state.step].set(jnp.where(state.done, 0.0, logprob)),
        )

    def _draw(self, logprobs: jax.Array, step: jax.Array) -> jax.Array:
        if self.truncation is not None:
            logprobs = keep_likely(logprobs, self.truncation)
        return inverse_cdf(jnp.exp(logprobs), self.noise(step))

    def rollout(self, state: SamplerState) -> Rollout:
        """Returns the completions of a state."""
        tokens = jnp.concatenate([self.prompts, state.tokens], axis=1)
        return Rollout(tokens, self.prompt_mask, state.mask, state.logprobs)


def _most_likely(logprobs: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the most likely token of each row, i32[B], at any step."""
    return jnp.argmax(logprobs, axis=-1).astype(jnp.int32)


def is_end(tokens: jax.Array, eos_id: int | tuple[int, ...]) -> jax.Array:
    """Returns bool[...], whether each token of i32[...] is eos_id, or one of several."""
    ends = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    return functools.reduce(operator.or_, [tokens == end for end in ends])


def ended_by(rollout: Rollout, ends: tuple[int, ...], other: int) -> Rollout:
    """Returns the rollout with `other` in place of each of the tokens `ends` in its completions.

    The result is on the host if the rollout is.
    """
    array = np if isinstance(rollout.tokens, np.ndarray) else jnp
    completions = rollout.completions
    completions = array.where(rollout.completion_mask & is_end(completions, ends), other, completions)
    width = rollout.prompt_mask.shape[1]
    return dataclasses.replace(rollout, tokens=array.concatenate([rollout.tokens[:, :width], completions], axis=1))


def inverse_cdf(probabilities: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws a token per row, i32[B], from probabilities f32[B, V], whose rows need not sum to 1.

    It first draws a block of about sqrt(V) tokens, then a token within it: cumulative sums of short rows are ten times
    faster on a CPU than one over the vocabulary. A token of probability 0 is never drawn.

    Args:
      probabilities: f32[B, V].
      uniform: f32[B, 1], one uniform number in [0, 1) per row.
    """
    rows, vocab = probabilities.shape
    width = math.isqrt(vocab - 1) + 1
    blocks = jnp.pad(probabilities, ((0, 0), (0, -vocab % width))).reshape(rows, -1, width)
    sums = jnp.sum(blocks, axis=-1)
    threshold = uniform * jnp.sum(sums, axis=-1, keepdims=True)
    block, before = _first_above(sums, threshold)
    inside, _ = _first_above(jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0], threshold - before)
    return (block * width + inside)[:, 0].astype(jnp.int32)


def _first_above(weights: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the place where the cumulative sum first exceeds the threshold, and the sum before it; [B, 1] each.

    The weight at that place is positive, even if rounding leaves the whole sum at the threshold.

    Args:
      weights: [B, N].
      threshold: [B, 1].
    """
    cdf = jnp.cumsum(weights, axis=-1)
    above = (cdf > threshold) & (weights > 0)
    found = jnp.any(above, axis=-1, keepdims=True)
    place = jnp.where(found, jnp.argmax(above, axis=-1, keepdims=True), jnp.argmax(weights, axis=-1, keepdims=True))
    return place, jnp.take_along_axis(cdf - weights, place, axis=-1)


class Sampler:
    """`sample` jitted once for its lengths: (params, prompts, key, temperature[, truncation]) -> Rollout on the mesh.

    It consists of two programs: `layout` puts the parameters into the layout of sampling, and `program` samples.
    """

    def __init__(
        self,
        config: TransformerConfig,
        mesh,
        rules=sharding.DEFAULT_RULES,
        *,
        completion_length: int,
        eos_id: int | tuple[int, ...],
        pad_id: int,
        parts: int = 1,
    ):
        def program(params, tokens, mask, key, temperature, truncation=None):
            return sample(
                config,
                params,
                tokens,
                mask,
                key,
                temperature,
                truncation,
                completion_length=completion_length,
                eos_id=eos_id,
                pad_id=pad_id,
                parts=parts,
            )

        self._mesh, self.layout = mesh, Layout(config, mesh, rules)
        self.program = jax.jit(program, out_shardings=sharding.over_batch(mesh))

    def __call__(
        self, params: dict, prompts: Prompts, key: jax.Array, temperature: float, truncation: Truncation | None = None
    ) -> Rollout:
        """Samples completions of prompts from the host; the parameters may be in any layout."""
        tokens, mask = sharding.put_batch((prompts.tokens, prompts.mask), self._mesh)
        return self.program(self.layout(params), tokens, mask, key, jnp.float32(temperature), truncation)


class Layout:
    """Puts the parameters of a language model into the layout of sampling.

    They are cast to the compute dtype and split over `tensor` alone. In their training layout, split over fsdp, they
    would be gathered for every token. Arrays that have the layout already are not copied.

    Attributes:
        shardings: the shardings.
        program: the jitted function that does it; it takes None in the place of an array that has the layout.
    """

    def __init__(self, config: TransformerConfig, mesh: jax.sharding.Mesh, rules: Mapping = sharding.DEFAULT_RULES):
        self._dtype = jnp.dtype(config.dtype)
        self.shardings = decode_shardings(config, mesh, rules)
        self.program = jax.jit(self._cast, out_shardings=self.shardings)

    def _cast(self, params: dict) -> dict:
        return jax.tree.map(lambda x: x.astype(self._dtype), params)

    def __call__(self, params: dict) -> dict:
        """Returns the parameters in the layout."""
        return params if self.holds(params) else self.filled(params, self.program(self.lacking(params)))

    def holds(self, params: dict) -> bool:
        """Whether all parameters have the layout."""
        return not jax.tree.leaves(self.lacking(params))

    def lacking(self, params: dict) -> dict:
        """Returns the parameters with None in the place of each array that has the layout."""

        def lacks(x, place):
            has = getattr(x, "sharding", None) and x.dtype == self._dtype and x.sharding.is_equivalent_to(place, x.ndim)
            return None if has else x

        return jax.tree.map(lacks, params, self.shardings)

    @staticmethod
    def filled(params: dict, moved: dict) -> dict:
        """Returns the parameters with the arrays of `moved` in place of theirs, where it has any."""
        return jax.tree.map(lambda x, new: x if new is None else new, params, moved)


def decode_shardings(config: TransformerConfig, mesh, rules=sharding.DEFAULT_RULES) -> dict:
    """Returns the shardings of a language model's parameters for decoding: split over the mesh axis `tensor` alone."""
    tensor_only = {axis: "tensor" if "tensor" in (target or ()) else None for axis, target in rules.items()}
    return sharding.param_shardings(model.logical_axes(config), model.param_shapes(config), mesh, tensor_only)


def sampled(rollout: Rollout) -> list[tuple[int, ...]]:
    """Returns the token ids of each completion, including the token that ended it."""
    rollout = hosts.fetch(rollout)
    return [tuple(row[keep].tolist()) for row, keep in zip(rollout.completions, rollout.completion_mask)]


def texts(
    rollout: Rollout, tokenizer: Tokenizer, eos_id: int | tuple[int, ...] | None = None
) -> tuple[list[str], list[bool]]:
    """Returns the completions as text without special tokens, and whether each ended with an end token.

    A completion that was cut inside a character does not have this character (see `Tokenizer.decode_cut`).

    Args:
      rollout: the completions.
      tokenizer: the tokenizer of the model.
      eos_id: the token, or tokens, that end a completion; None: the tokenizer's end tokens.
    """
    rollout = hosts.fetch(rollout)
    completions, mask = rollout.completions, rollout.completion_mask
    ends = is_end(completions, tokenizer.end_ids if eos_id is None else eos_id)
    finished = [bool(row) for row in (ends & mask).any(axis=1)]
    rows = [row[keep].tolist() for row, keep in zip(completions, mask & ~ends)]
    whole = tokenizer.decode_batch(rows, continues=True)
    return [text if end else tokenizer.decode_cut(row) for text, end, row in zip(whole, finished, rows)], finished
