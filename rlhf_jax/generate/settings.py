"""What a released model's generation_config.json asks of sampling: what is done of it, and what is not, by name.

transformers' `generate` follows it unless its arguments say otherwise. Here temperature, top-k and top-p are the
command's alone, what ends a text is the tokenizer's (data/tokenizer_files.py), and repetition_penalty is followed.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

from rlhf_jax.data.tokenizer_files import GENERATION
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there

# What changes no text, or is asked of the command or the tokenizer: a length, the number of completions, ids, how
# transformers computes and what else it returns.
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
# Of the others, the values that do nothing; and any field: null.
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
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")


class Settings(NamedTuple):
    """repetition_penalty: 1 does nothing; ignored: what transformers' text depends on, and ours not, by name."""

    repetition_penalty: float
    ignored: dict[str, Any]


def read(folder: str | os.PathLike, greedy: bool) -> Settings:
    """Of a Hugging Face directory.

    Args:
        greedy: nothing is drawn, so that what shapes a draw does not matter.

    Raises:
        InputError: the file is no JSON object, or its repetition_penalty no number above 0.
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
    return Settings(float(penalty), ignored)
