"""The shapes of models that a config can name: those of this table, or the shape of a source of weights."""

import dataclasses

from rlhf_jax import hf, sources
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError

# Layers, width and heads from Brown et al. 2020, Table 2.1; the context is 2048 tokens. Two rows of the table are
# inconsistent. For 1.3B it prints 24 heads of size 128, but 2048 = 16 * 128 (Stiennon et al. 2020 print 16 heads). For
# 13B it prints a width of 5140, but 40 * 128 = 5120.
_GPT3 = {
    "gpt3_125m": (12, 768, 12),
    "gpt3_350m": (24, 1024, 16),
    "gpt3_760m": (24, 1536, 16),
    "gpt3_1.3b": (24, 2048, 16),
    "gpt3_2.7b": (32, 2560, 32),
    "gpt3_6.7b": (32, 4096, 32),
    "gpt3_13b": (40, 5120, 40),
    "gpt3_175b": (96, 12288, 96),
}
SHAPES = {
    name: dict(num_layers=layers, embed_dim=width, num_heads=heads, max_length=2048)
    for name, (layers, width, heads) in _GPT3.items()
}
# Pythia's sizes (Biderman et al. 2023, Table 1), whose family is GPT-NeoX.
_PYTHIA = {
    "pythia_160m": (12, 768, 12),
    "pythia_410m": (24, 1024, 16),
    "pythia_1b": (16, 2048, 8),
    "pythia_1.4b": (24, 2048, 16),
    "pythia_2.8b": (32, 2560, 32),
    "pythia_6.9b": (32, 4096, 32),
    "pythia_12b": (36, 5120, 40),
}
SHAPES |= {
    name: dict(
        num_layers=layers,
        embed_dim=width,
        num_heads=heads,
        mlp_dim=4 * width,
        max_length=2048,
        positions="rope",
        rotary_fraction=0.25,
        mlp="gelu_exact",
        parallel_residual=True,
        tie_embeddings=False,
    )
    for name, (layers, width, heads) in _PYTHIA.items()
}
SHAPES["smollm2_135m"] = dict(  # config.json of SmolLM2-135M-Instruct, a Llama
    num_layers=30,
    embed_dim=576,
    num_heads=9,
    num_kv_heads=3,
    mlp_dim=1536,
    max_length=8192,
    positions="rope",
    rope_theta=100_000.0,
    norm="rmsnorm",
    mlp="swiglu",
    use_bias=False,
)
_FIELDS = {field.name for field in dataclasses.fields(TransformerConfig)} - {"vocab_size", "lora", *hf.PROGRAM_FIELDS}


def filled(config):
    """Returns a copy of a run's config in which the shape that config.model.shape names fills the fields that are None.

    The section `model` of a stage that names its own shape is filled in the same way. The copy then holds the whole
    architecture, and the source is not needed again for it.

    Raises:
      InputError: a shape is neither in the table nor a source (see sources.py).
    """
    config = config.copy_and_resolve_references()
    folder = config.data.files.dir
    with config.unlocked():
        for section in [config.model, *(config.get(stage, {}).get("model", {}) for stage in config.stages)]:
            if section.get("shape") and any(section.get(name) is None for name in _FIELDS):
                for name, value in _fields(section.shape, folder).items():
                    if section.get(name) is None:
                        section[name] = value
    return config


def _fields(shape: str, folder: str) -> dict:
    """Returns the fields of TransformerConfig that define the architecture of a named shape.

    Args:
      shape: a name in SHAPES, or a source (see sources.py).
      folder: the folder that `shape` is relative to (data.files.dir).
    """
    if shape in SHAPES:
        found = dataclasses.asdict(TransformerConfig(vocab_size=1, **SHAPES[shape]))
        del found["vocab_size"]  # the tokenizer decides it
    else:
        try:
            found = dataclasses.asdict(sources.find(shape, folder, ".").shape())
        except sources.Missing:
            raise InputError(
                f"model.shape='{shape}' is neither {', '.join(SHAPES)} nor a folder with a config.json nor a finished stage "
                f"of a run {sources.places(folder)}"
            ) from None
    return {name: value for name, value in found.items() if name in {"vocab_size", *_FIELDS}}
