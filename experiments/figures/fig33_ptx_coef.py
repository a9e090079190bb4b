"""The pretraining coefficient gamma (Ouyang et al. 2022, Fig. 33, E.6): it wins back what PPO loses, for some reward.

    python -m rlhf_jax.sweep --config=experiments/figures/fig33_ptx_coef.py --workdir=runs/figures/fig33
"""

from experiments.figures.world import get_config

PTX_COEFS = (0.0, 0.1, 0.5, 2.0, 8.0)


def sweep(h):
    return h.product([h.sweep("ppo_ptx.ptx_coef", PTX_COEFS), h.sweep("seed", range(3))])
