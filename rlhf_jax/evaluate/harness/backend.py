"""Our models as a backend of lm-eval: it asks in text, and gets log-likelihoods and completions.

The requests are read as lm-eval's Hugging Face backend reads them, so that both give the same numbers: the same tokens,
the same cut of a text that is too long, the same place where a completion ends.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate
from rlhf_jax.data.batches import Prompts
from rlhf_jax.data.chat_template import shown
from rlhf_jax.evaluate.harness.answers import Answers
from rlhf_jax.evaluate.harness.likelihood import Likelihood
from rlhf_jax.evaluate.harness.packing import Request, bucket
from rlhf_jax.generate import settings
from rlhf_jax.generate.stopping import StoppingSampler
from rlhf_jax.generate.truncation import Truncation
from rlhf_jax.language_model import LanguageModel
from rlhf_jax.runtime import hosts, keys
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Progress, Stopped

_NEW_TOKENS = 256  # lm-eval's default length of a completion
_ROUNDS = 4  # rows of a batch for each slot: answers are kept batch by batch, so that a kill loses no more
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names, the first one counts


class Decoding(NamedTuple):
    """How completions are sampled.

    Attributes:
        length: the largest number of tokens.
        until: strings that end a completion, and are no part of it.
        temperature: 0 takes the most likely tokens.
        top_k, top_p, repetition_penalty: as in `Truncation`.
    """

    length: int
    until: tuple[str, ...]
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, asked: Mapping[str, Any], penalty: float = 1.0) -> "Decoding":
        """Reads a task's generation_kwargs; `penalty` is the model's own repetition penalty.

        Raises:
            InputError: a setting is unknown here.
        """
        asked = dict(asked)
        lengths = [asked.pop(name, None) for name in _LENGTHS]
        until = asked.pop("until", None) or []
        temperature = float(asked.pop("temperature", 0.0) or 0.0)
        draws = asked.pop("do_sample", None)
        # lm-eval: do_sample alone draws at transformers' temperature of 1, and do_sample=False draws nothing.
        temperature = 0.0 if draws is False else temperature or (1.0 if draws else 0.0)
        found = cls(
            int(next((length for length in lengths if length is not None), _NEW_TOKENS)),
            tuple([until] if isinstance(until, str) else until),
            temperature,
            int(asked.pop("top_k", 0) or 0),
            float(asked.pop("top_p", 1.0) or 1.0),
            float(asked.pop("repetition_penalty", penalty) or penalty),
        )
        unknown = {name: value for name, value in asked.items() if value not in (None, False, 1)}
        if unknown:
            raise InputError(
                f"generation_kwargs of a task: {', '.join(sorted(unknown))} cannot be followed here; the settings are "
                f"until, {', '.join(_LENGTHS[:2])}, do_sample, temperature, top_k, top_p and repetition_penalty"
            )
        return found

    def truncation(self) -> Truncation | None:
        """Returns which tokens may be drawn; None: all, without a penalty."""
        if (self.top_k, self.top_p, self.repetition_penalty) == (0, 1.0, 1.0):
            return None
        penalty = None if self.repetition_penalty == 1.0 else jnp.float32(self.repetition_penalty)
        return Truncation(jnp.int32(self.top_k), jnp.float32(self.top_p), penalty)


class LogLikelihood(tuple):
    """A log-likelihood in nats and whether it is greedy, the pair that lm-eval reads.

    Attributes:
        tokens: number of tokens of the continuation. lm-eval does not know it, and hands this object to a task's
            process_results, which can take the mean over tokens.
    """

    tokens: int

    @classmethod
    def of(cls, total: float, greedy: bool, tokens: int) -> "LogLikelihood":
        found = cls((total, bool(greedy)))
        found.tokens = tokens
        return found


class Backend:
    """The model that lm-eval asks; its methods and their arguments are those of lm_eval.api.model.LM.

    Every process of a job gets all requests and computes its part of each batch, so lm-eval sees one rank.

    Args:
        language_model: the model.
        answers: answers that are known, and the place for new ones.
        stop: whether to stop after the batch in progress.
        batch_tokens: about how many tokens a batch has on each device that shares the rows.
        seed: seed of the random numbers of completions that are drawn.
        stream: where progress is shown; None: standard output.

    Attributes:
        cut: how many requests of each kind were cut on the left, because the model's context is shorter.
    """

    rank, world_size, device, batch_size = 0, 1, None, 1

    def __init__(
        self,
        language_model: LanguageModel,
        answers: Answers,
        stop: hosts.Stop,
        *,
        batch_tokens: int,
        seed: int = 0,
        stream=None,
    ):
        self._model, self._answers, self._stop = language_model, answers, stop
        self._tokenizer = language_model.tokenizer
        self._seed, self._stream = seed, stream
        self._likelihood = Likelihood(language_model, batch_tokens)
        self._ways = language_model.mesh.shape["data"] * language_model.mesh.shape["fsdp"]
        self._batch_tokens = batch_tokens * self._ways
        self._start = self._tokenizer.sequence_start_id
        self._start_text = self._tokenizer.decode_as_released([self._start], special=True)
        self._end_text = self._tokenizer.decode_as_released([self._tokenizer.eos_id], special=True)
        self._samplers: dict[tuple[int, int], StoppingSampler] = {}
        self._laid_out: dict | None = None
        self.cut: dict[str, int] = {}

    # ------------------------------------------------------------------ what lm-eval asks

    @property
    def max_length(self) -> int:
        """The model's context, in tokens."""
        return self._model.config.max_length

    @property
    def max_gen_toks(self) -> int:
        """The largest number of tokens of a completion, where a task does not say it."""
        return _NEW_TOKENS

    @property
    def eot_token_id(self) -> int:
        """The id of the token that ends a text."""
        return self._tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of requests."""
        return f"rlhf_jax_{self._tokenizer.vocab_size}"

    def set_cache_hook(self, hook) -> None:
        """Does nothing: answers are kept by `Answers`."""

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns a name for the chat template, which lm-eval records."""
        return "the model's own" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns messages as the model reads them; without a generation prompt, the last message is to be continued."""
        template = self._model.template
        if template is None:
            self._tokenizer.chat_template()  # raises the InputError that says what is missing
        if add_generation_prompt:
            return shown(template.chat(chat_history))
        *before, last = chat_history
        return shown(template.chat(before) + template.completion(last["content"], chat=True))

    def loglikelihood(self, requests: Sequence, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation after its context, in nats, and whether it is greedy."""
        found = self._score("loglikelihood", [request.args for request in requests], self._pair)
        return [LogLikelihood.of(*answer) for answer in found]

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, in nats; a text longer than the context is read in windows."""
        windows = [self._windows(request.args[0]) for request in requests]
        flat = [pair for pairs in windows for pair in pairs]
        found = iter(self._score("rolling", flat, lambda pair: Request(*map(tuple, pair))))
        return [sum(next(found)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """Returns the completion of each context, which ends before the first of the strings of `until`."""
        arguments = [request.args for request in requests]
        counts: dict[str, int] = {}
        named = []
        for context, asked in arguments:
            first = self._answers.key("generate_until", (context, asked))
            named.append(self._answers.key("generate_until", (context, asked, self._seed), counts.setdefault(first, 0)))
            counts[first] += 1
        todo = [batch for batch in self._batches(arguments) if any(named[n] not in self._answers for n in batch.rows)]
        answered = (zip([named[n] for n in batch.rows], self._complete(batch)) for batch in todo)
        self._keep("completions", answered, sum(len(batch.rows) for batch in todo))
        return [self._answers[name] for name in named]

    def _keep(self, label: str, parts: Iterable[Iterable[tuple[str, Any]]], total: int) -> None:
        """Keeps answers part by part, and shows how many of `total` there are.

        Raises:
            Stopped: an interrupt was asked for before the last one. The same command goes on.
        """
        done = 0
        with Progress(label, total, unit="requests", stream=self._stream) as progress:
            for part in parts:
                found = dict(part)
                self._answers.add(found.items())
                done += len(found)
                progress.update(done)
                if done < total and (stopping := self._stop.agreed(wait=True)):
                    raise Stopped(label, done, stopping)

    # ------------------------------------------------------------------ log-likelihoods

    def encode(self, text: str, *, starts: bool = True) -> list[int]:
        """Returns the ids of a text; with `starts` it gets the token of a start, unless it begins with it."""
        starts = starts and not text.startswith(self._start_text)
        return self._tokenizer.encode_as_released(text, starts=starts)

    def _score(
        self, kind: str, arguments: Sequence, as_request: Callable[[Any], Request]
    ) -> list[tuple[float, bool, int]]:
        """Returns log-likelihood, whether it is greedy, and number of tokens; equal requests are computed once."""
        names = [self._answers.key(kind, asked) for asked in arguments]
        missing = {name: asked for name, asked in zip(names, arguments) if name not in self._answers}
        asked_for = list(missing)
        requests = [self._cut(as_request(asked), kind) for asked in missing.values()]
        answered = (
            [(asked_for[number], (total, greedy, len(requests[number].continuation))) for number, total, greedy in part]
            for part in self._likelihood(requests)
        )
        self._keep("log-likelihoods", answered, len(requests))
        return [self._answers[name] for name in names]

    def _pair(self, asked: tuple[str, str]) -> Request:
        """Returns the tokens of a context and of its continuation, which are tokenized together."""
        context, continuation = asked
        if context:
            # As lm-eval: spaces at the end of a context belong to the word that follows.
            spaces = len(context) - len(context.rstrip())
            before = context[: len(context) - spaces]
            ids = self.encode(before)
            request = Request(tuple(ids), tuple(self.encode(context + continuation)[len(ids) :]))
        else:
            ids = self.encode(continuation, starts=False)
            request = Request((self._start,), tuple(ids[1:] if ids[:1] == [self._start] else ids))
        if not request.context or not request.continuation:
            raise InputError(
                f"a task asks for the log-likelihood of {continuation!r} after {context[-40:]!r}, and one of them has no "
                "token"
            )
        return request

    def _cut(self, request: Request, kind: str) -> Request:
        """Returns a request that fits into the context: the start of a longer one is cut off, and it is counted."""
        room = self.max_length + 1 - len(request.continuation)
        if room < 1:
            raise InputError(
                f"a task asks for the log-likelihood of a continuation of {len(request.continuation)} tokens, and the "
                f"model's context is {self.max_length} tokens"
            )
        if len(request.context) <= room:
            return request
        self.cut[kind] = self.cut.get(kind, 0) + 1
        return Request(request.context[-room:], request.continuation)

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """Returns a text as pairs of context and continuation, each as long as the model's context allows."""
        utils = importlib.import_module("lm_eval.utils")

        windows = utils.get_rolling_token_windows(self.encode(text), self._start, self.max_length, context_len=1)
        return [tuple(map(list, utils.make_disjoint_window(window))) for window in windows]

    # ------------------------------------------------------------------ completions

    def _batches(self, arguments: Sequence[tuple[str, dict]]) -> Iterator["_Batch"]:
        """Yields contexts that are completed together, the longest first.

        They depend on all requests and not on what is answered, so that what is drawn does not depend on a stop. Batches
        of equally long rows have the same shape, so that few programs are made.
        """
        folder = self._model.folder
        penalty = settings.read(folder, greedy=True).repetition_penalty if folder else 1.0
        groups: dict[Decoding, list[tuple[int, list[int]]]] = {}
        for number, (context, asked) in enumerate(arguments):
            decoding = Decoding.of(asked, penalty)
            room = self.max_length - decoding.length
            if room < 1:
                raise InputError(
                    f"a task asks for completions of up to {decoding.length} tokens, and the model's context is "
                    f"{self.max_length} tokens; give --gen_kwargs=max_gen_toks=N with less"
                )
            ids = self.encode(context) or [self._start]
            if len(ids) > room:
                self.cut["generate_until"] = self.cut.get("generate_until", 0) + 1
            groups.setdefault(decoding, []).append((number, ids[-room:]))
        for decoding, prompts in groups.items():
            prompts.sort(key=lambda prompt: -len(prompt[1]))
            total = len(prompts)
            while prompts:
                length = min(bucket(len(prompts[0][1])), self.max_length - decoding.length)
                slots = max(self._batch_tokens // (length + decoding.length) // self._ways, 1) * self._ways
                slots = min(slots, -(-total // self._ways) * self._ways)
                size = slots * min(-(-total // slots), _ROUNDS)
                rows, ids = zip(*prompts[:size])
                yield _Batch(decoding, list(rows), list(ids), slots, size, length)
                prompts = prompts[size:]

    def _complete(self, batch: "_Batch") -> list[str]:
        """Returns the completions of a batch."""
        tokens = np.full((batch.size, batch.length), self._tokenizer.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        # Each device has its own part of the rows. Neighbours go to different ones, so that all have as much to do.
        places = np.arange(batch.size).reshape(self._ways, -1).T.reshape(-1)[: len(batch.rows)]
        for place, ids in zip(places, batch.prompts):
            tokens[place, batch.length - len(ids) :], mask[place, batch.length - len(ids) :] = ids, True
        prompts = Prompts(tokens, mask, np.arange(batch.size, dtype=np.int32))
        decoding = batch.decoding

        def ended(completions: np.ndarray, real: np.ndarray) -> np.ndarray:
            return np.array([self._text(row[keep], decoding)[1] for row, keep in zip(completions, real)], bool)

        key = keys.named_key(self._seed, "lm_eval", batch.rows[0])
        rollout = self._sampler(decoding.length, batch.slots)(
            self._sampling_params(), prompts, key, decoding.temperature, ended, decoding.truncation()
        )
        kept = zip(rollout.completions[places], rollout.completion_mask[places])
        return [self._text(row[keep], decoding)[0] for row, keep in kept]

    def _text(self, ids: np.ndarray, decoding: "Decoding") -> tuple[str, bool]:
        """Returns the text of a completion before the first end, and whether there was an end."""
        text = whole = self._tokenizer.decode_as_released(ids.tolist())
        for end in (*decoding.until, self._end_text):
            text = text.split(end)[0] if end else text
        return text, len(text) < len(whole)

    def _sampler(self, length: int, slots: int) -> StoppingSampler:
        if (length, slots) not in self._samplers:
            self._samplers[length, slots] = StoppingSampler(
                self._model.config,
                self._model.mesh,
                completion_length=length,
                eos_id=self._tokenizer.end_ids,
                pad_id=self._tokenizer.pad_id,
                slots=slots,
            )
        return self._samplers[length, slots]

    def _sampling_params(self) -> dict:
        """Returns the parameters in the layout of sampling."""
        if self._laid_out is None:
            layout = generate.Layout(self._model.config, self._model.mesh, self._model.rules)
            self._laid_out = layout(self._model.params)
        return self._laid_out


class _Batch(NamedTuple):
    """Contexts that are completed together."""

    decoding: Decoding
    rows: list[int]  # numbers of the requests
    prompts: list[list[int]]  # their tokens
    slots: int  # as many are completed at once
    size: int  # rows of the batch, those that only fill it up included
    length: int  # tokens of a row
