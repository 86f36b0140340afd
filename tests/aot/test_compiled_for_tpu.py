"""The TPU kernels, compiled for chips that are not here: at the sizes of the published models, and
split over many chips."""

import json
import os
import subprocess
import sys

import pytest

from pallas_kernels import shapes
from support.runs import LIBTPU, NEEDS_LIBTPU, ROOT

pytestmark = NEEDS_LIBTPU


def output_lines(program, *options):
    """What a program that compiles for TPUs prints, each line JSON."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{LIBTPU}"}
    environment.pop("XLA_FLAGS")
    command = [sys.executable, ROOT / program, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return map(json.loads, done.stdout.splitlines())


def compiled(*options):
    """Rows of `benchmarks/tpu_static.py`, by shape, chip, type and direction."""
    rows = output_lines("benchmarks/tpu_static.py", *options)
    return {(r["shape"], r["chip"], r["dtype"], r["direction"]): r for r in rows}


# Thousands of bundles, forward and backward, on v5e in bfloat16: for DCNv3 per row and displacement
# (137 + 5 · (216 + 3 · 128) and 212 + 6 · (308 + 6 · 147), 128 rows); for deformable attention per
# block and tile; for self-attention per group of strips. Of the first kernels of this kind, which
# these are to be no slower than.
FIRST_KERNELS = {
    "beit_l 896x896 block": 881 + 2344,
    "internimage_t 512x1024 stage 0": 402 + 941,
    "vit_adapter_l 896x896 injector": 874 + 2218,
    "vit_adapter_l 896x896 extractor": 1156 + 3323,
    "uper_head 512x1024 stride 8": 294 + 294,  # what the matrix units need
}


def test_kernels_compile_and_cost_no_more_than_the_first_of_their_kind():
    rows = compiled("--chip", "v5e", "--shapes", *FIRST_KERNELS)
    assert len(rows) == 2 * len(FIRST_KERNELS)
    for shape, most in FIRST_KERNELS.items():
        directions = [
            rows[shape, "v5e", "bfloat16", direction] for direction in ("forward", "backward")
        ]
        assert sum(row["kilobundles"] for row in directions) <= most


# v7x has the least memory for kernels, and v5p and v6e as much as v5e.
@pytest.mark.parametrize(
    "chip", ["v7x", *(pytest.param(chip, marks=pytest.mark.full) for chip in ("v5p", "v6e"))]
)
def test_kernels_compile_for_the_other_chips(chip):
    """The first at a size at which it takes a pass for some of the channels at a time."""
    names = ["internimage_t 1024x2048 stage 0", "vit_adapter_l 896x896 injector"]
    names.append("beit_l 896x896 block")
    rows = compiled("--chip", chip, "--memory-only", "--shapes", *names)
    assert len(rows) == 2 * len(names)


@pytest.mark.full
def test_the_two_cores_of_v5p_share_the_steps_of_a_kernel():
    """What all operators but the gradient of DCNv3 do: its steps share sums."""
    names = ["vit_adapter_t 512x512 extractor", "beit_l 480x480 block"]
    names.append("fcn_head on internimage_t 512x1024")
    rows = compiled("--chip", "v5e", "v5p", "--shapes", *names)
    for shape, chip, dtype, direction in rows:
        if chip == "v5p":
            of_one_core = rows[shape, "v5e", dtype, direction]["kilobundles"]
            assert rows[shape, chip, dtype, direction]["kilobundles"] < 0.65 * of_one_core


# In float32, all tokens of an image of this size need more memory than a kernel has.
TOO_LARGE = {"bfloat16": set(), "float32": {"beit_l 896x896 block"}}


@pytest.mark.full
@pytest.mark.parametrize(
    ("chip", "dtype"),
    [("v5e", "bfloat16"), ("v5e", "float32"), ("v7x", "bfloat16")],
)
def test_kernels_compile_at_every_size(chip, dtype):
    rows = compiled("--chip", chip, "--memory-only", "--dtype", dtype)
    names = {name for name, _ in shapes.every_call()}
    if dtype == "bfloat16":  # the only type of the convolution's kernel
        names |= {name for name, _ in shapes.convolutions()}
    assert {shape for shape, *_ in rows} == names - TOO_LARGE[dtype]


def test_split_over_sixteen_chips_only_the_loss_and_sums_are_communicated():
    (report,) = output_lines("tests/support/partition_for_tpu.py")
    split, whole = "P(('data', 'fsdp'),)", "P()"
    gradients = {
        "dcnv3": [split] * 3,
        "ms_deform_attn": [split] * 3,
        "self_attention": [split, whole],  # the second one is that of the table of biases
        "conv3x3": [split, whole],
    }
    for operator, expected in gradients.items():
        assert report[operator]["kernels"] == 2 + (operator == "conv3x3")
        # The loss of the convolution is float32, and its gradients are not.
        assert report[operator]["collectives"] == {"all-reduce": 1 + (operator == "conv3x3")}
        assert report[operator]["gradients"] == expected
        assert not report[operator]["pairs"]


@pytest.mark.full
def test_step_of_internimage_only_sums_gradients():
    name = "configs/cityscapes.py:upernet_internimage_t"
    (report,) = output_lines("tests/support/full_size_for_tpu.py", name, "1")
    assert list(report["sent"]) == ["all-reduce"]
    weights = sum(report["weights"])
    # Statistics of the batch and of the offsets are a thousandth more.
    assert weights < sum(report["sent"]["all-reduce"]) < 1.01 * weights
    assert report["needed_bytes"] < 4e9


@pytest.mark.full
def test_step_of_split_weights_neither_gathers_activations_nor_repeats_weights():
    name = "configs/coco_stuff164k.py:mask2former_beit_adapter_l"
    (report,) = output_lines("tests/support/full_size_for_tpu.py", name, "16")
    held = report["state_bytes"] + report["batch_bytes"]
    assert held < 12 * sum(report["weights"]) / 16 * 1.3  # some are too odd to be split
    assert report["argument_bytes"] == pytest.approx(held, rel=0.05)
    sums = report["sent"].pop("all-reduce")
    assert sum(sums) < sum(report["weights"])
    for kind, sizes in report["sent"].items():
        assert set(sizes) <= {*report["weights"], *report["parts"]}, kind
    assert report["needed_bytes"] < 16e9
