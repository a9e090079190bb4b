"""Measures PPO's score and update in packed rows against whole minibatches, with lengths drawn as in the paper.

Prompts are log-normal with a mean of 166 / 1024 of the prompt's places and a median of 62 / 1024 (Table 9), completions
log-normal with a mean of 130 / 1024 of theirs. "full" has episodes without padding. The two kinds of rows take turns.

    python tests/support/padding_of_ppo.py [places] [layers] [width] [repeats] [minibatch] [least places of a part]
"""

import itertools
import statistics
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate, model, optim, ppo, train
from rlhf_jax.bench import workload
from rlhf_jax.ppo import packing

VOCAB, BATCHES = 1024, 4


def lengths_of(kind: str, rows: int, places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths of prompts and completions, i64[rows] each, of at most `places` each."""
    if kind == "full":
        return np.full(rows, places), np.full(rows, places)
    rng, unit = np.random.default_rng(seed), places / 1024
    prompts = rng.lognormal(np.log(62), np.sqrt(2 * np.log(166 / 62)), rows)
    completions = rng.lognormal(np.log(130) - 0.5, 1.0, rows)
    return tuple(np.clip(np.ceil(unit * x), 1, places).astype(int) for x in (prompts, completions))


def rollout_of(kind: str, rows: int, places: int, seed: int) -> generate.Rollout:
    """Returns episodes of random tokens."""
    prompts, completions = lengths_of(kind, rows, places, seed)
    prompt_mask = np.arange(places)[::-1] < prompts[:, None]
    mask = np.arange(places) < completions[:, None]
    tokens = np.random.default_rng(seed).integers(1, VOCAB, (rows, 2 * places)).astype(np.int32)
    return generate.Rollout(tokens, prompt_mask, mask, np.zeros(mask.shape, np.float32))


def measure(places: int, layers: int, width: int, repeats: int, minibatch: int, least: int) -> None:
    """Prints medians in seconds of a score of `minibatch` episodes and of an update, and the rows that they compute."""
    lm = model.TransformerConfig(
        vocab_size=VOCAB, num_layers=layers, embed_dim=width, num_heads=width // 32, max_length=2 * places
    )
    config = ppo.PPOConfig(lm, lm, eos_id=workload.NEVER, missing_eos="none")
    optimizer, coefs = optim.make_optimizer(optim.OptimizerConfig()), workload.coefficients()
    keys = jax.random.split(jax.random.key(0), 4)
    policy, ref = (model.init_params(lm, key) for key in keys[:2])
    value, reward = (model.init_params(lm, key, head="scalar") for key in keys[2:])
    order = [np.arange(minibatch)]

    def programs(size):
        packing.PLACES["cpu"] = size
        score = jax.jit(ppo.make_score(config, ppo.SequenceScore(lm)))
        update = jax.jit(ppo.make_update(config, optimizer, optimizer), donate_argnums=0)
        state = ppo.PPOState(*(train.init_state(jax.tree.map(jnp.copy, x), optimizer) for x in (policy, value)), 0.1)
        return types.SimpleNamespace(size=size, score=score, update=update, state=state)

    works = {"whole": programs(10**9), "packed": programs(least)}
    for kind in ("drawn", "full"):
        seconds = {(name, what): [] for name in works for what in ("score", "update")}
        for seed, (name, work) in itertools.product(range(repeats + 1), works.items()):
            packing.PLACES["cpu"] = work.size
            rollout = rollout_of(kind, minibatch, places, seed % BATCHES)
            start = time.perf_counter()
            given = work.state.policy.params, work.state.value.params, ref, reward, rollout, 0.1, coefs, order
            experience, metrics = jax.block_until_ready(work.score(*given))
            middle = time.perf_counter()
            work.state, _ = jax.block_until_ready(work.update(work.state, experience, None, coefs))
            if seed:  # the first compiles
                seconds[name, "score"].append(middle - start)
                seconds[name, "update"].append(time.perf_counter() - middle)
        real = float(1 - metrics["objective/padding"]), float(1 - metrics["objective/padding_packed"])
        print(f"{kind}: {100 * (1 - real[0]):.0f} % padding, packed {100 * (1 - real[1]):.0f} %; ", end="")
        print(f"places computed {real[1] / real[0]:.2f} times fewer")
        for what in ("score", "update"):
            whole, packed = (statistics.median(seconds[name, what]) for name in works)
            print(f"  {what}: {whole:.3f} s whole, {packed:.3f} s packed, {whole / packed:.2f} times")


if __name__ == "__main__":
    defaults = 256, 2, 128, 5, 64, packing.PLACES["cpu"]
    measure(*(int(word) for word in sys.argv[1:]), *defaults[len(sys.argv) - 1 :])
