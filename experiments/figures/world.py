"""What the figures have in common: the quickstart's pipeline at a size of which a sweep fits into half an hour.

One pretrained model stands under all seeds, as one GPT-3 under all of the paper's; everything after it (SFT,
rankings, reward model, PPO) is made anew with each seed.
"""

from experiments.quickstart import get_config as quickstart
from rlhf_jax.report import spec

# Most differences of these figures are several times what seeds differ by. Pocock's rule finds those with 3 or 5 seeds, where
# O'Brien and Fleming's takes 5 or 8; what is small it finds less often (docs/sweeps.md).
DESIGN = spec.Design(looks=(3, 5, 8, 12), spending="pocock")
NEW_SEEDS = range(12, 24)  # as many as DESIGN.seeds, and others


def get_config():
    config = quickstart()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "ppo_ptx")
    config.pretrain.seed = 0
    config.data.world.update(rm_prompts=4000, valid_prompts=300, test_prompts=1024)
    config.reward_model.epochs = 1.0  # as the sweeps of docs/reproduction were run
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(iterations=20, batch_size=64, minibatch_size=16, log_gold=True)
    config.evaluate.update(prompts=1024, skill_items=300)
    return config


def get_precise_config():
    """The same, measured on four times as many prompts and five times as many few-shot items.

    For sweeps whose claims were undecided because the evaluation, not the seeds, made most of the variance. Such a sweep
    is run anew with `NEW_SEEDS`, so that its looks do not see the seeds of the first one again.
    """
    config = get_config()
    config.data.world.update(valid_prompts=1200, test_prompts=4096)
    config.evaluate.update(prompts=4096, skill_items=1500)
    return config


def noiseless(config, reward_model: str):
    """Lets a reward model learn from rankings by the gold labeler, as in Gao et al. 2022: stage gold_rankings."""
    config.gold_rankings = config.collect.copy_and_resolve_references()
    config.gold_rankings.update(rankings="collect", labeler="gold", labelers=1)
    config[reward_model].rankings = "gold_rankings"


def mlp_dim(width: int) -> int:
    """The width of the MLP of a model of another width than the quickstart's, in the same ratio."""
    return 8 * round(width / 3)


def own_base(config, reward_model: str, width: int = 128):
    """Gives a reward model a width of its own: it starts from `rm_base`, a base model of that width, not from SFT."""
    config.rm_base = config.pretrain.copy_and_resolve_references()
    config[reward_model].init = "rm_base"
    for stage in ("rm_base", reward_model):
        config[stage].model.update(embed_dim=width, mlp_dim=mlp_dim(width))


def widths(h, values, *models: str):
    """The settings of a sweep over the width of models (sections of the config), which change together."""
    return h.zipit(
        [
            h.sweep(f"{model}.{field}", list(map(of, values)))
            for model in models
            for field, of in (("embed_dim", int), ("mlp_dim", mlp_dim))
        ]
    )


def own_widths(h, reward_model: str, values):
    """The settings of a sweep over the width of a reward model, and of the base it starts from."""
    return widths(h, values, f"{reward_model}.model", "rm_base.model")
