"""The whole pipeline in miniature, on the embedded world.

    bash launch/quickstart.sh
    python -m rlhf_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

A Transformer of 0.9 million parameters; under 10 minutes on 2 CPU cores. Three in five of those who
write demonstrations are careless, rude or rambling: SFT learns the tasks from them and their habits
too, so that there is something left for RLHF to do. What to expect, over 4 seeds, is in the README.
"""

from rlhf_jax.config import default_config


def get_config(arg: str = ""):
    config = default_config()
    config.prompt_length = 48
    config.completion_length = 24
    config.data.template = "experiments/world_template.txt"
    config.data.world.update(demonstrations=1000, careless=0.6, rm_prompts=5000)
    config.model.update(
        positions="rope",
        num_layers=4,
        embed_dim=128,
        num_heads=4,
        max_length=128,
        vocab_multiple=64,
        dtype="float32",
        scan_layers=False,
        remat="none",
    )
    config.pretrain.update(
        length=96,
        batch_size=16,
        steps=2000,
        learning_rate=3e-3,
        warmup_steps=100,
        validate_every=500,
        checkpoint_every=500,
    )
    config.sft.update(epochs=2.0, batch_size=16, learning_rate=2e-4, dropout_rate=0.1)
    config.collect.update(models=("sft@1.0", "pretrain@1.0", "sft@0.7", "sft@1.0"), borrowed=2)
    config.reward_model.update(epochs=1.0, batch_size=8, packed=True, length=160, learning_rate=1.5e-3, warmup_steps=20)
    # There is one pretraining sequence per episode, where the paper has 8. The coefficient of the mix weighs a mean
    # over tokens, and 2.0 is enough to keep the skills on this world.
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(
            iterations=40,
            batch_size=128,
            minibatch_size=32,
            learning_rate=7e-4,
            value_learning_rate=1e-3,
            kl_coef=0.08,
            ptx_ratio=1,
            warmup_iterations=3,
            ema_decay=0.98,
            missing_eos_value=-0.5,
        )
    config.ppo_ptx.ptx_coef = 2.0
    config.evaluate.update(skill_items=150, skill_prompt_length=56, skill_completion_length=8)
    return config
