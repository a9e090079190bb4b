"""Runs the stages of a config in order:

    python -m rlhf_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Stages that are finished are not repeated; a half-finished stage goes on from its checkpoint.

On several hosts, start the same command on each of them, with --distributed=auto where a cluster
(TPU pod, SLURM, Open MPI, Kubernetes) tells the processes of each other, and otherwise with
--coordinator=HOST:PORT --num_processes=N --process_id=I. Exit statuses: job.py.
"""

from absl import flags

from rlhf_jax import job, pipeline
from rlhf_jax.runtime.errors import InputError

flags.adopt_module_key_flags(job)


def work(given: job.Job) -> None:
    if given.rest:
        raise InputError(f"unknown argument '{given.rest[0]}'; fields are set as --config.ppo.kl_coef=0.05")
    given.join()
    pipeline.run_stages(given.config, given.workdir, given.overrides)


if __name__ == "__main__":
    job.main("rlhf_jax", work)
