"""Completes prompts with a model:

    python -m rlhf_jax.generate --model=DIR --prompt="Once upon a time" --temperature=0 --max_new_tokens=100
    python -m rlhf_jax.generate --model=runs/quickstart/ppo_ptx --instruction="write two sentences about the cake ."
    python -m rlhf_jax.generate --model=runs/quickstart/ppo_ptx --prompts=prompts.jsonl --samples=4 --out=out.jsonl

DIR is a Hugging Face directory (config.json, safetensors, tokenizer), a finished stage of a work directory, a checkpoint that
a stage has kept (WORKDIR/STAGE/checkpoints/STEP), or a work directory (its last policy). --prompt and --instruction print text;
--prompts prints one JSON line per completion: the row's fields, and prompt (as the model read it), completion, sample, finished,
tokens and logprob (nats, at the sampling temperature). A field of the row with one of these names is kept in `given`.

--instruction, and rows with `messages` or an `instruction`, are rendered by the model's own template. --chat turns a plain prompt
into a user's turn. Completions depend on the seed and the batch size.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax import generate, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.data.chat_template import ChatTemplate, shown
from rlhf_jax.data.other_formats import is_rendered
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.template import Template
from rlhf_jax.fields.options import option
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SEED, Number
from rlhf_jax.generate import settings
from rlhf_jax.generate.truncation import Truncation
from rlhf_jax.language_model import LanguageModel, open_model
from rlhf_jax.runtime import hosts, keys, programs, progress
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import not_through_links, whole_lines

_SHORTEST = 16  # tokens; prompts are padded to 16 or a larger power of two, so that few programs are compiled


# The flags that decide about the completions, beside the model and the prompts.
_ASKED = "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "samples", "seed", "batch_size"


@dataclasses.dataclass(frozen=True)
class GivenPrompt:
    """A prompt.

    Attributes:
        text: the text that the model reads.
        rendered: whether the model's template rendered the text.
        row: fields of the row of --prompts.
    """

    text: str
    rendered: bool
    row: dict


def read_prompts(model: LanguageModel, options: argparse.Namespace) -> list[GivenPrompt]:
    """Returns the prompts that the flags give, rendered by the template where they need it."""
    for name in ("prompt", "instruction"):
        try:
            (getattr(options, name) or "").encode()
        except UnicodeEncodeError:  # Python keeps undecodable bytes of the command line as lone surrogates
            raise InputError(f"--{name} holds bytes that are not UTF-8; write it in UTF-8") from None
    if options.instruction is not None:
        if options.chat:
            raise InputError(
                "--chat goes with --prompt or --prompts; --instruction is written by the model's template anyway"
            )
        return [GivenPrompt((model.template or model.tokenizer.chat_template()).prompt(options.instruction), True, {})]
    if options.prompt is not None:
        written = options.prompt if options.chat else (model.template or Template()).written(options.prompt)
        prompts = [GivenPrompt(written, False, {})]
    else:
        # If the model has no template, a row that needs one is refused below.
        records, _ = read_rows(options.prompts, "prompts", model.template or Template())
        prompts = [GivenPrompt(record.prompt, is_rendered(record.row), record.row) for record in records]
    if model.template is None and (options.chat or any(prompt.rendered for prompt in prompts)):
        model.tokenizer.chat_template()  # raises the InputError that says what is missing
    if not options.chat:
        return prompts

    def turn(text):
        return model.template.chat([{"role": "user", "content": text}])

    def given(prompt):
        return prompt.row.get("prompt", prompt.text)

    return [prompt if prompt.rendered else GivenPrompt(turn(given(prompt)), True, prompt.row) for prompt in prompts]


class Completer:
    """Samples completions, batch by batch.

    Args:
        model: the model.
        prompts: the prompts.
        max_new_tokens: largest number of tokens of a completion.
        temperature, top_k, top_p, repetition_penalty: as in `sample` and `Truncation`.
        samples: number of completions of each prompt.
        seed: seed of the random numbers.
        batch_size: completions of a batch, rounded up to a multiple of the devices that share the rows.
        slots: completions of a batch that are sampled at once; 0: all.

    Raises:
        InputError: a prompt leaves no room for `max_new_tokens` in the model's context.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[GivenPrompt],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        samples: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        slots: int = 0,
    ):
        room = model.config.max_length - max_new_tokens
        if room < 1:
            raise InputError(
                f"--max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context of "
                f"{model.config.max_length} tokens; lower it"
            )
        tokenizer = model.tokenizer
        chats = isinstance(model.template, ChatTemplate)
        # The end of a turn is needed only for rendered prompts; other prompts do with a template that defines none.
        turns = chats and any(prompt.rendered for prompt in prompts)
        self._ends = (tokenizer.for_chat() if turns else tokenizer).end_ids
        reader = tokenizer.reads_written() if chats else tokenizer
        encoded = reader.encode_prompts([prompt.text for prompt in prompts])
        for number, ids in enumerate(encoded, start=1):
            if not 0 < len(ids) <= room:
                raise InputError(
                    f"prompt {number} has {len(ids)} tokens; with --max_new_tokens={max_new_tokens} it can have 1 to "
                    f"{room}, as the model's context is {model.config.max_length}"
                )
        self._model, self._prompts, self._room = model, prompts, room
        self._rows = [(number, ids, sample) for number, ids in enumerate(encoded) for sample in range(samples)]
        ways = sharding.ways(model.mesh)
        self.batch_size = -(-min(batch_size, len(self._rows)) // ways) * ways
        self.batches = -(-len(self._rows) // self.batch_size)
        self._sampler = generate.Sampler(
            model.config,
            model.mesh,
            model.rules,
            completion_length=max_new_tokens,
            eos_id=self._ends,
            pad_id=tokenizer.pad_id,
            slots=slots,
            copies=math.gcd(samples, self.batch_size),
        )
        self._params = self._sampler.layout(model.params)
        self._seed, self._temperature = seed, temperature
        whole = top_k == 0 and top_p == 1.0 and repetition_penalty == 1.0
        penalty = None if repetition_penalty == 1.0 else jnp.float32(repetition_penalty)
        self._truncation = None if whole else Truncation(jnp.int32(top_k), jnp.float32(top_p), penalty)

    def __call__(self, first: int = 0) -> Iterator[list[dict]]:
        """Yields the completions of each batch, from batch number `first` on, in the order of the prompts."""
        for number in range(first, self.batches):
            rows = self._rows[number * self.batch_size : (number + 1) * self.batch_size]
            batch = self._pad(rows)
            key = keys.named_key(self._seed, "generate", number)
            rollout = hosts.fetch(self._sampler(self._params, batch, key, self._temperature, self._truncation))
            completions, finished = generate.texts(rollout, self._model.tokenizer, self._ends)
            yield [
                _beside(
                    self._prompts[place].row,
                    {
                        "prompt": shown(self._prompts[place].text),
                        "completion": text,
                        "sample": sample,
                        "finished": end,
                        "tokens": int(mask.sum()),
                        "logprob": round(float(logprobs.sum()), 4),
                    },
                )
                for (place, _, sample), text, end, mask, logprobs in zip(
                    rows, completions, finished, rollout.completion_mask, rollout.logprobs
                )
            ]

    def _pad(self, rows: list) -> Prompts:
        """Pads prompts on the left to one of few lengths; a last batch with too few rows repeats its first row."""
        longest = max(len(ids) for _, ids, _ in rows)
        length = min(max(_SHORTEST, 1 << (longest - 1).bit_length()), self._room)
        tokens = np.full((self.batch_size, length), self._model.tokenizer.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for n in range(self.batch_size):
            _, ids, _ = rows[n] if n < len(rows) else rows[0]
            tokens[n, length - len(ids) :], mask[n, length - len(ids) :] = ids, True
        return Prompts(tokens, mask, np.arange(self.batch_size, dtype=np.int32))


def _beside(row: dict, found: dict) -> dict:
    """Returns a row with the fields `found` added; the row's own values under these names are kept in `given`."""
    given = {name: row[name] for name in (*found, "given") if name in row and row[name] != found.get(name)}
    return row | found | ({"given": given} if given else {})


def write_text(completer: Completer) -> None:
    """Prints the completions, separated by a line of three dashes."""
    for number, row in enumerate(row for rows in completer() for row in rows):
        print(("---\n" if number else "") + row["completion"], flush=True)


def write_lines(completer: Completer, out: str | None, identity: str) -> None:
    """Writes one JSON line per completion to a file, or to standard output.

    The lines first go to a file beside `out`, whose name holds a checksum of what was asked for. It is renamed when it
    is complete, so that a command that was stopped continues from its last whole batch.

    Args:
        completer: the completions.
        out: path of the file; None: standard output.
        identity: everything that determines the completions, as text.

    Raises:
        InputError: the file cannot be written.
        progress.Stopped: after the batch in which Ctrl-C was pressed.
    """
    if out is None:
        for rows in completer():
            print("".join(map(_line, rows)), end="", flush=True)
        return
    path = pathlib.Path(out)
    part = path.with_name(f".{path.name}.{zlib.crc32(identity.encode()):08x}.part")
    try:
        lines = whole_lines(part) if part.exists() else []
        first = len(lines) // completer.batch_size
        with progress.Interrupt() as interrupt, open(part, "wb", opener=not_through_links) as file:
            file.writelines(line + b"\n" for line in lines[: first * completer.batch_size])
            with progress.Progress("generate", completer.batches, first, stream=sys.stderr) as shown:
                for number, rows in enumerate(completer(first), start=first + 1):
                    file.writelines(_line(row).encode() for row in rows)
                    file.flush()
                    shown.update(number)
                    if interrupt.requested and number < completer.batches:
                        raise progress.Stopped("generate", number, interrupt.asked())
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"--out={out} cannot be written: {error.strerror}") from None


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        help="The model: a Hugging Face folder, the work directory of a run, or the folder of a finished stage or a kept checkpoint.",
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", help="The text to continue.")
    given.add_argument(
        "--instruction", help="The instruction to answer, which the model's template writes as a prompt."
    )
    given.add_argument(
        "--prompts",
        help="The file of JSON lines with a prompt, messages or an instruction each. It may be an .xz or .gz file.",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="Take each prompt as a user's turn, and write it in the model's chat template.",
    )
    parser.add_argument("--out", help="The file of JSON lines to write. The default is standard output.")
    parser.add_argument(
        "--max_new_tokens",
        type=option(COUNT),
        help="The largest number of tokens of a completion. The default is 128, or half of a small model's context.",
    )
    parser.add_argument(
        "--temperature",
        type=option(NOT_NEGATIVE),
        default=1.0,
        help="The sampling temperature. The default is 1; 0 takes the likeliest tokens.",
    )
    parser.add_argument(
        "--top_k",
        type=option(COUNT_OR_NONE),
        default=0,
        help="Sample from this number of likeliest tokens. 0, the default, means all.",
    )
    parser.add_argument(
        "--top_p",
        type=option(Number(above=0, high=1)),
        default=1.0,
        help="Sample from the likeliest tokens that together have this probability. The default is 1, which means all.",
    )
    parser.add_argument(
        "--repetition_penalty",
        type=option(POSITIVE),
        help="The number that makes tokens less likely that are in the text already. 1 does nothing. "
        "The default is that of the generation_config.json of a Hugging Face folder, or 1.",
    )
    parser.add_argument(
        "--samples", type=option(COUNT), default=1, help="The number of completions of each prompt. The default is 1."
    )
    parser.add_argument("--seed", type=option(SEED), default=0, help="The seed of the sampling. The default is 0.")
    parser.add_argument(
        "--batch_size",
        type=option(COUNT),
        default=16,
        help="The number of completions of a batch, which share the random noise. The default is 16.",
    )
    parser.add_argument(
        "--slots",
        type=option(COUNT_OR_NONE),
        default=0,
        help="The number of completions of a batch that are sampled at once: when some have ended, the next prompts take "
        "their place. 0, the default, means the whole batch. It changes the time and the memory, and not the texts.",
    )
    parser.add_argument(
        "--tensor",
        type=option(COUNT),
        default=1,
        help="The number of devices that the model is split over. The default is 1.",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="The number format of the computation. "
        "The default is that of the run; for a Hugging Face folder it is float32 on a CPU, and bfloat16 elsewhere.",
    )
    return parser.parse_args(arguments)


def _follow_release(model: LanguageModel, options: argparse.Namespace) -> None:
    """Fills flags that were not given from the model's generation_config.json, and prints what is not followed."""
    if model.folder is not None:
        asked = settings.read(model.folder, options.temperature == 0)
        if options.repetition_penalty is None:
            options.repetition_penalty = asked.repetition_penalty
        if asked.ignored:
            print(
                f"rlhf_jax.generate: {model.folder}: generation_config.json is not followed in "
                f"{', '.join(f'{name}={value!r}' for name, value in asked.ignored.items())}; temperature, top_k and "
                "top_p are flags here, the others are not there",
                file=sys.stderr,
            )
    options.repetition_penalty = options.repetition_penalty or 1.0


def new_tokens(context: int) -> int:
    """Returns the default of --max_new_tokens for a context of so many tokens: half of it, and at most 128."""
    return min(128, context // 2)


@as_command("rlhf_jax.generate")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    programs.keep()
    try:
        if options.out and pathlib.Path(options.out).is_dir():
            raise InputError(f"--out={options.out} is a directory; give a file")
        model = open_model(options.model, tensor=options.tensor, dtype=options.dtype)
        prompts = read_prompts(model, options)
        options.max_new_tokens = options.max_new_tokens or new_tokens(model.config.max_length)
        _follow_release(model, options)
        asked = {name: getattr(options, name) for name in _ASKED}
        with jax.set_mesh(model.mesh):
            completer = Completer(model, prompts, **asked, slots=options.slots)
            if options.prompts is None and options.out is None:
                write_text(completer)
            else:
                texts = [prompt.text for prompt in prompts]
                identity = options.model, options.dtype, asked, completer.batch_size, texts
                write_lines(completer, options.out, repr(identity))
    except progress.Stopped as error:
        raise KeyboardInterrupt(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
