"""The whole pipeline at the smallest size, as a config: of one process's tests and of several processes'."""

from rlhf_jax.config import default_config

STAGES = ("pretrain", "sft", "collect", "reward_model", "ppo", "ppo_ptx")
TRAINED = tuple(stage for stage in STAGES if stage != "collect")


def get_config(last: str = ""):
    """`last` is the last stage, if not all are to be run: --config=tests/support/toy.py:pretrain."""
    config = default_config()
    if last:
        config.stages = STAGES[: STAGES.index(last) + 1]
    config.prompt_length, config.completion_length = 64, 8
    config.tokenizer.vocab_size = 400
    config.model.update(
        num_layers=1, embed_dim=32, num_heads=2, max_length=80, dtype="float32", scan_layers=False, remat="none"
    )
    config.data.world.update(
        documents=60,
        valid_documents=8,
        demonstrations=24,
        valid_demonstrations=8,
        rm_prompts=24,
        ppo_prompts=24,
        valid_prompts=16,
        test_prompts=8,
    )
    config.pretrain.update(length=40, batch_size=8, steps=5, learning_rate=1e-2, warmup_steps=2, validate_every=2)
    config.sft.update(epochs=2.0, batch_size=8, learning_rate=1e-2, pretrain_mix=0.25)
    config.collect.update(models=("pretrain@1.0", "sft@1.0"), max_completions=5, borrowed=1, batch_size=32)
    config.reward_model.update(epochs=2.0, batch_size=8, learning_rate=1e-2)
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(
            iterations=4,
            batch_size=8,
            minibatch_size=4,
            learning_rate=1e-2,
            value_learning_rate=1e-2,
            ptx_ratio=2,
            warmup_iterations=2,
            ema_decay=0.5,
        )
    config.ppo_ptx.update(kl_target=0.1, kl_horizon=40.0, microbatches=2)  # an adaptive coefficient, to be resumed
    for stage in TRAINED:
        config[stage].checkpoint_every = 2
    config.evaluate.update(prompts=8, batch_size=8, skill_items=2)
    return config
