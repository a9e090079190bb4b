"""Best of n, the stage: samples of a policy, the best of them by a reward model, and what it is worth for every n.

N completions for each test prompt are scored by the reward model (the proxy), by the judges and by gold.
The stage's folder gets

    candidates/0007.jsonl   the samples of one batch, with their scores: what is there is not sampled again
    best_of_n.json          the curve over n <= N
    samples.jsonl           the best of N for each prompt, as of any policy
    evaluation.json         its estimates, as of any policy, and the curve
"""

import numpy as np

from rlhf_jax import hosts, loop, sharding
from rlhf_jax.data import loader
from rlhf_jax.errors import InputError
from rlhf_jax.evaluate import best_of_n, policy
from rlhf_jax.files import write_json
from rlhf_jax.reward_model import scorer_of
from rlhf_jax.run import Run


def check(run: Run, stage: str) -> None:
    """Raises InputError for fields that mean nothing, or a batch that does not divide over the mesh; computes nothing."""
    section = run.config[stage]
    if section.samples < 1:
        raise InputError(f"{stage}.samples={section.samples} must be at least 1")
    if section.temperature <= 0:
        raise InputError(f"{stage}.temperature={section.temperature} must be above 0: equal samples have no best")
    sharding.check_parts(f"{stage}.batch_size", section.batch_size, 1, run.mesh)


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
    points = best_of_n.curve(proxy, judges, run.config.evaluate.bootstrap)
    facts = {"policy": section.init, "reward": section.reward, "temperature": section.temperature, "curve": points}
    hosts.on_first(write_json, folder / "best_of_n.json", facts | {"prompts": len(candidates)})
    best = [rows[place] for rows, place in zip(candidates, proxy.argmax(1))]
    policy.judge(run, stage, best, section.temperature)
    hosts.on_first(policy.write_rows, folder / "samples.jsonl", best)
    policy.conclude(run, stage, best, {}, section.temperature, facts)


def _candidates(run: Run, stage: str, folder) -> list[list[dict]]:
    """The scored samples of each prompt, `samples` of them."""
    section = run.config[stage]
    records = run.corpus.prompts("test", "ppo")[: run.config.evaluate.prompts]
    prompts = policy.prompt_arrays(run, records)
    total = len(prompts.index)
    places = np.tile(np.arange(total), section.samples)
    params = run.load_params(section.init)
    scorers = {name: scorer_of(run, name) for name in dict.fromkeys((section.reward, *section.judges))}
    sampler = run.sampler(run.config.completion_length)
    hosts.on_first(lambda: folder.mkdir(exist_ok=True))
    found = [[] for _ in range(total)]
    parts = range(0, len(places), section.batch_size)
    for number, begin in enumerate(loop.each(run, stage, parts, len(parts))):
        path, own = folder / f"{number:04}.jsonl", places[begin : begin + section.batch_size]
        if not hosts.on_first(path.exists):
            (batch,) = loader.in_order(loader.take(prompts, own), section.batch_size)
            rollout = hosts.fetch(sampler(params, batch, run.key(stage, number), section.temperature))
            rows = policy.describe(run, records, prompts.index[own], rollout, rollout.logprobs.sum(1))
            texts, finished = ([row[name] for row in rows] for name in ("completion", "finished"))
            asked = [records[row["index"]] for row in rows]
            for name, scorer in scorers.items():
                for row, score in zip(rows, scorer(asked, texts, finished).tolist()):
                    row["scores"][name] = score
            for row in rows:
                row["score"] = row["scores"][section.reward]
            hosts.on_first(policy.write_rows, path, rows)
        for place, row in zip(own, hosts.on_first(policy.read_rows, path)):
            found[place].append(row)
    return found
