"""A Slurm cluster of two nodes on this machine, for tests: Debian's packages, started as root, not as services."""

import contextlib
import os
import shutil
import socket
import subprocess
import time

import pytest

NODES = ("127.0.0.1", "127.0.0.2")  # addresses as names: JAX must be able to reach the first one by its name
# cred_expire is how long a job waits that was queued again: two minutes otherwise, five seconds at least.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SchedulerParameters=sched_interval=1
NodeName={nodes[0]} NodeAddr={nodes[0]} NodeHostname={host} Port={ports[1]} CPUs=2
NodeName={nodes[1]} NodeAddr={nodes[1]} NodeHostname={host} Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Installs slurm-wlm and munge where they are missing; skips the tests where that does not work."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster is started as root")
    if not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))):
        if not shutil.which("apt-get"):
            pytest.skip("no Slurm, and no apt-get to install it")
        command = "apt-get update -q && apt-get install -qy --no-install-recommends slurm-wlm munge"
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(command, shell=True, env=environment, capture_output=True).returncode:
            pytest.skip("apt-get cannot install slurm-wlm and munge")


@contextlib.contextmanager
def running(folder):
    """The environment in which sbatch and the like talk to the cluster; its daemons end with the context."""
    with contextlib.ExitStack() as sockets:
        listeners = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [listener.getsockname()[1] for listener in listeners]
    (folder / "state").mkdir()
    config = CONFIG.format(folder=folder, host=socket.gethostname(), ports=ports, nodes=NODES)
    (folder / "slurm.conf").write_text(config)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    munge = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    daemons = [
        ["munged", "--foreground", "--force", *(f"--{flag}={folder}/munge.{end}" for flag, end in munge.items())],
        ["slurmctld", "-D", "-f", f"{folder}/slurm.conf"],
        *(["slurmd", "-D", "-N", node, "-f", f"{folder}/slurm.conf"] for node in NODES),
    ]
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
    processes = []
    try:
        for daemon in daemons:
            log = open(folder / f"{len(processes)}-{daemon[0]}.log", "w", encoding="utf-8")
            processes.append(subprocess.Popen(daemon, stdout=log, stderr=log, env=environment))
            time.sleep(0.5)  # munged first: the others do not wait for it
        deadline = time.time() + 60
        while _states(environment) != ["idle", "idle"]:
            logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
            assert time.time() < deadline and not any(process.poll() for process in processes), logs
            time.sleep(0.5)
        yield environment
    finally:
        for user in (["scancel", "--user=root"], ["scancel", "--signal=KILL", "--full", "--user=root"]):
            subprocess.run(user, env=environment, capture_output=True, timeout=30)
            time.sleep(2)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _states(environment) -> list[str]:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()


def job(environment, identifier) -> dict[str, str]:
    """What scontrol says of a job, e.g. JobState, ExitCode, Restarts."""
    command = ["scontrol", "--oneliner", "show", "job", str(identifier)]
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in text.splitlines()[0].split() if "=" in word)


def wait(environment, identifier, states=("COMPLETED", "FAILED", "CANCELLED"), seconds=120) -> dict[str, str]:
    """Waits until a job is in one of these states; the job."""
    deadline = time.time() + seconds
    while (found := job(environment, identifier))["JobState"] not in states:
        assert time.time() < deadline, found
        time.sleep(0.3)
    return found
