"""Lists the datasets by name."""

from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.chase_db1 import CHASE_DB1
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.data.datasets.coco_stuff import COCO_STUFF_10K, COCO_STUFF_164K
from jaxseg.data.datasets.description import CUSTOM, Dataset
from jaxseg.data.datasets.mapillary import (
    MAPILLARY_65,
    MAPILLARY_66,
    MAPILLARY_TO_CITYSCAPES,
    MAPILLARY_TO_CITYSCAPES_STRICT,
)
from jaxseg.data.datasets.nyu_depth_v2 import NYU_DEPTH_V2
from jaxseg.data.datasets.pascal_context import PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from jaxseg.data.datasets.potsdam import POTSDAM
from jaxseg.errors import ConfigError

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ADE20K,
        CHASE_DB1,
        CITYSCAPES,
        COCO_STUFF_10K,
        COCO_STUFF_164K,
        MAPILLARY_65,
        MAPILLARY_66,
        MAPILLARY_TO_CITYSCAPES,
        MAPILLARY_TO_CITYSCAPES_STRICT,
        NYU_DEPTH_V2,
        PASCAL_CONTEXT_59,
        PASCAL_CONTEXT_60,
        POTSDAM,
    )
}


def get_dataset(name: str) -> Dataset:
    """Returns the dataset of that name.

    Raises:
      ConfigError: if there is none. The message lists the known names.
    """
    if name not in DATASETS:
        known = ", ".join([*DATASETS, f"{CUSTOM} (configs/custom.py)"])
        raise ConfigError(f"Unknown dataset {name!r}. Known: {known}.")
    return DATASETS[name]
