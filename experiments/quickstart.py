"""The whole pipeline in miniature, on the embedded world.

    bash launch/quickstart.sh
    python -m rlhf_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

A Transformer of 0.9 million parameters; about 12 minutes on 2 CPU cores. Three in five of those who
write demonstrations are careless, rude or rambling: SFT learns the tasks from them and their habits
too, so that there is something left for RLHF to do. What to expect, over 4 seeds, is in the README.
"""

from rlhf_jax.config import default_config


def get_config():
    config = default_config()
    config.prompt_length = 48
    config.completion_length = 24
    config.data.template = "experiments/world_template.txt"
    config.data.world.update(demonstrations=6000, careless=0.6, rm_prompts=16000, valid_prompts=400, test_prompts=1024)
    config.model.update(
        positions="rope",
        rope_theta=100.0,
        norm="rmsnorm",
        mlp="swiglu",
        mlp_dim=344,
        use_bias=False,
        init_std=0.07,
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
        steps=1500,
        learning_rate=4e-3,
        warmup_steps=100,
        validate_every=500,
        checkpoint_every=500,
    )
    config.sft.update(epochs=1.5, batch_size=16, learning_rate=1e-3, dropout_rate=0.1, pretrain_mix=0.125, packed=True)
    config.collect.update(
        models=("sft@1.0", "sft@0.7", "sft@1.0"), max_completions=7, borrowed=2, demonstrations=True, labelers=4
    )
    config.reward_model.update(epochs=2.0, batch_size=16, packed=True, length=144, learning_rate=7e-4, warmup_steps=20)
    # Gradients of 32 episodes are noisy: a larger rate moves the policy away from SFT without a better score. There is
    # one pretraining sequence per episode, where the paper has 8, and its coefficient weighs a mean over tokens. 0.5 keeps
    # the skills on this world, and 2 takes a third of what PPO gains in helpfulness (docs/measurements.md).
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(
            iterations=30,
            batch_size=128,
            minibatch_size=32,
            learning_rate=3e-4,
            value_learning_rate=1e-3,
            kl_coef=0.08,
            ptx_ratio=1,
            warmup_iterations=3,
            ema_decay=0.98,
            missing_eos_value=-0.5,
        )
    config.ppo_ptx.ptx_coef = 0.5
    config.evaluate.update(prompts=1024, skill_items=150, skill_prompt_length=56, skill_completion_length=8)
    return config
