"""What a run chooses by its memory, against all combinations; and that it keeps it, and changes no result by it."""

import contextlib
import dataclasses
import importlib
import itertools
import types

import jax
import numpy as np
import pytest
import tiny
from test_plan import DATA
from toy import get_config as toy_config

from rlhf_jax import chosen, fitted, forecast, metrics, train
from rlhf_jax import run as run_lib
from rlhf_jax.abstract import Program
from rlhf_jax.config import default_config
from rlhf_jax.fields import registry
from rlhf_jax.model import memory
from rlhf_jax.model.work import Work
from rlhf_jax.plan import planner
from rlhf_jax.runtime import machine
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.sweep import arms, grid

GIB = 2**30
CORPORA: dict = {}  # of the runs below, made once
PARTS, SLOTS = [1, 2, 4, 8], [64, 32, 16]
ACTIVATIONS = {(False, "none"): 7, (True, "none"): 8, (True, "dots"): 5, (True, "full"): 2}
EXECUTED = {"none": 3.0, "dots": 3.2, "full": 4.0}


class Toy:
    """A run with a train step and a sampler whose memory and time are known: 1 GiB of state, and activations."""

    def __init__(self, platform="cpu", layers=2, **fields):
        self.config = default_config()
        self.config.stages = ("ppo",)
        self.config.model.update({name: fields.pop(name) for name in ("remat", "scan_layers") if name in fields})
        self.config.slots = fields.pop("slots", None)
        self.config.ppo.update(fields)
        self.chosen = {}
        self.model = types.SimpleNamespace(scan_layers=False, remat="none", num_layers=layers)
        device = types.SimpleNamespace(platform=platform)
        self.mesh = types.SimpleNamespace(devices=np.array([device]), size=1, shape={"data": 1, "fsdp": 1, "tensor": 1})

    def adopting(self, values):
        other = Toy.__new__(Toy)
        other.__dict__.update(self.__dict__, chosen=dict(values), model=types.SimpleNamespace(**vars(self.model)))
        for field in ("scan_layers", "remat"):
            setattr(other.model, field, values.get(f"model.{field}", getattr(self.model, field)))
        return other

    def need(self, change):
        """The bytes of the train step."""
        activations = ACTIVATIONS[self.model.scan_layers, self.model.remat]
        return GIB * (1 + activations / (change.get("microbatches") or self.config.ppo.microbatches or 1))

    def programs(self):
        state = {"parameters": jax.ShapeDtypeStruct((GIB // 4,), np.float32)}
        step = Program(
            "ppo",
            "update",
            lambda: None,
            state,
            {},
            Work(0, 0, 1e12 * EXECUTED[self.model.remat]),
            1,
            temporaries=lambda change: {"activations": self.need(change) - GIB},
            options={"microbatches": PARTS},
        )
        sample = Program(
            "ppo",
            "sample",
            lambda: None,
            {},
            {},
            Work(),
            1,
            temporaries=lambda change: {"cache": GIB * change.get("slots", 64) / 16},
            options={"slots": SLOTS},
            decoding=object(),
        )
        return {"ppo": [step, sample]}


def seconds(loop, remat, parts, platform):
    """The cost that fitted.py states, computed anew: in FLOPs of a device."""
    executed = 1e12 * EXECUTED[remat] * (1.15 if loop and platform == "cpu" else 1)
    return executed + parts * 12 * GIB / 4 * (25 if platform == "cpu" else 250)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("limit", [9.5, 8.5, 6.5, 5.5, 4.6, 3.5, 2.6, 2.1, 1.9, 1.5])
def test_the_fastest_that_fits_is_chosen(limit, platform):
    run = Toy(platform)
    found = fitted.fit(run, Toy.programs, limit * GIB)
    models = [(False, "none"), (True, "none"), (True, "dots"), (True, "full")][0 if platform == "cpu" else 1 :]
    fitting = [
        (seconds(*model, parts, platform), *model, parts)
        for model, parts in itertools.product(models, PARTS)
        if 1 + ACTIVATIONS[model] / parts <= limit
    ]
    assert (found.get("model.scan_layers"), found["model.remat"], found["ppo.microbatches"]) == min(fitting)[1:]
    slots = [slots for slots in SLOTS if slots / 16 <= limit]
    assert found["slots"] == (None if limit >= 4 else slots[0] if slots else 16)


def test_over_links_one_part_that_computes_all_again_is_faster_than_two_that_send_the_weights():
    """A part sends 3 x 2 x 2^28 bytes, in the time of 1,500 FLOPs each; 4 devices compute 3e12 or 4e12 FLOPs."""
    run, chosen_of = Toy("gpu"), ("model.remat", "ppo.microbatches")
    assert [fitted.fit(run, Toy.programs, 5 * GIB)[name] for name in chosen_of] == ["none", 2]
    run.mesh = types.SimpleNamespace(**vars(run.mesh) | {"size": 4, "shape": {"data": 1, "fsdp": 4, "tensor": 1}})
    assert [fitted.fit(run, Toy.programs, 5 * GIB)[name] for name in chosen_of] == ["full", 1]


def test_the_slots_of_a_run_are_those_that_fit_in_each_of_its_stages():
    """A second stage takes twice the memory for a slot, and a third samples no more completions than all that fit."""

    def programs(run):
        step, sample = Toy.programs(run)["ppo"]
        wide = dataclasses.replace(sample, temporaries=lambda change: {"cache": GIB * change.get("slots", 64) / 8})
        few = dataclasses.replace(sample, options={"slots": [16]})
        return {"ppo": [step, sample], "wide": [wide], "few": [few]}

    assert [fitted.fit(Toy(), programs, limit * GIB)["slots"] for limit in (8, 4, 2)] == [None, 32, 16]


def test_what_the_config_says_is_not_chosen():
    assert fitted.fit(Toy(microbatches=1, slots=64), Toy.programs, 9 * GIB).keys() == {
        "model.scan_layers",
        "model.remat",
    }
    # Unrolled layers take 7 GiB in one part, and a loop that computes all again 2.
    found = fitted.fit(Toy(microbatches=1, slots=64), Toy.programs, 4.5 * GIB)
    assert found == {"model.scan_layers": True, "model.remat": "full"}
    found = fitted.fit(Toy(remat="none", scan_layers=False, slots=64), Toy.programs, 4.5 * GIB)
    assert found == {"ppo.microbatches": 2}
    assert fitted.fit(Toy(remat="none", scan_layers=True, microbatches=2), Toy.programs, 6 * GIB) == {"slots": None}


class Scoring(Toy):
    """A run whose scoring takes 1 GiB, and 3 more where it gathers all weights at once."""

    def programs(self):
        def temporaries(change):
            gathers = change.get("gather_once", self.config.ppo.gather_once)
            return {"activations": GIB, **({"gathered weights": 3 * GIB} if gathers else {})}

        options = {"microbatches": PARTS, "gather_once": [True, False]}
        score = Program("ppo", "score", lambda: None, {}, {}, Work(), 1, temporaries=temporaries, options=options)
        return {"ppo": [*Toy.programs(self)["ppo"], score]}


@pytest.mark.parametrize("limit, gathers", [(4.5, True), (4, True), (3.9, False), (1.5, False)])
def test_weights_are_gathered_once_where_the_copy_fits(limit, gathers):
    found = fitted.fit(Scoring("gpu"), Scoring.programs, limit * GIB)
    assert found["ppo.gather_once"] is gathers
    alone = fitted.fit(Toy("gpu"), Toy.programs, limit * GIB)
    assert {name: found[name] for name in alone} == alone  # parts do not help, and are not taken
    assert "ppo.gather_once" not in fitted.fit(Scoring("gpu", gather_once=False), Scoring.programs, limit * GIB)


def test_where_nothing_fits_it_is_little_that_is_lacking():
    found = fitted.fit(Toy(), Toy.programs, 0.5 * GIB)
    least = min(1 + ACTIVATIONS[model] / PARTS[-1] for model in ACTIVATIONS)
    run = Toy().adopting(found)
    assert run.need({"microbatches": found["ppo.microbatches"]}) <= 1.2 * least * GIB and found["slots"] == 16


def test_only_the_program_that_does_not_fit_gets_more():
    """Slots that the config gives take 8 GiB here; the update fits into its 4, and is not chosen as if it had more."""

    def programs(run):
        step, sample = Toy.programs(run)["ppo"]
        sample = dataclasses.replace(sample, temporaries=lambda change: {"cache": 8 * GIB}, options={})
        return {"ppo": [step, sample]}

    found = fitted.fit(Toy("gpu", slots=64), programs, 4 * GIB)
    assert found == fitted.fit(Toy("gpu", slots=64), Toy.programs, 4 * GIB)


def test_gradients_of_one_program_are_added_up():
    whole = {"gradients": 1.0, "activations": 10.0, "logits": 1.0}
    small, large = ({"gradients": 2.0 * n, "activations": 20.0 * n, "logits": 2.0} for n in (1, 2))
    # Of the loops, each keeps the sum of its parts, and one at a time has a part's gradient and activations.
    both = {"gradients": 1.0 + 1 + 2 + 2, "activations": 50.0, "logits": 3.0}
    assert memory.together([whole], [small, large], "gpu") == memory.together([whole], [large, small], "cpu") == both
    assert memory.together([whole], [small, large], "tpu") == both | {"activations": 40.0, "logits": 2.0}
    assert memory.together([large, whole], [small], "tpu")["activations"] == 50.0
    assert memory.together([whole, whole], [], "gpu") == {"gradients": 2.0, "activations": 20.0, "logits": 2.0}


def test_in_deep_models_and_elsewhere_layers_are_in_a_loop():
    looped = [{"model.scan_layers": True, "model.remat": name} for name in memory.REMAT]
    run = Toy(layers=13)
    assert fitted._candidates(run, chosen.open_fields(run.config)) == looped
    run = Toy(layers=12)
    unrolled = {"model.scan_layers": False, "model.remat": "none"}
    assert fitted._candidates(run, chosen.open_fields(run.config)) == [unrolled, *looped]
    run = Toy("tpu", remat="full")
    assert fitted._candidates(run, chosen.open_fields(run.config)) == [{"model.scan_layers": True}]


def test_a_larger_reward_model_computes_more_again_than_the_policy():
    """A stage's own model has a `remat` of its own; one that the stage states is not chosen."""
    config = default_config()
    config.stages = ("reward_model",)
    with config.unlocked():
        config.reward_model.model = {"num_layers": 3}
    run = run_lib.without_data(config, DATA, tiny.mesh_of("1x1x1"))
    assert "reward_model.model.remat" in chosen.open_fields(config)
    assert (
        run.adopting({"model.remat": "none", "reward_model.model.remat": "full"}).shape("reward_model").remat == "full"
    )
    pairs = [
        (found["model.remat"], found["reward_model.model.remat"])
        for found in fitted._candidates(run, chosen.open_fields(config))
    ]
    assert pairs == [("none", "none"), ("none", "full"), ("dots", "dots"), ("dots", "full"), ("full", "full")]
    with config.unlocked():
        config.reward_model.model.remat = "dots"
    assert "reward_model.model.remat" not in chosen.open_fields(config)


# ---------------------------------------------------------------------------- runs


@contextlib.contextmanager
def started(config, path):
    with run_lib.start(config, path, corpora=CORPORA) as run:
        fitted.settle(run)
        yield run


@pytest.fixture
def whole(monkeypatch):
    """The bytes of the machine, to be set."""
    memory_of = {"whole": 100 * GIB}
    monkeypatch.setattr(machine, "memory", lambda mesh: machine.Memory(memory_of["whole"], None))
    return memory_of


def open_config(last="pretrain"):
    config = toy_config(last)
    config.model.update(remat="auto", scan_layers=None)
    return config


@pytest.mark.parametrize("remat", ["none", "full", "auto"])
def test_a_stage_with_a_model_of_its_own_starts_whatever_the_policys_is(tmp_path, whole, remat):
    """As the sweeps over the size of a reward model do, whose policy says its own `remat`."""
    config = open_config()
    config.model.remat = remat
    with config.unlocked():
        config.pretrain.model = {"embed_dim": 16}
    with started(config, tmp_path) as run:
        assert run.shape("pretrain").embed_dim == 16
        assert run.shape("pretrain").remat == run.model.remat == ("none" if remat == "auto" else remat)


def test_a_work_directory_keeps_what_was_chosen_and_what_it_was_given(tmp_path, whole, capsys):
    config, path = open_config(), tmp_path / "run"
    first = {"model.scan_layers": False, "model.remat": "none", "pretrain.microbatches": 1, "slots": None}
    with started(config, path) as run:
        assert run.chosen == first == read_json(path / chosen.FILE)
    assert (
        "chosen for 50.00 GiB of memory on a device: model.scan_layers=False, model.remat=none, no batch in parts"
        in (capsys.readouterr().out)
    )
    whole["whole"] = 2**20  # another machine, on which it would have been another
    (path / "pretrain").mkdir(exist_ok=True)
    with started(config, path) as run:
        assert run.chosen == first and run.parts("pretrain") == {"microbatches": 1}
    assert "chosen" not in capsys.readouterr().out
    assert run_lib.open_run(str(path)).chosen == first

    config.pretrain.microbatches = 4  # a number wins, also at a resume, and stays
    with started(config, path) as run:
        assert run.parts("pretrain") == {"microbatches": 4}
    config.pretrain.microbatches = None
    with started(config, path) as run:
        assert run.parts("pretrain") == {"microbatches": 4}

    # A work directory of an older version has values, under defaults that were not open.
    stored = read_json(path / "config.json")
    stored["model"] |= {"remat": "full", "scan_layers": True}
    write_json(path / "config.json", stored)
    with started(config, path) as run:
        assert (run.model.scan_layers, run.model.remat) == (True, "full")
    assert read_json(path / "config.json")["model"]["remat"] == "full"


def test_devices_that_share_a_memory_have_a_part_of_it_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "memory", lambda mesh: machine.Memory(100 * GIB, None, sharers=8))
    with started(open_config(), tmp_path):
        assert "chosen for 6.25 GiB of memory on a device" in capsys.readouterr().out


def test_work_directories_of_older_versions_are_read(tmp_path, whole):
    config, path = open_config(), tmp_path / "run"
    with started(config, path):
        (path / "pretrain").mkdir(exist_ok=True)
    write_json(path / chosen.FILE, {"scan_layers": True, "remat": "dots"})  # the names of the model's fields alone
    stored = read_json(path / "config.json")
    stored["pretrain"]["microbatches"] = 2
    write_json(path / "config.json", stored)
    with started(config, path) as run:
        assert (run.model.scan_layers, run.model.remat, run.parts("pretrain")["microbatches"]) == (True, "dots", 2)


def test_a_stage_that_is_appended_gets_a_choice_of_its_own(tmp_path, whole):
    config, path = open_config(), tmp_path / "run"
    with started(config, path):
        (path / "pretrain").mkdir(exist_ok=True)
    config.stages = ("pretrain", "sft")
    with started(config, path) as run:
        assert run.chosen["sft.microbatches"] == 1 and not run.chosen["model.scan_layers"]
    assert {"pretrain.microbatches", "sft.microbatches"} < read_json(path / chosen.FILE).keys()


def test_a_run_in_little_memory_computes_in_parts_and_gives_the_same_losses(tmp_path, whole, monkeypatch):
    computed, make = [], train.make_train_step
    monkeypatch.setattr(train, "make_train_step", lambda *given: computed.append(given[-1]) or make(*given))
    config, found = open_config(), {}
    config.pretrain.update(batch_size=16, steps=2, warmup_steps=1)  # over all devices of the tests
    for name in ("large", "small"):
        with started(config, tmp_path / name) as run:
            need = forecast.of(forecast.programs_of(run, "pretrain"), run.mesh, {}).total
            whole["whole"] = 1.5 * need  # for the next one, of which half may be used
            registry.of(run.config, "pretrain").run(run, "pretrain")
            found[name] = [row["loss"] for row in metrics.read_metrics(run.folder("pretrain") / "metrics.jsonl")]
    parts = [read_json(tmp_path / name / chosen.FILE)["pretrain.microbatches"] for name in found]
    assert parts == [1, 2] and computed[0] == 1 and computed[-1] == 2
    np.testing.assert_allclose(found["small"], found["large"], rtol=1e-5)


def test_programs_of_a_run_fit_with_what_was_chosen(tmp_path):
    """The forecast of the programs that are really built is below the limit, if anything is."""
    config = open_config("sft")
    run = run_lib.without_data(config, DATA, tiny.mesh_of("1x1x1"))

    def programs_of(run):
        return {stage: planner.programs_of(run, stage, DATA) for stage in config.stages}

    def need(values):
        built = programs_of(run.adopting(values))
        return max(forecast.of(programs, run.mesh, {}).total for programs in built.values())

    whole_need = need(fitted.fit(run, programs_of, 2**40))
    found = fitted.fit(run, programs_of, 0.6 * whole_need)
    assert need(found) <= 0.6 * whole_need


def test_a_stages_own_model_leaves_open_what_the_runs_does():
    own = {"num_layers": 2, "remat": "auto", "scan_layers": None}
    assert chosen.closed(own) == {"num_layers": 2}
    assert chosen.closed({"remat": "dots", "scan_layers": False}) == {"remat": "dots", "scan_layers": False}


@pytest.mark.parametrize(
    "own, found",
    [({"dtype": "float32"}, "xla"), ({"attention": "auto"}, "cudnn"), ({"attention": "blocked"}, "blocked")],
)
def test_a_stages_own_model_attends_by_what_computes_in_its_own_dtype(own, found):
    """cuDNN, which is the policy's choice on a GPU in bfloat16, has no float32."""
    config = default_config()
    config.stages = ("reward_model",)
    with config.unlocked():
        config.reward_model.model = own
    run = run_lib.without_data(config, DATA, tiny.mesh_of("1x1x1"))
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")]))
    on_gpu = dataclasses.replace(run, mesh=mesh, model=dataclasses.replace(run.model, attention="cudnn"))
    assert on_gpu.shape("reward_model").attention == found
    with config.unlocked():
        config.reward_model.model = {"attention": "cudnn"}
    with pytest.raises(InputError, match="attention='cudnn' needs a gpu, and this runs on a cpu"):
        dataclasses.replace(run, config=config).shape("reward_model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "best_of_n",
        "fig36_kl_coef",
        "ladder",
        "no_avoid",
        "overoptimization",
        "rm_regression",
        "rm_scaling",
        "two_by_two",
    ],
)
def test_the_first_arm_of_a_figure_can_start(tmp_path, name):
    """With the memory of this machine; stages with models of their own are among them."""
    experiment = importlib.import_module(f"experiments.figures.{name}")
    arm = arms.expand(experiment.get_config(), experiment.sweep(grid))[0]
    with started(arm.config, tmp_path / "run") as run:
        assert chosen.open_fields(run.config) and all(
            run.shape(stage).remat in memory.REMAT for stage in run.config.stages
        )
