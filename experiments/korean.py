"""The pipeline in Korean, on a CPU: nothing in it is made for English.

    python -m rlhf_jax.main --config=experiments/korean.py:pairs --data=DIR --workdir=runs/ko_pairs
    python -m rlhf_jax.main --config=experiments/korean.py:regression --data=DIR --workdir=runs/ko_regression

Film reviews with ratings from 1 to 10 (NSMC) are the pretraining text and, rated, what the reward model learns:
with `:pairs` that one rated 9 or 10 is better than one rated 1 or 2, with `:regression` the ratings themselves.
Demonstrations are turns of a chatbot. The tokenizer is byte-level BPE trained on both. A review that is held out
from the reward model is held out from pretraining too.

Hardware: 2 CPU cores. Time: 10 minutes.
"""

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

REVIEWS, CHATS = "ko_nsmc_100k.jsonl.xz", "sft_ko_chatbot.jsonl.xz"


def get_config(loss: str = "pairs"):
    if loss not in ("pairs", "regression"):
        raise InputError(f"experiments/korean.py:{loss} is unknown; it can be pairs or regression")
    config = default_config()
    config.stages = ("pretrain", "sft", "reward_model", "ppo_ptx")
    config.prompt_length, config.completion_length = 48, 80
    config.tokenizer.vocab_size = 4096
    config.model.update(
        num_layers=4,
        embed_dim=192,
        num_heads=4,
        max_length=128,
        dtype="float32",
        scan_layers=False,
        remat="none",
        attention="blocked",
        logits_chunk=0,
    )
    config.data.update(source="files", on_bad_row="skip")  # some reviews are empty
    config.data.files.update(
        documents=f"{REVIEWS}@40000",
        demonstrations=f"{CHATS}@4000:Q=instruction;A=output",
        rankings=f"{REVIEWS}@40000:text=completion;rating=score",
        prompts=f"{CHATS}@4000:Q=instruction",
        rated_pairs="2<9" if loss == "pairs" else "",
        valid_share=0.05,
        test_share=0.05,
    )
    config.pretrain.update(length=128, batch_size=16, steps=400, learning_rate=1e-3, warmup_steps=20)
    config.sft.update(epochs=1.0, learning_rate=5e-4, dropout_rate=0.0, packed=True)
    config.reward_model.update(learning_rate=3e-4, warmup_steps=20)
    if loss == "regression":
        config.reward_model.loss = "regression"
    config.ppo_ptx.update(
        iterations=10,
        batch_size=64,
        minibatch_size=32,
        learning_rate=5e-5,
        value_learning_rate=1e-4,
        kl_coef=0.05,
        ptx_ratio=1,
        ptx_coef=1.0,
        warmup_iterations=2,
    )
    config.evaluate.prompts = 128
    return config
