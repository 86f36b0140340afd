"""The bounds of the instructions of a GPU program, by figures that are computed here by hand."""

import pytest

from jaxseg.aot import hlo, roofline
from jaxseg.aot.hardware import find_chip
from jaxseg.aot.profile_summary import summarize
from jaxseg.aot.step_profile import instruction_costs
from jaxseg.compile import format_report

# As XLA:GPU writes it for an H100: a matrix product, a convolution and its two gradients, a fusion
# that reads a slice of its operand, one that replaces a slice, and a loop of seven rounds.
PROGRAM = """HloModule jit_f

%reads (p0: f32[9,1000], p1: s32[]) -> f32[1,1000] {
  %p0 = f32[9,1000]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,1000]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,1000}
}

%writes (p0: f32[9,1000], p1: f32[1,1000], p2: s32[]) -> f32[9,1000] {
  %p0 = f32[9,1000]{1,0} parameter(0)
  %p1 = f32[1,1000]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %update = f32[9,1000]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%fused_compare (p0: s32[]) -> pred[] {
  %p0 = s32[] parameter(0)
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%p0, %limit), direction=LT
}

%condition (c: (s32[], f32[1000])) -> pred[] {
  %c = (s32[], f32[1000]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] fusion(%i), kind=kLoop, calls=%fused_compare
}

%body (c: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %c = (s32[], f32[1000]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %v = f32[1000]{0} get-tuple-element(%c), index=1
  %negated = f32[1000]{0} negate(%v)
  ROOT %pair = (s32[], f32[1000]) tuple(%i, %negated)
}

ENTRY %main (x: bf16[64,32], w: bf16[32,16]) -> f32[9,1000] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %product = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %image = bf16[2,8,8,3]{3,2,1,0} parameter(2)
  %kernel = bf16[5,3,3,3]{3,2,1,0} parameter(3)
  %output = (bf16[2,8,8,5]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), \
window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y = bf16[2,8,8,5]{3,2,1,0} get-tuple-element(%output), index=0
  %of_image = (bf16[2,8,8,3]{3,2,1,0}, u8[0]{0}) custom-call(%y, %kernel), \
window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %of_kernel = (bf16[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%image, %y), \
window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %table = f32[9,1000]{1,0} parameter(4)
  %index = s32[] parameter(5)
  %start = (s32[], f32[1000]) parameter(6)
  %loop = (s32[], f32[1000]) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %row = f32[1,1000]{1,0} fusion(%table, %index), kind=kLoop, calls=%reads
  ROOT %next = f32[9,1000]{1,0} fusion(%table, %row, %index), kind=kLoop, calls=%writes
}
"""
PRODUCT = 2 * 64 * 32 * 16
CONVOLUTION = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


@pytest.mark.parametrize(
    ("name", "operations", "moved"),
    [
        ("product", PRODUCT, 2 * (64 * 32 + 32 * 16 + 64 * 16)),
        ("output", CONVOLUTION, 2 * (384 + 135 + 640)),
        ("of_image", CONVOLUTION, 2 * (640 + 135 + 384)),
        ("of_kernel", CONVOLUTION, 2 * (384 + 640 + 135)),
        ("row", 0, 4 + 4000 + 4000),
        ("next", 0, 4 + 4000 + 4000),
    ],
)
def test_operations_and_bytes(name, operations, moved):
    module, chip = hlo.parse(PROGRAM), find_chip("h100")
    (found,) = (step for step in module.computations["main"] if step.name == name)
    assert roofline.operations(found, "main", module) == operations
    assert roofline.bytes_moved(found, "main", module) == moved
    seconds = max(operations / chip.flops, moved / chip.memory_bandwidth)
    assert roofline.bound(found, "main", module, chip) == pytest.approx(seconds)


def test_only_what_runs_is_listed():
    costs = {cost.instruction: cost for cost in instruction_costs(PROGRAM, "h100")}
    in_loop = costs.pop("negated")
    assert (in_loop.times, in_loop.bytes) == (7, 7 * 8000)
    assert set(costs) == {"product", "output", "of_image", "of_kernel", "row", "next"}
    assert costs["product"].kind == costs["output"].kind == "matrix products"
    assert sum(cost.bytes for cost in costs.values()) == 7168 + 3 * 2318 + 2 * 8004


def test_a_report_for_a_gpu_says_what_it_does_not_know():
    summary = summarize(instruction_costs(PROGRAM, "h100"))
    sizes = dict.fromkeys(("arguments", "temporaries", "outputs", "program"), 1e9)
    said = format_report(
        {
            **{"config": "tiny", "what": "train", "topology": "h100:1", "slices": 1},
            **{"mesh": {"data": 1}, "images": (2, 64, 64), "parameters": 10, "fits": True},
            **{"memory": {"needed": 4e9, "capacity": 8e9, **sizes}, "collectives": {}},
            **{"flops": 0.0, "model_flops": 2e12, "memory_traffic": 1e9},  # no count by XLA
            "data_sheet": {"step_seconds": 0.1, "seconds": {"memory": 0.1}},
            "by_instruction": {"source": "roofline", "step_seconds": 0.5, "mfu": 0.1, **summary},
            **{"compile_seconds": 3.0, "level": "O1"},
        }
    )
    assert "on h100:1: 1 device, mesh data 1\n" in said
    assert "operations   not counted; the model's own 2.00 T\n" in said
    assert "roofline     500.0 ms a step at full rates, 4.0 images/s, MFU 10%; " in said
