"""A config of the smallest size that has every stage that trains, for the tests of plan."""

from rlhf_jax.config import default_config


def get_config(size: str = "tiny"):
    config = default_config()
    config.stages = ("sft", "reward_model", "ppo", "ppo_ptx")
    config.prompt_length = config.completion_length = 8
    config.tokenizer.vocab_size = 300
    config.model.update(num_layers=2, embed_dim=32, num_heads=4, max_length=16, dtype="float32", attention="xla")
    config.sft.update(batch_size=8, epochs=2.0)
    config.reward_model.batch_size = config.dpo.batch_size = 8
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(batch_size=16, minibatch_size=8, iterations=3, warmup_iterations=1, ptx_ratio=2)
    if size == "large":  # so much memory that a process shows it
        config.prompt_length = config.completion_length = 128
        config.model.update(num_layers=4, embed_dim=256, max_length=256, remat="none")
        config.tokenizer.vocab_size = 8192
    return config
