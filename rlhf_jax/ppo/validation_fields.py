"""The configuration fields of what is looked at while PPO trains: samples, validations, the best weights, an early end."""

from rlhf_jax.fields.field import Field
from rlhf_jax.fields.ranges import COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SOME_TEXT, Several
from rlhf_jax.fields.rewards import REWARD


def lower_is_better(metric: str) -> bool:
    """Whether the lowest value of a metric of validations is the best."""
    return metric in ("valid/kl", "valid/ptx_loss")


FIELDS = {
    "samples_every": Field(
        100,
        COUNT_OR_NONE,
        "The number of iterations between two looks at the completions of the same `samples_kept` validation prompts, which "
        "are kept in training_samples.jsonl. The first look is after the first iteration. A look costs as much as the "
        "sampling and scoring of an iteration, and changes no result. 0 never looks.",
    ),
    "samples_kept": Field(
        4,
        COUNT_OR_NONE,
        "The number of validation prompts whose completions are kept. Beside them, each iteration keeps the completions "
        "of the highest and of the lowest score. 0 keeps neither.",
    ),
    "samples_temperature": Field(
        None,
        NOT_NEGATIVE,
        "The temperature of completions of validation prompts. 0 takes the likeliest tokens, and None is `temperature`.",
    ),
    "validate_every": Field(
        0,
        COUNT_OR_NONE,
        "The number of iterations between two validations on up to `batch_size` validation prompts, with the weights "
        "that the stage would hand on. A validation costs a little more than a look (see `samples_every`). There is "
        "one after the last iteration, too. 0 never validates.",
    ),
    "judges": Field(
        (),
        Several(REWARD, "a stage, a folder or a function for each judge, or ()"),
        "Other reward models and functions that score the completions of validations, and are not trained against. "
        "The metrics are valid/scores/NAME.",
    ),
    "best_by": Field(
        "valid/score",
        SOME_TEXT,
        "The metric of validations that says which weights are best, for `output`='best' and `stop_patience`. The lowest "
        "value of valid/kl and valid/ptx_loss is the best, and the highest of the others. A held-out judge's is "
        "valid/scores/NAME.",
    ),
    "stop_kl": Field(
        None,
        POSITIVE,
        "The KL to the reference, in nats per completion, above which a validation ends the stage. None never does.",
    ),
    "stop_patience": Field(
        0,
        COUNT_OR_NONE,
        "The number of validations in a row without a new best by `best_by` that ends the stage. 0 never does.",
    ),
}
