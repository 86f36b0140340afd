"""Describes Cityscapes: street scenes, 19 classes.

Source: Cordts et al., arXiv:1604.01685.
"""

from jaxseg.data.datasets.description import (
    IGNORE,
    Dataset,
    LabelFormat,
    colors,
    label_table,
    names,
)

# The raw id of each of the 19 classes, from the label table that is published with the dataset. The
# other ids from 0 to 33 exist and are ignored.
RAW_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# The colors of the raw ids from 0 to 33. The last color is that of the license plate (id -1).
RAW_PALETTE = colors("""
    000000 000000 000000 000000 000000 6f4a00 510051 804080 f423e8 faaaa0 e6968c 464646
    66669c be9999 b4a5b4 966464 96785a 999999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4
    dc143c ff0000 00008e 000046 003c64 00005a 00006e 005064 0000e6 770b20 00008e
""")

CITYSCAPES = Dataset(
    name="cityscapes",
    classes=names("""
        road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation,
        terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle
    """),
    palette=colors("""
        804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23
        98fb98 4682b4 dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20
    """),
    images="leftImg8bit/{split}",
    image_suffix="_leftImg8bit.png",
    labels=("gtFine/{split}",),
    # The recipes with coarse data train on refined labels, which are named like the fine ones.
    labels_of={"train_extra": ("refinement_final/{split}",)},
    label_formats=(
        LabelFormat("_gtFine_labelTrainIds.png", label_table({k: k for k in range(19)})),
        LabelFormat(
            "_gtFine_labelIds.png",
            label_table(
                dict.fromkeys(range(34), IGNORE)
                | {raw: train_id for train_id, raw in enumerate(RAW_IDS)}
            ),
        ),
    ),
    subfolders="<city>/",
)
