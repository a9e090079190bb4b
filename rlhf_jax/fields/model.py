"""The fields of the model; model.TransformerConfig applies them."""

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE_BELOW_ONE,
    TEXT,
    Number,
    OneOf,
    Several,
)
from rlhf_jax.lora import MATRICES

LORA = Section(
    "Low-rank adapters beside the matrices of every layer (Hu et al. 2021). SFT, the reward model, DPO and PPO then train "
    "only their adapters and heads, and share one frozen copy of the weights they start from; docs/lora.md says how.",
    {
        "rank": Field(
            None,
            COUNT,
            "The rank of an adapter, at most the smaller side of its matrix. None means no adapters: all weights are "
            "trained.",
        ),
        "alpha": Field(
            16.0,
            POSITIVE,
            "The scale of an adapter times its rank: a matrix W becomes W + `alpha` / `rank` A B. "
            "16 is the number of Dettmers et al. 2023.",
        ),
        "matrices": Field(
            (),
            Several(OneOf(*MATRICES), f"names of {', '.join(MATRICES)}, each once, or ()", distinct=True),
            "The matrices that have an adapter: those of queries, keys, values and the attention's output, and those of "
            "the MLP (`w_gate` where it is gated). () means all of them, as in Dettmers et al. 2023; Hu et al. have wq "
            "and wv.",
        ),
        "dropout": Field(
            0.0,
            SHARE_BELOW_ONE,
            "The share of each adapter's inputs that is dropped in supervised fine-tuning. 0 means none. "
            "The other stages have no dropout.",
        ),
    },
)

MODEL = Section(
    "The Transformer that every stage has by default. "
    "The fields from `vocab_size` to `norm_eps` override those of `shape`; "
    "None means the value of `shape`.",
    {
        "shape": Field(
            "gpt3_1.3b",
            TEXT,
            "The shape that the other fields start from: one of GPT-3's, 'gpt3_125m' to 'gpt3_175b', or of Pythia's, "
            "'pythia_160m' to 'pythia_12b', or 'smollm2_135m' (shapes.py); or a source of weights as for `sft.init`.",
        ),
        "vocab_size": Field(
            None,
            COUNT,
            "The number of rows of the embedding. "
            "None means the number in the released folder, or else in the tokenizer.",
        ),
        "num_layers": Field(None, COUNT, "The number of layers."),
        "embed_dim": Field(None, COUNT, "The width of the residual stream."),
        "num_heads": Field(
            None, COUNT, "The number of attention heads. It must divide `embed_dim`, unless `head_size` is set."
        ),
        "num_kv_heads": Field(
            None, COUNT_OR_NONE, "The number of key-value heads, which divides `num_heads`. 0 means `num_heads`."
        ),
        "head_size": Field(None, COUNT_OR_NONE, "The width of a head. 0 means `embed_dim` / `num_heads`."),
        "mlp_dim": Field(None, COUNT_OR_NONE, "The width of the MLP. 0 means 4 times `embed_dim`."),
        "max_length": Field(None, COUNT, "The length of the longest sequence, in tokens."),
        "positions": Field(
            None, OneOf("learned", "rope"), "How positions are encoded: by a learned table, or by rotary embeddings."
        ),
        "position_offset": Field(
            None,
            COUNT_OR_NONE,
            "The number of unused rows at the start of the table of learned positions. OPT has 2; 0 means none.",
        ),
        "norm": Field(
            None,
            OneOf("layernorm", "rmsnorm", "rmsnorm_plus_one"),
            "The normalisation. 'rmsnorm_plus_one' is Gemma's, whose stored scales are 1 too small.",
        ),
        "mlp": Field(
            None,
            OneOf("gelu", "gelu_exact", "relu", "swiglu", "geglu"),
            "The activation of the MLP. 'gelu' is the tanh approximation; 'swiglu' and 'geglu' are gated.",
        ),
        "use_bias": Field(None, FLAG, "Whether linear maps and norms have biases."),
        "qkv_bias": Field(
            None, FLAG, "Whether queries, keys and values have biases even if `use_bias` is False, as in Qwen2."
        ),
        "qk_norm": Field(None, FLAG, "Whether each head's queries and keys pass an RMSNorm, as in Qwen3."),
        "parallel_residual": Field(
            None, FLAG, "Whether attention and MLP both read the layer's input, as in GPT-NeoX."
        ),
        "embedding_scale": Field(
            None, FLAG, "Whether embeddings are multiplied by the square root of `embed_dim`, as in Gemma."
        ),
        "tie_embeddings": Field(None, FLAG, "Whether the output layer uses the weights of the embedding."),
        "rope_theta": Field(None, POSITIVE, "The base of the rotary frequencies."),
        "rotary_fraction": Field(
            None,
            Number(above=0, high=1),
            "The share of each head's width that rotary positions turn. In GPT-NeoX it is a quarter.",
        ),
        "rope_scaling": Field(
            None,
            Several(POSITIVE, "() or 4 numbers above 0", lengths=(0, 4)),
            "The scaling of rotary frequencies as in Llama 3: the factor, the low and the high frequency factor, and "
            "the original length in tokens. () means no scaling.",
        ),
        "norm_eps": Field(None, POSITIVE, "The epsilon of the norms."),
        "init_std": Field(0.02, NOT_NEGATIVE, "The standard deviation of random initial weights. 0 makes them all 0."),
        "vocab_multiple": Field(
            128,
            COUNT,
            "The number that the rows of the embedding are padded to a multiple of, so that they divide over the mesh.",
        ),
        "dtype": Field(
            "bfloat16",
            OneOf("float32", "bfloat16"),
            "The number format of the computation. Master weights are always float32. "
            "The paper computes in fp16, with fp32 master weights (App. C).",
        ),
        "scan_layers": Field(
            None,
            FLAG,
            "Whether the program loops over the layers, which compiles faster. "
            "False unrolls them, which is faster on a CPU, and takes less memory than a loop that keeps everything. "
            "None is True on accelerators and for more than 12 layers; elsewhere a run chooses at its first start what is "
            "fastest in its memory (docs/scaling.md).",
        ),
        "remat": Field(
            "auto",
            OneOf("auto", "none", "full", "dots"),
            "What the backward pass computes again instead of keeping it in memory. "
            "'none' keeps everything, and 'full' computes each layer again. "
            "'dots' does so too, but keeps the products with weights. "
            "'auto' is the one with which a run is fastest in its memory, chosen at its first start (docs/scaling.md). "
            "On a CPU, it has no effect on unrolled layers.",
        ),
        "attention": Field(
            "auto",
            OneOf("auto", "xla", "cudnn", "splash", "blocked"),
            "The implementation of attention. "
            "'auto' is 'splash' on a TPU, 'cudnn' on a GPU in bfloat16, and 'xla' elsewhere; 'blocked' is good on a "
            "CPU.",
        ),
        "sequence_axis": Field(
            "",
            OneOf("", "data", "fsdp", "tensor"),
            "The mesh axis over which activations between layers are split along time as well, to save memory. "
            "It is usually 'tensor'. Empty does not split them.",
        ),
        "logits_chunk": Field(
            512,
            COUNT_OR_NONE,
            "The number of places of a row whose logits are in memory at once while a loss is computed. 0 means all.",
        ),
        "lora": LORA,
    },
)
