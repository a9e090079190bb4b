"""The command of the benchmark; see __init__.py."""

from absl import flags
from ml_collections import config_flags

from rlhf_jax import command_line
from rlhf_jax.bench import command, versus

if __name__ == "__main__":  # false in the processes of the works, which import this file too
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _VS = flags.DEFINE_enum(
        "vs",
        None,
        list(versus.PEERS),
        "With whom to compare, side by side: torch, transformers and TRL; or the sampler of Tunix.",
    )
    command_line.run("rlhf_jax.bench", lambda _: command.main(_CONFIG.value, _VS.value), fields=False)
