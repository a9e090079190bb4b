"""The table of fields: every value that a field cannot have is a sentence, before anything is computed."""

import dataclasses
import functools
import importlib
import json
import math
import pathlib
import re
import subprocess
import sys
import types

import pytest
import toy
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from rlhf_jax import advantages, command_line, config, job, model, optim, optimum, sharding
from rlhf_jax.bench import fields as bench_fields
from rlhf_jax.data import tokenizer
from rlhf_jax.fields import checks, defaults, page, ranges
from rlhf_jax.fields.field import Field
from rlhf_jax.fields.registry import KINDS
from rlhf_jax.model import attention
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep import arms, grid
from rlhf_jax.world import labelers

PROJECT = pathlib.Path(__file__).resolve().parent.parent
FIELDS, PLAIN = config.table().fields(), config.default_config().to_dict()


def OF(*kinds):
    return [name for name, field in FIELDS.items() if isinstance(field.allowed, kinds)]


NUMBERS, CHOICES, TUPLES, FLAGS = OF(ranges.Number), OF(ranges.OneOf), OF(ranges.Several), OF(ranges.Flag)
TEXTS = OF(ranges.Text)


def refusal(name: str, value) -> str | None:
    """What is said of the default config with another value, whatever its type; None if it is accepted."""
    *parents, last = name.split(".")
    section = functools.reduce(lambda section, parent: section.setdefault(parent, {}), parents, PLAIN)
    before = dict(section)
    section[last] = value
    try:
        config.check(PLAIN)
    except InputError as error:
        return str(error)
    finally:
        section.clear()
        section.update(before)
    return None


def test_every_field_is_of_a_kind_that_these_tests_try():
    assert sorted(NUMBERS + CHOICES + TUPLES + FLAGS + TEXTS) == sorted(FIELDS) and len(FIELDS) > 250
    assert refusal("seed", 0) is None


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_cannot_be_is_refused_and_zero_has_a_documented_meaning(name):
    field = FIELDS[name]
    for value in (0, -1, math.nan, math.inf, -math.inf, "12", True, (1,), 2**70, 10**400, 1e300, 1e-300):
        said = refusal(name, value)
        if said is not None:
            assert re.search(rf"(^|; ){re.escape(name)}={re.escape(repr(value))} must be {re.escape(field.says)}", said)
        else:  # it means something, and the table says what
            assert value in (0, -1, 2**70) and not isinstance(value, bool)
            assert value != 0 or re.search(r"\b0\b", field.meaning) or name.endswith("seed")
            assert value != -1 or "negative" in field.meaning or "-1" in field.meaning
            assert value != 2**70 or field.allowed.type is float
    assert field.allowed.holds(field.default) or field.default is None
    assert (refusal(name, None) is None) == (field.open or ".model." in name)
    assert field.default is None or not field.open or "None means" in field.meaning or "None takes" in field.meaning


@pytest.mark.parametrize("name", [name for name in CHOICES if not name.endswith(".kind")])
def test_a_choice_that_there_is_not_is_refused(name):
    for value in (
        "Xx",
        FIELDS[name].allowed.names[-1] + "s",
        FIELDS[name].allowed.names[-1].upper(),
        1,
        True,
        ("cosine",),
    ):
        assert f"{name}={value!r} must be {FIELDS[name].says}" in refusal(name, value)
    for value in FIELDS[name].allowed.names:
        assert refusal(name, value) is None


@pytest.mark.parametrize("name", TUPLES)
def test_a_tuple_is_no_text_and_has_no_part_that_cannot_be(name):
    wrong = [name, (1, 2), ("",), None]
    if name == "stages":
        wrong += [(), ("sft", "sft"), ("sft", "pp"), "sft", ("data",)]
    if name.endswith("models"):
        wrong += [(), ("sft@hot",), ("sft@-1",), ("sft@nan",), ("sft@",), ("@1.0",), "sft@1.0"]
    partial = ".model." in name  # there, None means the value of config.model
    for value in wrong[: 3 if partial or FIELDS.get(name).default is None else None]:
        assert name in refusal(name, value)


def test_the_stages_that_there_are_are_named():
    assert refusal("ppo.kind", "ppo2") == "ppo.kind='ppo2' must be one of " + ", ".join(KINDS)
    assert "'pp', but config.pp.kind is none of pretrain, sft, " in refusal("stages", ("sft", "pp"))
    assert refusal("stages", ("sft", "reward_mode")).endswith("; did you mean reward_model?")


@pytest.mark.parametrize("name", FLAGS + TEXTS)
def test_flags_and_texts_are_of_their_type(name):
    for value in (3, ("x",)) + ((None,) if FIELDS[name].default is not None and ".model." not in name else ()):
        assert f"{name}={value!r} must be {FIELDS[name].says}" in refusal(name, value)


WRONG_TEXTS = {
    "data.files.document_end": ("(", "[a-", "x*", "(a|)"),
    "data.files.rated_pairs": ("9<2", "2-9", "2<", "nan<3", "2<" + 400 * "9"),
    "data.files.held_out_labelers": ("-40%", "0%", "100%", "nan%", "x%", ",", "%"),
    "data.files.documents": ("a*0", "a@0", "a*-1", "a*nan", "a:b=", ":train", "a@x"),
    "data.files.prompts": ("a*0.5", "a@0"),
    "data.chat_date": ("", "today", "2024-13-01"),
    "reward_model.subset": (
        "half",
        "150%",
        ":150%",
        ":-3",
        "50%:20%",
        "9:3",
        "5",
        ":x",
        ":nan%",
        ":0",
        ":0%",
        "0:0%",
        "100%:",
    ),
    "sharding.batch": ("date", "data,data", "data,", "data, fsdp"),
    "ppo.reward": ("",),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_texts_that_have_a_form(name):
    for value in WRONG_TEXTS[name]:
        assert f"{name}={value!r} must be" in (refusal(name, value) or value), value


@pytest.mark.parametrize(
    "name, values",
    [
        ("data.files.document_end", (r"(?<!\n)\n(?!\n)", r"<\|end\|>", "")),
        ("data.files.rated_pairs", ("2<9", "-1.5<0")),
        ("data.files.held_out_labelers", ("20%", "12.5%", "ann,bob")),
        ("data.files.documents", ("a.txt", "a.txt@10*0.5,b:train+test:x=text", "a*1,,")),
        ("reward_model.subset", (":1000", ":50%", "50%:", "100:200", "10:50%", "0:1", "0%:.5%", ":", "")),
        ("collect.models", (("sft",), ("sft@0", "sft@0.7", "sft@0.7"), ["sft@1"])),
        ("best_of_n.judges", ((), ("one", "two"), [])),
        ("model.rope_scaling", ((), (8.0, 1.0, 4.0, 8192), None)),
        ("reward_model.model", ({"embed_dim": 8, "rope_theta": None}, {})),
    ],
)
def test_what_a_field_can_be(name, values):
    for value in values:
        assert refusal(name, value) is None, value


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"data.files.valid_share": 0.5, "data.files.test_share": 0.5},
            r"valid_share=0.5 and test_share=0.5 must be below 1 together",
        ),
        (
            {"pretrain.warmup_steps": 11, "pretrain.steps": 10},
            "pretrain.warmup_steps=11 must be at most pretrain.steps=10",
        ),
        ({"ppo.iterations": 3}, "ppo.warmup_iterations=10 must be at most ppo.iterations=3"),
        (
            {"ppo_ptx.ptx_ratio": 1, "ppo_ptx.minibatch_size": 2, "ppo_ptx.ppo_epochs": 4},
            "ptx_ratio x ppo_ptx.minibatch_size = 2 pretraining sequences do not divide over ppo_ptx.ppo_epochs=4",
        ),
        (
            {"ppo.kl_target": 6.0, "ppo.kl_horizon": 102.0},
            "ppo.kl_horizon=102.0 must be above a fifth of ppo.batch_size=512",
        ),
        (
            {"ppo.kl_target": 6.0, "ppo.kl_coef": 0.0},
            "ppo.kl_target=6.0 multiplies ppo.kl_coef, and ppo.kl_coef=0 stays 0",
        ),
        (
            {"pretrain.model": ConfigDict({"num_layers": 0})},
            "pretrain.model.num_layers=0 must be a whole number from 1",
        ),
        ({"pretrain.model": ConfigDict({"layers": 2})}, "pretrain.model.layers is no field"),
        ({"seed": -1, "ppo.kl_coef": -0.5}, "seed=-1 must be .*; ppo.kl_coef=-0.5 must be a number from 0$"),
    ],
)
def test_what_does_not_go_together(changes, sentence):
    changed = config.default_config()
    changed.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=sentence):
        config.check(changed)


@pytest.mark.parametrize("horizon", [102.4, 102.5])
def test_a_coefficient_that_is_steered_stays_a_price(horizon):
    """As far from its target as can be, where the horizon is accepted; what is refused would have reached 0."""
    changed = config.default_config()
    changed.ppo.update(kl_target=6.0, kl_horizon=horizon)
    steered = float(advantages.update_kl_coef(0.02, 0.0, changed.ppo.batch_size, 6.0, horizon))
    if steered <= 1e-9:
        with pytest.raises(InputError, match="would become 0 or negative"):
            config.check(changed)
    else:
        config.check(changed)
    changed.ppo.update(kl_target=None)
    config.check(changed)


def test_fields_that_an_experiment_invents_are_refused_and_its_sections_are_its_own():
    made = config.default_config()
    made.mine = ConfigDict({"anything": -1})
    made.first_ppo = config.ppo_config()
    config.check(made)
    made.first_ppo.kl_koef = 0.1
    with pytest.raises(InputError, match=r"^first_ppo.kl_koef is no field; did you mean first_ppo.kl_coef\?$"):
        config.check(made)
    made.first_ppo = config.ppo_config()
    made.first_ppo.cliprange = -0.1
    del made.first_ppo.lam
    made.promt_length = 3
    with pytest.raises(InputError, match="did you mean prompt_length"):
        config.check(made)
    del made.promt_length
    with pytest.raises(
        InputError, match="^first_ppo.cliprange=-0.1 must be a number above 0; first_ppo.lam is missing$"
    ):
        config.check(made)
    with pytest.raises(InputError, match="no config of a run"):
        config.check(ConfigDict({"works": ()}))


def experiments() -> list[str]:
    """Every experiment that gives a run's config, with its arguments."""
    arguments = {
        "instructgpt": ("1.3b", "6b", "175b"),
        "real_text": ("pretrain", "hh"),
        "real_small": ("ranked4",),
        "real_lm": ("truthfulqa,250,random", "hh,500", "rlhf", "rlhf_alone", "judge"),
        "korean": ("regression",),
    }
    found = []
    for path in sorted([*(PROJECT / "experiments").glob("*.py"), *(PROJECT / "experiments" / "figures").glob("*.py")]):
        if path.stem not in ("bandit", "bench"):
            found += [f"{path}:{argument}" for argument in arguments.get(path.stem, ())] or [str(path)]
    return found


@pytest.mark.parametrize("path", experiments(), ids=lambda path: pathlib.Path(path).name)
def test_the_experiments_and_all_their_arms_are_accepted(path):
    loaded = command_line.load(path)
    config.check(loaded)
    if hasattr(command_line.module_of(path.partition(":")[0]), "sweep"):
        assert arms.load(path, loaded).arms


def test_the_values_of_every_arm_are_checked_before_the_first(tmp_path):
    file = tmp_path / "sweep.py"
    for field, values, said in (
        (
            "ppo.cliprange",
            [0.1, 0.2, -0.1],
            r"arm 2 \(cliprange=-0.1,seed=0\): ppo.cliprange=-0.1 must be a number above 0$",
        ),
        ("ppo.init", ["sft", "ppo_ptx"], r"arm 1 \(init=ppo_ptx,seed=0\): ppo.init names 'ppo_ptx', which is no "),
    ):
        file.write_text(
            "from toy import get_config\n"
            f"def sweep(h): return h.product([h.sweep({field!r}, {values!r}), h.sweep('seed', [0])])\n"
        )
        with pytest.raises(InputError, match=f"sweep.py: {said}"):
            arms.load(str(file), command_line.load(str(file)))
    with pytest.raises(InputError, match="no field ppo.clip"):
        arms.expand(toy.get_config(), grid.sweep("ppo.clip", [1.0]) and [{"ppo.clip": 1.0, "seed": 0}])


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda saved: [], "is damaged: it does not hold the config of a run"),
        (lambda saved: {}, "is damaged: it does not hold the config of a run"),
        (lambda saved: saved | {"stages": "sft"}, "stages='sft' must be names"),
        (lambda saved: saved | {"ppo": 3}, "ppo=3 must be a section with the fields kind, init, "),
        (
            lambda saved: saved | {"ppo": saved["ppo"] | {"cliprange": None}},
            "ppo.cliprange=None must be a number above 0",
        ),
        (lambda saved: saved | {"sft": []}, "must be a section"),
    ],
)
def test_a_damaged_config_of_a_finished_run_is_a_sentence(change, sentence):
    saved = json.loads(json.dumps(config.default_config().to_dict()))
    with pytest.raises(
        InputError, match="^run/config.json is damaged: .*" * (sentence[:2] != "is") + re.escape(sentence)
    ):
        defaults.restored(change(saved), "run/config.json")


def test_a_config_of_another_version_is_restored():
    saved = json.loads(json.dumps(config.default_config().to_dict()))
    del saved["ppo"]["lam"], saved["dpo"], saved["mesh"]
    saved["ppo"]["of_yore"], saved["of_yore"] = -1, 5
    found = defaults.restored(saved, "config.json")
    assert (found.ppo.lam, found.ppo.of_yore, found.mesh.fsdp) == (0.95, -1, -1)


def test_choices_are_those_that_are_implemented():
    choices = {name: set(FIELDS[name].allowed.names) for name in CHOICES}
    assert choices["ppo.advantage"] == set(advantages.ESTIMATORS) and choices["ppo.kl_estimator"] == set(
        advantages.KL_ESTIMATORS
    )
    assert choices["model.attention"] == {"auto", *attention.IMPLEMENTATIONS}
    assert choices["ppo.schedule"] == choices["sft.schedule"] == set(optim.SCHEDULES)
    assert choices["ppo.optimizer.eps_placement"] == set(optim.EPS_PLACEMENTS)
    assert choices["collect.held_out_group"] == {"", *labelers.GROUPS}
    assert choices["model.sequence_axis"] == {"", *sharding.MESH_AXES}
    assert {field.name for field in dataclasses.fields(model.TransformerConfig)} >= set(
        config.table().parts["model"].parts
    ) - {"shape"}
    assert config.table().parts["tokenizer"].parts["vocab_size"].allowed.low == tokenizer._MIN_VOCAB_SIZE
    assert set(config.table().parts["sharding"].parts) == set(sharding.DEFAULT_RULES)


def test_the_page_and_the_help_have_every_field():
    written = (PROJECT / "docs" / "config.md").read_text()
    assert written == page.markdown(config.table()), "print it anew: python -m rlhf_jax.config > docs/config.md"
    said = page.text(config.table())
    assert (
        "--config.ppo.kl_coef=0.02\n      beta" in said
        and "Allowed: a number from 0." in said
        and "ppo_ptx.*: the fields of ppo, but\n  --config.ppo_ptx.ptx_coef=27.8" in said
    )
    for _name, field in FIELDS.items():
        assert isinstance(field, Field) and re.fullmatch(r"([A-Z]|beta|gamma|lambda).*\.", field.meaning), field.meaning
    assert page.text(config.table(), "kl_target").count("--config.") == 1


COMMANDS = {
    "--config.ppo.kl_koef=0.1": "the config has no field ppo.kl_koef; did you mean ppo.kl_coef?",
    "--config.nowhere.x=1": "the config has no field nowhere.x",
    "--config.seed=abc": "--config.seed=abc: it must be a whole number from 0 to 4294967295",
    "--config.ppo.cliprange=nan": "ppo.cliprange=nan must be a number above 0",
    "--config.platform=abacus": "platform='abacus' must be '', 'cpu', 'gpu' or 'tpu'",
    "--config.stages=sft,sft": "stages=('sft', 'sft') must be names",
    '--config.stages=("sft",': '--config.stages=("sft",: it must be names of sections',
    "--config.seed=None": "seed=None must be a whole number",
    "--config.data.template=None": "data.template=None must be",
    "--config.ppo=3": "--config.ppo=3: ppo is a section; set its fields, as --config.ppo.FIELD=VALUE",
    "--workdirs=x": "there is no flag --workdirs; did you mean --workdir?",
    "--workdir=": "flag --workdir=: it is empty: name a folder",
    "--data=": "flag --data=: it is empty",
    "--num_processes=two": "flag --num_processes=two: ",
    "--config.reward_model.model.embed_dim=3": "holds only what differs from config.model; set it in the experiment file",
    "more": "unknown argument 'more'",
    "--config=nowhere.py": "--config=nowhere.py: there is no file nowhere.py in ",
    "--config={}/raises.py": "{}/raises.py, line 2: TypeError: ",
    "--config={}/strange.py": "{}/strange.py, line 1: NameError: name 'x' is not defined",
    "--config={}/syntax.py": "{}/syntax.py, line 1: ",
    "--config={}/none.py": "{}/none.py: get_config returns NoneType; it must return a ConfigDict",
    "--config={}/opens.py": "{}/opens.py, line 1: FileNotFoundError: ",
    "--config=experiments/quickstart.py:a": "experiments/quickstart.py takes no argument; leave out :a",
    "--config=experiments/instructgpt.py:2b": "experiments/instructgpt.py:2b is unknown; the sizes are 1.3b, 6b, 175b",
    "--config=experiments/real_lm.py:truthfulqa": "experiments/real_lm.py:truthfulqa is unknown; it can be truthfulqa,PAIRS",
    "--config=experiments/bench.py": "this is no config of a run",
    "--config=README.md": "README.md is not a Python file",
}
FILES = {
    "raises": "from rlhf_jax.config import *\ndef get_config(): c = default_config(); c.sft.epochs = 'x'; return c",
    "strange": "x",
    "syntax": "def get_config(:",
    "none": "def get_config(): pass",
    "opens": "def get_config(): open('nowhere')",
}
IN_ONE_PROCESS = """
import os, sys
for line in sys.stdin.read().splitlines():
    if not os.fork():
        sys.argv = ["main", "--config=tests/support/toy.py", "--workdir=" + sys.argv[1], *line.split()]
        try:
            job.main("rlhf_jax", main.work)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr, flush=True)
"""


def test_what_is_wrong_on_the_command_line_is_a_sentence_and_status_2(tmp_path):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    lines = [line.format(tmp_path) for line, said in COMMANDS.items() if said]
    code = "from rlhf_jax import job, main" + IN_ONE_PROCESS
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        input="\n".join(lines),
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    found = done.stderr.splitlines()
    assert len(found) == 2 * len(lines) and done.stdout == "", done.stderr
    for line, said, status in zip([line for line in COMMANDS.items() if line[1]], found[::2], found[1::2]):
        assert said.startswith("rlhf_jax: ") and line[1].format(tmp_path) in said and status == "2", (
            line,
            said,
            status,
        )
    assert not (tmp_path / "run").exists()


def read(*arguments: str, experiment: str = toy.__file__) -> ConfigDict:
    """A config with fields from the command line, as every command reads them."""
    values = flags.FlagValues()
    argv = ["main", f"--config={experiment}", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values["config"].value


def at(found: ConfigDict, name: str):
    return functools.reduce(lambda section, part: section[part], name.split("."), found)


@pytest.mark.parametrize(
    "written, value",
    [
        ("sft,reward_model", ("sft", "reward_model")),
        ("sft, reward_model ", ("sft", "reward_model")),
        ("sft", ("sft",)),
        ('("sft", "reward_model")', ("sft", "reward_model")),
        ('("sft, too",)', ("sft, too",)),
        ('["sft"]', ("sft",)),
        ("sft@0.7,a/b-c", ("sft@0.7", "a/b-c")),
        ("", ()),
        ("()", ()),
        ("1,2.5", (1, 2.5)),
        ("3", (3,)),
    ],
)
def test_a_list_on_the_command_line_is_separated_by_commas_or_a_tuple(written, value):
    assert read(f"--config.stages={written}").stages == value


def test_every_field_that_may_be_none_is_none_on_the_command_line():
    names = [name for name, field in FIELDS.items() if field.open and not re.match(r"\w+\.model\.", name)]
    assert {"model.scan_layers", "model.rope_scaling", "ppo.kl_in", "sft.learning_rate", "prompt_length"} <= set(names)
    found = read(*(f"--config.{name}=None" for name in names))
    for name in names:
        assert at(found, name) is None, name
    config.check(found)


def test_what_a_recipe_leaves_open_is_set_on_the_command_line():
    wanted = {"prompt_length": 64, "ppo.learning_rate": 3e-05, "sft.learning_rate": 1e-06, "completion_length": 8}
    path = str(PROJECT / "experiments" / "chat.py")
    assert {at(command_line.load(path), name) for name in wanted} == {None}
    found = read(*(f"--config.{name}={value}" for name, value in wanted.items()), experiment=path)
    assert {name: at(found, name) for name in wanted} == wanted
    config.check(found)


def test_help_is_printed_from_the_table():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_jax.main", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert (
        done.stdout.startswith("Runs the stages of a config in order:") and "--[no]" not in done.stdout.split("\n")[0]
    )
    assert "--workdir: Where the run or sweep lives" in done.stdout and page.text(config.table()) in done.stdout


def test_a_platform_that_is_not_there_is_a_sentence(monkeypatch):
    def start(*_):
        raise RuntimeError("Unable to initialize backend 'gpu': no device (set JAX_PLATFORMS='' to choose)\nmore")

    monkeypatch.setattr("rlhf_jax.runtime.hosts.start", start)
    monkeypatch.setenv("JAX_PLATFORMS", "gpu")
    for name in ("DISTRIBUTED", "COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "HEARTBEAT"):
        monkeypatch.setattr(job, f"_{name}", types.SimpleNamespace(value=None))
    with pytest.raises(
        InputError,
        match=r"^platform='gpu' is not available on this machine: Unable to initialize backend 'gpu': .* to choose\)$",
    ):
        job.Job(toy.get_config(), "", {}, "x", []).join()


def test_what_is_no_run_has_a_table_of_its_own():
    bench, game = (command_line.load(str(PROJECT / "experiments" / f"{name}.py")) for name in ("bench", "bandit"))
    for made, fields in ((bench, bench_fields.FIELDS), (game, optimum.FIELDS)):
        checks.check_values("", made, fields)
        assert set(made.keys()) == set(fields.parts)
    bench.works, bench.repeats, bench.model.num_heads = ("sample", "sample"), 0, -1
    with pytest.raises(
        InputError,
        match=r"^model.num_heads=-1 must .*; works=\('sample', 'sample'\) must .*; repeats=0 must be a whole",
    ):
        checks.check_values("", bench, bench_fields.FIELDS)
    game.kl_coefs, game.seeds, game.num_prompts, game.ppo.cliprange, game.rewards = (0.0,), (), 7, 0.0, "odd"
    with pytest.raises(
        InputError,
        match="^rewards='odd' must be 'normal', .*; num_prompts=7 must .* from 1 to 6; seeds=.*; kl_coefs=.*; ppo.cliprange",
    ):
        checks.check_values("", game, optimum.FIELDS)


@pytest.mark.parametrize(
    "command, flags, said",
    [
        ("world.__main__", ["--out="], "--out: it is empty: name a folder"),
        (
            "world.__main__",
            ["--out=x", "--seed=-1"],
            "--seed: '-1' is given, and it must be a whole number from 0 to 4294967295",
        ),
        ("data.prepare", ["--dataset=dolly", "--source=", "--out=x"], "--source: it is empty"),
        (
            "generate.__main__",
            ["--model=x", "--prompt=y", "--top_p=0"],
            "--top_p: '0' is given, and it must be a number above 0 and at most 1",
        ),
        (
            "generate.__main__",
            ["--model=x", "--prompt=y", "--samples=0"],
            "--samples: '0' is given, and it must be a whole number from 1",
        ),
        ("chat", ["--workdir=x", "--temperature=nan"], "--temperature: 'nan' is given, and it must be a number from 0"),
        (
            "chat",
            ["--workdir=x", "--temperature=cold"],
            "--temperature: 'cold' is given, and it must be a number from 0",
        ),
    ],
)
def test_options_of_other_commands_have_ranges_too(command, flags, said, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"rlhf_jax.{command}").main(flags)
    assert end.value.code == 2 and said in capsys.readouterr().err
