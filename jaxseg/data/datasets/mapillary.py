"""Describes Mapillary Vistas v1.2 in four variants (Neuhold et al., ICCV 2017).

Two have the dataset's own classes, with and without the class for unlabeled pixels. Two are mapped
to the 19 classes of Cityscapes: one with the published table, and one without the table's quirk.
"""

import dataclasses

import numpy as np

from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.description import (
    IGNORE,
    Dataset,
    LabelFormat,
    colors,
    label_table,
    names,
)

CLASSES = names("""
    Bird, Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, Crosswalk -
    Plain, Curb Cut, Parking, Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk,
    Bridge, Building, Tunnel, Person, Bicyclist, Motorcyclist, Other Rider, Lane Marking -
    Crosswalk, Lane Marking - General, Mountain, Sand, Sky, Snow, Terrain, Vegetation,
    Water, Banner, Bench, Bike Rack, Billboard, Catch Basin, CCTV Camera, Fire Hydrant,
    Junction Box, Mailbox, Manhole, Phone Booth, Pothole, Street Light, Pole, Traffic Sign
    Frame, Utility Pole, Traffic Light, Traffic Sign (Back), Traffic Sign (Front), Trash
    Can, Bicycle, Boat, Bus, Car, Caravan, Motorcycle, On Rails, Other Vehicle, Trailer,
    Truck, Wheeled Slow, Car Mount, Ego Vehicle, Unlabeled
""")
PALETTE = colors("""
    a52a2a 00c000 c4c4c4 be9999 b4a5b4 5a7896 66669c 8040ff 8c8cc8 aaaaaa faaaa0 606060 e6968c
    804080 6e6e6e f423e8 966464 464646 96785a dc143c ff0000 ff0064 ff00c8 c88080 ffffff 40aa40
    e6a032 4682b4 beffff 98fb98 6b8e23 00aa1e ffff80 fa001e 648cb4 dcdcdc dc8080 de2828 64aa1e
    282828 212121 6480a0 8e0000 466496 d2aa64 999999 808080 000050 faaa1e c0c0c0 dcdc00 8c8c14
    770b20 9600ff 003c64 00008e 00005a 0000e6 005064 804040 00006e 000046 0000c0 202020 780a0a
    000000
""")
UNLABELED = 65

MAPILLARY_66 = Dataset(
    name="mapillary66",
    classes=CLASSES,
    palette=PALETTE,
    images="{split}/images",
    image_suffix=".jpg",
    # The first folder is that of the newer download, which also holds v2.0. The older one has the
    # second.
    labels=("{split}/v1.2/labels", "{split}/labels"),
    label_formats=(LabelFormat(".png", label_table({k: k for k in range(66)})),),
)

MAPILLARY_65 = dataclasses.replace(
    MAPILLARY_66,
    name="mapillary65",
    classes=CLASSES[:UNLABELED],
    palette=PALETTE[:UNLABELED],
    label_formats=(
        LabelFormat(".png", label_table({k: k for k in range(UNLABELED)} | {UNLABELED: IGNORE})),
    ),
)

# The raw ids of Mapillary that make up each class of Cityscapes.
RAW_IDS = {
    "road": (13, 24, 41),  # also lane markings and manholes
    "sidewalk": (2, 15),  # also curbs
    "building": (17,),
    "wall": (6,),
    "fence": (3,),
    "pole": (45, 47),  # also utility poles
    "traffic light": (48,),
    "traffic sign": (50,),  # seen from the front
    "vegetation": (30,),
    "terrain": (29,),
    "sky": (27,),
    "person": (19,),
    "rider": (20, 21, 22),  # on bicycles, motorcycles and others
    "car": (55,),
    "truck": (61,),
    "bus": (54,),
    "train": (58,),  # everything on rails
    "motorcycle": (57,),
    "bicycle": (52,),
}


CITYSCAPES_IDS = label_table(
    dict.fromkeys(range(len(CLASSES)), IGNORE)
    | {raw: train_id for train_id, name in enumerate(CITYSCAPES.classes) for raw in RAW_IDS[name]}
)


def train_ids_as_published() -> np.ndarray:
    """Returns the reference's train id of every raw id, uint8 [256].

    Raw ids up to 65 that belong to no class are ignored. The dataset does not use the values above
    65. The reference maps them to 0 (road), even 255.
    """
    table = np.where(np.arange(256) < len(CLASSES), CITYSCAPES_IDS, 0).astype(np.uint8)
    table.flags.writeable = False
    return table


MAPILLARY_TO_CITYSCAPES = dataclasses.replace(
    MAPILLARY_66,
    name="mapillary_to_cityscapes",
    classes=CITYSCAPES.classes,
    palette=CITYSCAPES.palette,
    label_formats=(LabelFormat(".png", train_ids_as_published()),),
)

# This variant lacks the quirk: values above 65 are errors, except 255, which is ignored.
MAPILLARY_TO_CITYSCAPES_STRICT = dataclasses.replace(
    MAPILLARY_TO_CITYSCAPES,
    name="mapillary_to_cityscapes_strict",
    label_formats=(LabelFormat(".png", CITYSCAPES_IDS),),
)
