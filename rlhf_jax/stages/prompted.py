"""A prompted model: a few demonstrations are put before every prompt, and nothing is trained.

Ouyang et al. 2022, section 3.5: the baseline between the base model and SFT. Its prefix is the one, among a few
candidates, whose completions of validation prompts have the highest mean reward. A completion ends with its line
(appendix D), where the next example would begin. Only the model sees the prefix: reward model, gold and reference see
the prompt without it. The stage's folder gets these files:

    prefixes.json     the candidates, each with its score; a candidate that is there is not sampled again
    prefix.txt        the chosen prefix, for reading
    samples.jsonl     a row for each test prompt, in the format of any policy
    evaluation.json   its estimates, in the format of any policy; the chosen prefix; how many demonstrations were shown
"""

import random
from collections.abc import Iterator

import numpy as np

from rlhf_jax import generate, inputs, loop, sampling, sharding, weights
from rlhf_jax.data import encoding, loader
from rlhf_jax.data.batches import Prompts
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.evaluate import answers as answers_lib
from rlhf_jax.evaluate import policy, run_judges
from rlhf_jax.evaluate.scorer import scorer_of
from rlhf_jax.fields import registry
from rlhf_jax.fields.field import Field, Section, kind
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, SOME_TEXT
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.rewards import REWARD
from rlhf_jax.generate import Rollout
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json, write_text

FIELDS = Section(
    "A model that is not trained, but is shown demonstrations before every prompt: the prompted GPT-3 of section 3.5.",
    {
        "kind": kind("prompted"),
        "init": Field(
            "pretrain", SOME_TEXT, "The model that is prompted: a stage, or a source of weights as for `sft.init`."
        ),
        "reward": Field(
            "reward_model",
            REWARD,
            "The reward model that chooses the prefix, by its scores on validation prompts: a stage, a source of weights as "
            "for `sft.init`, or a reward function, module:function.",
        ),
        "candidates": Field(
            8, COUNT, "The number of prefixes to choose from. Their demonstrations are drawn by the seed."
        ),
        "shots": Field(2, COUNT, "The number of demonstrations of a prefix."),
        "length": Field(
            0,
            COUNT_OR_NONE,
            "The length of the longest prefix and prompt together, in tokens. Only the shots that fit are shown. "
            "0 means all that `completion_length` leaves of `model.max_length`.",
        ),
    },
)


SEPARATOR = "\n"  # separates examples, and so ends a completion


def check(run: Run, stage: str) -> None:
    """Raises InputError if fields are invalid, sizes do not fit, or data are missing; computes nothing."""
    section, config = run.config[stage], run.config
    init, reward = (registry.find(config.get(name)) for name in (section.init, section.reward))
    if init and (init.gives != "policy" or run.shape(section.init) != run.model):
        raise InputError(f"{stage}.init='{section.init}' must name a stage whose policy has the shape of config.model")
    if reward and reward.gives != "reward":
        raise InputError(f"{stage}.reward='{section.reward}' must name a reward_model stage")
    longest = run.model.max_length - config.completion_length
    if not config.prompt_length <= _length(run, stage) <= longest:
        raise InputError(
            f"{stage}.length={section.length} must be from prompt_length={config.prompt_length} to {longest}, which is "
            "model.max_length - completion_length"
        )
    inputs.need(run, stage, "demonstrations", "train")
    inputs.need(run, stage, "prompts", "valid")


def run_stage(run: Run, stage: str) -> None:
    """Chooses the prefix, completes the test prompts with it and judges them; continues where it was stopped."""
    check(run, stage)
    section, config, folder = run.config[stage], run.config.evaluate, run.workdir.stage(stage)
    params, size = weights.load_params(run, section.init), config.batch_size
    found = _candidates(run, stage, folder / "prefixes.json", params)
    best = max(found, key=lambda candidate: candidate["score"])
    hosts.on_first(write_text, folder / "prefix.txt", "".join(best["shots"]))
    records = run.corpus.prompts("test", "ppo")[: config.prompts]
    index = run_judges.prompt_arrays(run, records).index  # the same prompts as for other policies
    prompts, shown = behind(run, [records[place] for place in index], best["shots"], _length(run, stage))

    def key(number):
        # The noise is the same as for the other policies, so that completions are compared in pairs.
        return run.key("evaluate", number)

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
    run_judges.judge(run, stage, rows, config.temperature)
    hosts.on_first(policy.write_rows, folder / "samples.jsonl", rows)
    policy.conclude(run, stage, rows, {}, config.temperature, facts)
    print(f"{stage}: a prompt stood behind {shown.mean():.2f} of {section.shots} demonstrations on average", flush=True)


def behind(run: Run, records: list[Prompt], shots: list[str], length: int) -> tuple[Prompts, np.ndarray]:
    """Returns the prompts with demonstrations before them, and the number of demonstrations of each prompt, i64[N].

    Before each prompt are as many of the last shots as fit into `length` tokens together with it.

    Args:
      run: the run.
      records: N prompts, each of which fits without a demonstration.
      shots: the texts of the demonstrations.
      length: largest number of tokens of shots and prompt.
    """
    prefixes = ["".join(shots[len(shots) - count :]) for count in range(len(shots) + 1)]
    texts = [[prefix + record.prompt for record in records] for prefix in prefixes]
    fits = [encoding.lengths(run.tokenizer, column, "prompts", prompts=True) <= length for column in texts]
    shown = np.maximum(np.sum(fits, axis=0) - 1, 0)
    prompts = [Prompt(texts[count][place], records[place].row) for place, count in enumerate(shown)]
    return batch_prompts(prompts, run.tokenizer, length, run.config.too_long)[0], shown


def completion_logprob(run: Run, params: dict, rollout: Rollout, temperature: float) -> np.ndarray:
    """Returns log pi of whole completions, f32[B], in nats.

    A completion that has ended ends in EOS, which stands for all ends of this policy: the tokenizer's and SEPARATOR.
    Its probability is the sum over these ends.
    """
    found = []
    for end in dict.fromkeys((*run.tokenizer.end_ids, _separator_id(run))):
        batch = sharding.put_batch(generate.ended_by(rollout, (run.tokenizer.eos_id,), end), run.mesh)
        found.append(hosts.fetch(answers_lib.completion_logprob(run.model, params, batch, temperature)))
    finished = (rollout.completion_mask & (rollout.completions == run.tokenizer.eos_id)).any(axis=1)
    return np.where(finished, np.logaddexp.reduce(found), found[0])


def _candidates(run: Run, stage: str, path, params: dict) -> list[dict]:
    """Returns {score, shown, shots} of each candidate prefix.

    The score is the reward model's mean over validation prompts, and `shown` the mean number of demonstrations that
    fit.
    """
    section, length = run.config[stage], _length(run, stage)
    records = run.corpus.prompts("valid", "ppo")[: run.config.evaluate.prompts]
    records = [records[place] for place in run_judges.prompt_arrays(run, records).index]
    texts = _short_demonstrations(run, stage, records)
    rng = random.Random(f"{run.seed_of(stage)}/{stage}")
    drawn = [rng.sample(texts, section.shots) for _ in range(section.candidates)]
    found = hosts.on_first(read_if_there, path, list) or []
    scorer = scorer_of(run, section.reward)
    todo = range(len(found), len(drawn))
    for number in loop.each(run, f"{stage}, prefixes", todo, len(todo)):
        prompts, shown = behind(run, records, drawn[number], length)

        def key(batch):
            return run.key(stage, "valid", batch)  # the same noise for all candidates

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
    """Returns examples with one-line completions, so short that all shots fit before half of the prompts."""
    shots, length = run.config[stage].shots, _length(run, stage)
    shown = [record.prompt for record in records]
    room = (length - float(np.median(encoding.lengths(run.tokenizer, shown, "prompts", prompts=True)))) / shots
    lines = [item for item in run.corpus.demonstrations("train") if SEPARATOR not in item.completion.strip()]
    texts = [item.prompt + item.completion.rstrip() + SEPARATOR for item in lines]
    sizes = encoding.lengths(run.tokenizer, texts, "demonstrations")
    short = [text for text, size in zip(texts, sizes) if size <= room]
    if len(short) < shots:
        raise InputError(
            f"{stage}: only {len(short)} one-line demonstrations are short enough ({room:.0f} tokens) that {shots} fit before "
            f"a median prompt; lower {stage}.shots, or raise {stage}.length={length}"
        )
    return short


def _complete(run: Run, params: dict, prompts: Prompts, key) -> Iterator[Rollout]:
    """Yields completions of the prompts, batch by batch, in whole batches on the host.

    Whichever token ended a completion is replaced by EOS.
    """
    config, end = run.config.evaluate, _separator_id(run)
    sampler = sampling.sampler(run, run.config.completion_length, config.batch_size, ends=(end,))
    for number, batch in enumerate(loader.in_order(prompts, config.batch_size)):
        rollout = hosts.fetch(sampler(params, batch, key(number), config.temperature))
        yield generate.ended_by(rollout, (end, *run.tokenizer.end_ids), run.tokenizer.eos_id)


def _separator_id(run: Run) -> int:
    """Returns the token id of SEPARATOR.

    Raises:
      InputError: the tokenizer makes several tokens of it.
    """
    ids = run.tokenizer.encode(SEPARATOR, continues=True)
    if len(ids) != 1:
        raise InputError(
            f"a prompted model needs a tokenizer that writes a line end as one token; this one writes it as {len(ids)}"
        )
    return ids[0]


def _length(run: Run, stage: str) -> int:
    """Returns the largest number of tokens of prefix and prompt."""
    return run.config[stage].length or run.model.max_length - run.config.completion_length


register(
    Stage(
        "prompted", FIELDS, check, run_stage, gives="completions", label="prompted base", judged=True, reads_text=True
    )
)
