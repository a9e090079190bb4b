"""A released chat model, SmolLM2-135M-Instruct, and real preferences: reward models, and PPO against one of them.

DIR holds the model's Hugging Face folder, SmolLM2-135M-Instruct, and the files of preferences and texts. The pairs of
TruthfulQA are first divided by question, into questions to learn from and questions to judge by:

    python -m experiments.real_lm DIR

A reward model from 250 (1000, 4000) of these pairs, which starts from the released weights or from random ones; and
one from Anthropic's harmlessness dialogues:

    python -m rlhf_jax.main --config=experiments/real_lm.py:truthfulqa,250 --data=DIR --workdir=runs/truthfulqa_250
    python -m rlhf_jax.main --config=experiments/real_lm.py:truthfulqa,250,random --data=DIR --workdir=runs/random_250
    python -m rlhf_jax.main --config=experiments/real_lm.py:hh,500 --data=DIR --workdir=runs/hh_500

RLHF by the recipe of chat.py, on the same questions as messages, with the system message SYSTEM: SFT on the true answers,
a reward model and PPO-ptx. Then PPO without the SFT, against the reward model in runs/rlhf. The judge is a reward model
that learns from the other questions, and that compares the policies' answers to these:

    python -m rlhf_jax.main --config=experiments/real_lm.py:rlhf --data=DIR --workdir=runs/rlhf
    python -m rlhf_jax.main --config=experiments/real_lm.py:rlhf_alone --data=DIR --workdir=runs/rlhf_alone
    python -m rlhf_jax.main --config=experiments/real_lm.py:judge --data=DIR --workdir=runs/judge

Hardware: a CPU core, and 7 GB of memory for the reward models or 9 GB for PPO. A core of 70 GFLOP/s learns from 250 pairs
and judges 2,659 in 3 minutes. docs/real.md has what came out.
"""

import gzip
import hashlib
import json
import lzma
import pathlib
import sys
from collections.abc import Iterator

from experiments import chat
from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

MODEL = "SmolLM2-135M-Instruct"
SYSTEM = "Answer in one short sentence."
RATES = {"released": 1e-4, "random": 3e-4}  # docs/real.md says how they were chosen
PAIRS = 4  # of one question in a ranking, so that it has at most 8 answers
JUDGED = 240  # rankings of unseen questions, one of each
STAGES = {"rlhf": "sft,reward_model,ppo_ptx", "rlhf_alone": "ppo", "judge": "reward_model"}
# A reward model of true and false answers has seen no answer that says nothing, and may like it best.
SAYS_SOMETHING = r"rlhf_jax.rewards:expression(pattern=r'\w+\W+\w+\W+\w+')"  # three words or more


def get_config(which: str = "truthfulqa,250"):
    if which in STAGES:
        return rlhf(which)
    kind, pairs, start, *more = (*which.split(","), "", "")
    start = start or "released"
    if kind not in ("truthfulqa", "hh") or start not in RATES or not pairs.isdecimal() or any(more):
        raise InputError(
            f"experiments/real_lm.py:{which} is unknown; it can be truthfulqa,PAIRS or hh,PAIRS, or either with ,random "
            f"behind it, or {', '.join(STAGES)}"
        )
    config = default_config()
    config.model.shape = config.tokenizer.path = MODEL
    config.model.update(dtype="float32", remat="none", attention="xla", logits_chunk=0)
    config.data.update(source="files", on_bad_row="skip")  # some of the real answers are empty
    config.data.files.splits = "published"
    config.stages = ("reward_model",)
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
    else:
        config.prompt_length, config.completion_length = 128, 64
        config.reward_model.length = 160
        config.data.files.update(rankings=f"pref_hh_harmless_train.jsonl.xz@{pairs}", splits="shares", valid_share=0.2)
    return config


def rlhf(which: str):
    """Returns chat.py's config for the division of TruthfulQA, cut down to what two CPU cores do in an hour."""
    config = chat.get_config(STAGES[which])
    config.model.shape = MODEL
    config.model.dtype = "float32"
    config.data.files.rankings = f"truthfulqa_{'unseen' if which == 'judge' else 'chat'}/rankings.jsonl@220"
    if which == "rlhf":
        config.data.files.demonstrations = "truthfulqa_chat/demonstrations.jsonl@400"
        config.data.files.documents = "text_tinystories.txt.xz@2000"
    config.prompt_length, config.completion_length = 48, 32
    config.sft.update(batch_size=16)
    config.reward_model.update(batch_size=4, warmup_steps=5)
    judged_by = "reward_model" if which == "rlhf" else "runs/rlhf/reward_model"
    for name in ("ppo", "ppo_ptx"):
        config[name].update(
            reward=f"{judged_by}, words={SAYS_SOMETHING}",
            reward_weights=(1.0, 2.0),
            iterations=16,
            batch_size=16,
            minibatch_size=8,
            microbatches=2,
            ptx_microbatches=2,
            learning_rate=3e-5,
            value_learning_rate=3e-5,
            warmup_iterations=2,
            missing_eos="subtract",  # the scores have no zero of their own, so that no value stands for a bad one
            missing_eos_value=1.0,
            ema_decay=0.0,  # a moving average would lag behind so few steps
            ptx_ratio=1,
            checkpoint_every=4,
        )
    config.evaluate.update(prompts=32, batch_size=32, document_rows=32)
    return config


def divide(folder: pathlib.Path) -> None:
    """Divides the questions of TruthfulQA: 60 % to learn from, and 40 % to judge by.

    folder/truthfulqa has rankings in train.jsonl.gz and valid.jsonl.gz. PAIRS pairs of one question, each a true and a
    false answer, become one ranking, in which every true answer stands above every false one. All answers then share
    one row behind their question, and cost less than a row for each pair.

    folder/truthfulqa_choice divides the questions to learn from once more: the runs that chose the learning rate learned
    from three quarters of them, and were compared by the others.

    folder/truthfulqa_chat has the questions to learn from as messages, and folder/truthfulqa_unseen the others: in
    rankings.jsonl the same rankings, in demonstrations.jsonl the true answers. Both leave out answers that refuse
    ("I have no comment."), which are true of every question. prompts.jsonl has the questions alone.
    """
    with lzma.open(folder / "pref_truthfulqa_judge.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["chosen"].strip() and row["rejected"].strip()]
    pairs = {}
    for row in rows:
        pairs.setdefault(row["prompt"], []).append((row["chosen"], row["rejected"]))
    questions = sorted(pairs, key=lambda text: hashlib.blake2b(text.encode()).digest())
    judged = len(questions) * 2 // 5
    to_learn = questions[judged:]
    quarter = len(to_learn) // 4
    for split, some in (("valid", to_learn[:quarter]), ("train", to_learn[quarter:])):
        rankings = [ranking for question in some for ranking in ranked(question, pairs[question])]
        write(folder / "truthfulqa_choice" / f"{split}.jsonl.gz", rankings)
    for split, chat_folder, some in (
        ("train", "truthfulqa_chat", to_learn),
        ("valid", "truthfulqa_unseen", questions[:judged]),
    ):
        rankings = [ranking for question in some for ranking in ranked(question, pairs[question])]
        write(folder / "truthfulqa" / f"{split}.jsonl.gz", rankings)
        spoken = {question: [pair for pair in pairs[question] if "no comment" not in pair[0]] for question in some}
        messages = {question: asked(question) for question in some if spoken[question]}
        rankings = [ranking for question in messages for ranking in ranked(messages[question], spoken[question])]
        true = {question: sorted({chosen.strip() for chosen, _ in spoken[question]}) for question in messages}
        replies = [(question, answer) for question in messages for answer in true[question]]
        demonstrations = [{"prompt": messages[question], "completion": answer} for question, answer in replies]
        write(folder / chat_folder / "rankings.jsonl", rankings)
        write(folder / chat_folder / "demonstrations.jsonl", demonstrations)
        write(folder / chat_folder / "prompts.jsonl", [{"prompt": prompt} for prompt in messages.values()])


def asked(question: str) -> list[dict]:
    """Returns "Q: ...\\nA:" as messages."""
    text = question.removeprefix("Q:").removesuffix("A:").strip()
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def ranked(prompt: str | list[dict], pairs: list[tuple[str, str]]) -> Iterator[dict]:
    """Yields rankings of PAIRS pairs each; a prompt of messages has completions without space at their ends."""
    if not isinstance(prompt, str):
        pairs = [(chosen.strip(), rejected.strip()) for chosen, rejected in pairs]
    for begin in range(0, len(pairs), PAIRS):
        some = pairs[begin : begin + PAIRS]
        ranks = {rejected: 2 for _, rejected in some} | {chosen: 1 for chosen, _ in some}
        yield {"prompt": prompt, "completions": list(ranks), "ranks": list(ranks.values())}


def write(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    divide(pathlib.Path(sys.argv[1]))
