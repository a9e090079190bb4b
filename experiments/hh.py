"""Helpful and harmless: RLHF on Anthropic's preferences (Bai et al. 2022, arXiv 2204.05862).

    python -m rlhf_jax.main --config=experiments/hh.py:1b --data=DIR --workdir=runs/hh_1b

The sizes are 135m (SmolLM2-135M-Instruct) and 1b, 2.8b and 6.9b (Pythia); the paper's own models, of 13M to 52B
parameters, were never released. DIR holds the released model and two prepared datasets, hh_rlhf and hh_rlhf_chosen, whose
prompts are the published dialogues to the letter (docs/tldr.md has the commands). Stages: `sft`, `reward_model` (the
paper's preference model), `ppo`.

What the paper states of preference models (section 3) and of RLHF (section 4) is marked below. These are stated as well,
but cannot be had or are done in another way:

- The policy starts from a model that was distilled from a prompt, which was not released. Here it starts from SFT on the
  chosen answers.
- Preference models are first trained on public comparisons ("PMP"). Here they start from the SFT model.
- RLHF has 369,000 prompts that a model wrote, beside 137,000 of people. Only those of the published comparisons are here.
- Pairs of a weak preference are left out in training. The published pairs do not say how strong a preference is.
- Online training is `collect` and a further round of these stages.

OPEN lists what we have not found stated in the paper. The values are ours, and none was searched for; the learning rates
are those of published runs of this size (docs/recipes.md).
"""

import ml_collections

from experiments.tldr import SIZES
from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

OPEN = (
    "prompt_length, completion_length and too_long",
    "learning_rate, batch_size, optimizer, schedule and warm-up of every stage (but the PM's rate is constant)",
    "everything of sft, which the paper does not have",
    "iterations, minibatch_size, ppo_epochs, cliprange, cliprange_value, lam, vf_coef and temperature of ppo",
    "value, value_init, missing_eos, whiten_rewards, whiten_advantages, ema_decay and output of ppo",
)


def get_config(size: str = "135m") -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise InputError(f"experiments/hh.py:{size} is unknown; the sizes are {', '.join(SIZES)}")
    shape, folder, vocab_size = SIZES[size]
    config = default_config()
    config.stages = ("sft", "reward_model", "ppo")
    config.prompt_length, config.completion_length = 512, 128
    config.too_long = "cut_left"  # a long dialogue loses its oldest turns
    config.model.update(shape=shape, vocab_size=vocab_size)
    config.tokenizer.path = folder
    config.data.source = "files"
    config.data.files.update(
        demonstrations="hh_rlhf_chosen",
        rankings="hh_rlhf",  # helpful and harmless together, all four published subsets
        prompts="hh_rlhf",
        splits="published",
        group_field="group",  # the opening of a dialogue, which is published at several lengths
    )
    config.sft.update(
        init=folder, epochs=1.0, batch_size=64, learning_rate=None, schedule="cosine", dropout_rate=0.0, packed=True
    )
    config.reward_model.update(
        init="sft",
        epochs=1.0,  # section 3: one epoch, at a constant rate
        schedule="constant",
        batch_size=64,
        learning_rate=None,
        loss="kwise",
    )
    config.ppo.update(
        init="sft",
        reward="reward_model",
        kl_coef=0.001,  # section 4: lambda; the KL is usually below 100 nats, and the penalty may not be needed
        iterations=500,
        batch_size=256,
        minibatch_size=64,
        ppo_epochs=1,
        learning_rate=None,
        value_learning_rate=None,
        ema_decay=0.0,
        output="params",
        ptx_coef=0.0,
    )
    for section in (config.sft, config.reward_model, config.ppo):
        section.optimizer.update(b2=0.999, eps=1e-5)
    config.ppo.value_optimizer.update(b2=0.999, eps=1e-5)
    return config
