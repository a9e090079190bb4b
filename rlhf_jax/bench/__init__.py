"""A benchmark of the programs: SFT step, reward model step, sampling, PPO iteration, sweeps, checkpoints and loader.

    python -m rlhf_jax.bench --config=experiments/bench.py:tiny
    python -m rlhf_jax.bench --config=experiments/bench.py:tiny --vs=torch

These are the programs that the stages run, on random weights and tokens. Each work runs in a separate process, so that
its peak memory can be measured, and prints one JSON line. If the loader and steps were measured, another line compares
the loader's rows/s with the rows/s that the steps consume. For --vs, see versus.py.
"""
