"""A prompted model, the stage: a few demonstrations stand before every prompt, and nothing is trained.

Ouyang et al. 2022, section 3.5: the baseline between the base model and SFT, whose prefix is the one of a few that
the reward model scores highest on validation prompts. A completion ends with its line (appendix D), where the next
example would begin. The prefix is the model's alone: reward model, gold and reference see the prompt without it.
The stage's folder gets

    prefixes.json     the candidates, each with its score: what is there is not sampled again
    prefix.txt        the chosen one, to read
    samples.jsonl     a row for each test prompt, as of any policy
    evaluation.json   its estimates, as of any policy; what was chosen; how many demonstrations stood before a prompt
"""

import random
from collections.abc import Iterator

import numpy as np

from rlhf_jax import generate, loop, sharding
from rlhf_jax.data import encoding, loader
from rlhf_jax.data.batches import Prompts, batch_prompts
from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluate import policy
from rlhf_jax.generate import Rollout
from rlhf_jax.run import POLICIES, Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json, write_text
from rlhf_jax.stages.reward_model import scorer_of

SEPARATOR = "\n"  # between examples; ends a completion


def check(run: Run, stage: str) -> None:
    """Raises InputError for fields that mean nothing or do not fit; computes nothing."""
    section, config = run.config[stage], run.config
    if config.get(section.init, {}).get("kind") not in POLICIES or run.shape(section.init) != run.model:
        raise InputError(f"{stage}.init='{section.init}' is no stage that makes a policy of the shape of config.model")
    if section.reward in config and config[section.reward].get("kind") != "reward_model":
        raise InputError(f"{stage}.reward='{section.reward}' is no reward_model stage")
    longest = run.model.max_length - config.completion_length
    if not config.prompt_length <= _length(run, stage) <= longest:
        raise InputError(
            f"{stage}.length={section.length} must be from prompt_length={config.prompt_length} to {longest}, what "
            "completion_length leaves of model.max_length"
        )
    run.need(stage, "demonstrations", "train")
    run.need(stage, "prompts", "valid")


def run_stage(run: Run, stage: str) -> None:
    """Chooses the prefix, completes the test prompts behind it and judges them; goes on where it was stopped."""
    check(run, stage)
    section, config, folder = run.config[stage], run.config.evaluate, run.workdir.stage(stage)
    params, size = run.load_params(section.init), config.batch_size
    found = _candidates(run, stage, folder / "prefixes.json", params)
    best = max(found, key=lambda candidate: candidate["score"])
    hosts.on_first(write_text, folder / "prefix.txt", "".join(best["shots"]))
    records = run.corpus.prompts("test", "ppo")[: config.prompts]
    index = policy.prompt_arrays(run, records).index  # those that the other policies answer
    prompts, shown = behind(run, [records[place] for place in index], best["shots"], _length(run, stage))
    key = lambda number: run.key("evaluate", number)  # as of other policies, so that they are compared on pairs
    rows = []
    for rollout in loop.each(run, f"{stage}, samples", _complete(run, params, prompts, key), -(-len(index) // size)):
        logprobs = completion_logprob(run, params, rollout, config.temperature)
        rows += policy.describe(run, records, index[len(rows) : len(rows) + size], rollout, logprobs)
    facts = {
        "policy": section.init,
        "reward": section.reward,
        "prefix": best["shots"],
        "prefix_score": best["score"],
        "shots_shown": float(shown.mean()),
        "prompts_by_shots": np.bincount(shown, minlength=section.shots + 1).tolist(),
    }
    policy.judge(run, stage, rows, config.temperature)
    hosts.on_first(policy.write_rows, folder / "samples.jsonl", rows)
    policy.conclude(run, stage, rows, {}, config.temperature, facts)
    print(f"{stage}: behind {shown.mean():.2f} of {section.shots} demonstrations, the rest did not fit", flush=True)


def behind(run: Run, records: list[Prompt], shots: list[str], length: int) -> tuple[Prompts, np.ndarray]:
    """The prompts with as many of the last shots before each as fit into `length` tokens, and how many, i64[N].

    Args:
      records: whose prompts fit without any.
    """
    prefixes = ["".join(shots[len(shots) - count :]) for count in range(len(shots) + 1)]
    texts = [[prefix + record.prompt for record in records] for prefix in prefixes]
    fits = [encoding.lengths(run.tokenizer, column, "prompts", prompts=True) <= length for column in texts]
    shown = np.maximum(np.sum(fits, axis=0) - 1, 0)
    prompts = [Prompt(texts[count][place], records[place].row) for place, count in enumerate(shown)]
    return batch_prompts(prompts, run.tokenizer, length, run.config.too_long)[0], shown


def completion_logprob(run: Run, params: dict, rollout: Rollout, temperature: float) -> np.ndarray:
    """log pi f32[B] of completions that end in EOS, which stands for all ends of this policy: SEPARATOR is one more."""
    found = []
    for end in dict.fromkeys((*run.tokenizer.end_ids, _separator_id(run))):
        batch = sharding.put_batch(generate.ended_by(rollout, (run.tokenizer.eos_id,), end), run.mesh)
        found.append(hosts.fetch(policy.completion_logprob(run.model, params, batch, temperature)))
    finished = (rollout.completion_mask & (rollout.completions == run.tokenizer.eos_id)).any(axis=1)
    return np.where(finished, np.logaddexp.reduce(found), found[0])


def _candidates(run: Run, stage: str, path, params: dict) -> list[dict]:
    """{score, shown, shots} of each candidate: the mean over validation prompts of what the reward model says."""
    section, length = run.config[stage], _length(run, stage)
    records = run.corpus.prompts("valid", "ppo")[: run.config.evaluate.prompts]
    records = [records[place] for place in policy.prompt_arrays(run, records).index]
    texts = _short_demonstrations(run, stage, records)
    rng = random.Random(f"{run.seed_of(stage)}/{stage}")
    drawn = [rng.sample(texts, section.shots) for _ in range(section.candidates)]
    found = hosts.on_first(read_if_there, path, list) or []
    scorer = scorer_of(run, section.reward)
    todo = range(len(found), len(drawn))
    for number in loop.each(run, f"{stage}, prefixes", todo, len(todo)):
        prompts, shown = behind(run, records, drawn[number], length)
        key = lambda batch: run.key(stage, "valid", batch)  # the same noise for all
        answers = [
            (*generate.texts(rollout, run.tokenizer), generate.sampled(rollout))
            for rollout in _complete(run, params, prompts, key)
        ]
        said = [sum(column, [])[: len(records)] for column in zip(*answers)]  # texts, finished, ids
        score = float(np.mean(scorer(records, *said)))
        found.append({"score": score, "shown": float(shown.mean()), "shots": drawn[number]})
        hosts.on_first(write_json, path, found)
    return found


def _short_demonstrations(run: Run, stage: str, records: list[Prompt]) -> list[str]:
    """Examples of one-line completions, so short that all shots fit before half of the prompts."""
    shots, length = run.config[stage].shots, _length(run, stage)
    shown = [record.prompt for record in records]
    room = (length - float(np.median(encoding.lengths(run.tokenizer, shown, "prompts", prompts=True)))) / shots
    lines = [item for item in run.corpus.demonstrations("train") if SEPARATOR not in item.completion.strip()]
    texts = [item.prompt + item.completion.rstrip() + SEPARATOR for item in lines]
    sizes = encoding.lengths(run.tokenizer, texts, "demonstrations")
    short = [text for text, size in zip(texts, sizes) if size <= room]
    if len(short) < shots:
        raise InputError(
            f"{stage}: {len(short)} demonstrations of one line have at most the {room:.0f} tokens of which {shots} fit "
            f"before a prompt of median length; lower {stage}.shots, or raise {stage}.length={length}"
        )
    return short


def _complete(run: Run, params: dict, prompts: Prompts, key) -> Iterator[Rollout]:
    """A completion of each prompt, in whole batches, on the host; EOS stands where one has ended, by whichever end."""
    config, end = run.config.evaluate, _separator_id(run)
    sampler = run.sampler(run.config.completion_length, ends=(end,))
    for number, batch in enumerate(loader.in_order(prompts, config.batch_size)):
        rollout = hosts.fetch(sampler(params, batch, key(number), config.temperature))
        yield generate.ended_by(rollout, (end, *run.tokenizer.end_ids), run.tokenizer.eos_id)


def _separator_id(run: Run) -> int:
    ids = run.tokenizer.encode(SEPARATOR, continues=True)
    if len(ids) != 1:
        raise InputError(f"a prompted model needs a tokenizer whose line end is one token, and here it is {len(ids)}")
    return ids[0]


def _length(run: Run, stage: str) -> int:
    return run.config[stage].length or run.model.max_length - run.config.completion_length
