"""The stages of a config in order: each that is unfinished, its evaluation, and the report."""

import contextlib
import time

from rlhf_jax import checkpoint, report, sharding
from rlhf_jax import run as run_lib
from rlhf_jax.evaluate import answers as programs
from rlhf_jax.evaluate import policy
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import best_of_n as best_of_n_stage
from rlhf_jax.stages import collect, dpo, pretrain, prompted, rankings, reward_model, sft
from rlhf_jax.stages import ppo as ppo_stage

KINDS = {
    "pretrain": pretrain.run_stage,
    "sft": sft.run_stage,
    "collect": collect.run_stage,
    "reward_model": reward_model.run_stage,
    "dpo": dpo.run_stage,
    "ppo": ppo_stage.run_stage,
    "best_of_n": best_of_n_stage.run_stage,
    "prompted": prompted.run_stage,
}


def _check_collect(run: run_lib.Run, stage: str) -> None:
    rankings.check(run, stage)
    collect.check(run, stage)


_CHECKS = {
    "pretrain": pretrain.check,
    "sft": sft.check,
    "collect": _check_collect,
    "reward_model": reward_model.check,
    "dpo": dpo.check,
    "ppo": ppo_stage.check,
    "best_of_n": best_of_n_stage.check,
    "prompted": prompted.check,
}


def run_stages(config, path: str, overrides: dict | None = None, store=None) -> None:
    """Runs or resumes a config in a work directory.

    Args:
      overrides: what was given beside the config, kept for people.
      store: where the arms of a sweep find the stages they share (sweep.store.Store); then no report is written.

    Raises:
      InputError: anything in the config or the data that cannot be; before the first stage where possible.
    """
    with run_lib.start(config, path, overrides, store and store.corpora) as run:
        check(run)
        for stage in config.stages:
            with store.shared(run, stage) if store else contextlib.nullcontext():
                run_stage(run, stage)
        policy.rescore(run)
        if not store:
            hosts.on_first(lambda: report.show(report.write(run.path)))


def run_stage(run: run_lib.Run, stage: str) -> None:
    """One stage and its evaluation, each unless it is finished."""
    kind = run.config[stage].kind
    if run.done(stage):
        print(f"{stage}: finished before")
    else:
        started = time.monotonic()
        KINDS[kind](run, stage)
        run.workdir.mark_done(stage, time.monotonic() - started, **report.machine())
    evaluate(run, stage)


def to_evaluate(run: run_lib.Run, stage: str) -> bool:
    """Whether a finished stage is a policy that has not been evaluated."""
    # One of another shape is what a smaller reward model starts from.
    is_policy = run.config[stage].kind in run_lib.POLICIES and run.shape(stage) == run.model
    return is_policy and not run.evaluated(stage)


def evaluate(run: run_lib.Run, stage: str, answers: programs.Answers | None = None, seconds: float = 0.0) -> None:
    """Evaluates the policy or reward model of a finished stage, also where an earlier start failed in it; else nothing.

    Args:
      answers: of the policy, where they are known already, and the seconds that they took.
    """
    kind = run.config[stage].kind
    if to_evaluate(run, stage) or kind == "reward_model" and not run.evaluated(stage):
        started = time.monotonic() - seconds
        if kind == "reward_model":
            reward_model.evaluate_stage(run, stage)
        else:
            policy.evaluate_policy(run, stage, answers)
        run.workdir.mark_evaluated(stage, time.monotonic() - started)
        print(f"{stage}: evaluated in {time.monotonic() - started:.1f} s", flush=True)
    if kind in ("sft", "reward_model"):  # there is a reference or a reward score now
        policy.rescore(run)


# The fields by which a stage names earlier ones, and of which kinds these are.
_NAMES = {
    "init": run_lib.POLICIES,
    "models": run_lib.POLICIES,
    "reward": ("reward_model",),
    "judges": ("reward_model",),
    "pool": ("best_of_n",),
}


def _check_names(run: run_lib.Run, stage: str) -> None:
    """Raises InputError where config[stage] names a stage that does not come before it, or is of another kind."""
    section, stages = run.config[stage], list(run.config.stages)
    earlier = stages[: stages.index(stage)]
    for field, kinds in _NAMES.items():
        named = section.get(field) or ()
        for name in [named] if isinstance(named, str) else named:
            name = name.partition("@")[0] if field == "models" else name
            fitting = [other for other in earlier if run.config[other].kind in kinds]
            # Only what is no stage of the config at all can be a folder of released weights, or another run.
            if name not in fitting and (name in run.config or field == "models"):
                raise InputError(
                    f"{stage}.{field} names '{name}', which is no {' or '.join(kinds)} stage before '{stage}' in "
                    f"config.stages; there {'is' if len(fitting) == 1 else 'are'} {', '.join(fitting) or 'none'}"
                )


def check(run: run_lib.Run) -> None:
    """Reads all that the stages will read: what a later one would refuse is said before hours of the earlier ones.

    So is damage of finished ones.

    Raises:
      InputError: a stage needs what there is not, also for its evaluation; or a file is not as its stage left it.
    """
    if not all(map(run.done, run.config.stages)):
        run.corpus.read()
    for stage in run.config.stages:
        kind = run.config[stage].kind
        if run.done(stage):
            hosts.on_first(finished.check, run.folder(stage))
            hosts.on_first(checkpoint.check_params, run.folder(stage) / "params")
        else:
            _check_names(run, stage)
            _CHECKS[kind](run, stage)
            run.check_released(stage)
        if to_evaluate(run, stage) or kind in ("best_of_n", "prompted") and not run.done(stage):
            policy.check(run, stage)
    sharding.check_parts("evaluate.batch_size", run.config.evaluate.batch_size, 1, run.mesh)
