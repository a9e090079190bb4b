"""How the commands that train begin and end: their common flags, the processes of a job, exit statuses.

Exit status: 0 done; 1 an error of the program, with its traceback; 2 bad input, or a disk that refuses; 3 a loss that
is not finite; 4 done, but arms of a sweep failed; 75 stopped by SIGTERM or the end of the terminal, everything saved;
76 another process of the job ended or did not come; 130 stopped by Ctrl-C. After 75, 76 and 130 (and 134, JAX's own
end when a host is not heard of) the same command goes on where the run stopped.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from rlhf_jax import config as config_lib
from rlhf_jax.runtime import command_line
from rlhf_jax.runtime.errors import EXIT_BAD_INPUT, EXIT_STOPPED, InputError, refused

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. experiments/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run or sweep lives; the same folder again resumes it.")
_DATA = flags.DEFINE_string("data", None, "The folder of the data files (sets data.files.dir).")
_DISTRIBUTED = flags.DEFINE_string("distributed", "", "'auto': join the other processes of this cluster.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 can be reached, outside a cluster.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 100, "A host not heard of for so long ends the job.", lower_bound=5
)
flags.mark_flags_as_required(["config", "workdir"])
# An unset variable of a shell is an empty text, and an empty path the current directory.
flags.register_validator("workdir", lambda path: path != "", "it is empty: name a folder")
flags.register_validator("data", lambda path: path != "", "it is empty: name a folder, or leave the flag out")

EXIT_NON_FINITE, EXIT_FAILED_ARMS, EXIT_SAVED, EXIT_LOST_PEER = 3, 4, 75, 76


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command line says.

    Attributes:
      config: with the overrides of the command line.
      config_file: as it was given, with what follows a colon.
      overrides: dotted field -> value, what was given beside the file.
      workdir: as it was given.
      rest: the arguments that are no flags, and those after a lone --.
    """

    config: ConfigDict
    config_file: str
    overrides: dict
    workdir: str
    rest: list[str]

    def join(self) -> None:
        """Joins the other processes of the job; comes before anything that touches a device.

        Raises:
          InputError: flags that contradict each other, or no cluster.
          hosts.NotJoined: another process did not come in time.
        """
        from rlhf_jax.runtime import hosts

        try:
            hosts.start(
                _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value
            )
        except RuntimeError as error:  # the first that touches a device
            if "backend" not in str(error):
                raise
            platform = os.environ.get("JAX_PLATFORMS", "")
            raise InputError(f"platform='{platform}' is not there: {str(error).splitlines()[0]}") from error


def main(name: str, work: Callable[[Job], int | None]) -> None:
    """The main function of a command.

    Args:
      name: of the command, before every sentence.
      work: what it does; the exit status, None for 0. It imports JAX itself, which reads the platform when it is
        imported, and calls `Job.join` if it is going to compute.
    """
    stopped = f"{name}: stopped; run the same command to go on"

    def stop(*_):
        with contextlib.suppress(OSError):
            os.write(2, f"\n{stopped}\n".encode())
        os._exit(EXIT_STOPPED)

    def run(arguments: list[str]) -> int:
        config = _CONFIG.value
        config_lib.check(config)
        if _DATA.value is not None:
            config.data.files.dir = _DATA.value
        if config.platform:
            os.environ["JAX_PLATFORMS"] = config.platform
        logging.set_verbosity(logging.WARNING)
        flag = flags.FLAGS["config"]
        overrides = config_flags.get_override_values(flag)
        job = Job(config, flag.config_filename, overrides, _WORKDIR.value, arguments[1:])
        status = _status(name, work, job)
        from rlhf_jax.runtime import hosts

        if hosts.count() == 1:
            hosts.leave(status)
        return status  # when all processes have come here

    # Where no progress.Interrupt is (before it, after it, in what Python does at its exit) there is nothing to save.
    signal.signal(signal.SIGINT, stop)
    command_line.run(name, run)


def _status(name: str, work: Callable[[Job], int | None], job: Job) -> int:
    """The exit status of work that all processes end together; what ends this process alone does not return."""
    from rlhf_jax import loop
    from rlhf_jax.runtime import hosts, progress

    def said(sentence, status: int) -> int:
        with contextlib.suppress(OSError):  # the terminal is gone
            print(f"{name}: {sentence}", file=sys.stderr)
        return status

    try:
        return work(job) or 0
    except InputError as error:
        hosts.leave(said(error, EXIT_BAD_INPUT))
    except (hosts.NotJoined, hosts.Alone) as error:
        hosts.leave(said(error, EXIT_LOST_PEER))
    except loop.NonFinite as error:
        hosts.leave(said(error, EXIT_NON_FINITE))
    except progress.Stopped as error:  # all processes are here, and end together
        return said(error, EXIT_STOPPED if error.signal == signal.SIGINT else EXIT_SAVED)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a third
        hosts.leave(said("stopped without saving; run the same command to go on", EXIT_STOPPED))
    except Exception as error:
        if not hosts.lost_peer(error) and (refusal := refused(error)):
            hosts.leave(said(refusal, EXIT_BAD_INPUT))
        if not hosts.lost_peer(error):
            traceback.print_exc()
            hosts.leave(said(f"{hosts.describe()} failed", 1) if hosts.count() > 1 else 1)
        hosts.leave(
            said(
                f"{hosts.describe()}: another process of the job ended or cannot be reached; what is saved is good: start "
                f"the same command on all hosts again ({str(error).splitlines()[0]})",
                EXIT_LOST_PEER,
            )
        )
