"""`--mode show`: the model's costs as published, the dataset, a picture of samples."""

import cv2
from processes import run
from published import config_of

from jaxseg.show import model_table


def test_config_parameters_and_data_are_shown_and_samples_drawn(command, tmp_path):
    shown = run(command(tmp_path, "--mode=show"))
    assert "crop_hw" in shown
    assert "GFLOPs at 64x64" in shown
    assert "train: 6 images" in shown
    assert cv2.imread(str(tmp_path / "samples.png")) is not None


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
