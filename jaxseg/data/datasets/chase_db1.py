"""Describes CHASE_DB1: retinal vessels, as the first of two observers labeled them.

Source: Fraz et al., TBME 2012.
"""

from jaxseg.data.datasets.ade20k import ADE20K
from jaxseg.data.datasets.description import Dataset, LabelFormat, label_table

CHASE_DB1 = Dataset(
    name="chase_db1",
    classes=("background", "vessel"),
    palette=ADE20K.palette[[0, 2]],  # as in the reference
    images="images/{split}",
    image_suffix=".png",
    labels=("annotations/{split}",),
    label_formats=(LabelFormat("_1stHO.png", label_table({0: 0, 1: 1})),),
    label_origin="MMSegmentation's chase_db1.py makes images and labels from the release.",
)
