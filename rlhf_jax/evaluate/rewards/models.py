"""Whatever scores completions: reward models, and language models by the log-probability of a completion."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax

from rlhf_jax import model, ppo, sharding, sources, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.chat_template import ChatTemplate
from rlhf_jax.data.fitting import pad_right
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate.harness.likelihood import Likelihood
from rlhf_jax.evaluate.harness.packing import Request
from rlhf_jax.language_model import LanguageModel, open_model
from rlhf_jax.model import attention
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sources import is_run

_BATCH_TOKENS = 2048  # about how many tokens a batch has on each device that shares the rows
_SHORTEST = 32  # tokens; rows are padded to 32 or a larger power of two, so that few programs are compiled

_sequence_scores = jax.jit(ppo.sequence_scores, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model that scores completions.

    Attributes:
        name: the folder, as the user names it.
        model: the model; its parameters have a scalar head if it is a reward model.
        is_reward: whether it is a reward model; a language model otherwise.
        identity: text that another model, or the same folder with other weights, does not have.
    """

    name: str
    model: LanguageModel
    is_reward: bool
    identity: str

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that the model gives each completion."""
        return ("score",) if self.is_reward else ("total", "mean")

    @property
    def unit(self) -> str:
        """What lengths are counted in."""
        return "tokens"

    @property
    def limit(self) -> str:
        """What a row may be too long for."""
        return f"the context of {self.model.config.max_length} tokens"

    def key(self, row: Request) -> tuple:
        """Returns what tells one question from another."""
        return tuple(row)

    def length(self, row: Request) -> int:
        """Returns the number of tokens of a completion."""
        return len(row.continuation)

    def encode(self, rankings: Sequence[Ranking]) -> list[list[Request] | None]:
        """Returns the ids of each ranking's prompt and completions; None for a ranking that the model cannot read.

        A reward model reads the token that ends a finished completion, because it was trained to give its score there. A
        language model's log-probability is that of the text, without this token. A completion that a policy of this
        tokenizer sampled has the ids that were sampled, if the row has them as `tokens`, as those of a run do.
        """
        tokenizer = self.model.tokenizer
        if isinstance(self.model.template, ChatTemplate):
            tokenizer = tokenizer.for_chat()
        prompts = tokenizer.encode_prompts([ranking.prompt for ranking in rankings])
        texts = [text for ranking in rankings for text in ranking.completions]
        encoded = iter(tokenizer.encode_batch(texts, continues=True))
        found = []
        for ranking, prompt in zip(rankings, prompts):
            finished = ranking.finished or (True,) * len(ranking.completions)
            kept = ranking.row.get("tokens")
            sampled = kept if isinstance(kept, list | tuple) and len(kept) == len(finished) else [None] * len(finished)
            rows = []
            for text, ended, ids in zip(ranking.completions, finished, sampled):
                own = next(encoded)
                if ids is not None and tokenizer.spells(ids, text, ended):
                    own = list(ids[:-1] if ended else ids)
                end = [tokenizer.eos_id] if self.is_reward and ended else []
                rows.append(Request(tuple(prompt), tuple(own + end)))
            found.append(rows if all(map(self._fits, rows)) else None)
        return found

    def _fits(self, row: Request) -> bool:
        length = len(row.context) + len(row.continuation)
        return bool(row.context) and bool(row.continuation) and length <= self.model.config.max_length

    def __call__(self, rows: Sequence[Request]) -> Iterator[list[tuple[int, float]]]:
        """Yields, batch by batch, the number of each row and its score: the reward, or the log-probability in nats."""
        with jax.set_mesh(self.model.mesh):
            if self.is_reward:
                yield from self._rewards(rows)
            else:
                for batch in Likelihood(self.model, _BATCH_TOKENS)(rows):
                    yield [(number, total) for number, total, _ in batch]

    def _rewards(self, rows: Sequence[Request]) -> Iterator[list[tuple[int, float]]]:
        mesh, places = self.model.mesh, {}
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        for number, row in enumerate(rows):
            length = max(_SHORTEST, 1 << (len(row.context) + len(row.continuation) - 1).bit_length())
            places.setdefault(length, []).append(number)
        for length, numbers in sorted(places.items()):
            size = max(1, _BATCH_TOKENS // length) * ways
            for start in range(0, len(numbers), size):
                part = numbers[start : start + size]
                texts = [rows[number].context + rows[number].continuation for number in part]
                texts += texts[:1] * (size - len(part))
                arrays = pad_right(texts, length, self.model.tokenizer.pad_id)
                scores = _sequence_scores(self.model.config, self.model.params, *sharding.put_batch(arrays, mesh))
                yield [(number, float(score)) for number, score in zip(part, hosts.fetch(scores))]


def open_language_model(directory: str, dtype: str = "") -> Judge:
    """Opens a language model as a judge; raises InputError as `open_model` does, or if it is a reward model."""
    folder = pathlib.Path(directory)
    found = None if is_run(folder) else sources.at(pathlib.Path(os.path.abspath(folder)))
    if found and not isinstance(found, sources.Trained) and found.head == "scalar":
        raise InputError(f"--model={directory} is a reward model; name it with --reward")
    opened = open_model(directory, dtype=dtype)
    return Judge(directory, opened, False, _identity(folder, opened))


def open_reward(directory: str, dtype: str = "") -> Judge:
    """Opens a reward model as a judge.

    Args:
        directory: a finished stage, a kept checkpoint, a work directory, whose last reward model is meant, or a Hugging
            Face folder, also one of PEFT.
        dtype: of the computation; "" is that of the run, or for a Hugging Face folder float32 on CPUs and bfloat16
            elsewhere.

    Raises:
        InputError: there is no reward model.
    """
    folder = pathlib.Path(directory)
    absolute = pathlib.Path(os.path.abspath(folder))
    found = sources.last_of(folder, "reward") if is_run(folder) else sources.at(absolute)
    if isinstance(found, sources.Trained):
        opened = _of_run(directory, found, dtype)
    elif found:
        opened = _released(directory, found, dtype)
    else:
        raise InputError(
            f"--reward={directory} is no reward model: it is neither a finished stage, nor a work directory, nor a "
            "Hugging Face folder with a config.json"
        )
    return Judge(directory, opened, True, _identity(folder, opened))


def _of_run(directory: str, source: sources.Trained, dtype: str) -> LanguageModel:
    run = run_lib.open_run(str(source.workdir))
    if source.head != "scalar":
        raise InputError(
            f"--reward={directory} is no finished reward model; the finished reward models of {source.workdir}: "
            f"{', '.join(run.giving('reward')) or 'none'}"
        )
    shape = run.shape(source.name)
    params = weights.load_params(run, source.name, "scalar")
    shape = dataclasses.replace(shape, dtype=dtype or shape.dtype)
    return LanguageModel(shape, params, Tokenizer.load(source.workdir), run.template, run.mesh, run.rules)


def _released(directory: str, source: sources.Released | sources.Adapter, dtype: str) -> LanguageModel:
    if source.head != "scalar":
        raise InputError(f"--reward={directory} is a language model, no reward model; name it with --model")
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    platform = mesh.devices.flat[0].platform
    dtype = dtype or ("float32" if platform == "cpu" else "bfloat16")
    shape = source.shape(dtype=dtype, attention=attention.choose("auto", platform, dtype), lora=None)
    tokenizer = Tokenizer.load(source.tokenizer_folder)
    tokenizer.check_fits(shape.vocab_size)
    template = tokenizer.chat_template() if tokenizer.has_chat_template else None

    def place(shape, head):
        return sharding.param_shardings(model.logical_axes(shape, head), model.param_shapes(shape, head), mesh)

    params = weights.whole_params(source, shape, place, "scalar")
    return LanguageModel(shape, params, tokenizer, template, mesh, sharding.DEFAULT_RULES, source.base.folder)


def _identity(folder: pathlib.Path, opened: LanguageModel) -> str:
    """Returns the folder's path, the dtype, and the times and sizes of the files that a new model would replace."""
    files = [path for path in folder.absolute().rglob("*") if path.name == "done.json" or path.suffix == ".safetensors"]
    files += [path for path in [folder.absolute() / "manifest.json"] if path.is_file()]  # that of a checkpoint
    stats = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return f"{folder.absolute()} {opened.config.dtype} {stats}"
