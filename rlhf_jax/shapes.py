"""The shapes of models that a config can name: GPT-3's, or that of a folder of released weights."""

import dataclasses
import pathlib

from rlhf_jax import hf
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError

# Brown et al. 2020, Table 2.1: layers, width, heads; 2048 places. Two of its rows cannot be: it prints 24
# heads of 128 for 1.3B, which are not 2048 wide (16 are, and Stiennon et al. 2020 print 16), and a width of
# 5140 for 13B, which is no 40 heads of 128 (5120 is).
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
_FIELDS = {field.name for field in dataclasses.fields(TransformerConfig)} - {"vocab_size", *hf.PROGRAM_FIELDS}


def filled(config):
    """A copy of a run's config in which the fields of config.model that are None are those of config.model.shape.

    The same for `model` of each stage that names a shape of its own. The run's config then says all of it, and
    the folder is not needed again.

    Raises:
      InputError: a shape that is neither in the table nor a folder of released weights.
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
    """Of TransformerConfig: those that make an architecture."""
    if shape in SHAPES:
        found = dataclasses.asdict(TransformerConfig(vocab_size=1, **SHAPES[shape]))
        del found["vocab_size"]  # the tokenizer's
    elif pathlib.Path(folder, shape, "config.json").is_file():
        found = dataclasses.asdict(hf.load_config(pathlib.Path(folder, shape)))
    else:
        raise InputError(
            f"model.shape='{shape}' is neither {', '.join(SHAPES)} nor a folder with a config.json in '{folder}' "
            "(data.files.dir)"
        )
    return {name: value for name, value in found.items() if name not in hf.PROGRAM_FIELDS}
