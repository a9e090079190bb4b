"""Speed of the programs at sizes of GPT-2's shape: in float32 at two that fit a CPU, and in bfloat16 at GPT-3's.

    bash launch/python.sh -m rlhf_jax.bench --config=experiments/bench.py:tiny     # or :small
    bash launch/python.sh -m rlhf_jax.bench --config=experiments/bench.py:1.3b     # 124m, 350m, 6.7b: an accelerator
    bash launch/python.sh -m rlhf_jax.bench --config=experiments/bench.py:tiny,llama --vs=tunix  # a model of Llama's form

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
from rlhf_jax.shapes import SHAPES

SIZES = {  # They have 3.5 million and 29.5 million parameters.
    "tiny": dict(vocab_size=1024, num_layers=4, embed_dim=256, num_heads=4, max_length=128),
    "small": dict(vocab_size=8192, num_layers=8, embed_dim=512, num_heads=8, max_length=256),
}
# The sizes of GPT-3 with GPT-2's vocabulary, and the rows that one accelerator of 80 GB or more holds.
LARGE = {
    "124m": ("gpt3_125m", dict(batch_size=16, episodes=64)),
    "350m": ("gpt3_350m", dict(batch_size=16, episodes=64)),
    "1.3b": ("gpt3_1.3b", dict(batch_size=8, episodes=32)),
    "6.7b": ("gpt3_6.7b", dict(batch_size=2, episodes=8)),
}


def get_config(arg: str = "tiny") -> ml_collections.ConfigDict:
    size, _, form = arg.partition(",")
    if size not in [*SIZES, *LARGE] or form not in ("", "llama"):
        known = ", ".join([*SIZES, *LARGE])
        raise InputError(f"experiments/bench.py:{arg} is unknown; the sizes are {known}, each also as SIZE,llama")
    config = ml_collections.ConfigDict(
        dict(
            size=size,
            works=("sft_step", "reward_step", "sample", "ppo_iteration", "loading"),
            repeats=7 if size == "tiny" else 5,
            batch_size=16,  # sequences of an SFT step, or pairs of a reward model's step; each fills the context
            episodes=32,
            prompt_length=32,
            completion_length=64,  # no completion ends early
            minibatches=4,
            slots=8,  # completions that sample_drawn_slots samples at once
            ptx_ratio=8,  # pretraining rows for each episode, in ppo_ptx_iteration
            trials=32,  # arms that ppo_trials and sweep_arms run at once
            arms_alone=3,  # arms with which sweep_arms times the sequential runner
            iterations=20,  # PPO iterations of an arm
            test_prompts=256,  # prompts that an arm is evaluated on
            loader_rows=4096,  # examples that batches are loaded from
            checkpoint_every=100,  # in steps; it is the default of the supervised stages
        )
    )
    if size in LARGE:
        # Numbers, attention and loop are what suits the device: bfloat16 and its own kernels on an accelerator.
        shape, rows = LARGE[size]
        config.model = dict(SHAPES[shape], vocab_size=50257)
        config.update(rows, prompt_length=1024, completion_length=1024, slots=rows["episodes"] // 4)
    else:
        # Unrolled layers and causal blocks are the faster choice on a CPU.
        config.model = dict(SIZES[size], scan_layers=False, attention="blocked", dtype="float32")
    if form == "llama":
        config.model.update(positions="rope", norm="rmsnorm", mlp="swiglu", use_bias=False)
    return config
