"""Speed of the programs at two sizes of GPT-2's shape, in float32.

    bash launch/python.sh -m rlhf_jax.bench --config=experiments/bench.py:tiny     # or :small

One JSON line for each kind of work: seconds (median, and every repeat), tokens/s, peak memory.
Hardware: 2 CPU cores, and nothing else running on them: a neighbour costs a factor of 3 to 20.
Time: tiny 2 minutes, small 6. --config.works=sample measures sampling alone; GLIBC_TUNABLES= in
front of the command measures with the allocator's defaults. --config.works=saving --config.repeats=3
measures what a checkpoint costs the steps beside it. "loading" is a batch of every kind; the last line has the
loader's rows/s beside what the steps take.

Sweeps: --config.works=sweep_arms --config.repeats=1 measures whole arms, PPO with its evaluation, one after
another and all at once, and --config.works=ppo_trials their PPO alone; the last line has arms (iterations) per hour, without
compilation. On two cores take fewer: --config.trials=4 --config.arms_alone=2 --config.iterations=2.
"""

import ml_collections

from rlhf_jax.runtime.errors import InputError

SIZES = {  # They have 3.5 million and 29.5 million parameters.
    "tiny": dict(vocab_size=1024, num_layers=4, embed_dim=256, num_heads=4, max_length=128),
    "small": dict(vocab_size=8192, num_layers=8, embed_dim=512, num_heads=8, max_length=256),
}


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise InputError(f"experiments/bench.py:{size} is unknown; the sizes are {', '.join(SIZES)}")
    return ml_collections.ConfigDict(
        dict(
            size=size,
            # Unrolled layers and causal blocks are the faster choice on a CPU.
            model=dict(SIZES[size], scan_layers=False, attention="blocked"),
            works=("sft_step", "reward_step", "sample", "ppo_iteration", "loading"),
            repeats=7 if size == "tiny" else 5,
            batch_size=16,  # sequences of an SFT step, or pairs of a reward model's step; each fills the context
            episodes=32,
            prompt_length=32,
            completion_length=64,  # no completion ends early
            minibatches=4,
            trials=32,  # arms that ppo_trials and sweep_arms run at once
            arms_alone=3,  # arms with which sweep_arms times the sequential runner
            iterations=20,  # PPO iterations of an arm
            test_prompts=256,  # prompts that an arm is evaluated on
            loader_rows=4096,  # examples that batches are loaded from
            checkpoint_every=100,  # in steps; it is the default of the supervised stages
        )
    )
