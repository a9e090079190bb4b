"""Reward models on real preferences, for a small model that is pretrained here on public-domain books.

    python -m rlhf_jax.main --config=experiments/real_text.py:pretrain --data=DIR --workdir=runs/classics
    python -m rlhf_jax.hf export runs/classics/pretrain DIR/classics
    python -m rlhf_jax.main --config=experiments/real_text.py:truthfulqa --data=DIR --workdir=runs/truthfulqa
    python -m rlhf_jax.main --config=experiments/real_text.py:hh --data=DIR --workdir=runs/hh

The first two make the model, which the others start from. `:truthfulqa` are pairs of a true and a false answer,
`:hh` Anthropic's harmlessness dialogues. The reward model's evaluation.json has its accuracy on questions that it
has not seen, with a 95 % interval, and beside it that of a bag of words.

Hardware: 2 CPU cores. Time: 15 to 25 minutes each. docs/measurements.md has what came out.
"""

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

MODEL = "classics"  # the folder of the model, in DIR
PREFERENCES = {  # name: (file, prompt_length, completion_length)
    "truthfulqa": ("pref_truthfulqa_judge.jsonl.xz", 64, 48),
    "hh": ("pref_hh_harmless_train.jsonl.xz", 320, 128),
}


def get_config(which: str = "truthfulqa"):
    if which != "pretrain" and which not in PREFERENCES:
        raise InputError(f"experiments/real_text.py:{which} is unknown; it can be pretrain, {' or '.join(PREFERENCES)}")
    config = default_config()
    config.model.update(dtype="float32", scan_layers=False, remat="none", attention="blocked", logits_chunk=0)
    config.data.update(source="files", on_bad_row="skip")  # some of the real answers are empty
    config.data.files.update(
        documents="text_classics.txt.xz", demonstrations="sft_llamafactory_alpaca_en.jsonl.xz,sft_t0.jsonl.xz@3000"
    )
    if which == "pretrain":
        config.stages = ("pretrain",)
        config.tokenizer.vocab_size = 8192
        config.model.update(num_layers=6, embed_dim=256, num_heads=4, max_length=448)
        config.prompt_length = config.completion_length = 128
        config.pretrain.update(
            length=256,
            batch_size=16,
            steps=600,
            learning_rate=1e-3,
            warmup_steps=50,
            validate_every=0,
            checkpoint_every=50,
        )
        config.evaluate.update(prompts=8, batch_size=8)
    else:
        rankings, config.prompt_length, config.completion_length = PREFERENCES[which]
        config.stages = ("sft", "reward_model")
        config.model.shape, config.tokenizer.path, config.sft.init = MODEL, f"{MODEL}/tokenizer.json", MODEL
        config.data.files.rankings = rankings
        config.sft.update(epochs=1.0, learning_rate=3e-4, dropout_rate=0.0, packed=True)
        config.reward_model.update(
            packed=True, learning_rate=3e-4, warmup_steps=20, epochs=1.0 if which == "truthfulqa" else 2.0
        )
        config.evaluate.prompts = 64
    return config
