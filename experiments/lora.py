"""The pipeline of a 7B model on one machine: adapters on one frozen copy of the weights that all four models share.

    python -m rlhf_jax.main --config=experiments/lora.py --data=DIR --workdir=runs/lora
    python -m rlhf_jax.plan --config=experiments/lora.py --topology=v5e:2x4 --config.mesh.tensor=8

DIR has the released weights and their tokenizer in `llama-2-7b`, and demonstrations.jsonl, rankings.jsonl,
prompts.jsonl and documents.jsonl. `experiments/lora.py:full` trains all weights instead, which a plan shows to need
several machines. docs/lora.md has the table.

Rank, alpha and matrices are those of Dettmers et al. 2023 (QLoRA, appendix B.2), whose learning rate at 7B is 2e-4 with
a constant schedule. They have no PPO; its learning rates here are not tuned.
"""

import ml_collections

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

# The shape of Llama-2-7B (Touvron et al. 2023), so that a plan needs no weights.
LLAMA_7B = dict(
    shape="gpt3_6.7b",
    vocab_size=32_000,
    num_layers=32,
    embed_dim=4096,
    num_heads=32,
    num_kv_heads=32,
    mlp_dim=11_008,
    max_length=4096,
    positions="rope",
    norm="rmsnorm",
    mlp="swiglu",
    use_bias=False,
    tie_embeddings=False,
)


def get_config(kind: str = "adapters") -> ml_collections.ConfigDict:
    if kind not in ("adapters", "full"):
        raise InputError(f"experiments/lora.py:{kind} is unknown; it can be adapters or full")
    config = default_config()
    config.stages = ("sft", "reward_model", "ppo_ptx")
    config.prompt_length = config.completion_length = 512
    config.model.update(**LLAMA_7B)
    config.tokenizer.path = "llama-2-7b/tokenizer.json"
    config.data.source = "files"
    config.data.files.update(
        documents="documents.jsonl",
        demonstrations="demonstrations.jsonl",
        rankings="rankings.jsonl",
        prompts="prompts.jsonl",
    )
    config.sft.update(init="llama-2-7b", epochs=3.0, batch_size=16, microbatches=2, dropout_rate=0.0)
    config.reward_model.update(batch_size=8, microbatches=8)
    config.ppo_ptx.update(
        iterations=500, batch_size=64, minibatch_size=16, microbatches=16, ptx_ratio=1, ptx_microbatches=16
    )
    if kind == "adapters":
        config.model.lora.update(rank=64, alpha=16.0)
        config.sft.update(learning_rate=2e-4, schedule="constant")
        config.reward_model.update(learning_rate=2e-4, schedule="constant")
        config.ppo_ptx.update(learning_rate=1e-4, value_learning_rate=1e-4)
    return config
