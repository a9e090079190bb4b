"""The rankings that a reward model or DPO learns from: whose, which part of them, and as which rows."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp

from rlhf_jax import abstract, inputs
from rlhf_jax.data.batches import Comparisons, LengthReport, PackedComparisons
from rlhf_jax.data.loader import take
from rlhf_jax.data.ranking_batches import batch_rankings, kept_rankings, pack_rankings
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.records import Demonstration, Ranking
from rlhf_jax.fields import forms, registry
from rlhf_jax.fields.field import Field
from rlhf_jax.fields.ranges import COUNT_OR_NONE, FLAG, TEXT, Text
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json_lines
from rlhf_jax.runtime.finished import checked
from rlhf_jax.stages import supervised

_PART = Text("a part of the prompts, such as ':1000', ':50%' or '50%:', or empty", forms.part)
# What a reward model and DPO share.
PREFERENCES = dict(
    rankings=Field(
        "",
        TEXT,
        "The collect stage whose rankings are learned from. "
        "Empty means the first collect stage of the run, or the corpus's own rankings if there is none.",
    ),
    subset=Field(
        "",
        _PART,
        "The part of the prompts that is learned from, in an order drawn by the seed. Empty means all of them.",
    ),
    packed=Field(
        False,
        FLAG,
        "Whether all completions of a prompt share one row, behind one copy of the prompt. The results are the same.",
    ),
    length=Field(
        0,
        COUNT_OR_NONE,
        "The length of a training row, in tokens. Rankings that need more are left out. "
        "0 means what the longest needs.",
    ),
    completion_length=Field(
        0,
        COUNT_OR_NONE,
        "The length of the longest completion of a ranking, in tokens. A completion is cut only where it and its prompt "
        "are longer than this and `prompt_length` together. 0 means `completion_length` of the run.",
    ),
)


def check(run: Run, stage: str) -> None:
    """Raises InputError if config[stage] cannot be trained on rankings; computes nothing."""
    check_source(run, stage)
    supervised.check(run, stage)
    run.check_length("prompt_length + completion_length", whole_length(run, stage), run.shape(stage))
    _check_data(run, stage)
    supervised.check_warmup(run, stage, most(run, stage), run.config[stage].batch_size)


def check_source(run: Run, stage: str) -> None:
    """Raises InputError where config[stage] names no earlier collect stage; computes nothing."""
    name = run.config[stage].get("rankings", "")
    if name and (name not in _earlier(run, stage) or registry.of(run.config, name).gives != "rankings"):
        raise InputError(f"{stage}.rankings='{name}' must name a collect stage before '{stage}' in config.stages")


def _check_data(run: Run, stage: str) -> None:
    """Raises InputError where config[stage] finds no rankings to learn from, or not the part of them that it asks for.

    Of an unfinished collect stage, only the prompts are known.
    """
    if run.corpus is None:
        return
    collect, text = _collect(run, stage), run.config[stage].subset
    if collect is None:
        for split in ("train", "valid"):
            inputs.need(run, stage, "rankings", split)
        for name in SPLITS:
            load(run, stage, name)
        check_preference(stage, run.corpus.rankings("train"))
    elif text and run.done(collect):
        load(run, stage, "train")
    elif text:
        prompts = {prompt.prompt for prompt in inputs.need(run, stage, "prompts", "train", "rm")}
        _part(text, len(prompts), f"{stage}.subset")


def check_preference(stage: str, rows: list[Ranking]) -> None:
    """Raises InputError where no ranking says that one completion is better than another."""
    if not any(len(set(row.ranks)) > 1 for row in rows):
        raise InputError(
            f"{stage}: none of its {len(rows)} training rankings says that one completion is better than another; give "
            "some that do"
        )


def check_kept(run: Run, stage: str, ranks: Iterable[Sequence[int]]) -> None:
    """Checks the same for the rankings that the length rules keep.

    Args:
      run: the run.
      stage: the stage that learns from them.
      ranks: the ranks of the completions of each ranking, 0 where there is no completion.
    """
    config, section = run.config, run.config[stage]
    if not any(len(set(row) - {0}) > 1 for row in ranks):
        own = section.completion_length
        fields = {f"{stage}.completion_length={own}" if own else f"completion_length={config.completion_length}": True}
        fields |= {f"prompt_length={config.prompt_length}": True}
        fields |= {f"{stage}.length={section.length}": section.length}
        raise InputError(
            f"{stage}: no preference is left in its training rankings, because prompts are too long or completions are "
            f"equal after the cut: raise {', '.join(name for name, value in fields.items() if value)}"
        )


def most(run: Run, stage: str) -> int:
    """Returns the largest number of rankings (of pairs, with a pooled loss) that config[stage] learns from.

    It is 0 in a run without data.
    """
    section = run.config[stage]
    if run.corpus is None:
        return 0
    if collect := _collect(run, stage):  # one of a prompt
        count = len(inputs.need(run, stage, "prompts", "train", "rm"))
        first, last = forms.part(section.subset or ":", count)
        count, largest = max(0, min(last, count) - first), run.config[collect].max_completions
    else:
        rows = inputs.need(run, stage, "rankings", "train")
        count, largest = len(rows), max(len(row.completions) for row in rows)
    return count * math.comb(largest, 2) if section.get("loss") == "pooled" else count


def _earlier(run: Run, stage: str) -> list[str]:
    """The stages of the config before this one."""
    stages = list(run.config.stages)
    return stages[: stages.index(stage)] if stage in stages else stages


def _collect(run: Run, stage: str) -> str | None:
    """The collect stage that config[stage] will learn from, finished or not; None: the corpus's own rankings."""
    collects = (name for name in _earlier(run, stage) if registry.of(run.config, name).gives == "rankings")
    return run.config[stage].rankings or next(collects, None)


SPLITS = ("train", "valid", "heldout")


def source(run: Run, stage: str) -> str | None:
    """The collect stage that config[stage] learns from; None: it learns from the corpus's own rankings.

    Raises:
      InputError: config[stage].rankings is no finished collect stage.
    """
    name = run.config[stage].get("rankings", "")
    finished = run.giving("rankings")
    if name and name not in finished:
        raise InputError(
            f"{stage}.rankings='{name}' must name a finished collect stage; these are: {', '.join(finished) or 'none'}"
        )
    return name or next(iter(finished), None)


def load(run: Run, stage: str, name: str) -> list[Ranking]:
    """What config[stage] learns from ("train") or is tested on ("valid", "heldout"); [] if there is nothing.

    Raises:
      InputError: config[stage].rankings or .subset is wrong.
    """
    collected = source(run, stage)
    if collected is None:
        found = run.corpus.rankings(name)
    else:
        path = run.folder(collected) / f"comparisons.{name}.jsonl"
        found = read_rankings(path) if hosts.on_first(lambda: checked(path).exists()) else []
    text = run.config[stage].get("subset", "")
    return subset(found, text, run.seed_of(stage), f"{stage}.subset") if text and name == "train" else found


def subset(rankings: list[Ranking], text: str, seed: int, field: str = "subset") -> list[Ranking]:
    """The rankings of a part of the prompts, which stand in an order that the seed draws.

    Of one seed ":100" lies within ":200", and ":50%" and "50%:" have no prompt in common.

    Args:
      text: "BEGIN:END", each a number of prompts, a share of them as "50%", or empty.

    Raises:
      InputError: it asks for no prompt or for more than there are.
    """
    units = list(dict.fromkeys(ranking.unit for ranking in rankings))
    units.sort(key=lambda unit: hashlib.blake2b(f"{seed}/{unit}".encode()).digest())
    first, last = _part(text, len(units), field)
    chosen = set(units[first:last])
    return [ranking for ranking in rankings if ranking.unit in chosen]


def _part(text: str, count: int, field: str) -> tuple[int, int]:
    first, last = forms.part(text, count)
    if not first < last <= count:
        raise InputError(
            f"{field}='{text}' must take at least one and at most all of the {count} prompts with rankings"
        )
    return first, last


def whole_length(run: Run, stage: str) -> int:
    """The tokens of the longest prompt and the longest completion of a ranking together."""
    return run.config.prompt_length + (run.config[stage].completion_length or run.config.completion_length)


def batch(run: Run, stage: str, rows: list[Ranking]) -> tuple[Comparisons, LengthReport]:
    """Rankings as arrays, by the length rules of config[stage] and of the run."""
    return batch_rankings(rows, run.tokenizer, whole_length(run, stage), run.config.prompt_length, **_too_long(run))


def kept(run: Run, stage: str, rows: list[Ranking]) -> tuple[list[Ranking], LengthReport]:
    """The rankings that `batch` makes arrays of, with the completions that these have."""
    return kept_rankings(rows, run.tokenizer, whole_length(run, stage), run.config.prompt_length, **_too_long(run))


def _too_long(run: Run) -> dict[str, str]:
    return {"too_long": run.config.too_long, "long_completions": run.config.long_completions}


def training_rows(run: Run, stage: str, rows: list[Ranking]) -> tuple[Comparisons | PackedComparisons, LengthReport]:
    """Rankings as config[stage] trains on them: packed or not; `shorten` comes after."""
    config, section = run.config, run.config[stage]
    try:
        if not section.packed:
            return batch(run, stage, rows)
        length = whole_length(run, stage)
        return pack_rankings(rows, run.tokenizer, length, config.prompt_length, section.length, **_too_long(run))
    except InputError as error:
        raise InputError(f"{stage}: {error}") from None


def training_shape(run: Run, stage: str) -> TransformerConfig:
    """The model's shape on those rows: splash attention cannot let all completions of a row see its prompt."""
    shape = run.shape(stage)
    if run.config[stage].packed and shape.attention == "splash":
        return dataclasses.replace(shape, attention="xla")
    return shape


def shorten(run: Run, stage: str, examples):
    """Rows [N, K, T] cut to config[stage].length tokens without loss: rankings with a longer sequence are left out.

    Packed ones have that length already; 0 is no length.

    Raises:
      InputError: no ranking is left.
    """
    section = run.config[stage]
    if section.packed or not section.length:
        return examples
    fits = examples.mask.sum(-1).max(-1) <= section.length
    if not fits.any():
        raise InputError(f"{stage}.length={section.length} leaves no ranking; raise it, or set it to 0 for the longest")
    print(f"{stage}: {(~fits).sum()} rankings with more than {section.length} tokens are left out")
    kept = take(examples, fits)
    return kept.replace(tokens=kept.tokens[..., : section.length], mask=kept.mask[..., : section.length])


def fitting(run: Run, rows: list[Demonstration]) -> list[Demonstration]:
    """The demonstrations whose prompts are not too long, or all where these are cut."""
    if run.config.too_long == "cut_left":
        return rows
    lengths = map(len, run.tokenizer.encode_prompts([row.prompt for row in rows]))
    return [row for row, length in zip(rows, lengths) if length <= run.config.prompt_length]


def write_rankings(path: Path, rankings: list[Ranking]) -> None:
    """One JSON object a line, in the public format; the prompt's own row rides along as `source`."""
    rows = []
    for ranking in rankings:
        fields = {name: getattr(ranking, name) for name in _FIELDS}
        rows.append({**fields, "tokens": ranking.sampled, "source": ranking.row})
    write_json_lines(path, rows)


_FIELDS = ("prompt", "completions", "ranks", "labeler", "group", "models", "finished")


def read_rankings(path: Path) -> list[Ranking]:
    """What `write_rankings` wrote."""
    return read_rows(finished.checked(path), "rankings")[0]


def abstract_rows(run: Run, stage: str, completions: int) -> tuple[dict, tuple[int, int]]:
    """Abstract arrays of the sequences of a batch of rankings, and the size (number, length) of all sequences together.

    Args:
      completions: of a ranking.
    """
    section = run.config[stage]
    if section.packed:
        completion_length = section.completion_length or run.config.completion_length
        length = section.length or run.config.prompt_length + completions * completion_length
        whole = abstract.rows_of(run, (section.batch_size, length), jnp.int32)
        return {"tokens": whole, "segment_ids": whole, "positions": whole}, whole.shape
    length = section.length or whole_length(run, stage)
    size = (section.batch_size, completions, length)
    rows = {"tokens": abstract.rows_of(run, size, jnp.int32), "mask": abstract.rows_of(run, size, jnp.bool_)}
    return rows, (completions * size[0], length)


def steps_of(run: Run, stage: str, count: int) -> int:
    """The steps that the stage's epochs of so many rankings make."""
    section = run.config[stage]
    return max(1, math.ceil(section.epochs * count / section.batch_size))
