"""Trains on your own images and masks.

    python -m jaxseg.main --config configs/custom.py:upernet_internimage_t \\
        --config.data.root=DIR --config.data.classes=names.txt --workdir RUN

DIR holds:

    images/{train,val}/**/NAME.jpg    JPEG, PNG, TIFF, BMP or WebP of any sizes
    masks/{train,val}/**/NAME.png     values or colors; or NAME.json of LabelMe

The file names.txt has one class per line. The first class is 0 in the masks, the next 1, and so on.
The value 255 is ignored. Other values, or colors, are written before the names. Values with the
same name are one class, and values named `ignore` are ignored:

    0: background
    255: vessel

Without that file, `--mode show` proposes one; with it, it checks whether images, labels and classes
fit together. The settings below allow other folders, suffixes and kinds of labels;
docs/guides/custom-data.md has a table of what tools export.

The number of classes follows from the file, and the heads have that many outputs. Training starts
from the published weights for ADE20K. The last layer of each head has other classes and starts from
random weights, as the log reports. The variants are upernet_internimage_{t,s,b} and
upernet_deit_adapter_{t,s,b}.
"""

from jaxseg.recipes import base, internimage, vit_adapter

DATA = {
    "dataset": "custom",
    "root": "data/custom",
    "classes": "",  # the file of class names; class_lines then holds its lines
    "class_lines": (),  # the lines of that file, filled in when the config is loaded
    "images": "images/{split}",  # folder of the images, below root
    "image_suffix": "",  # end of the names of image files; empty: every kind of picture
    "labels": "masks/{split}",  # folder or JSON file of the labels, below root
    "label_suffix": "",  # takes the place of the image suffix; empty: every kind of mask, and .json
    "split_list": "",  # text file that names the images of a split, below root; with {split}
    "train_split": "train",
    "val_split": "val",
    "val_share": 0.0,  # the share of the training images that are for validation, in place of val
    "share_by": "file",  # or folder: its images stay together, as frames of a video
    "share_seed": 0,  # another one draws other images for validation
    "scale_wh": (2048, 512),
    "crop_hw": (512, 512),
    "test_scale_wh": (2048, 512),
    "test_multiple": 32,
}
STEPS = {"steps": 40_000}
CLASSES = 150  # a placeholder until the file is read
ADAPTERS = {"t": "tiny", "s": "small", "b": "base"}

VARIANTS = {
    **{
        f"upernet_internimage_{size}": {
            **internimage.upernet(size),
            **STEPS,
            "data": DATA,
            "eval": {"every_steps": 4_000},
            "init": f"zoo:upernet_internimage_{size}_512_160k_ade20k",
        }
        for size in ("t", "s", "b")
    },
    **{
        f"upernet_deit_adapter_{size}": {
            **vit_adapter.upernet(f"deit_adapter_{size}", CLASSES, DATA, **STEPS),
            "init": f"zoo:upernet_deit_adapter_{name}_512_160k_ade20k",
        }
        for size, name in ADAPTERS.items()
    },
}


def get_config(variant="upernet_internimage_t"):
    return base.recipe(variant, VARIANTS)
