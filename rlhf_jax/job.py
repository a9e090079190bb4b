"""The start and the end of the commands that train: common flags, the processes of a job, exit statuses.

Exit statuses:

    0    done
    1    an error of the program, with its traceback
    2    bad input, or a disk that is full or refuses a file
    3    a loss that is not finite
    4    done, but arms of a sweep failed
    75   stopped by SIGTERM or the end of the terminal, with everything saved
    76   another process of the job ended, or did not join in time
    130  stopped by Ctrl-C

After 75, 76 and 130, the same command resumes the run. It also does after 134, with which JAX ends a process when
another host does not respond.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from rlhf_jax import command_line, loop
from rlhf_jax import config as config_lib
from rlhf_jax.runtime import hosts, programs, progress
from rlhf_jax.runtime.errors import EXIT_BAD_INPUT, EXIT_STOPPED, InputError, refused

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment file, such as experiments/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run or sweep lives. The same folder again resumes it.")
_DATA = flags.DEFINE_string("data", None, "The folder of the data files (sets data.files.dir).")
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "'auto' joins the other processes of this cluster. Empty means one process, or those of --coordinator.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "The HOST:PORT at which process 0 can be reached, for processes outside a cluster."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "The number of processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, counted from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds",
    100,
    "The number of seconds after which a host that is not heard of ends the job.",
    lower_bound=5,
)
flags.mark_flags_as_required(["config", "workdir"])
# An unset shell variable gives an empty path, which would mean the current directory.
flags.register_validator("workdir", lambda path: path != "", "it is empty: name a folder")
flags.register_validator("data", lambda path: path != "", "it is empty: name a folder, or leave the flag out")

EXIT_NON_FINITE, EXIT_FAILED_ARMS, EXIT_SAVED, EXIT_LOST_PEER = 3, 4, 75, 76


@dataclasses.dataclass(frozen=True)
class Job:
    """The content of the command line.

    Attributes:
      config: the config, with the overrides of the command line.
      config_file: value of --config, including the part after a colon.
      overrides: dotted field -> value, the fields given on the command line.
      workdir: value of --workdir.
      rest: arguments that are no flags, and those after a lone --.
    """

    config: ConfigDict
    config_file: str
    overrides: dict
    workdir: str
    rest: list[str]

    def join(self) -> None:
        """Joins the other processes of the job; must be called before anything that touches a device.

        Raises:
          InputError: the flags contradict each other, there is no cluster, or the config's platform is not available.
          hosts.NotJoined: another process did not join in time.
        """
        try:
            hosts.start(
                _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value
            )
        except RuntimeError as error:  # this call is the first to touch a device, so a missing backend shows here
            if "backend" not in str(error):
                raise
            platform = os.environ.get("JAX_PLATFORMS", "")
            raise InputError(
                f"platform='{platform}' is not available on this machine: {str(error).splitlines()[0]}"
            ) from error
        programs.keep()


def main(name: str, work: Callable[[Job], int | None]) -> None:
    """Runs a command: reads its flags, calls `work`, and exits with a status of the module's table.

    Args:
      name: name of the command, which starts every message.
      work: function that does the command's work and returns the exit status, None for 0. It calls `Job.join` if it
        computes anything.
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
            os.environ["JAX_PLATFORMS"] = config.platform  # for processes that this one starts
            jax.config.update("jax_platforms", config.platform)
        logging.set_verbosity(logging.WARNING)
        flag = flags.FLAGS["config"]
        overrides = config_flags.get_override_values(flag)
        job = Job(config, flag.config_filename, overrides, _WORKDIR.value, arguments[1:])
        status = _status(name, work, job)
        if hosts.count() == 1:
            hosts.leave(status)
        return status  # all processes of the job come here and end together; otherwise `_status` has left this one

    # This handler is active where no progress.Interrupt is: before it, after it, and at Python's exit. There is nothing
    # to save then.
    signal.signal(signal.SIGINT, stop)
    command_line.run(name, run)


def _status(name: str, work: Callable[[Job], int | None], job: Job) -> int:
    """Returns the exit status of work that all processes end together; an error that ends this process does not return.

    Such an error leaves the process at once (see hosts.leave), because other processes may never reach their end.
    """

    def said(sentence, status: int) -> int:
        with contextlib.suppress(OSError):  # the terminal may be gone
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
    except progress.Stopped as error:  # raised on all processes, which end together
        return said(error, EXIT_STOPPED if error.signal == signal.SIGINT else EXIT_SAVED)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third Ctrl-C has no effect
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
