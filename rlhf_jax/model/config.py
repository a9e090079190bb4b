"""The shape of a model: its architecture, and everything else that its programs are compiled for."""

import dataclasses

from rlhf_jax.fields.checks import check_values
from rlhf_jax.fields.model import MODEL
from rlhf_jax.lora import Lora, sizes
from rlhf_jax.model.attention import SEGMENTS
from rlhf_jax.runtime.errors import InputError


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
    segments: int = 0  # what a program knows of its rows; see attention.attend
    sequence_axis: str = ""  # the mesh axis over which activations between layers are split along time
    logits_chunk: int = 0  # number of places of a row whose logits exist at once in a loss; 0: all
    absent_ids: tuple[tuple[int, int], ...] = ()  # ranges [first, end) of ids without a token, never predicted
    lora: Lora | None = None  # adapters beside the matrices of the layers

    def __post_init__(self):
        check_values("model.", {name: x for name, x in vars(self).items() if name != "lora"}, MODEL, exact=False)
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
        if self.lora:
            _check_adapters(self.lora, self.matrices)
            # Spelled out in one order, so that equal adapters have equal settings.
            named = tuple(name for name in self.matrices if name in (self.lora.matrices or self.matrices))
            object.__setattr__(self, "lora", dataclasses.replace(self.lora, matrices=named))

    def of_rows(self, segments: int) -> "TransformerConfig":
        """Returns the shape for rows of at most so many segments, each of which stands together, without PREFIX.

        A row of one segment begins with it. Programs count on 1, on SEGMENTS or on nothing, so that they are few; 0 says
        that nothing is known.
        """
        return dataclasses.replace(self, segments=segments if segments < 2 else SEGMENTS if segments <= SEGMENTS else 0)

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
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's matrices by name, inputs first."""
        width, heads, kv_heads = self.embed_dim, (self.num_heads, self.head_dim), (self.kv_heads, self.head_dim)
        found: dict[str, tuple[int, ...]] = {
            "wq": (width, *heads),
            "wk": (width, *kv_heads),
            "wv": (width, *kv_heads),
            "wo": (*heads, width),
        }
        found |= {"w_gate": (width, self.hidden_dim)} if self.gated else {}
        return found | {"w_up": (width, self.hidden_dim), "w_down": (self.hidden_dim, width)}

    @property
    def adapted(self) -> tuple[str, ...]:
        """The names of the matrices with an adapter."""
        return () if self.lora is None else self.lora.matrices

    @property
    def padded_vocab(self) -> int:
        """Vocabulary size after padding to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


def _check_adapters(lora: Lora, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises InputError if a model whose matrices have these shapes cannot have such adapters."""
    for name in lora.matrices or shapes:
        if name not in shapes:
            raise InputError(f"model.lora.matrices names '{name}', and this model has {', '.join(shapes)}")
        inputs, outputs = sizes(name, shapes[name])
        if lora.rank > min(inputs, outputs):
            raise InputError(
                f"model.lora.rank={lora.rank} is larger than the matrix {name}, which is {inputs} x {outputs}: it must be "
                f"at most {min(inputs, outputs)}"
            )
