"""The table for a README, made from result files."""

import json

import pytest

from jaxseg.bench import table
from jaxseg.bench.measurement import Measurement
from jaxseg.bench.timing import summarize
from jaxseg.errors import ConfigError

VERSIONS = {"python": "3.11.7", "jaxseg": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2"}


def measurement(**changes):
    facts = {
        "what": "train",
        "recipe": "cityscapes:upernet_internimage_t",
        "overrides": [],
        "device": "TPU v5 lite",
        "devices": 4,
        "batch": 16,
        "dtype": "bfloat16",
        "image_hw": (512, 1024),
        "images_per_second": 160.0,
        "seconds": summarize([0.1, 0.1, 0.1, 0.2]),
        "compile_seconds": 61.25,
        "compiled_before": False,
        "peak_memory_bytes": 3_450_000_000,
        "flops_per_image": 2.8e12,
        "mfu": 0.3456,
        "versions": VERSIONS,
        "date": "2026-01-02",
    }
    return Measurement(**facts | changes)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


def test_a_file_becomes_a_row(write):
    found = table.read_measurement(write("a.json", measurement().as_json()))
    head, rule, row, empty, made = table.markdown_table([found]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row == (
        "| train | `cityscapes:upernet_internimage_t` | 4 x TPU v5 lite | 16 | 512 x 1024 |"
        " bfloat16 | 160.0 | 100.0 | 185.0 | 61.2 | 3.45 | 34.6% |  |"
    )
    assert empty == ""
    assert made == "- 2026-01-02, jax 0.10.2, jaxlib 0.10.2, python 3.11.7"


def test_what_is_not_known_is_an_empty_cell(write):
    unknown = {"mfu": None, "peak_memory_bytes": None, "compile_seconds": None, "dtype": None}
    found = measurement(**unknown, what="data", data_share=0.25).as_json()
    (row,) = (line for line in table.markdown_table([found]).splitlines() if "data" in line)
    assert row.endswith("| 512 x 1024 |  | 160.0 | 100.0 | 185.0 |  |  |  | 25.0% |")


def test_rows_keep_their_order_and_share_their_notes():
    found = [
        measurement(overrides=["model.backbone.remat=True"]).as_json(),
        measurement(compiled_before=True, limit="32 a device: RESOURCE_EXHAUSTED").as_json(),
        measurement(kernels_refused={"dcnv3": "too many registers"}).as_json(),
    ]
    first, second, _, _, *notes = table.markdown_table(found).splitlines()[2:]
    assert "| `cityscapes:upernet_internimage_t`, model.backbone.remat=True |" in first
    assert "| 61.2 (cached) |" in second
    assert len(notes) == 3
    assert notes[1].endswith("is the largest; the next: 32 a device: RESOURCE_EXHAUSTED")
    assert notes[2].endswith("XLA replaces the kernel of dcnv3 (too many registers)")


def test_without_measurements_the_table_is_empty():
    assert table.markdown_table([]).splitlines()[:2] == [table.HEAD, table.RULE]


def test_a_file_that_is_no_measurement_is_refused(write, tmp_path):
    with pytest.raises(ConfigError, match=r"kernels\.json is not a measurement of a recipe"):
        table.read_measurement(write("kernels.json", {"rows": []}))
    with pytest.raises(ConfigError, match=r"cannot read .*none\.json"):
        table.read_measurement(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"what"')
    with pytest.raises(ConfigError, match=r"half\.json is not JSON"):
        table.read_measurement(tmp_path / "half.json")
