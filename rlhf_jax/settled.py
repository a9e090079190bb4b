"""Values that a config leaves open with None, and that a start settles: by the model's size, or by the data."""

import itertools
import math
from collections.abc import Callable

from ml_collections import ConfigDict

from rlhf_jax import lora, shapes
from rlhf_jax.data import lengths
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import registry
from rlhf_jax.fields.defaults import filled
from rlhf_jax.model import TransformerConfig, work
from rlhf_jax.runtime.errors import InputError

ADAPTERS = 10  # the best rate of adapters against that of whole weights (Schulman et al. 2025, "LoRA Without Regret")


def by_model(config: ConfigDict, say: Callable[[str], None] = lambda sentence: None) -> ConfigDict:
    """Returns a copy of a config with the fields of the model's shape, and without any None that the model settles.

    Args:
      config: the config.
      say: called with a sentence for each field whose value was chosen by the model's size.

    Raises:
      InputError: the shape is neither known nor a folder of released weights.
    """
    config = filled(shapes.filled(config))
    others = [name for name, section in config.items() if registry.find(section) and name not in config.stages]
    for name in (*config.stages, *others):
        for field, part in registry.of(config, name).fields.fields().items():
            if part.by_size and config[name].get(field) is None:
                size, adapts = parameters(config, name), has_adapters(config, name)
                rate = at_size(part.by_size, size) * (ADAPTERS if adapts else 1)
                config[name][field] = rate = float(f"{rate:.3g}")
                if name in config.stages:
                    times = f", {ADAPTERS} times for adapters" if adapts else ""
                    say(
                        f"{name}.{field}={rate:g}, by the size of the model, {size / 1e6:,.0f} million parameters{times}"
                    )
    return config


def has_adapters(config: ConfigDict, stage: str) -> bool:
    """Whether a stage trains adapters, and not the whole weights."""
    own = config[stage].get("model", {}).get("lora")
    return not registry.of(config, stage).base and lora.of_section(config.model.lora, own) is not None


def at_size(points: tuple[tuple[float, float], ...], size: float) -> float:
    """Returns the value for a model of `size` parameters, to 3 digits.

    Between two sizes the logarithm of the value is linear in the logarithm of the size. Outside, the value is that of
    the nearest size: a rule that was seen at no such size is not extrapolated.
    """
    size = min(max(size, points[0][0]), points[-1][0])
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if low <= size <= high:
            share = math.log(size / low) / math.log(high / low)
            return float(f"{at_low * (at_high / at_low) ** share:.3g}")
    return points[0][1]


def parameters(config: ConfigDict, stage: str) -> int:
    """Returns the number of parameters of a stage's model without adapters; the config's shapes are filled."""
    fields = config.model.to_dict() | dict(config[stage].get("model", {}))
    known = {name: value for name, value in fields.items() if value not in (None, "auto") and name != "lora"}
    shape = {name: value for name, value in known.items() if name in TransformerConfig.__dataclass_fields__}
    return work.parameters(TransformerConfig(**{"vocab_size": config.tokenizer.vocab_size} | shape))


def by_data(config: ConfigDict, stored: dict | None, read: Callable[[], tuple[FileCorpus, Tokenizer]]) -> ConfigDict:
    """Returns a config whose lengths are numbers, and prints how those that were open were found.

    Args:
      config: the config.
      stored: the config that the work directory has already, whose lengths stay; None for a new one.
      read: returns the corpus and the tokenizer of the run.

    Raises:
      InputError: a length is open, and the data do not have what it is measured on.
    """
    missing = open_lengths(config)
    if not missing:
        return config
    config = config.copy_and_resolve_references()
    found = {name: (stored or {}).get(name) for name in missing}
    if None in found.values():
        corpus, tokenizer = read()
        for name in missing:
            found[name], sentence = lengths.chosen(name, corpus, tokenizer)
            print(sentence, flush=True)
    with config.unlocked():
        config.update(found)
    return config


def open_lengths(config: ConfigDict) -> list[str]:
    """Returns the names of the lengths that a config leaves to the data."""
    return [name for name in ("prompt_length", "completion_length") if config[name] is None]


def check_lengths(config: ConfigDict) -> None:
    """Raises InputError if a length is open, for plans and sweeps, which need it before a run has read its data."""
    if missing := open_lengths(config):
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} None, which a run measures on its data: give "
            f"a number here, as --config.{missing[0]}=256"
        )
