"""The side of TRL in a comparison: its trainers of SFT and of reward models, stopped before each step until they are told.

Only the process of this side imports this module.
"""

import json
import pathlib
import queue
import tempfile
import threading
import time

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhf_jax.bench import sides, torch_side


class _Told(TrainerCallback):
    """Lets a trainer make a step when it is told, and notes the seconds and the loss of each."""

    def __init__(self):
        self.told, self.made, self.losses = queue.Queue(), queue.Queue(), []

    def on_step_begin(self, args, state, control, **_):
        self.told.get()
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if torch_side.torch.cuda.is_available():
            torch_side.torch.cuda.synchronize()
        self.made.put({"step": time.perf_counter() - self._start})

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def make(given: dict) -> sides.Work:
    """Returns the work `given["name"]` on the weights and tokens of `given["folder"]`."""
    network, tokens = torch_side.loaded(given)
    rows, vocab = tokens.tolist(), network.config.vocab_size
    folder = pathlib.Path(tempfile.mkdtemp(dir=given["folder"]))
    words = {f"<{number}>": number for number in range(vocab)} | {"<pad>": vocab}
    # A tokenizer that only says what padding is: the rows are tokens already.
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": words, "unk_token": "<0>"}})
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="<0>"
    )
    network.config.pad_token_id = vocab  # no token of the rows
    settings = dict(
        output_dir=str(folder),
        max_steps=given["config"]["repeats"] + 1,
        per_device_train_batch_size=len(rows),
        learning_rate=given["learning_rate"],
        weight_decay=given["weight_decay"],
        adam_beta1=torch_side.ADAM["betas"][0],
        adam_beta2=torch_side.ADAM["betas"][1],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="adamw_torch_fused",
        max_length=tokens.shape[-1],
        gradient_checkpointing=False,
        bf16=given["dtype"] == "bfloat16",
        use_cpu=torch_side.device() == "cpu",
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    told = _Told()
    if given["name"] == "sft_step":
        data = Dataset.from_dict(
            {"input_ids": rows, "labels": [[-100, *row[1:]] for row in rows]}
        )  # else it counts the first
        trainer = SFTTrainer(
            network, SFTConfig(**settings), train_dataset=data, processing_class=tokenizer, callbacks=[told]
        )
    else:
        pairs = {"chosen_ids": [pair[0] for pair in rows], "rejected_ids": [pair[1] for pair in rows]}
        data = Dataset.from_dict(pairs)
        trainer = RewardTrainer(
            network, RewardConfig(**settings), train_dataset=data, processing_class=tokenizer, callbacks=[told]
        )
    failed: list[BaseException] = []

    def train():
        try:
            trainer.train()
        except BaseException as error:  # else the other thread would wait for ever
            failed.append(error)
            told.made.put({})

    threading.Thread(target=train, daemon=True).start()

    def run():
        told.told.put(True)
        seconds = told.made.get()
        if failed:
            raise failed[0]
        return seconds

    return sides.Work(run, lambda: {"loss": told.losses}, torch_side.peak)


if __name__ == "__main__":
    sides.serve(make)
