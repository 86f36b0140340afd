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
from published weights. The last layer of each head has other classes and starts from random
weights, as the log reports. Where no model with the head is published, the backbone starts from its
pre-training.

    upernet_internimage_{t,s,b,l,xl}           from ADE20K
    upernet_deit_adapter_{t,s,b}               from ADE20K
    upernet_augreg_adapter_{b,l}               from ADE20K
    upernet_beit_adapter_l                     from ADE20K; crops of 640
    mask2former_internimage_{t,s,b,l,xl}       the backbone from ImageNet
    mask2former_beit_adapter_b                 from COCO-Stuff 10k
    mask2former_beit_adapter_l                 from ADE20K; crops of 640
    linear_internimage_{t,s,b,l,xl}            the backbone from ImageNet, frozen
    mask2former_dinov3_{vits16,vitb16,vitl16}  the backbone from DINOv3, frozen
    linear_dinov3_{vits16,vitb16,vitl16}       the same
    linear_dinov2_{vits14,…,vitl14_reg}        the backbone from DINOv2, frozen
    tiny                                       from random weights; trains on two CPU cores
"""

from jaxseg.recipes import base, dinov2, dinov3, internimage, vit_adapter

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
    # The settings that are chosen from the images when training starts, but for those that are
    # given. Empty: none.
    "fit": (
        "data.scale_wh",
        "data.crop_hw",
        "data.test_scale_wh",
        "steps",
        "eval.every_steps",
        "optim.warmup_steps",
        "optim.lr",
    ),
}
FREE_CROP = {**DATA, "fit": tuple(key for key in DATA["fit"] if key != "data.crop_hw")}
WINDOWS = {**DATA, "fit": (*DATA["fit"], "eval.crop_hw", "eval.stride_hw")}
# The tables of BEiT belong to its crop, which is therefore not chosen.
SMALLER = {**DATA, "fit": tuple(key for key in DATA["fit"] if not key.startswith("data."))}
LARGER = {
    **SMALLER,
    "scale_wh": (2048, 640),
    "crop_hw": (640, 640),
    "test_scale_wh": (2048, 640),
}
STEPS = 40_000
CLASSES = 150  # a placeholder until the file is read
OF_INTERNIMAGE = {  # the published model that each size of InternImage starts from
    "t": "upernet_internimage_t_512_160k_ade20k",
    "s": "upernet_internimage_s_512_160k_ade20k",
    "b": "upernet_internimage_b_512_160k_ade20k",
    "l": "upernet_internimage_l_640_160k_ade20k",
    "xl": "upernet_internimage_xl_640_160k_ade20k",
}
OF_DINOV3 = ("vits16", "vitb16", "vitl16")
OF_DINOV2 = ("vits14", "vits14_reg", "vitb14", "vitb14_reg", "vitl14", "vitl14_reg")
NARROW = {**base.NARROW, "full_size_masks": True}
OF_ADAPTERS = {
    "deit_adapter_t": "upernet_deit_adapter_tiny_512_160k_ade20k",
    "deit_adapter_s": "upernet_deit_adapter_small_512_160k_ade20k",
    "deit_adapter_b": "upernet_deit_adapter_base_512_160k_ade20k",
    "augreg_adapter_b": "upernet_augreg_adapter_base_512_160k_ade20k",
    "augreg_adapter_l": "upernet_augreg_adapter_large_512_160k_ade20k",
}


def own(recipe, init=None):
    """Returns a recipe on a user's own data, with the published weights that it starts from."""
    settings = {"steps": STEPS, "data": DATA, "eval": {"every_steps": STEPS // 10}}
    weights = {"init": f"zoo:{init}"} if init else {}
    return {**settings, **recipe, **weights}


def tiny():
    """Returns UPerNet on an InternImage, 2.2 M parameters, to train from scratch on CPUs."""
    backbone = {
        **internimage.backbone("t"),
        "channels": 24,
        "depths": (2, 2, 4, 2),
        "groups": (3, 6, 12, 24),
        "drop_path": 0.05,
    }
    model = base.upernet(backbone, CLASSES, channels=48)
    model["auxiliary_head"]["channels"] = 32
    return {
        "model": model,
        "data": {**FREE_CROP, "crop_hw": (256, 256)},
        # The rate is for 16 images, as in every recipe; it is halved for the 8 of this one.
        "optim": {"lr": 2e-3},
        "loss": {"terms": (("cross_entropy", 1.0), ("dice", 1.0))},
        "batch_size": 8,
        "init": "",
    }


def linear_of(size):
    recipe = internimage.linear(size, CLASSES)
    return {**recipe, "optim": {**recipe["optim"], "lr": 1e-3, "freeze": "backbone/"}}


VARIANTS = {
    **{
        f"upernet_internimage_{size}": own(internimage.upernet(size), name)
        for size, name in OF_INTERNIMAGE.items()
    },
    **{
        f"upernet_{backbone}": own(vit_adapter.upernet(backbone, CLASSES, WINDOWS, STEPS), name)
        for backbone, name in OF_ADAPTERS.items()
    },
    "upernet_beit_adapter_l": own(
        vit_adapter.upernet("beit_adapter_l", CLASSES, LARGER, STEPS),
        "upernet_beit_adapter_large_640_160k_ade20k_ss",
    ),
    **{
        f"mask2former_internimage_{size}": own(internimage.mask2former(CLASSES, size=size))
        for size in OF_INTERNIMAGE
    },
    "mask2former_beit_adapter_b": own(
        vit_adapter.mask2former("beit_adapter_b", CLASSES, SMALLER, STEPS, size=base.NARROW),
        "mask2former_beit_adapter_base_512_40k_cocostuff10k_ss",
    ),
    "mask2former_beit_adapter_l": own(
        vit_adapter.mask2former("beit_adapter_l", CLASSES, LARGER, STEPS),
        "mask2former_beit_adapter_large_640_160k_ade20k_ss",
    ),
    **{f"linear_internimage_{size}": own(linear_of(size)) for size in OF_INTERNIMAGE},
    **{
        f"mask2former_dinov3_{name}": own(
            dinov3.mask2former(
                name, CLASSES, WINDOWS, lr=1e-4, steps=STEPS, warmup_steps=1500, head=NARROW
            )
        )
        for name in OF_DINOV3
    },
    **{f"linear_dinov3_{name}": own(dinov3.linear(name, CLASSES, WINDOWS)) for name in OF_DINOV3},
    **{f"linear_dinov2_{name}": own(dinov2.linear(name, CLASSES, WINDOWS)) for name in OF_DINOV2},
    "tiny": own(tiny()),
}


def get_config(variant="upernet_internimage_t"):
    return base.recipe(variant, VARIANTS)
