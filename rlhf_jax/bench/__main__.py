"""The command of the benchmark; see __init__.py."""

from absl import flags
from ml_collections import config_flags

from rlhf_jax import command_line
from rlhf_jax.bench import command

if __name__ == "__main__":  # false in the processes of the works, which import this file too
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _VS = flags.DEFINE_enum(
        "vs", None, ["torch"], "With whom to compare: the same work by torch, transformers and TRL, side by side."
    )
    command_line.run("rlhf_jax.bench", lambda _: command.main(_CONFIG.value, _VS.value), fields=False)
