"""Describes NYU Depth v2: rooms, 40 classes.

Sources: Silberman et al., ECCV 2012, and Gupta et al., CVPR 2013.
"""

from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.description import IGNORE, Dataset, LabelFormat, label_table, names

NYU_DEPTH_V2 = Dataset(
    name="nyu_depth_v2",
    classes=names("""
        wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter,
        blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books,
        refridgerator, television, paper, towel, shower curtain, box, whiteboard, person, night
        stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop
    """),
    palette=ADE20K.palette[:40],  # as in the reference
    images="image",
    image_suffix=".png",
    labels=("label40",),
    # The raw value 0 marks unlabeled pixels.
    label_formats=(LabelFormat(".png", label_table({0: IGNORE} | {k + 1: k for k in range(40)})),),
    split_list="{split}.txt",
    label_origin="Images, labels of 40 classes and lists are made from the release's .mat files.",
)
