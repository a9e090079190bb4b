"""The decoder-only Transformer: its modules, and the hidden states that they compute.

Flax Linen is used in this file alone, and gives a plain dict of float32 parameters. All other code calls pure
functions of (config, params, arrays). The parameters of the layers are stacked: [L, ...].

Shapes: B batch, T time, L layers, H heads, G key-value heads, Dh head width, D embed, F mlp, V vocabulary.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.lora import MATRICES
from rlhf_jax.model import attention
from rlhf_jax.model.config import TransformerConfig

_REMAT_POLICIES = {
    "full": lambda: jax.checkpoint_policies.nothing_saveable,
    "dots": lambda: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
}


_NUMBERS = {name: number for number, name in enumerate(MATRICES)}  # separate the noise of the adapters


def _linear(x, w, contract: int = 1):
    """Returns x [..., *I] times w [*I, *O], where I has `contract` axes.

    It is computed as one flat matrix product, because a product with two contracting axes is slow on a CPU.
    """
    inputs, outputs = w.shape[:contract], w.shape[contract:]
    flat = x.reshape(-1, math.prod(inputs)) @ w.reshape(math.prod(inputs), -1)
    return flat.reshape(*x.shape[: x.ndim - contract], *outputs)


def rotary(config: TransformerConfig, positions):
    """Returns cosines and sines [B, T, 1, rotary_dim/2] of the rotary embedding (Su et al. 2021).

    Returns None for learned positions.
    """
    if config.positions != "rope":
        return None
    half = config.rotary_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling:
        frequencies = _slowed(frequencies, *config.rope_scaling)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _slowed(frequencies, factor, low, high, original_length):
    """Returns the frequencies after Llama 3.1's context extension.

    A frequency with at most `low` rotations within the original context becomes `factor` times lower, and one with at
    least `high` rotations stays. Between the two the change is interpolated.
    """
    turns = original_length * frequencies / (2 * math.pi)  # number of rotations within the original context
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / factor)


def _rotate(x, rotary):
    """Rotates x [B, T, H, Dh] by its positions, in the half-split layout; places beyond rotary_dim stay unchanged."""
    cos, sin = rotary
    turned, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    left, right = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def _rms_normalized(x, epsilon: float):
    """Divides x by its root mean square over the last axis; returns float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)


class _Module(nn.Module):
    """A module that holds the architecture."""

    config: TransformerConfig

    def weight(self, name, shape, *, std=None, constant=None, init=None):
        """Declares a float32 parameter, and returns it in the compute dtype."""
        init = init or (nn.initializers.normal(std) if constant is None else nn.initializers.constant(constant))
        return self.param(name, init, shape, jnp.float32).astype(self.config.dtype)


class Norm(_Module):
    """The normalisation before each branch and after the last layer: LayerNorm or RMSNorm."""

    @nn.compact
    def __call__(self, x):
        """Applies LayerNorm or RMSNorm over the last axis, in float32."""
        config = self.config
        plus = 1.0 if config.norm == "rmsnorm_plus_one" else 0.0
        scale = self.weight("scale", (config.embed_dim,), constant=1.0 - plus)
        y = x.astype(jnp.float32)
        if config.norm == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = _rms_normalized(y, config.norm_eps)
        if plus:
            return (y * (plus + scale.astype(jnp.float32))).astype(x.dtype)
        y = y.astype(x.dtype) * scale
        if config.norm == "layernorm":
            y = y + self.weight("bias", (config.embed_dim,), constant=0.0)
        return y


class Block(_Module):
    """One pre-norm layer. `__call__` reads whole sequences, `decode` reads one token against a cache."""

    def setup(self):
        c = self.config
        self.norm1, self.norm2 = Norm(c), Norm(c)
        out_std = c.init_std / math.sqrt(2 * c.num_layers)  # GPT-2: residual projections start small

        def bias(name, shape, wanted=c.use_bias):
            return self.weight(name, shape, constant=0.0) if wanted else 0.0

        query, keyval = (c.num_heads, c.head_dim), (c.kv_heads, c.head_dim)
        self.wq = self.weight("wq", (c.embed_dim, *query), std=c.init_std)
        self.wk = self.weight("wk", (c.embed_dim, *keyval), std=c.init_std)
        self.wv = self.weight("wv", (c.embed_dim, *keyval), std=c.init_std)
        self.wo = self.weight("wo", (*query, c.embed_dim), std=out_std)
        qkv = c.use_bias or c.qkv_bias
        self.bq, self.bk, self.bv = bias("bq", query, qkv), bias("bk", keyval, qkv), bias("bv", keyval, qkv)
        self.bo = bias("bo", (c.embed_dim,))
        if c.qk_norm:
            self.q_norm = self.weight("q_norm", (c.head_dim,), constant=1.0)
            self.k_norm = self.weight("k_norm", (c.head_dim,), constant=1.0)
        self.w_up = self.weight("w_up", (c.embed_dim, c.hidden_dim), std=c.init_std)
        self.b_up = bias("b_up", (c.hidden_dim,))
        if c.gated:
            self.w_gate = self.weight("w_gate", (c.embed_dim, c.hidden_dim), std=c.init_std)
        self.w_down = self.weight("w_down", (c.hidden_dim, c.embed_dim), std=out_std)
        self.b_down = bias("b_down", (c.embed_dim,))
        self.adapters = {name: self._adapter(name) for name in c.adapted}

    def _adapter(self, name):
        """Declares the adapter of a matrix: A [inputs, r], initialised as in PEFT, and B [r, outputs], which is 0."""
        rank, shape, contract = self.config.lora.rank, self.config.matrices[name], MATRICES[name]
        # Uniform within 1 / sqrt(inputs), as torch initialises a linear layer.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=tuple(range(contract)))
        a = self.weight(f"{name}_a", (*shape[:contract], rank), init=init)
        return a, self.weight(f"{name}_b", (rank, *shape[contract:]), constant=0.0)

    def _times(self, x, name, drop=None):
        """Returns x [..., *inputs] times a matrix of the layer, with its adapter.

        Args:
          x: the inputs.
          name: name of the matrix.
          drop: function (inputs, name of the matrix) -> the adapter's inputs after dropout; None drops nothing.
        """
        contract = MATRICES[name]
        out = _linear(x, getattr(self, name), contract)
        if name not in self.adapters:
            return out
        a, b = self.adapters[name]
        low = _linear(drop(x, name) if drop else x, a, contract)
        return out + _linear(low * jnp.asarray(self.config.lora.scale, low.dtype), b)

    def _qkv(self, x, rotary, drop=None):
        """Returns queries [B, T, H, Dh] and keys and values [B, T, G, Dh] of x [B, T, D], rotated by position."""
        q, k = self._times(x, "wq", drop) + self.bq, self._times(x, "wk", drop) + self.bk
        v = self._times(x, "wv", drop) + self.bv
        if self.config.qk_norm:
            q = _rms_normalized(q, self.config.norm_eps).astype(q.dtype) * self.q_norm
            k = _rms_normalized(k, self.config.norm_eps).astype(k.dtype) * self.k_norm
        return (q, k, v) if rotary is None else (_rotate(q, rotary), _rotate(k, rotary), v)

    def _mlp(self, x, drop=None):
        """Returns the output [B, T, D] of the MLP branch for x [B, T, D]."""
        x = self.norm2(x)
        up = self._times(x, "w_up", drop) + self.b_up
        activation = _ACTIVATIONS[self.config.mlp]
        up = activation(self._times(x, "w_gate", drop)) * up if self.config.gated else activation(up)
        return self._times(up, "w_down", drop) + self.b_down

    def __call__(self, x, rotary, segment_ids, dropout_rate: float, with_cache: bool, keys=None):
        """Returns x after the layer, and its (keys, values) [B, T, G, Dh] if `with_cache`, else None.

        Args:
          x: [B, T, D].
          rotary: from `rotary`.
          segment_ids: i32[B, T].
          dropout_rate: share of each residual branch's output that is dropped.
          with_cache: whether to return keys and values.
          keys: [2, B], the dropout keys of both branches of each row; None without dropout.
        """

        def residual(x, y, branch):  # dropout is on the residual branches alone (InstructGPT C.1)
            if dropout_rate > 0.0:

                def noise(key):
                    return jax.random.bernoulli(key, 1.0 - dropout_rate, y.shape[1:])

                y = jnp.where(jax.vmap(noise)(keys[branch]), y / (1.0 - dropout_rate), 0.0).astype(y.dtype)
            return sharding.constrain_batch(x + y, self.config.sequence_axis)

        drop = self._adapter_dropout(keys)
        q, k, v = self._qkv(self.norm1(x), rotary, drop)
        rows = {"implementation": self.config.attention, "segments": self.config.segments}
        mixed = attention.attend(q, k, v, segment_ids, **rows)
        after = residual(x, self._times(mixed, "wo", drop) + self.bo, 0)
        x = residual(after, self._mlp(x if self.config.parallel_residual else after, drop), 1)
        return x, (k, v) if with_cache else None

    def _adapter_dropout(self, keys):
        """Returns the dropout of the adapters' inputs, `drop` of `_times`; None without keys or without dropout."""
        rate = self.config.lora.dropout if self.config.lora else 0.0
        if keys is None or not rate:
            return None

        def drop(x, name):
            def noise(key):  # each matrix drops its own inputs
                return jax.random.bernoulli(jax.random.fold_in(key, _NUMBERS[name]), 1.0 - rate, x.shape[1:])

            return jnp.where(jax.vmap(noise)(keys[0]), x / (1.0 - rate), 0.0).astype(x.dtype)

        return drop

    def decode(self, x, rotary, remember, valid):
        """Returns x [B, 1, D] after the layer.

        Args:
          x: [B, 1, D].
          rotary: from `rotary`.
          remember: function from this token's keys and values [B, G, 1, Dh] to all keys and values of the layer, a
            sequence of arrays [B, G, n, Dh] each.
          valid: bool[B, n] for each of these arrays, True at the places to attend to.
        """
        q, k, v = self._qkv(self.norm1(x), rotary)
        keys, values = remember(k.swapaxes(1, 2), v.swapaxes(1, 2))
        mixed = attention.attend_cached(q[:, 0], keys, values, valid)[:, None]
        after = sharding.constrain_batch(x + self._times(mixed, "wo") + self.bo)
        return sharding.constrain_batch(after + self._mlp(x if self.config.parallel_residual else after))


class Transformer(_Module):
    """The trunk, and the parameters of its head ("lm" or "scalar"); returns hidden states."""

    head: str = "lm"

    @nn.compact
    def __call__(self, tokens, positions, segment_ids, dropout_rate: float = 0.0, dropout_keys=None):
        """Returns the hidden states [B, T, D] after the final norm.

        Args:
          tokens, positions, segment_ids: i32[B, T].
          dropout_rate: share of the residual branches' outputs that is dropped.
          dropout_keys: [B], a random key for each row; None without dropout.
        """
        c = self.config
        table = self.weight("embedding", (c.padded_vocab, c.embed_dim), std=c.init_std)
        x = jnp.take(sharding.whole_rows(table), tokens, axis=0)
        if c.embedding_scale:
            x = x * jnp.asarray(math.sqrt(c.embed_dim), x.dtype)
        if c.positions == "learned":
            learned = self.weight("positions", (c.position_offset + c.max_length, c.embed_dim), std=c.init_std)
            x = x + jnp.take(sharding.whole_rows(learned, None), positions + c.position_offset, axis=0)
        block = Block
        if c.remat != "none":
            policy = _REMAT_POLICIES[c.remat]()
            block = nn.remat(Block, policy=policy, prevent_cse=not c.scan_layers, static_argnums=(4, 5))
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 4 + (0,),
            length=c.num_layers,
            unroll=1 if c.scan_layers else c.num_layers,
        )
        x = sharding.constrain_batch(x, c.sequence_axis)
        if dropout_rate > 0.0 or (c.lora and c.lora.dropout and dropout_keys is not None):

            def split(key):
                return jax.random.split(key, (c.num_layers, 2))

            dropout_keys = jax.vmap(split, out_axes=2)(dropout_keys)  # [L, 2, B]
        else:
            dropout_keys = None
        x, _ = layers(c, name="layers")(x, rotary(c, positions), segment_ids, dropout_rate, False, dropout_keys)
        x = sharding.constrain_batch(Norm(c, name="final_norm")(x))
        if self.head == "scalar":
            # Initialised as in Stiennon et al. 2020 and OpenAI's code: std 1/sqrt(d + 1), bias 0.
            self.weight("scalar_kernel", (c.embed_dim,), std=(c.embed_dim + 1) ** -0.5)
            self.weight("scalar_bias", (), constant=0.0)
        elif not c.tie_embeddings:
            self.weight("lm_head", (c.padded_vocab, c.embed_dim), std=c.init_std)
        return x


# ---------------------------------------------------------------------------- the pure functions


def positions_from_mask(mask: jax.Array) -> jax.Array:
    """Returns i32[B, T], the number of real tokens before each one, from mask bool[B, T]; padding is not counted."""
    counts = jnp.cumsum(mask.astype(jnp.int32), axis=-1)
    return jnp.maximum(counts - 1, 0)


def hidden_states(
    config: TransformerConfig, params: dict, tokens, positions, segment_ids, *, dropout_rate: float = 0.0, keys=None
) -> jax.Array:
    """Returns the hidden states [B, T, D] after the final norm.

    Args:
      config: shape of the model.
      params: parameters of a language model, or of a reward or value model.
      tokens, positions, segment_ids: i32[B, T].
      dropout_rate: share of the residual branches' outputs that is dropped.
      keys: [B], dropout keys. The noise of a row depends only on its key and on each place, and so neither on the other
        rows nor on the padding.
    """
    head = "scalar" if "scalar_kernel" in params else "lm"
    model = Transformer(config, head=head)
    return model.apply({"params": params}, tokens, positions, segment_ids, dropout_rate, dropout_keys=keys)


def masked_hidden_states(config: TransformerConfig, params: dict, tokens, mask) -> jax.Array:
    """Returns `hidden_states` of padded rows; mask bool[B, T] is True on real tokens, wherever the padding is."""
    return hidden_states(config, params, tokens, positions_from_mask(mask), mask.astype(jnp.int32))
