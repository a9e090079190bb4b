"""The model: a decoder-only Transformer, its attention, and the steps of decoding."""

from rlhf_jax.model.config import TransformerConfig
from rlhf_jax.model.heads import (
    by_chunks,
    lm_logits,
    lm_table,
    scalar_head,
    select_logprobs,
    sum_by_chunks,
    target_logprobs,
)
from rlhf_jax.model.params import (
    init_params,
    init_scalar_head,
    is_scalar_head,
    logical_axes,
    param_shapes,
    scalar_head_of,
    with_scalar_head,
    without_scalar_head,
)
from rlhf_jax.model.transformer import (
    Block,
    Norm,
    Transformer,
    hidden_states,
    masked_hidden_states,
    positions_from_mask,
    rotary,
)

__all__ = [
    "Block",
    "Norm",
    "Transformer",
    "TransformerConfig",
    "by_chunks",
    "hidden_states",
    "init_params",
    "init_scalar_head",
    "is_scalar_head",
    "lm_logits",
    "lm_table",
    "logical_axes",
    "masked_hidden_states",
    "param_shapes",
    "positions_from_mask",
    "rotary",
    "scalar_head",
    "scalar_head_of",
    "select_logprobs",
    "sum_by_chunks",
    "target_logprobs",
    "with_scalar_head",
    "without_scalar_head",
]
