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
    from rlhf_jax import hosts, loop, pipeline, progress

    try:
        hosts.start(
            _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value
        )
        pipeline.run_stages(config, _WORKDIR.value, config_flags.get_override_values(flags.FLAGS["config"]))
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


def _fail(error, code: int) -> int:
    print(f"rlhf_jax: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main)
