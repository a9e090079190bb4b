"""What is looked at while PPO trains: completions of validation prompts, and each rollout's best and worst.

A validation is a rollout on validation prompts that nothing is learned from, by the programs of the iterations. It
compiles nothing and needs no more memory than they do. Its random key is the same each time, so that two validations
differ by the policy alone. The policy is that which the stage would hand on if it ended: the moving average, or the last
weights.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from rlhf_jax import generate, inputs, loop, lora, model, sharding
from rlhf_jax.data.chat_template import shown
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.evaluate import run_judges, skills
from rlhf_jax.evaluate.answers import EvaluationPrograms
from rlhf_jax.evaluate.scorer import scorer_of
from rlhf_jax.ppo import programs
from rlhf_jax.ppo.mixture import mixture_of
from rlhf_jax.ppo.state import Coefficients, PPOState
from rlhf_jax.ppo.validation_fields import lower_is_better
from rlhf_jax.ppo.watch import Looked
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.selection import Selection
from rlhf_jax.stages import ppo_rewards


def check(run: Run, stage: str) -> None:
    """Raises InputError if a validation lacks its prompts, or the metric that decides is one that it does not have."""
    section = run.config[stage]
    if not section.validate_every:
        if section.output == "best" or section.stop_kl is not None or section.stop_patience:
            raise InputError(
                f"{stage}.output='best', stop_kl and stop_patience go by validations: set {stage}.validate_every to the "
                "number of iterations between two of them"
            )
        return
    inputs.need(run, stage, "prompts", "valid")
    names = metric_names(run, stage)
    if section.best_by not in names:
        raise InputError(
            f"{stage}.best_by='{section.best_by}' is no metric of its validations; they have {', '.join(names)}"
        )
    if section.best_by == "valid/ptx_loss":
        inputs.need(run, stage, "documents", "valid")


def metric_names(run: Run, stage: str) -> list[str]:
    """Returns the metrics of a validation that can decide which weights are best."""
    mixture = mixture_of(run.config[stage])
    judged = [f"valid/scores/{name}" for name in (*(mixture.names if mixture else ()), *judges_of(run, stage))]
    gold = ["valid/gold"] if run.config.data.source == "world" else []
    loss = ["valid/ptx_loss"] if run.corpus is not None and run.corpus.has("documents") else []
    return ["valid/score", *judged, *gold, "valid/eos", "valid/kl", *loss]


def judges_of(run: Run, stage: str) -> dict[str, str]:
    """Returns the judges of a stage's validations: name in metrics -> name in the config."""
    return {run_judges.label(run, name): name for name in run.config[stage].judges}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the programs of an iteration take beside the state and the prompts; see programs.iterate.

    Attributes:
      compiled: the programs.
      frozen: parameters of the reference and of the reward models.
      base: the parameters that adapters share; None without adapters.
      coefs: the coefficients.
    """

    compiled: programs.PPOPrograms
    frozen: tuple
    base: dict | None
    coefs: Coefficients


class Watch:
    """Looks at the policy of one stage while it trains.

    The rows that it keeps for a step wait here until the loop fetches them with `samples`.
    """

    def __init__(self, run: Run, stage: str, prompts: Loader, given: Inputs):
        section = run.config[stage]
        self._run, self._stage, self._section, self._inputs = run, stage, section, given
        self._prompts, self._total, self._ended = prompts, section.iterations, ""
        self._extremes: dict[int, Looked] = {}
        self._looks: dict[int, list[dict]] = {}
        self._looked_at = _prompts(run, stage) if section.validate_every or section.samples_every else None
        judges = judges_of(run, stage) if section.validate_every else {}
        self._judges = {name: scorer_of(run, judge, stops=False) for name, judge in judges.items()}
        self._documents = skills.documents(run) if section.validate_every else []
        highest = not lower_is_better(section.best_by)
        self.selection = Selection(run, stage, section.best_by, highest) if section.output == "best" else None

    def over(self, trial: loop.Trial) -> loop.Trial:
        """Returns the trial with this watch over it."""
        return dataclasses.replace(trial, validate=self.validate, due=self.due, samples=self.samples, stop=self.stop)

    def keep(self, done: int, extremes: Looked) -> None:
        """Keeps the completions of the highest and the lowest score, still on the devices, of iteration `done`."""
        if self._section.samples_kept:
            self._extremes[done] = extremes

    def due(self, done: int) -> bool:
        """Whether the policy is looked at after `done` iterations."""
        return self._validates(done) or self._samples(done)

    def _validates(self, done: int) -> bool:
        every = self._section.validate_every
        return bool(every) and (done % every == 0 or done == self._total)

    def _samples(self, done: int) -> bool:
        every = self._section.samples_every
        regular = bool(every) and (done % every == 0 or done == 1 <= self._total // every)
        return regular and bool(self._section.samples_kept) and self._looked_at is not None

    def samples(self, done: int) -> list[dict]:
        """Returns what is kept for an iteration, as rows of training_samples.jsonl without the step."""
        rows = self._looks.pop(done, [])
        if done in self._extremes:
            extremes = hosts.fetch(self._extremes.pop(done))
            index = self._prompts.batch(done - 1).index[extremes.row]
            found = self._described(index, self._run.corpus.prompts("train", "ppo"), extremes)
            rows += [{"of": of} | row for of, row in zip(("highest", "lowest"), found)]
        return rows

    def validate(self, state: PPOState, done: int) -> dict[str, float]:
        """Looks at the policy, keeps its samples and, if it is the best so far, its weights; returns the metrics."""
        if self._looked_at is None:
            return {}
        given, run = self._inputs, self._run
        policy = state.policy
        params = policy.ema_params if programs.output_of(self._section) == "ema" else policy.params
        whole = model.without_scalar_head(lora.joined(given.base, params))
        looked = self._looked_at.rollout(given, state, params, whole)
        records, index = self._looked_at.records, self._looked_at.index
        rows = self._described(index, records, looked)
        self._looks[done] = [{"of": "validation"} | row for row in rows[: self._section.samples_kept]]
        if not self._validates(done):
            return {}
        prompts = [records[place] for place in index]
        texts, finished = [row["completion"] for row in rows], [row["finished"] for row in rows]
        sampled = generate.sampled(looked.rollout)[: len(rows)]
        metrics = _means(rows)
        for name, judge in self._judges.items():
            scores = judge(prompts, texts, finished, sampled)
            metrics |= _mean(f"scores/{name}", f"scores_sem/{name}", scores)
        if run.config.data.source == "world":
            gold = [run.corpus.gold(*said).total for said in zip(prompts, texts, finished)]
            metrics |= _mean("gold", "gold_sem", gold)
        if self._documents:
            metrics["valid/ptx_loss"] = _document_loss(run, whole, self._documents)
        if self.selection:
            self.selection.offer(whole, done, metrics[self._section.best_by])
        return metrics

    def _described(self, index, records, looked: Looked) -> list[dict]:
        """Returns a row for each of the completions that has a prompt; others only fill up the batch.

        Args:
          index: the place of each prompt.
          records: the prompts by their place.
          looked: the completions, on the host.
        """
        texts, finished = generate.texts(looked.rollout, self._run.tokenizer)
        lengths = np.asarray(looked.rollout.completion_mask).sum(axis=1)
        return [
            {
                "index": int(place),
                "prompt": shown(records[place].prompt),
                "completion": texts[row],
                "finished": finished[row],
                "score": float(looked.score[row]),
                "raw_score": float(looked.raw_score[row]),
                "scores": {name: float(scores[row]) for name, scores in looked.scores.items()},
                "kl": float(looked.kl[row]),
                "length": int(lengths[row]),
            }
            for row, place in enumerate(index)
        ]

    def stop(self, validated: list[dict]) -> str:
        """Returns why the stage ends after its last validation, in one sentence; "" if it goes on."""
        section, self._ended = self._section, ""
        if validated and section.validate_every:
            last = validated[-1]
            values = [row[section.best_by] for row in validated]
            best = values.index((min if lower_is_better(section.best_by) else max)(values))
            since = len(values) - 1 - best
            why = ""
            if section.stop_kl is not None and last["valid/kl"] > section.stop_kl:
                why = (
                    f"its KL on validation prompts, {last['valid/kl']:.4g} nats, is above {self._stage}.stop_kl="
                    f"{section.stop_kl:g}"
                )
            elif section.stop_patience and since >= section.stop_patience:
                why = (
                    f"{section.best_by} was best after iteration {validated[best]['step']}, and not better in the {since} "
                    "validations since"
                )
            if why and last["step"] < self._total:
                self._ended = f"ended after iteration {last['step']} of {self._total}: {why}"
        return self._ended

    def conclusion(self) -> dict[str, str]:
        """Says which weights were kept and why the stage ended early; returns {"stopped": why}, or {}."""
        if self.selection:
            best = self.selection.chosen()
            print(f"{self._stage}: the weights of iteration {best['step']} are kept; {best['by']} {best['value']:.4g}")
        if self._ended:
            print(f"{self._stage}: {self._ended}")
        return {"stopped": self._ended} if self._ended else {}


@dataclasses.dataclass(frozen=True)
class _Prompts:
    """The validation prompts of a stage.

    Attributes:
      records: the prompts of the split.
      index: their places, in the order of the rows; where there are fewer than rows, the other rows repeat them.
      batch: the rows, on the mesh.
      key: the random key of every validation.
      temperature: that of the completions.
      functions: the rewards that the host computes, for these prompts; None without any.
      minibatches: i32[., minibatch_size], the rows that are read together.
    """

    records: list[Prompt]
    index: np.ndarray
    batch: object
    key: jax.Array
    temperature: np.float32
    functions: Callable | None
    minibatches: np.ndarray
    mesh: jax.sharding.Mesh

    def rollout(self, given: Inputs, state: PPOState, params: dict, whole: dict) -> Looked:
        """Returns the completions of all rows with their scores, on the host.

        Args:
          given: the programs and what they take.
          state: the state of the stage.
          params: the parameters that are trained, or their moving average.
          whole: the language model that they are, or belong to.
        """
        compiled = given.compiled
        rollout = compiled.sample(whole, self.batch, self.key, self.temperature)
        scores = None
        if self.functions:
            scores = sharding.put_batch(self.functions(rollout), self.mesh)
        experience, _ = compiled.score(
            params,
            state.value_params,
            *given.frozen,
            rollout,
            state.kl_coef,
            given.coefs,
            list(self.minibatches),
            given.base,
            scores,
            state.scales,
        )
        return hosts.fetch(compiled.look(experience, np.arange(len(rollout.tokens))))


def _prompts(run: Run, stage: str) -> _Prompts | None:
    """Returns up to batch_size validation prompts of a stage; None if there are none."""
    section = run.config[stage]
    try:
        records = run.corpus.prompts("valid", "ppo")
    except InputError:
        records = []
    if not records:
        return None
    arrays, _ = batch_prompts(records, run.tokenizer, run.config.prompt_length, run.config.too_long)
    count = len(arrays.index)
    chosen = np.random.default_rng([run.seed, count]).permutation(count)[: section.batch_size]
    rows = np.resize(chosen, section.batch_size)
    batch = jax.tree.map(lambda x: x[rows], arrays)
    functions = ppo_rewards.host_rewards(run, stage, "valid")
    return _Prompts(
        records,
        arrays.index[chosen],
        sharding.put_batch(batch, run.mesh),
        run.key("ppo validation"),
        np.float32(section.samples_temperature),
        functions and functools.partial(functions, batch.index),
        np.arange(section.batch_size, dtype=np.int32).reshape(-1, section.minibatch_size),
        run.mesh,
    )


def _means(rows: list[dict]) -> dict[str, float]:
    """Returns the metrics that are means over the rows."""
    scores = {name: [row["scores"][name] for row in rows] for name in rows[0]["scores"]}
    metrics = _mean("score", "score_sem", [row["score"] for row in rows])
    for name, values in scores.items():
        metrics |= _mean(f"scores/{name}", f"scores_sem/{name}", values)
    return metrics | {
        "valid/kl": float(np.mean([row["kl"] for row in rows])),
        "valid/completion_length": float(np.mean([row["length"] for row in rows])),
        "valid/eos": float(np.mean([row["finished"] for row in rows])),
    }


def _mean(name: str, error: str, values) -> dict[str, float]:
    """Returns a mean and its standard error as metrics; a single value has no error."""
    found = {f"valid/{name}": float(np.mean(values))}
    if len(values) > 1:
        found[f"valid/{error}"] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return found


def _document_loss(run: Run, params: dict, documents: list) -> float:
    """Returns the loss of batches of held-out documents, in nats per token."""
    evaluation = EvaluationPrograms(run)
    estimate = skills.valid_loss(run, [hosts.fetch(evaluation.losses(params, batch)) for batch in documents])
    return float(estimate.value)
