"""The table of fields, of the model; see model.TransformerConfig."""

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, FLAG, NOT_NEGATIVE, POSITIVE, TEXT, Number, OneOf, Several

MODEL = Section(
    "The policy's; the fields from num_layers to norm_eps are those of `shape` where they are None.",
    {
        "shape": Field(
            "gpt3_1.3b",
            TEXT,
            "GPT-3's, gpt3_125m to gpt3_175b (shapes.py), or a folder of released weights (relative to data.files.dir)",
        ),
        "vocab_size": Field(None, COUNT, "rows of the embedding; None: the folder's, else the tokenizer's"),
        "num_layers": Field(None, COUNT, "layers"),
        "embed_dim": Field(None, COUNT, "width"),
        "num_heads": Field(None, COUNT, "of attention; it divides embed_dim unless there is a head_size"),
        "num_kv_heads": Field(None, COUNT_OR_NONE, "key-value heads, 0: as many as heads"),
        "head_size": Field(None, COUNT_OR_NONE, "width of a head, 0: embed_dim / num_heads"),
        "mlp_dim": Field(None, COUNT_OR_NONE, "width of the mlp, 0: 4 x embed_dim"),
        "max_length": Field(None, COUNT, "tokens of the longest sequence"),
        "positions": Field(None, OneOf("learned", "rope"), "how positions are told"),
        "position_offset": Field(
            None, COUNT_OR_NONE, "unused rows at the start of the table of learned positions, 0: none (OPT: 2)"
        ),
        "norm": Field(
            None,
            OneOf("layernorm", "rmsnorm", "rmsnorm_plus_one"),
            "the last is Gemma's, whose scales are stored less 1",
        ),
        "mlp": Field(
            None,
            OneOf("gelu", "gelu_exact", "relu", "swiglu", "geglu"),
            "'gelu' in its tanh form; the last two are gated",
        ),
        "use_bias": Field(None, FLAG, "of all linear maps and norms"),
        "qkv_bias": Field(None, FLAG, "on queries, keys and values also without use_bias (Qwen2)"),
        "qk_norm": Field(None, FLAG, "RMSNorm of each head's queries and keys (Qwen3)"),
        "parallel_residual": Field(None, FLAG, "attention and mlp both read the layer's input (GPT-NeoX)"),
        "embedding_scale": Field(None, FLAG, "embeddings times sqrt(embed_dim) (Gemma)"),
        "tie_embeddings": Field(None, FLAG, "the lm head is the embedding"),
        "rope_theta": Field(None, POSITIVE, "base of the rotary frequencies"),
        "rotary_fraction": Field(
            None, Number(above=0, high=1), "of each head's width that is turned (GPT-NeoX: a quarter)"
        ),
        "rope_scaling": Field(
            None,
            Several(POSITIVE, "() or 4 numbers above 0", lengths=(0, 4)),
            "Llama 3's: factor, low and high frequency factor, original length",
        ),
        "norm_eps": Field(None, POSITIVE, "epsilon of the norms"),
        "init_std": Field(0.02, NOT_NEGATIVE, "standard deviation of random weights, 0: all are 0"),
        "vocab_multiple": Field(128, COUNT, "the embedding is padded to a multiple, so that it divides over the mesh"),
        "dtype": Field(
            "bfloat16",
            OneOf("float32", "bfloat16"),
            "of the computation, weights are float32; the paper: fp16 with fp32 master weights",
        ),
        "scan_layers": Field(True, FLAG, "False unrolls the layers: faster on a CPU"),
        "remat": Field("full", OneOf("none", "full", "dots"), "what the backward pass recomputes, to save memory"),
        "attention": Field(
            "auto",
            OneOf("auto", "xla", "cudnn", "splash", "blocked"),
            "'auto': splash on TPU, cuDNN on GPU (bfloat16), xla elsewhere; 'blocked' is good on a CPU",
        ),
        "sequence_axis": Field(
            "",
            OneOf("", "data", "fsdp", "tensor"),
            "'tensor': activations between layers are split along time too, to save memory",
        ),
        "logits_chunk": Field(512, COUNT_OR_NONE, "places of a row whose logits exist at once, 0: all"),
    },
)
