"""`--mode show`: the model's costs as published, the dataset, a picture of samples."""

import re

import cv2
import numpy as np

from jaxseg.show import model_table
from support.published import config_of
from support.runs import failure, run
from support.tiny_datasets import HW, write_cityscapes


def test_config_parameters_and_data_are_shown_and_samples_drawn(command, tmp_path):
    shown = run(command(tmp_path, "--mode=show"))
    assert re.search(r"^config\.data\.crop_hw +64,64$", shown, re.MULTILINE)
    assert "GFLOPs at 64x64" in shown
    assert "train: 6 images\n  sizes: 64x128 (6)\n" in shown
    assert "7  0 road" in shown
    assert cv2.imread(str(tmp_path / "samples.png")) is not None


def test_faults_of_the_data_are_shown_and_counted(command, tmp_path):
    write_cityscapes(tmp_path, "ulm_000000_000019", label=np.full(HW, 40, np.uint8))
    write_cityscapes(tmp_path, "ulm_000000_000019", split="val")
    shown = failure(command(tmp_path / "run", "--mode=show", **{"data.root": tmp_path}))
    assert "holds 40: not in the table" in shown
    assert "val: 1 images" in shown
    assert "1 faults in the data" in shown


def test_costs_of_a_published_model_are_those_of_its_table():
    *parts, model, published = model_table(
        config_of("upernet_internimage_t_512x1024_160k_cityscapes")
    ).splitlines()
    assert "GFLOPs at 1024x2048" in parts[0]
    assert model.split() == ["model", "59,077,148", "1,888.96"]
    assert published.startswith("published: 59 M parameters, 1889 GFLOPs")


def test_costs_of_a_published_model_whose_flops_are_not_are_those_of_a_crop():
    *parts, model, published = model_table(
        config_of("upernet_deit_adapter_tiny_512_160k_ade20k")
    ).splitlines()
    assert "GFLOPs at 512x512" in parts[0]
    assert model.split()[:2] == ["model", "36,062,428"]
    assert published.startswith("published: 36 M parameters, no FLOPs")
