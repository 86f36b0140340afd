"""Defines what the catalogue knows of a file of weights and of a published model."""

import dataclasses
import pathlib
import re


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file of weights.

    None stands for what is not known, and for the URL of weights that were not published.

    Attributes:
      name: its name in this catalogue.
      url: where to download it.
      sha256: the hash of the file in hexadecimal, or its first digits if only they were published.
        Downloads are checked against it.
      license: SPDX identifier of the license that its authors publish it under. The datasets that
        it was trained on have terms of their own.
      gated_by: where to ask for access if the file can only be downloaded by hand.
    """

    name: str
    url: str | None
    sha256: str | None = None
    license: str | None = None
    gated_by: str | None = None

    @property
    def file_name(self) -> str:
        """Returns the name of the file at the end of its URL, or "" without a URL."""
        return (self.url or "").rpartition("/")[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Weights):
    """A segmentation model of the authors, named like its original config file without .py.

    None stands for a number or a log that was not published.

    Attributes:
      log_url: the log of its training, or the issue that holds it.
      dataset: the name of the config file for its dataset, without .py.
      config: the value of --config for the same model here.
      original_config: path of the config file in the original repository.
      crop_hw: height and width of training images.
      batch_size: images per training step, over all devices.
      steps: training steps.
      start: name in this catalogue of the weights that training starts from.
      backbone: name in this catalogue of the backbone, if the file holds all but this.
      params_m: parameters in millions, including those of the auxiliary head.
      flops_g: multiply-adds in billions to predict one image of `flops_hw`.
      flops_hw: height and width at which `flops_g` was counted, not always those of the crop.
      miou_ss: mIoU in percent at a single scale.
      miou_ms: mIoU in percent at several scales.
      miou_test: mIoU in percent on the test set, at several scales.
      mdice: mean Dice in percent at a single scale, published in the place of mIoU.
      train_speed: seconds per training step.
      train_time: time of all training steps, as published: "14.5h"; "2d (2n)" is two days on two
        nodes.
    """

    log_url: str | None
    dataset: str
    config: str
    original_config: str
    crop_hw: tuple[int, int]
    batch_size: int
    steps: int
    start: str
    backbone: str | None = None
    params_m: float | None = None
    flops_g: float | None = None
    flops_hw: tuple[int, int] | None = None
    miou_ss: float | None = None
    miou_ms: float | None = None
    miou_test: float | None = None
    mdice: float | None = None
    train_speed: float | None = None
    train_time: str | None = None


def make_model(
    name: str, config: str, *, folder: str | None = None, batch_size: int = 16, **facts
) -> Model:
    """Makes a model whose name says its crop and its steps, as in NAME_512x1024_160k_DATASET.

    Args:
      name: the name of its original config file, without .py.
      config: the value of --config for the same model here.
      folder: the folder of the original config file, by default that of the dataset.
      batch_size: images per training step.
      **facts: the other attributes of the model.
    """
    written = re.search(r"_(\d+)(?:x(\d+))?_(\d+)k_", name)
    assert written, name
    height, width, thousands = written.groups()
    dataset = pathlib.PurePosixPath(config.partition(":")[0]).stem
    return Model(
        name=name,
        config=config,
        dataset=dataset,
        original_config=f"segmentation/configs/{folder or dataset}/{name}.py",
        crop_hw=(int(height), int(width or height)),
        batch_size=batch_size,
        steps=1000 * int(thousands),
        **facts,
    )
