"""The whole pipeline on real text, from a released model of 260K parameters.

    python -m rlhf_jax.main --config=experiments/real_small.py --data=DIR --workdir=runs/real_small
    python -m rlhf_jax.main --config=experiments/real_small.py:ranked4 --data=DIR --workdir=runs/real_ranked4

Base model: stories260K, of the Llama type, pretrained on TinyStories. Demonstrations: Alpaca's and
T0's. Preferences: pairs of answers to TruthfulQA's questions, judged true or false; with `:ranked4`
rankings of four answers (K = 4, with ties) to questions on a passage, which are five times as long.
A question lies in one split alone. Prompts: those of the demonstrations and preferences.
Pretraining text of PPO-ptx: TinyStories. The vocabulary has 512 tokens, so many prompts are too
long and left out; the report counts them, and the bad rows.

Hardware: 2 CPU cores. Time: at most 20 minutes.
"""

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

PREFERENCES = {  # name: (file, prompt_length, completion_length, epochs of the reward model)
    "truthfulqa": ("pref_truthfulqa_judge.jsonl.xz", 64, 48, 1.0),
    "ranked4": ("ranked4_qa_feedback.jsonl.xz", 192, 128, 2.0),
}


def get_config(preferences: str = "truthfulqa"):
    if preferences not in PREFERENCES:
        raise InputError(f"experiments/real_small.py:{preferences} is unknown; it can be {' or '.join(PREFERENCES)}")
    config = default_config()
    config.stages = ("sft", "reward_model", "ppo", "ppo_ptx")
    rankings, config.prompt_length, config.completion_length, epochs = PREFERENCES[preferences]
    config.tokenizer.path = "stories260K/tokenizer.json"
    config.model.update(shape="stories260K", vocab_multiple=64, dtype="float32", scan_layers=False, remat="none")
    config.data.update(source="files", on_bad_row="skip")  # some of the real answers are empty
    config.data.files.update(
        documents="text_tinystories.txt.xz",
        document_end=r"(?<!\n)\n(?!\n)",  # one line break is between stories, and two are between paragraphs
        demonstrations="sft_llamafactory_alpaca_en.jsonl.xz,sft_t0.jsonl.xz@20000",
        rankings=rankings,
    )
    config.sft.update(
        init="stories260K",
        epochs=4.0,
        learning_rate=1e-3,
        dropout_rate=0.0,  # the model is small for its data
        pretrain_mix=0.1,
    )
    config.reward_model.update(epochs=epochs, learning_rate=1e-3, warmup_steps=20)
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(
            iterations=40,
            batch_size=128,
            minibatch_size=32,
            learning_rate=1e-4,
            value_learning_rate=3e-4,
            kl_coef=0.05,
            ptx_ratio=1,
            warmup_iterations=3,
            ema_decay=0.98,
            missing_eos="subtract",
            missing_eos_value=1.0,
        )
    config.ppo_ptx.ptx_coef = 2.0
    return config
