"""Chips, the topologies that exist of them, and the devices to compile for.

A topology is named chip:shape. The shape of a TPU slice is in chips, as in `v5p:8x8x8` or `v5e:16x16`; several slices
are `v5e:16x16x4slices`. GPUs are `h100:8`, or nodes x GPUs as in `h200:2x8`. `cpu:8` is this machine with 8 virtual
devices. The compilers accept shapes that nobody offers; `parse` refuses them.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable

import jax

from rlhf_jax.runtime import libtpu
from rlhf_jax.runtime.errors import InputError

_GIB = 2**30

# v4 and v5p slices are made of 4x4x4 cubes, with sides in ascending order. The shapes smaller than a cube are these:
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# v5e and v6e slices have one of these shapes.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))


@dataclasses.dataclass(frozen=True)
class Chip:
    """The limits of a chip. Rates are per chip and per second; a rate that nobody publishes is None.

    Attributes:
      name: name of the chip in the names of topologies.
      kind: "tpu", "gpu" or "cpu".
      memory: bytes that a program can use: for a TPU what its compiler allows, for a GPU the memory of the card.
      flops: dense bfloat16 FLOPs; a multiply-add counts 2.
      memory_bandwidth: bytes read from or written to main memory.
      link_bandwidth: bytes sent to chips of the same slice or node, over all links together, in one direction.
      network_bandwidth: bytes sent to other slices or nodes.
      source: source of the rates.
      group: number of GPUs of a node.
      most: number of chips of the largest slice, for TPUs whose slices are made of cubes; 0 for other chips.
    """

    name: str
    kind: str
    memory: int
    flops: float | None
    memory_bandwidth: float | None
    link_bandwidth: float | None
    network_bandwidth: float | None
    source: str
    group: int = 0
    most: int = 0


_TPU_DOCS = "cloud.google.com/tpu/docs/"
CHIPS = {
    chip.name: chip
    for chip in (
        # The memory of a TPU is what its compiler says is available: 0.25 to 1.25 GiB less than in the data sheet.
        Chip(
            "v4",
            "tpu",
            int(30.75 * _GIB),
            275e12,
            1.2e12,
            300e9,
            None,
            _TPU_DOCS + "v4; links: arXiv 2304.01433",
            most=4096,
        ),
        Chip("v5e", "tpu", int(15.75 * _GIB), 197e12, 819e9, 200e9, 3.125e9, _TPU_DOCS + "v5e"),
        Chip("v5p", "tpu", int(95.74 * _GIB), 459e12, 2765e9, 600e9, 6.25e9, _TPU_DOCS + "v5p", most=6144),
        Chip("v6e", "tpu", int(31.25 * _GIB), 918e12, 1638e9, 400e9, 12.5e9, _TPU_DOCS + "v6e"),
        Chip(
            "h100", "gpu", 84_942_979_072, 989.4e12, 3352e9, 450e9, 50e9, "NVIDIA H100 SXM and DGX H100 data sheets", 8
        ),
        Chip(
            "h200", "gpu", 151_397_597_184, 989.4e12, 4800e9, 450e9, 50e9, "NVIDIA H200 SXM and DGX H200 data sheets", 8
        ),
        Chip("cpu", "cpu", 0, None, None, None, None, "this machine"),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that can be had together.

    Attributes:
      name: name of the topology, as in `h200:2x8`.
      chip: the chip.
      shape: for a TPU the sides of a slice in chips, for GPUs (nodes, GPUs of a node), for a CPU (devices,).
      slices: number of TPU slices, which the data center network joins.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """The number of chips, over all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def islands(self) -> int:
        """The number of slices or nodes: chips of the same one are joined by links, others by the network."""
        return self.shape[0] if self.chip.kind == "gpu" else self.slices

    def island_of(self, device) -> int:
        """Returns the index of the slice or node that a device is in."""
        if self.chip.kind == "gpu":
            return device.process_index
        return getattr(device, "slice_index", None) or 0

    def devices(self) -> list:
        """Returns the devices to compile for.

        Raises:
          InputError: the compiler for the devices is not installed.
        """
        return _DEVICES[self.chip.kind](self)


def parse(name: str, slices: int = 1) -> Topology:
    """Returns the topology of a name.

    Args:
      name: the name, chip:shape.
      slices: number of TPU slices, if the name does not say it.

    Raises:
      InputError: the chip or the shape does not exist; the message says which do.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise InputError(
            f"topology '{name}': there is no chip '{kind}'; the chips are {', '.join(CHIPS)}{_count_hint(name)}"
        )
    chip = CHIPS[kind]
    if found := re.fullmatch(r"(.+)x(\d+)slices", shape):
        shape, slices = found[1], int(found[2])
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise InputError(f"topology '{name}' has no shape; write it as {_EXAMPLES[kind]}")
    sides = tuple(int(side) for side in shape.split("x"))
    if not _exists(chip, sides):
        raise InputError(f"topology '{name}' does not exist; {_shapes(chip)}")
    if slices < 1 or slices > 1 and (chip.kind != "tpu" or chip.network_bandwidth is None):
        raise InputError(f"topology '{name}' cannot have {slices} slices; only v5e, v5p and v6e can have several")
    if chip.kind == "gpu" and len(sides) == 1:
        sides = (1, *sides)
    if chip.kind == "cpu":
        chip = dataclasses.replace(chip, memory=_machine_memory() // sides[0])
    name = f"{kind}:{shape}" + (f"x{slices}slices" if slices > 1 else "")
    return Topology(name, chip, sides, slices)


_EXAMPLES = {
    "v4": "v4:4x4x4",
    "v5e": "v5e:4x4",
    "v5p": "v5p:4x4x4",
    "v6e": "v6e:4x4",
    "h100": "h100:8",
    "h200": "h200:2x8",
    "cpu": "cpu:8",
}


def _exists(chip: Chip, sides: tuple[int, ...]) -> bool:
    """Returns whether a chip is offered in a shape."""
    if chip.kind == "cpu":
        return len(sides) == 1
    if chip.kind == "gpu":
        *nodes, cards = sides
        return len(nodes) <= 1 and (cards == chip.group if nodes and nodes != [1] else cards in (1, 2, 4, 8))
    if not chip.most:
        return sides in _FLAT
    cubes = len(sides) == 3 and all(side % 4 == 0 for side in sides) and list(sides) == sorted(sides)
    return sides in _BELOW_A_CUBE or cubes and math.prod(sides) <= chip.most


def _shapes(chip: Chip) -> str:
    """Returns the end of an error message that lists the shapes of a chip."""

    def join(shapes):
        return ", ".join("x".join(map(str, sides)) for sides in shapes)

    if chip.kind == "cpu":
        return "write the number of virtual devices, as in cpu:8"
    if chip.kind == "gpu":
        return f"a node has 1, 2, 4 or {chip.group} {chip.name}, and several nodes {chip.group} each, as in {chip.name}:2x8"
    if not chip.most:
        return f"{chip.name} slices are {join(_FLAT)} (and several of them, as in {chip.name}:16x16x4slices)"
    return (
        f"{chip.name} slices are {join(_BELOW_A_CUBE)}, and from 4x4x4 on AxBxC with A <= B <= C multiples of 4, "
        f"up to {chip.most} chips"
    )


def _count_hint(name: str) -> str:
    """Returns a hint for a name such as v5p-32, which gives a count without a shape; "" for other names."""
    if found := re.fullmatch(r"(v\d\w*?)(?:litepod)?-(\d+)", name):
        counts = "TensorCores, two a chip" if found[1] in ("v4", "v5p") else "chips"
        return f"; '{name}' counts {counts}: write the shape of the slice instead, as in v5p:2x2x4 or v5e:4x4"
    return ""


def prepare(topologies: list[Topology]) -> None:
    """Sets what must be set before JAX starts: the platform to CPU, and the number of virtual CPU devices.

    Compiling ahead of time uses no accelerator of this machine.
    """
    libtpu.set_options()
    os.environ["JAX_PLATFORMS"] = "cpu"  # GPU plugins then do not look for a GPU
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several plans may run at a time: there is no TPU to lock
    # libtpu must not ask a metadata server about this machine, nor warn that it got no answer. What kind of machine it
    # is does not matter, so any accelerator type will do.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    virtual = max((topology.chips for topology in topologies if topology.chip.kind == "cpu"), default=0)
    if virtual:
        try:
            jax.config.update("jax_num_cpu_devices", virtual)
        except RuntimeError:  # JAX runs already, as in tests; _cpu_devices then checks that there are enough devices
            pass


def _tpu_devices(topology: Topology) -> list:
    """Returns the devices of TPU slices, as the TPU compiler describes them."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"{topology.name} needs the TPU compiler; the extra [plan] has it: pip install -e '.[plan]'")
    options = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # a chip is one device, as on a real v4
    if topology.chips // topology.slices == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    shape = "x".join(map(str, topology.shape))
    return _describe("tpu", f"{topology.chip.name}:{shape}", **options)


def _gpu_devices(topology: Topology) -> list:
    """Returns the devices of GPU nodes, as the CUDA compiler describes them."""
    needed = ("jax_plugins.xla_cuda13", "nvidia.cu13")
    if not all(_installed(name) for name in needed):
        raise InputError(
            f"{topology.name} needs the CUDA compiler; the extra [plan_gpu] has it: pip install -e '.[plan_gpu]'"
        )
    nodes, cards = topology.shape
    config = _GPU_TARGET.format(
        name=topology.chip.name.upper(),
        memory=topology.chip.memory,
        bandwidth=int(topology.chip.memory_bandwidth),
        clock=_SXM_MEMORY_CLOCK[topology.chip.name],
    )
    return _describe("cuda", topology.chip.name, target_config=config, topology=f"1x{nodes}x{cards}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _cpu_devices(topology: Topology) -> list:
    """Returns virtual CPU devices of this process."""
    found = jax.devices("cpu")
    if len(found) < topology.chips:
        raise InputError(f"{topology.name}: this process has {len(found)} CPU devices; set jax_num_cpu_devices first")
    return found[: topology.chips]


def _describe(platform: str, name: str, **options) -> list:
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)


_DEVICES: dict[str, Callable] = {"tpu": _tpu_devices, "gpu": _gpu_devices, "cpu": _cpu_devices}


def _machine_memory() -> int:
    """Returns the bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# The CUDA compiler reads this description of a card: Hopper's numbers (NVIDIA H100 white paper), with SXM clocks.
_SXM_MEMORY_CLOCK = {"h100": 2619, "h200": 3750}  # MHz
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0"
  model_str: "sm_9.0 with {memory}B RAM, 132 cores, 1980000KHz clock, {clock}000KHz mem clock, 52428800B L2$"
  device_address_bits: 64 name: "NVIDIA {name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""
