"""Runs the stages of a config in order:

    python -m rlhf_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Stages that are finished are not repeated; a half-finished stage goes on from its checkpoint.

On several hosts, start the same command on each of them, with --distributed=auto where a cluster
(TPU pod, SLURM, Open MPI, Kubernetes) tells the processes of each other, and otherwise with
--coordinator=HOST:PORT --num_processes=N --process_id=I.

Exit status: 0 done; 2 bad input; 3 a loss that is not finite; 75 stopped by SIGTERM, everything
saved; 76 another process of the job ended or did not come; 130 stopped by Ctrl-C. After 75, 76 and 130 (and 134,
JAX's own end when a host is not heard of) the same command goes on where the run stopped.
"""

import os
import signal
import sys
import time
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, e.g. experiments/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; the same folder again resumes it.")
_DATA = flags.DEFINE_string("data", None, "The folder of the data files (sets data.files.dir).")
_DISTRIBUTED = flags.DEFINE_string("distributed", "", "'auto': join the other processes of this cluster.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 can be reached, outside a cluster.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 100, "A host not heard of for so long ends the job.", lower_bound=5)
flags.mark_flags_as_required(["config", "workdir"])

EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_SAVED, EXIT_LOST_PEER, EXIT_STOPPED = 2, 3, 75, 76, 130


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument '{argv[1]}'; fields are set as --config.ppo.kl_coef=0.05")
    config = _CONFIG.value
    if _DATA.value is not None:
        config.data.files.dir = _DATA.value
    if config.platform:
        os.environ["JAX_PLATFORMS"] = config.platform
    logging.set_verbosity(logging.WARNING)
    from rlhf_jax import hosts, loop, progress

    try:
        hosts.start(
            _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value
        )
        run_stages(config, _WORKDIR.value, config_flags.get_override_values(flags.FLAGS["config"]))
    except InputError as error:
        hosts.leave(_fail(error, EXIT_BAD_INPUT))
    except hosts.NotJoined as error:
        hosts.leave(_fail(error, EXIT_LOST_PEER))
    except loop.NonFinite as error:
        hosts.leave(_fail(error, EXIT_NON_FINITE))
    except progress.Stopped as error:  # all processes are here, and end together
        sys.exit(_fail(error, EXIT_STOPPED if error.signal == signal.SIGINT else EXIT_SAVED))
    except KeyboardInterrupt:
        hosts.leave(_fail("stopped without saving; run the same command to go on", EXIT_STOPPED))
    except Exception as error:
        if not hosts.lost_peer(error):
            traceback.print_exc()
            hosts.leave(_fail(f"{hosts.describe()} failed", 1) if hosts.count() > 1 else 1)
        hosts.leave(
            _fail(
                f"{hosts.describe()}: another process of the job ended or cannot be reached; what is saved is good: start "
                f"the same command on all hosts again ({str(error).splitlines()[0]})",
                EXIT_LOST_PEER,
            )
        )


def run_stages(config, path: str, overrides: dict | None = None) -> None:
    """The pipeline: each unfinished stage of config.stages, its evaluation, and the report."""
    from rlhf_jax import collect, dpo, hosts, ppo_stage, pretrain, report, reward_model, sft, sharding, supervised
    from rlhf_jax import run as run_lib
    from rlhf_jax.evaluate import best_of_n, policy

    kinds = {
        "pretrain": pretrain.run_stage,
        "sft": sft.run_stage,
        "collect": collect.run_stage,
        "reward_model": reward_model.run_stage,
        "ppo": ppo_stage.run_stage,
        "dpo": dpo.run_stage,
        "best_of_n": best_of_n.run_stage,
    }
    for stage in config.stages:
        if stage not in config or config[stage].get("kind") not in kinds:
            raise InputError(f"config.stages names '{stage}', but config.{stage}.kind is none of {', '.join(kinds)}")
    checks = {"ppo": ppo_stage.check, "dpo": dpo.check, "best_of_n": best_of_n.check}
    with run_lib.start(config, path, overrides) as run:
        for stage in config.stages:  # what a later stage would refuse is said before hours of the earlier ones
            check = checks.get(config[stage].kind, supervised.check)
            if not run.done(stage):
                check(run, stage)
                run.check_released(stage)
        sharding.check_parts("evaluate.batch_size", config.evaluate.batch_size, 1, run.mesh)
        for stage in config.stages:
            kind = config[stage].kind
            if run.done(stage):
                print(f"{stage}: finished before")
            else:
                started = time.time()
                kinds[kind](run, stage)
                run.workdir.mark_done(stage, time.time() - started, **report.machine())
            # Also where an earlier start was stopped between a stage and its evaluation.
            if kind in run_lib.POLICIES and not run.evaluated(stage):
                started = time.time()
                policy.evaluate_policy(run, stage)
                run.workdir.mark_evaluated(stage, time.time() - started)
                print(f"{stage}: evaluated in {time.time() - started:.1f} s", flush=True)
            if kind in ("sft", "reward_model"):
                policy.rescore(run)
        hosts.on_first(lambda: report.show(report.write(run.path)))


def _fail(error, code: int) -> int:
    print(f"rlhf_jax: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main)
