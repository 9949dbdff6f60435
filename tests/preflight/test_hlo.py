"""The reader of HLO text, on programs whose collectives can be counted by hand and on each way XLA writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from reft_jax.preflight.hlo import Traffic, aliased_inputs, collectives, type_bytes

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()), ("x",))


def text_of(mesh, function, *shapes, out=PartitionSpec("x"), inside=True, **options) -> str:
    """Optimized HLO of `function`, of arrays split over their first dimension; `inside` sees a device's piece."""
    split = NamedSharding(mesh, PartitionSpec("x"))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in shapes]
    if inside:
        function = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=out, check_vma=False)
    else:
        options["out_shardings"] = NamedSharding(mesh, out)
    return jax.jit(function, **options).lower(*args).compile().as_text()


def repeated(body, times):
    return lambda x: jax.lax.scan(lambda carry, _: (body(carry), None), x, length=times)[0]


def test_collectives_of_a_scan_count_as_often_as_it_turns(mesh):
    summed = lambda x: jnp.sin(jax.lax.psum(x, "x"))
    found = collectives(text_of(mesh, repeated(summed, 7), (8, 5)))
    assert found.once == {"all-reduce": Traffic(7, 7 * 5 * 4)}  # a device's piece is [1, 5] float32
    nested = collectives(text_of(mesh, repeated(repeated(summed, 3), 7), (8, 5)))
    assert nested.once == {"all-reduce": Traffic(21, 21 * 5 * 4)}
    assert (found.per_turn, found.open_loops) == ({}, 0)


def test_a_loop_that_ends_on_its_data_is_told_by_the_turn(mesh):
    def until_large(x):
        return jax.lax.while_loop(
            lambda x: jax.lax.psum(jnp.sum(x), "x") < 100.0,
            repeated(lambda x: jnp.sin(jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])) + 1.0, 3),
            x,
        )

    found = collectives(text_of(mesh, lambda x: until_large(jax.lax.all_gather(x, "x", tiled=True)[:1] + x), (8, 5)))
    assert found.open_loops == 1
    assert found.once["all-gather"] == Traffic(1, 8 * 5 * 4)
    assert found.per_turn["collective-permute"] == Traffic(3, 3 * 5 * 4)
    assert found.per_turn["all-reduce"].count == 1


def test_the_bytes_are_those_of_the_whole_array(mesh):
    gathered = collectives(text_of(mesh, lambda x: x * 2.0, (64, 16), out=PartitionSpec(), inside=False))
    assert gathered.once == {"all-gather": Traffic(1, 64 * 16 * 4)}
    scattered = collectives(text_of(mesh, lambda x: jax.lax.psum_scatter(x[0], "x", tiled=True), (8, 64, 16)))
    assert scattered.once == {"reduce-scatter": Traffic(1, 64 * 16 * 4)}
    exchanged = collectives(text_of(mesh, lambda x: jax.lax.all_to_all(x, "x", 1, 0, tiled=True), (64, 16)))
    assert exchanged.once == {"all-to-all": Traffic(1, 8 * 16 * 4)}


def test_what_a_program_does_not_move_is_not_counted(mesh):
    assert collectives(text_of(mesh, lambda x: jnp.sin(x), (8, 5))).once == {}


def test_of_the_branches_of_a_choice_the_one_that_moves_most_counts(mesh):
    gathered = lambda width: lambda x: x + jnp.sum(jax.lax.all_gather(x[:, :width], "x", tiled=True))

    def choose(x):
        index = x[0, 0].astype(jnp.int32)
        return jax.lax.switch(index, [lambda x: x, gathered(5), gathered(3)], x)

    assert collectives(text_of(mesh, choose, (8, 5))).once == {"all-gather": Traffic(1, 8 * 5 * 4)}


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_donated_inputs_that_have_no_output_to_become_are_not_aliased(mesh):
    def step(state, wide):
        return {"a": state["a"] + 1.0, "sum": jnp.sum(state["b"]) + jnp.sum(wide)}

    split = NamedSharding(mesh, PartitionSpec("x"))
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    args = ({"a": array(8, 3), "b": array(8, 4)}, array(16, 2))
    shardings = {"a": split, "sum": NamedSharding(mesh, PartitionSpec())}
    compile = lambda **donated: jax.jit(step, out_shardings=shardings, **donated).lower(*args).compile().as_text()
    assert aliased_inputs(compile(donate_argnums=(0, 1))) == {"state['a']"}
    assert aliased_inputs(compile()) == set()


# As written for other devices. Each text is the smallest that has what it is about.

MODULE = """HloModule m, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), {1}: (0, {0}, must-alias) }

%COMPUTATIONS

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0:T(8,128)S(1)} parameter(0), metadata={op_name="state[\\'p\\']"}
  %q = f32[8,4]{1,0} parameter(1), sharding={replicated}, metadata={op_name="q" stack_frame_id=3}
  %r = f32[8,4]{1,0} parameter(2), metadata={op_name="r"}
%LINES
}
"""


def module(lines: str, computations: str = "") -> str:
    return MODULE.replace("%LINES", lines).replace("%COMPUTATIONS", computations)


def test_aliased_inputs_are_read_with_their_names():
    assert aliased_inputs(module("  ROOT %s = f32[8,4]{1,0} add(%p, %q)")) == {"state['p']", "q"}


GROUPS = [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[2,4]<=[8]", 4),
    ("[4,2]<=[2,4]T(1,0)", 2),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
    ("mesh['a'=2,'b'=4] {'a','b'}", 8),
    ("mesh['a'=8] {'a':(2)4}", 4),
]


@pytest.mark.parametrize(("groups", "size"), GROUPS)
def test_a_reduce_scatter_works_on_all_its_groups_pieces(groups, size):
    line = f"  ROOT %s = bf16[3,4]{{1,0}} reduce-scatter(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    assert collectives(module(line)).once == {"reduce-scatter": Traffic(1, size * 24)}


STARTS = [
    ("(f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p)", "all-gather", 128),
    ("((f32[2]{0}, s32[1]{0}), (f32[8]{0}, /*index=1*/s32[4]{0})) all-gather-start(%p, %q)", "all-gather", 48),
    ("(f32[8,4]{1,0}, f32[2,4]{1,0}) reduce-scatter-start(%p)", "reduce-scatter", 128),
    ("(f32[8,4]{1,0:T(8,128)(2,1)}, f32[3]{0}) all-reduce-start(%p, %q)", "all-reduce", 140),
    ("f32[8,4]{1,0} all-reduce-start(%p)", "all-reduce", 128),
    ("(f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)", "collective-permute", 32),
]


@pytest.mark.parametrize(("text", "kind", "size"), STARTS)
def test_asynchronous_collectives_count_once_with_what_they_bring(text, kind, size):
    done = f"  ROOT %t = f32[8]{{0}} {kind}-done(%s), channel_id=1"
    lines = f"  %s = {text}, channel_id=1, replica_groups=[1,4]<=[4]\n{done}"
    assert collectives(module(lines)).once == {kind: Traffic(1, size)}


def test_one_collective_spread_over_several_fusions_counts_once():
    """As libtpu writes those that run beside a matrix product; the two here are of unrolled layers."""
    piece = """%NAME (a: f32[2,4]) -> f32[8,4] {
  %a = f32[2,4]{1,0} parameter(0)
  ROOT %g = f32[8,4]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}
"""
    calls = {
        "async-collective-start": "fused_computation.1",
        "fusion.1": "async_collective_fusion.1",
        "fusion.2": "async_collective_fusion.2",
        "async-collective-done": "fused_computation.2",
        "async-collective-start.1": "fused_computation.3",
        "async-collective-done.1": "fused_computation.4",
    }
    lines = [f"  %{name} = f32[8,4] fusion(%p), kind=kCustom, calls=%{called}" for name, called in calls.items()]
    text = module("\n".join(lines), "\n".join(piece.replace("NAME", called) for called in calls.values()))
    assert collectives(text).once == {"all-gather": Traffic(2, 256)}


def test_collectives_of_unrolled_layers_share_a_channel_and_count_each():
    line = "  %s.{} = f32[8,4]{{1,0}} all-reduce(%p), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%sum"
    text = module("\n".join(line.format(layer) for layer in range(5)))
    assert collectives(text).once == {"all-reduce": Traffic(5, 5 * 128)}


def test_a_loop_without_a_known_trip_count_is_read_from_its_condition():
    """As libtpu writes all loops."""
    loop = """%body (c: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %c = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%c), index=1
  %step = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %step)
  %copied = s32[]{:T(128)} copy(%next)
  %s = f32[8,4]{1,0} all-reduce(%x), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%copied, %s)
}

%condition (c.1: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(BOUND)
  %c.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}
"""
    lines = """  %zero = s32[] constant(1)
  %init = (s32[], f32[8,4]{1,0}) tuple(%zero, %p)
  %w = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body"""
    for bound, turns in ((9, 4), (10, 5), (1, 0)):
        found = collectives(module(lines, loop.replace("BOUND", str(bound))))
        assert found.once == {"all-reduce": Traffic(turns, 128 * turns)}
    endless = collectives(module(lines, loop.replace("direction=LT", "direction=NE").replace("BOUND", "9")))
    assert (endless.once, endless.per_turn, endless.open_loops) == ({}, {"all-reduce": Traffic(1, 128)}, 1)


def test_sizes_of_types():
    sizes = {"f32[]": 4, "bf16[8,128]{1,0:T(8,128)(2,1)}": 2048, "pred[3]{0}": 3, "s4[7]{0}": 4, "f8e4m3fn[5]": 5}
    sizes |= {"token[]": 0, "(u32[2]{0}, (c64[3]{0}, s8[1]{0}))": 33, "f64[0,4]": 0}
    assert {text: type_bytes(text) for text in sizes} == sizes
