"""The input pipeline as it is measured: rates, and the share of waiting beside a step."""

import pytest

from jaxseg.bench.pipeline import measure_pipeline
from jaxseg.errors import DataError
from support.tiny import tiny_config


@pytest.fixture
def config(scenes):
    config = tiny_config()
    config.data.root = str(scenes)
    return config


def test_batches_are_timed_and_what_devices_do_is_left_out(config):
    found = measure_pipeline(config, recipe="tiny:tiny", batch=2, warmup=1, steps=3).as_json()
    assert (found["what"], found["batch"], found["image_hw"]) == ("data", 2, (64, 64))
    assert found["images_per_second"] == 2 / found["seconds"]["p50"]
    assert (found["seconds"]["steps"], found["workers"]) == (3, 0)
    unknown = ("dtype", "compile_seconds", "peak_memory_bytes", "flops_per_image", "mfu")
    assert all(found[key] is None for key in (*unknown, "data_share"))


def test_beside_a_slow_step_nobody_waits(config):
    options = {"recipe": "tiny:tiny", "batch": 2, "warmup": 1, "steps": 3}
    found = measure_pipeline(config, step_seconds=0.2, **options)
    assert found.seconds.p50 >= 0.2
    assert 0 <= found.data_share < 1


def test_workers_are_timed_in_rounds(config):
    config.data.workers = 2
    found = measure_pipeline(config, recipe="tiny:tiny", batch=2, warmup=1, steps=2)
    assert (found.workers, found.seconds.steps) == (2, 2)


def test_missing_data_are_told(config, tmp_path):
    config.data.root = str(tmp_path)
    with pytest.raises(DataError, match="No cityscapes images"):
        measure_pipeline(config, recipe="tiny:tiny")
