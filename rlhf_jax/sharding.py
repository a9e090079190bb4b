"""The device mesh, and the only table from logical axis names to mesh axes.

Every array of the program is placed by its logical axes: ("embed", "mlp") and so on. Three mistakes raise an error that
names the array: an unknown axis name, two axes of an array on the same mesh axis, and a size that does not divide.
Nothing is replicated silently.
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

# Logical axis -> mesh axes, for parameters and optimizer state. config.sharding overrides it.
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
    "rank": None,
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """Returns a mesh with the axes data, fsdp and tensor; a size of -1 (at most one) takes the remaining devices.

    Several TPU slices are joined along `data`, so that fsdp and tensor stay on the fast network within a slice.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or data does not divide over the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor}: sizes must be positive, with at most one -1 for the rest"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fill {len(devices)} devices; "
            "the sizes must multiply to the number of devices (-1 takes the rest)"
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    # Devices of a topology described ahead of time have no slice_index if there is a single slice.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return Mesh(_on_torus(mesh_utils.create_device_mesh, sizes, devices), MESH_AXES, axis_types=types)
    if sizes[0] % slices:
        raise InputError(
            f"mesh data={sizes[0]} must be a multiple of {slices}, the TPU slices, because only data may cross the network "
            f"between them; for example data={slices} fsdp=-1"
        )
    inside = (sizes[0] // slices, *sizes[1:])
    hybrid = _on_torus(mesh_utils.create_hybrid_device_mesh, inside, (slices, 1, 1), devices)
    return Mesh(hybrid, MESH_AXES, axis_types=types)


def _on_torus(lay_out: Callable, *arguments) -> np.ndarray:
    """Returns the devices in a layout whose mesh axes lie along whole axes of a TPU slice's torus.

    If there is no such layout, as for 32 ways on 16 x 16, a mesh axis lies along parts of torus axes.
    """
    try:
        return lay_out(*arguments)
    except NotImplementedError:
        return lay_out(*arguments, allow_split_physical_axes=True)


def partition_spec(
    axes: Sequence[str], shape: Sequence[int], mesh: Mesh, rules: Mapping = DEFAULT_RULES, name: str = "array"
) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes and this shape.

    Raises:
      InputError: a logical axis has no rule, a mesh axis is used twice, or a size does not divide.
    """
    if len(axes) != len(shape):
        raise InputError(f"{name} has shape {tuple(shape)} but logical axes {tuple(axes)}")
    used: dict[str, str] = {}
    spec = []
    for axis, size in zip(axes, shape):
        if axis not in rules:
            raise InputError(
                f"{name}: logical axis '{axis}' has no sharding rule; these have one: {', '.join(sorted(rules))}"
            )
        target = rules[axis]
        mesh_axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        for mesh_axis in mesh_axes:
            if mesh_axis not in mesh.shape:
                raise InputError(f"sharding.{axis}: '{mesh_axis}' is not a mesh axis; they are {', '.join(MESH_AXES)}")
            if mesh_axis in used:
                raise InputError(
                    f"{name} {tuple(shape)}: logical axes '{used[mesh_axis]}' and '{axis}' both lie on "
                    f"mesh axis '{mesh_axis}'; change sharding.{axis}"
                )
            used[mesh_axis] = axis
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
        if size % ways:
            raise InputError(
                f"{name} {tuple(shape)}: size {size} of axis '{axis}' must be a multiple of {ways}, the "
                f"size of mesh axis {'x'.join(mesh_axes)}"
            )
        spec.append(target)
    return PartitionSpec(*spec)


def param_shardings(logical_axes, shapes, mesh: Mesh, rules: Mapping = DEFAULT_RULES):
    """Returns the NamedShardings of a parameter tree.

    Args:
      logical_axes: the tree with a tuple of logical axis names for each leaf of `shapes`.
      shapes: the tree with the arrays, or their shapes.
      mesh: the device mesh.
      rules: logical axis -> mesh axes.

    Raises:
      InputError: as in `partition_spec`.
    """

    def place(path, leaf, axes):
        return NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh, rules, jax.tree_util.keystr(path)))

    return jax.tree_util.tree_map_with_path(place, shapes, logical_axes)


def optimizer_shardings(optimizer, opt_state_shapes, shardings, mesh: Mesh):
    """Returns the shardings of an optimizer state: like the parameters, with counters replicated."""
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state_shapes,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over data and fsdp, and replicates the other axes."""
    return NamedSharding(mesh, BATCH)


def ways(mesh: Mesh) -> int:
    """Returns the number of parts in which a mesh splits the rows of a batch: data x fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(batch, mesh: Mesh):
    """Turns host arrays [B, ...], the same on every process, into global arrays sharded over the batch axis.

    A leaf that already has that sharding is returned as it is.

    Raises:
      InputError: B is not a multiple of data x fsdp.
    """
    check_batch(batch, mesh)

    def put(x):
        if isinstance(x, jax.Array) and x.sharding == over_batch(mesh):
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, over_batch(mesh), lambda index: x[index])

    return jax.tree.map(put, batch)


def check_batch(batch, mesh: Mesh) -> None:
    """Raises InputError unless the number of rows of every array, or shape, is a multiple of data x fsdp."""
    devices = ways(mesh)
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if np.shape(x)[0] % devices:
            raise InputError(
                f"batch{jax.tree_util.keystr(path)} has {np.shape(x)[0]} rows, which do not divide over data x fsdp = "
                f"{devices} devices; choose a batch size that is a multiple of {devices}"
            )


def check_parts(name: str, rows: int, parts: int, mesh: Mesh) -> None:
    """Raises InputError unless each of `parts` equal parts of `rows` rows is a multiple of data x fsdp."""
    devices = ways(mesh)
    if rows % (parts * devices):
        raise InputError(
            f"{name}: {rows} rows in {parts} parts do not divide over data x fsdp = {devices} devices; choose a batch size "
            f"that is a multiple of {parts * devices}, or other parts"
        )


def over_trials(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis, which is the trials, over all devices."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def put_trials(trees: Sequence, mesh: Mesh):
    """Turns host trees, one per trial and the same on every process, into a global tree with a first axis of trials.

    Arrays of different sizes are padded with zeros at the end of their axes: rows and tokens that no mask selects.
    """

    def put(*leaves):
        leaves = [np.asarray(leaf) for leaf in leaves]
        largest = np.max([leaf.shape for leaf in leaves], axis=0).astype(int)

        def fill(leaf):
            return np.pad(leaf, [(0, size - own) for own, size in zip(leaf.shape, largest)])

        whole = np.stack([leaf if (largest == leaf.shape).all() else fill(leaf) for leaf in leaves])
        return jax.make_array_from_callback(whole.shape, over_trials(mesh), lambda index: whole[index])

    return jax.tree.map(put, *trees)


def put_rows(gather: Callable, rows: int, mesh: Mesh):
    """Returns a global batch of which each process gathers only the rows that its own devices hold.

    Args:
      gather: function from places i64[n] in the batch, ascending, to a tree of host arrays [n, ...].
      rows: B, the number of rows of the whole batch.
      mesh: the device mesh.

    Raises:
      InputError: B is not a multiple of data x fsdp.
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
    """Returns the mesh over which XLA splits the program being traced.

    Returns None if there is no mesh, or inside shard_map, where each device has its own work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes else mesh


def axes_to_fill() -> set[str]:
    """Returns the mesh axes over which XLA splits the program being traced; none within shard_map over all of them."""
    mesh = jax.sharding.get_abstract_mesh()
    return set() if mesh.empty else set(mesh.axis_names) - set(mesh.manual_axes)


def whole_rows(table: jax.Array, axis: str | None = "tensor") -> jax.Array:
    """Returns a table [V, D] constrained to be split over its rows alone, along a mesh axis or not at all.

    If the table were split along D, XLA would replicate what is looked up in it, and add up logits over devices.
    """
    mesh = mesh_to_fill()
    if mesh is None or (axis and table.shape[0] % mesh.shape[axis]):
        return table
    return jax.lax.with_sharding_constraint(table, PartitionSpec(axis))


def constrain_batch(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation [B, ...] to be split over the batch, and its next axes over these mesh axes.

    Without a mesh it does nothing, and an axis that does not divide stays whole: the constraint affects memory, and not
    results.
    """
    mesh = mesh_to_fill()
    if mesh is None or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    fitting = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, x.shape[1:])]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*BATCH, *fitting))
