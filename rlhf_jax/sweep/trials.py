"""A stage of many runs as one program: vmap over a first axis of trials, which is split over all devices.

The functions are those of a single run, so the numbers are too, to float tolerance. Runs whose programs
are the same make a group; they may differ in seed, data, coefficients, learning rates and (but for PPO)
steps. The state of a group is stacked, and so are its checkpoints, in FOLDER/STAGE-HASH beside trials.json:

    {"stage": "ppo", "members": [names of runs by their place, null where none is], "failed": [names]}
"""

import collections
import functools
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import dpo, generate, hosts, loop, optim, ppo, ppo_stage, pretrain, progress, reward_model, sft
from rlhf_jax import sharding, supervised, train
from rlhf_jax.files import read_if_there, write_json
from rlhf_jax.run import Run

TRAINED = {
    "pretrain": pretrain.training_of,
    "sft": sft.training_of,
    "reward_model": reward_model.training_of,
    "dpo": dpo.training_of,
    "ppo": ppo_stage.training_of,
}
_TRIALS = "trials"  # the axis of vmap
Training = supervised.Training | ppo_stage.Training
Failures = dict[int, Exception]


def fit_stage(runs: Sequence[Run], stage: str, folder: pathlib.Path, at_once: int = 0) -> Failures:
    """Trains a stage of several runs, from where an earlier call was stopped; each run's folder gets its results.

    Args:
      runs: on one mesh, with one interrupt.
      folder: for the checkpoints of groups; what is in it is removed when a group is finished.
      at_once: the most trials of a program; 0: as many as there are.

    Returns:
      Place in `runs` -> what it failed of.

    Raises:
      progress.Stopped: an interrupt was asked for; all states are saved.
    """
    failures, trainings = {}, {}
    for place, run in enumerate(runs):
        try:
            trainings[place] = TRAINED[run.config[stage].kind](run, stage)
        except Exception as error:  # of one run: the others go on
            failures[place] = _unless_lost(error)
    waiting = _groups(trainings, stage, folder, at_once)
    while waiting:
        group = waiting.pop(0)
        try:
            failures |= group.fit()
        except progress.Stopped:
            raise
        except Exception as error:
            halves = group.halves(folder) if "RESOURCE_EXHAUSTED" in str(error) else []
            if halves:
                print(f"{stage}: no memory for {group} trials at once: {halves[0]} and then {halves[1]}", flush=True)
            else:
                failures |= dict.fromkeys(group.trainings, _unless_lost(error))
            waiting = halves + waiting
    return failures


def _unless_lost(error: Exception) -> Exception:
    if hosts.lost_peer(error):
        raise error
    return error


# ---------------------------------------------------------------------------- groups


def _groups(trainings: dict[int, Training], stage: str, folder: pathlib.Path, at_once: int) -> list["_Group"]:
    """Those that an earlier call has saved states of, as they were; then the others."""
    rest, groups = dict(trainings), []
    name = lambda place: trainings[place].run.path.name
    ways = next(iter(trainings.values())).run.mesh.size if trainings else 1
    for saved, members in hosts.on_first(_saved_groups, folder, stage):
        if len(members) % ways:
            print(f"{saved} is left as it is: {len(members)} trials do not divide over {ways} devices", flush=True)
            continue
        places = [next((place for place in rest if name(place) == member), None) for member in members]
        if found := {place: rest.pop(place) for place in places if place is not None}:
            groups.append(_Group(pathlib.Path(saved), found, places))
    by_program = collections.defaultdict(lambda: collections.defaultdict(list))
    for place, training in rest.items():
        by_program[_program(training)][_ptx_sizes(training)].append(place)
    for by_ptx in by_program.values():
        without = by_ptx.pop(None, [])
        several = list(by_ptx.values()) or [[]]
        several[0] += without  # ptx_coef = 0 changes no number
        for alike in map(sorted, several):
            for start in range(0, len(alike), at_once or len(alike)):
                chosen = alike[start : start + (at_once or len(alike))]
                groups.append(_new_group({place: rest[place] for place in chosen}, folder))
    return groups


def _new_group(trainings: dict[int, Training], folder: pathlib.Path) -> "_Group":
    first = next(iter(trainings.values()))
    # Copies of the first trial, which nobody looks at, make the number divide over the devices.
    places = [*trainings, *[None] * (-len(trainings) % first.run.mesh.size)]
    names = [training.run.path.name for training in trainings.values()]
    digest = hashlib.sha256("\n".join([*names, str(len(places))]).encode()).hexdigest()[:12]
    return _Group(folder / f"{first.stage}-{digest}", trainings, places)


def _saved_groups(folder: pathlib.Path, stage: str) -> list[tuple[str, list]]:
    """Folder and members of the groups of a stage with checkpoints; a member that failed is None."""
    found = []
    for path in sorted(folder.glob(f"{stage}-*/trials.json")):
        facts = read_if_there(path)
        if facts["stage"] == stage and any((path.parent / "checkpoints").glob("*")):
            members = [None if member in facts["failed"] else member for member in facts["members"]]
            found.append((str(path.parent), members))
    return found


def _program(training: Training) -> tuple:
    """What must be equal for trials to share programs and checkpoints."""
    run, section = training.run, training.run.config[training.stage]
    common = run.mesh, section.checkpoint_every, run.config.checkpoints_kept, run.config.checkpoints_every
    if isinstance(training, ppo_stage.Training):
        names = "batch_size", "minibatch_size", "ppo_epochs", "sample_parts", "iterations", "log_gold"
        sizes = tuple(section[name] for name in names)
        lengths = run.config.prompt_length, run.config.completion_length
        models = run.shape(section.reward), ppo_stage.optimizers_of(section)
        return training.config, *models, sizes, lengths, section.kl_target is None, *common
    leaves, tree = jax.tree.flatten(training.loader.batch(0))
    kinds = tuple((leaf.ndim, leaf.dtype) for leaf in leaves)
    optimizer = optim.OptimizerConfig(**section.optimizer)
    sizes = section.batch_size, section.microbatches
    return training.loss_fn, training.head, optimizer, sizes, tree, kinds, *common


def _ptx_sizes(training: Training) -> tuple | None:
    """Shapes of the pretraining batch of PPO, None without."""
    loader = getattr(training, "ptx", None)
    return loader and tuple(leaf.shape for leaf in jax.tree.leaves(loader.batch(0)))


class _Group:
    """Trials that are trained together.

    Args:
      folder: of its checkpoints.
      trainings: by the caller's numbers.
      places: of which trial each place in the stack is; None: of none that is still trained.
    """

    def __init__(self, folder: pathlib.Path, trainings: dict[int, Training], places: list[int | None]):
        self.folder, self.trainings, self.places = folder, trainings, places
        first = next(iter(trainings.values()))
        self.run, self.stage = first.run, first.stage
        self.stacked = [trainings.get(place, first) for place in places]

    def __str__(self):
        return str(len(self.trainings))

    def halves(self, folder: pathlib.Path) -> list["_Group"]:
        """Two groups of half as many trials, from the start.

        None for a single trial, where there is something to lose, and where other hosts would have to agree.
        """
        if len(self.trainings) == 1 or any((self.folder / "checkpoints").glob("*")) or hosts.count() > 1:
            return []
        shutil.rmtree(self.folder, ignore_errors=True)
        items, half = list(self.trainings.items()), (len(self.trainings) + 1) // 2
        return [_new_group(dict(part), folder) for part in (items[:half], items[half:])]

    def fit(self) -> Failures:
        """Trains all of them, and writes what the stage leaves behind."""
        failures = {}
        hosts.on_first(self._note, failures)
        kind = _ppo if isinstance(self.stacked[0], ppo_stage.Training) else _supervised
        state, advance = kind(self.stacked, self.run.mesh)
        gather = _whole(self.run.mesh)

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
            state_of=_one(self.run.mesh),
            metrics_of=self._metrics_of,
            failed=failed,
        )
        unfinished = {}
        for place, number in enumerate(self.places):
            if number is not None and number not in failures:
                try:
                    self.trainings[number].finish(_one(self.run.mesh)(state, place))
                except Exception as error:
                    unfinished[number] = _unless_lost(error)
        if not unfinished:
            hosts.on_first(functools.partial(shutil.rmtree, ignore_errors=True), self.folder)
        return failures | unfinished

    def _metrics_of(self, metrics: dict, place: int) -> dict:
        without_ptx = getattr(self.stacked[place], "ptx", True) is None
        return {
            name: values[place]
            for name, values in metrics.items()
            if not (without_ptx and name.startswith("ppo/ptx/"))
        }

    def _note(self, failures: Failures) -> None:
        before = read_if_there(self.folder / "trials.json") or {}
        names = {number: training.run.path.name for number, training in self.trainings.items()}
        members = before.get("members") or [names.get(number) for number in self.places]
        failed = {*before.get("failed", []), *(names[number] for number in failures)}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "trials.json", {"stage": self.stage, "members": members, "failed": sorted(failed)})


# ---------------------------------------------------------------------------- programs


def spread(function: Callable, mesh: jax.sharding.Mesh, donate: int | tuple = (), **options) -> Callable:
    """A function of one trial as a program of many: each device has its own, and they never talk."""
    trials = sharding.over_trials(mesh).spec
    batched = jax.vmap(function, axis_name=_TRIALS)
    local = jax.shard_map(batched, mesh=mesh, in_specs=trials, out_specs=trials, check_vma=False)
    return jax.jit(local, donate_argnums=donate, **options)


@functools.lru_cache
def _whole(mesh: jax.sharding.Mesh) -> Callable:
    """Metrics where every process can read them."""
    return jax.jit(lambda metrics: metrics, out_shardings=sharding.replicated(mesh))


@functools.lru_cache
def _one(mesh: jax.sharding.Mesh) -> Callable:
    """(stacked state, place) -> the state of one trial, on every device."""
    pick = lambda tree, place: jax.tree.map(lambda x: x[place], tree)
    return jax.jit(pick, out_shardings=sharding.replicated(mesh))


def _stack_of(function: Callable, trainings: Sequence[Training], mesh):
    """function(training) of all, stacked; computed once for a training that fills several places."""
    made = {}
    for training in trainings:
        if id(training) not in made:
            made[id(training)] = hosts.fetch(function(training))
    return sharding.put_trials([made[id(training)] for training in trainings], mesh)


def _keys(trainings: Sequence[Training], name: str, mesh):
    return _stack_of(lambda training: jax.random.key_data(training.run.key(name)), trainings, mesh)


def _supervised(trainings: Sequence[supervised.Training], mesh):
    """(stacked state, advance) of pretraining, SFT, reward models."""
    first = trainings[0]
    section = first.run.config[first.stage]
    optimizer = optim.OptimizerConfig(**section.optimizer)
    make, program = _supervised_programs(first.loss_fn, optimizer, section.microbatches, mesh)
    state = make(_stack_of(lambda training: training.start(), trainings, mesh))
    keys, rates = _keys(trainings, first.stage, mesh), [_rates(training) for training in trainings]

    def advance(state, step, active):
        own_step = lambda training: min(step, training.total - 1)  # a finished one makes its last step, in vain
        steps = [own_step(training) for training in trainings]
        batch = _stack_of(lambda training: training.loader.batch(own_step(training)), trainings, mesh)
        rate = np.array([rates[step] for rates, step in zip(rates, steps)])
        return program(state, batch, rate, keys, np.array(steps, np.int32), active)

    return state, advance


def _rates(training: supervised.Training) -> np.ndarray:
    """The learning rate of every step, f32[total]."""
    section = training.run.config[training.stage]
    schedule = supervised.schedule_of(section, training.total)
    return np.float32(section.learning_rate) * np.asarray(jax.vmap(schedule)(np.arange(training.total)))


@functools.lru_cache(maxsize=32)
def _supervised_programs(loss_fn: train.LossFn, optimizer: optim.OptimizerConfig, microbatches: int, mesh):
    optimizer = optim.make_optimizer(optimizer)
    # The schedule is in the learning rate: its length may differ between trials.
    train_step = train.make_train_step(loss_fn, optimizer, lambda step: 1.0, microbatches)

    def step(state, batch, learning_rate, key, number, active):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), number)
        new, metrics = train_step(state, batch, learning_rate, key)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), new, state), metrics

    return spread(functools.partial(train.init_state, optimizer=optimizer), mesh), spread(step, mesh, donate=0)


def _ppo(trainings: Sequence[ppo_stage.Training], mesh):
    """(stacked state, advance) of PPO."""
    first = trainings[0]
    run, section = first.run, first.run.config[first.stage]
    sizes = section.batch_size, section.minibatch_size, section.ppo_epochs
    programs = _ppo_programs(
        first.config,
        ppo.SequenceScore(run.shape(section.reward)),
        ppo_stage.optimizers_of(section),
        (run.config.completion_length, run.tokenizer.eos_id, run.tokenizer.pad_id, section.sample_parts),
        sizes,
        mesh,
    )
    section_of = lambda training: training.run.config[training.stage]
    ref, reward, value = _stack_of(lambda training: training.start(), trainings, mesh)
    kl_coef = _stack_of(lambda training: np.float32(section_of(training).kl_coef), trainings, mesh)
    state = programs.make(ref, value, kl_coef)
    frozen = programs.freeze(ref, reward)
    del ref, reward, value
    coefs = _stack_of(lambda training: ppo_stage.coefficients(section_of(training)), trainings, mesh)
    keys = _keys(trainings, "ppo", mesh)
    with_ptx = next((training for training in trainings if training.ptx), None)
    ptx = [training if training.ptx else with_ptx for training in trainings]  # ptx_coef = 0 takes any text

    def advance(state, iteration, active):
        del active  # all have as many iterations; of one that is not finite nothing is read
        first_step = iteration * first.steps_per_iteration
        return ppo_stage.iterate(
            programs,
            state,
            frozen,
            _stack_of(lambda training: training.prompts.batch(iteration), trainings, mesh),
            lambda step: with_ptx and _stack_of(lambda training: training.ptx.batch(first_step + step), ptx, mesh),
            coefs,
            programs.keys(keys, np.full(len(trainings), iteration, np.int32)),
            section,
            fixed_kl=section.kl_target is None,
            judge=_judge(trainings, iteration),
        )

    return state, advance


def _judge(trainings: Sequence[ppo_stage.Training], iteration: int):
    """ppo_stage.Training.judge of all: stacked rollouts -> stacked metrics; None where none judges."""
    judges = [training.judge(iteration) for training in trainings]
    if not judges[0]:
        return None

    def judge(rollout):
        rollout = hosts.fetch(rollout)
        found = [one(jax.tree.map(lambda x: x[place], rollout)) for place, one in enumerate(judges)]
        return jax.tree.map(lambda *values: np.stack(values), *found)

    return judge


class Programs:
    """ppo_stage.Programs of several trials: all arguments and results have a first axis of trials."""

    def __init__(self, config: ppo.PPOConfig, reward_fn, optimizers, sampling: tuple, sizes: tuple, mesh):
        completion_length, eos_id, pad_id, parts = sampling
        draw = functools.partial(
            generate.sample,
            config.policy,
            completion_length=completion_length,
            eos_id=eos_id,
            pad_id=pad_id,
            parts=parts,
            trials=_TRIALS,
        )
        cast = lambda params: jax.tree.map(lambda x: x.astype(config.policy.dtype), params)
        sample = spread(lambda params, tokens, mask, key, heat: draw(cast(params), tokens, mask, key, heat), mesh)
        randomness = spread(lambda key: ppo_stage.randomness(key, *sizes), mesh)
        rounding = {"xla_allow_excess_precision": False}  # as ppo_stage.Programs
        self.make = spread(functools.partial(ppo_stage.make_state, optimizers), mesh)
        self.freeze = spread(functools.partial(ppo_stage.frozen_params, config.policy), mesh)
        self.keys = spread(lambda key, number: jax.random.fold_in(jax.random.wrap_key_data(key), number), mesh)
        self.randomness = lambda key, *_: randomness(key)
        self.sample = lambda params, batch, *noise: sample(params, batch.tokens, batch.mask, *noise)
        self.score = spread(ppo.make_score(config, reward_fn), mesh, compiler_options=rounding)
        self.update = spread(ppo.make_update(config, *optimizers), mesh, donate=0, compiler_options=rounding)
        self.take = spread(lambda tree, rows: jax.tree.map(lambda x: x[rows], tree), mesh)
        self.summarize = spread(ppo_stage.summarize, mesh)


@functools.lru_cache(maxsize=16)
def _ppo_programs(config: ppo.PPOConfig, reward_fn, optimizers: tuple, sampling: tuple, sizes: tuple, mesh):
    return Programs(config, reward_fn, tuple(map(optim.make_optimizer, optimizers)), sampling, sizes, mesh)
