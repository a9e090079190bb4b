"""Compiles the programs of a config for a topology, and says whether they fit and what they take at least:

    python -m rlhf_jax.plan --config=experiments/instructgpt.py:1.3b --topology=v5e:4x4 --price=1.2
    python -m rlhf_jax.plan --config=experiments/instructgpt.py:6b --topology=v5p:2x2x4 --search=6
    python -m rlhf_jax.plan --config=experiments/instructgpt.py:6b --topology=h200:8,h200:2x8 --out=docs/plan

Topologies: TPU slices are v4:4x4x4, v5e:4x4, v5p:2x2x4 or v6e:16x16, and several slices v5e:16x16x4slices; GPUs are
h100:8 or h200:2x8; cpu:8 is this machine. What the config leaves to the memory (model.remat, microbatches, slots) is
chosen for a chip's memory, as a run chooses it for its devices (fitted.py). With --out every plan is kept as JSON, a program that was compiled before
is not compiled again, and plan.md has the tables of all plans in the folder. Any field of the config can be set, as in
--config.mesh.tensor=8. The exit status is 1 if a program does not fit.
"""

import json
import pathlib
import re
import sys

from absl import flags
from ml_collections import config_flags

from rlhf_jax import command_line
from rlhf_jax import config as config_lib
from rlhf_jax.abstract import Data
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model.lengths import parse as parse_lengths
from rlhf_jax.plan import page as tables
from rlhf_jax.plan import planner, search, topology
from rlhf_jax.runtime.errors import InputError, explained
from rlhf_jax.runtime.files import read_json, write_json, write_text

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment file, such as experiments/instructgpt.py:1.3b.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_list("topology", None, "The machines to compile for, one or several separated by commas.")
_SLICES = flags.DEFINE_integer(
    "slices", 1, "The number of TPU slices of each topology, which a network joins.", lower_bound=1
)
_STAGES = flags.DEFINE_string(
    "stages",
    "",
    "The stages to plan, separated by commas, or 'all'. By default it is the first of each kind, but the last of PPO.",
)
_PROGRAMS = flags.DEFINE_list(
    "programs", [], "The only programs to compile, such as sample,update. By default all are compiled."
)
_PRICE = flags.DEFINE_float(
    "price", 0.0, "The price of one chip for one hour, in any currency. 0 prints no cost.", lower_bound=0.0
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
_OUT = flags.DEFINE_string("out", None, "The folder to keep plans in. Its plan.md has the tables of all of them.")
_SEARCH = flags.DEFINE_integer(
    "search",
    0,
    "The number of meshes to compile and rank, of those that could fit. 0 compiles only the config's own mesh.",
)
_DEMONSTRATIONS = flags.DEFINE_integer(
    "demonstrations", 0, "The number of demonstrations. 0 means the world's, or the paper's 12,725."
)
_RANKINGS = flags.DEFINE_integer(
    "rankings", 0, "The number of prompts with ranked completions. 0 means the world's, or the paper's 33,207."
)
_COMPLETIONS = flags.DEFINE_integer(
    "completions", 0, "The largest number of ranked completions of a prompt. 0 means that of config.collect."
)
_LENGTHS = flags.DEFINE_string(
    "lengths",
    "",
    "Mean lengths of the prompts and completions of PPO in tokens, as in prompt:166,completion:130, for which times are "
    "given beside those of full lengths.",
)
_VOCAB = flags.DEFINE_integer(
    "vocab_size", 0, "The number of tokens of the tokenizer. 0 means that of the trained tokenizer, or GPT-3's 50,257."
)
_ALL_LAYERS = flags.DEFINE_bool(
    "all_layers",
    False,
    "Compile all layers of every program. By default the sampler of a GPU, to which each layer adds, is compiled with 2 and "
    "with 4 layers, and what it takes with all of them is extrapolated.",
)
flags.mark_flags_as_required(["config", "topology"])

EXIT_DOES_NOT_FIT = 1
_PAPER_DATA = {"demonstrations": 12_725, "rankings": 33_207, "vocab_size": 50_257}  # InstructGPT, Table 6; GPT-3


def main(argv) -> int:
    if len(argv) > 1:
        raise InputError(f"unknown argument '{argv[1]}'; fields are set as --config.mesh.tensor=8")
    config_lib.check(_CONFIG.value)
    return 0 if _plan_all() else EXIT_DOES_NOT_FIT


def _plan_all() -> bool:
    """Plans the config on every topology; returns whether everything fits on each of them."""
    wanted = [topology.parse(name, _SLICES.value) for name in _TOPOLOGY.value]
    topology.prepare(wanted)
    data, store = _data(_CONFIG.value), _Store(_OUT.value)
    name = _name()
    fits = True
    for place in wanted:
        options = dict(stages=_STAGES.value, only=tuple(_PROGRAMS.value), price=_PRICE.value, known=store.known)
        options["whole"] = _ALL_LAYERS.value
        options["tell"] = lambda line: print(line, file=sys.stderr, flush=True)
        if _SEARCH.value:
            plans = _search(place, data, options)
            fits &= any(found["fits"] for found in plans)
        else:
            plans = [_fitted(_CONFIG.value, place, data, options)]
            fits &= planner.fits(plans[0])
        for found in plans:
            found |= {"name": name, "command": found.get("command", _command()), "fits": planner.fits(found)}
            store.keep(found)
        if _JSON.value:
            for found in plans:
                print(json.dumps(found), flush=True)
        elif _SEARCH.value:
            print(f"{name} on {place.name}\n\n{tables.ranking(plans, place.chip.memory)}\n", flush=True)
            print(f"the first: {plans[0]['command']} --topology={place.name}\n", flush=True)
        else:
            print(tables.render(plans[0]), flush=True)
    return fits


def _fitted(config, place, data, options, first: bool = False, **more) -> dict:
    """Returns the plan of a config, with settings for what it leaves open that its mesh has memory for; see search.fastest."""
    stages = planner.chosen_stages(config, _STAGES.value)

    def plan(settings):
        if settings:
            chosen_ones = ", ".join(f"{name}={value}" for name, value in settings.items())
            options["tell"](f"{place.name}: chosen by memory: {chosen_ones}")
        found = planner.plan(search.applied(config, settings), place, data, **options, **more)
        # The same command chooses the same settings again.
        mesh = [f"--config.mesh.{axis}={n}" for axis, n in config.mesh.items() if n != _CONFIG.value.mesh[axis]]
        return found | {"fits": planner.fits(found), "command": " ".join([_command(), *mesh]), "chosen": settings}

    return search.fastest(lambda corrections: search.fit(config, place, data, stages, corrections), plan, first)


def _search(place, data, options) -> list[dict]:
    """Returns the plans of the most promising meshes: those that fit first, each part sorted by chip-hours."""
    config = _CONFIG.value
    stages = planner.chosen_stages(config, _STAGES.value)
    shape = planner.model_shape(config, data, place)
    plans = [
        _fitted(candidate.apply(config), place, data, options, first=True, give_up=True)
        for candidate in search.candidates(config, shape, place, stages)[: _SEARCH.value]
    ]
    return sorted(plans, key=lambda found: (not planner.fits(found), found["total"]["chip_hours"] or 0.0))


def _data(config):
    """Returns the amounts of data: those of the flags, else the world's, else the paper's."""
    world = config.data.source == "world"
    demonstrations = config.data.world.demonstrations if world else _PAPER_DATA["demonstrations"]
    rankings = config.data.world.rm_prompts if world else _PAPER_DATA["rankings"]
    vocab_size, path = config.tokenizer.vocab_size, config.tokenizer.path
    if path:
        path = pathlib.Path(config.data.files.dir, path)
        vocab_size = Tokenizer.load(path).vocab_size if path.exists() else _PAPER_DATA["vocab_size"]
    return Data(
        _DEMONSTRATIONS.value or demonstrations,
        _RANKINGS.value or rankings,
        _COMPLETIONS.value or config.collect.max_completions,
        _VOCAB.value or vocab_size,
        lengths=parse_lengths("--lengths", _LENGTHS.value) if _LENGTHS.value else None,
    )


def _name() -> str:
    """Returns the value of --config on the command line."""
    return command_line.value_of(sys.argv, "config")


def _command() -> str:
    """Returns the command line without --out, --json, --topology and --search, to which a plan adds its topology."""
    kept, arguments = [], iter(sys.argv[1:])
    for argument in arguments:
        if not (found := re.match(r"--?(out|json|topology|search)\b(=?)", argument)):
            kept.append(argument)
        elif found[1] != "json" and not found[2]:  # the value is the next argument
            next(arguments, None)
    return " ".join(["python -m rlhf_jax.plan", *kept])


class _Compiled(dict):
    """A dict of compiler output by program key, which writes every new entry to a file of a folder at once."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        with explained(f"keep plans in --out={folder.parent}"):
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__({path.stem: read_json(path) for path in folder.glob("*.json")})

    def __setitem__(self, key: str, facts: dict) -> None:
        super().__setitem__(key, facts)
        if "failed" not in facts:  # a failure is not written, so that the next start tries again
            write_json(self._folder / f"{key}.json", facts)


class _Store:
    """A folder with a file for each compiled program, a file for each plan, and plan.md with the tables of all plans.

    Without a folder, nothing is kept.
    """

    def __init__(self, folder: str | None):
        self._folder = pathlib.Path(folder) if folder else None
        self.known = _Compiled(self._folder / "compiled") if self._folder else {}

    def keep(self, found: dict) -> None:
        """Writes a plan to its file, and rewrites plan.md."""
        if self._folder is None:
            return
        mesh = "-".join(map(str, found["mesh"].values()))
        name = f"{pathlib.Path(found['name']).name}.{found['topology']}.{mesh}.{found['model']['remat']}"
        write_json(self._folder / (re.sub(r"[^\w.-]", "_", name) + ".json"), found)
        plans = [read_json(path) for path in sorted(self._folder.glob("*.json"))]
        plans.sort(key=lambda plan: plan["parameters"])
        parts = [_PREFACE, tables.overview(plans) + "\n"]
        for plan in plans:
            command = f"{plan['command']} --topology={plan['topology']}"
            parts.append(f"## {plan['name']} on {plan['topology']}\n\n```\n{command}\n```\n\n{tables.render(plan)}")
        write_text(self._folder / "plan.md", "\n".join(parts))


_PREFACE = """# Plans

Every row was compiled by the real compiler for the topology. Memory is per device: what lies there while a
program runs, the parts of the state it does not touch included; temporaries are the program's own, KV cache
by formula. Model FLOPs are 6 N D and attention's, counted for whole rows; the bound of compute counts what is
computed twice (remat) or masked away too. "Moved" is what the compiled instructions read and write in main
memory, collectives what the compiled program does, by trip counts; links at all a chip's links at once. The
largest bound binds: a time that no run of the program can beat, not a forecast. Times are for prompts and
completions of full length.

The floor is what no program for the same work could beat: the model FLOPs at full rate, or for sampling, if that
is longer, what decoding must read at full bandwidth. That is the weights once a step and the keys and values of each
row so far, with as many rows at once as memory holds. Real lengths, where a plan has them, are log-normal: prompts
with the spread of the paper's mean of 166 and median of 62 tokens, completions with a standard deviation of 1 of
their logarithm, and the means those before lengths are cut at 1,024. Rows at once are those of a device.

On a GPU each layer of the sampler adds to its program. It was compiled with 2 and with 4 layers, as its seconds to compile
say, and its memory, what it moves and what it sends are extrapolated from these two: they grow by the same amount with each
layer (docs/measurements.md, "Sampling by plan", has the comparison). `--all_layers` compiles all of them. Kernels of GPUs are
not optimized, since a plan reads nothing of their code. So the seconds are those of a plan on a shared machine; a run takes
others.
"""

if __name__ == "__main__":
    command_line.run("rlhf_jax.plan", main)
