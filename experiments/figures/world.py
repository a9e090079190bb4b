"""What the figures have in common: the quickstart's pipeline at a size of which a sweep fits into half an hour.

One pretrained model stands under all seeds, as one GPT-3 under all of the paper's; everything after it (SFT,
rankings, reward model, PPO) is made anew with each seed.
"""

from experiments.quickstart import get_config as quickstart
from rlhf_jax.report import spec

# Most differences of these figures are several times what seeds differ by. Pocock's rule finds those with 3 or 5 seeds, where
# O'Brien and Fleming's takes 5 or 8; what is small it finds less often (docs/sweeps.md).
DESIGN = spec.Design(looks=(3, 5, 8, 12), spending="pocock")


def get_config(arg: str = ""):
    config = quickstart()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "ppo_ptx")
    config.pretrain.seed = 0
    config.data.world.update(rm_prompts=4000, valid_prompts=300, test_prompts=1024)
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(iterations=20, batch_size=64, minibatch_size=16, log_gold=True)
    config.evaluate.update(prompts=1024, skill_items=300)
    return config


def earlier(arg: str = ""):
    """The config of figures that were not made anew yet: with the quickstart's settings of an earlier version."""
    config = get_config()
    config.data.world.update(rm_prompts=2500, demonstrations=1000, valid_prompts=200, test_prompts=512)
    config.model.update(rope_theta=None, norm=None, mlp=None, mlp_dim=None, use_bias=None, init_std=0.02)
    config.pretrain.learning_rate = 3e-3
    config.sft.update(epochs=2.0, learning_rate=2e-4, pretrain_mix=0.0, packed=False)
    config.collect.update(
        models=("sft@1.0", "pretrain@1.0", "sft@0.7", "sft@1.0"), max_completions=9, demonstrations=False, labelers=1
    )
    config.reward_model.update(batch_size=8, length=160, learning_rate=1.5e-3)
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(learning_rate=7e-4, log_gold=False)
    config.ppo_ptx.ptx_coef = 2.0
    config.evaluate.update(prompts=256, skill_items=120)
    return config


def own_base(config, reward_model: str, width: int = 128):
    """Gives a reward model a width of its own: it starts from `rm_base`, a base model of that width, not from SFT."""
    config.rm_base = config.pretrain.copy_and_resolve_references()
    config[reward_model].init = "rm_base"
    for stage in ("rm_base", reward_model):
        config[stage].model.embed_dim = width


def own_widths(h, reward_model: str, widths):
    """The settings of a sweep over the width of a reward model, and of the base it starts from."""
    return h.zipit([h.sweep(f"{stage}.model.embed_dim", widths) for stage in (reward_model, "rm_base")])
