"""What devices send, as read from compiled programs whose communication is known."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxseg.aot import collectives
from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh

N = 8


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 4})


WHOLE = P()


def collectives_of(mesh, function, *shapes, outputs=WHOLE):
    """Those of a function of arrays that are split over all devices along their first axis."""
    split = jax.NamedSharding(mesh, BATCH_SPEC)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in shapes]
    with jax.set_mesh(mesh):
        compiled = jax.jit(function, out_shardings=jax.NamedSharding(mesh, outputs))
        return collectives.parse_collectives(compiled.lower(*arrays).compile().as_text(), N)


def test_a_sum_over_the_batch_goes_around_twice(mesh):
    (found,) = collectives_of(mesh, lambda x: x.sum(0), (N, 1000))
    assert (found.kind, found.devices, found.times) == ("all-reduce", N, 1)
    assert found.sent_bytes == 2 * 7 / 8 * 4000


def test_what_is_wanted_whole_is_sent_to_the_others(mesh):
    (found,) = collectives_of(mesh, lambda x: x, (N, 1000))
    assert (found.kind, found.shapes) == ("all-gather", (("f32", (1, 1000)),))
    assert found.sent_bytes == 7 * 4000


def test_a_group_may_be_some_of_the_devices(mesh):
    (found,) = collectives_of(mesh, lambda x: x, (N, 1000), outputs=P("data"))
    assert (found.devices, found.sent_bytes) == (4, 3 * 4000)


def test_in_a_loop_it_counts_as_often_as_it_runs(mesh):
    def total(x):
        def add(carry, _):
            return carry + jnp.sin(x + carry).sum(0), None

        return lax.scan(add, jnp.zeros(1000), length=5)[0]

    (found,) = collectives_of(mesh, total, (N, 1000))
    assert (found.kind, found.times) == ("all-reduce", 5)
    assert found.sent_bytes == 5 * 2 * 7 / 8 * 4000


def test_what_needs_no_others_sends_nothing(mesh):
    assert collectives_of(mesh, jnp.sin, (N, 1000), outputs=BATCH_SPEC) == []


# As the compilers for TPU write them.
HLO = """
%region (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: bf16[4,8]) -> f32[4,8] {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %gather = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), replica_groups=GROUPS
  %done = bf16[16,8]{1,0} all-gather-done(%gather)
  %token = token[] after-all()
  %sent = (bf16[4,8]{1,0}, u32[], token[]) send(%x, %token), is_host_transfer=true, SLICES
  ROOT %all = f32[4,8]{1,0:T(8,128)S(1)} convert(%x)
}
"""


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0', 'axis_1'}", 8),
        ("{}", 8),
    ],
)
def test_groups_in_every_notation(groups, devices):
    gather, sent = collectives.parse_collectives(HLO.replace("GROUPS", groups), 8)
    assert (gather.kind, gather.devices) == ("all-gather", devices)
    assert gather.sent_bytes == (devices - 1) * 64
    assert (sent.kind, sent.sent_bytes) == ("send", 64)


def test_a_sum_between_slices_goes_around_them_twice():
    slices = '_xla_megascale_target="{1,2,3,4}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"'
    *_, sent = collectives.parse_collectives(HLO.replace("SLICES", slices), 8)
    assert (sent.kind, sent.devices, sent.sent_bytes) == ("send", 4, 2 * 3 / 4 * 64)


# A product and its sum in parts: XLA:TPU unrolls the loop, so that it counts by two.
UNROLLED = """
%more (carried: (bf16[4,8], u32[])) -> pred[] {
  %carried = (bf16[4,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %trips = u32[]{:T(128)} constant(8), metadata={}
  %count = u32[]{:T(128)} get-tuple-element(%carried), index=1
  ROOT %less = pred[]{:T(512)} compare(%count, %trips), direction=LT
}

%body (carried: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %carried = (bf16[4,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %part = bf16[4,8]{1,0} get-tuple-element(%carried), index=0
  %count = u32[]{:T(128)} get-tuple-element(%carried), index=1
  %two = u32[]{:T(128)} constant(2)
  %sent = bf16[4,8]{1,0} collective-permute(%part), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %next = u32[]{:T(128)} add(%count, %two), metadata={}
  ROOT %carry = (bf16[4,8]{1,0}, u32[]{:T(128)}) tuple(%sent, %next)
}

ENTRY %main (x: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %x = (bf16[4,8]{1,0}, u32[]{:T(128)}) parameter(0)
  ROOT %done = (bf16[4,8]{1,0}, u32[]{:T(128)}) while(%x), condition=%more, body=%body
}
"""


def test_an_unrolled_loop_runs_less_often():
    (found,) = collectives.parse_collectives(UNROLLED, 2)
    assert (found.kind, found.times, found.sent_bytes) == ("collective-permute", 4, 4 * 64)


BESIDE = """
%fused_computation.1 (x: bf16[4,8]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0} all-gather(%x), channel_id=7, replica_groups=[1,4]<=[4]
}

%async_collective_fusion.1 (x: bf16[4,8]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%x), channel_id=7, replica_groups=[1,4]<=[4]
}

%fused_computation.2 (x: bf16[4,8]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[16,8]{1,0} all-gather(%x), channel_id=7, replica_groups=[1,4]<=[4]
}

%all-reduce-scatter.1 (x: bf16[16,8]) -> bf16[4,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  %sum = bf16[16,8]{1,0} all-reduce(%x), channel_id=1, replica_groups=[1,4]<=[4]
  ROOT %own = bf16[4,8]{1,0} slice(%sum), slice={[0:4], [0:8]}
}

%all-reduce-scatter.2 (x: bf16[16,8]) -> bf16[4,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  %sum = bf16[16,8]{1,0} all-reduce(%x), channel_id=1, replica_groups=[1,4]<=[4]
  ROOT %own = bf16[4,8]{1,0} slice(%sum), slice={[0:4], [0:8]}
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %async-collective-start = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.1
  %fusion.1 = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-done = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.2
  %own = bf16[4,8]{1,0} fusion(%ended), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %other = bf16[4,8]{1,0} fusion(%ended), kind=kCustom, calls=%all-reduce-scatter.2
}
"""


def test_what_goes_on_beside_computation_counts_once_and_sums_in_parts_as_such():
    gather, *scatters = collectives.parse_collectives(BESIDE, 4)
    assert (gather.kind, gather.sent_bytes) == ("all-gather", 3 * 64)
    assert [(s.kind, s.sent_bytes) for s in scatters] == [("reduce-scatter", 3 / 4 * 256)] * 2
