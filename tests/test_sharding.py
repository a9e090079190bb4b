"""Where arrays lie on the mesh, and that what does not fit is said and never silently replicated."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from rlhf_jax import model, optim, sharding, train
from rlhf_jax.runtime.errors import InputError

RULES = sharding.DEFAULT_RULES


def raises(*words):
    """An InputError whose one sentence has all these words, in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(word) for word in words))


# --- The mesh -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, expected",
    [((1, -1, 1), (1, 8, 1)), ((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))],
)
def test_minus_one_takes_the_remaining_devices(sizes, expected):
    mesh = sharding.make_mesh(*sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), expected))
    assert len(set(mesh.devices.flat)) == 8


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, -1, 1), (2, 2, 4)])
def test_a_mesh_that_does_not_fill_the_devices_is_an_error(sizes):
    with raises(f"data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}", "8 devices"):
        sharding.make_mesh(*sizes)


@pytest.fixture(scope="module")
def two_slices():
    """The 8 devices of two TPU v5e slices, as the compiler knows them."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: bash launch/test.sh --libtpu")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices


def test_data_alone_crosses_tpu_slices(two_slices):
    mesh = sharding.make_mesh(2, -1, 2, devices=two_slices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert np.all(slices == np.arange(2)[:, None, None])


def test_a_mesh_that_splits_a_model_over_tpu_slices_is_refused(two_slices):
    with raises("data=1", "multiple of 2", "TPU slices"):
        sharding.make_mesh(1, -1, 1, devices=two_slices)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 8, 1), (-2, 4, 1)])
def test_senseless_mesh_sizes_are_an_error(sizes):
    with raises("data={} fsdp={} tensor={}".format(*sizes), "positive"):
        sharding.make_mesh(*sizes)


# --- One array ------------------------------------------------------------------------------------


def spec(axes, shape, rules=RULES, mesh="2x2x2"):
    return sharding.partition_spec(axes, shape, tiny.mesh_of(mesh), rules, name="['layers']['wq']")


def test_logical_axes_become_mesh_axes():
    assert spec(("layers", "embed", "heads", "head_dim"), (3, 32, 4, 8)) == PartitionSpec(None, "fsdp", "tensor", None)
    assert spec(("batch", "seq"), (8, 5)) == PartitionSpec(("data", "fsdp"), None)


def test_rules_can_be_overridden():
    rules = {**RULES, "embed": ("data", "fsdp"), "heads": None}
    assert spec(("embed", "heads"), (32, 3), rules) == PartitionSpec(("data", "fsdp"), None)


def test_an_unknown_logical_axis_is_an_error():
    with raises("['layers']['wq']", "'embde'", "has no sharding rule", "embed"):
        spec(("embde", "mlp"), (32, 64))


def test_two_axes_on_one_mesh_axis_are_an_error():
    with raises("['layers']['wq'] (64, 128)", "'mlp'", "'vocab'", "'tensor'"):
        spec(("mlp", "vocab"), (64, 128))
    with raises("'batch'", "'embed'", "'fsdp'"):
        spec(("batch", "embed"), (8, 32))


def test_a_size_that_does_not_divide_is_an_error():
    with raises("['layers']['wq'] (32, 3)", "size 3", "'heads'", "multiple of 2", "tensor"):
        spec(("embed", "heads"), (32, 3))
    with raises("(6, 5)", "size 6", "'batch'", "multiple of 4", "dataxfsdp"):
        spec(("batch", "seq"), (6, 5))


def test_a_wrong_number_of_axes_is_an_error():
    with raises("['layers']['wq']", "(32, 4)", "('embed',)"):
        spec(("embed",), (32, 4))


def test_a_rule_to_a_mesh_axis_that_is_not_there_is_an_error():
    with raises("sharding.embed", "'model'", "data", "fsdp", "tensor"):
        spec(("embed",), (32,), {"embed": "model"})


# --- Whole trees ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.llama()], ids=["gpt", "llama"])
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_every_parameter_has_its_place(config, head):
    """On 2x2x2 every matrix is split over fsdp and tensor; a device holds its share alone."""
    mesh = tiny.mesh_of("2x2x2")
    params = tiny.place(tiny.params_of(config, 0, head), config, mesh, head)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        axes = [axis for axis in x.sharding.spec if axis is not None]
        matrix = path[-1].key.startswith("w") or path[-1].key in ("embedding", "lm_head")
        assert not matrix or set(axes) == {"fsdp", "tensor"}, path
        assert x.addressable_shards[0].data.size * 2 ** len(axes) == x.size, path


def test_the_error_of_a_tree_names_the_parameter():
    config = model.TransformerConfig(vocab_size=64, num_layers=1, embed_dim=36, num_heads=3, max_length=8)
    shapes, axes = model.param_shapes(config), model.logical_axes(config)
    with raises("['layers']['bk']", "(1, 3, 12)", "'kv_heads'", "tensor"):
        sharding.param_shardings(axes, shapes, tiny.mesh_of("2x2x2"))


@pytest.mark.parametrize("eps_placement", optim.EPS_PLACEMENTS)
def test_optimizer_state_and_average_lie_like_their_parameters(eps_placement):
    options = optim.OptimizerConfig(eps_placement=eps_placement, weight_decay=0.1, max_grad_norm=1.0)
    optimizer = optim.make_optimizer(options)
    mesh, axes = tiny.mesh_of("2x2x2"), model.logical_axes(tiny.CONFIG)
    params = tiny.params_of(tiny.CONFIG, 0)
    shapes = jax.eval_shape(lambda p: train.init_state(p, optimizer, ema=True), params)
    placed = train.state_shardings(shapes, optimizer, axes, mesh)
    expected = sharding.param_shardings(axes, params, mesh)
    assert placed.params == placed.ema_params == expected
    adam = next(part for part in placed.opt_state if hasattr(part, "mu"))
    assert adam.mu == adam.nu == expected
    assert adam.count == placed.step == sharding.replicated(mesh)
    without = jax.eval_shape(lambda p: train.init_state(p, optimizer), params)
    assert train.state_shardings(without, optimizer, axes, mesh).ema_params is None


def test_batches_are_split_over_data_and_fsdp():
    batch = tiny.documents_of(8, 12)
    for name in tiny.MESHES:
        placed = sharding.put_batch(batch, tiny.mesh_of(name))
        ways = tiny.MESHES[name][0] * tiny.MESHES[name][1]
        for before, after in zip(jax.tree.leaves(batch), jax.tree.leaves(placed)):
            np.testing.assert_array_equal(after, before)
            assert {shard.data.shape[0] for shard in after.addressable_shards} == {8 // ways}


def test_parts_that_do_not_divide_over_the_mesh_are_an_error():
    sharding.check_parts("sft.microbatches", 16, 4, tiny.mesh_of("2x2x2"))
    with raises("sft.microbatches: 16 rows in 8 parts", "4 devices", "multiple of 32"):
        sharding.check_parts("sft.microbatches", 16, 8, tiny.mesh_of("2x2x2"))


def test_rows_that_do_not_divide_are_an_error():
    with raises("batch.tokens", "6 rows", "data x fsdp", "4 devices", "multiple of 4"):
        sharding.put_batch(tiny.documents_of(6, 12), tiny.mesh_of("2x2x2"))


def test_activations_keep_the_batch_split_inside_a_program():
    x = jnp.zeros((8, 3))
    assert sharding.constrain_batch(x) is x  # no mesh
    with jax.set_mesh(tiny.mesh_of("2x2x2")):
        assert jax.jit(sharding.constrain_batch)(x).sharding.spec == sharding.BATCH
        assert jax.jit(sharding.constrain_batch)(x[:3]).shape == (3, 3)
        along_time = jax.jit(lambda x: sharding.constrain_batch(x, "tensor"))
        assert along_time(jnp.zeros((8, 4, 3))).sharding.spec == PartitionSpec(*sharding.BATCH, "tensor")
        assert along_time(jnp.zeros((8, 5, 3))).sharding.spec == sharding.BATCH  # 5 does not divide
