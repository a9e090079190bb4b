"""The evaluation of a policy, done in the same way after every stage that gives one.

Every policy completes the same test prompts once, with the same random keys, so that policies can be compared prompt by
prompt. The folder of a stage gets

    samples.jsonl     a row for each prompt: completion, gold parts, score, kl, token ids
    skills.jsonl      a row for each few-shot item
    demonstrations.jsonl    a row for each test demonstration that the config asks
    evaluation.json   the estimates, each {value, low, high}: a 95 % interval over prompts or items; an end is null where
                      the data give no bound, as values that are all equal

A PPO stage has two sets of weights, the last parameters ("params") and their moving average ("ema"), and hands on one of
them. Its folder also gets the completions of the other,

    samples.params.jsonl, or samples.ema.jsonl

whose estimates stand in evaluation.json as "other_weights".

`score` is that of the run's first reward model; where there are several, `score/NAME` is that of each. `reference` is the
first SFT stage, or else what the policy started from (run_judges.py says who judges): `kl` is log pi - log pi_ref of the
sampled tokens, summed over the completion, in nats, and `win_rate` is against the reference's completions of the same
prompts. The completions of a reference that is no stage of the run are kept in the stage's folder,

    samples.reference.jsonl

and their estimates stand in evaluation.json as "reference_estimates".
"""

import jax
import numpy as np

from rlhf_jax import generate, inputs, weights
from rlhf_jax.data import loader
from rlhf_jax.data.chat_template import shown
from rlhf_jax.evaluate import demonstrations, run_judges, skills
from rlhf_jax.evaluate.answers import Answers, EvaluationPrograms, Questions, ask
from rlhf_jax.evaluate.harness.results import PREFIX as BENCHMARKS
from rlhf_jax.generate import Rollout
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json_lines
from rlhf_jax.runtime.finished import checked, read_if_there, write_json, write_json_lines
from rlhf_jax.statistics import Estimate, mean, share, win_rate


def evaluate_policy(run, stage: str, answers: Answers | None = None) -> dict:
    """Samples, judges and summarises the policy of a finished stage, and writes its files.

    Args:
        answers: the policy's answers to the `questions` of the run; None: it is asked now.

    Returns:
        What evaluation.json holds. Estimates that need a reward model, an SFT stage or gold scores are None where there is
        none; `rescore` fills them in once they can be computed.
    """
    if answers is None:
        answers = ask(run, EvaluationPrograms(run), weights.load_params(run, stage), questions(run))
    rows = sample_rows(run, answers.samples)
    items = skills.few_shot(run, answers.skills)
    hosts.on_first(write_rows, run.folder(stage) / "skills.jsonl", items)
    retained = skills.summarize(items)
    retained["valid_loss"] = skills.valid_loss(run, answers.documents)
    if marked := demonstrations.marked(run, answers.demonstrations):
        hosts.on_first(write_rows, run.folder(stage) / "demonstrations.jsonl", marked)
        retained |= demonstrations.summarize(marked)
    retained = {name: _plain(value) for name, value in retained.items()}
    temperature = run.config.evaluate.temperature
    run_judges.judge(run, stage, rows, temperature)
    hosts.on_first(write_rows, run.folder(stage) / "samples.jsonl", rows)
    return conclude(run, stage, rows, retained, temperature)


def check(run, stage: str) -> None:
    """Raises InputError where a policy cannot be evaluated: without test prompts, or with texts too long for the model."""
    inputs.need(run, stage, "prompts", "test")
    try:
        run_judges.prompt_arrays(run, _test_prompts(run))
    except InputError as error:
        raise InputError(f"{stage}, evaluation on test prompts: {error}") from None
    demonstrations.check(run, stage)
    if run.corpus.skills():
        run.check_length("evaluate.skill_completion_length", run.config.evaluate.skill_completion_length + 1, run.model)


def questions(run) -> Questions:
    """The questions that every policy of a run is asked."""
    return Questions(
        _sample_questions(run), skills.questions(run), skills.documents(run), demonstrations.questions(run)
    )


def _sample_questions(run, temperature: float | None = None) -> list:
    config = run.config.evaluate
    temperature = config.temperature if temperature is None else temperature
    prompts = run_judges.prompt_arrays(run, _test_prompts(run))
    return [
        (batch, np.asarray(jax.random.key_data(run.key("evaluate", number))), np.float32(temperature))
        for number, batch in enumerate(loader.in_order(prompts, config.batch_size))
    ]


def sample_others(run, stage: str, weights: str, params: dict) -> None:
    """Samples from weights of a stage that it does not hand on, and keeps the rows, which `conclude` judges later.

    Args:
        weights: "params" or "ema".
        params: those weights.
    """
    answers = ask(run, EvaluationPrograms(run), params, Questions(_sample_questions(run), [], []))
    hosts.on_first(write_rows, run.folder(stage) / f"samples.{weights}.jsonl", sample_rows(run, answers.samples))


def _other_weights(run, stage: str, rivals: list[dict] | None, temperature: float) -> dict:
    """The entry "other_weights" of evaluation.json, from the rows that `sample_others` kept; {} where it kept none."""
    for name in ("params", "ema"):
        path = run.folder(stage) / f"samples.{name}.jsonl"
        if rows := hosts.on_first(_read_rows_if_there, path):
            run_judges.judge(run, stage, rows, temperature)
            hosts.on_first(write_rows, path, rows)
            estimates = summarize(rows, rivals)
            return {"other_weights": {"weights": name, "estimates": {name: _plain(x) for name, x in estimates.items()}}}
    return {}


def rescore(run) -> None:
    """Completes the evaluations of earlier stages with what a later stage has made possible.

    Scores need a reward model; KL and win rate need the SFT stage. Completions are not sampled again, and nothing is done
    where nothing is missing.
    """
    stages = run.judged()
    found = [hosts.on_first(read_if_there, run.folder(stage) / "evaluation.json") for stage in stages]
    if all(_complete(run, evaluation) for evaluation in found if evaluation):
        return
    evaluations, samples = {}, {}
    for stage in stages:
        evaluation = hosts.on_first(read_if_there, run.folder(stage) / "evaluation.json")
        if evaluation:
            evaluations[stage] = evaluation
            samples[stage] = hosts.on_first(read_rows, run.folder(stage) / "samples.jsonl")
            if evaluation["reference"] != _reference_label(run, stage):
                samples[stage] = [row | {"kl": None} for row in samples[stage]]
            run_judges.judge(run, stage, samples[stage], evaluations[stage]["temperature"])
            hosts.on_first(write_rows, run.folder(stage) / "samples.jsonl", samples[stage])
    for stage, evaluation in evaluations.items():
        retained = {
            name: value
            for name, value in evaluation["estimates"].items()
            if name.startswith(("skills/", demonstrations.PREFIX, BENCHMARKS)) or name == "valid_loss"
        }
        conclude(run, stage, samples[stage], retained, evaluation["temperature"], evaluation)


def _complete(run, evaluation: dict) -> bool:
    """Whether an evaluation has every estimate that the run's judges allow."""
    known, stage = evaluation["estimates"], evaluation["stage"]
    scorers, reference = run_judges.reward_models(run), run_judges.reference_of(run, stage)
    wanted = ["score"] if scorers else []
    wanted += [f"score/{name}" for name in scorers] if len(scorers) > 1 else []
    if reference:
        wanted += ["kl"] if run_judges.kl_is_known(run, stage, reference) else []
        wanted += ["win_rate"] if stage != reference and (scorers or evaluation["win_rate_by"]) else []
    same = evaluation["reference"] == _reference_label(run, stage)
    return same and not any(known.get(name) is None for name in wanted)


def _reference_label(run, stage: str) -> str | None:
    reference = run_judges.reference_of(run, stage)
    return reference and run_judges.label(run, reference)


def sample_rows(run, answers: list) -> list[dict]:
    """A row for each test prompt that is not too long: the completion, its gold parts and its log pi."""
    records, rows = _test_prompts(run), []
    indices = run_judges.prompt_arrays(run, records).index
    for rollout, logprobs in answers:
        rows += describe(run, records, indices[len(rows) : len(rows) + len(logprobs)], rollout, logprobs)
    return rows


def _test_prompts(run) -> list:
    return run.corpus.prompts("test", "ppo")[: run.config.evaluate.prompts]


def describe(run, records, indices, rollout: Rollout, logprobs) -> list[dict]:
    """The rows of completions, not yet scored.

    Args:
        records: prompts.
        indices: i[N]; completion i answers records[indices[i]]. Rows of the rollout beyond N only fill up its batch.
        logprobs: f[N], the log pi of each completion.
    """
    completions, finished = generate.texts(rollout, run.tokenizer)
    sampled, rows = generate.sampled(rollout), []
    for i, index in enumerate(indices):
        record = records[index]
        gold = run.corpus.gold(record, completions[i], finished[i])
        rows.append(
            {
                "index": int(index),
                "prompt": shown(record.prompt),
                "completion": completions[i],
                "finished": finished[i],
                "category": record.row.get("category"),
                "kind": record.row.get("kind"),
                "gold": gold and gold._asdict(),
                "score": None,
                "scores": {},
                "kl": None,
                "logprob": float(logprobs[i]),
                "length": len(sampled[i]),
                "tokens": list(sampled[i]),
            }
        )
    return rows


def summarize(rows: list[dict], rivals: list[dict] | None) -> dict:
    """The estimates of a stage's samples, by name; None where the rows do not have the numbers for one.

    Args:
        rows: judged samples.
        rivals: the samples of the reference stage, for the win rate; None: no win rate.
    """

    def known(values, estimate=mean):
        return None if None in values else estimate(values)

    parts = rows[0]["gold"] or {"total": None}
    found = {
        f"gold/{part}": known([row["gold"] and row["gold"][part] for row in rows], mean if part == "total" else share)
        for part in parts
    }
    found["score"] = known([row["score"] for row in rows])
    if len(rows[0].get("scores", ())) > 1:
        found |= {f"score/{name}": known([row["scores"][name] for row in rows]) for name in rows[0]["scores"]}
    found["kl"] = known([row["kl"] for row in rows])
    found["completion_length"] = known([row["length"] for row in rows])
    found["eos"] = share([float(row["finished"]) for row in rows])
    found["win_rate"] = rivals and _win_rate(rows, rivals)
    return found


def read_rows(path) -> list[dict]:
    """The rows of a samples.jsonl or skills.jsonl.

    Raises:
        InputError: the file cannot be read, or is not as its stage has written it.
    """
    return read_json_lines(checked(path))


def _read_rows_if_there(path) -> list[dict] | None:
    return read_rows(path) if checked(path).exists() else None


def write_rows(path, rows: list[dict]) -> None:
    """Writes rows as JSON lines, atomically."""
    write_json_lines(path, rows)


def judged_by(rows: list[dict]) -> str | None:
    """What decides who wins: "gold" where there are gold scores, otherwise "score", the reward model's; None without both."""
    if rows[0]["gold"] is not None:
        return "gold"
    return None if rows[0]["score"] is None else "score"


def conclude(run, stage: str, rows, retained: dict, temperature: float, others: dict | None = None) -> dict:
    """Summarises judged samples and writes evaluation.json.

    Args:
        rows: the judged samples of the stage.
        retained: the estimates of retained skills, by name.
        others: what else evaluation.json is to hold; the entries made here take precedence.

    Returns:
        What evaluation.json holds.
    """
    rivals = _rivals(run, stage, temperature)
    estimates = summarize(rows, rivals)
    evaluation = (
        (others or {})
        | _other_weights(run, stage, rivals, temperature)
        | _reference_estimates(run, stage, rivals)
        | {
            "stage": stage,
            "reference": _reference_label(run, stage),
            "prompts": len(rows),
            "temperature": temperature,
            "win_rate_by": judged_by(rows),
            "estimates": {name: _plain(value) for name, value in estimates.items()} | retained,
            "categories": _by_category(rows),
        }
    )
    hosts.on_first(write_json, run.folder(stage) / "evaluation.json", evaluation)
    return evaluation


_REFERENCE = "samples.reference.jsonl"


def _rivals(run, stage: str, temperature: float) -> list[dict] | None:
    """The judged samples of the reference; None where the stage is the reference itself, or there is none.

    Those of a reference that is no stage of the run are sampled once, and kept in the folder of each stage.
    """
    reference = run_judges.reference_of(run, stage)
    if reference in (None, stage):
        return None
    if reference in run.config:
        return hosts.on_first(_read_rows_if_there, run.folder(reference) / "samples.jsonl")
    path = run.folder(stage) / _REFERENCE
    alike = [name for name in run.judged() if run_judges.reference_of(run, name) == reference]
    kept = (
        hosts.on_first(_read_rows_if_there, run.folder(name) / _REFERENCE) for name in dict.fromkeys([stage, *alike])
    )
    rows = next(filter(None, kept), None)
    if not rows:
        print(
            f"{stage}: the completions of {run_judges.label(run, reference)}, to which the evaluation refers",
            flush=True,
        )
        asked = Questions(_sample_questions(run, temperature), [], [])
        answers = ask(run, EvaluationPrograms(run), weights.load_params(run, reference), asked)
        rows = [row | {"kl": 0.0} for row in sample_rows(run, answers.samples)]
    run_judges.add_scores(run, rows)
    hosts.on_first(write_rows, path, rows)
    return rows


def _reference_estimates(run, stage: str, rivals: list[dict] | None) -> dict:
    """The entry "reference_estimates" of evaluation.json; {} where the reference is a stage, which has its own."""
    if not rivals or run_judges.reference_of(run, stage) in run.config:
        return {}
    return {"reference_estimates": {name: _plain(value) for name, value in summarize(rivals, None).items()}}


def _win_rate(rows, rivals) -> Estimate | None:
    """The win rate against the reference's completions, on the prompts that both have answered."""
    worth = {row["index"]: _worth(row) for row in rivals}
    pairs = [(_worth(row), worth[row["index"]]) for row in rows if row["index"] in worth]
    if not pairs or None in [value for pair in pairs for value in pair]:
        return None
    return win_rate(*zip(*pairs))


def _worth(row: dict) -> float | None:
    return row["gold"]["total"] if row["gold"] else row["score"]


def _by_category(rows) -> dict:
    """The number of prompts and the mean gold score of each category; {} without gold scores or categories."""
    groups = {}
    for row in rows:
        if row["category"] is not None and row["gold"] is not None:
            groups.setdefault(row["category"], []).append(row["gold"]["total"])
    return {name: {"count": len(values), "gold": _plain(mean(values))} for name, values in groups.items()}


def _plain(estimate: Estimate | None) -> dict | None:
    return estimate and estimate.to_json()
