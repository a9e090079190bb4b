"""The KL coefficient beta with the pretraining mix (Ouyang et al. 2022, Fig. 36, E.7): too little and too much are poor.

    python -m rlhf_jax.sweep --config=experiments/figures/fig36_kl_coef.py --workdir=runs/figures/fig36
"""

from experiments.figures.world import get_config

KL_COEFS = (0.0, 0.02, 0.08, 0.3, 2.0)


def sweep(h):
    return h.product([h.sweep("ppo_ptx.kl_coef", KL_COEFS), h.sweep("seed", range(3))])
