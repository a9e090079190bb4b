"""Trains a stage of many runs as one program: vmap over a leading axis of trials, which is split over all devices.

The program batches the functions of a single run, so the numbers are the same to float tolerance. Runs with equal
programs form a group; they may differ in seed, data, coefficients, learning rates and, except in PPO, number of steps.
The states of a group are stacked, also in its checkpoints in FOLDER/STAGE-HASH, beside trials.json:

    {"stage": "ppo", "members": [name of the run at each place, null at a place without one], "failed": [names]}
"""

import collections
import functools
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf_jax import loop, optim
from rlhf_jax.fields import registry
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts, progress
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import new_folder, read_if_there, write_json
from rlhf_jax.stages import ppo, ppo_rewards
from rlhf_jax.sweep.trials import stacked as programs
from rlhf_jax.sweep.trials.stacked import Training

Failures = dict[int, Exception]


def fit_stage(runs: Sequence[Run], stage: str, folder: pathlib.Path, at_once: int = 0) -> Failures:
    """Trains a stage of several runs, or resumes an earlier call; each run's folder gets its results.

    Args:
      runs: the runs, which share a mesh and an interrupt.
      stage: name of the stage.
      folder: folder for the checkpoints of groups; a group's checkpoints are removed when it is finished.
      at_once: the largest number of trials in one program; 0 sets no limit.

    Returns:
      Place in `runs` -> the error, for each run that failed.

    Raises:
      progress.Stopped: the process was asked to stop; all states are saved.
    """
    failures, trainings = {}, {}
    for place, run in enumerate(runs):
        try:
            trainings[place] = registry.of(run.config, stage).training(run, stage)
        except Exception as error:  # ends this run only
            failures[place] = _unless_lost(error)
    waiting = _groups(trainings, stage, folder, at_once)
    while waiting:
        group = waiting.pop(0)
        try:
            failures |= group.fit()
        except progress.Stopped:
            raise
        except Exception as error:
            without_memory = "RESOURCE_EXHAUSTED" in str(error)
            halves = group.halves(folder) if without_memory else []
            if halves:
                print(
                    f"{stage}: no memory for {group} trials at once; {halves[0]} are trained and then {halves[1]}",
                    flush=True,
                )
            elif without_memory and group.saved:
                error = InputError(
                    f"out of memory with {group} trials at once: give --retry on devices with more memory, or remove "
                    f"{group.folder} and give --retry and a smaller --trials_at_once, which begins the stage anew"
                )
            if not halves:
                failures |= dict.fromkeys(group.trainings, _unless_lost(error))
            waiting = halves + waiting
    return failures


def forget(folder: pathlib.Path, stage: str, done: Callable[[str], bool]) -> None:
    """Removes the checkpoints of groups whose members are all done.

    A group removes its own checkpoints; these are left if its members were finished in other groups or by themselves.

    Args:
      folder: folder of the groups' checkpoints.
      stage: name of the stage.
      done: tells whether the run of a name has finished the stage.
    """
    for saved, members in _saved_groups(folder, stage):
        if all(done(member) for member in filter(None, members)):
            shutil.rmtree(saved, ignore_errors=True)


def _unless_lost(error: Exception) -> Exception:
    """Returns an error of a run, or raises it if it means that another process of the job has ended."""
    if hosts.lost_peer(error):
        raise error
    return error


# ---------------------------------------------------------------------------- groups


def _groups(trainings: dict[int, Training], stage: str, folder: pathlib.Path, at_once: int) -> list["_Group"]:
    """Returns the groups to train: first those with checkpoints of an earlier call, unchanged; then new ones.

    Args:
      trainings: the trainings, by the caller's numbers.
      stage: name of the stage.
      folder: folder of the groups' checkpoints.
      at_once: the largest number of trials in a new group; 0 sets no limit.
    """
    rest, groups = dict(trainings), []

    def name(place):
        return trainings[place].run.path.name

    ways = next(iter(trainings.values())).run.mesh.size if trainings else 1
    for saved, members in hosts.on_first(_saved_groups, folder, stage):
        if len(members) % ways:
            print(f"{saved} is not used: its {len(members)} trials do not divide over {ways} devices", flush=True)
            continue
        places = [next((place for place in rest if name(place) == member), None) for member in members]
        if found := {place: rest.pop(place) for place in places if place is not None}:
            own = [None if place is None else name(place) for place in places]
            if own != members:
                saved = hosts.on_first(_forked, saved, stage, own)
            groups.append(_Group(pathlib.Path(saved), found, places))
    by_program = collections.defaultdict(lambda: collections.defaultdict(list))
    for place, training in rest.items():
        by_program[_program(training)][_ptx_sizes(training)].append(place)
    for by_ptx in by_program.values():
        without = by_ptx.pop(None, [])
        several = list(by_ptx.values()) or [[]]
        several[0] += without  # with ptx_coef = 0, any pretraining batch gives the same numbers
        for alike in map(sorted, several):
            for start in range(0, len(alike), at_once or len(alike)):
                chosen = alike[start : start + (at_once or len(alike))]
                groups.append(_new_group({place: rest[place] for place in chosen}, folder))
    return groups


def _new_group(trainings: dict[int, Training], folder: pathlib.Path) -> "_Group":
    """Returns a group of trainings that starts at step 0."""
    first = next(iter(trainings.values()))
    # The stack is filled up with copies of the first trial, so that it divides over the devices; they are not read.
    places = [*trainings, *[None] * (-len(trainings) % first.run.mesh.size)]
    names = [training.run.path.name for training in trainings.values()]
    return _Group(folder / f"{first.stage}-{_digest(*names, len(places))}", trainings, places)


def _saved_groups(folder: pathlib.Path, stage: str) -> list[tuple[str, list]]:
    """Returns (folder, members) of a stage's groups with checkpoints, those with the most steps first.

    A member is the name of a run; None stands for one that failed, and for a place without a run.
    """
    found = []
    for path in sorted(folder.glob(f"{stage}-*/trials.json")):
        facts = read_if_there(path, needs=["stage", "members", "failed"])
        if facts["stage"] == stage and (steps := _steps(path.parent)):
            members = [None if member in facts["failed"] else member for member in facts["members"]]
            found.append((-max(steps), str(path.parent), members))
    return [(path, members) for _, path, members in sorted(found, key=lambda group: group[:2])]


def _steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of a group's checkpoints."""
    return [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]


def _forked(saved: str, stage: str, members: list[str | None]) -> str:
    """Copies a group's folder for some of its members, so that the other members' states in `saved` do not change.

    Returns:
      The folder of the copy, whose name is a hash of the group and the members; an existing copy is used again.
    """
    saved = pathlib.Path(saved)
    path = saved.with_name(f"{stage}-{_digest(saved.name, *members)}")
    if not path.exists():
        with new_folder(path) as folder:
            shutil.copytree(saved / "checkpoints", folder / "checkpoints")
            write_json(folder / "trials.json", {"stage": stage, "members": members, "failed": []})
    return str(path)


def _digest(*words) -> str:
    """Returns a hash of some words, 12 hexadecimal digits."""
    return hashlib.sha256("\n".join(map(str, words)).encode()).hexdigest()[:12]


def _program(training: Training) -> tuple:
    """Returns a key that is equal for trials that can share programs and checkpoints."""
    run, section = training.run, training.run.config[training.stage]
    common = run.mesh, section.checkpoint_every, run.config.checkpoints_kept, run.config.checkpoints_every
    if isinstance(training, ppo.PPOTraining):
        names = "batch_size", "minibatch_size", "ppo_epochs", "iterations", "log_gold"
        sizes = tuple(section[name] for name in names)
        lengths = run.config.prompt_length, run.config.completion_length
        models = ppo_rewards.reward_fn_of(run, section), ppo_programs.optimizers_of(section)
        return training.config, *models, sizes, lengths, section.kl_target is None, *common
    leaves, tree = jax.tree.flatten(training.loader.batch(0))
    kinds = tuple((leaf.ndim, leaf.dtype) for leaf in leaves)
    optimizer = optim.OptimizerConfig(**section.optimizer)
    sizes = section.batch_size, run.parts(training.stage)["microbatches"]
    return training.loss_fn, training.head, optimizer, sizes, tree, kinds, *common


def _ptx_sizes(training: Training) -> tuple | None:
    """Returns the shapes of PPO's pretraining batch; None if the training has no such batch."""
    loader = getattr(training, "ptx", None)
    return loader and tuple(leaf.shape for leaf in jax.tree.leaves(loader.batch(0)))


class _Group:
    """Trials that are trained together.

    Args:
      folder: folder of the group's checkpoints.
      trainings: the trainings, by the caller's numbers.
      places: number of the training at each place of the stack; None at a place whose state is not used.
    """

    def __init__(self, folder: pathlib.Path, trainings: dict[int, Training], places: list[int | None]):
        self.folder, self.trainings, self.places = folder, trainings, places
        first = next(iter(trainings.values()))
        self.run, self.stage = first.run, first.stage
        self.stacked = [trainings.get(place, first) for place in places]

    def __str__(self):
        return str(len(self.trainings))

    @property
    def saved(self) -> bool:
        """Whether the group has checkpoints to resume from."""
        return bool(_steps(self.folder))

    def halves(self, folder: pathlib.Path) -> list["_Group"]:
        """Returns two groups of half as many trials, which start at step 0.

        The list is empty for a single trial, for a group with checkpoints, which would be lost, and on several hosts,
        which would have to agree.
        """
        if len(self.trainings) == 1 or self.saved or hosts.count() > 1:
            return []
        shutil.rmtree(self.folder, ignore_errors=True)
        items, half = list(self.trainings.items()), (len(self.trainings) + 1) // 2
        return [_new_group(dict(part), folder) for part in (items[:half], items[half:])]

    def fit(self) -> Failures:
        """Trains all trials and writes the results to their runs; returns number -> error for those that failed."""
        failures = {}
        hosts.on_first(self._note, failures)
        kind = programs.ppo_of if isinstance(self.stacked[0], ppo.PPOTraining) else programs.supervised_of
        state, advance = kind(self.stacked, self.run.mesh)
        gather, pick = programs.gather_of(self.run.mesh), programs.pick_of(self.run.mesh)

        def together(state, step, places):
            state, metrics = advance(state, step, np.isin(np.arange(len(self.stacked)), places))
            return state, gather(metrics)

        def failed(place, error):
            failures[self.places[place]] = error
            hosts.on_first(self._note, failures)
            print(f"{self.stacked[place].run.path.name}: {error}", flush=True)

        section = self.run.config[self.stage]
        state = loop.fit_all(
            {place: self.trainings[number].trial for place, number in enumerate(self.places) if number is not None},
            state,
            together,
            folder=self.folder / "checkpoints",
            checkpoint_every=section.checkpoint_every,
            state_of=pick,
            metrics_of=self._metrics_of,
            failed=failed,
            clock=self.stacked[0].trial.clock,
        )
        unfinished = {}
        for place, number in enumerate(self.places):
            if number is not None and number not in failures:
                try:
                    self.trainings[number].finish(pick(state, place))
                except progress.Stopped:  # the next start finishes the remaining trials
                    raise
                except Exception as error:
                    unfinished[number] = _unless_lost(error)
        if not unfinished:
            hosts.on_first(functools.partial(shutil.rmtree, ignore_errors=True), self.folder)
        return failures | unfinished

    def _metrics_of(self, metrics: dict, place: int) -> dict:
        """Returns the metrics of one trial; a trial without pretraining text in PPO has no metrics of it."""
        without_ptx = getattr(self.stacked[place], "ptx", True) is None
        return {
            name: values[place] for name, values in metrics.items() if not (without_ptx and name.startswith("ppo/ptx/"))
        }

    def _note(self, failures: Failures) -> None:
        """Writes trials.json with the group's members, and adds the trials that failed."""
        before = read_if_there(self.folder / "trials.json") or {}
        names = {number: training.run.path.name for number, training in self.trainings.items()}
        members = before.get("members") or [names.get(number) for number in self.places]
        failed = {*before.get("failed", []), *(names[number] for number in failures)}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "trials.json", {"stage": self.stage, "members": members, "failed": sorted(failed)})
