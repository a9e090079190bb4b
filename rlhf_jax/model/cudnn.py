"""Attention by cuDNN, in the form that the rows allow.

cuDNN skips the keys after each query by itself. What else a query must not see it is told in one of three ways:

- "lengths", where a row is one segment and then padding: the number of tokens of each row. Padding is not computed.
- "packed", where segments stand one after another: where each begins, and how long it is. Each is computed by itself,
  and so is padding.
- "masked", for all other rows: a mask [T, T] of each row. It is read beside the scores, and in the backward pass cuDNN
  also writes a gradient of it that nobody reads.

JAX offers "packed" in its primitives alone, which are called in `_packed_forward` and `_packed_backward`, and only from
there. They take what cuDNN takes, so that no version of JAX in between can err (jax 0.10 does where heads share keys).

Shapes: B batch, T tokens, H heads, G key-value heads, Dh head width, M the most segments of a row.
"""

import functools
import warnings

import jax
import jax.numpy as jnp

PREFIX = -1  # the segment id of tokens that every later token of their row attends to
NOTHING = -2  # the segment id of the padding that brings a row to a length that a kernel computes
_TOLERANCE = 0.1  # of bfloat16 in numbers of size 1 to 4; wrong places differ by 1 and more
_HOPPER = 9.0  # cuDNN computes packed segments from this compute capability on


def form_of(segments: int, packs: bool = True) -> str:
    """Returns the form for rows of at most `segments` segments (0: not known), on GPUs that compute packed segments."""
    if segments > 1:
        return "packed" if packs else "masked"
    return "lengths" if segments else "masked"


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, segments: int, visible) -> jax.Array:
    """Computes `attention.attend` by cuDNN, [B, T, H, Dh].

    Rows that are not what `segments` says give NaN. Padding, whose segment id is 0, gives anything but NaN.

    Args:
      q: bf16[B, T, H, Dh].
      k, v: bf16[B, T, G, Dh].
      segment_ids: i32[B, T].
      segments: see `attention.attend`.
      visible: function (segment_ids, segment_ids) -> the mask bool[B, T, T].
    """
    form = form_of(segments, packs())
    if form == "masked":
        return _masked(q, k, v, segment_ids, visible)
    if form == "lengths":
        found, right = lengths(segment_ids)
        return jax.nn.dot_product_attention(
            jnp.where(right, q, jnp.nan),
            k,
            v,
            is_causal=True,
            query_seq_lengths=found,
            key_value_seq_lengths=found,
            implementation="cudnn",
        )
    sizes, starts, right = runs(segment_ids, segments + 1)  # padding is one more
    return _packed(jnp.where(right, q, jnp.nan), k, v, sizes, starts)


def _masked(q, k, v, segment_ids, visible):
    """Computes attention with a mask, whose backward pass needs an even length.

    The mask has no heads, so that reading it costs little beside the scores.
    """
    length = q.shape[1]
    padding = length % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=NOTHING)
    mask = visible(segment_ids, segment_ids)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")[:, :length]


def lengths(segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the number of tokens of each row, i32[B], and whether each row is one segment from its first place on.

    A row of padding counts as one token, because a softmax over no keys is not a number. If a row is something else, all
    rows count as full.
    """
    first = segment_ids[:, :1]
    found = jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32)
    expected = jnp.where(jnp.arange(segment_ids.shape[1]) < found[:, None], first, 0)
    right = jnp.all((segment_ids == expected) & (first >= 0))
    return jnp.where(right, jnp.maximum(found, 1), segment_ids.shape[1]), right


def runs(segment_ids: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns where the segments of all rows stand, as cuDNN takes it, and whether they are what it can compute.

    What is padding between them and after them counts as segments too, so that every place is computed: cuDNN leaves
    others as it found them.

    Args:
      segment_ids: i32[B, T]. The tokens of a segment stand together.
      most: M.

    Returns:
      The lengths of the segments i32[B, M], in the order of the rows; behind the last one, 0. The place of the first
      token of each, counted over all rows, i32[B, M + 1]; behind the last one, B x T. Whether there are at most B x M,
      and none of them is PREFIX.
    """
    batch, length = segment_ids.shape
    begins = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=NOTHING)[:, :-1]
    number = jnp.cumsum(begins.reshape(-1)) - 1
    sizes = jnp.zeros(batch * most, jnp.int32).at[number].add(1, mode="drop")
    starts = jnp.nonzero(begins.reshape(-1), size=batch * (most + 1), fill_value=batch * length)[0]
    right = (number[-1] < batch * most) & jnp.all(segment_ids >= 0)
    return sizes.reshape(batch, most), starts.astype(jnp.int32).reshape(batch, most + 1), right


@jax.custom_vjp
def _packed(q, k, v, sizes, starts):
    """Returns attention within segments, whose `sizes` and `starts` are as `runs` gives them."""
    return _packed_forward(q, k, v, sizes, starts)[0]


def _packed_forward(q, k, v, sizes, starts):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    @jax.custom_batching.sequential_vmap
    def compute(q, k, v, sizes, starts):
        return tuple(
            fused._dot_product_attention_fwd_p.bind(
                *_operands(q, k, v, sizes, starts), **_form(q, fused, is_training=True)
            )
        )

    out, statistics = compute(q, k, v, sizes, starts)
    return out, (q, k, v, sizes, starts, statistics, out)


def _packed_backward(saved, gradient):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    @jax.custom_batching.sequential_vmap
    def compute(q, k, v, sizes, starts, statistics, out, gradient):
        operands = _operands(q, k, v, sizes, starts)
        return tuple(fused._dot_product_attention_bwd_p.bind(*operands, statistics, out, gradient, **_form(q, fused)))

    return *compute(*saved, gradient), None, None


_packed.defvjp(_packed_forward, _packed_backward)


def _operands(q, k, v, sizes, starts):
    """Returns the operands that both primitives begin with; cuDNN counts places in numbers, not in tokens."""
    nothing = jnp.zeros(0, q.dtype)  # no bias, and no tables of pages
    places = (starts * (x.shape[2] * x.shape[3]) for x in (q, k))
    return q, k, v, nothing, sizes, sizes, *places, nothing, nothing


def _form(q, fused, **more) -> dict:
    """Returns the settings of both primitives."""
    return {
        "scale": q.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": fused.MaskType.PADDING_CAUSAL,
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    } | more


@functools.cache
def packs() -> bool:
    """Returns whether packed segments can be used here; programs for other machines are compiled for Hopper.

    JAX does not promise what its primitives do, and cuDNN comes with the machine. So a GPU computes one small example by
    packed segments and by XLA before it is trusted. If they differ, packed rows keep the mask, and a warning says so.
    """
    device = jax.local_devices()[0]
    if device.platform != "gpu" or float(device.compute_capability) < _HOPPER:
        return device.platform != "gpu"
    try:
        with jax.ensure_compile_time_eval():
            difference = packed_error()
    except Exception as error:  # noqa: BLE001  whatever it is, the mask computes the same
        reason = f"cannot be computed here ({type(error).__name__})"
    else:
        reason = f"differ from XLA's by {difference:.2g}"
        if difference < _TOLERANCE:
            return True
    warnings.warn(f"attention of packed rows keeps its mask, because cuDNN's packed segments {reason}", stacklevel=2)
    return False


def packed_error() -> float:
    """Returns the largest difference between packed segments and XLA in an example's output and gradients; NaN if any is."""
    place = jnp.arange(64)
    row = jnp.where(place < 20, 2, jnp.where((place >= 24) & (place < 50), 1, 0))  # padding between and behind
    ids = jnp.stack([row, jnp.full_like(row, 3)])
    visible = (ids[:, :, None] == ids[:, None]) & (place <= place[:, None])
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weights = (
        jax.random.normal(key, (2, 64, heads, 64), jnp.bfloat16) for key, heads in zip(keys, (4, 2, 2, 4))
    )
    weights = jnp.where((ids != 0)[..., None, None], weights, 0)
    sizes, starts, _ = runs(ids, 3)

    def packed(q, k, v):
        return _packed(q, k, v, sizes, starts)

    def masked(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation="xla")

    def results(function):
        out, pull = jax.vjp(function, q, k, v)
        return jnp.where((ids != 0)[..., None, None], out, 0), *pull(weights)

    ours, theirs = jax.jit(lambda: (results(packed), results(masked)))()
    return float(jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)).astype(jnp.float32) for a, b in zip(ours, theirs)])))
