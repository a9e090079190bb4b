"""Runs a sweep: every arm of an experiment file, each stage that arms share only once, and a report at the end.

    python -m rlhf_jax.sweep --config=experiments/figures/fig33_ptx_coef.py --workdir=runs/figures/fig33

Beside get_config, the file has a function sweep(h) that lists the arms:

    def sweep(h):
        return h.product([h.sweep("ppo_ptx.ptx_coef", [0.0, 0.5, 1.0, 2.0]), h.sweep("seed", range(3))])

It combines h.sweep (the values of a field) with h.product, h.zipit (side by side) and h.chain (one after the other).
Every arm is an ordinary run in WORKDIR/arms. Running the same command again computes only what is missing.

--until-decided runs the arms of a look at a time, and goes on with those that the claims which are still open need:

    python -m rlhf_jax.sweep --config=experiments/figures/fig36_kl_coef.py --workdir=runs/figures/fig36 --until-decided

--runner=vectorized trains all arms of a small model as one program, spread over the devices. The numbers are the same
to float tolerance, and it takes a fraction of the time where a single arm leaves an accelerator idle. One sweep may
use both runners, for different arms. --workers=8 runs eight arms side by side, each on its own GPU.

    python -m rlhf_jax.sweep --runner=cluster --config=... --workdir=/shared/fig33 -- --gpus=1 --time=4:00:00

submits the arms to Slurm, one job per arm; launch/slurm.sh gets the arguments after the lone --. To run every arm on
several hosts, start this command as you would main.py. More: docs/sweeps.md. Exit statuses: job.py.
"""

import os
import pathlib
import sys

from absl import flags

from rlhf_jax import job, trackers
from rlhf_jax.report import pages
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep import arms, cluster, listing, sequential, until_decided, vectorized, workers
from rlhf_jax.sweep.store import Store

flags.adopt_module_key_flags(job)
_RUNNER = flags.DEFINE_enum(
    "runner",
    "sequential",
    ["sequential", "vectorized", "cluster"],
    "How the arms are run: one after another in this job, all at once in one program (for small models), or as jobs "
    "of a Slurm cluster.",
)
_STAGES = flags.DEFINE_string(
    "stages",
    None,
    "The folder of the stages that arms share. The default is WORKDIR/stages. Sweeps can share a folder.",
)
flags.register_validator("stages", lambda path: path != "", "it is empty: name a folder, or leave the flag out")
_ARMS = flags.DEFINE_string("arms", "", "The only arms to run, by number: 3:7 (which is 3 to 6), 5, or 0,4,8:.")
_LIST = flags.DEFINE_bool("list", False, "List the arms and what became of them, and stop.")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "Say what would be computed, and stop.")
_PLAN = flags.DEFINE_string(
    "plan",
    None,
    "A plan of these stages, a JSON file of rlhf_jax.plan --out: --dry-run says what the sweep would take at its scale.",
)
_AT_ONCE = flags.DEFINE_integer(
    "trials_at_once",
    0,
    "The largest number of arms that --runner=vectorized puts in a program, to save memory. 0 means all.",
    lower_bound=0,
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    1,
    "The number of arms that --runner=sequential runs side by side on this machine, on GPUs of their own or on its "
    "cores.",
    lower_bound=1,
)
_UNTIL_DECIDED = flags.DEFINE_bool(
    "until-decided",
    False,
    "Run arms until each claim of the file is decided or has had the last look of its DESIGN: only the seeds and arms that "
    "an open claim needs.",
)
_RETRY = flags.DEFINE_bool("retry", False, "Run the failed arms again.")
_SUBMITTED = flags.DEFINE_bool(
    "submitted", False, "Set by --runner=cluster: this is one of its jobs, and WORKDIR/sweep.json says what it runs."
)
_WORKER = flags.DEFINE_bool(
    "worker", False, "Set by --workers: this is one of them, and the command that started it writes the report."
)


def work(given: job.Job) -> int:
    """Lists, plans, submits or runs the sweep of a command line; returns the exit status."""
    if given.rest and _RUNNER.value != "cluster":
        raise InputError(
            f"unknown argument '{given.rest[0]}'; fields of all arms are set as --config.ppo.iterations=20"
        )
    if _WORKERS.value > 1 and (_RUNNER.value != "sequential" or flags.FLAGS.distributed or flags.FLAGS.coordinator):
        raise InputError("--workers needs --runner=sequential and one machine; leave out one of these flags")
    if _UNTIL_DECIDED.value and _ARMS.value and not _WORKER.value:
        raise InputError("--arms and --until-decided both choose the arms; leave out one of them")
    experiment = arms.load(given.config_file, given.config)
    chosen = arms.choose(experiment.arms, _ARMS.value)
    path = pathlib.Path(given.workdir)
    stages = pathlib.Path(_STAGES.value or path / "stages")
    if _UNTIL_DECIDED.value:
        until_decided.check(experiment, path)
        if _RUNNER.value == "cluster" or _DRY_RUN.value:
            there = (path / "sweep.json").exists()
            numbers = until_decided.to_run(path, take=False) if there else until_decided.first_look(experiment)
            chosen = [arm for arm in experiment.arms if arm.number in numbers]
    if _LIST.value:
        cluster.settle(chosen, path)
        listing.show_arms(chosen, path)
        return 0
    if _PLAN.value and not _DRY_RUN.value:
        raise InputError(
            "--plan belongs to --dry-run, which says what the sweep would take; add it or leave --plan out"
        )
    if _DRY_RUN.value:
        listing.show_work(chosen, path, stages, listing.chip_hours(_PLAN.value) if _PLAN.value else None)
    if _RUNNER.value == "cluster":
        described = arms.describe(experiment, given.config, given.overrides)
        cluster.submit(chosen, path, stages, described, _flags(given), given.rest, _RETRY.value, _DRY_RUN.value)
        return 0
    return 0 if _DRY_RUN.value else _run(given, experiment, chosen, path, stages)


def _run(given: job.Job, experiment, chosen: list, path: pathlib.Path, stages: pathlib.Path) -> int:
    """Runs the chosen arms in this process or in workers, and writes the report; returns the exit status."""

    def write():
        arms.write(path, arms.describe(experiment, given.config, given.overrides))

    until = _UNTIL_DECIDED.value and not _WORKER.value
    if _WORKERS.value > 1 and not _WORKER.value:
        write()

        def side_by_side(some: list, retry: bool):
            """Runs some of the arms in workers; the last --arms of a command line counts."""
            numbers = ",".join(str(arm.number) for arm in some)
            command = [sys.executable, "-m", "rlhf_jax.sweep", "--worker", *sys.argv[1:], f"--arms={numbers}"]
            return workers.run(_WORKERS.value, some, path, retry, command)

        if until:
            ended = until_decided.run(experiment, path, side_by_side, _RETRY.value)
        else:
            ended = workers.run(_WORKERS.value, chosen, path, _RETRY.value)
        for number, reason in ended.items():
            print(f"rlhf_jax.sweep: worker {number} {reason}", file=sys.stderr)
        return _finish(experiment, chosen, path) or (1 if ended else 0)
    given.join()
    for names in {tuple(arm.config.trackers) for arm in chosen}:
        hosts.on_first(trackers.check, names)
    store = Store(stages)
    if _WORKER.value:
        workers.end_with_parent()
    if _SUBMITTED.value or _WORKER.value:
        hosts.on_first(arms.check_submitted, path, experiment, given.config, chosen)
    else:
        hosts.on_first(write)

    def one_after_another(some: list, retry: bool):
        """Runs some of the arms in this job."""
        if _RUNNER.value == "vectorized":
            vectorized.run(some, path, store, retry, _AT_ONCE.value)
        else:
            sequential.run(some, path, store, retry and not _WORKER.value)

    if until:
        until_decided.run(experiment, path, one_after_another, _RETRY.value)
    else:
        one_after_another(chosen, _RETRY.value)
    return 0 if _WORKER.value else hosts.on_first(_finish, experiment, chosen, path)


def _finish(experiment, chosen: list, path: pathlib.Path) -> int:
    """Writes the report unless other jobs still work on the sweep; returns the exit status."""
    cluster.settle(experiment.arms, path)
    all_arms = cluster.submitted(experiment.arms, path) if _SUBMITTED.value else experiment.arms
    others = listing.unfinished(all_arms, path, begun=not _SUBMITTED.value)
    if others:
        print(
            f"{len(others)} arms of other jobs are not done yet; the last job writes the report, as does "
            f"`python -m rlhf_jax.report {path}`"
        )
    else:
        pages.show(pages.write(path))
    failed = listing.failures(chosen, path)
    for name, reason in failed.items():
        print(f"rlhf_jax.sweep: {name} failed: {reason}", file=sys.stderr)
    return job.EXIT_FAILED_ARMS if failed else 0


def _flags(given: job.Job) -> list[str]:
    """Returns this command's flags for the jobs that it submits.

    The jobs start in the folder of the project, so paths are absolute.
    """
    file, colon, argument = given.config_file.partition(":")
    written = {field: value if isinstance(value, str) else repr(value) for field, value in given.overrides.items()}
    found = [f"--config={os.path.abspath(file)}{colon}{argument}"]
    found += [f"--config.{field}={value}" for field, value in written.items()]
    if flags.FLAGS.data is not None:
        found.append(f"--data={os.path.abspath(flags.FLAGS.data)}")
    found += ["--", "--submitted"]
    if _STAGES.value:
        found.append(f"--stages={os.path.abspath(_STAGES.value)}")
    return found + ["--retry"] * _RETRY.value


if __name__ == "__main__":
    job.main("rlhf_jax.sweep", work)
