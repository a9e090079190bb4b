"""InstructGPT as the paper has it (Ouyang et al. 2022, appendix C), at its three sizes.

    python -m rlhf_jax.main --config=experiments/instructgpt.py:1.3b --data=DIR --workdir=runs/1.3b

DIR holds what the paper never released, in the public formats: `gpt3` (the pretrained weights and their tokenizer)
and, unless the size is 6b, `gpt3_6b` (the weights that the reward model starts from), demonstrations.jsonl,
rankings.jsonl, prompts.jsonl and documents.jsonl. The sizes are 1.3b, 6b and 175b. They need accelerators; a laptop runs
only the small configs. What the paper does not state keeps its default, and docs/config.md says where it comes from.

Stages: `sft` is the baseline that win rates refer to; `ppo_init` (C.3) is where PPO starts and what
its KL refers to. The reward and value models are 6B beside every policy (C.2).
"""

import ml_collections

from rlhf_jax.config import default_config, sft_config
from rlhf_jax.runtime.errors import InputError

SIZES = {
    # The shapes are those of GPT-3, in the table of shapes.py. The paper's "6B" is GPT-3's 6.7B.
    "1.3b": dict(
        shape="gpt3_1.3b",
        sft=dict(batch_size=32, learning_rate=9.65e-6),  # C.1
        ppo_init=dict(batch_size=32, learning_rate=5e-6),  # C.3
        ppo=dict(learning_rate=8.05e-6, value_learning_rate=9e-6),  # the first is from Fig. 38, the second from C.4
    ),
    "6b": dict(
        shape="gpt3_6.7b",
        sft=dict(batch_size=32, learning_rate=9.65e-6),
        ppo_init=dict(batch_size=32, learning_rate=1.04e-5),
        ppo=dict(learning_rate=8.05e-6, value_learning_rate=9e-6),
    ),
    "175b": dict(
        shape="gpt3_175b",
        sft=dict(batch_size=8, learning_rate=5.03e-6),
        ppo_init=dict(batch_size=8, learning_rate=2.45e-6),
        ppo=dict(learning_rate=2.55e-6, value_learning_rate=5e-6),  # the lower of the two policy rates in E.9
    ),
}


def get_config(size: str = "1.3b") -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise InputError(f"experiments/instructgpt.py:{size} is unknown; the sizes are {', '.join(SIZES)}")
    values = SIZES[size]
    config = default_config()
    config.stages = ("sft", "ppo_init", "reward_model", "ppo", "ppo_ptx")
    config.prompt_length = 1024  # longer prompts are dropped (App. C)
    config.completion_length = 1024  # responses are capped there (App. C)
    config.model.shape = values["shape"]  # the context of all sizes is 2k tokens
    config.tokenizer.path = "gpt3/tokenizer.json"
    config.data.source = "files"
    config.data.files.update(
        documents="documents.jsonl",
        demonstrations="demonstrations.jsonl",
        rankings="rankings.jsonl",
        prompts="prompts.jsonl",
        # If your rows have a user, set group_field=user (A.2) and per_user=200 (3.2) as well.
        near_duplicates="drop",  # 3.2
    )

    # The paper selects by reward score, which takes --config.sft.select=reward and a reward model in sft.reward.
    config.sft.update(  # C.1
        init="gpt3",
        epochs=16.0,
        schedule="cosine",
        final_fraction=0.1,
        warmup_steps=0,
        dropout_rate=0.2,
        **values["sft"],
    )
    config.ppo_init = sft_config()
    config.ppo_init.update(  # C.3, which does not state the dropout
        init="gpt3", epochs=2.0, schedule="cosine", final_fraction=0.1, pretrain_mix=0.1, **values["ppo_init"]
    )
    if size != "6b":
        config.reward_model.model = ml_collections.ConfigDict({"shape": SIZES["6b"]["shape"]})
    config.reward_model.update(  # C.2
        init="sft" if size == "6b" else "gpt3_6b",
        epochs=1.0,
        batch_size=64,  # prompts, each with all its pairs
        learning_rate=9e-6,
        schedule="cosine",
        final_fraction=0.1,
        loss="kwise",
    )
    for ppo in (config.ppo, config.ppo_ptx):  # C.4
        ppo.update(
            init="ppo_init",
            iterations=500,  # 256k episodes
            batch_size=512,
            minibatch_size=64,
            ppo_epochs=1,
            kl_coef=0.02,
            cliprange=0.2,
            temperature=1.0,
            gamma=1.0,
            schedule="constant",
            warmup_iterations=10,
            warmup_from=0.1,
            ema_decay=0.992,
            ptx_ratio=8,
            **values["ppo"],
        )
    config.ppo_ptx.ptx_coef = 27.8
    return config
