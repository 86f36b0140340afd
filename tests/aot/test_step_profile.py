"""Where the compiler expects the time to go, read from a program whose figures are written here."""

import json
import xml.etree.ElementTree as ET

import pytest

from jaxseg.aot import kernel_cycles
from jaxseg.aot.hardware import find_chip
from jaxseg.aot.icicle import HEIGHT, draw_icicle
from jaxseg.aot.profile_summary import format_summary, summarize
from jaxseg.aot.step_profile import OUTSIDE, instruction_costs, module_and_direction

STEP = "jit(train_step)"
CLOCK = find_chip("v5e").clock
UNKNOWN = 2**63 - 1


def attributes(name: str, cycles: int) -> str:
    return f'metadata={{op_name="{STEP}/{name}"}}, backend_config={{"estimated_cycles":"{cycles}"}}'


# A program as the compiler for TPUs writes it. It has a convolution within a fusion, a loop of nine
# rounds, a kernel for two images, an instruction without an estimate, the optimizer, and copies
# beside the computation.
PROGRAM = f"""HloModule jit_train_step

%fused_convolution (p: bf16[2,8,8,3]) -> bf16[2,8,8,4] {{
  %p = bf16[2,8,8,3]{{3,2,1,0:T(8,128)}} parameter(0)
  %inner = bf16[2,8,8,3]{{3,2,1,0}} copy(%p), {attributes("jvp(SegmentationModel)/x/copy", 77)}
  ROOT %convolution.1 = bf16[2,8,8,4]{{3,2,1,0:T(8,128)}} convolution(%inner, %inner), window={{}}
}}

%body (carry: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %carry = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[4] get-tuple-element(%carry), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %sum = f32[4] reduce(%x, %one), {attributes("transpose(jvp(SegmentationModel))/backbone/add", 10)}
  ROOT %tuple.1 = (s32[], f32[4]) tuple(%next, %sum)
}}

%condition (carry: (s32[], f32[4])) -> pred[] {{
  %carry = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}

%ahead (p: f32[512,512]) -> f32[128,512] {{
  %q = f32[512,512] parameter(0)
  ROOT %slice.1 = f32[128,512]{{1,0:T(8,128)S(1)}} slice(%q), slice={{[0:128], [0:512]}}
}}

ENTRY %main (images: bf16[2,8,8,3]) -> bf16[2,8,8,4] {{
  %images = bf16[2,8,8,3]{{3,2,1,0}} parameter(0)
  %copy-start.1 = (f32[4], f32[4]{{0:S(1)}}, u32[]) copy-start(%images)
  %copy-done.1 = f32[4]{{0:S(1)}} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[512,512]), f32[128,512], s32[]) async-start(%images), calls=%ahead
  %slice-done.1 = f32[128,512]{{1,0:S(1)}} async-done(%slice-start.1)
  %custom-call.1 = f32[128,512] custom-call(%slice-done.1), custom_call_target="ConcatBitcast"
  %fusion.1 = bf16[2,8,8,4]{{3,2,1,0}} fusion(%images), kind=kOutput, calls=%fused_convolution, \
{attributes("jvp(SegmentationModel)/backbone/levels_0/blocks_1/conv/conv_general_dilated", 1000)}
  %while.1 = (s32[], f32[4]) while(%images), condition=%condition, body=%body
  %copy.1 = bf16[2,8,8,4]{{0,1,2,3}} copy(%fusion.1), \
{attributes("transpose(jvp(SegmentationModel))/rematted_computation/backbone/reshape", 200)}
  %dcnv3_forward.7 = bf16[2,16]{{1,0}} custom-call(%copy.1), \
custom_call_target="tpu_custom_call", operand_layout_constraints={{f32[2,9,8]{{2,1,0}}, \
bf16[2,16]{{1,0}}}}, metadata={{op_name="{STEP}/jvp(SegmentationModel)/backbone/dcn/pallas_call"}}
  %fusion.2 = f32[4] exponential(%images), {attributes("jvp(loss)/exp", UNKNOWN)}
  %all-reduce.1 = f32[4] all-reduce(%fusion.2), replica_groups={{{{0,1}}}}
  ROOT %multiply.1 = f32[4] multiply(%fusion.2, %fusion.2), {attributes("optimizer/mul", 30)}
}}
"""


@pytest.fixture
def costs(monkeypatch, tmp_path):
    (tmp_path / "table.json").write_text(
        json.dumps({"v5e": {"dcnv3_forward f32[9,8] bf16[16]": 250}})
    )
    monkeypatch.setattr(kernel_cycles, "TABLE", tmp_path / "table.json")
    kernel_cycles._table.cache_clear()
    yield {cost.instruction: cost for cost in instruction_costs(PROGRAM, "v5e")}
    kernel_cycles._table.cache_clear()


@pytest.mark.parametrize(
    ("instruction", "module", "direction", "kind", "cycles"),
    [
        ("fusion.1", "backbone/levels_0/blocks_1/conv", "forward", "matrix products", 1000),
        ("sum", "backbone", "backward", "reductions", 90),
        ("copy.1", "backbone", "recomputed", "copies and transposes", 200),
        ("dcnv3_forward.7", "backbone/dcn", "forward", "kernels", 500),
        ("fusion.2", "loss", "forward", "elementwise", None),
        ("all-reduce.1", OUTSIDE, "outside", "collectives", None),
        ("multiply.1", "optimizer", "outside", "elementwise", 30),
    ],
)
def test_each_instruction_has_its_place(costs, instruction, module, direction, kind, cycles):
    found = costs[instruction]
    assert (found.module, found.direction, found.kind) == (module, direction, kind)
    assert found.seconds == pytest.approx(cycles and cycles / CLOCK)


def test_what_is_inside_a_fusion_is_part_of_it(costs):
    assert "inner" not in costs
    assert set(costs) - {"next", "less"} == {
        *("fusion.1", "sum", "copy.1", "dcnv3_forward.7", "fusion.2", "all-reduce.1", "multiply.1")
    }


def test_a_kernel_of_another_size_is_not_known():
    (kernel,) = (cost for cost in instruction_costs(PROGRAM, "v5p") if cost.kind == "kernels")
    assert kernel.seconds is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{STEP}/jvp(loss)/Ww,bhwc->bhWc/dot_general", ("loss", "forward")),
        (f"{STEP}/jvp()/reduce_sum", (OUTSIDE, "forward")),
        (
            f"{STEP}/transpose(jvp(SegmentationModel))/backbone/dcn/jit(dcnv3)/cond/branch_0_fun/x",
            ("backbone/dcn", "backward"),
        ),
        (f"{STEP}/optimizer/mul;{STEP}/optimizer/add", ("optimizer", "outside")),
        (f"{STEP}/jvp(SegmentationModel)/neck/dcn/neck/blocks_1/x", ("neck/dcn", "forward")),
        ("broadcast.332", (OUTSIDE, "outside")),
        ("", (OUTSIDE, "outside")),
    ],
)
def test_the_module_is_read_from_the_name(name, expected):
    assert module_and_direction(name) == expected


def test_sums_add_up(costs):
    summary = summarize(list(costs.values()))
    # The scalars of the loop count by their bytes.
    whole = pytest.approx(1820 / CLOCK, rel=1e-3)
    assert summary["seconds"] == whole
    assert sum(summary["by_kind"].values()) == whole
    assert sum(summary["by_direction"].values()) == whole
    assert sum(sum(row.values()) for row in summary["by_module"].values()) == whole
    assert (summary["kernel_calls"], summary["kernel_calls_unknown"]) == (1, 0)
    assert summary["unknown"] == 1
    assert summary["largest"][0]["instruction"] == "fusion.1"
    text = format_summary(summary)
    assert "54.9%" in text.partition("largest")[0]


def test_the_picture_shows_the_shares(costs):
    summary = summarize(list(costs.values()))
    picture = ET.fromstring(draw_icicle(summary["by_module"], "title & more"))
    space = {"s": "http://www.w3.org/2000/svg"}
    assert picture.find("s:text", space).text == "title & more"
    rows = {
        group.find("s:title", space).text.partition(":")[0]: group.find("s:rect", space)
        for group in picture.iterfind("s:g", space)
    }
    assert float(rows["whole program"].get("height")) == pytest.approx(HEIGHT)
    share = float(rows["backbone/levels_0/blocks/conv"].get("height")) / HEIGHT
    assert share == pytest.approx(1000 / 1820, abs=1e-4)
