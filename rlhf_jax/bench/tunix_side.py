"""The side of Tunix in a comparison: its sampler, on a model of Llama's form.

Only the process of this side imports this module. The weights and the tokens are those of our side.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params

from rlhf_jax.bench import sides
from rlhf_jax.bench.workload import NEVER, peak_bytes, timed


class _Tokens:
    """Stands where Tunix wants a tokenizer: a text is the JSON list of its tokens."""

    def __init__(self, vocab_size: int):
        self._padding = vocab_size  # no token of the prompts

    def encode(self, text, **_):
        return json.loads(text)

    def decode(self, tokens, **_):
        return json.dumps(list(map(int, tokens)))

    def bos_id(self):
        return 0

    def eos_id(self):
        return NEVER

    def pad_id(self):
        return self._padding

    def dedup_bos_ids(self, ids):
        return ids


def make(given: dict) -> sides.Work:
    """Returns the work of sampling on the weights and tokens of `given["folder"]`."""
    folder, length = pathlib.Path(given["folder"]), given["config"]["completion_length"]
    found = json.loads((folder / "model" / "config.json").read_text())
    heads = found["num_attention_heads"]
    shape = llama.ModelConfig(
        num_layers=found["num_hidden_layers"],
        vocab_size=found["vocab_size"],
        embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"],
        num_heads=heads,
        head_dim=found.get("head_dim") or found["hidden_size"] // heads,
        num_kv_heads=found.get("num_key_value_heads") or heads,
        rope_theta=found.get("rope_theta") or found["rope_parameters"]["rope_theta"],
        norm_eps=found["rms_norm_eps"],
        weight_tying=True,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), (AxisType.Auto,) * 2, devices=jax.devices()[:1])
    network = llama_params.create_model_from_safe_tensors(str(folder / "model"), shape, mesh, jnp.dtype(given["dtype"]))
    rows = np.load(folder / "tokens.npy").tolist()
    cache = CacheConfig(len(rows[0]) + length, shape.num_layers, shape.num_kv_heads, shape.head_dim)
    sampler, lengths = Sampler(network, _Tokens(shape.vocab_size), cache), []
    times = iter(range(10**9))  # a seed for each run

    def generate(rows, length, **how):
        texts = [json.dumps(row) for row in rows]
        return sampler(texts, length, max_prompt_length=len(rows[0]), eos_tokens=[NEVER], **how).tokens

    def run():
        # A top_p of 1 without top_k is its fastest way: it draws from all logits.
        drawn, seconds = timed("sample", lambda: generate(rows, length, temperature=1.0, top_p=1.0, seed=next(times)))
        lengths[:] = [len(row) for row in drawn]
        return seconds

    def results():
        return {"lengths": lengths, "greedy": [int(token) for token in generate(rows[:1], given["greedy"])[0]]}

    return sides.Work(run, results, peak_bytes)


if __name__ == "__main__":
    sides.serve(make)
