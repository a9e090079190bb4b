"""Best of n: samples of a policy, the best of them by a reward model, and the value of that choice for every n.

N completions for each test prompt are scored by the reward model (the proxy), by the judges and by gold.
The stage's folder gets these files:

    candidates/0007.jsonl   the samples of one batch, with their scores; a batch that is there is not sampled again
    best_of_n.json          the curve over n <= N, with intervals
    curve.jsonl             the curve as plain numbers, and the gain over n = 1
    by_prompt.jsonl         the estimates of each prompt at some n, for claims judged on prompts not used in a fit
    samples.jsonl           the best of N for each prompt, in the format of any policy
    evaluation.json         its estimates, in the format of any policy; the curve; its law
                            (evaluate/overoptimization.py); and the standard deviation of each judge's scores of the
                            policy's samples, which is the unit of scores in Gao et al.
"""

import math

import numpy as np

from rlhf_jax import loop, sampling, sharding, weights
from rlhf_jax.data import loader
from rlhf_jax.evaluate import best_of_n, overoptimization, policy, run_judges
from rlhf_jax.evaluate.scorer import scorer_of
from rlhf_jax.fields.field import Field, Section, kind
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, POSITIVE, SOME_TEXT, TEXT, Several
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.rewards import REWARD
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json

FIELDS = Section(
    "The best of n samples by a reward model, for every n up to `samples` (Stiennon et al. 2020; Nakano et al. 2021).",
    {
        "kind": kind("best_of_n"),
        "init": Field(
            "sft", SOME_TEXT, "The policy that is sampled: a stage, or a source of weights as for `sft.init`."
        ),
        "reward": Field(
            "reward_model",
            REWARD,
            "The reward model that chooses, called the proxy: a stage, or a source of weights as for `sft.init`; or a reward "
            "function, module:function.",
        ),
        "judges": Field(
            (),
            Several(REWARD, f"() or several, each once, each {REWARD.says}", distinct=True),
            "Other reward models or functions that say what the choice is worth, beside the world's gold score. () means none.",
        ),
        "pool": Field("", TEXT, "Another best_of_n stage, whose samples are scored again. Empty means new samples."),
        "prompts": Field(
            0,
            COUNT_OR_NONE,
            "The number of test prompts, the first of those that policies are evaluated on. 0 means all of them.",
            before=0,
        ),
        "samples": Field(64, COUNT, "The number of samples for each of these prompts."),
        "temperature": Field(
            1.0, POSITIVE, "The sampling temperature. The KL of best of n refers to the policy at this temperature."
        ),
        "batch_size": Field(256, COUNT, "The number of completions that are sampled at once."),
    },
)

_OF_POOL = ("init", "temperature", "prompts")  # fields in which a stage equals the stage whose samples it takes


def check(run: Run, stage: str) -> None:
    """Raises InputError if fields are invalid, or a batch does not divide over the mesh; computes nothing."""
    section = run.config[stage]
    pool = run.config.get(section.pool) if section.pool else section
    if pool is None or pool.get("kind") != section.kind:
        raise InputError(f"{stage}.pool='{section.pool}' must name a best_of_n stage")
    if any(pool[name] != section[name] for name in _OF_POOL) or pool.samples < section.samples:
        raise InputError(
            f"{stage}.pool='{section.pool}' needs the same {', '.join(_OF_POOL[:-1])} and {_OF_POOL[-1]} in both stages, and "
            f"{stage}.samples of at most {pool.samples}"
        )
    sharding.check_parts(f"{stage}.batch_size", section.batch_size, 1, run.mesh)
    if section.init in run.config and run.shape(section.init) != run.model:  # a source is checked as such
        raise InputError(f"{stage}.init='{section.init}' must have the shape of config.model")


def run_stage(run: Run, stage: str) -> None:
    """Samples, scores and evaluates the best of n; continues where it was stopped."""
    check(run, stage)
    section = run.config[stage]
    folder = run.workdir.stage(stage)
    candidates = _candidates(run, stage, folder / "candidates")

    def table(value):
        return np.array([[value(row) for row in rows] for rows in candidates])

    proxy = table(lambda row: row["score"])
    labels = [run_judges.label(run, name) for name in section.judges]
    judges = {f"score/{name}": table(lambda row: row["scores"][name]) for name in labels}
    if candidates[0][0]["gold"] is not None:
        judges["gold"] = table(lambda row: row["gold"]["total"])
    points = best_of_n.curve(proxy, judges)
    facts = {"policy": section.init, "reward": section.reward, "temperature": section.temperature, "curve": points}
    hosts.on_first(write_json, folder / "best_of_n.json", facts | {"prompts": len(candidates)})
    hosts.on_first(policy.write_rows, folder / "curve.jsonl", [_plain(point, points[0]) for point in points])
    hosts.on_first(policy.write_rows, folder / "by_prompt.jsonl", _by_prompt({"score": proxy} | judges))
    facts |= {
        "law": {name: _law(points, name) for name in points[0] if name not in ("n", "kl")},
        "deviation": {name: float(values.std()) for name, values in ({"score": proxy} | judges).items()},
    }
    best = [rows[place] for rows, place in zip(candidates, proxy.argmax(1))]
    run_judges.judge(run, stage, best, section.temperature)
    hosts.on_first(policy.write_rows, folder / "samples.jsonl", best)
    policy.conclude(run, stage, best, {}, section.temperature, facts)


def _plain(point: dict, first: dict) -> dict:
    """Returns a row of curve.jsonl."""
    values = {name: value["value"] for name, value in point.items() if name not in ("n", "kl")}
    gained = {f"{name}_gain": value - first[name]["value"] for name, value in values.items()}
    return {"n": point["n"], "kl": point["kl"]} | values | gained


def _by_prompt(judges: dict) -> list[dict]:
    """Returns the rows of by_prompt.jsonl, one per prompt.

    A row has the values of n, and for each judge its estimated score of the best of each n.
    """
    columns = {name: best_of_n.estimate(judges["score"], values) for name, values in judges.items()}
    prompts, samples = judges["score"].shape
    chosen = best_of_n.grid(samples)
    return [
        {"n": chosen.tolist(), **{name: column[row, chosen - 1].tolist() for name, column in columns.items()}}
        for row in range(prompts)
    ]


def _law(points: list[dict], name: str) -> dict | None:
    """Returns alpha, beta, r_squared and the peak of a curve's law; None if the curve has fewer than 3 points.

    The peak is None if the curve never falls.
    """
    if len(points) < 3:
        return None
    found = overoptimization.fit(*overoptimization.gains(points, name)).numbers()
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _candidates(run: Run, stage: str, folder) -> list[list[dict]]:
    """Returns the scored samples of each prompt, `samples` of them.

    They are sampled from the policy, or taken from the stage `pool` and scored again.

    Raises:
      InputError: a file of samples that is there has those of other prompts.
    """
    section = run.config[stage]
    size, copies = section.batch_size, math.gcd(section.samples, section.batch_size)
    records = run.corpus.prompts("test", "ppo")[: run.config.evaluate.prompts][: section.prompts or None]
    prompts = run_judges.prompt_arrays(run, records)
    places = np.repeat(np.arange(len(prompts.index)), section.samples)  # neighbours share the reading of their prompt
    pooled = hosts.on_first(_pooled, run.folder(section.pool), section.samples) if section.pool else []
    params = None if section.pool else weights.load_params(run, section.init)
    scorers = {name: scorer_of(run, name) for name in dict.fromkeys((section.reward, *section.judges))}
    labels = {name: run_judges.label(run, name) for name in scorers}
    hosts.on_first(lambda: folder.mkdir(exist_ok=True))
    found = [[] for _ in prompts.index]
    parts = range(0, len(places), size)
    for number, begin in enumerate(loop.each(run, stage, parts, len(parts))):
        path, own = folder / f"{number:04}.jsonl", places[begin : begin + size]
        if not hosts.on_first(path.exists):
            if section.pool:
                rows = pooled[begin : begin + size]
            else:
                (batch,) = loader.in_order(loader.take(prompts, own), size)
                sampler = sampling.sampler(run, run.config.completion_length, size, copies=copies)
                rollout = hosts.fetch(sampler(params, batch, run.key(stage, number), section.temperature))
                rows = policy.describe(run, records, prompts.index[own], rollout, rollout.logprobs.sum(1))
            _score(records, rows, scorers)
            hosts.on_first(policy.write_rows, path, [row | {"score": row["scores"][section.reward]} for row in rows])
        rows = hosts.on_first(policy.read_rows, path)
        if [row["index"] for row in rows] != prompts.index[own].tolist():
            raise InputError(f"{path} has samples of other prompts, as an older version sorted them: remove {folder}")
        for place, row in zip(own, rows):
            found[place].append(row | {"scores": {labels[name]: row["scores"][name] for name in scorers}})
    return found


def _pooled(folder, samples: int) -> list[dict]:
    """Returns the first `samples` samples of each prompt of another stage, a prompt after another."""
    found: dict[int, list] = {}
    for path in sorted((folder / "candidates").glob("*.jsonl")):
        for row in policy.read_rows(path):
            found.setdefault(row["index"], []).append(row)
    return [row for index in sorted(found) for row in found[index][:samples]]


def _score(records, rows: list[dict], scorers: dict) -> None:
    """Adds to each row its score by each scorer, in place."""
    asked = [records[row["index"]] for row in rows]
    said = [[row[name] for row in rows] for name in ("completion", "finished", "tokens")]
    columns = {name: scorer(asked, *said).tolist() for name, scorer in scorers.items()}
    for n, row in enumerate(rows):
        row["scores"] = {name: column[n] for name, column in columns.items()}


register(
    Stage(
        "best_of_n",
        FIELDS,
        check,
        run_stage,
        gives="completions",
        label="best of n",
        judged=True,
        reads_text=True,
        kl_by_formula=lambda section: float(best_of_n.kl(section.samples)),
    )
)
