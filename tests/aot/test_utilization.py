"""MFU: the operations of a model over the time and the peak of the devices."""

import jax
import pytest

from jaxseg.aot import hardware, utilization
from jaxseg.config import load_config
from jaxseg.distributed.sharding import make_mesh
from jaxseg.models.flops import count_flops
from jaxseg.models.segmentation_model import build_model
from support.tiny import smallest_config

CHIP = hardware.Chip(16e9, 1e12, 1e12, 1e11, 1e9)


@pytest.fixture
def chip(monkeypatch):
    monkeypatch.setattr(hardware, "chip_of_device", lambda kind: CHIP)


def counted(config, hw):
    return sum(count_flops(build_model(config.model), hw).values())


def test_a_step_has_three_times_the_operations_of_a_forward_pass():
    config = smallest_config()
    forward = utilization.model_flops(config, (1, 64, 64, 3), "eval")
    assert forward == 2 * counted(config, (64, 64)) > 0
    assert utilization.model_flops(config, (4, 64, 64, 3), "train") == 4 * 3 * forward


def test_the_least_time_is_that_of_all_devices_at_their_peak(chip):
    config, mesh = smallest_config(), make_mesh({"data": 8, "fsdp": 1})
    seconds = utilization.seconds_at_peak(config, mesh, (16, 64, 64, 3), "train")
    assert seconds == pytest.approx(6 * 16 * counted(config, (64, 64)) / (8 * 1e12))


def test_without_a_data_sheet_there_is_no_peak():
    config, mesh = smallest_config(), make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    assert utilization.peak_flops(config, mesh) is None
    assert utilization.seconds_at_peak(config, mesh, (1, 64, 64, 3), "train") is None


def test_a_type_without_a_known_rate_has_no_peak(chip):
    config, mesh = smallest_config(), make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    config.model.dtype = "float64"
    assert utilization.peak_flops(config, mesh) is None


@pytest.mark.parametrize(("name", "ratio"), [("h100", 2), ("v5e", 1)])
def test_float32_is_multiplied_as_tf32_on_a_gpu_and_as_bfloat16_on_a_tpu(name, ratio):
    chip = hardware.find_chip(name)
    assert chip.peak_flops("bfloat16") == chip.flops == ratio * chip.peak_flops("float32")


def test_a_part_of_a_gpu_has_no_data_sheet():
    assert hardware.chip_of_device("NVIDIA H200 MIG 1g.18gb") is None


@pytest.mark.parametrize(
    "recipe",  # one of each pair of backbone and head
    [
        "ade20k:upernet_deit_adapter_t",
        "ade20k:upernet_uniperceiver_adapter_l",
        "cityscapes:upernet_internimage_t",
        "coco_stuff10k:mask2former_beit_adapter_b",
        "coco_stuff164k:upernet_beit_adapter_l",
        "mapillary:segformer_internimage_l",
        "nyu_depth_v2:mask2former_internimage_h",
    ],
)
def test_every_kind_of_model_is_counted_at_its_crop(recipe):
    config = load_config(recipe)
    assert utilization.model_flops(config, (2, *config.data.crop_hw, 3), "train") > 1e12
