"""Sets options of libtpu, XLA's compiler for TPUs, for runs and for plans."""

import os

# By itself XLA multiplies with split weights piece by piece, while the devices pass the pieces round a ring. With FSDP over
# 8 to 32 chips, such train steps move up to 12 times as many bytes of memory as those that gather the weights first
# (docs/measurements.md, "Products of split weights on TPUs").
_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
_VARIABLE = "LIBTPU_INIT_ARGS"


def set_options() -> None:
    """Adds the options to LIBTPU_INIT_ARGS; an option that is there already keeps its value.

    libtpu reads the variable when it is loaded, so commands call this before anything that touches a device.
    """
    given = os.environ.get(_VARIABLE, "").split()
    names = {argument.split("=")[0].removeprefix("--") for argument in given}
    added = [f"--{name}={value}" for name, value in _OPTIONS.items() if name not in names]
    os.environ[_VARIABLE] = " ".join(given + added)


def options() -> str:
    """Returns what the environment tells libtpu."""
    return os.environ.get(_VARIABLE, "")
