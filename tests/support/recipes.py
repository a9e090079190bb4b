"""Recipes at the smallest size: a released model of a family, posts and dialogues in their published form, all made here."""

import dataclasses
import random

import jax
import numpy as np
from published import made, write_lines

from rlhf_jax import hf, model, shapes
from rlhf_jax.data import prepare
from rlhf_jax.data.tokenizer import Tokenizer

_WORDS = "cat dog tree rain river road house bread moon ship quiet red small ran slept found lost sang".split()
PROMPT_TOKENS = 64


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_WORDS, k=count))


def release(folder, shape: str, **changes) -> None:
    """Writes a random model of the family of a shape in shapes.py, with a tokenizer, as a hub has them."""
    folder.mkdir(parents=True)
    text = "SUBREDDIT: r/ TITLE: POST: TL;DR: Human: Assistant: " + " ".join(_WORDS)
    tokenizer = Tokenizer.train([text] * 4, 400)
    tokenizer.save_to(folder)
    small = dict(num_layers=1, embed_dim=48, num_heads=6, mlp_dim=64, max_length=256, init_std=0.3) | changes
    config = model.TransformerConfig(tokenizer.vocab_size, **(shapes.SHAPES[shape] | small))
    params = model.init_params(dataclasses.replace(config, vocab_multiple=1), jax.random.key(0))
    hf.save(folder, config, jax.tree.map(np.asarray, params), settings={"eos_token_id": tokenizer.eos_id})


def shrink(config, folder, out, *, iterations: int) -> None:
    """Makes a recipe's config small in every size, and keeps all else."""
    config.data.files.dir = str(folder)
    config.prompt_length, config.completion_length = PROMPT_TOKENS, 8
    config.model.update(
        shape=out, vocab_size=None, dtype="float32", scan_layers=False, remat="none", attention="xla", vocab_multiple=64
    )
    config.tokenizer.path = config.sft.init = out
    config.sft.batch_size = config.reward_model.batch_size = 8
    config.ppo.update(iterations=iterations, batch_size=16, minibatch_size=16, checkpoint_every=1, warmup_iterations=0)
    config.evaluate.update(prompts=8, batch_size=8)


def posts(folder, tokenizer, rng: random.Random, train: int = 32) -> None:
    """summarize_tldr and summarize_comparisons, prepared from rows as OpenAI publishes them; some posts are too long."""
    number, comparisons = 0, []
    for split, count in (("train", train), ("valid", 8), ("test", 8)):
        rows = []
        for _ in range(count):
            number += 1
            post = "\n\n".join(words(rng, rng.randint(3, 20)) for _ in range(rng.randint(1, 4)))
            info = {"id": f"t3_{number}", "subreddit": "running", "title": words(rng, 3), "post": post}
            rows.append(info | {"summary": words(rng, 4)})
            summaries = [{"text": f" {words(rng, 3)}", "policy": name, "note": None} for name in ("sup4", "ref")]
            where = {"train": "train", "valid": "valid1", "test": "valid2"}[split]
            row = {
                "info": info,
                "summaries": summaries,
                "choice": rng.randint(0, 1),
                "worker": "ann",
                "batch": "batch3",
            }
            comparisons.append(row | {"split": where, "extra": {"confidence": rng.randint(1, 9)}})
        write_lines(folder / f"source/tldr_3_filtered/{split}.jsonl", rows)
    write_lines(folder / "source/comparisons/batch3.json", comparisons)
    for name in ("summarize_tldr", "summarize_comparisons"):
        made(name, folder / "source", folder, prompt_tokens=PROMPT_TOKENS, tokenizer=tokenizer)


def dialogues(folder, rng: random.Random, train: int = 8) -> None:
    """hh_rlhf and hh_rlhf_chosen, prepared from pairs of dialogues as Anthropic publishes them, in four subsets."""
    for subset in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        for split, count in (("train", train), ("test", 2)):
            rows = []
            for _ in range(count):
                turns = f"\n\nHuman: {words(rng, 4)}?\n\nAssistant:"
                if rng.random() < 0.5:
                    turns += f" {words(rng, 3)}.\n\nHuman: {words(rng, 2)}?\n\nAssistant:"
                rows.append({"chosen": f"{turns} {words(rng, 3)}.", "rejected": f"{turns} {words(rng, 4)}."})
            write_lines(folder / f"source/{subset}/{split}.jsonl.gz", rows)
    for name in ("hh_rlhf", "hh_rlhf_chosen"):
        prepare.prepare(prepare.DATASETS[name], folder / "source", folder)
