"""Between the steps: K completions per prompt from several models, ranked by labelers.

Writes rows in the public format, {prompt, completions, ranks, labeler, group, models, finished, tokens}:
comparisons.{train,valid,heldout}.jsonl. Training and validation share labelers and no prompt; the
held-out file has the validation prompts ranked by the group that never labels for training.
InstructGPT, section 3.4 and 3.5: K is 4 to 9, ties are allowed.
"""

import dataclasses
import random
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax import generate, inputs, loop, sampling, sharding, weights
from rlhf_jax.data.encoding import encode
from rlhf_jax.data.loader import by_length
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.evaluate.deciders import OTHER_PROMPT
from rlhf_jax.evaluate.scorer import scorer_of
from rlhf_jax.fields import forms
from rlhf_jax.fields.field import Field, Section, kind
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, FLAG, SHARE, TEXT, Number, OneOf, Several, Text, whole
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.rewards import REWARD_OR_NONE
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json
from rlhf_jax.stages import rankings as rankings_lib
from rlhf_jax.stages.rankings import read_rankings, write_rankings
from rlhf_jax.world import labelers

FIELDS = Section(
    "Between steps 1 and 2: several completions for each prompt, ranked by labelers.",
    {
        "kind": kind("collect"),
        "models": Field(
            ("pretrain@1.0", "sft@1.0", "sft@0.7"),
            Several(
                Text(read=forms.model_at, empty=False),
                "one or several of stage@temperature, such as 'sft@0.7'",
                least=1,
            ),
            "The policies that write the completions in turn, each with its sampling temperature. "
            "One that is named twice writes twice as many. Temperature 0 takes the likeliest token each time.",
        ),
        "min_completions": Field(4, whole(2), "The smallest number K of completions of a prompt (section 3.5)."),
        "max_completions": Field(
            9,
            whole(2),
            "The largest number K of completions of a prompt (section 3.5). K is drawn for each prompt. "
            "Equal completions count once, so that a prompt may have fewer.",
        ),
        "borrowed": Field(
            0,
            COUNT_OR_NONE,
            "The number of the K completions that are taken from other prompts, and so are off the topic. "
            "0 means none. The idea is that of Liu et al. 2024 (arXiv 2409.13156).",
        ),
        "demonstrations": Field(
            False,
            FLAG,
            "Whether one of the completions that are not borrowed is written by a person, as the prompt's demonstration "
            "(Stiennon et al. 2020 have reference summaries ranked beside samples). It needs no sampling. "
            "Only the embedded world has such demonstrations; `data.world.careless` says how many are careless.",
        ),
        "rankings": Field(
            "", TEXT, "An earlier collect stage, whose completions are ranked anew. Empty means new completions."
        ),
        "labeler": Field(
            "world",
            OneOf("world", "gold", "reward_model"),
            "Who ranks the completions: the labelers of the embedded world, its gold labeler, who makes no mistakes and has no "
            "taste (Gao et al. 2022, section 2.2), or a reward model.",
        ),
        "reward": Field(
            "",
            REWARD_OR_NONE,
            "The reward model that ranks if `labeler` is 'reward_model'. "
            "It is a stage of this run, the work directory of a finished run, a folder of a released reward model relative "
            "to `data.files.dir`, or a reward function, module:function.",
        ),
        "labelers": Field(
            1,
            COUNT,
            "The number of the world's labelers who rank the completions of a training prompt, each without the others. "
            "One labeler ranks those of a validation prompt.",
        ),
        "held_out_group": Field(
            "caution",
            OneOf("", "brevity", "warmth", "exactness", "detail", "caution"),
            "The group of the world's labelers that never ranks for training. "
            "It ranks the validation prompts, as the split 'heldout'. Empty means no group.",
        ),
        "agreement": Field(
            0.726,
            Number(above=0.5, below=1),
            "How often two labelers of a group agree on a pair of completions. "
            "The default is that of two training labelers in section 3.4.",
        ),
        "gap": Field(
            0.028,
            SHARE,
            "How much less accurate it is to predict the labelers of a held-out group, as a difference of shares. "
            "0 means that it is equally accurate. The default is 72.4 % - 69.6 % (section 4.1).",
        ),
        "batch_size": Field(256, COUNT, "The number of completions that are sampled at once."),
    },
)


class Sampled(NamedTuple):
    """The distinct completions of one prompt, the model@temperature each came from, and its token ids."""

    prompt: Prompt
    completions: tuple[str, ...]
    finished: tuple[bool, ...]
    models: tuple[str, ...]
    sampled: tuple[tuple[int, ...], ...]


def completions_of(run: Run, stage: str, split: str) -> list[Sampled]:
    """What config[stage] ranks of a split: new samples, or the completions of the stage that `rankings` names."""
    name = run.config[stage].rankings
    if not name:
        return sample_completions(run, stage, split)
    rows = read_rankings(run.folder(name) / f"comparisons.{split}.jsonl")
    rows = {(row.prompt, row.completions): row for row in rows}.values()  # several labelers may have ranked them
    return [
        Sampled(Prompt(row.prompt, row.row["source"]), row.completions, row.finished, row.models, row.row.get("tokens"))
        for row in rows
    ]


def sample_completions(run: Run, stage: str, split: str) -> list[Sampled]:
    """K distinct completions of every prompt of a split, the models in turn.

    One more is sampled than wanted, since equal texts are kept once; see `choose`. A demonstration is one of the samples.
    """
    section = run.config[stage]
    prompts = run.corpus.prompts(split, "rm")
    arrays, _ = batch_prompts(prompts, run.tokenizer, run.config.prompt_length, run.config.too_long)
    rng = random.Random(f"{run.seed}/{stage}/{split}")
    wanted = [rng.randint(section.min_completions, section.max_completions) for _ in arrays.index]
    assigned: dict[str, list[int]] = {name: [] for name in section.models}
    for row, k in enumerate(wanted):
        first = rng.randrange(len(section.models))
        for turn in range(k + 1 - section.borrowed - section.demonstrations):
            assigned[section.models[(first + turn) % len(section.models)]].append(row)
    batches = [(name, rows) for name, rows in assigned.items() if rows]
    batches = [(name, *batch) for name, rows in batches for batch in by_length(arrays, rows, section.batch_size)]
    sampler = sampling.sampler(run, run.config.completion_length, section.batch_size)
    found: list[list[tuple[str, bool, str, tuple[int, ...]]]] = [[] for _ in wanted]
    loaded = None
    for number, (name, rows, batch) in enumerate(loop.each(run, f"{stage} {split}", batches, len(batches))):
        model_stage, temperature = forms.model_at(name)
        if loaded != model_stage:
            loaded, params = model_stage, weights.load_params(run, model_stage)
        rollout = sampler(params, batch, run.key(stage, split, number), temperature)
        for row, text, end, ids in zip(rows, *generate.texts(rollout, run.tokenizer), generate.sampled(rollout)):
            found[row].append((text, end, name, ids))
    if section.demonstrations:
        texts = [run.corpus.demonstration_of(prompts[place]).completion for place in arrays.index]
        for own, text, ids in zip(found, texts, encode(run.tokenizer, texts, "demonstrations")):
            own.append((text, True, "demonstration", (*ids.tolist(), run.tokenizer.eos_id)))
    sampled = []
    for place, own, k in zip(arrays.index, found, wanted):
        chosen = choose(own, found, k, section.borrowed, rng)
        if len(chosen) >= 2:
            sampled.append(Sampled(prompts[place], *(tuple(column) for column in zip(*chosen))))
    return sampled


def choose(own: list, everyone: list[list], k: int, borrowed: int, rng: random.Random) -> list[tuple]:
    """At most K (completion, finished, model, ids) of one prompt, no text twice and none blank; the `borrowed` come last.

    Args:
      own: what was sampled for the prompt; it is shuffled.
      everyone: what was sampled for every prompt. A text drawn from here that is there already, or blank, is not
        replaced: the prompt then has fewer.
    """
    rng.shuffle(own)
    distinct = {text: (text, *said) for text, *said in own if text.strip()}
    chosen = list(distinct.values())[: k - borrowed]
    for _ in range(borrowed):
        text, end, name, *ids = rng.choice(rng.choice(everyone))
        if text.strip() and text not in distinct:
            distinct[text] = (text, end, f"{name}{OTHER_PROMPT}", *ids)
            chosen.append(distinct[text])
    return chosen


def rank_by_panel(
    run: Run, panel: labelers.Panel, sampled: list[Sampled], candidates, groups, count: int = 1
) -> list[Ranking]:
    """`count` labelers of these groups rank each prompt, drawn by the prompt; the first is the same for every count."""
    staff = [labeler for labeler in panel.labelers if labeler.group in groups]
    rankings = []
    for item, candidate in zip(sampled, candidates):
        rng, left = random.Random(f"{run.seed}/{candidate.prompt_id}/{sorted(groups)}"), list(staff)
        for _ in range(count):
            labeler = rng.choice(left)
            left.remove(labeler)
            rankings.append(_ranking(item, panel.rank(candidate, labeler), labeler.name, labeler.group))
    return rankings


def _ranking(item: Sampled, ranks, labeler: str, group: str | None) -> Ranking:
    return Ranking(
        item.prompt.prompt,
        item.completions,
        tuple(ranks),
        labeler,
        group,
        item.models,
        item.finished,
        item.prompt.row,
        sampled=item.sampled,
    )


def check(run: Run, stage: str) -> None:
    """Raises InputError for fields that mean nothing, or what the stage needs and there is not; computes nothing."""
    rankings_lib.check_source(run, stage)
    section = run.config[stage]
    sharding.check_parts(f"{stage}.batch_size", section.batch_size, 1, run.mesh)
    if not section.borrowed < section.min_completions <= section.max_completions:
        raise InputError(
            f"{stage}.borrowed={section.borrowed} must be below {stage}.min_completions={section.min_completions}, which "
            f"must be at most {stage}.max_completions={section.max_completions}"
        )
    staff = labelers.LABELERS_PER_GROUP * (len(labelers.GROUPS) - bool(section.held_out_group))
    if section.labelers > staff:
        raise InputError(f"{stage}.labelers={section.labelers} must be at most {staff}, all who rank for training")
    if section.demonstrations and run.config.data.source != "world":
        raise InputError(
            f"{stage}.demonstrations=True needs data.source='world', and it is '{run.config.data.source}'; set it to False"
        )
    if section.labeler == "reward_model" and not section.reward:
        raise InputError(f"{stage}.labeler='reward_model' needs {stage}.reward: name a stage or a directory")
    if section.labeler in ("world", "gold") and run.config.data.source != "world":
        raise InputError(
            f"{stage}.labeler='{section.labeler}' needs data.source='world', and it is '{run.config.data.source}'; choose 'reward_model', "
            "which judges any text"
        )
    for name in () if section.rankings else section.models:
        if run.shape(forms.model_at(name)[0]) != run.model:
            raise InputError(f"{stage}.models names '{name}', whose model must have the shape of config.model")
    for split in () if section.rankings else ("train", "valid"):
        inputs.need(run, stage, "prompts", split, "rm")


def run_stage(run: Run, stage: str) -> None:
    """Samples, ranks and writes; evaluation.json says how far labelers agree and what a perfect model could reach."""
    check(run, stage)
    section = run.config[stage]
    folder = run.workdir.stage(stage)
    started = time.monotonic()
    train, valid = (completions_of(run, stage, split) for split in ("train", "valid"))
    if section.labeler == "world":
        facts = _collect_from_world(run, section, folder, train, valid)
    else:
        judge = gold_totals(run) if section.labeler == "gold" else scorer_of(run, section.reward)
        for name, sampled in {"train": train, "valid": valid}.items():
            rankings = rank_by_scores(judge, sampled, section.labeler)
            hosts.on_first(write_rankings, folder / f"comparisons.{name}.jsonl", rankings)
        facts = {"labeler": section.labeler, "reward": section.reward, "prompts": len(train)}
    hosts.on_first(write_json, folder / "evaluation.json", facts | {"seconds": time.monotonic() - started})
    print(f"{stage}: {len(train)} prompts ranked, mean K {np.mean([len(item.completions) for item in train]):.1f}")


def _collect_from_world(run: Run, section, folder: Path, train, valid) -> dict:
    judged = {}
    for name, sampled in {"train": train, "valid": valid}.items():
        judged[name] = [
            labelers.candidates(
                f"{name}/{item.prompt.row['id']}",
                item.completions,
                [run.corpus.gold(item.prompt, text, end) for text, end in zip(item.completions, item.finished)],
            )
            for item in sampled
        ]
    panel = labelers.fit_panel(run.seed, judged["train"], agreement=section.agreement, gap=section.gap)
    held_out = {section.held_out_group} if section.held_out_group else set()
    staff = set(labelers.GROUPS) - held_out
    files = {"train": (train, "train", staff), "valid": (valid, "valid", staff), "heldout": (valid, "valid", held_out)}
    for name, (sampled, split, groups) in files.items():
        if groups:
            count = section.labelers if name == "train" else 1
            rankings = rank_by_panel(run, panel, sampled, judged[split], groups, count)
            hosts.on_first(write_rankings, folder / f"comparisons.{name}.jsonl", rankings)
    agreement = panel.agreement(judged["valid"])
    folds = {fold.held_out_group: fold._asdict() for fold in panel.folds(judged["valid"])}
    return {
        "labeler": "world",
        "prompts": len(train),
        "panel": dataclasses.asdict(panel),
        "agreement_in_group": agreement.in_group,
        "agreement_across": agreement.across,
        "ceiling_each_labeler_known": panel.ceiling(judged["valid"]),
        "folds": folds,
        "held_out_group": section.held_out_group,
    }


def gold_totals(run: Run):
    """A scorer that gives completions the total of the gold labeler."""

    def totals(prompts, texts, ended, ids) -> np.ndarray:
        return np.array([run.corpus.gold(*one).total for one in zip(prompts, texts, ended)])

    return totals


def rank_by_scores(scorer, sampled: list[Sampled], labeler: str) -> list[Ranking]:
    """The better score ranks higher, and equal scores tie."""
    prompts = [item.prompt for item in sampled for _ in item.completions]
    texts = [text for item in sampled for text in item.completions]
    ended = [end for item in sampled for end in item.finished]
    ids = [own for item in sampled for own in item.sampled or [None] * len(item.completions)]  # older files have none
    scores = iter(scorer(prompts, texts, ended, ids).tolist())
    rankings = []
    for item in sampled:
        own = [next(scores) for _ in item.completions]
        order = sorted(set(own), reverse=True)
        rankings.append(_ranking(item, [order.index(score) + 1 for score in own], labeler, None))
    return rankings


register(Stage("collect", FIELDS, check, run_stage, gives="rankings", reads_text=True))
