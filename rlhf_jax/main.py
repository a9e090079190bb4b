"""Runs the stages of a config in order:

    python -m rlhf_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Stages that are finished are not repeated; a half-finished stage goes on from its checkpoint.
"""

import os
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, e.g. experiments/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; the same folder again resumes it.")
_DATA = flags.DEFINE_string("data", None, "The folder of the data files (sets data.files.dir).")
flags.mark_flags_as_required(["config", "workdir"])

EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED = 2, 3, 130


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument '{argv[1]}'; fields are set as --config.ppo.kl_coef=0.05")
    config = _CONFIG.value
    if _DATA.value is not None:
        config.data.files.dir = _DATA.value
    if config.platform:
        os.environ["JAX_PLATFORMS"] = config.platform
    logging.set_verbosity(logging.WARNING)
    from rlhf_jax import loop, progress

    try:
        run_stages(config, _WORKDIR.value, config_flags.get_override_values(flags.FLAGS["config"]))
    except InputError as error:
        sys.exit(_fail(error, EXIT_BAD_INPUT))
    except loop.NonFinite as error:
        sys.exit(_fail(error, EXIT_NON_FINITE))
    except (progress.Stopped, KeyboardInterrupt) as error:
        sys.exit(_fail(error if str(error) else "stopped without saving; run the same command to go on", EXIT_STOPPED))


def run_stages(config, path: str, overrides: dict | None = None) -> None:
    """The pipeline: each unfinished stage of config.stages, its evaluation, and the report."""
    from rlhf_jax import collect, ppo_stage, pretrain, report, reward_model, sft
    from rlhf_jax import run as run_lib
    from rlhf_jax.evaluate import policy

    kinds = {
        "pretrain": pretrain.run_stage,
        "sft": sft.run_stage,
        "collect": collect.run_stage,
        "reward_model": reward_model.run_stage,
        "ppo": ppo_stage.run_stage,
    }
    for stage in config.stages:
        if stage not in config or config[stage].get("kind") not in kinds:
            raise InputError(f"config.stages names '{stage}', but config.{stage}.kind is none of {', '.join(kinds)}")
    with run_lib.start(config, path, overrides) as run:
        for stage in config.stages:
            kind = config[stage].kind
            if run.done(stage):
                print(f"{stage}: finished before")
            else:
                started = time.time()
                kinds[kind](run, stage)
                run.workdir.mark_done(stage, time.time() - started, **report.machine())
            # Also where an earlier start was stopped between a stage and its evaluation.
            if kind in ("pretrain", "sft", "ppo") and not (run.folder(stage) / "evaluation.json").exists():
                started = time.time()
                policy.evaluate_policy(run, stage)
                run.workdir.mark_evaluated(stage, time.time() - started)
                print(f"{stage}: evaluated in {time.time() - started:.1f} s", flush=True)
            if kind in ("sft", "reward_model"):
                policy.rescore(run)
        report.show(report.write(run.path))


def _fail(error, code: int) -> int:
    print(f"rlhf_jax: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main)
