"""Mapillary Vistas v1.2 (Neuhold et al., ICCV 2017) with its 66 labels mapped to Cityscapes' 19."""

import numpy as np

from jaxseg.data.cityscapes import CITYSCAPES
from jaxseg.data.description import IGNORE, Dataset, LabelFormat

RAW_IDS = {
    "road": (13, 24, 41),  # also lane markings and manholes
    "sidewalk": (2, 15),  # also curbs
    "building": (17,),
    "wall": (6,),
    "fence": (3,),
    "pole": (45, 47),  # also utility poles
    "traffic light": (48,),
    "traffic sign": (50,),  # from the front
    "vegetation": (30,),
    "terrain": (29,),
    "sky": (27,),
    "person": (19,),
    "rider": (20, 21, 22),  # on bicycles, motorcycles and others
    "car": (55,),
    "truck": (61,),
    "bus": (54,),
    "train": (58,),  # all that is on rails
    "motorcycle": (57,),
    "bicycle": (52,),
}


def cityscapes_train_ids() -> np.ndarray:
    """uint8 [256], as the reference has it: of the raw ids up to 65, those that no class takes are
    ignored, but the values above, which the dataset does not use, become 0 (road), even 255."""
    table = np.zeros(256, np.uint8)
    table[:66] = IGNORE
    for train_id, name in enumerate(CITYSCAPES.classes):
        table[list(RAW_IDS[name])] = train_id
    table.flags.writeable = False
    return table


MAPILLARY_TO_CITYSCAPES = Dataset(
    name="mapillary_to_cityscapes",
    classes=CITYSCAPES.classes,
    palette=CITYSCAPES.palette,
    images="{split}/images",
    image_suffix=".jpg",
    # As in the newer download, which holds v2.0 too, and as in the older one.
    labels=("{split}/v1.2/labels", "{split}/labels"),
    label_formats=(LabelFormat(".png", cityscapes_train_ids()),),
)
