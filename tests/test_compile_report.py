"""What `--mode compile` says of a program, by figures whose meaning is known."""

import pytest
from tiny import tiny_config

from jaxseg import ahead_of_time, chips, compile_report
from jaxseg.ahead_of_time import Program
from jaxseg.collectives import Collective


# As the compiler for TPUs put it, 2026-11-22.
@pytest.mark.parametrize(
    "message",
    [
        "the total memory required for HLO temporaries (17.61G) exceeds available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 17.61G of 15.75G hbm.",
    ],
)
def test_how_much_would_be_needed_is_read_from_the_refusal(message):
    number, unit = ahead_of_time.OUT_OF_MEMORY.search(message).groups()
    assert (float(number), unit) == (17.61, "G")


def test_times_are_those_of_the_data_sheet():
    sums = Collective("all-reduce", (("f32", (10**9,)),), 16, 1)
    program = Program(1.0, flops=197e12, read_bytes=819e9, collectives=(sums,))
    found = compile_report.costs(program, chips.get("v5e"), 16 * 197e12, devices=16)
    assert found["seconds"] == pytest.approx(
        {"arithmetic": 1, "memory": 1, "links": 7.5e9 / 200e9, "network": 0}
    )
    assert found["mfu"] == pytest.approx(1 / found["step_seconds"])


def test_a_program_of_the_wrong_size_says_what_helps():
    config = tiny_config()
    mesh = compile_report.parallel.make_mesh({"data": 8, "fsdp": 1})
    state = {"params": []}
    said = "\n".join(compile_report.helps(config, mesh, state, 16, "train"))
    for setting in ("mesh.fsdp=8", "remat=True", "optim.accumulation=2", "crop_hw"):
        assert setting in said
