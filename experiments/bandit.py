"""PPO against the known optimum of bandits, at five values of kl_coef; a seed is of a bandit, a reference and all noise.

    python -m rlhf_jax.optimum --config=experiments/bandit.py
    python -m rlhf_jax.optimum --config=experiments/bandit.py:heavy     # or binary, sharp

"heavy" and "binary" are other rewards (bandit.make_bandit); "sharp" is a reference of 2.2 nats per completion instead of
3.5, with large offsets between prompts, which the value model has to learn.

What makes PPO find the optimum here: many epochs of small clipped steps, which raise a rare completion
by the same factor as a common one (with fewer, a good completion that is common at the start takes
over before a better one is found); a width at which what one prompt learns does not undo another's;
and a learning rate that decays, because whitening makes the noise near the optimum as large as the
signal was at the start.
"""

import ml_collections

from rlhf_jax.config import ppo_config
from rlhf_jax.runtime.errors import InputError

FORMS = ("normal", "heavy", "binary", "sharp")


def get_config(form: str = "normal") -> ml_collections.ConfigDict:
    if form not in FORMS:
        raise InputError(f"experiments/bandit.py:{form} is unknown; the bandits are {', '.join(FORMS)}")
    ppo = ppo_config()
    ppo.update(
        iterations=40,
        batch_size=1024,
        minibatch_size=512,
        ppo_epochs=8,
        cliprange=0.1,
        learning_rate=2e-3,
        value_learning_rate=3e-3,
        schedule="linear",
        warmup_iterations=0,
        lam=1.0,  # over two tokens, a biased estimate with less noise gains nothing
        missing_eos="none",  # a completion of two tokens is complete
        output="params",
    )
    model = dict(
        num_layers=1,
        embed_dim=32,
        num_heads=2,
        max_length=8,
        vocab_multiple=8,
        init_std=0.3 if form == "sharp" else 0.1,  # so that the reference is not uniform
        scan_layers=False,
    )
    return ml_collections.ConfigDict(
        dict(
            rewards="offsets" if form == "sharp" else form,
            num_prompts=4,
            seeds=(0, 1, 2),
            kl_coefs=(0.05, 0.1, 0.2, 0.5, 1.0),
            model=model,
            ppo=ppo,
        )
    )
