"""How programs of tests that train whole stages are compiled: simply, because they are small and run briefly."""

import contextlib
import functools

import jax
from jax._src import compiler

_OPTION = {"xla_cpu_use_fusion_emitters": False}
_most_devices = 0


@contextlib.contextmanager
def simply_up_to(devices: int):
    """Within, programs of at most so many CPU devices are compiled without XLA's fusion emitters, in half the time.

    Programs of several devices may then be read, but not run: the devices do not meet in their collectives. Different
    programs round differently, so tests that ask for the same bits of two programs want the usual compiler. JAX has no
    public setting of the compiler's options for all programs, so this reaches into it. With jax 0.11, whose compiler no
    longer has the option, nothing changes.
    """
    global _most_devices
    _install()
    _most_devices, before = devices, _most_devices
    try:
        yield
    finally:
        _most_devices = before


@functools.cache
def _install() -> None:
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
