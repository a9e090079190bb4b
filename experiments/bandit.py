"""PPO against the known optimum of a bandit, at five values of kl_coef.

    python -m rlhf_jax.optimum --config=experiments/bandit.py
"""

import ml_collections

from rlhf_jax.config import ppo_config


def get_config() -> ml_collections.ConfigDict:
    ppo = ppo_config()
    ppo.update(
        iterations=150,
        batch_size=512,
        minibatch_size=128,
        learning_rate=3e-3,
        value_learning_rate=3e-3,
        schedule="linear",
        warmup_iterations=0,
        missing_eos="none",  # a completion of two tokens is complete
        lam=1.0,
        output="params",
    )
    return ml_collections.ConfigDict(
        dict(
            bandit_seed=0,
            seeds=(0,),
            kl_coefs=(0.05, 0.1, 0.2, 0.5, 1.0),
            model=dict(
                num_layers=2,
                embed_dim=32,
                num_heads=2,
                max_length=8,
                vocab_multiple=8,
                init_std=0.2,  # so that the reference is not uniform
                scan_layers=False,
            ),
            ppo=ppo,
        )
    )
