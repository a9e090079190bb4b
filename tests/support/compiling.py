"""How the tests' programs are compiled: simply, because they are small and run briefly."""

import contextlib

import jax
from jax._src import compiler

_OPTION = {"xla_cpu_use_fusion_emitters": False}
_most_devices = 1


def simply() -> None:
    """Lets this process compile programs of one CPU device without XLA's fusion emitters, in half the time.

    Programs of several devices keep them: without them the devices do not meet in their collectives, and wait for each
    other forever. For that reason this is no flag in XLA_FLAGS. JAX has no public setting of the compiler's options for
    all programs, so this reaches into it. With jax 0.11, whose compiler no longer has the option, nothing changes.
    """
    usual = compiler.get_compile_options

    def chosen(num_replicas, num_partitions, device_assignment=None, **named):
        options = usual(num_replicas, num_partitions, device_assignment, **named)
        devices = [] if device_assignment is None else list(device_assignment.flat)
        if 1 <= len(devices) <= _most_devices and getattr(devices[0], "platform", "") == "cpu":
            options.env_option_overrides = [*options.env_option_overrides, *_OPTION.items()]
        return options

    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=_OPTION)
        compiler.get_compile_options = chosen


@contextlib.contextmanager
def simply_up_to(devices: int):
    """Within, programs of so many devices are compiled simply; none at 0, and at 8 those that nothing will run too."""
    global _most_devices
    _most_devices, before = devices, _most_devices
    try:
        yield
    finally:
        _most_devices = before
