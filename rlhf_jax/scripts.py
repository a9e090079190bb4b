"""The commands that `pip install` puts on the PATH: each is `python -m` of the module of the same job."""

import runpy


def _command(module: str):
    """Returns a function that runs a module as a program."""

    def command() -> None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return command


train = _command("rlhf_jax.main")
sweep = _command("rlhf_jax.sweep")
report = _command("rlhf_jax.report")
chat = _command("rlhf_jax.chat")
label = _command("rlhf_jax.label")
generate = _command("rlhf_jax.generate")
plan = _command("rlhf_jax.plan")
bench = _command("rlhf_jax.bench")
hf = _command("rlhf_jax.hf")
config = _command("rlhf_jax.config")
describe = _command("rlhf_jax.data.describe")
prepare = _command("rlhf_jax.data.prepare")
replay = _command("rlhf_jax.evaluate.replay")
evaluate = _command("rlhf_jax.evaluate")
compare = _command("rlhf_jax.evaluate.compare")
judge = _command("rlhf_jax.evaluate.judge")
toxicity = _command("rlhf_jax.evaluate.toxicity")
rewards = _command("rlhf_jax.evaluate.rewards")
