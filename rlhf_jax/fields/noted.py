"""The config that a finished stage was made with, as its `done.json` notes it; and which fields may change afterwards.

The directory of a run has one config.json, which reports and commands read. Whoever edits it afterwards would make them
tell of a run that never was, so it is compared with what each finished stage notes.
"""

import json
from collections.abc import Mapping

from rlhf_jax.runtime import finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.workdir import differences

# The fields of a config that every stage reads. Evaluations read others too, and are repeated without the stage.
COMMON = ("prompt_length", "completion_length", "too_long", "long_completions", "data", "tokenizer", "model")
# Fields of stages that say what is looked at in training, and in how many parts a batch is computed. They change no result
# but for rounding.
FREE = ("samples_every", "samples_kept", "microbatches", "ptx_microbatches")
# Fields of the run that may change between two starts: they change no result. Older work directories have `tensorboard`.
FREE_OF_RUN = (
    "checkpoints_kept",
    "checkpoints_every",
    "trackers",
    "tracker_project",
    "slots",
    "tensorboard",
    "platform",
    "evaluate",
)
_REPLACED = "sample_parts"  # of PPO stages in work directories of older versions; `slots` took its place


def free_between(old: Mapping, new: Mapping) -> tuple[str, ...]:
    """Returns the fields that may differ between the stored config of a run and its new one.

    Beside FREE_OF_RUN, these are FREE of each stage, and the names of stages that are appended to `stages`, with their
    sections: no earlier stage has read them.
    """
    before, after = (list(config.get("stages", ())) for config in (old, new))
    appended = after[len(before) :] if after[: len(before)] == before else []
    free = [f"{name}.{field}" for name in new for field in (*FREE, _REPLACED)]
    return (*FREE_OF_RUN, *free, *(["stages"] * bool(appended)), *appended)


def note(config: Mapping, stage: str) -> dict:
    """Returns the fields that a stage's result depends on, in the form of config.json.

    Args:
      config: the run's whole config, as nested mappings.
      stage: name of the stage.
    """
    section = {name: value for name, value in config[stage].items() if name not in FREE}
    own_seed, own_model = section.pop("seed", None), section.get("model") or {}
    noted = {name: config[name] for name in COMMON if name in config} | {stage: section}
    noted["seed"] = config.get("seed") if own_seed is None else own_seed
    # Fields of a stage's own model replace those of the policy's model, so sweeps share such a stage between policies.
    noted["model"] = {**noted.get("model", {}), **own_model}
    return json.loads(json.dumps(noted))


def check(config: Mapping, folder) -> None:
    """Compares the config of a run with what the run's finished stages note.

    A field that one of the two lacks belongs to another version of this program, and is passed over.

    Args:
      config: the content of config.json, with "stages" and the section of each.
      folder: the directory of the run.

    Raises:
      InputError: a field has another value than when a stage was made.
    """
    for stage in config["stages"]:
        then = (finished.facts(folder / stage) or {}).get("config")
        if then and (differing := differences(then, note(config, stage), common=True)):
            raise InputError(
                f"{folder / 'config.json'} was changed after stage '{stage}' was finished ({differing}): "
                "put back the old values, or start a run with the new ones in another directory"
            )
