"""What the figures have in common: the quickstart's pipeline at a size of which a sweep fits into half an hour.

One pretrained model stands under all seeds, as one GPT-3 under all of the paper's; everything after it (SFT,
rankings, reward model, PPO) is made anew with each seed.
"""

from experiments.quickstart import get_config as quickstart


def get_config(arg: str = ""):
    config = quickstart()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "ppo_ptx")
    config.pretrain.update(seed=0, steps=1500)
    config.data.world.update(rm_prompts=2500)
    for ppo in (config.ppo, config.ppo_ptx):
        ppo.update(iterations=20, batch_size=64, minibatch_size=16)
    config.evaluate.update(prompts=256, skill_items=120, bootstrap=200)
    return config
