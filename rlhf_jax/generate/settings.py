"""The sampling settings of a released model's generation_config.json: which are followed, and which ignored, by name.

transformers' `generate` follows the file unless its arguments say otherwise. Here temperature, top-k and top-p come
from the command alone, and the tokens that end a text from the tokenizer (data/tokenizer_files.py). The file's
repetition_penalty is followed.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

from rlhf_jax.data.tokenizer_files import GENERATION
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there

# Fields that do not change the text, or that the command or the tokenizer decides: lengths, the number of completions,
# token ids, how transformers computes and what else it returns.
_NO_MATTER = {
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
    "early_stopping",
    "length_penalty",
    "max_time",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "do_sample",
    "num_beam_groups",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_legacy_cache",
    "prefill_chunk_size",
    "low_memory",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "remove_invalid_values",
    "renormalize_logits",
    "disable_compile",
    "compile_config",
    "transformers_version",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "token_healing",
}
# For the other fields, the values that have no effect. null has no effect in any field.
_NOTHING = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "temperature": (1,),
    "top_k": (0,),
    "top_p": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "top_h": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
}
# Fields that shape a random draw, and have no effect on greedy sampling.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")


class GenerationSettings(NamedTuple):
    """The settings of a generation_config.json.

    Attributes:
        repetition_penalty: the penalty; 1 has no effect.
        ignored: fields that change transformers' text and are not followed here, with their values.
    """

    repetition_penalty: float
    ignored: dict[str, Any]


def read(folder: str | os.PathLike, greedy: bool) -> GenerationSettings:
    """Reads the settings of a Hugging Face directory; a directory without the file has none.

    Args:
        folder: the directory.
        greedy: whether nothing is drawn, so that fields which shape a draw have no effect.

    Raises:
        InputError: the file is not a JSON object, or its repetition_penalty is not a number above 0.
    """
    path = pathlib.Path(folder, GENERATION)
    given = read_if_there(path)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise InputError(f"{path} is not a JSON object, {{...}}")
    penalty = given.get("repetition_penalty")
    penalty = 1.0 if penalty is None else penalty
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 < penalty < math.inf:
        raise InputError(f"{path}: 'repetition_penalty' is {penalty!r}; it must be a number above 0")
    followed = {"repetition_penalty", *_NO_MATTER, *(_SAMPLING if greedy else ())}
    ignored = {
        name: value
        for name, value in given.items()
        if name not in followed
        and not name.startswith("_")
        and value not in (None, False, [], {})
        and value not in _NOTHING.get(name, ())
    }
    return GenerationSettings(float(penalty), ignored)
