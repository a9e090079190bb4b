"""Best of n: the sample that a reward model likes best, among n of one policy; RLHF without training.

A stage of this kind samples N completions for each test prompt, scores them by the reward model (the
proxy) and by gold, and says for every n <= N what the best of n is worth. Its folder gets

    candidates/0007.jsonl   the samples of one batch, with score and gold: what is there is not sampled again
    best_of_n.json          the curve over n
    samples.jsonl           the best of N for each prompt, as of any policy
    evaluation.json         its estimates, as of any policy, and the curve
"""

import numpy as np

from rlhf_jax import hosts, loop, sharding
from rlhf_jax.data import loader
from rlhf_jax.errors import InputError
from rlhf_jax.evaluate import policy
from rlhf_jax.files import write_json
from rlhf_jax.reward_model import scorer_of


def kl(n):
    """KL of best of n to the policy it draws from, in nats: ln n - (n - 1)/n (Stiennon et al. 2020).

    Exact where no two samples have equal scores, an upper bound otherwise.
    """
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def estimate(proxy, values) -> np.ndarray:
    """Expected value of the best of n by proxy, f64[P, N] for n = 1 to N: unbiased, from all N samples of a prompt.

    The mean over all subsets of n samples of the value of the subset's best (Nakano et al. 2021, WebGPT):
    with samples in ascending order of proxy, the sum over i >= n of C(i-1, n-1) / C(N, n) value_i. Among samples of
    equal proxy score each is as likely the best.

    Args:
        proxy: f[P, N], by which the best is chosen.
        values: f[P, N], what it is worth: gold, or the proxy itself.
    """
    proxy, values = np.asarray(proxy, np.float64), np.asarray(values, np.float64)
    total = proxy.shape[1]
    ordered = np.empty_like(values)
    for row, (scores, own) in enumerate(zip(proxy, values)):
        _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
        ordered[row] = np.repeat(np.bincount(place, own) / count, count)
    found = np.empty_like(values)
    for n in range(1, total + 1):
        found[:, n - 1] = ordered[:, n - 1 :] @ _weights(n, total)
    return found


def _weights(n: int, total: int) -> np.ndarray:
    """C(i-1, n-1) / C(total, n) for i = n to total, by the ratio of neighbours: nothing overflows."""
    i = np.arange(total, n, -1)
    return n / total * np.cumprod(np.append(1.0, (i - n) / (i - 1)))[::-1]


def curve(proxy, judges: dict, resamples: int = 1000) -> list[dict]:
    """One row for each n: {n, kl, score, and what each judge says}: {value, low, high}, 95 % intervals over prompts.

    Args:
        proxy: f[P, N], the reward model's scores.
        judges: name -> f[P, N], as {"gold": ...}.
        resamples: of the bootstrap.
    """
    columns = {name: _over_prompts(estimate(proxy, values), resamples) for name, values in ({"score": proxy} | judges).items()}
    return [
        {"n": n, "kl": float(kl(n)), **{name: rows[n - 1] for name, rows in columns.items()}}
        for n in range(1, np.shape(proxy)[1] + 1)
    ]


def _over_prompts(values: np.ndarray, resamples: int) -> list[dict]:
    """Means of f64[P, N] over prompts, the same prompts resampled for every n (as statistics.bootstrap does for one)."""
    rng = np.random.default_rng(0)
    means = np.stack([values[rng.integers(len(values), size=len(values))].mean(0) for _ in range(resamples)])
    columns = values.mean(0), *np.quantile(means, [0.025, 0.975], axis=0)
    return [dict(zip(("value", "low", "high"), map(float, row))) for row in zip(*columns)]


def check(run, stage: str) -> None:
    """Raises InputError for fields that mean nothing, or a batch that does not divide over the mesh; computes nothing."""
    section = run.config[stage]
    if section.samples < 1:
        raise InputError(f"{stage}.samples={section.samples} must be at least 1")
    if section.temperature <= 0:
        raise InputError(f"{stage}.temperature={section.temperature} must be above 0: equal samples have no best")
    sharding.check_parts(f"{stage}.batch_size", section.batch_size, 1, run.mesh)


def run_stage(run, stage: str) -> None:
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
    points = curve(proxy, judges, run.config.evaluate.bootstrap)
    facts = {"policy": section.init, "reward": section.reward, "temperature": section.temperature, "curve": points}
    hosts.on_first(write_json, folder / "best_of_n.json", facts | {"prompts": len(candidates)})
    # Of another policy than the reference, the KL to the reference is not known.
    nats = points[-1]["kl"] if section.init == policy.reference_stage(run) else None
    best = [rows[place] | {"kl": nats} for rows, place in zip(candidates, proxy.argmax(1))]
    policy.add_scores(run, best)
    hosts.on_first(policy.write_rows, folder / "samples.jsonl", best)
    evaluation = policy.conclude(run, stage, best, {}, section.temperature)
    hosts.on_first(write_json, folder / "evaluation.json", evaluation | facts)


def _candidates(run, stage: str, folder) -> list[list[dict]]:
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
