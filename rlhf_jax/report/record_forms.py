"""The forms of a run's files, as far as a report reads them; see form.py."""

from rlhf_jax.evaluate.safety import PARTS
from rlhf_jax.report.form import ANYTHING, FILE_NAME, NUMBER, PAIR, SHARE, TEXT, WHOLE, Maybe, Object, each, one_of

SPLITS = {"valid": "training labelers", "heldout": "held-out labelers"}  # splits in the test of a reward model

CONFIG = Object({"stages": [FILE_NAME]}, {"model": each(ANYTHING)})
STAGE = Object({"kind": TEXT}, {"model": each(ANYTHING)})
MIXING = Object({"ptx_coef": NUMBER})
DONE = Object(
    {"seconds": NUMBER, "finished_at": TEXT},
    {"evaluation_seconds": NUMBER, "peak_memory_gib": NUMBER, "hardware": TEXT, "versions": each(ANYTHING)}
    | {"stopped": Maybe(TEXT)},
)
STEPS = Object({"total": WHOLE})
_ESTIMATE = Object({"value": NUMBER, "low": Maybe(NUMBER), "high": Maybe(NUMBER)})
_ESTIMATES = each(Maybe(Object({"value": Maybe(NUMBER), "low": Maybe(NUMBER), "high": Maybe(NUMBER)})))
POLICY = Object(
    {
        "temperature": NUMBER,
        "win_rate_by": Maybe(TEXT),
        "estimates": _ESTIMATES,
        "categories": each(Object({"count": NUMBER, "gold": _ESTIMATE})),
    },
    {
        "other_weights": Object({"weights": one_of("ema", "params"), "estimates": _ESTIMATES}),
        "reference": Maybe(TEXT),
        "reference_estimates": _ESTIMATES,
    },
)
SPLIT = Object(
    {
        "accuracy": _ESTIMATE,
        "pairs": NUMBER,
        "reliability": [Object({"frequency": NUMBER, "probability": NUMBER}, {"interval": PAIR})],
    },
    {
        "by_margin": [Object({"low": NUMBER, "high": Maybe(NUMBER), "accuracy": _ESTIMATE})],
        "by_group": each(NUMBER),
        "by_decider": [
            Object(
                {"decider": TEXT, "pairs": NUMBER, "accuracy": _ESTIMATE, "ceiling": _ESTIMATE},
                {"bag_of_words": _ESTIMATE},
            )
        ],
        "bag_of_words_accuracy": _ESTIMATE,
        "above_bag_of_words": Object({"value": NUMBER, "low": Maybe(NUMBER), "high": Maybe(NUMBER)}),
        **dict.fromkeys(("log_loss", "ece", "rankings", "prompts"), NUMBER),
    },
)
_LABELERS = Object(
    optional={
        "held_out_group": Maybe(TEXT),
        "folds": each(Object({"in_group": NUMBER, "held_out": NUMBER})),
        **dict.fromkeys(("agreement_in_group", "agreement_across", "ceiling_each_labeler_known"), NUMBER),
    }
)
_GAP = Object({"value": NUMBER, "planted": NUMBER}, {"low": Maybe(NUMBER), "high": Maybe(NUMBER)})
REWARD = Object(
    optional={
        "labelers": _LABELERS,
        "labeler_gap": _GAP,
        "demonstrations": NUMBER,
        **dict.fromkeys(SPLITS, each(ANYTHING)),
    }
)
_MODELS = each(Object({"folder": TEXT, "checksum": TEXT}))
DATA = Object(
    {
        "files": each(Object({"kept": NUMBER, "all_tied": NUMBER, "skipped": [ANYTHING]})),
        "stages": each(
            each(Object(optional=dict.fromkeys(("long_prompts", "long_completions"), ANYTHING), others=NUMBER))
        ),
    },
    {
        "splits": each(
            Object({"rows": each(NUMBER), "near_duplicates": Object({"in_clusters": NUMBER}), "left_out": each(NUMBER)})
        ),
        "models": _MODELS,
        "epochs": each(each(each(NUMBER))),
        "packing": each(
            each(Object(dict.fromkeys(("rows_before", "rows_after", "padding_before", "padding_after"), NUMBER)))
        ),
    },
)
ROWS = {
    "samples.jsonl": Object(
        {"index": NUMBER, "prompt": TEXT, "completion": TEXT, "finished": ANYTHING, "category": Maybe(TEXT)}
        | {"score": Maybe(NUMBER), "gold": Maybe(Object({"total": NUMBER}, dict.fromkeys(PARTS, SHARE)))},
        dict.fromkeys(("kl", "length"), Maybe(NUMBER)),
    ),
    "skills.jsonl": Object({"task": TEXT, "score": SHARE}, {"prompt": TEXT}),
}
TRAINING_ROWS = {  # of a stage that may be at work on them
    "training_samples.jsonl": Object(
        {"step": WHOLE, "of": TEXT, "index": NUMBER, "prompt": TEXT, "completion": TEXT, "finished": ANYTHING},
        {"scores": Maybe(each(Maybe(NUMBER))), **dict.fromkeys(("score", "kl", "length"), Maybe(NUMBER))},
    ),
    "warnings.jsonl": Object({"step": WHOLE, "name": TEXT, "message": TEXT}, {"metric": Maybe(TEXT)}),
}
