"""The device mesh and the one table from logical axis names to mesh axes.

Every array of the program is placed by its logical axes: ("embed", "mlp") and so on. An unknown
name, two names of one array on one mesh axis, or a size that does not divide is an error that names
the array; nothing is replicated silently.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.runtime.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Logical axis -> mesh axes. Parameters and optimizer state follow it; override in config.sharding.
DEFAULT_RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "seq": None,
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor; -1 (at most once) takes the remaining devices.

    Several TPU slices are joined along `data`, so that fsdp and tensor stay on the fast network within one.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or data does not divide over the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"mesh sizes {sizes} must be positive, with at most one -1 for the rest")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fill {len(devices)} devices; "
            "the sizes must multiply to the number of devices (-1 takes the rest)"
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len(
        {getattr(device, "slice_index", 0) for device in devices}
    )  # described ahead of time, one slice has none
    if slices == 1:
        return Mesh(_on_torus(mesh_utils.create_device_mesh, sizes, devices), MESH_AXES, axis_types=types)
    if sizes[0] % slices:
        raise InputError(
            f"mesh data={sizes[0]} does not divide over {slices} TPU slices; only data may cross the network between "
            f"them: give data a multiple of {slices}, for example data={slices} fsdp=-1"
        )
    inside = (sizes[0] // slices, *sizes[1:])
    hybrid = _on_torus(mesh_utils.create_hybrid_device_mesh, inside, (slices, 1, 1), devices)
    return Mesh(hybrid, MESH_AXES, axis_types=types)


def _on_torus(lay_out: Callable, *arguments) -> np.ndarray:
    """Mesh axes along whole axes of a TPU slice's torus; where none fit, as 32 ways on 16 x 16, along parts of them."""
    try:
        return lay_out(*arguments)
    except NotImplementedError:
        return lay_out(*arguments, allow_split_physical_axes=True)


def partition_spec(
    axes: Sequence[str], shape: Sequence[int], mesh: Mesh, rules: Mapping = DEFAULT_RULES, name: str = "array"
) -> PartitionSpec:
    """The mesh axes of an array with these logical axes and this shape.

    Raises:
      InputError: a name without a rule, a mesh axis used twice, or a size that does not divide.
    """
    if len(axes) != len(shape):
        raise InputError(f"{name} has shape {tuple(shape)} but logical axes {tuple(axes)}")
    used: dict[str, str] = {}
    spec = []
    for axis, size in zip(axes, shape):
        if axis not in rules:
            raise InputError(f"{name}: no sharding rule for logical axis '{axis}'; known: {sorted(rules)}")
        target = rules[axis]
        mesh_axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        for mesh_axis in mesh_axes:
            if mesh_axis not in mesh.shape:
                raise InputError(f"rule '{axis}': '{mesh_axis}' is no mesh axis; there are {MESH_AXES}")
            if mesh_axis in used:
                raise InputError(
                    f"{name} {tuple(shape)}: logical axes '{used[mesh_axis]}' and '{axis}' both lie on "
                    f"mesh axis '{mesh_axis}'"
                )
            used[mesh_axis] = axis
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
        if size % ways:
            raise InputError(
                f"{name} {tuple(shape)}: axis '{axis}' of size {size} does not divide by {ways}, the "
                f"size of mesh axis {'x'.join(mesh_axes)}"
            )
        spec.append(target)
    return PartitionSpec(*spec)


def param_shardings(logical_axes, shapes, mesh: Mesh, rules: Mapping = DEFAULT_RULES):
    """NamedShardings for a parameter tree; `logical_axes` has a tuple of names where `shapes` has a leaf."""

    def place(path, leaf, axes):
        return NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh, rules, jax.tree_util.keystr(path)))

    return jax.tree_util.tree_map_with_path(place, shapes, logical_axes)


def optimizer_shardings(optimizer, opt_state_shapes, shardings, mesh: Mesh):
    """Optimizer state lies like the parameters it belongs to; counters are replicated."""
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state_shapes,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """First axis over data and fsdp, the rest replicated."""
    return NamedSharding(mesh, BATCH)


def put_batch(batch, mesh: Mesh):
    """Host arrays [B, ...], the same on every process -> global arrays sharded over the batch axis.

    A leaf that lies so already stays what it is.

    Raises:
      InputError: B does not divide by data x fsdp.
    """
    check_batch(batch, mesh)

    def put(x):
        if isinstance(x, jax.Array) and x.sharding == over_batch(mesh):
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, over_batch(mesh), lambda index: x[index])

    return jax.tree.map(put, batch)


def check_batch(batch, mesh: Mesh) -> None:
    """Raises InputError unless the rows of every array, or shape, divide over data x fsdp."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if np.shape(x)[0] % ways:
            raise InputError(
                f"batch{jax.tree_util.keystr(path)} has {np.shape(x)[0]} rows, which do not divide over data x fsdp = "
                f"{ways} devices; choose a batch size that is a multiple of {ways}"
            )


def check_parts(name: str, rows: int, parts: int, mesh: Mesh) -> None:
    """Raises InputError unless `rows` rows, taken in `parts` parts, divide over data x fsdp."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * ways):
        raise InputError(
            f"{name}: {rows} rows in {parts} parts do not divide over data x fsdp = {ways} devices; choose a batch size "
            f"that is a multiple of {parts * ways}, or other parts"
        )


def over_trials(mesh: Mesh) -> NamedSharding:
    """First axis, of trials, over all devices."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def put_trials(trees: Sequence, mesh: Mesh):
    """Host trees, one a trial, the same on every process -> a global tree with a first axis of trials.

    Arrays that differ in size get zeros at the end of their axes: rows and tokens that no mask selects.
    """

    def put(*leaves):
        leaves = [np.asarray(leaf) for leaf in leaves]
        largest = np.max([leaf.shape for leaf in leaves], axis=0).astype(int)
        fill = lambda leaf: np.pad(leaf, [(0, size - own) for own, size in zip(leaf.shape, largest)])
        whole = np.stack([leaf if (largest == leaf.shape).all() else fill(leaf) for leaf in leaves])
        return jax.make_array_from_callback(whole.shape, over_trials(mesh), lambda index: whole[index])

    return jax.tree.map(put, *trees)


def put_rows(gather: Callable, rows: int, mesh: Mesh):
    """A global batch of which each process gathers only the rows that its devices hold.

    Args:
      gather: places i64[n] in the batch, ascending -> a tree of host arrays [n, ...].
      rows: B of the whole batch.

    Raises:
      InputError: B does not divide by data x fsdp.
    """
    check_batch(jax.ShapeDtypeStruct((rows,), np.int32), mesh)
    places = over_batch(mesh).addressable_devices_indices_map((rows,))
    mine = np.unique(np.concatenate([np.arange(rows)[place] for (place,) in places.values()]))

    def put(x):
        def part(index):
            chosen = np.searchsorted(mine, np.arange(rows)[index[0]])
            return x[(chosen, *index[1:])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), over_batch(mesh), part)

    return jax.tree.map(put, gather(mine))


def mesh_to_fill() -> jax.sharding.AbstractMesh | None:
    """The mesh that the program being traced is split over; None where there is none, or each device has its own work."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes else mesh


def whole_rows(table: jax.Array, axis: str | None = "tensor") -> jax.Array:
    """A table [V, D] split over its rows alone, along this mesh axis, or not at all.

    One that is split along D makes XLA replicate what is looked up in it, and add up logits over devices.
    """
    mesh = mesh_to_fill()
    if mesh is None or (axis and table.shape[0] % mesh.shape[axis]):
        return table
    return jax.lax.with_sharding_constraint(table, PartitionSpec(axis))


def constrain_batch(x: jax.Array, *axes: str | None) -> jax.Array:
    """Keep an activation [B, ...] sharded over the batch, and its next axes over these mesh axes.

    Without a mesh it does nothing, and an axis that does not divide stays whole: it is a matter of
    memory, not of results.
    """
    mesh = mesh_to_fill()
    if mesh is None or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    fitting = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, x.shape[1:])]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*BATCH, *fitting))
