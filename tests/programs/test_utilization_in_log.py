"""MFU in the training log, on devices whose peak is known."""

import json

import pytest

from jaxseg.aot import hardware
from jaxseg.models.flops import count_flops
from jaxseg.models.segmentation_model import build_model
from jaxseg.train import train
from support.tiny import smallest_config

PEAK = 1e9


@pytest.mark.full
@pytest.mark.usefixtures("standard_promotion")
def test_where_the_chip_is_known_the_log_has_mfu(scenes, tmp_path, monkeypatch, capsys):
    chip = hardware.Chip(16e9, PEAK, 1e12, 1e11, 1e9)
    monkeypatch.setattr(hardware, "chip_of_device", lambda kind: chip)
    config = smallest_config()
    config.steps, config.data.root = 2, str(scenes)
    train(config, tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if line["kind"] == "train"]
    assert len(logged) == 2
    counted = 6 * sum(count_flops(build_model(config.model), config.data.crop_hw).values())
    for line in logged:
        done = line["mfu"] * line["step_seconds"] * 8 * PEAK  # eight devices
        assert done == pytest.approx(counted * config.batch_size, rel=0.01)
    assert f"images/s · MFU {logged[1]['mfu']:.1%} · data" in capsys.readouterr().out
