"""Sweeps: their arms, what arms share, and what becomes of one that fails."""

import json
import multiprocessing
import os
import pathlib
import shutil

import jax
import pytest
from compare import assert_same_stage, saved_arrays
from toy import get_config as toy_config

from rlhf_jax import pipeline, shapes
from rlhf_jax.config import default_config
from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.sweep import arms, grid, listing, sequential, vectorized
from rlhf_jax.sweep.store import Store, identities

pytestmark = pytest.mark.usefixtures("one_device")


# ---------------------------------------------------------------------------- grids and arms


def test_a_grid_is_built_from_products_zips_and_chains():
    seeds, rates = grid.sweep("seed", range(2)), grid.sweep("ppo.learning_rate", [1e-3, 1e-4])
    assert grid.product([rates, seeds]) == [
        {"ppo.learning_rate": rate, "seed": seed} for rate in (1e-3, 1e-4) for seed in (0, 1)
    ]
    assert grid.zipit([seeds, rates]) == [
        {"seed": 0, "ppo.learning_rate": 1e-3},
        {"seed": 1, "ppo.learning_rate": 1e-4},
    ]
    assert grid.chain([seeds, grid.sweep("seed", [7])]) == [{"seed": 0}, {"seed": 1}, {"seed": 7}]


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: grid.sweep("seed", []), "seed has no value"),
        (lambda: grid.product([grid.sweep("seed", [0]), grid.sweep("seed", [1])]), "seed is set twice in one arm"),
        (lambda: grid.zipit([grid.sweep("seed", [0, 1]), grid.sweep("ppo.lam", [1.0])]), "these have 2, 1 arms"),
        (lambda: arms.expand(toy_config(), []), "the sweep has no arms"),
        (lambda: arms.expand(toy_config(), [{"ppo.lam": 1.0}]), "arm 0 has no seed"),
        (
            lambda: arms.expand(toy_config(), [{"seed": 0, "ppo.lamb": 1.0}]),
            r"no field ppo.lamb; did you mean ppo.lam\?",
        ),
        (lambda: arms.expand(toy_config(), [{"seed": 0, "seed.x": 1.0}]), "no field seed.x"),
        (
            lambda: arms.expand(toy_config(), [{"seed": 0, "ppo.lam": "high"}]),
            "ppo.lam='high' must have the type of the field",
        ),
        (lambda: arms.expand(toy_config(), [{"seed": 0}, {"seed": 0}]), "arms 0 and 1 are the same, seed=0"),
        (lambda: arms.choose([None] * 3, "5:9"), "the sweep has the arms 0 to 2"),
        (lambda: arms.choose([None] * 3, "one"), "--arms=one: give numbers and ranges"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_arms_override_the_config_and_are_named_after_what_tells_them_apart():
    settings = [{"ppo.kl_coef": 0.1, "ppo_ptx.kl_coef": 0.2, "seed": 3, "reward_model.model.num_layers": 2}]
    base = toy_config()
    (arm,) = arms.expand(base, settings)
    assert arm.name == "ppo.kl_coef=0.1,ppo_ptx.kl_coef=0.2,num_layers=2,seed=3"
    assert (arm.config.ppo.kl_coef, arm.config.seed, arm.config.reward_model.model.num_layers) == (0.1, 3, 2)
    assert base.seed == 0 and base.ppo.kl_coef == 0.02 and not base.reward_model.model  # the base is as it was
    long = arms.expand(base, [{"seed": n, "data.files.documents": "x" * 300 + str(k)} for n in (0, 1) for k in (0, 1)])
    assert len({arm.name for arm in long}) == 4 and max(len(arm.name) for arm in long) <= 130


@pytest.mark.parametrize(
    "chosen, numbers", [("", range(9)), ("3:7", range(3, 7)), ("0,4,7:", [0, 4, 7, 8]), (":2", [0, 1]), ("8", [8])]
)
def test_arms_are_chosen_by_number(chosen, numbers):
    assert arms.choose(list(range(9)), chosen) == list(numbers)


# ---------------------------------------------------------------------------- identities


def changed(**overrides) -> set[str]:
    """The stages whose identity an override changes."""
    (arm,) = arms.expand(
        toy_config(), [{"seed": 0} | {name.replace("__", "."): value for name, value in overrides.items()}]
    )
    before, after = identities(toy_config()), identities(arm.config)
    return {stage for stage in before if before[stage] != after[stage]}


def test_a_stage_s_identity_is_what_it_reads_and_what_its_inputs_read():
    everything = set(toy_config().stages)
    assert len(set(identities(toy_config()).values())) == len(everything)
    assert changed(seed=1) == changed(prompt_length=60) == changed(model__num_layers=2) == everything
    assert changed(ppo_ptx__ptx_coef=0.5) == {"ppo_ptx"}
    assert changed(reward_model__learning_rate=1.0) == {"reward_model", "ppo", "ppo_ptx"}
    assert changed(collect__borrowed=0) == {"collect", "reward_model", "ppo", "ppo_ptx"}
    assert changed(sft__epochs=1.0) == everything - {"pretrain"}
    assert changed(ppo__init="pretrain") == {"ppo"}
    assert changed(pretrain__seed=5) == everything
    fixed = toy_config()
    fixed.pretrain.seed = fixed.sft.seed = 7  # one pretrained and one SFT model under all seeds
    first, second = (identities(arm.config) for arm in arms.expand(fixed, grid.sweep("seed", range(2))))
    assert [stage for stage in first if first[stage] == second[stage]] == ["pretrain", "sft"]
    # The length rules and the evaluation belong to every stage: a stage is adopted with its data report and evaluation.
    for field in (
        {"too_long": "cut_left"},
        {"long_completions": "drop"},
        {"completion_length": 7},
        {"evaluate__temperature": 0.5},
        {"data__world__seed": 3},
    ):
        assert changed(**field) == everything, field
    assert changed(mesh__data=2) == changed(checkpoints_kept=1) == changed(trackers=("wandb",)) == set()


def test_a_field_that_came_later_changes_an_identity_only_by_another_value_than_that_of_before():
    everything = set(toy_config().stages)
    assert (
        changed(sft__kinds=3) == everything - {"pretrain"} and changed(data__world__test_kinds="unseen") == everything
    )
    assert changed(sft__kinds=0) == changed(data__world__test_kinds="known") == set()
    now, older = identities(toy_config()), toy_config()
    with older.unlocked():  # as a version of before had it
        del older.sft["kinds"], older.data.world["test_kinds"]
    assert identities(older) == now


def test_a_stage_of_its_own_model_is_the_same_for_policies_of_all_sizes():
    config = toy_config()
    config.base = config.pretrain.copy_and_resolve_references()
    config.base.model.embed_dim = 8
    config.stages = ("base", *config.stages)
    small, large = (
        identities(arm.config)
        for arm in arms.expand(config, grid.product([grid.sweep("model.embed_dim", [8, 32]), grid.sweep("seed", [0])]))
    )
    assert [stage for stage in small if small[stage] == large[stage]] == ["base"]
    config.base.model.embed_dim = 16
    assert identities(config)["base"] != small["base"]


def test_a_plan_says_what_the_stages_to_compute_would_take(tmp_path, capsys):
    """Two seeds of three coefficients share SFT by seed: 2 SFT stages and 6 of PPO."""
    config = toy_config()
    config.stages = ("sft", "ppo")
    settings = grid.product([grid.sweep("ppo.kl_coef", [0.0, 0.1, 0.2]), grid.sweep("seed", [0, 1])])
    plan = tmp_path / "plan.json"
    write_json(plan, {"stages": [{"stage": "sft", "chip_hours": 1.5}, {"stage": "ppo", "chip_hours": 200.0}]})
    listing.show_work(arms.expand(config, settings), tmp_path, tmp_path / "stages", listing.chip_hours(str(plan)))
    rows = {words[0]: words[-1] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert (rows["sft"], rows["ppo"], rows["all"]) == ("3.0", "1,200.0", "1,203.0")


@pytest.mark.parametrize("content, sentence", [(None, "cannot be read: No such file"), ("[]", "is not a plan")])
def test_a_file_that_is_no_plan_is_told_in_a_sentence(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=f"--plan: .*plan.json {sentence}"):
        listing.chip_hours(str(tmp_path / "plan.json"))


def test_before_a_run_has_filled_in_its_shape_a_stage_has_the_same_identity():
    config = default_config()
    config.model.shape = "gpt3_125m"
    assert identities(config) == identities(shapes.filled(config))
    said = config.copy_and_resolve_references()
    said.ppo.update(kl_in="reward", kl_estimator="k1", whiten_advantages="batch")  # what PPO's paper has, given or not
    assert identities(said) == identities(config)


# ---------------------------------------------------------------------------- sweeps that run


def small_config():
    config = toy_config("ppo")
    config.ppo.ptx_coef = 1.0
    config.pretrain.steps = 3
    return config


# The learning rate of arm 2 ends in NaN; that of the reward model changes who judges the shared SFT stage.
SETTINGS = [
    {"ppo.kl_coef": 0.02, "seed": 0},
    {"ppo.kl_coef": 0.3, "seed": 0},
    {"ppo.learning_rate": 1e38, "seed": 0},
    {"reward_model.learning_rate": 5e-3, "seed": 0},
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(its directory, its arms) of a sweep with an arm that diverges."""
    path = tmp_path_factory.mktemp("sweep")
    chosen = arms.expand(small_config(), SETTINGS)
    jax.clear_caches()  # what other tests of this process have compiled would not be counted
    sequential.run(chosen, path, Store(path / "stages"))
    return path, chosen


def account(path, arm) -> dict:
    return read_json(path / "arms" / arm.name / "arm.json")


def test_stages_are_shared_and_coefficients_compile_nothing(swept):
    path, chosen = swept

    def shared(arm, stage):
        return "shared_from" in read_json(path / "arms" / arm.name / stage / "done.json")

    assert [shared(chosen[1], stage) for stage in small_config().stages] == [True] * 4 + [False]
    assert [shared(chosen[3], stage) for stage in small_config().stages] == [True] * 3 + [False] * 2
    assert account(path, chosen[0])["compilations"] > 10
    assert [account(path, arm)["compilations"] for arm in chosen[1:]] == [0, 0, 0]
    assert (path / "arms" / chosen[1].name / "sft" / "params").is_symlink()


def test_an_arm_that_diverges_is_a_row_with_its_reason(swept):
    path, chosen = swept
    assert [account(path, arm)["status"] for arm in chosen] == ["done", "done", "failed", "done"]
    (reason,) = listing.failures(chosen, path).values()
    assert reason.startswith("diverged: ppo step ") and "not finite" in reason
    assert not sequential.missing(path / "arms" / chosen[2].name)
    assert sequential.missing(path / "arms" / chosen[2].name, retry=True)


def test_an_arm_of_a_sweep_is_the_run_alone(swept, tmp_path):
    """Bitwise; also the evaluation of a shared stage, whoever judged it where it was computed."""
    path, chosen = swept
    arm = chosen[3]
    pipeline.run_stages(arm.config, str(tmp_path / "alone"))
    for stage in ("pretrain", "sft", "ppo"):
        ours = path / "arms" / arm.name / stage
        assert read_json(ours / "evaluation.json") == read_json(tmp_path / "alone" / stage / "evaluation.json")
        assert (ours / "samples.jsonl").read_text() == (tmp_path / "alone" / stage / "samples.jsonl").read_text()
    assert_same_stage(path / "arms" / arm.name, tmp_path / "alone", "ppo")
    first = read_json(path / "arms" / chosen[0].name / "sft" / "evaluation.json")["estimates"]
    assert first["score"] != read_json(path / "arms" / arm.name / "sft" / "evaluation.json")["estimates"]["score"]


def test_a_rerun_does_only_what_is_missing(swept, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(swept[0], path, symlinks=True)
    chosen = swept[1]
    kept = saved_arrays(path / "arms" / chosen[1].name / "ppo")
    shutil.rmtree(path / "arms" / chosen[1].name)
    before = {arm.name: account(path, arm) for arm in (chosen[0], *chosen[2:])}
    again = [*chosen, *arms.expand(small_config(), [{"ppo.kl_coef": 0.02, "ppo.lam": 0.95, "seed": 0}])]  # as arm 0
    sequential.run(again, path, Store(path / "stages"))
    assert {name: read_json(path / "arms" / name / "arm.json") for name in before} == before
    assert account(path, chosen[1])["status"] == "done"
    rerun = saved_arrays(path / "arms" / chosen[1].name / "ppo")
    assert all((rerun[name] == kept[name]).all() for name in kept)
    assert "shared_from" in read_json(path / "arms" / again[-1].name / "ppo" / "done.json")


def test_an_arm_that_is_killed_twice_is_given_up(swept, tmp_path, capsys):
    path = tmp_path / "copy"
    shutil.copytree(swept[0], path, symlinks=True)
    arm = swept[1][0]
    file = path / "arms" / arm.name / "arm.json"
    write_json(file, {"status": "running", "attempts": 1, "seconds": 5.0})  # once: it is resumed
    sequential.run([arm], path, Store(path / "stages"))
    assert account(path, arm)["status"] == "done" and account(path, arm)["attempts"] == 2
    write_json(file, {"status": "running", "attempts": 2, "seconds": 5.0})
    sequential.run([arm], path, Store(path / "stages"))
    assert account(path, arm)["status"] == "failed" and "killed 2 times" in account(path, arm)["reason"]
    write_json(file, {"status": "failed", "reason": "x", "attempts": 3})
    sequential.run([arm], path, Store(path / "stages"), retry=True)
    assert account(path, arm)["status"] == "done"


def test_an_arm_that_another_process_runs_is_left_to_it(tmp_path, capsys):
    """Even where it was killed before and started again, so that it looks as if it had been killed too often."""
    (arm,) = arms.expand(small_config(), SETTINGS[:1])
    folder = tmp_path / "arms" / arm.name
    folder.mkdir(parents=True)
    file, theirs = folder / "arm.json", {"status": "running", "attempts": 2, "seconds": 5.0}
    write_json(file, theirs)
    with open(folder / ".lock", "w") as lock:
        assert files.lock(lock)
        sequential.run([arm], tmp_path, Store(tmp_path / "stages"))
        sequential.run_arm(arm, folder, Store(tmp_path / "stages"))  # as when the other one began in this moment
        vectorized.run([arm], tmp_path, Store(tmp_path / "stages"))
    assert read_json(file) == theirs and capsys.readouterr().out.count("this arm is left to it") == 3


def test_arms_run_at_once_share_their_time_and_are_not_counted_as_killed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sequential, "_CLOCKS", {"seconds": lambda: now[0]})
    for _starts in range(3):  # each of them killed
        account = sequential.Account(tmp_path, None, together=4)
        account.__enter__()
        assert read_json(tmp_path / "arm.json")["attempts"] == 1
    with sequential.Account(tmp_path) as account:  # alone, it is tried
        assert not account.given_up
    with sequential.Account(tmp_path, None, together=4):
        now[0] += 12
    assert read_json(tmp_path / "arm.json")["seconds"] == 3.0


def test_a_run_s_directory_is_no_sweep_s(tmp_path):
    (tmp_path / "overrides.json").write_text("{}")
    with pytest.raises(InputError, match="is the work directory of a run; give the sweep a directory of its own"):
        arms.write(tmp_path, {})


def test_arms_of_another_experiment_are_not_left_out_of_the_report(tmp_path, capsys):
    config = json.loads(json.dumps(toy_config().to_dict()))

    def described(file, *names):
        return {"experiment": file, "config": config, "arms": [{"name": name} for name in names]}

    arms.write(tmp_path, described("a/fig33.py:small", "x", "y"))
    (tmp_path / "arms" / "x").mkdir(parents=True)
    arms.write(tmp_path, described("b/fig36.py", "x", "z"))  # y had not begun
    with pytest.raises(InputError, match=r"holds the sweep of b/fig36.py, whose arms fig35.py does not have \(x\)"):
        arms.write(tmp_path, described("fig35.py", "z"))
    assert read_json(tmp_path / "sweep.json")["experiment"] == "b/fig36.py" and not capsys.readouterr().out
    arms.write(tmp_path, described("c/fig36.py:other", "z"))
    assert "no longer in c/fig36.py:other, are left out of the report: x" in capsys.readouterr().out


def test_a_tokenizer_is_lent_whole_or_not_at_all(tmp_path, monkeypatch):
    store, config = Store(tmp_path / "stages"), toy_config()
    with store.tokenizer(config, tmp_path / "first"):
        for name in ("tokenizer.json", "template.txt", "chat_template.jinja", "special_tokens_map.json"):
            (tmp_path / "first" / name).write_text(name * 100)
    copy = shutil.copyfileobj

    def killed(source, target):
        if source.name.endswith("tokenizer.json"):
            target.write(b"tok")
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt), store.tokenizer(config, tmp_path / "second"):
        pass
    assert not (tmp_path / "second" / "tokenizer.json").exists()
    monkeypatch.undo()
    with store.tokenizer(config, tmp_path / "second"):
        assert (tmp_path / "second" / "tokenizer.json").read_text() == "tokenizer.json" * 100
    for name in ("template.txt", "chat_template.jinja", "special_tokens_map.json"):
        assert (tmp_path / "second" / name).read_text() == name * 100


def _run_arm(path: pathlib.Path, number: int) -> None:
    os.environ["XLA_FLAGS"] = ""  # one device
    sequential.run(arms.expand(small_config(), SETTINGS)[number : number + 1], path, Store(path / "stages"))


@pytest.mark.slow
def test_two_jobs_compute_what_their_arms_share_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    jobs = [spawn.Process(target=_run_arm, args=(tmp_path, number)) for number in (0, 1)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(600)
    found = {}
    for arm in arms.expand(small_config(), SETTINGS)[:2]:
        assert account(tmp_path, arm)["status"] == "done"
        for stage in small_config().stages:
            done = read_json(tmp_path / "arms" / arm.name / stage / "done.json")
            found.setdefault(stage, []).append("shared_from" in done)
    assert {stage: sorted(shared) for stage, shared in found.items()} == {
        stage: [False, stage != "ppo"] for stage in small_config().stages
    }
