"""What plan reads from the text of a compiled program: loops, mesh axes, bytes; on snippets and real programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.plan import hlo
from rlhf_jax.plan.hlo.text import size_of

MESH = tiny.mesh_of("2x2x2")


def module(body: str, more: str = "") -> str:
    return f"HloModule m, num_partitions=8\n\n{more}\nENTRY %main (p: f32[4,8]) -> f32[4,8] {{\n{body}\n}}\n"


def only(text: str, **options) -> hlo.Collective:
    (found,) = hlo.read(text, MESH, **options).collectives
    return found


# Device = 4 data + 2 fsdp + tensor, as the mesh 2x2x2 lists them.
GROUPS = {
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}": "tensor",
    "replica_groups={{0,2},{1,3},{4,6},{5,7}}": "fsdp",
    "replica_groups=[4,2]<=[8]": "tensor",
    "replica_groups=[4,2]<=[2,4]T(1,0)": "data",
    "replica_groups=[2,4]<=[4,2]T(1,0)": "data+fsdp",
    "replica_groups=[1,8]<=[8]": "data+fsdp+tensor",
    "replica_groups={}": "data+fsdp+tensor",
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}": "tensor",
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}": "data+tensor",
    "replica_groups=mesh['a'=8] {'a':(2)2}": "fsdp",
}


@pytest.mark.parametrize("groups", GROUPS)
def test_the_mesh_axis_of_a_collective(groups):
    text = module(f"""
  %p = f32[4,8]{{1,0}} parameter(0)
  ROOT %r = f32[4,8]{{1,0}} all-reduce(%p), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add""")
    assert only(text).axes == GROUPS[groups]


def test_a_permutation_runs_over_the_axis_along_which_its_pairs_differ():
    text = module("""
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %r = f32[4,8]{1,0} collective-permute(%p), channel_id=1, source_target_pairs={{0,0},{1,5},{5,1}}""")
    assert only(text) == hlo.Collective("collective-permute", "data", 1, 128, 128, 0)


@pytest.mark.parametrize(
    "operation, whole, sent",
    [("all-gather", 256, 128), ("reduce-scatter", 128, 64), ("all-reduce", 128, 128), ("all-to-all", 128, 64)],
)
def test_the_bytes_of_a_collective_over_two_devices(operation, whole, sent):
    for name in (operation, f"{operation}-start"):
        text = module(f"""
  %p = f32[4,8]{{1,0}} parameter(0)
  ROOT %r = f32[4,8]{{1,0}} {name}(%p), channel_id=1, replica_groups=[4,2]<=[8], dimensions={{0}}""")
        assert only(text) == hlo.Collective(operation, "tensor", 1, whole, sent, 0)


def test_what_crosses_slices_goes_over_the_network_shared_by_the_chips_of_a_slice():
    text = module("""
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %r = f32[4,8]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add""")
    found = only(text, island_of=lambda device: device.id // 4)
    assert (found.links, found.network) == (2 * 128 * 3 / 4, 2 * 128 / 2 / 4)


def test_tpu_slices_have_a_program_each_and_send_to_one_another():
    text = module("""
  %p = f32[4,8]{1,0} parameter(0)
  %after = token[] after-all()
  %sum = f32[4,8] all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %send = (f32[4,8], u32[], token[]) send(%sum, %after), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %r = f32[4,8]{1,0} copy(%p)""").replace("num_partitions=8", "num_partitions=4")
    inside, between = sorted(hlo.read(text, MESH, lambda device: device.id // 4).collectives, key=lambda c: c.network)
    assert (inside.kind, inside.axes, inside.network) == ("all-reduce", "tensor", 0)
    assert between == hlo.Collective("all-reduce", "data", 1, 128, 0, 128)


LOOP = """
%body (t: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %t = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[4,8] get-tuple-element(%t), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[4,8] all-reduce(%x), channel_id=7, replica_groups=[4,2]<=[8], to_apply=%add
  %kernel = f32[4,8] custom-call(%y), custom_call_target="tpu_custom_call", backend_config={"body":"
}}} a kernel's source
  looks = like(instructions)"}
  ROOT %out = (s32[], f32[4,8]) tuple(%next, %y)
}

%fused_less (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

%condition (c: (s32[], f32[4,8])) -> pred[] {
  %c = (s32[], f32[4,8]) parameter(0)
  %limit = s32[]{:T(128)} constant(96)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %go = pred[] CONDITION
}
"""


@pytest.mark.parametrize(
    "condition", ["compare(%j, %limit), direction=LT", "fusion(%j, %limit), kind=kLoop, calls=%fused_less"]
)
def test_a_collective_in_a_loop_counts_as_often_as_the_loop_turns(condition):
    text = module(
        """
  %p = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(1)
  %start = s32[] copy(%zero)
  %both = (s32[], f32[4,8]) tuple(%start, %p)
  %loop = (s32[], f32[4,8]) while(%both), condition=%condition, body=%body
  ROOT %r = f32[4,8] get-tuple-element(%loop), index=1""",
        LOOP.replace("CONDITION", condition),
    )
    assert only(text).count == 95  # from 1 to 96
    noted = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"12"}}')
    assert only(noted).count == 12
    unknown = hlo.read(text.replace("direction=LT", "direction=NE"), MESH)
    assert unknown.unknown_loops == 1 and unknown.collectives[0].count == 1


def test_a_collective_that_a_tpu_takes_apart_counts_once_and_its_scatter_is_one():
    parts = "".join(
        f"""
%part{n} (q{n}: f32[4,8]) -> f32[8,8] {{
  %q{n} = f32[4,8] parameter(0)
  ROOT %g{n} = f32[8,8] all-gather(%q{n}), channel_id=3, replica_groups=[4,2]<=[8], dimensions={{0}}
}}
"""
        for n in range(3)
    )
    scatter = """
%all-reduce-scatter.1 (s: f32[4,8]) -> f32[2,8] {
  %s = f32[4,8] parameter(0)
  %all = f32[4,8] all-reduce(%s), channel_id=4, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %mine = f32[2,8] slice(%all), slice={[0:2], [0:8]}
}
"""
    text = module(
        """
  %p = f32[4,8]{1,0} parameter(0)
  %a = f32[8,8] fusion(%p), kind=kCustom, calls=%part0
  %b = f32[8,8] fusion(%p), kind=kCustom, calls=%part1
  %c = f32[8,8] fusion(%p), kind=kCustom, calls=%part2
  ROOT %r = f32[2,8] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1""",
        parts + scatter,
    )
    found = {collective.kind: collective.count for collective in hlo.read(text, MESH).collectives}
    assert found == {"all-gather": 1, "reduce-scatter": 1}


def test_bytes_moved_leave_out_what_slices_do_not_touch_and_what_stays_on_the_chip():
    sliced = """
%pick (w: f32[100,8], i: s32[]) -> f32[1,8] {
  %w = f32[100,8] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,8] dynamic-slice(%w, %i, %zero), dynamic_slice_sizes={1,8}
}
"""
    text = module(
        """
  %p = f32[100,8]{1,0} parameter(0)
  %n = s32[] constant(3)
  %row = f32[1,8]{1,0SPACE} fusion(%p, %n), kind=kLoop, calls=%pick
  ROOT %twice = f32[1,8]{1,0} add(%row, %row)""",
        sliced,
    )
    everywhere = hlo.read(text.replace("SPACE", ""), MESH).moved
    assert everywhere == 32 + 4 + 32 + 3 * 32  # a row and its number read, a row written; twice read, once written
    assert hlo.read(text.replace("SPACE", ":S(1)"), MESH, on_chip_spaces=True).moved == 32 + 4 + 32


def test_a_real_program_gathers_each_layers_weights_once_a_turn():
    mesh, layers, width, rows = (tiny.mesh_of("1x8x1"), 5, 64, 2048)  # so many rows that gathering weights is cheaper

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=place(None, "fsdp"))
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=place("fsdp"))
    program = jax.jit(
        lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], out_shardings=place("fsdp")
    )
    found = hlo.read(program.lower(weights, x).compile().as_text(), mesh)
    (gather,) = found.collectives
    assert (gather.kind, gather.axes, gather.count) == ("all-gather", "fsdp", layers)
    assert gather.bytes == layers * width * width * 4 and gather.links == gather.bytes * 7 / 8
    assert found.unknown_loops == 0
    everything = layers * (width * width + 2 * rows // 8 * width) * 4  # weights, and activations in and out
    assert everything < found.moved < 8 * everything


def test_loops_and_branches_that_the_data_decide_are_parts_of_a_program():
    """The loop over blocks turns until the data say so, and each block takes one of three branches."""

    def program(x, w, limit):
        def branch(steps):  # each step multiplies once
            return lambda x: jax.lax.fori_loop(0, steps, lambda n, x: jnp.tanh(x @ w), x)

        def block(state):
            x, n = state
            with jax.named_scope("lengths"):
                x = jax.lax.switch(n, [branch(1), branch(10), branch(100)], x)
            return jnp.sort(x, axis=0), n + 1

        with jax.named_scope("blocks"):
            return jax.lax.while_loop(lambda state: state[0].sum() < limit, block, (x, 0))[0]

    size = 64
    arguments = [jnp.ones((size, size)), jnp.ones((size, size)), 1.0]
    text = jax.jit(program).lower(*arguments).compile().as_text()
    parts = hlo.read_parts(text, tiny.mesh_of("1x1x1"), scopes=("blocks", "lengths"))
    assert sorted(parts) == ["", "blocks", "lengths 0", "lengths 1", "lengths 2"]
    assert sum(part.unknown_loops for part in parts.values()) == 0
    once, ten, hundred = (parts[f"lengths {number}"].moved for number in range(3))
    step = (hundred - ten) / 90
    assert 4 * size * size * 3 <= step <= 4 * size * size * 8 and ten - once == pytest.approx(9 * step, rel=0.05)
    runs = {"blocks": 7, "lengths 0": 4, "lengths 1": 2, "lengths 2": 1}
    whole = hlo.together(parts, runs)
    assert whole.moved == parts[""].moved + 7 * parts["blocks"].moved + 4 * once + 2 * ten + hundred
    assert hlo.scopes_of(runs) == ["blocks", "lengths"]
    with pytest.raises(ValueError, match="lengths 2"):
        hlo.together(parts, {"blocks": 7, "lengths 0": 4})
    alone = hlo.read(text, tiny.mesh_of("1x1x1"))
    assert alone.unknown_loops == 1 and alone.moved == hlo.together(parts, dict.fromkeys(runs, 1)).moved


def test_loops_of_one_scope_are_one_part():
    def program(x, w, turns):
        for _ in range(2):
            with jax.named_scope("parts"):
                x = jax.lax.fori_loop(0, turns, lambda n, x: jnp.tanh(x @ w), x)
            x = jnp.sort(x, axis=0)  # so that the compiler does not make one loop of them
        return x

    size = 64
    arguments = [jnp.ones((size, size)), jnp.ones((size, size)), 3]
    text = jax.jit(program).lower(*arguments).compile().as_text()
    part = hlo.read_parts(text, tiny.mesh_of("1x1x1"), scopes=["parts"])["parts"]
    assert 2 * 4 * size * size * 3 <= part.moved <= 2 * 4 * size * size * 8


def test_the_collectives_of_parts_are_added_by_how_often_each_runs():
    branches = """
%yes (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8] parameter(0)
  ROOT %y = f32[4,8] all-reduce(%a), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
}

%no (b: f32[4,8]) -> f32[4,8] {
  ROOT %b = f32[4,8] parameter(0)
}
"""
    text = module(
        """
  %p = f32[4,8]{1,0} parameter(0)
  %q = pred[] constant(true)
  %x = f32[4,8]{1,0} all-reduce(%p), channel_id=2, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %r = f32[4,8] conditional(%q, %x, %x), true_computation=%yes, false_computation=%no, metadata={op_name="jit(f)/fill/cond"}""",
        branches,
    )
    parts = hlo.read_parts(text, MESH, scopes=["fill"])
    assert not parts["fill 0"].collectives  # the branch that is taken where the number is 0, or false
    (found,) = hlo.together(parts, {"fill 0": 5, "fill 1": 2.5}).collectives
    assert (found.count, found.bytes) == (round(3.5), round(3.5 * 128))


def test_a_slice_of_a_slice_reads_what_is_left():
    inner = """
%pick (w: f32[6,64,8], n: s32[]) -> f32[16,8] {
  %w = f32[6,64,8] parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,64,8] dynamic-slice(%w, %n, %zero, %zero), dynamic_slice_sizes={1,64,8}
  %all = f32[64,8] bitcast(%layer)
  ROOT %some = f32[16,8] slice(%all), slice={[0:16], [0:8]}
}
"""
    text = module(
        """
  %p = f32[6,64,8] parameter(0)
  %n = s32[] constant(3)
  ROOT %row = f32[16,8] fusion(%p, %n), kind=kLoop, calls=%pick""",
        inner,
    )
    assert hlo.read(text, MESH).moved == 2 * 16 * 8 * 4 + 4


def test_a_slice_that_an_inner_fusion_hands_on_is_read():
    """As a TPU writes a product with a layer's part of stacked weights: the slice and its bitcast are a fusion of their own."""
    inner = """
%pick (w: f32[6,64,8], n: s32[]) -> f32[64,8] {
  %w = f32[6,64,8] parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,64,8] dynamic-slice(%w, %n, %zero, %zero), dynamic_slice_sizes={1,64,8}
  ROOT %all = f32[64,8] bitcast(%layer)
}

%product (x: f32[4,64], w: f32[6,64,8], n: s32[]) -> f32[4,8] {
  %x = f32[4,64] parameter(0)
  %w = f32[6,64,8] parameter(1)
  %n = s32[] parameter(2)
  %one = f32[64,8] fusion(%w, %n), kind=kLoop, calls=%pick
  ROOT %y = f32[4,8] convolution(%x, %one), dim_labels=bf_io->bf
}
"""
    text = module(
        """
  %p = f32[4,64] parameter(0)
  %q = f32[6,64,8] parameter(1)
  %n = s32[] constant(3)
  ROOT %row = f32[4,8] fusion(%p, %q, %n), kind=kOutput, calls=%product""",
        inner,
    )
    assert hlo.read(text, MESH).moved == 4 * (4 * 64 + 64 * 8 + 4 * 8) + 4


def test_text_that_is_no_module_is_an_error():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.read("nothing", MESH)


def test_sizes_of_types():
    assert size_of("(bf16[2,3]{1,0}, s4[8], pred[], f8e4m3fn[4])") == 12 + 4 + 1 + 4
    assert size_of("f32[2]{0:T(128)S(1)}", on_chip_spaces=True) == 0
    assert np.isclose(size_of("u32[]{:S(2)}"), 4)
