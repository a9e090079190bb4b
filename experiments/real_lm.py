"""A released chat model, SmolLM2-135M-Instruct, and real preferences: reward models, and PPO against one of them.

DIR holds the model's Hugging Face folder, SmolLM2-135M-Instruct, and the files of preferences and texts. The pairs of
TruthfulQA are first divided by question, into questions to learn from and questions to judge by:

    python experiments/real_lm.py DIR

A reward model from 250 (1000, 4000) of these pairs, which starts from the released weights or from random ones; and
one from Anthropic's harmlessness dialogues:

    python -m rlhf_jax.main --config=experiments/real_lm.py:truthfulqa,250 --data=DIR --workdir=runs/truthfulqa_250
    python -m rlhf_jax.main --config=experiments/real_lm.py:truthfulqa,250,random --data=DIR --workdir=runs/random_250
    python -m rlhf_jax.main --config=experiments/real_lm.py:hh,500 --data=DIR --workdir=runs/hh_500

PPO and PPO-ptx from the released model against a reward model, whose folder PPO finds in DIR as `reward`:

    python -m rlhf_jax.hf export runs/truthfulqa_250/reward_model DIR/reward
    python -m rlhf_jax.main --config=experiments/real_lm.py:ppo --data=DIR --workdir=runs/ppo
    python -m rlhf_jax.main --config=experiments/real_lm.py:ppo_ptx --data=DIR --workdir=runs/ppo_ptx

Hardware: a CPU core, and 7 GB of memory for the reward models or 16 GB for PPO. A core of 70 GFLOP/s learns from 250 pairs
and judges 2,659 in 3 minutes. docs/real.md has what came out.
"""

import gzip
import hashlib
import json
import lzma
import pathlib
import sys

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

MODEL = "SmolLM2-135M-Instruct"
RATES = {"released": 1e-4, "random": 3e-4}  # docs/real.md says how they were chosen
PAIRS = 4  # of one question in a ranking, so that it has at most 8 answers
JUDGED = 240  # rankings of unseen questions, one of each
KINDS = ("truthfulqa", "hh", "ppo", "ppo_ptx")


def get_config(which: str = "truthfulqa,250"):
    kind, pairs, start, *more = (*which.split(","), "", "")
    start, learns = start or "released", kind in ("truthfulqa", "hh")
    if kind not in KINDS or start not in RATES or learns != pairs.isdecimal() or any(more):
        raise InputError(
            f"experiments/real_lm.py:{which} is unknown; it can be truthfulqa,PAIRS or hh,PAIRS, or either with ,random "
            "behind it, or ppo or ppo_ptx"
        )
    config = default_config()
    config.model.shape = config.tokenizer.path = MODEL
    config.model.update(dtype="float32", remat="none", attention="xla", logits_chunk=0)
    config.data.update(source="files", on_bad_row="skip")  # some of the real answers are empty
    config.data.files.splits = "published"
    config.stages = ("reward_model",) if learns else (kind,)
    config.reward_model.update(
        init=MODEL if start == "released" else "",
        learning_rate=RATES[start],
        packed=True,
        batch_size=8,
        warmup_steps=5,
        checkpoint_every=50,
    )
    if kind == "truthfulqa":
        config.prompt_length, config.completion_length = 40, 32
        config.reward_model.update(length=152, batch_size=4)
        config.data.files.rankings = f"truthfulqa@{int(pairs) // PAIRS}:train,truthfulqa@{JUDGED}:valid"
    elif kind == "hh":
        config.prompt_length, config.completion_length = 128, 64
        config.reward_model.length = 160
        config.data.files.update(rankings=f"pref_hh_harmless_train.jsonl.xz@{pairs}", splits="shares", valid_share=0.2)
    else:
        config.prompt_length = config.completion_length = 24
        config.data.files.update(prompts="truthfulqa", documents="text_tinystories.txt.xz@2000")
        config[kind].update(
            init=MODEL,
            reward="reward",
            iterations=16,
            batch_size=16,
            minibatch_size=8,
            learning_rate=2e-5,
            value_learning_rate=2e-5,
            warmup_iterations=2,
            kl_coef=0.05,
            missing_eos="subtract",  # the scores have no zero of their own, so that no value stands for a bad one
            missing_eos_value=1.0,
            ema_decay=0.0,  # a moving average would lag behind so few steps
            ptx_ratio=1,
            checkpoint_every=2,
        )
        config.evaluate.update(prompts=32, batch_size=32, document_rows=32)
    return config


def divide(folder: pathlib.Path) -> None:
    """Writes folder/truthfulqa: train.jsonl.gz of 60 % of the questions, and valid.jsonl.gz of the others.

    PAIRS pairs of one question, each a true and a false answer, become one ranking, in which every true answer stands
    above every false one. All answers then share one row behind their question, and cost less than a row for each pair.
    """
    with lzma.open(folder / "pref_truthfulqa_judge.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["chosen"].strip() and row["rejected"].strip()]
    questions = sorted({row["prompt"] for row in rows}, key=lambda text: hashlib.blake2b(text.encode()).digest())
    judged = set(questions[: len(questions) * 2 // 5])
    (folder / "truthfulqa").mkdir(exist_ok=True)
    for split in ("train", "valid"):
        with gzip.open(folder / "truthfulqa" / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            for prompt in questions:
                pairs = [row for row in rows if row["prompt"] == prompt]
                for begin in range(0, len(pairs) if (prompt in judged) == (split == "valid") else 0, PAIRS):
                    some = pairs[begin : begin + PAIRS]
                    ranks = {row["rejected"]: 2 for row in some} | {row["chosen"]: 1 for row in some}
                    ranking = {"prompt": prompt, "completions": list(ranks), "ranks": list(ranks.values())}
                    file.write(json.dumps(ranking) + "\n")


if __name__ == "__main__":
    divide(pathlib.Path(sys.argv[1]))
