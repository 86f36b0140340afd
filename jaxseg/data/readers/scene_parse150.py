"""Reads `scene_parse150` of TensorFlow Datasets: ADE20K's images with instance labels.

The builder of that dataset takes the instance labels of the Places Challenge 2017, not the labels
of the 150-class benchmark. Red is one of 100 countable classes, from 1 on, in the order of the 150
classes. Green is the number of the instance. The other 50 classes (wall, sky, floor and so on) are
0, like pixels without a class, and are therefore ignored.
"""

import io
from dataclasses import dataclass

import cv2

from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.description import IGNORE, LabelFormat, label_table, names
from jaxseg.data.decoding.pictures import PictureFile, read_image

NAME = "scene_parse150"
# The benchmark's validation split is called "test" in TensorFlow Datasets.
SPLITS = {"val": "test", "validation": "test"}
UNCOUNTABLE = names("""
    wall, building, sky, floor, tree, ceiling, road, grass, sidewalk, earth, mountain, plant,
    water, house, sea, rug, field, rock, base, sand, skyscraper, grandstand, path, runway, stairway,
    river, bridge, blind, hill, bar, hovel, tower, dirt track, land, escalator, buffet, poster,
    stage, conveyer belt, canopy, swimming pool, waterfall, tent, cradle, tank, lake, blanket, pier,
    crt screen, shower
""")
COUNTABLE = [k for k, name in enumerate(ADE20K.classes) if name not in UNCOUNTABLE]
TRAIN_IDS = {0: IGNORE} | {k + 1: train_id for k, train_id in enumerate(COUNTABLE)}
LABELS = LabelFormat(".png", label_table(TRAIN_IDS))


@dataclass(frozen=True)
class RedChannel:
    """Reads the red channel of a color picture as a gray picture.

    Attributes:
      colors: the color picture.
    """

    colors: PictureFile

    @property
    def stem(self) -> str:
        return self.colors.stem

    def read_bytes(self) -> bytes:
        red = read_image(self.colors)[..., 2]
        return cv2.imencode(".png", red, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()

    def open(self, mode: str) -> io.BufferedIOBase:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return str(self.colors)
