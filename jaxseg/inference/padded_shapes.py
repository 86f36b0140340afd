"""Chooses the shapes that images of any size are padded to, so that few programs are compiled."""

from collections.abc import Callable

from ml_collections import ConfigDict

from jaxseg.data import transforms, views
from jaxseg.inference.batcher import Hw, Program
from jaxseg.models.segmentation_model import SegmentationModel

MULTIPLE = 32  # of every length: the stride of the coarsest features
LADDER = {side for k in range(5, 30) for side in (2**k, 3 * 2**k)}  # 32 64 96 128 192 256 384


def program_chooser(model: SegmentationModel, config: ConfigDict) -> Callable[[Hw], Program]:
    """Returns the function that gives the program for a crop of some height and width.

    Each side is padded to the next length of 32, 64, 96, 128, 192, 256, ... and of those that the
    protocol names: the sides of the windows and of the test scale, up to the next multiple of 32.
    Crops of the protocol's own sizes run as they are. So do all crops of a model that does not take
    padding.

    Args:
      model: the model to run.
      config: the resolved config, whose `eval` part describes the protocol.
    """
    if not model.takes_padding:
        return lambda hw: Program(hw, padded=False)
    named = set(config.eval.crop_hw)
    for ratio in views.evaluation_rule(config).ratios:
        named.update(transforms.scaled(config.data.test_scale_wh, ratio))
    lengths = sorted({-(-side // MULTIPLE) * MULTIPLE for side in named} | LADDER)

    def choose(hw):
        if named.issuperset(hw):
            return Program(hw, padded=False)
        height, width = (next(n for n in lengths if n >= side) for side in hw)
        return Program((height, width), padded=True)

    return choose
