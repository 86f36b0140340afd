"""Describes Pascal Context: images of VOC 2010, 59 classes, without and with a background class.

Source: Mottaghi et al., CVPR 2014.
"""

import dataclasses

from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.description import IGNORE, Dataset, LabelFormat, label_table, names

PASCAL_CONTEXT_59 = Dataset(
    name="pascal_context59",
    classes=names("""
        aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus,
        cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence,
        floor, flower, food, grass, ground, horse, keyboard, light, motorbike, mountain, mouse,
        person, plate, platform, pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow,
        sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood
    """),
    palette=ADE20K.palette[1:60],  # as in the reference
    images="JPEGImages",
    image_suffix=".jpg",
    labels=("SegmentationClassContext",),
    # The raw value 0 marks the background.
    label_formats=(LabelFormat(".png", label_table({0: IGNORE} | {k + 1: k for k in range(59)})),),
    label_origin="MMSegmentation's pascal_context.py makes labels and lists from the release.",
    split_list="ImageSets/SegmentationContext/{split}.txt",
)

PASCAL_CONTEXT_60 = dataclasses.replace(
    PASCAL_CONTEXT_59,
    name="pascal_context60",
    classes=("background", *PASCAL_CONTEXT_59.classes),
    palette=ADE20K.palette[:60],
    label_formats=(LabelFormat(".png", label_table({k: k for k in range(60)})),),
)
