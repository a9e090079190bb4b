"""Step 2: a reward model from ranked completions, K-wise Bradley-Terry.

InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.2: one forward a completion, all pairs
of a prompt one element of the batch, one epoch; afterwards a bias so that demonstrations average 0.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import abstract, inputs, losses, train, weights
from rlhf_jax.data.batches import Comparisons, PackedComparisons
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.ranking_batches import joined
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.evaluate import bag_of_words, deciders, preferences
from rlhf_jax.evaluate.scorer import Scorer, completion_scores
from rlhf_jax.fields.field import Field, kind
from rlhf_jax.fields.ranges import COUNT, POSITIVE, OneOf
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.training import OWN_MODEL, REWARD_RATES, learning_rate, trained
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json
from rlhf_jax.stages import rankings, supervised
from rlhf_jax.stages.rankings import PREFERENCES
from rlhf_jax.world import labelers

FIELDS = trained(
    "Step 2: a reward model from rankings.",
    kind=kind("reward_model"),
    model=OWN_MODEL,  # C.2: 6B beside all
    init="sft",  # section 3.5; C.2 says a 6B model tuned on public NLP sets, and that it matters little
    **PREFERENCES,
    epochs=Field(1.0, POSITIVE, "The number of passes over the rankings. More than one overfits (C.2)."),
    batch_size=Field(
        64,
        COUNT,
        "The number of prompts of a step, each with all its completions (C.2). With a 'pooled' loss it counts pairs.",
    ),
    learning_rate=learning_rate(9e-6, REWARD_RATES, "C.2 has 9e-6."),
    loss=Field(
        "kwise",
        OneOf("kwise", "pooled", "regression"),
        "What is learned. "
        "'kwise' learns all pairs of a prompt as one element of the batch (section 3.5), those of all labelers who ranked "
        "the same completions. "
        "'pooled' shuffles the pairs of all prompts into one pool, and 'regression' learns the scores themselves, or the mean "
        "results that the rankings of a prompt give.",
    ),
)


def reward_loss(
    config: TransformerConfig, kind: str, params: dict, batch: Comparisons | PackedComparisons, keys: jax.Array | None
) -> losses.Loss:
    """The loss of a batch of prompts; `kind` is what config.reward_model.loss can be."""
    del keys  # no dropout
    scores = completion_scores(config, params, batch)
    if kind == "regression":
        targets = losses.rank_targets(batch.ranks, batch.valid) if batch.targets is None else batch.targets
        pairs = losses.bradley_terry_kwise(scores, batch.ranks, batch.valid)
        return losses.score_regression(scores, targets, batch.valid)._replace(sums=pairs.sums)
    loss = losses.bradley_terry_pooled if kind == "pooled" else losses.bradley_terry_kwise
    return loss(scores, batch.ranks, batch.valid)


@dataclasses.dataclass(frozen=True)
class RewardLoss:
    """`reward_loss` of a model and a kind."""

    config: TransformerConfig
    kind: str

    def __call__(self, params: dict, batch: Comparisons | PackedComparisons, keys: jax.Array) -> losses.Loss:
        return reward_loss(self.config, self.kind, params, batch, keys)


def loss_of(run: Run, stage: str) -> RewardLoss:
    """The loss that config[stage] minimises."""
    return RewardLoss(rankings.training_shape(run, stage), run.config[stage].loss)


def check(run: Run, stage: str) -> None:
    """Raises InputError for fields that mean nothing, or sizes that do not divide over the mesh; computes nothing."""
    rankings.check(run, stage)
    if run.corpus and run.corpus.has("demonstrations"):
        inputs.need(run, stage, "demonstrations", "train")


def split_into_pairs(rows: list[Ranking]) -> list[Ranking]:
    """Every untied pair as a ranking of its own: what the paper found to overfit when shuffled."""
    return [
        ranking.of(pair)
        for ranking in rows
        for pair in itertools.combinations(range(len(ranking.ranks)), 2)
        if len({ranking.ranks[place] for place in pair}) > 1
    ]


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage], sets the bias and writes the parameters; `evaluate_stage` comes after."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.SupervisedTraining:
    """What run_stage trains, and how it ends."""
    section = run.config[stage]
    loss_fn = loss_of(run, stage)
    rows = rankings.load(run, stage, "train")
    rankings.check_preference(stage, rows)
    examples, report = _examples(run, stage, rows)
    inputs.report_data(run, stage, "rankings", report)
    examples, rated = _standardized(rankings.shorten(run, stage, examples))
    rankings.check_kept(run, stage, examples.ranks.tolist())
    if section.loss != "pooled" and examples.targets is None:
        examples = joined(examples)
    loader = Loader(examples, section.batch_size, run.seed_of(stage), name=stage)

    shape = run.shape(stage)
    return supervised.SupervisedTraining(
        run,
        stage,
        lambda: weights.with_scalar_head(run, shape, weights.start_params(run, stage), run.key(stage, "head")),
        loss_fn,
        loader,
        loader.steps(section.epochs),
        functools.partial(_finish, run, stage, rated),
        head="scalar",
        live={"loss": "loss", "accuracy": "accuracy"},
    )


def _examples(run: Run, stage: str, rows: list[Ranking]):
    """Rankings, or their pairs where these are pooled, as arrays, and what became of them."""
    if run.config[stage].loss != "pooled":
        return rankings.training_rows(run, stage, rows)
    # Of two completions that are equal once they are cut, the second is in no pair: it would contradict those of the first.
    kept, left_out = rankings.kept(run, stage, rows)
    rankings.check_kept(run, stage, [row.ranks for row in kept])
    examples, report = rankings.training_rows(run, stage, split_into_pairs(kept))
    given = len(split_into_pairs(rows))
    dropped = given - len(examples.ranks)
    return examples, dataclasses.replace(report, given=given, dropped=dropped, repeats=left_out.repeats)


def _finish(run: Run, stage: str, rated: dict, state: train.TrainState) -> None:
    """Writes the parameters with the bias by which demonstrations average 0.

    Without demonstrations the bias is 0: comparisons say nothing about it, and Adam would only learn it from rounding
    errors. Regression learns a bias, which stays.
    """
    rows = run.corpus.demonstrations("train") if run.corpus.has("demonstrations") else []
    demonstrations = rankings.fitting(run, rows)
    bias, facts = state.params["scalar_bias"], {"demonstrations": len(demonstrations)}
    if demonstrations:
        prompts = [Prompt(row.prompt, row.row) for row in demonstrations]
        completions = [row.completion for row in demonstrations]
        mean = Scorer(run, stage, state.params)(prompts, completions, [True] * len(prompts)).mean()
        bias -= np.float32(mean)
        facts["demonstration_mean_before_bias"] = float(mean)
    elif run.config[stage].loss == "regression":
        print(f"{stage}: there are no demonstrations to set the bias by, so it stays as it was trained", flush=True)
    else:
        print(f"{stage}: there are no demonstrations to set the bias by, so it is 0", flush=True)
        bias = jnp.zeros_like(bias)
    hosts.on_first(write_json, run.folder(stage) / _BIAS, facts | rated)
    weights.save_params(run, stage, state.params | {"scalar_bias": bias})


_BIAS = "bias.json"  # by what the bias was set, for evaluation.json


def evaluate_stage(run: Run, stage: str, answers: None = None) -> None:
    """Writes evaluation.json of a finished stage: what `evaluate` says, and by what its bias was set."""
    del answers  # which only a policy gives
    facts = evaluate(run, stage, Scorer(run, stage))
    facts |= hosts.on_first(finished.read_if_there, run.folder(stage) / _BIAS) or {}
    hosts.on_first(finished.write_json, run.folder(stage) / "evaluation.json", facts)


def _standardized(examples):
    """The labelers' scores as regression learns them, with mean 0 and standard deviation 1, and what these were."""
    if examples.targets is None:
        return examples, {}
    scores = examples.targets[examples.valid].astype(np.float64)
    mean, deviation = scores.mean(), scores.std() or 1.0
    targets = np.where(examples.valid, (examples.targets - mean) / deviation, 0.0).astype(np.float32)
    return examples.replace(targets=targets), {"score_mean": float(mean), "score_deviation": float(deviation)}


def evaluate(run: Run, stage: str, scorer: Scorer) -> dict:
    """Accuracy with interval, log-loss and calibration on validation rankings, and on the held-out group's.

    Beside it stands the accuracy of a bag of words that is fitted to the same training rankings, where they suffice for
    it, and by how much the model exceeds it on the same pairs. If no ranking says that one completion is better than another, the rankings are only counted.
    """
    try:
        bag = bag_of_words.fit(rankings.load(run, stage, "train"))
    except InputError as error:
        print(f"{stage}: the evaluation has no bag of words to compare with: {error}", flush=True)
        bag = None
    scored = {name: _scored(run, stage, scorer, rankings.load(run, stage, name)) for name in ("valid", "heldout")}
    facts = {name: _evaluate_rankings(bag, *found) for name, found in scored.items() if found}
    if collected := rankings.source(run, stage):
        facts["labelers"] = hosts.on_first(finished.read_json, run.folder(collected) / "evaluation.json")
        facts |= _labeler_gap(facts, scored)
        if "panel" in facts["labelers"]:
            for name, (kept, _, scores) in ((name, found) for name, found in scored.items() if found):
                facts[name] |= {"by_decider": _by_decider(run, bag, facts["labelers"], kept, scores)}
    return facts


def _by_decider(
    run: Run, bag: bag_of_words.BagOfWords | None, labelled: dict, kept: list[Ranking], scores
) -> list[dict]:
    """What `deciders.by_decider` says of the reward model, the bag of words, and a judge who knows the mean utility of the
    labelers who labelled for training."""
    panel = labelers.Panel(**labelled["panel"])
    groups = set(labelers.GROUPS) - {labelled["held_out_group"]}
    golds, ideal = [], np.zeros_like(scores, np.float64)
    for row, ranking in zip(ideal, kept):
        finished = ranking.finished or (True,) * len(ranking.completions)
        prompt = Prompt(ranking.prompt, ranking.row.get("source", ranking.row))
        golds.append([run.corpus.gold(prompt, text, end) for text, end in zip(ranking.completions, finished)])
        traits = labelers.candidates("", ranking.completions, golds[-1]).traits
        row[: len(traits)] = panel.mean_utilities(traits, groups)
    judges = {"accuracy": scores} | ({"bag_of_words": bag.scores_of(kept)} if bag else {}) | {"ceiling": ideal}
    return deciders.by_decider(kept, golds, judges)


def _labeler_gap(facts: dict, scored: dict) -> dict:
    """By how much the accuracy on labelers who labelled for training exceeds that on the group held out, with its interval
    over prompts, and what the world planted: the same of a model that knows what the mean labeler of the other groups wants."""
    fold = facts["labelers"].get("folds", {}).get(facts["labelers"].get("held_out_group"))
    if fold is None or any("accuracy" not in facts.get(name, {}) for name in ("valid", "heldout")):
        return {}
    (valid, _, valid_scores), (heldout, _, heldout_scores) = scored["valid"], scored["heldout"]
    gap = preferences.accuracy_gap(valid, valid_scores, heldout, heldout_scores)
    return {"labeler_gap": gap.to_json() | {"planted": fold["in_group"] - fold["held_out"]}}


def _scored(
    run: Run, stage: str, scorer: Scorer, rows: list[Ranking]
) -> tuple[list[Ranking], Comparisons, np.ndarray] | None:
    """The rankings that fit the model, the same as arrays, and their scores f32[N, K]; None where no ranking fits."""
    kept, _ = rankings.kept(run, stage, rows)
    if not kept:
        return None
    arrays, _ = rankings.batch(run, stage, kept)
    return kept, arrays, scorer.score_arrays(arrays)


def _evaluate_rankings(
    bag: bag_of_words.BagOfWords | None, kept: list[Ranking], arrays: Comparisons, scores: np.ndarray
) -> dict:
    found = preferences.evaluate(kept, scores, arrays.mask.sum(-1))
    if bag and "accuracy" in found:
        found["bag_of_words_accuracy"] = bag_of_words.accuracy(bag, kept)._asdict()
        found["above_bag_of_words"] = preferences.accuracy_difference(kept, scores, bag.scores_of(kept)).to_json()
    if arrays.targets is not None:
        given, said = arrays.targets[arrays.valid], scores[arrays.valid]
        if given.std() and said.std():
            found["score_correlation"] = float(np.corrcoef(given, said)[0, 1])
    return found


def programs_of(run: Run, stage: str, data: abstract.Data) -> list[abstract.Program]:
    """The train step, for abstract inputs."""
    section = run.config[stage]
    rows, _ = rankings.abstract_rows(run, stage, data.completions)
    ranked = abstract.rows_of(run, (section.batch_size, data.completions), jnp.int32)
    valid = abstract.rows_of(run, ranked.shape, jnp.bool_)
    if section.packed:
        batch = PackedComparisons(**rows, ends=ranked, ranks=ranked, valid=valid)
    else:
        batch = Comparisons(**rows, ranks=ranked, valid=valid)
    steps = rankings.steps_of(run, stage, data.rankings)
    return [supervised.train_program(run, stage, loss_of(run, stage), batch, steps, head="scalar")]


register(
    Stage(
        "reward_model",
        FIELDS,
        check,
        run_stage,
        gives="reward",
        evaluate=evaluate_stage,
        rows_read=lambda run, stage: run.config[stage].epochs * rankings.most(run, stage),
        training=training_of,
        programs=programs_of,
        loss_unit="nats per prompt",
    )
)
