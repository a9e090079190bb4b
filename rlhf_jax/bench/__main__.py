"""The command of the benchmark; see __init__.py."""

from ml_collections import config_flags

from rlhf_jax import bench, command_line

if __name__ == "__main__":  # false in the processes of the works, which import this file too
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    command_line.run("rlhf_jax.bench", lambda _: bench.main(_CONFIG.value), fields=False)
