"""Best of n, the stage: samples of a policy, the best of them by a reward model, and what it is worth for every n.

N completions for each test prompt are scored by the reward model (the proxy), by the judges and by gold.
The stage's folder gets

    candidates/0007.jsonl   the samples of one batch, with their scores: what is there is not sampled again
    best_of_n.json          the curve over n <= N, with intervals
    curve.jsonl             the same as plain numbers, and what is gained over n = 1
    by_prompt.jsonl         the estimates of each prompt at some n, for claims that are judged on prompts not fitted to
    samples.jsonl           the best of N for each prompt, as of any policy
    evaluation.json         its estimates, as of any policy; the curve; its law (evaluate/overoptimization.py), and the
                            standard deviation of what each judge says of the policy's samples, its unit in Gao et al.
"""

import math

import numpy as np

from rlhf_jax import loop, sharding
from rlhf_jax.data import loader
from rlhf_jax.evaluate import best_of_n, overoptimization, policy
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json
from rlhf_jax.stages.reward_model import scorer_of


def check(run: Run, stage: str) -> None:
    """Raises InputError for fields that mean nothing, or a batch that does not divide over the mesh; computes nothing."""
    section = run.config[stage]
    pool = run.config.get(section.pool) if section.pool else section
    if pool is None or pool.get("kind") != "best_of_n":
        raise InputError(f"{stage}.pool='{section.pool}' is no best_of_n stage")
    if (pool.init, pool.temperature) != (section.init, section.temperature) or pool.samples < section.samples:
        raise InputError(
            f"{stage} takes its samples from {section.pool}: init and temperature must be the same, and samples at most "
            f"{pool.samples}"
        )
    sharding.check_parts(f"{stage}.batch_size", section.batch_size, 1, run.mesh)
    if run.shape(section.init) != run.model:
        raise InputError(f"{stage}.init='{section.init}' has not the shape of config.model")


def run_stage(run: Run, stage: str) -> None:
    """Samples, scores and weighs the best of n; goes on where it was stopped."""
    check(run, stage)
    section = run.config[stage]
    folder = run.workdir.stage(stage)
    candidates = _candidates(run, stage, folder / "candidates")
    table = lambda value: np.array([[value(row) for row in rows] for rows in candidates])
    proxy = table(lambda row: row["score"])
    judges = {f"score/{name}": table(lambda row: row["scores"][name]) for name in section.judges}
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
    policy.judge(run, stage, best, section.temperature)
    hosts.on_first(policy.write_rows, folder / "samples.jsonl", best)
    policy.conclude(run, stage, best, {}, section.temperature, facts)


def _plain(point: dict, first: dict) -> dict:
    """A row of curve.jsonl."""
    values = {name: value["value"] for name, value in point.items() if name not in ("n", "kl")}
    gained = {f"{name}_gain": value - first[name]["value"] for name, value in values.items()}
    return {"n": point["n"], "kl": point["kl"]} | values | gained


def _by_prompt(judges: dict) -> list[dict]:
    """A row of by_prompt.jsonl for each prompt: {n, and of each judge what it says of the best of each n}."""
    columns = {name: best_of_n.estimate(judges["score"], values) for name, values in judges.items()}
    prompts, samples = judges["score"].shape
    chosen = best_of_n.grid(samples)
    return [
        {"n": chosen.tolist(), **{name: column[row, chosen - 1].tolist() for name, column in columns.items()}}
        for row in range(prompts)
    ]


def _law(points: list[dict], name: str) -> dict | None:
    """alpha, beta, r_squared and the peak (None: it never falls) of a curve; None where it has too few points."""
    if len(points) < 3:
        return None
    found = overoptimization.fit(*overoptimization.gains(points, name)).numbers()
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _candidates(run: Run, stage: str, folder) -> list[list[dict]]:
    """The scored samples of each prompt, `samples` of them: of the policy, or those of another stage, scored anew."""
    section = run.config[stage]
    pool = run.config[section.pool] if section.pool else None
    size = (pool or section).batch_size
    records = run.corpus.prompts("test", "ppo")[: run.config.evaluate.prompts]
    prompts = policy.prompt_arrays(run, records)
    places = np.tile(np.arange(len(prompts.index)), section.samples)
    params = None if pool else run.load_params(section.init)
    scorers = {name: scorer_of(run, name) for name in dict.fromkeys((section.reward, *section.judges))}
    hosts.on_first(lambda: folder.mkdir(exist_ok=True))
    found = [[] for _ in prompts.index]
    parts = range(0, len(places), size)
    for number, begin in enumerate(loop.each(run, stage, parts, len(parts))):
        path, own = folder / f"{number:04}.jsonl", places[begin : begin + size]
        if not hosts.on_first(path.exists):
            if pool:
                rows = hosts.on_first(policy.read_rows, run.folder(section.pool) / "candidates" / path.name)[: len(own)]
            else:
                (batch,) = loader.in_order(loader.take(prompts, own), size)
                sampler = run.sampler(run.config.completion_length)
                rollout = hosts.fetch(sampler(params, batch, run.key(stage, number), section.temperature))
                rows = policy.describe(run, records, prompts.index[own], rollout, rollout.logprobs.sum(1))
            _score(records, rows, scorers)
            hosts.on_first(policy.write_rows, path, [row | {"score": row["scores"][section.reward]} for row in rows])
        for place, row in zip(own, hosts.on_first(policy.read_rows, path)):
            found[place].append(row)
    return found


def _score(records, rows: list[dict], scorers: dict) -> None:
    asked = [records[row["index"]] for row in rows]
    said = [[row[name] for row in rows] for name in ("completion", "finished", "tokens")]
    columns = {name: scorer(asked, *said).tolist() for name, scorer in scorers.items()}
    for n, row in enumerate(rows):
        row["scores"] = {name: column[n] for name, column in columns.items()}
