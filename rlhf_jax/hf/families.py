"""The tables of the model families: what a config.json means for our config, and which tensor is which parameter."""

import reprlib
from collections.abc import Mapping
from typing import Any

from rlhf_jax.hf.mapping import Family, ModelSetting, ModelSettings, TensorSource, canonical
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_ACTIVATIONS = dict.fromkeys(_TANH, "gelu") | {"gelu": "gelu_exact", "relu": "relu"}
_FLAG = {True: True, False: False}
_HEAD = {
    "scalar_kernel": TensorSource("score.weight", inputs=1),
    "scalar_bias": TensorSource("score.bias", inputs=0, optional=True),
}


def _norm(path: str, name: str, bias: bool) -> dict[str, TensorSource]:
    """Returns the sources of a norm: our parameter `path`, their module `name`."""
    scale = {f"{path}/scale": TensorSource(f"{name}.weight")}
    return scale | {f"{path}/bias": TensorSource(f"{name}.bias")} if bias else scale


def _linear(weight: str, bias: str, name: str, inputs: int = 1, **how) -> dict[str, TensorSource]:
    """Returns the sources of a linear layer: our parameters `weight` and `bias`, their module `name`; see TensorSource."""
    return {
        f"layers/{weight}": TensorSource(f"{name}.weight", inputs, **how),
        f"layers/{bias}": TensorSource(f"{name}.bias", 0, **how),
    }


def _settings(tied: bool, **names: ModelSetting) -> dict[str, ModelSetting]:
    """Returns the settings that all families have, with the given ones; `tied` is tie_word_embeddings' default."""
    common = {
        "vocab_size": ModelSetting("vocab_size"),
        "tie_word_embeddings": ModelSetting("tie_embeddings", tied, _FLAG),
    }
    return common | names


def _llama_like(
    name: str,
    tied: bool = False,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp: Mapping[str, str] | None = None,
    fields: Mapping[str, Any] | None = None,
    sources: Mapping[str, TensorSource] | None = None,
    **more,
) -> Family:
    """Returns a family that is Llama's but for a few details.

    Args:
        name: prefix of the names of transformers' classes.
        tied: default of tie_word_embeddings.
        kv_heads: default of num_key_value_heads; None: as many as heads.
        head_dim: default of head_dim; None: width / heads.
        mlp: values of hidden_act -> `mlp` of TransformerConfig, the default first.
        fields: further fields of TransformerConfig, which all members share.
        sources: further parameters.
        **more: further arguments of Family.
    """
    layer = "model.layers.{}."
    mlp = mlp or {"silu": "swiglu"}
    return Family(
        classes=(f"{name}ForCausalLM", f"{name}ForSequenceClassification"),
        settings=_settings(
            tied,
            hidden_size=ModelSetting("embed_dim"),
            intermediate_size=ModelSetting("mlp_dim"),
            num_hidden_layers=ModelSetting("num_layers"),
            num_attention_heads=ModelSetting("num_heads"),
            num_key_value_heads=ModelSetting("num_kv_heads", kv_heads),
            head_dim=ModelSetting("head_size", head_dim),
            max_position_embeddings=ModelSetting("max_length"),
            rms_norm_eps=ModelSetting("norm_eps", 1e-6),
            hidden_act=ModelSetting("mlp", next(iter(mlp)), mlp),
        ),
        fields=dict(positions="rope", norm="rmsnorm", use_bias=False) | (fields or {}),
        rope=("rope_theta", None, 1.0),
        prefix="model.",
        sources={
            "embedding": TensorSource("model.embed_tokens.weight"),
            **_norm("layers/norm1", layer + "input_layernorm", bias=False),
            "layers/wq": TensorSource(layer + "self_attn.q_proj.weight", 1),
            "layers/wk": TensorSource(layer + "self_attn.k_proj.weight", 1),
            "layers/wv": TensorSource(layer + "self_attn.v_proj.weight", 1),
            "layers/wo": TensorSource(layer + "self_attn.o_proj.weight", 2),
            **_norm("layers/norm2", layer + "post_attention_layernorm", bias=False),
            "layers/w_gate": TensorSource(layer + "mlp.gate_proj.weight", 1),
            "layers/w_up": TensorSource(layer + "mlp.up_proj.weight", 1),
            "layers/w_down": TensorSource(layer + "mlp.down_proj.weight", 1),
            **_norm("final_norm", "model.norm", bias=False),
            "lm_head": TensorSource("lm_head.weight"),
            **_HEAD,
            **(sources or {}),
        },
        ignored=(".rotary_emb.inv_freq",),
        **more,
    )


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        classes=("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
        settings=_settings(
            True,
            n_embd=ModelSetting("embed_dim"),
            n_inner=ModelSetting("mlp_dim", None),
            n_layer=ModelSetting("num_layers"),
            n_head=ModelSetting("num_heads"),
            n_positions=ModelSetting("max_length"),
            layer_norm_epsilon=ModelSetting("norm_eps", 1e-5),
            activation_function=ModelSetting("mlp", "gelu_new", _ACTIVATIONS),
        ),
        fixed={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        fields=dict(positions="learned", norm="layernorm", use_bias=True),
        prefix="transformer.",
        sources={
            "embedding": TensorSource("transformer.wte.weight"),
            "positions": TensorSource("transformer.wpe.weight"),
            **_norm("layers/norm1", "transformer.h.{}.ln_1", bias=True),
            **_linear("wq", "bq", "transformer.h.{}.attn.c_attn", conv1d=True, part=(0, 0)),
            **_linear("wk", "bk", "transformer.h.{}.attn.c_attn", conv1d=True, part=(1, 0)),
            **_linear("wv", "bv", "transformer.h.{}.attn.c_attn", conv1d=True, part=(2, 0)),
            **_linear("wo", "bo", "transformer.h.{}.attn.c_proj", 2, conv1d=True),
            **_norm("layers/norm2", "transformer.h.{}.ln_2", bias=True),
            **_linear("w_up", "b_up", "transformer.h.{}.mlp.c_fc", conv1d=True),
            **_linear("w_down", "b_down", "transformer.h.{}.mlp.c_proj", conv1d=True),
            **_norm("final_norm", "transformer.ln_f", bias=True),
            "lm_head": TensorSource("lm_head.weight"),
            **_HEAD,
        },
        ignored=(".attn.bias", ".attn.masked_bias"),
    ),
    "opt": Family(
        classes=("OPTForCausalLM", "OPTForSequenceClassification"),
        settings=_settings(
            True,
            hidden_size=ModelSetting("embed_dim"),
            ffn_dim=ModelSetting("mlp_dim"),
            num_hidden_layers=ModelSetting("num_layers"),
            num_attention_heads=ModelSetting("num_heads"),
            max_position_embeddings=ModelSetting("max_length"),
            activation_function=ModelSetting("mlp", "relu", {"relu": "relu", **_ACTIVATIONS}),
        ),
        fixed={
            "do_layer_norm_before": (True,),
            "_remove_final_layer_norm": (False, None),
            "enable_bias": (True,),
            "layer_norm_elementwise_affine": (True,),
        },
        why={
            "do_layer_norm_before": " (opt-350m is the one such OPT, with its norms after each layer; take another size)"
        },
        fields=dict(positions="learned", position_offset=2, norm="layernorm", norm_eps=1e-5, use_bias=True),
        prefix="model.",
        sources={
            "embedding": TensorSource("model.decoder.embed_tokens.weight"),
            "positions": TensorSource("model.decoder.embed_positions.weight"),
            **_norm("layers/norm1", "model.decoder.layers.{}.self_attn_layer_norm", bias=True),
            **_linear("wq", "bq", "model.decoder.layers.{}.self_attn.q_proj"),
            **_linear("wk", "bk", "model.decoder.layers.{}.self_attn.k_proj"),
            **_linear("wv", "bv", "model.decoder.layers.{}.self_attn.v_proj"),
            **_linear("wo", "bo", "model.decoder.layers.{}.self_attn.out_proj", 2),
            **_norm("layers/norm2", "model.decoder.layers.{}.final_layer_norm", bias=True),
            **_linear("w_up", "b_up", "model.decoder.layers.{}.fc1"),
            **_linear("w_down", "b_down", "model.decoder.layers.{}.fc2"),
            **_norm("final_norm", "model.decoder.final_layer_norm", bias=True),
            "lm_head": TensorSource("lm_head.weight"),
            **_HEAD,
        },
    ),
    "gpt_neox": Family(
        classes=("GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification"),
        settings=_settings(
            False,
            hidden_size=ModelSetting("embed_dim"),
            intermediate_size=ModelSetting("mlp_dim"),
            num_hidden_layers=ModelSetting("num_layers"),
            num_attention_heads=ModelSetting("num_heads"),
            max_position_embeddings=ModelSetting("max_length"),
            layer_norm_eps=ModelSetting("norm_eps", 1e-5),
            hidden_act=ModelSetting("mlp", "gelu", _ACTIVATIONS),
            use_parallel_residual=ModelSetting("parallel_residual", True, _FLAG),
        ),
        fixed={"attention_bias": (True,)},
        fields=dict(positions="rope", norm="layernorm", use_bias=True),
        rope=("rotary_emb_base", "rotary_pct", 0.25),
        prefix="gpt_neox.",
        sources={
            "embedding": TensorSource("gpt_neox.embed_in.weight"),
            **_norm("layers/norm1", "gpt_neox.layers.{}.input_layernorm", bias=True),
            **_linear("wq", "bq", "gpt_neox.layers.{}.attention.query_key_value", part=(0, 1)),
            **_linear("wk", "bk", "gpt_neox.layers.{}.attention.query_key_value", part=(1, 1)),
            **_linear("wv", "bv", "gpt_neox.layers.{}.attention.query_key_value", part=(2, 1)),
            **_linear("wo", "bo", "gpt_neox.layers.{}.attention.dense", 2),
            **_norm("layers/norm2", "gpt_neox.layers.{}.post_attention_layernorm", bias=True),
            **_linear("w_up", "b_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
            **_linear("w_down", "b_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
            **_norm("final_norm", "gpt_neox.final_layer_norm", bias=True),
            "lm_head": TensorSource(
                "embed_out.weight", alias="lm_head.weight"
            ),  # transformers 5 reads and writes embed_out
            **_HEAD,
        },
        ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    ),
    "llama": _llama_like("Llama", fixed={"attention_bias": (False,), "mlp_bias": (False,)}),
    "mistral": _llama_like("Mistral", kv_heads=8, window=("sliding_window", None, 4096)),
    "qwen2": _llama_like(
        "Qwen2",
        kv_heads=32,
        fields={"qkv_bias": True},
        sources={
            "layers/bq": TensorSource("model.layers.{}.self_attn.q_proj.bias", 0),
            "layers/bk": TensorSource("model.layers.{}.self_attn.k_proj.bias", 0),
            "layers/bv": TensorSource("model.layers.{}.self_attn.v_proj.bias", 0),
        },
        window=("sliding_window", "use_sliding_window", 4096),
    ),
    "qwen3": _llama_like(
        "Qwen3",
        kv_heads=32,
        head_dim=128,
        fields={"qk_norm": True},
        sources={
            "layers/q_norm": TensorSource("model.layers.{}.self_attn.q_norm.weight"),
            "layers/k_norm": TensorSource("model.layers.{}.self_attn.k_norm.weight"),
        },
        fixed={"attention_bias": (False,)},
        window=("sliding_window", "use_sliding_window", 4096),
    ),
    "gemma": _llama_like(
        "Gemma",
        tied=True,
        kv_heads=16,
        head_dim=256,
        # The first releases call the tanh approximation "gelu" too.
        mlp={"gelu_pytorch_tanh": "geglu", "gelu": "geglu"},
        fields={"norm": "rmsnorm_plus_one", "embedding_scale": True},
        fixed={"attention_bias": (False,), "use_bidirectional_attention": (None, False)},
    ),
}


def named_by(settings: ModelSettings) -> Family:
    """Returns the family that the model_type of a config.json names.

    Raises:
        InputError: the model_type is unknown.
    """
    model_type = settings.get("model_type", None)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{settings.path}: model_type {reprlib.repr(model_type)} is unknown; it can be {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: TransformerConfig) -> str:
    """Returns the model_type under which transformers computes the same function as this model.

    Raises:
        InputError: no family computes the same function.
    """
    wanted = canonical(config)
    for model_type, family in FAMILIES.items():
        try:
            found = family.config(ModelSettings("config.json", {"model_type": model_type, **family.to_json(config)}))
        except InputError:  # the family does not have one of the values
            continue
        if canonical(found) == wanted:
            return model_type
    made_of = "positions", "norm", "mlp", "use_bias", "tie_embeddings", "position_offset", "parallel_residual"
    said = ", ".join(f"{name}={getattr(config, name)}" for name in made_of)
    raise InputError(f"no model family of transformers has this model's {said}; it cannot be exported")
