"""The side of torch in a comparison: transformers' GPT-2 with plain torch or torch.compile, and its `generate`.

Only the process of this side imports this module. The weights and the tokens are those of our side.
"""

import pathlib
import resource
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_jax.bench import sides

ADAM = {"betas": (0.9, 0.95), "eps": 1e-8}  # as optim.OptimizerConfig


def loaded(given: dict):
    """Returns (the network without dropout, its tokens i64) on the device."""
    folder = pathlib.Path(given["folder"])
    kind = AutoModelForSequenceClassification if given["name"] == "reward_step" else AutoModelForCausalLM
    sampling_in = torch.bfloat16 if given["name"] == "sample" and given["dtype"] == "bfloat16" else torch.float32
    no_dropout = dict.fromkeys(
        ("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0
    )  # trainers leave the mode of evaluation
    network = kind.from_pretrained(folder / "model", dtype=sampling_in, attn_implementation="sdpa", **no_dropout)
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    return network.to(device()).eval(), tokens.to(device())


def device() -> str:
    """Returns the name of the device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def peak() -> int:
    """Returns the peak memory in bytes: the device's, or the process's on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(name: str, function) -> tuple:
    """Calls a function and waits for the device; returns its result and {name: seconds}."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, {name: time.perf_counter() - start}


def training(given: dict) -> sides.Work:
    """Returns the work of a training step: of a language model, or of a reward model on pairs."""
    network, tokens = loaded(given)

    def sft_loss():
        logits = network(input_ids=tokens, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def reward_loss():
        hidden = network.transformer(input_ids=tokens.flatten(0, 1), use_cache=False).last_hidden_state
        scores = network.score(hidden[:, -1]).view(tokens.shape[:2]).float()
        return -F.logsigmoid(scores[:, 0] - scores[:, 1]).mean()

    loss_fn = {"sft_step": sft_loss, "reward_step": reward_loss}[given["name"]]
    if given["compile"]:
        loss_fn = torch.compile(loss_fn)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=given["learning_rate"], weight_decay=given["weight_decay"], fused=True, **ADAM
    )
    losses: list[float] = []

    def step():
        with torch.autocast(device(), torch.bfloat16, enabled=given["dtype"] == "bfloat16"):
            loss = loss_fn()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run():
        loss, seconds = timed("step", step)
        losses.append(float(loss))
        return seconds

    return sides.Work(run, lambda: {"loss": losses}, peak)


def sampling(given: dict) -> sides.Work:
    """Returns the work of sampling with transformers' generate, which keeps keys and values."""
    network, tokens = loaded(given)
    length, lengths = given["config"]["completion_length"], []

    def generate(tokens, length, **how):
        return network.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=0,
            eos_token_id=None,
            **how,
        )[:, tokens.shape[1] :]

    def run():
        drawn, seconds = timed("sample", lambda: generate(tokens, length, do_sample=True, top_k=0, top_p=1.0))
        lengths[:] = [drawn.shape[1]] * len(drawn)
        return seconds

    def found():
        return {"lengths": lengths, "greedy": generate(tokens[:1], given["greedy"], do_sample=False)[0].tolist()}

    return sides.Work(run, found, peak)


def make(given: dict) -> sides.Work:
    """Returns the work `given["name"]` on the weights and tokens of `given["folder"]`."""
    torch.manual_seed(0)
    return sampling(given) if given["name"] == "sample" else training(given)


if __name__ == "__main__":
    sides.serve(make)
