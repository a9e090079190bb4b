"""The judges: the world's gold labeler, reward models, and whoever else the user names."""

import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax import run as run_lib
from rlhf_jax import sources
from rlhf_jax.data.chat_template import shown
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.evaluate import outside
from rlhf_jax.evaluate import scorer as scorer_lib
from rlhf_jax.evaluate.compare.judgments import Judgment
from rlhf_jax.evaluate.compare.policies import Pair, Policy
from rlhf_jax.evaluate.rewards import models
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError

# The scores f64[N] of a policy's completions, higher is better; NaN where the judge cannot read the prompt, which is too long
Score = Callable[[Policy], np.ndarray]

FIRST, SECOND, TIE = "first", "second", "tie"
VERDICTS = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}


def by_scores(policies: Sequence[Policy], pairs: Sequence[Pair], score: Score, judge: str) -> list[Judgment]:
    """Returns the judgments of a judge who scores each completion by itself, and sees no order.

    Pairs that the judge cannot read are left out, and counted in a printed sentence.

    Raises:
        InputError: it can read none of them.
    """
    found = {policy.name: dict(zip(map(id, policy.completions), score(policy))) for policy in policies}
    judgments, unread = [], {}
    for pair in pairs:
        first, second = (found[name][id(text)] for name, text in zip(pair.names, pair.completions))
        if np.isnan(first) or np.isnan(second):
            unread[pair.prompt] = None
            continue
        won = (np.sign(first - second) + 1) / 2
        judgments.append(
            Judgment(pair.prompt, pair.number, *pair.names, float(won), pair.lengths, judge, ordered=False)
        )
    if unread and not judgments:
        raise InputError(
            f"{judge} can read none of the prompts: all are too long for it; give a judge of longer prompts"
        )
    if unread:
        which = "1 prompt is" if len(unread) == 1 else f"{len(unread)} prompts are"
        print(f"{which} too long for {judge} and left out, such as {next(iter(unread))[:60]!r}")
    return judgments


def gold(path: pathlib.Path) -> Score:
    """Returns the gold labeler of a run's world.

    Raises:
        InputError: the run's data are files, which have no gold labeler; later, that a prompt is not of this world.
    """
    run = run_lib.open_run(str(path))
    if run.config.data.source != "world":
        raise InputError(f"--judge=gold: the data of {path} are files, which have no gold labeler; name another judge")

    def score(policy: Policy) -> np.ndarray:
        records = _records(run, {completion.prompt for completion in policy.completions})
        missing = [completion.prompt for completion in policy.completions if completion.prompt not in records]
        if missing:
            raise InputError(
                f"{policy.source}: {len(missing)} of {len(policy.completions)} prompts are none of the world of {path}, such "
                f"as {missing[0][:60]!r}; its gold labeler can judge no other"
            )
        return np.array(
            [run.corpus.gold(records[text.prompt], text.text, text.finished).total for text in policy.completions]
        )

    return score


def reward(name: str) -> Score:
    """Returns a reward model as a judge.

    Args:
        name: a finished reward stage, or a work directory, whose last reward model is meant, or a Hugging Face folder.

    Raises:
        InputError: there is no such reward model.
    """
    path = pathlib.Path(os.path.abspath(name))
    found = sources.last_of(path, "reward") if sources.is_run(path) else sources.at(path)
    if isinstance(found, sources.Released | sources.Adapter):
        return _released(name)
    if found is None:
        raise InputError(
            f"--judge=reward:{name} is neither a finished reward stage, nor a work directory, nor a Hugging Face folder"
        )
    run = run_lib.open_run(str(found.workdir))
    if found.head != "scalar":
        raise InputError(
            f"--judge=reward:{name} is no finished reward model; {found.workdir} has "
            f"{', '.join(run.giving('reward')) or 'none'}"
        )
    scorer, written = scorer_lib.Scorer(run, found.name), _written(run)

    def score(policy: Policy) -> np.ndarray:
        texts = policy.completions
        ours = policy.run is not None and policy.run.resolve() == found.workdir.resolve()
        prompts = [Prompt(written(text.prompt), {}) for text in texts]
        scores, read = np.full(len(texts), np.nan), scorer.read(prompts)
        texts, prompts = [texts[row] for row in read], [prompts[row] for row in read]
        ids = [text.tokens for text in texts] if ours and all(text.tokens for text in texts) else None
        if texts:
            scores[read] = scorer(prompts, [text.text for text in texts], [text.finished for text in texts], ids)
        return scores

    return score


def _released(name: str) -> Score:
    """Returns a released reward model as a judge. It reads prompts as they are written, special tokens included."""
    judge = models.open_reward(name)
    written = judge.model.template.written if judge.model.template else str

    def score(policy: Policy) -> np.ndarray:
        rows = [
            Ranking(
                written(text.prompt), (text.text,), (1,), None, None, None, (text.finished,), {"tokens": [text.tokens]}
            )
            for text in policy.completions
        ]
        encoded = judge.encode(rows)
        scores = np.full(len(rows), np.nan)
        read = [row for row, requests in enumerate(encoded) if requests is not None]
        for batch in judge([encoded[row][0] for row in read]):
            for number, value in batch:
                scores[read[number]] = value
        return scores

    return score


def ask(pairs: Sequence[Pair], scorer: outside.Scorer, keep: str | None, both: bool = True) -> list[Judgment]:
    """Returns the judgments of an outside judge, who sees each pair in one order and then in the other.

    The judge gets {"prompt", "first", "second"} and answers as `verdict` reads it. Two equal completions are a tie, and
    nobody is asked.

    Args:
        pairs: the pairs.
        scorer: of evaluate/outside.py.
        keep: file in which the answers are kept as they come.
        both: whether both orders are asked for; otherwise each second pair is shown in the other order.

    Raises:
        InputError: the judge fails, or answers something else; what it has answered is kept.
    """
    orders = [
        (pair, order)
        for number, pair in enumerate(pairs)
        for order in ((0, 1) if both else (number % 2,))
        if not pair.same
    ]
    rows = [
        {"prompt": pair.prompt, "first": pair.completions[order].text, "second": pair.completions[1 - order].text}
        for pair, order in orders
    ]
    scores = outside.answers(rows, scorer, keep=keep, check=verdict, progress="judging")
    same = [
        Judgment(pair.prompt, pair.number, *pair.names, 0.5, pair.lengths, scorer.name, False)
        for pair in pairs
        if pair.same
    ]
    return same + [
        Judgment(
            pair.prompt,
            pair.number,
            pair.names[order],
            pair.names[1 - order],
            score,
            (pair.lengths[order], pair.lengths[1 - order]),
            scorer.name,
        )
        for (pair, order), score in zip(orders, scores)
    ]


def verdict(answer: Any) -> float:
    """Returns what a judge's answer says: 1 for the first completion, 0 for the second, or its probability of the first.

    An answer is "first", "second" or "tie", or a number from 0 to 1; or an object with the one as "winner" or the other as
    "score".

    Raises:
        InputError: it is something else.
    """
    value = answer
    if isinstance(answer, dict):
        value = next((answer[name] for name in ("winner", "score") if name in answer), None)
    if isinstance(value, str) and value.strip().lower() in VERDICTS:
        return VERDICTS[value.strip().lower()]
    if type(value) in (int, float) and 0 <= value <= 1:
        return float(value)
    raise InputError(
        f'is {str(answer)[:60]!r}; it must be "first", "second" or "tie", or the probability of the first, from 0 to 1'
    )


def _records(run: Run, wanted: set[str]) -> dict[str, Prompt]:
    """Returns the prompts of a world that are wanted, by the text that people read; the test's are looked through first."""
    found: dict[str, Prompt] = {}
    for split, purpose in itertools.product(("test", "valid", "train"), ("ppo", "rm")):
        if wanted - found.keys():
            for record in run.corpus.prompts(split, purpose):
                found.setdefault(shown(record.prompt), record)
    return found


def _written(run: Run) -> Callable[[str], str]:
    """Returns what makes a prompt, as people read it, the text that the run's models read."""
    known = {shown(record.prompt): record.prompt for record in run.corpus.prompts("test", "ppo")}
    return lambda prompt: known.get(prompt) or run.template.written(prompt)
