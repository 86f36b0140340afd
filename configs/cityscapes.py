"""InternImage on Cityscapes (2975 finely labelled training images, 500 for validation).

upernet_internimage_t: published 82.58 / 83.40 mIoU (single / multi-scale), 59 M parameters,
14.5 hours on 8 A100 GPUs.

    python -m jaxseg.main --config configs/cityscapes.py --config.data.root=DIR --workdir RUN

The published heads have 150 outputs although Cityscapes has 19 classes; predictions of the other
131 count as errors, and so they do here.
"""

from configs import common

VARIANTS = {
    "upernet_internimage_t": {"model": common.upernet(common.internimage("t"), num_classes=150)},
}


def get_config(variant="upernet_internimage_t"):
    return common.recipe(variant, VARIANTS)
