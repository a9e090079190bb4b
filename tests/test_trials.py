"""Many trials as one program: the numbers of one run after another, also when one fails and when all are stopped."""

import collections
import contextlib
import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from compare import params_of, timeless
from toy import get_config as toy_config

from rlhf_jax import checkpoint, loop, sharding, weights
from rlhf_jax import run as run_lib
from rlhf_jax.evaluate import answers as evaluate_programs
from rlhf_jax.evaluate import policy, scorer
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.runtime import progress
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.stages import dpo, pretrain, reward_model, sft
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.sweep import arms, grid, trials
from rlhf_jax.sweep.store import Store
from rlhf_jax.sweep.trials import evaluation
from rlhf_jax.sweep.trials import stacked as programs

pytestmark = pytest.mark.usefixtures("one_device")
RUN_STAGE = {"pretrain": pretrain, "sft": sft, "reward_model": reward_model, "dpo": dpo, "ppo": ppo_stage}
SETTINGS = {
    "pretrain": grid.product([grid.sweep("seed", [0, 1]), grid.sweep("pretrain.learning_rate", [1e-2, 3e-3])])
    + [{"seed": 0, "pretrain.steps": 3}],
    "sft": grid.product([grid.sweep("seed", [0, 1]), grid.sweep("sft.epochs", [1.0, 2.0])]),
    "reward_model": [{"seed": 0}, {"seed": 1}, {"seed": 2, "reward_model.learning_rate": 3e-4}],
    "dpo": [
        {"seed": 0, "dpo.beta": 0.1},
        {"seed": 0, "dpo.beta": 0.5, "dpo.label_smoothing": 0.2},
        {"seed": 1, "dpo.beta": 0.1},
    ],
    "ppo": grid.product(
        [
            grid.sweep("seed", [0, 1]),
            grid.zipit(
                [grid.sweep("ppo.ptx_coef", [0.0, 0.5, 0.5]), grid.sweep("ppo.learning_rate", [1e-3, 1e-3, 3e-4])]
            ),
        ]
    ),
}
FEW = [SETTINGS["ppo"][number] for number in (0, 4, 5)]  # without ptx; of another seed with it, at two rates
DIVERGING = {"seed": 1, "ppo.learning_rate": 1e38}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def open_runs(store):
    """(folder, settings of a stage's arms) -> their runs, open, with untrained models in place of the earlier stages."""
    with contextlib.ExitStack() as stack:

        def start(path, settings, **changes):
            interrupt = stack.enter_context(progress.Interrupt())
            config = toy_config("ppo")
            # Large steps of a wild model amplify rounding until nothing is the same.
            config.sft.learning_rate = config.reward_model.learning_rate = config.ppo.value_learning_rate = 1e-3
            config.dpo.update(batch_size=8, epochs=1.0, learning_rate=1e-3, warmup_steps=0, checkpoint_every=2)
            for stage in SETTINGS:  # without it Adam makes steps out of gradients that are rounding errors
                optimizers = [name for name in config[stage] if name.endswith("optimizer")]
                for name in optimizers:
                    config[stage][name].eps = 1e-4
            config.update_from_flattened_dict(changes)
            runs = []
            for arm in arms.expand(config, settings):
                folder = path / arm.name
                with store.tokenizer(arm.config, folder):
                    opened = run_lib.start(arm.config, folder, None, store.corpora, interrupt)
                    runs.append(stack.enter_context(opened))
                stand_in(runs[-1])
            return runs

        yield start


def stand_in(run):
    for stage, head in {"pretrain": "lm", "sft": "lm", "reward_model": "scalar"}.items():
        if not run.done(stage):
            params = jax.tree.map(lambda x: 3 * x, weights.init_params(run, stage, run.shape(stage), head=head))
            checkpoint.save_params(run.workdir.stage(stage) / "params", params)
            write_json(run.folder(stage) / "done.json", {"seconds": 1.0})
    folder = run.workdir.stage("collect")
    for name in ("train", "valid", "heldout"):
        rng = np.random.default_rng([run.seed, len(name)])

        def word():
            return "".join(rng.choice(list("abcdefgh "), rng.integers(2, 9 + run.seed)))

        sizes = rng.integers(2, 4 + run.seed, 20 + run.seed)
        completions = [[word() + str(k) for k in range(size)] for size in sizes.tolist()]
        ranks = [rng.integers(1, 4, size).tolist() for size in sizes.tolist()]
        columns = zip(completions, ranks)
        rows = [{"prompt": word(), "completions": texts, "ranks": order, "group": "people"} for texts, order in columns]
        (folder / f"comparisons.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "evaluation.json", {})
    write_json(folder / "done.json", {"seconds": 1.0})


def close(path, expected, stage):
    """The same outputs and metrics to float tolerance."""
    found, wanted = timeless(path / stage), timeless(expected / stage)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted):
        assert row.keys() == other.keys()
        noise = {"ppo/ptx/cosine", "objective/logprob_gap_max"}  # rounding is all that they show
        if stage == "dpo" and row["step"] == 1:  # all log-ratios are 0
            noise.add("accuracy")
        for name in row.keys() - noise:
            where = f"{name} of step {row['step']}"
            np.testing.assert_allclose(row[name], other[name], rtol=2e-3, atol=2e-4, err_msg=where)
    for name, value in params_of(expected / stage).items():
        np.testing.assert_allclose(params_of(path / stage)[name], value, rtol=1e-3, atol=2e-3, err_msg=name)


def compare(open_runs, tmp_path, stage, settings, **changes):
    one_by_one = open_runs(tmp_path / "one", settings, **changes)
    together = open_runs(tmp_path / "all", settings, **changes)
    for run in one_by_one + together:
        (run.folder(stage) / "done.json").unlink(missing_ok=True)
    for run in one_by_one:
        RUN_STAGE[stage].run_stage(run, stage)
    assert trials.fit_stage(together, stage, tmp_path / "trials") == {}
    for run, other in zip(together, one_by_one):
        close(run.path, other.path, stage)
    assert not list((tmp_path / "trials").iterdir())  # nothing is left to be resumed
    return together


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_pretraining_and_dpo_at_once_are_those_one_by_one(open_runs, tmp_path, stage):
    """As one program also where rates, betas, smoothing and the lengths of the data differ."""
    programs._supervised_programs.cache_clear()
    together = compare(open_runs, tmp_path, stage, SETTINGS[stage])
    assert programs._supervised_programs.cache_info().currsize == 1
    last = [timeless(run.folder(stage))[-1] for run in together]
    assert len({row["loss"] for row in last}) == len(SETTINGS[stage])  # no two are alike
    assert stage == "pretrain" or all("valid/loss" in row for row in last)


@pytest.mark.slow
def test_a_group_that_does_not_fit_into_memory_is_halved(open_runs, tmp_path, monkeypatch, capsys):
    """Where it says so: when the metrics of its second step are asked for; the ends are those of smaller groups."""
    runs = open_runs(tmp_path / "all", SETTINGS["pretrain"][2:])
    sizes, make = [], programs.supervised_of

    def without_memory(trainings, mesh):
        state, advance = make(trainings, mesh)
        sizes.append(len(trainings))

        def step(state, number, active):
            if number == 1 and len(trainings) > fitting:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes")
            return advance(state, number, active)

        return state, step

    monkeypatch.setattr(programs, "supervised_of", without_memory)
    fitting = 2
    assert trials.fit_stage(runs, "pretrain", tmp_path / "trials") == {} and sizes == [3, 2, 1]
    assert "pretrain: no memory for 3 trials at once; 2 are trained and then 1" in capsys.readouterr().out
    assert not list((tmp_path / "trials").iterdir())
    steps = [len(timeless(run.folder("pretrain"))) for run in runs]
    assert steps == [5, 5, 3] and all((run.folder("pretrain") / "params").exists() for run in runs)
    sizes.clear()
    assert trials.fit_stage(runs, "pretrain", tmp_path / "trials", at_once=2) == {} and sizes == [2, 1]
    fitting = 0
    failures = trials.fit_stage(runs, "pretrain", tmp_path / "trials")
    assert failures.keys() == set(range(3)) and "RESOURCE_EXHAUSTED" in str(failures[0])
    monkeypatch.setattr(trials._Group, "saved", True)  # then half of them would begin again
    failures = trials.fit_stage(runs, "pretrain", tmp_path / "trials")
    assert "out of memory with 3 trials at once: give --retry" in str(failures[2])


def alone(run, stage):
    """What a policy answers by itself."""
    questions = policy.questions(run)
    return evaluate_programs.ask(
        run, evaluate_programs.EvaluationPrograms(run), weights.load_params(run, stage), questions
    )


def same_answers(found, wanted):
    for (rollout, logprobs), (other, others) in zip(found.samples, wanted.samples, strict=True):
        np.testing.assert_array_equal(rollout.tokens, other.tokens)
        np.testing.assert_array_equal(rollout.completion_mask, other.completion_mask)
        np.testing.assert_allclose(logprobs, others, rtol=1e-5, atol=1e-4)
    for rollout, other in zip(found.skills, wanted.skills, strict=True):
        np.testing.assert_array_equal(rollout.tokens, other.tokens)
    for losses, others in zip(found.documents, wanted.documents, strict=True):
        np.testing.assert_allclose(losses, others, rtol=1e-4)


def test_policies_answer_at_once_what_they_answer_one_by_one(open_runs, tmp_path, capsys, monkeypatch):
    runs = open_runs(
        tmp_path, [{"seed": 0}, {"seed": 1}, {"seed": 2, "completion_length": 7}, {"seed": 3}, {"seed": 4}]
    )
    shutil.rmtree(runs[4].folder("sft") / "params")  # one with a policy that cannot be read
    fit, sizes = evaluation.StackedEvaluationPrograms, []

    class Small(fit):
        """Of a device with room for two."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            draw = self.sample

            def sample(params, batches):
                sizes.append(len(batches))
                if len(batches) > 2:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")
                return draw(params, batches)

            self.sample = sample

    monkeypatch.setattr(evaluation, "StackedEvaluationPrograms", Small)
    monkeypatch.setattr(evaluation, "_programs", Small)
    found = evaluation.answers(runs, "sft")
    assert found.keys() == {0, 1} and sizes == [3, 2]  # the others have nobody to be asked with
    assert "no memory to evaluate 3 arms at once; 2 are evaluated and then the others" in capsys.readouterr().out
    for place, (answers, seconds) in found.items():
        same_answers(answers, alone(runs[place], "sft"))
        assert seconds > 0
    tokens = [found[place][0].samples[0][0].tokens for place in (0, 1)]
    assert (tokens[0] != tokens[1]).any()
    monkeypatch.setattr(evaluation, "_programs", lambda *_: 1 / 0)
    assert evaluation.answers(runs, "sft") == {}
    assert "sft: 3 arms are evaluated one by one, because of this error: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_sft_and_reward_models_at_once_are_those_one_by_one(open_runs, tmp_path, stage, packed):
    changes = {f"{stage}.packed": packed}
    if packed:
        changes["sft.dropout_rate"] = 0.0  # the noise depends on the rows of a batch, which differ between trials
    together = compare(open_runs, tmp_path, stage, SETTINGS[stage], **changes)
    if stage == "reward_model":
        for run in together:
            folders = run.path, tmp_path / "one" / run.path.name
            for path in folders:
                write_json(path / stage / "done.json", {"seconds": 1.0})
            opened = map(run_lib.open_run, map(str, folders))
            found, wanted = (reward_model.evaluate(one, stage, scorer.Scorer(one, stage))["valid"] for one in opened)
            assert found["log_loss"] == pytest.approx(wanted["log_loss"], rel=1e-3)
            assert found["accuracy"]["value"] == pytest.approx(wanted["accuracy"]["value"], abs=0.05)


@pytest.fixture
def ppo(open_runs, tmp_path):
    """PPO of FEW, one run after another."""
    runs = open_runs(tmp_path / "one", FEW)
    for run in runs:
        ppo_stage.run_stage(run, "ppo")
    return runs


def test_ppo_at_once_is_ppo_one_by_one_and_who_diverges_harms_no_other(ppo, open_runs, tmp_path, monkeypatch):
    """Then stopped, and killed: the same bits as never interrupted."""
    programs._ppo_programs.cache_clear()
    settings = FEW + [DIVERGING]
    together = open_runs(tmp_path / "all", settings)
    compiled = collections.Counter()
    is_compiled = "/jax/core/compile/backend_compile_duration"

    def count(event, seconds, fun_name="", **_):
        return compiled.update([fun_name] * (event == is_compiled))

    jax.monitoring.register_event_duration_secs_listener(count)
    failures = trials.fit_stage(together, "ppo", tmp_path / "trials")
    jax.monitoring.unregister_event_duration_listener(count)
    assert failures.keys() == {3} and isinstance(failures[3], loop.NonFinite)
    assert "ppo step 1: " in str(failures[3]) and "not finite; rows of its batch: " in str(failures[3])
    assert not (together[3].folder("ppo") / "params").exists() and timeless(together[3].folder("ppo")) == []
    for run, other in zip(together, ppo):
        close(run.path, other.path, "ppo")
        assert timeless(run.folder("ppo"))[0]["objective/kl"] == 0.0
        assert all(row["ppo/policy/first_approxkl"] == 0.0 for row in timeless(run.folder("ppo")))
    assert programs._ppo_programs.cache_info().currsize == 1  # also for the arms without ptx
    assert all(compiled[f"jit({name})"] <= 1 for name in ("score", "update", "take", "summarize")), compiled

    iterate = ppo_programs.iterate
    calls = []

    def disturbed(*arguments, **keywords):
        calls.append(len(calls))
        if len(calls) == 2:
            again[0].interrupt.requested = True
        if len(calls) == 4:  # the first after iteration 2
            raise KeyboardInterrupt  # as a kill: nothing is saved
        return iterate(*arguments, **keywords)

    again = open_runs(tmp_path / "again", settings)
    monkeypatch.setattr(ppo_programs, "iterate", disturbed)
    with pytest.raises(progress.Stopped, match="ppo x 4 step 2; run the same command to go on"):
        trials.fit_stage(again, "ppo", tmp_path / "again_trials")
    again[0].interrupt.requested = False
    (saved,) = (tmp_path / "again_trials").iterdir()
    assert read_json(saved / "trials.json")["failed"] == [again[3].path.name]
    rest = again[:3]  # the failed arm is not tried again
    with pytest.raises(KeyboardInterrupt):
        trials.fit_stage(rest, "ppo", tmp_path / "again_trials")
    assert trials.fit_stage(rest[:2], "ppo", tmp_path / "again_trials") == {}  # and the third another time
    trials.forget(tmp_path / "again_trials", "ppo", lambda name: name != rest[2].path.name)
    assert list((tmp_path / "again_trials").iterdir()) == [saved]
    assert trials.fit_stage(rest[2:], "ppo", tmp_path / "again_trials") == {}
    trials.forget(tmp_path / "again_trials", "ppo", lambda name: True)
    assert not list((tmp_path / "again_trials").iterdir())
    for run, other in zip(rest, together):
        assert timeless(run.folder("ppo")) == timeless(other.folder("ppo"))
        for name, value in params_of(other.folder("ppo")).items():
            np.testing.assert_array_equal(params_of(run.folder("ppo"))[name], value, name)


@pytest.mark.slow
def test_functions_reward_trials_at_once_as_one_by_one_and_one_that_fails_loses_nothing(
    open_runs, tmp_path, monkeypatch
):
    told, calls = types.ModuleType("told"), collections.Counter()

    def near(texts, prompts, rows, size):
        calls[size] += 1
        if broken and calls[size] == 2 and size == 5:
            raise ValueError("out of order")
        return [-abs(len(text) - size) / 10 for text in texts]

    told.near, broken = near, False
    monkeypatch.setitem(sys.modules, "told", told)
    settings = [{"ppo.reward": f"reward_model, told:near(size={size})", "seed": size} for size in (2, 5)]
    changes = {"ppo.iterations": 2, "ppo.ptx_coef": 0.0, "ppo.reward_weights": (1.0, 0.5)}
    changes["ppo.reward_standardize"] = True
    together = compare(open_runs, tmp_path, "ppo", settings, **changes)
    assert calls == {2: 4, 5: 4}  # an iteration, a call: one by one, and at once
    scores = [timeless(run.folder("ppo"))[0]["objective/scores/near"] for run in together]
    assert scores[0] != scores[1]

    again, broken = open_runs(tmp_path / "again", settings, **changes), True
    for run in again:
        (run.folder("ppo") / "done.json").unlink(missing_ok=True)
    calls.clear()
    failures = trials.fit_stage(again, "ppo", tmp_path / "trials")
    assert failures.keys() == {0, 1}
    for error in failures.values():
        assert str(error).startswith(f"{again[1].path.name}: ppo.reward: told:near raised ValueError: out of order")
    broken = False
    calls.clear()
    assert trials.fit_stage(again, "ppo", tmp_path / "trials") == {} and calls == {2: 1, 5: 1}
    for run, other in zip(again, together):
        assert timeless(run.folder("ppo")) == timeless(other.folder("ppo"))
        for name, value in params_of(other.folder("ppo")).items():
            np.testing.assert_array_equal(params_of(run.folder("ppo"))[name], value, name)


@pytest.mark.slow
def test_on_eight_devices_each_has_its_own_trials(open_runs, tmp_path, monkeypatch):
    """6 trials in groups of 4 on 8 devices: places that nobody asked for fill up the rest."""
    eight = sharding.make_mesh.func
    monkeypatch.setattr(sharding, "make_mesh", eight)
    sizes = {"ppo.batch_size": 8, "ppo.minibatch_size": 8, "ppo.ptx_ratio": 1}
    with jax.set_mesh(eight()):
        assert eight().size == 8
        together = open_runs(tmp_path / "all", SETTINGS["ppo"], **sizes)
        assert trials.fit_stage(together, "ppo", tmp_path / "trials", at_once=4) == {}
        found = evaluation.answers(together, "sft", at_once=4)
    monkeypatch.undo()
    for place, run in enumerate(alone_runs := open_runs(tmp_path / "answers", SETTINGS["ppo"], **sizes)):
        same_answers(found[place][0], alone(run, "sft"))
    for run in (alone_runs := open_runs(tmp_path / "small", SETTINGS["ppo"], **sizes)):
        ppo_stage.run_stage(run, "ppo")
    for run, other in zip(together, alone_runs):
        close(run.path, other.path, "ppo")
