"""What `--mode compile` says of a program, by figures whose meaning is known."""

import json

import jax
import numpy as np
import pytest

from jaxseg.aot import hardware
from jaxseg.aot.collectives import Collective
from jaxseg.aot.costs import costs, suggestions
from jaxseg.aot.programs import OUT_OF_MEMORY, Program
from jaxseg.distributed.sharding import make_mesh
from support.runs import LIBTPU, NEEDS_LIBTPU, ROOT, run
from support.tiny import tiny_config


# As the compiler for TPUs put it, 2026-11-22.
@pytest.mark.parametrize(
    "message",
    [
        "the total memory required for HLO temporaries (17.61G) exceeds available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 17.61G of 15.75G hbm.",
    ],
)
def test_how_much_would_be_needed_is_read_from_the_refusal(message):
    number, unit = OUT_OF_MEMORY.search(message).groups()
    assert (float(number), unit) == (17.61, "G")
    assert not OUT_OF_MEMORY.search(message.replace("hbm", "smem").replace("HBM", "x"))


def test_times_are_those_of_the_data_sheet():
    sums = Collective("all-reduce", (("f32", (10**9,)),), 16, 1)
    program = Program(1.0, flops=197e12, memory_traffic_bytes=819e9, collectives=(sums,))
    found = costs(program, hardware.find_chip("v5e"), 16 * 197e12, devices=16)
    sheet = found["data_sheet"]
    assert sheet["seconds"] == pytest.approx(
        {"arithmetic": 1, "memory": 1, "links": 7.5e9 / 200e9, "network": 0}
    )
    assert sheet["step_seconds"] == sum(sheet["seconds"].values())


def test_a_program_of_the_wrong_size_says_what_helps():
    config = tiny_config()
    mesh = make_mesh({"data": 8, "fsdp": 1})
    replicated = jax.NamedSharding(mesh, jax.P())
    state = {"params": jax.ShapeDtypeStruct((10**9,), np.float32, sharding=replicated)}
    said = "\n".join(suggestions(config, mesh, state, 16, "train"))
    for setting in (
        "fsdp=8 shards the 4.0 GB",
        "remat=True",
        "accumulation, up to 2",
        "crop_hw",
    ):
        assert setting in said


@pytest.fixture
def compiled(command, tmp_path):
    """What `--mode compile` says of the smallest model, and its report."""

    def make(*arguments, **changes):
        call = command(tmp_path, "--mode=compile", "--topology=v5e:2x2", *arguments, **changes)
        call["env"] = call["env"] | {"PYTHONPATH": f"{ROOT}:{LIBTPU}", "XLA_FLAGS": ""}
        said = run(call)
        return said, json.loads((tmp_path / "compile.json").read_text())

    return make


@NEEDS_LIBTPU
def test_what_a_chip_holds_and_sends_is_reported(compiled, tmp_path):
    said, report = compiled(batch_size=4)
    assert report["fits"]
    assert report["mesh"] == {"data": 4, "fsdp": 1}
    assert report["images"] == [4, 64, 64]
    # Weights and two moments of AdamW in float32, and an image with its labels; small arrays are
    # padded to tiles of 8 x 128.
    state, image = 12 * report["parameters"], 4 * 64 * 64 * (3 + 1)
    assert state + image < report["memory"]["arguments"] < 10 * (state + image)
    assert list(report["collectives"]) == ["all-reduce"]
    assert "tiny, train, on v5e:2x2: 4 devices, mesh data 4, fsdp 1" in said
    assert "collectives  each device sends: all-reduce" in said
    found = report["by_instruction"]
    assert found["source"] == "compiler"
    assert found["seconds"] == pytest.approx(sum(found["by_kind"].values()))
    assert found["step_seconds"] > found["seconds"]  # with the collectives
    modules = {path.partition("/")[0] for path in found["by_module"]}
    assert {"backbone", "decode_head", "loss", "optimizer"} <= modules
    assert "largest instructions" in said
    assert (tmp_path / "compile.svg").read_text().startswith("<svg")


@NEEDS_LIBTPU
@pytest.mark.full
def test_a_program_that_does_not_fit_is_an_answer(compiled):
    said, report = compiled(**{"batch_size": 64, "data.crop_hw": (1024, 2048)})
    assert not report["fits"]
    memory = report["memory"]
    missing = (memory["needed"] - memory["capacity"]) / 1e9
    assert f"a device: does not fit, {missing:.2f} GB over capacity" in said
    assert "config.optim.accumulation, up to 16: fewer images at a time" in said


@NEEDS_LIBTPU
@pytest.mark.full
def test_only_sums_pass_the_network_between_slices(compiled):
    _, report = compiled("--slices=2", **{"batch_size": 8, "mesh.fsdp": 4})
    assert report["mesh"] == {"data": 2, "fsdp": 4}
    sent = {kind: total["bytes"] for kind, total in report["collectives"].items()}
    # Weights and two moments, as they are padded to tiles, are the arguments: what is summed over
    # the network is no more than the gradients.
    assert 0 < sent["send"] < report["memory"]["arguments"] / 3
    assert report["data_sheet"]["seconds"]["network"] > 0


@NEEDS_LIBTPU
@pytest.mark.full
def test_each_chip_sends_its_part_of_the_sums_to_other_slices(compiled):
    _, report = compiled("--slices=2", batch_size=8)
    own_gradients = 4 * report["parameters"] / 4
    # Two slices: each sends what it gave, once. The rest are sums of statistics.
    assert own_gradients / 2 < report["collectives"]["send"]["bytes"] < 1.5 * own_gradients


@NEEDS_LIBTPU
@pytest.mark.full
def test_evaluation_sends_nothing(compiled):
    _, report = compiled("--what=eval")
    assert report["collectives"] == {}
    assert report["images"] == [4, 64, 128]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_a_device_is_known_by_what_jax_calls_it(kind, name):
    assert hardware.chip_of_device(kind) is hardware.CHIPS[name]
    assert hardware.chip_of_device("NVIDIA H100 PCIe") is None
