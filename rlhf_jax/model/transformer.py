"""The decoder-only Transformer: trunk, language-model head, scalar head.

Flax Linen is used in this file alone, and gives a plain dict of float32 parameters. All other code calls pure
functions of (config, params, arrays). The parameters of the layers are stacked: [L, ...].

Shapes: B batch, T time, L layers, H heads, G key-value heads, Dh head width, D embed, F mlp, V vocabulary.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.fields.checks import check_values
from rlhf_jax.fields.model import MODEL
from rlhf_jax.model import attention
from rlhf_jax.runtime.errors import InputError

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
_MASKED_LOGIT = -1e9

# The logical axes of every parameter by its name; parameters inside "layers" have a leading "layers" axis as well.
_AXES = {
    "embedding": ("vocab", "embed"),
    "lm_head": ("vocab", "embed"),
    "positions": ("seq", "embed"),
    "scale": ("embed",),
    "bias": ("embed",),
    "wq": ("embed", "heads", "head_dim"),
    "wk": ("embed", "kv_heads", "head_dim"),
    "wv": ("embed", "kv_heads", "head_dim"),
    "wo": ("heads", "head_dim", "embed"),
    "bq": ("heads", "head_dim"),
    "bk": ("kv_heads", "head_dim"),
    "bv": ("kv_heads", "head_dim"),
    "bo": ("embed",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "w_up": ("embed", "mlp"),
    "w_gate": ("embed", "mlp"),
    "w_down": ("mlp", "embed"),
    "b_up": ("mlp",),
    "b_down": ("embed",),
    "scalar_kernel": ("embed",),
    "scalar_bias": (),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The architecture, and everything else that shapes the program. It is hashable, to serve as a static argument.

    The defaults are GPT-2's and GPT-3's. Llama is positions="rope", norm="rmsnorm", mlp="swiglu", use_bias=False.
    hf/families.py lists the settings of each released family.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int = 0  # 0: num_heads
    head_size: int = 0  # 0: embed_dim / num_heads
    mlp_dim: int = 0  # 0: 4 x embed_dim
    max_length: int = 2048
    positions: str = "learned"  # or "rope"
    position_offset: int = 0  # unused rows at the start of the table of learned positions (OPT: 2)
    norm: str = "layernorm"  # or "rmsnorm", "rmsnorm_plus_one" (Gemma: scales are stored minus 1)
    mlp: str = "gelu"  # the tanh form of GELU; or "gelu_exact", "relu", and gated: "swiglu", "geglu"
    use_bias: bool = True
    qkv_bias: bool = False  # biases on queries, keys and values even without use_bias (Qwen2)
    qk_norm: bool = False  # RMSNorm of each head's queries and keys (Qwen3)
    parallel_residual: bool = False  # attention and mlp both read the layer's input (GPT-NeoX)
    embedding_scale: bool = False  # embeddings times sqrt(embed_dim) (Gemma)
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    rotary_fraction: float = 1.0  # fraction of each head's width that is rotated (GPT-NeoX: a quarter)
    rope_scaling: tuple[float, ...] = ()  # as in Llama 3: factor, low and high frequency factor, original length
    norm_eps: float = 1e-5
    init_std: float = 0.02
    vocab_multiple: int = 64  # the embedding is padded to a multiple of it, so that it divides over the mesh
    dtype: str = "float32"  # dtype of the computation; parameters are float32
    scan_layers: bool = True  # False unrolls the layers: faster on a CPU, and easier to debug
    remat: str = "none"  # "full" or "dots": what the backward pass recomputes
    attention: str = "xla"  # see attention.attend
    sequence_axis: str = ""  # the mesh axis over which activations between layers are split along time
    logits_chunk: int = 0  # number of places of a row whose logits exist at once in a loss; 0: all
    absent_ids: tuple[tuple[int, int], ...] = ()  # ranges [first, end) of ids without a token, never predicted

    def __post_init__(self):
        check_values("model.", vars(self), MODEL, exact=False)
        if (not self.head_size and self.embed_dim % self.num_heads) or self.num_heads % self.kv_heads:
            raise InputError(
                f"model.num_heads={self.num_heads} must divide embed_dim={self.embed_dim} and be a multiple "
                f"of num_kv_heads={self.kv_heads}"
            )
        if self.positions == "rope" and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim):
            raise InputError(
                f"model.rotary_fraction={self.rotary_fraction} of a head of {self.head_dim} is {self.rotary_dim}; it must be "
                "an even number of places, from 2 to all"
            )
        # JSON gives a list, which is not hashable.
        object.__setattr__(self, "rope_scaling", tuple(map(float, self.rope_scaling)))

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads, G."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head, Dh."""
        return self.head_size or self.embed_dim // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Number of places of each head that rotary positions turn."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def gated(self) -> bool:
        """Whether the MLP is gated."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP, F."""
        return self.mlp_dim or 4 * self.embed_dim

    @property
    def padded_vocab(self) -> int:
        """Vocabulary size after padding to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


# ---------------------------------------------------------------------------- the modules


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

    def weight(self, name, shape, *, std=None, constant=None):
        """Declares a float32 parameter, and returns it in the compute dtype."""
        init = nn.initializers.normal(std) if constant is None else nn.initializers.constant(constant)
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

    def _qkv(self, x, rotary):
        """Returns queries [B, T, H, Dh] and keys and values [B, T, G, Dh] of x [B, T, D], rotated by position."""
        q, k, v = _linear(x, self.wq) + self.bq, _linear(x, self.wk) + self.bk, _linear(x, self.wv) + self.bv
        if self.config.qk_norm:
            q = _rms_normalized(q, self.config.norm_eps).astype(q.dtype) * self.q_norm
            k = _rms_normalized(k, self.config.norm_eps).astype(k.dtype) * self.k_norm
        return (q, k, v) if rotary is None else (_rotate(q, rotary), _rotate(k, rotary), v)

    def _mlp(self, x):
        """Returns the output [B, T, D] of the MLP branch for x [B, T, D]."""
        x = self.norm2(x)
        up = _linear(x, self.w_up) + self.b_up
        activation = _ACTIVATIONS[self.config.mlp]
        up = activation(_linear(x, self.w_gate)) * up if self.config.gated else activation(up)
        return _linear(up, self.w_down) + self.b_down

    def __call__(self, x, rotary, segment_ids, dropout_rate: float, with_cache: bool, keys=None):
        """Returns x after the layer, and its (keys, values) [B, T, G, Dh] if `with_cache`, else None.

        Args:
          x: [B, T, D].
          rotary: from `rotary`.
          segment_ids: i32[B, T].
          dropout_rate: share of each residual branch's output that is dropped.
          with_cache: whether to return keys and values.
          keys: [2, B], the dropout keys of both branches of each row.
        """

        def residual(x, y, branch):  # dropout is on the residual branches alone (InstructGPT C.1)
            if dropout_rate > 0.0:

                def noise(key):
                    return jax.random.bernoulli(key, 1.0 - dropout_rate, y.shape[1:])

                y = jnp.where(jax.vmap(noise)(keys[branch]), y / (1.0 - dropout_rate), 0.0).astype(y.dtype)
            return sharding.constrain_batch(x + y, self.config.sequence_axis)

        q, k, v = self._qkv(self.norm1(x), rotary)
        mixed = attention.attend(q, k, v, segment_ids, implementation=self.config.attention)
        after = residual(x, _linear(mixed, self.wo, contract=2) + self.bo, 0)
        x = residual(after, self._mlp(x if self.config.parallel_residual else after), 1)
        return x, (k, v) if with_cache else None

    def decode(self, x, rotary, remember, valid):
        """Returns x [B, 1, D] after the layer.

        Args:
          x: [B, 1, D].
          rotary: from `rotary`.
          remember: writes this token's keys and values [B, G, 1, Dh] to the cache, and returns all keys and values of
            the layer.
          valid: bool[B, S], True at the cache slots to attend to.
        """
        q, k, v = self._qkv(self.norm1(x), rotary)
        keys, values = remember(k.swapaxes(1, 2), v.swapaxes(1, 2))
        mixed = attention.attend_cached(q[:, 0], keys, values, valid)[:, None]
        after = sharding.constrain_batch(x + _linear(mixed, self.wo, contract=2) + self.bo)
        return sharding.constrain_batch(after + self._mlp(x if self.config.parallel_residual else after))


class Transformer(_Module):
    """The trunk, and the parameters of its head ("lm" or "scalar"); returns hidden states and the cache."""

    head: str = "lm"

    @nn.compact
    def __call__(
        self, tokens, positions, segment_ids, dropout_rate: float = 0.0, with_cache: bool = False, dropout_keys=None
    ):
        """Returns the hidden states [B, T, D] after the final norm, and the cache.

        Args:
          tokens, positions, segment_ids: i32[B, T].
          dropout_rate: share of the residual branches' outputs that is dropped.
          with_cache: whether the cache is (keys, values), each [L, B, T, G, Dh]; otherwise it is None.
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
        if dropout_rate > 0.0:

            def split(key):
                return jax.random.split(key, (c.num_layers, 2))

            dropout_keys = jax.vmap(split, out_axes=2)(dropout_keys)  # [L, 2, B]
        else:
            dropout_keys = None
        x, cache = layers(c, name="layers")(
            x, rotary(c, positions), segment_ids, dropout_rate, with_cache, dropout_keys
        )
        x = sharding.constrain_batch(Norm(c, name="final_norm")(x))
        if self.head == "scalar":
            # Initialised as in Stiennon et al. 2020 and OpenAI's code: std 1/sqrt(d + 1), bias 0.
            self.weight("scalar_kernel", (c.embed_dim,), std=(c.embed_dim + 1) ** -0.5)
            self.weight("scalar_bias", (), constant=0.0)
        elif not c.tie_embeddings:
            self.weight("lm_head", (c.padded_vocab, c.embed_dim), std=c.init_std)
        return x, cache


# ---------------------------------------------------------------------------- the pure functions


def init_params(config: TransformerConfig, key: jax.Array, head: str = "lm") -> dict:
    """Returns fresh float32 parameters; head is "lm" (policy) or "scalar" (reward and value model)."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return Transformer(config, head=head).init(key, tokens, tokens, tokens)["params"]


def param_shapes(config: TransformerConfig, head: str = "lm") -> dict:
    """Returns the tree of `init_params` as jax.ShapeDtypeStruct, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(config, head))  # a copy: the cached tree must not change


@functools.lru_cache(maxsize=64)
def _param_shapes(config: TransformerConfig, head: str) -> dict:
    """Traces `init_params` once: a trace takes a tenth of a second, and every reading of parameters needs one."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), head))


def logical_axes(config: TransformerConfig, head: str = "lm") -> dict:
    """Returns the tree of `init_params` with a tuple of logical axis names for each parameter."""

    def axes(path, _):
        names = [entry.key for entry in path]
        return (("layers",) if names[0] == "layers" else ()) + _AXES[names[-1]]

    return jax.tree_util.tree_map_with_path(axes, param_shapes(config, head))


def with_scalar_head(config: TransformerConfig, params: dict, key: jax.Array) -> dict:
    """Returns a reward model to start training from: the trunk of `params`, a fresh scalar head, no lm head."""
    fresh = init_params(config, key, head="scalar")
    return {name: params.get(name, value) for name, value in fresh.items()}


_SCALAR_HEAD = ("scalar_kernel", "scalar_bias")


def scalar_head_of(params: dict) -> dict:
    """Returns the head of a reward or value model, without its trunk."""
    return {name: params[name] for name in _SCALAR_HEAD}


def is_scalar_head(params: dict) -> bool:
    """Whether the parameters are only a scalar head, without a trunk."""
    return params.keys() == set(_SCALAR_HEAD)


def without_scalar_head(params: dict) -> dict:
    """Returns the parameters without their scalar head, if they have one.

    For a policy with a value head on its trunk, the result is the language model.
    """
    return {name: value for name, value in params.items() if name not in _SCALAR_HEAD}


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
    return model.apply({"params": params}, tokens, positions, segment_ids, dropout_rate, dropout_keys=keys)[0]


def masked_hidden_states(config: TransformerConfig, params: dict, tokens, mask) -> jax.Array:
    """Returns `hidden_states` of padded rows; mask bool[B, T] is True on real tokens, wherever the padding is."""
    return hidden_states(config, params, tokens, positions_from_mask(mask), mask.astype(jnp.int32))


def lm_logits(config: TransformerConfig, params: dict, hidden: jax.Array, divisor=1.0) -> jax.Array:
    """Returns float32 logits [..., V padded] of hidden states [..., D], divided by a temperature.

    Ids without a token are masked: the padding of the vocabulary, and the released model's own unused ids
    (`absent_ids`). No id without text can be sampled, and log-probabilities, KL and entropy are over real tokens alone.

    The division is applied to the hidden states. In some programs and not in others, XLA would contract a product after
    the logits with the operation that follows, and PPO's first ratio would not be exactly 1.
    """
    hidden = hidden * jnp.asarray(1.0 / divisor, hidden.dtype)
    table = sharding.whole_rows(params["embedding" if config.tie_embeddings else "lm_head"].astype(config.dtype))
    flat = hidden.reshape(-1, config.embed_dim)
    logits = jax.lax.dot_general(flat, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    logits = logits.reshape(*hidden.shape[:-1], config.padded_vocab)
    padding = ((config.vocab_size, config.padded_vocab),) if config.padded_vocab > config.vocab_size else ()
    for first, end in (*config.absent_ids, *padding):
        ids = jnp.arange(config.padded_vocab)
        logits = jnp.where((ids < first) | (ids >= end), logits, _MASKED_LOGIT)
    return logits


def scalar_head(config: TransformerConfig, params: dict, hidden: jax.Array) -> jax.Array:
    """Returns the float32 scalars [...] of a reward or value model for hidden states [..., D]."""
    kernel = params["scalar_kernel"].astype(jnp.float32)
    return hidden.astype(jnp.float32) @ kernel + params["scalar_bias"].astype(jnp.float32)


@jax.custom_vjp
def select_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the log-softmax [...] at the targets i32[...] of float32 logits [..., V], in nats.

    Its custom derivative keeps the forward pass the same computation, to the bit, whether or not a gradient is taken.
    PPO's ratio is therefore exactly 1 before the first step. It also avoids saving a [..., V] softmax.
    """
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _select_logprobs_forward(logits, targets):
    logprobs = select_logprobs(logits, targets)
    return logprobs, (logits, targets, logprobs)


def _select_logprobs_backward(saved, gradient):
    """Recomputes the softmax from the logits, and returns its gradient."""
    logits, targets, logprobs = saved
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    log_normalizer = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - logprobs
    return gradient[..., None] * (chosen - jnp.exp(logits - log_normalizer[..., None])), None


select_logprobs.defvjp(_select_logprobs_forward, _select_logprobs_backward)


def target_logprobs(config: TransformerConfig, params: dict, hidden, targets, divisor=1.0) -> jax.Array:
    """Returns log p(target), f32[B, T], in nats.

    Args:
      config: shape of the model.
      params: parameters of a language model.
      hidden: [B, T, D], the hidden states that predict the targets.
      targets: i32[B, T].
      divisor: divisor of the logits, a temperature.
    """

    def chunk(hidden, targets):
        return select_logprobs(lm_logits(config, params, hidden, divisor), targets)

    return by_chunks(config, chunk, hidden, targets)


def by_chunks(config: TransformerConfig, function, *arrays):
    """Returns function(*arrays), computed in chunks of `logits_chunk` places of each row.

    The backward pass recomputes each chunk, so that only the logits of one chunk exist at once, and never those of a
    whole batch.

    Args:
      config: shape of the model.
      function: maps arrays [B, t, ...] to a tree of arrays [B, t, ...], place by place.
      arrays: [B, T, ...].
    """
    batch, length = arrays[0].shape[:2]
    size = config.logits_chunk
    if not size or length <= size:
        return function(*arrays)
    padding = -length % size

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(batch, -1, *x.shape[3:])[:, :length]

    step = jax.checkpoint(lambda chunk: function(*map(sharding.constrain_batch, chunk)))
    return jax.tree.map(join, jax.lax.map(step, tuple(map(split, arrays))))
